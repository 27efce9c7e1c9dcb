//! One packet from a TUN or a peer: parsed, checksums completed, offloads planned and applied, failures answered.
#![no_main]

use byway::packet::icmp::{self, Failure};
use byway::packet::offload::{Kind, Offload, Outgoing, Rebuild};
use byway::packet::{checksum, parse};
use byway::tun::linux::virtio;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((head, data)) = data.split_first_chunk::<15>() else {
        return;
    };
    let Ok(packet) = parse::parse(data) else {
        return;
    };
    assert!(packet.length <= data.len() && packet.headers <= packet.length);
    let data = &data[..packet.length];
    let mut header = [0; virtio::LENGTH];
    header.copy_from_slice(&head[..virtio::LENGTH]);
    if let Ok(outgoing) = Outgoing::new(virtio::decode(header), &packet, data) {
        let mut bytes = data.to_vec();
        if let Some((start, offset)) = outgoing.complete {
            checksum::complete(&mut bytes, start, offset);
        }
        assert!(
            Rebuild::plan(&packet, &outgoing.offload).is_ok(),
            "a receiver refuses what we send"
        );
    }
    let kind = Kind::from_number(head[10] % 7).unwrap_or(Kind::None);
    let gso_size = u16::from_be_bytes([head[11], head[12]]);
    let header_len = u16::from_be_bytes([head[13], head[14]]);
    if let Ok(rebuild) = Rebuild::plan(
        &packet,
        &Offload {
            kind,
            gso_size,
            header_len,
        },
    ) {
        let mut bytes = data.to_vec();
        let undone = rebuild.apply(&mut bytes);
        assert_eq!(bytes.len(), data.len());
        assert_eq!(virtio::decode(virtio::encode(undone)), undone);
        assert!(parse::parse(&bytes).is_ok(), "unreadable after the rebuild");
    }
    let _ = icmp::reply(&packet, data, packet.destination, Failure::NoRoute);
});
