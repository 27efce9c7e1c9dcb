//! What members found equal when they asked: of the two ends of a pair one comparison in each interval is enough.
//!
//! An entry tells nothing once this node holds something else: then its own question is due. A member that lies here could
//! as well lie when it is asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Digest;

/// The last question of each member about each subnet that was answered with "the same". At most one entry for each member
/// of each subnet; what is older than [`forget`](Agreed::forget) was told to keep goes.
#[derive(Debug, Default)]
pub(crate) struct Agreed(Mutex<BTreeMap<(PeerId, SubnetId), (Digest, Instant)>>);

impl Agreed {
    /// A member asked, and holds what this node holds.
    pub(crate) fn note(&self, peer: PeerId, subnet: SubnetId, hash: Digest, now: Instant) {
        self.0.lock().insert((peer, subnet), (hash, now));
    }

    /// Whether a member asked within that time and held what has this hash.
    pub(super) fn within(
        &self,
        time: Duration,
        peer: PeerId,
        subnet: SubnetId,
        hash: &Digest,
        now: Instant,
    ) -> bool {
        self.0
            .lock()
            .get(&(peer, subnet))
            .is_some_and(|(held, at)| held == hash && now.saturating_duration_since(*at) < time)
    }

    /// Drops what is older than `time`.
    pub(super) fn forget(&self, time: Duration, now: Instant) {
        self.0
            .lock()
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_question_counts_until_it_is_old_or_something_else_is_held() {
        let agreed = Agreed::default();
        let (peer, subnet, hash) = (PeerId([1; 32]), SubnetId([2; 16]), [3; 32]);
        let interval = Duration::from_secs(30);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!agreed.within(interval, peer, subnet, &hash, start));
        agreed.note(peer, subnet, hash, start);
        assert!(agreed.within(interval, peer, subnet, &hash, after(29)));
        assert!(!agreed.within(interval, peer, subnet, &hash, after(30)));
        assert!(!agreed.within(interval, peer, subnet, &[4; 32], after(1)));
        assert!(!agreed.within(interval, PeerId([9; 32]), subnet, &hash, after(1)));
        assert!(!agreed.within(interval, peer, SubnetId([9; 16]), &hash, after(1)));
        agreed.forget(interval, after(30));
        assert!(agreed.0.lock().is_empty());
    }

    #[test]
    fn of_two_ends_one_asks_and_goes_on_asking() {
        let (a, b, subnet, hash) = (PeerId([1; 32]), PeerId([2; 32]), SubnetId([2; 16]), [3; 32]);
        let interval = Duration::from_secs(30);
        let start = Instant::now();
        // What each of the two heard; the second begins its rounds ten seconds later.
        let (at_a, at_b) = (Agreed::default(), Agreed::default());
        let (mut from_a, mut from_b) = (0, 0);
        for round in 0..10_u64 {
            let now = start + interval * u32::try_from(round).unwrap();
            if !at_a.within(interval, b, subnet, &hash, now) {
                from_a += 1;
                at_b.note(a, subnet, hash, now);
            }
            let now = now + Duration::from_secs(10);
            if !at_b.within(interval, a, subnet, &hash, now) {
                from_b += 1;
                at_a.note(b, subnet, hash, now);
            }
        }
        assert_eq!((from_a, from_b), (10, 0));
    }
}
