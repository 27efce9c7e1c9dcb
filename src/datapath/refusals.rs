//! What other members' machines refused: heard from the errors they answer with, so that a person here can be told.
//!
//! A machine is closed to its subnets by default; to who asks, a closed port looks like any other trouble. What passes
//! here says which it is. Nothing is decided by it: a member can only lie about its own machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::link::Key;
use crate::packet::icmp::Prohibited;
use crate::packet::parse::{TCP, UDP};

/// Ports remembered for each peer: the oldest go.
const PER_PEER: usize = 16;
/// Peers remembered: beyond, nothing new is.
const PEERS: usize = 1024;
/// How long a refusal is news unless it is repeated.
const KEPT: Duration = Duration::from_secs(600);

/// One port of another member's machine that refused us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The address asked.
    pub address: IpAddr,
    /// Number of the protocol: 6 is TCP, 17 UDP.
    pub proto: u8,
    /// The port; none where the protocol has none.
    pub port: Option<u16>,
    /// When it was heard last.
    pub heard: Instant,
}

/// What was refused lately, by peer and subnet.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Whether anything is held: read for every packet, so that the lock is not.
    any: AtomicBool,
    held: Mutex<HashMap<Key, Vec<Refusal>>>,
}

impl Refusals {
    fn held(&self) -> MutexGuard<'_, HashMap<Key, Vec<Refusal>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an answer would be news.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// A member's machine says that it is closed.
    pub(super) fn refused(&self, key: Key, what: &Prohibited, now: Instant) {
        let mut held = self.held();
        forget_old(&mut held, now);
        if held.len() >= PEERS && !held.contains_key(&key) {
            return;
        }
        let of_peer = held.entry(key).or_default();
        of_peer.retain(|r| (r.address, r.proto, r.port) != (what.asked, what.proto, what.port));
        if of_peer.len() >= PER_PEER {
            of_peer.remove(0);
        }
        of_peer.push(Refusal { address: what.asked, proto: what.proto, port: what.port, heard: now });
        self.any.store(true, Ordering::Relaxed);
    }

    /// A packet came from a port of a member's machine: it is open now.
    pub(super) fn answered(&self, key: Key, address: IpAddr, proto: u8, port: u16) {
        if proto != TCP && proto != UDP {
            return;
        }
        let mut held = self.held();
        if let Some(of_peer) = held.get_mut(&key) {
            of_peer.retain(|r| (r.address, r.proto, r.port) != (address, proto, Some(port)));
            if of_peer.is_empty() {
                held.remove(&key);
            }
        }
        self.any.store(!held.is_empty(), Ordering::Relaxed);
    }

    /// What a peer refused lately, the last first.
    pub(super) fn of(&self, key: Key, now: Instant) -> Vec<Refusal> {
        let mut held = self.held();
        forget_old(&mut held, now);
        self.any.store(!held.is_empty(), Ordering::Relaxed);
        held.get(&key).into_iter().flatten().rev().copied().collect()
    }
}

fn forget_old(held: &mut HashMap<Key, Vec<Refusal>>, now: Instant) {
    held.retain(|_, of_peer| {
        of_peer.retain(|r| now.saturating_duration_since(r.heard) < KEPT);
        !of_peer.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{PeerId, SubnetId};

    fn key(n: u16) -> Key {
        let [a, b] = n.to_be_bytes();
        let mut peer = [0; 32];
        (peer[0], peer[1]) = (a, b);
        Key { subnet: SubnetId([1; 16]), peer: PeerId(peer) }
    }

    fn what(port: u16) -> Prohibited {
        Prohibited { asked: "10.7.2.1".parse().unwrap(), proto: TCP, port: Some(port) }
    }

    #[test]
    fn a_refusal_is_news_until_it_is_old_or_the_port_answers() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert!(!refusals.any());
        refusals.refused(key(1), &what(22), start);
        refusals.refused(key(1), &what(80), start);
        refusals.refused(key(1), &what(22), start + Duration::from_secs(1));
        let ports = |now| refusals.of(key(1), now).into_iter().filter_map(|r| r.port).collect::<Vec<_>>();
        assert_eq!(ports(start), [22, 80]);
        refusals.answered(key(1), "10.7.2.1".parse().unwrap(), UDP, 22);
        refusals.answered(key(2), "10.7.2.1".parse().unwrap(), TCP, 22);
        assert_eq!(ports(start), [22, 80]);
        refusals.answered(key(1), "10.7.2.1".parse().unwrap(), TCP, 22);
        assert_eq!(ports(start), [80]);
        assert!(refusals.any());
        assert_eq!(ports(start + KEPT), [] as [u16; 0]);
        assert!(!refusals.any());
    }

    #[test]
    fn one_peer_takes_no_more_than_its_places() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.refused(key(0), &what(22), now);
        for port in 1..1000 {
            refusals.refused(key(1), &what(port), now);
        }
        assert_eq!(refusals.of(key(1), now).len(), PER_PEER);
        assert_eq!(refusals.of(key(1), now)[0].port, Some(999));
        for n in 2..3000 {
            refusals.refused(key(n), &what(22), now);
        }
        assert_eq!(refusals.held().len(), PEERS);
        assert_eq!(refusals.of(key(0), now).len(), 1);
    }
}
