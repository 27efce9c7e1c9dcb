//! Which members stay connected though nothing travels, which are dialled because somebody wants them, and which are let go.
//!
//! In a small subnet everybody holds everybody; in a large one a bounded set of [`neighbours`](crate::model::neighbours).
//! Everybody else is dialled when packets or a request want it, and is let go once neither has used its connections for
//! [`Timing::let_go`](crate::p2p::Timing::let_go). Both ends see the same packets and the same requests, so both find the
//! connection idle at about the same time; whoever is first closes it, and the other end does not dial, since it does not
//! hold the peer either. Where only one end holds the other, its comparisons of records are requests that keep the
//! connection in use at both.
//!
//! A member that did not answer a dial counts as away until it is connected, or until it says something new: another one
//! stands in for it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use super::links::Link;
use crate::model::id::{PeerId, SubnetId};
use crate::model::neighbours::{Bounds, Known, Neighbours};
use crate::model::record::Digest;
use crate::p2p::command::Neighbourhood;
use crate::p2p::{Class, Config};

/// How long a member stays wanted after packets or a person asked for it. Packets ask again each second while they wait.
const WISH: Duration = Duration::from_secs(20);
/// How often the choice is made anew because round trips and home relays change.
const CHOOSE_EVERY: Duration = Duration::from_secs(10);
/// How long one member of the window is held so that its round trip is known.
const ROUND: Duration = Duration::from_secs(600);
/// How long after the start nobody has to have dialled this node.
const SETTLED: Duration = Duration::from_secs(30);
/// How much sooner an idle connection is let go where few more can be made. Those that a member holds for its own sake it asks
/// about presence once a minute, so that they stay.
const CROWDED: u32 = 5;
/// The most peers of whom it is known when what was heard was tried again.
const MOST_AGAIN: usize = 4096;
/// The weight of a new round trip in the mean is one in so many.
const SMOOTH: u32 = 4;

/// See the module.
pub(super) struct Kept {
    neighbours: Neighbours,
    /// Whether the members of each subnet were told: before, every member is held.
    is_told: bool,
    bounds: Bounds,
    chosen: Neighbourhood,
    /// How long a member stays wanted: [`WISH`], and no longer than connections may lie idle.
    wish: Duration,
    /// When somebody last wanted a member.
    wanted: BTreeMap<PeerId, Instant>,
    /// When what was heard of a member was last tried again because somebody wanted it.
    again: BTreeMap<PeerId, Instant>,
    /// Since when a member does not answer dials.
    away: BTreeMap<PeerId, Instant>,
    round_trips: BTreeMap<PeerId, Duration>,
    began: Instant,
    /// When the choice was last made; none where something has changed since.
    at: Option<Instant>,
}

impl Kept {
    pub(super) fn new(config: &Config, chosen: Neighbourhood, now: Instant) -> Kept {
        Kept {
            neighbours: Neighbours::default(),
            is_told: false,
            bounds: config.neighbours,
            chosen,
            wish: WISH.min(config.timing.let_go),
            wanted: BTreeMap::new(),
            again: BTreeMap::new(),
            away: BTreeMap::new(),
            round_trips: BTreeMap::new(),
            began: now,
            at: None,
        }
    }

    /// Whether a member stays connected though nothing travels.
    pub(super) fn holds(&self, peer: PeerId) -> bool {
        self.chosen.holds(peer)
    }

    /// Whether a member is to be connected: it is held, or somebody wanted it a moment ago.
    pub(super) fn needs(&self, peer: PeerId, now: Instant) -> bool {
        let is_wanted = |at: &Instant| now < *at + self.wish;
        self.wanted.get(&peer).is_some_and(is_wanted) || self.holds(peer)
    }

    /// Somebody wants a member.
    pub(super) fn want(&mut self, peer: PeerId, now: Instant) {
        self.wanted.insert(peer, now);
    }

    /// A member answers.
    pub(super) fn is_there(&mut self, peer: PeerId) {
        if self.away.remove(&peer).is_some() {
            self.at = None;
        }
    }

