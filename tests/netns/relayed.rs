//! Members that only a relay joins, and what happens to them: they move, their line gets narrow, their machine sleeps; and loss
//! that lasts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::{Kind, Weather};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::reach::{Relay, THREE, Two, found, relay, relayed, reserved, start, two};
use crate::roaming::{Mobile, mobile};
use crate::underlay::{FIVE, Transfer, datagrams, path};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(
        tcp_through_a_relay_goes_on_when_one_end_moves,
        "iperf3",
        "ss"
    ),
    long!(
        tcp_through_a_relay_goes_on_when_both_ends_move,
        "iperf3",
        "ss"
    ),
    ci!(
        a_relayed_path_that_drops_large_datagrams_from_now_on_stalls_no_tcp,
        "iperf3",
        "ss"
    ),
    ci!(a_relayed_member_that_begins_anew_is_reached_by_datagrams_at_once),
    long!(after_a_sleep_of_forty_seconds_the_direct_path_is_back_in_two),
    long!(ten_minutes_of_twenty_percent_loss_end_no_session_and_no_path),
];

/// Two behind symmetric NATs, each with another network to move to, that talk through a relay.
fn mobiles(inet: &Internet<'_>) -> Result<(Relay, [Mobile; 2])> {
    let relay = relay(inet, "relay", 1)?;
    let nat = Kind::symmetric();
    let two = [mobile(inet, "a", 10, &nat)?, mobile(inet, "b", 20, &nat)?];
    for m in &two {
        start(&m.host, &[&relay])?;
    }
    for m in &two {
        reserved(&m.host)?;
    }
    let (a, b) = (&two[0].host, &two[1].host);
    found(a, b)?;
    b.ns().reaches(&a.overlay("lab")?.0, THREE)?;
    through_the_relay(a, b)?;
    Ok((relay, two))
}

/// Waits until both send each other datagrams through a relay.
fn through_the_relay(a: &Host, b: &Host) -> Result<()> {
    for (of, to) in [(a, b), (b, a)] {
        until("datagrams pass through the relay", SOON, || {
            let path = path(of, to.name())?;
            ensure!(
                path["kind"] == "relay" && path["carrier"] == "datagram",
                "{path}"
            );
            Ok(true)
        })?;
    }
    Ok(())
}

/// How long TCP stands still when these move to their other networks. They are back at home when this returns.
fn stall(relay: &Relay, two: &[Mobile; 2], who: &[usize]) -> Result<Duration> {
    let (a, b) = (&two[0].host, &two[1].host);
    let transfer = Transfer::start(a, b, 9, "1M")?;
    std::thread::sleep(THREE);
    who.iter().try_for_each(|at| two[*at].moves(1))?;
    let flow = transfer.wait(60);
    let (path, sessions) = (path(b, "a"), relay.host.json(&["relay", "ls"]));
    who.iter().try_for_each(|at| two[*at].moves(0))?;
    let (flow, path) = (flow?, path?);
    let ends = sessions?["sessions"][0]["addresses"].to_string();
    for at in who {
        let moved = format!("{}:", two[*at].public(1));
        ensure!(ends.contains(&moved), "no end at {moved} in {ends}");
    }
    println!("  TCP stood still for {:?}", flow.stall());
    ensure!(path["kind"] == "relay", "{path}");
    // It flowed to the end: at this rate a block is sent each second.
    let last: u64 = flow.steps.iter().rev().take(4).sum();
    ensure!(last > 100_000, "{:?}", flow.steps);
    Ok(flow.stall())
}

/// A09, through a relay.
fn tcp_through_a_relay_goes_on_when_one_end_moves(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (relay, two) = mobiles(&inet)?;
    let stall = stall(&relay, &two, &[1])?;
    // Two seconds, and a step of what measures it.
    ensure!(stall <= Duration::from_millis(2500), "{stall:?}");
    Ok(())
}

/// A09, through a relay.
fn tcp_through_a_relay_goes_on_when_both_ends_move(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (relay, two) = mobiles(&inet)?;
    let stall = stall(&relay, &two, &[0, 1])?;
    ensure!(stall <= SOON, "{stall:?}");
    Ok(())
}

