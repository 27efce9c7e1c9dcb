//! Data streams: they carry bytes over every transport, and are opened again.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_bytes_both_ways() {
    let (a, _b, [mut out, mut into, mut back, mut home]) = pair(in_memory(7), in_memory(8)).await;
    carries(&mut out, &mut into).await;
    carries(&mut back, &mut home).await;
    let status = a.handle.status().await.unwrap();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].class, Class::Member);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_is_opened_again() {
    let (mut a, mut b, [out, mut into, ..]) = pair(in_memory(11), in_memory(12)).await;
    drop(out);
    let (mut out, mut newer) = (a.stream_out().await.2, b.stream_in().await.2);
    carries(&mut out, &mut newer).await;
    assert!(
        !matches!(into.read(&mut [0; 10]).await, Ok(1..)),
        "the older stream is over"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_dropped_over_and_over_is_opened_once_the_peer_opens_one() {
    let (mut a, mut b, [out, into, ..]) = pair(in_memory(41), in_memory(42)).await;
    drop((out, into));
    // By then pauses of 1.6 s and more lie between two attempts.
    let end = Instant::now() + Duration::from_secs(4);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let came = |event| {
            if let Event::StreamIn { stream, .. } = event {
                Ok(stream)
            } else {
                Err(event)
            }
        };
        drop(b.within(left, came).await);
        let went = |event| {
            if let Event::StreamOut { stream, .. } = event {
                Ok(stream)
            } else {
                Err(event)
            }
        };
        drop(a.within(left, went).await);
    }
    b.members(&[(a.peer(), &[])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let back = Instant::now();
    b.stream_in().await;
    assert!(
        back.elapsed() < Duration::from_millis(800),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_and_quic_carry_packets_and_requests() {
    for (n, listen, transport) in [
        (23, "/ip4/127.0.0.1/tcp/0", "tcp"),
        (25, "/ip4/127.0.0.1/udp/0/quic-v1", "quic"),
        (27, "/ip6/::1/tcp/0", "tcp"),
    ] {
        let (a, mut b, [mut out, mut into, mut back, mut home]) =
            pair(on_loopback(n, listen), on_loopback(n + 1, listen)).await;
        carries(&mut out, &mut into).await;
        carries(&mut back, &mut home).await;
        let connections = a.connections(b.peer()).await;
        assert_eq!(connections[0].transport, transport);
        let (handle, peer) = (a.handle.clone(), b.peer());
        let ask = tokio::spawn(async move {
            handle
                .ask(peer, Protocol::Control, vec![1, 2], PATIENCE)
                .await
        });
        b.answer().await;
        assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
        b.members(&[]).await;
        b.closed().await;
        assert!(into.read(&mut [0; 10]).await.is_err());
    }
}
