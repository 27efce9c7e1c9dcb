//! The first handshake: what both ends agree on, and what they refuse.

use super::*;

#[test]
fn both_sides_start_at_once_and_share_keys() {
    for seed in 1..20 {
        let world = World::live(seed);
        assert_eq!(world.ends[0].session.cipher(), Some(Cipher::Aes256Gcm));
        assert_eq!(world.rekeys, 0, "one handshake, not two");
        assert_eq!(world.refused, 0);
    }
}

#[test]
fn either_end_alone_gets_a_session() {
    for end in 0..2 {
        let mut world = World::new(3);
        world.call(end, |s, now, entropy| s.connected(now, entropy));
        world.seconds(1);
        world.assert_joined();
    }
}

#[test]
fn aes_is_used_only_where_both_have_it() {
    for (a, b) in [(true, true), (true, false), (false, true), (false, false)] {
        let with = |has: bool, config: Config| Config {
            aes: config.aes.filter(|_| has),
            ..config
        };
        let (left, right) = (with(a, config(0)), with(b, config(1)));
        let mut world = World::with(left, right, 1);
        world.connect();
        world.seconds(1);
        world.assert_joined();
        let cipher = if a && b {
            Cipher::Aes256Gcm
        } else {
            Cipher::ChaCha20Poly1305
        };
        assert!(
            world
                .ends
                .iter()
                .all(|e| e.session.cipher() == Some(cipher))
        );
        world.seconds(125);
        assert!(
            world
                .ends
                .iter()
                .all(|e| e.session.cipher() == Some(cipher)),
            "a rekey keeps it"
        );
    }
}

/// What both ends make of their settings: none is no session. Every pair, for who begins is not who chooses.
#[test]
fn ml_kem_is_done_where_both_do_it_and_without_it_nobody_who_requires_it_has_a_session() {
    use PostQuantum::{Off, Prefer, Require};
    for (a, b, hybrid) in [
        (Off, Off, Some(false)),
        (Off, Prefer, Some(false)),
        (Off, Require, None),
        (Prefer, Off, Some(false)),
        (Prefer, Prefer, Some(true)),
        (Prefer, Require, Some(true)),
        (Require, Off, None),
        (Require, Prefer, Some(true)),
        (Require, Require, Some(true)),
    ] {
        let with = |post_quantum, config: Config| Config {
            post_quantum,
            ..config
        };
        let mut world = World::with(with(a, config(0)), with(b, config(1)), 1);
        world.connect();
        world.seconds(1);
        let seen = |world: &World| [0, 1].map(|end| world.ends[end].session.is_hybrid());
        assert_eq!(seen(&world), [hybrid; 2], "{a:?} {b:?}");
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.session.is_unmet() == hybrid.is_none()),
            "{a:?} {b:?}: both know why"
        );
        if hybrid.is_some() {
            world.assert_joined();
        }
        world.seconds(125);
        assert_eq!(
            seen(&world),
            [hybrid; 2],
            "{a:?} {b:?}: a rekey keeps it, and nothing brings what is refused"
        );
    }
}

#[test]
fn ml_kem_that_is_taken_out_on_the_way_is_missed() {
    // The offer's key, or the accept's ciphertext, is made empty by somebody between.
    let stripped = |step: usize| {
        move |now: usize, message: &mut Vec<u8>| {
            if now == step && step == 0 {
                let Some(Request::Offer {
                    version,
                    aes,
                    required,
                    ..
                }) = decode(message)
                else {
                    panic!("no offer")
                };
                *message = encode(&Request::Offer {
                    version,
                    aes,
                    kem: vec![],
                    required,
                });
            } else if now == step {
                let Some(Reply::Accept { aes, .. }) = decode(message) else {
                    panic!("no accept")
                };
                *message = encode(&Reply::Accept { aes, kem: vec![] });
            }
        }
    };
    for step in [0, 1] {
        let (one, two, _) = handshake(config(0), config(1), stripped(step));
        assert!(!one.is_live() && !two.is_live(), "{step}");
        let strict = |end: usize| Config {
            post_quantum: PostQuantum::Require,
            ..config(end)
        };
        let (one, two, _) = handshake(strict(0), strict(1), stripped(step));
        assert!(!one.is_live() && !two.is_live(), "{step}");
    }
}

/// Runs a first handshake by hand; `meddle` sees offer, accept, begin and finish on their way.
fn handshake(
    a: Config,
    b: Config,
    mut meddle: impl FnMut(usize, &mut Vec<u8>),
) -> (Session, Session, Option<SessionError>) {
    let now = some_moment();
    let mut dice = Dice::new(77);
    let mut entropy = |out: &mut [u8]| dice.fill(out);
    let (mut one, mut two) = (Session::new(a, indices()), Session::new(b, indices()));
    one.connected(now, &mut entropy);
    let mut error = None;
    for step in 0..2 {
        let Some(Action::Ask(mut message)) = one.poll_action() else {
            break;
        };
        meddle(2 * step, &mut message);
        let mut answer = two
            .on_request(now, &message, &mut entropy)
            .map_err(|e| error = Some(e))
            .ok();
        answer.iter_mut().for_each(|a| meddle(2 * step + 1, a));
        one.on_answer(now, answer.as_deref(), &mut entropy);
    }
    (one, two, error)
}

