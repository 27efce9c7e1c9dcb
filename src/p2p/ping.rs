//! Pings on the connections of members and relays: from time to time, and at once where somebody asks.
//!
//! It speaks the ping protocol of libp2p, whose own behaviour has one interval for all connections and cannot be asked. A
//! connection over which nothing travels would cost more by that than by all else; and after a change of network it has to be
//! known within two seconds which connections still work. Here the driver sets the pause of each connection, and may ask at
//! once.
//!
//! Each end keeps one stream for its own pings, and answers on the newest stream of the other end. Where little travels one
//! end's pings are enough: they come from the peer, and their answers keep the NATs on the way open in the other direction.
//! So an end that is told to yield puts its own ping off for as long as the peer's come.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId as LibPeer, Stream, StreamProtocol};
use tokio::time::{Instant, Sleep};

/// The protocol's name, as stock peers know it.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
/// Random bytes of a ping, which its answer repeats.
const SIZE: usize = 32;
/// Pings in a row without an answer before that is told: the peer may close a stream that it has kept for long.
const FAILURES: u32 = 2;
/// How much later than the peer's next ping one's own is sent where it yields: an eighth of the pause, and no more than this.
const YIELDED: Duration = Duration::from_secs(3);
/// Pings of the peer that are answered before other streams of the connection get their turn.
const TURN: usize = 8;

/// Why a ping has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It did not come in time.
    #[error("no answer in time")]
    Timeout,
    /// The peer does not speak the protocol with us.
    #[error("the peer speaks no ping")]
    Unsupported,
    /// The stream failed, or other bytes came back.
    #[error("{0}")]
    Broken(#[from] io::Error),
}

/// An answer to a ping: when the ping was sent, and how long the answer took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) sent: Instant,
    pub(super) rtt: Duration,
}

/// What is told of pings.
#[derive(Debug)]
pub(super) enum News {
    /// What became of one of ours.
    Ours(Result<Answer, Failure>),
    /// The peer sent one, to which ours gave way.
    Theirs,
}

/// What is told of the pings of a connection.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) connection: ConnectionId,
    pub(super) news: News,
}

/// What a connection is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A ping is to be sent at once.
    Now,
    /// The pause between two pings, from the next answer on; what is left of a longer one is cut. Whether they yield to the
    /// peer's.
    Pace { every: Duration, yields: bool },
}

