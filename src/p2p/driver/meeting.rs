//! Relays: the places that this node keeps at them, the circuits it opens through them, and what it does for others as one.
//!
//! A place is asked for over a connection that stands, is known by the listener that stands for it, and is asked for again
//! where the relay refuses it or its connection is lost. A relay that is named no more is left: its listener is removed, and
//! its connection ends unless something else needs it. A circuit waits here for the connection to its relay.
//!
//! Two members that share only a third meet there without configuration: while a member cannot be reached, a node reserves
//! places at members that it is connected with, and tries circuits through them. A hash of the peer IDs orders these members,
//! so that both ends choose the same ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, PeerId as LibPeer, relay};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Driver;
use super::links::Link;
use super::places::{Loss, Place, Point, due};
use crate::model::id::PeerId;
use crate::p2p::address::{Circuit, Heard, bare, is_circuit};
use crate::p2p::address_book::Source;
use crate::p2p::behaviour::status_of;
use crate::p2p::{Class, Event, PlaceStatus, Refusal, Serve, Typed};

/// Relays that a place is kept at.
const PLACES: usize = 2;
/// The most members through which a member without a working address is tried.
const GUESSES: usize = 4;
/// The time between two searches for members that nothing leads to.
const LOOK: Duration = Duration::from_secs(1);
/// The most addresses of one relay under which this node is announced.
const TOLD: usize = 2;
/// Dials without an answer after which another relay is tried beside this one.
const PATIENCE: u32 = 2;
/// How long a relay is kept in mind that only circuits need.
const LENT: Duration = Duration::from_secs(60);
/// The most relays that only circuits need, and the most circuits that wait for one of them.
const MOST: usize = 64;
/// How long a circuit waits for the connection to its relay.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// A circuit that waits for the connection to its relay.
struct Queued {
    peer: PeerId,
    address: Multiaddr,
    until: Instant,
}

/// The relays of this node, and what waits for them.
#[derive(Default)]
pub(super) struct Relays {
    points: BTreeMap<PeerId, Point>,
    /// The configured ones, in the order of preference.
    order: Vec<PeerId>,
    /// Those that a place is kept at, or to be.
    chosen: Vec<PeerId>,
    /// The members among these, and when that was last looked at.
    lent: Vec<PeerId>,
    looked: Option<Instant>,
    listeners: HashMap<ListenerId, PeerId>,
    queued: BTreeMap<PeerId, Vec<Queued>>,
}

impl Relays {
    /// Whether the peer is a relay that this node uses.
    pub(super) fn is_ours(&self, peer: PeerId) -> bool {
        self.points.contains_key(&peer)
    }

    /// Whether nothing that this node knows of a relay speaks against asking it for a place now, or it keeps one.
    pub(super) fn serves(&self, peer: PeerId, now: Instant) -> bool {
        let point = self.points.get(&peer);
        point.is_none_or(|p| {
            p.place.is_kept() || p.is_good() || due(&self.points, peer).is_some_and(|d| d <= now)
        })
    }

    /// The relays that keep a place for this node, or are to.
    pub(super) fn homes(&self) -> BTreeSet<PeerId> {
        let kept = self.points.iter().filter(|(_, p)| p.place.is_kept());
        let kept = kept.map(|(peer, _)| *peer);
        kept.chain(self.chosen.iter().copied()).collect()
    }

    /// Whether a person named it as a relay.
    pub(super) fn is_configured(&self, peer: PeerId) -> bool {
        self.points.get(&peer).is_some_and(|p| p.until.is_none())
    }

    /// Whether a connection to the relay is wanted now.
    pub(super) fn wants(&self, peer: PeerId, now: Instant) -> bool {
        let is_due = || due(&self.points, peer).is_some_and(|due| now >= due);
        self.queued.contains_key(&peer) || (self.chosen.contains(&peer) && is_due())
    }

    /// The peer answers us.
    pub(super) fn answers(&mut self, peer: PeerId, now: Instant) {
        if let Some(point) = self.points.get_mut(&peer) {
            point.answers(now);
        }
    }

    /// The peer takes us for a stranger: it is of no use for now.
    pub(super) fn refused(&mut self, peer: PeerId, now: Instant) {
        if let Some(point) = self.points.get_mut(&peer) {
            point.is_strange_to(now);
            point.refuses(Refusal::Unsupported, now);
        }
    }

