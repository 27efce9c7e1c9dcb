//! When to look after the subnets: after a change, when the clock was set, and from time to time. A look at a large subnet
//! is not free, and what hangs on time hangs on half lives and minutes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::unix_now_ms;
use crate::model::id::PeerId;
use crate::model::upkeep::Attendance;

/// How long after a change every second counts: a block that two admins gave is given anew after two.
const LIVELY: Duration = Duration::from_secs(4);
/// Between two looks otherwise.
const SELDOM: Duration = Duration::from_secs(30);
/// Time between two looks for each unit of time that one takes: a large subnet leaves the thread to others.
const REST_FACTOR: u32 = 20;
/// By how much the clock differs from what it should show when it is taken to have been set.
const SET: Duration = Duration::from_secs(60);

/// What this machine's clock showed at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Milliseconds since 1970 by the system's clock.
    pub unix_ms: u64,
    /// The moment, which nobody sets.
    pub at: Instant,
}

impl Reading {
    /// What it shows now.
    pub fn now() -> Reading {
        Reading { unix_ms: unix_now_ms(), at: Instant::now() }
    }

    /// By how much the clock was set since an earlier reading, either way.
    pub fn set_since(&self, earlier: &Reading) -> Duration {
        let passed = self.at.saturating_duration_since(earlier.at).as_millis();
        let expected = earlier.unix_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        Duration::from_millis(self.unix_ms.abs_diff(expected))
    }
}

/// What was found when this machine's clock was compared with the others'.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The clock that was judged.
    pub clock: Reading,
    /// Whether nothing may be signed by it.
    pub doubted: bool,
    /// Whether most of the others agree with it: what has ended by it may be forgotten.
    pub agreed: bool,
    /// Members that are connected.
    pub seen: BTreeSet<PeerId>,
}

/// What was looked at when.
#[derive(Debug)]
pub(super) struct Pulse {
    changed: Instant,
    looked: Option<Instant>,
    /// How long the last look took.
    took: Duration,
    clock: Reading,
    was_set: bool,
    /// The latest word on the clock. None where nobody compares clocks.
    judged: Option<(Reading, bool)>,
    /// Whether this node's clock could not be believed, and whether it can be again since this moment.
    doubted: bool,
    settled: bool,
}

impl Pulse {
    pub(super) fn new(clock: Reading) -> Pulse {
        Pulse {
            changed: clock.at,
            looked: None,
            took: Duration::ZERO,
            clock,
            was_set: false,
            judged: None,
            doubted: false,
            settled: false,
        }
    }

    /// Something was saved.
    pub(super) fn changed(&mut self, at: Instant) {
        self.changed = at;
    }

    /// Takes a word on the clock. It holds for the clock that was judged: should that have been set meanwhile, the word is
    /// about a clock that is no more.
    pub(super) fn judged(&mut self, clock: Reading, doubted: bool) {
        self.judged = Some((clock, doubted));
    }

    /// Notices that the clock was set. Then it is not believed until it was judged anew.
    pub(super) fn watch_clock(&mut self, clock: Reading, around: &mut Attendance) {
        self.was_set = clock.set_since(&self.clock) > SET;
        self.clock = clock;
        let unknown = |of: &Reading| clock.set_since(of) > SET;
        around.clock_is_off = self.judged.as_ref().is_some_and(|(of, doubted)| *doubted || unknown(of));
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
        let now = self.clock.at;
        let since = |at: Instant| now.saturating_duration_since(at);
        let rested = self.looked.is_none_or(|at| since(at) >= self.took.saturating_mul(REST_FACTOR));
        // What changed since the last look is looked at once more, however long that one took.
        let unseen = self.looked.is_none_or(|at| self.changed > at);
        let lively = rested && (unseen || since(self.changed) < LIVELY);
        let due = lively || moved || self.was_set || self.settled || self.looked.is_none_or(|at| since(at) >= SELDOM);
        if due {
            self.looked = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;
    const YEARS: u64 = 730 * DAY;
    /// What the right clock shows at the start.
    const BEGIN: u64 = 1_800_000_000;

    /// A node's pulse, whose clock is set and whose seconds pass as the test says.
    struct Beat {
        start: Instant,
        seconds: u64,
        ahead: u64,
        pulse: Pulse,
        around: Attendance,
    }

    impl Beat {
        /// Nothing has changed for a long time, and a look was just made.
        fn quiet() -> Beat {
            let start = Instant::now();
            let clock = Reading { unix_ms: BEGIN * 1000, at: start };
            let mut beat =
                Beat { start, seconds: 0, ahead: 0, pulse: Pulse::new(clock), around: Attendance::default() };
            beat.word(false);
            while !beat.second() || beat.seconds < 100 {}
            beat
        }

        fn clock(&self) -> Reading {
            let unix_ms = (BEGIN + self.seconds + self.ahead) * 1000;
            Reading { unix_ms, at: self.start + Duration::from_secs(self.seconds) }
        }

        /// Somebody compared clocks just now.
        fn word(&mut self, doubted: bool) {
            self.pulse.judged(self.clock(), doubted);
        }

        /// A second passes; whether there is a look after it.
        fn second(&mut self) -> bool {
            self.seconds += 1;
            self.pulse.watch_clock(self.clock(), &mut self.around);
            self.pulse.is_due(false)
        }

        /// Seconds until upkeep may sign something again.
        fn until_upkeep(&mut self) -> u64 {
            (1..60).find(|_| self.second() && !self.around.clock_is_off).expect("no look within a minute")
        }
    }

    #[test]
    fn what_was_put_off_while_a_clock_was_doubted_is_made_up_for_at_once() {
        let mut beat = Beat::quiet();
        beat.ahead = YEARS;
        assert!(beat.second() && beat.around.clock_is_off, "a clock that was set is looked at, and not believed");
        for _ in 0..11 {
            beat.word(true);
            beat.second();
            assert!(beat.around.clock_is_off);
        }
        beat.ahead = 0;
        beat.second();
        assert!(beat.around.clock_is_off, "it is right, which nobody has said yet");
        beat.word(true);
        beat.second();
        beat.word(false);
        assert_eq!(beat.until_upkeep(), 1);
    }

    #[test]
    fn a_word_about_a_clock_that_is_no_more_says_nothing() {
        let mut beat = Beat::quiet();
        // It was on its way when the clock was set, and comes after the node has noticed that.
        let word = beat.clock();
        beat.ahead = YEARS;
        beat.second();
        beat.pulse.judged(word, false);
        for _ in 0..5 {
            beat.second();
            assert!(beat.around.clock_is_off);
        }
        beat.word(false);
        assert_eq!(beat.until_upkeep(), 1);
    }

    #[test]
    fn a_pulse_is_quiet_where_nothing_happens_and_whole_where_nobody_compares() {
        let mut beat = Beat::quiet();
        let looks = (0..300).filter(|_| beat.second()).count();
        assert_eq!(looks, 10, "every 30 s");
        let mut alone = Beat::quiet();
        alone.pulse.judged = None;
        alone.ahead = YEARS;
        assert_eq!(alone.until_upkeep(), 1);
    }
}
