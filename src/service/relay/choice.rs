//! Which relays lead to a peer best: by the measured round trips of both ends to each, added up.
//!
//! Pure: time is an argument. What is measured wavers, and so would the choice: a round trip counts as changed only when it
//! has been another one for a while, and a better relay is moved to only when it has been better for as long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::model::id::PeerId;
use crate::wire::relay::Way;

/// Round trips of which the median counts.
const SAMPLES: usize = 5;
/// Least difference, beside a fifth, that is one.
const LEAST: Duration = Duration::from_millis(10);
/// How long a difference must last.
const LASTING: Duration = Duration::from_secs(300);
/// The most peers whose round trip is kept: members, and the relays that are configured.
const MOST: usize = 1024;

/// Whether `a` is clearly shorter than `b`: by a fifth and ten milliseconds.
pub(super) fn is_clearly_less(a: Duration, b: Duration) -> bool {
    b.saturating_sub(a) >= (b / 5).max(LEAST)
}

/// The round trips to those that are connected.
#[derive(Debug, Default)]
pub(super) struct RoundTrips(BTreeMap<PeerId, Measured>);

#[derive(Debug)]
struct Measured {
    last: VecDeque<Duration>,
    /// What counts.
    steady: Duration,
    /// Since when the median differs clearly from that.
    differs: Option<Instant>,
}

impl RoundTrips {
    /// A ping came back.
    pub(super) fn measured(&mut self, peer: PeerId, rtt: Duration, now: Instant) {
        if self.0.len() >= MOST && !self.0.contains_key(&peer) {
            return;
        }
        let held = self.0.entry(peer).or_insert_with(|| Measured {
            last: VecDeque::new(),
            steady: rtt,
            differs: None,
        });
        held.last.push_back(rtt);
        let is_young = held.last.len() <= SAMPLES;
        if held.last.len() > SAMPLES {
            held.last.pop_front();
        }
        let mut sorted: Vec<Duration> = held.last.iter().copied().collect();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(rtt);
        let differs = is_clearly_less(median, held.steady) || is_clearly_less(held.steady, median);
        if !differs {
            held.differs = None;
        } else if is_young || *held.differs.get_or_insert(now) + LASTING <= now {
            (held.steady, held.differs) = (median, None);
        }
    }

    /// The round trip that counts; none where none was measured.
    pub(super) fn of(&self, peer: PeerId) -> Option<Duration> {
        self.0.get(&peer).map(|held| held.steady)
    }

    /// Forgets all but those.
    pub(super) fn retain(&mut self, is_kept: impl Fn(PeerId) -> bool) {
        self.0.retain(|peer, _| is_kept(*peer));
    }
}

/// A relay that may lead to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) relay: PeerId,
    /// Whether it is a member that relays only for those who have no other way.
    pub(super) is_last_resort: bool,
    /// How busy it says it is.
    pub(super) load: u8,
    /// Whether a connection of both ends runs through it already.
    pub(super) is_proven: bool,
    /// The round trip from here, and the peer's as the peer says.
    pub(super) here: Option<Duration>,
    pub(super) there: Option<Duration>,
}

impl Candidate {
    /// The round trip by this relay from one end to the other; none before both ends have measured theirs.
    pub(super) fn sum(&self) -> Option<Duration> {
        Some(self.here? + self.there?)
    }
}

/// The candidates, the best first: relays that are there for it before members that help out, one that is full as the last of
/// its kind, then by the round trip. Those of which it is not known come behind, first the one that connects both ends
/// already, then the nearest to this end.
pub(super) fn rank(mut all: Vec<Candidate>) -> Vec<Candidate> {
    all.sort_by_key(|c| {
        let (sum, here) = (c.sum(), c.here);
        let is_full = c.load >= 4;
        (
            c.is_last_resort,
            is_full,
            sum.is_none(),
            sum,
            !c.is_proven,
            here.is_none(),
            here,
            c.relay,
        )
    });
    let mut seen = BTreeSet::new();
    all.retain(|c| seen.insert(c.relay));
    all
}

/// What another end says of its ways, as far as it is told here.
pub(super) fn way(ways: &[Way], relay: PeerId) -> Option<Duration> {
    let way = ways.iter().find(|way| way.relay == relay)?;
    Some(Duration::from_millis(way.rtt_ms.into()))
}

/// Peers to which a relay leads that is clearly better than those in use, and since when.
#[derive(Debug, Default)]
pub(super) struct Moves(BTreeMap<PeerId, (PeerId, Instant)>);

