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

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether the packet is a piece of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The piece that holds the transport header.
    First,
    /// A later piece: no transport header.
    Later,
}

/// The facts of one well-formed packet; its length is exactly what its header states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// IP version.
    pub version: Version,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol behind the IP headers and extensions.
    pub protocol: u8,
    /// Where that protocol's bytes begin.
    pub transport: usize,
    /// Bytes of all headers: IP, extensions and, of an unfragmented TCP or UDP packet, the transport header.
    pub headers: usize,
    /// Bytes of the packet.
    pub length: usize,
    /// Whether it is a fragment.
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
            let piece = fragment(header.fragments_offset().value(), header.is_fragmenting_payload());
            (Version::V4, usize::from(header.total_len()), piece, header.dont_fragment())
        }
        IpSlice::Ipv6(v6) => {
            let offset = v6.extensions().clone().into_iter().find_map(|ext| match ext {
                Ipv6ExtensionSlice::Fragment(f) => Some(f.fragment_offset().value()),
                _ => None,
            });
            let piece = fragment(offset.unwrap_or(0), v6.is_payload_fragmented());
            (Version::V6, usize::from(v6.header().payload_length()).saturating_add(40), piece, true)
        }
    };
    // The slice may be longer than the packet states, and length 0 of version 6 means "take it all" to etherparse.
    if stated != bytes.len() {
        return Err(DropReason::Malformed);
    }
    let protocol = ip.payload_ip_number().0;
    let behind = ip.payload().payload;
    let transport = bytes.len().checked_sub(behind.len()).ok_or(DropReason::Malformed)?;
    let own_header = match (fragment, protocol) {
        (Fragment::Whole, TCP) => tcp_header(behind)?,
        (Fragment::Whole, UDP) if behind.len() >= 8 => 8,
        (Fragment::Whole, UDP) => return Err(DropReason::Malformed),
        _ => 0,
    };
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

/// Bytes of the TCP header, options included.
fn tcp_header(behind: &[u8]) -> Result<usize, DropReason> {
    let length = behind.get(12).map(|byte| usize::from(byte >> 4).saturating_mul(4)).ok_or(DropReason::Malformed)?;
    if (20..=behind.len()).contains(&length) { Ok(length) } else { Err(DropReason::Malformed) }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Packets for tests, built by etherparse.
    use etherparse::PacketBuilder;
    use std::net::IpAddr;

    /// A UDP packet with `payload`, checksums complete.
    pub fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                PacketBuilder::ipv4(s.octets(), d.octets(), 64).udp(1111, 2222).write(&mut out, payload).unwrap();
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                PacketBuilder::ipv6(s.octets(), d.octets(), 64).udp(1111, 2222).write(&mut out, payload).unwrap();
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

    /// Shorthand.
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
        assert_eq!((p.transport, p.headers, p.length, p.protocol), (20, 28, 30, UDP));
        let p = parse(&tcp(ip("fd00::1"), ip("fd00::2"), b"hello")).unwrap();
        assert_eq!((p.transport, p.headers, p.protocol, p.payload()), (40, 40 + 32, TCP, 5));
        assert_eq!(p.checksum_offset(), Some(16));
    }

    #[test]
    fn length_must_be_exactly_as_stated() {
        for sample in [udp(ip("10.0.0.1"), ip("10.0.1.1"), b"hi"), udp(ip("fd00::1"), ip("fd00::2"), b"hi")] {
            let mut longer = sample.clone();
            longer.push(0);
            assert_eq!(parse(&longer), Err(DropReason::Malformed));
            assert_eq!(parse(&sample[..sample.len() - 1]), Err(DropReason::Malformed));
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
