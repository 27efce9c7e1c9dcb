//! The QUIC half: what passes the screen, what waits, and quinn itself on the port.

use super::*;

#[test]
fn a_closed_port_is_no_fault_that_quinn_would_log() {
    let port = port(&[V4]);
    let quic = &port.quic()[0];
    assert!(read_quic(quic, 100).0.is_pending());
    port.close();
    assert!(read_quic(quic, 100).0.is_pending());
}

/// Bytes of a buffer, and the size of the datagrams in them.
pub(super) type Handed = (Vec<u8>, usize);

/// What quinn would get with buffers of `size` bytes.
pub(super) fn read_quic(quic: &QuicSocket, size: usize) -> (Poll<io::Result<usize>>, Vec<Handed>) {
    let mut memory = vec![vec![0u8; size]; 4];
    let mut metas = [RecvMeta::default(); 4];
    let mut buffers: Vec<IoSliceMut<'_>> = memory.iter_mut().map(|m| IoSliceMut::new(m)).collect();
    let count = quic.poll_recv(
        &mut Context::from_waker(Waker::noop()),
        &mut buffers,
        &mut metas,
    );
    let came = match &count {
        Poll::Ready(Ok(count)) => *count,
        _ => 0,
    };
    let bytes = memory
        .iter()
        .zip(metas)
        .take(came)
        .map(|(m, meta)| (m[..meta.len].to_vec(), meta.stride))
        .collect();
    (count, bytes)
}

#[test]
fn the_quic_queue_is_bounded_in_datagrams_and_in_bytes() {
    let port = port(&[V4]);
    let quic = &port.quic()[0];
    let from = address(&port);
    quic.note(from);
    for _ in 0..1024 {
        quic.give(from, None, 0, 20, &[0x40; 20]);
    }
    assert_eq!(port.counts().quic_dropped, 0);
    quic.give(from, None, 0, 20, &[0x40; 50]);
    assert_eq!(port.counts().quic_dropped, 3);
    // What is read makes room, also while the rest of it is still on its way to quinn.
    assert_eq!(read_quic(quic, 20).1.len(), 4);
    (0..5).for_each(|_| quic.give(from, None, 0, 20, &[0x40; 20]));
    assert_eq!(port.counts().quic_dropped, 4);
    while let (Poll::Ready(_), _) = read_quic(quic, 2000) {}

    (0..40).for_each(|_| quic.give(from, None, 0, 60_000, &[0x40; 60_000]));
    let fit = (2 << 20) / 60_000;
    assert_eq!(port.counts().quic_dropped, 4 + 40 - fit);
}

/// The first packet of a handshake: version 1, both connection IDs of 8 bytes (RFC 9000 section 17.2).
fn initial() -> Vec<u8> {
    let mut bytes = vec![0xc3, 0, 0, 0, 1, 8];
    bytes.extend([7; 8]);
    bytes.push(8);
    bytes.resize(1200, 7);
    bytes
}

#[test]
fn strangers_wake_nobody_but_with_the_first_packet_of_a_handshake() {
    let port = port(&[V4]);
    let quic = &port.quic()[0];
    let from = address(&port);
    // One message of three: what passes is handed on by itself.
    let three = [initial(), vec![0x40; 1200], initial()].concat();
    quic.give(from, None, 0, 1200, &three);
    for junk in [[0x40; 20], [0x7f; 20], [0xff; 20]] {
        quic.give(from, None, 0, 20, &junk);
    }
    assert_eq!(port.counts().other, 4);
    quic.note(from);
    quic.give(from, None, 0, 20, &[0x40; 20]);
    assert_eq!(
        read_quic(quic, 2000).1,
        [(initial(), 1200), (initial(), 1200), (vec![0x40; 20], 20)]
    );
}

