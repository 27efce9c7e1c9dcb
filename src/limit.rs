//! Token buckets: how much may be done at once, and how much a second after that; and [`Pace`], which tells a flood.
//!
//! A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm of ITU-T I.371). So
//! nothing is added up while time passes, and a full bucket says nothing and need not be kept. Time is an argument, and an
//! [`Instant`]: a wall clock that was set back would keep a bucket empty for as long as filling it takes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

/// What a bucket holds, and what it gets back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Units that a full bucket holds, at least one.
    pub burst: u64,
    /// Units that it gets back each second, at least one.
    pub per_second: u64,
}

impl Limit {
    /// Buckets that hold `burst` units and get `per_second` of them back each second.
    pub const fn new(burst: u64, per_second: u64) -> Limit {
        Limit { burst, per_second }
    }

    /// Nanoseconds in which that many units come back.
    fn time(self, units: u64) -> u64 {
        let nanos =
            u128::from(units).saturating_mul(1_000_000_000) / u128::from(self.per_second.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// The moment at which a bucket is full after `units` were asked of it, and the nanoseconds for which it owes.
    ///
    /// Moments are nanoseconds since one that the caller chose; `full_at` is the one before. Units that are not there are
    /// refused unless `always`; then nobody owes more than a whole bucket.
    fn charge(self, full_at: u64, units: u64, now: u64, always: bool) -> (u64, u64) {
        let (whole, from) = (self.time(self.burst.max(1)), full_at.max(now));
        let (wanted, bound) = (
            from.saturating_add(self.time(units)),
            now.saturating_add(whole),
        );
        let refused = !always && wanted > bound;
        let until = if refused {
            from
        } else {
            wanted.min(bound.saturating_add(whole))
        };
        let owed = if refused { wanted } else { until };
        (until, owed.saturating_sub(bound))
    }
}

/// Nanoseconds from one moment to another; none where it is not later.
fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// A bucket of tokens, which fills by itself as time passes.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    limit: Limit,
    /// What times are counted from: the first one heard of.
    zero: Option<Instant>,
    full_at: u64,
}

impl TokenBucket {
    /// Makes a bucket that is full.
    pub const fn new(limit: Limit) -> TokenBucket {
        TokenBucket {
            limit,
            zero: None,
            full_at: 0,
        }
    }

    /// Takes one unit if it is there.
    pub fn take(&mut self, now: Instant) -> bool {
        let now = nanos(*self.zero.get_or_insert(now), now);
        let (full_at, owed) = self.limit.charge(self.full_at, 1, now, false);
        self.full_at = full_at;
        owed == 0
    }

    /// Holds to another limit from now on; it is as full as before, as a share of what it holds.
    pub fn set_limit(&mut self, now: Instant, limit: Limit) {
        let now = nanos(*self.zero.get_or_insert(now), now);
        let (before, after) = (
            self.limit.time(self.limit.burst.max(1)),
            limit.time(limit.burst.max(1)),
        );
        let empty = u128::from(self.full_at.saturating_sub(now)) * u128::from(after);
        let empty = empty.checked_div(u128::from(before)).unwrap_or(0);
        self.full_at = now.saturating_add(u64::try_from(empty).unwrap_or(u64::MAX));
        self.limit = limit;
    }

    /// Takes `units` up to `times` times, as often as they are there; how often.
    pub fn take_most(&mut self, now: Instant, units: u64, times: u64) -> u64 {
        let now = nanos(*self.zero.get_or_insert(now), now);
        let from = self.full_at.max(now);
        let bound = now.saturating_add(self.limit.time(self.limit.burst.max(1)));
        let room = bound.saturating_sub(from);
        let each = self.limit.time(units);
        let taken = room.checked_div(each).unwrap_or(times).min(times);
        self.full_at = from.saturating_add(self.limit.time(units.saturating_mul(taken)));
        taken
    }
}

/// A bucket for each key, in bounded memory.
///
/// Full buckets are dropped; where there are too many the fullest goes, so that nobody who has used up its own is forgotten
/// for others. Who may enter a key decides what it costs: it has to be a name whose bearer has proved it, or one of a kind
/// that nobody has many of.
#[derive(Debug)]
pub struct Buckets<K> {
    limit: Limit,
    /// The most buckets that are kept at once.
    most: usize,
    zero: Option<Instant>,
    /// When each bucket is full again, in nanoseconds since then.
    full_at: BTreeMap<K, u64>,
    order: BTreeSet<(u64, K)>,
}

impl<K: Copy + Ord> Buckets<K> {
    /// Makes a table in which every bucket is full; at most `most` are kept.
    pub fn new(limit: Limit, most: usize) -> Buckets<K> {
        Buckets {
            limit,
            most,
            zero: None,
            full_at: BTreeMap::new(),
            order: BTreeSet::new(),
        }
    }

