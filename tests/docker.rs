//! Real containers on two hosts: attached by name, talking by name, freed when they stop.
//!
//! Each host of the lab gets a Docker daemon of its own: own data root, exec root, socket and pid file in the lab's
//! directory, in the host's network namespace and a mount namespace of its own. The image is a static busybox, imported
//! from a tar archive, so that no registry is needed. Where Docker cannot run, the tests are counted as skipped.

#[expect(dead_code, reason = "the laboratory is shared with the netns tests, which use more of it")]
mod lab;

use std::fs::OpenOptions;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use lab::runner::{Case, Skip};
use lab::{Host, Lab, SOON, until, v4, v6};

const CASES: &[Case] = &[
    fast!(containers_on_two_hosts_talk_by_name, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"),
    fast!(stopped_container_frees_its_name, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"),
    fast!(attach_of_an_unknown_container_is_exit_5, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"),
];

fn main() -> ExitCode {
    lab::runner::main(CASES)
}

/// A Docker daemon in the namespace of one host; ends with its containers when dropped.
struct Engine {
    socket: String,
    child: Child,
}

impl Engine {
    fn start(host: &Host) -> Result<Engine> {
        let dir = host.dir().join("docker");
        std::fs::create_dir(&dir)?;
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let socket = format!("unix://{}", path("sock"));
        let log = OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
        // Not `ip netns exec`: that hides /sys/fs/cgroup, which the engine needs. Each of these replaces itself by the next.
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.ns().name()))
            .args(["unshare", "-m", "--propagation", "private", "dockerd", "-H", &socket])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut engine = Engine { socket, child };
        let ready = until("dockerd answers", Duration::from_secs(30), || {
            if engine.child.try_wait()?.is_some() {
                return Ok(true);
            }
            Ok(engine.docker(&["info"]).is_ok())
        });
        if ready.is_err() || engine.child.try_wait()?.is_some() {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            let why = log.lines().rfind(|l| l.contains("failed") || l.contains("level=error")).unwrap_or("no message");
            bail!(Skip(format!("dockerd does not start here: {why}")));
        }
        engine.import(&dir)?;
        // The daemon and the command line of this host talk to this engine.
        host.set_env("DOCKER_HOST", &engine.socket);
        Ok(engine)
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        lab::sh("docker", &[&["-H", &self.socket], args].concat())
    }

    /// The image `box`: a static busybox under the names of its tools.
    fn import(&self, dir: &Path) -> Result<()> {
        let root = dir.join("root");
        for sub in ["bin", "etc", "proc", "tmp"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let busybox = std::env::split_paths(&path).map(|d| d.join("busybox")).find(|p| p.is_file());
        std::fs::copy(busybox.unwrap_or_else(|| PathBuf::from("/bin/busybox")), root.join("bin/busybox"))?;
        for tool in ["sh", "ping", "nslookup", "nc", "sleep", "ip", "wget", "httpd", "cat"] {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        let archive = dir.join("box.tar").to_string_lossy().into_owned();
        lab::sh("tar", &["-C", &root.to_string_lossy(), "-cf", &archive, "."])?;
        self.docker(&["import", &archive, "box:1"]).map(drop)
    }

    fn run(&self, name: &str) -> Result<()> {
        self.docker(&["run", "-d", "--init=false", "--network", "none", "--name", name, "box:1", "/bin/sleep", "1000"])
            .map(drop)
    }

    fn exec(&self, name: &str, args: &[&str]) -> Result<String> {
        self.docker(&[&["exec", name], args].concat())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(all) = self.docker(&["ps", "-aq"]) {
            let ids: Vec<&str> = all.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = self.docker(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
        // SIGTERM first: the engine ends its container runtime with it.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if lab::netns::wait_end(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Two hosts in one subnet, an engine and one running container each. The engines start before the daemons, so that
/// the daemons find them.
fn scene(lab: &Lab) -> Result<[(std::rc::Rc<Host>, Engine); 2]> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (ea, eb) = (Engine::start(&a)?, Engine::start(&b)?);
    ea.run("web")?;
    eb.run("db")?;
    a.start()?;
    b.start()?;
    let made = a.json(&["create", "lab"])?;
    b.json(&["join", &lab::text(&made, "invite")?])?;
    Ok([(a, ea), (b, eb)])
}

fn containers_on_two_hosts_talk_by_name(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let resolv = ea.exec("web", &["cat", "/etc/resolv.conf"])?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let db = b.json(&["attach", "docker", "db", "--subnet", "lab", "--name", "store"])?;
    ensure!(web["workload"] == "web", "the container's name is the default: {web}");
    let inside = ea.exec("web", &["ip", "addr"])?;
    ensure!(inside.contains(&v4(&web)?) && inside.contains(&v6(&web)?), "the container owns its addresses: {inside}");
    b.ns().reaches(&v4(&web)?, SOON)?;
    let ping = |engine: &Engine, from: &str, to: &str| {
        until(&format!("{from} pings {to}"), SOON, || {
            engine.exec(from, &["ping", "-c", "1", "-W", "1", to]).map(|_| true)
        })
    };
    ping(&eb, "db", "web.lab.internal")?;
    ping(&ea, "web", "store.lab.internal")?;
    ping(&eb, "db", &v6(&web)?)?;
    // A web server in one container, fetched by name from the other; it sees the real overlay address.
    ea.exec(
        "web",
        &["sh", "-c", "mkdir -p /tmp/www && echo hello from web > /tmp/www/index.html && httpd -p 80 -h /tmp/www"],
    )?;
    let page = eb.exec("db", &["wget", "-T", "5", "-qO-", "http://web.lab.internal/"])?;
    ensure!(page.contains("hello from web"), "{page}");
    // And by a port map from the host itself.
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let outside = lab.host("x")?;
    let answer = outside.ns().run(&["busybox", "wget", "-T", "5", "-qO-", &format!("http://{}:8080/", a.under4())])?;
    ensure!(answer.out.contains("hello from web"), "{answer}");
    ensure!(v4(&db)? != v4(&web)?);
    a.ok(&["detach", "web"])?;
    ensure!(ea.exec("web", &["cat", "/etc/resolv.conf"])? == resolv, "detach gives the container its resolver back");
    ensure!(!ea.exec("web", &["ip", "addr"])?.contains("byway0"), "detach takes the interface out of the container");
    b.ok(&["detach", "store"])?;
    Ok(())
}

fn stopped_container_frees_its_name(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, _eb)] = scene(lab)?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let b4 = b.overlay("lab")?.0;
    b.ns().resolves(&b4, &["web.lab.internal", "A"], &v4(&web)?, SOON)?;
    ea.docker(&["kill", "web"])?;
    until("the stopped container's name is withdrawn", Duration::from_secs(5), || {
        Ok(b.ns().dig(&b4, &["web.lab.internal", "A"])?.status == "NXDOMAIN")
    })?;
    Ok(())
}

fn attach_of_an_unknown_container_is_exit_5(lab: &Lab) -> Result<()> {
    let [(a, ea), _b] = scene(lab)?;
    a.fails(5, "E-", &["attach", "docker", "nosuch", "--subnet", "lab"])?;
    ea.docker(&["create", "--network", "none", "--name", "still", "box:1", "/bin/sleep", "1000"])?;
    let stopped = a.byway(&["attach", "docker", "still", "--subnet", "lab"])?;
    ensure!(
        stopped.code != 0 && stopped.err.contains("(E-"),
        "a container that does not run has no namespace: {stopped}"
    );
    Ok(())
}
