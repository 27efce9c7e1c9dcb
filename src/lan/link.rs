//! One link: what was heard there, what is to be said, and when.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::offer::{Offer, Place};
use super::schedule::Schedule;
use super::{
    Entropy, Found, Label, LinkIs, MAX_HEARD, MAX_NAMES, Source, TTL, is_of_any_link, spread,
};
use crate::model::id::{PeerId, SubnetId};

/// Answers of one source that are remembered: a machine with several daemons in several subnets has not more.
const OF_A_SOURCE: usize = 32;
/// The least time between two answers that name the same subnet (RFC 6762, section 6).
const AGAIN: Duration = Duration::from_secs(1);
/// How long the same answer of a peer is no news.
const OLD_NEWS: Duration = Duration::from_secs(5);

/// An answer that was heard.
#[derive(Debug)]
struct Heard {
    peer: PeerId,
    subnet: SubnetId,
    source: IpAddr,
    places: Vec<Place>,
    /// Whether another program of this machine has told of these places.
    is_here: bool,
    at: Instant,
    /// When it was last told of.
    told: Instant,
}

/// Why an answer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its source has its share already.
    Crowded,
    /// None of its addresses is of the link.
    Unusable,
}

/// What is to be said of one subnet.
#[derive(Debug, Default)]
struct Saying {
    due: Option<Instant>,
    /// When it was said last.
    said: Option<Instant>,
    /// How often it is said again after that, a second later each.
    repeats: u8,
}

/// One link of this machine.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) is: LinkIs,
    pub(super) ask: Schedule,
    /// The names of the last question: a multicast comes back to who sent it.
    pub(super) own: Vec<Label>,
    says: BTreeMap<SubnetId, Saying>,
    heard: BTreeMap<Label, Heard>,
}

impl Link {
    pub(super) fn new(is: LinkIs) -> Link {
        Link {
            is,
            ask: Schedule::default(),
            own: Vec::new(),
            says: BTreeMap::new(),
            heard: BTreeMap::new(),
        }
    }

    /// Whether an address is one of this link's networks, or link-local.
    pub(super) fn is_on(&self, address: IpAddr) -> bool {
        let single = |net: &ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        let near = |net: &ipnet::IpNet| net.contains(&address) && !single(net);
        is_of_any_link(address) || self.is.networks.iter().any(near) || self.is_own(address)
    }

    /// The subnet is told of soon, and once more a second after that (RFC 6762, section 8.3).
    pub(super) fn announce(&mut self, subnet: SubnetId, now: Instant, entropy: Entropy<'_>) {
        self.say(subnet, now, entropy);
        self.says.entry(subnet).or_default().repeats = 1;
    }

    /// The subnet is told of soon, but not within a second after it was.
    pub(super) fn say(&mut self, subnet: SubnetId, now: Instant, entropy: Entropy<'_>) {
        let saying = self.says.entry(subnet).or_default();
        let soon = now + spread(entropy);
        let due = saying.said.map_or(soon, |said| soon.max(said + AGAIN));
        saying.due = Some(saying.due.map_or(due, |before| before.min(due)));
    }

