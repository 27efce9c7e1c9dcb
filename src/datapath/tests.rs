//! Two or more nodes whose TUNs are in memory and whose links are pipes.

mod admission;
mod answers;
mod delivery;

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
        below: None,
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
