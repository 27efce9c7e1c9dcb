//! What stands before each of this node's ways out: how its NAT maps, and what it lets in.
//!
//! A machine with two uplinks stands behind two NATs. What is known of one says nothing of the other: facts are kept by the
//! address of ours that datagrams leave from.

use std::net::{IpAddr, SocketAddr};

use super::{Own, STALE, STEP, Seen};
use crate::model::address::{is_of_this_machine, is_private};
use crate::peer::knock::Unsure;
use crate::wire::paths::{Filtering, Kind, Mapping, NatFacts, Udp};

impl Own {
    /// A test has told what the NAT lets in; whether peers are to be told something else than before.
    pub(in super::super) fn set_filtering(
        &mut self,
        local: Option<IpAddr>,
        filtering: Filtering,
        unsure: Unsure,
    ) -> bool {
        let before = self.lets_in.insert(local, (filtering, unsure));
        before.unwrap_or_default().0 != filtering
    }

    /// Why it is not known what the NAT of the usual way out lets in, where it is not.
    pub(in super::super) fn unsure(&self) -> Unsure {
        self.lets_in(None).1
    }

    fn lets_in(&self, local: Option<IpAddr>) -> (Filtering, Unsure) {
        let way = self.way(local);
        let mut known = self.lets_in.iter();
        let known = known.find(|(local, _)| self.way(**local) == way);
        known.map(|(_, known)| *known).unwrap_or_default()
    }

    /// Our IPv4 address that datagrams leave from where the kernel chooses: the one that it prefers, of those by which
    /// anybody sees us. None where that is not known.
    fn usual(&self) -> Option<IpAddr> {
        let locals = self.locals();
        let mut v4 = locals.into_iter().filter(IpAddr::is_ipv4);
        let seen = self.seen.iter().rev().filter_map(|seen| seen.local);
        let mut seen = seen.filter(IpAddr::is_ipv4);
        let is_seen = |ip: &IpAddr| seen.clone().any(|local| local == *ip);
        // One that is not among those that are told of, such as a tunnel's, may be the only one.
        let preferred = v4.clone().find(is_seen);
        preferred.or_else(|| seen.next()).or_else(|| v4.next())
    }

    /// The way out of that address of ours; of none, and of an IPv6 one, which no NAT stands before, the usual one.
    fn way(&self, local: Option<IpAddr>) -> Option<IpAddr> {
        local.filter(IpAddr::is_ipv4).or_else(|| self.usual())
    }

    /// What others see of the datagrams that leave by that way, over IPv4.
    fn seen_by_way(&self, local: Option<IpAddr>) -> Vec<&Seen> {
        let (way, usual) = (self.way(local), self.usual());
        let is_so = |seen: &&Seen| seen.address.is_ipv4() && seen.local.or(usual) == way;
        self.seen.iter().filter(is_so).collect()
    }

    /// How the NAT maps: what two or more see of one address of its.
    fn mapping(&self, local: Option<IpAddr>) -> Mapping {
        let v4 = self.seen_by_way(local);
        let Some(newest) = v4.iter().max_by_key(|seen| seen.at) else {
            return Mapping::Unknown;
        };
        if self.is_own(newest.address) {
            return Mapping::Open;
        }
        let fresh = v4
            .iter()
            .filter(|seen| seen.at + STALE > newest.at && seen.address.ip() == newest.address.ip());
        // What one observer sees counts once: it may lie. So does what one relay sees, whoever has named it.
        let mut of: Vec<&Seen> = Vec::new();
        for seen in fresh {
            let is_same = |other: &Seen| seen.relay.is_some() && other.relay == seen.relay;
            of.retain(|other| other.by != seen.by && !is_same(other));
            of.push(seen);
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

    /// The address that a NAT which counts its ports gives the next destination, on the usual way.
    pub(super) fn predicted(&self) -> Option<SocketAddr> {
        let Mapping::Dependent { step: Some(step) } = self.mapping(None) else {
            return None;
        };
        let newest = self.seen_by_way(None).into_iter().next_back()?;
        let port = newest.address.port().checked_add_signed(step)?;
        Some(SocketAddr::new(newest.address.ip(), port))
    }

    /// What stands before the way by which datagrams leave from that address of ours; without one before the usual way.
    pub(in super::super) fn facts(&self, local: Option<IpAddr>) -> NatFacts {
        let has = |v4: bool| {
            self.named
                .iter()
                .any(|named| named.address.is_ipv4() == v4 && !named.address.ip().is_loopback())
        };
        // It is blocked where it passes by no way out. Of one by which nobody sees us, while others do by another, it is not
        // known: nobody may have been asked by it.
        let is_seen = match local.filter(IpAddr::is_ipv4) {
            Some(_) => !self.seen_by_way(local).is_empty(),
            None => !self.seen.is_empty(),
        };
        let udp = match (self.silent, is_seen) {
            (true, _) => Udp::Blocked,
            (false, true) => Udp::Works,
            (false, false) => Udp::Unknown,
        };
        let known = NatFacts {
            mapping: self.mapping(local),
            filtering: self.lets_in(local).0,
            udp,
            ip4: has(true),
            ip6: has(false),
        };
        match udp {
            // What was seen before holds no more.
            Udp::Blocked => NatFacts {
                mapping: Mapping::Unknown,
                filtering: Filtering::Unknown,
                ..known
            },
            _ => known,
        }
    }

    /// Where datagrams come in from everywhere, whatever else the NAT does: a port that a router opened, or that the owner says
    /// is forwarded. None at an address of which those outside who see this node know nothing: it is another NAT's.
    pub(in super::super) fn open(&self) -> Option<SocketAddr> {
        let seen = self.mapped().into_iter().map(|address| address.ip());
        let outside: Vec<IpAddr> = seen.filter(|ip| ip.is_ipv4() && !is_private(*ip)).collect();
        let leads_here = |ip: IpAddr| {
            let is_private = is_private(ip) || is_of_this_machine(ip);
            match ip.is_ipv4() && !outside.is_empty() {
                true => outside.contains(&ip),
                false => !is_private,
            }
        };
        let mapped = self.named(Kind::Mapped);
        let mut all = mapped.chain(self.named(Kind::Advertised));
        all.find(|address| leads_here(address.ip().to_canonical()))
    }

    /// The facts of every way out that anybody sees, the usual one first.
    pub(super) fn all_facts(&self) -> Vec<NatFacts> {
        let others = self.locals().into_iter().filter(IpAddr::is_ipv4);
        let ways = std::iter::once(None).chain(others.map(Some));
        ways.map(|local| self.facts(local)).collect()
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
