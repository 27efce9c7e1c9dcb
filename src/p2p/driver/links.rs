//! Connections from their start to their end: watched, replaced, closed.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::Driver;
use super::rest::Use;
use crate::model::id::PeerId;
use crate::p2p::address::{Carrier, carrier_of, ip_of, relay_of};
use crate::p2p::address_book::Source;
use crate::p2p::duplicates::{Candidate, beaten, surplus};
use crate::p2p::{Class, Event};
use crate::wire::agent::Agent;

/// How much longer a stranger's connection may live to finish answering.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Patience with the other side over a tie between surplus connections, in multiples of their age.
const TIE_AGES: u32 = 3;
/// How long before the youngest connection that which stays beside it may have been heard last. What is older tells nothing of
/// the way that made a younger one necessary; both are made within this time where two peers dial each other at once.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);
/// Parts of their age after which those of a worse carrier go. A peer that was killed has closed no QUIC connection of its,
/// and half of what it is asked once it is back would wait for that one.
const EARLY: u32 = 10;

/// A connection, as the task watches it.
pub(super) struct Link {
    pub(super) peer: PeerId,
    /// Grows with each connection of this process.
    pub(super) number: u64,
    pub(super) class: Class,
    pub(super) carrier: Carrier,
    pub(super) remote: Multiaddr,
    /// The relay that it runs through.
    pub(super) relay: Option<PeerId>,
    /// How this node reaches that relay, as of when the connection was made.
    pub(super) below: Option<Carrier>,
    pub(super) outbound: bool,
    pub(super) since: Instant,
    /// When the last sign of life came.
    heard: Instant,
    /// What was wanted of it, and whether it rests.
    pub(super) used: Use,
    /// When packets or a request last travelled between the two peers.
    pub(super) busy: Instant,
    /// Whether something has happened since that may have ended it without a word.
    pub(super) doubted: bool,
    /// Since when it has to answer a ping, or be doubted.
    pub(super) asked: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    /// The peer does not see us as a member.
    pub(super) one_sided: bool,
    /// Requests of the peer that have not been answered.
    pub(super) answering: usize,
    /// When a stranger's connection gives way to a member's.
    pub(super) retire: Option<Instant>,
    /// Whether it is reported as closed already, while the swarm still closes it.
    pub(super) closing: bool,
    /// What the peer says of its program.
    pub(super) agent: Option<Agent>,
}

/// One of several live connections to a peer.
struct Standing {
    id: ConnectionId,
    candidate: Candidate,
    since: Instant,
    heard: Instant,
}

impl Link {
    /// A connection that is made now.
    pub(super) fn new(
        peer: PeerId,
        number: u64,
        class: Class,
        carrier: Carrier,
        remote: Multiaddr,
        outbound: bool,
        now: Instant,
    ) -> Link {
        Link {
            peer,
            number,
            class,
            carrier,
            relay: relay_of(&remote),
            below: None,
            remote,
            outbound,
            since: now,
            heard: now,
            used: Use::new(carrier, now),
            busy: now,
            doubted: false,
            asked: None,
            rtt: None,
            one_sided: false,
            answering: 0,
            retire: None,
            closing: false,
            agent: None,
        }
    }

    /// Whether it is a member's and usable in both directions, as far as is known.
    pub(super) fn carries(&self) -> bool {
        self.class == Class::Member && !self.closing && !self.one_sided && !self.doubted
    }

    /// Takes a sign of life.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.used.hear();
        self.doubted = false;
    }

    /// Takes a ping of the peer. It is alive; whether what is sent to it arrives is not said, so that no question is settled.
    pub(super) fn is_asked(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Takes the answer to a ping that was sent then. What was sent before the question says nothing of the way since.
    pub(super) fn answer(&mut self, now: Instant, sent: Instant) {
        self.hear(now);
        self.asked.take_if(|asked| *asked <= sent);
    }

    /// Whether its peer answers pings on it: a member, or a relay of ours, or one that we are the relay of.
    pub(super) fn is_pinged(&self) -> bool {
        self.class <= Class::Meeting && !self.closing && !self.one_sided
    }

    /// Whether its peer is a relay that we may use, or one that may use us.
    pub(super) fn meets(&self) -> bool {
        self.is_pinged() && self.relay.is_none() && !self.doubted
    }
}

