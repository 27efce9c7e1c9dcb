//! Our legs at relays: this binds them, keeps them bound, offers them to their peers as candidates, and gives them up when
//! they are of no use.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::handle::{Call, LegOver};
use super::{Ask, Direct, Entry, entropy};
use crate::model::id::PeerId;
use crate::peer::path::{self, Origin};
use crate::peer::{Pair, Remote};
use crate::relay::{Ended, Leg, MAX_UPLINKS, Output};
use crate::wire::paths::Udp;
use crate::wire::relay::Message;

/// The most legs to one peer: two in use, and two that replace them.
const LEGS: usize = 4;
/// A leg is given up after its peer was reached without a relay for so long: until then it is there when that path is lost.
const WARM: Duration = Duration::from_secs(300);

/// Relays are asked for a leg where no datagram path was found within this.
const PATHLESS: Duration = Duration::from_secs(1);
/// Least time between two such questions while there is no leg.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same while there is one: the second is there for when the first goes.
const ASK_SECOND: Duration = Duration::from_secs(30);
/// Relays by which a peer is reached at once.
const RELAYS: usize = 2;

/// Whether legs to a peer are to be asked for.
#[derive(Debug, Default)]
pub(super) struct Want {
    /// Since when no path leads straight to the peer.
    since: Option<Instant>,
    asked: Option<Instant>,
    /// Where packets went at the last look.
    path: Option<Remote>,
}

/// A leg, and who waits for its end.
pub(super) struct Held {
    leg: Leg,
    relay: PeerId,
    /// Who vouches for where the leg says that we are seen.
    by: PeerId,
    /// Where our own connections show the relay to be.
    reached: Vec<IpAddr>,
    /// Where its frames go, once it is bound.
    remote: Option<Remote>,
    /// Since when the peer is reached without a relay.
    unneeded: Option<Instant>,
    over: Option<oneshot::Sender<LegOver>>,
}

impl Held {
    /// When its next timer is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.leg.poll_timeout()
    }

    fn end(&mut self, why: LegOver) {
        if let Some(over) = self.over.take() {
            let _ = over.send(why);
        }
    }
}

impl Entry {
    /// The legs at relays whose word about where both ends are is believed: those that gave the leg to us, and those that are
    /// known otherwise, where our own connections show that they are. What the peer vouches for, or says as a relay, is its own
    /// word: it could name a relay that we know and answer in its place.
    pub(super) fn believed_legs(
        &self,
        id: PeerId,
        is_known: impl Fn(PeerId) -> bool,
    ) -> impl Iterator<Item = &Leg> {
        let is_reached = |held: &Held| {
            let at = held.leg.relay().map(|at| at.ip().to_canonical());
            at.is_some_and(|at| held.reached.contains(&at))
        };
        let is_believed = move |held: &&Held| {
            held.relay != id && (held.by == held.relay || is_known(held.relay) && is_reached(held))
        };
        self.held.iter().filter(is_believed).map(|held| &held.leg)
    }

    /// Asks the relays of the legs to the peer where both ends are.
    pub(super) fn rebind(&mut self, now: Instant) {
        self.held.iter_mut().for_each(|held| held.leg.rebind(now));
    }

    /// Removes one leg.
    fn drop_leg(&mut self, at: usize, why: LegOver) {
        let mut held = self.held.remove(at);
        tracing::debug!(relay = %held.relay, ?why, "leg over");
        held.end(why);
    }

    /// The peer may be reached by the legs that are bound, and by no other.
    fn tell_legs(&mut self, now: Instant) {
        let bound = self.held.iter().filter_map(|held| {
            let (relay, remote) = (held.relay, held.remote?);
            Some(super::Leg { relay, remote })
        });
        let legs: Vec<super::Leg> = bound.collect();
        let remotes: Vec<Remote> = legs.iter().map(|leg| leg.remote).collect();
        self.name_legs(legs);
        self.peer.legs(now, &remotes, &mut entropy);
    }
}

impl Direct {
    /// A leg that leads to the peer is to be bound. One at the same relay goes, and the oldest of too many.
    pub(super) fn enter_leg(
        &mut self,
        now: Instant,
        id: PeerId,
        call: &Call,
        over: oneshot::Sender<LegOver>,
    ) {
        self.enter(id);
        let usable = |address: &SocketAddr| path::usable(*address, Origin::Told, &self.overlay);
        let addresses: Vec<SocketAddr> = call.addresses.iter().filter_map(usable).collect();
        let Some(entry) = self.peers.get_mut(&id) else {
            let _ = over.send(LegOver::Gone);
            return;
        };
        let former = entry.held.iter().position(|held| held.relay == call.relay);
        if let Some(at) = former {
            entry.drop_leg(at, LegOver::Replaced);
        } else if entry.held.len() >= LEGS {
            entry.drop_leg(0, LegOver::Displaced);
        }
        entry.held.push(Held {
            leg: Leg::new(now, call.ticket, &addresses),
            relay: call.relay,
            by: call.by,
            reached: call.reached.clone(),
            remote: None,
            unneeded: None,
            over: Some(over),
        });
        entry.tell_legs(now);
        self.publish_legs();
        self.keep_legs(now, id);
        self.carry_out(id);
    }

