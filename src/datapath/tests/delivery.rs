//! What arrives: whole, in order, in its own subnet, and whatever other peers do.

use super::*;

#[test]
fn packets_pass_both_ways_and_both_versions() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    for (source, destination, body) in [
        ("10.0.1.5", "10.0.2.7", 64),
        ("fd00:1::5", "fd00:2::7", 64),
        // A 1400-byte UDP datagram does not fit 1420 with IPv4 headers (1428): 1392 is the largest that does.
        ("10.0.1.5", "10.0.2.7", 1392),
        ("fd00:1::5", "fd00:2::7", 1372),
    ] {
        let there = udp(ip(source), ip(destination), &vec![7; body]);
        a.kernel().inject(&there);
        assert_eq!(b.kernel().read(LONG), Some((TunOffload::default(), there)));
        let back = tcp(ip(destination), ip(source), &vec![8; body.min(1368 - 20)]);
        b.kernel().inject(&back);
        assert_eq!(a.kernel().read(LONG), Some((TunOffload::default(), back)));
    }
    assert!(a.path.drops(RED).iter().all(|(_, n)| *n == 0));
}

#[test]
fn super_packet_arrives_whole_or_cut_as_the_far_tun_takes_it() {
    for (source, destination) in [("10.0.1.5", "10.0.2.7"), ("fd00:1::5", "fd00:2::7")] {
        let (undone, bytes) = super_packet(ip(source), ip(destination), 60_000);
        let (_runtime, a, b) = two(Segmentation::Offload);
        a.kernel().inject_with(undone, &bytes);
        assert_eq!(b.kernel().read(LONG), Some((undone, bytes.clone())));
        let (_runtime, a, b) = two(Segmentation::None);
        a.kernel().inject_with(undone, &bytes);
        let mut got = 0;
        while got < 60_000 {
            let (none, piece) = b.kernel().read(LONG).unwrap();
            let p = parse(&piece).unwrap();
            assert_eq!(none, TunOffload::default());
            assert!(p.length <= 1420);
            let full =
                checksum::pseudo(p.source, p.destination, p.protocol, p.length - p.transport);
            assert_eq!(
                checksum::fold(checksum::sum(&piece[p.transport..], full)),
                0xffff
            );
            got += p.payload();
        }
    }
}

#[test]
fn many_packets_arrive_in_order() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    let mut sent = 0u32;
    let mut got = 0u32;
    while got < 20_000 {
        while sent < got + 500 {
            let mut body = vec![0; 4 + (sent as usize * 7) % 1300];
            body[..4].copy_from_slice(&sent.to_be_bytes());
            a.kernel()
                .inject(&udp(ip("10.0.1.5"), ip("10.0.2.7"), &body));
            sent += 1;
        }
        let (_, bytes) = b.kernel().read(LONG).unwrap();
        assert_eq!(bytes[28..32], got.to_be_bytes());
        got += 1;
    }
}

#[test]
fn interleaved_flows_reach_their_peers_in_order() {
    let nodes: Vec<u8> = (1..=12).collect();
    let runtime = Runtime::new().unwrap();
    let a = Node::new(runtime.handle(), 1, &nodes, &[RED], Segmentation::Offload);
    let others: Vec<Node> = nodes[1..]
        .iter()
        .map(|n| Node::new(runtime.handle(), *n, &nodes, &[RED], Segmentation::Offload))
        .collect();
    others.iter().for_each(|other| connect(&a, other, RED));
    let packet = |to: u8, i: u8| udp(ip("10.0.1.5"), ip(&format!("10.0.{to}.7")), &[i; 900]);
    for i in 0..100 {
        nodes[1..]
            .iter()
            .for_each(|to| a.kernel().inject(&packet(*to, i)));
    }
    for other in &others {
        for i in 0..100 {
            assert!(
                other
                    .kernel()
                    .read(LONG)
                    .is_some_and(|(_, got)| got == packet(other.me, i)),
                "{i}"
            );
        }
    }
    assert!(a.path.drops(RED).iter().all(|(_, n)| *n == 0));
}

