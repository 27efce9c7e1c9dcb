//! Containers of systemd-nspawn and of LXC are workloads by their network namespace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use crate::lab::netns::wait_end;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, sh, text, until, v4};
use crate::long;
use crate::nspawn::{Container, Root, on, remove};
use crate::resolvers::unpacked;

pub const CASES: &[Case] = &[
    long!(a_container_of_systemd_nspawn_is_a_workload),
    long!(a_container_of_lxc_is_a_workload),
];

/// What a container runs for as long as it is wanted.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

/// The workload is gone, as it is where a namespace is known by its process only.
fn is_detached(a: &Host, name: &str) -> Result<()> {
    until(&format!("{name} is detached"), SOON, || {
        Ok(a.byway(&["workload", "show", name])?.code == 5)
    })
    .map(drop)
}

fn is_shown(a: &Host, name: &str, state: &str) -> Result<()> {
    until(&format!("{name} is {state}"), SOON, || {
        Ok(text(&a.json(&["workload", "show", name])?, "state")? == state)
    })
    .map(drop)
}

fn a_container_of_systemd_nspawn_is_a_workload(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    let root = Root::make(lab.dir().join("root"))?;
    // A namespace that was made and attached before: the container finds names by the resolver that byway wrote.
    let web = lab.workload("web")?;
    let address = v4(&a.attach(&web, "lab", "web")?)?;
    let words = [
        "--bind-ro=/usr".to_owned(),
        format!("--network-namespace-path=/run/netns/{}", web.name()),
        format!(
            "--bind-ro=/etc/netns/{}/resolv.conf:/etc/resolv.conf",
            web.name()
        ),
        format!("--machine={}", web.name()),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let words = [&words[..], &["--as-pid2", "sh", "-c", WAITS]].concat();
    let container = Container::start(a, &root, &words)?;
    until("it reaches another host's workload by name", SOON, || {
        Ok(container.run(&["ping", "-c1", "-W1", "db"])?.code == 0)
    })?;
    db.reaches("web.lab.internal", SOON)?;
    // The container may come and go, its namespace stays.
    drop(container);
    ensure!(text(&a.json(&["workload", "show", "web"])?, "state")? == "ok");
    let container = Container::start(a, &root, &words)?;
    let inside = container.ok(&["ip", "-o", "-4", "addr"])?;
    ensure!(inside.contains(&address), "{inside}");
    drop(container);
    a.ok(&["detach", "web"])?;
    // A namespace that nspawn makes has no name, only its first process.
    let name = format!("--machine={}-p", web.name());
    let words = ["--bind-ro=/usr", "--private-network", &name];
    let words = [&words[..], &["--as-pid2", "sh", "-c", WAITS]].concat();
    let container = Container::start(a, &root, &words)?;
    let path = format!("/proc/{}/ns/net", container.leader);
    let at = a.json(&["attach", "netns", &path, "--subnet", "lab", "--name", "web"])?;
    db.reaches(&v4(&at)?, SOON)?;
    db.reaches("web.lab.internal", SOON)?;
    drop(container);
    is_detached(a, "web")?;
    // Without a network of its own it is this machine, which is no workload.
    let name = format!("--machine={}-h", web.name());
    let words = ["--bind-ro=/usr", &name, "--as-pid2", "sh", "-c", WAITS];
    let container = Container::start(a, &root, &words)?;
    shares_the_machine(a, container.leader)
}

/// A container without a namespace of its own cannot be attached, and what to do is said.
fn shares_the_machine(a: &Host, pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let line = ["attach", "netns", &path, "--subnet", "lab", "--name", "h"];
    let refused = a.byway(&line)?;
    ensure!(
        refused.code == 5 && refused.err.contains("the daemon's own network namespace"),
        "{refused}"
    );
    a.fails(5, "E-NO-WORKLOAD", &["workload", "show", "h"])
        .map(drop)
}

/// A container of LXC, with a directory of configurations of its own; it ends with this.
struct Lxc {
    host: Rc<Host>,
    dir: PathBuf,
    child: Option<Child>,
}

impl Lxc {
    /// One that is not started, with what is peculiar to it.
    fn new(host: &Rc<Host>, root: &Root, name: &str, network: &str) -> Result<Lxc> {
        unpacked("lxc", "usr/bin/lxc-start")?;
        unpacked("liblxc1", "usr/lib/x86_64-linux-gnu/liblxc.so.1")?;
        let dir = host.dir().join(name);
        std::fs::create_dir_all(dir.join("web"))?;
        std::fs::create_dir_all(dir.join("mounted"))?;
        // Control groups of its own, since LXC leaves some of them behind.
        let config = format!(
            "lxc.rootfs.path = dir:{}\nlxc.rootfs.mount = {}\nlxc.uts.name = web\nlxc.mount.auto = proc:mixed sys:ro\n\
             lxc.mount.entry = /usr usr none bind,ro 0 0\nlxc.apparmor.profile = unconfined\nlxc.cgroup.dir = {}\n{network}",
            root.path("").display(),
            dir.join("mounted").display(),
            host.ns().name(),
        );
        std::fs::write(dir.join("web/config"), config)?;
        Ok(Lxc {
            host: Rc::clone(host),
            dir,
            child: None,
        })
    }

    /// `TOOL -P DIR -n web WORDS`, with the library that belongs to it.
    fn tool(&self, tool: &str, words: &[&str]) -> Result<Command> {
        let mut command = on(&self.host);
        command.arg(unpacked("lxc", &format!("usr/bin/{tool}"))?);
        let library = unpacked("liblxc1", "usr/lib/x86_64-linux-gnu")?;
        command.env("LD_LIBRARY_PATH", library);
        command
            .arg("-P")
            .arg(&self.dir)
            .args(["-n", "web"])
            .args(words);
        Ok(command)
    }

    /// Starts it in the foreground; its first process.
    fn start(&mut self) -> Result<i32> {
        let log = self.dir.join("log");
        let place = log.to_string_lossy().into_owned();
        let words = ["-F", "-o", &place, "-l", "INFO", "--", "sh", "-c", WAITS];
        let mut command = self.tool("lxc-start", &words)?;
        self.child = Some(command.spawn().context("start lxc-start")?);
        let mut pid = 0;
        until("the container runs", SOON, || {
            let said = self.tool("lxc-info", &["-pH"])?.output()?;
            pid = String::from_utf8_lossy(&said.stdout).trim().parse()?;
            let said = self.tool("lxc-info", &["-sH"])?.output()?;
            Ok(String::from_utf8_lossy(&said.stdout).trim() == "RUNNING")
        })
        .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        Ok(pid)
    }

    /// What a program inside says.
    fn ok(&self, program: &[&str]) -> Result<String> {
        let words = [&["--"], program].concat();
        let said = self.tool("lxc-attach", &words)?.output()?;
        let error = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "{program:?}: {error}");
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let stopped = self.tool("lxc-stop", &["-k"])?.status()?;
        ensure!(stopped.success(), "lxc-stop: {stopped}");
        wait_end(&mut child).map(drop)
    }
}

