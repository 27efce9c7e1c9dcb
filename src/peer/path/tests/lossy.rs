//! A path that loses or delays is left for another that does not.

use super::*;

const SIX: [&str; 2] = ["[2001:db8::1]:4100", "[2001:db8::2]:4100"];

/// Two sides that reach each other by both families, each with a path and a spare.
fn two_ways(seed: u64) -> World {
    let mut world = World::new(seed);
    let six = SIX.map(address);
    world.source6 = Some(six);
    let ends = [(six[0], (0, 1500)), (six[1], (1, 1500))];
    world.reach.extend(ends);
    for side in 0..2 {
        let both = [world.source[1 - side], six[1 - side]];
        world.sides[side].offer(world.net.now, &both, Origin::Host, &[]);
        world.sides[side].start(world.net.now);
    }
    world.busy = [true, true];
    // Until the MTU is settled and the path is the faster one.
    world.run(70 * SECOND);
    assert!(world.both_up());
    world
}

fn family(world: &World, side: usize) -> bool {
    world.route[side].is_some_and(|(to, _)| to.is_ipv4())
}

/// What both sides send to by one family.
fn addresses(world: &World, is_v4: bool) -> [SocketAddr; 2] {
    if is_v4 {
        world.source
    } else {
        SIX.map(address)
    }
}

#[test]
fn a_path_that_begins_to_lose_or_delay_is_left_within_five_seconds() {
    let cases = [(50, 0), (40, 1_000), (0, 1_200)];
    for (chance, more) in cases {
        let mut took = Vec::new();
        for seed in 1..13 {
            let mut world = two_ways(seed);
            world.run(Duration::from_millis(137 * seed));
            let was = family(&world, 0);
            world.bad = Some((addresses(&world, was), chance, more as u32 * MS));
            let left = world.until(20 * SECOND, |w| family(w, 0) != was);
            took.push(left.unwrap_or_else(|| panic!("{chance} {more}: never")));
            world.run(60 * SECOND);
            assert_ne!(family(&world, 0), was, "and it stays there");
        }
        took.sort_unstable();
        assert!(took[took.len() * 3 / 4] <= 5 * SECOND, "{took:?}");
        assert!(took.iter().all(|took| *took <= 8 * SECOND), "{took:?}");
    }
}

#[test]
fn where_every_way_loses_the_path_does_not_change_over_and_over() {
    for seed in 1..10 {
        let mut world = two_ways(seed);
        let before = world.sides[0].changes();
        world.net.loss = 20;
        world.run(300 * SECOND);
        let changes = world.sides[0].changes() - before;
        assert!(changes <= 12, "{changes} changes in five minutes");
    }
}

#[test]
fn a_path_that_loses_little_is_kept() {
    let mut changes = 0;
    for seed in 1..20 {
        let mut world = two_ways(seed);
        let before = world.sides[0].changes();
        world.net.loss = 1;
        world.run(300 * SECOND);
        changes += world.sides[0].changes() - before;
    }
    assert!(
        changes <= 10,
        "{changes} changes in nineteen times five minutes"
    );
}

/// A stream names a link-local address with its interface, and who told of it did not.
#[test]
fn a_link_local_address_that_carries_no_packets_is_left_alone_under_both_its_names() {
    let (now, mut list) = (some_moment(), Candidates::default());
    let [bare, scoped] = ["[fe80::2]:4100", "[fe80::2%3]:4100"].map(address);
    let other = address("[fe80::2]:4101");
    list.offer(now, &[bare, scoped, other], Origin::Host, &[], None);
    for known in [bare, scoped, other] {
        assert!(list.answered(now, known.into()));
    }
    list.thin(now, scoped.into());
    let later = now + SECOND;
    let is_well = |list: &mut Candidates, at: SocketAddr| list.answered(later, at.into());
    assert!(!is_well(&mut list, bare) && !is_well(&mut list, scoped));
    assert!(is_well(&mut list, other));
}

/// Somebody drops packets and no probes, whichever way they go: each way is left once, and the stream carries for a while.
#[test]
fn of_two_ways_that_carry_no_packets_neither_is_taken_again_at_once() {
    for seed in 1..6 {
        let mut world = two_ways(seed);
        let lost = |world: &mut World| {
            let (now, dice) = (world.net.now, &mut world.net.dice);
            world.sides[0].data_lost(now, &mut |bytes: &mut [u8]| dice.fill(bytes));
            world.run(Duration::from_secs(2));
        };
        let first = family(&world, 0);
        lost(&mut world);
        assert_ne!(family(&world, 0), first, "the spare is tried");
        lost(&mut world);
        for _ in 0..12 {
            assert_eq!(world.route[0], None, "the stream carries");
            // The other end looks for paths all the while.
            world.sides[0].burst(world.net.now);
            world.run(2 * SECOND);
        }
        world.run(20 * SECOND);
        assert!(world.both_up(), "later each is as good as any");
    }
}
