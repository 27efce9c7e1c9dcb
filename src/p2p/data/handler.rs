//! One connection's data streams.
//!
//! For each common subnet the handler keeps one outbound stream open (retrying with back-off while the connection
//! lives) and hands on at most one inbound stream; a newer one takes the place of an older. An inbound stream for a
//! subnet that is not common yet waits for its membership until its deadline: the two ends learn of a grant at
//! different moments. Whoever opens a stream sees the subnet as common, so ours, which it may have refused until now,
//! rests no longer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol};
use libp2p::{Stream, StreamProtocol};
use tokio::time::{Instant, Sleep};

use super::Direction;
use crate::backoff::Backoff;
use crate::model::id::SubnetId;
use crate::p2p::stream::{Activity, DataStream, StreamGuard};
use crate::p2p::stream_header;

/// The protocol of the streams that packets travel on.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/byway/data/1");
/// Time for the stream header to arrive and for its subnet to become a common one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Inbound streams that are still being looked at: more are refused at once.
const READING: usize = 16;
/// First and longest pause before a failed outbound stream is opened again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSE: Backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(10));
/// A stream that lived this long starts again with the first pause.
const LIVED: Duration = Duration::from_secs(10);

/// What the behaviour tells the handler of a connection.
#[derive(Debug)]
pub(in crate::p2p) enum Order {
    /// The subnets it carries from now on.
    Carry(BTreeSet<SubnetId>),
    /// Another connection of the peer is gone, whose streams may have been preferred to ours: ours rest no longer.
    OpenSoon,
}

/// A stream that is ready for packets.
#[derive(Debug)]
pub(in crate::p2p) struct FromHandler {
    pub(super) subnet: SubnetId,
    pub(super) direction: Direction,
    pub(super) stream: DataStream,
}

/// The outbound stream of one subnet.
enum Out {
    /// It is to be asked for at the next poll.
    Due,
    /// It was asked for and is not there yet.
    Opening,
    /// The stream header is on its way, and the peer's consent is awaited.
    Greeting(BoxFuture<'static, io::Result<Stream>>),
    /// It was handed on and carries packets.
    Open {
        guard: Arc<StreamGuard>,
        since: Instant,
    },
    /// It failed, and the pause before the next one runs.
    Resting(Pin<Box<Sleep>>),
}

struct Outbound {
    state: Out,
    failures: u32,
}

impl Outbound {
    fn rest(&mut self) {
        let pause = PAUSE.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.state = Out::Resting(Box::pin(tokio::time::sleep(pause)));
    }

    /// There is reason to think that the next attempt succeeds. The first pause stays: two ends that refuse each other's
    /// streams would else do nothing but that.
    fn hurry(&mut self) {
        let soon = Instant::now() + FIRST_PAUSE;
        if let Out::Resting(pause) = &mut self.state
            && pause.deadline() > soon
        {
            pause.as_mut().reset(soon);
        }
    }
}

/// An inbound stream whose subnet is known but not common, or that still has to be answered.
enum Incoming {
    /// The stream header is being read.
    Reading(BoxFuture<'static, Option<(SubnetId, Stream)>>),
    /// Waits for its subnet to become common.
    Parked {
        subnet: SubnetId,
        stream: Stream,
        deadline: Pin<Box<Sleep>>,
    },
    /// The consent is being written.
    Answering {
        subnet: SubnetId,
        answer: BoxFuture<'static, io::Result<Stream>>,
    },
}

/// Keeps the data streams of one connection.
pub(in crate::p2p) struct Handler {
    activity: Arc<Activity>,
    outbound: BTreeMap<SubnetId, Outbound>,
    incoming: Vec<Incoming>,
    inbound: BTreeMap<SubnetId, Arc<StreamGuard>>,
    ready: VecDeque<FromHandler>,
    waker: Option<Waker>,
}

impl Handler {
    pub(super) fn new(subnets: BTreeSet<SubnetId>, activity: Arc<Activity>) -> Self {
        let mut handler = Handler {
            activity,
            outbound: BTreeMap::new(),
            incoming: Vec::new(),
            inbound: BTreeMap::new(),
            ready: VecDeque::new(),
            waker: None,
        };
        handler.set_subnets(subnets);
        handler
    }

