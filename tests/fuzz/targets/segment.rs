//! Cutting a super-packet: every piece is a packet of its own, and together they hold the payload.
#![no_main]

use byway::packet::offload::{Kind, Offload};
use byway::packet::parse;
use byway::packet::segment::segment;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((head, data)) = data.split_first_chunk::<3>() else {
        return;
    };
    let Ok(packet) = parse::parse(data) else {
        return;
    };
    let data = &data[..packet.length];
    let kind = Kind::from_number(head[0] % 7).unwrap_or(Kind::None);
    let plain = matches!(kind, Kind::None | Kind::Partial);
    let gso_size = if plain {
        0
    } else {
        u16::from_be_bytes([head[1], head[2]])
    };
    let header_len = if plain {
        0
    } else {
        u16::try_from(packet.headers).unwrap_or(0)
    };
    let (mut scratch, mut payload) = (Vec::new(), Vec::new());
    let done = segment(
        data,
        &packet,
        &Offload {
            kind,
            gso_size,
            header_len,
        },
        &mut scratch,
        |piece| {
            let part = parse::parse(piece).expect("a piece that is no packet");
            assert_eq!(
                (part.source, part.destination, part.length),
                (packet.source, packet.destination, piece.len())
            );
            payload.extend_from_slice(&piece[part.headers..]);
        },
    );
    match done {
        Ok(()) => assert_eq!(payload, data[packet.headers..]),
        Err(_) => assert!(payload.is_empty()),
    }
});
