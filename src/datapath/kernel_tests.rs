//! The packet path between two real TUNs, each in a network namespace of its own that goes with its thread.
//!
//! Needs root; says so and passes nothing off as tested where it is not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::runtime::Runtime;

use super::tests::{LONG, Node, RED, connect};
use super::*;
use crate::model::id::PeerId;
use crate::packet::offload::{Outgoing, Rebuild};
use crate::packet::{TunOffload, parse};
use crate::tun::TunError;
use crate::tun::linux::{self, LinuxTun};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own; sockets and links made there stay there.
struct Namespace {
    jobs: sync::Sender<Job>,
}

impl Namespace {
    fn new() -> Namespace {
        let (jobs, todo) = sync::channel::<Job>();
        let (ready, made) = sync::channel();
        thread::spawn(move || {
            ready.send(unshare(CloneFlags::CLONE_NEWNET)).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        made.recv().unwrap().unwrap();
        Namespace { jobs }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = sync::channel();
        self.jobs
            .send(Box::new(move || done.send(job()).unwrap()))
            .unwrap();
        result.recv().expect("the job in the namespace succeeded")
    }

    fn sh(&self, script: String) {
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
            assert!(
                output.status.success(),
                "{script}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        });
    }

    /// Opens the TUN of node `n` with its addresses and routes.
    fn open(&self, n: u8) -> Arc<LinuxTun> {
        let tun = self.run(move || linux::open(&format!("bw-{n}"), 1420).unwrap());
        self.sh(format!(
            "ip link set lo up; ip link set bw-{n} up; ip addr add 10.0.{n}.1/32 dev bw-{n}; ip addr add fd00:{n}::1/128 dev bw-{n} nodad
             ip route add 10.0.0.0/16 dev bw-{n} src 10.0.{n}.1; ip -6 route add fd00::/16 dev bw-{n} src fd00:{n}::1"
        ));
        Arc::new(tun)
    }
}

/// A real TUN that compares every super-packet of the kernel with what a receiver would rebuild from it.
struct Comparing {
    tun: Arc<LinuxTun>,
    compared: Arc<AtomicU64>,
    different: Arc<AtomicU64>,
}

impl Tun for Comparing {
    fn wait(&self) -> Result<(), TunError> {
        self.tun.wait()
    }
    fn recv(&self, buffer: &mut [u8]) -> Result<Option<(TunOffload, usize)>, TunError> {
        let got = self.tun.recv(buffer)?;
        if let Some((undone, length)) = got
            && undone.is_super_packet()
        {
            let mut copy = buffer[..length].to_vec();
            let packet = parse(&copy).unwrap();
            let out = Outgoing::new(undone, &packet, &copy).unwrap();
            let rebuilt = Rebuild::plan(&packet, &out.offload)
                .unwrap()
                .apply(&mut copy);
            // The kernel's header length is a hint and may cover payload.
            let same = TunOffload {
                header_len: undone.header_len,
                ..rebuilt
            } == undone
                && copy == buffer[..length];
            self.compared.fetch_add(1, Ordering::Relaxed);
            self.different
                .fetch_add(u64::from(!same), Ordering::Relaxed);
        }
        Ok(got)
    }
    fn send(&self, offload: TunOffload, packet: &[u8]) -> Result<(), TunError> {
        self.tun.send(offload, packet)
    }
    fn takes(&self, offload: TunOffload) -> bool {
        self.tun.takes(offload)
    }
    fn close(&self) {
        self.tun.close();
    }
}

#[test]
#[ignore = "needs root"]
fn rebuilt_headers_are_those_of_the_kernel() {
    let (_runtime, [left, right], [a, _b]) = two_kernels();
    left.sh("ip link del bw-1".into());
    let (compared, different) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let tun = left.open(1);
    let comparing = Comparing {
        tun,
        compared: Arc::clone(&compared),
        different: Arc::clone(&different),
    };
    a.path.attach_tun(RED, Arc::new(comparing)).unwrap();
    for address in ["10.0.2.1", "fd00:2::1"] {
        echo(&left, &right, address, 2_000_000);
        let client = left.run(move || {
            UdpSocket::bind(if address.contains(':') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            })
            .unwrap()
        });
        setsockopt(&client, sockopt::UdpGsoSegment, &1000).unwrap();
        client.send_to(&[5; 9500], (address, 4001)).unwrap();
    }
    assert!(compared.load(Ordering::Relaxed) > 20);
    assert_eq!(different.load(Ordering::Relaxed), 0);
}

/// Two nodes with real TUNs, connected by in-memory pipes.
fn two_kernels() -> (Runtime, [Namespace; 2], [Node; 2]) {
    let runtime = Runtime::new().unwrap();
    let spaces = [Namespace::new(), Namespace::new()];
    let nodes = [1u8, 2].map(|n| Node::without_tuns(runtime.handle(), n, &[1, 2], &[RED]));
    for (space, node) in spaces.iter().zip(&nodes) {
        node.path.attach_tun(RED, space.open(node.me)).unwrap();
    }
    let [a, b] = &nodes;
    connect(a, b, RED);
    (runtime, spaces, nodes)
}

/// Sends `bytes` by TCP from one namespace to `address` in the other, and back again.
fn echo(from: &Namespace, to: &Namespace, address: &'static str, bytes: usize) {
    let listener = to.run(move || TcpListener::bind((address, 4000)).unwrap());
    let echoing = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let stream = from.run(move || TcpStream::connect((address, 4000)).unwrap());
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
    (&stream).write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    echoing.join().unwrap();
    assert!(back == sent, "every byte comes back as it was sent");
}

#[test]
#[ignore = "needs root"]
fn tcp_and_udp_pass_between_real_kernels() {
    let (_runtime, [left, right], [a, b]) = two_kernels();
    for address in ["10.0.2.1", "fd00:2::1"] {
        echo(&left, &right, address, 20_000_000);
    }
    let key = Key {
        subnet: RED,
        peer: PeerId([1; 32]),
    };
    let status = b.path.links().status(key);
    assert!(status.carried().rx_bytes > 40_000_000);
    let mean = status.carried().rx_bytes / status.carried().rx_packets;
    assert!(mean > 3000, "super-packets cross whole: {mean} bytes each");
    // A 1400-byte datagram is over the MTU with IPv4's headers: it passes in two fragments. 1420 is a full packet.
    for address in ["10.0.2.1", "fd00:2::1"] {
        let server = right.run(move || UdpSocket::bind((address, 4001)).unwrap());
        server.set_read_timeout(Some(LONG)).unwrap();
        let any = if address.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let client = left.run(move || UdpSocket::bind(any).unwrap());
        for size in [0, 1, 1372, 1392, 1400, 9000] {
            client
                .send_to(&vec![size as u8; size], (address, 4001))
                .unwrap();
            let mut got = [0; 10_000];
            let (length, _) = server.recv_from(&mut got).unwrap();
            assert_eq!(
                (length, got[..length].iter().all(|x| *x == size as u8)),
                (size, true)
            );
        }
        // Segmentation offload of UDP: one send, ten datagrams, the last shorter.
        setsockopt(&client, sockopt::UdpGsoSegment, &1000).unwrap();
        client.send_to(&[5; 9500], (address, 4001)).unwrap();
        for i in 0..10 {
            let (length, _) = server.recv_from(&mut [0; 10_000]).unwrap();
            assert_eq!(length, if i < 9 { 1000 } else { 500 });
        }
    }
    for node in [&a, &b] {
        for (reason, count) in node.path.drops(RED) {
            let noise = reason == DropReason::Filtered;
            // The first flow's burst may overrun the queue on a loaded machine; nothing else may be dropped.
            assert!(
                noise || reason == DropReason::QueueFull || count == 0,
                "{reason}: {count}"
            );
        }
    }
}

#[test]
#[ignore = "needs root"]
fn kernel_hears_host_unreachable() {
    let (_runtime, [left, _right], _nodes) = two_kernels();
    for address in ["10.0.9.9", "fd00:9::9"] {
        let error = left.run(move || TcpStream::connect((address, 4000)).unwrap_err());
        let kind = error.raw_os_error();
        assert!(
            [nix::libc::EHOSTUNREACH, nix::libc::ENETUNREACH]
                .map(Some)
                .contains(&kind),
            "{address}: {error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn deleted_link_is_told_at_once() {
    let (_runtime, [left, right], [mut a, b]) = two_kernels();
    left.sh("ip link del bw-1".into());
    assert_eq!(a.died.blocking_recv(), Some(TunDied(RED)));
    a.path.attach_tun(RED, left.open(1)).unwrap();
    echo(&left, &right, "10.0.2.1", 100_000);
    // Closing ends the thread, which held the device: the link goes.
    b.path.detach_tun(RED);
    let gone = right.run(|| {
        (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !Command::new("ip")
                .args(["link", "show", "bw-2"])
                .output()
                .unwrap()
                .status
                .success()
        })
    });
    assert!(gone);
}
