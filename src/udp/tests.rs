//! Ports over loopback, and over a small link in a namespace.

mod exits;
mod helpers;
mod quic;
mod sending;

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

use super::demux::{Class, class};
use super::socket::Socket;
use super::*;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
/// Nothing here takes so long.
const LONG: Duration = Duration::from_secs(20);

/// A port with buffers as every system grants them.
fn port(addresses: &[SocketAddr]) -> Port {
    Port::bind(
        addresses,
        &Options {
            receive_buffer: 212_992,
            send_buffer: 212_992,
            mark: None,
            callers: Callers::Anybody,
        },
    )
    .unwrap()
}

fn address(port: &Port) -> SocketAddr {
    port.local()[0]
}

/// A relay that takes whatever it is shown.
#[derive(Default)]
struct Everything {
    /// The bytes that it took, and whether more was on their heels.
    taken: Vec<(Vec<u8>, bool)>,
    flushed: usize,
}

impl Everything {
    fn take(&mut self, run: Option<Relayed<'_>>) -> bool {
        match run {
            Some(run) => self.taken.push((run.bytes.to_vec(), run.is_flood)),
            None => self.flushed += 1,
        }
        true
    }
}

/// Closes the port after [`LONG`], so that a test whose datagrams do not come fails instead of waiting.
fn guard(port: &Port) -> mpsc::Sender<()> {
    let (done, wait) = mpsc::channel();
    let port = port.clone();
    thread::spawn(move || {
        if wait.recv_timeout(LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
            port.close();
        }
    });
    done
}

/// The next `count` datagrams, with who sent them and their ECN bits.
fn collect(port: &Port, receiver: &mut Receiver, count: usize) -> Vec<(SocketAddr, u8, Vec<u8>)> {
    let _guard = guard(port);
    let mut found = Vec::new();
    while found.len() < count {
        let came = receiver.recv();
        if came == 0 {
            receiver.wait().expect("datagrams are missing");
        }
        for message in (0..came).filter_map(|index| receiver.message(index)) {
            let datagrams = message.bytes.chunks(message.segment);
            found.extend(datagrams.map(|bytes| (message.from, message.ecn, bytes.to_vec())));
        }
    }
    found
}

#[test]
fn what_floods_a_relay_is_known_as_a_flood_and_nothing_of_it_is_lost() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let _guard = guard(&here);
    let mut receiver = here.receiver().unwrap();
    let mut relay = Everything::default();
    let frame = |number: u32| {
        let mut frame = vec![0x06, 0, 0, 0, 0, 0, 0, 1];
        frame.extend_from_slice(&number.to_be_bytes());
        frame
    };
    let mut read = |relay: &mut Everything, until: usize| {
        while relay.taken.len() < until {
            assert_eq!(
                receiver
                    .next_batch_past(|| true, |run| relay.take(run))
                    .unwrap()
                    .count(),
                0
            );
        }
    };
    // One after the other, as questions and answers are: none waits for company.
    for number in 0..20 {
        there
            .send_one(&frame(number), address(&here), None)
            .unwrap();
        read(&mut relay, number as usize + 1);
        thread::sleep(Duration::from_millis(2));
    }
    assert!(relay.taken.iter().all(|(_, is_flood)| !is_flood));
    assert!(relay.flushed > 10, "{}", relay.flushed);
    for number in 20..10_000 {
        there
            .send_one(&frame(number), address(&here), None)
            .unwrap();
        if number % 10 == 0 {
            read(&mut relay, number as usize + 1);
        }
    }
    read(&mut relay, 10_000);
    let came = relay.taken.iter().map(|(bytes, _)| bytes.clone());
    assert!(came.eq((0..10_000).map(frame)), "in order, each once");
    let floods = relay.taken.iter().filter(|(_, is_flood)| *is_flood).count();
    assert!(floods > 5_000, "{floods}");
}

