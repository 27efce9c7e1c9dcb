//! What is made of the relay's address in that of a circuit.

use super::*;

/// The address of a circuit names how its other end reaches the relay. What is shown is how this node does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_a_circuit_is_our_own_connection_to_the_relay() {
    let mut config = on_loopback(157, "/ip4/127.0.0.1/tcp/0/ws");
    (config.serve, config.join) = (Serve::Anyone, false);
    let relay = Node::start(config).await;
    let mut config = on_loopback(158, "/ip4/127.0.0.1/tcp/0");
    config.meeting = vec![named(&relay)];
    let mut b = Node::start(config).await;
    assert_eq!(reserved(&mut b).await, relay.peer());
    let a = Node::start(on_loopback(159, "/ip4/127.0.0.1/tcp/0")).await;
    let met = a.handle.connect(vec![named(&relay)], None).await;
    assert_eq!(met, Ok(relay.peer()));
    // A port of TCP where nobody listens.
    let told = format!(
        "/ip4/127.0.0.1/tcp/9/p2p/{}/p2p-circuit/p2p/{}",
        relay.peer(),
        b.peer()
    );
    let reached = a.handle.connect(vec![told.parse().unwrap()], None).await;
    assert_eq!(reached, Ok(b.peer()));
    for (node, peer) in [(&a, b.peer()), (&b, a.peer())] {
        // The other end may hear a moment later than who asked that the connection is made.
        eventually("there is a connection", PATIENCE, async || {
            !node.connections(peer).await.is_empty()
        })
        .await;
        let [only] = node.connections(peer).await.try_into().unwrap();
        assert_eq!((only.transport, only.below), ("relay", Some("ws")));
    }
}

/// Behind a proxy names may lead nowhere from here, and the connection to the relay stands all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_relay_that_is_connected_is_not_looked_up_for_a_circuit() {
    let mut config = on_loopback(160, "/ip4/127.0.0.1/tcp/0");
    (config.serve, config.join) = (Serve::Anyone, false);
    let relay = Node::start(config).await;
    let mut config = on_loopback(161, "/ip4/127.0.0.1/tcp/0");
    config.meeting = vec![named(&relay)];
    let mut b = Node::start(config).await;
    assert_eq!(reserved(&mut b).await, relay.peer());
    let a = Node::start(on_loopback(162, "/ip4/127.0.0.1/tcp/0")).await;
    let met = a.handle.connect(vec![named(&relay)], None).await;
    assert_eq!(met, Ok(relay.peer()));
    let told = format!(
        "/dns4/relay.invalid/tcp/443/wss/p2p/{}/p2p-circuit/p2p/{}",
        relay.peer(),
        b.peer()
    );
    let reached = a.handle.connect(vec![told.parse().unwrap()], None).await;
    assert_eq!(reached, Ok(b.peer()));
}

/// A relay that is asked faster than it reads closes streams, and names no reason then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_circuits_asked_for_at_once_is_answered_by_the_relay() {
    let mut config = on_loopback(163, "/ip4/127.0.0.1/tcp/0");
    (config.serve, config.join) = (Serve::Anyone, false);
    let relay = Node::start(config).await;
    let a = Node::start(on_loopback(164, "/ip4/127.0.0.1/tcp/0")).await;
    let met = a.handle.connect(vec![named(&relay)], None).await;
    assert_eq!(met, Ok(relay.peer()));
    let circuits = (1..=30).map(|n| {
        // Nobody's: the relay says that it keeps no place for this peer.
        let key = libp2p::identity::Keypair::ed25519_from_bytes([n; 32]).unwrap();
        let peer = key.public().to_peer_id();
        let relay = relay.peer();
        let told = format!("/ip4/127.0.0.1/tcp/9/p2p/{relay}/p2p-circuit/p2p/{peer}");
        a.handle.connect(vec![told.parse().unwrap()], None)
    });
    for outcome in futures::future::join_all(circuits).await {
        assert!(outcome.is_err(), "{outcome:?}");
    }
    let refused = a.handle.circuits().await.unwrap().client;
    assert_eq!(refused, [(Refusal::NoReservation, 30)].into());
}
