//! Which addresses are probed, kept and used, and that frames alone move no path.

use super::*;
use crate::wire::paths::Kind;

#[test]
fn a_peer_that_moved_is_followed_after_a_second() {
    for seed in 1..30 {
        let mut world = World::new(seed);
        world.busy = [true; 2];
        world.begin();
        world.run(Duration::from_millis(5000 + 31 * seed));
        let (old, new) = (world.source[1], address("198.51.100.7:9999"));
        world.reach.remove(&old);
        world.reach.insert(new, (1, 1500));
        world.source[1] = new;
        // The first frame from there is the peer's next probe.
        let took = world
            .until(5 * SECOND, |w| w.route[0].is_some_and(|r| r.0 == new))
            .unwrap();
        assert!(took < 2600 * MS, "{took:?}");
        world.run(SECOND);
        assert_eq!(world.route[0], Some((new, 1472)));
        assert!(world.route[1].is_some());
        assert_eq!(world.sides[1].changes(), 1, "the one that moved goes on");
    }
}

#[test]
fn another_address_that_has_answered_takes_a_silent_path_over_without_the_stream() {
    for (seed, busy) in (1..30).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::new(seed);
        world.busy = [busy; 2];
        let both = [world.source[1], address("198.51.100.7:4100")];
        world.reach.insert(both[1], (1, 1500));
        world.sides[0].offer(world.net.now, &both, Origin::Host, &[]);
        world.begin();
        world.run(Duration::from_millis(4000 + 97 * seed));
        let first = world.route[0].unwrap().0;
        let other = both.into_iter().find(|address| *address != first).unwrap();
        world.reach.remove(&first);
        world.log.clear();
        let took = world
            .until(10 * SECOND, |world| {
                world.route[0].is_some_and(|route| route.0 == other)
            })
            .unwrap();
        assert!(took < if busy { 2900 * MS } else { 3700 * MS }, "{took:?}");
        assert!(
            world
                .log
                .iter()
                .all(|(_, side, output)| *side == 1 || *output != Output::Lost)
        );
        world.run(SECOND);
        assert_eq!(world.route[0], Some((other, 1472)));
    }
}

#[test]
fn an_address_that_only_frames_came_from_is_no_spare() {
    let (now, path, copied) = (
        some_moment(),
        address("192.0.2.2:4100"),
        address("198.51.100.66:666"),
    );
    let mut list = Candidates::default();
    list.offer(now, &[path], Origin::Host, &[], Some(path.into()));
    list.offer(now, &[copied], Origin::Frame, &[], Some(path.into()));
    list.is_there(now, copied.into(), 5 * MS, None);
    assert_eq!(list.spare(path.into()), None);
    let told = address("198.51.100.7:4100");
    list.offer(now, &[told], Origin::Told, &[], Some(path.into()));
    assert_eq!(list.spare(path.into()), None, "nor one that never answered");
    list.is_there(now, told.into(), 5 * MS, None);
    list.offer(now, &[told], Origin::Frame, &[], Some(path.into()));
    assert_eq!(list.spare(path.into()), Some(told.into()));
}

#[test]
fn frames_sent_on_from_elsewhere_do_not_take_the_path() {
    let mut world = World::new(6);
    world.begin();
    world.run(5 * SECOND);
    let (home, thief) = (world.source[1], address("198.51.100.66:666"));
    // Whoever is there hands everything on in both directions.
    world.reach.insert(thief, (1, 1500));
    world.source[1] = thief;
    world.run(5 * SECOND);
    world.source[1] = home;
    world.run(30 * SECOND);
    assert!(world.log.iter().all(
        |(_, _, output)| !matches!(output, Output::Up { pair, .. } if pair.remote == thief.into())
    ));
    assert_eq!(world.route[0].map(|r| r.0), Some(home));
}

#[test]
fn two_families_that_both_answer_are_not_fought_over() {
    for seed in 1..10 {
        let mut world = World::new(seed);
        let six = [address("[2001:db8::1]:4100"), address("[2001:db8::2]:4100")];
        world.source6 = Some(six);
        world
            .reach
            .extend([(six[0], (0, 1500)), (six[1], (1, 1500))]);
        world.busy = [true, seed % 2 == 0];
        // One end finds the other by IPv4 first, the other by IPv6: each one's frames come from elsewhere than it sends to.
        world.sides[0].offer(world.net.now, &[six[1]], Origin::Told, &[]);
        world.sides[1].offer(world.net.now, &[world.source[0]], Origin::Told, &[]);
        world
            .sides
            .iter_mut()
            .for_each(|side| side.start(world.net.now));
        world.run(SECOND);
        world.log.clear();
        world.run(60 * SECOND);
        assert_eq!(
            [0, 1].map(|side| world.sides[side].changes()),
            [1, 1],
            "the paths stay where they are"
        );
        let probes = world
            .log
            .iter()
            .filter(|(_, _, output)| matches!(output, Output::Probe { .. }))
            .count();
        assert!(probes < 2 * 86 + 20, "{probes} probes in a minute");
    }
}

