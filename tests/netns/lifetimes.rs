//! NATs that end a mapping by its age or by its silence, and what a link costs over which nothing travels.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::nat::machine::Ports;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON};
use crate::long;
use crate::reach::{THREE, Two, found, two};
use crate::underlay::datagrams;

pub const CASES: &[Case] = &[
    long!(an_idle_link_costs_little_and_its_first_packet_arrives),
    long!(a_mapping_that_ends_at_an_age_is_left_before_it_does),
];

/// Two members that talk directly, each behind one of these.
fn direct(lab: &Lab, here: &Uplink, there: &Uplink) -> Result<Two> {
    let two = two(&lab.internet()?, here, there)?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    datagrams(&two.a, &two.b, SOON)?;
    Ok(two)
}

/// Pings in a row, twenty a second; how many were lost.
fn lost(from: &Host, to: &Host, seconds: u32) -> Result<u32> {
    let inside = to.overlay("lab")?.0;
    let count = seconds * 20;
    Ok(count - from.ns().probe(&inside, count, 50)?.answered()?)
}

/// B02: three mappings end under the path, and the age is learnt; no later one does.
fn a_mapping_that_ends_at_an_age_is_left_before_it_does(lab: &Lab) -> Result<()> {
    let aging = Uplink::behind(Kind {
        absolute: Some(Duration::from_secs(20)),
        ports: Ports::Random,
        ..Kind::port_restricted()
    });
    let two = direct(lab, &aging, &Uplink::behind(Kind::full_cone()))?;
    let first = lost(&two.a, &two.b, 70)?;
    let then = lost(&two.a, &two.b, 60)?;
    println!("  lost of twenty pings a second: {first} in 70 s, then {then} in 60 s");
    ensure!(then <= 6, "{then} of 1200 after {first} of 1400");
    Ok(())
}

/// Bytes that passed the interfaces of a host so far, both ways, beside those that stay inside.
fn moved(host: &Host) -> Result<u64> {
    let table = host.ns().ok(&["cat", "/proc/net/dev"])?;
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let moved = lines
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(_, row)| {
            let fields: Vec<u64> = row.split_whitespace().flat_map(str::parse).collect();
            fields.first().unwrap_or(&0) + fields.get(8).unwrap_or(&0)
        });
    Ok(moved.sum())
}

/// B02: where nothing travels, little is sent, and the way in stays open by it.
fn an_idle_link_costs_little_and_its_first_packet_arrives(lab: &Lab) -> Result<()> {
    const FOR: Duration = Duration::from_secs(40);
    let short = Uplink::behind(Kind {
        idle: Duration::from_secs(30),
        ..Kind::port_restricted()
    });
    let two = direct(lab, &short, &short)?;
    let inside = two.b.overlay("lab")?.0;
    let rate = || -> Result<u64> {
        let before = moved(&two.a)?;
        std::thread::sleep(FOR);
        Ok((moved(&two.a)? - before) / FOR.as_secs())
    };
    std::thread::sleep(Duration::from_secs(10));
    let (soon, ()) = (rate()?, std::thread::sleep(Duration::from_secs(75)));
    let quiet = rate()?;
    println!("  {soon} bytes a second in the first minute, {quiet} after two");
    ensure!(two.a.ns().pings(&inside), "the first packet was lost");
    // The path's own frames are 230 bytes a second of a pair in use; the connections to the peer and the relay remain.
    ensure!(quiet + 150 <= soon, "{quiet} of {soon} bytes a second");
    Ok(())
}
