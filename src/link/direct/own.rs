//! Where this node may be reached by datagrams, and what stands before it: what its interfaces and configuration say, and
//! what others see.
//!
//! An authenticated answer names the address that its probe came from, and so do a relay and a meeting point. One of them
//! may lie, so that nothing is concluded from one alone: a lie costs a useless candidate.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::backoff::HoldDown;
use crate::model::address::is_within;
use crate::model::id::PeerId;
use crate::peer::knock::Unsure;
use crate::peer::path::{self, Origin};
use crate::wire::paths::{
    Candidate, Filtering, Kind, Mapping, NatFacts, Paths, Udp, within_quotas,
};

/// The most observers that are remembered: more say nothing new. Another takes the place of one that is stale.
const OBSERVERS: usize = 16;
/// What was seen longer ago than this before the newest says nothing: a NAT may have begun anew since.
const STALE: Duration = Duration::from_secs(180);
/// Changes of what one observer sees that are followed at once; then fewer and fewer are.
const CHANGES: u32 = 5;
/// Ports tried of a peer whose NAT counts them, one after the other: other destinations take some in between.
const PREDICTED: i16 = 12;
/// The largest distance of two ports that is taken for counting up or down.
const STEP: i16 = 32;
/// No NAT gives out ports below this one; well-known services have them.
const UNPRIVILEGED: u16 = 1024;

/// An address that somebody sees our datagrams come from.
#[derive(Debug, Clone, Copy)]
struct Seen {
    by: PeerId,
    address: SocketAddr,
    /// Our address that the datagrams left from, where it is known.
    local: Option<IpAddr>,
    at: Instant,
    /// An observer that changes its mind all the time is not followed each time: every member is told of a change.
    held: HoldDown,
}

/// What this node knows of itself.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// What interfaces and configuration say.
    named: Vec<Candidate>,
    /// What others see, the newest address last, one of each observer, family and address of ours.
    seen: Vec<Seen>,
    /// Addresses that are neither told nor tried.
    denied: Vec<IpNet>,
    /// What the NAT lets in, where datagrams leave from that address of ours, and why that is not known.
    lets_in: BTreeMap<Option<IpAddr>, (Filtering, Unsure)>,
    /// The links that default routes lead over.
    uplinks: Vec<u32>,
    /// Whether streams connect while no datagram was ever answered.
    silent: bool,
}

impl Own {
    /// Takes what interfaces and configuration say, in place of what they said before; whether that is news.
    pub(super) fn set_named(&mut self, mut named: Vec<Candidate>) -> bool {
        // Another order is no news.
        named.sort_by_key(|named| (named.kind, named.address));
        if named == self.named {
            return false;
        }
        let before = std::mem::replace(&mut self.named, named);
        let locals = self.locals();
        let gone = before.iter().filter(|named| named.kind == Kind::Host);
        let gone: Vec<IpAddr> = gone
            .map(|named| named.address.ip())
            .filter(|ip| !ip.is_loopback() && !locals.contains(ip))
            .collect();
        // What was seen by way of a network that this machine has left holds no more; it is asked anew.
        self.seen.retain(|seen| match seen.local {
            Some(local) => !gone.contains(&local),
            None => gone.iter().all(|ip| ip.is_ipv4() != seen.address.is_ipv4()),
        });
        true
    }

