//! ICMP errors instead of silence (RFC 792, RFC 1812 section 4.3, RFC 4443).
//!
//! Builds the reply; how often one may be sent is the caller's business.

use std::net::IpAddr;

use super::checksum;
use super::offload::{put, write_ip_lengths};
use super::parse::{Fragment, ICMP, ICMPV6, Packet, TCP, UDP, Version};

/// Bytes of the largest ICMP error over IPv4 (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// Bytes of the largest ICMPv6 error: the least MTU of IPv6 (RFC 4443 section 2.4 c).
const MAX_V6: usize = 1280;

/// Why a packet was not delivered, as the ICMP error tells its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody holds a lease for the destination.
    NoRoute,
    /// A member holds a lease for the destination and cannot be reached.
    Unreachable,
    /// The packet is larger than the way carries; the number is the bytes that would fit.
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
    !is_error
        && packet.fragment != Fragment::Later
        && is_one_host(packet.source)
        && is_one_host(packet.destination)
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

/// Something that whoever was asked for refused, as an ICMP error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prohibited {
    /// The address that was asked.
    pub asked: IpAddr,
    /// Number of the protocol it was asked by.
    pub proto: u8,
    /// The port it was asked at, where the protocol has ports.
    pub port: Option<u16>,
}

/// What an error says was administratively prohibited (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1), where it comes
/// from the very address that was asked and goes to who asked.
pub fn prohibited(packet: &Packet, bytes: &[u8]) -> Option<Prohibited> {
    let error = bytes.get(packet.transport..)?;
    let says = match packet.protocol {
        // Of network, of host, of this kind of packet.
        ICMP => error.first() == Some(&3) && matches!(error.get(1), Some(9 | 10 | 13)),
        ICMPV6 => error.first() == Some(&1) && error.get(1) == Some(&1),
        _ => false,
    };
    // Eight bytes of its own, then the packet it is about, cut somewhere.
    let quoted = error.get(8..).filter(|_| says)?;
    let (source, asked, proto, transport) = match packet.version {
        Version::V4 => {
            let header = quoted.get(..20).filter(|h| h[0] >> 4 == 4)?;
            let address = |at: usize| {
                Some(IpAddr::from(
                    <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
                ))
            };
            (
                address(12)?,
                address(16)?,
                header[9],
                usize::from(header[0] & 15) * 4,
            )
        }
        Version::V6 => {
            let header = quoted.get(..40).filter(|h| h[0] >> 4 == 6)?;
            let address = |at: usize| {
                Some(IpAddr::from(
                    <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?,
                ))
            };
            (address(8)?, address(24)?, header[6], 40)
        }
    };
    if (source, asked) != (packet.destination, packet.source) {
        return None;
    }
    let port = quoted
        .get(transport..)
        .and_then(|ports| Some(u16::from_be_bytes(ports.get(2..4)?.try_into().ok()?)));
    Some(Prohibited {
        asked,
        proto,
        port: port.filter(|_| proto == TCP || proto == UDP),
    })
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
        let out = reply(
            &parse(&lost).unwrap(),
            &lost,
            ip("10.0.0.1"),
            Failure::NoRoute,
        )
        .unwrap();
        let facts = parse(&out).unwrap();
        assert_eq!((facts.length, facts.destination), (576, ip("10.0.0.1")));
        assert_eq!(checksum::fold(checksum::sum(&out[..20], 0)), 0xffff);
        assert_eq!(checksum::fold(checksum::sum(&out[20..], 0)), 0xffff);
        let icmp = Icmpv4Slice::from_slice(&out[20..]).unwrap();
        assert_eq!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host)
        );
        assert_eq!(&out[28..], &lost[..548]);
    }

    #[test]
    fn packet_too_big_names_the_mtu() {
        let lost = udp(ip("fd00::1"), ip("fd00::2"), &[7; 1500]);
        let out = reply(
            &parse(&lost).unwrap(),
            &lost,
            ip("fd00::1"),
            Failure::TooBig(1420),
        )
        .unwrap();
        assert_eq!(parse(&out).unwrap().length, 1280);
        let icmp = Icmpv6Slice::from_slice(&out[40..]).unwrap();
        assert!(icmp.is_checksum_valid(ip6("fd00::1"), ip6("fd00::1")));
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1420 });
        let out = reply(
            &parse(&lost).unwrap(),
            &lost,
            ip("fd00::1"),
            Failure::NoRoute,
        )
        .unwrap();
        let icmp = Icmpv6Slice::from_slice(&out[40..]).unwrap();
        assert_eq!(
            icmp.icmp_type(),
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
        );
        let mut df = udp(ip("10.0.0.1"), ip("10.0.9.9"), &[7; 1500]);
        df[6] |= 0x40;
        let out = reply(
            &parse(&df).unwrap(),
            &df,
            ip("10.0.0.1"),
            Failure::TooBig(1400),
        )
        .unwrap();
        assert_eq!(
            (out[20], out[21], &out[26..28]),
            (3, 4, 1400u16.to_be_bytes().as_slice())
        );
    }

    fn ip6(text: &str) -> [u8; 16] {
        text.parse::<std::net::Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn errors_are_never_answered() {
        let lost = udp(ip("10.0.0.1"), ip("10.0.9.9"), b"x");
        let error = reply(
            &parse(&lost).unwrap(),
            &lost,
            ip("10.0.0.1"),
            Failure::NoRoute,
        )
        .unwrap();
        assert_eq!(
            reply(
                &parse(&error).unwrap(),
                &error,
                ip("10.0.0.1"),
                Failure::NoRoute
            ),
            None
        );
        let lost = udp(ip("fd00::1"), ip("fd00::2"), b"x");
        let error = reply(
            &parse(&lost).unwrap(),
            &lost,
            ip("fd00::1"),
            Failure::NoRoute,
        )
        .unwrap();
        assert_eq!(
            reply(
                &parse(&error).unwrap(),
                &error,
                ip("fd00::1"),
                Failure::NoRoute
            ),
            None
        );
        for (from, to) in [
            ("10.0.0.1", "224.0.0.251"),
            ("0.0.0.0", "10.0.0.1"),
            ("10.0.0.1", "255.255.255.255"),
        ] {
            let lost = udp(ip(from), ip(to), b"x");
            assert_eq!(
                reply(
                    &parse(&lost).unwrap(),
                    &lost,
                    ip("10.0.0.1"),
                    Failure::NoRoute
                ),
                None
            );
        }
        let mut later = udp(ip("10.0.0.1"), ip("10.0.9.9"), b"x");
        later[7] = 5;
        assert_eq!(
            reply(
                &parse(&later).unwrap(),
                &later,
                ip("10.0.0.1"),
                Failure::NoRoute
            ),
            None
        );
    }

    /// The error a kernel answers a datagram with, of that type and code.
    fn error(about: &[u8], from: &str, kind: u8, code: u8) -> Vec<u8> {
        let mut out = reply(&parse(about).unwrap(), about, ip(from), Failure::NoRoute).unwrap();
        let at = parse(&out).unwrap().transport;
        (out[at], out[at + 1]) = (kind, code);
        out
    }

    #[test]
    fn only_who_was_asked_says_what_it_prohibits() {
        let says = |bytes: &[u8]| prohibited(&parse(bytes).unwrap(), bytes);
        for (me, asked, kind, code) in [
            ("10.0.0.1", "10.0.9.9", 3, 13),
            ("fd00::1", "fd00::9", 1, 1),
        ] {
            let mut lost = udp(ip(me), ip(asked), &[7; 100]);
            let ports = parse(&lost).unwrap().transport;
            lost[ports + 2..ports + 4].copy_from_slice(&2222u16.to_be_bytes());
            let right = error(&lost, asked, kind, code);
            assert_eq!(
                says(&right),
                Some(Prohibited {
                    asked: ip(asked),
                    proto: UDP,
                    port: Some(2222)
                })
            );
            assert_eq!(says(&error(&lost, asked, kind, 0)), None, "another reason");
            let other = if ip(me).is_ipv4() {
                "10.0.9.8"
            } else {
                "fd00::8"
            };
            assert_eq!(
                says(&error(&lost, other, kind, code)),
                None,
                "somebody else says so"
            );
            let about_another = udp(ip(other), ip(asked), b"x");
            let mut wrong = error(&about_another, asked, kind, code);
            let to = if ip(me).is_ipv4() { 16..20 } else { 24..40 };
            let mine = right[to.clone()].to_vec();
            wrong[to].copy_from_slice(&mine);
            assert_eq!(says(&wrong), None, "about a packet of somebody else");
        }
    }

    proptest! {
        #[test]
        fn errors_never_panic(lost in proptest::collection::vec(any::<u8>(), 0..80), six: bool, cut in 0usize..120) {
            let (from, kind, code) = if six { ("fd00::9", 1, 1) } else { ("10.0.9.9", 3, 13) };
            let to = if six { "fd00::1" } else { "10.0.0.1" };
            let mut bytes = error(&udp(ip(to), ip(from), &lost), from, kind, code);
            let packet = parse(&bytes).unwrap();
            let whole = bytes.len();
            let quoted = packet.transport + 8;
            for (at, byte) in lost.iter().enumerate().filter(|(at, _)| quoted + at < whole) {
                bytes[quoted + at] = *byte;
            }
            bytes.truncate(whole.saturating_sub(cut));
            let _ = prohibited(&packet, &bytes);
        }

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
