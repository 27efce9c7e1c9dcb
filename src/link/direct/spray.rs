//! Searches for a port that nobody can name: this carries out what [`Sprays`](crate::peer::spray::Sprays) wants, and knows where peers are seen.
//!
//! Where a peer is, a relay says that both ends have a leg at. It is believed where this node asked that relay for the leg, or
//! knows the relay otherwise, and never of a peer that is itself the relay: so a peer cannot name somebody else's address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::{Direct, Entry, Origin, entropy};
use crate::model::id::PeerId;
use crate::peer::path;
use crate::peer::spray::{self, FEW_SOCKETS, Output, Role, SOCKETS, Want};
use crate::udp::Port;
use crate::wire::datagram::Spray;
use crate::wire::paths::Kind;

/// How long what a relay said counts: with the 30 s within which it saw the peer, a minute in all.
const SEEN: Duration = Duration::from_secs(30);
/// A helper socket by which nothing came for so long is closed.
const UNUSED: Duration = Duration::from_secs(60);
/// Helpers that stay after a search beside the one that carries the path.
const KEPT: usize = 3;

/// Where a relay saw this node and a peer, and when it said so.
#[derive(Debug, Clone, Copy)]
struct Seen {
    here: Ipv4Addr,
    there: SocketAddrV4,
    at: Instant,
}

/// The helper sockets that are open for one peer.
#[derive(Debug, Default)]
pub(super) struct Helpers(Vec<Helper>);

#[derive(Debug)]
struct Helper {
    number: u16,
    /// When a frame of the peer's last came by it; none while it was not met.
    heard: Option<Instant>,
}

impl Helpers {
    /// When one that was met may have to be closed.
    pub(super) fn due(&self) -> Option<Instant> {
        let heard = self.0.iter().filter_map(|helper| helper.heard);
        Some(heard.min()? + UNUSED)
    }

    /// A frame of the peer's came by that one.
    pub(super) fn heard(&mut self, now: Instant, number: u16) {
        let helper = self.0.iter_mut().find(|helper| helper.number == number);
        if let Some(helper) = helper {
            helper.heard = Some(now);
        }
    }
}

impl Entry {
    /// Where a relay saw both ends, the newest that was said.
    fn seen(&self, id: PeerId, is_known: impl Fn(PeerId) -> bool) -> Option<Seen> {
        let believed = self.believed_legs(id, is_known);
        let seen = believed.filter_map(|leg| {
            let ((there, at), here) = (leg.peer()?, leg.seen()?.ip().to_canonical());
            let IpAddr::V4(here) = here else { return None };
            Some(Seen { here, there, at })
        });
        seen.max_by_key(|seen| seen.at)
    }
}

impl Direct {
    /// Where somebody else than the peer sees it now.
    pub(super) fn aim(&self, now: Instant, id: PeerId) -> Option<SocketAddrV4> {
        let entry = self.peers.get(&id)?;
        let Seen { there, at, .. } = entry.seen(id, |relay| self.own.is_seen_by(relay))?;
        let usable = path::usable(SocketAddr::V4(there), Origin::Told, &self.overlay);
        (now < at + SEEN && usable.is_some()).then_some(there)
    }

    /// Says what a search with the peer would be.
    pub(super) fn follow_spray(&mut self, now: Instant, id: PeerId) {
        // What a search opens and sends leaves by the usual way, whatever becomes of other uplinks.
        let here = self.own.facts(None);
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        match entry.peer.remote() {
            Some(remote) if remote.leg.is_none() => self.sprays.direct(now, id),
            // No path at all: what was begun goes on.
            None => {}
            Some(_) => {
                let there = entry.exchange.there;
                let role = there.and_then(|there| spray::role(&here, &there));
                let is_known = |relay| self.own.is_seen_by(relay);
                let want = role.map(|role| Want {
                    role,
                    sockets: if self.own.is_behind_carrier() {
                        FEW_SOCKETS
                    } else {
                        SOCKETS
                    },
                    counted: entry.exchange.counted.filter(|_| role == Role::Guesser),
                    places: entry
                        .seen(id, is_known)
                        .map(|seen| [seen.here, *seen.there.ip()]),
                });
                self.sprays.want(now, id, want);
            }
        }
    }

    /// The peer says that about a search.
    pub(super) fn on_spray(&mut self, now: Instant, id: PeerId, word: Spray) {
        let aim = self.aim(now, id);
        self.sprays.heard(now, id, word, &|_| aim, &mut entropy);
    }

    /// Does what is due of the searches.
    pub(super) fn keep_sprays(&mut self, now: Instant) {
        if self.sprays.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let mut sprays = std::mem::take(&mut self.sprays);
        sprays.handle_timeout(now, &|id| self.aim(now, id));
        self.sprays = sprays;
        self.carry_out_sprays(now);
    }

