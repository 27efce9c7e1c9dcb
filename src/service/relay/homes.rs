//! Which relays this node names in its records as those that keep a place for it.
//!
//! Pure: time is an argument. A place comes and goes with every restart of a relay, and each change of the records is a signed
//! item that every member stores. So a relay is named once its place has stood for [`STEADY`], stays named for [`KEPT`]
//! after the place is lost, and the list changes at most once in [`STEADY`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::id::PeerId;
use crate::model::notice::{Home, MAX_ADDRESS, MAX_ADDRESSES, MAX_HOMES};

/// How long a place stands before its relay is named, and the least time between two changes of the list.
pub(super) const STEADY: Duration = Duration::from_secs(60);
/// How long a relay stays named whose place is lost.
const KEPT: Duration = Duration::from_secs(600);

/// The relays that are named, and those that may come to be.
#[derive(Debug)]
pub(super) struct Homes {
    named: Vec<Home>,
    seen: BTreeMap<PeerId, Seen>,
    changed: Option<Instant>,
}

/// A relay that keeps a place, or did.
#[derive(Debug)]
struct Seen {
    addresses: Vec<String>,
    /// Since when its place stands, at these addresses.
    since: Instant,
    /// When the place was lost.
    lost: Option<Instant>,
}

impl Seen {
    fn is_steady(&self, now: Instant) -> bool {
        self.lost.is_none() && self.since + STEADY <= now
    }
}

impl Homes {
    /// Begins with those that the records of an earlier run name: they stay as if their places had just been lost.
    pub(super) fn new(named: Vec<Home>, now: Instant) -> Homes {
        let lost = |home: &Home| {
            let seen = Seen {
                addresses: home.addresses.clone(),
                since: now,
                lost: Some(now),
            };
            (home.relay, seen)
        };
        Homes {
            seen: named.iter().map(lost).collect(),
            named,
            changed: None,
        }
    }

    /// Takes the relays that keep a place now, each with the addresses that lead to it; `may_name` tells which of all may be
    /// named at all. Gives the list as it is to be said.
    pub(super) fn look(
        &mut self,
        kept: &BTreeMap<PeerId, Vec<String>>,
        may_name: impl Fn(&PeerId) -> bool,
        now: Instant,
    ) -> &[Home] {
        for (relay, addresses) in kept {
            let mut addresses: Vec<String> = addresses
                .iter()
                .filter(|address| address.len() <= MAX_ADDRESS)
                .take(MAX_ADDRESSES)
                .cloned()
                .collect();
            addresses.sort();
            addresses.dedup();
            if addresses.is_empty() {
                continue;
            }
            let fresh = || Seen {
                addresses: Vec::new(),
                since: now,
                lost: None,
            };
            let seen = self.seen.entry(*relay).or_insert_with(fresh);
            if seen.addresses != addresses {
                (seen.addresses, seen.since) = (addresses, now);
            }
            if seen.lost.take().is_some() {
                seen.since = now;
            }
        }
        let named = &self.named;
        self.seen.retain(|relay, seen| {
            if !kept.contains_key(relay) {
                seen.lost.get_or_insert(now);
            }
            let is_named = named.iter().any(|home| home.relay == *relay);
            let stays = |lost: Instant| is_named && lost + KEPT > now;
            may_name(relay) && seen.lost.is_none_or(stays)
        });
        let next = self.next(now);
        if next != self.named && self.changed.is_none_or(|at| at + STEADY <= now) {
            (self.named, self.changed) = (next, Some(now));
        }
        &self.named
    }

