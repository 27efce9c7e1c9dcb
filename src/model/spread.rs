//! How records spread among the members that a node is connected to: whom news is passed on to, and whom to compare with
//! when.
//!
//! News is pushed as soon as it is known: a node tells its own to everybody it is connected to, and what it hears, once, to
//! a few that have not told it the same. What a push misses is found by comparing: with one member after the other, the one
//! longest ago first, so that what a node sends is spread over time and a difference is found long before all have had
//! their turn. Of the two ends of a pair one comparison in each period is enough: an end whose own records a member has
//! asked about, and found equal, asks that member nothing.
//!
//! News that a member misses is found by those who have it: after news they compare faster, until all have had their turn.
//! While there is none for long, comparisons find nothing, and are made more seldom, in periods of up to [`LONGEST`].
//!
//! A member that lies about what it holds keeps nothing from others: each is one of several that tell and ask.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::id::{PeerId, SubnetId};
use super::record::Digest;

/// Members to whom news of others is passed on. Of 1,000 members that each tell six others some two miss it, and compare.
pub const FANOUT: usize = 6;
/// Members compared with in one period. Who is connected to more is compared with by them.
pub const PARTNERS: usize = 16;
/// How long a period becomes at most while there is no news, unless a longer one is set.
pub const LONGEST: Duration = Duration::from_secs(240);
/// A period is no longer than this part of the time without news, or as it was set. So every member that is connected has
/// had its turn before periods become longer, also where they are more than [`PARTNERS`].
const PART: u32 = 4;
/// News for which is remembered who told it.
const REMEMBERED: usize = 4096;
/// Members that are remembered of each of those: more are not passed on to in any case.
const TELLERS: usize = 32;

/// The decisions of one node. Time and random numbers are arguments.
#[derive(Debug)]
pub struct Spread {
    me: PeerId,
    /// In which every member it is connected to is compared with once.
    period: Duration,
    /// When the next comparison is due.
    due: Instant,
    /// Until when comparisons follow each other four times as fast, because there was news.
    hurries: Option<Instant>,
    /// When there was news last, or another reason to compare often.
    news: Instant,
    /// The members that are connected, with when each was last compared with, and in which turn: of those that came at one
    /// moment, the one that had no turn is first.
    partners: BTreeMap<PeerId, (Instant, u64)>,
    turn: u64,
    /// The last question of each member about each subnet that was answered with "the same".
    agreed: BTreeMap<(PeerId, SubnetId), (Digest, Instant)>,
    /// The members that told news.
    tellers: BTreeMap<Digest, BTreeSet<PeerId>>,
    /// The same news, the oldest first.
    told: VecDeque<Digest>,
}

impl Spread {
    /// A node that is connected to nobody yet, and compares with each once in `period`.
    pub fn new(me: PeerId, period: Duration, now: Instant) -> Spread {
        Spread {
            me,
            period,
            due: now,
            hurries: None,
            news: now,
            partners: BTreeMap::new(),
            turn: 0,
            agreed: BTreeMap::new(),
            tellers: BTreeMap::new(),
            told: VecDeque::new(),
        }
    }

    /// Sets the period in which each connected member is compared with once, while there is news now and then.
    pub fn set_period(&mut self, period: Duration, now: Instant) {
        self.due = self.due.min(now + period);
        (self.period, self.news) = (period, now);
    }

    /// The period as it was set.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// The period that holds now: a longer one where there was no news for long. It grows with the time without news, so
    /// that the two ends of a pair have about the same.
    fn period_at(&self, now: Instant) -> Duration {
        let quiet = now.saturating_duration_since(self.news) / PART;
        quiet.clamp(self.period, self.period.max(LONGEST))
    }

