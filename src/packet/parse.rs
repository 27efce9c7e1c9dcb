//! What a packet says about itself: addresses, protocol, where its headers end.
//!
//! Copies a few numbers out and keeps no reference, so that the caller may change the bytes afterwards.

use std::net::IpAddr;

use etherparse::{IpSlice, Ipv6ExtensionSlice};

use super::drops::DropReason;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Bytes of the largest packet: an IPv6 header and 65,535 behind it.
pub const MAX_PACKET: usize = 65_575;

/// The IP version of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The packet is IPv4 (RFC 791).
    V4,
    /// The packet is IPv6 (RFC 8200).
    V6,
}

/// Whether the packet is a piece of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// The packet is no piece.
    Whole,
    /// The packet is the piece that holds the transport header.
    First,
    /// The packet is a later piece, without a transport header.
    Later,
}

/// The facts of one well-formed packet; its length is exactly what its header states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The IP version that the header states.
    pub version: Version,
    /// The source address that the header states; nobody has checked that it is the sender's.
    pub source: IpAddr,
    /// The destination address that the IP header states.
    pub destination: IpAddr,
    /// The number of the protocol behind the IP headers and extensions.
    pub protocol: u8,
    /// The byte at which that protocol's bytes begin.
    pub transport: usize,
    /// Bytes of all headers: IP, extensions and, of an unfragmented TCP or UDP packet, the transport header.
    pub headers: usize,
    /// Bytes of the packet.
    pub length: usize,
    /// Whether the packet is a fragment, and which one.
    pub fragment: Fragment,
    /// Version 4's DF bit; always true for version 6, whose routers never cut.
    pub dont_fragment: bool,
}

impl Packet {
    /// Whether this is an unfragmented TCP or UDP packet: one whose checksum and segmentation may be offloaded.
    pub fn is_tcp_or_udp(&self) -> bool {
        self.headers > self.transport
    }

    /// Where the checksum lies, counted from the transport header; none where it is not TCP or UDP.
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            TCP if self.is_tcp_or_udp() => Some(16),
            UDP if self.is_tcp_or_udp() => Some(6),
            _ => None,
        }
    }

    /// Bytes behind all headers.
    pub fn payload(&self) -> usize {
        self.length.saturating_sub(self.headers)
    }
}

/// Reads one packet.
///
/// # Errors
/// [`DropReason::Malformed`]: not IP, cut short or with bytes behind its end, a jumbogram, or a transport header that
/// does not fit.
pub fn parse(bytes: &[u8]) -> Result<Packet, DropReason> {
    let ip = IpSlice::from_slice(bytes).map_err(|_| DropReason::Malformed)?;
    let (version, stated, fragment, dont_fragment) = match &ip {
        IpSlice::Ipv4(v4) => {
            let header = v4.header();
            let piece = fragment(
                header.fragments_offset().value(),
                header.is_fragmenting_payload(),
            );
            (
                Version::V4,
                usize::from(header.total_len()),
                piece,
                header.dont_fragment(),
            )
        }
        IpSlice::Ipv6(v6) => {
            let offset = v6
                .extensions()
                .clone()
                .into_iter()
                .find_map(|ext| match ext {
                    Ipv6ExtensionSlice::Fragment(f) => Some(f.fragment_offset().value()),
                    _ => None,
                });
            let piece = fragment(offset.unwrap_or(0), v6.is_payload_fragmented());
            (
                Version::V6,
                usize::from(v6.header().payload_length()).saturating_add(40),
                piece,
                true,
            )
        }
    };
    // The slice may be longer than the packet states, and length 0 of version 6 means "take it all" to etherparse.
    if stated != bytes.len() {
        return Err(DropReason::Malformed);
    }
    let protocol = ip.payload_ip_number().0;
    let behind = ip.payload().payload;
    let transport = bytes
        .len()
        .checked_sub(behind.len())
        .ok_or(DropReason::Malformed)?;
    let own_header = transport_header(fragment, protocol, behind)?;
    Ok(Packet {
        version,
        source: ip.source_addr(),
        destination: ip.destination_addr(),
        protocol,
        transport,
        headers: transport.saturating_add(own_header),
        length: bytes.len(),
        fragment,
        dont_fragment,
    })
}

/// Which piece a fragment offset and "it is a piece" make.
fn fragment(offset: u16, is_piece: bool) -> Fragment {
    match (is_piece, offset) {
        (false, _) => Fragment::Whole,
        (true, 0) => Fragment::First,
        (true, _) => Fragment::Later,
    }
}

/// Bytes of the TCP or UDP header; 0 for another protocol, or a fragment.
fn transport_header(fragment: Fragment, protocol: u8, behind: &[u8]) -> Result<usize, DropReason> {
    match (fragment, protocol) {
        (Fragment::Whole, TCP) => tcp_header(behind),
        (Fragment::Whole, UDP) if behind.len() >= 8 => Ok(8),
        (Fragment::Whole, UDP) => Err(DropReason::Malformed),
        _ => Ok(0),
    }
}