/// A buffer of frames that begin with 4, then their number, and the runs of it: (frames, bytes of each, bytes of the last).
fn frames(shapes: &[(usize, usize, usize)], to: SocketAddr) -> (Vec<u8>, Vec<Run>, Vec<Vec<u8>>) {
    let (mut buffer, mut runs, mut all) = (vec![0xee; 3], Vec::new(), Vec::new());
    for (count, segment, last) in shapes.iter().copied() {
        let start = buffer.len();
        for index in 0..count {
            let mut frame = vec![0x04; if index + 1 == count { last } else { segment }];
            frame[1..5].copy_from_slice(&u32::try_from(all.len()).unwrap().to_be_bytes());
            buffer.extend(&frame);
            all.push(frame);
        }
        runs.push(Run {
            start,
            end: buffer.len(),
            segment,
            to,
            local: None,
            helper: None,
        });
    }
    (buffer, runs, all)
}

/// Sets an option of the first socket whose value is an `int`.
#[expect(unsafe_code, reason = "no safe wrapper has these options")]
fn set_option(port: &Port, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&port.0.sockets[0].udp);
    // SAFETY: the descriptor is open for the whole call; the kernel reads as many bytes as `value` has.
    let rc = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) };
    assert_eq!(rc, 0);
}

fn set_gso(port: &Port, on: bool) {
    port.0
        .sockets
        .iter()
        .for_each(|socket| socket.gso.store(on, Ordering::Relaxed));
}

fn gso(port: &Port) -> bool {
    port.0
        .sockets
        .iter()
        .all(|socket| socket.gso.load(Ordering::Relaxed))
}

#[test]
fn one_reader_tells_ours_from_quic_and_from_what_is_neither() {
    let there = port(&[V4]);
    let half = &there.quic()[0];
    let senders = [port(&[V4]), port(&[V4])];
    let from = address(&senders[0]);
    half.note(from);
    let all: [&[u8]; 6] = [&[4, 1], &[0x41; 20], &[0x42; 20], &[3], &[], &[0x3f, 2]];
    for bytes in all {
        senders[0].send_one(bytes, address(&there), None).unwrap();
    }
    senders[1]
        .send_one(&[0x43; 20], address(&there), None)
        .unwrap();
    senders[1].send_one(&[5, 3], address(&there), None).unwrap();
    let _guard = guard(&there);
    let mut receiver = there.receiver().unwrap();
    let mut ours = Vec::new();
    while ours.len() < 3 {
        ours.extend(
            receiver
                .next_batch()
                .unwrap()
                .map(|datagram| (datagram.from, datagram.bytes.to_vec())),
        );
    }
    let stranger = address(&senders[1]);
    assert_eq!(
        ours,
        [
            (from, vec![4, 1]),
            (from, vec![0x3f, 2]),
            (stranger, vec![5, 3])
        ]
    );
    let handed: Vec<u8> = quic::read_quic(half, 100)
        .1
        .into_iter()
        .flat_map(|(bytes, _)| bytes)
        .collect();
    assert_eq!(handed, [[0x41; 20], [0x42; 20]].concat());
    assert_eq!((there.counts().foreign, there.counts().other), (1, 1));
}

#[test]
fn the_first_byte_tells_ours_from_quic() {
    let classes: Vec<Class> = (0..=255).map(class).collect();
    assert!(classes[..4].iter().all(|c| *c == Class::Other));
    assert!(classes[4..0x40].iter().all(|c| *c == Class::Ours));
    assert!(classes[0x40..].iter().all(|c| *c == Class::Quic));
}

#[test]
fn an_ipv4_and_an_ipv6_socket_are_read_together() {
    let there = port(&[V4, V6]);
    let mut receiver = there.receiver().unwrap();
    let senders = [port(&[V4]), port(&[V6])];
    for (index, to) in there.local().into_iter().enumerate() {
        senders[index]
            .send_one(&[4, index as u8], to, None)
            .unwrap();
    }
    let _guard = guard(&there);
    let mut sockets = BTreeMap::new();
    while sockets.len() < 2 {
        receiver.wait().unwrap();
        for index in 0..receiver.recv() {
            let message = receiver.message(index).unwrap();
            sockets.insert(message.socket, message.bytes.to_vec());
        }
    }
    assert_eq!(sockets, BTreeMap::from([(0, vec![4, 0]), (1, vec![4, 1])]));
}

