//! What other members' machines refused: heard from the errors they answer with, so that a person here can be told.
//!
//! A machine is closed to its subnets by default; to who asks, a closed port looks like any other trouble. What passes
//! here says which it is. Nothing is decided by it: a member can only lie about its own machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::link::Key;
use crate::packet::icmp::Prohibited;

/// The most ports that are remembered for each peer; the oldest make room.
const PER_PEER: usize = 16;
/// The most peers that are remembered; of further ones nothing is noted.
const PEERS: usize = 1024;
/// How long a refusal is news unless it is repeated.
const KEPT: Duration = Duration::from_secs(60);
/// Least time between two changes for one port of a peer.
const CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// One port of another member's machine that refused us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The address that was asked.
    pub address: IpAddr,
    /// Number of the protocol: 6 is TCP, 17 UDP.
    pub proto: u8,
    /// The port; none where the protocol has none.
    pub port: Option<u16>,
    /// When it was heard last.
    pub heard: Instant,
}

/// The refusals that are remembered, by peer and subnet.
type Held = HashMap<Key, Vec<Refusal>>;

/// What was refused lately. It is read for packets, without a lock, and replaced whole where something changes: that is
/// once for a port that opens or shuts.
#[derive(Debug, Default)]
pub(super) struct Refusals(ArcSwap<Held>);

impl Refusals {
    /// Whether any refusal is remembered, so that an answer would be news.
    pub(super) fn any(&self) -> bool {
        !self.0.load().is_empty()
    }

    /// A member's machine says that it is closed. What it repeats within a second, and more ports than are remembered
    /// within one, changes nothing: a flood of errors costs a look each.
    pub(super) fn refused(&self, key: Key, what: &Prohibited, now: Instant) {
        let fresh = |r: &Refusal| now.saturating_duration_since(r.heard) < CHANGE_INTERVAL;
        let told = |r: &Refusal| {
            fresh(r) && (r.address, r.proto, r.port) == (what.asked, what.proto, what.port)
        };
        let idle = |of_peer: &Vec<Refusal>| {
            of_peer.iter().any(told)
                || (of_peer.len() >= PER_PEER && of_peer.first().is_some_and(fresh))
        };
        if self.0.load().get(&key).is_some_and(idle) {
            return;
        }
        self.0.rcu(|held| {
            let mut held = Held::clone(held);
            forget_old(&mut held, now);
            if held.len() >= PEERS && !held.contains_key(&key) {
                return held;
            }
            let of_peer = held.entry(key).or_default();
            of_peer.retain(|r| (r.address, r.proto, r.port) != (what.asked, what.proto, what.port));
            if of_peer.len() >= PER_PEER {
                of_peer.remove(0);
            }
            of_peer.push(Refusal {
                address: what.asked,
                proto: what.proto,
                port: what.port,
                heard: now,
            });
            held
        });
    }

    /// A packet came from a port of a member's machine: it is open now.
    pub(super) fn answered(&self, key: Key, address: IpAddr, proto: u8, port: u16) {
        let same = |r: &Refusal| (r.address, r.proto, r.port) == (address, proto, Some(port));
        if !self
            .0
            .load()
            .get(&key)
            .is_some_and(|of_peer| of_peer.iter().any(same))
        {
            return;
        }
        self.0.rcu(|held| {
            let mut held = Held::clone(held);
            if let Some(of_peer) = held.get_mut(&key) {
                of_peer.retain(|r| !same(r));
            }
            held.retain(|_, of_peer| !of_peer.is_empty());
            held
        });
    }

    /// What a peer refused lately, the last first.
    pub(super) fn of(&self, key: Key, now: Instant) -> Vec<Refusal> {
        let held = self.0.load();
        let recent = |r: &&Refusal| now.saturating_duration_since(r.heard) < KEPT;
        held.get(&key)
            .into_iter()
            .flatten()
            .rev()
            .filter(recent)
            .copied()
            .collect()
    }
}

fn forget_old(held: &mut Held, now: Instant) {
    held.retain(|_, of_peer| {
        of_peer.retain(|r| now.saturating_duration_since(r.heard) < KEPT);
        !of_peer.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{PeerId, SubnetId};
    use crate::packet::parse::{TCP, UDP};

    fn key(n: u16) -> Key {
        let [a, b] = n.to_be_bytes();
        let mut peer = [0; 32];
        (peer[0], peer[1]) = (a, b);
        Key {
            subnet: SubnetId([1; 16]),
            peer: PeerId(peer),
        }
    }

    fn what(port: u16) -> Prohibited {
        Prohibited {
            asked: "10.7.2.1".parse().unwrap(),
            proto: TCP,
            port: Some(port),
        }
    }

    #[test]
    fn a_refusal_is_news_until_it_is_old_or_the_port_answers() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert!(!refusals.any());
        refusals.refused(key(1), &what(22), start);
        refusals.refused(key(1), &what(80), start);
        refusals.refused(key(1), &what(22), start + Duration::from_secs(1));
        let ports = |now| {
            refusals
                .of(key(1), now)
                .into_iter()
                .filter_map(|r| r.port)
                .collect::<Vec<_>>()
        };
        assert_eq!(ports(start), [22, 80]);
        refusals.answered(key(1), "10.7.2.1".parse().unwrap(), UDP, 22);
        refusals.answered(key(2), "10.7.2.1".parse().unwrap(), TCP, 22);
        assert_eq!(ports(start), [22, 80]);
        refusals.answered(key(1), "10.7.2.1".parse().unwrap(), TCP, 22);
        assert_eq!(ports(start), [80]);
        assert!(refusals.any());
        assert_eq!(ports(start + Duration::from_secs(59)), [80]);
        assert_eq!(
            ports(start + Duration::from_secs(60)),
            [] as [u16; 0],
            "a minute without a new one"
        );
        refusals.answered(key(1), "10.7.2.1".parse().unwrap(), TCP, 80);
        assert!(!refusals.any());
    }

    #[test]
    fn one_peer_takes_no_more_than_its_places() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.refused(key(0), &what(22), now);
        for port in 1..100 {
            refusals.refused(
                key(1),
                &what(port),
                now + Duration::from_millis(500) * u32::from(port),
            );
        }
        // Within a second a flood of others changes nothing.
        let now = now + Duration::from_secs(50);
        for port in 2000..3000 {
            refusals.refused(key(2), &what(port), now);
        }
        assert_eq!(
            refusals.of(key(2), now)[0].port,
            Some(1999 + PER_PEER as u16)
        );
        assert_eq!(refusals.of(key(1), now).len(), PER_PEER);
        assert_eq!(refusals.of(key(1), now)[0].port, Some(99));
        for n in 3..3000 {
            refusals.refused(key(n), &what(22), now);
        }
        assert_eq!(refusals.0.load().len(), PEERS);
        assert_eq!(refusals.of(key(0), now).len(), 1);
    }
}
