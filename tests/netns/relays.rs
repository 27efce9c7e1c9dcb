//! Relays at work: what they learn, what they carry, and what becomes of their clients when they go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::drive::{peer, stays};
use crate::lab::internet::Uplink;
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{
    Relay, THREE, Two, configure, found, relay, relay_over_a_line, relayed, reserved, start,
    start_with, two, two_with,
};
use crate::underlay::{Capture, FIVE, PORT, Transfer, datagrams, path};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(relay_learns_no_subnet),
    fast!(circuit_never_carries_packets_when_udp_works),
    ci!(
        a_relay_killed_under_tcp_is_replaced_by_another,
        "iperf3",
        "ss"
    ),
    ci!(members_without_any_relay_say_so_and_come_back_with_it),
    ci!(a_relay_that_loses_delays_and_repeats_is_left_for_another),
    fast!(two_behind_symmetric_nats_meet_through_a_third_member),
    ci!(a_relay_that_restarts_takes_its_clients_behind_one_nat_back),
    ci!(a_relay_that_a_reload_names_no_more_is_left),
    fast!(no_probe_storm),
    ci!(strangers_are_relayed_within_small_limits, "iperf3", "ss"),
    ci!(
        streams_carry_through_a_relay_where_udp_is_blocked,
        "iperf3",
        "ss"
    ),
    ci!(a_member_with_tcp_alone_is_reached_through_a_relay),
];

fn symmetric() -> Uplink {
    Uplink::behind(Kind::symmetric())
}

/// Two behind symmetric NATs that talk through a relay.
fn pair(lab: &Lab) -> Result<Two> {
    let inet = lab.internet()?;
    let two = two(&inet, &symmetric(), &symmetric())?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    relayed(&two.a, "b", SOON)?;
    relayed(&two.b, "a", SOON)?;
    Ok(two)
}

/// Whether `needle` stands in any of these.
fn holds(all: &[Vec<u8>], needle: &[u8]) -> bool {
    all.iter()
        .any(|bytes| bytes.windows(needle.len()).any(|w| w == needle))
}