#[test]
fn a_wrong_key_peer_or_subnet_is_refused() {
    let untouched = |_: usize, _: &mut Vec<u8>| {};
    let (one, two, error) = handshake(config(0), config(1), untouched);
    assert!(one.is_live() && two.is_live() && error.is_none());
    let wrong = [
        Config {
            secret: Zeroizing::new([9; 32]),
            ..config(0)
        },
        Config {
            peer_key: [9; 32],
            ..config(0)
        },
        Config {
            me: PeerId([0; 32]),
            ..config(0)
        },
        Config {
            peer: PeerId([9; 32]),
            ..config(0)
        },
        Config {
            subnet: SubnetId([8; 16]),
            ..config(0)
        },
    ];
    for bad in wrong {
        let (one, two, error) = handshake(bad.clone(), config(1), untouched);
        assert!(!one.is_live() && !two.is_live(), "{bad:?}");
        assert_eq!(error, Some(SessionError::Refused));
        assert!(one.poll_timeout().is_some(), "and it is tried again");
    }
    let (one, two, _) = handshake(
        config(0),
        Config {
            secret: Zeroizing::new([9; 32]),
            ..config(1)
        },
        untouched,
    );
    assert!(!one.is_live() && !two.is_live());
}

#[test]
fn a_tampered_offer_or_accept_and_a_lowered_cipher_are_refused() {
    // Byte 2 of the offer and byte 1 of the accept say whether there are AES instructions.
    for (step, at) in [
        (0, 2),
        (0, 5),
        (0, 700),
        (1, 1),
        (1, 4),
        (1, 800),
        (2, 3),
        (2, 50),
        (3, 3),
        (3, 40),
    ] {
        let (one, _, _) = handshake(config(0), config(1), |now, message| {
            if now == step {
                message[at] ^= 1;
            }
        });
        assert!(!one.is_live(), "step {step}, byte {at}");
    }
    // Both lowered alike: each end would choose ChaCha20, and neither believes the other's transcript.
    let (one, two, _) = handshake(config(0), config(1), |now, message| match now {
        0 => message[2] = 0,
        1 => message[1] = 0,
        _ => {}
    });
    assert!(!one.is_live() && !two.is_live());
}

#[test]
fn another_version_and_the_wrong_role_are_refused() {
    let now = some_moment();
    let mut entropy = |out: &mut [u8]| out.fill(1);
    let (mut small, mut great) = (
        Session::new(config(0), indices()),
        Session::new(config(1), indices()),
    );
    small.connected(now, &mut entropy);
    great.connected(now, &mut entropy);
    let (Some(Action::Ask(offer)), Some(Action::Ask(want))) =
        (small.poll_action(), great.poll_action())
    else {
        panic!()
    };
    let mut newer = offer.clone();
    newer[1] = 2;
    let before = (state(&small), state(&great));
    assert_eq!(
        great.on_request(now, &newer, &mut entropy),
        Err(SessionError::Version(2))
    );
    assert_eq!(
        great.on_request(now, &want, &mut entropy),
        Err(SessionError::Role)
    );
    assert_eq!(
        small.on_request(now, &offer, &mut entropy),
        Err(SessionError::Role)
    );
    let begin = encode(&Request::Begin {
        noise: vec![0; MESSAGE_1],
    });
    assert_eq!(
        great.on_request(now, &begin, &mut entropy),
        Err(SessionError::NoOffer)
    );
    assert_eq!(before, (state(&small), state(&great)));
}

#[test]
fn an_old_handshake_cannot_be_played_again() {
    let mut messages = Vec::new();
    let (_, mut two, _) = handshake(config(0), config(1), |_, message| {
        messages.push(message.clone())
    });
    while two.poll_action().is_some() {}
    let before = state(&two);
    let now = some_moment();
    assert_eq!(
        two.on_request(now, &messages[2], &mut |_: &mut [u8]| {}),
        Err(SessionError::NoOffer)
    );
    assert_eq!(before, state(&two));
    // The offer is answered with a new secret, so the old begin does not fit it.
    two.on_request(now, &messages[0], &mut |_: &mut [u8]| {})
        .unwrap();
    assert_eq!(
        two.on_request(now, &messages[2], &mut |_: &mut [u8]| {}),
        Err(SessionError::Refused)
    );
}

#[test]
fn a_peer_cannot_make_us_compute_without_end() {
    let mut messages = Vec::new();
    let (_, mut two, _) = handshake(config(0), config(1), |_, message| {
        messages.push(message.clone())
    });
    let now = some_moment();
    let mut entropy = |out: &mut [u8]| out.fill(3);
    let done = (0..100)
        .filter(|_| two.on_request(now, &messages[0], &mut entropy).is_ok())
        .count();
    // The session itself cost two, which come back at two a second while the test runs.
    assert!(
        (HANDSHAKES.burst - 2..=HANDSHAKES.burst).contains(&(done as u64)),
        "{done}"
    );
    let done = (0..100)
        .filter(|second| {
            two.on_request(
                now + Duration::from_secs(*second),
                &messages[0],
                &mut entropy,
            )
            .is_ok()
        })
        .count();
    assert!(done >= 98, "and one that asks now and then is served");
}

#[test]
fn debug_shows_no_secret() {
    let config = Config {
        secret: Zeroizing::new([0xab; 32]),
        ..config(0)
    };
    let (one, _, _) = handshake(config.clone(), self::config(1), |_, _| {});
    let text = format!("{config:?} {one:?} {:?}", one.actions);
    assert!(!text.contains("171, 171"), "{text}");
}
