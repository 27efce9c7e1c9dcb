mod quic;

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
        },
    )
    .unwrap()
}

fn address(port: &Port) -> SocketAddr {
    port.local()[0]
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
fn frames_of_a_run_arrive_whole_and_in_order() {
    // One alone; a full run and a short last frame; the most frames; more than one message takes; the largest frames.
    let shapes = [
        (1, 900, 900),
        (10, 1400, 77),
        (64, 60, 60),
        (60, 1400, 1400),
        (3, 20_000, 9),
        (1, 65_400, 65_400),
    ];
    for (bound, has_gso) in [(V4, true), (V4, false), (V6, true), (V6, false)] {
        let (here, there) = (port(&[bound]), port(&[bound]));
        if !gso(&here) && has_gso {
            continue; // this kernel has none
        }
        set_gso(&here, has_gso);
        let (buffer, runs, all) = frames(&shapes, address(&there));
        let sent = here.sender().send(&buffer, &runs);
        assert_eq!(sent, Sent::default());
        let came = collect(&there, &mut there.receiver().unwrap(), all.len());
        assert!(came.iter().all(|(from, ..)| *from == address(&here)));
        let came: Vec<Vec<u8>> = came.into_iter().map(|(.., bytes)| bytes).collect();
        assert!(came == all, "{bound} {has_gso}");
        assert_eq!(there.counts().received, all.len() as u64);
        assert_eq!(gso(&here), has_gso);
    }
}

#[test]
fn more_runs_than_one_call_takes_all_leave() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let shapes: Vec<(usize, usize, usize)> = (0..200).map(|i| (2, 100 + i, 50)).collect();
    let (buffer, runs, all) = frames(&shapes, address(&there));
    assert_eq!(here.sender().send(&buffer, &runs), Sent::default());
    let came = collect(&there, &mut there.receiver().unwrap(), all.len());
    assert!(came.into_iter().map(|(.., bytes)| bytes).eq(all));
}

#[test]
fn runs_go_to_their_own_addresses_by_the_socket_of_their_family() {
    let here = port(&[V4, V6]);
    assert_eq!(here.local()[0].port(), here.local()[1].port());
    let there: Vec<Port> = [V4, V6, V4].iter().map(|a| port(&[*a])).collect();
    let (buffer, mut runs, all) = frames(&[(3, 500, 40); 6], V4);
    for (index, run) in runs.iter_mut().enumerate() {
        run.to = address(&there[index % 3]);
    }
    assert_eq!(here.sender().send(&buffer, &runs), Sent::default());
    for (index, port) in there.iter().enumerate() {
        let came = collect(port, &mut port.receiver().unwrap(), 6);
        let expected = all[index * 3..][..3]
            .iter()
            .chain(&all[9 + index * 3..][..3]);
        assert!(came.iter().map(|(.., bytes)| bytes).eq(expected));
        assert!(
            came.iter()
                .all(|(from, ..)| *from == here.local()[usize::from(index == 1)])
        );
    }
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
fn offload_that_the_kernel_refuses_is_replaced_by_single_datagrams() {
    for quic in [false, true] {
        let (here, there) = (port(&[V4]), port(&[V4]));
        if !gso(&here) {
            return;
        }
        // Without checksums the kernel cuts nothing: EINVAL, or EIO.
        set_option(&here, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
        let (buffer, runs, all) = frames(
            &[(1, 300, 300), (40, 1400, 77), (5, 800, 800)],
            address(&there),
        );
        if quic {
            for run in &runs {
                let contents = &buffer[run.start..run.end];
                let transmit = Transmit {
                    destination: run.to,
                    ecn: None,
                    contents,
                    segment_size: Some(run.segment),
                    src_ip: None,
                };
                here.quic()[0].try_send(&transmit).unwrap();
            }
            assert_eq!(here.quic()[0].max_transmit_segments(), 1);
        } else {
            assert_eq!(here.sender().send(&buffer, &runs), Sent::default());
        }
        let came = collect(&there, &mut there.receiver().unwrap(), all.len());
        assert!(came.into_iter().map(|(.., bytes)| bytes).eq(all));
        assert!(!gso(&here));
    }
}

#[test]
fn a_run_that_cannot_go_keeps_no_other_back() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().unwrap();
    let unreachable = {
        let gone = port(&[V4]);
        address(&gone)
    };
    for on in [gso(&here), false] {
        set_gso(&here, on);
        let before = here.counts();
        let (buffer, mut runs, all) = frames(&[(8, 700, 700); 7], address(&there));
        runs[0].to = unreachable;
        runs[1].to = mapped;
        runs[2].to = V6;
        runs[3].to = V4; // port 0: refused
        runs[4].segment = 0;
        runs[5].end = usize::MAX;
        let sent = here.sender().send(&buffer, &runs);
        assert_eq!(sent.too_big, None);
        assert!(sent.frames_dropped > 24, "{sent:?}");
        let after = here.counts();
        assert_eq!(after.send_failed - before.send_failed, sent.frames_dropped);
        assert_eq!(gso(&here), on, "a bad address is no fault of the offload");
        let came = collect(
            &there,
            &mut there
                .receiver()
                .unwrap_or_else(|| Receiver::new(there.0.clone())),
            8,
        );
        assert!(
            came.into_iter()
                .map(|(.., bytes)| bytes)
                .eq(all[48..].to_vec())
        );
    }
    assert_eq!(
        here.send_one(&[4], V6, None).unwrap_err().kind(),
        io::ErrorKind::AddrNotAvailable
    );
}

#[test]
fn a_run_to_a_closed_port_changes_nothing() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let gone = address(&port(&[V4]));
    let mut sender = here.sender();
    for _ in 0..3 {
        let (buffer, runs, _) = frames(&[(10, 1000, 5)], gone);
        assert_eq!(sender.send(&buffer, &runs), Sent::default());
        here.send_one(&[4], gone, None).unwrap();
    }
    let (buffer, runs, all) = frames(&[(10, 1000, 5)], address(&there));
    assert_eq!(sender.send(&buffer, &runs), Sent::default());
    assert_eq!(
        collect(&there, &mut there.receiver().unwrap(), 10).len(),
        all.len()
    );
    // What the ICMP errors may have left on the socket does not end reading.
    there.send_one(&[4, 1], address(&here), None).unwrap();
    assert_eq!(
        collect(&here, &mut here.receiver().unwrap(), 1)[0].2,
        [4, 1]
    );
    assert!(gso(&here) == gso(&there));
}

