//! NATs that end a mapping by its age or by its silence, and what a link costs over which nothing travels.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

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

/// What an idle host says and hears, by kind.
const KINDS: [(&str, &str); 5] = [
    ("discovery", "udp dport 5353"),
    ("quic", "meta l4proto udp @th,64,8 >= 0x40"),
    ("sealed", "meta l4proto udp @th,64,8 < 0x40"),
    ("streams", "meta l4proto tcp"),
    ("other", "meta l4proto != { tcp, udp }"),
];

/// Counts what passes the interface of a host by kind, both ways. Of discovery only what it says: it hears itself.
fn count(lab: &Lab, host: &Host) -> Result<()> {
    let chain = |hook: &str, link: &str, first: &str| {
        let rules = KINDS.iter().map(|(kind, matches)| {
            format!("  {link} \"eth0\" {matches} counter name {kind} accept\n")
        });
        let rules: String = rules.collect();
        format!(
            " chain {hook} {{\n  type filter hook {hook} priority -300; policy accept;\n{first}{rules} }}\n"
        )
    };
    let counters: String = KINDS
        .iter()
        .map(|(kind, _)| format!(" counter {kind} {{ }}\n"))
        .collect();
    let heard = chain("input", "iifname", "  udp dport 5353 accept\n");
    let chains = heard + &chain("output", "oifname", "");
    let file = lab.dir().join("idle.nft");
    std::fs::write(&file, format!("table inet idle {{\n{counters}{chains}}}\n"))?;
    host.ns()
        .ok(&["nft", "-f", &file.to_string_lossy()])
        .map(drop)
}

/// Bytes of each kind that passed so far.
fn counted(host: &Host) -> Result<Vec<u64>> {
    let count = |kind: &str| {
        let text = host
            .ns()
            .ok(&["nft", "list", "counter", "inet", "idle", kind])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let bytes = words.windows(2).find(|pair| pair[0] == "bytes");
        bytes.context("a counter")?[1].parse().context("a number")
    };
    KINDS.iter().map(|(kind, _)| count(kind)).collect()
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
    count(lab, &two.a)?;
    let rate = || -> Result<u64> {
        let before = counted(&two.a)?;
        std::thread::sleep(FOR);
        let after = counted(&two.a)?;
        let rates = after
            .iter()
            .zip(&before)
            .map(|(a, b)| (a - b) / FOR.as_secs());
        let rates: Vec<u64> = rates.collect();
        let each: Vec<String> = KINDS
            .iter()
            .zip(&rates)
            .map(|((kind, _), rate)| format!("{kind} {rate}"))
            .collect();
        println!("  bytes a second: {}", each.join(", "));
        Ok(rates.iter().sum())
    };
    std::thread::sleep(Duration::from_secs(10));
    let (soon, ()) = (rate()?, std::thread::sleep(Duration::from_secs(75)));
    let quiet = rate()?;
    two.a.ns().ok(&["nft", "delete", "table", "inet", "idle"])?;
    println!("  {soon} bytes a second in the first minute, {quiet} after two");
    ensure!(two.a.ns().pings(&inside), "the first packet was lost");
    // The path's own frames are 230 bytes a second of a pair in use. The connections to the peer and the relay remain, and the
    // search on the local network: 500 bytes a second before both became rare.
    ensure!(quiet + 150 <= soon, "{quiet} of {soon} bytes a second");
    ensure!(quiet <= 250, "{quiet} bytes a second of an idle machine");
    Ok(())
}