    /// Takes the links that default routes lead over. Whether others are used than before: where one is gone, what was seen
    /// is forgotten.
    pub(super) fn set_uplinks(&mut self, uplinks: Vec<u32>) -> bool {
        let is_gone = self.uplinks.iter().any(|link| !uplinks.contains(link));
        if is_gone {
            self.seen.clear();
        }
        let before = std::mem::replace(&mut self.uplinks, uplinks);
        before != self.uplinks
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

    /// This machine's own addresses that datagrams may leave from, best first.
    pub(super) fn locals(&self) -> Vec<IpAddr> {
        let mut locals = Vec::new();
        for named in self.named.iter().filter(|named| named.kind == Kind::Host) {
            let ip = named.address.ip();
            if !ip.is_loopback() && !locals.contains(&ip) {
                locals.push(ip);
            }
        }
        locals
    }

    /// Somebody sees our datagrams come from there, those that leave from `local` where that is known; whether peers are to
    /// be told something else than before.
    pub(super) fn observed_from(
        &mut self,
        now: Instant,
        address: SocketAddr,
        by: PeerId,
        local: Option<IpAddr>,
    ) -> bool {
        let before = (self.mapped(), self.facts());
        self.note(now, address, by, local) && before != (self.mapped(), self.facts())
    }

    /// Remembers what an observer sees; whether it is another address than before.
    fn note(
        &mut self,
        now: Instant,
        address: SocketAddr,
        by: PeerId,
        local: Option<IpAddr>,
    ) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let same = |seen: &Seen| {
            seen.by == by && seen.local == local && seen.address.is_ipv4() == address.is_ipv4()
        };
        let mut held = HoldDown::new(CHANGES);
        if let Some(at) = self.seen.iter().position(same) {
            if let Some(seen) = self.seen.get_mut(at)
                && seen.address == address
            {
                // It keeps its place: the order is that in which a NAT gave addresses out.
                seen.at = now;
                return false;
            }
            held = self.seen.get(at).map_or(held, |seen| seen.held);
            if held.until(now).is_some() {
                return false;
            }
            held.changed(now);
            self.seen.remove(at);
        }
        if self.seen.len() >= OBSERVERS {
            let is_stale = |seen: &Seen| seen.at + STALE <= now;
            let Some(at) = self.seen.iter().position(is_stale) else {
                return false;
            };
            self.seen.remove(at);
        }
        self.seen.push(Seen {
            by,
            address,
            local,
            at: now,
            held,
        });
        true
    }

    /// Whether it says where it sees our datagrams come from: it is a member, or a relay that this node chose.
    pub(super) fn is_seen_by(&self, observer: PeerId) -> bool {
        self.seen.iter().any(|seen| seen.by == observer)
    }

    /// The addresses of that kind which interfaces and configuration name.
    pub(super) fn named(&self, kind: Kind) -> impl Iterator<Item = SocketAddr> {
        let of_kind = self.named.iter().filter(move |named| named.kind == kind);
        of_kind.map(|named| named.address)
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

    /// A test has told what the NAT lets in; whether peers are to be told something else than before.
    pub(super) fn set_filtering(
        &mut self,
        local: Option<IpAddr>,
        filtering: Filtering,
        unsure: Unsure,
    ) -> bool {
        let before = self.facts();
        self.lets_in.insert(local, (filtering, unsure));
        before != self.facts()
    }

    /// What was tested holds no more.
    pub(super) fn forget_filtering(&mut self) {
        self.lets_in.clear();
    }

    /// What the NAT lets in; of several uplinks, what lets in the least.
    fn lets_in(&self) -> (Filtering, Unsure) {
        self.lets_in.values().next().copied().unwrap_or_default()
    }

    /// Why it is not known what the NAT lets in, where it is not.
    pub(super) fn unsure(&self) -> Unsure {
        self.lets_in().1
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
        let Some(newest) = v4.iter().max_by_key(|seen| seen.at) else {
            return Mapping::Unknown;
        };
        if self.is_own(newest.address) {
            return Mapping::Open;
        }
        let fresh = v4
            .iter()
            .filter(|seen| seen.at + STALE > newest.at && seen.address.ip() == newest.address.ip());
        // What one observer sees counts once: it may lie.
        let mut of: Vec<&Seen> = Vec::new();
        for seen in fresh {
            of.retain(|other| other.by != seen.by);
            of.push(*seen);
        }
        let ports: Vec<u16> = of.iter().map(|seen| seen.address.port()).collect();
        if ports.len() < 2 {
            return Mapping::Unknown;
        }
        if ports.iter().all(|port| *port == newest.address.port()) {
            return Mapping::Independent;
        }
        Mapping::Dependent { step: step(&ports) }
    }

    /// The address that a NAT which counts its ports gives the next destination.
    fn predicted(&self) -> Option<SocketAddr> {
        let Mapping::Dependent { step: Some(step) } = self.mapping() else {
            return None;
        };
        let newest = self.seen.iter().rev().find(|seen| seen.address.is_ipv4())?;
        let port = newest.address.port().checked_add_signed(step)?;
        Some(SocketAddr::new(newest.address.ip(), port))
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
            filtering: self.lets_in().0,
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
        let predicted = self.predicted().map(|address| Candidate {
            address,
            kind: Kind::Predicted,
        });
        let all = observed.chain(predicted).chain(self.named.iter().copied());
        within_quotas(all, |address| {
            path::usable(address, Origin::Told, overlay)
                .filter(|address| !is_within(address.ip(), &self.denied))
        })
    }
}

/// By how much each port differs from the one before, as far as can be told: all count the same way, and not far, since
/// other destinations may have taken some in between.
fn step(ports: &[u16]) -> Option<i16> {
    let steps: Vec<i16> = ports
        .iter()
        .zip(ports.iter().skip(1))
        .map(|(a, b)| i16::try_from(i32::from(*b).saturating_sub(i32::from(*a))).ok())
        .collect::<Option<_>>()?;
    let same_way = |step: &i16| {
        let first = steps.first().copied().unwrap_or(0);
        step.signum() == first.signum() && (1..=STEP).contains(&step.abs())
    };
    if !steps.iter().all(same_way) {
        return None;
    }
    let first = steps.first().copied()?;
    // Two ports alone do not tell the step.
    let step = if steps.len() < 2 {
        1
    } else {
        steps.iter().fold(0, |a, b| greatest_divisor(a, b.abs()))
    };
    Some(step.saturating_mul(first.signum()))
}

fn greatest_divisor(a: i16, b: i16) -> i16 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a.checked_rem(b).unwrap_or(0));
    }
    a
}

