//! The end of a plaintext: what the bytes before it are.

use super::TRAILER;
use crate::packet::offload::Kind;
use crate::packet::parse::MAX_PACKET;
use crate::packet::reassemble::Segment;

const PACKET: u8 = 1;
const BUNDLE: u8 = 2;
const SEGMENT: u8 = 3;
const CONTROL: u8 = 4;
const FILLER: u8 = 5;

/// The end of a plaintext: what the bytes before it, the body, are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// The body is one complete packet.
    Packet {
        /// Whether its TCP or UDP checksum is still to be computed.
        partial: bool,
    },
    /// The body is a segment of a super-packet: its payload, then the super-packet's headers.
    Segment {
        /// The place of the segment in its super-packet, and the sizes of both.
        segment: Segment,
        /// A number that tells one super-packet of this sender from the ones beside it.
        id: u16,
    },
    /// The body is small packets, each behind its [`ENTRY`](super::ENTRY); see
    /// [`Bundle`](super::Bundle).
    Bundle,
    /// The body is a [`Control`](super::Control) message.
    Control,
    /// The body is counted and dropped: a measurement of what the path carries.
    Filler,
}

impl Trailer {
    /// The eight bytes. Numbers of a segment beyond their field (which
    /// [`SegmentPlan`](crate::packet::segment_plan::SegmentPlan) never makes) give a trailer that no receiver takes.
    pub fn encode(&self) -> [u8; TRAILER] {
        match *self {
            Trailer::Packet { partial } => {
                first_byte(PACKET, if partial { Kind::Partial } else { Kind::None })
            }
            Trailer::Bundle => first_byte(BUNDLE, Kind::None),
            Trailer::Control => first_byte(CONTROL, Kind::None),
            Trailer::Filler => first_byte(FILLER, Kind::None),
            Trailer::Segment { segment, id } => {
                let byte = |value: usize| u8::try_from(value);
                let (Ok(headers), Ok(index), Ok(last), Ok(size)) = (
                    byte(segment.headers),
                    byte(segment.index),
                    byte(segment.last),
                    u16::try_from(segment.size),
                ) else {
                    return [0; TRAILER];
                };
                let ([s0, s1], [i0, i1]) = (size.to_be_bytes(), id.to_be_bytes());
                [
                    SEGMENT << 4 | segment.kind as u8,
                    headers,
                    index,
                    last,
                    s0,
                    s1,
                    i0,
                    i1,
                ]
            }
        }
    }

    /// Reads the eight bytes; none where a field has a value that no sender gives it.
    pub fn decode(bytes: [u8; TRAILER]) -> Option<Trailer> {
        let [kinds, headers, index, last, s0, s1, i0, i1] = bytes;
        let kind = Kind::from_number(kinds & 15)?;
        if kinds >> 4 == SEGMENT {
            let size = usize::from(u16::from_be_bytes([s0, s1]));
            let (headers, index, last) =
                (usize::from(headers), usize::from(index), usize::from(last));
            let segment = Segment {
                kind,
                headers,
                index,
                last,
                size,
            };
            let fits = headers.saturating_add(last.saturating_mul(size)) < MAX_PACKET;
            let good =
                !matches!(kind, Kind::None | Kind::Partial) && index <= last && size > 0 && fits;
            return good.then_some(Trailer::Segment {
                segment,
                id: u16::from_be_bytes([i0, i1]),
            });
        }
        if [headers, index, last, s0, s1, i0, i1] != [0; TRAILER - 1] {
            return None;
        }
        match (kinds >> 4, kind) {
            (PACKET, Kind::None) => Some(Trailer::Packet { partial: false }),
            (PACKET, Kind::Partial) => Some(Trailer::Packet { partial: true }),
            (BUNDLE, Kind::None) => Some(Trailer::Bundle),
            (CONTROL, Kind::None) => Some(Trailer::Control),
            (FILLER, Kind::None) => Some(Trailer::Filler),
            _ => None,
        }
    }
}

