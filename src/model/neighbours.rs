//! Whom a member keeps a connection to: everybody in a small subnet, a bounded set in a large one.
//!
//! Records spread over these connections alone, so their graph must stay connected whoever is away. The members of a
//! subnet stand in [`RINGS`] rings, each in an order that a hash of subnet, peer and grant gives; a member holds the one
//! before it and the one after it in each ring. Both ends reckon alike from the same records, so an edge needs no agreement,
//! and a member that comes or goes changes a constant number of them. One ring alone is connected; two rings in unrelated orders
//! are an expander, whose diameter grows with the logarithm of the members. Beside these each member holds [`NEAR`] that
//! answer soon. They are taken from a part of a third ring, its [`WINDOW`], so that nobody is chosen by more than the
//! window holds, however near it is to all.
//!
//! The grant is in the hash because its issuer signed it: who joins can make any number of keys before it asks, but cannot
//! know the signature, so that each try for a place beside somebody costs an admission. A renewal, once in half of a grant's
//! life, moves its member as if it had gone and come. While a grant spreads, the two ends of an edge may differ about it: one
//! of them that holds the other is enough for the connection to stay.
//!
//! Where a neighbour is away, the next in the order stands in for it, and the neighbour itself is still dialled now and
//! then: so two halves of a subnet find together again once they can.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::id::{PeerId, SubnetId};
use super::record::Digest;

/// The most members, this one counted, of a subnet in which each holds a connection to every other.
pub const EVERYBODY: usize = 32;
/// Rings whose neighbours are held: each gives two.
pub const RINGS: usize = 2;
/// Members that are held because they answer soon.
pub const NEAR: usize = 4;
/// Members of the third ring, half of them on each side, among whom the near ones are chosen: no member is chosen as near
/// by more than this many.
pub const WINDOW: usize = 16;
/// Members in one direction of a ring that may stand in for one that is away. Where nine of ten are away, five of six
/// members still find somebody in each direction.
const STAND_INS: usize = 16;
/// A near member gives way to one whose round trip is shorter by this and by a fifth.
const NEARER: Duration = Duration::from_millis(10);

/// How many are held. Tests use smaller numbers, so that a few daemons show what many do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The most members of a subnet in which everybody holds everybody.
    pub everybody: usize,
    /// The most that are held because they answer soon; with none of them nobody is tried, either.
    pub near: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            everybody: EVERYBODY,
            near: NEAR,
        }
    }
}

/// Why a member is held; where several reasons hold, the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The subnet is small enough that everybody holds everybody.
    Everybody,
    /// It stands beside this node in a ring, or stands in for one that does.
    Ring,
    /// It is a home relay of this node.
    Home,
    /// It answers sooner than others of the window.
    Near,
    /// Its round trip is measured in this round.
    Trial,
}

impl Why {
    /// The word that `peer show` has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Everybody => "everybody",
            Why::Home => "home",
            Why::Ring => "ring",
            Why::Near => "near",
            Why::Trial => "trial",
        }
    }
}

/// What a node knows of others when it chooses.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The home relays of this node, members or not; only members are chosen.
    pub homes: &'a BTreeSet<PeerId>,
    /// The last measured round trips.
    pub round_trips: &'a BTreeMap<PeerId, Duration>,
    /// Members that were dialled in vain not long ago.
    pub away: &'a BTreeSet<PeerId>,
    /// The members that were held before: of two near ones that differ little, such a one stays.
    pub held: &'a BTreeSet<PeerId>,
    /// Grows by one in each period; in each, one more member of the window is tried, so that it is measured.
    pub round: u64,
}

/// The rings of one subnet: in each the members in the order of a hash.
#[derive(Debug, Clone, Default)]
struct Rings {
    /// Each member with the grant that it stands by, as the View has them.
    members: Arc<BTreeMap<PeerId, Digest>>,
    /// The rings whose neighbours are held, and last the one that has the window.
    orders: [BTreeSet<(u64, PeerId)>; RINGS + 1],
}

