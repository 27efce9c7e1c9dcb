//! What a relay gives to whom: a member's automatic rate, more where its owner offers it, and the peers that a list names.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::drive::peer;
use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{THREE, configure, found, relay, reserved, start};
use crate::underlay::{Tool, path, tool};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(a_member_relays_ten_megabits_unasked_and_more_when_its_owner_offers),
    long!(a_relay_of_strangers_leaves_room_for_members),
    ci!(a_relay_serves_whom_its_list_names_above_the_limits_of_strangers_and_nobody_else),
];

/// Where the datagrams of [`delivered`] arrive.
const SINK: u16 = 9000;
/// Bytes that such a datagram carries.
const SIZE: u64 = 1000;
/// Bytes of it that the relay counts: the packet, what seals it, and the relay's header.
const COUNTED: u64 = SIZE + 28 + 40 + 8;

/// What arrives at `to` of so many Mbit/s that `from` offers as datagrams for some seconds, in Mbit/s as the relay counts.
fn delivered(from: &Host, to: &Host, offered: u64, seconds: u32) -> Result<f64> {
    let at = format!("{}:{SINK}", to.overlay("lab")?.0);
    to.ok(&["subnet", "host", "lab", &format!("udp/{SINK}")])?;
    let sink = Tool::start(to.ns(), &["sink", &at], true)?;
    let size = format!("size={SIZE}");
    let rate = format!("pps={}", offered * 125_000 / COUNTED);
    let time = format!("for={seconds}");
    tool(from.ns(), &["blast", &at, &size, &rate, &time])?;
    // It ends by itself after a second without any.
    std::thread::sleep(Duration::from_millis(1500));
    let said: Value = serde_json::from_str(sink.stop()?.trim())?;
    let count = said["received"].as_u64().context("a count")?;
    let mbit = (count * COUNTED * 8) as f64 / 1e6 / f64::from(seconds);
    println!("  {mbit:.2} Mbit/s of {offered} offered");
    Ok(mbit)
}

/// Waits until both send each other datagrams through that relay.
fn both_through(a: &Host, b: &Host, relay: &str) -> Result<()> {
    until("datagrams pass through the relay", SOON, || {
        for (of, to) in [(a, b), (b, a)] {
            let path = path(of, to.name())?;
            ensure!(
                path["kind"] == "relay" && path["via"] == relay && path["carrier"] == "datagram",
                "{path}"
            );
        }
        Ok(true)
    })
    .map(drop)
}

fn a_member_relays_ten_megabits_unasked_and_more_when_its_owner_offers(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let c = inet.host("c", 1)?;
    let symmetric = Uplink::behind(Kind::symmetric());
    let (_, a) = inet.behind("a", 10, &symmetric)?;
    let (_, b) = inet.behind("b", 11, &symmetric)?;
    for host in [&c, &a, &b] {
        host.start()?;
    }
    c.json(&["create", "lab"])?;
    let invite = c.json(&["invite", "create", "lab", "--uses", "2"])?;
    for host in [&a, &b] {
        host.json(&["join", &text(&invite, "invite")?])?;
    }
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    both_through(&a, &b, &peer(&c)?)?;
    let unasked = delivered(&a, &b, 13, 3)?;
    ensure!((8.0..12.0).contains(&unasked), "{unasked:.2} Mbit/s");
    c.ok(&["relay", "offer", "--max-mbit", "40"])?;
    let offered = delivered(&a, &b, 24, 3)?;
    ensure!(offered >= 20.0, "{offered:.2} Mbit/s of 24");
    both_through(&a, &b, &peer(&c)?)
}

/// Whom a relay does not serve is told that, and not that the relay is out of reach.
fn refuses(of: &Host, relay: &str) -> Result<()> {
    until("the relay's no is told", SOON, || {
        let told = of.byway(&["netcheck", "--json"])?.value()?;
        let point = &told["meeting_points"][0];
        ensure!(
            point["peer_id"] == relay
                && point["refused"] == "not-served"
                && point["refused_since"].is_u64(),
            "{told}"
        );
        let finding = &told["findings"].to_string();
        ensure!(
            finding.contains("is reached at") && !finding.contains("is not reached"),
            "{told}"
        );
        Ok(true)
    })?;
    let doctor = of.byway(&["doctor"])?;
    ensure!(
        doctor.out.contains("it does not serve this machine"),
        "{doctor}"
    );
    Ok(())
}

