//! Networks of Docker's own over a subnet: its engine asks the daemon for addresses and links, as its plugin.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};

use super::engine::Engine;

pub const CASES: &[Case] = &[
    with_engine!(containers_of_docker_networks_reach_each_other_across_hosts),
    with_engine!(networks_outlive_every_restart),
];

/// The words that make a network of Docker's over the subnet `lab`.
const CREATE: [&str; 10] = [
    "network",
    "create",
    "-d",
    "byway",
    "--ipam-driver",
    "byway",
    "-o",
    "subnet=lab",
    "--ipam-opt",
    "subnet=lab",
];

/// A host with an engine that finds the plugin's socket in a directory of the host's own.
fn host(lab: &Lab, name: &str, options: &[&str]) -> Result<(Rc<Host>, Engine)> {
    let host = lab.host(name)?;
    let dir = host.dir().join("plugins");
    std::fs::create_dir(&dir)?;
    host.set_env("BYWAY_DOCKER_PLUGIN_DIR", &dir.to_string_lossy());
    let script = format!(
        "mkdir -p /run/docker/plugins\nmount --bind {} /run/docker/plugins",
        dir.display()
    );
    let engine = Engine::start_with(&host, &script, options)?;
    Ok((host, engine))
}

/// Two hosts in one subnet, whose engines have a network over it.
fn scene(lab: &Lab, options: &[&str]) -> Result<[(Rc<Host>, Engine); 2]> {
    let (a, b) = (host(lab, "a", options)?, host(lab, "b", options)?);
    a.0.start()?;
    b.0.start()?;
    let made = a.0.json(&["create", "lab"])?;
    b.0.json(&["join", &text(&made, "invite")?])?;
    for (host, engine) in [&a, &b] {
        host.ok(&["integration", "install", "docker"])?;
        engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    }
    Ok([a, b])
}

/// A container that sleeps, in a network, with further options.
fn run(engine: &Engine, name: &str, options: &[&str]) -> Result<()> {
    let first = ["run", "-d", "--init=false", "--name", name];
    let last = ["box:1", "/bin/sleep", "1000"];
    engine
        .docker(&[&first[..], options, &last].concat())
        .map(drop)
}

/// The address that the engine says a container has in the network `lab`.
fn address(engine: &Engine, name: &str) -> Result<String> {
    let format = "{{(index .NetworkSettings.Networks \"lab\").IPAddress}}";
    Ok(engine
        .docker(&["inspect", "-f", format, name])?
        .trim()
        .to_owned())
}

fn pings(engine: &Engine, from: &str, to: &str) -> Result<()> {
    until(&format!("{from} pings {to}"), SOON, || {
        Ok(engine
            .exec(from, &["ping", "-c", "1", "-W", "1", to])
            .is_ok())
    })
    .map(drop)
}

fn workloads(host: &Host) -> Result<Vec<Value>> {
    let all = host.json(&["workload", "ls"])?;
    Ok(all["workloads"].as_array().cloned().unwrap_or_default())
}

