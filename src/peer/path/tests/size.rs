//! How large the datagrams are that a path carries.

use super::*;

#[test]
fn the_mtu_is_what_the_path_carries() {
    for (carries, found) in [
        (1280, 1280),
        (1319, 1280),
        (1320, 1320),
        (1400, 1400),
        (1419, 1400),
        (1452, 1452),
        (1491, 1480),
        (1492, 1492),
        (1500, 1500),
        (8999, 1500),
        (9000, 9000),
        (65_535, 9000),
    ] {
        let mut world = World::new(carries as u64);
        world.mtu(carries);
        world.begin();
        world.run(2 * SECOND);
        assert_eq!(
            world.sides[0].path().map(|p| p.mtu),
            Some(found),
            "a path of {carries}"
        );
        assert_eq!(world.route[0].map(|r| r.1), Some(usize::from(found) - 28));
        assert!(world.settled[0]);
    }
}

#[test]
fn large_frames_are_tried_twice_at_most() {
    let mut world = World::new(9);
    world.busy = [true; 2];
    world.begin();
    world.run(600 * SECOND);
    let jumbo = |o: &Output| matches!(o, Output::Probe { pad_to, .. } if *pad_to > 1500);
    let tries = world
        .log
        .iter()
        .filter(|(_, side, o)| *side == 0 && jumbo(o))
        .count();
    assert_eq!(tries, 2);
}

#[test]
fn an_interface_that_refuses_is_not_asked_again() {
    let (a, b) = (address("192.0.2.1:1"), address("192.0.2.2:1"));
    let mut paths = Paths::new();
    let now = some_moment();
    let mut random = Dice::new(5);
    let mut entropy = |bytes: &mut [u8]| random.fill(bytes);
    paths.offer(now, &[a, b], Origin::Told, &[]);
    paths.start(now);
    let mut large = 0;
    for step in 0..400 {
        let now = now + step * 10 * MS;
        paths.handle_timeout(now, &mut entropy);
        while let Some(output) = paths.poll() {
            if let Output::Probe { token, pad_to, .. } = output {
                if pad_to > 1500 {
                    large += 1;
                    paths.refused(token);
                } else {
                    paths.on_answer(now, from(address("192.0.2.9:1")), token, &mut entropy);
                }
            }
        }
    }
    assert_eq!(large, 1);
    assert_eq!(
        paths.path().map(|p| (p.pair.remote.address, p.mtu)),
        Some((a, 1500))
    );
}

#[test]
fn a_black_hole_stalls_no_longer_than_three_seconds() {
    for seed in 1..60 {
        let mut world = World::new(seed);
        world.busy = [true, false];
        world.begin();
        world.run(Duration::from_millis(4000 + 97 * seed));
        assert_eq!(world.sides[0].path().unwrap().mtu, 1500);
        world.mtu(1400);
        let took = world
            .until(10 * SECOND, |w| w.route[0].is_some_and(|r| r.1 <= 1372))
            .unwrap();
        assert!(took < 2600 * MS, "{took:?}");
        world.run(SECOND);
        assert_eq!(world.sides[0].path().unwrap().mtu, 1400);
        assert_eq!(world.sides[0].changes(), 1, "the path itself stays");
        // Nothing flowed the other way: it is found out with the first traffic.
        world.busy = [false, true];
        let took = world
            .until(10 * SECOND, |w| w.route[1].is_some_and(|r| r.1 <= 1372))
            .unwrap();
        assert!(took < 3000 * MS, "{took:?}");
    }
}

#[test]
fn a_path_that_widens_is_found_within_a_minute_or_so() {
    let mut world = World::new(4);
    world.busy = [true; 2];
    world.mtu(1400);
    world.begin();
    world.run(10 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1400);
    world.mtu(1452);
    world.run(130 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1452);
    world.mtu(1500);
    world.run(70 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1500);
}

#[test]
fn an_interface_that_shrank_is_heeded_at_once() {
    let mut world = World::new(4);
    world.begin();
    world.run(10 * SECOND);
    world.mtu(1400);
    let (now, random) = (world.net.now, &mut world.net.dice);
    world.sides[0].too_big(now, &mut |b| random.fill(b));
    world.run(MS);
    assert_eq!(
        (world.route[0].map(|r| r.1), world.settled[0]),
        (Some(1252), false)
    );
    world.run(SECOND);
    assert!(world.settled[0]);
    assert_eq!(world.route[0].map(|r| r.1), Some(1372));
}

#[test]
fn a_path_below_1280_is_none() {
    let mut world = World::new(4);
    world.mtu(1279);
    world.begin();
    world.run(120 * SECOND);
    assert_eq!(world.route, [None, None]);
    world.mtu(1280);
    assert!(world.until(40 * SECOND, World::both_up).is_some());
    world.busy = [true; 2];
    world.run(5 * SECOND);
    world.mtu(900);
    assert!(
        world
            .until(5 * SECOND, |w| w.route == [None, None])
            .is_some()
    );
    world.run(60 * SECOND);
    assert_eq!(world.route, [None, None]);
}
