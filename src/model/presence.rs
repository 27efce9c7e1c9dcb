//! When each member was last seen: by this node, or by a member that told of it.
//!
//! A member of a large subnet is connected to few. Whoever is connected to it has just seen it; what each knows is told to the
//! members it holds once in a period, as whole ones rounded up ([`PERIOD`]). So what is told is never younger than what was
//! seen, and what nobody sees any more grows old however often it is passed on. Through `n` members a sighting takes up to
//! `n` periods and ages by as many: less than [`AGES`], since a subnet is few members wide.
//!
//! A member that lies can have another one shown as idle that is away, and cannot have one shown as away that others see: the
//! latest sighting counts. Nothing but what people are shown depends on it: grants are renewed, and members dialled, by what
//! this node sees itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::id::PeerId;

/// The unit of ages, and the time between two tellings, but in tests.
pub const PERIOD: Duration = Duration::from_secs(60);
/// Ages that are told apart: what is as old or older is not told, nor is what was never seen.
pub const AGES: u8 = 15;
/// A member that nobody has seen for so many periods is taken for gone. Sightings of one that is there are younger, however far
/// away it is.
const GONE: u8 = 12;

/// See the module. At most one entry for each member.
#[derive(Debug, Clone)]
pub struct Presence {
    period: Duration,
    seen: BTreeMap<PeerId, Instant>,
    /// Members that nobody was heard to have seen, with when this node learnt of them.
    new: BTreeMap<PeerId, Instant>,
    /// Since when others tell; none before the first did.
    since: Option<Instant>,
}

impl Default for Presence {
    fn default() -> Presence {
        Presence::new(PERIOD)
    }
}

impl Presence {
    /// Nobody was seen yet. All members have to tell in the same period.
    pub fn new(period: Duration) -> Presence {
        Presence {
            period,
            seen: BTreeMap::new(),
            new: BTreeMap::new(),
            since: None,
        }
    }

    /// Members are connected now.
    pub fn saw(&mut self, members: impl IntoIterator<Item = PeerId>, now: Instant) {
        for peer in members {
            self.seen.insert(peer, now);
        }
    }

    /// A member tells of others: the periods since each was seen, up to [`AGES`].
    pub fn heard(&mut self, told: impl IntoIterator<Item = (PeerId, u8)>, now: Instant) {
        self.since.get_or_insert(now);
        for (peer, age) in told {
            let seen = (age < AGES).then(|| now.checked_sub(self.period * u32::from(age)));
            if let Some(seen) = seen.flatten() {
                let known = self.seen.entry(peer).or_insert(seen);
                *known = seen.max(*known);
            }
        }
    }

    /// What is told of a member: the periods since it was seen, rounded up; [`AGES`] where that is longer ago, or never was.
    pub fn age(&self, peer: PeerId, now: Instant) -> u8 {
        let Some(seen) = self.seen.get(&peer) else {
            return AGES;
        };
        let ago = now.saturating_duration_since(*seen).as_millis();
        let periods = ago.div_ceil(self.period.as_millis().max(1));
        u8::try_from(periods).unwrap_or(AGES).min(AGES)
    }

    /// When a member was last seen.
    pub fn last(&self, peer: PeerId) -> Option<Instant> {
        self.seen.get(&peer).copied()
    }

    /// Whether others would have seen a member by now if it was there: they have told for long enough, none has, and it has
    /// been a member for as long.
    pub fn is_gone(&self, peer: PeerId, now: Instant) -> bool {
        let patience = self.period * u32::from(GONE);
        let is_long = |at: &Instant| now.saturating_duration_since(*at) >= patience;
        let known = self.seen.get(&peer).or_else(|| self.new.get(&peer));
        self.since.as_ref().is_some_and(is_long) && known.is_some_and(is_long)
    }

