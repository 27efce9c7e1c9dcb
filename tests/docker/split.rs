//! Docker below a daemon that has the rights of its unit and nothing more: its helper speaks with the engine for it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::runner::Case;
use crate::lab::split::Split;
use crate::lab::{Lab, SOON, until, v4};

use super::engine::Engine;
use super::lasting::{all_are_single, all_go, runs_always};
use super::plugin::{CREATE, run};

pub const CASES: &[Case] = &[
    crate::ci!(
        docker_works_below_a_daemon_with_two_capabilities,
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
        a_hundred_that_come_and_go_while_the_helper_is_killed_leave_nothing_double,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox",
        "setpriv"
    ),
];

/// A host whose daemon has the rights of its unit, with its helper by its own unit, and an engine that has the daemon as its
/// plugin and a network `lab` over the subnet.
pub(super) fn scene(lab: &Lab) -> Result<(Split, Engine)> {
    let mut split = Split::new(lab, "a")?;
    let a = split.host.clone();
    let plugins = lab.dir().join("plugins-a");
    std::fs::create_dir(&plugins)?;
    a.set_env("BYWAY_DOCKER_PLUGIN_DIR", &plugins.to_string_lossy());
    let script = format!(
        "mkdir -p /run/docker/plugins\nmount --bind {} /run/docker/plugins",
        plugins.display()
    );
    let engine = Engine::start_with(&a, &script, &[])?;
    let path = engine.socket.trim_start_matches("unix://");
    split.engines.push(path.to_owned());
    split.start_helper_by_its_unit()?;
    // As byway-docker.socket has it: the first who connects starts the daemon.
    let socket = plugins.join("byway.sock").to_string_lossy().into_owned();
    let by_its_socket = [
        "systemd-socket-activate",
        "-E",
        "BYWAY_NODE_HELPER_SOCKET",
        "-E",
        "BYWAY_DOCKER_PLUGIN_DIR",
        "--fdname=docker",
        "-l",
        &socket,
    ];
    split.start()?;
    a.json(&["create", "lab"])?;
    // It may not make a socket where the engine looks: it names the unit that does.
    let refused = a.fails(4, "E-PERMISSION", &["integration", "install", "docker"])?;
    ensure!(refused.err.contains("byway-docker.socket"), "{refused}");
    a.terminate()?;
    split.start_under(&by_its_socket)?;
    until("the engine is listened to", SOON, || {
        Ok(Path::new(&socket).exists())
    })?;
    drop(UnixStream::connect(&socket)?);
    split.answers()?;
    a.ok(&["integration", "install", "docker"])?;
    engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    Ok((split, engine))
}

fn docker_works_below_a_daemon_with_two_capabilities(lab: &Lab) -> Result<()> {
    let (split, engine) = scene(lab)?;
    let a = split.host.clone();
    run(&engine, "web", &["--network", "lab"])?;
    // By the engine's events, which the helper lets the daemon hear.
    until("it has the container's name", SOON, || {
        a.json(&["workload", "show", "web"]).map(|_| true)
    })?;
    let web4 = v4(&a.json(&["workload", "show", "web"])?)?;
    a.ns().reaches(&web4, SOON)?;
    // A container of the engine's own bridge, attached, stopped and started.
    engine.run("db")?;
    let db = a.json(&["attach", "docker", "db", "--subnet", "lab"])?;
    let ping = || engine.exec("web", &["ping", "-c", "1", "-W", "1", "db"]);
    until("web pings db by its bare name", SOON, || {
        ping().map(|_| true)
    })?;
    engine.docker(&["restart", "-t", "0", "db"])?;
    until("db is back", Duration::from_secs(5), || {
        let now = a.json(&["workload", "show", "db"])?;
        Ok(now["state"] == "ok" && v4(&now)? == v4(&db)? && ping().is_ok())
    })?;
    engine.docker(&["rm", "-f", "web"])?;
    a.ok(&["detach", "db"])?;
    engine.docker(&["network", "rm", "lab"])?;
    let left = a.json(&["workload", "ls"])?;
    ensure!(
        left["workloads"].as_array().is_some_and(Vec::is_empty),
        "{left}"
    );
    a.ok(&["integration", "remove", "docker"])?;
    Ok(())
}

/// How many containers come and go at once.
const CROWD: usize = 100;

fn a_hundred_that_come_and_go_while_the_helper_is_killed_leave_nothing_double(
    lab: &Lab,
) -> Result<()> {
    let mut split = Split::new(lab, "a")?;
    let a = split.host.clone();
    let engine = Engine::start(&a)?;
    let socket = engine.socket.clone();
    let path = socket.trim_start_matches("unix://");
    split.engines.push(path.to_owned());
    split.start_helper()?;
    split.start()?;
    a.json(&["create", "lab"])?;
    let names: Vec<String> = (0..CROWD).map(|n| format!("c{n}")).collect();
    let mut addresses = Vec::new();
    for name in &names {
        runs_always(&engine, name)?;
        let at = a.json(&["attach", "docker", name, "--subnet", "lab"])?;
        addresses.push(v4(&at)?);
    }
    for daemon_dies in [false, true] {
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let restart = [&["-H", &socket, "restart", "-t", "0"], &all[..]].concat();
        std::thread::scope(|scope| {
            let restart = scope.spawn(|| crate::lab::sh("docker", &restart).map(drop));
            let mut kills = 0;
            while !restart.is_finished() {
                std::thread::sleep(Duration::from_millis(300));
                split.kill_helper()?;
                if daemon_dies && kills == 1 {
                    a.kill9()?;
                }
                std::thread::sleep(Duration::from_millis(200));
                split.start_helper()?;
                if daemon_dies && kills == 1 {
                    split.start()?;
                }
                kills += 1;
            }
            println!("    the helper was killed {kills} times");
            ensure!(kills > 1, "they were away too short");
            match restart.join() {
                Ok(restarted) => restarted,
                Err(_) => anyhow::bail!("the thread panicked"),
            }
        })?;
        all_are_single(&a, &engine, &names, &addresses)?;
    }
    all_go(&a, &engine, &names)
}
