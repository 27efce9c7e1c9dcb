//! Connections that end without a word when one of their ends is in another network: found by a question, long before their
//! own silence tells.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::roaming::{nat, on_two_ports, settled};
use super::*;

/// Time in which control has to be there again; what is asked has two seconds to answer, and is dialled again then.
const AGAIN: Duration = Duration::from_secs(5);

/// Passes TCP connections on to a server, until it is told to: those that stand then carry nothing more, and do not end.
async fn cut_by(server: SocketAddr) -> (SocketAddr, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, cuts) = watch::channel(());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    Ok(()) = cuts.changed() => {}
                }
                // Held open until the test is over.
                let _ = cuts.changed().await;
            });
        }
    });
    (address, cut)
}

/// With the times of the daemon, so that neither pings nor silence tell of the end in time.
fn slow(seed: u8, listen: &str) -> Config {
    let mut config = on_loopback(seed, listen);
    config.timing = Timing::default();
    config
}

fn tcp_of(address: &Address) -> SocketAddr {
    let mut parts = address.0.iter();
    match (parts.next(), parts.next()) {
        (
            Some(libp2p::multiaddr::Protocol::Ip4(ip)),
            Some(libp2p::multiaddr::Protocol::Tcp(port)),
        ) => (ip, port).into(),
        _ => panic!("{address}"),
    }
}

/// What is asked of a peer until it answers; the peer has to answer in the background.
async fn asks(a: &Node, b: PeerId) -> Duration {
    let begun = Instant::now();
    // Questions go over the connections of a peer in turn.
    for _ in 0..3 {
        let asked = a.handle.ask(b, Protocol::Control, vec![1, 2], PATIENCE);
        assert_eq!(asked.await, Ok(vec![2, 1]));
    }
    begun.elapsed()
}

fn answers(mut node: Node) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            node.answer().await;
        }
    })
}

/// What makes a node ask its connections.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// It is in another network itself.
    Roamed,
    /// The datagrams of its peer come from another address.
    Elsewhere,
}

async fn told(node: &Node, peer: PeerId, sign: Sign) {
    let address = "127.0.0.7:9".parse().unwrap();
    let command = match sign {
        Sign::Roamed => Command::Roamed,
        Sign::Elsewhere => Command::Punched { peer, address },
    };
    node.handle.send(command).await.unwrap();
}

