//! Connections whose peer goes on from another address.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;

/// A NAT in front of whoever dials it, with one mapping, which changes to where it is told.
pub(super) async fn nat(server: SocketAddr) -> (SocketAddr, mpsc::Sender<SocketAddr>) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let inside = UdpSocket::bind(any).await.unwrap();
    let address = inside.local_addr().unwrap();
    let (change, mut changes) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut outside = UdpSocket::bind(any).await.unwrap();
        let mut client = None;
        let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                Ok((n, from)) = inside.recv_from(&mut out) => {
                    client = Some(from);
                    let _ = outside.send_to(&out[..n], server).await;
                }
                Ok(n) = outside.recv(&mut back) => {
                    if let Some(client) = client {
                        let _ = inside.send_to(&back[..n], client).await;
                    }
                }
                told = changes.recv() => match told {
                    Some(there) => outside = UdpSocket::bind(there).await.unwrap(),
                    None => return,
                },
            }
        }
    });
    (address, change)
}

/// The number of the one connection to a peer that is left once a second one, dialled at the same time, has been closed.
pub(super) async fn settled(node: &Node, peer: PeerId) -> u64 {
    eventually("one connection stays", PATIENCE, async || {
        let held = node.connections(peer).await;
        held.len() == 1 && held[0].age > fast().surplus * 2
    })
    .await;
    node.connections(peer).await[0].connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_survives_a_new_mapping_of_the_nat_in_front_of_who_dialled_it() {
    let b = Node::start(on_loopback(200, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let (address, change) = nat(b.address.udp().unwrap()).await;
    let a = Node::start(on_loopback(201, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let (mut a, mut b) = (a, b);
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let through: Typed = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port())
        .parse()
        .unwrap();
    let connected = a.handle.connect(vec![through], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    let (here, there) = (settled(&a, b.peer()).await, settled(&b, a.peer()).await);
    let mut out = loop {
        let (connection, _, stream) = a.stream_out().await;
        if connection == here {
            break stream;
        }
    };
    let mut into = loop {
        let (connection, _, stream) = b.stream_in().await;
        if connection == there {
            break stream;
        }
    };
    carries(&mut out, &mut into).await;
    let before = b.connections(a.peer()).await;
    change.send("127.0.0.1:0".parse().unwrap()).await.unwrap();
    carries(&mut out, &mut into).await;
    eventually("it is known where the peer is now", PATIENCE, async || {
        let after = b.connections(a.peer()).await;
        after[0].connection == before[0].connection && after[0].remote != before[0].remote
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_moves_into_a_denied_network_nor_stays_or_comes_in_from_there() {
    let mut config = on_loopback(202, "/ip4/127.0.0.1/udp/0/quic-v1");
    config.denied = vec!["127.0.0.9/32".parse().unwrap()];
    let b = Node::start(config).await;
    let (address, change) = nat(b.address.udp().unwrap()).await;
    let a = Node::start(on_loopback(203, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let through: Typed = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port())
        .parse()
        .unwrap();
    let connected = a.handle.connect(vec![through], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    let first = settled(&b, a.peer()).await;
    change.send("127.0.0.9:0".parse().unwrap()).await.unwrap();
    // Its pings come from there. While the NAT is there, who dials again comes from there, and is not let in.
    eventually("it is closed", PATIENCE, async || {
        b.connections(a.peer())
            .await
            .iter()
            .all(|c| c.connection != first)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(b.connections(a.peer()).await.is_empty());
    change.send("127.0.0.1:0".parse().unwrap()).await.unwrap();
    eventually("it comes back from where it may", PATIENCE, async || {
        b.connections(a.peer()).await.len() == 1
    })
    .await;
    let deny = |text: &str| Command::Deny(vec![text.parse().unwrap()]);
    b.handle.send(deny("127.0.0.0/8")).await.unwrap();
    assert!(b.connections(a.peer()).await.is_empty(), "at once");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(b.connections(a.peer()).await.is_empty());
    b.handle.send(deny("192.0.2.0/24")).await.unwrap();
    eventually("and may come again", PATIENCE, async || {
        b.connections(a.peer()).await.len() == 1
    })
    .await;
}

/// A node that listens on TCP, and for QUIC at that address; and where.
pub(super) async fn on_two_ports(seed: u8, quic: &str) -> (Node, Vec<Address>) {
    let mut config = on_loopback(seed, quic);
    listen_also(&mut config, "/ip4/127.0.0.1/tcp/0");
    let mut node = Node::start(config).await;
    let mut all = vec![node.address.clone()];
    while all.len() < 2 {
        let listening = |event| match event {
            Event::Listening { addresses } => Ok(addresses),
            other => Err(other),
        };
        all = node.expect(listening).await;
    }
    (node, all)
}

/// UDP stops passing: what watches the datagrams knows it long before a connection's own silence tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_datagrams_no_longer_reach_is_replaced_before_its_silence_tells() {
    let (b, all) = on_two_ports(202, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    let quic = all.iter().find_map(Address::udp).unwrap();
    let tcp = all.iter().find(|address| address.udp().is_none()).unwrap();
    let (address, change) = nat(quic).await;
    let mut config = on_loopback(203, "/ip4/127.0.0.1/udp/0/quic-v1");
    // As long as the daemon's: a busy machine is no reason to replace it.
    (config.timing.ping, config.timing.silence) = (Duration::from_secs(5), Duration::from_secs(12));
    let silence = config.timing.silence;
    let a = Node::start(config).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let through: Typed = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port())
        .parse()
        .unwrap();
    let connected = a.handle.connect(vec![through], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    // It is connected, so that this is only remembered.
    let known = Typed::new(tcp.clone());
    let connected = a.handle.connect(vec![known], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    eventually("one connection is left", PATIENCE, async || {
        let before = a.connections(b.peer()).await;
        before.len() == 1 && before[0].transport == "quic"
    })
    .await;
    // One that is younger than a second is not doubted: it may be the one that was made because of the loss.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(change);
    let begun = Instant::now();
    let lost = Command::DirectLost { peer: b.peer() };
    a.handle.send(lost).await.unwrap();
    eventually("another carrier stands alone", PATIENCE, async || {
        let after = a.connections(b.peer()).await;
        after.len() == 1 && after[0].transport == "tcp"
    })
    .await;
    let took = begun.elapsed();
    assert!(took < silence / 2, "{took:?}");
}

/// Whoever carries packets prefers the streams of a younger connection and closes the others: the pauses until they are
/// opened again grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_another_connection_made_needless_are_there_again_when_it_is_gone() {
    let (b, all) = on_two_ports(204, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    let [tcp, quic] = [false, true].map(|udp| {
        let address = all.iter().find(|address| address.udp().is_some() == udp);
        Typed::new(address.unwrap().clone())
    });
    let mut a = Node::start(on_loopback(205, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let connected = a.handle.connect(vec![tcp], Some(b.peer())).await;
    assert_eq!(connected, Ok(b.peer()));
    let (first, _, mut stream) = a.stream_out().await;
    for _ in 0..5 {
        drop(stream);
        stream = a.stream_out().await.2;
    }
    drop(stream);
    let rests = Instant::now();
    // It is dialled although one stands, and is surplus.
    assert_eq!(a.handle.connect(vec![quic], None).await, Ok(b.peer()));
    let mut kept = Vec::new();
    loop {
        let (connection, _, stream) = a.stream_out().await;
        kept.push(stream);
        if connection == first {
            break;
        }
    }
    let took = rests.elapsed();
    assert!(
        took < Duration::from_millis(2500),
        "of a pause of 3.2 s: {took:?}"
    );
}

/// Each end closes connections that are surplus, which is no reason for the other to doubt those that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_have_quic_alone_come_to_rest_with_one_connection() {
    let a = Node::start(on_loopback(206, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let mut b = Node::start(on_loopback(207, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let [at_a, at_b] = [&a, &b].map(|node| vec![Typed::new(node.address.clone())]);
    for _ in 0..2 {
        assert_eq!(a.handle.connect(at_b.clone(), None).await, Ok(b.peer()));
        assert_eq!(b.handle.connect(at_a.clone(), None).await, Ok(a.peer()));
    }
    eventually("one is left", PATIENCE, async || {
        a.connections(b.peer()).await.len() == 1
    })
    .await;
    let kept = a.connections(b.peer()).await[0].connection;
    let another = |event| match event {
        Event::Connected { .. } => Ok(()),
        other => Err(other),
    };
    while b.within(Duration::ZERO, another).await.is_some() {}
    assert_eq!(b.within(Duration::from_secs(4), another).await, None);
    assert_eq!(a.connections(b.peer()).await[0].connection, kept);
}
