//! What one source may ask for: a token bucket per address, in a table that cannot grow.
//!
//! Pure but for the clock, which the caller passes in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Questions per second one source may ask for long.
pub const RATE: u32 = 1000;

/// Questions one source may ask at once.
pub const BURST: u32 = 2000;

/// Sources remembered at the same time; further ones share one bucket.
pub const SOURCES: usize = 4096;

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
    sources: HashMap<IpAddr, Bucket>,
    /// For everyone the table has no room for.
    others: Bucket,
    swept: Instant,
}

impl Buckets {
    pub(super) fn new(now: Instant) -> Buckets {
        Buckets { sources: HashMap::new(), others: Bucket::full(now), swept: now }
    }

    /// Whether `source` may ask now.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        if let Some(bucket) = self.sources.get_mut(&source) {
            return bucket.take(now);
        }
        if self.sources.len() >= SOURCES {
            self.sweep(now);
        }
        if self.sources.len() >= SOURCES {
            return self.others.take(now);
        }
        self.sources.entry(source).or_insert_with(|| Bucket::full(now)).take(now)
    }

    /// Forgets who has a full bucket again; at most once a second, for it reads the whole table.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept).as_secs() < 1 {
            return;
        }
        self.swept = now;
        self.sources.retain(|_, bucket| bucket.level(now) < f64::from(BURST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn source(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(n))
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let allowed = (0..3000).filter(|_| buckets.take(source(1), start)).count();
        assert_eq!(allowed, BURST as usize);
        assert!(buckets.take(source(2), start), "another source is not concerned");
        let later = start + Duration::from_secs(1);
        let allowed = (0..3000).filter(|_| buckets.take(source(1), later)).count();
        assert_eq!(allowed, RATE as usize);
    }

    #[test]
    fn the_table_does_not_grow() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let allowed = (0..20_000).filter(|n| buckets.take(source(*n), start)).count();
        assert_eq!(buckets.sources.len(), SOURCES);
        assert_eq!(allowed, SOURCES + BURST as usize);
        let later = start + Duration::from_secs(5);
        assert!(buckets.take(source(99_999), later));
        assert!(buckets.sources.len() < SOURCES);
    }
}
