//! Docker below a daemon that has the rights of its unit and nothing more: its helper speaks with the engine for it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::runner::Case;
use crate::lab::split::Split;
use crate::lab::{Lab, SOON, until, v4};

use super::engine::Engine;
use super::plugin::{CREATE, run};

pub const CASES: &[Case] = &[crate::ci!(
    docker_works_below_a_daemon_with_two_capabilities,
    "docker",
    "dockerd",
    "nsenter",
    "unshare",
    "tar",
    "busybox",
    "setpriv",
    "systemd-socket-activate"
)];

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
