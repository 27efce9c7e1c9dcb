//! A daemon that may do nothing but change its own network, beside the helper that enters namespaces for it.

use std::cell::RefCell;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::firewalld::Firewalld;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, binary, snapshot, text, until, v4, v6};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(
        a_daemon_with_two_capabilities_does_everything_with_its_helper,
        "setpriv",
        "systemd-socket-activate"
    ),
    fast!(a_helper_that_is_killed_fails_only_what_needs_it, "setpriv"),
    ci!(
        firewalld_takes_our_links_from_the_helper,
        "setpriv",
        "firewalld",
        "firewall-cmd",
        "dbus-daemon"
    ),
];

/// A user that this machine knows nothing of.
const USER: &str = "4000000";

/// What starts a program with the rights that a unit gives, read from it, so that unit and test cannot drift apart.
fn rights(unit: &str, user: Option<&str>) -> Result<Vec<String>> {
    let path = format!("{}/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path)?;
    let set = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let names = line.unwrap_or_default().split_whitespace();
        names
            .map(|name| name.to_lowercase().replace("cap_", ",+"))
            .collect::<String>()
    };
    let (bounding, ambient) = (set("CapabilityBoundingSet="), set("AmbientCapabilities="));
    ensure!(!bounding.is_empty(), "a bounding set in {unit}");
    let mut words = vec!["setpriv".to_owned(), "--no-new-privs".to_owned()];
    words.push(format!("--inh-caps=-all{ambient}"));
    words.push(format!("--ambient-caps=-all{ambient}"));
    words.push(format!("--bounding-set=-all{bounding}"));
    if let Some(user) = user {
        words.extend([format!("--reuid={user}"), format!("--regid={user}")]);
        words.push("--clear-groups".to_owned());
    }
    Ok(words)
}

/// A host whose daemon is that user's, and its helper.
struct Split {
    host: Rc<Host>,
    program: String,
    socket: PathBuf,
    helper: RefCell<Option<Child>>,
}

impl Drop for Split {
    fn drop(&mut self) {
        let _ = self.kill_helper();
    }
}

impl Split {
    fn new(lab: &Lab, name: &str) -> Result<Split> {
        let host = lab.host(name)?;
        std::fs::set_permissions(lab.dir(), PermissionsExt::from_mode(0o755))?;
        let user: u32 = USER.parse()?;
        chown(host.dir(), Some(user), Some(user))?;
        // Where that user may read it.
        let program = host.dir().join("byway");
        std::fs::copy(binary(), &program).context("copy the binary")?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        // The directory of the helper's socket is root's, as in the units.
        let socket = lab.dir().join(format!("helper-{name}"));
        host.set_env("BYWAY_NODE_HELPER_SOCKET", &socket.to_string_lossy());
        Ok(Split {
            host,
            program: program.to_string_lossy().into_owned(),
            socket,
            helper: RefCell::default(),
        })
    }

    fn start_helper(&self) -> Result<()> {
        let socket = self.socket.to_string_lossy();
        let words = [
            self.program.as_str(),
            "helper",
            "--listen",
            &socket,
            "--user",
            USER,
        ];
        self.spawn_helper(&words)
    }

    /// Starts the helper as its unit does: with few rights, on a socket that was made for it.
    fn start_helper_by_its_unit(&self) -> Result<()> {
        let rights = rights("byway-helper", None)?;
        let socket = self.socket.to_string_lossy();
        let activate = ["systemd-socket-activate", "--seqpacket", "-l", &socket];
        let words = activate
            .into_iter()
            .chain(rights.iter().map(String::as_str));
        let words = words.chain([self.program.as_str(), "helper", "--user", USER]);
        self.spawn_helper(&words.collect::<Vec<_>>())?;
        until("the socket is there", SOON, || Ok(self.socket.exists()))?;
        let user: u32 = USER.parse()?;
        chown(&self.socket, Some(user), None)?;
        std::fs::set_permissions(&self.socket, PermissionsExt::from_mode(0o600)).map_err(Into::into)
    }

