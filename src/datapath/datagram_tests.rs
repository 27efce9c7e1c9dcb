//! Packets over sealed datagrams between two packet paths, through a wire that loses, repeats and damages frames.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::tests::{LONG, Node, RED, connect, peer, super_packet};
use crate::link::{Key, pair};
use crate::packet::parse::samples::{ip, udp};
use crate::packet::parse::{self, parse};
use crate::packet::{DropReason, TunOffload};
use crate::tun::memory::{self, Segmentation};

/// Passes datagrams from one port to the other: what `pass` makes of each goes on, in that order.
struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    address: SocketAddr,
}

impl Wire {
    fn new(
        to: SocketAddr,
        mut pass: impl FnMut(usize, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Wire {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (stop, address) = (
            Arc::new(AtomicBool::new(false)),
            socket.local_addr().unwrap(),
        );
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut buffer, mut count) = (vec![0; 65_536], 0);
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, _)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                for datagram in pass(count, buffer[..length].to_vec()) {
                    socket.send_to(&datagram, to).unwrap();
                }
                count += 1;
            }
        });
        Wire {
            stop,
            thread: Some(thread),
            address,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

struct Pair {
    _runtime: Runtime,
    a: Node,
    b: Node,
    _wire: Wire,
}

const PAYLOAD: usize = 1472;

/// Node 1 seals for node 2 over a wire; back there is a stream only.
fn over(payload: usize, pass: impl FnMut(usize, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) -> Pair {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let (port_a, port_b) = (pair::port(), pair::port());
    let wire = Wire::new(port_b.local()[0], pass);
    let mut nodes = [(1, port_a), (2, port_b)].map(|(me, port)| {
        let mut node = Node::with_port(runtime.handle(), me, &[1, 2], &[RED], Some(port));
        let (tun, kernel) = memory::pair(Segmentation::Offload);
        node.path.attach_tun(RED, Arc::new(tun)).unwrap();
        node.kernels.insert(RED, kernel);
        node.path.receive().unwrap();
        node
    });
    let [a, b] = &mut nodes;
    connect(a, b, RED);
    b.path.links().test_receive(
        Key {
            subnet: RED,
            peer: peer(1),
        },
        0x70,
        &[7; 32],
    );
    a.path.links().test_send(
        Key {
            subnet: RED,
            peer: peer(2),
        },
        wire.address,
        0x70,
        &[7; 32],
        payload,
    );
    let [a, b] = nodes;
    drop(_inside);
    Pair {
        _runtime: runtime,
        a,
        b,
        _wire: wire,
    }
}

fn all(_: usize, datagram: Vec<u8>) -> Vec<Vec<u8>> {
    vec![datagram]
}

/// Payload bytes of the TCP packets that come out of node 2's TUN until `bytes` have come, and where each began.
fn read_tcp(pair: &Pair, bytes: usize) -> Vec<(u32, usize)> {
    let mut got = Vec::new();
    while got.iter().map(|(_, n)| n).sum::<usize>() < bytes {
        let (_, packet) = pair.b.kernel().read(LONG).expect("more packets");
        let p = parse(&packet).unwrap();
        assert_eq!(p.protocol, parse::TCP);
        let seq = packet[p.transport + 4..p.transport + 8]
            .try_into()
            .map(u32::from_be_bytes)
            .unwrap();
        got.push((seq, p.payload()));
    }
    got
}

#[test]
fn a_super_packet_arrives_whole() {
    for (source, destination) in [("10.0.1.5", "10.0.2.7"), ("fd00:1::5", "fd00:2::7")] {
        let pair = over(PAYLOAD, all);
        let (undone, bytes) = super_packet(ip(source), ip(destination), 30_000);
        pair.a.kernel().inject_with(undone, &bytes);
        // The wire forwards one datagram at a time, so that several reads may have brought it.
        assert_eq!(
            read_tcp(&pair, 30_000)
                .iter()
                .map(|(_, n)| n)
                .sum::<usize>(),
            30_000
        );
        assert!(pair.b.path.drops(RED).iter().all(|(_, n)| *n == 0));
    }
}

#[test]
fn a_lost_frame_costs_one_segment() {
    let pair = over(PAYLOAD, |i, d| if i == 5 { vec![] } else { vec![d] });
    let (undone, bytes) = super_packet(ip("10.0.1.5"), ip("10.0.2.7"), 30_000);
    pair.a.kernel().inject_with(undone, &bytes);
    // A frame has room for less than the kernel's segments or for just as much.
    let size = usize::from(undone.segments.unwrap().size);
    let got = read_tcp(&pair, 30_000 - size);
    assert_eq!(got.iter().map(|(_, n)| n).sum::<usize>(), 30_000 - size);
    // The sample's sequence numbers wrap around.
    let first = u32::from_be_bytes(bytes[24..28].try_into().unwrap());
    let mut covered: Vec<_> = got
        .iter()
        .map(|(seq, n)| (seq.wrapping_sub(first) as usize, *n))
        .collect();
    covered.sort();
    let mut at = 0;
    for (start, length) in covered {
        if at == 5 * size {
            at += size;
        }
        assert_eq!(start, at);
        at += length;
    }
}

#[test]
fn a_super_packet_is_cut_smaller_for_a_smaller_path() {
    let pair = over(1252, |_, d| {
        assert!(d.len() <= 1252);
        vec![d]
    });
    let (undone, bytes) = super_packet(ip("10.0.1.5"), ip("10.0.2.7"), 30_000);
    pair.a.kernel().inject_with(undone, &bytes);
    read_tcp(&pair, 30_000);
}

#[test]
fn repeated_and_damaged_frames_are_counted_and_delivered_never() {
    let pair = over(PAYLOAD, |i, d| {
        let mut bad = d.clone();
        let at = (i * 7919) % bad.len();
        bad[at] ^= 1 << (i % 8);
        vec![bad, d.clone(), d]
    });
    for n in 0..200u32 {
        pair.a.kernel().inject(&udp(
            ip("10.0.1.5"),
            ip("10.0.2.7"),
            &[&n.to_be_bytes()[..], &[9; 700]].concat(),
        ));
        let (_, packet) = pair.b.kernel().read(LONG).unwrap();
        assert_eq!(packet[28..32], n.to_be_bytes());
    }
    pair.b.wait_count(RED, DropReason::Replayed, 200);
    let bad = pair.b.count(RED, DropReason::BadFrame);
    // A flipped bit in the clear header leads to another session, no session or an old counter: not counted here.
    assert!((190..=200).contains(&bad), "{bad}");
    assert!(pair.b.kernel().read(Duration::from_millis(50)).is_none());
}

#[test]
fn small_packets_arrive_in_order_and_as_they_were() {
    let pair = over(PAYLOAD, all);
    let sent: Vec<_> = (0..300u32)
        .map(|n| {
            let body = [
                &n.to_be_bytes()[..],
                &vec![n as u8; (n as usize * 37) % 900],
            ]
            .concat();
            if n % 3 == 0 {
                udp(ip("fd00:1::5"), ip("fd00:2::7"), &body)
            } else {
                udp(ip("10.0.1.5"), ip("10.0.2.7"), &body)
            }
        })
        .collect();
    // As many at once as the wire's socket holds for sure.
    for some in sent.chunks(40) {
        some.iter()
            .for_each(|packet| pair.a.kernel().inject(packet));
        for packet in some {
            assert_eq!(
                pair.b.kernel().read(LONG).as_ref(),
                Some(&(TunOffload::default(), packet.clone()))
            );
        }
    }
}

#[test]
fn what_the_path_does_not_carry_is_told_to_its_sender() {
    let pair = over(1252, all);
    let packet = udp(ip("10.0.1.5"), ip("10.0.2.7"), &[1; 1300]);
    assert_eq!(packet[6], 0x40, "not to be cut");
    pair.a.kernel().inject(&packet);
    let (_, answer) = pair.a.kernel().read(LONG).unwrap();
    assert_eq!(
        (answer[9], answer[20], answer[21]),
        (parse::ICMP, 3, 4),
        "fragmentation needed"
    );
    assert_eq!(
        u16::from_be_bytes([answer[26], answer[27]]),
        1212,
        "what the path carries"
    );
    // What may be cut goes whole, on the stream.
    let mut whole = packet.clone();
    whole[6] &= !0x40;
    whole[10..12].fill(0);
    let sum = crate::packet::checksum::finish(crate::packet::checksum::sum(&whole[..20], 0));
    whole[10..12].copy_from_slice(&sum.to_be_bytes());
    pair.a.kernel().inject(&whole);
    assert_eq!(
        pair.b.kernel().read(LONG),
        Some((TunOffload::default(), whole))
    );
}
