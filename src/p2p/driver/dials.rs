//! Dialling: members are kept connected, others are dialled when somebody asks.

use std::collections::BTreeSet;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::core::Endpoint as Role;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use super::links::Link;
use crate::model::id::PeerId;
use crate::p2p::address::{Carrier, bare, relay_of};
use crate::p2p::address_book::{Due, Source};
use crate::p2p::place;
use crate::p2p::redial::Redial;
use crate::p2p::web::{keep_few_names, with_heard_name};
use crate::p2p::{Address, ConnectError, Heard, Typed};

/// How long the preferred carrier is alone before the others are tried too.
const HEAD_START: Duration = Duration::from_millis(300);
/// How much longer the peer with the larger ID waits after a loss: most simultaneous dials never happen.
const COURTESY: Duration = Duration::from_millis(300);
/// Addresses dialled at once for one command.
const AT_ONCE: usize = 16;
/// The time between two tries of addresses that were only heard, while packets wait for their peer:
/// two peers that could not reach each other when they heard of each other find together once they
/// can, and nobody is dialled for longer than packets wait.
const WANTED_AGAIN: Duration = Duration::from_secs(300);
/// The same of a member that this node does not hold: it is dialled then only, and says nothing to this node when it is back.
const WANTED_SOON: Duration = Duration::from_secs(15);

/// A peer that is being dialled again and again.
pub(super) struct Dialling {
    pub(super) redial: Redial,
    /// The other carriers' addresses, and when to try them.
    later: Vec<(Instant, Vec<Multiaddr>)>,
    /// The dials under way.
    pub(super) attempts: BTreeSet<ConnectionId>,
}

impl Dialling {
    fn new(now: Instant, delay: Duration) -> Self {
        Dialling {
            redial: Redial::new(now, delay),
            later: Vec::new(),
            attempts: BTreeSet::new(),
        }
    }

    /// Whether a round is due, the first or a later one.
    fn is_due(&self, now: Instant) -> bool {
        self.redial.is_due(now) || self.later.iter().any(|(when, _)| now >= *when)
    }

    /// Whether anything of the last round is still to be tried or under way.
    pub(super) fn is_under_way(&self) -> bool {
        !self.attempts.is_empty() || !self.later.is_empty()
    }

    /// Takes what is due now: the addresses to dial at once, and the rest for later. Rungs that have no address take no time.
    fn begin(&mut self, due: Due, now: Instant) -> Vec<Multiaddr> {
        let Due {
            first,
            second,
            web,
            circuits,
        } = due;
        let rungs = [first, second, web].into_iter().filter(|l| !l.is_empty());
        let mut rungs = rungs
            .zip(0..)
            .map(|(list, at)| (now + HEAD_START * at, list));
        let Some((_, first)) = rungs.next() else {
            return circuits;
        };
        self.later = rungs.collect();
        if !circuits.is_empty() {
            self.later.push((now + HEAD_START, circuits));
        }
        first
    }
}

/// Somebody who waits for a dial, and the attempts it consists of.
pub(super) struct Waiter {
    pub(super) attempts: BTreeSet<ConnectionId>,
    /// Circuits that wait for a connection to their relay: the relay, and the peer at the other end.
    pub(super) queued: BTreeSet<(PeerId, PeerId)>,
    pub(super) errors: Vec<String>,
    reply: oneshot::Sender<Result<PeerId, ConnectError>>,
}

impl Waiter {
    /// Whether nothing is left to wait for.
    fn is_over(&self) -> bool {
        self.attempts.is_empty() && self.queued.is_empty()
    }
}

/// What became of a dial.
#[derive(Default)]
struct Dialled {
    attempt: Option<ConnectionId>,
    /// The relays that circuits to the peer wait for.
    queued: BTreeSet<PeerId>,
}

impl Driver {
    /// Whether the peer is to be dialled until it answers; one that a circuit leads to, until it answers itself.
    fn is_needed(&self, peer: PeerId) -> bool {
        let missing =
            || !self.is_direct(peer) && (!self.is_linked(peer) || self.book.has_direct(&peer));
        let is_wanted = || !self.held.contains(&peer) && self.kept.needs(peer, Instant::now());
        let member = self.members.contains_key(&peer) && is_wanted() && missing();
        let relay = || self.relays.wants(peer, Instant::now()) && !self.meets(peer);
        peer != self.me && (member || self.asks.wait_for(peer) || relay())
    }

