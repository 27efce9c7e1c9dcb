//! Two peers that have nothing to say to each other.

use super::world::{MS, SECOND, World};

#[test]
fn an_hour_of_silence_takes_few_frames_and_the_first_packet_arrives() {
    for (seed, shared) in [(1, 1), (2, 3)] {
        let mut world = World::live(seed, shared);
        world.traffic(50);
        world.run(10 * SECOND);
        world.rest();
        world.run(300 * SECOND);
        let sent = |world: &World| world.ends.iter().map(|end| end.sent.0).sum::<u64>();
        let before = sent(&world);
        world.run(3600 * SECOND);
        // 576 of the path, and every two minutes a new key in each subnet, of which each end asks.
        let frames = sent(&world) - before;
        assert!(
            frames < 600 + u64::from(shared) * 30 * 12,
            "{frames} frames"
        );
        let before = (world.data, world.arrived());
        world.traffic(1000);
        world.run(10 * MS);
        world.rest();
        assert_eq!(world.arrived() - before.1, world.data - before.0);
        assert!(world.data > before.0);
    }
}

#[test]
fn a_path_that_died_in_silence_is_left_in_two_seconds_of_traffic() {
    for seed in 1..20 {
        let mut world = World::live(seed, 1);
        world.run(300 * SECOND);
        world.run(777 * MS * seed as u32);
        world.blocked = true;
        world.traffic(50);
        let left = |world: &World| world.ends[0].routes.is_empty();
        let took = world.until(10 * SECOND, left).unwrap();
        assert!(took < 2100 * MS, "{took:?}");
    }
}
