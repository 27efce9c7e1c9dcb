//! Where something came from, and what each source may hold or ask for.
//!
//! An IPv4 address is a source; so are the 2^64 IPv6 addresses that one host has to itself. Whoever has a /48 has 65,536
//! of those, so that a [`Site`] has a total of its own. Every limit on what unknown machines do counts by these two. Who
//! comes over a circuit has no address that is proven: all who come through one relay are one source, by the relay's key.
//! Nothing here refuses everybody: full tables take from who has most.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::id::PeerId;

/// One source: an IPv4 address, an IPv6 /64 or a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An address. IPv4 addresses in IPv6 form (mapped, and NAT64's `64:ff9b::/96`) are this too.
    V4(Ipv4Addr),
    /// The first 64 bits of an address.
    V6(u64),
    /// Everybody who comes through this relay.
    Relay(PeerId),
}

/// A network whose holder has several sources: an IPv4 address or an IPv6 /48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(Source);

impl Source {
    /// The source that an address counts as.
    pub fn of(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(v4) => Source::V4(v4),
            IpAddr::V6(v6) => match v6.segments() {
                // A translator in front of us: behind it is all of IPv4, not one host.
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                    Source::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
                }
                _ => Source::V6(u64::try_from(v6.to_bits() >> 64).unwrap_or(0)),
            },
        }
    }

    /// Whether it is this machine.
    fn is_loopback(self) -> bool {
        match self {
            Source::V4(address) => address.is_loopback(),
            // `::1`: no other host has an address of this /64.
            Source::V6(bits) => bits == 0,
            Source::Relay(_) => false,
        }
    }

    /// The site that this source belongs to.
    pub fn site(self) -> Site {
        match self {
            Source::V4(_) | Source::Relay(_) => Site(self),
            Source::V6(bits) => Site(Source::V6(bits & !0xffff)),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::V4(address) => address.fmt(f),
            Source::V6(bits) => write!(f, "{}/64", Ipv6Addr::from(u128::from(*bits) << 64)),
            Source::Relay(relay) => write!(f, "the relay {relay}"),
        }
    }
}

/// The account that a request of the join protocol is counted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payer {
    /// A member, for what it asks and for whom it passes on.
    Member(PeerId),
    /// Anybody else, by the source of the connection.
    Source(Source),
    /// A connection inside this process: tests.
    Inside,
}

/// How many holders a [`Places`] may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// How many places there are in all.
    pub all: usize,
    /// Those of `all` that only somebody at an address of a member gets.
    pub reserved: usize,
    /// How many places one source may hold; a relay, which has many machines behind it, has the share of a site.
    pub per_source: usize,
    /// How many places the sources of one site may hold together.
    pub per_site: usize,
    /// How many places loopback may hold.
    pub of_loopback: usize,
    /// How long a holder keeps its place for sure; later it may lose it to a newcomer where there
    /// is no other.
    pub settled: Duration,
    /// The same for who has not [`Begun`](Step::Begun); none where nobody's steps are told.
    pub quiet: Option<Duration>,
}

impl Sizes {
    /// The usual shares of `all` places: a quarter is reserved, a quarter is the most of one site.
    pub fn shared(all: usize, per_source: usize, settled: Duration) -> Sizes {
        Sizes {
            all,
            reserved: all / 4,
            per_source,
            per_site: (all / 4).max(per_source),
            of_loopback: per_source,
            settled,
            quiet: None,
        }
    }

    /// The same, with the places of all for loopback, but for the reserve: everybody behind a reverse proxy of this machine comes
    /// from there.
    pub fn with_all_for_loopback(self) -> Sizes {
        Sizes {
            of_loopback: self.all.saturating_sub(self.reserved),
            ..self
        }
    }

    /// How many places `source` may hold.
    fn of(&self, source: Source) -> usize {
        match source {
            _ if source.is_loopback() => self.of_loopback,
            Source::Relay(_) => self.per_site,
            Source::V4(_) | Source::V6(_) => self.per_source,
        }
    }

    /// How many places the site of `source` may hold.
    fn of_site(&self, source: Source) -> usize {
        if source.is_loopback() {
            self.of_loopback
        } else {
            self.per_site
        }
    }
}

/// How many places a member gets by being one; further ones count like anybody's.
const PER_MEMBER: usize = 4;

/// What becomes of who asks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken<Id> {
    /// It has a place that was free.
    Free,
    /// It has one, and this holder has to go for it: its place is given back already.
    Instead(Id),
    /// There is no place for it now.
    Full,
}

/// How far a holder has got. Who has got less far gives way first: to be silent costs a flood nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It has a connection, and has said nothing over it.
    Connected,
    /// It has asked for a WebSocket.
    Asked,
    /// It has begun the handshake that names it.
    Begun,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    source: Source,
    member: Option<PeerId>,
    step: Step,
    /// When it took the place, or its last step.
    since: Instant,
}

