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
        // One end asks every 25 s, and the other one after eight of these: that is 330. It was 576 of both, and 7200 once.
        assert!((270..360).contains(&frames), "{frames} frames");
        assert!(bytes / 3600 < 9, "{} bytes a second", bytes / 3600);
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

/// Probes that each side has sent.
fn probes(world: &World) -> [usize; 2] {
    [0, 1].map(|side| {
        let is_probe = |(_, by, output): &&(Duration, usize, Output)| {
            *by == side && matches!(output, Output::Probe { .. })
        };
        world.log.iter().filter(is_probe).count()
    })
}

fn probes_in(world: &mut World, time: Duration) -> [usize; 2] {
    let before = probes(world);
    world.run(time);
    let after = probes(world);
    [after[0] - before[0], after[1] - before[1]]
}

/// Two sides without a NAT that have been at rest for some minutes.
fn rested_in_the_open(seed: u64) -> World {
    let mut world = World::new(seed);
    world.begin();
    world.run(300 * SECOND);
    world
}

#[test]
fn both_ends_together_ask_as_often_as_one_would_and_each_does() {
    for seed in 1..20 {
        let mut world = rested_in_the_open(seed);
        let [one, other] = probes_in(&mut world, 3600 * SECOND);
        assert!((130..=180).contains(&(one + other)), "{one} and {other}");
        assert!(one >= 10 && other >= 10, "{one} and {other}");
    }
}

#[test]
fn a_way_that_died_in_one_direction_is_noticed_by_both_ends() {
    for seed in 1..40 {
        for deaf in [0, 1] {
            let mut world = rested_in_the_open(seed);
            world.run(Duration::from_millis(777 * seed));
            world.bad = Some(([world.source[deaf]; 2], 100, Duration::ZERO));
            let lost = |world: &World| world.route.iter().all(Option::is_none);
            let either = |world: &World| world.route.iter().any(Option::is_none);
            // Pause, three probes; or at last what the one that gives way adds to the pause.
            let first = world.until(60 * SECOND, either).unwrap();
            let both = first + world.until(60 * SECOND, lost).unwrap();
            assert!(first < 29 * SECOND, "{first:?}");
            assert!(both < 33 * SECOND, "{both:?} of both");
        }
    }
}

#[test]
fn a_path_that_died_is_noticed_though_nothing_travels() {
    for seed in 1..40 {
        let mut world = rested_in_the_open(seed);
        world.run(Duration::from_millis(777 * seed));
        world.blocked = true;
        let lost = |world: &World| world.route.iter().all(Option::is_none);
        let took = world.until(60 * SECOND, lost).unwrap();
        assert!(took < 33 * SECOND, "{took:?}");
    }
}

/// A peer of a version that asks whatever it hears is heard, and asks alone.
#[test]
fn a_peer_that_gives_way_to_nobody_is_given_way_to() {
    let mut world = rested_in_the_open(4);
    let before = probes(&world);
    for _ in 0..6000 {
        world.sides[0].live.as_mut().unwrap().lead = Default::default();
        world.run(100 * MS);
    }
    let after = probes(&world);
    assert!((20..=30).contains(&(after[0] - before[0])));
    assert!(after[1] - before[1] <= 5);
    assert_eq!(world.sides[1].changes(), 1);
}

#[test]
fn the_end_behind_a_nat_asks_and_opens_the_way_again_itself() {
    for seed in 1..20 {
        let mut world = behind(1_000_000, seed);
        let now = world.net.now;
        world.sides[0].roamed(now, &[[10, 0, 0, 2].into()]);
        world.run(300 * SECOND);
        let [behind, open] = probes_in(&mut world, 1000 * SECOND);
        assert!((36..=44).contains(&behind), "{behind} of the one behind it");
        assert!(open <= 8, "{open} of the other one");
        // Another NAT that forgets sooner: the mapping is another one at each keep-alive until that is known.
        world.nat.as_mut().unwrap().idle = 20 * SECOND;
        let lost = |world: &World| {
            world
                .log
                .iter()
                .filter(|(.., o)| *o == Output::Lost)
                .count()
        };
        let before = lost(&world);
        for _ in 0..20 {
            world.run(30 * SECOND);
            assert!(world.both_up());
        }
        assert_eq!(lost(&world), before, "no path was lost to it");
    }
}

#[test]
fn where_both_ask_at_once_the_smaller_is_the_first_the_next_time() {
    let start = some_moment();
    let ends = [false, true].map(|waits_longer| {
        let mut lead = lead::Lead::default();
        lead.hear(start, true);
        assert_eq!(
            lead.until(25 * SECOND, waits_longer),
            None,
            "the first tells nothing"
        );
        assert_eq!(lead.hear(start + 25 * SECOND, true), Some(25 * SECOND));
        lead.until(25 * SECOND, waits_longer).unwrap() - start
    });
    assert_eq!(ends, [51_500 * MS, 53_000 * MS]);
}