    /// The list as it follows from what is seen: first those that are named and keep their place, then others that have
    /// kept theirs for long, then those that are named and have lost theirs a while ago.
    fn next(&self, now: Instant) -> Vec<Home> {
        let named = |lost: bool| {
            self.named.iter().filter_map(move |home| {
                let seen = self.seen.get(&home.relay)?;
                let addresses = match seen.is_steady(now) {
                    true => seen.addresses.clone(),
                    false => home.addresses.clone(),
                };
                let relay = home.relay;
                (seen.lost.is_some() == lost).then_some(Home { relay, addresses })
            })
        };
        let is_named = |relay: &PeerId| self.named.iter().any(|home| home.relay == *relay);
        let steady = self.seen.iter().filter(|(_, seen)| seen.is_steady(now));
        let fresh = steady
            .filter(|(relay, _)| !is_named(relay))
            .map(|(relay, seen)| Home {
                relay: *relay,
                addresses: seen.addresses.clone(),
            });
        named(false)
            .chain(fresh)
            .chain(named(true))
            .take(MAX_HOMES)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    const SECOND: Duration = Duration::from_secs(1);

    fn relay(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn at(n: u8) -> Vec<String> {
        vec![format!("/ip4/192.0.2.{n}/tcp/4100")]
    }

    fn kept(relays: &[u8]) -> BTreeMap<PeerId, Vec<String>> {
        relays.iter().map(|n| (relay(*n), at(*n))).collect()
    }

    fn names(homes: &[Home]) -> Vec<u8> {
        homes.iter().map(|home| home.relay.0[0]).collect()
    }

    #[test]
    fn a_relay_is_named_when_its_place_has_stood_for_a_minute_and_for_ten_after_it_is_lost() {
        let (mut homes, start) = (Homes::new(vec![], some_moment()), some_moment());
        let mut look = |relays: &[u8], seconds: u32| {
            names(homes.look(&kept(relays), |_| true, start + seconds * SECOND))
        };
        assert_eq!(look(&[1], 0), [0; 0]);
        assert_eq!(look(&[1], 59), [0; 0]);
        assert_eq!(look(&[], 60), [0; 0], "lost before it was named");
        assert_eq!(look(&[1], 61), [0; 0]);
        assert_eq!(look(&[1], 121), [1]);
        assert_eq!(look(&[], 130), [1]);
        assert_eq!(look(&[1], 700), [1]);
        assert_eq!(look(&[], 710), [1]);
        assert_eq!(look(&[], 1_309), [1]);
        assert_eq!(look(&[], 1_310), [0; 0]);
    }

    #[test]
    fn places_that_come_and_go_change_the_records_once_a_minute_at_most() {
        let (mut homes, start) = (Homes::new(vec![], some_moment()), some_moment());
        let (mut last, mut changes) = (Vec::new(), 0);
        for second in 0..3_600u32 {
            // Four relays, whose places last for some minutes each.
            let held: Vec<u8> = (1..5)
                .filter(|n| second / (90 * n) % 3 != 0)
                .map(|n| n as u8)
                .collect();
            let now = homes
                .look(&kept(&held), |_| true, start + second * SECOND)
                .to_vec();
            changes += u32::from(now != last);
            assert!(now.len() <= MAX_HOMES);
            last = now;
        }
        assert!((1..=60).contains(&changes), "{changes} in an hour");
    }

    #[test]
    fn what_an_earlier_run_named_stays_while_its_place_is_asked_for_again() {
        let start = some_moment();
        let named = vec![Home {
            relay: relay(1),
            addresses: at(1),
        }];
        let mut homes = Homes::new(named.clone(), start);
        assert_eq!(homes.look(&kept(&[]), |_| true, start), named);
        assert_eq!(homes.look(&kept(&[1]), |_| true, start + 9 * SECOND), named);
        // The configuration names it no more, or it has become a member.
        let mut homes = Homes::new(named, start);
        assert_eq!(homes.look(&kept(&[]), |_| false, start), []);
    }

    #[test]
    fn a_relay_with_a_place_takes_that_of_one_that_lost_its_own() {
        let (mut homes, start) = (Homes::new(vec![], some_moment()), some_moment());
        let mut look = |relays: &[u8], seconds: u32| {
            names(homes.look(&kept(relays), |_| true, start + seconds * SECOND))
        };
        look(&[1, 2, 3], 0);
        assert_eq!(look(&[1, 2, 3], 60), [1, 2]);
        assert_eq!(look(&[2, 3], 119), [1, 2]);
        assert_eq!(look(&[2, 3], 120), [2, 3]);
    }
}