    fn spawn_helper(&self, words: &[&str]) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.host.dir().join("helper.log"))?;
        let bus = format!("unix:path={}", self.host.dir().join("bus").display());
        let mut command = self.host.ns().command(words);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus);
        let child = command.stderr(log).spawn()?;
        *self.helper.borrow_mut() = Some(child);
        Ok(())
    }

    fn kill_helper(&self) -> Result<()> {
        if let Some(mut helper) = self.helper.borrow_mut().take() {
            helper.kill()?;
            helper.wait()?;
        }
        Ok(())
    }

    fn start(&self) -> Result<()> {
        // The device is everybody's on a machine with udev, not in every container that tests run in.
        let device =
            "mount -t tmpfs none /dev/net && mknod -m 0666 /dev/net/tun c 10 200 && exec \"$@\"";
        let shift = "shift; exec \"$0\" \"$@\"";
        let rights = rights("byway", Some(USER))?;
        let words = ["sh", "-c", device, "sh"].into_iter();
        let words = words.chain(rights.iter().map(String::as_str));
        let words = words.chain(["sh", "-c", shift, &self.program]);
        self.host.start_under(&words.collect::<Vec<_>>())?;
        until("the daemon answers", SOON, || {
            if let Some(code) = self.host.ended()? {
                bail!("the daemon ended with {code}");
            }
            Ok(self.host.byway(&["status", "--json"])?.code == 0)
        })
        .with_context(|| self.host.log_tail(20))
        .map(drop)
    }
}

