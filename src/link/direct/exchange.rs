//! The exchange of candidates with a peer: this node tells where it may be reached, and the peer answers with the same.
//!
//! A question carries the whole list. It is asked when the list changed, when a connection opens, and when a path was lost,
//! one at a time for each peer; then both ends begin to probe at the same moment. Limits: a bucket for each peer in both
//! directions, and a list that changes over and over is followed ever more rarely, so that a peer whose addresses change all
//! the time cannot keep this node busy.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Ask, Direct, Origin, entropy, own};
use crate::backoff::{Backoff, HoldDown};
use crate::limit::{Limit, TokenBucket};
use crate::link::direct::handle::{Command, Untold};
use crate::model::id::PeerId;
use crate::udp::Exit;
use crate::wire::paths::{Candidate, Kind, NatFacts, Paths};

/// Questions to one peer at once, and a second after that.
const QUESTIONS: Limit = Limit::new(8, 1);
/// What one peer may tell at once, and a second after that: more than it asks questions.
const TOLD: Limit = Limit::new(16, 2);
/// Changes of a peer's list that are followed at once; then fewer and fewer are.
const CHANGES: u32 = 10;
/// A question without an answer for so long has none: longer than it may take over the stream.
const GIVEN_UP: Duration = Duration::from_secs(10);
/// The pauses before a question that was not answered is asked again.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Bound of what a peer may make us wait before we probe.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// What one peer was told, and what it said.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Whether a connection to the peer is there.
    pub(super) connected: bool,
    /// What the peer was told last, and took.
    told: Option<(Vec<Candidate>, NatFacts)>,
    /// What it says stands before it; none before it has said so.
    pub(super) there: Option<NatFacts>,
    /// The port that the peer's NAT is expected to give next, and by how much it counts.
    pub(super) counted: Option<(u16, i16)>,
    /// When the question under way was asked, what it told, and whether it asked for probes.
    asked: Option<(Instant, (Vec<Candidate>, NatFacts), bool)>,
    /// A question is to be asked: whether with probes.
    wanted: Option<bool>,
    /// When it may be asked at the earliest.
    again: Option<Instant>,
    /// Questions in a row that were not answered.
    failures: u32,
    /// How long the last question took.
    took: Duration,
    questions: TokenBucket,
    /// What the peer may tell unasked.
    told_us: TokenBucket,
    /// Its list as it was taken last, and a newer one that is held back because it changes over and over.
    said: Vec<Candidate>,
    held: HoldDown,
    later: Option<(Instant, Paths)>,
}

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange {
            connected: false,
            told: None,
            there: None,
            counted: None,
            asked: None,
            wanted: None,
            again: None,
            failures: 0,
            took: Duration::ZERO,
            questions: TokenBucket::new(QUESTIONS),
            told_us: TokenBucket::new(TOLD),
            said: Vec::new(),
            held: HoldDown::new(CHANGES),
            later: None,
        }
    }
}

impl Exchange {
    /// A connection to the peer is there: what was asked on an earlier one gets no answer.
    pub(super) fn begin(&mut self) {
        self.connected = true;
        (self.asked, self.again, self.failures) = (None, None, 0);
        self.want(true);
    }

    /// Whether the peer itself says that it may be reached there.
    pub(super) fn is_told(&self, address: SocketAddr) -> bool {
        let at = |a: SocketAddr| (a.ip().to_canonical(), a.port());
        self.said.iter().any(|said| at(said.address) == at(address))
    }

    /// The peer is to be told, and to probe where `probe` says so.
    pub(super) fn want(&mut self, probe: bool) {
        self.wanted = Some(self.wanted.unwrap_or(false) || probe);
    }

    /// Whether a question waits for its turn.
    pub(super) fn waits(&self) -> bool {
        self.connected && self.wanted.is_some() && self.asked.is_none()
    }

    /// When it is to be looked at again: a question waits for its turn, or for its answer.
    pub(super) fn due(&self) -> Option<Instant> {
        let asked = self.asked.as_ref().map(|(at, ..)| *at + GIVEN_UP);
        let asks = asked.or_else(|| self.again.filter(|_| self.waits()));
        let later = self.later.as_ref().map(|(at, _)| *at);
        asks.into_iter().chain(later).min()
    }

    /// Whether it is to be looked at now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// The question under way is given up where its answer is lost.
    fn give_up(&mut self, now: Instant) {
        if let Some((_, _, probe)) = self.asked.take_if(|(at, ..)| *at + GIVEN_UP <= now) {
            self.failed(now, probe);
        }
    }