#[test]
fn an_address_that_does_not_answer_gets_no_more_than_three_times_what_came_from_it() {
    let mut world = World::new(6);
    world.begin();
    world.run(5 * SECOND);
    let (now, victim) = (world.net.now, address("203.0.113.5:53"));
    let random = &mut world.net.dice;
    let mut came = 0;
    for token in 0..20 {
        world.sides[0].on_moved(now, from(victim), &[], &mut |b| random.fill(b));
        world.sides[0].on_probe(now, from(victim), token, &[]);
        came += size_of(victim, PROBE, 0);
    }
    world.run(60 * SECOND);
    let went = world.sent.get(&(0, victim)).copied().unwrap_or_default();
    assert!(went <= 3 * came, "{went} bytes for {came}");
    assert_eq!(world.route[0].map(|r| r.0), Some(world.source[1]));
}

#[test]
fn a_guessed_token_is_no_answer() {
    let mut world = World::new(6);
    world.blocked = true;
    world.begin();
    world.run(SECOND);
    let (now, random) = (world.net.now, &mut world.net.dice);
    for token in 0..1000 {
        assert_eq!(
            world.sides[0].on_answer(now, from(address("192.0.2.9:1")), token, &mut |b| random
                .fill(b)),
            None
        );
    }
    assert_eq!(world.sides[0].path(), None);
}

#[test]
fn of_many_addresses_the_one_that_answers_first_wins() {
    let mut world = World::new(6);
    let mut addresses: Vec<SocketAddr> = (1..=7)
        .map(|n| address(&format!("198.51.100.{n}:4100")))
        .collect();
    addresses.push(world.source[1]);
    world.sides[0].offer(world.net.now, &addresses, Origin::Told, &[]);
    world
        .sides
        .iter_mut()
        .for_each(|side| side.start(world.net.now));
    // The other side is told nothing: it learns from the probe.
    assert!(world.until(SECOND, World::both_up).is_some());
    assert_eq!(world.route[0].map(|r| r.0), Some(world.source[1]));
}

#[test]
fn addresses_nobody_may_send_to_are_left_out() {
    let overlay = [
        "10.7.0.0/16".parse().unwrap(),
        "fd00:7::/48".parse().unwrap(),
    ];
    for bad in [
        "10.7.1.1:4100",
        "[fd00:7::1]:4100",
        "[::ffff:10.7.1.1]:4100",
        "[64:ff9b::10.7.1.1]:4100",
        "[2002:a07:101::1]:4100",
        "0.0.0.0:4100",
        "0.1.2.3:4100",
        "[::]:4100",
        "224.0.0.251:4100",
        "255.255.255.255:4100",
        "[ff02::1]:4100",
        "[fe80::1]:4100",
        "192.0.2.1:0",
    ] {
        assert_eq!(usable(address(bad), Origin::Told, &overlay), None, "{bad}");
    }
    for good in ["10.8.1.1:4100", "[fd00:8::1]:4100", "127.0.0.1:4100"] {
        assert_eq!(
            usable(address(good), Origin::Told, &overlay),
            Some(address(good))
        );
    }
    assert_eq!(
        usable(address("[::ffff:10.8.1.1]:1"), Origin::Told, &overlay),
        Some(address("10.8.1.1:1"))
    );
    let on_link = address("[fe80::1%3]:4100");
    for origin in [Origin::Frame, Origin::Told] {
        assert_eq!(usable(on_link, origin, &overlay), Some(on_link));
    }
}

#[test]
fn a_new_overlay_prefix_ends_a_path_inside_it() {
    let mut world = World::new(6);
    world.begin();
    world.run(SECOND);
    world.sides[0].avoid(world.net.now, &["192.0.2.0/24".parse().unwrap()]);
    world.drain(0);
    assert_eq!(world.route[0], None);
    assert_eq!(
        world.sides[0].poll_timeout(),
        None,
        "and no address is left"
    );
}

