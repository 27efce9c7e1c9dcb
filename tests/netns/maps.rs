//! Port maps: from outside, by loopback, from workloads; closed to everything not asked for; undone to the byte.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::flows::End;
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until, v4, v6};

pub const CASES: &[Case] = &[
    fast!(tcp_and_udp_maps_answer_from_everywhere),
    fast!(target_on_another_peer_sees_our_overlay_address),
    fast!(map_survives_a_restart),
    fast!(allow_lets_in_only_those),
    fast!(an_open_connection_through_a_map_is_reset_when_the_map_goes),
    fast!(unpublished_ports_are_not_routed_to),
    fast!(unmap_restores_ruleset),
    fast!(foreign_flush_is_repaired_within_a_second),
    fast!(taken_port_is_a_conflict),
    fast!(wrong_maps_change_nothing),
];

/// Two members, a workload `web` behind the first that serves port 80 of both families and protocols, and a plain host
/// without byway on the same switch.
struct Scene {
    a: Rc<Host>,
    b: Rc<Host>,
    outside: Rc<Host>,
    web: Netns,
    at: Value,
    _servers: Vec<Server>,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let outside = lab.host("x")?;
    let web = lab.workload("web")?;
    let at = a.attach(&web, "lab", "web")?;
    let servers = serve_all(&web, 80)?;
    Ok(Scene {
        a: Rc::clone(a),
        b: Rc::clone(b),
        outside,
        web,
        at,
        _servers: servers,
    })
}

fn serve_all(ns: &Netns, port: u16) -> Result<Vec<Server>> {
    [
        ("tcp", "0.0.0.0"),
        ("tcp", "::"),
        ("udp", "0.0.0.0"),
        ("udp", "::"),
    ]
    .iter()
    .map(|(proto, any)| ns.serve(proto, any, port))
    .collect()
}

/// Publishes `port` in both protocols and families.
fn publish(host: &Host, port: u16, target: &str) -> Result<()> {
    for proto in ["tcp", "udp"] {
        for any in ["0.0.0.0", "[::]"] {
            host.ok(&["map", "add", "lab", proto, &format!("{any}:{port}"), target])?;
        }
    }
    Ok(())
}

fn tcp_and_udp_maps_answer_from_everywhere(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let other = lab.workload("other")?;
    s.a.attach(&other, "lab", "other")?;
    publish(&s.a, 8080, "web:80")?;
    let (own4, own6) = s.a.overlay("lab")?;
    let x = s.outside.ns();
    ensure!(
        x.tcp(s.a.under4(), 8080, 2_000_000)? == s.outside.under4(),
        "a local target sees the client's address"
    );
    ensure!(
        x.tcp(s.a.under6(), 8080, 2_000_000)? == s.outside.under6(),
        "over IPv6 too"
    );
    x.udp(s.a.under4(), 8080, 1000)
        .context("udp from outside")?;
    x.udp(s.a.under6(), 8080, 1000)
        .context("udp from outside over IPv6")?;
    for loopback in ["127.0.0.1", "::1"] {
        s.a.ns()
            .tcp(loopback, 8080, 100_000)
            .with_context(|| format!("tcp from the host by {loopback}"))?;
        s.a.ns()
            .udp(loopback, 8080, 1000)
            .with_context(|| format!("udp from the host by {loopback}"))?;
    }
    s.a.ns()
        .tcp(s.a.under4(), 8080, 100_000)
        .context("from the host by its own address")?;
    for (name, workload) in [("another workload", &other), ("the target itself", &s.web)] {
        for own in [&own4, &own6] {
            workload
                .tcp(own, 8080, 100_000)
                .with_context(|| format!("hairpin from {name} by {own}"))?;
            workload
                .udp(own, 8080, 1000)
                .with_context(|| format!("udp hairpin from {name} by {own}"))?;
        }
    }
    s.b.ns()
        .tcp(&own4, 8080, 100_000)
        .context("from another member by the overlay address")?;
    until("the counters move", SOON, || {
        let list = s.a.json(&["map", "ls", "lab"])?;
        let maps = list["maps"].as_array().context("maps")?.clone();
        ensure!(
            maps.len() == 4 && maps.iter().all(|m| m["state"] == "ok"),
            "{list}"
        );
        Ok(maps
            .iter()
            .all(|m| m["connections"].as_u64() > Some(0) && m["rx_bytes"].as_u64() > Some(0)))
    })?;
    Ok(())
}

