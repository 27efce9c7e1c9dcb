//! ICMP errors instead of silence (RFC 792, RFC 1812 section 4.3, RFC 4443).
//!
//! Builds the reply; how often one may be sent is the caller's business.

use std::net::IpAddr;

use super::checksum;
use super::offload::{put, write_ip_lengths};
use super::parse::{Fragment, ICMP, ICMPV6, Packet, Version};

/// Bytes of the largest ICMP error over IPv4 (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// Bytes of the largest ICMPv6 error: the least MTU of IPv6 (RFC 4443 section 2.4 c).
const MAX_V6: usize = 1280;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody holds a lease for the destination.
    NoRoute,
    /// Somebody does, and is not there.
    Unreachable,
    /// Too big for the way; the bytes that would fit.
    TooBig(u16),
}

/// Whether a sender may be told about `packet` at all (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 e): never about an
/// ICMP error, a later fragment, or a packet from or to what is no single host.
pub fn may_answer(packet: &Packet, bytes: &[u8]) -> bool {
    let kind = bytes.get(packet.transport).copied();
    let is_error = match packet.protocol {
        // Everything but the queries of version 4 (echo, timestamp, information, address mask) counts as an error.
        ICMP => !matches!(kind, Some(0 | 8 | 13..=18)),
        // Errors have the high bit clear; what has no type byte cannot be told from one. Redirects count with them.
        ICMPV6 => kind.is_none_or(|t| t < 128 || t == 137),
        _ => false,
    };
    !is_error && packet.fragment != Fragment::Later && is_one_host(packet.source) && is_one_host(packet.destination)
}

/// Whether an address belongs to one host: not unspecified, loopback, multicast or broadcast.
fn is_one_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

