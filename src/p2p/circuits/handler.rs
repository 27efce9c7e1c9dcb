//! One connection to a relay, or to whoever may be one: asks for our place and for circuits, and takes the circuits that the
//! relay brings.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use libp2p::core::transport::ListenerId;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{PeerId as LibPeer, StreamProtocol};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::messages::{self, Answer, NO_RESERVATION, OK};
use super::{Refusal, Renewals};

/// What is asked of a relay.
const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
/// What a relay asks of its clients.
const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");
/// Time for the answer to a request: the relay may have to wait for the peer at the other end.
const ANSWER: Duration = Duration::from_secs(15);
/// Time for a relay to say who is at the other end of a circuit that it brings, and to take our answer.
const OFFER: Duration = Duration::from_secs(5);
/// Circuits that may be asked for at a time.
const WANTED: usize = 32;
/// Streams that are opened to a relay at a time. Common relays close those above ten whose request they have not read yet, and
/// a request follows one round trip after its stream: so many more may be under way while the next ones are opened.
const OPENING: usize = 4;
/// Circuits that a relay may bring at a time, until it has our answer.
const OFFERED: usize = 16;

/// An order of the behaviour's.
#[derive(Debug)]
pub(crate) enum In {
    /// Asks for a place, for this listener.
    Reserve(ListenerId),
    /// Gives the place back: no circuit is taken any more.
    Release(ListenerId),
    /// Asks for a circuit to a peer.
    Connect(Wanted),
}

/// A circuit that is asked for, and who takes it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(super) peer: LibPeer,
    pub(super) reply: oneshot::Sender<Result<Stream, Refusal>>,
}

/// What the behaviour is told.
#[derive(Debug)]
pub(crate) enum Out {
    /// The relay keeps the place, or keeps it on.
    Kept(ListenerId),
    /// It does not, or not any more.
    Lost(ListenerId, Refusal),
    /// A circuit is there.
    Came {
        listener: ListenerId,
        peer: LibPeer,
        stream: Box<Stream>,
    },
    /// A circuit was refused, by the relay or by this node.
    Refused(Refusal),
}

/// What a stream to the relay is opened for.
#[derive(Debug)]
pub(crate) enum Ask {
    Reserve(ListenerId),
    Connect(Wanted),
}

enum Done {
    Reserved(ListenerId, Result<Option<u64>, Refusal>),
    Connected(Wanted, Result<Stream, Refusal>),
    Offered(Result<(LibPeer, Stream), Refusal>),
    Taken(LibPeer, Stream),
    /// A circuit was refused; none: the relay has not taken our answer.
    Denied(Option<Refusal>),
}

struct Place {
    listener: ListenerId,
    /// When it is asked for again; none while it is asked for.
    renewal: Option<Pin<Box<Sleep>>>,
}

/// See the module.
pub(crate) struct Handler {
    renewals: Renewals,
    place: Option<Place>,
    asks: VecDeque<Ask>,
    /// Streams that are being opened for some of those before.
    opening: usize,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    wanted: usize,
    offered: usize,
    out: VecDeque<Out>,
}

impl Handler {
    pub(super) fn new(renewals: Renewals) -> Handler {
        Handler {
            renewals,
            place: None,
            asks: VecDeque::new(),
            opening: 0,
            work: FuturesUnordered::new(),
            wanted: 0,
            offered: 0,
            out: VecDeque::new(),
        }
    }

    fn is_ours(&self, listener: ListenerId) -> bool {
        self.place.as_ref().is_some_and(|p| p.listener == listener)
    }

    fn lose(&mut self, listener: ListenerId, why: Refusal) {
        // Somebody else's place, or one that was given back meanwhile, is nobody's loss.
        if self.is_ours(listener) {
            self.place = None;
            self.out.push_back(Out::Lost(listener, why));
        }
    }

    fn end(&mut self, wanted: Wanted, result: Result<Stream, Refusal>) {
        self.wanted = self.wanted.saturating_sub(1);
        if let Err(why) = result {
            self.out.push_back(Out::Refused(why));
        }
        // Whoever asked may have gone away: the circuit ends then.
        let _ = wanted.reply.send(result);
    }

    /// Asks over a stream that has just been opened.
    fn ask(&mut self, mut stream: Stream, ask: Ask) {
        self.work.push(match ask {
            Ask::Reserve(listener) => async move {
                let answer = ask_relay(&mut stream, messages::reserve()).await;
                Done::Reserved(listener, answer.map(|answer| answer.expire))
            }
            .boxed(),
            Ask::Connect(wanted) => async move {
                let asked = messages::connect(&wanted.peer);
                let answer = ask_relay(&mut stream, asked).await;
                Done::Connected(wanted, answer.map(|_| stream))
            }
            .boxed(),
        });
    }

