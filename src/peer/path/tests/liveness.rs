//! When a path is up, when it is lost, and what probing costs.

use super::*;

#[test]
fn a_path_is_up_in_two_round_trips_and_carries_1500() {
    let mut world = World::new(1);
    world.begin();
    world.run(25 * MS);
    let payload = 1500 - 28;
    assert_eq!(
        world.route,
        [
            Some((world.source[1], payload)),
            Some((world.source[0], payload))
        ]
    );
    assert_eq!(world.sides[0].path().unwrap().rtt, Some(10 * MS));
    assert_eq!(world.sides[0].changes(), 1);
}

#[test]
fn loss_is_the_share_of_keep_alives_without_an_answer() {
    let mut world = World::new(3);
    world.busy = [true; 2];
    world.begin();
    let loss = |world: &World| world.sides[0].path().and_then(|path| path.loss);
    world.run(500 * MS);
    assert_eq!(loss(&world), None, "nothing was tried yet");
    world.run(60 * SECOND);
    assert_eq!(loss(&world), Some(0.0));
    // A tenth each way: 19 % of the round trips.
    world.net.loss = 10;
    world.run(300 * SECOND);
    let seen = loss(&world).unwrap();
    assert!((0.05..0.4).contains(&seen), "{seen}");
    world.net.loss = 0;
    world.run(300 * SECOND);
    assert_eq!(loss(&world), Some(0.0), "old losses are forgotten");
}

#[test]
fn nothing_is_sent_without_a_key() {
    let mut world = World::new(1);
    let to = world.source[1];
    world.sides[0].offer(world.net.now, &[to], Origin::Told, &[]);
    world.sides[0].on_probe(world.net.now, from(to), 7, &[]);
    world.run(10 * SECOND);
    assert!(world.log.is_empty());
    assert_eq!(world.sides[0].poll_timeout(), None);
}

#[test]
fn the_key_gone_the_path_is_gone() {
    let mut world = World::new(1);
    world.begin();
    world.run(SECOND);
    world.sides[0].stop(world.net.now);
    world.drain(0);
    assert_eq!(world.route[0], None);
    assert_eq!(world.sides[0].poll_timeout(), None);
    world.sides[0].start(world.net.now);
    world.run(SECOND);
    assert!(world.both_up());
}

#[test]
fn udp_that_opens_is_used_within_five_and_a_half_seconds() {
    for seed in 1..60 {
        let mut world = World::new(seed);
        world.blocked = true;
        world.begin();
        world.run(Duration::from_millis(500 * seed));
        assert_eq!(world.route, [None, None]);
        world.blocked = false;
        let took = world.until(10 * SECOND, World::both_up).unwrap();
        assert!(took < 5500 * MS, "{took:?}");
    }
}

#[test]
fn a_silent_path_is_lost_after_three_and_a_half_seconds() {
    for seed in 1..40 {
        for busy in [false, true] {
            let mut world = World::new(seed);
            world.busy = [busy; 2];
            world.begin();
            world.run(Duration::from_millis(4000 + 70 * seed));
            world.blocked = true;
            let took = world.until(10 * SECOND, |w| w.route[0].is_none()).unwrap();
            // Up to one interval has gone by since the last answer.
            assert!(took > 1300 * MS && took < 3700 * MS, "{took:?}");
            world.blocked = false;
            assert!(world.until(5 * SECOND, World::both_up).is_some());
        }
    }
}

#[test]
fn a_suspected_path_is_settled_in_less_than_a_second() {
    for seed in 1..40 {
        let mut world = World::new(seed);
        world.busy = [seed % 2 == 0; 2];
        world.begin();
        world.run(Duration::from_millis(4000 + 70 * seed));
        world.sides[0].suspect(world.net.now);
        world.run(2 * SECOND);
        assert_eq!(world.sides[0].changes(), 1, "it answers: the path stays");
        world.blocked = true;
        world.sides[0].suspect(world.net.now);
        let took = world.until(10 * SECOND, |w| w.route[0].is_none()).unwrap();
        assert!(took < 600 * MS, "{took:?}");
        world.blocked = false;
        assert!(world.until(5 * SECOND, World::both_up).is_some());
    }
}

#[test]
fn lost_packets_do_not_lose_the_path() {
    let mut world = World::new(78);
    world.net.loss = 5;
    world.busy = [true, false];
    world.begin();
    assert!(world.until(5 * SECOND, World::both_up).is_some());
    world.run(1800 * SECOND);
    assert_eq!((world.sides[0].changes(), world.sides[1].changes()), (1, 1));
    let falls = world
        .log
        .iter()
        .filter(|(_, _, o)| matches!(o, Output::Up { payload: 1252, .. }))
        .count();
    assert!(falls < 36, "{falls} falls in 2570 padded probes");
}

#[test]
fn a_process_that_slept_asks_before_it_gives_up() {
    let mut world = World::new(3);
    world.begin();
    world.run(5 * SECOND);
    // Both slept: no timer ran, nothing was lost.
    world.net.now += 60 * SECOND;
    world.run(5 * SECOND);
    assert_eq!((world.sides[0].changes(), world.sides[1].changes()), (1, 1));
}

/// Bytes of both directions in a second.
fn cost(world: &mut World, seconds: u32) -> usize {
    let before: usize = world.sent.values().sum();
    world.run(seconds * SECOND);
    (world.sent.values().sum::<usize>() - before) / seconds as usize
}

#[test]
fn an_idle_peer_costs_less_than_300_bytes_a_second() {
    let six = || {
        World::between(
            8,
            address("[2001:db8::1]:4100"),
            address("[2001:db8::2]:4100"),
        )
    };
    for mut world in [World::new(8), six()] {
        world.begin();
        world.run(10 * SECOND);
        let idle = cost(&mut world, 600);
        assert!(idle < 250, "{idle} bytes/s");
    }
    let mut narrow = six();
    narrow.mtu(1280);
    narrow.begin();
    narrow.run(10 * SECOND);
    let idle = cost(&mut narrow, 600);
    assert!(idle < 300, "{idle} bytes/s while the MTU is tried again");
}

#[test]
fn an_unreachable_peer_costs_less_than_300_bytes_a_second() {
    let mut world = World::new(8);
    world.blocked = true;
    let many: Vec<SocketAddr> = (1..=20)
        .map(|n| address(&format!("[2001:db8::{n}]:4100")))
        .collect();
    world.sides[0].offer(world.net.now, &many, Origin::Told, &[]);
    world.sides[0].start(world.net.now);
    world.run(30 * SECOND);
    let probing = cost(&mut world, 600);
    assert!(probing < 250, "{probing} bytes/s");
}