    fn set_subnets(&mut self, subnets: BTreeSet<SubnetId>) {
        self.outbound.retain(|subnet, out| {
            let kept = subnets.contains(subnet);
            if let (false, Out::Open { guard, .. }) = (kept, &out.state) {
                guard.revoke();
            }
            kept
        });
        self.inbound.retain(|subnet, guard| {
            let kept = subnets.contains(subnet);
            if !kept {
                guard.revoke();
            }
            kept
        });
        for subnet in subnets {
            self.outbound.entry(subnet).or_insert(Outbound {
                state: Out::Due,
                failures: 0,
            });
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn hand_out(&mut self, subnet: SubnetId, stream: Stream) {
        let (stream, guard) = DataStream::new(stream, self.activity.clone());
        if let Some(out) = self.outbound.get_mut(&subnet) {
            out.state = Out::Open {
                guard,
                since: Instant::now(),
            };
            self.ready.push_back(FromHandler {
                subnet,
                direction: Direction::Outbound,
                stream,
            });
        }
    }

    fn hand_in(&mut self, subnet: SubnetId, stream: Stream) {
        let (stream, guard) = DataStream::new(stream, self.activity.clone());
        if let Some(older) = self.inbound.insert(subnet, guard) {
            older.revoke();
        }
        // Only the newest stream of a subnet waits for its turn: a peer that opens many cannot fill the queue.
        self.ready
            .retain(|r| r.subnet != subnet || r.direction != Direction::Inbound);
        self.ready.push_back(FromHandler {
            subnet,
            direction: Direction::Inbound,
            stream,
        });
    }

    /// Advances outbound streams; returns a subnet for which one has to be asked.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Option<SubnetId> {
        let mut greeted = Vec::new();
        let mut due = None;
        for (subnet, out) in &mut self.outbound {
            match &mut out.state {
                Out::Due | Out::Opening => {}
                Out::Greeting(greeting) => match greeting.poll_unpin(cx) {
                    Poll::Ready(Ok(stream)) => greeted.push((*subnet, stream)),
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(%subnet, %error, "data stream not accepted");
                        out.rest();
                    }
                    Poll::Pending => {}
                },
                Out::Open { guard, since } => {
                    if guard.poll_dropped(cx).is_ready() {
                        if since.elapsed() >= LIVED {
                            out.failures = 0;
                        }
                        out.rest();
                    }
                }
                Out::Resting(_) => {}
            }
            // A rest that began just now has to be polled too, or nothing wakes us at its end.
            if let Out::Resting(pause) = &mut out.state
                && pause.as_mut().poll(cx).is_ready()
            {
                out.state = Out::Due;
            }
            if due.is_none() && matches!(out.state, Out::Due) {
                out.state = Out::Opening;
                due = Some(*subnet);
            }
        }
        for (subnet, stream) in greeted {
            self.hand_out(subnet, stream);
        }
        due
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) {
        let mut accepted = Vec::new();
        for mut incoming in std::mem::take(&mut self.incoming) {
            let kept = loop {
                incoming = match incoming {
                    Incoming::Reading(mut reading) => match reading.poll_unpin(cx) {
                        Poll::Pending => break Some(Incoming::Reading(reading)),
                        Poll::Ready(None) => break None,
                        Poll::Ready(Some((subnet, stream))) => Incoming::Parked {
                            subnet,
                            stream,
                            deadline: Box::pin(tokio::time::sleep(HEADER_TIMEOUT)),
                        },
                    },
                    Incoming::Parked {
                        subnet,
                        stream,
                        mut deadline,
                    } => {
                        if self.outbound.contains_key(&subnet) {
                            Incoming::Answering {
                                subnet,
                                answer: consent(stream).boxed(),
                            }
                        } else if deadline.as_mut().poll(cx).is_ready() {
                            tracing::debug!(%subnet, "data stream refused: the peer is no member");
                            break None;
                        } else {
                            break Some(Incoming::Parked {
                                subnet,
                                stream,
                                deadline,
                            });
                        }
                    }
                    Incoming::Answering { subnet, mut answer } => match answer.poll_unpin(cx) {
                        Poll::Pending => break Some(Incoming::Answering { subnet, answer }),
                        Poll::Ready(Ok(stream)) => {
                            accepted.push((subnet, stream));
                            break None;
                        }
                        Poll::Ready(Err(_)) => break None,
                    },
                };
            };
            self.incoming.extend(kept);
        }
        for (subnet, stream) in accepted {
            if let Some(out) = self.outbound.get_mut(&subnet) {
                out.hurry();
                self.hand_in(subnet, stream);
            }
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // The connection is closing: whoever still waits on one of its streams learns it now.
        for out in self.outbound.values() {
            if let Out::Open { guard, .. } = &out.state {
                guard.revoke();
            }
        }
        self.inbound.values().for_each(|guard| guard.revoke());
    }
}

/// Lets a step fail that is not done within [`HEADER_TIMEOUT`].
async fn timely<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HEADER_TIMEOUT, step).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Sends the stream header and waits for the peer's consent.
async fn greet(mut stream: Stream, subnet: SubnetId) -> io::Result<Stream> {
    timely(async {
        stream.write_all(&stream_header::encode(subnet)).await?;
        stream.flush().await
    })
    .await?;
    let mut answer = [0u8; 1];
    // The peer may park us for as long as it waits for a header; a moment more for the answer's way.
    let patience = HEADER_TIMEOUT + Duration::from_secs(2);
    match tokio::time::timeout(patience, stream.read_exact(&mut answer)).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    if answer == [stream_header::ACCEPTED] {
        Ok(stream)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Reads the header of an inbound stream.
async fn listen(mut stream: Stream) -> Option<(SubnetId, Stream)> {
    let mut bytes = [0u8; stream_header::LEN];
    timely(stream.read_exact(&mut bytes)).await.ok()?;
    Some((stream_header::parse(&bytes)?, stream))
}

/// Tells the opener that its packets are welcome.
async fn consent(mut stream: Stream) -> io::Result<Stream> {
    timely(async {
        stream.write_all(&[stream_header::ACCEPTED]).await?;
        stream.flush().await
    })
    .await?;
    Ok(stream)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = FromHandler;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = SubnetId;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, ()> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Carry(subnets) => self.set_subnets(subnets),
            Order::OpenSoon => {
                for out in self.outbound.values_mut() {
                    out.failures = 0;
                    out.hurry();
                }
                self.wake();
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, SubnetId, FromHandler>> {
        self.poll_incoming(cx);
        let due = self.poll_outbound(cx);
        if let Some(subnet) = due {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), subnet),
            });
        }
        if let Some(ready) = self.ready.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(ready));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), SubnetId>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) if self.incoming.len() < READING => {
                self.incoming
                    .push(Incoming::Reading(listen(stream).boxed()));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: subnet,
            }) => {
                if let Some(out) = self.outbound.get_mut(&subnet)
                    && matches!(out.state, Out::Opening)
                {
                    out.state = Out::Greeting(greet(stream, subnet).boxed());
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: subnet, .. }) => {
                if let Some(out) = self.outbound.get_mut(&subnet)
                    && matches!(out.state, Out::Opening)
                {
                    out.rest();
                }
            }
            _ => {}
        }
        self.wake();
    }
}