/// A table of places that sources share. Memory: at most [`Sizes::all`] holders.
#[derive(Debug)]
pub struct Places<Id> {
    sizes: Sizes,
    holders: BTreeMap<Id, Holder>,
}

impl<Id: Copy + Ord> Places<Id> {
    /// Makes a table that nobody has a place in.
    pub fn new(sizes: Sizes) -> Self {
        Places {
            sizes,
            holders: BTreeMap::new(),
        }
    }

    /// How many places are taken.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// How many places the source holds.
    pub fn held_by(&self, source: Source) -> usize {
        self.holders
            .values()
            .filter(|h| h.member.is_none() && h.source == source)
            .count()
    }

    /// Whether the source would have a place without taking another's.
    pub fn has_room(&self, source: Source) -> bool {
        let ordinary = self.holders.values().filter(|h| h.member.is_none());
        self.held_by(source) < self.sizes.of(source)
            && self.held_by_site(source.site()) < self.sizes.of_site(source)
            && ordinary.count() < self.sizes.all.saturating_sub(self.sizes.reserved)
            && self.holders.len() < self.sizes.all
    }

    /// Takes a place for `id`, which holds none. `member` was last seen at exactly the address that it comes from.
    pub fn take(
        &mut self,
        id: Id,
        source: Source,
        member: Option<PeerId>,
        now: Instant,
    ) -> Taken<Id> {
        let holder = |member| Holder {
            source,
            member,
            step: Step::Connected,
            since: now,
        };
        if let Some(peer) = member
            && self.holders.len() < self.sizes.all
            && self
                .holders
                .values()
                .filter(|h| h.member == Some(peer))
                .count()
                < PER_MEMBER
        {
            self.holders.insert(id, holder(member));
            return Taken::Free;
        }
        if self.has_room(source) {
            self.holders.insert(id, holder(None));
            return Taken::Free;
        }
        let site = source.site();
        let crowded = if self.held_by(source) >= self.sizes.of(source) {
            self.first_to_go(|h| h.source == source && self.may_go(h, now))
        } else if self.held_by_site(site) >= self.sizes.of_site(source) {
            self.first_to_go(|h| h.source.site() == site && self.may_go(h, now))
        } else {
            self.first_of_most(site, now)
        };
        match crowded {
            Some(other) => {
                self.holders.remove(&other);
                self.holders.insert(id, holder(None));
                Taken::Instead(other)
            }
            None => Taken::Full,
        }
    }

    /// Notes how far a holder has got. It keeps its place for sure for as long as a new one does.
    pub fn reach(&mut self, id: Id, step: Step, now: Instant) {
        if let Some(holder) = self.holders.get_mut(&id)
            && holder.step < step
        {
            (holder.step, holder.since) = (step, now);
        }
    }

    /// Follows a change of who is a member: `member_of` says it of whoever holds a place. Nobody loses a place by it, but from now
    /// on each counts as what its holder is.
    pub fn follow(&mut self, member_of: impl Fn(Id) -> Option<PeerId>) {
        let mut held: BTreeMap<PeerId, usize> = BTreeMap::new();
        for (id, holder) in &mut self.holders {
            holder.member = member_of(*id).filter(|member| {
                let held = held.entry(*member).or_default();
                *held = held.saturating_add(1);
                *held <= PER_MEMBER
            });
        }
    }

    /// Gives a place back; one that was lost to another is none any more.
    pub fn give_back(&mut self, id: Id) {
        self.holders.remove(&id);
    }

    /// How many places the sources of the site hold.
    fn held_by_site(&self, site: Site) -> usize {
        self.holders
            .values()
            .filter(|h| h.member.is_none() && h.source.site() == site)
            .count()
    }

    /// Whether a holder has had its time.
    fn may_go(&self, holder: &Holder, now: Instant) -> bool {
        let sure = match self.sizes.quiet {
            Some(quiet) if holder.step < Step::Begun => quiet,
            _ => self.sizes.settled,
        };
        now.saturating_duration_since(holder.since) >= sure
    }

    /// Of these, who has got least far; the oldest one where several have got as far.
    fn first_to_go(&self, of: impl Fn(&Holder) -> bool) -> Option<Id> {
        self.holders
            .iter()
            .filter(|(_, h)| h.member.is_none() && of(h))
            .min_by_key(|(id, h)| (h.step, h.since, **id))
            .map(|(id, _)| *id)
    }