    /// The subnets that are to be told of now; they count as told of.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SubnetId> {
        let is_due = |saying: &Saying| saying.due.is_some_and(|due| due <= now);
        let mut due = Vec::new();
        for (subnet, saying) in self.says.iter_mut().filter(|(_, saying)| is_due(saying)) {
            saying.said = Some(now);
            saying.due = (saying.repeats > 0).then(|| now + AGAIN);
            saying.repeats = saying.repeats.saturating_sub(1);
            due.push(*subnet);
        }
        due
    }

    /// When something is to be said or asked.
    pub(super) fn due(&self) -> Option<Instant> {
        let says = self.says.values().filter_map(|saying| saying.due);
        says.chain(self.ask.due()).min()
    }

    /// Forgets what concerns other subnets than these.
    pub(super) fn retain(&mut self, is_kept: &dyn Fn(SubnetId) -> bool) {
        self.says.retain(|subnet, _| is_kept(*subnet));
        self.heard.retain(|_, heard| is_kept(heard.subnet));
    }

    /// The answers that are known and may still be remembered for half of their time (RFC 6762, section 7.1), the newest first.
    pub(super) fn known(&self, now: Instant) -> Vec<Label> {
        let mut known: Vec<_> = self
            .heard
            .iter()
            .filter(|(_, heard)| now.saturating_duration_since(heard.at) < TTL / 2)
            .map(|(label, heard)| (std::cmp::Reverse(heard.at), *label))
            .collect();
        known.sort_unstable();
        let labels = known.into_iter().map(|(_, label)| label);
        labels.take(MAX_NAMES).collect()
    }

    pub(super) fn has_heard(&self, label: &Label) -> bool {
        self.heard.contains_key(label)
    }

    /// The peers that were heard of in a subnet and may still be remembered.
    pub(super) fn peers(&self, subnet: SubnetId, now: Instant) -> impl Iterator<Item = PeerId> {
        let fresh = move |heard: &&Heard| {
            heard.subnet == subnet && now.saturating_duration_since(heard.at) < TTL
        };
        self.heard.values().filter(fresh).map(|heard| heard.peer)
    }

    /// Takes an answer, and says whom it tells of if that is news.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        label: Label,
        subnet: SubnetId,
        source: Source,
        offer: Offer,
    ) -> Result<Option<Found>, Refused> {
        let places = self.usable(&offer.places);
        if places.is_empty() {
            return Err(Refused::Unusable);
        }
        self.heard
            .retain(|_, heard| now.saturating_duration_since(heard.at) < TTL);
        // A peer has one name in a subnet: the one before is replaced.
        self.heard.retain(|other, heard| {
            *other == label || (heard.peer, heard.subnet) != (offer.peer, subnet)
        });
        let mut is_here = source.is_here;
        let known = self.heard.get_mut(&label);
        let mut is_news = true;
        let mut told = now;
        if let Some(known) = known {
            let is_old = now.saturating_duration_since(known.told) < OLD_NEWS;
            // Whoever is on the link can say again what a program of this machine says, and may be heard first.
            is_news = known.places != places || !is_old || is_here && !known.is_here;
            is_here |= known.is_here && known.places == places;
            told = if is_news { now } else { known.told };
        } else if self.share_of(source.address) >= OF_A_SOURCE {
            return Err(Refused::Crowded);
        } else if self.heard.len() >= MAX_HEARD {
            self.forget_the_oldest();
        }
        let peer = offer.peer;
        let heard = Heard {
            peer,
            subnet,
            source: source.address,
            places: places.clone(),
            is_here,
            at: now,
            told,
        };
        self.heard.insert(label, heard);
        Ok(is_news.then_some(Found {
            peer,
            places,
            is_here,
        }))
    }

    /// Whether an address is one of this machine's on this link.
    fn is_own(&self, address: IpAddr) -> bool {
        self.is.networks.iter().any(|net| net.addr() == address)
    }

    fn share_of(&self, source: IpAddr) -> usize {
        let of_source = self.heard.values().filter(|heard| heard.source == source);
        of_source.count()
    }

    fn forget_the_oldest(&mut self) {
        let oldest = self.heard.iter().min_by_key(|(_, heard)| heard.at);
        if let Some(oldest) = oldest.map(|(label, _)| *label) {
            self.heard.remove(&oldest);
        }
    }

    /// The places on this link; those of IPv6 that are link-local with its index.
    fn usable(&self, places: &[Place]) -> Vec<Place> {
        let on_link = places.iter().filter(|p| self.is_on(p.address.ip()));
        let scoped = |place: &Place| {
            let mut place = *place;
            if let SocketAddr::V6(v6) = place.address
                && v6.ip().is_unicast_link_local()
            {
                place.address = SocketAddrV6::new(*v6.ip(), v6.port(), 0, self.is.index).into();
            }
            place
        };
        let mut usable: Vec<Place> = on_link.map(scoped).collect();
        usable.sort_unstable();
        usable.dedup();
        usable
    }
}