    /// No address of the peer answers.
    pub(super) fn is_out_of_reach(&mut self, peer: PeerId) {
        if let Some(point) = self.points.get_mut(&peer) {
            point.is_out_of_reach();
        }
    }

    /// Where this node's place at each relay stands, for people.
    pub(super) fn status(&self, now: Instant) -> Vec<PlaceStatus> {
        let age = |since: Instant| now.saturating_duration_since(since);
        let of = |(relay, point): (&PeerId, &Point)| PlaceStatus {
            relay: *relay,
            is_configured: point.until.is_none(),
            kept: match point.place {
                Place::Kept(_, since) => Some(age(since)),
                Place::None | Place::Asked(_) => None,
            },
            refused: point.refused().map(|said| (said.why, age(said.since))),
        };
        self.points.iter().map(of).collect()
    }
}

impl Driver {
    /// Takes the relays that a person names. One without a name is left out: nobody could tell whom to reserve with.
    pub(super) fn handle_meeting(&mut self, relays: &[Typed], now: Instant) {
        let mut order = Vec::new();
        for Typed(address) in relays {
            let Some(peer) = address.peer().filter(|peer| *peer != self.me) else {
                continue;
            };
            if is_circuit(&address.0) {
                continue;
            }
            self.book.typed(peer, &address.0);
            if !order.contains(&peer) {
                order.push(peer);
            }
            let point = self.relays.points.entry(peer);
            let point = point.or_insert_with(|| Point::new(None, now));
            point.named(now);
        }
        let mut left = Vec::new();
        for (peer, point) in &mut self.relays.points {
            if point.until.is_none() && !order.contains(peer) {
                point.until = Some(now);
                left.push(*peer);
            }
        }
        self.relays.order = order;
        left.into_iter().for_each(|peer| self.leave(peer, now));
        self.tell_gate();
        self.keep_places(now);
    }

