//! How the name server fared.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many questions were turned away, and why.
#[derive(Debug, Default)]
pub struct Counters {
    /// Questions answered from a zone of ours.
    pub answered: AtomicU64,
    /// Questions handed to the host's resolvers.
    pub forwarded: AtomicU64,
    /// Questions refused: the asker may not ask that, or it is none that we take.
    pub refused: AtomicU64,
    /// Questions from outside the subnet, which are not answered at all.
    pub foreign: AtomicU64,
    /// Messages that are no DNS question.
    pub malformed: AtomicU64,
    /// Questions above the rate of one source.
    pub limited: AtomicU64,
    /// Questions beyond those that may be on their way to the host's resolvers.
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