fn relay_learns_no_subnet(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay_cable = "p-relay";
    let two = two(&inet, &symmetric(), &symmetric())?;
    let capture = Capture::start(lab, inet.space(), relay_cable, "relay")?;
    let (a, b) = (&two.a, &two.b);
    let created = a.json(&["create", "secretlab"])?;
    b.json(&["join", &text(&created, "invite")?])?;
    let inside = text(&created["addresses"], "0").or_else(|_| crate::lab::v4(&created))?;
    let canary = "deadbeefcafe";
    until("a canary passes", FIVE, || {
        let ping = [
            "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-p", canary, &inside,
        ];
        Ok(b.ns().run(&ping)?.out.contains(" 0% packet loss"))
    })?;
    let (_, frames) = capture.stop()?;
    ensure!(frames.len() > 20, "{} frames", frames.len());
    let id = text(&created, "id")?;
    let raw: [u8; 12] = *b"\xde\xad\xbe\xef\xca\xfe\xde\xad\xbe\xef\xca\xfe";
    for needle in [raw.as_slice(), id.as_bytes(), b"secretlab"] {
        ensure!(
            !holds(&frames, needle),
            "{} is on the wire",
            needle.escape_ascii()
        );
    }
    let host = &two.relay.host;
    let mut told = vec![
        host.ok(&["status", "--json"])?,
        host.ok(&["relay", "ls", "--json"])?,
        host.ok(&["metrics"])?,
        host.log_tail(10_000),
    ];
    for entry in std::fs::read_dir(host.state())? {
        let bytes = std::fs::read(entry?.path()).unwrap_or_default();
        told.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    for word in [&id, "secretlab", &inside] {
        ensure!(
            !told.iter().any(|t| t.contains(word)),
            "the relay knows {word}"
        );
    }
    Ok(())
}

/// What streams took to and from the other of two, in packets.
fn streamed(of: &Host, to: &str) -> Result<(u64, u64)> {
    let status = of.status("lab")?;
    let peers = status["peers"].as_array().context("no `peers`")?;
    let peer = peers.iter().find(|p| p["name"] == to);
    let stream = &peer.context("no such peer")?["carriers"]["stream"];
    let count = |field: &str| stream[field].as_u64().with_context(|| format!("{stream}"));
    Ok((count("tx_packets")?, count("rx_packets")?))
}

/// B07: also not over the change from the relay to the direct path.
fn circuit_never_carries_packets_when_udp_works(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let two = two(&inet, &nat, &nat)?;
    inet.part(&two.sites[0], &two.sites[1])?;
    found(&two.a, &two.b)?;
    let inside = two.a.overlay("lab")?.0;
    // From the first moment on, by the relay, and over the change to the direct path.
    let probes = two.b.ns().probe(&inside, 400, 20)?;
    relayed(&two.b, "a", FIVE)?;
    inet.heal()?;
    datagrams(&two.a, &two.b, SOON)?;
    let answered = probes.answered()?;
    ensure!(answered > 300, "{answered} of 400");
    for (of, to) in [(&two.a, "b"), (&two.b, "a")] {
        let streamed = streamed(of, to)?;
        ensure!(streamed == (0, 0), "{} streamed {streamed:?}", of.name());
    }
    Ok(())
}

/// B05.
fn a_relay_killed_under_tcp_is_replaced_by_another(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let second = relay(&inet, "second", 2)?;
    let two = two_with(&inet, &symmetric(), &symmetric(), &[&second])?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    let before = text(&relayed(&two.b, "a", SOON)?, "via")?;
    let transfer = Transfer::start(&two.a, &two.b, 15, "1M")?;
    std::thread::sleep(Duration::from_secs(5));
    let (killed, other) = if before == two.relay.id {
        (&two.relay, &second)
    } else {
        (&second, &two.relay)
    };
    killed.host.kill9()?;
    let begun = Instant::now();
    until("the other relay carries", SOON, || {
        let path = path(&two.b, "a")?;
        ensure!(
            path["kind"] == "relay" && path["via"] == other.id.as_str(),
            "{path}"
        );
        Ok(true)
    })?;
    let took = begun.elapsed();
    let flow = transfer.wait(60)?;
    println!(
        "  the other relay after {took:?}, TCP stood still for {:?}",
        flow.stall()
    );
    ensure!(took <= THREE, "the other relay after {took:?}");
    ensure!(flow.stall() <= THREE, "it stood still: {:?}", flow.steps);
    Ok(())
}

/// B05: clear words when there is none.
fn members_without_any_relay_say_so_and_come_back_with_it(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    let inside = two.a.overlay("lab")?.0;
    two.relay.host.kill9()?;
    until("the peer is offline", Duration::from_secs(30), || {
        let path = path(&two.b, "a")?;
        ensure!(path["kind"] == "offline", "{path}");
        Ok(true)
    })?;
    stays("it stays offline", THREE, || {
        Ok(path(&two.b, "a")?["kind"] == "offline" && !two.b.ns().pings(&inside))
    })?;
    two.relay.host.start()?;
    let begun = Instant::now();
    two.b.ns().reaches(&inside, Duration::from_secs(40))?;
    println!("  back after {:?}", begun.elapsed());
    relayed(&two.b, "a", SOON)?;
    for host in [&two.a, &two.b] {
        reserved(host)?;
    }
    Ok(())
}

/// B08.
fn strangers_are_relayed_within_small_limits(lab: &Lab) -> Result<()> {
    let two = pair(lab)?;
    let flow = Transfer::start(&two.a, &two.b, 10, "20M")?.wait(60)?;
    let mbit = flow.bytes as f64 * 8.0 / 10.0 / 1e6;
    println!("  {mbit:.2} Mbit/s of 20 asked for");
    ensure!((0.5..3.0).contains(&mbit), "{mbit:.2} Mbit/s");
    let sessions = two.relay.host.json(&["relay", "ls"])?;
    let session = &sessions["sessions"][0];
    let dropped: u64 = session["drops"]
        .as_object()
        .map(|d| d.values().filter_map(Value::as_u64).sum())
        .or_else(|| session["drops"].as_u64())
        .with_context(|| format!("{sessions}"))?;
    ensure!(dropped > 0, "nothing was dropped: {sessions}");
    // The owner names both: the session that is there has the relay's whole rate from then on.
    let named = [peer(&two.a)?, peer(&two.b)?];
    configure(
        &two.relay.host,
        &format!("[transport]\nrelay = {{ for = {named:?} }}\n"),
    )?;
    two.relay.host.ok(&["reload"])?;
    let flow = Transfer::start(&two.a, &two.b, 5, "20M")?.wait(60)?;
    let mbit = flow.bytes as f64 * 8.0 / 5.0 / 1e6;
    println!("  {mbit:.2} Mbit/s of 20 once they are named");
    ensure!(mbit > 8.0, "{mbit:.2} Mbit/s");
    let after = two.relay.host.json(&["relay", "ls"])?;
    let (session, age) = (&after["sessions"][0], &sessions["sessions"][0]["age_s"]);
    ensure!(
        session["max_mbit"].as_u64() > Some(2) && session["age_s"].as_u64() >= age.as_u64(),
        "{after}"
    );
    Ok(())
}

/// B01, where one end has no UDP and the other is behind a NAT.
fn streams_carry_through_a_relay_where_udp_is_blocked(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let blocked = Uplink {
        udp_blocked: true,
        ..Uplink::behind(Kind::port_restricted())
    };
    let two = two(&inet, &blocked, &Uplink::behind(Kind::port_restricted()))?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    for (of, to) in [(&two.a, "b"), (&two.b, "a")] {
        let path = relayed(of, to, SOON)?;
        ensure!(
            path["carrier"] == "stream" && path["reason"] == "udp-blocked",
            "{path}"
        );
    }
    let flow = Transfer::start(&two.a, &two.b, 5, "1M")?.wait(60)?;
    ensure!(flow.bytes > 300_000, "{} bytes", flow.bytes);
    Ok(())
}

/// Its owner opens no UDP port: each end knows why packets take the relay.
fn a_member_with_tcp_alone_is_reached_through_a_relay(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let (_here, a) = inet.behind("a", 10, &symmetric())?;
    let (_there, b) = inet.behind("b", 11, &symmetric())?;
    start_with(&a, &[&relay], &format!("listen = [\"tcp/{PORT}\"]\n"))?;
    start(&b, &[&relay])?;
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    let begun = Instant::now();
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    a.ns().reaches(&b.overlay("lab")?.0, THREE)?;
    println!("  both ways after {:?}", begun.elapsed());
    for (of, to, place) in [(&a, "b", "here"), (&b, "a", "at a")] {
        let path = relayed(of, to, SOON)?;
        ensure!(
            path["carrier"] == "stream"
                && path["via"] == relay.id.as_str()
                && path["reason"] == "relay-only-by-choice",
            "{path}"
        );
        let remedy = text(&path, "remedy")?;
        ensure!(
            remedy == format!("add udp/4100 to transport.listen {place}"),
            "{remedy}"
        );
        let shown = of.ok(&["peer", "show", to])?;
        ensure!(shown.contains("no UDP port is opened"), "{shown}");
        let status = of.ok(&["status"])?;
        let line = status.lines().find(|line| line.starts_with(to));
        ensure!(line.is_some_and(|line| line.contains("relay")), "{status}");
    }
    Ok(())
}

/// B06.
fn a_relay_that_loses_delays_and_repeats_is_left_for_another(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let second = relay_over_a_line(&inet, "second", 30)?;
    let two = two_with(&inet, &symmetric(), &symmetric(), &[&second.1])?;
    found(&two.a, &two.b)?;
    let inside = two.a.overlay("lab")?.0;
    two.b.ns().reaches(&inside, THREE)?;
    // It is the second that becomes bad: the first is taken away until both use it.
    two.relay.host.kill9()?;
    until("the second carries", SOON, || {
        let (there, back) = (path(&two.b, "a")?, path(&two.a, "b")?);
        ensure!(
            [&there, &back]
                .iter()
                .all(|p| p["via"] == second.1.id.as_str()),
            "{there} {back}"
        );
        Ok(true)
    })?;
    two.relay.host.start()?;
    // It began anew: what both held there before is of no use.
    until(
        "both have legs at the first again",
        Duration::from_secs(60),
        || {
            let info = two.relay.host.json(&["relay", "ls"])?;
            let addresses = info["sessions"][0]["addresses"].as_array();
            ensure!(
                addresses.is_some_and(|at| at.iter().all(Value::is_string)),
                "{info}"
            );
            for (of, to) in [(&two.a, "b"), (&two.b, "a")] {
                let shown = of.json(&["peer", "show", to])?;
                let tried = shown["tried"].as_array().context("no `tried`")?;
                let mut first = tried
                    .iter()
                    .filter(|t| t["address"] == two.relay.id.as_str());
                ensure!(first.any(|t| t["answered"] == true), "{shown}");
            }
            Ok(true)
        },
    )?;
    second.0.weather(&Weather {
        loss: 50_000,
        delay: Duration::from_secs(2),
        duplicate: 20_000,
        reorder: 20_000,
        ..Weather::default()
    });
    let begun = Instant::now();
    until("the first carries", Duration::from_secs(30), || {
        // Each end chooses for what it sends; without a carrier a path is one for control alone.
        let (there, back) = (path(&two.b, "a")?, path(&two.a, "b")?);
        ensure!(
            [&there, &back]
                .iter()
                .all(|p| p["via"] == two.relay.id.as_str() && p["carrier"].is_string()),
            "{there} {back}"
        );
        Ok(true)
    })?;
    let took = begun.elapsed();
    println!("  left after {took:?}");
    if took > FIVE {
        for (of, to) in [(&two.a, "b"), (&two.b, "a")] {
            println!("  {}", of.json(&["peer", "show", to])?);
        }
    }
    ensure!(took <= FIVE, "left after {took:?}");
    two.b.ns().reaches(&inside, THREE).map(drop)
}

/// What a host knows of relays.
fn known(of: &Host) -> Result<Vec<Value>> {
    let info = of.json(&["relay", "ls"])?;
    info["known"].as_array().cloned().context("no `known`")
}

/// B01: nobody has configured a relay: a member that both reach forwards without being asked, and tells what it forwards.
fn two_behind_symmetric_nats_meet_through_a_third_member(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let c = inet.host("c", 1)?;
    let (_, a) = inet.behind("a", 10, &symmetric())?;
    let (_, b) = inet.behind("b", 11, &symmetric())?;
    for host in [&c, &a, &b] {
        host.start()?;
    }
    c.json(&["create", "lab"])?;
    let invite = c.json(&["invite", "create", "lab", "--uses", "2"])?;
    for host in [&a, &b] {
        host.json(&["join", &text(&invite, "invite")?])?;
    }
    let begun = Instant::now();
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    println!("  first packet after {:?}", begun.elapsed());
    let relay = crate::drive::peer(&c)?;
    for (of, to) in [(&a, "b"), (&b, "a")] {
        until("datagrams pass through the third", SOON, || {
            let path = path(of, to)?;
            ensure!(
                path["kind"] == "relay"
                    && path["via"] == relay.as_str()
                    && path["carrier"] == "datagram",
                "{path}"
            );
            Ok(true)
        })?;
    }
    println!("  datagrams after {:?}", begun.elapsed());
    let offers = |max_mbit: u64, offered: bool| {
        for host in [&a, &b] {
            until("the offer is known", FIVE, || {
                let known = known(host)?;
                let good = known.iter().any(|k| {
                    k["peer_id"] == relay.as_str()
                        && k["max_mbit"] == max_mbit
                        && k["offered"] == offered
                });
                ensure!(good, "{known:?}");
                Ok(true)
            })?;
        }
        anyhow::Ok(())
    };
    offers(10, false)?;
    c.ok(&["relay", "offer", "--max-mbit", "40"])?;
    offers(40, true)?;
    c.ok(&["relay", "off"])?;
    for host in [&a, &b] {
        until("it is known that it relays no more", FIVE, || {
            let known = known(host)?;
            ensure!(
                known.iter().all(|k| k["peer_id"] != relay.as_str()),
                "{known:?}"
            );
            Ok(true)
        })?;
    }
    let sessions = c.json(&["relay", "ls"])?;
    ensure!(sessions["sessions"] == serde_json::json!([]), "{sessions}");
    Ok(())
}

/// A13: a whole site loses its relay at once, and comes back to it through one address.
fn a_relay_that_restarts_takes_its_clients_behind_one_nat_back(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let site = inet.site("s", 10, &Uplink::behind(Kind::port_restricted()))?;
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let clients = names
        .iter()
        .map(|name| {
            let client = site.host(lab, name)?;
            start(&client, &[&relay])?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    clients.iter().try_for_each(|c| reserved(c).map(drop))?;
    relay.host.kill9()?;
    for client in &clients {
        until("its place is gone", Duration::from_secs(30), || {
            Ok(!client.json(&["id"])?["addresses"]
                .to_string()
                .contains("p2p-circuit"))
        })?;
    }
    relay.host.start()?;
    let begun = Instant::now();
    for client in &clients {
        until("it has a place again", Duration::from_secs(60), || {
            Ok(client.json(&["id"])?["addresses"]
                .to_string()
                .contains("p2p-circuit"))
        })?;
    }
    println!("  all ten after {:?}", begun.elapsed());
    Ok(())
}

/// B05: the other relay stays: nobody comes through the one that is left, although it runs and is reached.
fn a_relay_that_a_reload_names_no_more_is_left(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (first, second) = (relay(&inet, "first", 1)?, relay(&inet, "second", 2)?);
    let (_site, a) = inet.behind("a", 10, &Uplink::behind(Kind::port_restricted()))?;
    let stranger = inet.host("stranger", 3)?;
    stranger.start()?;
    let file = a.dir().join("byway.toml");
    let base = std::fs::read_to_string(&file)?;
    start(&a, &[&first, &second])?;
    let told = |relay: &Relay| -> Result<bool> {
        let said = a.json(&["id"])?["addresses"].to_string();
        Ok(said.contains(&format!("{}/p2p-circuit", relay.id)))
    };
    until("it has a place at both", SOON, || {
        Ok(told(&first)? && told(&second)?)
    })?;
    let me = peer(&a)?;
    let through = |relay: &Relay| -> Result<String> {
        let hop = relay.addresses.first().context("its address")?;
        Ok(format!("{hop}/p2p-circuit/p2p/{me}"))
    };
    stranger.ok(&["peer", "connect", &through(&first)?])?;
    std::fs::write(&file, base)?;
    configure(
        &a,
        &format!("[transport]\nbootstrap = {:?}\n", second.addresses),
    )?;
    a.ok(&["reload"])?;
    let began = Instant::now();
    until("it has left the first", SOON, || Ok(!told(&first)?))?;
    println!("  left after {:?}", began.elapsed());
    ensure!(told(&second)?, "it has left the second, too");
    let other = inet.host("other", 4)?;
    other.start()?;
    let tried = other.byway(&["peer", "connect", &through(&first)?])?;
    ensure!(tried.code != 0, "somebody came through it: {tried}");
    other.ok(&["peer", "connect", &through(&second)?]).map(drop)
}

/// What two that find no hole send each other stays a trickle.
fn no_probe_storm(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let two = two(&inet, &nat, &nat)?;
    inet.part(&two.sites[0], &two.sites[1])?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    relayed(&two.b, "a", SOON)?;
    let mut counts = vec![inet.parted()?];
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(5));
        counts.push(inet.parted()?);
    }
    println!("  packets stopped, every five seconds: {counts:?}");
    let steps: Vec<u64> = counts.windows(2).map(|w| w[1] - w[0]).collect();
    ensure!(
        steps.iter().all(|s| *s <= 100),
        "{steps:?} in five seconds each"
    );
    ensure!(counts.last() > Some(&0), "nothing was tried");
    Ok(())
}
