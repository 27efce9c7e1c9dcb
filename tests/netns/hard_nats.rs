//! NATs that make it hard: ports that are counted up, few of them, short and absolute lifetimes, power cuts, routers that
//! refuse aloud.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::nat::machine::Ports;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{THREE, Two, found, relay, reserved, start_with, two, two_with};
use crate::underlay::{FIVE, datagrams, path};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    ci!(a_nat_that_counts_its_ports_up_is_met_at_the_next_one),
    ci!(a_symmetric_nat_is_met_by_a_spray_in_fifteen_seconds),
    ci!(no_spray_storm),
    ci!(a_nat_with_few_ports_keeps_its_members_connected),
    ci!(a_mapping_of_two_seconds_is_kept_open),
    long!(a_mapping_of_thirty_seconds_lets_in_after_ten_minutes_of_silence),
    long!(an_absolute_lifetime_of_a_mapping_breaks_nothing),
    fast!(a_nat_that_begins_anew_with_another_address_is_passed_again_in_five_seconds),
    ci!(a_router_that_refuses_aloud_is_passed_all_the_same),
    ci!(a_router_whose_port_an_early_packet_takes_leaves_a_relay),
    ci!(sixteen_bridges_of_engines_hide_no_address),
    fast!(two_behind_one_nat_without_hairpin_take_the_local_network),
];

/// How soon a port that nobody can name is found.
const FIFTEEN: Duration = Duration::from_secs(15);

fn symmetric(change: impl FnOnce(&mut Kind)) -> Uplink {
    let mut kind = Kind::symmetric();
    change(&mut kind);
    Uplink::behind(kind)
}

/// Lets both talk, and waits until they do so directly.
fn direct(lab: &Lab, here: &Uplink, there: &Uplink, limit: Duration) -> Result<Two> {
    let inet = lab.internet()?;
    soon_direct(two(&inet, here, there)?, limit)
}

/// The same with two relays: how a NAT maps is seen by two that are asked.
fn direct_by_two(lab: &Lab, here: &Uplink, there: &Uplink, limit: Duration) -> Result<Two> {
    let inet = lab.internet()?;
    let second = relay(&inet, "second", 2)?;
    soon_direct(two_with(&inet, here, there, &[&second])?, limit)
}

fn soon_direct(two: Two, limit: Duration) -> Result<Two> {
    found(&two.a, &two.b)?;
    let joined = Instant::now();
    let inside = two.a.overlay("lab")?.0;
    two.b.ns().reaches(&inside, THREE)?;
    datagrams(&two.a, &two.b, limit)?;
    println!("  direct after {:?}", joined.elapsed());
    ensure!(
        joined.elapsed() <= limit,
        "direct after {:?}",
        joined.elapsed()
    );
    Ok(two)
}

/// Pings in a row, five a second; how many were lost.
fn lost(from: &Host, to: &Host, count: u32) -> Result<u32> {
    let inside = to.overlay("lab")?.0;
    let answered = from.ns().probe(&inside, count, 200)?.answered()?;
    Ok(count - answered)
}

/// B01, where the next port can be named.
fn a_nat_that_counts_its_ports_up_is_met_at_the_next_one(lab: &Lab) -> Result<()> {
    let counting = symmetric(|kind| kind.ports = Ports::Sequential(1));
    let other = Uplink::behind(Kind::port_restricted());
    let two = direct_by_two(lab, &counting, &other, FIFTEEN)?;
    ensure!(lost(&two.a, &two.b, 10)? <= 1);
    Ok(())
}

/// B01, where the port cannot be named.
fn a_symmetric_nat_is_met_by_a_spray_in_fifteen_seconds(lab: &Lab) -> Result<()> {
    let other = Uplink::behind(Kind::port_restricted());
    let two = direct_by_two(lab, &symmetric(|_| {}), &other, FIFTEEN)?;
    ensure!(lost(&two.a, &two.b, 10)? <= 1);
    Ok(())
}

