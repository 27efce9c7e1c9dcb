//! What each source holds of this node's service as a relay: places, and circuits.
//!
//! One host can have any number of names, but not of addresses: an IPv4 address or an IPv6 /64 gets an eighth of the places and
//! of the circuits, an IPv6 /48 a quarter, and a quarter is kept for members. So many fit a whole site behind one NAT, which
//! comes back at once when a relay restarts. How often places and circuits are asked for is bounded by source, too: a circuit
//! that is being opened counts by its bucket until it stands.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId as LibPeer, relay};
use parking_lot::Mutex;

use crate::limit::{Buckets, Limit};
use crate::model::id::PeerId;
use crate::model::source::{Places, Sizes, Source, Taken};
use crate::p2p::Members;
use crate::p2p::address::ip_of;

/// The part of all places, and of all circuits, that one source may hold.
const OF_A_SOURCE: usize = 8;
/// How often a source may ask for a place.
const ASKED: Limit = Limit::new(256, 4);
/// How often a source may ask for a circuit: those under way end after a minute at most.
const OPENED: Limit = Limit::new(96, 1);
/// The most sources whose buckets are kept.
const SOURCES: usize = 4096;

/// See the module. Cheap to clone, all clones are one.
#[derive(Clone)]
pub(crate) struct Shares(Arc<Mutex<Held>>);

struct Held {
    members: Arc<Members>,
    /// Where each client was when it last asked for something.
    at: HashMap<PeerId, Source>,
    /// The places, by who holds them.
    places: Places<PeerId>,
    holders: BTreeSet<PeerId>,
    asked: Buckets<Source>,
    /// The circuits, by a number of ours.
    circuits: Places<u64>,
    next: u64,
    /// The numbers of the circuits from one peer to another.
    pairs: HashMap<(LibPeer, LibPeer), Vec<u64>>,
    opened: Buckets<Source>,
    refused: u64,
}

impl Shares {
    /// `all` is the most places, and the most circuits.
    pub(crate) fn new(all: usize) -> Shares {
        // Nobody's place is taken away for somebody else's sake: it is refused or it is kept.
        let sizes = Sizes::shared(all, all.div_ceil(OF_A_SOURCE), Duration::MAX);
        Shares(Arc::new(Mutex::new(Held {
            members: Arc::default(),
            at: HashMap::new(),
            places: Places::new(sizes),
            holders: BTreeSet::new(),
            asked: Buckets::new(ASKED, SOURCES),
            circuits: Places::new(sizes),
            next: 0,
            pairs: HashMap::new(),
            opened: Buckets::new(OPENED, SOURCES),
            refused: 0,
        })))
    }

    /// Who is a member from now on. What each holds counts as its own, or as its source's, from now on, too.
    pub(crate) fn set_members(&self, members: Arc<Members>) {
        let mut held = self.0.lock();
        let held = &mut *held;
        let member = |peer: PeerId| members.contains_key(&peer).then_some(peer);
        held.places.follow(member);
        let askers: HashMap<u64, PeerId> = held
            .pairs
            .iter()
            .filter_map(|((asker, _), ids)| Some((crate::p2p::peer_from_lib(asker)?, ids)))
            .flat_map(|(asker, ids)| ids.iter().map(move |id| (*id, asker)))
            .collect();
        let of_circuit = |id: u64| askers.get(&id).copied().and_then(member);
        held.circuits.follow(of_circuit);
        held.members = members;
    }

    /// Whether a client holds a place here.
    pub(crate) fn holds(&self, peer: PeerId) -> bool {
        self.0.lock().holders.contains(&peer)
    }

    /// How often a source was refused more than its share.
    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    /// Whether a client may have a place, which it holds from now on, or keep the one that it has.
    pub(crate) fn take_place(&self, peer: LibPeer, remote: &Multiaddr, now: Instant) -> bool {
        let mut held = self.0.lock();
        let held = &mut *held;
        let Some((peer, source)) = held.client(peer, remote) else {
            // Inside this process, where nobody has an address.
            return true;
        };
        let member = held.members.contains_key(&peer).then_some(peer);
        let good = held.asked.take(source, 1, now)
            && (held.holders.contains(&peer)
                || held.places.take(peer, source, member, now) == Taken::Free);
        if good {
            held.holders.insert(peer);
        } else {
            held.refused += 1;
        }
        good
    }

