//! A path over which nothing travels.

use super::aging::behind;
use super::*;

/// Behind a NAT that keeps a mapping without packets for so long; nothing was sent for some minutes.
fn rested(idle: u32, seed: u64) -> World {
    let mut world = behind(1_000_000, seed);
    world.nat.as_mut().unwrap().idle = idle * SECOND;
    world.run(240 * SECOND);
    world
}

fn frames(world: &World) -> usize {
    let is_frame = |(_, _, output): &&(Duration, usize, Output)| {
        matches!(output, Output::Probe { .. } | Output::Answer { .. })
    };
    world.log.iter().filter(is_frame).count()
}

fn bytes(world: &World) -> usize {
    world.sent.values().sum()
}

#[test]
fn an_hour_of_silence_costs_few_hundred_frames() {
    for seed in 1..6 {
        let mut world = rested(30, seed);
        let before = (frames(&world), bytes(&world));
        world.run(3600 * SECOND);
        let (frames, bytes) = (frames(&world) - before.0, bytes(&world) - before.1);
        // Both ends ask every 25 s; that is 576. It was 7200.
        assert!((400..640).contains(&frames), "{frames} frames");
        assert!(bytes / 3600 < 20, "{} bytes a second", bytes / 3600);
        assert_eq!(world.sides[0].changes(), 1);
    }
}

#[test]
fn the_first_packet_after_a_silence_arrives() {
    for seed in 1..30 {
        let mut world = rested(30, seed);
        for n in 1..20 {
            world.run(Duration::from_millis(100_000 + 7777 * n));
            let few = world.lose(40 * MS);
            assert_eq!(few, [0, 0], "from either end");
        }
    }
}

#[test]
fn a_nat_that_keeps_less_is_asked_more_often_and_later_less_again() {
    for seed in 1..10 {
        let mut world = rested(8, seed);
        world.run(60 * SECOND);
        for n in 1..8 {
            world.run(Duration::from_millis(20_000 + 3333 * n));
            assert_eq!(world.lose(40 * MS), [0, 0]);
        }
        let mut before = frames(&world);
        world.run(100 * SECOND);
        assert!(frames(&world) - before > 60, "every five seconds at least");
        world.nat.as_mut().unwrap().idle = 1000 * SECOND;
        world.run(3600 * SECOND);
        before = frames(&world);
        world.run(100 * SECOND);
        assert!(frames(&world) - before < 24);
    }
}

#[test]
fn a_path_that_died_in_silence_is_left_within_two_seconds_of_the_first_packet() {
    for seed in 1..60 {
        let mut world = rested(30, seed);
        world.run(Duration::from_millis(333 * seed));
        world.blocked = true;
        // Half of the time between two keep-alives, so that none has noticed it yet.
        if world.until(200 * MS, |w| w.route[0].is_none()).is_some() {
            continue;
        }
        world.busy = [true, false];
        let left = |world: &World| world.route[0].is_none();
        let took = world.until(10 * SECOND, left).unwrap();
        assert!(took <= 2000 * MS, "{took:?}");
        world.blocked = false;
        assert!(world.until(10 * SECOND, World::both_up).is_some());
    }
}

#[test]
fn with_packets_the_path_is_asked_as_often_as_before() {
    let mut world = rested(30, 3);
    world.busy = [true; 2];
    world.run(2 * SECOND);
    let before = frames(&world);
    world.run(60 * SECOND);
    assert!(frames(&world) - before > 2 * 90, "every 0.7 s");
}
