//! Whole nodes against each other: in memory, and over loopback TCP and QUIC.

#![expect(
    clippy::result_large_err,
    reason = "events that are passed over come back whole"
)]

mod dcutr;
mod dialling;
mod doubts;
mod holes;
mod hostile_relay;
mod kept;
mod lan;
mod listening;
mod membership;
mod nat;
mod noted;
mod relays;
mod requests;
mod rest;
mod roaming;
pub(super) mod stock;
mod strangers;
mod streams;
mod web;

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
        circuit: Duration::from_secs(1),
        renewals: Renewals {
            soonest: Duration::from_secs(1),
            latest: Duration::from_secs(2),
        },
        ..Timing::default()
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
