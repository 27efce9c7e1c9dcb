//! Keys in use: when they are renewed and when they end, and that none is used twice.

use super::*;

#[test]
fn a_session_is_rekeyed_at_its_age_without_losing_a_frame() {
    let mut world = World::live(1);
    world.traffic();
    let first = world.id(0);
    world.seconds(118);
    assert_eq!(world.id(0), first);
    world.seconds(3);
    world.assert_joined();
    assert_ne!(world.id(0), first);
    assert!(
        world.ends.iter().all(|e| e.installed.len() == 2),
        "the former key is still opened"
    );
    world.seconds(15);
    assert!(
        world.ends.iter().all(|e| e.installed.len() == 1),
        "and is gone"
    );
    world.seconds(3600);
    world.assert_joined();
    assert_eq!(world.unopened, 0);
    assert_eq!(world.ends.iter().map(|e| e.stops).sum::<usize>(), 0);
    assert!(world.ends.iter().all(|e| e.data > 500));
    assert!(world.rekeys >= 60);
}

#[test]
fn a_session_is_rekeyed_after_so_many_frames() {
    for end in 0..2 {
        let mut world = World::live(1);
        let first = world.id(0);
        world.exhaust(end);
        // An idle session looks at its counter when it could be full, which is within 32 s.
        world.seconds(33);
        world.assert_joined();
        assert_ne!(world.id(0), first);
    }
}

#[test]
fn both_rekey_at_once_and_the_smaller_peer_goes_on() {
    for seed in 1..50 {
        let mut world = World::live(seed);
        world.net.delay = 400;
        world.seconds(2);
        for end in 0..2 {
            world.exhaust(end);
            world.ends[end].session.look = Some(world.net.now);
        }
        for end in 0..2 {
            world.call(end, |s, now, entropy| s.handle_timeout(now, entropy));
            assert!(world.ends[end].session.rekeying.is_some());
        }
        world.seconds(5);
        world.assert_joined();
        assert_eq!(world.rekeys, 2, "one new session");
        assert!(world.ends[0].session.current.as_ref().unwrap().initiator);
    }
}

#[test]
fn ten_thousand_rekeys_with_half_of_all_messages_lost_never_stick() {
    let mut world = World::live(5);
    (world.net.loss, world.net.double, world.net.delay) = (50, 20, 1500);
    world.traffic();
    let mut rounds = 0;
    while world.rekeys < 20_000 {
        let end = world.net.dice.below(3) as usize;
        for end in (0..2).filter(|e| end == 2 || *e == end) {
            if world.ends[end]
                .sealer
                .as_ref()
                .is_some_and(|s| s.used() < REKEY_FRAMES)
            {
                world.exhaust(end);
                world.ends[end].session.look = Some(world.net.now);
            }
        }
        let before = world.id(0);
        world.seconds(40);
        rounds += usize::from(world.id(0) == before);
    }
    assert!(rounds < 2000, "{rounds} rounds of 40 s without a new key");
    assert_eq!(
        world.unopened, 0,
        "no frame came under a key that was not there"
    );
    assert_eq!(world.ends.iter().map(|e| e.stops).sum::<usize>(), 0);
    world.net.loss = 0;
    world.seconds(200);
    world.assert_joined();
}

#[test]
fn a_rekey_without_an_answer_goes_over_the_stream() {
    let mut world = World::live(1);
    // No answer ever comes; frames and the other messages do.
    (world.net.loss, world.lost_kinds) = (100, [false, true, false, false]);
    world.traffic();
    let first = world.id(0);
    world.seconds(138);
    assert_eq!(world.id(0), first);
    world.seconds(5);
    world.assert_joined();
    assert_ne!(world.id(0), first);
    assert_eq!(world.unopened, 0);
    assert_eq!(world.ends.iter().map(|e| e.stops).sum::<usize>(), 0);
}

