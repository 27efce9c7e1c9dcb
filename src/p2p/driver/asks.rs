//! Requests: ours that wait for a connection or an answer, and the peers' that wait for ours.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::FutureExt;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel};
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use super::links::Link;
use crate::backoff::Backoff;
use crate::model::id::PeerId;
use crate::p2p::address::ip_of;
use crate::p2p::codec::Codec;
use crate::p2p::{AskError, Event, Protocol, Responder};

/// Requests that may wait for one peer's connection.
const WAITING: usize = 64;
/// The pause before a member's request that its connection did not carry is sent again, doubled
/// each time: the peer may not have heard of a grant yet that we know of, and the connection may be
/// one that gives way to another.
const RESEND: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// The most times that one is sent.
const TRIES: u32 = 5;

/// A request of ours.
pub(super) struct Ask {
    pub(super) peer: PeerId,
    pub(super) protocol: Protocol,
    pub(super) body: Vec<u8>,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
    /// How often it was sent, and when it may be sent again.
    pub(super) tries: u32,
    pub(super) after: Option<Instant>,
}

impl Ask {
    /// Whether it may be sent now.
    fn is_due(&self, now: Instant) -> bool {
        self.after.is_none_or(|after| after <= now)
    }
}

/// The node's answer to a peer's request.
pub(super) struct Answer {
    protocol: Protocol,
    connection: ConnectionId,
    channel: ResponseChannel<Vec<u8>>,
    body: Option<Vec<u8>>,
}

/// The requests of ours that have no answer yet.
#[derive(Default)]
pub(super) struct Asks {
    /// Requests that wait for a connection, or for their next try.
    waiting: BTreeMap<PeerId, Vec<Ask>>,
    /// Requests that were sent; each protocol numbers its own.
    sent: HashMap<(Protocol, OutboundRequestId), Ask>,
}

impl Asks {
    /// Whether a request waits for a connection to the peer, rather than for its next try.
    pub(super) fn wait_for(&self, peer: PeerId) -> bool {
        self.waiting
            .get(&peer)
            .is_some_and(|asks| asks.iter().any(|ask| ask.after.is_none()))
    }

    /// Ends a request with its answer, or with why there is none.
    pub(super) fn finish(
        &mut self,
        protocol: Protocol,
        id: OutboundRequestId,
        result: Result<Vec<u8>, AskError>,
    ) {
        if let Some(sent) = self.sent.remove(&(protocol, id)) {
            // Whoever asked may have gone away.
            let _ = sent.reply.send(result);
        }
    }

    /// There is no answer. A member's request whose connection ended, or whose receiver does not take us for a member, waits
    /// to be sent again: every one of control may be taken twice, and of the others the receiver takes none twice.
    pub(super) fn failed(
        &mut self,
        protocol: Protocol,
        id: OutboundRequestId,
        failure: OutboundFailure,
        now: Instant,
    ) {
        let most = match &failure {
            _ if !protocol.is_for_members() => 1,
            OutboundFailure::ConnectionClosed | OutboundFailure::UnsupportedProtocols => TRIES,
            // So ends a request that the peer does not want to answer, too: it is not pressed.
            OutboundFailure::Io(_) | OutboundFailure::DialFailure | OutboundFailure::Timeout => 1,
        };
        let Some(mut ask) = self.sent.remove(&(protocol, id)) else {
            return;
        };
        let pause = RESEND.pause(ask.tries);
        ask.tries = ask.tries.saturating_add(1);
        if ask.tries >= most || now + pause >= ask.deadline || ask.reply.is_closed() {
            let _ = ask.reply.send(Err(error_of(failure)));
            return;
        }
        ask.after = Some(now + pause);
        self.waiting.entry(ask.peer).or_default().push(ask);
    }

    /// Peers for whom a request is due again.
    pub(super) fn due_again(&self, now: Instant) -> Vec<PeerId> {
        let due = |asks: &Vec<Ask>| {
            asks.iter()
                .any(|ask| ask.after.is_some_and(|after| after <= now))
        };
        self.waiting
            .iter()
            .filter(|(_, asks)| due(asks))
            .map(|(peer, _)| *peer)
            .collect()
    }

    /// Ends what is too late, and forgets what nobody waits for any more.
    pub(super) fn expire(&mut self, now: Instant) {
        self.end_waiting(
            |ask| now >= ask.deadline || ask.reply.is_closed(),
            &AskError::Unreachable,
        );
        let late: Vec<_> = self
            .sent
            .iter()
            .filter(|(_, sent)| now >= sent.deadline)
            .map(|(key, _)| *key)
            .collect();
        late.into_iter()
            .for_each(|(protocol, id)| self.finish(protocol, id, Err(AskError::Timeout)));
    }

    /// Ends what a removed peer was asked as a member: it has no protocol for members any more.
    pub(super) fn fail_of_member(&mut self, peer: PeerId) {
        self.end_waiting(
            |ask| ask.peer == peer && ask.protocol.is_for_members(),
            &AskError::Refused,
        );
    }

    /// Ends every request, because the task stops.
    pub(super) fn fail_all(&mut self) {
        self.end_waiting(|_| true, &AskError::Stopped);
        for (_, sent) in self.sent.drain() {
            let _ = sent.reply.send(Err(AskError::Stopped));
        }
    }

