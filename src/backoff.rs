//! How long to wait before something that failed is tried again.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::time::{Duration, Instant};

/// Pauses that double with each failure up to a longest one. Jitter is the caller's, where many wait for the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses for `first` after the first failure, and never for more than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest }
    }

    /// The pause after a failure that `failures` others went before.
    pub fn pause(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// How long news is not followed because it changes over and over: after a few changes that are free, each one holds the next
/// back for twice as long, from a second up to a minute. One change is forgotten in 30 seconds of rest. Time is an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldDown {
    free: u32,
    changes: u32,
    last: Option<Instant>,
    until: Option<Instant>,
}

impl HoldDown {
    const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    /// In which one change is forgotten.
    const DECAY: Duration = Duration::from_secs(30);
    /// Changes that are remembered beyond the free ones: enough for the longest pause.
    const MOST: u32 = 7;

    /// Holds nothing back yet; `free` changes in a row have no consequence.
    pub const fn new(free: u32) -> HoldDown {
        HoldDown {
            free,
            changes: 0,
            last: None,
            until: None,
        }
    }

    /// Until when a further change is not followed; none where it is.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// A change was followed.
    pub fn changed(&mut self, now: Instant) {
        let rested = self.last.max(self.until);
        let quiet = rested.map(|since| now.saturating_duration_since(since));
        let forgotten = quiet.map_or(0, |quiet| quiet.as_secs() / Self::DECAY.as_secs());
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.changes = self.changes.saturating_sub(forgotten).saturating_add(1);
        self.changes = self.changes.min(self.free.saturating_add(Self::MOST));
        self.last = Some(now);
        let beyond = self.changes.checked_sub(self.free.saturating_add(1));
        self.until = beyond.map(|failures| now + Self::PAUSES.pause(failures));
    }
}

/// Between two times that a loop says it cannot accept.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a loop does that accepts clients and cannot: where descriptors have run out, that lasts until others are closed. It
/// pauses longer and longer, and says so once a minute. Time is an argument.
#[derive(Debug, Default)]
pub struct Accepting {
    /// In a row.
    failures: u32,
    said: Option<Instant>,
}

impl Accepting {
    const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

    /// A client was accepted.
    pub fn accepted(&mut self) {
        self.failures = 0;
    }

    /// None could be: how long to pause, and whether to say so.
    pub fn failed(&mut self, now: Instant) -> (Duration, bool) {
        let pause = Self::PAUSES.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        let is_said = self
            .said
            .is_none_or(|said| now.saturating_duration_since(said) >= SAID_EVERY);
        if is_said {
            self.said = Some(now);
        }
        (pause, is_said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_over_and_over_is_held_for_longer_and_longer_and_forgotten() {
        let start = crate::testing::some_moment();
        let mut held = HoldDown::new(2);
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..10 {
            held.changed(now);
            let until = held.until(now).unwrap_or(now);
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        let mut followed = 0;
        for second in 0..3600 {
            let at = now + Duration::from_secs(second);
            if held.until(at).is_none() {
                held.changed(at);
                followed += 1;
            }
        }
        assert!(followed <= 61, "{followed} in an hour");
        let later = now + Duration::from_secs(7200);
        held.changed(later);
        assert_eq!(
            held.until(later),
            None,
            "after an hour of rest it is free again"
        );
    }

    #[test]
    fn who_cannot_accept_tries_once_a_second_and_says_so_once_a_minute() {
        let (start, mut clock) = (Instant::now(), Duration::ZERO);
        let (mut accepting, mut tries, mut said) = (Accepting::default(), 0, Vec::new());
        while clock < Duration::from_secs(180) {
            let (pause, is_said) = accepting.failed(start + clock);
            said.extend(is_said.then_some(clock.as_secs()));
            tries += 1;
            clock += pause;
        }
        assert!(tries < 200, "{tries}");
        assert_eq!(said.len(), 3, "{said:?}");
        // One client more is no news, and the next try comes soon.
        accepting.accepted();
        assert_eq!(
            accepting.failed(start + clock - Duration::from_secs(50)),
            (Duration::from_millis(50), false)
        );
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses = [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(|n| backoff.pause(n).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000, 1000, 1000]);
    }
}