/// By how much the NAT of a peer counts its ports, as the peer says.
fn step_of(told: &Paths) -> Option<i16> {
    let Mapping::Dependent { step } = told.facts.mapping else {
        return None;
    };
    // A lie about the step leads to ports of somebody else's services.
    step.filter(|step| step.unsigned_abs() <= STEP.unsigned_abs())
}

/// The port that such a NAT is expected to give next, and by how much it counts.
pub(super) fn counted(told: &Paths) -> Option<(u16, i16)> {
    let predicted = told.candidates.iter().find(|c| c.kind == Kind::Predicted)?;
    Some((predicted.address.port(), step_of(told)?))
}

/// Where a peer whose NAT counts its ports may be found next, beyond what it told.
pub(super) fn expected(told: &Paths) -> Vec<SocketAddr> {
    let Some(step) = step_of(told) else {
        return Vec::new();
    };
    let of = |candidate: &Candidate| {
        let (ip, port) = (candidate.address.ip(), candidate.address.port());
        let at = move |n: i16| {
            let port = port.checked_add_signed(step.checked_mul(n)?)?;
            (port >= UNPRIVILEGED).then_some(SocketAddr::new(ip, port))
        };
        (1..PREDICTED).filter_map(at)
    };
    let predicted = told.candidates.iter().find(|c| c.kind == Kind::Predicted);
    predicted.map(of).into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    impl Own {
        fn observed(&mut self, now: Instant, address: SocketAddr, by: PeerId) -> bool {
            self.observed_from(now, address, by, None)
        }
    }

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
        let other = [(1, "198.51.100.1:5000"), (2, "198.51.100.1:5700")];
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
        let shared = [
            (1, "198.51.100.1:5000"),
            (2, "198.51.100.1:4996"),
            (3, "198.51.100.1:4990"),
        ];
        assert_eq!(mapping(&shared), Mapping::Dependent { step: Some(-2) });
        assert_eq!(mapping(&shared[..2]), Mapping::Dependent { step: Some(-1) });
        let random = [
            (1, "198.51.100.1:5000"),
            (2, "198.51.100.1:5002"),
            (3, "198.51.100.1:4990"),
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

    #[test]
    fn what_was_seen_by_way_of_a_network_that_was_left_is_forgotten() {
        let mut own = Own::default();
        let (home, mobile) = (host("192.168.1.7:4100"), host("10.9.0.7:4100"));
        let now = some_moment();
        let local = |named: &Candidate| Some(named.address.ip());
        own.set_named(vec![home, mobile]);
        own.observed_from(now, at("198.51.100.1:4100"), by(1), local(&home));
        own.observed_from(now, at("198.51.100.1:4100"), by(2), None);
        own.observed_from(now, at("203.0.113.9:4100"), by(1), local(&mobile));
        own.observed(now, at("[2001:db8::7]:4100"), by(2));
        assert_eq!(own.seen().count(), 4);
        // Another interface comes up: nothing is void.
        own.set_named(vec![home, mobile, host("172.16.0.7:4100")]);
        assert_eq!(own.seen().count(), 4);
        own.set_named(vec![mobile]);
        let left: Vec<SocketAddr> = own.seen().map(|seen| seen.0).collect();
        assert_eq!(left, [at("203.0.113.9:4100"), at("[2001:db8::7]:4100")]);
    }

    #[test]
    fn what_was_seen_is_forgotten_with_the_default_route_it_was_seen_by() {
        let mut own = Own::default();
        assert!(own.set_uplinks(vec![2]));
        own.observed(some_moment(), at("198.51.100.1:4100"), by(1));
        assert!(!own.set_uplinks(vec![2]));
        assert!(own.set_uplinks(vec![2, 3]), "a further one is news");
        assert_eq!(own.seen().count(), 1);
        assert!(own.set_uplinks(vec![3]));
        assert_eq!(own.seen().count(), 0);
    }

    #[test]
    fn an_observer_that_alternates_makes_news_rarer_and_rarer() {
        let mut own = Own::default();
        let mut news = 0;
        for half in 0..1200u32 {
            let now = some_moment() + Duration::from_millis(500) * half;
            let port = if half % 2 == 0 { 5000 } else { 6000 };
            let address = SocketAddr::from(([198, 51, 100, 1], port));
            news += u32::from(own.observed(now, address, by(1)));
        }
        assert!(news <= 40, "{news} changes told in ten minutes");
    }

    #[test]
    fn more_observers_than_are_remembered_are_no_news_again_and_again() {
        let mut own = Own::default();
        let mut news = 0;
        for round in 0..20 {
            for n in 1..=50u8 {
                let address = SocketAddr::from(([198, 51, 100, 1], 5000 + 97 * u16::from(n)));
                let now = some_moment() + Duration::from_secs(2) * round;
                news += u32::from(own.observed(now, address, by(n)));
            }
        }
        assert!(news <= u32::try_from(OBSERVERS).unwrap(), "{news}");
        // One that is stale gives its place to another.
        let later = some_moment() + STALE * 2;
        assert!(own.observed(later, at("203.0.113.1:5000"), by(60)));
    }

    #[test]
    fn a_step_that_nobody_counts_by_leads_to_no_port() {
        let of = |port: u16, step| Paths {
            candidates: vec![Candidate {
                address: SocketAddr::from(([198, 51, 100, 1], port)),
                kind: Kind::Predicted,
            }],
            facts: NatFacts {
                mapping: Mapping::Dependent { step: Some(step) },
                ..NatFacts::default()
            },
            probe: None,
        };
        assert!(expected(&of(1043, -90)).is_empty());
        assert!(expected(&of(1030, -2)).iter().all(|a| a.port() >= 1024));
        assert_eq!(expected(&of(5000, i16::MIN)).len(), 0);
    }

    #[test]
    fn the_next_ports_of_a_nat_that_counts_are_told_and_tried() {
        let mut own = Own::default();
        own.set_named(vec![host("192.168.1.7:4100")]);
        for (n, port) in [(1, 5000), (2, 4998), (3, 4996)] {
            own.observed(
                some_moment(),
                SocketAddr::from(([198, 51, 100, 1], port)),
                by(n),
            );
        }
        let told = Paths {
            candidates: own.candidates(&[]),
            facts: own.facts(),
            probe: None,
        };
        let predicted = told.candidates.iter().find(|c| c.kind == Kind::Predicted);
        assert_eq!(predicted.unwrap().address, at("198.51.100.1:4994"));
        let expected = expected(&told);
        assert_eq!(expected.first(), Some(&at("198.51.100.1:4992")));
        assert_eq!(expected.len(), 11);
        assert!(super::expected(&Paths::default()).is_empty());
        // At the end of the numbers there are none left.
        own.observed(some_moment(), at("198.51.100.1:2"), by(1));
        own.observed(some_moment(), at("198.51.100.1:1"), by(2));
        own.observed(some_moment(), at("198.51.100.1:0"), by(3));
        assert!(
            own.candidates(&[])
                .iter()
                .all(|c| c.kind != Kind::Predicted)
        );
    }
}