/// A connection over QUIC whose NAT is gone, and one over TCP that carries nothing more; both have the peer's own address to
/// go to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ended_when_an_end_moved_is_replaced_in_five_seconds() {
    for (n, sign) in [(0, Sign::Roamed), (2, Sign::Elsewhere)] {
        let b = Node::start(slow(215 + n, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
        let (peer, at) = (b.peer(), b.address.clone());
        let (address, change) = nat(at.udp().unwrap()).await;
        let a = Node::start(slow(216 + n, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
        a.members(&[(peer, &[LAB])]).await;
        b.members(&[(a.peer(), &[LAB])]).await;
        let through = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port());
        let connected = a.handle.connect(vec![through.parse().unwrap()], Some(peer));
        assert_eq!(connected.await, Ok(peer));
        let known = a.handle.connect(vec![Typed::new(at)], Some(peer)).await;
        assert_eq!(known, Ok(peer), "it is only remembered");
        let answering = answers(b);
        asks(&a, peer).await;
        drop(change);
        told(&a, peer, sign).await;
        let took = asks(&a, peer).await;
        assert!(took < AGAIN, "{sign:?}: {took:?}");
        answering.abort();
    }
    let b = Node::start(slow(219, "/ip4/127.0.0.1/tcp/0")).await;
    let (address, cut) = cut_by(tcp_of(&b.address)).await;
    let (a, peer) = (
        Node::start(slow(220, "/ip4/127.0.0.1/tcp/0")).await,
        b.peer(),
    );
    a.members(&[(peer, &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let through = format!("/ip4/127.0.0.1/tcp/{}", address.port());
    let connected = a.handle.connect(vec![through.parse().unwrap()], Some(peer));
    assert_eq!(connected.await, Ok(peer));
    let answering = answers(b);
    asks(&a, peer).await;
    cut.send(()).unwrap();
    told(&a, peer, Sign::Roamed).await;
    let took = asks(&a, peer).await;
    assert!(took < AGAIN, "TCP: {took:?}");
    answering.abort();
}

/// Whoever drops datagrams of packets may drop those of QUIC, which come from the same ports and look alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_packets_are_dropped_as_datagrams_tcp_takes_the_place_of_quic() {
    let (b, all) = on_two_ports(225, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    let [quic, tcp] = [true, false].map(|udp| {
        let address = all.iter().find(|address| address.udp().is_some() == udp);
        Typed::new(address.unwrap().clone())
    });
    let a = Node::start(on_loopback(226, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let lost = || a.handle.send(Command::DataLost { peer: b.peer() });
    lost().await.unwrap();
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    assert_eq!(a.handle.connect(vec![quic], None).await, Ok(b.peer()));
    // It is connected, so that this is only remembered.
    let known = a.handle.connect(vec![tcp], Some(b.peer())).await;
    assert_eq!(known, Ok(b.peer()));
    let by_tcp = async || {
        let held = a.connections(b.peer()).await;
        held.len() == 1 && held[0].transport == "tcp"
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!by_tcp().await);
    lost().await.unwrap();
    eventually("TCP alone", PATIENCE, by_tcp).await;
    let kept = a.connections(b.peer()).await[0].connection;
    lost().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        a.connections(b.peer()).await[0].connection,
        kept,
        "it has one"
    );
}

/// Its place at the relay is what others reach a node through; it hangs on one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_at_a_relay_whose_connection_ended_when_the_node_moved_is_there_again_in_five_seconds()
 {
    let mut config = slow(221, "/ip4/127.0.0.1/tcp/0");
    config.serve = Serve::Anyone;
    let relay = Node::start(config).await;
    let (address, cut) = cut_by(tcp_of(&relay.address)).await;
    let mut config = slow(222, "/ip4/127.0.0.1/tcp/0");
    let at = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", address.port(), relay.peer());
    config.meeting = vec![at.parse().unwrap()];
    let mut a = Node::start(config).await;
    let reserved = |event| match event {
        Event::Reserved { relay } => Ok(relay),
        other => Err(other),
    };
    assert_eq!(a.expect(reserved).await, relay.peer());
    cut.send(()).unwrap();
    a.handle.send(Command::Roamed).await.unwrap();
    assert_eq!(a.within(AGAIN, reserved).await, Some(relay.peer()));
}

/// A question costs a connection that goes on nothing, however often it is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_on_from_another_network_is_kept() {
    let b = Node::start(on_loopback(200, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let (address, change) = nat(b.address.udp().unwrap()).await;
    let (a, peer) = (
        Node::start(on_loopback(201, "/ip4/127.0.0.1/udp/0/quic-v1")).await,
        b.peer(),
    );
    a.members(&[(peer, &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let through = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port());
    let connected = a.handle.connect(vec![through.parse().unwrap()], Some(peer));
    assert_eq!(connected.await, Ok(peer));
    let before = settled(&a, peer).await;
    settled(&b, a.peer()).await;
    let seen_before = b.connections(a.peer()).await;
    change.send("127.0.0.1:0".parse().unwrap()).await.unwrap();
    for _ in 0..30 {
        told(&a, peer, Sign::Roamed).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(settled(&a, peer).await, before);
    // The question itself says where it comes from now, although nothing else was sent.
    let seen = b.connections(a.peer()).await;
    let has_moved = |c: &ConnectionStatus| {
        let is_it = |was: &&ConnectionStatus| was.connection == c.connection;
        let was = seen_before.iter().find(is_it);
        was.is_some_and(|was| was.remote != c.remote)
    };
    assert!(seen.iter().any(has_moved), "{seen_before:?} {seen:?}");
}
