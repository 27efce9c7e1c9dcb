//! Whole nodes against each other: in memory, and over loopback TCP and QUIC.

#![expect(
    clippy::result_large_err,
    reason = "events that are passed over come back whole"
)]

mod lan;
mod nat;
pub(super) mod stock;

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::eventually;

const LAB: SubnetId = SubnetId([7; 16]);
const HOME: SubnetId = SubnetId([9; 16]);
const PATIENCE: Duration = Duration::from_secs(15);

fn fast() -> Timing {
    Timing {
        ping: Duration::from_millis(400),
        silence: Duration::from_secs(3),
        surplus: Duration::from_secs(1),
        idle: Duration::from_secs(10),
        grace: Duration::from_millis(100),
    }
}

fn in_memory(seed: u8) -> Config {
    let mut config = Config::new([seed; 32]);
    config.transport = TransportKind::Memory;
    config.listen = vec!["/memory/0".parse().unwrap()];
    config.timing = fast();
    config
}

fn on_loopback(seed: u8, listen: &str) -> Config {
    let mut config = Config::new([seed; 32]);
    config.lan_discovery = false;
    listen_also(&mut config, listen);
    config.timing = fast();
    config
}

/// A listen address, with a socket if it is one of QUIC's.
fn listen_also(config: &mut Config, listen: &str) {
    let address: Address = listen.parse().unwrap();
    config.quic.extend(address.udp().map(quic_socket));
    config.listen.push(address);
}

fn quic_socket(local: std::net::SocketAddr) -> Arc<crate::udp::QuicSocket> {
    crate::udp::pump::quic(local).0
}

