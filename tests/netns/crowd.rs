//! A subnet of more members than anybody holds connections to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::crowd::{Crowd, Spread, slowly};
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON};
use crate::long;

pub const CASES: &[Case] = &[
    long!(forty_members_hold_few_connections_and_reach_each_other),
    long!(a_hundred_members_hold_few_connections_and_reach_each_other),
    long!(an_idle_member_of_fifty_moves_two_kilobytes_a_second_at_most),
    long!(an_idle_member_of_a_hundred_moves_two_kilobytes_a_second_at_most),
];

/// The most connections of a member that joined when the subnet was large already: four beside it in the rings, four that answer
/// soon, one that is tried, those who chose it or were beside it when there were fewer, and whom it joined through.
const HELD: u64 = 32;
/// Who joined before there were so many is connected to each of these for ten minutes more.
const SMALL: usize = 33;
/// After so long nothing of the joins goes on: connections that nobody needs are let go after ten minutes, and comparisons of
/// records are four minutes apart again.
const SETTLED: Duration = Duration::from_secs(1200);
/// What an idle member moves in a second at most, in bytes, both directions and headers together.
const IDLE: u64 = 2048;

fn forty_members_hold_few_connections_and_reach_each_other(lab: &Lab) -> Result<()> {
    few(lab, 40)
}

fn a_hundred_members_hold_few_connections_and_reach_each_other(lab: &Lab) -> Result<()> {
    few(lab, 100)
}

fn an_idle_member_of_fifty_moves_two_kilobytes_a_second_at_most(lab: &Lab) -> Result<()> {
    idle(lab, 50)
}

fn an_idle_member_of_a_hundred_moves_two_kilobytes_a_second_at_most(lab: &Lab) -> Result<()> {
    idle(lab, 100)
}

fn idle(lab: &Lab, count: usize) -> Result<()> {
    let crowd = Crowd::new(lab, count)?;
    std::thread::sleep(SETTLED);
    println!("  connections: {}", Spread::of(&crowd.connections()?));
    println!("  resident KiB: {}", Spread::of(&crowd.resident()?));
    let rates = Spread::of(&crowd.rates(Duration::from_secs(120))?);
    println!("  bytes in a second on each cable: {rates}");
    ensure!(rates.most <= IDLE, "{} bytes in a second", rates.most);
    Ok(())
}

fn few(lab: &Lab, count: usize) -> Result<()> {
    let crowd = Crowd::new(lab, count)?;
    let (first, others) = crowd.hosts.split_first().context("somebody")?;
    let connections = crowd.connections()?;
    let (early, late) = connections.split_at(SMALL.min(connections.len()));
    let of_late = Spread::of(late);
    println!("  connections of the first {SMALL}: {}", Spread::of(early));
    println!("  connections of those who came later: {of_late}");
    println!("  resident KiB: {}", Spread::of(&crowd.resident()?));
    let rates = crowd.rates(Duration::from_secs(20))?;
    println!("  bytes in a second on each cable: {}", Spread::of(&rates));
    ensure!(of_late.most <= HELD, "{connections:?}");
    let last = others.last().context("a second one")?;
    let idle: Vec<String> = status(last)?
        .into_iter()
        .filter(|(_, kind)| kind == "idle")
        .map(|(name, _)| name)
        .collect();
    ensure!(idle.len() >= count / 3, "{} are idle", idle.len());
    // The first ping to each passes, and the program that measures it is told no other.
    let mut first_pings = Vec::new();
    for name in idle.iter().take(12) {
        let host = crowd.hosts.iter().find(|host| host.name() == name);
        let to = host.context("a host")?.overlay("lab")?.0;
        let begun = Instant::now();
        let ping = last.ns().run(&["ping", "-n", "-c", "1", "-W", "3", &to])?;
        first_pings.push(u64::try_from(begun.elapsed().as_millis())?);
        ensure!(ping.code == 0, "the first packet to {name} is lost: {ping}");
    }
    println!("  ms to the first answer: {}", Spread::of(&first_pings));
    if let Some(name) = idle.get(12) {
        let ping = last.json(&["ping", name, "-c", "2"])?;
        ensure!(ping["received"] == 2, "{ping}");
    }
    // A change of one is everybody's within ten seconds.
    let removed = others.first().context("somebody")?;
    let begun = Instant::now();
    first.ok(&["member", "remove", "lab", removed.name()])?;
    for host in &crowd.hosts {
        if host.name() != removed.name() {
            slowly("it is out", Duration::from_secs(30), || {
                Ok(host.members("lab")?.len() == count - 1)
            })?;
        }
    }
    println!("  removed everywhere after {:?}", begun.elapsed());
    // Who is gone is offline as soon as somebody wants it.
    let gone = crowd.hosts.get(count / 2).context("somebody")?;
    let to = gone.overlay("lab")?.0;
    gone.kill9()?;
    slowly("it is offline", SOON, || {
        last.ns().pings(&to);
        Ok(status(last)?.contains(&(gone.name().to_owned(), "offline".to_owned())))
    })?;
    // It takes away what it left behind.
    gone.start()
}

/// The members with the kinds of their paths.
fn status(host: &crate::lab::Host) -> Result<Vec<(String, String)>> {
    let status = host.status("lab")?;
    let peers = status["peers"].as_array().context("no `peers`")?;
    let of = |peer: &serde_json::Value| {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (text(&peer["name"]), text(&peer["path"]["kind"]))
    };
    Ok(peers.iter().map(of).collect())
}
