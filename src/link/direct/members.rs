//! Which peers the control task keeps: the members that the View names, each in every subnet in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::{Blocked, Direct, Entry, Exchange, Helpers, Want, entropy};
use crate::link::Key;
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::{SubnetView, View};
use crate::peer::Peer;

impl Direct {
    /// The subnets here that the peer is a member of.
    fn common(&self, peer: PeerId) -> impl Iterator<Item = Key> {
        let of = move |(id, subnet): (&_, &Arc<SubnetView>)| {
            subnet
                .members
                .contains(&peer)
                .then_some(Key { subnet: *id, peer })
        };
        self.view.subnets.iter().filter_map(of)
    }

    /// Keeps the peer in every subnet that it is a member of.
    pub(super) fn enter(&mut self, peer: PeerId) {
        let common: Vec<Key> = self.common(peer).collect();
        for key in common {
            self.entry(key);
        }
    }

    /// The public key of a member.
    fn peer_key(view: &View, key: Key) -> Option<[u8; 32]> {
        let subnet = view
            .subnets
            .get(&key.subnet)
            .filter(|subnet| subnet.members.contains(&key.peer))?;
        subnet.data_keys.get(&key.peer).copied()
    }

    /// What is kept of a member, made on first use. None where it is no member, or its grant has no key.
    pub(super) fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        let peer_key = Self::peer_key(&self.view, key)?;
        let entry = self.peers.entry(key.peer).or_insert_with(|| {
            let (config, indices, overlay) = (
                self.config.clone(),
                self.indices.clone(),
                Arc::clone(&self.overlay),
            );
            let mut peer = Peer::new(key.peer, config, indices, overlay, &mut entropy);
            peer.roamed(Instant::now(), &self.own.locals(), &mut entropy);
            Entry {
                peer,
                links: HashMap::new(),
                came: 0,
                pings: Vec::new(),
                legs: Vec::new(),
                exchange: Exchange::default(),
                held: Vec::new(),
                blocked: Blocked::default(),
                want: Want::default(),
                helpers: Helpers::default(),
                due: None,
            }
        });
        entry
            .links
            .entry(key.subnet)
            .or_insert_with(|| self.links.link(key));
        entry.peer.join(Instant::now(), key.subnet, peer_key);
        Some(entry)
    }

    /// Follows the View: sessions of those who are members no more, or have another key, end.
    pub(super) fn retain(&mut self, now: Instant, view: Arc<View>) {
        self.view = Arc::clone(&view);
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in &peers {
            let is_kept = |subnet, peer_key| {
                Self::peer_key(&view, Key { subnet, peer: *id }) == Some(peer_key)
            };
            self.keep_members(*id, is_kept);
        }
        self.avoid(now);
    }

    /// Keeps paths out of the overlay, and out of the networks that the configuration denies.
    pub(super) fn avoid(&mut self, now: Instant) {
        let prefixes = |subnet: &Arc<SubnetView>| {
            [subnet.cidr4.map(IpNet::V4), subnet.cidr6.map(IpNet::V6)]
                .into_iter()
                .flatten()
        };
        let denied = self.own.denied().iter().copied();
        let overlay: Arc<[IpNet]> = self
            .view
            .subnets
            .values()
            .flat_map(prefixes)
            .chain(denied)
            .collect();
        if overlay != self.overlay {
            let before = std::mem::replace(&mut self.overlay, overlay);
            // Addresses of peers that may be tried again were not kept: the peers are asked for them.
            let is_less = before.iter().any(|net| !self.overlay.contains(net));
            let peers: Vec<PeerId> = self.peers.keys().copied().collect();
            let mut is_fewer = false;
            for id in peers {
                is_fewer |= self.drop_unusable_legs(now, id);
                if let Some(entry) = self.peers.get_mut(&id) {
                    entry
                        .peer
                        .avoid(now, Arc::clone(&self.overlay), &mut entropy);
                    if is_less {
                        entry.exchange.want(true);
                    }
                }
                self.carry_out(id);
            }
            if is_fewer {
                self.publish_legs();
            }
            self.tell_all();
        }
    }

    /// Ends the sessions with a peer that are not to be kept: their keys open and seal nothing more. Without any it is
    /// forgotten.
    pub(super) fn keep_members(
        &mut self,
        id: PeerId,
        is_kept: impl Fn(SubnetId, [u8; 32]) -> bool,
    ) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let all: Vec<(SubnetId, [u8; 32])> = entry.peer.memberships().collect();
        let gone: Vec<SubnetId> = all
            .iter()
            .filter(|(subnet, key)| !is_kept(*subnet, *key))
            .map(|m| m.0)
            .collect();
        if gone.is_empty() {
            return;
        }
        let now = Instant::now();
        gone.iter()
            .for_each(|subnet| entry.peer.leave(now, *subnet));
        self.carry_out(id);
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        entry.links.retain(|subnet, _| !gone.contains(subnet));
        if gone.len() == all.len()
            && let Some(due) = entry.due
        {
            self.timers.remove(&(due, id));
        }
        if gone.len() == all.len() {
            entry.end_helpers(now, &self.port);
            self.sprays.forget(now, id);
            self.knocks.forget(id);
            self.peers.remove(&id);
            self.publish_legs();
        }
    }
}