    /// Takes `units` if they are there.
    pub fn take(&mut self, who: K, units: u64, now: Instant) -> bool {
        self.charge(who, units, now, false) == 0
    }

    /// Takes `units` if they are there.
    ///
    /// # Errors
    /// The time after which they will be.
    pub fn try_take(&mut self, who: K, units: u64, now: Instant) -> Result<(), Duration> {
        match self.charge(who, units, now, false) {
            0 => Ok(()),
            wait => Err(Duration::from_nanos(wait)),
        }
    }

    /// Takes `units` whether they are there or not. Gives the time after which the bucket has made up for what was not
    /// there; nobody owes more than a whole bucket.
    pub fn owe(&mut self, who: K, units: u64, now: Instant) -> Duration {
        Duration::from_nanos(self.charge(who, units, now, true))
    }

    fn charge(&mut self, who: K, units: u64, now: Instant, always: bool) -> u64 {
        let now = nanos(*self.zero.get_or_insert(now), now);
        self.drop_full(now);
        let held = self.full_at.get(&who).copied();
        let (until, owed) = self.limit.charge(held.unwrap_or(now), units, now, always);
        if let Some(held) = held {
            self.order.remove(&(held, who));
        }
        self.full_at.insert(who, until);
        self.order.insert((until, who));
        if self.full_at.len() > self.most
            && let Some((_, fullest)) = self.order.pop_first()
        {
            self.full_at.remove(&fullest);
        }
        owed
    }

    /// Drops the buckets that are full by `now`. Each is looked at once after it was charged.
    fn drop_full(&mut self, now: u64) {
        while let Some((at, who)) = self.order.first().copied().filter(|(at, _)| *at <= now) {
            self.order.remove(&(at, who));
            self.full_at.remove(&who);
        }
    }
}

/// A bucket for each key in constant memory: keys that hash alike share one.
///
/// For keys that anybody can make up, such as source addresses: nothing is allocated for one, and where a flood uses many of
/// them all it can have is the sum of the buckets. Nobody can choose a key that shares a bucket with a given other one,
/// because the hash has a random key.
#[derive(Debug)]
pub struct SharedBuckets {
    limit: Limit,
    hash: RandomState,
    zero: Option<Instant>,
    /// When each bucket is full again, in nanoseconds since then.
    full_at: Box<[u64]>,
}

impl SharedBuckets {
    /// Makes so many buckets, all of them full.
    pub fn new(limit: Limit, buckets: usize) -> SharedBuckets {
        SharedBuckets {
            limit,
            hash: RandomState::new(),
            zero: None,
            full_at: vec![0; buckets.max(1)].into(),
        }
    }

    /// Takes one unit if it is there.
    pub fn take(&mut self, who: impl Hash, now: Instant) -> bool {
        let now = nanos(*self.zero.get_or_insert(now), now);
        let buckets = u64::try_from(self.full_at.len()).unwrap_or(1).max(1);
        let at = usize::try_from(self.hash.hash_one(who) % buckets).unwrap_or(0);
        let Some(bucket) = self.full_at.get_mut(at) else {
            return false;
        };
        let (full_at, owed) = self.limit.charge(*bucket, 1, now, false);
        *bucket = full_at;
        owed == 0
    }
}

/// Tells a flood of events from a few of them: whether enough came within each of the last windows of time.
#[derive(Debug)]
pub struct Pace {
    window: Duration,
    flood: u32,
    since: Instant,
    count: u32,
    is_flood: bool,
}

impl Pace {
    /// No flood yet. It begins with `flood` events in a `window` of at least a millisecond.
    pub fn new(now: Instant, flood: u32, window: Duration) -> Pace {
        Pace {
            window,
            flood,
            since: now,
            count: 0,
            is_flood: false,
        }
    }