/// The error to send back to the source of `packet`, coming from `from`; none where there must not be one,
/// or `from` is of the other family.
pub fn reply(packet: &Packet, bytes: &[u8], from: IpAddr, failure: Failure) -> Option<Vec<u8>> {
    if !may_answer(packet, bytes) {
        return None;
    }
    match (packet.version, from, packet.source) {
        (Version::V4, IpAddr::V4(from), IpAddr::V4(to)) => {
            let (code, mtu) = match failure {
                Failure::NoRoute | Failure::Unreachable => (1, 0),
                Failure::TooBig(_) if !packet.dont_fragment => return None,
                Failure::TooBig(mtu) => (4, mtu),
            };
            let quoted = bytes.get(..bytes.len().min(MAX_V4 - 28))?;
            let mut out = vec![0u8; 28];
            out[0] = 0x45;
            // Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
            out[1] = 0xc0;
            out[8] = 64;
            out[9] = ICMP;
            out[12..16].copy_from_slice(&from.octets());
            out[16..20].copy_from_slice(&to.octets());
            out[20] = 3;
            out[21] = code;
            put(&mut out, 26, mtu);
            out.extend_from_slice(quoted);
            write_ip_lengths(&mut out, Version::V4);
            let value = checksum::finish(checksum::sum(out.get(20..)?, 0));
            put(&mut out, 22, value);
            Some(out)
        }
        (Version::V6, IpAddr::V6(from), IpAddr::V6(to)) => {
            let (kind, code, mtu) = match failure {
                Failure::NoRoute => (1, 0, 0),
                Failure::Unreachable => (1, 3, 0),
                Failure::TooBig(mtu) => (2, 0, mtu),
            };
            let quoted = bytes.get(..bytes.len().min(MAX_V6 - 48))?;
            let mut out = vec![0u8; 48];
            out[0] = 0x60;
            out[6] = ICMPV6;
            out[7] = 64;
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            out[40] = kind;
            out[41] = code;
            put(&mut out, 46, mtu);
            out.extend_from_slice(quoted);
            write_ip_lengths(&mut out, Version::V6);
            let start = checksum::pseudo(from.into(), to.into(), ICMPV6, out.len() - 40);
            let value = checksum::finish(checksum::sum(out.get(40..)?, start));
            put(&mut out, 42, value);
            Some(out)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::super::parse::samples::{ip, udp};
    use super::*;
    use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, icmpv4, icmpv6};
    use proptest::prelude::*;

    #[test]
    fn host_unreachable_quotes_the_packet() {
        let lost = udp(ip("10.0.0.1"), ip("10.0.9.9"), &[7; 1000]);
        let out = reply(&parse(&lost).unwrap(), &lost, ip("10.0.0.1"), Failure::NoRoute).unwrap();
        let facts = parse(&out).unwrap();
        assert_eq!((facts.length, facts.destination), (576, ip("10.0.0.1")));
        assert_eq!(checksum::fold(checksum::sum(&out[..20], 0)), 0xffff);
        assert_eq!(checksum::fold(checksum::sum(&out[20..], 0)), 0xffff);
        let icmp = Icmpv4Slice::from_slice(&out[20..]).unwrap();
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host));
        assert_eq!(&out[28..], &lost[..548]);
    }

    #[test]
    fn packet_too_big_names_the_mtu() {
        let lost = udp(ip("fd00::1"), ip("fd00::2"), &[7; 1500]);
        let out = reply(&parse(&lost).unwrap(), &lost, ip("fd00::1"), Failure::TooBig(1420)).unwrap();
        assert_eq!(parse(&out).unwrap().length, 1280);
        let icmp = Icmpv6Slice::from_slice(&out[40..]).unwrap();
        assert!(icmp.is_checksum_valid(ip6("fd00::1"), ip6("fd00::1")));
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1420 });
        let out = reply(&parse(&lost).unwrap(), &lost, ip("fd00::1"), Failure::NoRoute).unwrap();
        let icmp = Icmpv6Slice::from_slice(&out[40..]).unwrap();
        assert_eq!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute));
        let mut df = udp(ip("10.0.0.1"), ip("10.0.9.9"), &[7; 1500]);
        df[6] |= 0x40;
        let out = reply(&parse(&df).unwrap(), &df, ip("10.0.0.1"), Failure::TooBig(1400)).unwrap();
        assert_eq!((out[20], out[21], &out[26..28]), (3, 4, 1400u16.to_be_bytes().as_slice()));
    }

    fn ip6(text: &str) -> [u8; 16] {
        text.parse::<std::net::Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn errors_are_never_answered() {
        let lost = udp(ip("10.0.0.1"), ip("10.0.9.9"), b"x");
        let error = reply(&parse(&lost).unwrap(), &lost, ip("10.0.0.1"), Failure::NoRoute).unwrap();
        assert_eq!(reply(&parse(&error).unwrap(), &error, ip("10.0.0.1"), Failure::NoRoute), None);
        let lost = udp(ip("fd00::1"), ip("fd00::2"), b"x");
        let error = reply(&parse(&lost).unwrap(), &lost, ip("fd00::1"), Failure::NoRoute).unwrap();
        assert_eq!(reply(&parse(&error).unwrap(), &error, ip("fd00::1"), Failure::NoRoute), None);
        for (from, to) in [("10.0.0.1", "224.0.0.251"), ("0.0.0.0", "10.0.0.1"), ("10.0.0.1", "255.255.255.255")] {
            let lost = udp(ip(from), ip(to), b"x");
            assert_eq!(reply(&parse(&lost).unwrap(), &lost, ip("10.0.0.1"), Failure::NoRoute), None);
        }
        let mut later = udp(ip("10.0.0.1"), ip("10.0.9.9"), b"x");
        later[7] = 5;
        assert_eq!(reply(&parse(&later).unwrap(), &later, ip("10.0.0.1"), Failure::NoRoute), None);
    }

    proptest! {
        #[test]
        fn reply_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(packet) = parse(&bytes) {
                for from in [ip("10.0.0.1"), ip("fd00::1")] {
                    let _ = reply(&packet, &bytes, from, Failure::TooBig(1280));
                }
            }
        }
    }
}
