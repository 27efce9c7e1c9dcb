//! A leg at a relay is a path like another, of a worse class.

use super::*;

/// Each side has one leg at the relay, whose address is the same for both.
const RELAY: &str = "203.0.113.1:3478";

fn leg(side: usize) -> Remote {
    Remote {
        leg: Some(side as u32 + 1),
        ..Remote::from(address(RELAY))
    }
}

/// Two sides with a leg each, whose own addresses reach nobody.
fn relayed(seed: u64) -> World {
    let mut world = World::new(seed);
    world.relay = Some(address(RELAY));
    world.shut = true;
    world.begin();
    for side in 0..2 {
        let now = world.net.now;
        world.sides[side].legs(now, &[leg(side)], &[]);
    }
    world
}

fn uses_leg(world: &World) -> bool {
    (0..2).all(|side| {
        world.sides[side]
            .path()
            .is_some_and(|path| path.pair.remote == leg(side))
    })
}

fn is_direct(world: &World) -> bool {
    (0..2).all(|side| {
        world.sides[side]
            .path()
            .is_some_and(|path| path.pair.remote == world.source[1 - side].into())
    })
}

fn causes(world: &World, side: usize) -> Vec<Cause> {
    world.sides[side]
        .history()
        .map(|change| change.cause)
        .collect()
}

#[test]
fn a_leg_carries_until_the_peer_itself_answers() {
    for seed in 1..20 {
        let mut world = relayed(seed);
        assert!(world.until(SECOND, uses_leg).is_some());
        world.run(Duration::from_millis(700 * seed));
        world.shut = false;
        let took = world.until(6 * SECOND, is_direct).unwrap();
        assert!(took < 5500 * MS, "{took:?}");
        for side in 0..2 {
            assert_eq!(causes(&world, side), [Cause::Found, Cause::Better]);
        }
        world.run(60 * SECOND);
        assert!(is_direct(&world), "and stays");
    }
}

#[test]
fn a_leg_that_is_bound_while_a_path_is_in_use_becomes_its_spare() {
    for seed in 1..20 {
        let mut world = World::new(seed);
        world.relay = Some(address(RELAY));
        world.begin();
        world.run(20 * SECOND);
        assert!(is_direct(&world));
        for side in 0..2 {
            let now = world.net.now;
            world.sides[side].legs(now, &[leg(side)], &[]);
        }
        world.run(SECOND);
        assert!((0..2).all(|side| world.sides[side].has_answered(leg(side))));
        assert!(is_direct(&world), "and no more than that");
        world.shut = true;
        assert!(world.until(4 * SECOND, uses_leg).is_some(), "{seed}");
        assert_eq!(causes(&world, 0), [Cause::Found, Cause::Silent]);
    }
}

#[test]
fn an_echo_goes_the_way_that_is_asked_for_and_none_where_there_is_no_such_way() {
    let mut world = relayed(7);
    assert!(world.until(SECOND, uses_leg).is_some());
    let echo = |world: &mut World, by_relay: Option<bool>| {
        let now = world.net.now;
        let mut entropy = |bytes: &mut [u8]| bytes.fill(9);
        let sent = world.sides[0].echo(now, by_relay, &mut entropy);
        sent.map(|(_, to)| to)
    };
    assert_eq!(echo(&mut world, Some(false)), None);
    for way in [None, Some(true)] {
        assert_eq!(echo(&mut world, way), Some(leg(0)));
    }
    world.shut = false;
    assert!(world.until(6 * SECOND, is_direct).is_some());
    let peer = Remote::from(world.source[1]);
    for way in [None, Some(false)] {
        assert_eq!(echo(&mut world, way), Some(peer));
    }
    // Packets go straight, and the leg is kept ready.
    assert_eq!(echo(&mut world, Some(true)), Some(leg(0)));
    let now = world.net.now;
    world.sides[0].legs(now, &[], &[]);
    assert_eq!(echo(&mut world, Some(true)), None);
}

#[test]
fn both_ends_told_to_probe_at_once_are_direct_at_once() {
    let mut world = relayed(4);
    world.run(300 * SECOND);
    assert!(uses_leg(&world));
    world.shut = false;
    let now = world.net.now;
    world.sides.iter_mut().for_each(|side| side.burst(now));
    let took = world.until(SECOND, is_direct).unwrap();
    assert!(took < 100 * MS, "{took:?}");
}

#[test]
fn while_relayed_the_peer_itself_is_looked_for_once_a_minute() {
    let mut world = relayed(5);
    world.run(120 * SECOND);
    world.log.clear();
    world.run(600 * SECOND);
    let direct = |(_, side, output): &&(Duration, usize, Output)| {
        *side == 0 && matches!(output, Output::Probe { pair, .. } if pair.remote.leg.is_none())
    };
    let probes = world.log.iter().filter(direct).count();
    assert!((8..=13).contains(&probes), "{probes}");
}

#[test]
fn a_direct_path_that_falls_silent_goes_on_by_the_leg_within_two_seconds() {
    for seed in 1..20 {
        let mut world = relayed(seed);
        world.busy = [true; 2];
        assert!(world.until(SECOND, uses_leg).is_some());
        world.shut = false;
        assert!(world.until(6 * SECOND, is_direct).is_some());
        world.run(Duration::from_millis(20_000 + 93 * seed));
        world.shut = true;
        world.log.clear();
        let took = world.until(6 * SECOND, uses_leg).unwrap();
        assert!(took < 2000 * MS, "{took:?}");
        let lost = world.log.iter().any(|(_, _, o)| *o == Output::Lost);
        assert!(!lost, "without the stream");
    }
}

#[test]
fn a_leg_that_is_given_up_is_left_at_once_for_another_one() {
    let mut world = relayed(6);
    assert!(world.until(SECOND, uses_leg).is_some());
    let now = world.net.now;
    world.sides[0].legs(now, &[], &[]);
    world.drain(0);
    assert_eq!(world.route[0], None);
    assert_eq!(causes(&world, 0), [Cause::Found, Cause::LegGone]);
}

#[test]
fn frames_by_a_relay_do_not_take_a_direct_path() {
    let mut world = relayed(7);
    world.shut = false;
    assert!(world.until(6 * SECOND, is_direct).is_some());
    let (now, dice) = (world.net.now, &mut world.net.dice);
    let pair = Pair {
        local: None,
        remote: leg(0),
    };
    world.sides[0].on_moved(now, pair, &[], &mut |b| dice.fill(b));
    world.run(5 * SECOND);
    assert!(is_direct(&world));
}

#[test]
fn a_direct_path_that_comes_and_goes_is_held_back_and_used_again_when_it_stays() {
    let mut world = relayed(8);
    world.busy = [true; 2];
    assert!(world.until(SECOND, uses_leg).is_some());
    let mut each = Vec::new();
    for _ in 0..20 {
        let before = world.sides[0].changes();
        for shut in [false, true] {
            world.shut = shut;
            // The peer's probes ask for a burst, as those of a NAT that opens and closes.
            let now = world.net.now;
            world.sides.iter_mut().for_each(|side| side.burst(now));
            world.run(10 * SECOND);
        }
        each.push(world.sides[0].changes() - before);
    }
    assert_eq!(each[0], 2, "to the direct path and back");
    let late: u64 = each[10..].iter().sum();
    assert!(late <= 10, "{each:?}");
    world.shut = false;
    assert!(world.until(130 * SECOND, is_direct).is_some());
}
