//! What one source may ask for: a token bucket for each, in a table that cannot grow.
//!
//! Pure but for the clock, which the caller passes in.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::model::source::Source;

/// Questions per second one source may ask for long.
pub const RATE: u32 = 1000;

/// Questions one source may ask at once.
pub const BURST: u32 = 2000;

/// Sources remembered at the same time; a further one takes the place of the one that has asked for least lately.
pub const SOURCES: usize = 4096;

/// Sources that are looked at for one to be forgotten.
const LOOKED_AT: usize = 8;

/// How many questions were turned away, and why.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answered from a zone of ours.
    pub answered: AtomicU64,
    /// Handed to the host's resolvers.
    pub forwarded: AtomicU64,
    /// Refused: not one who may ask that, or not a question we take.
    pub refused: AtomicU64,
    /// From outside the subnet: not answered at all.
    pub foreign: AtomicU64,
    /// Not a DNS question.
    pub malformed: AtomicU64,
    /// Above the rate of one source.
    pub limited: AtomicU64,
    /// More questions on their way to the host's resolvers than are allowed.
    pub overloaded: AtomicU64,
    /// TCP connections closed to make room.
    pub closed: AtomicU64,
    /// Addresses of ours taken out of answers from outside.
    pub stripped: AtomicU64,
}

impl Counters {
    /// Every counter with its name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        [
            ("answered", &self.answered),
            ("forwarded", &self.forwarded),
            ("refused", &self.refused),
            ("foreign", &self.foreign),
            ("malformed", &self.malformed),
            ("limited", &self.limited),
            ("overloaded", &self.overloaded),
            ("closed", &self.closed),
            ("stripped", &self.stripped),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .collect()
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Tokens of one source.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Bucket {
        Bucket { tokens: f64::from(BURST), at: now }
    }

    fn level(&self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(RATE);
        (self.tokens + gained).min(f64::from(BURST))
    }

    fn take(&mut self, now: Instant) -> bool {
        self.tokens = self.level(now);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// The table of buckets.
#[derive(Debug)]
pub(super) struct Buckets {
    sources: HashMap<Source, Bucket>,
    /// Sources in the order in which they were entered.
    order: VecDeque<Source>,
}

impl Buckets {
    pub(super) fn new() -> Buckets {
        Buckets { sources: HashMap::new(), order: VecDeque::new() }
    }

    /// Whether `source` may ask now.
    pub(super) fn take(&mut self, source: Source, now: Instant) -> bool {
        if let Some(bucket) = self.sources.get_mut(&source) {
            return bucket.take(now);
        }
        if self.sources.len() >= SOURCES {
            self.make_room(now);
        }
        self.order.push_back(source);
        self.sources.entry(source).or_insert_with(|| Bucket::full(now)).take(now)
    }

    /// Forgets one of the [`LOOKED_AT`] oldest: the one with the fullest bucket. The others of them become the youngest,
    /// so that who asks too much is not forgotten for it.
    fn make_room(&mut self, now: Instant) {
        let oldest: Vec<Source> = self.order.drain(..LOOKED_AT.min(self.order.len())).collect();
        let level = |source: &Source| self.sources.get(source).map_or(f64::INFINITY, |bucket| bucket.level(now));
        let fullest = oldest.iter().copied().max_by(|a, b| level(a).total_cmp(&level(b)));
        if let Some(source) = fullest {
            self.sources.remove(&source);
        }
        self.order.extend(oldest.into_iter().filter(|source| Some(*source) != fullest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn source(n: u32) -> Source {
        Source::V4(Ipv4Addr::from(n))
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut buckets = Buckets::new();
        let allowed = (0..3000).filter(|_| buckets.take(source(1), start)).count();
        assert_eq!(allowed, BURST as usize);
        assert!(buckets.take(source(2), start), "another source is not concerned");
        let later = start + Duration::from_secs(1);
        let allowed = (0..3000).filter(|_| buckets.take(source(1), later)).count();
        assert_eq!(allowed, RATE as usize);
    }

    #[test]
    fn the_table_does_not_grow_and_refuses_nobody_for_the_others() {
        let start = Instant::now();
        let mut buckets = Buckets::new();
        let greedy = source(u32::MAX);
        while buckets.take(greedy, start) {}
        assert!((0..20_000).all(|n| buckets.take(source(n), start)));
        assert_eq!((buckets.sources.len(), buckets.order.len()), (SOURCES, SOURCES));
        assert!(!buckets.take(greedy, start), "who asks too much is not forgotten");
    }

    #[test]
    fn one_host_s_addresses_share_a_bucket() {
        let (start, mut buckets) = (Instant::now(), Buckets::new());
        let of = |n: u32| Source::of(std::net::IpAddr::from([0xfd00, 1, 2, 3, 0, 0, (n >> 16) as u16, n as u16]));
        let allowed = (0..3000).filter(|n| buckets.take(of(*n), start)).count();
        assert_eq!(allowed, BURST as usize);
    }
}