    /// A question was not answered: it is asked again later.
    fn failed(&mut self, now: Instant, probe: bool) {
        self.want(probe);
        self.again = Some(now + AGAIN.pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// Whether it may be asked now; else it says when.
    fn may_ask(&mut self, now: Instant) -> bool {
        if self.again.is_some_and(|at| at > now) {
            return false;
        }
        let may = self.questions.take(now);
        self.again = (!may).then_some(now + Duration::from_secs(1));
        may
    }
}

/// Takes the answer to one question about paths. Dropping it says that there is none.
#[derive(Debug)]
pub struct PathsAnswerer {
    peer: PeerId,
    orders: Option<mpsc::Sender<Command>>,
}

impl PathsAnswerer {
    /// Hands the answer in; waits while the task is busy.
    pub async fn give(mut self, answer: Option<Paths>) {
        if let Some(orders) = self.orders.take() {
            let peer = self.peer;
            // The receiver is gone only when the task has stopped.
            let _ = orders.send(Command::Told { peer, answer }).await;
        }
    }
}

impl Drop for PathsAnswerer {
    fn drop(&mut self) {
        if let Some(orders) = self.orders.take() {
            let peer = self.peer;
            // Full: the next connection begins anew.
            let _ = orders.try_send(Command::Told { peer, answer: None });
        }
    }
}

impl Direct {
    /// What this node says of itself to that peer: the facts are those of the way out by which it is reached.
    fn own_paths(&self, id: PeerId) -> (Vec<Candidate>, NatFacts) {
        let local = self.peers.get(&id).and_then(super::Entry::local);
        (self.own.candidates(&self.overlay), self.own.facts(local))
    }

    /// Packets go another way to the peer than before: it is told where other facts hold there.
    pub(super) fn follow_way(&mut self, now: Instant, id: PeerId) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let facts = self.own.facts(entry.local());
        let told = entry.exchange.told.as_ref();
        if told.is_some_and(|told| told.1 != facts) {
            entry.exchange.want(false);
            self.tell(now, id);
        }
    }

    /// Tells every peer that is connected, where something changed.
    pub(super) fn tell_all(&mut self) {
        let now = Instant::now();
        self.endpoints = self
            .own
            .candidates(&self.overlay)
            .iter()
            .map(|candidate| candidate.address)
            .take(super::ENDPOINTS)
            .collect();
        let candidates = self.own.candidates(&self.overlay);
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            if let Some(entry) = self.peers.get_mut(&id) {
                let facts = self.own.facts(entry.local());
                let told = entry.exchange.told.as_ref();
                // New addresses are worth a try at once; new facts alone are not.
                let is_new = told.is_none_or(|told| told.0 != candidates);
                if is_new || told.is_some_and(|told| told.1 != facts) {
                    entry.exchange.want(is_new);
                }
            }
            self.tell(now, id);
        }
    }

    /// Asks the peer now, where that is wanted and may be.
    pub(super) fn tell(&mut self, now: Instant, id: PeerId) {
        let own = self.own_paths(id);
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        entry.take_later(now);
        let exchange = &mut entry.exchange;
        exchange.give_up(now);
        if !exchange.waits() || !exchange.may_ask(now) {
            return self.set_timer(id);
        }
        let probe = exchange.wanted.take().unwrap_or(false);
        let half = (exchange.took / 2).min(MAX_WAIT).as_millis();
        let paths = Paths {
            candidates: own.0.clone(),
            facts: own.1,
            probe: probe.then(|| u16::try_from(half).unwrap_or(u16::MAX)),
        };
        exchange.asked = Some((now, own, probe));
        let answer = PathsAnswerer {
            peer: id,
            orders: Some(self.own_orders.clone()),
        };
        let ask = Ask::Paths {
            peer: id,
            paths,
            answer,
        };
        // Its answerer gives no answer then, or the question is given up in time.
        if self.asks.try_send(ask).is_err() {
            tracing::debug!(peer = %id, "paths: no room to ask");
        }
        self.set_timer(id);
    }

