//! Packets made by hand, and what is left of them after a NAT: whole checksums, errors that name who they are for.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use etherparse::{IpHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::nat::machine::Verdict;
use super::nat::packet::{self, Proto};
use super::nat::{Kind, Nat};

pub const OUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

pub fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn built(
    builder: etherparse::PacketBuilderStep<IpHeaders>,
    proto: Proto,
    from: u16,
    to: u16,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    match proto {
        Proto::Udp => builder.udp(from, to).write(&mut bytes, body),
        Proto::Tcp => builder.tcp(from, to, 7, 100).syn().write(&mut bytes, body),
        Proto::Echo if to == 0 => builder.icmpv4_echo_request(from, 1).write(&mut bytes, body),
        Proto::Echo => builder.icmpv4_echo_reply(to, 1).write(&mut bytes, body),
    }
    .unwrap();
    bytes
}

/// A packet with valid checksums.
pub fn make(proto: Proto, from: SocketAddrV4, to: SocketAddrV4, body: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 20);
    built(ip, proto, from.port(), to.port(), body)
}

/// Both ends of a packet whose checksums are valid.
pub fn read(packet: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let headers = PacketHeaders::from_ip_slice(packet).unwrap();
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = headers.net else {
        panic!("no IPv4")
    };
    assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4");
    let body = headers.payload.slice();
    let (from, to) = match headers.transport.unwrap() {
        TransportHeader::Udp(udp) => {
            let sum = udp.calc_checksum_ipv4(&ip, body).unwrap();
            assert!(udp.checksum == sum || udp.checksum == 0, "UDP");
            (udp.source_port, udp.destination_port)
        }
        TransportHeader::Tcp(tcp) => {
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, body).unwrap());
            (tcp.source_port, tcp.destination_port)
        }
        TransportHeader::Icmpv4(icmp) => {
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(body), "ICMP");
            match icmp.icmp_type {
                etherparse::Icmpv4Type::EchoRequest(echo) => (echo.id, 0),
                etherparse::Icmpv4Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            }
        }
        other => panic!("{other:?}"),
    };
    let (source, target) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
    (
        SocketAddrV4::new(source, from),
        SocketAddrV4::new(target, to),
    )
}

/// What came out towards the outside.
pub fn out(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Out(packet) => packet,
        other => panic!("{other:?}"),
    }
}

/// What came in.
pub fn inside(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::In(packet) => packet,
        other => panic!("{other:?}"),
    }
}

fn protos() -> impl Strategy<Value = Proto> {
    prop_oneof![Just(Proto::Udp), Just(Proto::Tcp), Just(Proto::Echo)]
}

proptest! {
    /// Whatever the packet, what leaves has valid checksums, bears our address, and its answer comes back to who asked.
    #[test]
    fn a_packet_and_its_answer_keep_whole_checksums(
        proto in protos(), host in 2u8..250, from in 1u16.., remote: [u8; 4], to in 1u16..,
        body in prop::collection::vec(any::<u8>(), 0..64), seed: u64,
    ) {
        let source = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, host), from);
        let remote = Ipv4Addr::from(remote);
        prop_assume!(remote != OUR);
        let target = SocketAddrV4::new(remote, if proto == Proto::Echo { 0 } else { to });
        let mut nat = Nat::new(Kind::symmetric(), OUR, seed);
        let left = out(nat.outbound(Duration::ZERO, make(proto, source, target, &body)));
        let (seen, to) = read(&left);
        prop_assert_eq!((*seen.ip(), to), (OUR, target));
        let answer = make(proto, target, seen, &body);
        prop_assert_eq!(read(&inside(nat.inbound(Duration::ZERO, answer))), (target, source));
    }

    /// No bytes of anybody bring it down.
    #[test]
    fn any_bytes_are_borne(packet in prop::collection::vec(any::<u8>(), 0..120), first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()]) {
        let mut packet = packet;
        if let Some(byte) = packet.first_mut() {
            *byte = first;
        }
        let mut nat = Nat::new(Kind::full_cone(), OUR, 1);
        let _ = nat.outbound(Duration::ZERO, packet.clone());
        let _ = nat.inbound(Duration::ZERO, packet);
    }
}

#[test]
fn an_error_from_outside_reaches_who_sent_and_speaks_of_what_it_sent() {
    let mut nat = Nat::new(Kind::symmetric(), OUR, 3);
    let (source, target) = (at("192.168.1.2:4100"), at("198.51.100.1:4100"));
    let left = out(nat.outbound(Duration::ZERO, make(Proto::Udp, source, target, b"hello")));
    let error = packet::refusal(&left, *target.ip()).unwrap();
    let came = inside(nat.inbound(Duration::ZERO, error));
    assert_eq!(*read(&came).1.ip(), *source.ip());
    let about = packet::seen(&came);
    let packet::Seen::Error(flow) = about else {
        panic!("{about:?}")
    };
    assert_eq!((flow.source, flow.target), (source.into(), target.into()));
}

#[test]
fn an_error_from_inside_leaves_under_our_address() {
    let mut nat = Nat::new(Kind::full_cone(), OUR, 3);
    let (host, remote) = (at("192.168.1.2:4100"), at("198.51.100.1:4100"));
    let left = out(nat.outbound(Duration::ZERO, make(Proto::Udp, host, remote, b"")));
    let (outside, _) = read(&left);
    let came = inside(nat.inbound(
        Duration::ZERO,
        make(Proto::Udp, remote, outside, b"to a closed port"),
    ));
    let error = packet::refusal(&came, *host.ip()).unwrap();
    let sent = out(nat.outbound(Duration::ZERO, error));
    assert_eq!(*read(&sent).0.ip(), OUR);
    let packet::Seen::Error(flow) = packet::seen(&sent) else {
        panic!("no error")
    };
    assert_eq!((flow.source, flow.target), (remote.into(), outside.into()));
}

#[test]
fn a_datagram_without_a_checksum_stays_without_one() {
    let mut nat = Nat::new(Kind::full_cone(), OUR, 3);
    let mut packet = make(
        Proto::Udp,
        at("192.168.1.2:4100"),
        at("198.51.100.1:4100"),
        b"x",
    );
    packet[26..28].fill(0);
    let left = out(nat.outbound(Duration::ZERO, packet));
    assert_eq!(left[26..28], [0, 0]);
    assert_eq!(*read(&left).0.ip(), OUR);
}
