//! Where this node may be reached by datagrams, and what stands before it: what its interfaces and configuration say, and
//! what others see.
//!
//! An authenticated answer names the address that its probe came from, and so do a relay and a meeting point. One of them
//! may lie, so that nothing is concluded from one alone: a lie costs a useless candidate.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::model::address::is_within;
use crate::model::id::PeerId;
use crate::peer::path::{self, Origin};
use crate::wire::paths::{Candidate, Filtering, Kind, Mapping, NatFacts, Udp, within_quotas};

/// The most observers that are remembered; the one that was heard least lately goes.
const OBSERVERS: usize = 16;
/// What was seen longer ago than this before the newest says nothing: a NAT may have begun anew since.
const STALE: Duration = Duration::from_secs(180);
/// The largest distance of two ports that is taken for counting up or down.
const STEP: i32 = 64;

/// An address that somebody sees our datagrams come from.
#[derive(Debug, Clone, Copy)]
struct Seen {
    by: PeerId,
    address: SocketAddr,
    at: Instant,
}

/// What this node knows of itself.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// What interfaces, configuration and gateways say.
    named: Vec<Candidate>,
    /// What others see, the newest last, one of each observer and family.
    seen: Vec<Seen>,
    /// Addresses that are neither told nor tried.
    denied: Vec<IpNet>,
    filtering: Filtering,
    /// Whether streams connect while no datagram was ever answered.
    silent: bool,
}

impl Own {
    /// Takes what interfaces, configuration and gateways say, in place of what they said before; whether that is news.
    pub(super) fn set_named(&mut self, mut named: Vec<Candidate>) -> bool {
        // Another order is no news.
        named.sort_by_key(|named| (named.kind, named.address));
        std::mem::replace(&mut self.named, named) != self.named
    }

    /// Takes the networks whose addresses are neither told nor tried, in place of those before.
    pub(super) fn deny(&mut self, denied: Vec<IpNet>) -> bool {
        std::mem::replace(&mut self.denied, denied) != self.denied
    }

    /// The networks whose addresses are neither told nor tried.
    pub(super) fn denied(&self) -> &[IpNet] {
        &self.denied
    }

    /// Streams connect, and datagrams reach that peer, or do not; whether it changes what is known of this node.
    pub(super) fn set_silent(&mut self, silent: bool) -> bool {
        std::mem::replace(&mut self.silent, silent) != silent && self.seen.is_empty()
    }

    /// Somebody sees our datagrams come from there; whether that is news.
    pub(super) fn observed(&mut self, now: Instant, address: SocketAddr, by: PeerId) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let same = |seen: &Seen| seen.by == by && seen.address.is_ipv4() == address.is_ipv4();
        let before = self
            .seen
            .iter()
            .position(same)
            .map(|at| self.seen.remove(at));
        if self.seen.len() >= OBSERVERS {
            self.seen.remove(0);
        }
        self.seen.push(Seen {
            by,
            address,
            at: now,
        });
        before.is_none_or(|before| before.address != address)
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.named
            .iter()
            .any(|named| named.kind == Kind::Host && named.address == address)
    }

    /// The addresses that a NAT gives us, as others see them now, the newest first.
    fn mapped(&self) -> Vec<SocketAddr> {
        let newest = self.seen.iter().map(|seen| seen.at).max();
        let mut all = Vec::new();
        for seen in self.seen.iter().rev() {
            let is_fresh = newest.is_some_and(|newest| seen.at + STALE > newest);
            if is_fresh && !all.contains(&seen.address) && !self.is_own(seen.address) {
                all.push(seen.address);
            }
        }
        all
    }

    /// Where others see our datagrams come from, and who does, the newest last.
    pub(super) fn seen(&self) -> impl Iterator<Item = (SocketAddr, PeerId)> {
        self.seen.iter().map(|seen| (seen.address, seen.by))
    }

    /// How the NAT maps: what two or more see of one address of its.
    fn mapping(&self) -> Mapping {
        let v4: Vec<&Seen> = self
            .seen
            .iter()
            .filter(|seen| seen.address.is_ipv4())
            .collect();
        let Some(newest) = v4.last() else {
            return Mapping::Unknown;
        };
        if self.is_own(newest.address) {
            return Mapping::Open;
        }
        let fresh = v4
            .iter()
            .filter(|seen| seen.at + STALE > newest.at && seen.address.ip() == newest.address.ip());
        let ports: Vec<u16> = fresh.map(|seen| seen.address.port()).collect();
        if ports.len() < 2 {
            return Mapping::Unknown;
        }
        if ports.iter().all(|port| *port == newest.address.port()) {
            return Mapping::Independent;
        }
        Mapping::Dependent { step: step(&ports) }
    }

    /// What stands before this node.
    pub(super) fn facts(&self) -> NatFacts {
        let has = |v4: bool| {
            self.named
                .iter()
                .any(|named| named.address.is_ipv4() == v4 && !named.address.ip().is_loopback())
        };
        let udp = match (self.seen.is_empty(), self.silent) {
            (false, _) => Udp::Works,
            (true, true) => Udp::Blocked,
            (true, false) => Udp::Unknown,
        };
        NatFacts {
            mapping: self.mapping(),
            filtering: self.filtering,
            udp,
            ip4: has(true),
            ip6: has(false),
        }
    }

    /// Where peers are told to look for us: at most so many of a kind, best first.
    pub(super) fn candidates(&self, overlay: &[IpNet]) -> Vec<Candidate> {
        let observed = self.mapped().into_iter().map(|address| Candidate {
            address,
            kind: Kind::Observed,
        });
        within_quotas(observed.chain(self.named.iter().copied()), |address| {
            path::usable(address, Origin::Told, overlay)
                .filter(|address| !is_within(address.ip(), &self.denied))
        })
    }
}