    /// Whether a member is dialled that nobody wants any more: that it does not answer is worth knowing.
    fn is_asked_yet(&self, peer: PeerId) -> bool {
        let is_under_way = |dialling: &Dialling| dialling.is_under_way();
        self.dialling.get(&peer).is_some_and(is_under_way)
            && self.members.contains_key(&peer)
            && !self.is_linked(peer)
    }

    /// Whether an address of the peer may be dialled now; through a relay only where nothing leads to it.
    fn is_dial_due(&self, peer: PeerId, now: Instant) -> bool {
        self.book.is_due(&peer, !self.is_linked(peer), now)
    }

    /// A connection of the peer is gone: if it was the last that carries packets, dial.
    pub(super) fn handle_lost(&mut self, peer: PeerId, now: Instant) {
        if self.is_needed(peer) {
            let courtesy = if self.me > peer {
                COURTESY
            } else {
                Duration::ZERO
            };
            self.dialling
                .entry(peer)
                .or_insert_with(|| Dialling::new(now, courtesy));
        }
    }

    /// There is news of a peer: dial it soon.
    pub(super) fn hurry(&mut self, peer: PeerId, now: Instant) {
        if self.is_needed(peer) {
            self.dialling
                .entry(peer)
                .or_insert_with(|| Dialling::new(now, Duration::ZERO))
                .redial
                .hurry(now);
        }
    }

    /// Packets or a request wait for the peer. Of that, too, what was heard is tried again, once in a while.
    pub(super) fn handle_wanted(&mut self, peer: PeerId, now: Instant) {
        if self.is_needed(peer) {
            let dialling = self
                .dialling
                .entry(peer)
                .or_insert_with(|| Dialling::new(now, Duration::ZERO));
            dialling.redial.nudge(now);
            let pause = if self.kept.holds(peer) {
                WANTED_AGAIN
            } else {
                WANTED_SOON
            };
            if !self.book.is_due(&peer, true, now) && self.kept.may_try_again(peer, pause, now) {
                self.book.again(&peer);
            }
            self.handle_dials(now);
        }
    }

    /// Somebody drops the member's packets as datagrams. Those of QUIC look alike and use the same ports, so that a connection
    /// over TCP is tried beside, inside a WebSocket where the peer is at no other; once it stands, it is the one that stays.
    pub(super) fn handle_data_lost(&mut self, peer: PeerId, now: Instant) {
        let by_tcp =
            |link: &Link| link.peer == peer && link.carries() && link.carrier.is_over_tcp();
        let is_wanted = self.members.contains_key(&peer) && !self.held.contains(&peer);
        if is_wanted && !self.links.values().any(by_tcp) {
            // One that was heard is tried once, and was, where QUIC was faster at the start.
            self.book.again(&peer);
            let Due { first, web, .. } = self.book.due(&peer, Carrier::Tcp, now);
            let addresses = if first.is_empty() { web } else { first };
            self.dial(peer, addresses, now);
        }
    }

    /// Starts the dials that are due, those first that are so for longest, as far as the budget goes.
    pub(super) fn handle_dials(&mut self, now: Instant) {
        let done: Vec<_> = self
            .dialling
            .keys()
            .filter(|peer| !self.is_needed(**peer) && !self.is_asked_yet(**peer))
            .copied()
            .collect();
        for peer in done {
            self.dialling.remove(&peer);
        }
        let due = self
            .dialling
            .iter()
            .filter(|(_, dialling)| dialling.is_due(now));
        let mut due: Vec<_> = due
            .map(|(peer, dialling)| (dialling.redial.due(), *peer))
            .collect();
        due.sort_unstable();
        for (_, peer) in due {
            let (linked, address) = (self.is_linked(peer), self.is_dial_due(peer, now));
            // QUIC leaves from the datagram port: a relay that is met by it sees what a NAT makes of that port.
            let prefer = if self.relays.is_configured(peer) || self.noted.is_home(peer) {
                Carrier::Quic
            } else {
                self.config.prefer
            };
            // Where no address leads, or none has led, another member may.
            let between = !linked && self.is_between(peer, now);
            let Some(dialling) = self.dialling.get(&peer) else {
                continue;
            };
            let guess = between && (!address || dialling.redial.failures > 0);
            let is_vain = !linked && !address && !guess && dialling.redial.is_due(now);
            if is_vain && self.members.contains_key(&peer) {
                self.kept.is_away(peer, now);
            }
            // Without an address to try there is nothing to count: the next one that is learned is dialled at once.
            let begins = self.is_needed(peer)
                && dialling.redial.is_due(now)
                && (address || guess)
                && self.budget.take(now, &dialling.redial);
            let guesses = if begins && guess {
                self.guesses(peer, now)
            } else {
                Vec::new()
            };
            let Some(dialling) = self.dialling.get_mut(&peer) else {
                continue;
            };
            let late = dialling.later.extract_if(.., |(when, _)| now >= *when);
            let mut round: Vec<_> = late.flat_map(|(_, late)| late).collect();
            if begins {
                let longest = self.config.timing.redial;
                dialling.redial.dialled(now, jitter(), longest);
                let mut due = self.book.due(&peer, prefer, now);
                if linked {
                    due.circuits.clear();
                }
                due.circuits.extend(guesses);
                round.append(&mut dialling.begin(due, now));
            }
            if !round.is_empty() {
                self.dial(peer, round, now);
            }
        }
    }