impl Driver {
    /// Open connections to a peer.
    pub(super) fn links_of(&self, peer: PeerId) -> Vec<ConnectionId> {
        self.links
            .iter()
            .filter(|(_, link)| link.peer == peer && !link.closing)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether control can go to and come from the peer as a member, through a relay or not.
    pub(super) fn is_linked(&self, peer: PeerId) -> bool {
        self.links
            .values()
            .any(|link| link.peer == peer && link.carries())
    }

    /// Whether a connection to the member stands that runs through no relay.
    pub(super) fn is_direct(&self, peer: PeerId) -> bool {
        self.links
            .values()
            .any(|link| link.peer == peer && link.carries() && link.relay.is_none())
    }

    /// Whether the peer is connected in a way that it can be our relay.
    pub(super) fn meets(&self, peer: PeerId) -> bool {
        self.links
            .values()
            .any(|link| link.peer == peer && link.meets())
    }

    pub(super) fn handle_established(
        &mut self,
        peer: &libp2p::PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
        now: Instant,
    ) {
        let Some(peer) = crate::p2p::peer_from_lib(peer) else {
            self.swarm.close_connection(id);
            return;
        };
        let remote = crate::p2p::address::bare(endpoint.get_remote_address());
        let outbound = endpoint.is_dialer();
        let class = self.swarm.behaviour().gate.class(id);
        // A listener's memory address is its peer's ephemeral one; every other address names its carrier.
        let carrier = carrier_of(&remote).unwrap_or(Carrier::Memory);
        let number = self.next_link;
        self.next_link += 1;
        let mut link = Link::new(peer, number, class, carrier, remote.clone(), outbound, now);
        let relay = link.relay;
        link.below = relay.and_then(|relay| self.carrier_to(relay));
        self.links.insert(id, link);
        tracing::debug!(%peer, connection = number, ?class, %remote, outbound, "connected");
        let typed = self.typed.remove(&id);
        if outbound {
            self.book.worked(
                peer,
                &remote,
                if typed {
                    Source::Typed
                } else {
                    Source::Connection
                },
            );
        } else {
            // It came by itself: whoever was told to leave it alone no longer has to.
            self.held.remove(&peer);
        }
        self.emit(Event::Connected {
            peer,
            connection: number,
            class,
            transport: carrier.as_str(),
            remote: remote.to_string(),
            outbound,
            relay,
        });
        self.ask_others(peer, number, now);
        self.kept.is_there(peer);
        self.settle_waiters(id, peer);
        match (class, self.members.contains_key(&peer)) {
            // The members changed while the handshake ran.
            (Class::Member, false) => self.close(id, "no member any more"),
            (Class::Stranger | Class::Meeting, true) => self.retire(id, now),
            (Class::Member, true) => self.handle_reached(peer, id, &remote, now),
            (Class::Stranger | Class::Meeting, false) => {}
        }
        if self.meets(peer) {
            self.close_doubted(peer);
            self.handle_met(peer, now);
        }
        self.send_waiting(peer, now);
    }

    /// The transport of the connection to a relay: of several the oldest one, over which circuits are opened.
    fn carrier_to(&self, relay: PeerId) -> Option<Carrier> {
        let links = self.links.values();
        let to_it = links.filter(|link| link.peer == relay && link.meets());
        let oldest = to_it.min_by_key(|link| link.number);
        oldest.map(|link| link.carrier)
    }

    /// A member is connected: it is dialled no more, and what it had as a stranger gives way.
    fn handle_reached(&mut self, peer: PeerId, id: ConnectionId, remote: &Multiaddr, now: Instant) {
        if relay_of(remote).is_some() {
            // What reaches the peer itself is still looked for.
            self.handle_lost(peer, now);
        } else {
            if let Some(address) = ip_of(remote) {
                self.seen.see(peer, address);
            }
            self.leave_hole(peer);
            self.dialling.remove(&peer);
        }
        self.close_doubted(peer);
        let old: Vec<_> = self.links_of(peer);
        old.into_iter()
            .filter(|old| *old != id)
            .for_each(|old| self.retire(old, now));
    }

    /// Closes a connection whose peer was no member when it was made, after a moment: the answer that tells the peer of its
    /// admission may still be on its way over it.
    pub(super) fn retire(&mut self, id: ConnectionId, now: Instant) {
        let grace = self.config.timing.grace;
        if let Some(link) = self.links.get_mut(&id)
            && link.class != Class::Member
        {
            link.retire.get_or_insert(now + grace);
        }
    }

    /// Ends a connection now: its streams fail and `Closed` is reported before the transport has said goodbye.
    pub(super) fn close(&mut self, id: ConnectionId, why: &str) {
        self.swarm.behaviour_mut().members.inner.data.cut(id);
        self.report_closed(id, why);
        self.swarm.close_connection(id);
    }

    pub(super) fn handle_closed(&mut self, id: ConnectionId, cause: Option<String>, now: Instant) {
        let by_peer = self.links.get(&id).is_some_and(|link| !link.closing);
        self.report_closed(id, cause.as_deref().unwrap_or("closed"));
        if let Some(link) = self.links.remove(&id) {
            if by_peer && link.class == Class::Member && link.carrier.is_over_tcp() {
                // A process that is killed ends its TCP connections, by its kernel, and says nothing over QUIC. Who closes
                // a QUIC connection is alive: two that have no others would doubt and replace theirs without end.
                self.doubt(link.peer, now);
            }
            self.handle_lost(link.peer, now);
        }
    }

    fn report_closed(&mut self, id: ConnectionId, why: &str) {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.closing) else {
            return;
        };
        link.closing = true;
        let (peer, connection) = (link.peer, link.number);
        tracing::debug!(%peer, connection, why, "connection closed");
        let remaining = self.links_of(peer).len();
        self.emit(Event::Closed {
            peer,
            connection,
            remaining,
        });
        self.handle_lost(peer, Instant::now());
    }

