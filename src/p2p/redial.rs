//! When a lost peer is dialled again.
//!
//! Pure: the time and the jitter are arguments. At once, then after 1 s; never more than 2 s apart in the first minute
//! after the loss, so that a peer that returns is back within 3 s; later up to 30 s apart.

use std::time::Duration;

use tokio::time::Instant;

/// The time after a loss in which pauses stay short.
const FRESH: Duration = Duration::from_secs(60);
/// Longest pause then, jitter included.
const SHORT: Duration = Duration::from_secs(2);
/// Longest pause later.
const LONG: Duration = Duration::from_secs(30);
/// Between two dials of one peer, whatever happens.
const FLOOR: Duration = Duration::from_secs(1);

/// The dialling of one peer.
#[derive(Debug, Clone)]
pub(super) struct Redial {
    /// When the peer was lost, or first wanted.
    since: Instant,
    /// When to dial next.
    next: Instant,
    last: Option<Instant>,
    /// Dials since `since`.
    pub(super) failures: u32,
}

impl Redial {
    /// Begins now, with the first dial after `delay`.
    pub(super) fn new(now: Instant, delay: Duration) -> Self {
        Redial { since: now, next: now + delay, last: None, failures: 0 }
    }

    /// Whether a dial is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// A dial was started; `jitter` is any number.
    pub(super) fn dialled(&mut self, now: Instant, jitter: u32) {
        let cap = if now.duration_since(self.since) < FRESH { SHORT } else { LONG };
        let pause = FLOOR.saturating_mul(1 << self.failures.min(5)).min(cap);
        // Between 80 and 100 % of the pause, never under the floor.
        let pause = pause.mul_f64(0.8 + 0.2 * f64::from(jitter) / f64::from(u32::MAX)).max(FLOOR);
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_stay_in_their_bounds(jitters in proptest::collection::vec(any::<u32>(), 100)) {
            let start = Instant::now();
            let mut redial = Redial::new(start, Duration::ZERO);
            let mut now = start;
            for jitter in jitters {
                prop_assert!(redial.is_due(now));
                redial.dialled(now, jitter);
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
    fn news_of_the_peer_shortens_the_pause() {
        let start = Instant::now();
        let mut redial = Redial::new(start, Duration::ZERO);
        let late = start + Duration::from_secs(300);
        (0..8).for_each(|_| redial.dialled(late, u32::MAX));
        assert_eq!(redial.next, late + LONG);
        redial.hurry(late + Duration::from_secs(5));
        assert!(redial.is_due(late + Duration::from_secs(5)));
    }
}
