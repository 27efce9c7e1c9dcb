//! Connections whose peer goes on from another address.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;

/// A NAT in front of whoever dials it, with one mapping, which changes whenever it is told.
async fn nat(server: SocketAddr) -> (SocketAddr, mpsc::Sender<()>) {
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
                    Some(()) => outside = UdpSocket::bind(any).await.unwrap(),
                    None => return,
                },
            }
        }
    });
    (address, change)
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
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    carries(&mut out, &mut into).await;
    let before = b.connections(a.peer()).await;
    change.send(()).await.unwrap();
    carries(&mut out, &mut into).await;
    eventually("it is known where the peer is now", PATIENCE, async || {
        let after = b.connections(a.peer()).await;
        after[0].connection == before[0].connection && after[0].remote != before[0].remote
    })
    .await;
}
