//! Strangers leave places to members and to each other.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_leave_room_for_members() {
    let mut config = in_memory(40);
    config.limits.strangers = 2;
    let b = Node::start(config).await;
    let mut crowd = Vec::new();
    for seed in 41..46 {
        let stranger = Node::start(in_memory(seed)).await;
        let _ = stranger
            .handle
            .connect(vec![Typed::new(b.address.clone())], None)
            .await;
        crowd.push(stranger);
    }
    let member = Node::start(in_memory(50)).await;
    b.members(&[(member.peer(), &[LAB])]).await;
    member.members(&[(b.peer(), &[LAB])]).await;
    member
        .handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    eventually("the member is back", PATIENCE, async || {
        b.connections(member.peer()).await.len() == 1
    })
    .await;
    let status = b.handle.status().await.unwrap();
    assert!(status.iter().filter(|s| s.class == Class::Stranger).count() <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_s_strangers_leave_places_to_others_and_the_oldest_makes_room() {
    let mut config = Config::new([120; 32]);
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
        "/ip6/::1/tcp/0".parse().unwrap(),
    ];
    config.limits.strangers = 32;
    config.limits.per_source = 4;
    let mut b = Node::start(config).await;
    let both = |event| match event {
        Event::Listening { addresses } if addresses.len() == 2 => Ok(addresses),
        other => Err(other),
    };
    let addresses = b.expect(both).await;
    let by = |v6: bool| {
        addresses
            .iter()
            .find(|a| a.ip().unwrap().is_ipv6() == v6)
            .unwrap()
            .clone()
    };
    let stranger = |seed: u8, to: Address| async move {
        let config = Config::new([seed; 32]);
        let (handle, events, driver) = start(config).unwrap();
        let task = tokio::spawn(driver.run(CancellationToken::new()));
        // Who is refused hears of it only after its own half of the handshake.
        let _ = handle.connect(vec![crate::p2p::Typed(to)], None).await;
        (handle, events, task)
    };
    let at_b = || async {
        b.handle
            .status()
            .await
            .unwrap()
            .iter()
            .map(|s| s.connections.len())
            .sum::<usize>()
    };
    let mut crowd = Vec::new();
    for seed in 121..129 {
        crowd.push(stranger(seed, by(true)).await);
    }
    eventually("the fourth comes in", PATIENCE, async || at_b().await == 4).await;
    crowd.push(stranger(130, by(false)).await);
    eventually("the fifth comes in", PATIENCE, async || at_b().await == 5).await;
    // Nobody is shut out for good.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let last = stranger(131, by(true)).await;
    let peer = last.0.peer();
    eventually("the others are gone", PATIENCE, async || {
        b.connections(peer).await.len() == 1 && at_b().await == 5
    })
    .await;
    for (_, _, task) in crowd.into_iter().chain([last]) {
        task.abort();
    }
}
