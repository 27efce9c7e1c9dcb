//! Who is there, as far as events told.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::{Mutex, MutexGuard};

use crate::model::id::PeerId;
use crate::p2p::{Class, Heard, Protocol};

/// Peers seen on the local networks that are remembered: anybody can claim anything there, the newest are believed.
const LAN_PEERS: usize = 256;
/// How many members are remembered with the time they went.
const GONE: usize = 4096;

/// The peers that are connected, seen or gone; all tasks share it.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    connected: BTreeMap<PeerId, BTreeMap<u64, Class>>,
    /// Peers seen on the local networks, the oldest first.
    lan_peers: VecDeque<(PeerId, Vec<Heard>)>,
    /// Since when (seconds since 1970) a member is gone.
    gone: BTreeMap<PeerId, u64>,
    /// Requests that were refused, by the reason, which is a text of this program.
    refused: BTreeMap<&'static str, u64>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    pub(super) fn arrived(&self, peer: PeerId, connection: u64, class: Class) {
        let mut inner = self.lock();
        inner
            .connected
            .entry(peer)
            .or_default()
            .insert(connection, class);
        if class == Class::Member {
            inner.gone.remove(&peer);
        }
    }

    pub(super) fn left(&self, peer: PeerId, connection: u64, remaining: usize) {
        let mut inner = self.lock();
        let held = inner.connected.get_mut(&peer);
        let (class, others) = held.map_or((None, false), |held| {
            (
                held.remove(&connection),
                held.values().any(|class| *class == Class::Member),
            )
        });
        if remaining == 0 {
            inner.connected.remove(&peer);
        }
        // Of strangers nobody asks, and there may be any number of them. Who removed this node, or was removed, may stay
        // connected as one for a while: as a member it is gone.
        if class == Some(Class::Member) && (remaining == 0 || !others) {
            inner.gone.insert(peer, crate::node::unix_now());
            if inner.gone.len() > GONE
                && let Some(oldest) = inner
                    .gone
                    .iter()
                    .min_by_key(|(_, at)| **at)
                    .map(|(peer, _)| *peer)
            {
                inner.gone.remove(&oldest);
            }
        }
    }

    pub(super) fn seen(&self, peer: PeerId, addresses: &[Heard]) {
        let mut inner = self.lock();
        inner.lan_peers.retain(|(known, _)| *known != peer);
        inner.lan_peers.push_back((peer, addresses.to_vec()));
        if inner.lan_peers.len() > LAN_PEERS {
            inner.lan_peers.pop_front();
        }
    }

    /// Whether a peer was connected before, as far as that is remembered.
    pub(crate) fn has_met(&self, peer: PeerId) -> bool {
        let inner = self.lock();
        inner.gone.contains_key(&peer) || inner.connected.contains_key(&peer)
    }

    /// The peers that are connected, members and strangers. Relays that are nothing else are left out: they are asked nothing
    /// that names a subnet.
    pub(crate) fn connected(&self) -> Vec<PeerId> {
        let inner = self.lock();
        let only_relay = |c: &BTreeMap<u64, Class>| c.values().all(|c| *c == Class::Meeting);
        let connected = inner.connected.iter().filter(|(_, c)| !only_relay(c));
        connected.map(|(p, _)| *p).collect()
    }

    /// The peers that are connected as members, in the order of their keys.
    pub(crate) fn members(&self) -> Vec<PeerId> {
        let inner = self.lock();
        let member = |c: &&BTreeMap<u64, Class>| c.values().any(|class| *class == Class::Member);
        inner
            .connected
            .iter()
            .filter(|(_, c)| member(c))
            .map(|(p, _)| *p)
            .collect()
    }

    /// Whether a peer is connected as a member.
    pub(crate) fn is_member(&self, peer: PeerId) -> bool {
        self.lock()
            .connected
            .get(&peer)
            .is_some_and(|held| held.values().any(|class| *class == Class::Member))
    }

    /// Peers seen on the local networks and where.
    pub(crate) fn lan_peers(&self) -> Vec<(PeerId, Vec<Heard>)> {
        self.lock().lan_peers.iter().cloned().collect()
    }

    /// Since when (seconds since 1970) a peer is gone.
    pub(crate) fn gone_since(&self, peer: PeerId) -> Option<u64> {
        self.lock().gone.get(&peer).copied()
    }

    /// Counts a request that was malformed or over its rate.
    pub(crate) fn refuse(&self, peer: PeerId, protocol: Protocol, why: &'static str) {
        let mut inner = self.lock();
        let count = inner.refused.entry(why).or_default();
        *count = count.saturating_add(1);
        // Every power of two: a flood does not fill the log.
        if count.is_power_of_two() {
            tracing::warn!(%peer, protocol = protocol.as_str(), total = *count, "{why}");
        }
    }

    /// Requests refused since the start because they were malformed or over their rate, by the reason.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.lock().refused.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let (table, peer) = (Table::default(), PeerId([1; 32]));
        for _ in 0..3 {
            table.refuse(peer, Protocol::Control, "too many");
        }
        table.refuse(peer, Protocol::Relay, "malformed");
        assert_eq!(table.refused(), [("malformed", 1), ("too many", 3)].into());
    }

    #[test]
    fn strangers_and_former_members_leave_a_bounded_trace() {
        let table = Table::default();
        let peer = |n: u32| {
            let mut bytes = [0; 32];
            bytes
                .first_chunk_mut::<4>()
                .unwrap()
                .copy_from_slice(&n.to_be_bytes());
            PeerId(bytes)
        };
        for n in 0..10_000 {
            let class = if n % 2 == 0 {
                Class::Stranger
            } else {
                Class::Member
            };
            table.arrived(peer(n), u64::from(n), class);
            table.left(peer(n), u64::from(n), 0);
        }
        assert!(table.connected().is_empty());
        assert!(!table.has_met(peer(0)), "a stranger is forgotten");
        assert!(table.has_met(peer(9_999)));
        assert!(table.lock().gone.len() <= GONE);
    }

    #[test]
    fn a_member_that_stays_connected_as_a_stranger_is_gone_since_it_was_none_any_more() {
        let (table, peer) = (Table::default(), PeerId([1; 32]));
        table.arrived(peer, 1, Class::Member);
        table.arrived(peer, 2, Class::Member);
        table.left(peer, 1, 1);
        assert_eq!(
            table.gone_since(peer),
            None,
            "another connection of a member is there"
        );
        table.arrived(peer, 3, Class::Stranger);
        table.left(peer, 2, 1);
        let gone = table.gone_since(peer);
        assert!(gone.is_some());
        table.left(peer, 3, 0);
        assert_eq!(table.gone_since(peer), gone);
        table.arrived(peer, 4, Class::Stranger);
        assert_eq!(
            table.gone_since(peer),
            gone,
            "a stranger's connection brings no member back"
        );
        table.arrived(peer, 5, Class::Member);
        assert_eq!(table.gone_since(peer), None);
    }
}
