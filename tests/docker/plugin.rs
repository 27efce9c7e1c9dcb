//! Networks of Docker's own over a subnet: its engine asks the daemon for addresses and links, as its plugin.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};

use super::engine::Engine;

/// A case of the long set that starts an engine.
macro_rules! long_with_engine {
    ($name:ident) => {
        $crate::long!(
            $name, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"
        )
    };
}

pub const CASES: &[Case] = &[
    with_engine!(containers_of_docker_networks_reach_each_other_across_hosts),
    with_engine!(containers_of_networks_with_both_families_start_each_time),
    long_with_engine!(containers_are_known_by_name_in_their_subnet_and_nowhere_else),
    long_with_engine!(networks_outlive_every_restart),
    long_with_engine!(killed_engine_leaves_nothing_behind),
    long_with_engine!(a_container_starts_about_as_fast_as_on_dockers_own_bridge),
];

/// The words that make a network of Docker's over the subnet `lab`.
pub const CREATE: [&str; 10] = [
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
pub(crate) fn host(lab: &Lab, name: &str, options: &[&str]) -> Result<(Rc<Host>, Engine)> {
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
pub fn scene(lab: &Lab, options: &[&str]) -> Result<[(Rc<Host>, Engine); 2]> {
    let (a, b) = (host(lab, "a", options)?, host(lab, "b", options)?);
    a.0.start()?;
    b.0.start()?;
    let made = a.0.json(&["create", "lab"])?;
    b.0.json(&["join", &text(&made, "invite")?])?;
    for (host, engine) in [&a, &b] {
        host.ok(&["integration", "install", "docker"])?;
        // Who wants to name an address has to name the prefix.
        let prefix = text(&host.json(&["subnet", "show", "lab"])?, "cidr4")?;
        engine.docker(&[&CREATE[..], &["--subnet", &prefix, "lab"]].concat())?;
    }
    Ok([a, b])
}

/// A container that sleeps, in a network, with further options.
pub fn run(engine: &Engine, name: &str, options: &[&str]) -> Result<()> {
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
    // What its engine has put there, only its engine takes out.
    let attached = a.fails(6, "E-ATTACHED", &["attach", "docker", "web"])?;
    ensure!(!attached.err.contains("byway detach"), "{attached}");
    let refused = a.fails(6, "E-ATTACHED", &["detach", "web"])?;
    ensure!(
        refused.err.contains("docker network disconnect"),
        "{refused}"
    );
    let other = [
        "integration",
        "install",
        "docker",
        "--host",
        "/run/other.sock",
    ];
    a.fails(6, "E-DOCKER", &other)?;
    pings(&eb, "db", &web)?;
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

/// Stops the daemon, which leaves nothing, and takes away what Docker made on the host for its own way out.
fn gone(host: &Host, engine: &Engine) -> Result<()> {
    host.terminate()?;
    let left = [host.ns().ip(&["-o", "link"])?, host.ns().ip(&["rule"])?];
    ensure!(
        !left.iter().any(|l| l.contains("bw-") || l.contains("4110")),
        "{left:?}"
    );
    let tables = host.ns().ok(&["nft", "list", "tables"])?;
    ensure!(!tables.contains("byway"), "{tables}");
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
    // Docker's own routes name no source.
    until("its routes are ours", SOON, || {
        let routes = engine.exec(name, &["ip", "route"])?;
        let source = format!("src {address}");
        let ours = |l: &&str| l.starts_with("10.") && l.contains(&source);
        Ok(routes.lines().filter(ours).count() == 2)
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

fn containers_are_known_by_name_in_their_subnet_and_nowhere_else(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab, &[])?;
    let options = [
        "--network",
        "lab",
        "--network-alias",
        "front",
        "--label",
        "byway.map=tcp/8088:80",
    ];
    run(&ea, "web_1", &options)?;
    run(
        &eb,
        "db",
        &["--network", "lab", "--label", "byway.name=store"],
    )?;
    // Who built an image has no say about names and ports here.
    let labels = [
        "--change",
        "LABEL byway.name=stranger byway.map=tcp/8089:80",
    ];
    eb.docker(&[&["commit"], &labels[..], &["db", "labelled:1"]].concat())?;
    let of_image = [
        "run",
        "-d",
        "--init=false",
        "--name",
        "plain",
        "--network",
        "lab",
    ];
    eb.docker(&[&of_image[..], &["labelled:1", "/bin/sleep", "1000"]].concat())?;
    until("it is named by its own name", SOON, || {
        Ok(workloads(&b)?.iter().any(|w| w["workload"] == "plain"))
    })?;
    let maps = b.json(&["map", "ls"])?;
    ensure!(maps["maps"] == serde_json::json!([]), "{maps}");
    eb.docker(&["rm", "-f", "plain"])?;
    // By Docker's own server inside, which knows nothing of the other machine.
    for name in ["front", "web-1", "web-1.lab.internal"] {
        pings(&eb, "db", name)?;
    }
    pings(&ea, "web_1", "store")?;
    ea.exec(
        "web_1",
        &[
            "sh",
            "-c",
            "mkdir /tmp/www; echo hello > /tmp/www/index.html",
        ],
    )?;
    ea.exec("web_1", &["httpd", "-p", "80", "-h", "/tmp/www"])?;
    let outside = lab.host("x")?;
    let url = format!("http://{}:8088/", a.under4());
    let fetch = [
        "python3",
        "-c",
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read())",
        &url,
    ];
    until("its label maps a port", SOON, || {
        Ok(outside.ns().run(&fetch)?.out.contains("hello"))
    })?;
    nobody_elsewhere_sees_them(&a, &ea)?;
    ea.docker(&["rename", "web_1", "shop"])?;
    pings(&eb, "db", "shop")?;
    pings(&eb, "db", "front")?;
    ea.docker(&["rm", "-f", "shop"])?;
    until("its map goes with it", SOON, || {
        let maps = a.json(&["map", "ls"])?;
        Ok(maps["maps"].as_array().is_some_and(Vec::is_empty))
    })?;
    eb.docker(&["rm", "-f", "db"])?;
    for (host, engine) in [(&a, &ea), (&b, &eb)] {
        engine.docker(&["network", "rm", "lab"])?;
        gone(host, engine)?;
    }
    Ok(())
}

/// Another subnet's container on the same machine sees none of the names.
fn nobody_elsewhere_sees_them(a: &Host, ea: &Engine) -> Result<()> {
    a.json(&["create", "prod"])?;
    let prod = ["-o", "subnet=prod", "--ipam-opt", "subnet=prod", "prod"];
    ea.docker(&[&CREATE[..6], &prod].concat())?;
    run(ea, "apart", &["--network", "prod"])?;
    run(ea, "near", &["--network", "prod"])?;
    pings(ea, "apart", "near")?;
    for name in ["front", "web-1.lab.internal", "store"] {
        let seen = ea.exec("apart", &["ping", "-c", "1", "-W", "1", name]);
        ensure!(seen.is_err(), "{name} is another subnet's: {seen:?}");
    }
    ea.docker(&["rm", "-f", "apart", "near"])?;
    ea.docker(&["network", "rm", "prod"]).map(drop)
}

/// Containers that run when their engine is killed.
const MANY: usize = 10;

fn killed_engine_leaves_nothing_behind(lab: &Lab) -> Result<()> {
    let (a, mut engine) = host(lab, "a", &[])?;
    a.start()?;
    a.json(&["create", "lab"])?;
    a.ok(&["integration", "install", "docker"])?;
    engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    for n in 0..MANY {
        run(&engine, &format!("c{n}"), &["--network", "lab"])?;
    }
    pings(&engine, "c0", &address(&engine, "c9")?)?;
    ensure!(workloads(&a)?.len() == MANY);
    // Both at once: each finds another than it left. The engine waits for its plugin when it starts.
    engine.restart(Signal::SIGKILL, || {
        a.kill9()?;
        a.start()
    })?;
    engine.docker(&["start", "c0", "c1"])?;
    pings(&engine, "c0", &address(&engine, "c1")?)?;
    until(
        "what the engine has no more is given back",
        4 * SOON,
        || Ok(workloads(&a)?.len() == running(&engine)?),
    )
    .with_context(|| format!("{:?}", workloads(&a)))?;
    let all: Vec<String> = (0..MANY).map(|n| format!("c{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    engine.docker(&[&["rm", "-f"], &all[..]].concat())?;
    engine.docker(&["network", "rm", "lab"])?;
    until("nothing is left", SOON, || Ok(workloads(&a)?.is_empty()))?;
    let links = a.ns().ip(&["-o", "link"])?;
    ensure!(!links.contains("bwv") && !links.contains("bwi"), "{links}");
    gone(&a, &engine)
}

fn running(engine: &Engine) -> Result<usize> {
    Ok(engine.docker(&["ps", "-q"])?.lines().count())
}

/// The engine configures a link by itself, and byway looks after it only then: else each is in the other's way.
fn containers_of_networks_with_both_families_start_each_time(lab: &Lab) -> Result<()> {
    let (a, engine) = host(lab, "a", &[])?;
    a.start()?;
    a.json(&["create", "lab"])?;
    a.ok(&["integration", "install", "docker"])?;
    let own = [&CREATE[..], &["--ipv6", "lab"]].concat();
    engine.docker(&own)?;
    run(&engine, "first", &["--network", "lab"])?;
    let inside = engine.exec(
        "first",
        &["ip", "-o", "-6", "addr", "show", "scope", "global"],
    )?;
    let first6 = inside
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/128"))
        .context("an IPv6 address")?
        .to_owned();
    for round in 0..8 {
        let name = format!("c{round}");
        run(&engine, &name, &["--network", "lab"]).with_context(|| name.clone())?;
        pings(&engine, &name, &first6)?;
        pings(&engine, &name, &address(&engine, "first")?)?;
        engine.docker(&["rm", "-f", &name])?;
    }
    engine.docker(&["rm", "-f", "first"])?;
    engine.docker(&["network", "rm", "lab"])?;
    a.ok(&["integration", "remove", "docker"]).map(drop)
}

/// Times of each call of the engine's, in microseconds.
type Calls = BTreeMap<String, Vec<u64>>;

/// What the driver took of each start so far, and how long each of its calls: by what the daemon says of them.
fn shares(a: &Host) -> Result<(Vec<u64>, Calls)> {
    let log = std::fs::read_to_string(a.dir().join("log"))?;
    let (mut starts, mut calls) = (Vec::new(), Calls::new());
    for line in log.lines() {
        let said = line.split_once("path=\"/").and_then(|(_, rest)| {
            let (call, rest) = rest.split_once('"')?;
            let took = rest.split_once("took_us=")?.1.split(' ').next()?;
            Some((call.to_owned(), took.parse::<u64>().ok()?))
        });
        let Some((call, took)) = said else { continue };
        // A start begins with an address and ends before its container goes.
        if call == "IpamDriver.RequestAddress" {
            starts.push(0);
        }
        let ends = ["Leave", "DeleteEndpoint", "ReleaseAddress"];
        if let Some(start) = starts.last_mut()
            && !ends.iter().any(|end| call.ends_with(end))
        {
            *start += took;
        }
        calls.entry(call).or_default().push(took);
    }
    Ok((starts, calls))
}

/// By turns, so that what else the machine does counts for both. The figure is for an optimised binary (`BYWAY_BIN`).
fn a_container_starts_about_as_fast_as_on_dockers_own_bridge(lab: &Lab) -> Result<()> {
    let (a, engine) = host(lab, "a", &[])?;
    // Docker's bridge keeps addresses once it was used.
    run(&engine, "first", &[])?;
    engine.docker(&["rm", "-f", "first"])?;
    a.rebase()?;
    a.set_env("BYWAY_LOG", "debug");
    a.start()?;
    a.json(&["create", "lab"])?;
    a.ok(&["integration", "install", "docker"])?;
    engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..10 {
        for (network, took) in [("lab", &mut ours), ("bridge", &mut theirs)] {
            let name = format!("{network}{round}");
            let begun = Instant::now();
            run(&engine, &name, &["--network", network])?;
            took.push(begun.elapsed());
            engine.docker(&["rm", "-f", &name])?;
        }
    }
    ours.sort();
    theirs.sort();
    println!(
        "  docker run: median {:?} here, {:?} on the bridge",
        ours[5], theirs[5]
    );
    let (mut starts, calls) = shares(&a)?;
    for (call, mut took) in calls {
        took.sort();
        println!(
            "  {call}: median {} us of {}",
            took[took.len() / 2],
            took.len()
        );
    }
    starts.sort();
    let share = starts
        .get(starts.len() / 2)
        .context("no start was heard of")?;
    println!(
        "  the driver's share of a start: median {share} us of {}",
        starts.len()
    );
    ensure!(*share <= 100_000, "the driver's share is {share} us");
    ensure!(ours[5] < theirs[5] + Duration::from_millis(500));
    engine.docker(&["network", "rm", "lab"])?;
    a.ok(&["integration", "remove", "docker"]).map(drop)
}