    /// Whether a client may open one more circuit now.
    pub(crate) fn may_open(&self, peer: LibPeer, remote: &Multiaddr, now: Instant) -> bool {
        let mut held = self.0.lock();
        let held = &mut *held;
        let Some((peer, source)) = held.client(peer, remote) else {
            return true;
        };
        let room = held
            .hold(peer, source, now)
            .map(|id| held.circuits.give_back(id));
        let good = room.is_some() && held.opened.take(source, 1, now);
        held.refused += u64::from(!good);
        good
    }

    /// Takes what the relay has done. `is_here` says who is connected still.
    pub(crate) fn handle(
        &self,
        event: &relay::Event,
        is_here: impl Fn(&LibPeer) -> bool,
        now: Instant,
    ) {
        let mut held = self.0.lock();
        match event {
            relay::Event::ReservationClosed { src_peer_id } if !is_here(src_peer_id) => {
                held.forget(src_peer_id);
            }
            relay::Event::ReservationTimedOut { src_peer_id } => {
                held.forget(src_peer_id);
            }
            relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            } => {
                let from = crate::p2p::peer_from_lib(src_peer_id);
                let source = from.and_then(|from| held.at.get(&from).copied());
                if let Some((from, source)) = from.zip(source)
                    && let Some(id) = held.hold(from, source, now)
                {
                    let pair = (*src_peer_id, *dst_peer_id);
                    held.pairs.entry(pair).or_default().push(id);
                }
            }
            relay::Event::CircuitClosed {
                src_peer_id,
                dst_peer_id,
                ..
            } => {
                let pair = (*src_peer_id, *dst_peer_id);
                if let Some(id) = held.pairs.get_mut(&pair).and_then(Vec::pop) {
                    held.circuits.give_back(id);
                }
                held.pairs.retain(|_, ids| !ids.is_empty());
            }
            _ => {}
        }
    }
}

impl Held {
    /// Who a client is, and what it counts as; none where it has no address.
    fn client(&mut self, peer: LibPeer, remote: &Multiaddr) -> Option<(PeerId, Source)> {
        let source = Source::of(ip_of(remote)?);
        let peer = crate::p2p::peer_from_lib(&peer)?;
        self.at.insert(peer, source);
        Some((peer, source))
    }

    /// Takes a circuit's place.
    fn hold(&mut self, peer: PeerId, source: Source, now: Instant) -> Option<u64> {
        let member = self.members.contains_key(&peer).then_some(peer);
        let id = self.next;
        self.next = id.wrapping_add(1);
        (self.circuits.take(id, source, member, now) == Taken::Free).then_some(id)
    }

