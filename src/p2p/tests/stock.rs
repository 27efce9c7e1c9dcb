//! Against libp2p's own transports, both ways, over QUIC and TCP.

use std::future::poll_fn;

use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId as LibPeer, noise, tcp, yamux};

use super::super::transport;
use super::*;

pub(in super::super) type Transport = Boxed<(LibPeer, StreamMuxerBox)>;
pub(in super::super) type Connected = (LibPeer, StreamMuxerBox);

pub(in super::super) fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

/// The daemon's transports, guards and all.
pub(in super::super) fn ours(seed: u8, listen: &str) -> Transport {
    transport::build(
        &on_loopback(seed, listen),
        &key(seed),
        &Default::default(),
        &Default::default(),
        &Default::default(),
    )
    .unwrap()
    .transport
}

pub(in super::super) fn stock_quic(seed: u8) -> Transport {
    let quic = libp2p_quic::tokio::Transport::new(libp2p_quic::Config::new(&key(seed)));
    quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}

fn stock_tcp(seed: u8) -> Transport {
    tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(&key(seed)).unwrap())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}

pub(in super::super) async fn listening(transport: &mut Transport, address: &str) -> Multiaddr {
    transport
        .listen_on(ListenerId::next(), address.parse().unwrap())
        .unwrap();
    match next(transport).await {
        TransportEvent::NewAddress { listen_addr, .. } => listen_addr,
        other => panic!("{other:?}"),
    }
}

pub(in super::super) type Next =
    TransportEvent<<Transport as libp2p::Transport>::ListenerUpgrade, std::io::Error>;

pub(in super::super) async fn next(transport: &mut Transport) -> Next {
    timeout(
        PATIENCE,
        poll_fn(|cx| std::pin::Pin::new(&mut *transport).poll(cx)),
    )
    .await
    .unwrap()
}

pub(in super::super) fn dial_options(role: Endpoint) -> DialOpts {
    DialOpts {
        role,
        port_use: PortUse::Reuse,
    }
}

/// Both ends of a new connection, the dialler's first.
pub(in super::super) async fn connected(
    from: &mut Transport,
    to: &mut Transport,
    address: Multiaddr,
) -> (Connected, Connected) {
    let dial = from.dial(address, dial_options(Endpoint::Dialer)).unwrap();
    let accept = async {
        loop {
            if let TransportEvent::Incoming { upgrade, .. } = next(to).await {
                return upgrade.await;
            }
        }
    };
    let (dialled, accepted) = timeout(PATIENCE, futures::future::join(dial, accept))
        .await
        .unwrap();
    (dialled.unwrap(), accepted.unwrap())
}

pub(in super::super) async fn opened(muxer: &mut StreamMuxerBox) -> SubstreamBox {
    poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        muxer.poll_outbound_unpin(cx)
    })
    .await
    .unwrap()
}

pub(in super::super) async fn accepted(muxer: &mut StreamMuxerBox) -> SubstreamBox {
    poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        muxer.poll_inbound_unpin(cx)
    })
    .await
    .unwrap()
}

/// Keeps a connection going while `work` is done on its streams.
async fn driven<T>(muxer: &mut StreamMuxerBox, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        work.as_mut().poll(cx)
    })
    .await
}

/// One stream from `a` to `b`: `length` bytes there, closed, and the same bytes back to the end.
pub(in super::super) async fn echoed(
    a: &mut StreamMuxerBox,
    b: &mut StreamMuxerBox,
    length: usize,
) {
    let sent: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
    // Both connections are kept going until both ends are done.
    let done = tokio::sync::Barrier::new(2);
    let there = async {
        let mut stream = opened(a).await;
        let work = async {
            let mut back = Vec::new();
            stream.write_all(&sent).await.unwrap();
            stream.close().await.unwrap();
            stream.read_to_end(&mut back).await.unwrap();
            done.wait().await;
            back
        };
        driven(a, work).await
    };
    let here = async {
        let mut stream = accepted(b).await;
        let work = async {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            stream.write_all(&got).await.unwrap();
            stream.close().await.unwrap();
            done.wait().await;
        };
        driven(b, work).await
    };
    let (here, there) = (std::pin::pin!(here), std::pin::pin!(there));
    let (back, ()) = timeout(PATIENCE, futures::future::join(there, here))
        .await
        .unwrap();
    assert!(back == sent);
}

async fn speaks_with(
    mut from: Transport,
    mut to: Transport,
    listen: &str,
    (dialler, listener): (u8, u8),
) {
    let address = listening(&mut to, listen).await;
    let (mut a, mut b) = connected(&mut from, &mut to, address).await;
    assert_eq!(a.0, key(listener).public().to_peer_id());
    assert_eq!(b.0, key(dialler).public().to_peer_id());
    echoed(&mut a.1, &mut b.1, 300_000).await;
    echoed(&mut b.1, &mut a.1, 300_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_quic_peer_dials_us() {
    for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"] {
        speaks_with(stock_quic(60), ours(61, listen), listen, (60, 61)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_quic_peer_is_dialled_by_us() {
    for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"] {
        speaks_with(ours(62, listen), stock_quic(63), listen, (62, 63)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_tcp_peer_dials_us_and_is_dialled() {
    let listen = "/ip4/127.0.0.1/tcp/0";
    speaks_with(stock_tcp(64), ours(65, listen), listen, (64, 65)).await;
    speaks_with(ours(66, listen), stock_tcp(67), listen, (66, 67)).await;
}
