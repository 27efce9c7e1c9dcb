//! How the datagrams to a peer fare, as the rest of the daemon shows it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{
    Direct, DirectStatus, Entry, Here, Leg, NatFacts, PathChange, PathEnd, PathStatus, Tried,
};
use crate::link::Key;
use crate::model::id::PeerId;
use crate::peer::{Pair, Remote};

/// The time of day of a moment that is over.
fn clock(now: Instant, at: Instant) -> SystemTime {
    SystemTime::now()
        .checked_sub(now.saturating_duration_since(at))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Former legs whose relay is remembered, for what is told of the past.
const FORMER_LEGS: usize = 8;

impl Direct {
    /// What is known of the ways out of this machine.
    pub(super) fn here(&self, now: Instant) -> Here {
        Here {
            facts: self.own.facts(None),
            open: self.own.open(),
            candidates: self.own.candidates(&self.overlay),
            observed: self.own.seen().collect(),
            sprays: self.sprays.stats(now),
            knocks: self.knocks.stats(),
            unsure: self.own.unsure(),
        }
    }

    /// How the datagrams to each peer fare.
    pub(super) fn statuses(&self, now: Instant) -> HashMap<Key, DirectStatus> {
        let open = self.own.open();
        let of = |(id, entry): (&PeerId, &Entry)| {
            let here = self.own.facts(entry.local());
            let spraying = self.sprays.is_waiting(now, *id);
            let status = entry.status(*id, now, (here, open), spraying);
            status.collect::<Vec<_>>()
        };
        self.peers.iter().flat_map(of).collect()
    }
}

impl Entry {
    /// Takes the legs at relays; what was known of others stays, for the history.
    pub(super) fn name_legs(&mut self, legs: Vec<Leg>) {
        let former = std::mem::replace(&mut self.legs, legs);
        for leg in former {
            if self.legs.len() < FORMER_LEGS && !self.legs.contains(&leg) {
                self.legs.push(leg);
            }
        }
    }

    /// The relay that a leg is at.
    pub(super) fn relay(&self, remote: Remote) -> Option<PeerId> {
        remote.leg?;
        let leg = self.legs.iter().find(|leg| leg.remote == remote)?;
        Some(leg.relay)
    }

    fn end(&self, pair: Pair) -> PathEnd {
        PathEnd {
            to: pair.remote.address,
            relay: self.relay(pair.remote),
            from: pair.local,
        }
    }

    /// How the datagrams to the peer fare, in each subnet. `here`: what stands before this node, and where a port of it
    /// is open all the same; `spraying`: whether a search for a port is under way or waits.
    pub(super) fn status(
        &self,
        id: PeerId,
        now: Instant,
        (here, open): (NatFacts, Option<SocketAddr>),
        spraying: bool,
    ) -> impl Iterator<Item = (Key, DirectStatus)> {
        let tried = self.peer.tried().map(|tried| Tried {
            address: tried.remote.address,
            kind: tried.kind,
            relay: self.relay(tried.remote),
            answered: tried.answered,
            tries: tried.tries,
            last: tried.last.map(|at| clock(now, at)),
        });
        let tried: Arc<[Tried]> = tried.collect();
        let changes = self.peer.history().map(|change| PathChange {
            at: clock(now, change.at),
            from: change.from.map(|from| self.end(from)),
            to: change.to.map(|to| self.end(to)),
            cause: change.cause,
        });
        let changes: Arc<[PathChange]> = changes.collect();
        self.peer.memberships().map(move |(subnet, _)| {
            let (cipher, keys) = self.peer.keys(subnet);
            let path = self.peer.path(subnet).map(|path| PathStatus {
                to: path.pair.remote.address,
                relay: self.relay(path.pair.remote),
                since: clock(now, path.since),
                rtt: path.rtt,
                mtu: path.mtu,
                loss: path.loss,
            });
            let (hybrid, unmet) = self.peer.post_quantum(subnet);
            let status = DirectStatus {
                path,
                cipher,
                hybrid,
                unmet,
                keys,
                path_changes: self.peer.path_changes(),
                here,
                open,
                there: self.exchange.there,
                spraying,
                tried: Arc::clone(&tried),
                changes: Arc::clone(&changes),
            };
            (Key { subnet, peer: id }, status)
        })
    }
}
