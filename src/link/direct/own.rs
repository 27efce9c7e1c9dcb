//! Where this node may be reached by datagrams, and what stands before it: what its interfaces and configuration say, and
//! what others see.
//!
//! An authenticated answer names the address that its probe came from, and so do a relay and a meeting point. One of them
//! may lie, so that nothing is concluded from one alone: a lie costs a useless candidate.

mod nat;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::backoff::HoldDown;
use crate::model::address::is_within;
use crate::model::heard::is_link_local;
use crate::model::id::PeerId;
use crate::peer::knock::Unsure;
use crate::peer::path::{self, Origin};
use crate::wire::paths::{Candidate, Filtering, Kind, Mapping, Paths, within_quotas};

/// The most observers that are remembered: more say nothing new. Another takes the place of one that is stale.
const OBSERVERS: usize = 16;
/// What was seen longer ago than this before the newest says nothing: a NAT may have begun anew since.
const STALE: Duration = Duration::from_secs(180);
/// Who was seen so lately shows that datagrams pass now.
const SEEN_NOW: Duration = Duration::from_secs(5);
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
    /// The relay whose view it is, by its address: peers that name one relay repeat what it alone sees.
    relay: Option<SocketAddr>,
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
    /// What interfaces and configuration say, those of a kind that the kernel prefers first.
    named: Vec<Candidate>,
    /// Our addresses on the links that default routes lead over, those first that the kernel prefers.
    preferred: Vec<IpAddr>,
    /// Where those see this node whom the configuration names.
    external: Vec<SocketAddr>,
    /// What others see, the newest address last, one of each observer, family and address of ours.
    seen: Vec<Seen>,
    /// Addresses that are neither told nor tried.
    denied: Vec<IpNet>,
    /// What the NAT lets in, where datagrams leave from that address of ours, and why that is not known.
    lets_in: BTreeMap<Option<IpAddr>, (Filtering, Unsure)>,
    /// The links that default routes lead over.
    uplinks: Vec<u32>,
    /// Whether streams connect while no datagram is answered by anybody.
    silent: bool,
}

impl Own {
    /// Takes what interfaces and configuration say, in place of what they said before; whether that is news.
    pub(super) fn set_named(&mut self, mut named: Vec<Candidate>) -> bool {
        // Another order is no news.
        self.sort(&mut named);
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
        self.lets_in
            .retain(|local, _| local.is_none_or(|ip| locals.contains(&ip)));
        true
    }

    /// Takes where those see this node whom the configuration names; whether that is news.
    pub(super) fn set_external(&mut self, seen: Vec<SocketAddr>) -> bool {
        std::mem::replace(&mut self.external, seen) != self.external
    }

    /// Takes our addresses on the links that default routes lead over, those first that the kernel prefers; whether addresses
    /// that are named come in another order than before.
    pub(super) fn set_preferred(&mut self, preferred: Vec<IpAddr>) -> bool {
        self.preferred = preferred;
        let mut named = self.named.clone();
        self.sort(&mut named);
        std::mem::replace(&mut self.named, named) != self.named
    }

    /// Puts the addresses of each kind into the order in which they are told and tried.
    fn sort(&self, named: &mut [Candidate]) {
        let rank = |ip: IpAddr| {
            let place = self.preferred.iter().position(|known| *known == ip);
            place.unwrap_or(usize::MAX)
        };
        named.sort_by_key(|named| (named.kind, rank(named.address.ip()), named.address));
    }

    /// Takes the links that default routes lead over. Whether others are used than before: where one is gone, what was seen
    /// is forgotten.
    pub(super) fn set_uplinks(&mut self, uplinks: Vec<u32>) -> bool {
        let is_gone = self.uplinks.iter().any(|link| !uplinks.contains(link));
        if is_gone {
            self.seen.clear();
        }
        let before = std::mem::replace(&mut self.uplinks, uplinks);
        if before != self.uplinks {
            self.lets_in.clear();
        }
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

    /// Streams connect to so many peers whom no datagram reaches, and datagrams reach nobody; none: they do. Whether it changes
    /// what is known of this node. Where datagrams passed before, one peer alone may be to blame.
    pub(super) fn set_silent(&mut self, now: Instant, silent: usize) -> bool {
        let before = self.facts(None).udp;
        let is_fresh = self.seen.iter().any(|seen| seen.at + SEEN_NOW > now);
        let least = if self.seen.is_empty() { 1 } else { 2 };
        self.silent = silent >= least && !is_fresh;
        self.facts(None).udp != before
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
        (by, relay): (PeerId, Option<SocketAddr>),
        local: Option<IpAddr>,
    ) -> bool {
        let before = (self.mapped(), self.all_facts());
        let was_silent = std::mem::replace(&mut self.silent, false);
        // What a LAN peer sees over a link-local address is ours on that link alone: no NAT shows there.
        let is_news = !is_link_local(address.ip()) && self.note(now, address, (by, relay), local);
        (is_news || was_silent) && before != (self.mapped(), self.all_facts())
    }

    /// Remembers what an observer sees; whether it is another address than before.
    fn note(
        &mut self,
        now: Instant,
        address: SocketAddr,
        (by, relay): (PeerId, Option<SocketAddr>),
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
                (seen.at, seen.relay) = (now, relay);
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
            relay,
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

    /// Where others see our datagrams come from, and who does, the newest last.
    pub(super) fn seen(&self) -> impl Iterator<Item = (SocketAddr, PeerId)> {
        self.seen.iter().map(|seen| (seen.address, seen.by))
    }

    /// Where peers are told to look for us: at most so many of a kind, best first.
    pub(super) fn candidates(&self, overlay: &[IpNet]) -> Vec<Candidate> {
        let external = self.external.iter().copied();
        let external = external.filter(|address| !self.is_own(*address));
        let observed = external.chain(self.mapped()).map(|address| Candidate {
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
mod tests;
