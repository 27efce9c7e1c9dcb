//! Work a kernel leaves undone, and how it is described: [`TunOffload`] beside a packet that crosses a TUN, and
//! [`Offload`], which crosses the wire in its place.
//!
//! A receiver believes none of the sender's numbers: [`Rebuild::plan`] checks them against the packet itself, and what its
//! own kernel is told is made anew from what the packet says.

use super::checksum;
use super::drops::DropReason;
use super::parse::{Packet, TCP, UDP, Version};

/// Smallest segment of a TCP super-packet: the kernel's least MSS (48) without its options.
const MIN_TCP_GSO: usize = 8;
/// Most segments of a UDP super-packet: the kernel's `UDP_MAX_SEGMENTS`.
const MAX_UDP_SEGMENTS: usize = 128;

/// What is left to do on a packet that crosses a TUN, in either direction; a device of any system says it so.
///
/// The default is a complete packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunOffload {
    /// The checksum that is still to be computed; its field holds the pseudo-header's sum. None: all are complete.
    pub checksum: Option<PartialChecksum>,
    /// How a super-packet is to be cut; none: the packet is no larger than it will be on a network.
    pub segments: Option<Segments>,
    /// Bytes of all headers. Only a hint in what a device hands over: it may cover payload, or be 0.
    pub header_len: u16,
}

/// Where a checksum is to be computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The byte at which its range begins; it reaches to the packet's end.
    pub start: u16,
    /// The byte of that range at which the field lies.
    pub offset: u16,
}

/// How a super-packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// The protocol whose headers each segment gets.
    pub kind: SegmentKind,
    /// Payload bytes of one segment; the last may be shorter.
    pub size: u16,
}

/// Protocols by which a super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Each segment is a TCP segment over IPv4.
    Tcp4,
    /// Each segment is a TCP segment over IPv6.
    Tcp6,
    /// Each segment is a UDP datagram, over IPv4 or IPv6.
    Udp,
    /// The device named a kind that was not asked for: such a packet is dropped.
    Unknown,
}

impl TunOffload {
    /// The work left on any UDP super-packet, for asking whether a device takes one.
    pub const UDP_SUPER_PACKET: TunOffload = TunOffload {
        checksum: Some(PartialChecksum {
            start: 0,
            offset: 0,
        }),
        segments: Some(Segments {
            kind: SegmentKind::Udp,
            size: 0,
        }),
        header_len: 0,
    };

    /// Whether the packet is larger than it will be on a network.
    pub fn is_super_packet(self) -> bool {
        self.segments.is_some()
    }
}

/// The kind of work that a kernel left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing is left undone: the packet is ordinary and complete.
    None = 0,
    /// The checksum of one TCP or UDP packet is still to be computed.
    Partial = 1,
    /// The packet is a TCP super-packet over IPv4.
    Tcp4 = 2,
    /// The packet is a TCP super-packet over IPv6.
    Tcp6 = 3,
    /// The packet is a UDP super-packet over IPv4: equal datagrams, of which the last may be
    /// shorter.
    Udp4 = 4,
    /// The packet is a UDP super-packet over IPv6.
    Udp6 = 5,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Kind> {
        match number {
            0 => Some(Kind::None),
            1 => Some(Kind::Partial),
            2 => Some(Kind::Tcp4),
            3 => Some(Kind::Tcp6),
            4 => Some(Kind::Udp4),
            5 => Some(Kind::Udp6),
            _ => None,
        }
    }
}

/// A packet's undone work, as it crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// The kind of work that is left undone.
    pub kind: Kind,
    /// Payload bytes of one segment; 0 where it is no super-packet.
    pub gso_size: u16,
    /// Bytes of all headers, repeated on each segment; 0 where it is no super-packet.
    pub header_len: u16,
}

impl Offload {
    /// The work left undone on a complete packet: none.
    pub const NONE: Offload = Offload {
        kind: Kind::None,
        gso_size: 0,
        header_len: 0,
    };

    /// Bytes of the largest packet this makes on a network.
    pub fn segment_length(&self, packet: &Packet) -> usize {
        match self.kind {
            Kind::None | Kind::Partial => packet.length,
            _ => packet
                .length
                .min(usize::from(self.header_len).saturating_add(usize::from(self.gso_size))),
        }
    }
}

/// What a sender does with a packet its kernel handed over: what to tell the receiver, and a checksum to complete here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// What the receiver is told, across the wire.
    pub offload: Offload,
    /// Checksum range and field for [`checksum::complete`], where the receiver could not find them by itself.
    pub complete: Option<(usize, usize)>,
}