    /// A relay said something about a leg.
    pub(super) fn on_leg(&mut self, now: Instant, way: Pair, message: Message) {
        let from = way.remote;
        let of = |held: &Held| Some(held.leg.index()) == from.leg;
        let found = self
            .peers
            .iter_mut()
            .find_map(|(id, entry)| Some((*id, entry.held.iter_mut().find(|held| of(held))?)));
        let Some((id, held)) = found else { return };
        held.leg.on_message(now, from.address, message);
        // What it asks of an address of ours is answered from there.
        self.carry_out_legs(now, id, way.local);
        self.carry_out(id);
    }

    /// Does what is due of the legs to one peer.
    pub(super) fn keep_legs(&mut self, now: Instant, id: PeerId) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let path = entry.peer.remote();
        let left = std::mem::replace(&mut entry.want.path, path).filter(|left| path != Some(*left));
        if let Some(left) = entry
            .held
            .iter_mut()
            .find(|held| left.is_some() && held.remote == left)
        {
            // Perhaps its relay is gone, or has begun anew: that is found out now, not at the next refresh.
            left.leg.rebind(now);
        }
        let is_direct = path.map(|remote| remote.leg.is_none());
        for held in &mut entry.held {
            held.unneeded = match is_direct {
                Some(true) => held.unneeded.or(Some(now)),
                _ => None,
            };
        }
        let is_over = |held: &Held| held.unneeded.is_some_and(|since| since + WARM <= now);
        let before = entry.held.len();
        while let Some(at) = entry.held.iter().position(is_over) {
            entry.drop_leg(at, LegOver::Unneeded);
        }
        let is_fewer = entry.held.len() < before;
        for held in &mut entry.held {
            held.leg.handle_timeout(now);
        }
        if is_fewer {
            entry.tell_legs(now);
            self.publish_legs();
        }
        self.carry_out_legs(now, id, None);
        self.ask_leg(now, id, false);
    }

    /// Has relays asked for legs to a peer that datagrams do not reach without one. The end with the smaller peer ID asks.
    pub(super) fn ask_leg(&mut self, now: Instant, id: PeerId, at_once: bool) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let is_direct = entry.peer.remote().is_some_and(|to| to.leg.is_none());
        // A leg is of no use to who takes no datagrams.
        let is_off = entry
            .exchange
            .there
            .is_some_and(|there| there.udp == Udp::Off);
        if self.config.me > id || is_direct || is_off || entry.held.len() >= RELAYS {
            entry.want.since = None;
            return;
        }
        let since = *entry.want.since.get_or_insert(now);
        let every = if entry.held.is_empty() {
            ASK_EVERY
        } else {
            ASK_SECOND
        };
        let is_due = entry.want.asked.is_none_or(|at| at + every <= now);
        if at_once || (is_due && since + PATHLESS <= now) {
            entry.want.asked = Some(now);
            // Full: it is asked for again.
            let _ = self.asks.try_send(Ask::Leg { peer: id });
        }
    }

    /// Gives up the legs to one peer at relays whose addresses may not be used any more; whether there were any.
    pub(super) fn drop_unusable_legs(&mut self, now: Instant, id: PeerId) -> bool {
        let Some(entry) = self.peers.get_mut(&id) else {
            return false;
        };
        let overlay = &self.overlay;
        let is_bad = |address: &SocketAddr| path::usable(*address, Origin::Told, overlay).is_none();
        let before = entry.held.len();
        while let Some(at) = entry
            .held
            .iter()
            .position(|held| held.leg.addresses().iter().any(is_bad))
        {
            entry.drop_leg(at, LegOver::Unneeded);
        }
        let is_fewer = entry.held.len() < before;
        if is_fewer {
            entry.tell_legs(now);
        }
        is_fewer
    }

    /// Our address may have changed, or a relay may have begun anew: its legs are bound anew, without a name all. One that
    /// the relay has forgotten is over two seconds later.
    pub(super) fn rebind_legs(&mut self, now: Instant, relay: Option<PeerId>) {
        let is_meant = |held: &Held| relay.is_none_or(|relay| held.relay == relay);
        let with_legs = self
            .peers
            .iter()
            .filter(|(_, entry)| entry.held.iter().any(is_meant));
        let ids: Vec<PeerId> = with_legs.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(entry) = self.peers.get_mut(&id) {
                let meant = entry.held.iter_mut().filter(|held| is_meant(held));
                meant.for_each(|held| held.leg.rebind(now));
            }
            self.keep_legs(now, id);
            self.carry_out(id);
        }
    }

    /// Gives up the legs at one relay.
    pub(super) fn leave_relay(&mut self, now: Instant, relay: PeerId) {
        let there = |held: &Held| held.relay == relay;
        let with_legs = self
            .peers
            .iter()
            .filter(|(_, entry)| entry.held.iter().any(there));
        let ids: Vec<PeerId> = with_legs.map(|(id, _)| *id).collect();
        for id in &ids {
            if let Some(entry) = self.peers.get_mut(id) {
                while let Some(at) = entry.held.iter().position(there) {
                    entry.drop_leg(at, LegOver::Gone);
                }
                entry.tell_legs(now);
            }
        }
        self.publish_legs();
        for id in ids {
            self.keep_legs(now, id);
            self.carry_out(id);
        }
    }

    /// Does what the legs to one peer want: from that address of ours, or else from the one that the leg's frames leave from.
    fn carry_out_legs(&mut self, now: Instant, id: PeerId, local: Option<IpAddr>) {
        let locals = self.own.locals();
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let (mut changed, mut seen_at) = (false, Vec::new());
        let mut at = 0;
        while let Some(held) = entry.held.get_mut(at) {
            let leg = Some(held.leg.index());
            let bound = held.leg.relay().and_then(|address| {
                let remote = Remote {
                    leg,
                    ..Remote::from(address)
                };
                entry.peer.local_to(remote)
            });
            // The kernel's choice is not known before frames came: then every uplink may be another one.
            let others = locals
                .iter()
                .filter(|ip| ip.is_ipv4() && Some(**ip) != bound);
            let others: Vec<IpAddr> = others.copied().collect();
            held.leg
                .set_uplinks(if locals.len() < 2 { 0 } else { others.len() });
            let Some(output) = held.leg.poll() else {
                at = at.saturating_add(1);
                continue;
            };
            match output {
                Output::Send { to, bytes } => {
                    // Until the relay has answered there, somebody else may be.
                    let is_proven = held.leg.relay() == Some(to);
                    let mut may = || {
                        let searched = self.sprays.may_probe(now, to.ip());
                        searched.unwrap_or_else(|| self.unproven.take(to.ip(), 1, now))
                    };
                    // Whoever has answered by one of them hears by that one alone.
                    let is_late = local.is_none() && held.leg.is_unanswered() && to.is_ipv4();
                    let late = others.iter().filter(|_| is_late && locals.len() > 1);
                    let late = late.take(MAX_UPLINKS.saturating_add(1)).copied().map(Some);
                    for way in std::iter::once(local.or(bound)).chain(late) {
                        if is_proven || may() {
                            // Lost: it is sent again.
                            let _ = self.port.send_one(&bytes, to, way);
                        }
                    }
                }
                Output::Look { uplink, to, bytes } => {
                    if let Some(local) = others.get(uplink).filter(|_| to.is_ipv4()) {
                        let _ = self.port.send_one(&bytes, to, Some(*local));
                    }
                }
                Output::Seen { seen } => {
                    seen_at.push((seen, (held.by, held.leg.relay()), local));
                }
                Output::Bound { relay, seen } => {
                    tracing::debug!(peer = %id, relay = %held.relay, address = %relay, %seen, "leg bound");
                    let remote = Remote {
                        leg,
                        ..Remote::from(relay)
                    };
                    changed |= held.remote.replace(remote) != Some(remote);
                    entry.peer.leg_bound(Pair { local, remote });
                    seen_at.push((seen, (held.by, Some(remote.address)), local));
                }
                Output::Ended(why) => {
                    changed = true;
                    let why = match why {
                        Ended::NoAnswer => LegOver::NoAnswer,
                        Ended::Lost => LegOver::Lost,
                    };
                    entry.drop_leg(at, why);
                }
            }
        }
        if changed {
            entry.tell_legs(now);
            self.publish_legs();
        }
        for (seen, by, local) in seen_at {
            self.on_observed(now, seen, by, local);
        }
    }

    /// Tells the receiving thread which legs are ours.
    pub(super) fn publish_legs(&self) {
        let mut table = HashMap::new();
        for held in self.peers.values().flat_map(|entry| &entry.held) {
            let leg = Some(held.leg.index());
            for address in held.leg.addresses() {
                let remote = Remote {
                    leg,
                    ..Remote::from(*address)
                };
                table.insert(remote, held.leg.key().clone());
            }
        }
        self.links.0.legs.set(table);
    }
}