struct Node {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    /// Events that a wait for another one has passed over.
    passed: VecDeque<Event>,
    address: Address,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    async fn start(config: Config) -> Node {
        let (handle, mut events, driver) = start(config).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(driver.run(stop.clone()));
        let address = loop {
            match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
                Event::Listening { addresses } if !addresses.is_empty() => {
                    break addresses[0].clone();
                }
                _ => {}
            }
        };
        Node {
            handle,
            events,
            passed: VecDeque::new(),
            address,
            stop,
            task,
        }
    }

    fn peer(&self) -> PeerId {
        self.handle.peer()
    }

    async fn members(&self, members: &[(PeerId, &[SubnetId])]) {
        let members = members
            .iter()
            .map(|(peer, subnets)| (*peer, subnets.to_vec()))
            .collect();
        self.handle.members(members).await.unwrap();
    }

    /// The first event that `pick` takes; the others stay.
    async fn expect<T>(&mut self, pick: impl FnMut(Event) -> Result<T, Event>) -> T {
        self.within(PATIENCE, pick)
            .await
            .expect("the event in time")
    }

    async fn within<T>(
        &mut self,
        time: Duration,
        mut pick: impl FnMut(Event) -> Result<T, Event>,
    ) -> Option<T> {
        let mut seen = VecDeque::new();
        let deadline = Instant::now() + time;
        let found = loop {
            let event = match self.passed.pop_front() {
                Some(event) => event,
                None => match tokio::time::timeout_at(deadline, self.events.recv()).await {
                    Ok(Some(event)) => event,
                    _ => break None,
                },
            };
            match pick(event) {
                Ok(found) => break Some(found),
                Err(other) => seen.push_back(other),
            }
        };
        seen.append(&mut self.passed);
        self.passed = seen;
        found
    }

    async fn stream_out(&mut self) -> (u64, SubnetId, DataStream) {
        self.expect(|event| match event {
            Event::StreamOut {
                connection,
                subnet,
                stream,
                ..
            } => Ok((connection, subnet, stream)),
            other => Err(other),
        })
        .await
    }

    async fn stream_in(&mut self) -> (u64, SubnetId, DataStream) {
        self.expect(|event| match event {
            Event::StreamIn {
                connection,
                subnet,
                stream,
                ..
            } => Ok((connection, subnet, stream)),
            other => Err(other),
        })
        .await
    }

    async fn closed(&mut self) -> (u64, usize) {
        self.expect(|event| match event {
            Event::Closed {
                connection,
                remaining,
                ..
            } => Ok((connection, remaining)),
            other => Err(other),
        })
        .await
    }

    /// Answers the next request with its own body, reversed.
    async fn answer(&mut self) -> (Protocol, Class) {
        self.expect(|event| match event {
            Event::Asked {
                protocol,
                class,
                mut body,
                responder,
                ..
            } => {
                body.reverse();
                responder.respond(body);
                Ok((protocol, class))
            }
            other => Err(other),
        })
        .await
    }

    async fn connections(&self, peer: PeerId) -> Vec<ConnectionStatus> {
        let status = self.handle.status().await.unwrap();
        status
            .into_iter()
            .find(|s| s.peer == peer)
            .map(|s| s.connections)
            .unwrap_or_default()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Two members of LAB, connected by `a`, with their streams: `a` out, `b` in, `b` out, `a` in.
async fn pair(a: Config, b: Config) -> (Node, Node, [DataStream; 4]) {
    let (mut a, mut b) = (Node::start(a).await, Node::start(b).await);
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    assert_eq!(
        a.handle
            .connect(vec![Typed::new(b.address.clone())], None)
            .await,
        Ok(b.peer())
    );
    let streams = [
        a.stream_out().await,
        b.stream_in().await,
        b.stream_out().await,
        a.stream_in().await,
    ];
    assert!(streams.iter().all(|(_, subnet, _)| *subnet == LAB));
    let streams = streams.map(|(_, _, stream)| stream);
    (a, b, streams)
}

async fn carries(from: &mut DataStream, to: &mut DataStream) {
    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let mut got = vec![0; sent.len()];
    let write = async {
        from.write_all(&sent).await?;
        from.flush().await
    };
    let (written, read) = timeout(
        PATIENCE,
        futures::future::join(write, to.read_exact(&mut got)),
    )
    .await
    .unwrap();
    written.unwrap();
    read.unwrap();
    assert!(got == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_the_join_protocol_and_nothing_else() {
    let (mut a, mut b) = (
        Node::start(in_memory(1)).await,
        Node::start(in_memory(2)).await,
    );
    // `a` believes that both are members and tries everything; `b` knows nothing of it.
    a.members(&[(b.peer(), &[LAB])]).await;
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let control = a
        .handle
        .ask(b.peer(), Protocol::Control, b"let me in".to_vec(), PATIENCE)
        .await;
    assert_eq!(control, Err(AskError::Refused));
    let (handle, peer) = (a.handle.clone(), b.peer());
    let join = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Join, b"abc".to_vec(), PATIENCE)
            .await
    });
    assert_eq!(b.answer().await, (Protocol::Join, Class::Stranger));
    assert_eq!(join.await.unwrap(), Ok(b"cba".to_vec()));
    let stream = |event| match event {
        Event::StreamOut { .. } | Event::StreamIn { .. } | Event::Rtt { .. } => Ok(()),
        other => Err(other),
    };
    assert_eq!(a.within(Duration::from_secs(1), stream).await, None);
    assert_eq!(b.within(Duration::from_millis(10), stream).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admitted_stranger_gets_everything_within_a_second() {
    let mut config = (in_memory(3), in_memory(4));
    (config.0.timing, config.1.timing) = (Timing::default(), Timing::default());
    let (mut a, mut b) = (Node::start(config.0).await, Node::start(config.1).await);
    // Only `a`, which joins, knows an address; only then do they learn of each other.
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let join = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Join, b"abc".to_vec(), PATIENCE)
            .await
    });
    // The issuer admits before it answers: the answer arrives all the same.
    b.members(&[(a.peer(), &[LAB])]).await;
    b.answer().await;
    assert_eq!(join.await.unwrap(), Ok(b"cba".to_vec()));
    let start = Instant::now();
    a.members(&[(b.peer(), &[LAB])]).await;
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    carries(&mut out, &mut into).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_before_the_peer_heard_of_the_grant_is_answered() {
    let (a, mut b) = (
        Node::start(in_memory(61)).await,
        Node::start(in_memory(62)).await,
    );
    a.members(&[(b.peer(), &[LAB])]).await;
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Control, b"abc".to_vec(), PATIENCE)
            .await
    });
    // The request has been refused at least once by then: to b its sender is a stranger.
    tokio::time::sleep(Duration::from_millis(100)).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    assert_eq!(b.answer().await, (Protocol::Control, Class::Member));
    assert_eq!(ask.await.unwrap(), Ok(b"cba".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_at_once() {
    let (mut a, mut b, [_out, mut into, mut back, _]) = pair(in_memory(5), in_memory(6)).await;
    b.members(&[]).await;
    b.closed().await;
    // The removing side hears nothing more and says nothing more, whatever the transport still does.
    assert!(into.read(&mut [0; 10]).await.is_err());
    assert!(back.write(&[0; 10]).await.is_err());
    timeout(Duration::from_secs(1), a.closed()).await.unwrap();
    // It comes back as what it is now.
    let class = b
        .expect(|event| match event {
            Event::Connected { class, .. } if class == Class::Stranger => Ok(class),
            other => Err(other),
        })
        .await;
    assert_eq!(class, Class::Stranger);
    assert_eq!(
        a.handle
            .ask(b.peer(), Protocol::Control, vec![1], PATIENCE)
            .await,
        Err(AskError::Refused)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_bytes_both_ways() {
    let (a, _b, [mut out, mut into, mut back, mut home]) = pair(in_memory(7), in_memory(8)).await;
    carries(&mut out, &mut into).await;
    carries(&mut back, &mut home).await;
    let status = a.handle.status().await.unwrap();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].class, Class::Member);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_common_subnet_gets_its_streams_on_the_same_connection_and_loses_them_again() {
    let (mut a, mut b, [_out, mut into, ..]) = pair(in_memory(9), in_memory(10)).await;
    let connection = a.connections(b.peer()).await[0].connection;
    // The two ends learn of it at different times: the early one's stream waits for the late one.
    a.members(&[(b.peer(), &[LAB, HOME])]).await;
    b.members(&[(a.peer(), &[LAB, HOME])]).await;
    let (on, subnet, mut out) = a.stream_out().await;
    assert_eq!((on, subnet), (connection, HOME));
    let (_, subnet, mut into_home) = b.stream_in().await;
    assert_eq!(subnet, HOME);
    carries(&mut out, &mut into_home).await;
    b.members(&[(a.peer(), &[HOME])]).await;
    assert!(
        timeout(PATIENCE, into.read(&mut [0; 10]))
            .await
            .unwrap()
            .is_err(),
        "the stream of LAB has failed"
    );
    carries(&mut out, &mut into_home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_is_opened_again() {
    let (mut a, mut b, [out, mut into, ..]) = pair(in_memory(11), in_memory(12)).await;
    drop(out);
    let (mut out, mut newer) = (a.stream_out().await.2, b.stream_in().await.2);
    carries(&mut out, &mut newer).await;
    assert!(
        !matches!(into.read(&mut [0; 10]).await, Ok(1..)),
        "the older stream is over"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_dropped_over_and_over_is_opened_once_the_peer_opens_one() {
    let (mut a, mut b, [out, into, ..]) = pair(in_memory(41), in_memory(42)).await;
    drop((out, into));
    // By then pauses of 1.6 s and more lie between two attempts.
    let end = Instant::now() + Duration::from_secs(4);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let came = |event| {
            if let Event::StreamIn { stream, .. } = event {
                Ok(stream)
            } else {
                Err(event)
            }
        };
        drop(b.within(left, came).await);
        let went = |event| {
            if let Event::StreamOut { stream, .. } = event {
                Ok(stream)
            } else {
                Err(event)
            }
        };
        drop(a.within(left, went).await);
    }
    b.members(&[(a.peer(), &[])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    let back = Instant::now();
    b.stream_in().await;
    assert!(
        back.elapsed() < Duration::from_millis(800),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_says_of_its_program_is_known_while_it_is_connected() {
    let mut talker = in_memory(113);
    talker.agent = "byway/9.9 v=2-7 f=80".to_owned();
    let (a, b, _streams) = pair(in_memory(114), talker).await;
    let said = loop {
        if let Some(agent) = a.handle.status_of(b.peer()).await.unwrap().agent {
            break agent;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        (
            said.program.as_str(),
            said.versions.least,
            said.versions.most
        ),
        ("byway/9.9", 2, 7)
    );
    a.handle
        .send(Command::Disconnect { peer: b.peer() })
        .await
        .unwrap();
    assert_eq!(a.handle.status_of(b.peer()).await.unwrap().agent, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_pass_and_larger_ones_are_refused() {
    let (a, mut b, _streams) = pair(in_memory(13), in_memory(14)).await;
    for protocol in [Protocol::Join, Protocol::Control, Protocol::Service] {
        let cap = protocol.cap();
        let (handle, peer) = (a.handle.clone(), b.peer());
        let whole =
            tokio::spawn(async move { handle.ask(peer, protocol, vec![5; cap], PATIENCE).await });
        assert_eq!(b.answer().await, (protocol, Class::Member));
        assert_eq!(whole.await.unwrap().unwrap().len(), cap);
        let over = a
            .handle
            .ask(b.peer(), protocol, vec![5; cap + 1], PATIENCE)
            .await;
        assert_eq!(over, Err(AskError::TooLarge(cap + 1)));
        // Answers have room for all that decides whether a joiner is a member.
        let (handle, peer) = (a.handle.clone(), b.peer());
        let large =
            tokio::spawn(async move { handle.ask(peer, protocol, vec![1], PATIENCE).await });
        let asked = |event| {
            if let Event::Asked { responder, .. } = event {
                Ok(responder)
            } else {
                Err(event)
            }
        };
        b.expect(asked).await.respond(vec![6; 1024 * 1024]);
        assert_eq!(
            large.await.unwrap().map(|answer| answer.len()),
            Ok(1024 * 1024)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_dials_and_an_unanswered_one_ends() {
    let (a, mut b) = (
        Node::start(in_memory(15)).await,
        Node::start(in_memory(16)).await,
    );
    assert_eq!(
        a.handle
            .ask(b.peer(), Protocol::Join, vec![1], PATIENCE)
            .await,
        Err(AskError::NoAddress)
    );
    let heard = vec![Heard::parse(&b.address.to_string()).unwrap()];
    a.handle
        .send(Command::Known {
            peer: b.peer(),
            heard,
            answered: vec![],
        })
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask =
        tokio::spawn(async move { handle.ask(peer, Protocol::Join, vec![1, 2], PATIENCE).await });
    b.answer().await;
    assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask =
        tokio::spawn(async move { handle.ask(peer, Protocol::Join, vec![1], PATIENCE).await });
    let asked = |event| {
        if let Event::Asked { responder, .. } = event {
            Ok(responder)
        } else {
            Err(event)
        }
    };
    drop(b.expect(asked).await);
    assert_eq!(ask.await.unwrap(), Err(AskError::Closed));
}

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
async fn tcp_and_quic_carry_packets_and_requests() {
    for (n, listen, transport) in [
        (23, "/ip4/127.0.0.1/tcp/0", "tcp"),
        (25, "/ip4/127.0.0.1/udp/0/quic-v1", "quic"),
        (27, "/ip6/::1/tcp/0", "tcp"),
    ] {
        let (a, mut b, [mut out, mut into, mut back, mut home]) =
            pair(on_loopback(n, listen), on_loopback(n + 1, listen)).await;
        carries(&mut out, &mut into).await;
        carries(&mut back, &mut home).await;
        let connections = a.connections(b.peer()).await;
        assert_eq!(connections[0].transport, transport);
        let (handle, peer) = (a.handle.clone(), b.peer());
        let ask = tokio::spawn(async move {
            handle
                .ask(peer, Protocol::Control, vec![1, 2], PATIENCE)
                .await
        });
        b.answer().await;
        assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
        b.members(&[]).await;
        b.closed().await;
        assert!(into.read(&mut [0; 10]).await.is_err());
    }
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
    a.lan_discovery = false;
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
async fn a_port_in_use_is_its_own_error() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"] {
        let first = Node::start(on_loopback(32, listen)).await;
        let mut second = on_loopback(33, listen);
        second.listen = vec![first.address.clone()];
        assert!(matches!(start(second), Err(Error::InUse(_))), "{listen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quic_address_without_a_socket_of_its_own_is_an_error() {
    let mut config = on_loopback(32, "/ip4/127.0.0.1/udp/0/quic-v1");
    config.listen = vec!["/ip6/::1/udp/0/quic-v1".parse().unwrap()];
    let error = start(config.clone()).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "listen on /ip6/::1/udp/0/quic-v1: no UDP socket"
    );
    // One socket carries one listener.
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(); 2];
    assert!(matches!(start(config).map(drop), Err(Error::Listen { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn underlay_never_rides_overlay() {
    let (mut a, b) = (
        Node::start(on_loopback(34, "/ip4/127.0.0.1/tcp/0")).await,
        Node::start(on_loopback(35, "/ip4/127.0.0.1/tcp/0")).await,
    );
    let prefix: ipnet::IpNet = "127.0.0.0/8".parse().unwrap();
    a.handle.send(Command::Overlay(vec![prefix])).await.unwrap();
    let withdrawn = |event| match event {
        Event::Listening { addresses } if addresses.is_empty() => Ok(()),
        other => Err(other),
    };
    a.expect(withdrawn).await;
    assert!(
        a.handle
            .connect(vec![Typed::new(b.address.clone())], None)
            .await
            .is_err()
    );
    assert!(
        b.handle
            .connect(vec![Typed::new(a.address.clone())], None)
            .await
            .is_err()
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
    config.lan_discovery = false;
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
        let mut config = Config::new([seed; 32]);
        config.lan_discovery = false;
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
