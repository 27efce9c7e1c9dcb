//! Runs of frames: all of them leave, with segmentation offload and without it, and what cannot go is told.

use super::*;

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

/// Runs `test` on a thread in a network namespace of its own, which has 10.0.0.1 on a link at whose far end nobody reads,
/// and goes with the thread.
pub(super) fn on_a_link(setup: &'static str, test: impl FnOnce() + Send + 'static) {
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link add va type veth peer name vb; ip addr add 10.0.0.1/24 dev va; ip link set va up; ip link set vb up
            ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev va nud permanent");
        sh(setup);
        test();
    };
    thread::spawn(run).join().unwrap();
}

pub(super) fn sh(script: &str) {
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
