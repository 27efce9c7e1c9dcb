//! A machine with two uplinks: a path is a pair of addresses, and the pair that works is used.

use super::*;

/// The first side has two uplinks, which the other side sees at two addresses; the kernel prefers the first.
fn two_uplinks(seed: u64) -> World {
    let mut world = World::new(seed);
    let uplink = |n: u8| Uplink {
        local: IpAddr::from([192, 168, n, 7]),
        public: SocketAddr::from(([198, 51, 100, n], 4100)),
        loss: 0,
    };
    world.uplinks = vec![uplink(1), uplink(2)];
    world.source[0] = world.uplinks[0].public;
    world.reach = BTreeMap::from([(world.source[1], (1, 1500))]);
    for uplink in &world.uplinks {
        world.reach.insert(uplink.public, (0, 1500));
    }
    let now = world.net.now;
    let locals: Vec<IpAddr> = world.uplinks.iter().map(|uplink| uplink.local).collect();
    world.sides[0].roamed(now, &locals);
    let told: Vec<Candidate> = world
        .uplinks
        .iter()
        .map(|uplink| observed(uplink.public))
        .collect();
    world.sides[1].offer_told(now, &told, &[]);
    world.begin();
    world
}

fn observed(address: SocketAddr) -> Candidate {
    Candidate {
        address,
        kind: crate::wire::paths::Kind::Observed,
    }
}

/// Whether both sides send by that uplink.
fn both_use(world: &World, n: usize) -> bool {
    let uplink = &world.uplinks[n];
    let path = |side: usize| world.sides[side].path().map(|path| path.pair);
    path(0).is_some_and(|pair| pair.local == Some(uplink.local))
        && path(1).is_some_and(|pair| pair.remote == uplink.public.into())
}

fn used(world: &World) -> usize {
    usize::from(
        world.sides[0].path().and_then(|path| path.pair.local) == Some(world.uplinks[1].local),
    )
}

#[test]
fn an_uplink_that_is_cut_is_left_for_the_other_one_without_the_stream() {
    for seed in 1..30 {
        let mut world = two_uplinks(seed);
        world.busy = [true; 2];
        assert!(world.until(SECOND, World::both_up).is_some());
        world.run(Duration::from_millis(4000 + 97 * seed));
        let (from, to) = (used(&world), 1 - used(&world));
        world.uplinks[from].loss = 100;
        world.log.clear();
        let took = world
            .until(10 * SECOND, |world| both_use(world, to))
            .unwrap();
        assert!(took < 2 * SECOND, "{took:?}");
        assert!(
            world
                .log
                .iter()
                .all(|(_, _, output)| *output != Output::Lost)
        );
        // It is whole again, and the other one is cut.
        world.run(20 * SECOND);
        world.uplinks[from].loss = 0;
        world.run(40 * SECOND);
        world.uplinks[to].loss = 100;
        let took = world
            .until(10 * SECOND, |world| both_use(world, from))
            .unwrap();
        assert!(took < 4500 * MS, "back after {took:?}");
    }
}

#[test]
fn an_uplink_that_loses_half_is_left_for_the_one_that_loses_nothing() {
    let mut all = Vec::new();
    for seed in 1..40 {
        let mut world = two_uplinks(seed);
        world.busy = [true; 2];
        assert!(world.until(SECOND, World::both_up).is_some());
        world.run(Duration::from_millis(12_000 + 97 * seed));
        let (from, to) = (used(&world), 1 - used(&world));
        world.uplinks[from].loss = 50;
        let took = world
            .until(30 * SECOND, |world| both_use(world, to))
            .unwrap();
        all.push(took);
        world.run(30 * SECOND);
        assert!(both_use(&world, to), "and it stays there");
    }
    all.sort();
    assert!(all[all.len() / 2] < 8 * SECOND, "{all:?}");
    assert!(all[all.len() - 1] < 15 * SECOND, "{all:?}");
}

#[test]
fn the_pair_that_the_kernel_chooses_is_probed_once_not_twice() {
    let mut world = two_uplinks(3);
    world.run(10 * SECOND);
    world.log.clear();
    world.run(60 * SECOND);
    let probes = |side: usize| {
        let probes = world
            .log
            .iter()
            .filter(|(_, s, output)| *s == side && matches!(output, Output::Probe { .. }));
        probes.count()
    };
    // The keep-alives, and a spare each fifteen seconds.
    assert!(
        probes(0) <= 36 && probes(1) <= 36,
        "{} {}",
        probes(0),
        probes(1)
    );
}

#[test]
fn an_address_of_ours_that_is_gone_takes_its_pairs_with_it() {
    let mut world = two_uplinks(4);
    world.run(5 * SECOND);
    let stays = world.uplinks[1].local;
    world.uplinks.remove(0);
    world.source[0] = world.uplinks[0].public;
    world.sides[0].roamed(world.net.now, &[stays]);
    let took = world.until(5 * SECOND, |world| {
        let path = world.sides[0].path().map(|path| path.pair.local);
        path == Some(Some(stays))
    });
    assert!(took.is_some_and(|took| took < SECOND), "{took:?}");
    world.log.clear();
    world.run(20 * SECOND);
    let gone = |output: &Output| matches!(output, Output::Probe { pair, .. } if pair.local.is_some_and(|ip| ip != stays));
    assert!(
        world
            .log
            .iter()
            .all(|(_, side, output)| *side == 1 || !gone(output))
    );
}