    /// Reads what the relay says of a circuit that it brings.
    fn offer(&mut self, mut stream: Stream) {
        if self.offered >= OFFERED {
            self.out.push_back(Out::Refused(Refusal::Crowded));
            return;
        }
        self.offered += 1;
        let read = async move {
            let message = messages::read(&mut stream).await.map_err(of_error)?;
            let peer = messages::offered(&message).map_err(|_| Refusal::Malformed)?;
            Ok((peer, stream))
        };
        let read = async move { Done::Offered(in_time(OFFER, read).await) };
        self.work.push(read.boxed());
    }

    /// Takes a circuit where we have a place, else says that we have none.
    fn answer(&mut self, peer: LibPeer, mut stream: Stream) {
        let takes = self.place.is_some();
        let status = if takes { OK } else { NO_RESERVATION };
        let answer = async move {
            let message = messages::stop_status(status);
            let told = async {
                messages::write(&mut stream, &message)
                    .await
                    .map_err(of_error)
            };
            match in_time(OFFER, told).await {
                Ok(()) if takes => Done::Taken(peer, stream),
                Ok(()) => Done::Denied(Some(Refusal::NoReservation)),
                Err(_) => Done::Denied(None),
            }
        };
        self.work.push(answer.boxed());
    }

    fn handle_done(&mut self, done: Done) {
        match done {
            Done::Reserved(listener, Err(why)) => self.lose(listener, why),
            Done::Reserved(listener, Ok(expire)) => {
                let renewal = self.renewals.after(expire, unix_now());
                if let Some(place) = self.place.as_mut().filter(|p| p.listener == listener) {
                    place.renewal = Some(Box::pin(tokio::time::sleep(renewal)));
                    self.out.push_back(Out::Kept(listener));
                }
            }
            Done::Connected(wanted, result) => self.end(wanted, result),
            Done::Offered(Ok((peer, stream))) => self.answer(peer, stream),
            Done::Offered(Err(why)) => self.deny(Some(why)),
            Done::Denied(why) => self.deny(why),
            Done::Taken(peer, stream) => {
                self.offered = self.offered.saturating_sub(1);
                if let Some(Place { listener, .. }) = self.place {
                    let stream = Box::new(stream);
                    self.out.push_back(Out::Came {
                        listener,
                        peer,
                        stream,
                    });
                }
            }
        }
    }

    fn deny(&mut self, why: Option<Refusal>) {
        self.offered = self.offered.saturating_sub(1);
        self.out.extend(why.map(Out::Refused));
    }

    /// Whether the place is to be asked for again now.
    fn is_renewal_due(&mut self, cx: &mut Context<'_>) -> Option<ListenerId> {
        let place = self.place.as_mut()?;
        let due = place.renewal.as_mut()?.as_mut().poll(cx).is_ready();
        if due {
            place.renewal = None;
        }
        due.then_some(place.listener)
    }
}

impl Renewals {
    /// How long after it was given a place is asked for again: three quarters of its life, within our own bounds. What the
    /// relay says may be anything, and its clock may be wrong by years.
    pub(super) fn after(self, expire: Option<u64>, now: u64) -> Duration {
        let life = expire.map_or(self.latest, |expire| {
            Duration::from_secs(expire.saturating_sub(now))
        });
        // Clamped first: of the rest three quarters are computed without an overflow.
        let longest = self.latest.saturating_mul(2);
        let due = life.min(longest).mul_f32(0.75);
        due.clamp(self.soonest.min(self.latest), self.latest)
    }
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

async fn ask_relay(stream: &mut Stream, message: Vec<u8>) -> Result<Answer, Refusal> {
    let exchange = async {
        messages::write(stream, &message).await.map_err(of_error)?;
        let answer = messages::read(stream).await.map_err(of_error)?;
        let answer = Answer::read(&answer).map_err(|_| Refusal::Malformed)?;
        match Refusal::of_status(answer.status) {
            None => Ok(answer),
            Some(why) => Err(why),
        }
    };
    in_time(ANSWER, exchange).await
}

async fn in_time<T>(
    time: Duration,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let done = tokio::time::timeout(time, work).await;
    done.unwrap_or(Err(Refusal::Timeout))
}

fn of_error(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::InvalidData => Refusal::Malformed,
        _ => Refusal::Ended,
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = In;
    type ToBehaviour = Out;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundOpenInfo = Ask;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(STOP), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.place.is_some() || !self.work.is_empty() || !self.asks.is_empty()
    }

