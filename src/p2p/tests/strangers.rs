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

/// Loopback has the places of all, so that this is the whole table; the gate's own tests show the share of a source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_too_many_strangers_the_oldest_makes_room_and_some_places_are_kept() {
    let mut config = on_loopback(120, "/ip4/127.0.0.1/tcp/0");
    config.limits.strangers = 8;
    config.limits.per_source = 4;
    let b = Node::start(config).await;
    let stranger = async |seed: u8| {
        let config = Config::new([seed; 32]);
        let (handle, events, driver) = start(config).unwrap();
        let task = tokio::spawn(driver.run(CancellationToken::new()));
        // Who is refused hears of it only after its own half of the handshake.
        let _ = handle
            .connect(vec![Typed::new(b.address.clone())], None)
            .await;
        (handle, events, task)
    };
    let at_b = async || {
        let status = b.handle.status().await.unwrap();
        status.iter().map(|s| s.connections.len()).sum::<usize>()
    };
    let mut crowd = Vec::new();
    for seed in 121..129 {
        crowd.push(stranger(seed).await);
    }
    eventually("the sixth comes in", PATIENCE, async || at_b().await == 6).await;
    // Nobody is shut out for good.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let last = stranger(131).await;
    let peer = last.0.peer();
    eventually("one of the others is gone", PATIENCE, async || {
        b.connections(peer).await.len() == 1 && at_b().await == 6
    })
    .await;
    for (_, _, task) in crowd.into_iter().chain([last]) {
        task.abort();
    }
}