impl Outgoing {
    /// Translates what a device said is left to do on `packet`, whose bytes are `bytes`.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a super-packet of a kind that was not asked for, or that does not hold what is said of
    /// it.
    pub fn new(undone: TunOffload, packet: &Packet, bytes: &[u8]) -> Result<Outgoing, DropReason> {
        if let Some(segments) = undone.segments {
            let kind = match (segments.kind, packet.version) {
                (SegmentKind::Tcp4, Version::V4) => Kind::Tcp4,
                (SegmentKind::Tcp6, Version::V6) => Kind::Tcp6,
                (SegmentKind::Udp, Version::V4) => Kind::Udp4,
                (SegmentKind::Udp, Version::V6) => Kind::Udp6,
                _ => return Err(DropReason::Malformed),
            };
            // The device's header length is only a hint (it may cover payload): the packet says where its headers end.
            let header_len = u16::try_from(packet.headers).map_err(|_| DropReason::Malformed)?;
            let offload = Offload {
                kind,
                gso_size: segments.size,
                header_len,
            };
            Rebuild::plan(packet, &offload)?;
            return Ok(Outgoing {
                offload,
                complete: None,
            });
        }
        let Some(checksum) = undone.checksum else {
            return Ok(Outgoing {
                offload: Offload::NONE,
                complete: None,
            });
        };
        let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
        let plain = start == packet.transport
            && packet.checksum_offset() == Some(offset)
            && field(bytes, start.saturating_add(offset)) == Some(pseudo_sum(packet));
        if plain {
            let offload = Offload {
                kind: Kind::Partial,
                gso_size: 0,
                header_len: 0,
            };
            return Ok(Outgoing {
                offload,
                complete: None,
            });
        }
        // A protocol or header the receiver would not look for (an inner header, a routing header's last address).
        Ok(Outgoing {
            offload: Offload::NONE,
            complete: Some((start, offset)),
        })
    }
}

/// How a receiver makes a packet fit for its own kernel: fields to write, and what the kernel is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuild {
    packet: Packet,
    undone: TunOffload,
}

impl Rebuild {
    /// Checks what a peer said about `packet` against the packet.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] where kind, IP version and protocol disagree, the header length is not the true one, or
    /// the segment size is out of range (TCP: 8 to the payload; UDP: 1 to the payload, at most 128 segments).
    pub fn plan(packet: &Packet, offload: &Offload) -> Result<Rebuild, DropReason> {
        if offload.kind == Kind::None {
            let sizes = (offload.gso_size, offload.header_len) == (0, 0);
            let undone = TunOffload::default();
            return if sizes {
                Ok(Rebuild {
                    packet: *packet,
                    undone,
                })
            } else {
                Err(DropReason::Malformed)
            };
        }
        let checksum_offset = packet.checksum_offset().ok_or(DropReason::Malformed)?;
        let segments = match (offload.kind, packet.version, packet.protocol) {
            (Kind::Partial, _, _) => None,
            (Kind::Tcp4, Version::V4, TCP) => Some(SegmentKind::Tcp4),
            (Kind::Tcp6, Version::V6, TCP) => Some(SegmentKind::Tcp6),
            (Kind::Udp4, Version::V4, UDP) | (Kind::Udp6, Version::V6, UDP) => {
                Some(SegmentKind::Udp)
            }
            _ => return Err(DropReason::Malformed),
        };
        if !sizes_agree(packet, offload) {
            return Err(DropReason::Malformed);
        }
        let number = |value: usize| u16::try_from(value).map_err(|_| DropReason::Malformed);
        let undone = TunOffload {
            checksum: Some(PartialChecksum {
                start: number(packet.transport)?,
                offset: number(checksum_offset)?,
            }),
            segments: segments.map(|kind| Segments {
                kind,
                size: offload.gso_size,
            }),
            header_len: number(packet.headers)?,
        };
        Ok(Rebuild {
            packet: *packet,
            undone,
        })
    }

    /// Writes what the kernel relies on into `bytes` (the packet that was planned for) and gives what it is left to do.
    pub fn apply(&self, bytes: &mut [u8]) -> TunOffload {
        let Some(checksum) = self.undone.checksum else {
            return self.undone;
        };
        let at = usize::from(checksum.start).saturating_add(usize::from(checksum.offset));
        put(bytes, at, pseudo_sum(&self.packet));
        if self.undone.is_super_packet() {
            if self.packet.protocol == UDP {
                // At most 65,535 by the IP header's own length.
                let length = self.packet.length.saturating_sub(self.packet.transport);
                put(
                    bytes,
                    self.packet.transport.saturating_add(4),
                    u16::try_from(length).unwrap_or(u16::MAX),
                );
            }
            write_ip_lengths(bytes, self.packet.version);
        }
        self.undone
    }
}