/// Where a peer stands in each ring of a subnet by its grant.
fn places(subnet: SubnetId, peer: PeerId, grant: &Digest) -> [u64; RINGS + 1] {
    let mut hash = Sha256::new();
    hash.update(b"neighbours");
    hash.update(subnet.0);
    hash.update(peer.0);
    hash.update(grant);
    let hash: [u8; 32] = hash.finalize().into();
    let mut places = [0; RINGS + 1];
    for (place, bytes) in places.iter_mut().zip(hash.as_chunks().0) {
        *place = u64::from_be_bytes(*bytes);
    }
    places
}

impl Rings {
    /// Takes the list of members as it is now.
    fn set(&mut self, subnet: SubnetId, members: Arc<BTreeMap<PeerId, Digest>>) {
        let is_other = |of: &BTreeMap<PeerId, Digest>, (peer, grant): &(&PeerId, &Digest)| {
            of.get(*peer) != Some(*grant)
        };
        let gone = self.members.iter().filter(|one| is_other(&members, one));
        let gone: Vec<(PeerId, Digest)> = gone.map(|(peer, grant)| (*peer, *grant)).collect();
        let new = members.iter().filter(|one| is_other(&self.members, one));
        let new: Vec<(PeerId, Digest)> = new.map(|(peer, grant)| (*peer, *grant)).collect();
        for (peer, grant) in gone {
            for (order, place) in self.orders.iter_mut().zip(places(subnet, peer, &grant)) {
                order.remove(&(place, peer));
            }
        }
        for (peer, grant) in new {
            for (order, place) in self.orders.iter_mut().zip(places(subnet, peer, &grant)) {
                order.insert((place, peer));
            }
        }
        self.members = members;
    }

    /// The neighbours of a peer in one ring, with those who stand in for who is away.
    fn beside(
        order: &BTreeSet<(u64, PeerId)>,
        at: (u64, PeerId),
        away: &BTreeSet<PeerId>,
        chosen: &mut BTreeMap<PeerId, Why>,
    ) {
        let mut take = |way: &mut dyn Iterator<Item = PeerId>| {
            for peer in way.take(STAND_INS) {
                let why = chosen.entry(peer).or_insert(Why::Ring);
                *why = Why::Ring.min(*why);
                if !away.contains(&peer) {
                    return;
                }
            }
        };
        take(&mut after(order, at));
        take(&mut before(order, at));
    }

    /// The near ones of the window, and the one that is tried in this round.
    fn near(
        &self,
        at: (u64, PeerId),
        most: usize,
        known: &Known<'_>,
        chosen: &mut BTreeMap<PeerId, Why>,
    ) {
        let [.., order] = &self.orders;
        let mut window: Vec<PeerId> = after(order, at).take(WINDOW / 2).collect();
        for peer in before(order, at).take(WINDOW / 2) {
            if !window.contains(&peer) {
                window.push(peer);
            }
        }
        let count = u64::try_from(window.len()).unwrap_or(u64::MAX);
        let turn = known.round.checked_rem(count).unwrap_or(0);
        let tried = usize::try_from(turn).ok().and_then(|at| window.get(at));
        if let Some(tried) = tried {
            chosen.entry(*tried).or_insert(Why::Trial);
        }
        let score = |peer: &PeerId| {
            let held = known.held.contains(peer);
            let measured = known.round_trips.get(peer).copied();
            let round_trip = measured.unwrap_or(Duration::MAX);
            match measured.filter(|_| held) {
                Some(_) => (round_trip.mul_f32(0.8)).min(round_trip.saturating_sub(NEARER)),
                None => round_trip,
            }
        };
        let mut good: Vec<(Duration, bool, PeerId)> = window
            .into_iter()
            .filter(|peer| !known.away.contains(peer) && is_free(chosen, peer))
            .map(|peer| (score(&peer), !known.held.contains(&peer), peer))
            .collect();
        // Of equal ones the first in the ring: the sort keeps their order.
        good.sort_by_key(|(score, new, _)| (*score, *new));
        for (_, _, peer) in good.into_iter().take(most) {
            chosen.insert(peer, Why::Near);
        }
    }
}