#[test]
fn a_flood_of_handshakes_wakes_nobody_for_long_and_who_is_dialled_gets_through() {
    let port = port(&[V4]);
    let (quic, from) = (port.quic().remove(0), address(&port));
    let begin = |count| (0..count).for_each(|_| quic.give(from, None, 0, 1200, &initial()));
    let start = Instant::now();
    begin(10_000);
    let passed = 10_000 - port.counts().other;
    assert!(
        passed <= 128 * (start.elapsed().as_secs() + 2),
        "{passed} in {:?}",
        start.elapsed()
    );
    while read_quic(&quic, 2000).0.is_ready() {}
    let expected = quic.expect(from);
    begin(500);
    let came =
        std::iter::from_fn(|| Some(read_quic(&quic, 2000).1.len()).filter(|count| *count > 0))
            .sum::<usize>();
    assert_eq!(came, 500);
    drop(expected);
}

#[test]
fn quic_datagrams_are_handed_out_whole_in_order_and_as_many_as_fit() {
    let port = port(&[V4]);
    let quic = &port.quic()[0];
    // Each byte may begin a packet of a connection.
    let bytes: Vec<u8> = (0x40..=0x7f).cycle().take(2350).collect();
    quic.note(address(&port));
    // Three of 1000, 1000 and 350 bytes; with room for two, then one larger than any buffer, then one of ten bytes.
    quic.give(address(&port), None, 2, 1000, &bytes);
    quic.give(address(&port), None, 0, 3000, &[0x41; 3000]);
    quic.give(address(&port), None, 0, 1000, &[0x42; 10]);
    let (_, came) = read_quic(quic, 2500);
    let expected = [(bytes.clone(), 1000), (vec![0x42; 10], 10)];
    assert_eq!(came, expected);
    assert_eq!(port.counts().quic_dropped, 1);

    quic.give(address(&port), None, 2, 1000, &bytes);
    let (_, came) = read_quic(quic, 2100);
    assert_eq!(
        came,
        [
            (bytes[..2000].to_vec(), 1000),
            (bytes[2000..].to_vec(), 350)
        ]
    );
    // Not more than ten at once.
    quic.give(address(&port), None, 2, 100, &bytes);
    let (_, came) = read_quic(quic, 65_536);
    assert_eq!(
        came.iter()
            .map(|(bytes, _)| bytes.len())
            .collect::<Vec<_>>(),
        [1000, 1000, 350]
    );
    assert_eq!(
        came.into_iter()
            .flat_map(|(bytes, _)| bytes)
            .collect::<Vec<_>>(),
        bytes
    );
}

#[test]
fn congestion_marks_cross_both_ways() {
    for bound in [V4, V6] {
        let (here, there) = (port(&[bound]), port(&[bound]));
        let mut receiver = there.receiver().unwrap();
        for ecn in [
            None,
            Some(EcnCodepoint::Ect0),
            Some(EcnCodepoint::Ect1),
            Some(EcnCodepoint::Ce),
        ] {
            let transmit = Transmit {
                destination: address(&there),
                ecn,
                contents: &[0x40; 2000],
                segment_size: Some(900),
                src_ip: None,
            };
            here.quic()[0].try_send(&transmit).unwrap();
            let came = collect(&there, &mut receiver, 3);
            let bits = ecn.map_or(0, |ecn| ecn as u8);
            assert!(
                came.iter()
                    .all(|(from, got, _)| *got == bits && *from == address(&here))
            );
            assert!(
                came.iter()
                    .map(|(.., bytes)| bytes.len())
                    .eq([900, 900, 200])
            );
        }
    }
}

#[tokio::test]
async fn a_poller_waits_only_after_a_send_found_no_room() {
    let port = port(&[V4]);
    let quic = port.quic().remove(0);
    let mut poller = quic.clone().create_io_poller();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
    quic.pretend_full();
    // There is room by now: the reactor says so, and from then on nobody asks it.
    std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
        .await
        .unwrap();
    assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
}

/// Reads a port until it is closed: QUIC to quinn; how many of ours came, and their numbers.
fn pump(port: &Port) -> (Arc<AtomicU64>, JoinHandle<Vec<u32>>) {
    let mut receiver = port.receiver().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let thread = thread::spawn(move || {
        let mut ours = Vec::new();
        while let Ok(read) = receiver.next_batch() {
            ours.extend(
                read.map(|datagram| u32::from_be_bytes(datagram.bytes[1..5].try_into().unwrap())),
            );
            count.store(ours.len() as u64, Ordering::Relaxed);
        }
        ours
    });
    (seen, thread)
}

