//! What is refused, and what its sender is told.

use super::*;

#[test]
fn no_route_is_answered_and_noise_is_not() {
    let (_runtime, a, _b) = two(Segmentation::Offload);
    for (source, destination) in [
        ("10.0.1.5", "10.0.9.9"),
        ("fd00:1::5", "fd00:9::9"),
        ("10.0.1.5", "10.0.1.77"),
    ] {
        let lost = udp(ip(source), ip(destination), b"lost");
        a.kernel().inject(&lost);
        let (_, reply) = a.kernel().read(LONG).unwrap();
        let p = parse(&reply).unwrap();
        assert_eq!(p.destination, ip(source));
        assert!(reply.ends_with(&lost));
    }
    a.wait_count(RED, DropReason::NoRoute, 3);
    for (source, destination) in [
        ("fe80::1", "ff02::2"),
        ("10.0.1.5", "224.0.0.251"),
        ("10.0.1.5", "255.255.255.255"),
        ("fd00:1::5", "fe80::9"),
        ("0.0.0.0", "10.0.2.2"),
    ] {
        a.kernel()
            .inject(&udp(ip(source), ip(destination), b"noise"));
    }
    a.wait_count(RED, DropReason::Filtered, 5);
    assert_eq!(a.kernel().read(SHORT), None, "noise is not answered");
}

#[test]
fn refusals_of_a_members_machine_are_heard_and_passed_on() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    let refused = |asked: &str, by: &str, code: u8| {
        let mut lost = udp(
            ip(if by.contains('.') {
                "10.0.1.5"
            } else {
                "fd00:1::5"
            }),
            ip(asked),
            b"?",
        );
        let ports = parse(&lost).unwrap().transport;
        lost[ports + 2..ports + 4].copy_from_slice(&2222u16.to_be_bytes());
        let mut error = icmp::reply(
            &parse(&lost).unwrap(),
            &lost,
            ip(by),
            icmp::Failure::NoRoute,
        )
        .unwrap();
        let at = parse(&error).unwrap().transport;
        error[at + 1] = code;
        b.kernel().inject(&error);
        assert_eq!(
            a.kernel().read(LONG).map(|(_, packet)| packet),
            Some(error),
            "passed on"
        );
    };
    let key = Key {
        subnet: RED,
        peer: peer(2),
    };
    let heard = || {
        a.path
            .refusals(key)
            .into_iter()
            .map(|r| (r.address, r.proto, r.port))
            .collect::<Vec<_>>()
    };
    // A workload's refusal, and one for another reason, are nothing to us.
    refused("10.0.2.7", "10.0.2.7", 13);
    refused("10.0.2.1", "10.0.2.1", 1);
    assert_eq!(heard(), []);
    refused("10.0.2.1", "10.0.2.1", 13);
    refused("fd00:2::1", "fd00:2::1", 1);
    let both = [
        (ip("fd00:2::1"), 17, Some(2222)),
        (ip("10.0.2.1"), 17, Some(2222)),
    ];
    assert_eq!(heard(), both);
    // What the port says ends it; another port says nothing about it.
    let says = |from: &str, to: &str, port: u16| {
        let mut packet = udp(ip(from), ip(to), b"!");
        let ports = parse(&packet).unwrap().transport;
        packet[ports..ports + 2].copy_from_slice(&port.to_be_bytes());
        b.kernel().inject(&packet);
        assert!(a.kernel().read(LONG).is_some());
    };
    says("10.0.2.1", "10.0.1.5", 80);
    says("10.0.2.7", "10.0.1.5", 2222);
    assert_eq!(heard(), both);
    says("10.0.2.1", "10.0.1.5", 2222);
    assert_eq!(heard(), both[..1]);
}

#[test]
fn too_big_is_answered_with_the_mtu() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    a.kernel()
        .inject(&udp(ip("fd00:1::5"), ip("fd00:2::7"), &[0; 1400]));
    let (_, reply) = a.kernel().read(LONG).unwrap();
    assert_eq!(
        (reply[40], &reply[44..48]),
        (2, 1420u32.to_be_bytes().as_slice())
    );
    a.wait_count(RED, DropReason::TooBig, 1);
    assert_eq!(b.kernel().read(SHORT), None);
}

