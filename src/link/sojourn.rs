//! Which packets in front of a stream have waited too long. Pure: time is an argument.
//!
//! A queue that never empties helps nobody: it adds its length to each round trip and no bytes to the rate. This is CoDel
//! (RFC 8289): once everything has waited longer than [`TARGET`] for an [`INTERVAL`], one packet is dropped at the head, where its
//! sender misses it soonest, and further ones at shorter and shorter distances until the wait is short again. Where the stream
//! stands still, what is older than [`STALE`] goes at once: its sender has sent it again.

use std::time::{Duration, Instant};

/// A wait that is no standing queue: receipts let packets go in groups, a group each 20 ms at 3 Mbit/s.
const TARGET: Duration = Duration::from_millis(15);
/// How long a wait may be longer: a round trip through much of the world, in which a sender can react.
const INTERVAL: Duration = Duration::from_millis(100);
/// A packet that waited for so long is of no use.
const STALE: Duration = Duration::from_millis(250);
/// Bytes that wait always: two packets of a full size.
const FEW: usize = 2 * 1500;

/// What is to become of the packet at the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The packet waited for a short time: it is sent.
    Send,
    /// It is dropped, and the next one is judged.
    Drop,
}

/// The state of one queue.
#[derive(Debug, Default)]
pub(super) struct Sojourn {
    /// When the wait has been too long for an interval, if it stays so.
    above_at: Option<Instant>,
    /// When the next packet is dropped; none while the wait is short.
    next: Option<Instant>,
    /// Packets dropped since the wait was short.
    count: u32,
    /// When the last one was.
    last: Option<Instant>,
}

impl Sojourn {
    /// Judges the packet at the head, which has waited for `waited`; so many bytes wait with it.
    pub(super) fn judge(&mut self, now: Instant, waited: Duration, bytes: usize) -> Verdict {
        if waited < TARGET || bytes <= FEW {
            (self.above_at, self.next) = (None, None);
            return Verdict::Send;
        }
        if waited >= STALE {
            return Verdict::Drop;
        }
        let above_at = *self.above_at.get_or_insert(now + INTERVAL);
        match self.next {
            Some(next) if now >= next => {
                self.count = self.count.saturating_add(1);
                self.next = Some(next + distance(self.count));
                self.last = Some(now);
                Verdict::Drop
            }
            Some(_) => Verdict::Send,
            None if now >= above_at => {
                // A queue that comes back soon takes up where it left off.
                let is_back = |last: Instant| now.saturating_duration_since(last) < 16 * INTERVAL;
                self.count = match self.last.is_some_and(is_back) {
                    true => (self.count / 2).max(1),
                    false => 1,
                };
                self.last = Some(now);
                self.next = Some(now + distance(self.count));
                Verdict::Drop
            }
            None => Verdict::Send,
        }
    }
}

/// The time from one drop to the next after so many: the control law of RFC 8289, 5.3.
fn distance(count: u32) -> Duration {
    INTERVAL.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Packets dropped of one each millisecond, each of which has waited for so long.
    fn dropped(sojourn: &mut Sojourn, from: Instant, millis: u32, waited: Duration) -> usize {
        (0..millis)
            .filter(|n| sojourn.judge(from + MS * *n, waited, 100_000) == Verdict::Drop)
            .count()
    }

    #[test]
    fn a_short_wait_and_a_burst_drop_nothing() {
        let (mut sojourn, now) = (Sojourn::default(), Instant::now());
        assert_eq!(dropped(&mut sojourn, now, 1000, TARGET - MS), 0);
        // Shorter than an interval, time and again.
        for n in 0..10 {
            let from = now + INTERVAL * 2 * n;
            assert_eq!(dropped(&mut sojourn, from, 99, STALE - MS), 0);
            assert_eq!(dropped(&mut sojourn, from + INTERVAL, 1, MS), 0);
        }
        let few = sojourn.judge(now + INTERVAL * 99, STALE * 2, FEW);
        assert_eq!(few, Verdict::Send, "a single packet is never too old");
    }

    #[test]
    fn a_standing_queue_is_dropped_from_more_and_more_until_it_is_gone() {
        let (mut sojourn, now) = (Sojourn::default(), Instant::now());
        let waited = Duration::from_millis(50);
        assert_eq!(dropped(&mut sojourn, now, 100, waited), 0);
        let first = dropped(&mut sojourn, now + INTERVAL, 500, waited);
        let second = dropped(&mut sojourn, now + INTERVAL * 6, 500, waited);
        assert!((4..=16).contains(&first), "{first}");
        assert!(second > first, "{second} after {first}");
        let later = now + INTERVAL * 11;
        assert_eq!(sojourn.judge(later, MS, 100_000), Verdict::Send);
        assert_eq!(dropped(&mut sojourn, later + MS, 100, waited), 0);
    }

    #[test]
    fn what_is_stale_goes_at_once() {
        let (mut sojourn, now) = (Sojourn::default(), Instant::now());
        assert_eq!(dropped(&mut sojourn, now, 30, STALE), 30);
    }
}
