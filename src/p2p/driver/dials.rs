//! Dialling: members are kept connected, others are dialled when somebody asks.

use std::collections::BTreeSet;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use crate::model::id::PeerId;
use crate::p2p::redial::Redial;
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

/// A peer that is being dialled again and again.
pub(super) struct Dialling {
    pub(super) redial: Redial,
    /// The other carriers' addresses, and when to try them.
    second: Option<(Instant, Vec<Multiaddr>)>,
    /// The dials under way.
    attempts: BTreeSet<ConnectionId>,
    /// When what was heard was last tried again because somebody here wants the peer.
    again: Option<Instant>,
}

impl Dialling {
    fn new(now: Instant, delay: Duration) -> Self {
        Dialling {
            redial: Redial::new(now, delay),
            second: None,
            attempts: BTreeSet::new(),
            again: Some(now),
        }
    }

    /// Whether a round is due, the first or the second.
    fn is_due(&self, now: Instant) -> bool {
        self.redial.is_due(now) || self.second.as_ref().is_some_and(|(when, _)| now >= *when)
    }
}

/// Somebody who waits for a dial, and the attempts it consists of.
pub(super) struct Waiter {
    attempts: BTreeSet<ConnectionId>,
    errors: Vec<String>,
    reply: oneshot::Sender<Result<PeerId, ConnectError>>,
}

impl Driver {
    /// Whether the peer is to be dialled until it answers.
    fn is_needed(&self, peer: PeerId) -> bool {
        let member =
            self.members.contains_key(&peer) && !self.is_linked(peer) && !self.held.contains(&peer);
        peer != self.me && (member || self.asks.wait_for(peer))
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
            if !self.book.is_due(&peer, now)
                && dialling.again.is_none_or(|at| now >= at + WANTED_AGAIN)
            {
                dialling.again = Some(now);
                self.book.again(&peer);
            }
            self.handle_dials(now);
        }
    }

    /// Starts the dials that are due, those first that are so for longest, as far as the budget goes.
    pub(super) fn handle_dials(&mut self, now: Instant) {
        let done: Vec<_> = self
            .dialling
            .keys()
            .filter(|peer| !self.is_needed(**peer))
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
            let Some(dialling) = self.dialling.get_mut(&peer) else {
                continue;
            };
            let mut round = Vec::new();
            if let Some((_, late)) = dialling.second.take_if(|(when, _)| now >= *when) {
                round = late;
            }
            // Without an address to try there is nothing to count: the next one that is learned is dialled at once.
            if dialling.redial.is_due(now)
                && self.book.is_due(&peer, now)
                && self.budget.take(now, &dialling.redial)
            {
                dialling.redial.dialled(now, jitter());
                let (mut first, second) = self.book.due(&peer, self.config.prefer, now);
                if first.is_empty() {
                    round.extend(second);
                } else {
                    round.append(&mut first);
                    dialling.second =
                        Some((now + HEAD_START, second)).filter(|(_, late)| !late.is_empty());
                }
            }
            if !round.is_empty() {
                self.dial(peer, round, now);
            }
        }
    }

    /// Dials a peer at addresses of the book. What was heard is judged again: addresses of ours come and go.
    fn dial(
        &mut self,
        peer: PeerId,
        mut addresses: Vec<Multiaddr>,
        now: Instant,
    ) -> Option<ConnectionId> {
        let lib = crate::p2p::peer_to_lib(peer)?;
        self.book.dialled(&peer, &addresses, now);
        self.own.refresh(now);
        let overlay = self.overlay.load_full();
        addresses.retain(|address| {
            let heard = || {
                Heard::of(address.clone(), true)
                    .is_some_and(|heard| heard.may_dial(&overlay, &self.own))
            };
            self.book.is_typed(&peer, address) || heard()
        });
        if addresses.is_empty() {
            return None;
        }
        // Always: a connection that is dying, or one-sided, must not keep a new one from being made.
        let options = DialOpts::peer_id(lib)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .build();
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
            self.book.hinted(peer, &hinted);
        }
        if let Some(peer) = peer.or_else(|| typed.iter().find_map(|address| address.0.peer())) {
            self.held.remove(&peer);
            // A person or a join wants it now.
            self.book.again(&peer);
            self.hurry(peer, now);
        }
        let mut waiter = Waiter {
            attempts: BTreeSet::new(),
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
                waiter.attempts.extend(self.dial(peer, all, now));
            }
        } else {
            for address in typed.into_iter().take(AT_ONCE) {
                self.dial_unknown(&mut waiter, address.0);
            }
        }
        if waiter.attempts.is_empty() {
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
    fn dial_unknown(&mut self, waiter: &mut Waiter, address: Address) {
        let named = address.peer().and_then(crate::p2p::peer_to_lib);
        let bare = crate::p2p::address::bare(&address.0);
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
            Err(error) => waiter.errors.push(format!("{address}: {error}")),
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
            if waiter.attempts.is_empty() {
                let waiter = self.waiters.swap_remove(at);
                let _ = waiter
                    .reply
                    .send(Err(ConnectError::Failed(waiter.errors.join("; "))));
            }
        }
        for dialling in self.dialling.values_mut() {
            // The preferred carrier has failed before its head start was over: the others need not wait.
            if dialling.attempts.remove(&id)
                && let Some((when, _)) = &mut dialling.second
            {
                *when = now;
            }
        }
    }
}

/// What a failed dial says to a person.
fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(failures) => {
            let each = failures
                .iter()
                .map(|(address, error)| format!("{address}: {}", innermost(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::WrongPeerId { obtained, address } => {
            format!("{address}: another peer answers there: {obtained}")
        }
        DialError::LocalPeerId { address } => format!("{address}: that is this daemon itself"),
        other => other.to_string(),
    }
}

/// The last cause: transports wrap the kernel's error several times.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A random number that spreads dials; nothing else rests on it.
fn jitter() -> u32 {
    getrandom::u32().unwrap_or_default()
}