    fn on_behaviour_event(&mut self, order: In) {
        match order {
            In::Reserve(listener) => {
                let renewal = None;
                self.place = Some(Place { listener, renewal });
                self.asks.push_back(Ask::Reserve(listener));
            }
            In::Release(listener) => {
                if self.is_ours(listener) {
                    self.place = None;
                }
            }
            In::Connect(wanted) => {
                self.wanted += 1;
                if self.wanted > WANTED {
                    self.end(wanted, Err(Refusal::Crowded));
                } else {
                    self.asks.push_back(Ask::Connect(wanted));
                }
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Ask, Out>> {
        loop {
            if let Some(out) = self.out.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(out));
            }
            if self.opening < OPENING
                && let Some(ask) = self.asks.pop_front()
            {
                self.opening += 1;
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(ReadyUpgrade::new(HOP), ask),
                });
            }
            if let Poll::Ready(Some(done)) = self.work.poll_next_unpin(cx) {
                self.handle_done(done);
            } else if let Some(listener) = self.is_renewal_due(cx) {
                self.asks.push_back(Ask::Reserve(listener));
            } else {
                return Poll::Pending;
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Ask>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => self.offer(protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => {
                self.opening = self.opening.saturating_sub(1);
                self.ask(protocol, info);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.opening = self.opening.saturating_sub(1);
                let why = match error {
                    StreamUpgradeError::Timeout => Refusal::Timeout,
                    StreamUpgradeError::NegotiationFailed => Refusal::Unsupported,
                    StreamUpgradeError::Io(_) => Refusal::Ended,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                match info {
                    Ask::Reserve(listener) => self.lose(listener, why),
                    Ask::Connect(wanted) => self.end(wanted, Err(why)),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// How many streams a handler wants to open now.
    fn opened(handler: &mut Handler, infos: &mut Vec<Ask>) -> usize {
        let cx = &mut Context::from_waker(Waker::noop());
        let before = infos.len();
        while let Poll::Ready(event) = handler.poll(cx) {
            if let ConnectionHandlerEvent::OutboundSubstreamRequest { protocol } = event {
                infos.push(protocol.into_upgrade().1);
            }
        }
        infos.len() - before
    }

    #[test]
    fn no_more_streams_are_opened_at_a_time_than_a_relay_takes() {
        let bounds = Renewals {
            soonest: Duration::from_secs(30),
            latest: Duration::from_secs(3600),
        };
        let mut handler = Handler::new(bounds);
        let mut replies = Vec::new();
        for _ in 0..WANTED {
            let (reply, answer) = oneshot::channel();
            let peer = LibPeer::random();
            handler.on_behaviour_event(In::Connect(Wanted { peer, reply }));
            replies.push(answer);
        }
        let mut infos = Vec::new();
        assert_eq!(opened(&mut handler, &mut infos), OPENING);
        assert_eq!(opened(&mut handler, &mut infos), 0);
        // Each that is done with makes room for one, until none is left.
        for done in 0..WANTED {
            let failed = DialUpgradeError {
                info: infos.remove(0),
                error: StreamUpgradeError::Timeout,
            };
            handler.on_connection_event(ConnectionEvent::DialUpgradeError(failed));
            let next = usize::from(done + OPENING < WANTED);
            assert_eq!(opened(&mut handler, &mut infos), next, "after {done}");
        }
        let ended = |answer: &mut oneshot::Receiver<_>| {
            matches!(answer.try_recv(), Ok(Err(Refusal::Timeout)))
        };
        assert!(replies.iter_mut().all(ended));
    }

    #[test]
    fn whatever_a_relay_says_its_place_is_renewed_in_our_own_time() {
        let bounds = Renewals {
            soonest: Duration::from_secs(30),
            latest: Duration::from_secs(3600),
        };
        let now = 1_800_000_000;
        for (expire, seconds) in [
            (Some(u64::MAX), 3600),
            (Some(now + 365 * 86_400), 3600),
            (Some(now + 3600), 2700),
            (Some(now + 60), 45),
            (Some(now + 1), 30),
            (Some(now), 30),
            (Some(now - 1), 30),
            (Some(0), 30),
            (None, 2700),
        ] {
            let after = bounds.after(expire, now);
            assert_eq!(after.as_secs(), seconds, "{expire:?}");
        }
        assert_eq!(bounds.after(Some(u64::MAX), 0).as_secs(), 3600);
        assert_eq!(bounds.after(Some(0), u64::MAX).as_secs(), 30);
    }
}
