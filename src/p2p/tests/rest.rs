//! Connections over which nothing travels: seldom asked, and found dead at once by whoever needs them.

use super::roaming::{nat, settled};
use super::*;

/// Answers to pings in that time.
async fn pings(node: &mut Node, time: Duration) -> usize {
    let (end, mut count) = (Instant::now() + time, 0);
    let is_ping = |event| match event {
        Event::Rtt { .. } => Ok(()),
        other => Err(other),
    };
    while let Some(()) = node
        .within(end.saturating_duration_since(Instant::now()), is_ping)
        .await
    {
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_rests_is_seldom_asked_and_found_dead_by_the_first_question() {
    let resting = |seed| {
        let mut config = on_loopback(seed, "/ip4/127.0.0.1/udp/0/quic-v1");
        config.timing.rest = Duration::from_secs(10);
        config.timing.rest_after = Duration::from_secs(2);
        config
    };
    let (mut a, b) = (
        Node::start(resting(210)).await,
        Node::start(resting(211)).await,
    );
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let (address, way) = nat(b.address.udp().unwrap()).await;
    let through: Typed = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port())
        .parse()
        .unwrap();
    let connected = a.handle.connect(vec![through], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    settled(&a, b.peer()).await;
    pings(&mut a, Duration::from_secs(2)).await;
    // In use it is asked each 400 ms.
    let asked = pings(&mut a, Duration::from_secs(4)).await;
    assert!(asked <= 1, "{asked} pings in 4 s");
    assert_eq!(a.connections(b.peer()).await.len(), 1);
    // Nothing passes any more, and nobody says so. Undisturbed it would be found out after 13 s.
    drop(way);
    let began = Instant::now();
    let (peer, handle) = (b.peer(), a.handle.clone());
    tokio::spawn(async move { handle.ask(peer, Protocol::Control, vec![1], PATIENCE).await });
    a.closed().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_ends_that_rest_one_asks_and_both_know_that_the_other_is_there() {
    let resting = |seed| {
        let mut config = on_loopback(seed, "/ip4/127.0.0.1/udp/0/quic-v1");
        config.timing.rest = Duration::from_secs(2);
        config.timing.rest_after = Duration::from_secs(1);
        // Whoever did not count the peer's pings would hear nothing for this long.
        config.timing.dead = Duration::from_secs(4);
        config
    };
    let (mut a, mut b) = (
        Node::start(resting(212)).await,
        Node::start(resting(213)).await,
    );
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let address = vec![Typed::new(b.address.clone())];
    let connected = a.handle.connect(address, Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    settled(&a, b.peer()).await;
    let time = Duration::from_secs(4);
    tokio::join!(pings(&mut a, time), pings(&mut b, time));
    let number = |all: Vec<ConnectionStatus>| all.first().map(|c| c.connection);
    let before = number(a.connections(b.peer()).await);
    let time = Duration::from_secs(10);
    let (of_a, of_b) = tokio::join!(pings(&mut a, time), pings(&mut b, time));
    println!("{of_a} and {of_b} pings in 10 s");
    // Each by itself would ask five times.
    assert!((3..=6).contains(&(of_a + of_b)), "{of_a} and {of_b}");
    assert!(before.is_some());
    assert_eq!(number(a.connections(b.peer()).await), before);
}