    fn end_waiting(&mut self, over: impl Fn(&Ask) -> bool, error: &AskError) {
        for asks in self.waiting.values_mut() {
            for ask in asks.extract_if(.., |ask| over(ask)) {
                let _ = ask.reply.send(Err(error.clone()));
            }
        }
        self.waiting.retain(|_, asks| !asks.is_empty());
    }
}

fn error_of(failure: OutboundFailure) -> AskError {
    match failure {
        OutboundFailure::DialFailure => AskError::Unreachable,
        OutboundFailure::Timeout => AskError::Timeout,
        OutboundFailure::ConnectionClosed => AskError::Closed,
        OutboundFailure::UnsupportedProtocols => AskError::Refused,
        OutboundFailure::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            AskError::Closed
        }
        OutboundFailure::Io(error) => AskError::Failed(error.to_string()),
    }
}

impl Driver {
    pub(super) fn handle_ask(&mut self, ask: Ask, now: Instant) {
        let refusal = if ask.body.len() > ask.protocol.cap() {
            Some(AskError::TooLarge(ask.body.len()))
        } else if ask.protocol.is_for_members() && !self.members.contains_key(&ask.peer) {
            Some(AskError::Refused)
        } else if self.can_send(ask.peer, ask.protocol) {
            return self.send(ask, now);
        } else if !self.book.has(&ask.peer) && self.links_of(ask.peer).is_empty() {
            Some(AskError::NoAddress)
        } else if self
            .asks
            .waiting
            .get(&ask.peer)
            .is_some_and(|asks| asks.len() >= WAITING)
        {
            Some(AskError::Busy)
        } else {
            None
        };
        if let Some(error) = refusal {
            let _ = ask.reply.send(Err(error));
            return;
        }
        let peer = ask.peer;
        self.asks.waiting.entry(peer).or_default().push(ask);
        self.handle_wanted(peer, now);
    }

    /// Whether a connection of the right class is there.
    fn can_send(&self, peer: PeerId, protocol: Protocol) -> bool {
        let fits = |link: &Link| protocol.is_spoken(link.class, link.relay.is_some());
        self.links
            .values()
            .any(|link| link.peer == peer && !link.closing && fits(link))
    }

    fn send(&mut self, ask: Ask, now: Instant) {
        let Some(lib) = crate::p2p::peer_to_lib(ask.peer) else {
            return;
        };
        let Some(exchange) = self.exchange(ask.protocol) else {
            let _ = ask.reply.send(Err(AskError::Refused));
            return;
        };
        let id = exchange.send_request(&lib, ask.body.clone());
        self.asked(ask.peer, now);
        self.use_links(ask.peer, now);
        self.asks.sent.insert((ask.protocol, id), ask);
    }

    /// A connection is there: sends what waited for one of its class.
    pub(super) fn send_waiting(&mut self, peer: PeerId, now: Instant) {
        let waiting = self.asks.waiting.remove(&peer).into_iter().flatten();
        let (ready, rest): (Vec<_>, Vec<_>) =
            waiting.partition(|ask| ask.is_due(now) && self.can_send(peer, ask.protocol));
        if !rest.is_empty() {
            self.asks.waiting.insert(peer, rest);
        }
        ready.into_iter().for_each(|ask| self.send(ask, now));
    }

    pub(super) fn handle_request(
        &mut self,
        protocol: Protocol,
        id: ConnectionId,
        body: Vec<u8>,
        channel: ResponseChannel<Vec<u8>>,
        now: Instant,
    ) {
        // A connection that was cut says nothing more, whatever is still in its buffers.
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.closing) else {
            return;
        };
        link.answering += 1;
        link.busy = now;
        link.hear(now);
        let (respond, answer) = oneshot::channel();
        let event = Event::Asked {
            peer: link.peer,
            connection: link.number,
            class: link.class,
            protocol,
            remote_ip: ip_of(&link.remote).filter(|_| link.relay.is_none()),
            relay: link.relay,
            body,
            responder: Responder(respond),
        };
        self.answers.push(
            async move {
                Answer {
                    protocol,
                    connection: id,
                    channel,
                    body: answer.await.ok(),
                }
            }
            .boxed(),
        );
        self.emit(event);
    }

    pub(super) fn handle_answer(&mut self, answer: Answer) {
        let Answer {
            protocol,
            connection,
            channel,
            body,
        } = answer;
        // Without an answer the channel is dropped, and the behaviour reports the omission.
        let Some(body) = body.filter(|body| body.len() <= protocol.answer_cap()) else {
            return;
        };
        let sent = self
            .exchange(protocol)
            .map(|exchange| exchange.send_response(channel, body));
        if !matches!(sent, Some(Ok(()))) {
            tracing::debug!(?connection, "the peer is gone before its answer");
        }
    }

    /// The exchange of a protocol; none where this node does not speak it.
    fn exchange(&mut self, protocol: Protocol) -> Option<&mut request_response::Behaviour<Codec>> {
        let behaviour = self.swarm.behaviour_mut();
        match protocol {
            Protocol::Join => behaviour.join.as_mut(),
            Protocol::Control => Some(&mut behaviour.members.inner.control),
            Protocol::Service => Some(&mut behaviour.members.inner.service),
            Protocol::Relay => Some(&mut behaviour.meeting.inner.relay),
        }
    }
}