/// What two that meet nobody send each other stays within its rate, and ends.
fn no_spray_storm(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let second = relay(&inet, "second", 2)?;
    let easy = Uplink::behind(Kind::port_restricted());
    let two = two_with(&inet, &symmetric(|_| {}), &easy, &[&second])?;
    inet.part(&two.sites[0], &two.sites[1])?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    let begun = Instant::now();
    let mut counts = vec![(begun.elapsed(), inet.parted()?)];
    while begun.elapsed() < Duration::from_secs(22) {
        std::thread::sleep(Duration::from_secs(1));
        counts.push((begun.elapsed(), inet.parted()?));
    }
    let steps: Vec<(f64, u64)> = counts
        .windows(2)
        .map(|w| ((w[1].0 - w[0].0).as_secs_f64(), w[1].1 - w[0].1))
        .collect();
    println!("  packets stopped: {steps:?}");
    for (seconds, packets) in &steps {
        // Of both ends together.
        let most = 2.0 * (250.0 + 225.0 * (seconds - 1.0).max(0.0));
        ensure!(*packets as f64 <= most, "{packets} in {seconds} s");
    }
    let all = counts[counts.len() - 1].1 - counts[0].1;
    ensure!((2000..3200).contains(&all), "{all} in all");
    let last: u64 = steps.iter().rev().take(4).map(|step| step.1).sum();
    ensure!(last <= 100, "{last} in the last four seconds");
    for (host, probes) in [(&two.a, 512), (&two.b, 2048)] {
        let text = host.ok(&["metrics"])?;
        for line in [
            format!("byway_spray_probes_total {probes}"),
            "byway_sprays_total{what=\"begun\"} 1".to_owned(),
            "byway_sprays_total{what=\"found\"} 0".to_owned(),
            "byway_spray_peers 0".to_owned(),
        ] {
            ensure!(
                text.lines().any(|l| l == line),
                "no {line} of {}",
                host.name()
            );
        }
    }
    Ok(())
}

/// B01: as many homes behind a carrier's NAT have. What is over the quota is refused, and those mappings that are in use
/// stay, even while a search for a port takes all others.
fn a_nat_with_few_ports_keeps_its_members_connected(lab: &Lab) -> Result<()> {
    let few = symmetric(|kind| kind.quota = 64);
    let inet = lab.internet()?;
    let second = relay(&inet, "second", 2)?;
    let easy = Uplink::behind(Kind::port_restricted());
    let two = two_with(&inet, &few, &easy, &[&second])?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    let answered = 100 - lost(&two.b, &two.a, 100)?;
    ensure!(
        answered >= 98,
        "{answered} of 100 in twenty seconds of search"
    );
    Ok(())
}

/// B02.
fn a_mapping_of_two_seconds_is_kept_open(lab: &Lab) -> Result<()> {
    let short = Uplink::behind(Kind {
        idle: Duration::from_secs(2),
        ..Kind::port_restricted()
    });
    let two = direct(lab, &short, &short, SOON)?;
    let lost = lost(&two.a, &two.b, 100)?;
    ensure!(lost <= 2, "{lost} of 100");
    std::thread::sleep(Duration::from_secs(20));
    let inside = two.b.overlay("lab")?.0;
    two.a.ns().reaches(&inside, THREE).map(drop)
}

/// B02: also where nobody talks, the NATed side keeps a way in.
fn a_mapping_of_thirty_seconds_lets_in_after_ten_minutes_of_silence(lab: &Lab) -> Result<()> {
    let short = Uplink::behind(Kind {
        idle: Duration::from_secs(30),
        ..Kind::port_restricted()
    });
    let two = direct(lab, &short, &short, SOON)?;
    std::thread::sleep(Duration::from_secs(600));
    let inside = two.b.overlay("lab")?.0;
    two.a.ns().reaches(&inside, THREE)?;
    datagrams(&two.a, &two.b, SOON)
}

/// B02: the mapping ends at its age, whatever flows.
fn an_absolute_lifetime_of_a_mapping_breaks_nothing(lab: &Lab) -> Result<()> {
    let aging = Uplink::behind(Kind {
        absolute: Some(Duration::from_secs(20)),
        ports: Ports::Random,
        ..Kind::port_restricted()
    });
    let two = direct(lab, &aging, &Uplink::behind(Kind::full_cone()), SOON)?;
    // Three mappings end and cost a moment each; the fourth is left in time (`lifetimes.rs`).
    let lost = lost(&two.a, &two.b, 400)?;
    println!("  {lost} of 400 pings lost in 80 s");
    ensure!(lost <= 40, "{lost} of 400");
    Ok(())
}