/// Two hosts of one subnet: the first with a helper, the second with all rights.
fn two(lab: &Lab, helper: fn(&Split) -> Result<()>) -> Result<(Split, Rc<Host>)> {
    let (a, b) = (Split::new(lab, "a")?, lab.node("b")?);
    helper(&a)?;
    a.start()?;
    a.host.json(&["create", "lab"])?;
    let invite = text(&a.host.json(&["invite", "create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    Ok((a, b))
}

fn resolver(workload: &str) -> PathBuf {
    Path::new("/etc/netns").join(workload).join("resolv.conf")
}

/// A line of what /proc tells of a process.
fn of_process(pid: i32, field: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line
        .context("no such field")?
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn a_daemon_with_two_capabilities_does_everything_with_its_helper(lab: &Lab) -> Result<()> {
    let (split, b) = two(lab, Split::start_helper_by_its_unit)?;
    let a = &split.host;
    // Not even root's: only NET_BIND_SERVICE (10) and NET_ADMIN (12).
    ensure!(of_process(a.pid()?, "Uid:")? == USER, "its own user");
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let held = of_process(a.pid()?, set)?;
        ensure!(held == "0000000000001400", "{set} {held}");
    }
    let before = snapshot::of(a.ns())?;
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let inside = snapshot::of(&web)?;
    let begun = Instant::now();
    let at = a.attach(&web, "lab", "web")?;
    println!("attached within {:?}", begun.elapsed());
    let (web4, web6) = (v4(&at)?, v6(&at)?);
    b.attach(&db, "lab", "db")?;
    db.reaches(&web4, SOON)?;
    db.reaches(&web6, SOON)?;
    web.reaches("db.lab.internal", SOON)
        .context("by the resolver that the helper wrote")?;
    // A port below 1024 of the machine, to a workload here.
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:88", "web:80"])?;
    until("the map leads in", SOON, || {
        Ok(b.ns().tcp(a.under4(), 88, 1000).is_ok())
    })?;
    a.ok(&["map", "rm", "lab", "tcp", "0.0.0.0:88"])?;
    // News from inside are heard, and what was changed there is put back.
    let link = text(&at, "interface")?;
    for change in [
        ["addr", "flush", "dev", link.as_str()].as_slice(),
        &["link", "set", &link, "down"],
    ] {
        web.ip(change)?;
        until("it is repaired", Duration::from_secs(3), || {
            Ok(web.pings(&b.overlay("lab")?.0))
        })?;
    }
    a.ok(&["detach", "web"])?;
    ensure!(!resolver(web.name()).exists(), "the resolver file went");
    inside.assert_same(&snapshot::of(&web)?, "the detached namespace")?;
    before.assert_same(&snapshot::of(a.ns())?, "the host after detach")?;
    // A namespace that ends is noticed, and its name is free.
    a.attach(&web, "lab", "web")?;
    crate::lab::sh("ip", &["netns", "del", web.name()])?;
    until("the workload is gone", SOON, || {
        Ok(a.byway(&["workload", "show", "web"])?.code == 5)
    })?;
    a.terminate()?;
    a.assert_clean()
}

fn a_helper_that_is_killed_fails_only_what_needs_it(lab: &Lab) -> Result<()> {
    let (split, b) = two(lab, Split::start_helper)?;
    let a = &split.host;
    let (web, new) = (lab.workload("web")?, lab.workload("new")?);
    let inside = snapshot::of(&new)?;
    let web4 = v4(&a.attach(&web, "lab", "web")?)?;
    b.ns().reaches(&web4, SOON)?;
    split.kill_helper()?;
    // What needs it says so, soon, and leaves nothing half done.
    let begun = Instant::now();
    let args = [
        "attach",
        "netns",
        new.name(),
        "--subnet",
        "lab",
        "--name",
        "new",
    ];
    let refused = a.fails(1, "E-HELPER", &args)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(8),
        "within {:?}",
        begun.elapsed()
    );
    ensure!(refused.err.contains("privileged helper"), "{refused}");
    a.fails(5, "E-", &["workload", "show", "new"])?;
    inside.assert_same(&snapshot::of(&new)?, "the namespace that was not attached")?;
    // All else goes on.
    b.ns().reaches(&web4, SOON)?;
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:88", "web:80"])?;
    until("the map leads in", SOON, || {
        Ok(b.ns().tcp(a.under4(), 88, 1000).is_ok())
    })?;
    // One that comes back while it is waited for is found.
    split.start_helper()?;
    until("the helper is back", SOON, || Ok(a.byway(&args)?.code == 0))?;
    let new4 = v4(&a.json(&["workload", "show", "new"])?)?;
    b.ns().reaches(&new4, SOON)?;
    split.kill_helper()?;
    let waiting = a.spawn(&["detach", "new"])?;
    std::thread::sleep(Duration::from_millis(300));
    split.start_helper()?;
    let detached = waiting.wait()?;
    ensure!(detached.code == 0, "{detached}");
    inside.assert_same(&snapshot::of(&new)?, "the detached namespace")?;
    ensure!(!resolver(new.name()).exists(), "the resolver file went");
    // A helper that is gone at the stop keeps nothing of the machine's own from being undone; what it would have undone is
    // named, and undone by the cleanup after it.
    split.kill_helper()?;
    kill(Pid::from_raw(a.pid()?), Signal::SIGTERM)?;
    ensure!(a.wait_ended()? == 1, "it says that something is left");
    ensure!(a.log_tail(5).contains("E-NOT-REMOVED"), "{}", a.log_tail(5));
    a.assert_clean()?;
    split.start_helper()?;
    let state = a.state().to_string_lossy().into_owned();
    until("the helper is back", SOON, || {
        Ok(a.ns()
            .run(&[&split.program, "cleanup", "--state-dir", &state])?
            .code
            == 0)
    })?;
    ensure!(!resolver(web.name()).exists(), "the resolver file went");
    Ok(())
}

fn firewalld_takes_our_links_from_the_helper(lab: &Lab) -> Result<()> {
    let split = Split::new(lab, "a")?;
    let a = &split.host;
    let _firewalld = Firewalld::start(a)?;
    split.start_helper()?;
    split.start()?;
    a.json(&["create", "lab"])?;
    let web = lab.workload("web")?;
    a.attach(&web, "lab", "web")?;
    // No polkit runs here, so firewalld takes this from root alone: the daemon is not.
    let table = || a.ns().ok(&["nft", "list", "table", "inet", "firewalld"]);
    until("our links are in a zone", SOON, || {
        let table = table()?;
        Ok(table.contains("\"bwv*\"") && table.contains("\"bw-lab\""))
    })
    .with_context(|| a.log_tail(10))?;
    a.terminate()?;
    ensure!(!table()?.contains("\"bw"), "{}", table()?);
    Ok(())
}
