//! A path whose keep-alives are lost or late is left for a spare of its class that answers, before it is silent.

use std::time::{Duration, Instant};

use super::DWELL;

/// An answer that took longer is late: a keep-alive is missed by then in most cases.
pub(super) const LATE: Duration = Duration::from_secs(1);
/// The time between two probes of the spares of a path that seems bad.
pub(super) const HASTE: Duration = Duration::from_millis(350);
/// Lost or late of the last eight from which on a path seems bad, and from which on it is: three of eight are well above a
/// fifth, and rare where one of twenty is lost.
const SEEMS: u32 = 2;
const IS: u32 = 3;
/// How long a path must be kept before it counts as one that was no mistake.
const GOOD: Duration = Duration::from_secs(300);
/// How often the time before a path may be left doubles.
const DOUBLINGS: u32 = 5;

/// What became of the last eight keep-alives: a bit each, set where it was missed or its answer was late, the newest lowest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recent(u8);

impl Recent {
    pub(super) fn add(&mut self, bad: bool) {
        self.0 = self.0 << 1 | u8::from(bad);
    }

    /// Whether none was: else the next one is sent soon.
    pub(super) fn is_clean(self) -> bool {
        self.0 == 0
    }

    /// Whether the spares are to be asked.
    pub(super) fn seems_bad(self) -> bool {
        self.0.count_ones() >= SEEMS
    }

    /// Whether the path is to be left for a spare that is better.
    pub(super) fn is_bad(self) -> bool {
        self.0.count_ones() >= IS
    }

    /// The share that was lost or late.
    pub(super) fn loss(self) -> f64 {
        f64::from(self.0.count_ones()) / f64::from(u8::BITS)
    }
}

/// How soon a bad path is left: the first at once, the next ones later and later. Where the way out of this machine loses,
/// every path is bad, and changing over and over makes it worse.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Haste {
    moves: u32,
    last: Option<Instant>,
}

impl Haste {
    /// Whether a bad path in use since then may be left now.
    pub(super) fn may_leave(self, since: Instant, now: Instant) -> bool {
        match self.moves {
            0 => true,
            _ if self.is_over(now) => true,
            moves => since + DWELL * (1 << (moves - 1).min(DOUBLINGS)) <= now,
        }
    }

    /// A bad path was left.
    pub(super) fn left(&mut self, now: Instant) {
        self.moves = if self.is_over(now) { 0 } else { self.moves };
        self.moves = self.moves.saturating_add(1);
        self.last = Some(now);
    }

    fn is_over(self, now: Instant) -> bool {
        self.last.is_some_and(|last| last + GOOD <= now)
    }
}
