use super::*;
use crate::model::id::{Name, PeerId};
use crate::model::routes::{Owner, RouteTable};
use crate::model::view::SubnetView;
use crate::packet::offload::{Kind, PartialChecksum, SegmentKind, Segments, TunOffload};
use crate::packet::parse::samples::{ip, tcp, udp};
use crate::packet::{checksum, icmp, parse};
use crate::testing::pipe::{End, pipe};
use crate::tun::memory::{MemoryKernel, Segmentation, pair};
use crate::udp::Port as UdpPort;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};

pub(super) const LONG: Duration = Duration::from_secs(10);
/// How long a packet that must not come is waited for; the packet behind it is the real proof wherever there is one.
const SHORT: Duration = Duration::from_millis(50);

pub(super) const RED: SubnetId = SubnetId([1; 16]);
const BLUE: SubnetId = SubnetId([2; 16]);

pub(super) fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn routes(nodes: &[u8], owner: impl Fn(u8) -> Owner) -> RouteTable {
    let held = |n: u8| {
        [format!("10.0.{n}.0/24"), format!("fd00:{n}::/64")]
            .map(|net| (net.parse().unwrap(), owner(n)))
    };
    nodes.iter().flat_map(|n| held(*n)).collect()
}

/// The subnet as node `me` sees it: node n holds 10.0.n.0/24 and fd00:n::/64.
fn subnet(id: SubnetId, me: u8, nodes: &[u8]) -> Arc<SubnetView> {
    let routes = routes(nodes, |n| {
        if n == me {
            Owner::Local
        } else {
            Owner::Member(peer(n))
        }
    });
    Arc::new(SubnetView {
        id,
        name: Name::from_host("lab"),
        interface: "bw-lab".into(),
        cidr4: "10.0.0.0/16".parse().ok(),
        cidr6: "fd00::/16".parse().ok(),
        addresses: vec![ip(&format!("10.0.{me}.1")), ip(&format!("fd00:{me}::1"))],
        mtu: 1420,
        routes: Arc::new(routes),
        here: [1, 5, 6, 7]
            .iter()
            .flat_map(|n| {
                [
                    ip(&format!("10.0.{me}.{n}")),
                    ip(&format!("fd00:{me}::{n}")),
                ]
            })
            .collect(),
        members: Arc::new(
            nodes
                .iter()
                .filter(|n| **n != me)
                .map(|n| peer(*n))
                .collect::<BTreeSet<_>>(),
        ),
        hosts: nodes
            .iter()
            .filter(|n| **n != me)
            .flat_map(|n| [ip(&format!("10.0.{n}.1")), ip(&format!("fd00:{n}::1"))])
            .collect::<BTreeSet<_>>()
            .into(),
        data_keys: Default::default(),
        zone: Arc::new(crate::model::zone::Zone::empty(&Name::from_host("lab"))),
    })
}

pub(super) struct Node {
    pub(super) me: u8,
    pub(super) path: Datapath,
    views: Arc<ArcSwap<View>>,
    pub(super) died: mpsc::Receiver<TunDied>,
    pub(super) kernels: BTreeMap<SubnetId, MemoryKernel>,
    _wanted: mpsc::Receiver<Key>,
}

impl Node {
    fn new(
        runtime: &Handle,
        me: u8,
        nodes: &[u8],
        subnets: &[SubnetId],
        segmentation: Segmentation,
    ) -> Node {
        let mut node = Node::without_tuns(runtime, me, nodes, subnets);
        for id in subnets {
            let (tun, kernel) = pair(segmentation);
            node.path.attach_tun(*id, Arc::new(tun)).unwrap();
            node.kernels.insert(*id, kernel);
        }
        node
    }

    pub(super) fn without_tuns(
        runtime: &Handle,
        me: u8,
        nodes: &[u8],
        subnets: &[SubnetId],
    ) -> Node {
        Node::with_port(runtime, me, nodes, subnets, None)
    }

    pub(super) fn with_port(
        runtime: &Handle,
        me: u8,
        nodes: &[u8],
        subnets: &[SubnetId],
        port: Option<UdpPort>,
    ) -> Node {
        let subnet_views = subnets
            .iter()
            .map(|id| (*id, subnet(*id, me, nodes)))
            .collect();
        let view = View {
            generation: 1,
            subnets: subnet_views,
            ..View::default()
        };
        let views = Arc::new(ArcSwap::from_pointee(view));
        let (links, wanted) = Links::new(runtime.clone(), port);
        let (path, died) = Datapath::new(Arc::clone(&views), links);
        Node {
            me,
            path,
            views,
            died,
            kernels: BTreeMap::new(),
            _wanted: wanted,
        }
    }

