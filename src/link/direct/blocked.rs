//! Whether datagrams reach a peer at all: only where they do not, circuits through relays may carry its packets.

use std::time::{Duration, Instant};

use super::{Ask, Direct, Entry};
use crate::model::id::PeerId;
use crate::wire::paths::{NatFacts, Udp};

/// How long a peer that is connected may have no path before datagrams count as blocked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The same where datagrams of both ends reach others: a leg at a relay will be there soon.
const LONG_PATIENCE: Duration = Duration::from_secs(6);

/// The time after which what could not be said is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Since when a peer has no path, and what was said of it.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    since: Option<Instant>,
    due: Option<Instant>,
    said: bool,
}

impl Blocked {
    /// When it is to be looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Direct {
    /// Tells the peers' task when datagrams stop reaching the peer, and when they reach it again.
    pub(super) fn follow_blocked(&mut self, now: Instant, id: PeerId) {
        let here = self.own.facts(None).udp;
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let is_up = entry.peer.remote().is_some();
        let is_over = is_up || !entry.exchange.connected;
        let there = entry.exchange.there.map(|facts| facts.udp);
        let patience = match (here, there) {
            // It says itself that it takes none.
            (_, Some(Udp::Off)) => Duration::ZERO,
            (Udp::Works, Some(Udp::Works)) => LONG_PATIENCE,
            _ => PATIENCE,
        };
        let state = &mut entry.blocked;
        let blocked = if is_over {
            state.since = None;
            false
        } else {
            *state.since.get_or_insert(now) + patience <= now
        };
        state.due = state
            .since
            .filter(|_| !blocked)
            .map(|since| since + patience);
        if std::mem::replace(&mut state.said, blocked) != blocked {
            let ask = Ask::UdpBlocked { peer: id, blocked };
            if self.asks.try_send(ask).is_err() {
                // No room for it: it is said a little later.
                (state.said, state.due) = (!blocked, Some(now + AGAIN));
                return;
            }
            let silent = self.silent();
            if self.own.set_silent(now, silent) {
                self.tell_all();
            }
        }
    }

    /// How many peers streams connect to and datagrams do not reach, if they reach nobody, straight or by a relay. Who takes
    /// none says nothing.
    fn silent(&self) -> usize {
        let mut peers = self.peers.values();
        if peers.any(|entry| entry.peer.remote().is_some()) {
            return 0;
        }
        let takes = |there: Option<NatFacts>| there.is_none_or(|there| there.udp != Udp::Off);
        let silent = |entry: &&Entry| entry.blocked.said && takes(entry.exchange.there);
        self.peers.values().filter(silent).count()
    }
}