    /// Dials a peer at addresses of the book. What was heard is judged again: addresses of ours come and go. A circuit waits
    /// for a connection to its relay.
    fn dial(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>, now: Instant) -> Dialled {
        self.book.dialled(&peer, &addresses, now);
        self.own.refresh(now);
        let overlay = self.overlay.load_full();
        addresses.retain(|address| {
            let heard = || {
                let heard = Heard::of(address.clone(), true);
                let heard = match self.book.is_here(&peer, address) {
                    true => heard.map(Heard::here),
                    false => heard,
                };
                heard.is_some_and(|heard| heard.may_dial(&overlay, &self.own))
            };
            self.book.is_typed(&peer, address) || heard()
        });
        keep_few_names(&mut addresses, |address| self.book.is_typed(&peer, address));
        for address in &mut addresses {
            if !self.book.is_typed(&peer, address) {
                *address = with_heard_name(address);
            }
        }
        let mut queued = BTreeSet::new();
        addresses.retain(|address| {
            let Some(relay) = relay_of(address) else {
                return true;
            };
            let met = self.meets(relay);
            if !met && self.queue(relay, peer, address, now) {
                queued.insert(relay);
            }
            met
        });
        Dialled {
            attempt: self.dial_at(peer, addresses),
            queued,
        }
    }