    /// A member was dialled in vain, or there is no address to dial.
    pub(super) fn is_away(&mut self, peer: PeerId, now: Instant) {
        if let std::collections::btree_map::Entry::Vacant(free) = self.away.entry(peer) {
            free.insert(now);
            self.at = None;
        }
    }

    /// A peer is no member any more.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.wanted.remove(&peer);
        self.again.remove(&peer);
        self.away.remove(&peer);
        self.round_trips.remove(&peer);
    }

    /// Whether what was heard of a wanted member may be tried once more, which was last tried so at least a `pause` ago.
    pub(super) fn may_try_again(&mut self, peer: PeerId, pause: Duration, now: Instant) -> bool {
        if self.again.len() >= MOST_AGAIN {
            self.again.clear();
        }
        // It has just been tried for the first time.
        let last = self.again.entry(peer).or_insert(now);
        let is_due = now >= *last + pause;
        if is_due {
            *last = now;
        }
        is_due
    }

    /// Since when a member does not answer dials; none where it does, or was not dialled.
    pub(super) fn away_since(&self, peer: PeerId) -> Option<Instant> {
        self.away.get(&peer).copied()
    }

    /// The round trip of a ping to a member.
    pub(super) fn measured(&mut self, peer: PeerId, round_trip: Duration) {
        let known = self.round_trips.entry(peer).or_insert(round_trip);
        *known = *known - *known / SMOOTH + round_trip / SMOOTH;
    }

    /// Whether members that this node is not connected to would not reach it: of those that may dial it when packets want it,
    /// none has. Only where not everybody is held: else whoever is not reached is noticed.
    fn is_hidden<'a>(
        &self,
        mut members: impl Iterator<Item = PeerId>,
        mut links: impl Iterator<Item = &'a Link>,
        now: Instant,
    ) -> bool {
        let came = |link: &Link| {
            link.class == Class::Member && !link.closing && !link.outbound && link.relay.is_none()
        };
        let is_new = now < self.began + SETTLED;
        !is_new && !members.all(|peer| self.holds(peer)) && !links.any(came)
    }

    /// Chooses anew where anything has changed; those who are held since now.
    fn choose(&mut self, me: PeerId, homes: &BTreeSet<PeerId>, now: Instant) -> Vec<PeerId> {
        if !self.is_told || self.at.is_some_and(|at| now < at + CHOOSE_EVERY) {
            return Vec::new();
        }
        self.at = Some(now);
        let wish = self.wish;
        self.wanted.retain(|_, at| now < *at + wish);
        let before = self.chosen.get();
        let former: BTreeSet<PeerId> = before.iter().flat_map(|c| c.keys().copied()).collect();
        let periods = now.saturating_duration_since(self.began).as_secs() / ROUND.as_secs();
        let known = Known {
            homes,
            round_trips: &self.round_trips,
            away: &self.away.keys().copied().collect(),
            held: &former,
            round: periods,
        };
        let chosen = self.neighbours.choose_within(me, self.bounds, &known);
        if before.as_deref() == Some(&chosen) {
            return Vec::new();
        }
        let new = chosen.keys().filter(|peer| !former.contains(peer));
        let new = new.copied().collect();
        self.chosen.set(chosen);
        new
    }
}

impl Driver {
    /// Takes who is in each subnet of this node, and by which grant.
    pub(super) fn handle_grants(
        &mut self,
        grants: &BTreeMap<SubnetId, Arc<BTreeMap<PeerId, Digest>>>,
        now: Instant,
    ) {
        self.kept
            .neighbours
            .keep(|subnet| grants.contains_key(subnet));
        for (subnet, members) in grants {
            self.kept.neighbours.set(*subnet, Arc::clone(members));
        }
        let is_member = |peer: &PeerId| grants.values().any(|members| members.contains_key(peer));
        self.kept.away.retain(|peer, _| is_member(peer));
        (self.kept.is_told, self.kept.at) = (true, None);
        self.keep_neighbours(now);
    }

    /// Chooses whom to hold where anything has changed, and dials those who are new among them.
    pub(super) fn keep_neighbours(&mut self, now: Instant) {
        let homes = self.relays.homes();
        for peer in self.kept.choose(self.me, &homes, now) {
            self.hurry(peer, now);
        }
    }