#[test]
fn a_rekey_that_comes_behind_a_new_session_is_ignored() {
    let mut world = World::live(1);
    world.seconds(5);
    let now = world.net.now;
    let mut entropy = |out: &mut [u8]| out.fill(1);
    let [one, two] = &mut world.ends;
    one.session.begin_rekey(now, &mut entropy);
    let Some(Action::Send(rekey)) = one.session.poll_action() else {
        panic!()
    };
    one.session.ask(now);
    for _ in 0..2 {
        let Some(Action::Ask(message)) = one.session.poll_action() else {
            panic!()
        };
        let answer = two.session.on_request(now, &message, &mut entropy).unwrap();
        if one
            .session
            .asking
            .as_ref()
            .is_some_and(|(asking, _)| matches!(asking, Asking::Begin { .. }))
        {
            // Its answer is on the way when the rekey comes.
            two.session.on_control(now, &rekey, &mut entropy);
        }
        one.session.on_answer(now, Some(&answer), &mut entropy);
    }
    (0..2).for_each(|end| world.obey(end));
    world.seconds(3);
    world.assert_joined();
}

#[test]
fn a_key_is_refused_at_180_seconds() {
    let mut world = World::live(1);
    let sealers: Vec<_> = world
        .ends
        .iter()
        .map(|e| e.sealer.clone().unwrap())
        .collect();
    (world.net.loss, world.stream) = (100, false);
    world.seconds(178);
    assert!(world.ends.iter().all(|e| e.session.is_live()));
    world.seconds(2);
    for (end, sealer) in world.ends.iter().zip(&sealers) {
        assert!(!end.session.is_live());
        assert_eq!((end.stops, end.installed.len()), (1, 0));
        assert!(
            sealer.take(1).is_none(),
            "who still holds the key cannot seal with it"
        );
    }
    // And comes back when something can be heard again.
    (world.net.loss, world.stream) = (0, true);
    world.seconds(61);
    world.assert_joined();
}

#[test]
fn nonce_is_never_reused() {
    // `World::send` looks at every nonce of every sealer; here keys come and go in every way there is.
    let mut world = World::live(9);
    (
        world.net.loss,
        world.stream_loss,
        world.net.double,
        world.net.delay,
    ) = (30, 30, 30, 800);
    world.traffic();
    for round in 0..300 {
        let end = world.net.dice.below(2) as usize;
        match round % 5 {
            0 => world.call(end, |s, now, entropy| s.path_lost(now, entropy)),
            1 => {
                world.restart(end);
                world.call(end, |s, now, entropy| s.connected(now, entropy));
            }
            2 if world.ends[end]
                .sealer
                .as_ref()
                .is_some_and(|s| s.used() < REKEY_FRAMES) =>
            {
                world.exhaust(end)
            }
            _ => {}
        }
        for _ in 0..5 {
            world.send(end, b"data", 0);
        }
        let wait = world.net.dice.below(60);
        world.seconds(wait);
    }
    let frames = world.nonces.len();
    assert!(frames > 2000, "{frames}");
}

#[test]
fn keys_of_the_two_directions_differ() {
    let mut world = World::live(1);
    world.net.events.clear();
    world.send(0, b"mine", 0);
    let Some((_, Event::Frame { bytes, .. })) = world.net.events.pop_first() else {
        panic!("a frame")
    };
    let (header, sealed) = bytes.split_first_chunk::<HEADER>().unwrap();
    for (opener, _, _) in world.ends[0].installed.values() {
        assert_eq!(
            opener.open(header, sealed, &mut [0; 64]),
            None,
            "a frame sent back to its sender"
        );
    }
    for (opener, _, _) in world.ends[1].installed.values() {
        assert_eq!(opener.open(header, sealed, &mut [0; 64]), Some(5));
    }
}

#[test]
fn no_two_keys_of_a_machine_have_the_same_index() {
    let (one, other) = (
        indices(),
        Indices::new(&mut |out: &mut [u8]| out.fill(0xff)),
    );
    let again = one.clone();
    let taken: Vec<u32> = (0..20_000)
        .flat_map(|_| [one.take(), again.take()])
        .collect();
    let numbers: HashSet<u32> = taken.iter().copied().collect();
    assert_eq!(numbers.len(), 40_000);
    assert!(numbers.iter().all(|n| *n != 0 && n & 0xf == 0));
    let beside = taken
        .windows(2)
        .filter(|two| two[0].abs_diff(two[1]) < 1 << 20)
        .count();
    assert!(
        beside < 1000,
        "{beside} of 40000 lie near the one before: their order is to be seen"
    );
    assert_ne!(
        taken[..10],
        (0..10).map(|_| other.take()).collect::<Vec<_>>()[..],
        "each machine has an order of its own"
    );
}
