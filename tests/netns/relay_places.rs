//! Which relay a pair takes, and what becomes of clients whose relays are away when they start, or come back all at once.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use byway::model::join::Invite;

use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};
use crate::reach::{Relay, THREE, found, relay, relay_over_a_line, reserved, start};
use crate::underlay::path;
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(of_two_relays_the_pair_takes_the_nearer_one),
    long!(a_nearer_relay_that_appears_later_is_moved_to),
    ci!(members_that_start_while_every_relay_is_dead_join_and_connect_when_one_comes),
    ci!(an_invite_that_names_two_relays_leads_in_by_the_one_that_is_left),
    long!(fifty_clients_behind_one_nat_come_back_to_a_restarted_relay_without_a_storm),
];

/// Waits until both ends send their packets through that relay; how long it took.
fn both_through(a: &Host, b: &Host, relay: &Relay, limit: Duration) -> Result<Duration> {
    until("both send through that relay", limit, || {
        for (of, to) in [(a, b), (b, a)] {
            let path = path(of, to.name())?;
            ensure!(
                path["via"] == relay.id.as_str() && path["carrier"] == "datagram",
                "{path}"
            );
        }
        Ok(true)
    })
}

/// A relay to which every packet takes forty milliseconds, and one at hand.
fn far_and_near(inet: &Internet<'_>) -> Result<(Relay, Relay)> {
    let (line, far) = relay_over_a_line(inet, "far", 30)?;
    line.weather(&Weather {
        delay: Duration::from_millis(40),
        ..Weather::default()
    });
    Ok((far, relay(inet, "near", 2)?))
}

