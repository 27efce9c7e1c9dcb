//! The virtio header in front of each packet of a Linux TUN, and the [`TunOffload`] it stands for.
//!
//! `struct virtio_net_hdr` (`linux/virtio_net.h`, VIRTIO 1.2 section 5.1.6): ten bytes in the machine's byte order.
//!
//! ```text
//!  0      1          2          4          6            8
//! +-------+----------+----------+----------+------------+-------------+
//! | flags | gso type | hdr len  | gso size | csum start | csum offset |
//! +-------+----------+----------+----------+------------+-------------+
//! ```

use crate::packet::offload::{PartialChecksum, SegmentKind, Segments, TunOffload};

/// Bytes of the header of a TUN opened with `IFF_VNET_HDR`.
pub const LENGTH: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo-header's sum only.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Flag beside the GSO type: a segment carries CWR.
const GSO_ECN: u8 = 0x80;

/// Reads what the kernel left undone.
pub fn decode(header: [u8; LENGTH]) -> TunOffload {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = header;
    let (start, offset) = (u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([o0, o1]));
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(SegmentKind::Tcp4),
        GSO_TCPV6 => Some(SegmentKind::Tcp6),
        GSO_UDP_L4 => Some(SegmentKind::Udp),
        _ => Some(SegmentKind::Unknown),
    };
    TunOffload {
        checksum: (flags & NEEDS_CSUM != 0).then_some(PartialChecksum { start, offset }),
        segments: kind.map(|kind| Segments {
            kind,
            size: u16::from_ne_bytes([g0, g1]),
        }),
        header_len: u16::from_ne_bytes([h0, h1]),
    }
}

/// Writes what the kernel is left to do. The kernel refuses segments of an unknown kind.
pub fn encode(offload: TunOffload) -> [u8; LENGTH] {
    let gso_type = match offload.segments.map(|segments| segments.kind) {
        None => GSO_NONE,
        Some(SegmentKind::Tcp4) => GSO_TCPV4,
        Some(SegmentKind::Tcp6) => GSO_TCPV6,
        Some(SegmentKind::Udp) => GSO_UDP_L4,
        Some(SegmentKind::Unknown) => !GSO_ECN,
    };
    let flags = if offload.checksum.is_some() {
        NEEDS_CSUM
    } else {
        0
    };
    let PartialChecksum { start, offset } = offload.checksum.unwrap_or_default();
    let [h0, h1] = offload.header_len.to_ne_bytes();
    let [g0, g1] = offload
        .segments
        .map_or(0, |segments| segments.size)
        .to_ne_bytes();
    let ([s0, s1], [o0, o1]) = (start.to_ne_bytes(), offset.to_ne_bytes());
    [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ten bytes as a little-endian machine has them.
    fn header(flags: u8, gso_type: u8, numbers: [u16; 4]) -> [u8; LENGTH] {
        let mut bytes = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn each_field_stands_where_the_kernel_has_it() {
        let undone = |checksum, kind: Option<SegmentKind>, header_len| TunOffload {
            checksum,
            segments: kind.map(|kind| Segments { kind, size: 1348 }),
            header_len,
        };
        let checksum = |offset| Some(PartialChecksum { start: 20, offset });
        for (bytes, means) in [
            (header(0, 0, [0, 0, 0, 0]), TunOffload::default()),
            (header(1, 0, [28, 0, 20, 6]), undone(checksum(6), None, 28)),
            (
                header(1, 1, [52, 1348, 20, 16]),
                undone(checksum(16), Some(SegmentKind::Tcp4), 52),
            ),
            (
                header(1, 4, [72, 1348, 20, 16]),
                undone(checksum(16), Some(SegmentKind::Tcp6), 72),
            ),
            (
                header(1, 5, [28, 1348, 20, 6]),
                undone(checksum(6), Some(SegmentKind::Udp), 28),
            ),
        ] {
            assert_eq!(decode(bytes), means);
            assert_eq!(encode(means), bytes);
        }
    }

    #[test]
    fn a_segment_with_cwr_is_a_segment_and_a_kind_not_asked_for_is_told_apart() {
        let kind = |gso_type| {
            decode(header(1, gso_type, [52, 1348, 20, 16]))
                .segments
                .map(|segments| segments.kind)
        };
        assert_eq!(kind(GSO_TCPV4 | GSO_ECN), Some(SegmentKind::Tcp4));
        assert_eq!(kind(GSO_ECN), None);
        // UDP fragments (`VIRTIO_NET_HDR_GSO_UDP`), which no TUN of ours asks for.
        assert_eq!(kind(3), Some(SegmentKind::Unknown));
    }

    proptest! {
        #[test]
        fn what_was_read_is_written_and_read_again(bytes: [u8; LENGTH]) {
            let offload = decode(bytes);
            prop_assert_eq!(decode(encode(offload)), offload);
        }
    }
}
