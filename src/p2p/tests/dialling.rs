//! Which addresses are dialled, in what order and how often; one connection stays.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_end_with_one_connection() {
    let (a, b) = (
        Node::start(in_memory(17)).await,
        Node::start(in_memory(18)).await,
    );
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let both = futures::future::join(
        a.handle.connect(vec![Typed::new(b.address.clone())], None),
        b.handle.connect(vec![Typed::new(a.address.clone())], None),
    );
    let _ = both.await;
    eventually(
        "each has one connection to the other",
        PATIENCE,
        async || {
            a.connections(b.peer()).await.len() == 1 && b.connections(a.peer()).await.len() == 1
        },
    )
    .await;
    let kept = a.connections(b.peer()).await[0].connection;
    let (there, here) = (b.connections(a.peer()).await, a.connections(b.peer()).await);
    assert_ne!(
        there[0].outbound, here[0].outbound,
        "both ends kept the same one"
    );
    // Long enough for any ping-pong to show.
    tokio::time::sleep(fast().surplus * 2).await;
    assert_eq!(a.connections(b.peer()).await[0].connection, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returning_peer_is_connected_again_within_three_seconds() {
    let (mut a, b, _streams) = pair(in_memory(19), in_memory(20)).await;
    let (peer, address) = (b.peer(), b.address.clone());
    b.stop().await;
    a.closed().await;
    eventually("the stranger is disconnected", PATIENCE, async || {
        a.connections(peer).await.is_empty()
    })
    .await;
    let mut again = in_memory(20);
    again.listen = vec![address];
    let start = Instant::now();
    let mut b = Node::start(again).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    carries(&mut out, &mut into).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_peer_stays_away_until_it_is_wanted() {
    let (mut a, b, _streams) = pair(in_memory(21), in_memory(22)).await;
    // The other side would come back by itself.
    b.handle
        .send(Command::Disconnect { peer: a.peer() })
        .await
        .unwrap();
    a.handle
        .send(Command::Disconnect { peer: b.peer() })
        .await
        .unwrap();
    a.closed().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(a.connections(b.peer()).await.is_empty());
    assert_eq!(
        a.handle.connect(Vec::new(), Some(b.peer())).await,
        Ok(b.peer())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_is_dialled_before_quic() {
    let mut config = on_loopback(30, "/ip4/127.0.0.1/tcp/0");
    listen_also(&mut config, "/ip4/127.0.0.1/udp/0/quic-v1");
    let (handle, mut events, driver) = start(config).unwrap();
    tokio::spawn(driver.run(CancellationToken::new()));
    let both = loop {
        match events.recv().await.unwrap() {
            Event::Listening { addresses } if addresses.len() == 2 => break addresses,
            _ => {}
        }
    };
    let mut a = Node::start(on_loopback(31, "/ip4/127.0.0.1/tcp/0")).await;
    a.members(&[(handle.peer(), &[LAB])]).await;
    let typed = both.into_iter().map(Typed::new).collect();
    assert_eq!(
        a.handle.connect(typed, Some(handle.peer())).await,
        Ok(handle.peer())
    );
    let connected = |event| match event {
        Event::Connected { transport, .. } => Ok(transport),
        other => Err(other),
    };
    a.expect(connected).await;
    // All were dialled at once, for a person. When the connection is lost, they are dialled in their order.
    handle
        .send(Command::Disconnect { peer: a.peer() })
        .await
        .unwrap();
    while a.closed().await.1 > 0 {}
    assert_eq!(a.expect(connected).await, "tcp");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_only_heard_is_knocked_at_once() {
    let mut a = in_memory(71);
    a.transport = TransportKind::Network;
    a.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let a = Node::start(a).await;
    let member = PeerId([9; 32]);
    // Nobody is there, and no packet leaves this machine: what counts is how often it is tried.
    let heard = |port: u16| Heard::parse(&format!("/ip4/198.51.100.7/tcp/{port}")).unwrap();
    let known = |list: Vec<Heard>| Command::Known {
        peer: member,
        heard: list,
        answered: vec![],
    };
    a.handle.send(known(vec![heard(4100)])).await.unwrap();
    a.members(&[(member, &[LAB])]).await;
    let tries = || async {
        let status = a.handle.status().await.unwrap();
        status
            .into_iter()
            .find(|s| s.peer == member)
            .map_or(0, |s| s.failures)
    };
    eventually("one try is left", PATIENCE, async || tries().await == 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(tries().await, 1, "not by time alone");
    a.handle.send(known(vec![heard(4100)])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(tries().await, 1, "nor for the same word again");
    // Forbidden ones are not kept at all.
    let mut list: Vec<Heard> = (0..40).map(|n| heard(5000 + n)).collect();
    for bad in [
        "/ip4/127.0.0.1/tcp/6379",
        "/ip4/198.51.100.7/tcp/25",
        "/ip4/169.254.169.254/tcp/4100",
    ] {
        list.insert(0, Heard::parse(bad).unwrap());
    }
    a.handle.send(known(list)).await.unwrap();
    let status = a.handle.status().await.unwrap();
    let kept = &status.iter().find(|s| s.peer == member).unwrap().addresses;
    assert_eq!(kept.len(), 8, "{kept:?}");
    assert!(
        kept.iter().all(|address| address.port() >= Some(5000)),
        "{kept:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_peer_at_an_address_is_not_taken_for_the_right_one() {
    let (a, b) = (
        Node::start(in_memory(36)).await,
        Node::start(in_memory(37)).await,
    );
    let other = Node::start(in_memory(38)).await;
    let wrong = a
        .handle
        .connect(vec![Typed::new(b.address.clone())], Some(other.peer()))
        .await;
    assert!(matches!(wrong, Err(ConnectError::Failed(_))), "{wrong:?}");
    let itself = a
        .handle
        .connect(vec![Typed::new(a.address.clone())], None)
        .await;
    assert!(itself.is_err());
}
