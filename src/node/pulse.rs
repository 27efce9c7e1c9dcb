//! When to look after the subnets: after a change, when the clock was set, and from time to time. A look at a large subnet
//! is not free, and what hangs on time hangs on half lives and minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::unix_now_ms;
use crate::model::id::{PeerId, SubnetId};

/// How long after a change every second counts: a block that two admins gave is given anew after two.
const LIVELY: Duration = Duration::from_secs(4);
/// Time between two looks otherwise.
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
    /// What the clock shows now.
    pub fn now() -> Reading {
        Reading {
            unix_ms: unix_now_ms(),
            at: Instant::now(),
        }
    }

    /// By how much the clock was set since an earlier reading, either way.
    pub fn set_since(&self, earlier: &Reading) -> Duration {
        let passed = self.at.saturating_duration_since(earlier.at).as_millis();
        let expected = earlier
            .unix_ms
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        Duration::from_millis(self.unix_ms.abs_diff(expected))
    }
}

/// What was found when this machine's clock was compared with the others'.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The clock that was judged.
    pub clock: Reading,
    /// What is thought of it in each subnet. In one that is not named nothing is signed by it yet.
    pub words: BTreeMap<SubnetId, Word>,
    /// Members that were connected then.
    pub seen: BTreeSet<PeerId>,
}

/// What is thought of this machine's clock in one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Whether nothing may be signed by it there.
    pub doubted: bool,
    /// Whether the subnet's own members agree with it: what has ended there by it may be forgotten.
    pub agreed: bool,
}