/// Who is served from now on has a place as soon as it asks for one, and not when the pause since the last no is over.
fn served_at_once(of: &Host, relay: &Host, list: &str) -> Result<()> {
    let file = relay.dir().join("byway.toml");
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains(list), "{text}");
    std::fs::write(&file, text.replace(list, "for = \"anyone\""))?;
    relay.ok(&["reload"])?;
    let told = of.byway(&["doctor", "--fix", "--json"])?.value()?;
    ensure!(
        told["done"].to_string().contains("1 of 1 keep a place"),
        "{told}"
    );
    Ok(())
}

/// B08: who is named is served at the relay's own rate; who is not gets no place.
fn a_relay_serves_whom_its_list_names_above_the_limits_of_strangers_and_nobody_else(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let symmetric = Uplink::behind(Kind::symmetric());
    let (_, a) = inet.behind("a", 10, &symmetric)?;
    let (_, b) = inet.behind("b", 11, &symmetric)?;
    let (_, c) = inet.behind("c", 12, &symmetric)?;
    for host in [&a, &b] {
        start(host, &[&relay])?;
    }
    let named = [peer(&a)?, peer(&b)?];
    let lines =
        format!("[transport]\nrelay = {{ offer = true, max_mbit = 20, for = {named:?} }}\n");
    configure(&relay.host, &lines)?;
    relay.host.ok(&["reload"])?;
    start(&c, &[&relay])?;
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    both_through(&a, &b, &relay.id)?;
    let mbit = delivered(&a, &b, 8, 3)?;
    // A stranger has two.
    ensure!(mbit >= 6.0, "{mbit:.2} Mbit/s of 8");
    let told = c.json(&["id"])?["addresses"].to_string();
    ensure!(!told.contains("p2p-circuit"), "c has a place: {told}");
    refuses(&c, &relay.id)?;
    // Whoever would join by an invite of c does not reach it, and is told so; by one of a they would.
    let lonely = c.json(&["create", "own"])?;
    let notes = lonely["notes"].to_string();
    ensure!(notes.contains("no relay keeps a place"), "{lonely}");
    let invite = c.byway(&["invite", "create", "own"])?;
    ensure!(
        invite.code == 0
            && invite.err.starts_with("note: ")
            && invite.err.contains("transport.bootstrap"),
        "{invite}"
    );
    let reached = a.byway(&["--json", "invite", "create", "lab"])?;
    ensure!(
        reached.err.is_empty() && reached.value()?["notes"].is_null(),
        "{reached}"
    );
    served_at_once(&c, &relay.host, &format!("for = {named:?}"))?;
    let sessions = relay.host.json(&["relay", "ls"])?;
    let peers = sessions["sessions"].to_string();
    ensure!(
        named.iter().all(|id| peers.contains(id)) && !peers.contains(&peer(&c)?),
        "{sessions}"
    );
    Ok(())
}

/// A relay may bring a crowd of strangers: they get their share of places, and the member that comes after them gets in.
fn a_relay_of_strangers_leaves_room_for_members(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let symmetric = Uplink::behind(Kind::symmetric());
    let (_, a) = inet.behind("a", 10, &symmetric)?;
    let (_, b) = inet.behind("b", 11, &symmetric)?;
    for host in [&a, &b] {
        start(host, &[&relay])?;
        reserved(host)?;
    }
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    let hop = relay.addresses.first().context("its address")?;
    let through = format!("{hop}/p2p-circuit/p2p/{}", peer(&a)?);
    // Each has an address of its own, so that the relay lets all of them in.
    let crowd = (0..CROWD)
        .map(|n| {
            let stranger = inet.host(&format!("s{n}"), 20 + n)?;
            stranger.start()?;
            Ok(stranger)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut came = 0;
    for stranger in &crowd {
        came += usize::from(stranger.byway(&["peer", "connect", &through])?.code == 0);
    }
    let list = a.json(&["peer", "ls"])?;
    let is_here = |peer: &&Value| peer["connected"] == true && peer["path"]["kind"] == "relay";
    let all = list["peers"].as_array().context("no `peers`")?;
    let here = all.iter().filter(is_here).count();
    println!("  {came} of {CROWD} came, {here} are there");
    ensure!(came >= SHARE, "{came} of {CROWD} came");
    ensure!(here <= SHARE, "{here} are there of one relay: {list}");
    b.json(&["join", &invite])?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE).map(drop)
}

/// Strangers that come.
const CROWD: u8 = 20;
/// Strangers of one relay that are let in at once: a quarter of all.
const SHARE: usize = 16;