    /// The peer has answered, or will not.
    pub(super) fn on_told(&mut self, now: Instant, id: PeerId, answer: Option<Paths>) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let Some((asked, told, probe)) = entry.exchange.asked.take() else {
            return;
        };
        if let Some(said) = answer {
            entry.exchange.took = now.saturating_duration_since(asked);
            entry.exchange.told = Some(told);
            entry.take(now, &said);
            entry.exchange.failures = 0;
            if probe {
                entry.peer.burst(now);
            }
        } else {
            entry.exchange.failed(now, probe);
        }
        self.carry_out(id);
        self.tell(now, id);
    }

    /// The peer says where it may be reached, and asks for the same.
    pub(super) fn on_paths(
        &mut self,
        now: Instant,
        id: PeerId,
        said: &Paths,
        answer: oneshot::Sender<Result<Paths, Untold>>,
    ) {
        self.enter(id);
        let (candidates, facts) = self.own_paths(id);
        // Whoever asked may have stopped waiting.
        let Some(entry) = self.peers.get_mut(&id) else {
            let _ = answer.send(Err(Untold::NoSession));
            return;
        };
        if !entry.exchange.told_us.take(now) {
            // It tries again later and later.
            let _ = answer.send(Err(Untold::TooOften));
            return;
        }
        let is_taken = entry.take(now, said);
        if let Some(wait) = said.probe.filter(|_| is_taken) {
            let at = now + Duration::from_millis(wait.into()).min(MAX_WAIT);
            entry.peer.burst(at);
        }
        entry.exchange.told = Some((candidates.clone(), facts));
        let _ = answer.send(Ok(Paths {
            candidates,
            facts,
            probe: None,
        }));
        self.carry_out(id);
    }

    /// The interfaces, the router or the configuration say something else than before. Where it is the interfaces every path
    /// is probed at once; a port of the router that came or went is told.
    pub(super) fn on_own(&mut self, now: Instant, named: Vec<Candidate>) {
        let hosts = |own: &own::Own| own.named(Kind::Host).collect::<BTreeSet<_>>();
        let before = hosts(&self.own);
        if self.own.set_named(named) {
            if hosts(&self.own) == before {
                self.tell_all();
                return;
            }
            self.roam(now);
            let locals = self.own.locals();
            let stays = |local: Option<IpAddr>| local.is_none_or(|ip| locals.contains(&ip));
            self.knocks.moved(now, stays);
            self.carry_out_knocks(now);
        }
    }

    /// Those see this node there now whom the configuration names.
    pub(super) fn on_external(&mut self, seen: Vec<SocketAddr>) {
        if self.own.set_external(seen) {
            self.tell_all();
        }
    }

    /// Default routes lead over those links now.
    pub(super) fn on_uplinks(
        &mut self,
        now: Instant,
        links: Vec<u32>,
        preferred: Vec<IpAddr>,
        exits: &[Exit],
    ) {
        let is_other = self.own.set_uplinks(links);
        // What leaves by another link than before takes another way.
        let leaves_elsewhere = self.port.set_exits(exits);
        if (self.own.set_preferred(preferred) || leaves_elsewhere) && !is_other {
            self.roam(now);
        }
        if is_other {
            self.roam(now);
            self.knocks.moved(now, |_| false);
            self.carry_out_knocks(now);
        }
    }

    /// This machine may be somewhere else than before: what was learnt of its ways out is asked anew.
    fn roam(&mut self, now: Instant) {
        let locals = self.own.locals();
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            if let Some(entry) = self.peers.get_mut(&id) {
                entry.peer.roamed(now, &locals, &mut entropy);
            }
            self.carry_out(id);
        }
        self.sprays.moved();
        // Without room for it, a connection that has ended is missed by its own silence, which takes longer.
        let _ = self.asks.try_send(Ask::Roamed);
        self.rebind_legs(now, None);
        self.tell_all();
    }

    /// Somebody sees our datagrams come from there: those from that address of ours, as far as it is known. `by`: who, and at
    /// which address where it is a relay.
    pub(super) fn on_observed(
        &mut self,
        now: Instant,
        address: SocketAddr,
        by: (PeerId, Option<SocketAddr>),
        local: Option<IpAddr>,
    ) {
        if self.own.observed_from(now, address, by, local) {
            self.tell_all();
        }
    }
}

impl super::Entry {
    /// Our address that packets leave from straight to the peer; none where a relay carries them, or the stream.
    pub(super) fn local(&self) -> Option<IpAddr> {
        let remote = self.peer.remote().filter(|remote| remote.leg.is_none())?;
        self.peer.local_to(remote)
    }

    /// Takes what the peer says of itself; whether it was taken now, and not held back for a while.
    fn take(&mut self, now: Instant, said: &Paths) -> bool {
        let exchange = &mut self.exchange;
        exchange.there = Some(said.facts);
        exchange.counted = own::counted(said);
        if exchange.said != said.candidates {
            if let Some(until) = exchange.held.until(now) {
                exchange.later = Some((until, said.clone()));
                return false;
            }
            if !exchange.said.is_empty() {
                exchange.held.changed(now);
            }
            exchange.said.clone_from(&said.candidates);
        }
        exchange.later = None;
        self.peer.offer(now, &own::expected(said), Origin::Told);
        self.peer.offer_told(now, &said.candidates);
        true
    }

    /// Takes what was held back, where it is time.
    fn take_later(&mut self, now: Instant) {
        let later = self.exchange.later.take_if(|(at, _)| *at <= now);
        if let Some((_, said)) = later {
            self.take(now, &said);
        }
    }
}
