//! On loopback: what is answered, who is let in, how connections and streams end.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::Multiaddr;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p::core::transport::{ListenerId, TransportEvent};
use libp2p::core::{Endpoint as Role, Transport as _};
use tokio::time::{sleep, timeout};

use super::super::Timing;
use super::super::admission::{Admission, Losses, Seen};
use super::super::tests::stock::{
    self, accepted, connected, dial_options, echoed, key, listening, next, opened, stock_quic,
};
use super::*;
use crate::udp::pump;

const LOCAL: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket, read as a daemon's is, and what came there.
#[derive(Clone)]
struct Socket {
    quic: Arc<QuicSocket>,
    received: pump::Received,
}

impl Socket {
    fn local(&self) -> SocketAddr {
        self.quic.local()
    }
}

fn socket(local: &str) -> Socket {
    let (quic, received) = pump::quic(local.parse().unwrap());
    Socket { quic, received }
}

/// Ours on one socket, without the guards above it.
fn on(seed: u8, socket: &Socket, admission: Admission) -> stock::Transport {
    let transport = Transport::new(
        &key(seed),
        std::slice::from_ref(&socket.quic),
        admission,
        PATIENCE,
        &Timing::default(),
    )
    .unwrap();
    transport
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}

fn roomy() -> Admission {
    Admission::new(8, 256, Seen::default(), Losses::default())
}

/// Keeps a transport going; its handshakes are finished and their connections held.
fn serve(mut transport: stock::Transport) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let event = poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await;
            if let TransportEvent::Incoming { upgrade, .. } = event {
                held.push(tokio::spawn(async move {
                    if let Ok((_, muxer)) = upgrade.await {
                        sleep(Duration::from_secs(60)).await;
                        drop(muxer);
                    }
                }));
            }
        }
    })
}

/// The datagrams that a client sends first: a new connection each time.
fn first_flight() -> Vec<Vec<u8>> {
    let settings = settings::settings(&key(99), &Timing::default()).unwrap();
    let mut endpoint = quinn_proto::Endpoint::new(Arc::new(settings.endpoint), None, false, None);
    let (now, to) = (std::time::Instant::now(), "192.0.2.1:4100".parse().unwrap());
    let (_, mut client) = endpoint.connect(now, settings.client, to, "peer").unwrap();
    let mut flight = Vec::new();
    loop {
        let mut datagram = Vec::new();
        if client.poll_transmit(now, 1, &mut datagram).is_none() {
            break;
        }
        flight.push(datagram);
    }
    assert!(
        flight.len() >= 2 && flight.iter().all(|d| d.len() == 1200),
        "a ClientHello with ML-KEM takes two"
    );
    flight
}

/// What `datagrams`, sent from a fresh port, are answered with in that time.
async fn answered_within(wait: Duration, datagrams: &[Vec<u8>], to: SocketAddr) -> Option<Vec<u8>> {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for datagram in datagrams {
        socket.send_to(datagram, to).await.unwrap();
    }
    let mut buffer = [0; 2000];
    let answer = timeout(wait, socket.recv(&mut buffer)).await.ok()?;
    Some(buffer[..answer.unwrap()].to_vec())
}

/// The answer to what is answered, however busy this machine is.
async fn answered(datagrams: &[Vec<u8>], to: SocketAddr) -> Option<Vec<u8>> {
    answered_within(PATIENCE, datagrams, to).await
}