    /// The peer has had its answer, or will never have it.
    pub(super) fn answered(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.answering = link.answering.saturating_sub(1);
        }
    }

    /// Closes what is silent, retired or surplus.
    pub(super) fn watch(&mut self, now: Instant) {
        let timing = self.config.timing;
        let data = &self.swarm.behaviour().members.inner.data;
        let mut over = Vec::new();
        for (id, link) in self.links.iter_mut().filter(|(_, link)| !link.closing) {
            if link.class == Class::Member && data.take_heard(*id) {
                link.hear(now);
            }
            if link.class <= Class::Meeting && link.used.is_silent(now, link.heard, &timing) {
                over.push((*id, "nothing heard"));
            } else if let Some(retire) = link.retire
                && now >= retire
                && (link.answering == 0 || now >= retire + ANSWER_TIMEOUT)
            {
                over.push((*id, "replaced by a member's connection"));
            }
        }
        over.into_iter().for_each(|(id, why)| self.close(id, why));
        self.doubt_silent(now);
        self.close_surplus(now);
        self.keep_rest(now);
    }

    /// Whether a direct connection to the peer has stood for so long that its circuits are not needed.
    fn is_over(&self, peer: PeerId, now: Instant) -> bool {
        let direct = |link: &&Link| link.peer == peer && link.carries() && link.relay.is_none();
        let age = |link: &Link| now.duration_since(link.since);
        self.links
            .values()
            .filter(direct)
            .any(|link| age(link) >= self.config.timing.circuit)
    }

    fn close_surplus(&mut self, now: Instant) {
        let age = self.config.timing.surplus;
        // A connection that has gone quiet may be dead: the live one beside it must not be closed for its sake.
        let lively = self.config.timing.ping.mul_f32(1.5);
        let mut by_peer: BTreeMap<PeerId, Vec<Standing>> = BTreeMap::new();
        let alive = |link: &Link| link.carries() && now.duration_since(link.heard) <= lively;
        let mut circuits = Vec::new();
        for (id, link) in self.links.iter().filter(|(_, link)| alive(link)) {
            // A circuit that stands beside a direct connection has its own time.
            if link.relay.is_some() && self.is_direct(link.peer) {
                circuits.extend(self.is_over(link.peer, now).then_some(*id));
                continue;
            }
            by_peer.entry(link.peer).or_default().push(Standing {
                id: *id,
                candidate: Candidate {
                    number: link.number,
                    carrier: link.carrier,
                    outbound: link.outbound,
                },
                since: link.since,
                heard: link.heard,
            });
        }
        for id in circuits {
            self.close(id, "a direct connection stands");
        }
        for (peer, links) in by_peer.into_iter().filter(|(_, links)| links.len() > 1) {
            let since = links.iter().map(|l| l.since).max().unwrap_or(now);
            let youngest = now.duration_since(since);
            let candidates: Vec<_> = links.iter().map(|l| l.candidate).collect();
            let closed = if youngest >= age {
                surplus(&candidates, self.me < peer, youngest >= age * TIE_AGES)
            } else if youngest >= age / EARLY {
                beaten(&candidates)
            } else {
                continue;
            };
            let (over, kept): (Vec<_>, Vec<_>) = links
                .into_iter()
                .partition(|l| closed.contains(&l.candidate.number));
            if kept.iter().all(|l| l.heard + AT_ONCE >= since) {
                over.iter().for_each(|l| self.close(l.id, "surplus"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_under_way_before_the_question_does_not_settle_it() {
        let asked = Instant::now();
        let (before, after) = (asked - Duration::from_millis(1), asked);
        let remote = "/ip4/192.0.2.1/tcp/4100".parse().unwrap();
        let peer = PeerId([1; 32]);
        let mut link = Link::new(peer, 0, Class::Member, Carrier::Tcp, remote, true, before);
        (link.asked, link.doubted) = (Some(asked), true);
        let now = asked + Duration::from_secs(1);
        link.answer(now, before);
        assert!(link.asked.is_some(), "it may have come by the way before");
        assert!(link.carries(), "it is a sign of life all the same");
        link.answer(now, after);
        assert_eq!(link.asked, None);
    }
}
