//! Bad networks and changed messages: both ends come to share a session all the same.

use super::*;

/// Two ends in bad weather, of whom one or the other loses its path, its keys or its mind; then the sun comes out.
fn weather(seed: u64, loss: u64, double: u64, delay: u64, moves: Vec<(u8, usize, u64)>) {
    let mut world = World::new(seed);
    (
        world.net.loss,
        world.stream_loss,
        world.net.double,
        world.net.delay,
    ) = (loss, loss / 2, double, delay);
    world.connect();
    world.traffic();
    for (what, end, wait) in moves {
        match what {
            0 => world.call(end, |s, now, entropy| s.path_lost(now, entropy)),
            1 => world.call(end, |s, now, entropy| s.connected(now, entropy)),
            2 => {
                world.restart(end);
                world.call(end, |s, now, entropy| s.connected(now, entropy));
            }
            3 if world.ends[end]
                .sealer
                .as_ref()
                .is_some_and(|s| s.used() < REKEY_FRAMES) =>
            {
                world.exhaust(end)
            }
            4 => world.stream = end == 0,
            _ => {}
        }
        world.seconds(wait);
    }
    (
        world.net.loss,
        world.stream_loss,
        world.net.double,
        world.stream,
        world.net.delay,
    ) = (0, 0, 0, true, 50);
    // The peer of one that restarted notices by its lost path at the latest.
    for end in 0..2 {
        world.call(end, |s, now, entropy| s.path_lost(now, entropy));
    }
    world.seconds(200);
    world.assert_joined();
    let unopened = world.unopened;
    world.seconds(400);
    world.assert_joined();
    assert_eq!(world.unopened, unopened);
}

/// A case that chance once found.
#[test]
fn a_full_set_of_keys_takes_a_new_one_before_the_oldest_goes() {
    let moves = [
        (0, 0, 32),
        (2, 0, 17),
        (3, 0, 31),
        (3, 1, 3),
        (1, 0, 27),
        (1, 0, 17),
        (1, 1, 29),
        (0, 0, 0),
        (3, 0, 5),
        (0, 0, 8),
    ];
    weather(
        16_787_584_289_917_836_140,
        65,
        44,
        1336,
        moves.into_iter().chain([(0, 0, 0); 5]).collect(),
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_malformed_message_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..5, end in 0usize..2) {
        let mut world = World::live(1);
        let message = [&[kind], bytes.as_slice()].concat();
        let id = world.id(0);
        // Well-formed by chance, in the peer's own words: not what this is about.
        let confirms = matches!(decode(&message), Some(Control::Confirm { .. } | Control::Confirmed { .. }));
        let before = state(&world.ends[end].session);
        let mut entropy = |out: &mut [u8]| out.fill(1);
        let session = &mut world.ends[end].session;
        if message != encode(&Request::Want) {
            prop_assert!(session.on_request(world.net.now, &message, &mut entropy).is_err());
        }
        if !confirms {
            session.on_control(world.net.now, &message, &mut entropy);
        }
        session.on_answer(world.net.now, Some(&message), &mut entropy);
        session.on_first(world.net.now, 0x70);
        prop_assert_eq!(before, state(session));
        world.seconds(130);
        world.assert_joined();
        prop_assert_ne!(world.id(0), id, "and the next rekey works");
    }

    #[test]
    fn a_changed_rekey_message_changes_nothing(flip in 0usize..8 * 110, answer: bool) {
        let mut world = World::live(1);
        world.seconds(5);
        let now = world.net.now;
        let mut entropy = |out: &mut [u8]| out.fill(1);
        let [one, two] = &mut world.ends;
        one.session.begin_rekey(now, &mut entropy);
        let Some(Action::Send(message)) = one.session.poll_action() else { panic!() };
        let changed = |message: &[u8]| {
            let mut bad = message.to_vec();
            let bit = flip % (message.len() * 8);
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        };
        if !answer {
            let before = state(&two.session);
            two.session.on_control(now, &changed(&message), &mut entropy);
            prop_assert_eq!(&before, &state(&two.session));
        }
        two.session.on_control(now, &message, &mut entropy);
        let reply = std::iter::from_fn(|| two.session.poll_action()).find_map(|a| match a {
            Action::Send(reply) => Some(reply),
            _ => None,
        });
        let reply = reply.expect("an answer to the true message");
        let before = state(&one.session);
        one.session.on_control(now, &changed(&reply), &mut entropy);
        prop_assert_eq!(before, state(&one.session));
        one.session.on_control(now, &reply, &mut entropy);
        prop_assert_eq!(one.session.current.as_ref().unwrap().id, two.session.next.as_ref().unwrap().epoch.id);
    }

    #[test]
    fn any_weather_ends_in_a_shared_session(seed: u64, loss in 0u64..70, double in 0u64..50, delay in 1u64..3000,
                                            moves in prop::collection::vec((0u8..6, 0usize..2, 0u64..50), 0..30)) {
        weather(seed, loss, double, delay, moves);
    }
}