/// Bytes of the TCP header, options included.
fn tcp_header(behind: &[u8]) -> Result<usize, DropReason> {
    let length = behind
        .get(12)
        .map(|byte| usize::from(byte >> 4).saturating_mul(4))
        .ok_or(DropReason::Malformed)?;
    if (20..=behind.len()).contains(&length) {
        Ok(length)
    } else {
        Err(DropReason::Malformed)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Packets for tests, built by etherparse.
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::net::IpAddr;

    use super::super::offload::{Kind, Offload, pseudo_sum, put, write_ip_lengths};
    use super::{TCP, UDP, parse};

    /// A UDP packet with `payload`, checksums complete.
    pub fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                PacketBuilder::ipv4(s.octets(), d.octets(), 64)
                    .udp(1111, 2222)
                    .write(&mut out, payload)
                    .unwrap();
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                PacketBuilder::ipv6(s.octets(), d.octets(), 64)
                    .udp(1111, 2222)
                    .write(&mut out, payload)
                    .unwrap();
            }
            _ => panic!("mixed families"),
        }
        out
    }

    /// A TCP packet with a time stamp option and `payload`, checksums complete, PSH and FIN set.
    pub fn tcp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let options = [etherparse::TcpOptionElement::Timestamp(1, 2)];
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), 64)
                .tcp(1111, 2222, 0xffff_ff00, 500)
                .ack(7)
                .psh()
                .fin()
                .options(&options)
                .unwrap()
                .write(&mut out, payload)
                .unwrap(),
            (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), 64)
                .tcp(1111, 2222, 0xffff_ff00, 500)
                .ack(7)
                .psh()
                .fin()
                .options(&options)
                .unwrap()
                .write(&mut out, payload)
                .unwrap(),
            _ => panic!("mixed families"),
        }
        out
    }

    /// Super-packets of all four kinds as a kernel hands them over, up to 24,000 bytes: any flags, numbers, options and
    /// extension headers, the checksum partial, sizes of 8 to 1500.
    pub fn super_packets() -> impl Strategy<Value = (Vec<u8>, Offload)> {
        let kind = prop_oneof![
            Just(Kind::Tcp4),
            Just(Kind::Tcp6),
            Just(Kind::Udp4),
            Just(Kind::Udp6)
        ];
        let ip = (
            any::<u8>(),
            any::<u16>(),
            any::<bool>(),
            prop_oneof![2 => Just(0usize), 1 => 0usize..=10],
        );
        let tcp = (any::<u32>(), any::<u8>(), any::<u16>(), 0usize..=10);
        let sizes = (
            prop_oneof![1 => 8usize..100, 3 => 100usize..1500],
            1usize..40,
            1usize..=1500,
            any::<u64>(),
        );
        (kind, ip, tcp, sizes).prop_map(
            |(kind, (tos, id, df, ip_words), (sequence, flags, urgent, words), sizes)| {
                let (size, full, last, seed) = sizes;
                let is_tcp = matches!(kind, Kind::Tcp4 | Kind::Tcp6);
                let mut bytes = if matches!(kind, Kind::Tcp4 | Kind::Udp4) {
                    let mut ip = vec![
                        0x45 + ip_words as u8,
                        tos,
                        0,
                        0,
                        0,
                        0,
                        if df { 0x40 } else { 0 },
                        0,
                        64,
                    ];
                    ip.extend_from_slice(&[
                        if is_tcp { TCP } else { UDP },
                        0,
                        0,
                        10,
                        1,
                        2,
                        3,
                        10,
                        9,
                        8,
                        7,
                    ]);
                    put(&mut ip, 4, id);
                    ip.resize(20 + 4 * ip_words, 1);
                    ip
                } else {
                    let protocol = if is_tcp { TCP } else { UDP };
                    let mut ip = vec![0x60 | tos >> 4, tos << 4, id as u8, 7, 0, 0, protocol, 64];
                    ip.extend_from_slice(&[0xfd; 32]);
                    if ip_words > 0 {
                        // Destination options: as many eight-byte words of padding.
                        ip[6] = 60;
                        let room = 8 * ip_words - 4;
                        ip.extend_from_slice(&[protocol, (ip_words - 1) as u8, 1, room as u8]);
                        ip.resize(40 + 8 * ip_words, 0);
                    }
                    ip
                };
                bytes.extend_from_slice(&[0x12, 0x34, 0x56, 0x78]);
                if is_tcp {
                    bytes.extend_from_slice(&sequence.to_be_bytes());
                    bytes.extend_from_slice(&[
                        9,
                        8,
                        7,
                        6,
                        0x50 + 0x10 * words as u8,
                        flags,
                        1,
                        2,
                        0,
                        0,
                    ]);
                    bytes.extend_from_slice(&urgent.to_be_bytes());
                    bytes.resize(bytes.len() + 4 * words, 1);
                } else {
                    bytes.extend_from_slice(&[0; 4]);
                }
                let payload = (size * full + last.min(size)).min(23_000);
                let mut state = seed | 1;
                bytes.extend((0..payload).map(|_| {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (state >> 56) as u8
                }));
                let version = parse_version(&bytes);
                write_ip_lengths(&mut bytes, version);
                let packet = parse(&bytes).unwrap();
                put(
                    &mut bytes,
                    packet.transport + packet.checksum_offset().unwrap(),
                    pseudo_sum(&packet),
                );
                if !is_tcp {
                    put(
                        &mut bytes,
                        packet.transport + 4,
                        (packet.length - packet.transport) as u16,
                    );
                }
                (
                    bytes,
                    Offload {
                        kind,
                        gso_size: size as u16,
                        header_len: packet.headers as u16,
                    },
                )
            },
        )
    }

    fn parse_version(bytes: &[u8]) -> super::Version {
        if bytes[0] >> 4 == 4 {
            super::Version::V4
        } else {
            super::Version::V6
        }
    }

    /// What becomes of `count` things on the way: lost, doubled, moved by a few places. Their numbers as they arrive.
    pub fn arrivals(count: usize, fates: &[(u8, usize)]) -> Vec<usize> {
        let mut out: Vec<_> = (0..count)
            .zip(fates.iter().cycle())
            .flat_map(|(i, (copies, late))| {
                (0..[0, 1, 1, 1, 1, 1, 1, 2][usize::from(*copies % 8)])
                    .map(move |c| (i + late * c.max(1), i))
            })
            .collect();
        out.sort_by_key(|(at, _)| *at);
        out.into_iter().map(|(_, i)| i).collect()
    }

    /// Fates for [`arrivals`]: mostly none.
    pub fn fates() -> impl Strategy<Value = Vec<(u8, usize)>> {
        let late = prop_oneof![8 => Just(0usize), 1 => 1usize..5];
        prop::collection::vec((any::<u8>(), late), 1..64)
    }

    /// Parses an address that a test spells out.
    pub fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{ip, tcp, udp};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_both_versions() {
        let p = parse(&udp(ip("10.0.0.1"), ip("10.0.1.1"), b"hi")).unwrap();
        assert_eq!(
            (p.transport, p.headers, p.length, p.protocol),
            (20, 28, 30, UDP)
        );
        let p = parse(&tcp(ip("fd00::1"), ip("fd00::2"), b"hello")).unwrap();
        assert_eq!(
            (p.transport, p.headers, p.protocol, p.payload()),
            (40, 40 + 32, TCP, 5)
        );
        assert_eq!(p.checksum_offset(), Some(16));
    }

    #[test]
    fn length_must_be_exactly_as_stated() {
        for sample in [
            udp(ip("10.0.0.1"), ip("10.0.1.1"), b"hi"),
            udp(ip("fd00::1"), ip("fd00::2"), b"hi"),
        ] {
            let mut longer = sample.clone();
            longer.push(0);
            assert_eq!(parse(&longer), Err(DropReason::Malformed));
            assert_eq!(
                parse(&sample[..sample.len() - 1]),
                Err(DropReason::Malformed)
            );
        }
        let mut jumbo = udp(ip("fd00::1"), ip("fd00::2"), b"hi");
        jumbo[4..6].copy_from_slice(&[0, 0]);
        assert_eq!(parse(&jumbo), Err(DropReason::Malformed));
    }

    #[test]
    fn fragments_have_no_transport() {
        let mut later = udp(ip("10.0.0.1"), ip("10.0.1.1"), b"hi");
        later[7] = 9;
        let p = parse(&later).unwrap();
        assert_eq!((p.fragment, p.is_tcp_or_udp()), (Fragment::Later, false));
        later[6] = 0x20;
        later[7] = 0;
        assert_eq!(parse(&later).unwrap().fragment, Fragment::First);
    }

    #[test]
    fn tcp_header_must_fit() {
        let mut bad = tcp(ip("10.0.0.1"), ip("10.0.1.1"), b"");
        for offset in [0x40, 0xf0] {
            bad[32] = offset;
            assert_eq!(parse(&bad), Err(DropReason::Malformed));
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..3) {
            if let Some(first) = bytes.first_mut() {
                match version { 0 => *first = 0x45, 1 => *first = 0x60, _ => {} }
            }
            let _ = parse(&bytes);
            // The same with an honest length, so that the checks behind it are reached.
            let length = bytes.len();
            if version == 0 && length > 4 {
                bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            } else if version == 1 && length > 40 {
                bytes[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            }
            if let Ok(p) = parse(&bytes) {
                prop_assert!(p.transport <= p.headers && p.headers <= p.length && p.length == length);
            }
        }
    }
}