    /// Takes who is a member now, and forgets everybody else.
    pub fn retain(&mut self, members: &BTreeSet<PeerId>, now: Instant) {
        self.seen.retain(|peer, _| members.contains(peer));
        let seen = &self.seen;
        let is_new = |peer: &PeerId| members.contains(peer) && !seen.contains_key(peer);
        self.new.retain(|peer, _| is_new(peer));
        for peer in members.iter().filter(|peer| is_new(peer)) {
            self.new.entry(*peer).or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment long before which there are others, whenever this machine was started.
    fn some_moment() -> Instant {
        Instant::now() + Duration::from_secs(100_000)
    }

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);

    #[test]
    fn what_is_told_is_never_younger_than_what_was_seen() {
        let start = some_moment();
        let mut here = Presence::default();
        here.saw([A], start);
        for seconds in [0, 1, 59, 60, 61, 600, 10_000] {
            let now = start + Duration::from_secs(seconds);
            let mut there = Presence::default();
            there.heard([(A, here.age(A, now)), (B, here.age(B, now))], now);
            assert!(there.last(A).is_none_or(|seen| seen <= start));
            assert_eq!(there.last(A).is_some(), seconds <= 14 * 60, "{seconds} s");
            assert_eq!(there.last(B), None);
        }
    }

    #[test]
    fn who_is_gone_grows_old_however_often_it_is_passed_on() {
        let start = some_moment();
        let mut all: Vec<Presence> = (0..6).map(|_| Presence::default()).collect();
        all[0].saw([A, B], start);
        let mut now = start;
        let mut known = 0;
        for minute in 0..30 {
            now = start + PERIOD * minute + Duration::from_secs(7);
            all[0].saw([B], now);
            // Each tells both beside it, in turn.
            for at in 0..all.len() {
                let told = [A, B].map(|peer| (peer, all[at].age(peer, now)));
                for other in [at.wrapping_sub(1), at + 1] {
                    if let Some(other) = all.get_mut(other) {
                        other.heard(told, now);
                    }
                }
            }
            known = known.max(all.iter().filter(|p| !p.is_gone(A, now)).count());
        }
        assert_eq!(known, 6, "in the beginning all know it");
        for presence in &all {
            assert!(presence.is_gone(A, now) && !presence.is_gone(B, now));
        }
        let last = all[5].last(A).unwrap();
        assert!(last <= start, "and when it was last there, to the minute");
        assert!(start - last <= PERIOD * 6);
    }

    #[test]
    fn nobody_is_gone_before_others_have_told_for_long_enough() {
        let start = some_moment();
        let mut presence = Presence::default();
        presence.retain(&[A].into(), start);
        assert!(!presence.is_gone(A, start + PERIOD * 100), "nobody tells");
        presence.heard([(B, 0)], start);
        assert!(!presence.is_gone(A, start + PERIOD * 11));
        assert!(presence.is_gone(A, start + PERIOD * 12));
        presence.retain(&[A].into(), start);
        assert_eq!(presence.last(B), None);
    }

    #[test]
    fn a_new_member_is_not_gone_before_others_had_the_time_to_tell_of_it() {
        let start = some_moment();
        let mut presence = Presence::default();
        presence.heard([(B, 0)], start);
        let joined = start + PERIOD * 100;
        assert!(!presence.is_gone(A, joined), "it is not listed yet");
        presence.retain(&[A, B].into(), joined);
        presence.retain(&[A, B].into(), joined + PERIOD * 11);
        assert!(!presence.is_gone(A, joined + PERIOD * 11));
        assert!(presence.is_gone(A, joined + PERIOD * 12));
        presence.heard([(A, 0)], joined + PERIOD * 12);
        presence.retain(&[A, B].into(), joined + PERIOD * 12);
        assert!(!presence.is_gone(A, joined + PERIOD * 13) && presence.new.is_empty());
        presence.retain(&[B].into(), joined + PERIOD * 13);
        assert_eq!(presence.last(A), None);
    }
}
