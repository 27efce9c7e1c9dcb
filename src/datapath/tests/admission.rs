//! What is let in, and from whom.

use super::*;

#[test]
fn source_must_be_leased_to_sender() {
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
    // Outbound: the host sends from an address that is not its own.
    for spoofed in ["10.0.3.5", "10.0.2.5", "192.168.0.1"] {
        a.kernel().inject(&udp(ip(spoofed), ip("10.0.2.7"), b"x"));
    }
    a.wait_count(RED, DropReason::SourceNotLeased, 3);
    // Inbound: node 1 believes that 10.0.3.0/24 is its own.
    let mut lie = SubnetView::clone(&subnet(RED, 1, &[1, 2, 3]));
    lie.routes = Arc::new(routes(&[1, 2, 3], |n| {
        if n == 2 {
            Owner::Member(peer(2))
        } else {
            Owner::Local
        }
    }));
    a.views.store(Arc::new(View {
        generation: 9,
        subnets: [(RED, Arc::new(lie))].into(),
        ..View::default()
    }));
    a.kernel()
        .inject(&udp(ip("10.0.3.5"), ip("10.0.2.7"), b"x"));
    a.kernel()
        .inject(&udp(ip("fd00:3::5"), ip("fd00:2::7"), b"x"));
    let honest = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"honest");
    a.kernel().inject(&honest);
    assert_eq!(
        b.kernel().read(LONG).unwrap().1,
        honest,
        "only the honest one comes"
    );
    b.wait_count(RED, DropReason::SourceNotLeased, 2);
}

#[test]
fn inbound_destination_must_be_here() {
    let runtime = Runtime::new().unwrap();
    let b = Node::new(
        runtime.handle(),
        2,
        &[1, 2, 3],
        &[RED],
        Segmentation::Offload,
    );
    let mut far = stream_to(&runtime, &b, 1);
    for destination in ["10.0.3.7", "192.168.1.1", "224.0.0.1", "127.0.0.1"] {
        write_packet(
            &runtime,
            &mut far,
            0,
            &udp(ip("10.0.1.5"), ip(destination), b"x"),
        );
    }
    b.wait_count(RED, DropReason::NoRoute, 4);
    assert_eq!(b.kernel().read(SHORT), None);
}

#[test]
fn lying_frames_are_malformed_and_the_stream_goes_on() {
    let runtime = Runtime::new().unwrap();
    let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], Segmentation::Offload);
    let mut far = stream_to(&runtime, &b, 1);
    let good = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"good");
    write_packet(&runtime, &mut far, Kind::Tcp4 as u8, &good);
    write_packet(&runtime, &mut far, 0, b"no packet");
    write_packet(&runtime, &mut far, 0, &good[..20]);
    let mut unknown_offload =
        crate::wire::frame::packet_header(&crate::packet::Offload::NONE, good.len());
    unknown_offload[5] = 77;
    write_frame(&runtime, &mut far, unknown_offload, &good);
    write_packet(&runtime, &mut far, 0, &good);
    assert_eq!(b.kernel().read(LONG).unwrap().1, good);
    b.wait_count(RED, DropReason::Malformed, 4);
}

#[test]
fn removed_member_is_cut() {
    let (_runtime, a, b) = two(Segmentation::Offload);
    let packet = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"x");
    a.kernel().inject(&packet);
    assert!(b.kernel().read(LONG).is_some());
    b.publish(&[2]);
    a.kernel().inject(&packet);
    assert_eq!(b.kernel().read(SHORT), None);
    // Its streams are refused from now on, too.
    let (_far, near) = pipe(100);
    b.path.carry_out(
        Key {
            subnet: RED,
            peer: peer(1),
        },
        2,
        via(),
        near,
    );
    assert_eq!(
        b.path.links().connection(Key {
            subnet: RED,
            peer: peer(1)
        }),
        None
    );
}

#[test]
fn stream_of_a_stranger_is_closed_unread() {
    let runtime = Runtime::new().unwrap();
    let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], Segmentation::Offload);
    let mut far = stream_to(&runtime, &b, 3);
    let ended = runtime.block_on(async { futures::AsyncReadExt::read(&mut far, &mut [0]).await });
    assert_eq!(ended.unwrap(), 0);
    assert_eq!(
        b.path
            .links()
            .status(Key {
                subnet: RED,
                peer: peer(3)
            })
            .carried()
            .rx_packets,
        0
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn hostile_streams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], Segmentation::None);
        let mut far = stream_to(&runtime, &b, 1);
        let mut packet = udp(ip("10.0.1.5"), ip("10.0.2.7"), &bytes);
        for (i, byte) in bytes.iter().enumerate().filter(|(i, _)| i % 17 == 3) {
            let at = i % packet.len();
            packet[at] ^= byte;
        }
        let offload = crate::packet::Offload { kind: Kind::from_number(kind % 6).unwrap(), gso_size: bytes.len() as u16 / 3, header_len: 28 };
        write_frame(&runtime, &mut far, crate::wire::frame::packet_header(&offload, packet.len()), &packet);
        let good = udp(ip("10.0.1.5"), ip("10.0.2.7"), b"the end");
        write_packet(&runtime, &mut far, 0, &good);
        let key = Key { subnet: RED, peer: peer(1) };
        runtime.block_on(async {
            while b.path.links().status(key).carried().rx_packets < 2 {
                tokio::task::yield_now().await;
            }
        });
        let mut last = Vec::new();
        while let Some((_, bytes)) = b.kernel().read(Duration::from_millis(1)) { last = bytes; }
        prop_assert_eq!(last, good);
    }
}
