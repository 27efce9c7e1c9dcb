//! When a question is due on a link: at once, then after a pause that grows, up to a bound that is longer once enough have
//! answered.

use std::time::{Duration, Instant};

use super::{Entropy, spread};

/// The bound on the pause while too few have answered: a switch may have lost what was said, and others may have come.
const FEW: Duration = Duration::from_secs(60);

/// How often is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The first pause between two questions.
    pub min: Duration,
    /// The longest one, which is reached at once where enough have answered.
    pub max: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            min: Duration::from_secs(1),
            max: Duration::from_secs(600),
        }
    }
}

/// The clock of the questions on one link.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The pause before the next question; none before the first.
    pause: Option<Duration>,
    due: Option<Instant>,
}

impl Schedule {
    /// Begins anew: a question is due within 120 ms (RFC 6762, section 5.2), unless an earlier one is.
    pub(super) fn reset(&mut self, now: Instant, entropy: Entropy<'_>) {
        let soon = now + spread(entropy);
        self.pause = None;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// A question that is due later than so long from now is due then.
    pub(super) fn within(&mut self, now: Instant, longest: Duration) {
        self.due = self.due.map(|due| due.min(now + longest));
    }

    /// A question was sent, or another peer has put one that stands for it. `enough` have answered by now, or have not.
    pub(super) fn asked(&mut self, now: Instant, pace: Pace, enough: bool, entropy: Entropy<'_>) {
        let bound = if enough { pace.max } else { pace.max.min(FEW) };
        let pause = match self.pause {
            None => pace.min,
            Some(_) if enough => bound,
            Some(before) => before.saturating_mul(2),
        };
        let pause = pause.min(bound);
        self.pause = Some(pause);
        // An eighth more or less, so that the machines of a site do not ask in step.
        let mut byte = [0];
        entropy(&mut byte);
        let [byte] = byte;
        let jitter = pause.mul_f64(f64::from(byte) / 1024.0);
        self.due = Some(now + pause.mul_f64(0.875) + jitter);
    }

    /// Nothing is asked until [`Schedule::reset`].
    pub(super) fn rest(&mut self) {
        self.due = None;
    }

    /// When the next question is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(enough: bool, times: usize) -> Vec<u64> {
        let mut none = |bytes: &mut [u8]| bytes.fill(128);
        let mut schedule = Schedule::default();
        let start = Instant::now();
        schedule.reset(start, &mut none);
        let first = schedule.due().unwrap();
        assert!((20..=120).contains(&(first - start).as_millis()));
        let mut now = first;
        let mut pauses = Vec::new();
        for _ in 0..times {
            schedule.asked(now, Pace::default(), enough, &mut none);
            let due = schedule.due().unwrap();
            pauses.push((due - now).as_secs());
            now = due;
        }
        pauses
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_while_few_have_answered() {
        assert_eq!(pauses(false, 9), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn the_pause_is_the_longest_one_once_enough_have_answered() {
        assert_eq!(pauses(true, 4), [1, 600, 600, 600]);
    }
}
