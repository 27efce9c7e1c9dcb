//! What people are shown: peers, their connections and addresses, and what was refused.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::Driver;
use crate::model::id::PeerId;
use crate::p2p::{Address, Carrier, CircuitCounts, Class, ConnectionStatus, PeerStatus};

impl Driver {
    pub(super) fn status(&self, now: Instant) -> Vec<PeerStatus> {
        let connected = self.links.values().filter(|l| !l.closing).map(|l| l.peer);
        let peers: BTreeSet<_> = connected
            .chain(self.members.keys().copied())
            .filter(|p| *p != self.me)
            .collect();
        peers
            .into_iter()
            .map(|peer| self.status_of(peer, now))
            .collect()
    }

    pub(super) fn status_of(&self, peer: PeerId, now: Instant) -> PeerStatus {
        let links = || {
            self.links
                .values()
                .filter(move |link| link.peer == peer && !link.closing)
        };
        let mut connections: Vec<_> = links()
            .map(|link| ConnectionStatus {
                connection: link.number,
                class: link.class,
                transport: link.carrier.as_str(),
                remote: link.remote.to_string(),
                relay: link.relay,
                below: link.below.map(Carrier::as_str),
                outbound: link.outbound,
                age: now.duration_since(link.since),
                rtt: link.rtt,
            })
            .collect();
        connections.sort_by_key(|c| c.connection);
        PeerStatus {
            peer,
            class: if self.members.contains_key(&peer) {
                Class::Member
            } else {
                Class::Stranger
            },
            connections,
            addresses: self
                .book
                .addresses(&peer)
                .into_iter()
                .map(Address)
                .collect(),
            known: self.book.known(&peer),
            reached: self.book.trusted(&peer).into_iter().map(Address).collect(),
            away: self
                .kept
                .away_since(peer)
                .map(|since| now.saturating_duration_since(since)),
            failures: self.dialling.get(&peer).map_or(0, |d| d.redial.failures),
            // The newest connection is that of the program which runs now.
            agent: links()
                .filter(|link| link.agent.is_some())
                .max_by_key(|link| link.number)
                .and_then(|l| l.agent.clone()),
        }
    }

    pub(super) fn circuit_counts(&self) -> CircuitCounts {
        let client = &self.swarm.behaviour().meeting.inner.circuits;
        CircuitCounts {
            client: client.refusals().clone(),
            silent: self.handshakes.refused(),
            beyond_share: self.shares.refused(),
            home_silent: self.noted.silent,
            home_unusable: self.noted.unusable,
        }
    }
}
