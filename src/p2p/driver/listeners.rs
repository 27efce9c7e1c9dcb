//! Listen addresses: which there are, and telling of them.

use std::collections::BTreeSet;

use libp2p::swarm::SwarmEvent;
use tokio::time::Instant;

use super::Driver;
use crate::p2p::address::{is_circuit, is_link_local_v6, is_loopback};
use crate::p2p::behaviour::BehaviourEvent;
use crate::p2p::{Address, Event};

impl Driver {
    pub(super) fn handle_listener(&mut self, event: SwarmEvent<BehaviourEvent>, now: Instant) {
        match event {
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                tracing::debug!(%address, "listening");
                let is_own = !is_circuit(&address);
                // What the relay of this node says to its clients, which have their own word for it.
                self.swarm.add_external_address(address.clone());
                self.listening.insert((listener_id, address));
                self.emit_listening();
                // A new address is a new network: peers that could not be reached may be now.
                self.book.all_again();
                self.noted.all_again(now);
                let peers: Vec<_> = self.dialling.keys().copied().collect();
                peers.into_iter().for_each(|peer| self.hurry(peer, now));
                if is_own {
                    self.handle_roamed(now);
                }
            }
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                self.swarm.remove_external_address(&address);
                let is_own = !is_circuit(&address);
                self.listening.remove(&(listener_id, address));
                self.emit_listening();
                if is_own {
                    self.handle_roamed(now);
                }
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => {
                if self.handle_place_lost(listener_id, reason.as_ref().err(), now) {
                    return;
                }
                // A place that this node gave back was told of when it did.
                if !self.listening.iter().any(|(id, _)| *id == listener_id) {
                    return;
                }
                tracing::warn!(?reason, "a listener has closed");
                self.listening.retain(|(id, _)| *id != listener_id);
                self.emit_listening();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::debug!(%error, "listener"),
            _ => {}
        }
    }

    pub(super) fn emit_listening(&mut self) {
        let all: BTreeSet<_> = self
            .listening
            .iter()
            .map(|(_, a)| a)
            .filter(|a| !is_link_local_v6(a))
            .collect();
        let local = self.listening.iter().map(|(_, a)| a);
        let local = local.filter(|a| is_link_local_v6(a)).cloned();
        let local: BTreeSet<Address> = local.map(Address).collect();
        let routable = all.iter().any(|a| !is_loopback(a));
        let told = all.into_iter().filter(|a| !routable || !is_loopback(a));
        let through = self.through_relays();
        let addresses = told.cloned().chain(through).map(Address).collect();
        self.emit(Event::Listening { addresses });
        let addresses = local.into_iter().collect();
        self.emit(Event::OnLink { addresses });
    }
}
