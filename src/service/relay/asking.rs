//! Which relays are worth a question: one that refuses, is silent or is of no use is asked more and more rarely. So is one
//! whose legs are bound and lost again a moment later, however often it is of use in between.
//!
//! Pure: time and random bytes are arguments.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, HoldDown};
use crate::link::direct::LegOver;
use crate::model::id::PeerId;

/// The pauses before a relay is asked again that failed; each is longer by up to a half, so that all who lost one relay do
/// not come back to it in step.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(200));
/// The most relays of which a failure is remembered: members can name any number of them.
const MOST: usize = 256;
/// A leg that stood for so long was of use: one that is never refreshed is lost after 27 s.
const LASTED: Duration = Duration::from_secs(60);
/// Legs of one relay that may be lost sooner than that without consequence: its users may be as many, and it may begin anew.
const LOSSES: u32 = 4;

/// What failed lately, by relay.
#[derive(Debug, Default)]
pub(super) struct Asking {
    failed: BTreeMap<PeerId, Failed>,
    /// Relays whose legs were lost soon. Nothing but time mends that: such a relay answers every question well.
    losing: BTreeMap<PeerId, HoldDown>,
}

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
        let losing = self.losing.get(&relay);
        losing.is_none_or(|held| held.until(now).is_none())
            && self
                .failed
                .get(&relay)
                .is_none_or(|failed| failed.again <= now)
    }

    /// A leg that a relay gave is over, after `stood`. Of what somebody else named as that relay nothing is concluded about it:
    /// then `is_its_own` is false. `random` is any byte.
    pub(super) fn leg_over(
        &mut self,
        relay: PeerId,
        (over, is_its_own): (LegOver, bool),
        stood: Duration,
        now: Instant,
        random: u8,
    ) {
        if !is_its_own {
            return;
        }
        match over {
            // It gives legs away and takes no datagrams.
            LegOver::NoAnswer => self.failed(relay, now, random),
            LegOver::Lost if stood < LASTED => self.lost(relay, now),
            LegOver::Lost | LegOver::Displaced | LegOver::Unneeded => self.works(relay),
            LegOver::Gone | LegOver::Replaced => {}
        }
    }

    fn lost(&mut self, relay: PeerId, now: Instant) {
        let held = self.losing.entry(relay);
        held.or_insert(HoldDown::new(LOSSES)).changed(now);
        if self.losing.len() > MOST {
            let of = |held: &HoldDown| held.until(now);
            let first = self.losing.iter().min_by_key(|(_, held)| of(held));
            if let Some(first) = first.map(|(relay, _)| *relay) {
                self.losing.remove(&first);
            }
        }
    }

    /// A relay refused, did not answer, or gave a leg that nothing came of. `random` is any byte.
    pub(super) fn failed(&mut self, relay: PeerId, now: Instant, random: u8) {
        let failures = self.failed.get(&relay).map_or(0, |failed| failed.failures);
        let pause = AGAIN.pause(failures);
        let jitter = pause / 2 * u32::from(random) / 256;
        let failed = Failed {
            failures: failures.saturating_add(1),
            again: now + pause + jitter,
        };
        self.failed.insert(relay, failed);
        if self.failed.len() > MOST {
            // The one that may be asked first says least.
            let first = self.failed.iter().min_by_key(|(_, failed)| failed.again);
            if let Some(first) = first.map(|(relay, _)| *relay) {
                self.failed.remove(&first);
            }
        }
    }

    /// A relay is of use, or has begun anew. That its legs were lost soon is not forgotten for it.
    pub(super) fn works(&mut self, relay: PeerId) {
        self.failed.remove(&relay);
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
            at.insert(asking.failed[&relay(1)].again);
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
        assert!(asking.failed.len() <= MOST);
        assert!(
            !asking.may_ask(relay(0), now + Duration::from_secs(2)),
            "one that failed often is not forgotten for others"
        );
    }

    #[test]
    fn a_relay_that_binds_legs_and_drops_them_at_once_is_asked_once_a_minute() {
        let (mut asking, start) = (Asking::default(), some_moment());
        let (mut now, mut asked) = (start, 0);
        let soon = Duration::from_secs(2);
        let mut longest = Duration::ZERO;
        while now < start + Duration::from_secs(3600) {
            let before = now;
            while !asking.may_ask(relay(1), now) {
                now += Duration::from_millis(100);
            }
            longest = longest.max(now - before);
            asked += 1;
            now += soon;
            asking.leg_over(relay(1), (LegOver::Lost, true), soon, now, 0);
            // It keeps a place for this node again, and answers every question: that clears it of nothing.
            asking.works(relay(1));
        }
        assert!((50..75).contains(&asked), "{asked} in an hour");
        assert_eq!(longest, Duration::from_secs(60));
        assert!(asking.may_ask(relay(2), now), "another is asked at once");
        // Once its legs stand it is a relay like any other.
        now += Duration::from_secs(3600);
        for _ in 0..LOSSES {
            asking.leg_over(relay(1), (LegOver::Lost, true), soon, now, 0);
            assert!(asking.may_ask(relay(1), now));
        }
    }

    #[test]
    fn a_relay_that_restarts_loses_all_its_legs_and_is_asked_at_once() {
        let (mut asking, now) = (Asking::default(), some_moment());
        asking.failed(relay(1), now, 0);
        for _ in 0..50 {
            asking.leg_over(relay(1), (LegOver::Lost, true), LASTED, now, 0);
        }
        assert!(asking.may_ask(relay(1), now));
    }

    #[test]
    fn of_a_relay_that_a_peer_names_nothing_is_concluded() {
        let now = some_moment();
        let ends = [
            LegOver::NoAnswer,
            LegOver::Lost,
            LegOver::Displaced,
            LegOver::Unneeded,
        ];
        for over in ends {
            let mut asking = Asking::default();
            for _ in 0..20 {
                asking.leg_over(relay(1), (over, false), Duration::ZERO, now, 0);
            }
            assert!(asking.may_ask(relay(1), now), "{over:?} slanders it");
            asking.failed(relay(1), now, 0);
            asking.leg_over(relay(1), (over, false), LASTED, now, 0);
            assert!(!asking.may_ask(relay(1), now), "{over:?} praises it");
        }
        let mut asking = Asking::default();
        asking.leg_over(relay(1), (LegOver::NoAnswer, true), Duration::ZERO, now, 0);
        assert!(!asking.may_ask(relay(1), now), "it gave that leg itself");
    }

    #[test]
    fn any_number_of_relays_that_lose_legs_are_remembered_in_bounded_memory() {
        let (mut asking, now) = (Asking::default(), some_moment());
        for _ in 0..20 {
            asking.lost(relay(0), now);
        }
        for n in 1..10_000 {
            asking.lost(relay(n), now);
        }
        assert!(asking.losing.len() <= MOST);
        assert!(!asking.may_ask(relay(0), now), "the worst is remembered");
    }
}
