//! The MSS of any packet: nothing but that option and the checksum changes, and a good checksum stays good.
#![no_main]

use byway::packet::offload::{Kind, Offload};
use byway::packet::parse::{Fragment, TCP};
use byway::packet::{checksum, mss, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(([kind, m0, m1], data)) = data.split_first_chunk() else {
        return;
    };
    let Ok(packet) = parse(data) else { return };
    let kind = Kind::from_number(kind % 6).unwrap_or(Kind::None);
    let mut before = data.to_vec();
    let whole_tcp = packet.protocol == TCP && packet.fragment == Fragment::Whole;
    if whole_tcp && kind == Kind::None {
        before[packet.transport + 16..packet.transport + 18].fill(0);
        let start = checksum::pseudo(
            packet.source,
            packet.destination,
            TCP,
            packet.length - packet.transport,
        );
        let value = checksum::finish(checksum::sum(&before[packet.transport..], start));
        before[packet.transport + 16..packet.transport + 18].copy_from_slice(&value.to_be_bytes());
    }
    let mut bytes = before.clone();
    let offload = Offload {
        kind,
        ..Offload::NONE
    };
    let mtu = usize::from(u16::from_be_bytes([*m0, *m1]));
    if !mss::clamp(&mut bytes, &packet, &offload, mtu) {
        assert_eq!(bytes, before);
        return;
    }
    assert!(whole_tcp && matches!(kind, Kind::None | Kind::Partial));
    let options = packet.transport + 20..packet.headers;
    let changed: Vec<_> = (0..bytes.len())
        .filter(|at| bytes[*at] != before[*at])
        .collect();
    for at in changed {
        let sum =
            (packet.transport + 16..packet.transport + 18).contains(&at) && kind == Kind::None;
        assert!(sum || options.contains(&at), "byte {at}");
    }
    if kind == Kind::None {
        let start = checksum::pseudo(
            packet.source,
            packet.destination,
            TCP,
            packet.length - packet.transport,
        );
        assert_eq!(
            checksum::fold(checksum::sum(&bytes[packet.transport..], start)),
            0xffff
        );
    }
});