/// B02: as when a DSL line is dialled anew.
fn a_nat_that_begins_anew_with_another_address_is_passed_again_in_five_seconds(
    lab: &Lab,
) -> Result<()> {
    let nat = Uplink::behind(Kind::port_restricted());
    let two = direct(lab, &nat, &nat, FIVE)?;
    let inside = two.a.overlay("lab")?.0;
    two.sites[0].reboot(150)?;
    let begun = Instant::now();
    let mut last = String::new();
    until(
        "the new address is the path",
        Duration::from_secs(30),
        || {
            let path = path(&two.b, "a")?;
            let (kind, via) = (text(&path, "kind")?, text(&path, "via")?);
            let now = format!("{kind} {via}");
            if now != last {
                println!("  {:?}: {now}", begun.elapsed());
                last = now;
            }
            Ok(kind == "direct" && via.starts_with("203.0.113.150:"))
        },
    )?;
    let took = begun.elapsed();
    two.b.ns().reaches(&inside, THREE)?;
    println!("  direct again after {took:?}");
    ensure!(took <= FIVE, "it took {took:?}");
    Ok(())
}

/// L09, where the refusal is all.
fn a_router_that_refuses_aloud_is_passed_all_the_same(lab: &Lab) -> Result<()> {
    let refusing = Uplink::behind(Kind {
        reject: true,
        ..Kind::port_restricted()
    });
    let two = direct(lab, &refusing, &refusing, FIVE)?;
    ensure!(lost(&two.a, &two.b, 10)? <= 1);
    Ok(())
}

/// L09, where the peer's early packet takes the port it is sent to, too: there may be no hole, and a relay carries.
fn a_router_whose_port_an_early_packet_takes_leaves_a_relay(lab: &Lab) -> Result<()> {
    let refusing = Uplink::behind(Kind {
        reject: true,
        occupies: true,
        ..Kind::port_restricted()
    });
    let inet = lab.internet()?;
    let two = two(&inet, &refusing, &refusing)?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    let lost = lost(&two.b, &two.a, 50)?;
    ensure!(lost <= 1, "{lost} of 50");
    Ok(())
}

/// B04.
fn two_behind_one_nat_without_hairpin_take_the_local_network(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = crate::reach::relay(&inet, "relay", 1)?;
    let site = inet.site("s", 10, &Uplink::behind(Kind::port_restricted()))?;
    let hosts: Vec<Rc<Host>> = ["a", "b"]
        .iter()
        .map(|name| site.host(lab, name))
        .collect::<Result<_>>()?;
    let [a, b] = &hosts[..] else {
        anyhow::bail!("two hosts")
    };
    for host in [a, b] {
        start_with(host, &[&relay], "lan_discovery = false\n")?;
    }
    for host in [a, b] {
        reserved(host)?;
    }
    found(a, b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    datagrams(a, b, FIVE)?;
    for (of, to) in [(a, b), (b, a)] {
        let path = path(of, to.name())?;
        let via = text(&path, "via")?;
        let local = via.starts_with(to.under4()) || via.starts_with("[fe80");
        ensure!(local, "not over the local network: {path}");
    }
    Ok(())
}

/// An address of an engine's bridge leads nowhere, and takes no place from one that does.
fn sixteen_bridges_of_engines_hide_no_address(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = crate::reach::relay(&inet, "relay", 1)?;
    let nat = Uplink::behind(Kind::port_restricted());
    let (_, a) = inet.behind("a", 10, &nat)?;
    let (_, b) = inet.behind("b", 11, &nat)?;
    for host in [&a, &b] {
        for n in 0..16 {
            let (bridge, address) = (format!("br-{n:x}0000"), format!("172.{}.0.1/16", 16 + n));
            host.ns().ip(&["link", "add", &bridge, "type", "bridge"])?;
            host.ns().ip(&["addr", "add", &address, "dev", &bridge])?;
            host.ns().ip(&["link", "set", &bridge, "up"])?;
        }
        host.rebase()?;
        start_with(host, &[&relay], "")?;
    }
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    datagrams(&a, &b, FIVE)
}
