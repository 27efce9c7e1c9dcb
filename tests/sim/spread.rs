//! A thousand members, each connected to a few: what one says is held by all within ten seconds, although messages are lost,
//! members come and go, halves are apart for a while, and some pass nothing on.

use std::time::Instant;

use byway::model::members::{Identity, Subnet};

use super::crowd::{DEAD_AFTER, Event, Net};

/// A member's new address, as when its network has changed.
fn moves(subnet: &mut Subnet, me: &Identity, now: u64) {
    let endpoints = [format!(
        "/ip4/198.51.100.7/udp/{}/quic-v1",
        4100 + now % 1000
    )];
    subnet.set_endpoints(me, &endpoints, now).unwrap();
}

fn agree(count: usize, seed: u64) {
    const MOST: u64 = 10_000;
    let began = Instant::now();
    let mut net = Net::new(count, seed);
    let degrees: Vec<usize> = (0..count).map(|n| net.linked(n).len()).collect();
    println!(
        "seed {seed}: {count} members, connections {} to {}, {:?} to build",
        degrees.iter().min().unwrap(),
        degrees.iter().max().unwrap(),
        began.elapsed()
    );
    net.run(35_000);
    let before = net.sent;
    net.run(10_000);
    println!(
        "while nothing changes each sends {:.0} B/s to compare",
        (net.sent.asked - before.asked) as f64 / count as f64 / 10.0
    );
    let moved = net.change(count / 2, moves);
    let since = net.now;
    let told = net.spread(&[moved], since, MOST);
    net.tell("an announcement", told);

    // A tenth goes in a minute, and comes back.
    net.churn = Some(600_000 / u64::try_from(count).unwrap());
    net.later(0, Event::Churn);
    net.run(60_000);
    let out = net.peer(count / 3);
    let removed = net.change(0, |subnet, me, now| subnet.remove(me, out, now).unwrap());
    let since = net.now;
    let told = net.spread(&[removed], since, MOST);
    net.tell("a removal, a tenth a minute going and returning", told);
    let back = net.now;
    net.run(MOST);
    assert_eq!(net.without(&removed, back), 0, "who was back has it, too");
    net.churn = None;
    net.run(90_000);

    // Two halves, for so long that all connections between them are gone, and for less.
    for apart in [20_000, 90_000] {
        net.split = true;
        net.run(apart);
        let (one, other) = (count / 5 * 2, count / 5 * 2 + 1);
        let halves = [net.change(one, moves), net.change(other, moves)];
        net.run(MOST);
        net.split = false;
        let healed = net.now;
        if apart > DEAD_AFTER {
            net.reconnect();
        }
        let (took, sent) = net.spread(&halves, healed, MOST);
        net.tell("two halves that meet again", (took, sent));
    }
    println!("{:?} in all", began.elapsed());
}

#[test]
fn a_thousand_members_agree_within_ten_seconds() {
    agree(1000, 1);
}

#[test]
#[ignore = "one seed is in the set of every run"]
fn a_thousand_members_agree_whatever_the_seed() {
    (2..=6).for_each(|seed| agree(1000, seed));
}