    /// The first to go of the sites that have most. Where such a site has more than `newcomer` would have, who has not begun
    /// goes at once if steps are told, so that whoever has many sources shuts nobody out by asking often; and of loopback,
    /// which may have all places, everybody does, so that no program of this machine shuts out others, however far it gets.
    fn first_of_most(&self, newcomer: Site, now: Instant) -> Option<Id> {
        let mut held: BTreeMap<Site, usize> = BTreeMap::new();
        for holder in self.holders.values().filter(|h| h.member.is_none()) {
            *held.entry(holder.source.site()).or_default() += 1;
        }
        let most = held.values().copied().max()?;
        let own = held.get(&newcomer).copied().unwrap_or_default();
        let has_more = most > own.saturating_add(1);
        let is_silent = |h: &Holder| self.sizes.quiet.is_some() && h.step < Step::Begun;
        self.first_to_go(|h| {
            let at_once = has_more && (is_silent(h) || h.source.is_loopback());
            held.get(&h.source.site()) == Some(&most) && (at_once || self.may_go(h, now))
        })
    }
}

/// Addresses remembered of one member, of each kind.
const ADDRESSES: usize = 4;

/// Where members were last seen: proven by a connection, or said by their signed announcements.
///
/// At most eight addresses for each member. What a connection proved goes before what an announcement says, so that no
/// member can claim another's address.
#[derive(Debug, Default)]
pub struct Whereabouts {
    seen: BTreeMap<PeerId, VecDeque<IpAddr>>,
    said: BTreeMap<PeerId, Vec<IpAddr>>,
}

impl Whereabouts {
    /// Notes that a member is connected from there.
    pub fn see(&mut self, member: PeerId, address: IpAddr) {
        let address = address.to_canonical();
        let list = self.seen.entry(member).or_default();
        list.retain(|known| *known != address);
        list.push_front(address);
        list.truncate(ADDRESSES);
    }

    /// Takes the members there are now and what their announcements say; everybody else is
    /// forgotten.
    pub fn say(&mut self, announcements: BTreeMap<PeerId, Vec<IpAddr>>) {
        self.said = announcements;
        for list in self.said.values_mut() {
            let mut each = Vec::with_capacity(ADDRESSES.min(list.len()));
            for address in list.drain(..) {
                // One address is told for every protocol that is spoken there.
                if each.len() < ADDRESSES && !each.contains(&address) {
                    each.push(address);
                }
            }
            // There is one list for each member.
            each.shrink_to_fit();
            *list = each;
        }
        self.seen.retain(|peer, _| self.said.contains_key(peer));
    }

    /// The member that was last seen at exactly this address.
    pub fn member_at(&self, address: IpAddr) -> Option<PeerId> {
        let address = address.to_canonical();
        let seen = self
            .seen
            .iter()
            .find(|(_, list)| list.contains(&address))
            .map(|(peer, _)| *peer);
        seen.or_else(|| {
            self.said
                .iter()
                .find(|(_, list)| list.contains(&address))
                .map(|(peer, _)| *peer)
        })
    }
}

/// Holder of an allowance of a [`Meter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Account {
    One(Payer),
    Site(Site),
}

/// Counts what each payer asks for in a window of time.
///
/// Memory: a fixed number of accounts; where there are more the oldest windows are forgotten, so that nobody is refused
/// for the number of the others.
#[derive(Debug)]
pub struct Meter {
    window: Duration,
    room: usize,
    counts: BTreeMap<Account, (Instant, u32)>,
    /// Accounts by the beginning of their window.
    order: VecDeque<(Instant, Account)>,
}

/// Sources of one site that may use their whole allowance at the same time.
const SOURCES_OF_A_SITE: u32 = 4;

impl Meter {
    /// Makes a meter that nobody has asked of yet. Allowances are for one `window`; `room` accounts
    /// are kept at the same time.
    pub fn new(window: Duration, room: usize) -> Meter {
        Meter {
            window,
            room,
            counts: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Counts one more of `payer`, and says whether it is within `most` of this window, and its site within four times
    /// that.
    pub fn allows(&mut self, payer: Payer, most: u32, now: Instant) -> bool {
        let own = self.count(Account::One(payer), now) <= most;
        match payer {
            // What the source itself may not have is no burden of its site.
            Payer::Source(source @ Source::V6(_)) if own => {
                self.count(Account::Site(source.site()), now)
                    <= most.saturating_mul(SOURCES_OF_A_SITE)
            }
            _ => own,
        }
    }

    fn count(&mut self, account: Account, now: Instant) -> u32 {
        while let Some((since, old)) = self.order.front().copied() {
            let over = now.saturating_duration_since(since) >= self.window;
            if !over && (self.counts.len() < self.room || self.counts.contains_key(&account)) {
                break;
            }
            self.order.pop_front();
            self.counts.remove(&old);
        }
        let count = self.counts.entry(account).or_insert_with(|| {
            self.order.push_back((now, account));
            (now, 0)
        });
        count.1 = count.1.saturating_add(1);
        count.1
    }
}

#[cfg(test)]
mod tests;