impl Moves {
    /// Looks at the relays in use to one peer, and at the best other one; whether that one is to be used now.
    pub(super) fn is_due(
        &mut self,
        peer: PeerId,
        used: &[Candidate],
        best: Option<Candidate>,
        now: Instant,
    ) -> bool {
        // All of them: the better of two in use is the path's own choice.
        let worst = used.iter().map(|c| c.sum()).max().flatten();
        let better = best.filter(|best| {
            let sums = best.sum().zip(worst);
            !best.is_last_resort && sums.is_some_and(|(best, worst)| is_clearly_less(best, worst))
        });
        let Some(better) = better else {
            self.0.remove(&peer);
            return false;
        };
        let entry = self.0.entry(peer).or_insert((better.relay, now));
        if entry.0 != better.relay {
            *entry = (better.relay, now);
        }
        let is_due = entry.1 + LASTING <= now;
        if is_due {
            self.0.remove(&peer);
        }
        is_due
    }

    /// Forgets all but those.
    pub(super) fn retain(&mut self, is_kept: impl Fn(PeerId) -> bool) {
        self.0.retain(|peer, _| is_kept(*peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn relay(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn candidate(n: u8, here: u64, there: u64) -> Candidate {
        let known = |time| (time > 0).then_some(ms(time));
        Candidate {
            relay: relay(n),
            is_last_resort: false,
            load: 0,
            is_proven: false,
            here: known(here),
            there: known(there),
        }
    }

    #[test]
    fn the_sum_of_both_ends_decides_and_not_the_nearer_one() {
        let near = candidate(1, 2, 80);
        let middle = candidate(2, 20, 20);
        let unknown = candidate(3, 1, 0);
        let helps = Candidate {
            is_last_resort: true,
            ..candidate(4, 1, 1)
        };
        let full = Candidate {
            load: 4,
            ..candidate(5, 1, 1)
        };
        let proven = Candidate {
            is_proven: true,
            ..candidate(6, 9, 0)
        };
        let ranked = rank(vec![helps, full, unknown, near, proven, middle, near]);
        let order: Vec<u8> = ranked.iter().map(|c| c.relay.0[0]).collect();
        assert_eq!(order, [2, 1, 6, 3, 5, 4]);
    }

    #[test]
    fn a_round_trip_that_wavers_is_the_one_it_was() {
        let (mut trips, start) = (RoundTrips::default(), some_moment());
        // Settles on the median of the first five.
        for (n, rtt) in [90, 40, 42, 41, 43].into_iter().enumerate() {
            trips.measured(
                relay(1),
                ms(rtt),
                start + SECOND * u32::try_from(n).unwrap(),
            );
        }
        assert_eq!(trips.of(relay(1)), Some(ms(42)));
        let mut now = start + 5 * SECOND;
        for n in 0..420u64 {
            // Half of the time it is twice as long, never for five minutes.
            let rtt = if n / 20 % 2 == 0 { 42 } else { 90 };
            trips.measured(relay(1), ms(rtt), now);
            now += 5 * SECOND;
            assert_eq!(trips.of(relay(1)), Some(ms(42)), "{n}");
        }
        let moved = now;
        while trips.of(relay(1)) == Some(ms(42)) {
            trips.measured(relay(1), ms(90), now);
            now += 5 * SECOND;
        }
        let took = now - moved;
        assert!(took >= 300 * SECOND && took < 330 * SECOND, "{took:?}");
        assert_eq!(trips.of(relay(2)), None);
    }

    #[test]
    fn another_relay_is_used_when_it_has_been_better_for_five_minutes() {
        let (mut moves, start) = (Moves::default(), some_moment());
        let used = [candidate(1, 50, 50), candidate(2, 40, 40)];
        let mut due = |best: Candidate, seconds: u32| {
            moves.is_due(relay(9), &used, Some(best), start + seconds * SECOND)
        };
        let (little, clearly) = (candidate(3, 45, 46), candidate(4, 40, 39));
        assert!(!due(little, 0) && !due(little, 1_000), "no fifth better");
        assert!(!due(clearly, 1_000) && !due(clearly, 1_200));
        assert!(!due(candidate(5, 10, 10), 1_250), "another one");
        assert!(!due(clearly, 1_299) && !due(clearly, 1_598));
        assert!(due(clearly, 1_599));
        assert!(!due(clearly, 1_600), "once");
        let helps = Candidate {
            is_last_resort: true,
            ..candidate(6, 1, 1)
        };
        assert!(!due(helps, 2_000) && !due(helps, 3_000));
        assert!(!due(candidate(7, 1, 0), 3_000) && !due(candidate(7, 1, 0), 4_000));
    }
}
