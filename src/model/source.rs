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
    /// How long a holder keeps its place for sure; later it may lose it to a newcomer where there
    /// is no other.
    pub settled: Duration,
}

impl Sizes {
    /// The usual shares of `all` places: a quarter is reserved, a quarter is the most of one site.
    pub fn shared(all: usize, per_source: usize, settled: Duration) -> Sizes {
        Sizes {
            all,
            reserved: all / 4,
            per_source,
            per_site: (all / 4).max(per_source),
            settled,
        }
    }

    /// How many places `source` may hold.
    fn of(&self, source: Source) -> usize {
        match source {
            Source::Relay(_) => self.per_site,
            Source::V4(_) | Source::V6(_) => self.per_source,
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

#[derive(Debug, Clone, Copy)]
struct Holder {
    source: Source,
    member: Option<PeerId>,
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
        let ordinary = || self.holders.values().filter(|h| h.member.is_none());
        self.held_by(source) < self.sizes.of(source)
            && ordinary()
                .filter(|h| h.source.site() == source.site())
                .count()
                < self.sizes.per_site
            && ordinary().count() < self.sizes.all.saturating_sub(self.sizes.reserved)
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
        let of_site = |h: &&Holder| h.member.is_none() && h.source.site() == source.site();
        let crowded = if self.held_by(source) >= self.sizes.of(source) {
            self.oldest(|h| h.source == source)
        } else if self.holders.values().filter(of_site).count() >= self.sizes.per_site {
            self.oldest(|h| h.source.site() == source.site())
        } else {
            self.oldest_of_most()
        };
        match crowded
            .filter(|(_, since)| now.saturating_duration_since(*since) >= self.sizes.settled)
        {
            Some((other, _)) => {
                self.holders.remove(&other);
                self.holders.insert(id, holder(None));
                Taken::Instead(other)
            }
            None => Taken::Full,
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

    fn oldest(&self, of: impl Fn(&Holder) -> bool) -> Option<(Id, Instant)> {
        let all = self
            .holders
            .iter()
            .filter(|(_, h)| h.member.is_none() && of(h));
        all.map(|(id, h)| (*id, h.since))
            .min_by_key(|(id, since)| (*since, *id))
    }

    /// The oldest holder of the site that has most; of the oldest one where several have as much.
    fn oldest_of_most(&self) -> Option<(Id, Instant)> {
        let mut sites: BTreeMap<Site, (usize, Id, Instant)> = BTreeMap::new();
        for (id, holder) in self.holders.iter().filter(|(_, h)| h.member.is_none()) {
            let entry = sites
                .entry(holder.source.site())
                .or_insert((0, *id, holder.since));
            entry.0 += 1;
            if holder.since < entry.2 {
                (entry.1, entry.2) = (*id, holder.since);
            }
        }
        let most = sites
            .values()
            .max_by_key(|(count, id, since)| (*count, std::cmp::Reverse((*since, *id))));
        most.map(|(_, id, since)| (*id, *since))
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
        self.said
            .values_mut()
            .for_each(|list| list.truncate(ADDRESSES));
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn source(text: &str) -> Source {
        Source::of(ip(text))
    }

    fn places() -> Places<u32> {
        Places::new(Sizes::shared(64, 8, SECOND))
    }

    #[test]
    fn one_host_s_addresses_are_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(
            source("2001:db8::1").site(),
            source("2001:db8:0:ffff::1").site()
        );
        assert_ne!(source("2001:db8::1").site(), source("2001:db8:1::1").site());
        for form in ["::ffff:192.0.2.1", "64:ff9b::192.0.2.1"] {
            assert_eq!(source(form), source("192.0.2.1"), "{form}");
        }
        assert_ne!(source("192.0.2.1").site(), source("192.0.2.2").site());
        assert_eq!(source("2001:db8:0:7::1").to_string(), "2001:db8:0:7::/64");
    }

    #[test]
    fn one_source_and_one_site_leave_room_for_others() {
        let (mut places, now) = (places(), Instant::now());
        let taken = |places: &mut Places<u32>,
                     ids: std::ops::Range<u32>,
                     address: &dyn Fn(u32) -> String| {
            ids.filter(|n| places.take(*n, source(&address(*n)), None, now) == Taken::Free)
                .count()
        };
        assert_eq!(
            taken(&mut places, 0..100, &|n| format!("2001:db8::{n:x}")),
            8
        );
        assert_eq!(
            taken(&mut places, 100..1000, &|n| format!("2001:db8:0:{n:x}::1")),
            8
        );
        assert_eq!(
            places.take(2000, source("192.0.2.1"), None, now),
            Taken::Free
        );
    }

    #[test]
    fn all_who_come_through_one_relay_have_the_share_of_one_site() {
        let (mut places, now) = (places(), Instant::now());
        let through = |relay: u8| Source::Relay(PeerId([relay; 32]));
        let taken = (0..100).filter(|n| places.take(*n, through(1), None, now) == Taken::Free);
        assert_eq!(taken.count(), 16);
        assert_eq!(places.take(200, through(2), None, now), Taken::Free);
        assert_eq!(
            places.take(201, source("192.0.2.1"), None, now),
            Taken::Free
        );
    }

    #[test]
    fn full_tables_take_from_who_has_most_and_never_from_the_reserve() {
        let (mut places, start) = (places(), Instant::now());
        let member = PeerId([7; 32]);
        for n in 0..48u32 {
            // Site 0 has eight, the others have one each.
            let address = if n < 8 {
                source("192.0.2.1")
            } else {
                Source::of(IpAddr::from([198, 51, 100, n as u8]))
            };
            assert_eq!(places.take(n, address, None, start), Taken::Free, "{n}");
        }
        assert_eq!(
            places.take(100, source("203.0.113.1"), None, start),
            Taken::Full,
            "nobody has settled"
        );
        let later = start + SECOND;
        assert_eq!(
            places.take(100, source("203.0.113.1"), None, later),
            Taken::Instead(0)
        );
        assert_eq!(
            places.take(101, source("203.0.113.2"), None, later),
            Taken::Instead(1)
        );
        for n in 0..4 {
            assert_eq!(
                places.take(200 + n, source("203.0.113.9"), Some(member), later),
                Taken::Free
            );
        }
        assert!(
            places.take(204, source("203.0.113.9"), Some(member), later) != Taken::Free,
            "a member has four"
        );
        assert!(places.len() <= 64);
    }

    #[test]
    fn a_member_behind_a_crowded_source_has_its_own_places() {
        let (mut places, now) = (places(), Instant::now());
        for n in 0..100u32 {
            places.take(n, source(&format!("2001:db8::{n:x}")), None, now);
        }
        assert_eq!(
            places.take(500, source("2001:db8::b"), None, now),
            Taken::Full
        );
        assert_eq!(
            places.take(500, source("2001:db8::b"), Some(PeerId([1; 32])), now),
            Taken::Free
        );
    }

    #[test]
    fn an_announcement_cannot_claim_where_another_was_seen() {
        let (victim, thief) = (PeerId([2; 32]), PeerId([1; 32]));
        let mut whereabouts = Whereabouts::default();
        let said = |peer| (peer, vec![ip("192.0.2.1")]);
        whereabouts.say([said(thief), (victim, vec![])].into());
        assert_eq!(whereabouts.member_at(ip("192.0.2.1")), Some(thief));
        whereabouts.see(victim, ip("192.0.2.1"));
        assert_eq!(whereabouts.member_at(ip("::ffff:192.0.2.1")), Some(victim));
        for n in 0..100 {
            whereabouts.see(victim, IpAddr::from([198, 51, 100, n]));
        }
        assert_eq!(whereabouts.seen[&victim].len(), ADDRESSES);
        whereabouts.say([said(thief)].into());
        assert_eq!(
            whereabouts.member_at(ip("198.51.100.99")),
            None,
            "who is no member any more has no reserve"
        );
    }

    #[test]
    fn a_full_meter_refuses_nobody_for_the_others() {
        let start = Instant::now();
        let mut meter = Meter::new(SECOND, 16);
        let v4 = |n: u32| Payer::Source(Source::V4(n.into()));
        assert!((0..10_000).all(|n| meter.allows(v4(n), 2, start)));
        assert!(meter.counts.len() <= 16 && meter.order.len() <= 16);
        assert!(meter.allows(v4(9_999), 2, start));
        assert!(
            !meter.allows(v4(9_999), 2, start),
            "a source that is remembered has its limit"
        );
        assert!(
            meter.allows(v4(9_999), 2, start + SECOND),
            "and a new window"
        );
    }

    #[test]
    fn a_site_has_four_times_the_allowance_of_a_source() {
        let (start, mut meter) = (Instant::now(), Meter::new(SECOND, 1024));
        let v6 = |n: u16| Payer::Source(source(&format!("2001:db8:0:{n:x}::1")));
        let allowed = (0..1000).filter(|n| meter.allows(v6(*n), 3, start)).count();
        assert_eq!(allowed, 12);
        assert!(meter.allows(Payer::Source(source("2001:db8:1::1")), 3, start));
    }

    proptest! {
        #[test]
        fn places_are_bounded_and_count_what_is_held(
            steps in proptest::collection::vec((0u32..200, 0u8..40, any::<bool>(), 0u64..3), 1..300),
        ) {
            let (mut places, mut now) = (places(), Instant::now());
            let mut held = std::collections::BTreeSet::new();
            for (id, host, member, wait) in steps {
                now += SECOND * u32::try_from(wait).unwrap();
                if held.contains(&id) {
                    places.give_back(id);
                    held.remove(&id);
                    continue;
                }
                let member = member.then_some(PeerId([host; 32]));
                match places.take(id, Source::of(IpAddr::from([192, 0, 2, host])), member, now) {
                    Taken::Free => drop(held.insert(id)),
                    Taken::Instead(other) => {
                        prop_assert!(held.remove(&other));
                        held.insert(id);
                    }
                    Taken::Full => {}
                }
                prop_assert_eq!(places.len(), held.len());
                prop_assert!(held.len() <= 64);
            }
        }
    }
}