    /// Does what the searches want.
    pub(super) fn carry_out_sprays(&mut self, now: Instant) {
        while let Some(output) = self.sprays.poll() {
            match output {
                Output::Look { peer } => self.look_for(now, peer),
                Output::Say { peer, word } => self.with(peer, |peer| peer.say(word)),
                Output::Open { peer, sockets } => self.open_helpers(peer, sockets),
                Output::Probe { peer, to } => {
                    self.with(peer, |peer| peer.guess(to, &mut entropy));
                }
                Output::Over { peer } => {
                    tracing::debug!(%peer, stats = ?self.sprays.stats(now), "search for a port over");
                    if let Some(entry) = self.peers.get_mut(&peer) {
                        entry.close_helpers(now, &self.port);
                    }
                    // What was kept of a search's sockets is little: one that carries packets from now on needs what the port has.
                    let _ = self.port.set_receive_buffer(self.receive_buffer);
                    self.set_timer(peer);
                }
            }
        }
    }

    /// Asks the relays where the peer is.
    fn look_for(&mut self, now: Instant, id: PeerId) {
        if let Some(entry) = self.peers.get_mut(&id) {
            entry.rebind(now);
        }
        self.set_timer(id);
    }

    /// Opens a helper socket, by which the peer is reached from a mapping of its own.
    pub(super) fn open_fresh(&mut self, now: Instant, id: PeerId) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let number = match self.port.open_helper() {
            Ok(number) => number,
            Err(error) => {
                // The path stays where it is, and is found again when the mapping ends.
                tracing::debug!(peer = %id, %error, "open a helper socket");
                return;
            }
        };
        entry.helpers.0.push(Helper {
            number,
            heard: Some(now),
        });
        entry.peer.fresh(now, number, &mut entropy);
        // It is to carry packets.
        let _ = self.port.set_receive_buffer(self.receive_buffer);
    }

    fn open_helpers(&mut self, id: PeerId, sockets: usize) {
        let mut open = Vec::new();
        while open.len() < sockets {
            match self.port.open_helper() {
                Ok(helper) => open.push(helper),
                Err(error) => {
                    tracing::debug!(%error, open = open.len(), "open helper sockets");
                    break;
                }
            }
        }
        tracing::debug!(peer = %id, sockets = open.len(), "search for a port");
        if let Some(entry) = self.peers.get_mut(&id) {
            let fresh = open.iter().map(|number| Helper {
                number: *number,
                heard: None,
            });
            entry.helpers.0.extend(fresh);
        }
        self.sprays.opened(id, open);
    }
}

impl Entry {
    /// Closes the helpers that were met and have been silent since for a while.
    pub(super) fn keep_helpers(&mut self, now: Instant, port: &Port) {
        if self.helpers.due().is_some_and(|due| due <= now) {
            let used = self.peer.remote().and_then(|remote| remote.helper);
            // What carries the path is asked all the time, and its answers may come by a leg.
            if let Some(used) = used {
                self.helpers.heard(now, used);
            }
            let is_silent = |helper: &Helper| helper.heard.is_some_and(|at| at + UNUSED <= now);
            self.close_where(now, port, is_silent);
        }
    }

    /// Closes the helpers that were not met. The peer may send by another one than we do, so that several stay, the newest.
    pub(super) fn close_helpers(&mut self, now: Instant, port: &Port) {
        let used = self.peer.remote().and_then(|remote| remote.helper);
        let mut met: Vec<(Option<Instant>, u16)> = self
            .helpers
            .0
            .iter()
            .filter(|helper| helper.heard.is_some() && Some(helper.number) != used)
            .map(|helper| (helper.heard, helper.number))
            .collect();
        met.sort_unstable();
        let stay: Vec<u16> = met.iter().rev().take(KEPT).map(|met| met.1).collect();
        self.close_where(now, port, |helper| {
            Some(helper.number) != used && !stay.contains(&helper.number)
        });
    }

    /// Closes all.
    pub(super) fn end_helpers(&mut self, now: Instant, port: &Port) {
        self.close_where(now, port, |_| true);
    }

    fn close_where(&mut self, now: Instant, port: &Port, is_gone: impl Fn(&Helper) -> bool) {
        let gone: Vec<u16> = self
            .helpers
            .0
            .iter()
            .filter(|helper| is_gone(helper))
            .map(|helper| helper.number)
            .collect();
        if gone.is_empty() {
            return;
        }
        self.helpers
            .0
            .retain(|helper| !gone.contains(&helper.number));
        port.retain_helpers(|helper| !gone.contains(&helper));
        self.peer
            .drop_helpers(now, |helper| gone.contains(&helper), &mut entropy);
    }
}

impl super::own::Own {
    /// Whether this node's own address is one that carriers give out behind their NAT (RFC 6598).
    fn is_behind_carrier(&self) -> bool {
        self.named(Kind::Host).any(|address| match address.ip() {
            IpAddr::V4(ip) => matches!(ip.octets(), [100, 64..=127, ..]),
            IpAddr::V6(_) => false,
        })
    }
}
