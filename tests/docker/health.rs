//! Containers that are asked by a command whether they are well: their engine runs it, as it runs `docker exec`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::engine::{Engine, alone};
use super::plugin::run;
use super::podman::Podman;
use super::split;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, until};

pub const CASES: &[Case] = &[
    crate::ci!(
        a_container_is_asked_by_a_command_that_its_engine_runs,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
    crate::long!(
        a_command_that_hangs_or_cannot_be_run_or_may_not_be_is_named,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
    crate::long!(
        a_label_has_a_container_asked_by_a_command_below_a_daemon_with_two_capabilities,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox",
        "setpriv",
        "systemd-socket-activate"
    ),
    crate::long!(
        a_container_of_podman_is_asked_by_a_command,
        "podman",
        "runc",
        "conmon",
        "nsenter",
        "busybox",
        "tar"
    ),
];

/// Has a workload asked each second by a command, and ill after two failures.
fn ask(host: &Host, workload: &str, words: &[&str]) -> Result<()> {
    let first = ["workload", "health", workload, "exec", "--interval", "1s"];
    host.ok(&[&first[..], &["--fail", "2", "--"], words].concat())
        .map(drop)
}

/// Waits until a workload is said to be so, and its failure holds those words.
fn is(host: &Host, workload: &str, state: &str, why: &str) -> Result<Duration> {
    let what = format!("{workload} is {state} ({why})");
    until(&what, Duration::from_secs(15), || {
        let shown = host.json(&["workload", "show", workload])?;
        let failure = shown["health"]["failure"].as_str().unwrap_or_default();
        Ok(shown["health"]["state"] == state && failure.contains(why))
    })
}

/// The commands in a container that are `sleep 99`.
fn sleepers(engine: &Engine, container: &str) -> Result<usize> {
    let all = engine.docker(&["top", container])?;
    Ok(all.lines().filter(|l| l.contains("sleep 99")).count())
}

const TEST: [&str; 3] = ["/bin/sh", "-c", "echo looked; test -d /tmp/ok"];

fn a_container_is_asked_by_a_command_that_its_engine_runs(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    engine.exec("web", &["/bin/mkdir", "/tmp/ok"])?;
    ask(&a, "web", &TEST)?;
    let shown = a.json(&["workload", "show", "web"])?;
    ensure!(
        shown["health"]["state"] == "starting" || shown["health"]["state"] == "healthy",
        "{shown}"
    );
    is(&a, "web", "healthy", "")?;
    engine.exec("web", &["/bin/busybox", "rmdir", "/tmp/ok"])?;
    is(&a, "web", "unhealthy", "ends with 1: looked")?;
    engine.exec("web", &["/bin/mkdir", "/tmp/ok"])?;
    is(&a, "web", "healthy", "").map(drop)
}

fn a_command_that_hangs_or_cannot_be_run_or_may_not_be_is_named(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    engine.exec("web", &["/bin/mkdir", "/tmp/ok"])?;
    // It has the container's user, rights and root.
    let own = "test \"$(/bin/busybox id -u)\" = 0 && /bin/busybox mount -t tmpfs x /tmp";
    ask(&a, "web", &["/bin/sh", "-c", own])?;
    is(&a, "web", "unhealthy", "ends with")?;
    ask(&a, "web", &["/bin/nosuch"])?;
    is(&a, "web", "unhealthy", "cannot be run")?;
    // One that hangs is left where it is, and no second one is begun beside it: not by a daemon that begins anew either.
    ask(&a, "web", &["/bin/sleep", "99"])?;
    is(&a, "web", "unhealthy", "goes on")?;
    a.terminate()?;
    a.start()?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(sleepers(&engine, "web")? == 1, "one is left");
    engine.docker(&["restart", "-t", "0", "web"])?;
    ask(&a, "web", &TEST)?;
    is(&a, "web", "healthy", "")?;
    refusals(lab, &a, &engine)
}

fn refusals(lab: &Lab, a: &Host, engine: &Engine) -> Result<()> {
    let by = |workload: &str| {
        let words = ["workload", "health", workload, "exec", "true"];
        a.fails(2, "E-HEALTH", &words)
    };
    let namespace = lab.workload("plain")?;
    a.attach(&namespace, "lab", "plain")?;
    let refused = by("plain")?;
    ensure!(refused.err.contains("network namespace"), "{refused}");
    // Not --privileged: such a container does not start where the tests' own machine has not all capabilities.
    for (name, options) in [
        ("able", ["--cap-add", "SYS_ADMIN"]),
        ("mounts", ["-v", "/etc:/host"]),
    ] {
        run(
            engine,
            name,
            &[&options[..], &["--network", "none"]].concat(),
        )?;
        a.json(&["attach", "docker", name, "--subnet", "lab"])?;
        let refused = by(name)?;
        ensure!(refused.err.contains("as good as root"), "{refused}");
    }
    let health: Value = a.json(&["workload", "show", "able"])?["health"].clone();
    ensure!(health.is_null(), "nothing was taken over: {health}");
    Ok(())
}

fn a_label_has_a_container_asked_by_a_command_below_a_daemon_with_two_capabilities(
    lab: &Lab,
) -> Result<()> {
    let (split, engine) = split::scene(lab)?;
    let a = split.host.clone();
    let label = "--label=byway.health=interval=1s fail=2 exec /bin/sh -c 'test -d /tmp/ok'";
    // Its own label may ask for a command in any container, even in one that is as good as root.
    run(
        &engine,
        "web",
        &["--network", "lab", "--cap-add=SYS_ADMIN", label],
    )?;
    is(&a, "web", "unhealthy", "ends with 1")?;
    engine.exec("web", &["/bin/mkdir", "/tmp/ok"])?;
    is(&a, "web", "healthy", "")?;
    let other = ["workload", "health", "web", "exec", "true"];
    let refused = a.fails(2, "E-HEALTH", &other)?;
    ensure!(refused.err.contains("as good as root"), "{refused}");
    // A person asks for one in any other.
    engine.run("db")?;
    a.json(&["attach", "docker", "db", "--subnet", "lab"])?;
    ask(&a, "db", &TEST)?;
    is(&a, "db", "unhealthy", "looked")?;
    ask(&a, "db", &["/bin/sleep", "99"])?;
    is(&a, "db", "unhealthy", "goes on")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(sleepers(&engine, "db")? == 1, "one is left");
    engine.docker(&["rm", "-f", "web", "db"])?;
    engine.docker(&["network", "rm", "lab"])?;
    Ok(())
}

fn a_container_of_podman_is_asked_by_a_command(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let [a] = &hosts[..] else {
        unreachable!("one host was asked for")
    };
    let podman = Podman::start(a)?;
    podman.container("web")?;
    a.json(&["attach", "podman", "web", "--subnet", "lab"])?;
    ask(a, "web", &TEST)?;
    is(a, "web", "unhealthy", "ends with 1: looked")?;
    podman.run(&["exec", "web", "/bin/mkdir", "/tmp/ok"])?;
    is(a, "web", "healthy", "")?;
    ask(a, "web", &["/bin/nosuch"])?;
    is(a, "web", "unhealthy", "cannot be run")?;
    ask(a, "web", &["/bin/sleep", "99"])?;
    is(a, "web", "unhealthy", "goes on")?;
    Ok(())
}