    /// When [`Spread::next`] is to be asked again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The member whose turn it is to be compared with, of those that are connected now. A member that has just come counts
    /// as compared with: it is when it connects. `random` moves the next turn by up to a quarter of the time between two,
    /// so that members that were started together do not go on together.
    pub fn next(
        &mut self,
        connected: impl IntoIterator<Item = PeerId>,
        now: Instant,
        random: u64,
    ) -> Option<PeerId> {
        let former = std::mem::take(&mut self.partners);
        let when = |peer: PeerId| (peer, former.get(&peer).copied().unwrap_or((now, 0)));
        self.partners = connected.into_iter().map(when).collect();
        let period = self.period_at(now);
        self.agreed
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < period);
        if now < self.due {
            return None;
        }
        let gap = self.gap(now);
        let quarter = u64::try_from((gap / 4).as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
        let moved =
            Duration::from_nanos(random.checked_rem(quarter.saturating_mul(2)).unwrap_or(0));
        self.due = now + gap.saturating_sub(gap / 4) + moved;
        self.turn = self.turn.saturating_add(1);
        let (peer, last) = self.partners.iter_mut().min_by_key(|(_, last)| **last)?;
        *last = (now, self.turn);
        Some(*peer)
    }

    /// There is news, and this node passes it on. Who asked before found the same, and does not ask again soon: should it
    /// miss the news, it is for those who have it to ask. So they do that four times as fast until about all had their turn.
    pub fn changed(&mut self, now: Instant) {
        (self.hurries, self.news) = (Some(now + self.period / 4), now);
        self.due = self.due.min(now + self.gap(now));
    }

    /// There is reason to compare as often as while there is news: a member came, or one holds something else.
    pub fn lively(&mut self, now: Instant) {
        self.news = now;
        self.due = self.due.min(now + self.gap(now));
    }

    /// The time between two comparisons.
    fn gap(&self, now: Instant) -> Duration {
        let turns = self.partners.len().clamp(1, PARTNERS);
        let gap = self.period_at(now) / u32::try_from(turns).unwrap_or(1);
        if self.hurries.is_some_and(|until| now < until) {
            gap / 4
        } else {
            gap
        }
    }

    /// A member asked whether both hold the same of a subnet, and they do: what has that hash.
    pub fn agreed(&mut self, peer: PeerId, subnet: SubnetId, hash: Digest, now: Instant) {
        self.agreed.insert((peer, subnet), (hash, now));
    }

    /// Whether a member asked within the period and held what has this hash. Once this node holds something else its own
    /// question is due.
    pub fn was_asked(&self, peer: PeerId, subnet: SubnetId, hash: &Digest, now: Instant) -> bool {
        let asked = self.agreed.get(&(peer, subnet));
        asked.is_some_and(|(held, at)| {
            held == hash && now.saturating_duration_since(*at) < self.period_at(now)
        })
    }

    /// A member told a record, or has shown that it holds it.
    pub fn heard(&mut self, from: PeerId, record: Digest) {
        let tellers = self.tellers.entry(record).or_default();
        if tellers.is_empty() {
            self.told.push_back(record);
        }
        if tellers.len() < TELLERS {
            tellers.insert(from);
        }
        if self.told.len() > REMEMBERED
            && let Some(oldest) = self.told.pop_front()
        {
            self.tellers.remove(&oldest);
        }
    }

