//! Containers that are attached: they talk by name, the engine lets them through, and they are given back or freed.

use anyhow::{Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until, v4, v6};

use super::engine::{Engine, alone, scene};

pub const CASES: &[Case] = &[
    with_engine!(containers_on_two_hosts_talk_by_name),
    with_engine!(docker_lets_ours_through_and_nothing_else),
    with_engine!(detach_gives_the_container_back),
];

fn containers_on_two_hosts_talk_by_name(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let db = b.json(&[
        "attach", "docker", "db", "--subnet", "lab", "--name", "store",
    ])?;
    ensure!(
        web["workload"] == "web",
        "the container's name is the default: {web}"
    );
    let inside = ea.exec("web", &["ip", "addr"])?;
    ensure!(
        inside.contains(&v4(&web)?) && inside.contains(&v6(&web)?),
        "the container owns its addresses: {inside}"
    );
    let ping = |engine: &Engine, from: &str, to: &str| {
        until(&format!("{from} pings {to}"), SOON, || {
            engine
                .exec(from, &["ping", "-c", "1", "-W", "1", to])
                .map(|_| true)
        })
    };
    // By the containers' own resolver files.
    ping(&eb, "db", "web.lab.internal")?;
    ping(&ea, "web", "store.lab.internal")?;
    ping(&ea, "web", "store")?;
    ping(&eb, "db", &v6(&web)?)?;
    // A web server in one container, fetched by name from the other; it sees the real overlay address.
    ea.exec("web", &["mkdir", "-p", "/tmp/www/cgi-bin"])?;
    ea.exec(
        "web",
        &[
            "sh",
            "-c",
            "printf '#!/bin/sh\\necho; echo from $REMOTE_ADDR.\\n' > /tmp/www/cgi-bin/who",
        ],
    )?;
    ea.exec("web", &["chmod", "755", "/tmp/www/cgi-bin/who"])?;
    ea.exec("web", &["httpd", "-p", "80", "-h", "/tmp/www"])?;
    let fetch = "printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 5 web.lab.internal 80";
    let page = eb.exec("db", &["sh", "-c", fetch])?;
    let source =
        |ip: &str| page.contains(&format!("from {ip}.")) || page.contains(&format!("from [{ip}]."));
    ensure!(
        source(&v4(&db)?) || source(&v6(&db)?),
        "the server sees the client's overlay address: {page}"
    );
    // And by a port map from the outside.
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let outside = lab.host("x")?;
    let url = format!("http://{}:8080/cgi-bin/who", a.under4());
    let answer = outside
        .ns()
        .run(&["timeout", "5", "python3", "-c", FETCH, &url])?;
    ensure!(answer.out.contains("from "), "{answer}");
    Ok(())
}

fn docker_lets_ours_through_and_nothing_else(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab)?;
    let outside = lab.host("x")?;
    ea.run("two")?;
    let [web, two] =
        ["web", "two"].map(|name| a.json(&["attach", "docker", name, "--subnet", "lab"]));
    let (web, two, db) = (
        web?,
        two?,
        b.json(&["attach", "docker", "db", "--subnet", "lab"])?,
    );
    let policy = a.ns().ok(&["iptables", "-S", "FORWARD"])?;
    ensure!(
        policy.contains("-P FORWARD DROP"),
        "Docker drops what is forwarded: {policy}"
    );
    ea.exec("web", &["mkdir", "-p", "/tmp/www"])?;
    ea.exec("web", &["httpd", "-p", "80", "-h", "/tmp/www"])?;
    for any in ["0.0.0.0", "[::]"] {
        a.ok(&["map", "add", "lab", "tcp", &format!("{any}:8080"), "web:80"])?;
    }
    for (engine, from, to) in [(&ea, "web", &two), (&ea, "web", &db), (&eb, "db", &web)] {
        for address in [v4(to)?, v6(to)?] {
            until(&format!("{from} reaches {address}"), SOON, || {
                engine
                    .exec(from, &["ping", "-c", "1", "-W", "1", &address])
                    .map(|_| true)
            })?;
        }
    }
    for address in [a.under4(), a.under6()] {
        until(&format!("the map answers at {address}"), SOON, || {
            Ok(connects(&outside, address, 8080))
        })?;
    }
    published_port_is_not_for_the_overlay(&a, &ea, &outside)?;
    nobody_routes_into_our_links(&a, &ea, &outside, &v4(&web)?)?;
    ea.docker(&["rm", "-f", "pub"])?;
    // The bridge got an address of its own with its first container.
    a.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.docker0.disable_ipv6=1"])
        .map(drop)
}