/// Whether segment size and header length fit the packet.
fn sizes_agree(packet: &Packet, offload: &Offload) -> bool {
    let (size, payload) = (usize::from(offload.gso_size), packet.payload());
    match offload.kind {
        Kind::None | Kind::Partial => (offload.gso_size, offload.header_len) == (0, 0),
        Kind::Tcp4 | Kind::Tcp6 => {
            usize::from(offload.header_len) == packet.headers
                && size >= MIN_TCP_GSO
                && size <= payload
        }
        Kind::Udp4 | Kind::Udp6 => {
            usize::from(offload.header_len) == packet.headers
                && (1..=payload).contains(&size)
                && payload.div_ceil(size) <= MAX_UDP_SEGMENTS
        }
    }
}

/// Folded sum of the packet's pseudo-header: what stands in a partial checksum field.
pub(super) fn pseudo_sum(packet: &Packet) -> u16 {
    let length = packet.length.saturating_sub(packet.transport);
    checksum::fold(checksum::pseudo(
        packet.source,
        packet.destination,
        packet.protocol,
        length,
    ))
}

/// Makes the IP header's length field, and version 4's checksum, those of `bytes`.
pub(super) fn write_ip_lengths(bytes: &mut [u8], version: Version) {
    let length = bytes.len();
    match version {
        Version::V4 => {
            put(bytes, 2, u16::try_from(length).unwrap_or(u16::MAX));
            put(bytes, 10, 0);
            let header = bytes
                .first()
                .map_or(0, |first| usize::from(first & 15).saturating_mul(4));
            let value = checksum::finish(checksum::sum(bytes.get(..header).unwrap_or_default(), 0));
            put(bytes, 10, value);
        }
        Version::V6 => put(
            bytes,
            4,
            u16::try_from(length.saturating_sub(40)).unwrap_or(u16::MAX),
        ),
    }
}

/// The 16-bit field at `at`.
pub(super) fn field(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at.saturating_add(2))
        .and_then(|two| two.try_into().ok())
        .map(u16::from_be_bytes)
}