/// Whether no better reason than a trial holds a peer.
fn is_free(chosen: &BTreeMap<PeerId, Why>, peer: &PeerId) -> bool {
    chosen.get(peer).is_none_or(|why| *why == Why::Trial)
}

/// The members of a ring after a place, once around.
fn after(
    order: &BTreeSet<(u64, PeerId)>,
    at: (u64, PeerId),
) -> impl Iterator<Item = PeerId> + use<'_> {
    let around = order.range(at..).chain(order.range(..at));
    around
        .map(|(_, peer)| *peer)
        .filter(move |peer| *peer != at.1)
}

/// The members of a ring before a place, once around.
fn before(
    order: &BTreeSet<(u64, PeerId)>,
    at: (u64, PeerId),
) -> impl Iterator<Item = PeerId> + use<'_> {
    let around = order.range(..at).rev().chain(order.range(at..).rev());
    around
        .map(|(_, peer)| *peer)
        .filter(move |peer| *peer != at.1)
}

/// The rings of every subnet that this node is in.
#[derive(Debug, Clone, Default)]
pub struct Neighbours(BTreeMap<SubnetId, Rings>);

impl Neighbours {
    /// Takes the members of a subnet as they are now, each with the digest of its grant, this node among them or not; none
    /// forgets it. Costs one hash for each member that came or went, and two for each grant that is another one.
    pub fn set(&mut self, subnet: SubnetId, members: impl Into<Arc<BTreeMap<PeerId, Digest>>>) {
        let members = members.into();
        if members.is_empty() {
            self.0.remove(&subnet);
        } else {
            self.0.entry(subnet).or_default().set(subnet, members);
        }
    }

    /// Forgets every subnet but these.
    pub fn keep(&mut self, is_kept: impl Fn(&SubnetId) -> bool) {
        self.0.retain(|subnet, _| is_kept(subnet));
    }

    /// Whom `me` holds a connection to, in all subnets together. `everybody` is the size up to which a subnet is small:
    /// [`EVERYBODY`], less in tests.
    pub fn choose(&self, me: PeerId, everybody: usize, known: &Known<'_>) -> BTreeMap<PeerId, Why> {
        let bounds = Bounds {
            everybody,
            ..Bounds::default()
        };
        self.choose_within(me, bounds, known)
    }

    /// The same within other bounds.
    pub fn choose_within(
        &self,
        me: PeerId,
        bounds: Bounds,
        known: &Known<'_>,
    ) -> BTreeMap<PeerId, Why> {
        let Bounds { everybody, near } = bounds;
        let mut chosen = BTreeMap::new();
        let others = |rings: &Rings| {
            let others = rings.members.keys().filter(|peer| **peer != me);
            others.copied().collect::<Vec<PeerId>>()
        };
        // First what holds for every subnet: of several reasons the first is told.
        for others in self.0.values().map(others) {
            if others.len() < everybody {
                chosen.extend(others.iter().map(|peer| (*peer, Why::Everybody)));
            }
            for home in others.iter().filter(|peer| known.homes.contains(peer)) {
                chosen.entry(*home).or_insert(Why::Home);
            }
        }
        for (subnet, rings) in &self.0 {
            if others(rings).len() < everybody {
                continue;
            }
            let grant = rings.members.get(&me).copied().unwrap_or_default();
            let places = places(*subnet, me, &grant);
            for (order, place) in rings.orders.iter().zip(places).take(RINGS) {
                Rings::beside(order, (place, me), known.away, &mut chosen);
            }
            let [.., place] = places;
            if near > 0 {
                rings.near((place, me), near, known, &mut chosen);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