/// Whether a TCP connection comes about within a second.
fn connects(from: &Host, address: &str, port: u16) -> bool {
    let python = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)";
    from.ns()
        .run(&["python3", "-c", python, address, &port.to_string()])
        .is_ok_and(|answer| answer.code == 0)
}

/// A container `pub` of Docker's own, with a published port: not for the overlay while the machine is closed to it.
fn published_port_is_not_for_the_overlay(a: &Host, ea: &Engine, outside: &Host) -> Result<()> {
    let www = [
        "run",
        "-d",
        "--init=false",
        "-p",
        "9090:80",
        "--name",
        "pub",
        "box:1",
        "/bin/httpd",
        "-f",
        "-p",
        "80",
    ];
    ea.docker(&www)?;
    let inspect = ["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pub"];
    let bridged = ea.docker(&inspect)?.trim().to_owned();
    // Docker does not wait until what it started listens.
    until("Docker publishes its port to the outside", SOON, || {
        Ok(connects(outside, a.under4(), 9090))
    })?;
    let (own4, _) = a.overlay("lab")?;
    let pid = ea
        .docker(&["inspect", "-f", "{{.State.Pid}}", "two"])?
        .trim()
        .to_owned();
    crate::lab::sh(
        "nsenter",
        &[
            "-t",
            &pid,
            "-n",
            "ip",
            "route",
            "add",
            &format!("{bridged}/32"),
            "via",
            &own4,
        ],
    )?;
    for (address, port) in [
        (bridged.as_str(), "80"),
        (&own4, "9090"),
        (&bridged, "9090"),
    ] {
        let tried = ea.exec("two", &["nc", "-w", "1", "-z", address, port]);
        ensure!(
            tried.is_err(),
            "{address} port {port} is not for the overlay"
        );
    }
    Ok(())
}

/// There is no way into a workload from outside, nor from Docker's bridge.
fn nobody_routes_into_our_links(a: &Host, ea: &Engine, outside: &Host, web4: &str) -> Result<()> {
    outside
        .ns()
        .ip(&["route", "add", &format!("{web4}/32"), "via", a.under4()])?;
    outside.rebase()?;
    ensure!(
        !outside.ns().pings(web4) && !connects(outside, web4, 80),
        "no way in from outside"
    );
    ensure!(
        ea.exec("pub", &["ping", "-c", "1", "-W", "1", web4])
            .is_err(),
        "none from Docker's bridge"
    );
    Ok(())
}

/// Prints what is at an address.
const FETCH: &str =
    "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=4).read().decode())";

fn detach_gives_the_container_back(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let before = [
        engine.exec("web", &["cat", "/etc/resolv.conf"])?,
        engine.exec("web", &["ip", "addr"])?,
    ];
    for _ in 0..2 {
        let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
        let resolver = engine.exec("web", &["cat", "/etc/resolv.conf"])?;
        ensure!(
            resolver.contains(&a.overlay("lab")?.0),
            "the container asks this host: {resolver}"
        );
        ensure!(
            engine.exec("web", &["ip", "route"])?.contains(&v4(&web)?),
            "its routes use its address"
        );
        a.ok(&["detach", "web"])?;
        let after = [
            engine.exec("web", &["cat", "/etc/resolv.conf"])?,
            engine.exec("web", &["ip", "addr"])?,
        ];
        ensure!(
            after == before,
            "detach leaves the container as it was: {after:?} instead of {before:?}"
        );
    }
    // A daemon that ends leaves nothing inside either, and takes the workload up again when it is back.
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.terminate()?;
    let after = [
        engine.exec("web", &["cat", "/etc/resolv.conf"])?,
        engine.exec("web", &["ip", "addr"])?,
    ];
    ensure!(
        after == before,
        "a stopped daemon leaves the container as it was: {after:?} instead of {before:?}"
    );
    a.start()?;
    until("the container has its address again", SOON, || {
        Ok(engine.exec("web", &["ip", "addr"])?.contains(&v4(&web)?))
    })?;
    Ok(())
}