/// By how much each port differs from the one before, where that is always the same.
fn step(ports: &[u16]) -> Option<i16> {
    let mut steps = ports
        .iter()
        .zip(ports.iter().skip(1))
        .map(|(a, b)| i32::from(*b).saturating_sub(i32::from(*a)));
    let first = steps.next()?;
    let constant = ports.len() >= 3 && steps.all(|step| step == first);
    (constant && first != 0 && first.abs() <= STEP)
        .then(|| i16::try_from(first).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn by(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn host(text: &str) -> Candidate {
        Candidate {
            address: at(text),
            kind: Kind::Host,
        }
    }

    fn mapping(seen: &[(u8, &str)]) -> Mapping {
        let mut own = Own::default();
        own.set_named(vec![host("192.168.1.7:4100")]);
        for (n, address) in seen {
            own.observed(some_moment(), at(address), by(*n));
        }
        own.facts().mapping
    }

    #[test]
    fn two_observers_tell_how_a_nat_maps() {
        assert_eq!(mapping(&[]), Mapping::Unknown);
        assert_eq!(mapping(&[(1, "192.168.1.7:4100")]), Mapping::Open);
        assert_eq!(mapping(&[(1, "198.51.100.1:5000")]), Mapping::Unknown);
        let same = [(1, "198.51.100.1:5000"), (2, "198.51.100.1:5000")];
        assert_eq!(mapping(&same), Mapping::Independent);
        let other = [(1, "198.51.100.1:5000"), (2, "198.51.100.1:5007")];
        assert_eq!(mapping(&other), Mapping::Dependent { step: None });
        let again = [(1, "198.51.100.1:5000"), (1, "198.51.100.1:5007")];
        assert_eq!(
            mapping(&again),
            Mapping::Unknown,
            "one that changed its mind"
        );
    }

    #[test]
    fn a_nat_that_counts_up_is_told_from_one_that_does_not() {
        let counted = [
            (1, "198.51.100.1:5000"),
            (2, "198.51.100.1:5002"),
            (3, "198.51.100.1:5004"),
        ];
        assert_eq!(mapping(&counted), Mapping::Dependent { step: Some(2) });
        let random = [
            (1, "198.51.100.1:5000"),
            (2, "198.51.100.1:5002"),
            (3, "198.51.100.1:5003"),
        ];
        assert_eq!(mapping(&random), Mapping::Dependent { step: None });
    }

    #[test]
    fn what_a_neighbour_inside_the_outer_nat_sees_is_another_address_and_no_contradiction() {
        let seen = [(1, "10.0.0.4:4100"), (2, "198.51.100.1:5000")];
        assert_eq!(mapping(&seen), Mapping::Unknown);
    }

    #[test]
    fn an_observer_that_was_heard_long_ago_contradicts_nobody() {
        let mut own = Own::default();
        own.observed(some_moment(), at("198.51.100.1:5000"), by(1));
        own.observed(some_moment() + STALE, at("198.51.100.1:6000"), by(2));
        assert_eq!(own.facts().mapping, Mapping::Unknown);
        let told: Vec<SocketAddr> = own.candidates(&[]).iter().map(|c| c.address).collect();
        assert_eq!(told, [at("198.51.100.1:6000")]);
    }

    #[test]
    fn engine_bridges_cannot_fill_the_list() {
        let mut own = Own::default();
        let named = (1..=16).map(|n| host(&format!("172.{n}.0.1:4100")));
        let advertised = Candidate {
            address: at("203.0.113.9:4100"),
            kind: Kind::Advertised,
        };
        own.set_named(named.chain([advertised]).collect());
        for n in 1..=9 {
            own.observed(some_moment(), at(&format!("198.51.100.{n}:5000")), by(n));
        }
        let told = own.candidates(&[]);
        let count = |kind| told.iter().filter(|c| c.kind == kind).count();
        assert_eq!(
            [Kind::Host, Kind::Observed, Kind::Advertised].map(count),
            [4, 3, 1]
        );
    }

    #[test]
    fn denied_and_overlay_addresses_are_not_told() {
        let mut own = Own::default();
        own.set_named(vec![
            host("10.7.0.1:4100"),
            host("172.17.0.1:4100"),
            host("192.0.2.1:4100"),
        ]);
        own.deny(vec!["172.16.0.0/12".parse().unwrap()]);
        let told = own.candidates(&["10.7.0.0/16".parse().unwrap()]);
        assert_eq!(told, [host("192.0.2.1:4100")]);
    }
}