/// Writes a 16-bit field; a field outside the packet is left alone.
pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(two) = bytes.get_mut(at..at.saturating_add(2)) {
        two.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::super::parse::samples::{ip, tcp, udp};
    use super::*;
    use proptest::prelude::*;

    fn super_packet(kind: Kind, payload: usize) -> Vec<u8> {
        let body = vec![3u8; payload];
        match kind {
            Kind::Tcp4 => tcp(ip("10.0.0.1"), ip("10.0.0.2"), &body),
            Kind::Tcp6 => tcp(ip("fd00::1"), ip("fd00::2"), &body),
            Kind::Udp4 => udp(ip("10.0.0.1"), ip("10.0.0.2"), &body),
            _ => udp(ip("fd00::1"), ip("fd00::2"), &body),
        }
    }

    #[test]
    fn every_super_packet_survives_the_way() {
        for (kind, segments) in [
            (Kind::Tcp4, SegmentKind::Tcp4),
            (Kind::Tcp6, SegmentKind::Tcp6),
            (Kind::Udp4, SegmentKind::Udp),
            (Kind::Udp6, SegmentKind::Udp),
        ] {
            let mut bytes = super_packet(kind, 5000);
            let packet = parse(&bytes).unwrap();
            // As the kernel hands it over: pseudo-header sum, and a header length that is only a hint.
            let offset = packet.checksum_offset().unwrap();
            put(&mut bytes, packet.transport + offset, pseudo_sum(&packet));
            let from_kernel = TunOffload {
                checksum: Some(PartialChecksum {
                    start: packet.transport as u16,
                    offset: offset as u16,
                }),
                segments: Some(Segments {
                    kind: segments,
                    size: 1000,
                }),
                header_len: packet.headers as u16 + 100,
            };
            let out = Outgoing::new(from_kernel, &packet, &bytes).unwrap();
            assert_eq!((out.offload.kind, out.complete), (kind, None));
            let mut arrived = bytes.clone();
            let rebuilt = Rebuild::plan(&packet, &out.offload)
                .unwrap()
                .apply(&mut arrived);
            assert_eq!(
                arrived, bytes,
                "the kernel's own fields are what is rebuilt"
            );
            assert_eq!(
                rebuilt,
                TunOffload {
                    header_len: packet.headers as u16,
                    ..from_kernel
                }
            );
            let unknown = Some(Segments {
                kind: SegmentKind::Unknown,
                size: 1000,
            });
            let unasked = TunOffload {
                segments: unknown,
                ..from_kernel
            };
            assert_eq!(
                Outgoing::new(unasked, &packet, &bytes),
                Err(DropReason::Malformed)
            );
        }
    }

    #[test]
    fn partial_checksum_is_carried_or_completed() {
        for source in [
            udp(ip("10.0.0.1"), ip("10.0.0.2"), b"abc"),
            tcp(ip("fd00::1"), ip("fd00::2"), b"abc"),
        ] {
            let packet = parse(&source).unwrap();
            let (start, offset) = (packet.transport, packet.checksum_offset().unwrap());
            let mut bytes = source.clone();
            put(&mut bytes, start + offset, pseudo_sum(&packet));
            let at = |start: usize| TunOffload {
                checksum: Some(PartialChecksum {
                    start: start as u16,
                    offset: offset as u16,
                }),
                ..TunOffload::default()
            };
            let out = Outgoing::new(at(start), &packet, &bytes).unwrap();
            assert_eq!((out.offload.kind, out.complete), (Kind::Partial, None));
            let rebuilt = Rebuild::plan(&packet, &out.offload)
                .unwrap()
                .apply(&mut bytes);
            assert_eq!(
                (rebuilt.checksum, rebuilt.segments),
                (at(start).checksum, None)
            );
            assert!(checksum::complete(&mut bytes, start, offset));
            assert_eq!(bytes, source);
            assert_eq!(
                Outgoing::new(at(start + 1), &packet, &bytes)
                    .unwrap()
                    .complete,
                Some((start + 1, offset)),
                "an odd place is completed by the sender"
            );
        }
    }

    #[test]
    fn lies_about_a_packet_are_refused() {
        let bytes = super_packet(Kind::Tcp4, 5000);
        let packet = parse(&bytes).unwrap();
        let good = Offload {
            kind: Kind::Tcp4,
            gso_size: 1000,
            header_len: packet.headers as u16,
        };
        assert!(Rebuild::plan(&packet, &good).is_ok());
        for bad in [
            Offload {
                kind: Kind::Tcp6,
                ..good
            },
            Offload {
                kind: Kind::Udp4,
                ..good
            },
            Offload {
                kind: Kind::Partial,
                ..good
            },
            Offload {
                kind: Kind::None,
                ..good
            },
            Offload {
                gso_size: 0,
                ..good
            },
            Offload {
                gso_size: 7,
                ..good
            },
            Offload {
                gso_size: 5001,
                ..good
            },
            Offload {
                header_len: good.header_len - 4,
                ..good
            },
            Offload {
                header_len: good.header_len + 4,
                ..good
            },
        ] {
            assert_eq!(
                Rebuild::plan(&packet, &bad),
                Err(DropReason::Malformed),
                "{bad:?}"
            );
        }
        let bytes = super_packet(Kind::Udp6, 5000);
        let packet = parse(&bytes).unwrap();
        let many = Offload {
            kind: Kind::Udp6,
            gso_size: 39,
            header_len: packet.headers as u16,
        };
        assert_eq!(Rebuild::plan(&packet, &many), Err(DropReason::Malformed));
        assert!(
            Rebuild::plan(
                &packet,
                &Offload {
                    gso_size: 40,
                    ..many
                }
            )
            .is_ok()
        );
    }

    proptest! {
        #[test]
        fn rebuild_never_panics(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..200),
            v4: bool, tcp_or_udp: bool, kind in 0u8..6, gso_size: u16, header_len in prop_oneof![Just(28u16), Just(40), Just(48), Just(60), any::<u16>()],
        ) {
            let length = bytes.len();
            bytes[0] = if v4 { 0x45 } else { 0x60 };
            bytes[if v4 { 9 } else { 6 }] = if tcp_or_udp { TCP } else { UDP };
            let (at, value) = if v4 { (2, length) } else { (4, length - 40) };
            put(&mut bytes, at, value as u16);
            bytes[if v4 { 6 } else { 0 }] &= if v4 { 0 } else { 0xff };
            if let Ok(packet) = parse(&bytes) {
                let offload = Offload { kind: Kind::from_number(kind).unwrap(), gso_size: gso_size % 300, header_len };
                if let Ok(rebuild) = Rebuild::plan(&packet, &offload) {
                    let header = rebuild.apply(&mut bytes);
                    prop_assert!(usize::from(header.header_len) <= length);
                    prop_assert_eq!(parse(&bytes).map(|p| (p.source, p.destination, p.length)), Ok((packet.source, packet.destination, length)));
                }
            }
        }
    }
}