/// Two behind symmetric NATs whose daemons know these relays, in one subnet.
fn two(inet: &Internet<'_>, relays: &[&Relay]) -> Result<[Rc<Host>; 2]> {
    let symmetric = Uplink::behind(Kind::symmetric());
    let (_, a) = inet.behind("a", 10, &symmetric)?;
    let (_, b) = inet.behind("b", 11, &symmetric)?;
    for host in [&a, &b] {
        start(host, relays)?;
    }
    for host in [&a, &b] {
        reserved(host)?;
    }
    found(&a, &b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    Ok([a, b])
}

fn of_two_relays_the_pair_takes_the_nearer_one(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (far, near) = far_and_near(&inet)?;
    let [a, b] = two(&inet, &[&far, &near])?;
    let took = both_through(&a, &b, &near, Duration::from_secs(20))?;
    println!("  the nearer one after {took:?}");
    let probe = a.json(&["probe", "b"])?;
    ensure!(probe["rtt_ms"].as_f64() < Some(80.0), "{probe}");
    Ok(())
}

/// The far one serves the pair until the nearer one starts.
fn a_nearer_relay_that_appears_later_is_moved_to(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (far, near) = far_and_near(&inet)?;
    near.host.kill9()?;
    let [a, b] = two(&inet, &[&far, &near])?;
    both_through(&a, &b, &far, SOON)?;
    near.host.start()?;
    let probes = b.ns().probe(&a.overlay("lab")?.0, 450, 100)?;
    let took = both_through(&a, &b, &near, Duration::from_secs(90))?;
    let answered = probes.answered()?;
    println!("  moved after {took:?}, {answered} of 450 echoes answered in 45 s");
    ensure!(answered >= 447, "{answered} of 450");
    Ok(())
}

/// A13.
fn members_that_start_while_every_relay_is_dead_join_and_connect_when_one_comes(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    relay.host.kill9()?;
    let nat = Uplink::behind(Kind::symmetric());
    let (_, a) = inet.behind("a", 10, &nat)?;
    let (_, b) = inet.behind("b", 11, &nat)?;
    for host in [&a, &b] {
        start(host, &[&relay])?;
    }
    // What needs nobody else works.
    a.json(&["create", "lab"])?;
    let workload = lab.workload("w")?;
    a.attach(&workload, "lab", "w")?;
    workload.reaches(&a.overlay("lab")?.0, SOON)?;
    relay.host.start()?;
    let begun = Instant::now();
    for host in [&a, &b] {
        until("it has a place", Duration::from_secs(30), || {
            has_place(host)
        })?;
    }
    println!("  places {:?} after the relay came", begun.elapsed());
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    let inside = a.overlay("lab")?.0;
    b.ns().reaches(&inside, THREE)?;
    // Known members, too, start without it.
    relay.host.kill9()?;
    for host in [&a, &b] {
        host.terminate()?;
    }
    for host in [&a, &b] {
        host.start()?;
        ensure!(host.status("lab")?["state"] == "ready", "{}", host.name());
    }
    workload.reaches(&inside, SOON)?;
    relay.host.start()?;
    let took = b.ns().reaches(&inside, Duration::from_secs(30))?;
    println!("  connected {took:?} after the relay came again");
    Ok(())
}

/// B05: who joins knows no relay but those of the invite; the one that stands first there is silent, as a machine that is off.
fn an_invite_that_names_two_relays_leads_in_by_the_one_that_is_left(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relays = [relay(&inet, "first", 1)?, relay(&inet, "second", 2)?];
    let nat = Uplink::behind(Kind::port_restricted());
    let (_, a) = inet.behind("a", 10, &nat)?;
    let (_, b) = inet.behind("b", 11, &nat)?;
    start(&a, &[&relays[0], &relays[1]])?;
    b.start()?;
    until("it has a place at both", SOON, || {
        let said = a.json(&["id"])?["addresses"].to_string();
        let has = |relay: &Relay| said.contains(&format!("{}/p2p-circuit", relay.id));
        Ok(relays.iter().all(has))
    })?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    let named = Invite::parse(&invite).map_err(|e| anyhow::anyhow!("{}", e.message))?;
    let named = named.addresses.clone();
    let place = |relay: &Relay| named.iter().position(|at| at.contains(&relay.id));
    ensure!(relays.iter().all(|r| place(r).is_some()), "{named:?}");
    let [down, left] = match place(&relays[0]) < place(&relays[1]) {
        true => ["first", "second"],
        false => ["second", "first"],
    };
    let rules = format!(
        "table inet off {{ chain f {{ type filter hook forward priority 0; \
         iifname \"p-{down}\" drop; oifname \"p-{down}\" drop; }}; }}"
    );
    inet.space().ok(&["nft", &rules])?;
    let begun = Instant::now();
    let joined = b.byway(&["join", &invite, "--json"])?;
    let took = begun.elapsed();
    ensure!(joined.code == 0, "{joined}");
    println!(
        "  joined by {left} after {took:?}, {} addresses",
        named.len()
    );
    ensure!(took <= SOON, "joined after {took:?}");
    let inside = a.overlay("lab")?.0;
    let first = b.ns().reaches(&inside, SOON)?;
    println!("  first packet {first:?} later");
    Ok(())
}

/// Packets that a link of a namespace has sent so far.
fn sent(of: &Netns, link: &str) -> Result<u64> {
    let list = of.ip(&["-j", "-s", "link", "show", "dev", link])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    list[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .context("no counter")
}

/// A whole site loses its relay at once, and comes back to it through one address.
fn fifty_clients_behind_one_nat_come_back_to_a_restarted_relay_without_a_storm(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let site = inet.site("s", 10, &Uplink::behind(Kind::port_restricted()))?;
    let clients = (0..50)
        .map(|n| {
            let client = site.host(lab, &format!("c{n}"))?;
            start(&client, &[&relay])?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    clients.iter().try_for_each(|c| reserved(c).map(drop))?;
    relay.host.kill9()?;
    for client in &clients {
        until("its place is gone", Duration::from_secs(30), || {
            Ok(!has_place(client)?)
        })?;
    }
    let count = Counter::start(inet.space(), "p-relay");
    relay.host.start()?;
    let begun = Instant::now();
    for client in &clients {
        until("it has a place again", Duration::from_secs(60), || {
            has_place(client)
        })?;
    }
    let took = begun.elapsed();
    let steps = count.stop()?;
    println!("  all fifty after {took:?}; packets to the relay in each half second: {steps:?}");
    let most = steps.iter().max().copied().unwrap_or_default();
    ensure!(took <= Duration::from_secs(20), "back after {took:?}");
    // A handshake and what follows take each client some thirty packets; what is more was sent in vain.
    ensure!(most <= 1500, "{most} packets in half a second");
    ensure!(steps.iter().sum::<u64>() <= 50 * 100, "{steps:?}");
    Ok(())
}

fn has_place(of: &Host) -> Result<bool> {
    Ok(of.json(&["id"])?["addresses"]
        .to_string()
        .contains("p2p-circuit"))
}

/// Counts what a link of a namespace sends, every half second.
struct Counter {
    done: Arc<AtomicBool>,
    counts: JoinHandle<Result<Vec<u64>>>,
}

impl Counter {
    fn start(of: &Netns, link: &'static str) -> Counter {
        let (done, of) = (Arc::new(AtomicBool::new(false)), of.clone());
        let ends = Arc::clone(&done);
        let counts = std::thread::spawn(move || {
            let mut counts = vec![sent(&of, link)?];
            while !ends.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(500));
                counts.push(sent(&of, link)?);
            }
            Ok(counts)
        });
        Counter { done, counts }
    }

    /// Packets in each step.
    fn stop(self) -> Result<Vec<u64>> {
        self.done.store(true, Relaxed);
        let counts = self.counts.join();
        let counts = counts.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        Ok(counts.windows(2).map(|w| w[1] - w[0]).collect())
    }
}
