//! The pairs of one of our own addresses and one of the peer's, on a machine that has several which may reach the peer.
//!
//! Each address of the peer has one candidate that leaves our end to the kernel. Where two or more own addresses may reach
//! it, each of these makes a further pair with it: a machine with two uplinks finds the one that works, whatever its route
//! table prefers. The pair that the kernel chooses anyway stands for the same pair with our address named.

use std::net::IpAddr;
use std::time::Instant;

use super::{Candidate, Candidates, Origin, THIN, THIN_TRIES};
use crate::peer::{Pair, Remote};
use crate::wire::paths::Kind;

/// The most own addresses of one family that are tried: two uplinks, and one more.
const MAX_LOCALS: usize = 3;
/// The most pairs with a named address of ours: twice as many probes as the addresses of the peer alone cost.
const MAX_PAIRS: usize = 24;

/// Whether datagrams from our address may reach the other one at all, by what both are.
fn may_reach(local: IpAddr, remote: IpAddr) -> bool {
    let is_same_scope = |is: fn(IpAddr) -> bool| is(local) == is(remote);
    let is_link_local = |ip| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    local.is_ipv4() == remote.is_ipv4()
        && is_same_scope(|ip| ip.is_loopback())
        && is_same_scope(is_link_local)
}

/// Our own addresses, best first.
#[derive(Debug, Default)]
pub(super) struct Locals(Vec<IpAddr>);

/// Whether two IPv6 addresses are of one network, and so of one uplink.
fn share_network(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V6(one), IpAddr::V6(other)) => one.octets().get(..8) == other.octets().get(..8),
        _ => one == other,
    }
}

impl Locals {
    /// The first of each IPv6 network, and each of IPv4, whose networks are not known here.
    fn new(locals: &[IpAddr]) -> Locals {
        let mut kept: Vec<IpAddr> = Vec::new();
        for local in locals {
            if !kept.iter().any(|known| share_network(*known, *local)) {
                kept.push(*local);
            }
        }
        Locals(kept)
    }

    /// Those that may reach the peer there; none where there are fewer than two to choose from.
    fn to(&self, remote: Remote) -> Vec<IpAddr> {
        let ip = remote.address.ip();
        let all = self.0.iter().copied().filter(|local| may_reach(*local, ip));
        let all: Vec<IpAddr> = all.take(MAX_LOCALS).collect();
        if all.len() < 2 { Vec::new() } else { all }
    }
}

impl Candidates {
    /// Takes our own addresses, best first, in place of those before. `keep` is never pushed out.
    pub(in super::super) fn set_locals(
        &mut self,
        now: Instant,
        locals: &[IpAddr],
        keep: Option<Remote>,
    ) {
        self.locals = Locals::new(locals);
        self.ways.clear();
        self.pair_up(now, keep);
    }

    /// Our addresses that may reach the peer there, where there is a choice.
    pub(in super::super) fn locals_to(&self, remote: Remote) -> Vec<IpAddr> {
        self.locals.to(remote)
    }

    /// Whether that is no address of ours, where ours are known: a NAT shows it to the peer in place of one.
    pub(in super::super) fn is_translated(&self, outside: IpAddr) -> bool {
        let ours = &self.locals.0;
        let is_ours = |local: &IpAddr| share_network(*local, outside);
        let comparable = ours.iter().any(|local| may_reach(*local, outside));
        comparable && !ours.iter().any(is_ours)
    }

    /// What the peer says of its address in that pair.
    pub(in super::super) fn kind(&self, pair: Pair) -> Option<Kind> {
        let candidate = self.list.iter().find(|c| c.pair == pair)?;
        Some(candidate.kind)
    }

