//! Frames on the UDP port and on data streams.

use byway::crypto::aead::{Cipher, Library};
use byway::crypto::frame::{HEADER, Header, Opener, Sealer};
use byway::packet::offload::{Kind, Offload};
use byway::packet::reassemble::Segment;
use byway::wire::datagram::{Control, Knock, Refusal, Trailer, append, knock, token_of};
use byway::wire::frame::{self, Decoder, Frame, Receipt};

use super::messages::Golden;

/// Frames on the UDP port. Those of a path's probes belong to the peer, and are few: they are written anew where it
/// changes them before the first release.
pub(super) fn datagrams(golden: &mut Golden) {
    let segment = Segment {
        kind: Kind::Tcp4,
        headers: 52,
        index: 1,
        last: 3,
        size: 1300,
    };
    let trailers = [
        ("packet", Trailer::Packet { partial: false }),
        ("packet-partial", Trailer::Packet { partial: true }),
        (
            "piece",
            Trailer::Segment {
                segment,
                id: 0x1234,
            },
        ),
        ("bundle", Trailer::Bundle),
        ("control", Trailer::Control),
        ("filler", Trailer::Filler),
    ];
    for (name, trailer) in trailers {
        assert_eq!(Trailer::decode(trailer.encode()), Some(trailer));
        golden.put(
            &format!("datagram/trailer/{name}"),
            trailer.encode().to_vec(),
        );
    }
    let mut bundle = Vec::new();
    assert!(append(&mut bundle, &[0x45; 20], false) && append(&mut bundle, &[0x60; 48], true));
    golden.put("datagram/bundle", bundle);
    let controls = [
        (
            "probe",
            Control::Probe {
                token: 0x0102_0304_0506_0708,
            },
            12,
        ),
        (
            "answer4",
            Control::Answer {
                token: 9,
                seen: "192.0.2.1:4100".parse().unwrap(),
                arrived: 258,
            },
            0,
        ),
        (
            "answer6",
            Control::Answer {
                token: 9,
                seen: "[2001:db8::1]:4100".parse().unwrap(),
                arrived: 258,
            },
            0,
        ),
        ("rekey", Control::Rekey(&[1, 2, 3]), 0),
        ("close", Control::Close, 0),
        (
            "renewed",
            Control::Renewed {
                address: "192.0.2.1:4100".parse().unwrap(),
            },
            0,
        ),
        (
            "knock-expect",
            Control::Knock(Knock::Expect { token: 9 }),
            0,
        ),
        (
            "knock-seen",
            Control::Knock(Knock::Seen {
                token: 9,
                from: "192.0.2.1:4100".parse().unwrap(),
            }),
            0,
        ),
        (
            "knock-ask",
            Control::Knock(Knock::Ask {
                token: 9,
                to: "192.0.2.1:4100".parse().unwrap(),
                other_port: true,
            }),
            0,
        ),
        ("knock-sent", Control::Knock(Knock::Sent { token: 9 }), 0),
        (
            "knock-refused",
            Control::Knock(Knock::Refused {
                token: 9,
                why: Refusal::Elsewhere,
            }),
            0,
        ),
    ];
    for (name, control, pad) in controls {
        let mut body = Vec::new();
        assert!(control.encode(pad, &mut body));
        assert_eq!(Control::decode(&body), Some(control));
        golden.put(&format!("datagram/control/{name}"), body);
    }
    assert_eq!(token_of(&knock(9)), Some(9));
    golden.put("datagram/knock", knock(9).to_vec());
    frames(golden);
}

/// One sealed frame of each cipher, which opens again.
fn frames(golden: &mut Golden) {
    for (name, cipher) in [
        ("aes", Cipher::Aes256Gcm),
        ("chacha", Cipher::ChaCha20Poly1305),
    ] {
        let sealer = Sealer::new(cipher, Library::AwsLc, &[5; 32], 0x0a0b_0c00);
        let nonce = sealer.take(1).unwrap().next().unwrap();
        let mut out = vec![0; 200];
        let body = [0x45; 40];
        let length = sealer
            .seal(
                nonce,
                &body,
                &Trailer::Packet { partial: false }.encode(),
                &mut out,
            )
            .unwrap();
        out.truncate(length);
        let header = Header::decode(&out).unwrap();
        assert_eq!((header.receiver, header.counter), (0x0a0b_0c00, 0));
        let mut plain = vec![0; 200];
        let (clear, sealed) = out.split_first_chunk::<HEADER>().unwrap();
        let opened = Opener::new(cipher, Library::AwsLc, &[5; 32])
            .open(clear, sealed, &mut plain)
            .unwrap();
        assert_eq!(
            plain[..opened],
            [&body[..], &Trailer::Packet { partial: false }.encode()].concat()
        );
        golden.put(&format!("datagram/frame/{name}"), out);
    }
}

/// What is told of a stream that was read for a while.
const RECEIPT: Receipt = Receipt {
    stream: 7,
    bytes: 0x0001_0203_0405,
};

/// Frames on a data stream.
pub(super) fn streams(golden: &mut Golden) {
    let packet = [&frame::packet_header(&Offload::NONE, 20)[..], &[0x45; 20]].concat();
    let all = [
        ("packet", packet),
        ("ping", frame::ping(7).to_vec()),
        ("pong", frame::pong(7).to_vec()),
        ("number", frame::number(7).to_vec()),
        ("receipt", frame::receipt(RECEIPT).to_vec()),
    ];
    for (name, bytes) in all {
        let mut decoder = Decoder::default();
        let room = decoder.space();
        room[..bytes.len()].copy_from_slice(&bytes);
        decoder.filled(bytes.len());
        let read = decoder.decode().unwrap().unwrap();
        match (name, read) {
            ("packet", Frame::Packet { .. })
            | ("ping", Frame::Ping(7))
            | ("pong", Frame::Pong(7))
            | ("number", Frame::Number(7))
            | ("receipt", Frame::Receipt(RECEIPT)) => {}
            other => panic!("{other:?}"),
        }
        golden.put(&format!("stream/{name}"), bytes);
    }
}
