//! A daemon that may do nothing but change its own network, beside the helper that enters namespaces for it.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::firewalld::Firewalld;
use crate::lab::runner::Case;
use crate::lab::split::{Split, USER};
use crate::lab::{Host, Lab, SOON, snapshot, text, until, v4, v6};
use crate::taps::{Guest, taught};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(
        a_daemon_with_two_capabilities_does_everything_with_its_helper,
        "setpriv",
        "systemd-socket-activate",
        "busybox"
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
    // A virtual machine: the daemon makes its TAP, and has the helper open the socket that a router is asked at.
    let at = a.json(&["attach", "tap", "vm", "--subnet", "lab"])?;
    let guest = Guest::boot(lab, a, &at)?;
    taught(lab, a, &guest, &at)?;
    b.ns().reaches(&v4(&at)?, SOON)?;
    drop(guest);
    a.ok(&["detach", "vm"])?;
    a.ok(&["detach", "web"])?;
    ensure!(!resolver(web.name()).exists(), "the resolver file went");
    inside.assert_same(&snapshot::of(&web)?, "the detached namespace")?;
    before.assert_same(&snapshot::of(a.ns())?, "the host after detach")?;
    // A namespace that ends is noticed, and is the same workload again once it is made anew.
    let former = v4(&a.attach(&web, "lab", "web")?)?;
    crate::lab::sh("ip", &["netns", "del", web.name()])?;
    until("the workload is gone", SOON, || {
        Ok(text(&a.json(&["workload", "show", "web"])?, "state")? == "removed")
    })?;
    crate::lab::netns::Netns::make(web.name())?;
    until("it is the same again", SOON, || {
        Ok(web.ip(&["addr"])?.contains(&former))
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