    /// Leaves a relay that nobody names any more. Its connection stays where it is a member's, where the relay is our client as
    /// well, and where circuits that we have opened run through it.
    fn leave(&mut self, peer: PeerId, now: Instant) {
        let point = self.relays.points.get(&peer);
        if let Some(id) = point.and_then(|point| point.place.listener()) {
            self.swarm.remove_listener(id);
            self.end_place(id, "it is named as a relay no more", false, now);
        }
        self.emit(Event::Left { relay: peer });
        let ours = |l: &Link| l.relay == Some(peer) && l.outbound && !l.closing;
        if self.links.values().any(ours) {
            return;
        }
        let is_client = self.served.load().serves(&peer, false);
        let over = |l: &Link| {
            l.peer == peer && l.class == Class::Meeting && !l.closing && (l.outbound || !is_client)
        };
        let over: Vec<_> = self
            .links
            .iter()
            .filter(|(_, l)| over(l))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.close(id, "it is named as a relay no more");
        }
    }

    fn tell_gate(&mut self) {
        let meeting: BTreeSet<_> = self.relays.points.keys().copied().collect();
        self.swarm.behaviour_mut().gate.set_meeting(meeting);
    }

    /// Whom this node serves as a relay has changed.
    pub(super) fn handle_serve(&mut self, serve: Serve) {
        let behaviour = self.swarm.behaviour_mut();
        behaviour.server.inner.set_status(Some(status_of(&serve)));
        // Who has a place keeps it as long as its connection: those that may not have one any more are cut.
        let members = self.members.clone();
        let held: Vec<_> = behaviour.server.connections().collect();
        let over = held.into_iter().filter(|(_, peer)| {
            crate::p2p::peer_from_lib(peer)
                .is_some_and(|peer| !serve.serves(&peer, members.contains_key(&peer)))
        });
        let over: Vec<_> = over
            .map(|(id, _)| id)
            .filter(|id| {
                let link = self.links.get(id);
                link.is_some_and(|l| !(l.class == Class::Meeting && self.relays.is_ours(l.peer)))
            })
            .collect();
        self.served.store(Arc::new(serve));
        for id in over {
            self.close(id, "not served any more");
        }
    }

    /// Takes what the relay of this node has done.
    pub(super) fn handle_served(&mut self, event: &relay::Event, now: Instant) {
        tracing::debug!(?event, "circuit relay");
        let server = &self.swarm.behaviour().server;
        let is_here = |peer: &LibPeer| server.connections().any(|(_, other)| other == *peer);
        self.shares.handle(event, is_here, now.into_std());
    }

    /// Chooses the relays to keep a place at, asks for what is missing, and forgets what is of no use any more.
    pub(super) fn keep_places(&mut self, now: Instant) {
        let (mut chosen, good) = self.choose(now);
        let missing = PLACES.saturating_sub(good);
        if self.relays.looked.is_none_or(|at| now >= at + LOOK) {
            self.relays.looked = Some(now);
            self.relays.lent = self.look_around(missing, now);
        }
        chosen.extend(self.relays.lent.iter().take(missing).copied());
        self.relays.chosen = chosen;
        for peer in self.relays.chosen.clone() {
            let met = self.meets(peer);
            let Some(point) = self.relays.points.get(&peer) else {
                continue;
            };
            if now < self.next_of(peer) {
                continue;
            }
            match point.place {
                Place::None if met => self.ask_place(peer, now),
                Place::None if !self.dialling.contains_key(&peer) => self.hurry(peer, now),
                _ => {}
            }
        }
        self.forget_relays(now);
    }

    /// The first of those configured that can be had: one that is refused or does not answer is tried on, beside another.
    /// How many can be had is the second value.
    fn choose(&self, now: Instant) -> (Vec<PeerId>, usize) {
        let mut good = 0;
        let mut chosen = Vec::new();
        for peer in &self.relays.order {
            if good == PLACES {
                break;
            }
            let unanswered = self.dialling.get(peer).map_or(0, |d| d.redial.failures);
            let usable = self.relays.points.get(peer).is_some_and(|p| {
                p.is_good() && now >= self.next_of(*peer) && unanswered < PATIENCE
            });
            good += usize::from(usable || self.meets(*peer) && now >= self.next_of(*peer));
            chosen.push(*peer);
        }
        (chosen, good)
    }

    /// The members, and the relays of members' records, to keep places at: some where there is a member that nothing leads
    /// to, or where this node may be one for those who will dial it when they want it.
    fn look_around(&mut self, missing: usize, now: Instant) -> Vec<PeerId> {
        let linked: BTreeSet<_> = self.links.values().map(|link| link.peer).collect();
        let away = |peer: &PeerId| {
            let tried = self.dialling.get(peer).map_or(0, |d| d.redial.failures);
            *peer != self.me
                && !self.held.contains(peer)
                && !linked.contains(peer)
                && self.kept.needs(*peer, now)
                && (tried >= PATIENCE || !self.book.has(peer))
        };
        if missing == 0 || !(self.members.keys().any(away) || self.is_hidden(now)) {
            return Vec::new();
        }
        let mut lent = Vec::new();
        for relay in self.between(self.me, now) {
            if lent.len() == missing {
                break;
            }
            if self.relays.order.contains(&relay) {
                continue;
            }
            if self.members.contains_key(&relay) || self.try_home(relay, now) {
                self.lend(relay, now);
                lent.push(relay);
            }
        }
        lent
    }

    /// Whether there is somebody through whom a circuit to `peer` may lead that no address of it names: another member that
    /// is connected, or a relay of members' records.
    pub(super) fn is_between(&self, peer: PeerId, now: Instant) -> bool {
        let direct = |l: &Link| l.class == Class::Member && l.meets() && l.peer != peer;
        self.members.contains_key(&peer)
            && (self.links.values().any(direct) || !self.homes(peer, now).is_empty())
    }

    /// Those through whom a circuit to `peer` may lead, in the same order at every node that knows and meets the same: members
    /// that offer to forward, relays of members' records, other members.
    fn between(&self, peer: PeerId, now: Instant) -> Vec<PeerId> {
        let may = |l: &&Link| l.class == Class::Member && l.meets() && l.peer != peer;
        let met: BTreeSet<_> = self.links.values().filter(may).map(|l| l.peer).collect();
        let met = met.into_iter().filter(|peer| !self.noted.never(*peer));
        let mut met: Vec<_> = met.collect();
        met.sort_by_cached_key(|relay| Sha256::digest([relay.0, peer.0].concat()));
        let (mut all, helps): (Vec<_>, Vec<_>) =
            met.into_iter().partition(|relay| self.noted.offers(*relay));
        all.extend(self.homes(peer, now));
        all.extend(helps);
        all
    }

    /// Addresses through members and relays of records at which a member may be that no other address has led to.
    pub(super) fn guesses(&mut self, peer: PeerId, now: Instant) -> Vec<Multiaddr> {
        let between = self.between(peer, now).into_iter().take(GUESSES);
        let between: Vec<_> = between
            .filter(|relay| self.members.contains_key(relay) || self.try_home(*relay, now))
            .collect();
        let through = between.into_iter().filter_map(|relay| {
            let hop = self.hops(relay).into_iter().next()?;
            Some(Circuit::through(&hop, crate::p2p::peer_to_lib(relay)?))
        });
        through.collect()
    }

    /// Keeps a relay in mind that nobody configured.
    fn lend(&mut self, relay: PeerId, now: Instant) {
        let until = Some(now + LENT);
        match self.relays.points.get_mut(&relay) {
            Some(point) if point.until.is_some() => point.until = until,
            Some(_) => {}
            None => {
                self.relays.points.insert(relay, Point::new(until, now));
                self.tell_gate();
            }
        }
    }

    fn next_of(&self, peer: PeerId) -> Instant {
        due(&self.relays.points, peer).unwrap_or_else(Instant::now)
    }

    fn ask_place(&mut self, peer: PeerId, now: Instant) {
        let Some(lib) = crate::p2p::peer_to_lib(peer) else {
            return;
        };
        let Some(hop) = self.hops(peer).into_iter().next() else {
            return;
        };
        let asked = self.swarm.listen_on(Circuit::through(&hop, lib));
        let Some(point) = self.relays.points.get_mut(&peer) else {
            return;
        };
        match asked {
            Ok(id) => {
                point.place = Place::Asked(id);
                self.relays.listeners.insert(id, peer);
            }
            Err(error) => {
                tracing::debug!(relay = %peer, %error, "ask for a place at a relay");
                point.failed(now);
            }
        }
    }

    /// Where a relay is, best first: where it is connected, then where it has answered or a person says, then what it says.
    fn hops(&self, relay: PeerId) -> Vec<Multiaddr> {
        let links = self.links.values();
        let here = links.filter(|l| l.peer == relay && !l.closing && l.relay.is_none());
        let mut all: Vec<Multiaddr> = here
            .filter(|l| l.outbound)
            .map(|l| l.remote.clone())
            .collect();
        all.extend(self.book.trusted(&relay));
        all.extend(self.book.addresses(&relay));
        // Where it came from, at the last: its place is over the connection that stands, and the address only its name.
        let came = self
            .links
            .values()
            .filter(|l| l.peer == relay && l.relay.is_none());
        all.extend(came.map(|l| l.remote.clone()));
        let mut seen = BTreeSet::new();
        all.into_iter()
            .filter(|hop| !is_circuit(hop))
            .map(|hop| bare(&hop))
            .filter(|hop| seen.insert(hop.clone()))
            .collect()
    }

    /// The addresses of this node that lead through relays: those that others may dial on hearsay.
    pub(super) fn through_relays(&self) -> Vec<Multiaddr> {
        let points = self.relays.points.iter();
        // Places at members are found without being told of: they come and go with every member that is away.
        let kept = points.filter(|(_, p)| matches!(p.place, Place::Kept(..)) && p.until.is_none());
        kept.filter_map(|(peer, _)| Some((*peer, crate::p2p::peer_to_lib(*peer)?)))
            .flat_map(|(peer, lib)| {
                let hops = self.hops(peer).into_iter();
                let told = hops.filter(|hop| Heard::of(hop.clone(), false).is_some());
                told.take(TOLD)
                    .map(move |hop| Circuit::through(&hop, lib))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// A relay says that it keeps a place for us, or keeps it on.
    pub(super) fn handle_place_kept(&mut self, listener: ListenerId, now: Instant) {
        let Some(peer) = self.relays.listeners.get(&listener).copied() else {
            return;
        };
        let Some(point) = self.relays.points.get_mut(&peer) else {
            return;
        };
        if point.place == Place::Asked(listener) {
            point.keeps(listener, now);
            tracing::info!(relay = %peer, "a relay keeps a place for this node");
            self.emit(Event::Reserved { relay: peer });
            self.emit_listening();
        }
    }

    /// Says whether the listener stood for a place at a relay, which is gone then.
    pub(super) fn handle_place_lost(
        &mut self,
        id: ListenerId,
        error: Option<&io::Error>,
        now: Instant,
    ) -> bool {
        let refusal = {
            let meeting = &mut self.swarm.behaviour_mut().meeting;
            meeting.inner.circuits.take_reason(id)
        };
        let relay = self.relays.listeners.get(&id).copied();
        let why = error.map_or("its connection is lost".to_owned(), ToString::to_string);
        let is_ours = self.end_place(id, &why, error.is_some(), now);
        let point = relay.and_then(|relay| self.relays.points.get_mut(&relay));
        if let Some((point, refusal)) = point.zip(refusal) {
            point.refuses(refusal, now);
        }
        is_ours
    }

    fn end_place(&mut self, id: ListenerId, why: &str, refused: bool, now: Instant) -> bool {
        let Some(peer) = self.relays.listeners.remove(&id) else {
            return false;
        };
        let loss = match refused {
            true => Loss::Refused,
            false if self.meets(peer) => Loss::Replaced,
            false => Loss::Ended,
        };
        let point = self.relays.points.get_mut(&peer);
        let point = point.filter(|point| point.place.listener() == Some(id));
        let kept = point.is_some_and(|point| point.lost(loss, now));
        tracing::info!(relay = %peer, why, "a relay keeps no place for this node");
        if kept {
            let why = why.to_owned();
            self.emit(Event::Unreserved { relay: peer, why });
            self.emit_listening();
        }
        true
    }

    /// Lets a circuit wait for the connection to its relay; says whether it does.
    pub(super) fn queue(
        &mut self,
        relay: PeerId,
        peer: PeerId,
        address: &Multiaddr,
        now: Instant,
    ) -> bool {
        let Some(circuit) = Circuit::of(address) else {
            return false;
        };
        if relay == self.me || relay == peer {
            return false;
        }
        let known = self.relays.points.len();
        if !self.relays.is_ours(relay) && known >= MOST {
            return false;
        }
        self.lend(relay, now);
        let hop = std::slice::from_ref(&circuit.hop);
        let word = self.book.word(&peer, address);
        match word {
            Some(Source::Typed) => self.book.typed(relay, &circuit.hop),
            Some(Source::Announcement) => self.book.hinted(relay, hop, Source::Record),
            _ => self.book.hinted(relay, hop, Source::Hint),
        }
        let queue = self.relays.queued.entry(relay).or_default();
        if queue.len() >= MOST {
            return false;
        }
        queue.retain(|q| (q.peer, &q.address) != (peer, address));
        queue.push(Queued {
            peer,
            address: address.clone(),
            until: now + WAIT,
        });
        // A guess is no reason: how often a relay is tried that only records name is settled there.
        if word.is_some() || !self.noted.is_home(relay) {
            self.book.again(&relay);
        }
        self.hurry(relay, now);
        true
    }

    /// A relay, or a peer that might be one, is connected: what waited for it goes on.
    pub(super) fn handle_met(&mut self, relay: PeerId, now: Instant) {
        if !self.members.contains_key(&relay) {
            self.dialling.remove(&relay);
        }
        for queued in self.relays.queued.remove(&relay).unwrap_or_default() {
            let id = self.dial_at(queued.peer, vec![queued.address]);
            for waiter in &mut self.waiters {
                if waiter.queued.remove(&(relay, queued.peer)) {
                    waiter.attempts.extend(id);
                }
            }
        }
        self.end_waiters();
        self.keep_places(now);
    }

    /// A relay did not answer: circuits that wait for it have failed.
    pub(super) fn fail_queued(&mut self, relay: PeerId, why: &str) {
        if self.relays.queued.remove(&relay).is_none() {
            return;
        }
        for waiter in &mut self.waiters {
            let before = waiter.queued.len();
            waiter.queued.retain(|(queued, _)| *queued != relay);
            if waiter.queued.len() < before {
                waiter.errors.push(format!("the relay {relay}: {why}"));
            }
        }
        self.end_waiters();
    }

    fn forget_relays(&mut self, now: Instant) {
        let late = |queue: &Vec<Queued>| queue.iter().all(|q| now >= q.until);
        let queued = self.relays.queued.iter().filter(|(_, q)| late(q));
        let late: Vec<_> = queued.map(|(relay, _)| *relay).collect();
        for relay in late {
            self.fail_queued(relay, "it did not answer in time");
        }
        let over: Vec<_> = self
            .relays
            .points
            .iter()
            .filter(|(peer, point)| {
                point.until.is_some_and(|until| now >= until)
                    && point.place == Place::None
                    && !self.relays.queued.contains_key(peer)
                    && !self.meets(**peer)
            })
            .map(|(peer, _)| *peer)
            .collect();
        if !over.is_empty() {
            for peer in over {
                self.relays.points.remove(&peer);
            }
            self.tell_gate();
        }
    }
}
