//! Connections that may have ended without a word.
//!
//! Three things tell of them, all long before their own silence does. Where datagrams pass straight to a member no more, its
//! QUIC connections are doubted at once, because they use the same ports, and those to others are asked. Where this machine has
//! other addresses or routes than before, or a member's datagrams come from another address, a connection may go on from there
//! or may be dead: it is asked by a ping, and doubted where that is not answered in [`CONFIRM`]. TCP goes on from no other
//! address; QUIC does only where the end that moved had dialled. And where a peer makes another connection, the ones before it
//! are asked: it may have begun anew.
//!
//! A doubted connection does not count: its peer is dialled, and it ends as soon as another one stands. What was asked over it
//! is asked again then. It is well again when something is heard over it.

use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::Driver;
use super::links::{AT_ONCE, Link};
use crate::model::id::PeerId;
use crate::p2p::address::Carrier;

/// How long a connection has to answer when it may have ended.
const CONFIRM: Duration = Duration::from_secs(2);

impl Driver {
    /// The member's QUIC connections may have ended without a word: it is dialled as if they had, until something is heard
    /// over them. They end as soon as another connection stands, be it a circuit: half of what is asked would wait for them.
    pub(super) fn doubt(&mut self, peer: PeerId, now: Instant) {
        let data = &self.swarm.behaviour().members.inner.data;
        for (id, link) in &mut self.links {
            // One that was made since, or is being made because of it, is none of them.
            let is_old = link.since + AT_ONCE <= now;
            if link.peer == peer && link.carrier == Carrier::Quic && link.carries() && is_old {
                // What came before this is no sign of life after it.
                data.take_heard(*id);
                link.used.want(now);
                link.doubted = true;
            }
        }
        self.close_doubted(peer);
    }

    /// Datagrams pass straight to the member no more. Its own QUIC connections are doubted; and because it may be the network
    /// here that drops UDP from now on, those to all others have to answer a ping. What was heard of the member is tried once
    /// more: an address that nobody needed when it was heard may be the one that is left.
    pub(super) fn handle_direct_lost(&mut self, peer: PeerId, now: Instant) {
        self.doubt(peer, now);
        self.ask_links(now, |link| link.carrier == Carrier::Quic);
        self.book.again(&peer);
        self.hurry(peer, now);
        self.handle_dials(now);
    }

    /// This machine may be in another network than before: every connection has to show that it goes on from here.
    pub(super) fn handle_roamed(&mut self, now: Instant) {
        self.ask_links(now, |_| true);
    }

    /// The member's datagrams come from where none of its connections leads to: those that run straight to it have to show
    /// that they still do.
    pub(super) fn ask_direct(&mut self, peer: PeerId, now: Instant) {
        self.ask_links(now, |link| link.peer == peer && link.relay.is_none());
    }

    /// The peer has another connection: it may have begun anew after a kill, which says nothing over the old ones. They have to
    /// show that they go on, because half of what is asked would wait for them.
    pub(super) fn ask_others(&mut self, peer: PeerId, new: u64, now: Instant) {
        self.ask_links(now, |link| link.peer == peer && link.number != new);
    }

    /// Has these connections answer a ping. One that was asked before has no more time than it had.
    fn ask_links(&mut self, now: Instant, is_meant: impl Fn(&Link) -> bool) {
        let ping = &mut self.swarm.behaviour_mut().meeting.inner.ping;
        let meant = |link: &Link| link.is_pinged() && !link.doubted && is_meant(link);
        for (id, link) in self.links.iter_mut().filter(|(_, link)| meant(link)) {
            if link.asked.is_none()
                && let Some(lib) = crate::p2p::peer_to_lib(link.peer)
            {
                link.asked = Some(now);
                link.used.want(now);
                ping.ask(lib, *id);
            }
        }
    }

    /// Doubts the connections that have not answered in time.
    pub(super) fn doubt_silent(&mut self, now: Instant) {
        let is_late = |link: &Link| link.asked.is_some_and(|asked| asked + CONFIRM <= now);
        let late = self.links.iter_mut().filter(|(_, link)| is_late(link));
        let mut peers = Vec::new();
        for (id, link) in late {
            link.asked = None;
            if !link.closing {
                tracing::debug!(peer = %link.peer, connection = link.number, "no answer after a change of network");
                self.swarm.behaviour().members.inner.data.take_heard(*id);
                link.doubted = true;
                peers.push(link.peer);
            }
        }
        for peer in peers {
            self.close_doubted(peer);
            self.hurry(peer, now);
        }
    }

    /// Closes the connections of a peer that are in doubt, where another one stands.
    pub(super) fn close_doubted(&mut self, peer: PeerId) {
        let is_member = self.members.contains_key(&peer);
        let stands = self.is_linked(peer) || !is_member && self.meets(peer);
        let is_over = |link: &Link| link.peer == peer && !link.closing && link.doubted;
        let over: Vec<ConnectionId> = self
            .links
            .iter()
            .filter(|(_, link)| stands && is_over(link))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.close(id, "in doubt, and another stands");
        }
    }
}
