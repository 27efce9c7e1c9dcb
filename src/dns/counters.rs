//! How the name server fared.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// Adds one; other threads may count at the same time.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