#[test]
fn frames_too_large_for_the_interface_are_told_apart() {
    let (here, there) = (port(&[V6]), port(&[V6]));
    // Loopback carries 64 KiB; the socket is told to send no more than a small link would carry.
    set_option(&here, libc::IPPROTO_IPV6, libc::IPV6_MTU, 1400);
    let has_gso = gso(&here);
    let mut receiver = there.receiver().unwrap();
    for on in [has_gso, false] {
        set_gso(&here, on);
        let (buffer, runs, all) = frames(
            &[
                (4, 1352, 1352),
                (1, 1353, 1353),
                (6, 1360, 1360),
                (2, 100, 100),
            ],
            address(&there),
        );
        assert_eq!(
            here.sender().send(&buffer, &runs),
            Sent {
                frames_dropped: 7,
                too_big: Some(1)
            }
        );
        assert_eq!(
            gso(&here),
            on,
            "a frame too large is no fault of the offload"
        );
        let came = collect(&there, &mut receiver, 6);
        assert!(
            came.into_iter()
                .map(|(.., bytes)| bytes)
                .eq([&all[..4], &all[11..]].concat())
        );
    }
    let error = here
        .send_one(&[4; 1353], address(&there), None)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
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

/// Runs `test` on a thread in a network namespace of its own, which has 10.0.0.1 on a link at whose far end nobody reads,
/// and goes with the thread.
fn on_a_link(setup: &'static str, test: impl FnOnce() + Send + 'static) {
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link add va type veth peer name vb; ip addr add 10.0.0.1/24 dev va; ip link set va up; ip link set vb up
            ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev va nud permanent");
        sh(setup);
        test();
    };
    thread::spawn(run).join().unwrap();
}

fn sh(script: &str) {
    let output = std::process::Command::new("sh")
        .args(["-ec", script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "needs root"]
fn frames_too_large_for_a_link_are_told_apart() {
    on_a_link("ip link set va mtu 1400", || {
        let port = port(&["10.0.0.1:0".parse().unwrap()]);
        let to = "10.0.0.2:9".parse().unwrap();
        for on in [gso(&port), false] {
            set_gso(&port, on);
            // 20 bytes of IPv4, 8 of UDP.
            let (buffer, runs, _) = frames(
                &[
                    (4, 1372, 1372),
                    (6, 1373, 1373),
                    (1, 1400, 1400),
                    (9, 1372, 20),
                ],
                to,
            );
            assert_eq!(
                port.sender().send(&buffer, &runs),
                Sent {
                    frames_dropped: 7,
                    too_big: Some(1)
                }
            );
            assert_eq!(gso(&port), on);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_full_buffer_holds_a_sender_up_for_10_ms_and_wakes_quinn_when_there_is_room() {
    on_a_link(
        "tc qdisc add dev va root tbf rate 100kbit burst 16k limit 64m",
        || {
            let options = Options {
                send_buffer: 128 << 10,
                ..Options::default()
            };
            let port = Port::bind(&["10.0.0.1:0".parse().unwrap()], &options).unwrap();
            let to = "10.0.0.2:9".parse().unwrap();
            let (buffer, runs, all) = frames(&[(40, 1400, 1400); 40], to);
            let began = Instant::now();
            let sent = port.sender().send(&buffer, &runs);
            assert!(
                began.elapsed() < Duration::from_millis(200),
                "{:?}",
                began.elapsed()
            );
            assert!(
                sent.too_big.is_none()
                    && sent.frames_dropped > 0
                    && sent.frames_dropped < all.len() as u64,
                "{sent:?}"
            );
            assert_eq!(port.counts().send_full, sent.frames_dropped);
            assert_eq!(
                port.send_one(&[4], to, None).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );

            let quic = port.quic().remove(0);
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: &[0x40; 1200],
                segment_size: None,
                src_ip: None,
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut pollers = [
                    quic.clone().create_io_poller(),
                    quic.clone().create_io_poller(),
                ];
                for _ in 0..2 {
                    assert_eq!(
                        quic.try_send(&transmit).unwrap_err().kind(),
                        io::ErrorKind::WouldBlock
                    );
                    for poller in &mut pollers {
                        assert!(
                            poller
                                .as_mut()
                                .poll_writable(&mut Context::from_waker(Waker::noop()))
                                .is_pending()
                        );
                    }
                }
                let waiting = pollers.map(|mut poller| {
                    tokio::spawn(async move {
                        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await
                    })
                });
                tokio::task::yield_now().await;
                assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
                // What waits in the link is thrown away: there is room again.
                sh("tc qdisc del dev va root");
                for waiting in waiting {
                    tokio::time::timeout(LONG, waiting)
                        .await
                        .unwrap()
                        .unwrap()
                        .unwrap();
                }
                quic.try_send(&transmit).unwrap();
            });
        },
    );
}