/// Pings every connection that it is given.
pub(super) struct Behaviour {
    interval: Duration,
    events: VecDeque<ToSwarm<Event, Order>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// `interval` is the pause between two pings of a connection of which nothing else was said, and the longest time that an
    /// answer may take on any.
    pub(super) fn new(interval: Duration) -> Self {
        Behaviour {
            interval,
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Sends a ping on that connection now. Where one is under way, another one follows its answer.
    pub(super) fn ask(&mut self, peer: LibPeer, connection: ConnectionId) {
        self.order(peer, connection, Order::Now);
    }

    /// Sets the pause between two pings of that connection, and whether they are put off while the peer's come.
    pub(super) fn pace(
        &mut self,
        peer: LibPeer,
        connection: ConnectionId,
        every: Duration,
        yields: bool,
    ) {
        self.order(peer, connection, Order::Pace { every, yields });
    }

    fn order(&mut self, peer_id: LibPeer, connection: ConnectionId, event: Order) {
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event,
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: LibPeer,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.interval, true))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: LibPeer,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.interval, false))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: LibPeer,
        connection: ConnectionId,
        news: THandlerOutEvent<Self>,
    ) {
        self.events
            .push_back(ToSwarm::GenerateEvent(Event { connection, news }));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Our own pings of one connection.
enum Out {
    /// There is no stream. One is opened at the end of the pause.
    None,
    /// The stream was asked for and is not there yet.
    Opening,
    /// The next ping is sent at the end of the pause.
    Idle(Stream),
    /// A ping is under way.
    Sent(BoxFuture<'static, Result<(Stream, Answer), Failure>>),
    /// The peer does not speak the protocol with us.
    Unsupported,
}

/// Pings one connection, and answers what comes in on it.
pub(super) struct Handler {
    /// The longest time that an answer may take, and the pause after one that did not come.
    interval: Duration,
    /// The pause after an answer.
    every: Duration,
    /// Whether our pings are put off while the peer's come.
    yields: bool,
    /// Whether the peer opened the connection. Then this end is the later one of two that yield: ends that ping at the same
    /// moment would go on so.
    was_dialled: bool,
    pause: Pin<Box<Sleep>>,
    out: Out,
    /// Whether another ping follows the one under way at once.
    again: bool,
    /// Pings in a row without an answer.
    failures: u32,
    /// Waits for the next ping of the peer, and answers it.
    inbound: Option<BoxFuture<'static, io::Result<Stream>>>,
    /// What is to be told.
    told: Option<News>,
    waker: Option<Waker>,
}

impl Handler {
    /// The first ping is sent at once.
    fn new(interval: Duration, was_dialled: bool) -> Self {
        Handler {
            interval,
            every: interval,
            yields: false,
            was_dialled,
            pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
            out: Out::None,
            again: false,
            failures: 0,
            inbound: None,
            told: None,
            waker: None,
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next ping is sent after the pause, or at once where that was asked for.
    fn rest(&mut self, pause: Duration) {
        let again = std::mem::take(&mut self.again);
        let pause = if again { Duration::ZERO } else { pause };
        self.pause.as_mut().reset(Instant::now() + pause);
    }

    /// The pause of an end whose peer is to ping first.
    fn later(&self) -> Duration {
        self.every + (self.every / 8).min(YIELDED)
    }

    fn failed(&mut self, failure: Failure) {
        self.out = Out::None;
        self.rest(self.interval);
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.told = Some(News::Ours(Err(failure)));
        }
    }

    /// The peer's ping was answered: ours is put off where it yields, unless it is due or was asked for.
    fn give_way(&mut self) {
        let now = Instant::now();
        let (waits, deadline) = (
            matches!(self.out, Out::None | Out::Idle(_)),
            self.pause.deadline(),
        );
        // A peer that sends one after the other moves it no further, and wakes nobody.
        let may_move = deadline > now && deadline <= now + self.every;
        if self.yields && waits && may_move && self.told.is_none() {
            let later = self.later();
            self.pause.as_mut().reset(now + later);
            self.told = Some(News::Theirs);
        }
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) {
        for _ in 0..TURN {
            let Some(answering) = &mut self.inbound else {
                return;
            };
            match answering.poll_unpin(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(stream)) => {
                    self.inbound = Some(answer(stream).boxed());
                    self.give_way();
                }
                Poll::Ready(Err(_)) => self.inbound = None,
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Advances our own pings; whether a stream is to be asked for.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match &mut self.out {
                Out::Opening | Out::Unsupported => return false,
                Out::Sent(sent) => match sent.poll_unpin(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok((stream, answer))) => {
                        self.failures = 0;
                        self.out = Out::Idle(stream);
                        let is_later = self.yields && self.was_dialled;
                        self.rest(if is_later { self.later() } else { self.every });
                        self.told = Some(News::Ours(Ok(answer)));
                        return false;
                    }
                    Poll::Ready(Err(failure)) => {
                        self.failed(failure);
                        return false;
                    }
                },
                Out::None | Out::Idle(_) if self.pause.as_mut().poll(cx).is_pending() => {
                    return false;
                }
                Out::None => {
                    self.out = Out::Opening;
                    return true;
                }
                Out::Idle(_) => {
                    if let Out::Idle(stream) = std::mem::replace(&mut self.out, Out::None) {
                        self.out = Out::Sent(timely(ping(stream), self.interval).boxed());
                    }
                }
            }
        }
    }
}

/// Sends a ping and reads its answer.
async fn ping(mut stream: Stream) -> Result<(Stream, Answer), Failure> {
    let mut bytes = [0; SIZE];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let sent = Instant::now();
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut back = [0; SIZE];
    stream.read_exact(&mut back).await?;
    if back != bytes {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let rtt = sent.elapsed();
    Ok((stream, Answer { sent, rtt }))
}

async fn timely<T>(
    ping: impl Future<Output = Result<T, Failure>>,
    patience: Duration,
) -> Result<T, Failure> {
    match tokio::time::timeout(patience, ping).await {
        Ok(done) => done,
        Err(_) => Err(Failure::Timeout),
    }
}

/// Waits for a ping of the peer, and answers it.
async fn answer(mut stream: Stream) -> io::Result<Stream> {
    let mut bytes = [0; SIZE];
    stream.read_exact(&mut bytes).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(stream)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = News;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match (order, &self.out) {
            (Order::Now, Out::None | Out::Idle(_)) => self.pause.as_mut().reset(Instant::now()),
            // What it says may be older than the reason to ask.
            (Order::Now, Out::Sent(_)) => self.again = true,
            (Order::Now, Out::Opening | Out::Unsupported) => {}
            (Order::Pace { every, yields }, _) => {
                (self.every, self.yields) = (every, yields);
                let latest = Instant::now() + every;
                if self.pause.deadline() > latest {
                    self.pause.as_mut().reset(latest);
                }
            }
        }
        self.wake();
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        self.poll_inbound(cx);
        if self.told.is_none() && self.poll_outbound(cx) {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ()),
            });
        }
        if let Some(told) = self.told.take() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(told));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: mut stream,
                ..
            }) => {
                stream.ignore_for_keep_alive();
                self.inbound = Some(answer(stream).boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: mut stream,
                ..
            }) => {
                stream.ignore_for_keep_alive();
                self.out = Out::Sent(timely(ping(stream), self.interval).boxed());
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => match error {
                StreamUpgradeError::NegotiationFailed => {
                    self.out = Out::Unsupported;
                    self.told = Some(News::Ours(Err(Failure::Unsupported)));
                }
                StreamUpgradeError::Io(error) => self.failed(error.into()),
                StreamUpgradeError::Timeout => self.failed(Failure::Timeout),
                StreamUpgradeError::Apply(never) => match never {},
            },
            _ => {}
        }
        self.wake();
    }
}
