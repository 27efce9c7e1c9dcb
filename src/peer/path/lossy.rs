//! A path whose keep-alives are lost or late is left for a spare of its class that answers, before it is silent.

use std::time::{Duration, Instant};

use super::DWELL;

/// An answer that took longer is late: a keep-alive is missed by then in most cases.
const LATE: Duration = Duration::from_secs(1);
/// The time between two probes of the spares of a path that seems bad.
pub(super) const HASTE: Duration = Duration::from_millis(350);
/// Lost or late of the last eight from which on a path seems bad, and from which on it is: three of eight are well above a
/// fifth, and rare where one of twenty is lost.
const SEEMS: u32 = 2;
const IS: u32 = 3;
/// Keep-alives of the last 64 that must be lost before they count against a path.
const CLEARLY_LOST: u32 = 4;
/// How long a path must be kept before it counts as one that was no mistake.
const GOOD: Duration = Duration::from_secs(300);
/// How often the time before a path may be left doubles.
const DOUBLINGS: u32 = 5;

/// What became of the keep-alives of the path. One is missed when its answer is late, and another one is sent: that tells soon
/// that a path is bad. It is lost when its answer has not come in five seconds: that makes the share which is shown, and
/// which paths are compared by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried {
    /// The last 64: a bit each, set where it was lost, the newest one lowest; and how many there were.
    lost: u64,
    count: u32,
    /// The last eight: a bit each, set where it was missed or its answer was late.
    bad: u8,
}

impl Tried {
    /// A keep-alive was answered after that time.
    pub(super) fn answered(&mut self, rtt: Duration) {
        self.bad = self.bad << 1 | u8::from(rtt > LATE);
        self.end(false);
    }

    /// A keep-alive was not answered in time. Its answer may come yet.
    pub(super) fn missed(&mut self) {
        self.bad = self.bad << 1 | 1;
    }

    /// A keep-alive will not be answered any more.
    pub(super) fn lost(&mut self) {
        self.end(true);
    }

    fn end(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u64::from(lost);
        self.count = self.count.saturating_add(1).min(u64::BITS);
    }

    /// Whether none was missed or late: else the next one is sent soon.
    pub(super) fn is_clean(self) -> bool {
        self.bad == 0
    }

    /// Whether the spares are to be asked.
    pub(super) fn seems_bad(self) -> bool {
        self.bad.count_ones() >= SEEMS
    }

    /// Whether the path is to be left for a spare that is better.
    pub(super) fn is_bad(self) -> bool {
        self.bad.count_ones() >= IS
    }

    /// Whether a keep-alive that is under way is reason enough to ask another address beside: three of the last sixteen were
    /// lost. To ask costs little, so that half the share is enough of which a path is left.
    pub(super) fn is_lossy(self) -> bool {
        (self.lost & 0xffff).count_ones() >= IS
    }

    /// The share of the last 64 that was lost, 0 to 1; none before the first.
    pub(super) fn loss(self) -> Option<f64> {
        (self.count > 0).then(|| f64::from(self.lost.count_ones()) / f64::from(self.count))
    }

    /// The share that a path is compared by. Of a single lost one nothing is concluded, or two paths that lose one of a
    /// hundred would take turns. One that seems bad is compared by that; whether it is left is another question.
    pub(super) fn compared(self) -> f64 {
        let is_clear = self.lost.count_ones() >= CLEARLY_LOST;
        let lost = self.loss().filter(|_| is_clear).unwrap_or(0.0);
        let bad = f64::from(self.bad.count_ones()) / f64::from(u8::BITS);
        lost.max(if self.seems_bad() { bad } else { 0.0 })
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