    /// Makes the pairs of each address of the peer's own with each address of ours, and drops those of addresses that are
    /// gone. Legs have none: a relay takes frames of a leg from one address only. Nor has what a helper socket reaches.
    pub(super) fn pair_up(&mut self, now: Instant, keep: Option<Remote>) {
        let plain = self.list.iter().filter(|c| c.pair.local.is_none());
        let is_own = |remote: Remote| remote.leg.is_none() && remote.helper.is_none();
        let own = plain.filter(|c| is_own(c.pair.remote));
        let mut wanted: Vec<(Pair, Candidate)> = Vec::new();
        for candidate in own {
            let remote = candidate.pair.remote;
            let locals = self.locals.to(remote);
            let is_kept = Some(remote) == keep;
            if wanted.len().saturating_add(locals.len()) > MAX_PAIRS && !is_kept {
                continue;
            }
            for local in locals {
                let pair = Pair {
                    local: Some(local),
                    remote,
                };
                wanted.push((pair, Candidate::new(now, pair, candidate.origin)));
            }
        }
        let is_wanted = |c: &Candidate| wanted.iter().any(|(pair, _)| *pair == c.pair);
        self.list.retain(|c| c.pair.local.is_none() || is_wanted(c));
        for (pair, fresh) in wanted {
            if self.get(pair).is_none() {
                self.list.push(fresh);
            }
            let plain = self.get(pair.remote.into());
            let Some(known) = plain.map(|c| (c.origin, c.kind, c.named, c.listed)) else {
                continue;
            };
            if let Some(candidate) = self.get(pair) {
                (
                    candidate.origin,
                    candidate.kind,
                    candidate.named,
                    candidate.listed,
                ) = known;
            }
        }
    }

    /// The peer is to be reached by a helper socket, too, at the same address as by that pair.
    pub(in super::super) fn add_helper(&mut self, now: Instant, known: Pair, remote: Remote) {
        let origin = self.get(known).map_or(Origin::Host, |c| c.origin);
        self.take(now, &[remote], origin, &[], Some(known.remote));
        if let Some(candidate) = self.get(remote.into()) {
            candidate.named = true;
        }
    }

    /// Nothing of the least size arrives there, or no packets do. A link-local address may be known with its interface and
    /// without: what holds of the one holds of the other.
    pub(in super::super) fn thin(&mut self, now: Instant, address: Pair) {
        let is_there = |c: &&mut Candidate| {
            let (here, there) = (c.pair.remote, address.remote);
            c.pair.local == address.local
                && (here.leg, here.helper) == (there.leg, there.helper)
                && here.address.ip() == there.address.ip()
                && here.address.port() == there.address.port()
        };
        for candidate in self.list.iter_mut().filter(is_there) {
            candidate.due = now + THIN;
            candidate.padded = THIN_TRIES;
            candidate.answered = false;
            candidate.barren = Some(now + THIN);
        }
    }

    /// The candidate that stands for a pair: the one that names our address, or else the one that leaves it to the kernel.
    pub(in super::super) fn key(&self, pair: Pair) -> Pair {
        let is_named = self.list.iter().any(|c| c.pair == pair);
        if is_named && !self.is_double(pair) {
            pair
        } else {
            pair.remote.into()
        }
    }

    /// A frame came that way. What the kernel may choose leaves from where it came to, unless that is a pair of its own.
    pub(in super::super) fn note(&mut self, pair: Pair) {
        if self.key(pair).local.is_none() {
            self.ways.note(pair);
        }
    }

    /// Nothing that was learnt of our own ends holds any more.
    pub(in super::super) fn forget_ways(&mut self) {
        self.ways.clear();
    }

    /// An answer to what the kernel chose came that way: so its choice is known.
    pub(in super::super) fn settle(&mut self, pair: Pair) {
        self.ways.note(pair);
    }

    /// The pair that is sent on for a candidate.
    pub(in super::super) fn way(&self, key: Pair) -> Pair {
        Pair {
            local: key.local.or_else(|| self.ways.of(key.remote)),
            remote: key.remote,
        }
    }

    /// Whether the pair names the address that the kernel chooses anyway.
    pub(super) fn is_double(&self, pair: Pair) -> bool {
        pair.local.is_some() && self.ways.of(pair.remote) == pair.local
    }

    /// Whether two pairs fail for different reasons: they differ in our address, the family, or the relay.
    pub(super) fn differs(&self, one: Pair, other: Pair) -> bool {
        one.remote.leg.is_some() != other.remote.leg.is_some()
            || (one.remote.leg.is_some() && one.remote.address != other.remote.address)
            || one.remote.address.is_ipv4() != other.remote.address.is_ipv4()
            || self.leaves_elsewhere(one, other)
    }

    /// Whether both are known to leave from different addresses of ours.
    fn leaves_elsewhere(&self, one: Pair, other: Pair) -> bool {
        let ends = self.way(one).local.zip(self.way(other).local);
        ends.is_some_and(|(one, other)| one != other)
    }
}