#[test]
fn loopback_is_tried_only_where_there_is_nothing_else() {
    let (own, far) = (address("127.0.0.1:4100"), address("192.0.2.9:4100"));
    let now = some_moment();
    let probed = |addresses: &[SocketAddr], origin| {
        let mut paths = Paths::new();
        paths.offer(now, addresses, origin, &[]);
        paths.start(now);
        paths.handle_timeout(now, &mut |bytes: &mut [u8]| bytes.fill(1));
        let to = |output| {
            if let Output::Probe { pair, .. } = output {
                Some(pair.remote.address)
            } else {
                None
            }
        };
        std::iter::from_fn(|| paths.poll())
            .filter_map(to)
            .collect::<Vec<_>>()
    };
    assert_eq!(probed(&[own, far], Origin::Told), [far]);
    assert_eq!(probed(&[own], Origin::Told), [own]);
    assert_eq!(probed(&[own, far], Origin::Connection), [own, far]);
}

#[test]
fn hearsay_that_nobody_answers_is_probed_once_a_minute_and_a_host_that_was_reached_every_five_seconds()
 {
    let (start, to) = (some_moment(), address("198.51.100.7:4100"));
    let leg = Remote {
        leg: Some(7),
        ..Remote::from(address("203.0.113.1:4100"))
    };
    let probes = |origin, answered: bool, path| {
        let mut list = Candidates::default();
        list.offer(start, &[to], origin, &[], None);
        let mut sent = 0;
        for step in 0..6000 {
            let now = start + step * 100 * MS;
            while list
                .take_due(now, path, &mut |bytes: &mut [u8]| bytes.fill(1))
                .is_some()
            {
                sent += 1;
            }
            if answered && step == 0 {
                list.answered(now, to.into());
            }
        }
        sent
    };
    // Ten minutes: seven at first, twelve in the first minute, then nine or so.
    let hearsay = probes(Origin::Told, false, None);
    assert!((22..=32).contains(&hearsay), "{hearsay}");
    assert!(probes(Origin::Host, false, None) > 100 && probes(Origin::Told, true, None) > 100);
    let relayed = probes(Origin::Host, false, Some(leg.into()));
    assert!((22..=32).contains(&relayed), "{relayed}");
}

#[test]
fn a_search_begins_with_a_burst_that_becomes_rarer() {
    let (start, to) = (some_moment(), address("198.51.100.7:4100"));
    let mut list = Candidates::default();
    list.offer(start, &[to], Origin::Told, &[], None);
    // Both ends have agreed on that moment.
    list.restart(start + 20 * MS);
    let mut sent = Vec::new();
    while let Some(due) = list.due(None).filter(|due| *due < start + 4 * SECOND) {
        let taken = list.take_due(due, None, &mut |bytes: &mut [u8]| bytes.fill(1));
        assert_eq!(taken, Some(to.into()));
        sent.push((due - start).as_millis());
    }
    assert_eq!(sent, [20, 70, 170, 370, 770, 1570, 3170]);
}

#[test]
fn a_probe_heard_from_an_address_begins_its_burst_again_once_in_two_seconds() {
    let (start, to) = (some_moment(), address("198.51.100.7:4100"));
    let mut list = Candidates::default();
    list.offer(start, &[to], Origin::Told, &[], None);
    let mut run = |from: u64, heard: bool| {
        let mut sent = 0;
        for ms in from..from + 1000 {
            let now = start + u32::try_from(ms).unwrap() * MS;
            if heard && ms % 100 == 0 {
                list.hurry(now, to.into());
            }
            while list
                .take_due(now, None, &mut |bytes: &mut [u8]| bytes.fill(1))
                .is_some()
            {
                sent += 1;
            }
        }
        sent
    };
    assert_eq!(run(0, false), 5);
    assert_eq!(
        run(10_000, true),
        5 + 1,
        "the burst, and one where 200 ms are free"
    );
    assert!(run(11_000, true) <= 5);
}