    /// Packets travel to or from a member, though not over its connections, which therefore are needed.
    pub(super) fn handle_in_use(&mut self, peer: PeerId, now: Instant) {
        self.use_links(peer, now);
        self.wish(peer, now);
        if !self.dialling.contains_key(&peer) {
            self.hurry(peer, now);
        }
    }

    /// Somebody here wants a member connected: it stays so for a while, and is dialled until it is.
    pub(super) fn wish(&mut self, peer: PeerId, now: Instant) {
        if self.members.contains_key(&peer) {
            self.kept.want(peer, now);
        }
    }

    /// The connections of a peer were used: they are not let go for a while.
    pub(super) fn use_links(&mut self, peer: PeerId, now: Instant) {
        let links = self.links.values_mut();
        links
            .filter(|link| link.peer == peer)
            .for_each(|link| link.busy = now);
    }

    /// Lets go the members that nobody here holds and whose connections were not used for long.
    pub(super) fn let_go(&mut self, now: Instant) {
        let mut let_go = self.config.timing.let_go;
        if self.swarm.behaviour().gate.is_crowded() {
            // Whoever is needed finds room: others may hold as many connections as they like.
            let_go /= CROWDED;
        }
        let mut idle: BTreeMap<PeerId, bool> = BTreeMap::new();
        let mut needed: BTreeSet<PeerId> = BTreeSet::new();
        for link in self.links.values().filter(|link| !link.closing) {
            needed.extend(link.relay);
            if link.class == Class::Member {
                let is_idle = link.answering == 0 && now >= link.busy + let_go;
                *idle.entry(link.peer).or_insert(true) &= is_idle;
            }
        }
        let over: Vec<PeerId> = idle
            .into_iter()
            .filter(|(peer, is_idle)| *is_idle && !needed.contains(peer))
            .map(|(peer, _)| peer)
            .filter(|peer| !self.is_held(*peer))
            .collect();
        for peer in over {
            tracing::debug!(%peer, "let go");
            self.dialling.remove(&peer);
            self.kept.wanted.remove(&peer);
            self.links_of(peer)
                .into_iter()
                .for_each(|id| self.close(id, "not used for long, and no neighbour"));
        }
    }

    /// Whether members that would dial this node could not reach it, as far as is known ([`Kept::is_hidden`]).
    pub(super) fn is_hidden(&self, now: Instant) -> bool {
        self.kept
            .is_hidden(self.members.keys().copied(), self.links.values(), now)
    }

    /// Whether a member stays connected though nothing travels: as a neighbour, as a relay of ours, or as one that we are the
    /// relay of.
    fn is_held(&self, peer: PeerId) -> bool {
        self.kept.holds(peer)
            || self.relays.is_ours(peer)
            || self.shares.holds(peer)
            || self.asks.wait_for(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::address::Carrier;

    #[test]
    fn a_node_of_a_large_subnet_that_nobody_has_dialled_is_hidden() {
        let (start, members) = (Instant::now(), [1, 2].map(|n| PeerId([n; 32])));
        let chosen = Neighbourhood::default();
        let kept = Kept::new(&Config::new([9; 32]), chosen.clone(), start);
        let link = |outbound| {
            let remote = "/ip4/192.0.2.1/tcp/4100".parse().unwrap();
            let class = Class::Member;
            Link::new(members[0], 0, class, Carrier::Tcp, remote, outbound, start)
        };
        let is_hidden =
            |links: &[Link], now| kept.is_hidden(members.into_iter(), links.iter(), now);
        let later = start + SETTLED;
        assert!(!is_hidden(&[], later), "everybody is held");
        chosen.set([(members[0], crate::model::neighbours::Why::Ring)].into());
        assert!(!is_hidden(&[], start), "nobody had the time to dial it");
        assert!(is_hidden(&[], later));
        assert!(is_hidden(&[link(true)], later), "this node dialled");
        assert!(!is_hidden(&[link(true), link(false)], later));
        let (mut over, mut relayed) = (link(false), link(false));
        over.closing = true;
        relayed.relay = Some(members[1]);
        let mut stranger = link(false);
        stranger.class = Class::Stranger;
        assert!(is_hidden(&[over, relayed, stranger], later));
    }
}