/// The answer, soon, to what ought to have none.
async fn unasked(datagrams: &[Vec<u8>], to: SocketAddr) -> Option<Vec<u8>> {
    answered_within(Duration::from_millis(250), datagrams, to).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_a_well_formed_initial_is_answered() {
    let socket = socket("127.0.0.1:0");
    let to = socket.local();
    let mut transport = on(70, &socket, roomy());
    listening(&mut transport, LOCAL).await;
    let server = serve(transport);
    assert!(
        answered(&first_flight(), to).await.is_some(),
        "what all others are made of"
    );

    let altered = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut flight = first_flight();
        flight.iter_mut().for_each(change);
        flight
    };
    let short = |first: u8, length: usize| vec![[vec![first], vec![0xa7; length - 1]].concat()];
    for (what, datagrams) in [
        (
            "an unknown version",
            altered(&|d| d[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a])),
        ),
        (
            "version 2",
            altered(&|d| d[1..5].copy_from_slice(&[0x6b, 0x33, 0x43, 0xcf])),
        ),
        ("version negotiation", altered(&|d| d[1..5].fill(0))),
        ("a greased QUIC bit", altered(&|d| d[0] &= !0x40)),
        (
            "an Initial of less than 1200 bytes",
            altered(&|d| d.truncate(1199)),
        ),
        ("an Initial that does not open", altered(&|d| d[600] ^= 1)),
        ("0-RTT", altered(&|d| d[0] |= 0x10)),
        ("a handshake packet", altered(&|d| d[0] |= 0x20)),
        ("a Retry", altered(&|d| d[0] |= 0x30)),
        ("a short connection ID", altered(&|d| d[5] = 4)),
        ("a long header and junk", short(0xc0, 1200)),
        (
            "a short header of a connection long gone",
            short(0x45, 1200),
        ),
        ("a small short header", short(0x7f, 43)),
        ("STUN", short(0x00, 20)),
        ("a sealed frame", short(0x04, 1000)),
        ("nothing", vec![Vec::new()]),
        ("a byte", short(0xff, 1)),
    ] {
        let answer = unasked(&datagrams, to).await;
        assert!(
            answer.is_none(),
            "{what} got {} bytes",
            answer.unwrap().len()
        );
    }
    assert!(answered(&first_flight(), to).await.is_some(), "still there");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_answered_where_nobody_listens() {
    let socket = socket("127.0.0.1:0");
    let server = serve(on(71, &socket, roomy()));
    assert!(unasked(&first_flight(), socket.local()).await.is_none());
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_datagram_between_us_says_that_it_is_quic() {
    let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (mut a, mut b) = (on(72, &here, roomy()), on(73, &there, roomy()));
    let address = listening(&mut b, LOCAL).await;
    let (mut x, mut y) = connected(&mut a, &mut b, address).await;
    echoed(&mut x.1, &mut y.1, 500_000).await;
    for socket in [&here, &there] {
        let (sent, received) = (socket.quic.sent(), socket.received.lock());
        assert!(
            sent.len() > 300 && received.len() > 300,
            "{} {}",
            sent.len(),
            received.len()
        );
        assert!(sent.iter().chain(received.iter()).all(|d| d[0] >= 0x40));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_peer_sends_us_no_byte_below_0x40() {
    let socket = socket("127.0.0.1:0");
    let (mut ours, mut stock) = (on(74, &socket, roomy()), stock_quic(75));
    let address = listening(&mut ours, LOCAL).await;
    let (mut x, mut y) = connected(&mut stock, &mut ours, address).await;
    echoed(&mut x.1, &mut y.1, 500_000).await;
    let received = socket.received.lock();
    assert!(received.len() > 300 && received.iter().all(|d| d[0] >= 0x40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_source_is_busy_proves_its_address() {
    let socket = socket("127.0.0.1:0");
    let to = socket.local();
    // One place for the unproven, one for the proven.
    let mut transport = on(
        76,
        &socket,
        Admission::new(2, 256, Seen::default(), Losses::default()),
    );
    let address = listening(&mut transport, LOCAL).await;
    let server = serve(transport);
    let is_retry = |datagram: &[u8]| datagram[0] & 0xf0 == 0xf0;
    let answer = answered(&first_flight(), to).await.unwrap();
    assert!(!is_retry(&answer), "takes the place and goes no further");
    assert!(is_retry(&answered(&first_flight(), to).await.unwrap()));
    let before = socket.quic.sent().len();
    let dial = stock_quic(77)
        .dial(address, dial_options(Role::Dialer))
        .unwrap();
    let (peer, _muxer) = timeout(PATIENCE, dial).await.unwrap().unwrap();
    assert_eq!(peer, key(76).public().to_peer_id());
    let sent = socket.quic.sent();
    assert!(sent[before..].iter().any(|datagram| is_retry(datagram)));
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_initials_does_not_keep_us_from_dialling() {
    let socket = socket("127.0.0.1:0");
    let to = socket.local();
    let mut ours = on(91, &socket, roomy());
    listening(&mut ours, LOCAL).await;
    let mut stock = stock_quic(92);
    let address = listening(&mut stock, LOCAL).await;
    let theirs = serve(stock);
    let flood = tokio::spawn(async move {
        // The flood has the source address of the peer, so that its share is used up.
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut datagram = first_flight().remove(0);
        for n in 0u32.. {
            datagram[6..10].copy_from_slice(&n.to_be_bytes());
            socket.send_to(&datagram, to).await.unwrap();
            if n % 64 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let used_up = async { while unasked(&first_flight(), to).await.is_some() {} };
    timeout(PATIENCE, used_up)
        .await
        .expect("its share is used up");
    let dial = ours.dial(address, dial_options(Role::Dialer)).unwrap();
    let ours = serve(ours);
    let (peer, _muxer) = timeout(PATIENCE, dial).await.unwrap().unwrap();
    assert_eq!(peer, key(92).public().to_peer_id());
    [flood, theirs, ours]
        .iter()
        .for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_table_answers_nobody() {
    let socket = socket("127.0.0.1:0");
    let mut transport = on(
        78,
        &socket,
        Admission::new(0, 0, Seen::default(), Losses::default()),
    );
    listening(&mut transport, LOCAL).await;
    let server = serve(transport);
    assert!(unasked(&first_flight(), socket.local()).await.is_none());
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_is_punched_and_the_peer_comes_through_it() {
    for theirs_is_stock in [false, true] {
        let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let (mut a, mut b) = (on(80, &here, roomy()), on(81, &there, roomy()));
        if theirs_is_stock {
            b = stock_quic(81);
        }
        let (at_a, at_b) = (
            listening(&mut a, LOCAL).await,
            listening(&mut b, LOCAL).await,
        );
        let let_in = a.dial(at_b.clone(), dial_options(Role::Listener)).unwrap();
        assert!(
            a.dial(at_b, dial_options(Role::Listener)).is_err(),
            "one at a time"
        );
        let let_in = tokio::spawn(let_in);
        let (server_a, server_b) = (serve(a), {
            // The other side dials when some came, from the port that is punched to.
            let punched = async {
                while here.quic.sent().len() < 2 {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(PATIENCE, punched)
                .await
                .expect("a hole is punched again and again");
            let dial = b.dial(at_a, dial_options(Role::Dialer)).unwrap();
            (tokio::spawn(dial), serve(b))
        });
        let (peer, mut inbound) = timeout(PATIENCE, let_in).await.unwrap().unwrap().unwrap();
        let (_, mut outbound) = timeout(PATIENCE, server_b.0)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(peer, key(81).public().to_peer_id());
        echoed(&mut inbound, &mut outbound, 10_000).await;
        // Not locked any longer: the connection goes on.
        let sent = here.quic.sent();
        let punches: Vec<_> = sent.iter().take_while(|d| d[0] & 0x80 == 0).collect();
        assert!(punches.len() >= 2, "{}", punches.len());
        assert!(punches.iter().all(|d| d.len() == 64 && d[0] == 3) && punches[0] != punches[1]);
        server_a.abort();
        server_b.1.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_that_nobody_comes_through_is_given_up() {
    let socket = socket("127.0.0.1:0");
    let mut a = Transport::new(
        &key(82),
        std::slice::from_ref(&socket.quic),
        roomy(),
        Duration::from_millis(300),
        &Timing::default(),
    )
    .unwrap();
    let nobody: Multiaddr = "/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap();
    for _ in 0..2 {
        let let_in =
            libp2p::Transport::dial(&mut a, nobody.clone(), dial_options(Role::Listener)).unwrap();
        assert!(matches!(
            timeout(PATIENCE, let_in).await.unwrap(),
            Err(Error::Slow)
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_listener_takes_no_connection_with_it() {
    let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (mut a, mut b) = (on(83, &here, roomy()), on(84, &there, roomy()));
    let id = ListenerId::next();
    b.listen_on(id, LOCAL.parse().unwrap()).unwrap();
    let TransportEvent::NewAddress { listen_addr, .. } = next(&mut b).await else {
        panic!()
    };
    assert!(
        b.listen_on(ListenerId::next(), LOCAL.parse().unwrap())
            .is_err(),
        "taken"
    );
    let (mut x, mut y) = connected(&mut a, &mut b, listen_addr.clone()).await;
    assert!(b.remove_listener(id));
    assert!(!b.remove_listener(id));
    let closed = next(&mut b).await;
    assert!(
        matches!(closed, TransportEvent::ListenerClosed { listener_id, reason: Ok(()) } if listener_id == id)
    );
    echoed(&mut x.1, &mut y.1, 10_000).await;
    listening(&mut b, LOCAL).await;
    connected(&mut a, &mut b, listen_addr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_listener_announces_the_interfaces_with_the_socket_s_port() {
    for (bind, listen, wanted) in [
        (
            "0.0.0.0:0",
            "/ip4/0.0.0.0/udp/0/quic-v1",
            "/ip4/127.0.0.1/udp",
        ),
        ("[::]:0", "/ip6/::/udp/0/quic-v1", "/ip6/::1/udp"),
    ] {
        let socket = socket(bind);
        let wanted: Multiaddr = format!("{wanted}/{}/quic-v1", socket.local().port())
            .parse()
            .unwrap();
        let mut a = on(85, &socket, roomy());
        a.listen_on(ListenerId::next(), listen.parse().unwrap())
            .unwrap();
        loop {
            match next(&mut a).await {
                TransportEvent::NewAddress { listen_addr, .. } if listen_addr == wanted => break,
                TransportEvent::NewAddress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_as_libp2p_wants_them_to() {
    let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (mut a, mut b) = (on(86, &here, roomy()), on(87, &there, roomy()));
    let address = listening(&mut b, LOCAL).await;
    let (x, y) = connected(&mut a, &mut b, address).await;
    let (mut x, mut y) = (x.1, y.1);

    // Closed: all of it arrives, then the end; closing twice is no error.
    let mut out = opened(&mut x).await;
    out.write_all(b"hello").await.unwrap();
    out.close().await.unwrap();
    out.close().await.unwrap();
    assert!(out.write(b"more").await.is_err());
    drop(out);
    let mut into = accepted(&mut y).await;
    let mut got = Vec::new();
    into.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"hello");

    // Dropped without closing: an error, not an end.
    let mut out = opened(&mut x).await;
    out.write_all(b"hello").await.unwrap();
    let mut into = accepted(&mut y).await;
    drop(out);
    let mut got = Vec::new();
    let error = timeout(PATIENCE, into.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // Its other direction was dropped as well: the writer learns of it.
    let stopped = async { while into.write(&[0; 1000]).await.is_ok() {} };
    timeout(PATIENCE, stopped).await.unwrap();

    // The connection: the closing end is done at once, the other hears of it.
    let mut out = opened(&mut x).await;
    out.write_all(b"hello").await.unwrap();
    let mut into = accepted(&mut y).await;
    into.read_exact(&mut [0; 5]).await.unwrap();
    timeout(PATIENCE, x.close()).await.unwrap().unwrap();
    assert!(
        timeout(PATIENCE, into.read(&mut [0; 5]))
            .await
            .unwrap()
            .is_err()
    );
    assert!(
        timeout(PATIENCE, poll_fn(|cx| y.poll_inbound_unpin(cx)))
            .await
            .unwrap()
            .is_err()
    );
    timeout(PATIENCE, y.close()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_streams_is_kept() {
    let (here, there) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (mut a, mut b) = (on(88, &here, roomy()), on(89, &there, roomy()));
    let address = listening(&mut b, LOCAL).await;
    let (mut x, _y) = connected(&mut a, &mut b, address).await;
    let mut streams = Vec::new();
    for _ in 0..super::super::transport::STREAMS {
        streams.push(timeout(PATIENCE, opened(&mut x.1)).await.unwrap());
    }
    assert!(opened(&mut x.1).now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_needs_a_socket_of_the_family() {
    let socket = socket("127.0.0.1:0");
    let mut a = on(90, &socket, roomy());
    for address in [
        "/ip6/::1/udp/9/quic-v1",
        "/ip4/192.0.2.1/udp/9/quic-v1",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "/ip4/0.0.0.0/udp/9/quic-v1",
        "/ip4/127.0.0.1/tcp/9",
        "/ip4/127.0.0.1/udp/9/quic",
    ] {
        assert!(
            a.dial(address.parse().unwrap(), dial_options(Role::Dialer))
                .is_err(),
            "{address}"
        );
    }
    assert!(
        a.dial(
            "/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap(),
            dial_options(Role::Dialer)
        )
        .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_leaves_from_the_address_that_the_kernel_would_choose() {
    let (far, near) = (socket("127.0.0.9:0"), socket("127.0.0.1:0"));
    let sockets = [far.quic, near.quic.clone()];
    let a = Transport::new(&key(93), &sockets, roomy(), PATIENCE, &Timing::default()).unwrap();
    let mut a = a
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    // The first one listens, but replies of a host on 127.0.0.1 are expected there.
    let _ = listening(&mut a, "/ip4/127.0.0.9/udp/0/quic-v1").await;
    let mut stock = stock_quic(94);
    let address = listening(&mut stock, LOCAL).await;
    connected(&mut a, &mut stock, address).await;
    assert!(!near.quic.sent().is_empty());
}

#[test]
fn a_listener_gets_the_socket_that_is_bound_there() {
    let all: Vec<Option<SocketAddr>> = [
        "0.0.0.0:4100",
        "[::]:4100",
        "127.0.0.1:5000",
        "127.0.0.1:6000",
    ]
    .into_iter()
    .map(|text| Some(text.parse().unwrap()))
    .collect();
    let chosen = |text: &str| choose(&all, text.parse().unwrap());
    for (wanted, expected) in [
        ("0.0.0.0:4100", Some(0)),
        ("0.0.0.0:0", Some(0)),
        ("[::]:4100", Some(1)),
        ("[::]:0", Some(1)),
        ("127.0.0.1:6000", Some(3)),
        ("127.0.0.1:0", Some(2)),
        ("0.0.0.0:6000", Some(3)),
        ("127.0.0.1:4100", None),
        ("[::1]:4100", None),
        ("0.0.0.0:7000", None),
    ] {
        assert_eq!(chosen(wanted), expected, "{wanted}");
    }
    assert_eq!(
        choose(&[None, all[0]], "0.0.0.0:0".parse().unwrap()),
        Some(1),
        "one listener each"
    );
}
