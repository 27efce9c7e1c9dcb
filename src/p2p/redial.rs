//! When a lost peer is dialled again.
//!
//! Pure: the time and the jitter are arguments. At once, then after 1 s; never more than 2 s apart in the first minute
//! after the loss, so that a peer that returns is back within 3 s; later up to `discovery.redial` apart. Many lost peers share a
//! [`Budget`], so that a large subnet most of which is away costs its members little; those for whom packets wait do not.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::limit::{Limit, TokenBucket};

/// The time after a loss in which pauses stay short.
const FRESH: Duration = Duration::from_secs(60);
/// Longest pause in that time, jitter included.
const SHORT: Duration = Duration::from_secs(2);
/// Least time between two dials of one peer, whatever happens.
const FLOOR: Duration = Duration::from_secs(1);

/// Rounds of dials to peers lost in the last minute that may begin at once, and in a second after that. The first is for a
/// node whose own link was down, the second keeps pauses of 2 s for 20 lost peers.
const FRESH_LIMIT: Limit = Limit::new(64, 10);
/// The same for peers that are away for longer: pauses of 30 s for 30 of them, and longer ones for more. Whoever returns
/// dials by itself.
const AWAY_LIMIT: Limit = Limit::new(16, 1);

/// The dialling of one peer.
#[derive(Debug, Clone)]
pub(super) struct Redial {
    /// When the peer was lost, or first wanted.
    since: Instant,
    /// When to dial next.
    next: Instant,
    last: Option<Instant>,
    /// Packets wait for the peer.
    wanted: bool,
    /// Dials that were started since `since`.
    pub(super) failures: u32,
}

impl Redial {
    /// Begins now, with the first dial after `delay`.
    pub(super) fn new(now: Instant, delay: Duration) -> Self {
        Redial {
            since: now,
            next: now + delay,
            last: None,
            wanted: false,
            failures: 0,
        }
    }

    /// Whether a dial is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// When a dial is due.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// Whether the peer was lost, or there was news of it, in the last minute.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < FRESH
    }

    /// A dial was started; `jitter` is any number. Pauses are no longer than `longest` once the loss is older than
    /// [`FRESH`].
    pub(super) fn dialled(&mut self, now: Instant, jitter: u32, longest: Duration) {
        let cap = if self.is_fresh(now) { SHORT } else { longest };
        let pause = Backoff::new(FLOOR, cap).pause(self.failures);
        // Between 80 and 100 % of the pause, never under the floor.
        let pause = pause
            .mul_f64(0.8 + 0.2 * f64::from(jitter) / f64::from(u32::MAX))
            .max(FLOOR);
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        self.wanted = false;
        self.next = now + pause;
    }

    /// There is news of the peer: it is dialled as soon as the floor allows, and the pauses are short again.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.since = now;
        self.failures = 0;
        self.next = self.last.map_or(now, |last| (last + FLOOR).max(now));
    }

    /// Packets wait for the peer: the same, except that the pauses stay as they are.
    pub(super) fn nudge(&mut self, now: Instant) {
        let soon = self.last.map_or(now, |last| (last + FLOOR).max(now));
        self.next = self.next.min(soon);
        self.wanted = true;
    }
}

/// Dials of all lost peers together: a token bucket for those lost just now, and one for those away for longer.
#[derive(Debug)]
pub(super) struct Budget {
    fresh: TokenBucket,
    away: TokenBucket,
}

impl Budget {
    /// Makes a budget whose buckets are full.
    pub(super) fn new() -> Self {
        Budget {
            fresh: TokenBucket::new(FRESH_LIMIT),
            away: TokenBucket::new(AWAY_LIMIT),
        }
    }

    /// Whether one more round to this peer may begin: always where packets wait.
    pub(super) fn take(&mut self, now: Instant, redial: &Redial) -> bool {
        let bucket = if redial.is_fresh(now) {
            &mut self.fresh
        } else {
            &mut self.away
        };
        redial.wanted || bucket.take(now.into_std())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(30);

    proptest! {
        #[test]
        fn pauses_stay_in_their_bounds(jitters in proptest::collection::vec(any::<u32>(), 100)) {
            let start = Instant::now();
            let mut redial = Redial::new(start, Duration::ZERO);
            let mut now = start;
            for jitter in jitters {
                prop_assert!(redial.is_due(now));
                redial.dialled(now, jitter, LONG);
                let pause = redial.next - now;
                prop_assert!(pause >= FLOOR && pause <= LONG);
                prop_assert!(now - start >= FRESH || pause <= SHORT);
                // However often packets ask for it.
                redial.nudge(now);
                prop_assert!(redial.next >= now + FLOOR);
                redial.next = now + pause;
                now = redial.next;
            }
            prop_assert!(redial.next - now >= Duration::ZERO);
        }
    }

    #[test]
    fn many_lost_peers_share_a_budget() {
        let start = Instant::now();
        let redial = Redial::new(start, Duration::ZERO);
        let mut budget = Budget::new();
        let mut rounds = |now: Instant| (0..200).filter(|_| budget.take(now, &redial)).count();
        assert_eq!(rounds(start), 64);
        assert_eq!(rounds(start + Duration::from_secs(1)), 10);
        // Ten times a second, as the driver asks: no part of a token is lost.
        let spent: usize = (1..=50)
            .map(|n| rounds(start + Duration::from_millis(1000 + 100 * n)))
            .sum();
        assert!((49..=50).contains(&spent), "{spent}");
        assert_eq!(
            rounds(start + FRESH),
            16,
            "those away for longer have their own"
        );
        assert_eq!(rounds(start + FRESH + Duration::from_secs(3)), 3);
    }

    #[test]
    fn packets_that_wait_do_not_wait_for_the_budget() {
        let start = Instant::now();
        let (mut redial, mut budget) = (Redial::new(start, Duration::ZERO), Budget::new());
        while budget.take(start, &redial) {}
        redial.nudge(start);
        assert!(budget.take(start, &redial));
        redial.dialled(start, 0, LONG);
        assert!(!budget.take(start, &redial), "once for each time they ask");
    }

    #[test]
    fn news_of_the_peer_shortens_the_pause() {
        let start = Instant::now();
        let mut redial = Redial::new(start, Duration::ZERO);
        let late = start + Duration::from_secs(300);
        (0..8).for_each(|_| redial.dialled(late, u32::MAX, LONG));
        assert_eq!(redial.next, late + LONG);
        redial.hurry(late + Duration::from_secs(5));
        assert!(redial.is_due(late + Duration::from_secs(5)));
    }
}
