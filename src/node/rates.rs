//! How much somebody may still do: token buckets in bounded memory.
//!
//! A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm). Buckets that
//! are full say nothing and are dropped, the longest full first, so that who may enter a key decides what it costs: a
//! key enters only by a name whose bearer has proved it, never by what a message claims.

//!
//! Time is an [`Instant`]: a wall clock that was set back would keep a bucket empty for as long as filling it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::model::id::PeerId;

/// A rate and its buckets.
#[derive(Debug)]
pub struct Rates {
    /// Milliseconds after which an empty bucket is full.
    whole: u64,
    /// Units a full bucket holds.
    burst: u64,
    /// Buckets kept at once.
    most: usize,
    /// What the times are counted from.
    zero: Instant,
    /// When each bucket is full again, in thousandths of a millisecond since then.
    full_at: BTreeMap<PeerId, u64>,
    order: BTreeSet<(u64, PeerId)>,
}

impl Rates {
    /// Buckets that hold `burst` units and get `per_second` of them back each second; at most `most` are kept.
    pub fn new(burst: u64, per_second: u64, most: usize) -> Rates {
        let whole = burst.saturating_mul(1000).checked_div(per_second).unwrap_or(u64::MAX).max(1);
        Rates {
            whole,
            burst: burst.max(1),
            most,
            zero: Instant::now(),
            full_at: BTreeMap::new(),
            order: BTreeSet::new(),
        }
    }

    /// Takes `units` if they are there.
    pub fn take(&mut self, who: PeerId, units: u64, now: Instant) -> bool {
        self.charge(who, units, now, false) == 0
    }

    /// Takes `units` whether they are there or not. Gives the milliseconds after which the bucket has made up for what
    /// was not there; nobody owes more than a whole bucket.
    pub fn owe(&mut self, who: PeerId, units: u64, now: Instant) -> u64 {
        self.charge(who, units, now, true)
    }

    fn charge(&mut self, who: PeerId, units: u64, now: Instant, always: bool) -> u64 {
        let now = u64::try_from(now.saturating_duration_since(self.zero).as_micros()).unwrap_or(u64::MAX);
        let whole = self.whole.saturating_mul(1000);
        self.drop_full(now);
        let held = self.full_at.get(&who).copied();
        let from = held.unwrap_or(now).max(now);
        let wanted = from.saturating_add(units.saturating_mul(whole) / self.burst);
        let refused = !always && wanted > now.saturating_add(whole);
        let until = if refused { from } else { wanted.min(now.saturating_add(whole.saturating_mul(2))) };
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
        let owed = if refused { wanted } else { until };
        owed.saturating_sub(now.saturating_add(whole)).div_ceil(1000)
    }

    /// Forgets full buckets: each is looked at once after it was charged.
    fn drop_full(&mut self, now: u64) {
        while let Some((at, who)) = self.order.first().copied().filter(|(at, _)| *at <= now) {
            self.order.remove(&(at, who));
            self.full_at.remove(&who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// That many milliseconds after the rates were made.
    fn at(rates: &Rates, ms: u64) -> Instant {
        rates.zero + Duration::from_millis(ms)
    }

    fn who(n: u32) -> PeerId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut rates = Rates::new(120, 4, 100);
        let taken = |rates: &mut Rates, ms| (0..1000).filter(|_| rates.take(who(1), 1, at(rates, ms))).count();
        assert_eq!(taken(&mut rates, 5_000), 120);
        assert_eq!(taken(&mut rates, 6_000), 4);
        assert!(rates.take(who(2), 1, at(&rates, 6_000)), "another's bucket is another's");
        assert_eq!(taken(&mut rates, 10_000_000), 120);
    }

    #[test]
    fn full_buckets_go_and_the_fullest_makes_room() {
        let mut rates = Rates::new(10, 1, 100);
        for n in 0..10_000 {
            rates.take(who(n), 1, at(&rates, 0));
        }
        assert_eq!(rates.full_at.len(), 100);
        rates.take(who(1), 1, at(&rates, 3_600_000));
        assert_eq!(rates.full_at.len(), 1);
        assert_eq!((0..20).filter(|_| rates.take(who(7), 1, at(&rates, 3_600_000))).count(), 10);
        for n in 100..10_000 {
            rates.take(who(n), 1, at(&rates, 3_600_000));
        }
        assert!(
            !rates.take(who(7), 1, at(&rates, 3_600_000)),
            "who has used up its bucket is not forgotten for others"
        );
    }

    #[test]
    fn debts_are_paid_and_bounded() {
        let mut rates = Rates::new(100, 10, 100);
        assert_eq!(rates.owe(who(1), 100, at(&rates, 0)), 0);
        assert_eq!(rates.owe(who(1), 20, at(&rates, 0)), 2_000);
        assert_eq!(rates.owe(who(1), 1_000_000, at(&rates, 0)), 10_000);
        assert_eq!(rates.owe(who(1), 0, at(&rates, 9_000)), 1_000);
        assert_eq!(rates.owe(who(1), 0, at(&rates, 30_000)), 0);
    }

    proptest! {
        #[test]
        fn both_books_agree_and_stay_bounded(calls in proptest::collection::vec((0u32..20, 0u64..30, 0u64..100_000, any::<bool>()), 0..200)) {
            let mut rates = Rates::new(20, 3, 8);
            for (n, units, now, owe) in calls {
                let now = at(&rates, now);
                if owe { rates.owe(who(n), units, now); } else { rates.take(who(n), units, now); }
                prop_assert!(rates.full_at.len() <= 8);
                let listed: BTreeSet<(u64, PeerId)> = rates.full_at.iter().map(|(p, at)| (*at, *p)).collect();
                prop_assert_eq!(&listed, &rates.order);
            }
        }
    }
}