#[test]
fn too_big_from_a_peer_is_answered_through_its_stream() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    let view = View::clone(&a.views.load());
    let roomy = |s: &Arc<SubnetView>| {
        Arc::new(SubnetView {
            mtu: 9000,
            ..SubnetView::clone(s)
        })
    };
    let subnets = view.subnets.iter().map(|(id, s)| (*id, roomy(s))).collect();
    a.views.store(Arc::new(View {
        generation: view.generation + 1,
        subnets,
        ..view
    }));
    // Six: the kernel at the far end would have to cut it, which it may not.
    a.kernel()
        .inject(&udp(ip("fd00:1::5"), ip("fd00:2::7"), &[7; 2000]));
    let (_, reply) = a.kernel().read(LONG).expect("an ICMP error");
    assert_eq!(
        (reply[40], &reply[44..48]),
        (2, 1420u32.to_be_bytes().as_slice())
    );
    assert_eq!(parse(&reply).unwrap().source, ip("fd00:2::1"));
    b.wait_count(RED, DropReason::TooBig, 1);
    // Four without DF: the far kernel cuts it where it must.
    let mut whole = udp(ip("10.0.1.5"), ip("10.0.2.7"), &[7; 2000]);
    whole[6] &= !0x40;
    a.kernel().inject(&whole);
    assert!(
        b.kernel()
            .read(LONG)
            .is_some_and(|(_, packet)| packet == whole)
    );
}

#[test]
fn the_own_search_for_lan_peers_is_no_loss() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    let to_port = |from: &str, to: &str, port: u16| {
        let mut packet = udp(ip(from), ip(to), b"who is there");
        let at = parse(&packet).unwrap().transport + 2;
        packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
        packet
    };
    for (own, group) in [("10.0.1.1", "224.0.0.251"), ("fd00:1::1", "ff02::fb")] {
        a.kernel().inject(&to_port(own, group, 5353));
        a.kernel().inject(&to_port(own, group, 5354));
    }
    // A workload's own search is not ours.
    a.kernel().inject(&to_port("10.0.1.5", "224.0.0.251", 5353));
    a.wait_count(RED, DropReason::Filtered, 3);
    assert_eq!(b.kernel().read(SHORT), None);
}

#[test]
fn what_is_not_here_is_answered_through_the_peers_stream() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    // Of node 2's own lease, and nothing is attached there.
    for (from, to, own) in [
        ("10.0.1.5", "10.0.2.99", "10.0.2.1"),
        ("fd00:1::5", "fd00:2::99", "fd00:2::1"),
    ] {
        let lost = udp(ip(from), ip(to), b"is anybody there");
        a.kernel().inject(&lost);
        let (_, reply) = a.kernel().read(LONG).expect("an ICMP error");
        let facts = parse(&reply).unwrap();
        assert_eq!((facts.source, facts.destination), (ip(own), ip(from)));
        let says = (reply[facts.transport], reply[facts.transport + 1]);
        assert_eq!(says, if ip(from).is_ipv4() { (3, 1) } else { (1, 3) });
        assert_eq!(
            &reply[facts.transport + 8..],
            &lost,
            "it quotes the packet that was lost"
        );
    }
    // An error is not answered, nor what comes from an address that is not the sender's.
    let lost = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"x");
    let mut error = icmp::reply(
        &parse(&lost).unwrap(),
        &lost,
        ip("10.0.1.5"),
        icmp::Failure::NoRoute,
    )
    .unwrap();
    error[16..20].copy_from_slice(&[10, 0, 2, 99]);
    error[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum::finish(checksum::sum(&error[..20], 0));
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    a.kernel().inject(&error);
    b.wait_count(RED, DropReason::NoRoute, 3);
    assert_eq!(a.kernel().read(SHORT), None);
    // A flood is answered as often as the bucket allows, and every packet of it is counted.
    let lost = udp(ip("10.0.1.5"), ip("10.0.2.99"), b"x");
    (0..500).for_each(|_| a.kernel().inject(&lost));
    b.wait_count(RED, DropReason::NoRoute, 503);
    let answers = std::iter::from_fn(|| a.kernel().read(SHORT)).count();
    assert!((1..=100).contains(&answers), "{answers} answers");
}
