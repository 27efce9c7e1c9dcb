//! Requests that were run: the same one again gets the same answer, and is never run twice.
//!
//! A request is sent again when the connection that carried it ended before its answer. While it runs, whoever sends it
//! again waits for the same answer; afterwards a small answer is kept for a while. What a member may make us remember is
//! bounded for each, so that no flood of one makes the request of another run twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::id::PeerId;

/// How many requests are remembered in all.
pub const ALL: usize = 8192;
/// How many requests of one peer are remembered.
pub const OF_PEER: usize = 1024;
/// How long one is remembered after its answer.
pub const LIFE: Duration = Duration::from_secs(5 * 60);
/// The largest answer that is kept, in bytes.
pub const MAX_KEPT: usize = 4096;
/// How many bytes all kept answers have together.
pub const ALL_KEPT: usize = 4 * 1024 * 1024;
/// How many may wait for one answer: a request travels on one connection at a time, and the former
/// ones are gone.
const WAITERS: usize = 4;

#[derive(Debug)]
struct Entry<W> {
    id: u64,
    kind: u16,
    state: State<W>,
}

#[derive(Debug)]
enum State<W> {
    /// It runs, and these waiters wait for its answer.
    Running(Vec<W>),
    /// It was answered then. The answer is not kept where it is large, or where others need the room.
    Done(Instant, Option<Vec<u8>>),
}

/// What becomes of a request that has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<W> {
    /// The request was not here before.
    New(W),
    /// It runs already; who asked waits for that.
    Waits,
    /// The request was answered with this.
    Kept(W, Vec<u8>),
    /// It was here before, and there is no answer to give.
    Gone(W),
}

/// The requests of all peers; oldest first of each.
#[derive(Debug)]
pub struct Dedup<W> {
    peers: BTreeMap<PeerId, VecDeque<Entry<W>>>,
    count: usize,
    bytes: usize,
}

impl<W> Default for Dedup<W> {
    fn default() -> Self {
        Dedup {
            peers: BTreeMap::new(),
            count: 0,
            bytes: 0,
        }
    }
}

impl<W> Dedup<W> {
    /// Looks whether a request was here before.
    pub fn look(&mut self, peer: PeerId, id: u64, kind: u16, waiter: W, now: Instant) -> Lookup<W> {
        self.expire(peer, now);
        let entries = self.peers.get_mut(&peer);
        // The newest first: a request that comes again comes soon.
        match entries.and_then(|entries| entries.iter_mut().rev().find(|entry| entry.id == id)) {
            None => Lookup::New(waiter),
            // A number is used once: this is another request.
            Some(entry) if entry.kind != kind => Lookup::Gone(waiter),
            Some(Entry {
                state: State::Running(waiters),
                ..
            }) if waiters.len() < WAITERS => {
                waiters.push(waiter);
                Lookup::Waits
            }
            Some(Entry {
                state: State::Done(_, Some(answer)),
                ..
            }) => Lookup::Kept(waiter, answer.clone()),
            Some(_) => Lookup::Gone(waiter),
        }
    }

    /// Notes that a request begins to run.
    pub fn begin(&mut self, peer: PeerId, id: u64, kind: u16, waiter: W) {
        let entries = self.peers.entry(peer).or_default();
        entries.push_back(Entry {
            id,
            kind,
            state: State::Running(vec![waiter]),
        });
        let crowded = entries.len() > OF_PEER;
        self.count = self.count.saturating_add(1);
        if crowded {
            self.drop_oldest(peer);
        }
        while self.count > ALL {
            let most = self
                .peers
                .iter()
                .max_by_key(|(_, entries)| entries.len())
                .map(|(peer, _)| *peer);
            if !most.is_some_and(|peer| self.drop_oldest(peer)) {
                break;
            }
        }
    }

    /// A request is answered: who waits for it. Of one that is not remembered nobody waits.
    pub fn finish(&mut self, peer: PeerId, id: u64, answer: &[u8], now: Instant) -> Vec<W> {
        let entry = self
            .peers
            .get_mut(&peer)
            .and_then(|entries| entries.iter_mut().rev().find(|entry| entry.id == id));
        let Some(entry) = entry else {
            return Vec::new();
        };
        let kept = (answer.len() <= MAX_KEPT).then(|| answer.to_vec());
        self.bytes = self.bytes.saturating_add(kept.as_ref().map_or(0, Vec::len));
        let waiters = match std::mem::replace(&mut entry.state, State::Done(now, kept)) {
            State::Running(waiters) => waiters,
            State::Done(_, former) => {
                self.bytes = self
                    .bytes
                    .saturating_sub(former.map_or(0, |former| former.len()));
                Vec::new()
            }
        };
        self.shed();
        waiters
    }

    /// A request ended without an answer: it may be run again.
    pub fn forget(&mut self, peer: PeerId, id: u64) {
        self.remove(peer, |entry| entry.id == id);
    }

    /// How many are remembered, and the bytes of their answers.
    pub fn size(&self) -> (usize, usize) {
        (self.count, self.bytes)
    }

    /// Forgets what one peer was answered long ago.
    fn expire(&mut self, peer: PeerId, now: Instant) {
        let old = |entry: &Entry<W>| matches!(entry.state, State::Done(at, _) if now.saturating_duration_since(at) >= LIFE);
        while self
            .peers
            .get(&peer)
            .is_some_and(|entries| entries.iter().any(old))
        {
            self.remove(peer, old);
        }
    }

