//! When to look after the subnets: after a change, when the clock was set, and from time to time. A look at a large subnet
//! is not free, and what hangs on time hangs on half lives and minutes.

use std::time::{Duration, Instant};

use super::unix_now;
use crate::model::upkeep::Attendance;

/// How long after a change every second counts: a block that two admins gave is given anew after two.
const LIVELY: Duration = Duration::from_secs(4);
/// Between two looks otherwise.
const SELDOM: Duration = Duration::from_secs(30);
/// Time between two looks for each unit of time that one takes: a large subnet leaves the thread to others.
const REST_FACTOR: u32 = 20;
/// Seconds by which the clock is taken to have been set.
const SET: u64 = 60;

/// What was looked at when.
#[derive(Debug)]
pub(super) struct Pulse {
    changed: Instant,
    looked: Option<Instant>,
    /// How long the last look took.
    took: Duration,
    clock: (u64, Instant),
    was_set: bool,
    /// Whether this node's clock could not be believed, and whether it can be again since this moment.
    doubted: bool,
    settled: bool,
}

impl Default for Pulse {
    fn default() -> Pulse {
        let now = Instant::now();
        Pulse {
            changed: now,
            looked: None,
            took: Duration::ZERO,
            clock: (unix_now(), now),
            was_set: false,
            doubted: false,
            settled: false,
        }
    }
}

impl Pulse {
    /// Something was saved.
    pub(super) fn changed(&mut self) {
        self.changed = Instant::now();
    }

    /// Notices that the clock was set. While others are connected it is not believed until they have been asked.
    pub(super) fn watch_clock(&mut self, around: &mut Attendance) {
        let now = (unix_now(), Instant::now());
        let expected = self.clock.0.saturating_add(now.1.duration_since(self.clock.1).as_secs());
        self.was_set = now.0.abs_diff(expected) > SET;
        self.clock = now;
        if self.was_set && !around.seen.is_empty() {
            around.clock_is_off = true;
        }
        // What was put off, or signed by a wrong clock, is not left until the next look by itself.
        self.settled = self.doubted && !around.clock_is_off;
        self.doubted = around.clock_is_off;
    }

    /// Tells how long a look took.
    pub(super) fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// Whether to look now. `moved`: whether time alone has changed who is a member.
    pub(super) fn is_due(&mut self, moved: bool) -> bool {
        let rested = self.looked.is_none_or(|at| at.elapsed() >= self.took.saturating_mul(REST_FACTOR));
        // What changed since the last look is looked at once more, however long that one took.
        let unseen = self.looked.is_none_or(|at| self.changed > at);
        let lively = rested && (unseen || self.changed.elapsed() < LIVELY);
        let due =
            lively || moved || self.was_set || self.settled || self.looked.is_none_or(|at| at.elapsed() >= SELDOM);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }
}