impl Drop for Lxc {
    fn drop(&mut self) {
        let _ = self.stop();
        let places = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let places = places.flatten().map(|entry| entry.path());
        for place in places.chain([PathBuf::from("/sys/fs/cgroup")]) {
            remove(&place.join(self.host.ns().name()));
        }
    }
}

fn a_container_of_lxc_is_a_workload(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let db = lab.workload("db")?;
    b.attach(&db, "lab", "db")?;
    let root = Root::make(lab.dir().join("root"))?;
    // By its first process, as README says, for as long as it runs.
    let own = "lxc.net.0.type = empty\n";
    let mut lxc = Lxc::new(a, &root, "own", own)?;
    let path = format!("/proc/{}/ns/net", lxc.start()?);
    let at = a.json(&["attach", "netns", &path, "--subnet", "lab", "--name", "web"])?;
    db.reaches(&v4(&at)?, SOON)?;
    db.reaches("web.lab.internal", SOON)?;
    lxc.stop()?;
    is_detached(a, "web")?;
    // In a namespace that has a name: it is the same workload after a restart of the container, and after one of both.
    let web = lab.workload("web")?;
    let address = v4(&a.attach(&web, "lab", "web")?)?;
    let named = format!(
        "lxc.namespace.share.net = /run/netns/{0}\n\
         lxc.mount.entry = /etc/netns/{0}/resolv.conf etc/resolv.conf none bind,ro,create=file 0 0\n",
        web.name()
    );
    let mut lxc = Lxc::new(a, &root, "named", &named)?;
    for round in ["first", "again", "made anew"] {
        if round == "made anew" {
            sh("ip", &["netns", "del", web.name()])?;
            is_shown(a, "web", "removed")?;
            crate::lab::Netns::make(web.name())?;
            is_shown(a, "web", "ok")?;
            until("it has a resolver", SOON, || {
                Ok(Path::new("/etc/netns")
                    .join(web.name())
                    .join("resolv.conf")
                    .exists())
            })?;
        }
        lxc.start()?;
        until("it reaches another host's workload by name", SOON, || {
            lxc.ok(&["ping", "-c1", "-W1", "db"]).map(|_| true)
        })
        .context(round)?;
        let inside = lxc.ok(&["ip", "-o", "-4", "addr"])?;
        ensure!(inside.contains(&address), "{round}: {inside}");
        db.reaches("web.lab.internal", SOON).context(round)?;
        lxc.stop()?;
        ensure!(text(&a.json(&["workload", "show", "web"])?, "state")? == "ok");
    }
    // Without a network of its own it is this machine.
    let mut lxc = Lxc::new(a, &root, "none", "lxc.net.0.type = none\n")?;
    shares_the_machine(a, lxc.start()?)
}