/// Sends bursts of frames, each when the one before has come or 5 ms passed, until told to stop; how many.
fn stream(
    port: &Port,
    to: SocketAddr,
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> JoinHandle<u64> {
    let mut sender = port.sender();
    thread::spawn(move || {
        let mut number = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let (mut buffer, runs, _) = frames(&[(20, 1200, 1200)], to);
            for frame in buffer[3..].chunks_mut(1200) {
                frame[1..5].copy_from_slice(&number.to_be_bytes());
                number += 1;
            }
            assert_eq!(sender.send(&buffer, &runs), Sent::default());
            let deadline = Instant::now() + Duration::from_millis(5);
            while seen.load(Ordering::Relaxed) < u64::from(number) && Instant::now() < deadline {
                thread::yield_now();
            }
        }
        u64::from(number)
    })
}

fn endpoint(port: &Port, key: &libp2p::identity::Keypair) -> quinn::Endpoint {
    let server = libp2p_tls::make_server_config(key).unwrap();
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let client = libp2p_tls::make_client_config(key, None).unwrap();
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let mut config = quinn::EndpointConfig::default();
    config.grease_quic_bit(false);
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(
        config,
        Some(quinn::ServerConfig::with_crypto(Arc::new(server))),
        port.quic().remove(0),
        Arc::new(quinn::TokioRuntime),
    )
    .unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
    endpoint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quinn_and_our_frames_share_a_port_both_ways() {
    const BYTES: usize = 4 << 20;
    for (bound, has_gso) in [(V4, true), (V6, false)] {
        let ports = [port(&[bound]), port(&[bound])];
        if !has_gso {
            ports.iter().for_each(|port| set_gso(port, false));
        }
        let [(seen0, pump0), (seen1, pump1)] = [pump(&ports[0]), pump(&ports[1])];
        let key = libp2p::identity::Keypair::generate_ed25519();
        let endpoints = [endpoint(&ports[0], &key), endpoint(&ports[1], &key)];
        let server = endpoints[1].clone();
        let echo = tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            let got = receive.read_to_end(BYTES).await.unwrap();
            send.write_all(&got).await.unwrap();
            send.finish().unwrap();
            connection.closed().await;
        });
        let stop = Arc::new(AtomicBool::new(false));
        let ours = [
            stream(&ports[1], address(&ports[0]), seen0.clone(), stop.clone()),
            stream(&ports[0], address(&ports[1]), seen1.clone(), stop.clone()),
        ];
        let transfer = async {
            let connection = endpoints[0]
                .connect(address(&ports[1]), "l")
                .unwrap()
                .await
                .unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let sent: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
            send.write_all(&sent).await.unwrap();
            send.finish().unwrap();
            let got = receive.read_to_end(BYTES).await.unwrap();
            assert!(got == sent);
            connection.close(0u8.into(), b"");
        };
        tokio::time::timeout(LONG, transfer).await.unwrap();
        echo.await.unwrap();
        stop.store(true, Ordering::Relaxed);
        for endpoint in &endpoints {
            endpoint.close(0u8.into(), b"");
            endpoint.wait_idle().await;
        }
        let pumps = [(seen0, pump0), (seen1, pump1)];
        for ((seen, pump), (ours, port)) in pumps.into_iter().zip(ours.into_iter().zip(&ports)) {
            let sent = ours.join().unwrap();
            // A few may be lost where the system grants small buffers only.
            let enough = sent - sent / 10;
            let deadline = Instant::now() + LONG;
            while seen.load(Ordering::Relaxed) < enough && Instant::now() < deadline {
                tokio::task::yield_now().await;
            }
            port.close();
            let came = pump.join().unwrap();
            assert!(
                sent > 0 && came.len() as u64 >= enough,
                "{sent} sent, {} came",
                came.len()
            );
            assert!(came.is_sorted_by(|a, b| a < b), "in order, each once");
            assert_eq!((port.counts().other, port.counts().send_failed), (0, 0));
        }
    }
}