#[test]
fn own_addresses_of_one_network_or_another_scope_make_no_pairs() {
    let pairs = |locals: &[&str], to: &str| {
        let locals: Vec<IpAddr> = locals.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut list = Candidates::default();
        list.set_locals(some_moment(), &locals, None);
        list.offer(some_moment(), &[address(to)], Origin::Told, &[], None);
        list.addresses().len() - 1
    };
    assert_eq!(pairs(&["192.168.1.7"], "203.0.113.1:1"), 0);
    assert_eq!(pairs(&["192.168.1.7", "10.0.0.7"], "203.0.113.1:1"), 2);
    assert_eq!(pairs(&["192.168.1.7", "2001:db8::7"], "203.0.113.1:1"), 0);
    assert_eq!(pairs(&["192.168.1.7", "127.0.0.1"], "203.0.113.1:1"), 0);
    let same = ["2001:db8:1::7", "2001:db8:1::8", "2001:db8:1::9"];
    assert_eq!(pairs(&same, "[2001:db8:9::1]:1"), 0, "one uplink");
    let many: Vec<String> = (1..9).map(|n| format!("10.0.{n}.7")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(pairs(&many, "203.0.113.1:1"), 3);
}

#[test]
fn the_spare_fails_for_another_reason_than_the_path_where_there_is_one() {
    let now = some_moment();
    let (path, near) = (address("192.0.2.2:4100"), address("192.0.2.3:4100"));
    let six = address("[2001:db8::2]:4100");
    let leg = |n: u8| Remote {
        address: SocketAddr::from(([203, 0, 113, n], 3478)),
        leg: Some(n.into()),
        helper: None,
    };
    let mut list = Candidates::default();
    list.offer(now, &[path, near, six], Origin::Host, &[], None);
    list.take(now, &[leg(1), leg(2)], Origin::Leg, &[], None);
    list.is_there(some_moment(), leg(1).into(), MS, None);
    assert_eq!(list.spare(path.into()), Some(leg(1).into()));
    list.is_there(some_moment(), near.into(), 5 * MS, None);
    assert_eq!(list.spare(path.into()), Some(near.into()), "no relay");
    list.is_there(some_moment(), six.into(), 20 * MS, None);
    assert_eq!(list.spare(path.into()), Some(six.into()), "another family");
    // Both classes are kept warm.
    assert_eq!(list.take_spares(path.into()), [six.into(), leg(1).into()]);
    list.failed(six.into());
    assert_eq!(list.spare(path.into()), Some(near.into()));
    // Of an uplink's own, the same address of the peer by the other uplink.
    let (one, two) = (IpAddr::from([10, 0, 1, 7]), IpAddr::from([10, 0, 2, 7]));
    list.set_locals(now, &[one, two], None);
    let by = |local, address: SocketAddr| Pair {
        local: Some(local),
        remote: address.into(),
    };
    list.is_there(some_moment(), by(one, near), MS, None);
    list.is_there(some_moment(), by(two, near), 30 * MS, None);
    assert_eq!(list.spare(by(one, path)), Some(by(two, near)));
}

/// What is sent for a path by the address that we name counts for the same path by what the kernel chooses.
#[test]
fn a_keep_alive_counts_when_the_kernel_comes_to_choose_the_same_pair() {
    let (mut paths, start, mut dice) = (Paths::new(), some_moment(), Dice::new(5));
    let peer = address("198.51.100.9:4100");
    let locals = [1, 2].map(|n| IpAddr::from([192, 168, n, 7]));
    let second = Pair {
        local: Some(locals[1]),
        remote: peer.into(),
    };
    paths.roamed(start, &locals);
    paths.offer(start, &[peer], Origin::Host, &[]);
    paths.start(start);
    // The kernel's own choice is answered late, all by the second address at once but one keep-alive.
    let (mut free, mut unanswered) = (None, None);
    for step in 0..1200 {
        let now = start + step * 10 * MS;
        paths.handle_timeout(now, &mut |bytes: &mut [u8]| dice.fill(bytes));
        let mut tokens = Vec::new();
        while let Some(output) = paths.poll() {
            let Output::Probe { pair, token, .. } = output else {
                continue;
            };
            match pair.local {
                None => free = free.or(Some(token)),
                Some(local) if local != locals[1] => {}
                Some(_) if step > 150 && unanswered.is_none() => unanswered = Some(step),
                Some(_) => tokens.push(token),
            }
        }
        if unanswered == Some(step) {
            tokens.extend(free);
        }
        for token in tokens {
            paths.on_answer(now, second, token, &mut |bytes: &mut [u8]| dice.fill(bytes));
        }
    }
    assert!(unanswered.is_some() && free.is_some());
    let path = paths.path().unwrap();
    assert_eq!((path.pair, paths.changes()), (second, 1));
    assert!(path.loss.is_some_and(|loss| loss > 0.0), "{:?}", path.loss);
}

/// What was left because it lost half is whole again, and the other one is cut at the same moment.
#[test]
fn an_uplink_that_was_left_for_its_losses_takes_over_from_one_that_is_cut() {
    let mut all = Vec::new();
    for seed in 1..60 {
        let mut world = two_uplinks(seed);
        world.busy = [true; 2];
        assert!(world.until(SECOND, World::both_up).is_some());
        world.run(Duration::from_millis(12_000 + 97 * seed));
        let (from, to) = (used(&world), 1 - used(&world));
        world.uplinks[from].loss = 50;
        let left = world.until(30 * SECOND, |world| both_use(world, to));
        assert!(left.is_some());
        (world.uplinks[from].loss, world.uplinks[to].loss) = (0, 100);
        let took = world.until(20 * SECOND, |world| both_use(world, from));
        all.push(took.unwrap_or(20 * SECOND));
    }
    all.sort();
    assert!(all[all.len() - 1] < 2 * SECOND, "{all:?}");
}
