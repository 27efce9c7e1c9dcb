//! A path under traffic that fails: how long until packets go another way.

use super::world::{MS, SECOND, World};
use crate::peer::path;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

/// What packets of the first end go to, and what they would go to by the other family.
fn ways(world: &World) -> (SocketAddr, SocketAddr) {
    let (_, route) = world.ends[0].routes.first_key_value().expect("a path");
    let used = route.pair.remote.address;
    let far = &world.ends[1];
    let other = if used == far.at {
        far.six
    } else {
        Some(far.at)
    };
    (used, other.expect("two families"))
}

/// Two ends that have both families, each way with a spare.
fn two_families(seed: u64) -> World {
    let mut world = World::live(seed, 1);
    for end in 0..2u8 {
        let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(end) + 1);
        world.ends[usize::from(end)].six = Some((ip, 4100).into());
    }
    for end in 0..2 {
        let six = world.ends[1 - end].six;
        world.call(end, |peer, now, _| {
            peer.offer(now, six.as_slice(), path::Origin::Host);
        });
    }
    world.run(20 * SECOND);
    world
}

/// Two ends of two families, with traffic, at some moment between two probes.
fn under_traffic(seed: u64, pace: u64) -> World {
    let mut world = two_families(seed);
    world.traffic(pace);
    world.run(5 * SECOND + 61 * MS * seed as u32);
    world
}

/// The time until a packet of the first end arrives, after those that are under way.
fn silence(world: &mut World) -> Duration {
    let came = |world: &World| world.ends[1].arrived.values().sum::<u64>();
    let begun = world.net.now;
    world.run(200 * MS);
    let before = came(world);
    let took = world.until(20 * SECOND, |world| came(world) > before);
    assert!(took.is_some(), "never");
    world.net.now - begun
}

#[test]
fn a_path_that_is_cut_or_carries_no_packets_is_left_for_its_spare_in_two_seconds() {
    let (mut cut, mut barren) = (Vec::new(), Vec::new());
    for seed in 1..40 {
        let mut world = under_traffic(seed, 20);
        world.cut.push(ways(&world).0);
        cut.push(silence(&mut world));
        let mut world = under_traffic(seed, 20);
        world.barren.push(ways(&world).0);
        barren.push(silence(&mut world));
    }
    for took in [&mut cut, &mut barren] {
        took.sort_unstable();
        assert!(took.iter().all(|took| *took < 2 * SECOND), "{took:?}");
    }
    println!("cut {:?}, no packets {:?}", cut.last(), barren.last());
}

/// Probes of both families pass, and packets of neither: the spare is tried once, then the stream carries.
#[test]
fn where_no_way_carries_packets_the_stream_does_in_three_seconds() {
    let mut all = Vec::new();
    for seed in 1..40 {
        let mut world = under_traffic(seed, 20);
        let (used, other) = ways(&world);
        world.barren = vec![used, other];
        let left = |world: &World| world.ends[0].routes.is_empty();
        let took = world.until(10 * SECOND, left).expect("both are left");
        assert!(took < 3 * SECOND, "{took:?}");
        all.push(took);
        let causes: Vec<path::Cause> = world.ends[0].peer.history().map(|c| c.cause).collect();
        let last = &causes[causes.len() - 2..];
        assert_eq!(last, [path::Cause::DataLost; 2]);
        assert_eq!(world.ends[0].data_lost, 1, "said when the stream carries");
    }
    println!("{:?}", all.iter().max());
}

/// Both ends are silent to each other: without another way the stream carries.
#[test]
fn where_nothing_passes_any_more_the_stream_carries_in_three_seconds() {
    for seed in 1..40 {
        let mut world = World::live(seed, 1);
        world.traffic(20);
        world.run(5 * SECOND + 61 * MS * seed as u32);
        world.blocked = true;
        let left = |world: &World| world.ends[0].routes.is_empty();
        let took = world.until(10 * SECOND, left).expect("it is left");
        assert!(took < 3100 * MS, "{took:?}");
    }
}

/// A fifth of what is sent is lost each way: that is no silence, and packets that arrive are no lost data.
#[test]
fn a_path_that_loses_a_fifth_is_seldom_lost() {
    let mut changes = 0;
    for seed in 1..6 {
        let mut world = World::live(seed, 1);
        world.traffic(20);
        world.run(5 * SECOND);
        let before = world.ends[0].peer.path_changes();
        world.net.loss = 20;
        world.run(600 * SECOND);
        changes += world.ends[0].peer.path_changes() - before;
    }
    println!("{changes} changes in 50 minutes");
    assert!(changes <= 60, "{changes} changes in 50 minutes");
}

/// Traffic that begins when nothing has flowed for a moment is not watched later than other traffic.
#[test]
fn a_path_that_is_cut_as_traffic_begins_is_left_in_two_seconds() {
    for seed in 1..40 {
        let mut world = two_families(seed);
        world.run(61 * MS * seed as u32);
        world.cut.push(ways(&world).0);
        world.traffic(20);
        let took = silence(&mut world);
        assert!(took < 2 * SECOND, "{took:?}");
    }
}
