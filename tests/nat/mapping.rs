//! Which port a flow gets, who is let in by it, and how long.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::nat::machine::{Dependence, Drop, Ports, Verdict};
use super::nat::packet::Proto;
use super::nat::site::Firewall;
use super::nat::{Kind, Nat, Side, Site};
use super::packets::{OUR, at, inside, make, out, read};

const HOST: &str = "192.168.1.2:4100";
const A: &str = "198.51.100.1:7000";
const A_OTHER_PORT: &str = "198.51.100.1:7001";
const B: &str = "198.51.100.2:7000";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A datagram leaves at that second; as whom it is seen.
fn leaves(nat: &mut Nat, now: u64, from: &str, to: &str) -> SocketAddrV4 {
    read(&out(nat.outbound(
        seconds(now),
        make(Proto::Udp, at(from), at(to), b"x"),
    )))
    .0
}

/// Whether a datagram to `to` is let in at that second.
fn enters(nat: &mut Nat, now: u64, from: &str, to: SocketAddrV4) -> bool {
    let packet = make(Proto::Udp, at(from), to, b"x");
    matches!(nat.inbound(seconds(now), packet), Verdict::In(_))
}

fn nat(kind: Kind) -> Nat {
    Nat::new(kind, OUR, 5)
}

#[test]
fn filtering_lets_in_by_what_it_depends_on_alone() {
    let kinds = [
        (Kind::full_cone(), [true, true, true]),
        (Kind::address_restricted(), [true, true, false]),
        (Kind::port_restricted(), [true, false, false]),
        (Kind::symmetric(), [true, false, false]),
    ];
    for (kind, expected) in kinds {
        let mut nat = nat(kind.clone());
        let seen = leaves(&mut nat, 0, HOST, A);
        let got = [A, A_OTHER_PORT, B].map(|from| enters(&mut nat, 1, from, seen));
        assert_eq!(got, expected, "{kind:?}");
    }
}

#[test]
fn mapping_is_one_for_every_remote_end_or_one_for_each() {
    for (mapping, same) in [
        (Dependence::Nothing, [true, true]),
        (Dependence::Address, [true, false]),
        (Dependence::AddressAndPort, [false, false]),
    ] {
        let mut nat = nat(Kind {
            mapping,
            ..Kind::symmetric()
        });
        let first = leaves(&mut nat, 0, HOST, A);
        let got = [A_OTHER_PORT, B].map(|to| leaves(&mut nat, 0, HOST, to) == first);
        assert_eq!(got, same, "{mapping:?}");
        assert_eq!(leaves(&mut nat, 1, HOST, A), first, "it stays");
    }
}

#[test]
fn a_port_that_is_kept_goes_to_who_has_it_first() {
    let mut nat = nat(Kind::port_restricted());
    assert_eq!(leaves(&mut nat, 0, HOST, A).port(), 4100);
    assert_eq!(leaves(&mut nat, 0, "192.168.1.3:4100", A).port(), 4101);
    assert_eq!(leaves(&mut nat, 0, HOST, B).port(), 4100);
}

#[test]
fn sequential_ports_differ_by_their_step_and_go_round() {
    let mut nat = nat(Kind {
        ports: Ports::Sequential(4),
        pool: (2000, 2015),
        ..Kind::symmetric()
    });
    let remotes = (1..=4).map(|n| format!("198.51.100.{n}:7000"));
    let ports: Vec<u16> = remotes
        .map(|to| leaves(&mut nat, 0, HOST, &to).port())
        .collect();
    assert_eq!(ports, [2004, 2008, 2012, 2000]);
}

#[test]
fn random_ports_repeat_with_their_seed_and_are_no_sequence() {
    let ports = |seed| -> Vec<u16> {
        let mut nat = Nat::new(Kind::symmetric(), OUR, seed);
        let remotes = (1..=4).map(|n| format!("198.51.100.{n}:7000"));
        remotes
            .map(|to| leaves(&mut nat, 0, HOST, &to).port())
            .collect()
    };
    assert_eq!(ports(9), ports(9));
    assert_ne!(ports(9), ports(10));
    let steps: Vec<i32> = ports(9)
        .windows(2)
        .map(|w| i32::from(w[1]) - i32::from(w[0]))
        .collect();
    assert!(steps[0] != steps[1], "{steps:?}");
}

