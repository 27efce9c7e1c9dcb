//! Joining datagrams: a run of equal ones of one flow is written to the TUN as one UDP super-packet.
//!
//! One write instead of up to 64, for the kernel to cut again (or to carry whole to a workload). Only datagrams whose
//! checksum is still to be computed are joined, so that no damage is covered up; and only where cutting gives back what
//! came: no IP options, and DF set, because the identifications of version 4 are made anew.

use super::Packet;
use super::offload::{Kind, Offload};
use super::parse::{UDP, Version};

/// Datagrams of one run: what every kernel with UDP segmentation takes.
const MOST: usize = 64;
/// The most bytes of one run.
const LARGEST: usize = 65_000;

/// Datagrams gathered for one write.
#[derive(Debug)]
pub(crate) struct Run {
    /// The first datagram, then the payloads of the others. Keeps its capacity.
    bytes: Vec<u8>,
    first: Option<Packet>,
    count: usize,
    /// The last one was shorter: only a run's end may be.
    closed: bool,
}

/// Whether `packet` may be part of a run.
pub(crate) fn is_joinable(packet: &Packet, offload: &Offload) -> bool {
    let plain = match packet.version {
        Version::V4 => packet.transport == 20,
        Version::V6 => packet.transport == 40,
    };
    offload.kind == Kind::Partial
        && packet.protocol == UDP
        && packet.is_tcp_or_udp()
        && plain
        && packet.dont_fragment
        && packet.payload() > 0
}

/// Whether two datagrams agree in every header field but lengths, checksums and identification.
fn same_flow(a: &[u8], b: &[u8], version: Version) -> bool {
    let (front, back) = match version {
        Version::V4 => (0..2, [6..10, 12..24]),
        Version::V6 => (0..4, [6..8, 8..44]),
    };
    a.get(front.clone()) == b.get(front)
        && back
            .into_iter()
            .all(|range| a.get(range.clone()) == b.get(range))
}

impl Run {
    /// An empty run in a buffer of earlier ones.
    pub(crate) fn new(mut bytes: Vec<u8>) -> Run {
        bytes.clear();
        Run {
            bytes,
            first: None,
            count: 0,
            closed: false,
        }
    }

    /// Adds a [joinable](is_joinable) datagram; false where it does not continue the run.
    pub(crate) fn add(&mut self, packet: &Packet, datagram: &[u8]) -> bool {
        let Some(first) = &self.first else {
            self.bytes.clear();
            self.bytes.extend_from_slice(datagram);
            (self.first, self.count, self.closed) = (Some(*packet), 1, false);
            return true;
        };
        let size = first.payload();
        let continues = !self.closed
            && self.count < MOST
            && packet.payload() <= size
            && self.bytes.len().saturating_add(packet.payload()) <= LARGEST
            && packet.version == first.version
            && same_flow(&self.bytes, datagram, packet.version);
        let Some(payload) = datagram.get(packet.headers..).filter(|_| continues) else {
            return false;
        };
        self.bytes.extend_from_slice(payload);
        self.count = self.count.saturating_add(1);
        self.closed = packet.payload() < size;
        true
    }

    /// Ends the run: its packet, what is undone in it, its bytes, and how many datagrams it holds. None where it is empty.
    pub(crate) fn finish(&mut self) -> Option<(Packet, Offload, &mut [u8], u64)> {
        let first = self.first.take()?;
        let count = u64::try_from(self.count).unwrap_or(u64::MAX);
        if self.count == 1 {
            let offload = Offload {
                kind: Kind::Partial,
                gso_size: 0,
                header_len: 0,
            };
            return Some((first, offload, &mut self.bytes, count));
        }
        let kind = match first.version {
            Version::V4 => Kind::Udp4,
            Version::V6 => Kind::Udp6,
        };
        // Both are far below 65,536: the datagram came in a packet of at most that.
        let gso_size = u16::try_from(first.payload()).unwrap_or(u16::MAX);
        let header_len = u16::try_from(first.headers).unwrap_or(u16::MAX);
        let whole = Packet {
            length: self.bytes.len(),
            ..first
        };
        Some((
            whole,
            Offload {
                kind,
                gso_size,
                header_len,
            },
            &mut self.bytes,
            count,
        ))
    }