    /// The members that news is sent to, of those of its subnet that are connected: all of them where it is this node's
    /// own. News of others goes to at most [`FANOUT`], to others for each news and each node, and to nobody who has told
    /// all of it.
    pub fn receivers(&self, connected: Vec<PeerId>, news: &[Digest], own: bool) -> Vec<PeerId> {
        if own {
            return connected;
        }
        let knows = |peer: &PeerId| {
            let told = |record| {
                self.tellers
                    .get(record)
                    .is_some_and(|all| all.contains(peer))
            };
            news.iter().all(told)
        };
        let mut peers: Vec<PeerId> = connected.into_iter().filter(|p| !knows(p)).collect();
        if peers.len() > FANOUT {
            let mut seed = Sha256::new_with_prefix(self.me.0);
            news.iter().for_each(|record| seed.update(record));
            peers.sort_by_cached_key(|peer| -> Digest {
                seed.clone().chain_update(peer.0).finalize().into()
            });
            peers.truncate(FANOUT);
        }
        peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    /// Runs for some periods in which there is news of others now and then; who was compared with when.
    fn turns(spread: &mut Spread, peers: u8, periods: u32) -> Vec<(PeerId, Instant)> {
        let end = spread.due() + PERIOD * periods;
        let mut random = 1_u64;
        let mut all = Vec::new();
        while spread.due() < end {
            let now = spread.due();
            spread.news = now;
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            all.extend(
                spread
                    .next((1..=peers).map(peer), now, random)
                    .map(|p| (p, now)),
            );
        }
        all
    }

    #[test]
    fn each_connected_member_has_its_turn_about_once_in_a_period() {
        for peers in [1, 2, 9, 16] {
            let mut spread = Spread::new(peer(0), PERIOD, Instant::now());
            let all = turns(&mut spread, peers, 20);
            for one in (1..=peers).map(peer) {
                let when: Vec<Instant> = all.iter().filter(|t| t.0 == one).map(|t| t.1).collect();
                assert!((17..=24).contains(&when.len()), "{peers}: {}", when.len());
                let longest = when.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(longest < PERIOD * 3 / 2, "{peers}: {longest:?}");
            }
        }
    }

    #[test]
    fn however_many_are_connected_a_period_has_a_bounded_number_of_turns() {
        let mut spread = Spread::new(peer(0), PERIOD, Instant::now());
        let all = turns(&mut spread, 200, 25);
        assert!((360..=440).contains(&all.len()), "{}", all.len());
        let different: BTreeSet<PeerId> = all.iter().map(|t| t.0).collect();
        assert_eq!(different.len(), 200, "everybody has a turn");
    }

    #[test]
    fn who_has_just_come_has_its_turn_after_the_others() {
        let start = Instant::now();
        let mut spread = Spread::new(peer(0), PERIOD, start);
        spread.next([peer(1), peer(2)], start, 0);
        let now = spread.due();
        assert_eq!(
            spread.next([peer(1), peer(2), peer(3)], now, 0),
            Some(peer(2))
        );
        assert_eq!(spread.next([], now + PERIOD, 0), None, "nobody is left");
    }

    #[test]
    fn after_news_all_have_their_turn_four_times_as_fast() {
        let mut spread = Spread::new(peer(0), PERIOD, Instant::now());
        let slow = turns(&mut spread, 10, 4).len();
        spread.changed(spread.due());
        let all = turns(&mut spread, 10, 1);
        let first = all
            .iter()
            .filter(|turn| turn.1 < all[0].1 + PERIOD / 4)
            .count();
        assert!(
            (9..=13).contains(&first),
            "{first} in a quarter of a period"
        );
        assert!(
            (36..=46).contains(&slow),
            "{slow} in four periods without news"
        );
        assert!((15..=21).contains(&all.len()), "{} in the whole", all.len());
    }

    #[test]
    fn without_news_comparisons_become_seldom_and_with_the_next_they_are_as_often_again() {
        let start = Instant::now();
        let mut spread = Spread::new(peer(0), PERIOD, start);
        let count = |spread: &mut Spread, periods: u32| {
            let end = spread.due() + PERIOD * periods;
            let mut count = 0;
            while spread.due() < end {
                let now = spread.due();
                let turn = spread.next((1..=10).map(peer), now, 3);
                count += usize::from(turn.is_some());
            }
            count
        };
        let lively = count(&mut spread, 4);
        assert!(lively >= 40, "{lively} of ten members in four periods");
        count(&mut spread, 68);
        let quiet = count(&mut spread, 80);
        assert!((100..=150).contains(&quiet), "{quiet} in ten long periods");
        // Who asked in a long period need not be asked in it, either.
        let (now, subnet, hash) = (spread.due(), SubnetId([2; 16]), [3; 32]);
        spread.agreed(peer(1), subnet, hash, now);
        let then = now + LONGEST - Duration::from_secs(1);
        assert!(spread.was_asked(peer(1), subnet, &hash, then));
        assert!(!spread.was_asked(peer(1), subnet, &hash, now + LONGEST));
        spread.lively(then);
        assert!(
            spread.due() <= then + PERIOD / 10,
            "as often as while there is news"
        );
        spread.changed(then);
        assert!(
            spread.due() <= then + PERIOD / 40,
            "the next is due at once"
        );
        assert!(!spread.was_asked(peer(1), subnet, &hash, then));
        let hurried = count(&mut spread, 1);
        assert!(hurried >= 17, "{hurried} after news");
    }

    #[test]
    fn a_period_that_is_longer_than_the_longest_stays_as_it_is_set() {
        let start = Instant::now();
        let mut spread = Spread::new(peer(0), PERIOD, start);
        let much_later = start + Duration::from_secs(100_000);
        assert_eq!(spread.period_at(much_later), LONGEST);
        let hour = Duration::from_secs(3600);
        spread.set_period(hour, start);
        assert_eq!(spread.period_at(start), hour);
        assert_eq!(spread.period_at(much_later), hour);
    }

    #[test]
    fn an_equal_question_counts_until_it_is_old_or_something_else_is_held() {
        let (subnet, hash, start) = (SubnetId([2; 16]), [3; 32], Instant::now());
        let mut spread = Spread::new(peer(0), PERIOD, start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!spread.was_asked(peer(1), subnet, &hash, start));
        spread.agreed(peer(1), subnet, hash, start);
        assert!(spread.was_asked(peer(1), subnet, &hash, after(29)));
        assert!(!spread.was_asked(peer(1), subnet, &hash, after(30)));
        assert!(!spread.was_asked(peer(1), subnet, &[4; 32], after(1)));
        assert!(!spread.was_asked(peer(9), subnet, &hash, after(1)));
        assert!(!spread.was_asked(peer(1), SubnetId([9; 16]), &hash, after(1)));
        spread.next([peer(1)], after(30), 0);
        assert!(spread.agreed.is_empty());
    }

    #[test]
    fn news_of_others_goes_to_a_few_that_have_not_told_it() {
        let all: Vec<PeerId> = (1..=40).map(peer).collect();
        let mut spread = Spread::new(peer(0), PERIOD, Instant::now());
        let (one, other) = ([1; 32], [2; 32]);
        assert_eq!(spread.receivers(all.clone(), &[one], true), all);
        let first = spread.receivers(all.clone(), &[one], false);
        assert_eq!(first.len(), FANOUT);
        let second = spread.receivers(all.clone(), &[other], false);
        assert_ne!(first, second, "others for each news");
        let elsewhere = Spread::new(peer(99), PERIOD, Instant::now());
        assert_ne!(
            first,
            elsewhere.receivers(all.clone(), &[one], false),
            "and at each node"
        );
        first.iter().for_each(|teller| spread.heard(*teller, one));
        let rest = spread.receivers(all.clone(), &[one], false);
        assert!(rest.iter().all(|peer| !first.contains(peer)));
        let both = spread.receivers(first.clone(), &[one, other], false);
        assert_eq!(both.len(), FANOUT, "who told a part lacks the rest");
    }

    #[test]
    fn what_is_remembered_of_news_is_bounded() {
        let mut spread = Spread::new(peer(0), PERIOD, Instant::now());
        for n in 0..10_000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&n.to_be_bytes());
            (0..50).for_each(|from| spread.heard(peer(from), digest));
        }
        assert_eq!(
            (spread.tellers.len(), spread.told.len()),
            (REMEMBERED, REMEMBERED)
        );
        assert!(spread.tellers.values().all(|all| all.len() == TELLERS));
    }
}