#[test]
fn an_idle_mapping_ends_and_traffic_of_either_way_keeps_it() {
    let mut nat = nat(Kind {
        idle: seconds(30),
        ..Kind::port_restricted()
    });
    let seen = leaves(&mut nat, 0, HOST, A);
    assert!(enters(&mut nat, 29, A, seen));
    assert!(enters(&mut nat, 58, A, seen), "what came in kept it");
    assert!(!enters(&mut nat, 88, A, seen));
    assert_eq!(nat.mappings(seconds(88)), 0);
}

#[test]
fn an_absolute_lifetime_ends_a_mapping_under_traffic() {
    let mut nat = nat(Kind {
        absolute: Some(seconds(20)),
        ..Kind::symmetric()
    });
    let first = leaves(&mut nat, 0, HOST, A);
    for now in 1..20 {
        assert_eq!(leaves(&mut nat, now, HOST, A), first);
    }
    assert!(enters(&mut nat, 19, A, first));
    assert!(!enters(&mut nat, 20, A, first));
    assert_ne!(leaves(&mut nat, 20, HOST, A), first);
}

#[test]
fn a_quota_counts_one_hosts_mappings_and_frees_what_ended() {
    let mut nat = nat(Kind {
        quota: 2,
        idle: seconds(30),
        ..Kind::symmetric()
    });
    let tries = |nat: &mut Nat, now, from, to| {
        let packet = make(Proto::Udp, at(from), at(to), b"x");
        nat.outbound(seconds(now), packet)
    };
    out(tries(&mut nat, 0, HOST, A));
    out(tries(&mut nat, 0, HOST, B));
    let third = tries(&mut nat, 0, HOST, A_OTHER_PORT);
    assert_eq!(third, Verdict::Dropped(Drop::Quota));
    out(tries(&mut nat, 0, HOST, A));
    out(tries(&mut nat, 0, "192.168.1.3:4100", A_OTHER_PORT));
    out(tries(&mut nat, 31, HOST, A_OTHER_PORT));
}

#[test]
fn a_reboot_forgets_everything_and_brings_the_new_address() {
    let mut nat = nat(Kind::full_cone());
    let seen = leaves(&mut nat, 0, HOST, A);
    let next = Ipv4Addr::new(203, 0, 113, 11);
    nat.reboot(next);
    assert!(!enters(&mut nat, 1, A, seen));
    let now = leaves(&mut nat, 1, HOST, A);
    assert_eq!((*now.ip(), now.port()), (next, seen.port()));
    assert!(!enters(&mut nat, 1, A, seen), "the old address is nobody's");
    assert!(enters(&mut nat, 1, A, now));
}

#[test]
fn a_hairpin_is_turned_round_only_where_it_is_on() {
    let mut nat = nat(Kind::full_cone());
    let seen = leaves(&mut nat, 0, HOST, A);
    let other = at("192.168.1.3:5000");
    let hairpin = make(Proto::Udp, other, seen, b"x");
    let refused = nat.outbound(seconds(1), hairpin.clone());
    assert_eq!(refused, Verdict::Dropped(Drop::Hairpin));
    nat.kind().hairpin = true;
    let came = inside(nat.outbound(seconds(1), hairpin));
    assert_eq!(read(&came), (SocketAddrV4::new(OUR, 5000), at(HOST)));
}

