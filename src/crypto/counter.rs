//! The counter that every frame of one key takes its nonce from.
//!
//! In a file of its own, with atomics named by `super`, so that `tests/loom.rs` can include it with loom's and try every
//! interleaving.

use super::atomic::{AtomicU64, Ordering};

/// Counters run from 0 to one below this. Far from 2^64, so that no number of failed calls wraps the atomic.
pub const LIMIT: u64 = 1 << 60;

/// Hands out each number below [`LIMIT`] once, to any number of threads.
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter whose next number is `first`.
    pub fn new(first: u64) -> Counter {
        Counter(AtomicU64::new(first))
    }

    /// The first of `count` consecutive numbers that nobody else gets; `None` when they would reach [`LIMIT`].
    ///
    /// One atomic addition. What a refused call added is lost; that ends the counter a little early and never late.
    pub fn take(&self, count: u32) -> Option<u64> {
        // Relaxed: the number itself is all that is shared. The look before the addition keeps a counter that is used up
        // from being driven on towards 2^64 by calls that fail.
        if self.0.load(Ordering::Relaxed) >= LIMIT {
            return None;
        }
        let first = self.0.fetch_add(u64::from(count), Ordering::Relaxed);
        first
            .checked_add(u64::from(count))
            .filter(|end| *end <= LIMIT)
            .map(|_| first)
    }

    /// Hands out nothing from now on; what was taken before may still be used.
    pub fn close(&self) {
        self.0.fetch_max(LIMIT, Ordering::Relaxed);
    }

    /// Numbers taken so far; [`LIMIT`] once closed.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed).min(LIMIT)
    }
}