    /// Forgets what all peers were answered long ago.
    pub fn expire_all(&mut self, now: Instant) {
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.expire(peer, now));
    }

    /// Makes room at the cost of one peer. What runs stays.
    fn drop_oldest(&mut self, peer: PeerId) -> bool {
        self.remove(peer, |entry| matches!(entry.state, State::Done(..)))
    }

    /// Removes the oldest that fits; whether there was one.
    fn remove(&mut self, peer: PeerId, fits: impl Fn(&Entry<W>) -> bool) -> bool {
        let Some(entries) = self.peers.get_mut(&peer) else {
            return false;
        };
        let removed = entries
            .iter()
            .position(fits)
            .and_then(|place| entries.remove(place));
        if entries.is_empty() {
            self.peers.remove(&peer);
        }
        let Some(entry) = removed else { return false };
        self.count = self.count.saturating_sub(1);
        if let State::Done(_, Some(kept)) = entry.state {
            self.bytes = self.bytes.saturating_sub(kept.len());
        }
        true
    }

    /// Drops answers, not the memory of their requests, until all of them fit: those of who has most kept, oldest first.
    fn shed(&mut self) {
        let kept = |entry: &Entry<W>| match &entry.state {
            State::Done(_, Some(answer)) => answer.len(),
            _ => 0,
        };
        while self.bytes > ALL_KEPT {
            let most = self
                .peers
                .values_mut()
                .max_by_key(|entries| entries.iter().map(kept).sum::<usize>());
            let Some(oldest) =
                most.and_then(|entries| entries.iter_mut().find(|entry| kept(entry) > 0))
            else {
                break;
            };
            let size = kept(oldest);
            if let State::Done(_, answer) = &mut oldest.state {
                *answer = None;
            }
            self.bytes = self.bytes.saturating_sub(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn a_request_that_comes_again_has_the_same_answer_and_is_not_run_twice() {
        let (mut answers, now) = (Dedup::default(), Instant::now());
        assert_eq!(answers.look(peer(1), 7, 2, 'a', now), Lookup::New('a'));
        answers.begin(peer(1), 7, 2, 'a');
        assert_eq!(answers.look(peer(1), 7, 2, 'b', now), Lookup::Waits);
        assert_eq!(
            answers.look(peer(2), 7, 2, 'c', now),
            Lookup::New('c'),
            "another's number is another's"
        );
        assert_eq!(answers.finish(peer(1), 7, b"yes", now), ['a', 'b']);
        assert_eq!(
            answers.look(peer(1), 7, 2, 'd', now + LIFE / 2),
            Lookup::Kept('d', b"yes".to_vec())
        );
        assert_eq!(
            answers.look(peer(1), 7, 3, 'e', now),
            Lookup::Gone('e'),
            "one number, two requests"
        );
        assert_eq!(
            answers.look(peer(1), 7, 2, 'f', now + LIFE),
            Lookup::New('f')
        );
        assert_eq!(answers.size(), (0, 0));
    }

    #[test]
    fn a_large_answer_is_not_kept_and_its_request_is_not_run_again() {
        let (mut answers, now) = (Dedup::default(), Instant::now());
        answers.begin(peer(1), 1, 1, ());
        answers.finish(peer(1), 1, &[0; MAX_KEPT + 1], now);
        assert_eq!(answers.look(peer(1), 1, 1, (), now), Lookup::Gone(()));
        assert_eq!(answers.size(), (1, 0));
    }

    #[test]
    fn what_ended_without_an_answer_may_be_run_again() {
        let (mut answers, now) = (Dedup::default(), Instant::now());
        answers.begin(peer(1), 1, 1, 'a');
        answers.forget(peer(1), 1);
        assert_eq!(answers.look(peer(1), 1, 1, 'b', now), Lookup::New('b'));
    }

    #[test]
    fn a_flood_of_one_peer_is_remembered_at_its_own_cost() {
        let (mut answers, now) = (Dedup::default(), Instant::now());
        let run = |answers: &mut Dedup<()>, n: u8, id: u64, bytes: usize| {
            answers.begin(peer(n), id, 1, ());
            answers.finish(peer(n), id, &vec![0; bytes], now);
        };
        run(&mut answers, 0, 0, 10);
        for id in 0..3_000 {
            run(&mut answers, 1, id, MAX_KEPT);
        }
        assert_eq!(answers.size().0, OF_PEER + 1);
        for n in 2..12 {
            (0..1_100).for_each(|id| run(&mut answers, n, id, 500));
        }
        let (count, bytes) = answers.size();
        assert!(
            count == ALL && bytes <= ALL_KEPT,
            "{count} requests, {bytes} bytes"
        );
        assert_eq!(
            answers.look(peer(0), 0, 1, (), now),
            Lookup::Kept((), vec![0; 10]),
            "the quiet one's is still there"
        );
        answers.expire_all(now + LIFE);
        assert_eq!(answers.size(), (0, 0));
    }

    proptest! {
        #[test]
        fn the_books_agree(
            calls in proptest::collection::vec((0u8..3, 0u64..6, 0u16..2, 0usize..6000, 0u64..400, 0u8..4), 0..200),
        ) {
            let (mut answers, start) = (Dedup::default(), Instant::now());
            for (n, id, kind, bytes, at, what) in calls {
                let now = start + Duration::from_secs(at);
                match what {
                    0 => answers.forget(peer(n), id),
                    1 => drop(answers.finish(peer(n), id, &vec![0; bytes], now)),
                    2 => answers.expire_all(now),
                    _ => if let Lookup::New(()) = answers.look(peer(n), id, kind, (), now) {
                        answers.begin(peer(n), id, kind, ());
                    },
                }
                let entries: Vec<_> = answers.peers.values().flatten().collect();
                let bytes: usize = entries.iter().map(|entry| match &entry.state {
                    State::Done(_, Some(kept)) => kept.len(),
                    _ => 0,
                }).sum();
                prop_assert_eq!(answers.size(), (entries.len(), bytes));
                prop_assert!(answers.peers.values().all(|entries| !entries.is_empty()));
            }
        }
    }
}
