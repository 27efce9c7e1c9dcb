//! Nonces for attempts with invites, shared by those who pay for them.
//!
//! A nonce belongs to the way it was asked by: what a member asks for in somebody's name neither replaces nor counts
//! against what that somebody asks for itself, or by another member.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::id::{PeerId, SubnetId};
use crate::model::source::Payer;

/// How long a nonce may be used.
const LIFE: Duration = Duration::from_secs(30);
/// How long attempts are counted for.
const WINDOW: Duration = Duration::from_secs(60);
/// How many attempts are kept at once.
const ALL: usize = 1024;
/// Attempts kept of one who pays: the oldest of them makes room.
const EACH: usize = 64;
/// Attempts that one joiner has by one way in a [`WINDOW`]: more is guessing.
const TRIES: u32 = 5;

/// The attempt that a nonce is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) subnet: SubnetId,
    /// The peer that wants to join.
    pub(super) joiner: PeerId,
    /// The peer whose connection carries it: the joiner itself, or a member that passes it on.
    pub(super) from: PeerId,
}

#[derive(Debug)]
struct Attempt {
    payer: Payer,
    number: u64,
    nonce: Option<[u8; 16]>,
    given: Instant,
    since: Instant,
    tries: u32,
}

/// Nonces given and not yet used.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    attempts: BTreeMap<Way, Attempt>,
    /// Grows with each attempt that is entered.
    next: u64,
}

impl Nonces {
    /// Keeps `nonce` for an attempt at `now`; `false` where that joiner has had its attempts by this way.
    pub(super) fn give(&mut self, way: Way, payer: Payer, nonce: [u8; 16], now: Instant) -> bool {
        self.attempts.retain(|_, a| now < a.since + WINDOW);
        if !self.attempts.contains_key(&way) {
            self.make_room(payer);
            self.next = self.next.wrapping_add(1);
        }
        let fresh = Attempt {
            payer,
            number: self.next,
            nonce: None,
            given: now,
            since: now,
            tries: 0,
        };
        let attempt = self.attempts.entry(way).or_insert(fresh);
        if attempt.tries >= TRIES {
            return false;
        }
        attempt.tries += 1;
        (attempt.nonce, attempt.given) = (Some(nonce), now);
        true
    }

    /// Takes the nonce of an attempt; a second call gives none.
    pub(super) fn take(&mut self, way: Way, now: Instant) -> Option<[u8; 16]> {
        let attempt = self
            .attempts
            .get_mut(&way)
            .filter(|a| now < a.given + LIFE)?;
        attempt.nonce.take()
    }

    /// The oldest attempt of who has most goes: of `payer`, where it has its share.
    fn make_room(&mut self, payer: Payer) {
        let mut held: BTreeMap<Payer, usize> = BTreeMap::new();
        self.attempts
            .values()
            .for_each(|a| *held.entry(a.payer).or_default() += 1);
        let most = held.values().max().copied().unwrap_or(0);
        let goes = |a: &Attempt| {
            if held.get(&payer).is_some_and(|n| *n >= EACH) {
                a.payer == payer
            } else {
                self.attempts.len() >= ALL && held.get(&a.payer) == Some(&most)
            }
        };
        let oldest = self
            .attempts
            .iter()
            .filter(|(_, a)| goes(a))
            .min_by_key(|(_, a)| a.number);
        if let Some(way) = oldest.map(|(way, _)| *way) {
            self.attempts.remove(&way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source::Source;
    use std::sync::LazyLock;

    const LAB: SubnetId = SubnetId([1; 16]);

    /// That many seconds after the tests began.
    fn at(seconds: u64) -> Instant {
        static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);
        *ZERO + Duration::from_secs(seconds)
    }

    fn peer(n: u32) -> PeerId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    fn way(joiner: u32, from: u32) -> Way {
        Way {
            subnet: LAB,
            joiner: peer(joiner),
            from: peer(from),
        }
    }

    #[test]
    fn a_member_that_passes_on_made_up_joiners_spends_its_own_share_only() {
        let mut nonces = Nonces::default();
        let source = Payer::Source(Source::V4([192, 0, 2, 1].into()));
        assert!(nonces.give(way(1, 1), source, [1; 16], at(100)));
        for n in 0..10_000 {
            assert!(nonces.give(way(n + 10, 2), Payer::Member(peer(2)), [2; 16], at(100)));
        }
        assert_eq!(nonces.attempts.len(), EACH + 1);
        assert_eq!(nonces.take(way(1, 1), at(101)), Some([1; 16]));
        assert!(
            nonces.give(way(3, 3), source, [3; 16], at(101)),
            "and a good invite has its nonce"
        );
    }

    #[test]
    fn a_member_cannot_replace_or_use_up_the_nonce_of_a_joiner() {
        let mut nonces = Nonces::default();
        assert!(nonces.give(way(1, 1), Payer::Inside, [1; 16], at(100)));
        let by_member = (0..10)
            .filter(|_| nonces.give(way(1, 2), Payer::Member(peer(2)), [2; 16], at(100)))
            .count();
        assert_eq!(by_member, TRIES as usize);
        assert_eq!(nonces.take(way(1, 1), at(100)), Some([1; 16]));
        assert_eq!(nonces.take(way(1, 1), at(100)), None, "once");
        assert!(nonces.give(way(1, 1), Payer::Inside, [1; 16], at(100)));
    }

    #[test]
    fn a_full_table_takes_from_who_has_most() {
        let mut nonces = Nonces::default();
        for source in 0..2000u32 {
            assert!(nonces.give(
                way(source, source),
                Payer::Source(Source::V4(source.into())),
                [0; 16],
                at(100)
            ));
            let crowd = Payer::Member(peer(9999));
            assert!(nonces.give(way(source + 5000, 9999), crowd, [0; 16], at(100)));
        }
        assert!(nonces.attempts.len() <= ALL);
        assert!(nonces.take(way(1999, 1999), at(101)).is_some());
        assert!(
            nonces.give(way(1, 1), Payer::Inside, [1; 16], at(161)),
            "and it empties itself"
        );
        assert_eq!(nonces.attempts.len(), 1);
    }
}
