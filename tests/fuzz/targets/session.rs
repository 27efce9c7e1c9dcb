//! Session messages: bytes that are none of the peer's own words, or its words with some bits changed, make no keys, drop
//! none, and do not hinder the handshake or rekey that they come into the middle of.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use byway::crypto::frame::{HEADER, Opener, Sealer};
use byway::model::id::{PeerId, SubnetId};
use byway::peer::session::{Action, Config, Indices, MAX_MESSAGE, Session};
use libfuzzer_sys::fuzz_target;

fn fill(out: &mut [u8]) {
    getrandom::fill(out).expect("entropy");
}

fn end(n: u8) -> Session {
    let public = |n: u8| {
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from([n; 32])).to_bytes()
    };
    let config = Config {
        me: PeerId([n; 32]),
        peer: PeerId([3 - n; 32]),
        subnet: SubnetId([9; 16]),
        secret: [n; 32].into(),
        peer_key: public(3 - n),
        aes: Some(byway::crypto::aead::Library::AwsLc),
        post_quantum: byway::peer::session::PostQuantum::Prefer,
    };
    Session::new(config, Indices::new(&mut fill))
}

/// What the machine did: keys, and the last message for the peer.
#[derive(Default)]
struct Did {
    opener: Option<Opener>,
    sealer: Option<Arc<Sealer>>,
    message: Option<Vec<u8>>,
    dropped: bool,
}

fn drain(session: &mut Session) -> Did {
    let mut did = Did::default();
    while let Some(action) = session.poll_action() {
        match action {
            Action::Install { opener, .. } => did.opener = Some(opener),
            Action::Use(sealer) => did.sealer = Some(sealer),
            Action::Ask(message) | Action::Send(message) => {
                assert!(message.len() <= MAX_MESSAGE);
                did.message.get_or_insert(message);
            }
            Action::Remove { .. } | Action::Stop => did.dropped = true,
        }
    }
    did
}

/// Hands the bytes to everything that takes such; whether they were well-formed words by chance.
fn junk(session: &mut Session, now: Instant, bytes: &[u8]) -> bool {
    let live = session.is_live();
    let answered = session.on_request(now, bytes, &mut fill).is_ok();
    session.on_control(now, bytes, &mut fill);
    let did = drain(session);
    assert!(did.opener.is_none() && did.sealer.is_none() && !did.dropped);
    assert_eq!(session.is_live(), live);
    answered
}

fn joined(sealer: &Sealer, opener: &Opener) {
    let nonce = sealer.take(1).and_then(|mut n| n.next()).expect("a nonce");
    let (mut frame, mut plain) = ([0; 64], [0; 64]);
    let length = sealer
        .seal(nonce, b"body", b"tail", &mut frame)
        .expect("a frame");
    let (header, sealed) = frame[..length]
        .split_first_chunk::<HEADER>()
        .expect("a header");
    assert_eq!(opener.open(header, sealed, &mut plain), Some(8));
}

fuzz_target!(|data: &[u8]| {
    let Some(([how, at_high, at_low], data)) = data.split_first_chunk::<3>() else {
        return;
    };
    let (mut now, mut small, mut great) = (Instant::now(), end(1), end(2));
    // The bytes themselves, or the true message with the bytes laid over it somewhere.
    let bad = |message: &[u8]| {
        if how & 8 == 0 {
            return data.to_vec();
        }
        let at = usize::from(u16::from_be_bytes([*at_high, *at_low])) % message.len();
        let mut bytes = message.to_vec();
        bytes
            .iter_mut()
            .skip(at)
            .zip(data)
            .for_each(|(to, from)| *to ^= from);
        bytes
    };
    let meddle = |step: u8, session: &mut Session, now: Instant, message: &[u8]| {
        let bytes = bad(message);
        how & 7 == step && bytes != message && junk(session, now, &bytes)
    };

    small.connected(now, &mut fill);
    let offer = drain(&mut small).message.expect("an offer");
    meddle(0, &mut great, now, &offer);
    let accept = great.on_request(now, &offer, &mut fill).expect("an accept");
    meddle(1, &mut small, now, &accept);
    small.on_answer(now, Some(&accept), &mut fill);
    let begin = drain(&mut small).message.expect("a begin");
    if meddle(2, &mut great, now, &begin) {
        return; // Another offer, which took the place of the first.
    }
    let finish = great.on_request(now, &begin, &mut fill).expect("a finish");
    if how & 7 == 3 && bad(&finish) != finish {
        small.on_answer(now, Some(&bad(&finish)), &mut fill);
        assert!(!small.is_live());
        return;
    }
    small.on_answer(now, Some(&finish), &mut fill);
    let (one, two) = (drain(&mut small), drain(&mut great));
    joined(&one.sealer.expect("a key"), &two.opener.expect("a key"));
    joined(&two.sealer.expect("a key"), &one.opener.expect("a key"));

    now += Duration::from_secs(121);
    small.handle_timeout(now, &mut fill);
    let rekey = drain(&mut small).message.expect("a rekey");
    meddle(4, &mut great, now, &rekey);
    meddle(5, &mut small, now, &rekey);
    great.on_control(now, &rekey, &mut fill);
    let two = drain(&mut great);
    let answer = two.message.expect("an answer");
    meddle(6, &mut small, now, &answer);
    meddle(7, &mut great, now, &answer);
    small.on_control(now, &answer, &mut fill);
    let one = drain(&mut small);
    joined(&one.sealer.expect("a key"), &two.opener.expect("a key"));
});