    /// Counts so many events.
    pub fn count(&mut self, events: u32) {
        self.count = self.count.saturating_add(events);
    }

    /// Whether there is a flood; it begins and ends with a window.
    pub fn is_flood(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed >= self.window {
            // A window that was slept away counts for what it was long.
            let windows = passed.as_micros() / self.window.as_micros().max(1);
            let windows = u32::try_from(windows).unwrap_or(u32::MAX).max(1);
            self.is_flood = self.count / windows >= self.flood;
            (self.since, self.count) = (now, 0);
        }
        self.is_flood
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn many_events_make_a_flood_and_few_do_not() {
        let (start, window) = (Instant::now(), ms(1));
        let mut pace = Pace::new(start, 16, window);
        pace.count(1000);
        assert!(!pace.is_flood(start), "not before a window is over");
        assert!(pace.is_flood(start + window));
        pace.count(16 * 3 - 1);
        assert!(!pace.is_flood(start + window * 4), "the rate counts");
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (start, mut buckets) = (Instant::now(), Buckets::new(Limit::new(120, 4), 100));
        let mut taken = |who: u32, at: u64| {
            (0..1000)
                .filter(|_| buckets.take(who, 1, start + ms(at)))
                .count()
        };
        assert_eq!(taken(1, 5_000), 120);
        assert_eq!(taken(1, 6_000), 4);
        assert_eq!(taken(2, 6_000), 120, "another's bucket is another's");
        assert_eq!(taken(1, 10_000_000), 120);
    }

    #[test]
    fn any_number_of_keys_has_no_more_than_all_buckets_hold() {
        let (start, mut buckets) = (Instant::now(), SharedBuckets::new(Limit::new(10, 2), 64));
        let mut taken = |who: u32, at: u64| buckets.take(who, start + ms(at));
        assert_eq!((0..50).filter(|_| taken(1, 0)).count(), 10);
        let others = (2..100_000).filter(|who| taken(*who, 0)).count();
        assert_eq!(others, 63 * 10);
        assert_eq!((0..50).filter(|_| taken(1, 1_000)).count(), 2);
    }

    #[test]
    fn units_come_back_one_by_one() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::new(Limit::new(3, 10)));
        let mut taken = |at: u64| (0..1000).filter(|_| bucket.take(start + ms(at))).count();
        assert_eq!(
            [
                taken(0),
                taken(99),
                taken(100),
                taken(150),
                taken(200),
                taken(100_000)
            ],
            [3, 0, 1, 0, 1, 3]
        );
    }