/// A trailer whose other fields are unused.
fn first_byte(frame: u8, kind: Kind) -> [u8; TRAILER] {
    [frame << 4 | kind as u8, 0, 0, 0, 0, 0, 0, 0]
}

/// Takes a plaintext apart: the bytes of its body, which are its first, and its trailer. None where it has no good one.
pub fn split(plaintext: &[u8]) -> Option<(usize, Trailer)> {
    let (body, trailer) = plaintext.split_last_chunk()?;
    Some((body.len(), Trailer::decode(*trailer)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_as_written_down() {
        // Frame kind in the high half, offload kind in the low; the rest of these is unused.
        assert_eq!(
            Trailer::Packet { partial: false }.encode(),
            [0x10, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Trailer::Packet { partial: true }.encode(),
            [0x11, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Trailer::Bundle.encode(), [0x20, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Trailer::Control.encode(), [0x40, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Trailer::Filler.encode(), [0x50, 0, 0, 0, 0, 0, 0, 0]);
        // TCP over IPv4, 52 bytes of headers, segment 3 of 44 (0 to 43), 1368 bytes each, super-packet 0xabcd.
        let segment = Segment {
            kind: Kind::Tcp4,
            headers: 52,
            index: 3,
            last: 43,
            size: 1368,
        };
        assert_eq!(
            Trailer::Segment {
                segment,
                id: 0xabcd
            }
            .encode(),
            [0x32, 52, 3, 43, 0x05, 0x58, 0xab, 0xcd]
        );
        let udp6 = Segment {
            kind: Kind::Udp6,
            headers: 48,
            index: 0,
            last: 255,
            size: 1,
        };
        assert_eq!(
            Trailer::decode([0x35, 48, 0, 255, 0, 1, 0, 0]),
            Some(Trailer::Segment {
                segment: udp6,
                id: 0
            })
        );
        for (bad, why) in [
            ([0x00, 0, 0, 0, 0, 0, 0, 0], "no kind"),
            ([0x60, 0, 0, 0, 0, 0, 0, 0], "unknown frame kind"),
            (
                [0x12, 0, 0, 0, 0, 0, 0, 0],
                "a packet that is a super-packet",
            ),
            ([0x10, 0, 0, 0, 0, 0, 0, 1], "an unused field in use"),
            ([0x21, 0, 0, 0, 0, 0, 0, 0], "an unused field in use"),
            ([0x41, 0, 0, 0, 0, 0, 0, 0], "an unused field in use"),
            (
                [0x31, 52, 0, 0, 0, 100, 0, 0],
                "a segment of no super-packet",
            ),
            ([0x36, 52, 0, 0, 0, 100, 0, 0], "unknown offload kind"),
            ([0x32, 52, 2, 1, 0, 100, 0, 0], "behind the last"),
            ([0x32, 52, 0, 1, 0, 0, 0, 0], "no size"),
            (
                [0x32, 52, 0, 255, 1, 1, 0, 0],
                "larger than a packet can be",
            ),
        ] {
            assert_eq!(Trailer::decode(bad), None, "{why}");
        }
        let too_many = Segment {
            index: 256,
            last: 256,
            ..udp6
        };
        assert_eq!(
            Trailer::decode(
                Trailer::Segment {
                    segment: too_many,
                    id: 0
                }
                .encode()
            ),
            None
        );
        assert_eq!(
            (split(&[0x20; 7]), split(&[0x10, 0, 0, 0, 0, 0, 0, 0])),
            (None, Some((0, Trailer::Packet { partial: false })))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn trailers_read_back_and_nothing_else_does(bytes: [u8; 8], frame in 0u8..6, kind in 0u8..8, zeros: bool) {
            let mut bytes = bytes;
            bytes[0] = frame << 4 | kind;
            if zeros { bytes[1..].fill(0); }
            if let Some(trailer) = Trailer::decode(bytes) {
                prop_assert_eq!(trailer.encode(), bytes);
                if let Trailer::Segment { segment, .. } = trailer {
                    prop_assert!(segment.index <= segment.last && segment.headers + segment.last * segment.size < MAX_PACKET);
                }
            }
        }
    }
}