    /// Dials a peer at addresses that may be dialled, whose relays are connected.
    pub(super) fn dial_at(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Option<ConnectionId> {
        self.dial_as(Role::Dialer, peer, addresses)
    }

    /// The same in this role: [`Role::Listener`] lets the peer in, whose dial comes from one of the addresses.
    pub(super) fn dial_as(
        &mut self,
        role: Role,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Option<ConnectionId> {
        if addresses.is_empty() {
            return None;
        }
        // Always: a connection that is dying, or one-sided, must not keep a new one from being made.
        let options = DialOpts::peer_id(crate::p2p::peer_to_lib(peer)?)
            .condition(PeerCondition::Always)
            .addresses(addresses);
        let options = match role {
            Role::Dialer => options.build(),
            Role::Listener => options.override_role().build(),
        };
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                if let Some(dialling) = self.dialling.get_mut(&peer) {
                    dialling.attempts.insert(id);
                }
                Some(id)
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "dial");
                None
            }
        }
    }

    pub(super) fn handle_connect(
        &mut self,
        typed: Vec<Typed>,
        heard: &[Heard],
        peer: Option<PeerId>,
        reply: oneshot::Sender<Result<PeerId, ConnectError>>,
        now: Instant,
    ) {
        for address in &typed {
            if let Some(named) = address.0.peer().or(peer) {
                self.book.typed(named, &address.0.0);
            }
        }
        if let Some(peer) = peer {
            let hinted = self.believed(heard, now);
            self.book.hinted(peer, &hinted, Source::Hint);
        }
        if let Some(peer) = peer.or_else(|| typed.iter().find_map(|address| address.0.peer())) {
            self.held.remove(&peer);
            // A person or a join wants it now.
            self.book.again(&peer);
            self.wish(peer, now);
            self.hurry(peer, now);
        }
        let mut waiter = Waiter {
            attempts: BTreeSet::new(),
            queued: BTreeSet::new(),
            errors: Vec::new(),
            reply,
        };
        if let Some(peer) = peer {
            if !self.links_of(peer).is_empty() {
                // Whoever asked may have gone away.
                let _ = waiter.reply.send(Ok(peer));
                return;
            }
            let all = self.book.addresses(&peer);
            if !all.is_empty() {
                let dialled = self.dial(peer, all, now);
                waiter.attempts.extend(dialled.attempt);
                let queued = dialled.queued.into_iter().map(|relay| (relay, peer));
                waiter.queued.extend(queued);
            }
        } else {
            for address in typed.into_iter().take(AT_ONCE) {
                self.dial_unknown(&mut waiter, address.0, now);
            }
        }
        if waiter.is_over() {
            let failed = ConnectError::Failed(waiter.errors.join("; "));
            let _ = waiter.reply.send(Err(if waiter.errors.is_empty() {
                ConnectError::NoAddress
            } else {
                failed
            }));
        } else {
            self.waiters.push(waiter);
        }
    }

    /// Dials an address; `/p2p/…` in it, if there, says who has to answer.
    fn dial_unknown(&mut self, waiter: &mut Waiter, address: Address, now: Instant) {
        if let Some(relay) = address.relay() {
            match address.peer() {
                None => waiter
                    .errors
                    .push(format!("{address}: nobody is named behind the relay")),
                Some(peer) => {
                    let dialled = self.dial(peer, vec![bare(&address.0)], now);
                    waiter.attempts.extend(dialled.attempt);
                    waiter
                        .queued
                        .extend(dialled.queued.into_iter().map(|relay| (relay, peer)));
                    if dialled.attempt.is_none() && waiter.queued.is_empty() {
                        waiter
                            .errors
                            .push(format!("{address}: the relay {relay} cannot be dialled"));
                    }
                }
            }
            return;
        }
        let named = address.peer().and_then(crate::p2p::peer_to_lib);
        let bare = bare(&address.0);
        let options = match named {
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(vec![bare])
                .build(),
            None => DialOpts::unknown_peer_id().address(bare).build(),
        };
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.typed.insert(id);
                waiter.attempts.insert(id);
            }
            Err(error) => waiter.errors.push(reason(&error)),
        }
    }

    /// A connection is there: whoever waited for it learns who answered.
    pub(super) fn settle_waiters(&mut self, id: ConnectionId, peer: PeerId) {
        if let Some(at) = self.waiters.iter().position(|w| w.attempts.contains(&id)) {
            let waiter = self.waiters.swap_remove(at);
            let _ = waiter.reply.send(Ok(peer));
        }
    }

    pub(super) fn handle_dial_failed(&mut self, id: ConnectionId, error: &DialError, now: Instant) {
        self.typed.remove(&id);
        if let Some(at) = self.waiters.iter().position(|w| w.attempts.contains(&id))
            && let Some(waiter) = self.waiters.get_mut(at)
        {
            waiter.attempts.remove(&id);
            waiter.errors.push(reason(error));
        }
        self.end_waiters();
        let mut failed = Vec::new();
        for (peer, dialling) in &mut self.dialling {
            if dialling.attempts.remove(&id) {
                // The preferred carrier has failed before its head start was over: the others need not wait.
                dialling.later.iter_mut().for_each(|(when, _)| *when = now);
                failed.extend((!dialling.is_under_way()).then_some(*peer));
            }
        }
        for peer in failed {
            self.relays.is_out_of_reach(peer);
            if self.members.contains_key(&peer) && !self.is_linked(peer) {
                self.kept.is_away(peer, now);
            }
            self.fail_queued(peer, &reason(error));
        }
    }

    /// Tells those who wait for nothing any more that nobody was reached.
    pub(super) fn end_waiters(&mut self) {
        for waiter in self.waiters.extract_if(.., |waiter| waiter.is_over()) {
            // Whoever asked may have gone away.
            let _ = waiter
                .reply
                .send(Err(ConnectError::Failed(waiter.errors.join("; "))));
        }
    }
}

/// What a failed dial says to a person.
fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(failures) => place::failed(failures),
        DialError::WrongPeerId { obtained, address } => {
            let at = place::tried(address);
            format!("{at}: another peer answers there: {obtained}")
        }
        DialError::LocalPeerId { address } => {
            format!("{}: that is this daemon itself", place::tried(address))
        }
        other => other.to_string(),
    }
}

/// A random number that spreads dials; nothing else rests on it.
fn jitter() -> u32 {
    getrandom::u32().unwrap_or_default()
}