#[test]
fn what_a_peer_tells_takes_the_place_of_what_it_told_before() {
    let (now, numbered) = (some_moment(), |n: u8| {
        SocketAddr::from(([198, 51, 100, n], 4100))
    });
    let told = |numbers: &[u8], kind| -> Vec<Candidate> {
        let of = |n: &u8| Candidate {
            address: numbered(*n),
            kind,
        };
        numbers.iter().map(of).collect()
    };
    let mut list = Candidates::default();
    let live = numbered(3);
    list.offer(now, &[numbered(9)], Origin::Host, &[], None);
    list.offer_told(
        now,
        &told(&[1, 2, 3, 4, 5, 6], Kind::Host),
        &[],
        Some(live.into()),
    );
    assert_eq!(
        list.addresses(),
        [1, 2, 3, 4, 9].map(numbered),
        "four of a kind"
    );
    list.answered(now, numbered(4).into());
    list.offer_told(now, &told(&[7, 9], Kind::Observed), &[], Some(live.into()));
    assert_eq!(
        list.addresses(),
        [7, 9, 3, 4].map(numbered),
        "the path, and what has answered, stay"
    );
}

#[test]
fn the_newest_addresses_are_kept_and_the_path_always() {
    let now = some_moment();
    let numbered = |n: u8| SocketAddr::from(([198, 51, 100, n], 4100));
    let live = numbered(1);
    let mut list = Candidates::default();
    list.offer(now, &[live], Origin::Told, &[], Some(live.into()));
    for n in 2..=50 {
        list.offer(now, &[numbered(n)], Origin::Told, &[], Some(live.into()));
    }
    let mut expected: Vec<SocketAddr> = (28..=50).rev().map(numbered).collect();
    expected.push(live);
    assert_eq!(list.addresses(), expected);
    // Frames made to come from everywhere take two places.
    for n in 100..=200 {
        list.offer(now, &[numbered(n)], Origin::Frame, &[], Some(live.into()));
    }
    expected = [200, 199].into_iter().map(numbered).collect();
    expected.extend((30..=50).rev().map(numbered));
    expected.push(live);
    assert_eq!(list.addresses(), expected);
}

/// A member that lies about where it is, all the time: what goes to those addresses is bounded, and so is what goes out at
/// once. (T13)
#[test]
fn no_probe_storm() {
    let mut world = World::new(11);
    world.blocked = true;
    world.begin();
    let mut sent = Vec::new();
    for round in 0..200u8 {
        // Twenty times a second other addresses, each of which asks for a burst.
        let told: Vec<Candidate> = (0..16u8)
            .map(|n| Candidate {
                address: SocketAddr::from(([198, 51, round, n], 4100)),
                kind: [Kind::Host, Kind::Observed, Kind::Mapped, Kind::Advertised]
                    [usize::from(n % 4)],
            })
            .collect();
        let now = world.net.now;
        world.sides[0].offer_told(now, &told, &[]);
        world.sides[0].burst(now);
        world.log.clear();
        world.run(50 * MS);
        let probes = world
            .log
            .iter()
            .filter(|(_, side, o)| *side == 0 && matches!(o, Output::Probe { .. }));
        sent.push(probes.count());
    }
    let worst = sent
        .windows(20)
        .map(|second| second.iter().sum::<usize>())
        .max();
    assert!(worst <= Some(96 + 24 + 8), "{worst:?} probes in a second");
    let all: usize = sent.iter().sum();
    assert!(all <= 96 + 10 * 24 + 8, "{all} probes in ten seconds");
    assert!(all > 100, "the bound is what held them back");
}

/// That both ends begin to probe at one moment does not make an address carry packets which has just carried none.
#[test]
fn a_burst_leaves_alone_what_carried_no_packets() {
    let mut world = World::new(12);
    world.begin();
    world.run(SECOND);
    let (thin, other) = (world.source[1], address("198.51.100.9:4100"));
    let now = world.net.now;
    let dice = &mut world.net.dice;
    world.sides[0].data_lost(now, &mut |bytes: &mut [u8]| dice.fill(bytes));
    let probes = |world: &World, to: SocketAddr| {
        let is_probe = |(_, side, output): &&(Duration, usize, Output)| matches!(output, Output::Probe { pair, .. } if *side == 0 && pair.remote.address == to);
        world.log.iter().filter(is_probe).count()
    };
    world.sides[0].offer(now, &[other], Origin::Told, &[]);
    world.blocked = true;
    world.log.clear();
    for _ in 0..4 {
        world.sides[0].burst(world.net.now);
        world.run(5 * SECOND);
    }
    assert_eq!(probes(&world, thin), 0);
    assert!(probes(&world, other) >= 24, "the others are probed");
    // After a while it is as good as any.
    world.run(11 * SECOND);
    world.log.clear();
    world.sides[0].burst(world.net.now);
    world.run(SECOND);
    assert!(probes(&world, thin) >= 4);
}
