//! Holes in NATs that datagrams pass: QUIC is dialled through them, until a direct connection stands.
//!
//! Both ends dial, the one with the larger ID a little later. One whose port takes no calls from anybody would refuse the other's
//! dial: with the larger ID it lets the other one in instead, which is no dial of QUIC but waits for one; with the smaller ID it
//! dials as others do, and the other end takes the call or lets it in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::core::Endpoint as Role;
use tokio::time::Instant;

use super::Driver;
use crate::model::id::PeerId;
use crate::p2p::Class;
use crate::p2p::address::{Heard, ip_of, quic_at, udp_of};
use crate::udp::{Callers, QuicSocket};

/// How often QUIC is dialled at an address that datagrams reach, and the pause between two dials.
const PUNCHED: (u32, Duration) = (5, Duration::from_secs(1));
/// How much later the peer with the larger ID dials, so that in most cases only one connection is made.
const COURTESY: Duration = Duration::from_millis(300);

/// A hole that datagrams pass, to be dialled.
pub(super) struct Hole {
    address: SocketAddr,
    tries: u32,
    next: Instant,
}

impl Driver {
    /// Datagrams pass to an address of a member: QUIC will, too.
    pub(super) fn handle_punched(&mut self, peer: PeerId, address: SocketAddr, now: Instant) {
        if self.stands_at(peer, address) || !self.members.contains_key(&peer) {
            return;
        }
        self.ask_direct(peer, now);
        // Who lets the other one in is ready before it dials.
        let courtesy = if self.me > peer && self.role_at_holes(peer) == Role::Dialer {
            COURTESY
        } else {
            Duration::ZERO
        };
        let hole = self.holes.entry(peer).or_insert(Hole {
            address,
            tries: 0,
            next: now + courtesy,
        });
        if hole.address != address {
            (hole.address, hole.tries) = (address, 0);
        }
        self.dial_punched(now);
    }

    /// Whether a direct connection to the peer stands that leads where its datagrams come from. One that leads elsewhere may
    /// be dead already, without either end having missed it.
    fn stands_at(&self, peer: PeerId, address: SocketAddr) -> bool {
        let there = |remote: &Multiaddr| match udp_of(remote) {
            Some(udp) => {
                udp.ip().to_canonical() == address.ip().to_canonical()
                    && udp.port() == address.port()
            }
            None => ip_of(remote) == Some(address.ip().to_canonical()),
        };
        self.links.values().any(|link| {
            let is_meant = link.peer == peer && link.class == Class::Member;
            is_meant && link.meets() && there(&link.remote)
        })
    }

    /// A direct connection to the peer stands: a hole that it leads through is dialled no more, whatever becomes of it beside
    /// others.
    pub(super) fn leave_hole(&mut self, peer: PeerId) {
        if let Some(hole) = self.holes.get(&peer)
            && self.stands_at(peer, hole.address)
        {
            self.holes.remove(&peer);
        }
    }

    /// Dials the holes that are due, until a direct connection stands.
    pub(super) fn dial_punched(&mut self, now: Instant) {
        let due: Vec<_> = self
            .holes
            .iter()
            .filter(|(_, hole)| now >= hole.next)
            .map(|(peer, hole)| (*peer, hole.address, hole.tries))
            .collect();
        for (peer, address, tries) in due {
            let over = tries >= PUNCHED.0 || !self.members.contains_key(&peer);
            if over || self.stands_at(peer, address) {
                self.holes.remove(&peer);
                continue;
            }
            if let Some(hole) = self.holes.get_mut(&peer) {
                hole.tries += 1;
                hole.next = now + PUNCHED.1;
            }
            let quic = quic_at(address);
            self.own.refresh(now);
            let overlay = self.overlay.load_full();
            // Frames that came over a link prove that the peer is there.
            let on_link = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            if Heard::of(quic.clone(), on_link).is_some_and(|h| h.may_dial(&overlay, &self.own)) {
                self.dial_as(self.role_at_holes(peer), peer, vec![quic]);
            }
        }
    }

    /// Whether this node dials a peer through a hole, or lets it in.
    fn role_at_holes(&self, peer: PeerId) -> Role {
        let takes_calls = |socket: &Arc<QuicSocket>| socket.callers() == Callers::Anybody;
        if self.me > peer && !self.config.quic.iter().any(takes_calls) {
            Role::Listener
        } else {
            Role::Dialer
        }
    }
}