#[test]
fn a_router_that_rejects_answers_the_unsolicited_and_the_early_packet_takes_the_port() {
    let mut nat = nat(Kind {
        reject: true,
        occupies: true,
        ..Kind::port_restricted()
    });
    let port = SocketAddrV4::new(OUR, 4100);
    let early = make(Proto::Udp, at(B), port, b"too early");
    let answer = out(nat.inbound(Duration::ZERO, early));
    assert_eq!(*read(&answer).1.ip(), *at(B).ip());
    assert_eq!(leaves(&mut nat, 1, HOST, A).port(), 4100);
    let moved = leaves(&mut nat, 1, HOST, B);
    assert_ne!(moved.port(), 4100, "it clashes with the early packet");
    assert_eq!(leaves(&mut nat, 2, HOST, B), moved);
    assert!(enters(&mut nat, 2, B, moved) && !enters(&mut nat, 2, B, port));
    assert_eq!(leaves(&mut nat, 40, "192.168.1.2:4100", A).port(), 4100);
}

#[test]
fn connections_of_tcp_are_made_from_inside_only() {
    let mut nat = nat(Kind::full_cone());
    let syn = make(Proto::Tcp, at(HOST), at(A), b"");
    let seen = read(&out(nat.outbound(Duration::ZERO, syn))).0;
    let answers = |nat: &mut Nat, from| {
        let packet = make(Proto::Tcp, at(from), seen, b"");
        matches!(nat.inbound(seconds(600), packet), Verdict::In(_))
    };
    assert!(answers(&mut nat, A) && !answers(&mut nat, B));
}

#[test]
fn two_in_series_translate_twice_and_the_answer_comes_back_through_both() {
    let carrier = Ipv4Addr::new(100, 64, 1, 2);
    let mut site = Site::behind(vec![
        Nat::new(Kind::port_restricted(), carrier, 1),
        Nat::new(Kind::symmetric(), OUR, 2),
    ]);
    let packet = make(Proto::Udp, at(HOST), at(A), b"x");
    let (side, left) = site.carry(Duration::ZERO, Side::Inside, packet).unwrap();
    let (seen, _) = read(&left);
    assert_eq!((side, *seen.ip()), (Side::Outside, OUR));
    let back = make(Proto::Udp, at(A), seen, b"x");
    let (side, came) = site.carry(Duration::ZERO, Side::Outside, back).unwrap();
    assert_eq!((side, read(&came)), (Side::Inside, (at(A), at(HOST))));
    let stray = make(Proto::Udp, at(B), seen, b"x");
    assert!(site.carry(Duration::ZERO, Side::Outside, stray).is_none());
    assert_eq!(site.dropped[&Drop::Unsolicited], 1);
}

#[test]
fn where_udp_is_blocked_tcp_passes() {
    let mut site = Site::behind(vec![Nat::new(Kind::port_restricted(), OUR, 1)]);
    site.udp_blocked = true;
    let mut passes = |proto| {
        let packet = make(proto, at(HOST), at(A), b"x");
        site.carry(Duration::ZERO, Side::Inside, packet).is_some()
    };
    assert!(passes(Proto::Tcp) && !passes(Proto::Udp));
}

#[test]
fn the_firewall_of_ipv6_lets_in_answers_only() {
    let udp = |from: u16, to: u16, out: bool| {
        let (mut source, mut target) = ([0x20; 16], [0x20; 16]);
        source[15] = if out { 1 } else { 2 };
        target[15] = if out { 2 } else { 1 };
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv6(source, target, 20)
            .udp(from, to)
            .write(&mut bytes, b"x")
            .unwrap();
        bytes
    };
    let mut site = Site {
        six: Some(Firewall::default()),
        ..Site::default()
    };
    let enters = |site: &mut Site| {
        site.carry(seconds(1), Side::Outside, udp(9, 5, false))
            .is_some()
    };
    assert!(!enters(&mut site));
    assert!(
        site.carry(seconds(1), Side::Inside, udp(5, 9, true))
            .is_some()
    );
    assert!(enters(&mut site));
    let v4 = make(Proto::Udp, at(HOST), at(A), b"x");
    assert!(
        site.carry(seconds(1), Side::Inside, v4).is_none(),
        "no IPv4 there"
    );
}