#[test]
fn equal_prefixes_do_not_mix() {
    let runtime = Runtime::new().unwrap();
    let a = Node::new(
        runtime.handle(),
        1,
        &[1, 2],
        &[RED, BLUE],
        Segmentation::Offload,
    );
    let b = Node::new(
        runtime.handle(),
        2,
        &[1, 2],
        &[RED, BLUE],
        Segmentation::Offload,
    );
    connect(&a, &b, RED);
    connect(&a, &b, BLUE);
    for (id, body) in [(RED, b"red "), (BLUE, b"blue")] {
        let packet = udp(ip("10.0.1.5"), ip("10.0.2.7"), body);
        a.kernels[&id].inject(&packet);
        assert_eq!(b.kernels[&id].read(LONG).unwrap().1, packet);
    }
    for id in [RED, BLUE] {
        assert_eq!(b.kernels[&id].read(SHORT), None);
    }
}

#[test]
fn outbound_never_waits_for_a_peer() {
    let runtime = Runtime::new().unwrap();
    let a = Node::new(
        runtime.handle(),
        1,
        &[1, 2, 3],
        &[RED],
        Segmentation::Offload,
    );
    let b = Node::new(
        runtime.handle(),
        2,
        &[1, 2, 3],
        &[RED],
        Segmentation::Offload,
    );
    connect(&a, &b, RED);
    let (stalled, _never_read) = pipe(1);
    a.path.carry_out(
        Key {
            subnet: RED,
            peer: peer(3),
        },
        1,
        via(),
        stalled,
    );
    for i in 0..3000u32 {
        a.kernel()
            .inject(&udp(ip("10.0.1.5"), ip("10.0.3.7"), &[0; 1300]));
        let live = udp(ip("10.0.1.5"), ip("10.0.2.7"), &i.to_be_bytes());
        a.kernel().inject(&live);
        assert_eq!(b.kernel().read(LONG).unwrap().1, live, "packet {i}");
    }
    assert!(a.count(RED, DropReason::QueueFull) > 1000);
}

#[test]
fn equal_datagrams_of_one_read_are_written_at_once() {
    let runtime = Runtime::new().unwrap();
    let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], Segmentation::Offload);
    let mut far = stream_to(&runtime, &b, 1);
    let datagram = udp(ip("fd00:1::5"), ip("fd00:2::7"), &[7; 1000]);
    let stranger = udp(ip("fd00:1::6"), ip("fd00:2::7"), &[8; 1000]);
    let partial = crate::packet::Offload {
        kind: Kind::Partial,
        gso_size: 0,
        header_len: 0,
    };
    let mut bytes = Vec::new();
    for packet in [&datagram, &datagram, &datagram, &stranger, &datagram] {
        bytes.extend_from_slice(&crate::wire::frame::packet_header(&partial, packet.len()));
        bytes.extend_from_slice(packet);
    }
    write_frame(
        &runtime,
        &mut far,
        bytes[..10].try_into().unwrap(),
        &bytes[10..],
    );
    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < 5000 {
        let (undone, packet) = b.kernel().read(LONG).expect("the datagrams");
        let packet = parse(&packet).unwrap();
        assert_eq!(undone.is_super_packet(), packet.payload() > 1000);
        lengths.push(packet.payload());
    }
    // How much one read brings is the pipe's business; the order is ours.
    assert_eq!(
        lengths.iter().rev().take(2).collect::<Vec<_>>(),
        [&1000, &1000]
    );
    assert_eq!(
        b.path
            .links()
            .status(Key {
                subnet: RED,
                peer: peer(1)
            })
            .carried()
            .rx_packets,
        5
    );
}

#[test]
fn deleted_tun_is_told_and_can_be_replaced() {
    let (_runtime, mut a, b) = two(Segmentation::Offload);
    a.kernel().delete_link();
    assert_eq!(a.died.blocking_recv(), Some(TunDied(RED)));
    assert!(!a.path.has_tun(RED));
    let (tun, kernel) = pair(Segmentation::Offload);
    a.path.attach_tun(RED, Arc::new(tun)).unwrap();
    let packet = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"x");
    kernel.inject(&packet);
    assert_eq!(b.kernel().read(LONG).unwrap().1, packet);
}

#[test]
fn inbound_notices_a_deleted_tun() {
    let runtime = Runtime::new().unwrap();
    let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], Segmentation::Offload);
    b.path.detach_tun(RED);
    let mut far = stream_to(&runtime, &b, 1);
    write_packet(
        &runtime,
        &mut far,
        0,
        &udp(ip("10.0.1.5"), ip("10.0.2.7"), b"x"),
    );
    b.wait_count(RED, DropReason::NoRoute, 1);
}