    fn forget(&mut self, peer: &LibPeer) {
        if let Some(peer) = crate::p2p::peer_from_lib(peer) {
            self.holders.remove(&peer);
            self.places.give_back(peer);
            self.at.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> LibPeer {
        let mut seed = [5; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let key = libp2p::identity::Keypair::ed25519_from_bytes(seed).unwrap();
        key.public().to_peer_id()
    }

    fn at(address: &str) -> Multiaddr {
        let ip: std::net::IpAddr = address.parse().unwrap();
        Multiaddr::from(ip).with(libp2p::multiaddr::Protocol::Tcp(9))
    }

    #[test]
    fn one_host_takes_neither_every_place_nor_every_circuit() {
        let (shares, now) = (Shares::new(64), Instant::now());
        let place = |n, from: &str| shares.take_place(client(n), &at(from), now);
        let host = (0..40).filter(|n| place(*n, "192.0.2.1")).count();
        let of_prefix = |n: &u32| place(100 + n, &format!("2001:db8::{n:x}"));
        let prefix = (1..40).filter(of_prefix).count();
        assert_eq!((host, prefix), (8, 8), "an eighth each");
        let of_site = |n: &u32| place(200 + n, &format!("2001:db8:0:{n:x}::1"));
        assert_eq!((1..40).filter(of_site).count(), 8, "a quarter of the site");
        assert!(place(0, "192.0.2.1"), "who has a place keeps it");
        let others = |n: &u32| place(300 + n, &format!("198.51.100.{n}"));
        assert_eq!(
            (1..200).filter(others).count(),
            24,
            "a quarter is for members"
        );
        let member = client(900);
        let named = crate::p2p::peer_from_lib(&member).unwrap();
        shares.set_members(Arc::new([(named, vec![])].into()));
        assert!(shares.take_place(member, &at("192.0.2.1"), now));

        let open = |n, from: &str| {
            let good = shares.may_open(client(n), &at(from), now);
            let (src_peer_id, dst_peer_id) = (client(n), client(999));
            let accepted = relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            };
            if good {
                shares.handle(&accepted, |_| true, now);
            }
            good
        };
        let circuits = (0..40).filter(|n| open(n % 5, "192.0.2.1")).count();
        assert_eq!(circuits, 8);
        assert!(open(50, "192.0.2.2"));
        let closed = relay::Event::CircuitClosed {
            src_peer_id: client(1),
            dst_peer_id: client(999),
            error: None,
        };
        shares.handle(&closed, |_| true, now);
        assert!(open(2, "192.0.2.1") && !open(2, "192.0.2.1"));
        let src_peer_id = client(3);
        let gone = relay::Event::ReservationClosed { src_peer_id };
        shares.handle(&gone, |_| true, now);
        assert!(!place(41, "192.0.2.1"), "another connection of it stands");
        shares.handle(&gone, |_| false, now);
        assert!(place(41, "192.0.2.1"));
    }

    #[test]
    fn what_a_client_holds_counts_as_a_members_while_it_is_one() {
        let (shares, now) = (Shares::new(64), Instant::now());
        let place = |n| shares.take_place(client(n), &at("192.0.2.1"), now);
        let open = |n| {
            let good = shares.may_open(client(n), &at("192.0.2.1"), now);
            let (src_peer_id, dst_peer_id) = (client(n), client(999));
            let accepted = relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            };
            if good {
                shares.handle(&accepted, |_| true, now);
            }
            good
        };
        let members = |peers: std::ops::Range<u32>| {
            let named = peers.map(|n| crate::p2p::peer_from_lib(&client(n)).unwrap());
            let members: Members = named.map(|peer| (peer, vec![])).collect();
            shares.set_members(Arc::new(members));
        };
        assert_eq!((0..20).filter(|n| place(*n)).count(), 8);
        assert_eq!((0..20).filter(|n| open(n % 4)).count(), 8);
        // Three of them join: they leave room for as many strangers of their address.
        members(0..3);
        assert_eq!((100..120).filter(|n| place(*n)).count(), 3);
        assert_eq!((100..120).filter(|n| open(*n)).count(), 6);
        // They leave again, and nobody loses a place; but there is no room for anybody more.
        members(0..0);
        assert!(place(0) && place(7) && !place(200) && !open(200));
        // Of a member four circuits are its own, further ones count as anybody's.
        assert_eq!((0..20).filter(|_| open(5)).count(), 0);
        members(5..6);
        assert_eq!((0..20).filter(|_| open(5)).count(), 4);
    }

    #[test]
    fn circuits_under_way_are_bounded_by_source() {
        let (shares, now) = (Shares::new(4096), Instant::now());
        let open = |now| shares.may_open(client(1), &at("192.0.2.1"), now);
        assert_eq!((0..1000).filter(|_| open(now)).count(), 96);
        let later = now + Duration::from_secs(60);
        assert_eq!((0..1000).filter(|_| open(later)).count(), 60);
        assert_eq!(shares.refused(), 904 + 940);
    }
}