    pub(super) fn kernel(&self) -> &MemoryKernel {
        &self.kernels[&RED]
    }

    pub(super) fn count(&self, subnet: SubnetId, reason: DropReason) -> u64 {
        self.path
            .drops(subnet)
            .iter()
            .find(|(r, _)| *r == reason)
            .unwrap()
            .1
    }

    pub(super) fn wait_count(&self, subnet: SubnetId, reason: DropReason, want: u64) {
        let until = std::time::Instant::now() + LONG;
        while self.count(subnet, reason) < want {
            assert!(
                std::time::Instant::now() < until,
                "{reason}: {} of {want}",
                self.count(subnet, reason)
            );
            std::thread::yield_now();
        }
        assert_eq!(self.count(subnet, reason), want);
    }

    fn publish(&self, nodes: &[u8]) {
        let old = self.views.load();
        let subnets = old
            .subnets
            .keys()
            .map(|id| (*id, subnet(*id, self.me, nodes)))
            .collect();
        let view = View {
            generation: old.generation + 1,
            subnets,
            ..View::default()
        };
        self.path.links().retain(&view);
        self.views.store(Arc::new(view));
    }
}

fn via() -> Via {
    Via {
        transport: "memory",
        remote: "test".into(),
    }
}

/// Connects two nodes in one subnet, both ways.
pub(super) fn connect(a: &Node, b: &Node, id: SubnetId) {
    for (from, to) in [(a, b), (b, a)] {
        let (out, arrives) = pipe(1 << 16);
        from.path.carry_out(
            Key {
                subnet: id,
                peer: peer(to.me),
            },
            1,
            via(),
            out,
        );
        to.path.carry_in(
            Key {
                subnet: id,
                peer: peer(from.me),
            },
            1,
            arrives,
        );
    }
}

fn two(segmentation: Segmentation) -> (Runtime, Node, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let a = Node::new(runtime.handle(), 1, &[1, 2], &[RED], Segmentation::Offload);
    let b = Node::new(runtime.handle(), 2, &[1, 2], &[RED], segmentation);
    connect(&a, &b, RED);
    (runtime, a, b)
}

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

/// A TCP super-packet as the kernel hands it over.
pub(super) fn super_packet(
    source: IpAddr,
    destination: IpAddr,
    body: usize,
) -> (TunOffload, Vec<u8>) {
    let mut bytes = tcp(source, destination, &vec![9; body]);
    let p = parse(&bytes).unwrap();
    let at = p.transport + 16;
    let sum = checksum::fold(checksum::pseudo(
        p.source,
        p.destination,
        p.protocol,
        p.length - p.transport,
    ));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let kind = if source.is_ipv4() {
        SegmentKind::Tcp4
    } else {
        SegmentKind::Tcp6
    };
    let undone = TunOffload {
        checksum: Some(PartialChecksum {
            start: p.transport as u16,
            offset: 16,
        }),
        segments: Some(Segments { kind, size: 1348 }),
        header_len: p.headers as u16,
    };
    (undone, bytes)
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

/// A stream that node 1 opens to `node`, driven by the test.
fn stream_to(runtime: &Runtime, node: &Node, from: u8) -> End {
    let (far, near) = pipe(1 << 20);
    let _in_runtime = runtime.enter();
    node.path.carry_in(
        Key {
            subnet: RED,
            peer: peer(from),
        },
        1,
        near,
    );
    far
}

fn write_frame(runtime: &Runtime, far: &mut End, header: [u8; 10], body: &[u8]) {
    use futures::AsyncWriteExt;
    runtime.block_on(async {
        far.write_all(&header).await.unwrap();
        far.write_all(body).await.unwrap();
    });
}

fn write_packet(runtime: &Runtime, far: &mut End, offload: u8, body: &[u8]) {
    let offload = crate::packet::Offload {
        kind: Kind::from_number(offload).unwrap(),
        gso_size: 0,
        header_len: 0,
    };
    write_frame(
        runtime,
        far,
        crate::wire::frame::packet_header(&offload, body.len()),
        body,
    );
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
fn the_own_search_for_neighbours_is_no_loss() {
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