/// A10, through a relay: neither the relay nor a router says that a datagram was too large.
fn a_relayed_path_that_drops_large_datagrams_from_now_on_stalls_no_tcp(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::symmetric());
    let two = two(&inet, &nat, &nat)?;
    found(&two.a, &two.b)?;
    two.b.ns().reaches(&two.a.overlay("lab")?.0, THREE)?;
    through_the_relay(&two.a, &two.b)?;
    let transfer = Transfer::start(&two.a, &two.b, 10, "1M")?;
    std::thread::sleep(THREE);
    two.sites[0].weather(&Weather {
        larger_than: Some(1300),
        ..Weather::default()
    });
    let flow = transfer.wait(60)?;
    println!("  TCP stood still for {:?}", flow.stall());
    ensure!(flow.stall() <= Duration::from_secs(4), "{:?}", flow.steps);
    let last: u64 = flow.steps.iter().rev().take(4).sum();
    ensure!(last > 100_000, "{:?}", flow.steps);
    let kind = relayed(&two.b, "a", THREE)?;
    ensure!(kind["carrier"] == "datagram", "{kind}");
    Ok(())
}

/// Two behind NATs with a direct path.
fn direct(lab: &Lab) -> Result<Two> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::port_restricted());
    let two = two(&inet, &nat, &nat)?;
    found(&two.a, &two.b)?;
    datagrams(&two.a, &two.b, FIVE)?;
    Ok(two)
}

/// C01: of two that only a relay joins, the one that asks relays for legs is told nothing of the other's end. It calls again.
fn a_relayed_member_that_begins_anew_is_reached_by_datagrams_at_once(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let nat = Uplink::behind(Kind::symmetric());
    let Two { a, b, .. } = two(&inet, &nat, &nat)?;
    found(&a, &b)?;
    let (at_a, at_b) = (a.overlay("lab")?.0, b.overlay("lab")?.0);
    b.ns().reaches(&at_a, THREE)?;
    through_the_relay(&a, &b)?;
    for (again, other, inside) in [(&a, &b, &at_a), (&b, &a, &at_b)] {
        again.kill9()?;
        again.start()?;
        let begun = Instant::now();
        other.ns().reaches(inside, Duration::from_secs(4))?;
        println!(
            "  {} answers {:?} after its start",
            again.name(),
            begun.elapsed()
        );
        through_the_relay(&a, &b)?;
        println!("  and by datagrams after {:?}", begun.elapsed());
        ensure!(begun.elapsed() < FIVE, "after {:?}", begun.elapsed());
    }
    Ok(())
}

/// C09, A14: a laptop's lid is shut; its daemon notices nothing of the time that passes.
fn after_a_sleep_of_forty_seconds_the_direct_path_is_back_in_two(lab: &Lab) -> Result<()> {
    let two = direct(lab)?;
    let inside = two.b.overlay("lab")?.0;
    let pid = Pid::from_raw(two.a.pid()?);
    kill(pid, Signal::SIGSTOP).context("stop the daemon for a while")?;
    std::thread::sleep(Duration::from_secs(40));
    kill(pid, Signal::SIGCONT).context("let the daemon go on")?;
    let begun = Instant::now();
    let first = two.a.ns().reaches(&inside, Duration::from_secs(20))?;
    datagrams(&two.a, &two.b, Duration::from_secs(20))?;
    println!(
        "  first packet {first:?} and direct {:?} after it woke",
        begun.elapsed()
    );
    ensure!(first <= Duration::from_secs(2), "after {first:?}");
    Ok(())
}

/// A01. `BYWAY_LOSS_SECONDS` makes it another time, for a look by hand.
fn ten_minutes_of_twenty_percent_loss_end_no_session_and_no_path(lab: &Lab) -> Result<()> {
    let two = direct(lab)?;
    let inside = two.a.overlay("lab")?.0;
    let since = || -> Result<serde_json::Value> {
        Ok(two.b.json(&["peer", "show", "a"])?["sessions"][0]["since"].clone())
    };
    let begun = since()?;
    two.sites[0].weather(&Weather {
        loss: 20_000,
        ..Weather::default()
    });
    let seconds: u32 = std::env::var("BYWAY_LOSS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(600);
    let answered = two.b.ns().probe(&inside, seconds * 20, 50)?.answered()?;
    let share = f64::from(answered) / f64::from(seconds * 20);
    println!("  {share:.3} of the echoes answered, 0.64 expected");
    ensure!(share >= 0.6, "{share:.3} of the echoes");
    ensure!(since()? == begun, "the session began anew");
    let kind = path(&two.b, "a")?;
    ensure!(
        kind["kind"] == "direct" && kind["carrier"] == "datagram",
        "{kind}"
    );
    Ok(())
}