#[test]
fn two_binds_on_one_port_give_address_in_use() {
    for bound in [V4, V6] {
        let first = port(&[bound]);
        let error = Port::bind(&first.local(), &Options::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let wildcard = SocketAddr::new(
            if bound.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            },
            address(&first).port(),
        );
        assert_eq!(
            Port::bind(&[wildcard], &Options::default())
                .unwrap_err()
                .kind(),
            io::ErrorKind::AddrInUse
        );
    }
    let error = Port::bind(&[], &Options::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn both_wildcards_share_one_port() {
    let any = [
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    ];
    // The port that is free for one family may be taken for the other: try some.
    let both = (0..20)
        .find_map(|_| Port::bind(&any, &Options::default()).ok())
        .unwrap();
    assert_eq!(both.local()[0].port(), both.local()[1].port());
}

#[test]
fn the_receive_buffer_grows_with_the_round_trip() {
    let mib = |ms| receive_buffer(Duration::from_millis(ms)) >> 20;
    assert_eq!(
        [0, 9, 10, 25, 69, 70, 100_000].map(mib),
        [1, 1, 2, 3, 7, 8, 8]
    );
    let port = port(&["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()]);
    let held = || -> Vec<usize> {
        let held = |socket: &Arc<Socket>| getsockopt(&socket.udp, sockopt::RcvBuf).unwrap();
        port.0.sockets.iter().map(held).collect()
    };
    // Small enough for every system's limit; the kernel counts its own bookkeeping, and says twice as much.
    for bytes in [50_000, 100_000, 50_000] {
        port.set_receive_buffer(bytes).unwrap();
        assert_eq!(held(), [2 * bytes; 2]);
    }
}

/// A port on every address of one family, and what it knows of the next message.
fn wildcard(ip: &str) -> Port {
    port(&[SocketAddr::new(ip.parse().unwrap(), 0)])
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for (any, asked, others) in [
        ("0.0.0.0", "127.0.0.2", "192.0.2.1"),
        ("::", "::1", "2001:db8::1"),
    ] {
        let (asked, foreign): (std::net::IpAddr, std::net::IpAddr) =
            (asked.parse().unwrap(), others.parse().unwrap());
        let (here, peer) = (wildcard(any), UdpSocket::bind((asked, 0)).unwrap());
        peer.set_read_timeout(Some(LONG)).unwrap();
        let at = SocketAddr::new(asked, here.local()[0].port());
        peer.send_to(&[4, 7], at).unwrap();
        let mut receiver = here.receiver().unwrap();
        receiver.wait().unwrap();
        assert_eq!(receiver.recv(), 1);
        let message = receiver.message(0).unwrap();
        assert_eq!(
            (message.local, message.from),
            (Some(asked), peer.local_addr().unwrap())
        );
        let to = message.from;
        let heard = || peer.recv_from(&mut [0; 100]).unwrap().1;
        here.send_one(&[4], to, Some(asked)).unwrap();
        assert_eq!(heard(), at);
        let mut sender = here.sender();
        let mut send = |local| {
            let run = Run {
                start: 0,
                end: 30,
                segment: 10,
                to,
                local,
                helper: None,
            };
            assert_eq!(sender.send(&[4; 30], &[run]), Sent::default());
        };
        send(Some(asked));
        assert_eq!([heard(), heard(), heard()], [at; 3]);
        // An address that is ours no more: the kernel chooses, nothing is lost, and segmentation is not to blame.
        send(Some(foreign));
        (0..3).for_each(|_| assert_eq!(heard().port(), at.port()));
        here.send_one(&[4], to, Some(foreign)).unwrap();
        assert_eq!(heard().port(), at.port());
        assert!(gso(&here));
    }
}

#[test]
fn a_port_has_one_receiver() {
    let port = port(&[V4]);
    assert!(port.receiver().is_some());
    assert!(port.receiver().is_none());
}

#[test]
fn close_ends_wait() {
    let port = port(&[V4, V6]);
    let mut receiver = port.receiver().unwrap();
    let waiting = thread::spawn(move || (receiver.wait(), receiver.wait(), receiver.recv()));
    thread::yield_now();
    port.close();
    port.close();
    assert_eq!(waiting.join().unwrap(), (Err(Closed), Err(Closed), 0));
}