    #[test]
    fn a_bucket_of_another_limit_is_as_full_as_it_was() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::new(Limit::new(1_000, 1_000)));
        assert_eq!(bucket.take_most(start, 1, 500), 500);
        bucket.set_limit(start, Limit::new(100, 10));
        assert_eq!(bucket.take_most(start, 1, 1_000), 50);
        assert_eq!(bucket.take_most(start + ms(1_000), 1, 1_000), 10);
    }

    #[test]
    fn as_much_of_a_run_is_taken_as_is_there() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::new(Limit::new(1_000, 1_000)));
        assert_eq!(bucket.take_most(start, 300, 2), 2);
        assert_eq!(bucket.take_most(start, 300, 5), 1);
        assert_eq!(bucket.take_most(start, 300, 5), 0);
        assert_eq!(bucket.take_most(start + ms(500), 300, 5), 2);
        assert_eq!(bucket.take_most(start + ms(100_000), 300, 5), 3);
        assert_eq!(bucket.take_most(start, 0, 7), 7, "nothing costs nothing");
    }

    #[test]
    fn a_clock_that_goes_back_gives_and_takes_nothing() {
        let (start, mut bucket) = (
            Instant::now() + ms(1000),
            TokenBucket::new(Limit::new(1, 1)),
        );
        assert!(bucket.take(start));
        assert!(!bucket.take(start - ms(500)));
        assert!(bucket.take(start + ms(1000)));
    }

    #[test]
    fn full_buckets_go_and_the_fullest_makes_room() {
        let (start, mut buckets) = (Instant::now(), Buckets::new(Limit::new(10, 1), 100));
        for n in 0..10_000 {
            buckets.take(n, 1, start);
        }
        assert_eq!(buckets.full_at.len(), 100);
        let later = start + ms(3_600_000);
        buckets.take(1, 1, later);
        assert_eq!(buckets.full_at.len(), 1);
        assert_eq!((0..20).filter(|_| buckets.take(7, 1, later)).count(), 10);
        assert!(
            (100..10_000).all(|n| buckets.take(n, 1, later)),
            "nobody is refused for the others"
        );
        assert_eq!((buckets.full_at.len(), buckets.order.len()), (100, 100));
        assert!(
            !buckets.take(7, 1, later),
            "who has used up its bucket is not forgotten for others"
        );
    }

    #[test]
    fn debts_are_paid_and_bounded() {
        let (start, mut buckets) = (Instant::now(), Buckets::new(Limit::new(100, 10), 100));
        assert_eq!(buckets.try_take(1, 30, start), Ok(()));
        assert_eq!(buckets.try_take(1, 80, start), Err(ms(1_000)));
        let mut owe = |units, at| buckets.owe(1, units, start + ms(at));
        assert_eq!(owe(70, 0), ms(0));
        assert_eq!(owe(20, 0), ms(2_000));
        assert_eq!(owe(1_000_000, 0), ms(10_000));
        assert_eq!(owe(0, 9_000), ms(1_000));
        assert_eq!(owe(0, 30_000), ms(0));
    }

    #[test]
    fn numbers_that_are_too_large_refuse_and_break_nothing() {
        let start = Instant::now();
        for limit in [
            Limit::new(u64::MAX, u64::MAX),
            Limit::new(u64::MAX, 1),
            Limit::new(0, 1),
            Limit::new(1, 0),
        ] {
            let mut buckets = Buckets::new(limit, 2);
            assert!(buckets.take(0, 1, start), "{limit:?}");
            buckets.take(0, u64::MAX, start + ms(1));
            buckets.owe(0, u64::MAX, start + ms(2));
        }
    }

    proptest! {
        #[test]
        fn both_books_agree_and_stay_bounded(calls in proptest::collection::vec((0u32..20, 0u64..30, 0u64..100_000, any::<bool>()), 0..200)) {
            let (start, mut buckets) = (Instant::now(), Buckets::new(Limit::new(20, 3), 8));
            for (n, units, now, owe) in calls {
                let now = start + ms(now);
                if owe { buckets.owe(n, units, now); } else { buckets.take(n, units, now); }
                prop_assert!(buckets.full_at.len() <= 8);
                let listed: BTreeSet<(u64, u32)> = buckets.full_at.iter().map(|(who, at)| (*at, *who)).collect();
                prop_assert_eq!(&listed, &buckets.order);
            }
        }

        /// The slow twin counts tokens, as the textbook does.
        #[test]
        fn a_bucket_does_what_counting_tokens_does(
            burst in 1u64..20, rate in 1u64..50, steps in proptest::collection::vec(0u64..400, 1..200),
        ) {
            let (start, mut bucket) = (Instant::now(), TokenBucket::new(Limit::new(burst, rate)));
            // In thousandths of a token; a millisecond brings `rate` of them.
            let (mut tokens, mut at) = (burst * 1000, 0);
            for step in steps {
                at += step;
                tokens = (tokens + step * rate).min(burst * 1000);
                let there = tokens >= 1000;
                // Where a unit comes back between two nanoseconds, one of the two is up to a nanosecond late.
                let near = tokens % 1000 == 0 && 1_000_000_000 % rate != 0;
                let took = bucket.take(start + ms(at));
                prop_assert!(took == there || near, "{tokens} {at}");
                if took { tokens = tokens.saturating_sub(1000); }
            }
        }
    }
}