/// When the node last looked at what time changes, and what it found of the clock.
#[derive(Debug)]
pub(super) struct Pulse {
    changed: Instant,
    looked: Option<Instant>,
    took: Duration,
    clock: Reading,
    was_set: bool,
    /// The latest word on the clock. None where nobody compares clocks.
    judged: Option<(Reading, BTreeMap<SubnetId, Word>)>,
    /// Subnets in which this node's clock cannot be believed.
    doubted: BTreeSet<SubnetId>,
    /// In one it can be again, and there was no look since.
    settled: bool,
    /// When a look was made that did not wait for the rest after the one before.
    hurried: Option<Instant>,
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
            doubted: BTreeSet::new(),
            settled: false,
            hurried: None,
        }
    }

    /// Notes that something was saved.
    pub(super) fn changed(&mut self, at: Instant) {
        self.changed = at;
    }

    /// Takes a word on the clock. It holds for the clock that was judged: should that have been set meanwhile, the word is
    /// about a clock that is no more.
    pub(super) fn judged(&mut self, clock: Reading, words: BTreeMap<SubnetId, Word>) {
        self.judged = Some((clock, words));
    }

    /// Notices that the clock was set. Then it is not believed until it was judged anew.
    pub(super) fn watch_clock(&mut self, clock: Reading, subnets: impl Iterator<Item = SubnetId>) {
        self.was_set = clock.set_since(&self.clock) > SET;
        self.clock = clock;
        let doubted: BTreeSet<SubnetId> = subnets.filter(|id| self.is_off(*id)).collect();
        // What was put off, or signed by a wrong clock, is not left until the next look by itself.
        self.settled |= !self.doubted.is_subset(&doubted);
        self.doubted = doubted;
    }

    /// Whether nothing may be signed in a subnet by the clock as it was last seen.
    pub(super) fn is_off(&self, subnet: SubnetId) -> bool {
        self.judged.as_ref().is_some_and(|(of, words)| {
            self.clock.set_since(of) > SET || words.get(&subnet).is_none_or(|word| word.doubted)
        })
    }

    /// A time (seconds since 1970) that a subnet's members agree with: what ended there before it may be forgotten.
    pub(super) fn attested(&self, subnet: SubnetId) -> Option<u64> {
        let (of, words) = self.judged.as_ref()?;
        words
            .get(&subnet)
            .filter(|word| word.agreed)
            .map(|_| of.unix_ms / 1000)
    }

    /// Notes how long a look took.
    pub(super) fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// Whether to look now. `moved`: whether time alone has changed who is a member.
    pub(super) fn is_due(&mut self, moved: bool) -> bool {
        let now = self.clock.at;
        let since = |at: Instant| now.saturating_duration_since(at);
        let rested = self
            .looked
            .is_none_or(|at| since(at) >= self.took.saturating_mul(REST_FACTOR));
        // What changed since the last look is looked at once more, however long that one took.
        let unseen = self.looked.is_none_or(|at| self.changed > at);
        let lively = rested && (unseen || since(self.changed) < LIVELY);
        // What was put off is made up for at once. Whoever comes and goes without a word has the clock doubted and believed
        // by turns: a second time the thread has its rest first.
        let fresh = self.hurried.is_none_or(|at| since(at) >= SELDOM);
        let settled = self.settled && (rested || fresh);
        let due = lively
            || moved
            || self.was_set
            || settled
            || self.looked.is_none_or(|at| since(at) >= SELDOM);
        if due {
            if settled && !rested {
                self.hurried = Some(now);
            }
            self.settled = false;
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
    }

    const HERE: SubnetId = SubnetId([1; 16]);
    const THERE: SubnetId = SubnetId([2; 16]);

    impl Beat {
        /// Nothing has changed for a long time, and a look was just made.
        fn quiet() -> Beat {
            let start = Instant::now();
            let clock = Reading {
                unix_ms: BEGIN * 1000,
                at: start,
            };
            let mut beat = Beat {
                start,
                seconds: 0,
                ahead: 0,
                pulse: Pulse::new(clock),
            };
            beat.word(false);
            while !beat.second() || beat.seconds < 100 {}
            beat
        }

        fn clock(&self) -> Reading {
            let unix_ms = (BEGIN + self.seconds + self.ahead) * 1000;
            Reading {
                unix_ms,
                at: self.start + Duration::from_secs(self.seconds),
            }
        }

        /// Somebody compared clocks just now.
        fn word(&mut self, doubted: bool) {
            self.words([(HERE, doubted)]);
        }

        fn words<const N: usize>(&mut self, doubted: [(SubnetId, bool); N]) {
            let word = |(id, doubted)| {
                (
                    id,
                    Word {
                        doubted,
                        agreed: !doubted,
                    },
                )
            };
            self.pulse
                .judged(self.clock(), doubted.into_iter().map(word).collect());
        }

        fn is_off(&self) -> bool {
            self.pulse.is_off(HERE)
        }

        /// A second passes; whether there is a look after it.
        fn second(&mut self) -> bool {
            self.seconds += 1;
            self.pulse
                .watch_clock(self.clock(), [HERE, THERE].into_iter());
            self.pulse.is_due(false)
        }

        /// Seconds until upkeep may sign something again.
        fn until_upkeep(&mut self) -> u64 {
            (1..60)
                .find(|_| self.second() && !self.is_off())
                .expect("no look within a minute")
        }
    }

    #[test]
    fn what_was_put_off_while_a_clock_was_doubted_is_made_up_for_at_once() {
        let mut beat = Beat::quiet();
        beat.ahead = YEARS;
        assert!(
            beat.second() && beat.is_off(),
            "a clock that was set is looked at, and not believed"
        );
        for _ in 0..11 {
            beat.word(true);
            beat.second();
            assert!(beat.is_off());
        }
        beat.ahead = 0;
        beat.second();
        assert!(beat.is_off(), "it is right, which nobody has said yet");
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
        let believed = Word {
            doubted: false,
            agreed: true,
        };
        beat.pulse.judged(word, BTreeMap::from([(HERE, believed)]));
        for _ in 0..5 {
            beat.second();
            assert!(beat.is_off());
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

    #[test]
    fn a_clock_that_one_subnet_doubts_is_believed_in_another() {
        let mut beat = Beat::quiet();
        beat.words([(HERE, false), (THERE, true)]);
        beat.second();
        assert_eq!([HERE, THERE].map(|id| beat.pulse.is_off(id)), [false, true]);
        let now = beat.pulse.attested(HERE);
        assert!(
            now.is_some() && beat.pulse.attested(THERE).is_none(),
            "{now:?}"
        );
        // Of a subnet that is new nobody has said anything yet.
        assert!(
            beat.pulse.is_off(SubnetId([3; 16]))
                && beat.pulse.attested(SubnetId([3; 16])).is_none()
        );
        beat.words([(HERE, false), (THERE, false)]);
        assert!(beat.second(), "what was put off in one is made up for");
    }

    #[test]
    fn a_clock_that_is_doubted_and_believed_by_turns_costs_few_looks() {
        let mut beat = Beat::quiet();
        let mut looks = 0;
        for n in 0..300 {
            beat.words([(HERE, false), (THERE, n % 2 == 0)]);
            if beat.second() {
                looks += 1;
                // The subnets are large.
                beat.pulse.took(Duration::from_secs(2));
            }
        }
        assert!((9..=20).contains(&looks), "{looks} looks in 300 s");
        // What was put off is not forgotten by that.
        beat.words([(HERE, false), (THERE, true)]);
        beat.second();
        beat.words([(HERE, false), (THERE, false)]);
        assert!((0..30).any(|_| beat.second()));
    }
}