fn containers_of_docker_networks_reach_each_other_across_hosts(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab, &[])?;
    let second = ea.docker(&[&CREATE[..], &["other"]].concat());
    ensure!(
        second
            .as_ref()
            .is_err_and(|e| format!("{e:#}").contains("has a network on this host already")),
        "one network for each subnet: {second:?}"
    );
    let began = Instant::now();
    run(&ea, "web", &["--network", "lab"])?;
    println!("docker run took {:?}", began.elapsed());
    run(&eb, "db", &["--network", "lab"])?;
    let (web, db) = (address(&ea, "web")?, address(&eb, "db")?);
    pings(&ea, "web", &db)?;
    pings(&eb, "db", &web)?;
    adopted(&a, &ea, "web", &web)?;
    // To a container that runs already, and at an address that was asked for.
    run(&ea, "late", &[])?;
    ea.docker(&["network", "connect", "lab", "late"])?;
    let late = address(&ea, "late")?;
    pings(&ea, "late", &db)?;
    pings(&eb, "db", &late)?;
    let wanted = near(&web, 40)?;
    run(&ea, "fixed", &["--network", "lab", "--ip", &wanted])?;
    ensure!(address(&ea, "fixed")? == wanted);
    pings(&eb, "db", &wanted)?;
    let taken = run(&ea, "twice", &["--network", "lab", "--ip", &wanted]);
    ensure!(
        taken
            .as_ref()
            .is_err_and(|e| format!("{e:#}").contains("in use")),
        "an address is given once: {taken:?}"
    );
    ea.docker(&["rm", "-f", "twice"])?;
    // Started anew it is another endpoint, and no trace of the first is left.
    ea.docker(&["restart", "-t", "0", "web"])?;
    let again = address(&ea, "web")?;
    pings(&eb, "db", &again)?;
    ea.docker(&["network", "disconnect", "lab", "late"])?;
    ensure!(
        workloads(&a)?.len() == 2,
        "web and fixed: {:?}",
        workloads(&a)?
    );
    ea.docker(&["rm", "-f", "web", "fixed", "late"])?;
    eb.docker(&["rm", "-f", "db"])?;
    for (host, engine) in [(&a, &ea), (&b, &eb)] {
        engine.docker(&["network", "rm", "lab"])?;
        ensure!(workloads(host)?.is_empty(), "{:?}", workloads(host)?);
        let links = host.ns().ip(&["-o", "link"])?;
        ensure!(!links.contains("bwv") && !links.contains("bwi"), "{links}");
        host.ok(&["integration", "remove", "docker"])?;
        ensure!(!host.dir().join("plugins/byway.sock").exists());
        gone(host, engine)?;
    }
    Ok(())
}

/// Takes away what Docker made on the host for its own way out.
fn gone(host: &Host, engine: &Engine) -> Result<()> {
    engine
        .docker(&["network", "rm", "docker_gwbridge"])
        .map(drop)
        .or(Ok::<_, anyhow::Error>(()))?;
    host.rebase()
}

/// An address of the same /24, with another last byte.
fn near(address: &str, last: u8) -> Result<String> {
    let (front, _) = address.rsplit_once('.').context("no IPv4 address")?;
    Ok(format!("{front}.{last}"))
}

/// The container's link is looked after as any other workload's.
fn adopted(host: &Host, engine: &Engine, name: &str, address: &str) -> Result<()> {
    until(&format!("{name} is adopted"), SOON, || {
        let all = workloads(host)?;
        let own = |w: &&Value| {
            w["addresses"]
                .to_string()
                .contains(&format!("\"{address}\""))
        };
        Ok(all.iter().find(own).is_some_and(|w| w["state"] == "ok"))
    })?;
    until("its routes are ours", SOON, || {
        let routes = engine.exec(name, &["ip", "route"])?;
        Ok(routes.lines().filter(|l| l.contains("proto 98")).count() >= 2)
    })
    .map(drop)
    .with_context(|| engine.exec(name, &["ip", "route"]).unwrap_or_default())
}

fn networks_outlive_every_restart(lab: &Lab) -> Result<()> {
    let (a, engine) = host(lab, "a", &[])?;
    a.start()?;
    a.json(&["create", "lab"])?;
    a.ok(&["integration", "install", "docker"])?;
    engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    run(&engine, "web", &["--network", "lab"])?;
    run(&engine, "db", &["--network", "lab"])?;
    let (web, db) = (address(&engine, "web")?, address(&engine, "db")?);
    pings(&engine, "web", &db)?;
    adopted(&a, &engine, "web", &web)?;
    let socket = a.dir().join("plugins/byway.sock");
    for kill in [false, true] {
        if kill {
            a.kill9()?;
        } else {
            a.terminate()?;
            ensure!(!socket.exists(), "a stopped daemon leaves no socket");
            let began = Instant::now();
            engine.docker(&["volume", "ls"])?;
            ensure!(
                began.elapsed() < Duration::from_secs(1),
                "{:?}",
                began.elapsed()
            );
        }
        a.start()?;
        pings(&engine, "web", &db)?;
        pings(&engine, "db", &web)?;
        run(&engine, "more", &["--network", "lab"])?;
        pings(&engine, "more", &web)?;
        engine.docker(&["rm", "-f", "more"])?;
        ensure!(workloads(&a)?.len() == 2, "{:?}", workloads(&a)?);
    }
    engine.docker(&["rm", "-f", "web", "db"])?;
    engine.docker(&["network", "rm", "lab"])?;
    ensure!(workloads(&a)?.is_empty());
    gone(&a, &engine)
}
