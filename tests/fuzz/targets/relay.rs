//! Messages of relays: what binds a leg says the same when written again and nothing where a bit was changed, questions and
//! answers read back, and a relay whose leg is known sends no more than it got, and only where a leg is bound.
#![no_main]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use byway::codec::{decode, encode};
use byway::crypto::mac::Mac;
use byway::model::id::PeerId;
use byway::relay::{Fate, Leg, Limits, Output, Server, Terms};
use byway::wire::address;
use byway::wire::relay::{
    BIND, MESSAGE, Message, PREFIX, RelayAnswer, RelayRequest, Relaying, carries_frame, index,
    prefix, readdress,
};
use libfuzzer_sys::fuzz_target;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Reads and writes what a stranger or a relay may send.
fn read(data: &[u8]) {
    if let Some((address, rest)) = address::take(data) {
        let mut again = Vec::new();
        address::put(address, &mut again);
        assert_eq!(address::take(&again), Some((address, &[][..])));
        assert!(rest.len() < data.len());
    }
    if let Ok(request) = decode::<RelayRequest>(data) {
        assert_eq!(decode(&encode(&request)), Ok(request));
    }
    if let Ok(answer) = decode::<RelayAnswer>(data) {
        assert_eq!(decode(&encode(&answer)), Ok(answer));
    }
    if let Ok(said) = decode::<Relaying>(data) {
        assert_eq!(decode(&encode(&said)), Ok(said));
    }
    // The bytes as a message's, with a MAC that is good: only such are taken apart.
    let key = Mac::new(&[3; 16]);
    let mut bytes = [0; MESSAGE];
    bytes
        .iter_mut()
        .zip(data)
        .for_each(|(to, from)| *to = *from);
    let (signed, mac) = bytes.split_at_mut(MESSAGE - 16);
    mac.copy_from_slice(&key.sign(signed));
    if let Some(message) = Message::decode(&bytes, &key) {
        let (first, index) = index(&bytes).expect("a leg");
        assert_eq!(first, BIND);
        let again = message.encode(index, &key);
        assert_eq!(Message::decode(&again, &key), Some(message));
        let mut changed = again;
        changed[usize::from(data[0]) % MESSAGE] ^= 1;
        assert_eq!(Message::decode(&changed, &key), None);
    }
    let mut frame = data.to_vec();
    if carries_frame(&frame) {
        readdress(&mut frame, 7);
        assert_eq!(frame[PREFIX..], data[PREFIX..]);
    }
}

fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("entropy");
}

fuzz_target!(|data: &[u8]| {
    if data.is_empty() {
        return;
    }
    read(data);
    let (mut now, at) = (*START, |n: u8| SocketAddr::from(([192, 0, 2, n], 4100)));
    let mut server = Server::new(now, Limits::default(), &mut fill);
    let free = Terms {
        sessions: 4,
        mbit: None,
        is_stranger: false,
    };
    let (mine, theirs) = server
        .allocate(now, PeerId([1; 32]), PeerId([2; 32]), free, &mut fill)
        .expect("a session");
    for (n, ticket) in [(1, mine), (2, theirs)] {
        let mut leg = Leg::new(now, ticket, &[at(9)]);
        leg.handle_timeout(now);
        while let Some(output) = leg.poll() {
            if let Output::Send { bytes, .. } = output
                && let Some(answer) = server.on_bind(now, (at(n), None), &bytes)
                && let Some(message) = Message::decode(&answer, leg.key())
            {
                leg.on_message(now, at(9), message);
            }
        }
        assert_eq!(leg.relay(), Some(at(9)));
    }
    // Pieces, each behind its kind and its length, from the peers and from somebody else.
    let mut rest = data;
    while let Some(([kind, length], behind)) = rest.split_first_chunk() {
        let (piece, later) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = later;
        now += Duration::from_millis(u64::from(kind >> 4));
        let ticket = [mine, theirs][usize::from(kind & 1)];
        let from = at(kind >> 1 & 3);
        let mut bytes = [&prefix(ticket.index)[..], piece].concat();
        if kind & 8 == 0 {
            bytes[0] = BIND;
            if let Some(answer) = server.on_bind(now, (from, None), &bytes) {
                assert!(answer.len() <= bytes.len());
            }
            continue;
        }
        let size = usize::from(*length).max(1) + PREFIX;
        match server.forward(now, (from, None), &mut bytes, size) {
            Some(Fate::Onward(onward)) => {
                assert!(onward.to == at(1) || onward.to == at(2));
                assert!(onward.length <= bytes.len() && (from == at(1) || from == at(2)));
            }
            Some(Fate::Challenge(message)) => assert!(message.len() <= bytes.len()),
            Some(Fate::Dropped) | None => {}
        }
    }
});
