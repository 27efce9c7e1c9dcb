//! Members that listen nowhere (`transport.listen = "none"`): they have a UDP port for their own dials and datagrams, and nobody is
//! told to connect to it.

use anyhow::{Context, Result, ensure};

use crate::ci;
use crate::drive::{admit, peer};
use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::{configure, found, relay, reserved, start_with};
use crate::underlay::{FIVE, PORT, datagrams, path};

pub const CASES: &[Case] = &[
    ci!(
        who_listens_nowhere_has_datagrams_and_answers_no_stranger,
        "ss",
        "nft"
    ),
    ci!(two_that_listen_nowhere_meet_through_a_relay_and_leave_it),
];

/// The line of `[transport]` that says so.
const NOWHERE: &str = "listen = \"none\"\n";

/// The port of discovery on the local network, which is no way in.
const MULTICAST: u16 = 5353;

/// The UDP port that the daemon of a host has of the kernel.
fn port(of: &Host) -> Result<u16> {
    let pid = format!("pid={},", of.pid()?);
    let sockets = of.ns().ok(&["ss", "-Hlunp"])?;
    let local = |line: &str| {
        let local = line.split_whitespace().nth(3)?;
        local.strip_prefix("0.0.0.0:")?.parse().ok()
    };
    let own = sockets.lines().filter(|line| line.contains(&pid));
    let number = own.filter_map(local).find(|port| *port != MULTICAST);
    number.with_context(|| format!("no UDP port in {sockets}"))
}

/// First packets of QUIC that were dropped, which nobody here may send.
fn refused(of: &Host) -> Result<u64> {
    let name = "byway_port_dropped_total{reason=\"quic-stranger\"} ";
    let text = of.ok(&["metrics"])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name}"))?.parse()?)
}

fn who_listens_nowhere_has_datagrams_and_answers_no_stranger(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let a = inet.host("a", 1)?;
    let open = inet.host("open", 2)?;
    let (_site, nat) = inet.behind("nat", 10, &Uplink::behind(Kind::port_restricted()))?;
    let x = inet.host("x", 3)?;
    a.start()?;
    a.json(&["create", "lab"])?;
    for host in [&open, &nat] {
        configure(host, &format!("[transport]\n{NOWHERE}"))?;
        host.start()?;
        admit(&a, host, "member")?;
    }
    for host in [&open, &nat] {
        datagrams(&a, host, FIVE)?;
        let path = path(host, "a")?;
        ensure!(path["transport"] == "udp", "{path}");
        // Whoever listens may keep a place for it: then it is reached through that member, and nowhere else.
        let id = host.json(&["id"])?;
        let all = id["addresses"].as_array().context("addresses")?;
        let through = |at: &serde_json::Value| at.to_string().contains("/p2p-circuit");
        ensure!(all.iter().all(through), "{id}");
        ensure!(port(host)? != PORT, "a port for dials is no fixed one");
    }
    // Nobody relays for the two, and nobody told them more than that the port takes datagrams.
    datagrams(&open, &nat, SOON)?;
    stranger(&open, &x)
}

/// A host that no member knows dials the port, and hears nothing.
fn stranger(open: &Host, x: &Host) -> Result<()> {
    x.start()?;
    let count = "table ip answers { chain o { type filter hook output priority 0; ip daddr ADDRESS counter; }; }";
    let count = count.replace("ADDRESS", x.under4());
    open.ns().ok(&["nft", &count])?;
    let before = refused(open)?;
    let address = format!("/ip4/{}/udp/{}/quic-v1", open.under4(), port(open)?);
    let peer = format!("{address}/p2p/{}", peer(open)?);
    let nobody = "7q3km2wd9xra4ce8yn5t0vbz6g";
    let dial = x.spawn(&["join", nobody, "--peer", &peer, "--timeout", "6s"])?;
    until("the first packets of a stranger are dropped", SOON, || {
        Ok(refused(open)? > before)
    })?;
    let said = dial.wait()?;
    ensure!(said.code != 0, "{said}");
    let sent = open.ns().ok(&["nft", "list", "table", "ip", "answers"])?;
    ensure!(sent.contains("packets 0 "), "it was answered: {sent}");
    // The daemon leaves nothing behind, and neither does this.
    let delete = ["nft", "delete", "table", "ip", "answers"];
    open.ns().ok(&delete).map(drop)
}

fn two_that_listen_nowhere_meet_through_a_relay_and_leave_it(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let nat = Uplink::behind(Kind::port_restricted());
    let (_here, a) = inet.behind("a", 10, &nat)?;
    let (_there, b) = inet.behind("b", 11, &nat)?;
    for host in [&a, &b] {
        start_with(host, &[&relay], NOWHERE)?;
    }
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    datagrams(&a, &b, FIVE)?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        let path = path(of, to)?;
        ensure!(path["transport"] == "udp", "{path}");
    }
    // Control leaves the relay as well: one end dials through the hole, and the other one lets it in. Without that the two would
    // have no connection when the relay stops.
    relay.host.terminate()?;
    a.json(&["dns", "add", "lab", "x", "10.77.200.1"])?;
    until("what one end writes is at the other", SOON, || {
        Ok(b.json(&["dns", "ls", "lab"])?
            .to_string()
            .contains("10.77.200.1"))
    })?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        let shown = of.json(&["peer", "show", to])?;
        ensure!(shown["connected"] == true, "{shown}");
    }
    Ok(())
}