    /// Gives the buffer back, for the next run.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::offload::Rebuild;
    use crate::packet::parse;
    use crate::packet::parse::samples::{ip, udp};
    use crate::packet::segment::segment;
    use proptest::prelude::*;

    const PARTIAL: Offload = Offload {
        kind: Kind::Partial,
        gso_size: 0,
        header_len: 0,
    };

    fn datagram(v4: bool, payload: &[u8], id: u16) -> Vec<u8> {
        let (s, d) = if v4 {
            ("10.0.1.5", "10.0.2.7")
        } else {
            ("fd00:1::5", "fd00:2::7")
        };
        let mut bytes = udp(ip(s), ip(d), payload);
        if v4 {
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            bytes[6] |= 0x40;
            // The header's own checksum follows.
            bytes[10..12].fill(0);
            let value =
                crate::packet::checksum::finish(crate::packet::checksum::sum(&bytes[..20], 0));
            bytes[10..12].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_run_is_cut_into_what_came(v4: bool, size in 1usize..1400, count in 1usize..80, last in 0usize..1400) {
            let mut sent: Vec<_> = (0..count).map(|i| datagram(v4, &vec![i as u8; size], i as u16)).collect();
            if (1..=size).contains(&last) {
                sent.push(datagram(v4, &vec![9; last], count as u16));
            }
            let (mut run, mut got) = (Run::new(Vec::new()), Vec::new());
            let mut flush = |run: &mut Run| {
                let Some((packet, offload, bytes, count)) = run.finish() else { return };
                let before = got.len();
                Rebuild::plan(&packet, &offload).unwrap().apply(bytes);
                let packet = parse(bytes).unwrap();
                segment(bytes, &packet, &offload, &mut Vec::new(), |p| got.push(p.to_vec())).unwrap();
                assert_eq!((got.len() - before) as u64, count);
            };
            for bytes in &sent {
                let packet = parse(bytes).unwrap();
                prop_assert!(is_joinable(&packet, &PARTIAL));
                if !run.add(&packet, bytes) {
                    flush(&mut run);
                    prop_assert!(run.add(&packet, bytes));
                }
            }
            flush(&mut run);
            prop_assert_eq!(got, sent);
        }
    }

    #[test]
    fn only_equal_datagrams_of_one_flow_are_joined() {
        let first = datagram(true, &[1; 100], 0);
        let joins = |other: &[u8]| {
            let mut run = Run::new(Vec::new());
            assert!(run.add(&parse(&first).unwrap(), &first));
            run.add(&parse(other).unwrap(), other)
        };
        assert!(joins(&datagram(true, &[2; 100], 77)));
        assert!(joins(&datagram(true, &[2; 10], 1)));
        assert!(
            !joins(&datagram(true, &[2; 101], 1)),
            "longer than the first"
        );
        assert!(!joins(&datagram(false, &[2; 100], 1)), "other version");
        for (at, what) in [
            (1, "type of service"),
            (8, "time to live"),
            (15, "source"),
            (21, "source port"),
            (23, "port"),
        ] {
            let mut other = datagram(true, &[2; 100], 1);
            other[at] ^= 1;
            assert!(!joins(&other), "{what}");
        }
        let mut run = Run::new(Vec::new());
        let short = datagram(true, &[1; 50], 1);
        assert!(
            run.add(&parse(&first).unwrap(), &first) && run.add(&parse(&short).unwrap(), &short)
        );
        assert!(
            !run.add(&parse(&short).unwrap(), &short),
            "nothing follows a shorter one"
        );
        let packet = parse(&first).unwrap();
        assert!(
            !is_joinable(&packet, &Offload::NONE),
            "a finished checksum is not thrown away"
        );
        assert!(!is_joinable(
            &Packet {
                dont_fragment: false,
                ..packet
            },
            &PARTIAL
        ));
    }
}