fn target_on_another_peer_sees_our_overlay_address(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    publish(&s.b, 8081, "web.lab:80")?;
    let (own4, own6) = s.b.overlay("lab")?;
    let x = s.outside.ns();
    s.b.ns().reaches(&v4(&s.at)?, SOON)?;
    ensure!(
        x.tcp(s.b.under4(), 8081, 500_000)? == own4,
        "the far target sees the publishing peer"
    );
    ensure!(x.tcp(s.b.under6(), 8081, 500_000)? == own6, "over IPv6 too");
    x.udp(s.b.under4(), 8081, 1000)?;
    x.udp(s.b.under6(), 8081, 1000)?;
    s.b.ns().tcp("127.0.0.1", 8081, 10_000)?;
    s.b.ns().tcp("::1", 8081, 10_000)?;
    s.b.ns().udp("127.0.0.1", 8081, 1000).map(drop)
}

fn map_survives_a_restart(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    s.a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    s.a.kill9()?;
    s.a.start()?;
    until("the map answers again", Duration::from_secs(5), || {
        Ok(s.outside.ns().tcp(s.a.under4(), 8080, 1000).is_ok())
    })?;
    Ok(())
}

fn allow_lets_in_only_those(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let friend = lab.host("y")?;
    let prefix = format!("{}/32", friend.under4());
    s.a.ok(&[
        "map",
        "add",
        "lab",
        "tcp",
        "0.0.0.0:8080",
        "web:80",
        "--allow",
        &prefix,
    ])?;
    friend.ns().tcp(s.a.under4(), 8080, 1000)?;
    ensure!(
        s.outside.ns().tcp(s.a.under4(), 8080, 1000).is_err(),
        "a client outside the prefix is kept out"
    );
    Ok(())
}

fn an_open_connection_through_a_map_is_reset_when_the_map_goes(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let far = lab.workload("far")?;
    let far_at = s.b.attach(&far, "lab", "far")?;
    s.a.ns().reaches(&v4(&far_at)?, SOON)?;
    let x = s.outside.ns();
    for (target, ns) in [("web", &s.web), ("a", s.a.ns()), ("far", &far)] {
        for any in ["0.0.0.0", "::"] {
            let (listen, to) = match any {
                "::" => ("[::]:8090", s.a.under6()),
                _ => ("0.0.0.0:8090", s.a.under4()),
            };
            for (client, server) in [("speaks", "listens"), ("listens", "speaks")] {
                let what = format!("a map of {listen} to {target}, a client that {client}");
                s.a.ok(&["map", "add", "lab", "tcp", listen, &format!("{target}:90")])?;
                let mut serves = End::new(ns, ["serves", any, "90", server])?;
                let mut asks =
                    End::new(x, ["asks", to, "8090", client]).with_context(|| what.clone())?;
                std::thread::sleep(Duration::from_millis(300));
                ensure!(
                    !asks.has_ended()? && !serves.has_ended()?,
                    "{what}: the connection was under way"
                );
                s.a.ok(&["map", "rm", "lab", "tcp", listen])?;
                let speaker = if client == "speaks" {
                    &mut asks
                } else {
                    &mut serves
                };
                let took = until("who speaks is told", SOON, || speaker.has_ended())
                    .with_context(|| what.clone())?;
                ensure!(took < Duration::from_secs(1), "{what}: only after {took:?}");
            }
        }
    }
    Ok(())
}

fn unpublished_ports_are_not_routed_to(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let (web4, web6) = (v4(&s.at)?, v6(&s.at)?);
    publish(&s.a, 8080, "web:80")?;
    let x = s.outside.ns();
    x.ip(&["route", "add", &format!("{web4}/32"), "via", s.a.under4()])?;
    x.ip(&[
        "-6",
        "route",
        "add",
        &format!("{web6}/128"),
        "via",
        s.a.under6(),
    ])?;
    s.outside.rebase()?;
    for address in [&web4, &web6] {
        ensure!(!x.pings(address), "{address} answers a stranger's ping");
        ensure!(
            x.tcp(address, 80, 10).is_err(),
            "{address} is reachable past the map"
        );
        ensure!(
            x.udp(address, 80, 10).is_err(),
            "{address} is reachable by udp past the map"
        );
    }
    // The overlay address of the host itself is no way in either: nothing is published on it but the map.
    x.tcp(s.a.under4(), 8080, 10)
        .context("the map itself still answers")?;
    ensure!(
        x.tcp(s.a.under4(), 80, 10).is_err(),
        "the target's port is not the listening port"
    );
    Ok(())
}

