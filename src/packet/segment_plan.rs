//! Cutting a super-packet for a path, without touching it: which payload goes into which segment.
//!
//! Cheaper than [`segment`](super::segment): the headers travel with every segment as they are and the receiver, which
//! joins consecutive segments again ([`reassemble`](super::reassemble)), works out what changes from segment to segment.

use std::ops::Range;

use super::offload::{Kind, Offload};
use super::parse::Packet;
use super::reassemble::Segment;

/// Most segments of one super-packet: an index is one byte.
const MAX_SEGMENTS: usize = 256;
/// Bytes of the largest headers: their length is one byte.
const MAX_HEADERS: usize = 255;
/// Least payload of a segment of TCP, as the receiver wants it: the kernel's least MSS without its options.
const MIN_TCP_SIZE: usize = 8;

/// How one super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentPlan {
    /// Bytes of its headers, which every segment carries.
    pub headers: usize,
    /// Payload bytes of every segment but the last.
    pub size: usize,
    /// Segments, 1 to 256.
    pub count: usize,
    kind: Kind,
    length: usize,
}

impl SegmentPlan {
    /// How to cut a super-packet whose `offload` was checked by [`Outgoing`](super::offload::Outgoing), for frames that
    /// take `room` bytes of headers and payload. None where it is no super-packet or cannot be cut so: the caller makes
    /// packets of it by [`segment`](super::segment::segment).
    ///
    /// TCP is a stream of bytes and may be cut smaller than its kernel asked for; of UDP every segment is a datagram.
    pub fn new(packet: &Packet, offload: &Offload, room: usize) -> Option<SegmentPlan> {
        let (headers, wanted) = (packet.headers, usize::from(offload.gso_size));
        let fitting = room.checked_sub(headers)?;
        let (size, least) = match offload.kind {
            Kind::None | Kind::Partial => return None,
            Kind::Tcp4 | Kind::Tcp6 => (wanted.min(fitting), MIN_TCP_SIZE),
            Kind::Udp4 | Kind::Udp6 => (wanted, 1),
        };
        if headers > MAX_HEADERS || size < least || size > fitting {
            return None;
        }
        let count = packet.payload().div_ceil(size);
        let plan = SegmentPlan {
            headers,
            size,
            count,
            kind: offload.kind,
            length: packet.length,
        };
        (1..=MAX_SEGMENTS).contains(&count).then_some(plan)
    }

    /// Where the payload of segment `index` lies in the packet; empty behind the last.
    pub fn range(&self, index: usize) -> Range<usize> {
        let start = self
            .headers
            .saturating_add(index.saturating_mul(self.size))
            .min(self.length);
        start..start.saturating_add(self.size).min(self.length)
    }

    /// What the receiver is told about segment `index`.
    pub fn describe(&self, index: usize) -> Segment {
        let last = self.count.saturating_sub(1);
        Segment {
            kind: self.kind,
            headers: self.headers,
            index,
            last,
            size: self.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::offload::Rebuild;
    use super::super::parse::parse;
    use super::super::parse::samples::super_packets;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn segments_cover_the_payload_once_and_fit((bytes, offload) in super_packets(), room in 0usize..3000) {
            let packet = parse(&bytes).unwrap();
            prop_assume!(Rebuild::plan(&packet, &offload).is_ok());
            let wanted = usize::from(offload.gso_size);
            let is_udp = matches!(offload.kind, Kind::Udp4 | Kind::Udp6);
            let Some(plan) = SegmentPlan::new(&packet, &offload, room) else {
                let size = room.saturating_sub(packet.headers).min(wanted);
                prop_assert!(size < 8 || (is_udp && size < wanted) || packet.payload().div_ceil(size) > 256);
                return Ok(());
            };
            prop_assert!(!is_udp || plan.size == wanted);
            let mut at = packet.headers;
            for index in 0..plan.count {
                let range = plan.range(index);
                prop_assert_eq!(range.start, at);
                prop_assert!(range.len() + packet.headers <= room && plan.describe(index).holds(range.len()));
                at = range.end;
            }
            prop_assert_eq!(at, bytes.len());
            prop_assert!(plan.range(plan.count).is_empty() && plan.range(usize::MAX).is_empty());
        }
    }

    #[test]
    fn what_cannot_be_cut_is_left_to_the_caller() {
        let bytes = crate::packet::parse::samples::tcp(
            crate::packet::parse::samples::ip("10.0.0.1"),
            crate::packet::parse::samples::ip("10.0.0.2"),
            &[1; 5000],
        );
        let packet = parse(&bytes).unwrap();
        let offload = Offload {
            kind: Kind::Tcp4,
            gso_size: 1400,
            header_len: packet.headers as u16,
        };
        assert_eq!(
            SegmentPlan::new(&packet, &offload, 2000).map(|c| (c.size, c.count)),
            Some((1400, 4))
        );
        assert_eq!(
            SegmentPlan::new(&packet, &offload, 1052).map(|c| (c.size, c.count)),
            Some((1000, 5)),
            "smaller for the path"
        );
        assert_eq!(
            SegmentPlan::new(&packet, &offload, 52 + 19),
            None,
            "more than 256 segments"
        );
        assert_eq!(
            SegmentPlan::new(&packet, &offload, 52 + 7),
            None,
            "less than a receiver takes"
        );
        assert_eq!(
            SegmentPlan::new(&packet, &offload, 51),
            None,
            "no room for headers"
        );
        assert_eq!(
            SegmentPlan::new(
                &packet,
                &Offload {
                    kind: Kind::Udp4,
                    ..offload
                },
                1451
            ),
            None,
            "a datagram is not cut"
        );
        assert_eq!(SegmentPlan::new(&packet, &Offload::NONE, 9000), None);
        assert_eq!(
            SegmentPlan::new(
                &Packet {
                    headers: 256,
                    ..packet
                },
                &offload,
                9000
            ),
            None,
            "headers beyond their field"
        );
    }
}
