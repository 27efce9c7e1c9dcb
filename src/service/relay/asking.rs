//! Which relays are worth a question: one that refuses, is silent or is of no use is asked more and more rarely.
//!
//! Pure: time and random bytes are arguments.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::model::id::PeerId;

/// The pauses before a relay is asked again that failed; each is longer by up to a half, so that all who lost one relay do
/// not come back to it in step.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(200));
/// The most relays of which a failure is remembered: members can name any number of them.
const MOST: usize = 256;

/// What failed lately, by relay.
#[derive(Debug, Default)]
pub(super) struct Asking(BTreeMap<PeerId, Failed>);

#[derive(Debug, Clone, Copy)]
struct Failed {
    /// In a row.
    failures: u32,
    /// When it may be asked again.
    again: Instant,
}

impl Asking {
    /// Whether a relay may be asked now.
    pub(super) fn may_ask(&self, relay: PeerId, now: Instant) -> bool {
        self.0.get(&relay).is_none_or(|failed| failed.again <= now)
    }

    /// A relay refused, did not answer, or gave a leg that nothing came of. `random` is any byte.
    pub(super) fn failed(&mut self, relay: PeerId, now: Instant, random: u8) {
        let failures = self.0.get(&relay).map_or(0, |failed| failed.failures);
        let pause = AGAIN.pause(failures);
        let jitter = pause / 2 * u32::from(random) / 256;
        let failed = Failed {
            failures: failures.saturating_add(1),
            again: now + pause + jitter,
        };
        self.0.insert(relay, failed);
        if self.0.len() > MOST {
            // The one that may be asked first says least.
            let first = self.0.iter().min_by_key(|(_, failed)| failed.again);
            if let Some(first) = first.map(|(relay, _)| *relay) {
                self.0.remove(&first);
            }
        }
    }

    /// A relay is of use, or has begun anew.
    pub(super) fn works(&mut self, relay: PeerId) {
        self.0.remove(&relay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    fn relay(n: u32) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(bytes)
    }

    #[test]
    fn a_relay_that_always_refuses_is_asked_every_few_minutes_in_the_end() {
        let (mut asking, start) = (Asking::default(), some_moment());
        let (mut now, mut asked) = (start, Vec::new());
        while now < start + Duration::from_secs(3600) {
            if asking.may_ask(relay(1), now) {
                asked.push(now);
                asking.failed(relay(1), now, (asked.len() * 37 % 256) as u8);
            }
            now += Duration::from_millis(100);
        }
        let pauses: Vec<Duration> = asked.windows(2).map(|w| w[1] - w[0]).collect();
        assert!((20..30).contains(&asked.len()), "{}", asked.len());
        assert!(pauses[0] >= Duration::from_secs(1) && pauses[0] < Duration::from_secs(2));
        let last = *pauses.last().unwrap();
        assert!(last >= Duration::from_secs(200) && last <= Duration::from_secs(300));
        assert!(asking.may_ask(relay(2), now), "another is asked at once");
        asking.works(relay(1));
        assert!(asking.may_ask(relay(1), start));
    }

    #[test]
    fn those_who_lost_one_relay_do_not_come_back_in_step() {
        let now = some_moment();
        let mut at = std::collections::BTreeSet::new();
        for random in 0..=255 {
            let mut asking = Asking::default();
            asking.failed(relay(1), now, random);
            at.insert(asking.0[&relay(1)].again);
        }
        let (first, last) = (*at.first().unwrap(), *at.last().unwrap());
        assert!(at.len() > 200 && last - first > Duration::from_millis(490));
    }

    #[test]
    fn any_number_of_relays_that_fail_are_remembered_in_bounded_memory() {
        let (mut asking, now) = (Asking::default(), some_moment());
        for _ in 0..5 {
            asking.failed(relay(0), now, 0);
        }
        for n in 1..10_000 {
            asking.failed(relay(n), now, 0);
        }
        assert!(asking.0.len() <= MOST);
        assert!(
            !asking.may_ask(relay(0), now + Duration::from_secs(2)),
            "one that failed often is not forgotten for others"
        );
    }
}