fn unmap_restores_ruleset(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    s.a.ns().ok(&["nft", "add table inet admin; add chain inet admin c { type filter hook forward priority 0; policy accept; }; add rule inet admin c counter"])?;
    let before = s.a.ns().ruleset()?;
    publish(&s.a, 8080, "web:80")?;
    s.a.ok(&[
        "map",
        "add",
        "lab",
        "tcp",
        "127.0.0.1:9000",
        "web:80",
        "--name",
        "named",
    ])?;
    ensure!(s.a.ns().ruleset()? != before, "a map shows in the ruleset");
    s.outside.ns().tcp(s.a.under4(), 8080, 1000)?;
    s.a.ok(&["map", "rm", "lab", "named"])?;
    for proto in ["tcp", "udp"] {
        for any in ["0.0.0.0:8080", "[::]:8080"] {
            s.a.ok(&["map", "rm", "lab", proto, any])?;
        }
    }
    let after = s.a.ns().ruleset()?;
    ensure!(
        after == before,
        "`map rm` leaves another ruleset\n--- before\n{before}\n--- after\n{after}"
    );
    ensure!(
        s.outside.ns().tcp(s.a.under4(), 8080, 10).is_err(),
        "a removed map is closed"
    );
    ensure!(
        s.a.ns().tcp("127.0.0.1", 9000, 10).is_err(),
        "a removed loopback map is closed"
    );
    s.a.ok(&["destroy", "lab"])?;
    let left = s.a.ns().ruleset()?;
    ensure!(
        !left.contains("byway") && left.contains("table inet admin"),
        "our table went, the other stayed:\n{left}"
    );
    s.a.ns().ok(&["nft", "delete table inet admin"]).map(drop)
}

fn foreign_flush_is_repaired_within_a_second(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    publish(&s.a, 8080, "web:80")?;
    let before = s.a.ns().ruleset()?;
    for attack in ["flush ruleset", "flush ruleset"] {
        s.a.ns().ok(&["nft", attack])?;
        until("the ruleset is back", Duration::from_secs(1), || {
            Ok(s.a.ns().ruleset()? == before)
        })?;
    }
    s.outside.ns().tcp(s.a.under4(), 8080, 1000)?;
    let table = before
        .lines()
        .find_map(|l| l.strip_prefix("table inet byway"))
        .context("our table")?;
    let table = format!("byway{}", table.trim_end_matches(['{', ' ']));
    s.a.ns().ok(&["nft", "delete", "table", "inet", &table])?;
    until("the deleted table is back", Duration::from_secs(1), || {
        Ok(s.a.ns().ruleset()? == before)
    })?;
    s.outside.ns().tcp(s.a.under4(), 8080, 1000).map(drop)
}

fn taken_port_is_a_conflict(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let before = s.a.ns().ruleset()?;
    let _tcp = s.a.ns().serve("tcp", "0.0.0.0", 9090)?;
    let _udp = s.a.ns().serve("udp", "::", 9091)?;
    s.a.fails(
        6,
        "E-",
        &["map", "add", "lab", "tcp", "0.0.0.0:9090", "web:80"],
    )?;
    s.a.fails(
        6,
        "E-",
        &["map", "add", "lab", "tcp", "127.0.0.1:9090", "web:80"],
    )?;
    s.a.fails(
        6,
        "E-",
        &["map", "add", "lab", "udp", "[::]:9091", "web:80"],
    )?;
    s.a.fails(
        6,
        "E-",
        &["map", "add", "lab", "tcp", "0.0.0.0:4100", "web:80"],
    )
    .context("the underlay's own port")?;
    ensure!(
        s.a.ns().ruleset()? == before,
        "a refused map changes nothing"
    );
    s.a.ok(&["map", "add", "lab", "udp", "0.0.0.0:9090", "web:80"])
        .context("the other protocol is free")?;
    s.a.fails(
        6,
        "E-",
        &["map", "add", "lab", "udp", "0.0.0.0:9090", "web:80"],
    )
    .context("mapped twice")
    .map(drop)
}

fn wrong_maps_change_nothing(lab: &Lab) -> Result<()> {
    let s = scene(lab)?;
    let before = (s.a.ns().ruleset()?, s.a.json(&["map", "ls"])?);
    for (exit, words) in [
        (2, ["tcp", "0.0.0.0:0", "web:80"]),
        (2, ["tcp", "0.0.0.0:65536", "web:80"]),
        (2, ["tcp", "0.0.0.0:8080", "web:0"]),
        (2, ["tcp", "0.0.0.0:8080", "web:65536"]),
        (2, ["sctp", "0.0.0.0:8080", "web:80"]),
        (2, ["tcp", "0.0.0.0", "web:80"]),
        (2, ["tcp", "0.0.0.0:8080", "web"]),
        (5, ["tcp", "0.0.0.0:8080", "nosuch:80"]),
        (5, ["tcp", "0.0.0.0:8080", "203.0.113.9:80"]),
    ] {
        s.a.fails(exit, "E-", &[&["map", "add", "lab"], &words[..]].concat())?;
    }
    s.a.fails(
        5,
        "E-",
        &["map", "add", "nosuch", "tcp", "0.0.0.0:8080", "web:80"],
    )?;
    s.a.fails(5, "E-", &["map", "rm", "lab", "nosuch"])?;
    ensure!(
        (s.a.ns().ruleset()?, s.a.json(&["map", "ls"])?) == before,
        "a refused map changed something"
    );
    Ok(())
}
