//! Which requests are let in: what each peer may ask, what runs, and what was answered.
//!
//! A request pays before anything is looked at. Who has used up its bucket is told so, with the time after which to come
//! again; who does not heed that is left waiting for the answer, so that its own limit on requests under way slows it.

use std::collections::BTreeMap;
use std::time::Instant;

use super::dedup::{Dedup, Lookup};
use crate::limit::{Buckets, Limit};
use crate::model::id::PeerId;
use crate::wire::service::{Refusal, ServiceCode};

/// Units that one peer may use at once, and gets back in a second.
pub const BUCKET: Limit = Limit::new(100, 50);
/// Refusals that are told at once, and a second after that.
const TOLD: Limit = Limit::new(100, 10);
/// How many peers' use is remembered.
const PEERS: usize = 4096;
/// Requests of one peer that run at a time.
pub const RUNNING: usize = 64;
/// Requests that run at a time in all.
pub const ALL_RUNNING: usize = 4096;
/// Bytes of a body that one unit more is paid for.
const UNIT: usize = 64 * 1024;
/// After how many milliseconds to come again where too many requests run.
const CROWDED_RETRY_MS: u32 = 1000;

/// What is done with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admit<W> {
    /// It is run; the waiter is kept until [`Inflight::finish`].
    Run,
    /// It runs already, and its sender waits for that.
    Waits,
    /// It is answered with the same answer as before.
    Again(W, Vec<u8>),
    /// It is not run, and is answered with a refusal.
    Refused(W, Refusal, Pace),
}

/// How soon a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It is told at once.
    Now,
    /// It is told after a while: its sender does not heed what it is told.
    Slow,
}

/// What is known of a request before it is let in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The peer that asks.
    pub peer: PeerId,
    /// The number that its sender gave it.
    pub id: u64,
    /// The kind of the request, which decides its handler.
    pub kind: u16,
    /// Size of its body, in bytes.
    pub bytes: usize,
    /// Cost and largest body of the kind; `None` where nobody knows it.
    pub route: Option<(u64, usize)>,
}

/// The books of the requests that run, and of what each peer has used.
#[derive(Debug)]
pub struct Inflight<W> {
    rates: Buckets<PeerId>,
    told: Buckets<PeerId>,
    running: BTreeMap<PeerId, usize>,
    all: usize,
    answers: Dedup<W>,
}

impl<W> Default for Inflight<W> {
    fn default() -> Self {
        Inflight {
            rates: Buckets::new(BUCKET, PEERS),
            told: Buckets::new(TOLD, PEERS),
            running: BTreeMap::new(),
            all: 0,
            answers: Dedup::default(),
        }
    }
}

impl<W> Inflight<W> {
    /// Decides about a request that has come.
    pub fn admit(&mut self, asked: &Arrival, waiter: W, now: Instant) -> Admit<W> {
        let Arrival {
            peer,
            id,
            kind,
            bytes,
            route,
        } = *asked;
        let cost = route
            .map_or(1, |(cost, _)| cost)
            .saturating_add(u64::try_from(bytes / UNIT).unwrap_or(u64::MAX));
        if let Err(retry) = self.rates.try_take(peer, cost, now) {
            // Rounded up: who waits as long as it is told is let in.
            let retry_ms = u32::try_from(retry.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
            return self.slow_down(peer, waiter, retry_ms, now);
        }
        let refused = |waiter, code: ServiceCode| Admit::Refused(waiter, code.into(), Pace::Now);
        let waiter = match self.answers.look(peer, id, kind, waiter, now) {
            Lookup::New(waiter) => waiter,
            Lookup::Waits => return Admit::Waits,
            Lookup::Kept(waiter, answer) => return Admit::Again(waiter, answer),
            Lookup::Gone(waiter) => return refused(waiter, ServiceCode::Invalid),
        };
        match route {
            None => return refused(waiter, ServiceCode::Unknown),
            Some((_, most)) if bytes > most => return refused(waiter, ServiceCode::Invalid),
            Some(_) => {}
        }
        if self.all >= ALL_RUNNING || self.running.get(&peer).is_some_and(|n| *n >= RUNNING) {
            return self.slow_down(peer, waiter, CROWDED_RETRY_MS, now);
        }
        self.answers.begin(peer, id, kind, waiter);
        let running = self.running.entry(peer).or_default();
        *running = running.saturating_add(1);
        self.all = self.all.saturating_add(1);
        Admit::Run
    }

    /// Refuses a request that there is no room for at all.
    pub fn slow_down(&mut self, peer: PeerId, waiter: W, retry_ms: u32, now: Instant) -> Admit<W> {
        let pace = if self.told.take(peer, 1, now) {
            Pace::Now
        } else {
            Pace::Slow
        };
        Admit::Refused(
            waiter,
            Refusal {
                code: ServiceCode::SlowDown,
                retry_ms,
            },
            pace,
        )
    }

    /// Bytes that are no request pay as a full bucket's tenth. Gives whether their sender may be told at once.
    pub fn malformed(&mut self, peer: PeerId, now: Instant) -> Pace {
        if self.rates.try_take(peer, BUCKET.burst / 10, now).is_ok() {
            Pace::Now
        } else {
            Pace::Slow
        }
    }

    /// A request that ran has its answer: who waits for it.
    pub fn finish(&mut self, peer: PeerId, id: u64, answer: &[u8], now: Instant) -> Vec<W> {
        self.ended(peer);
        self.answers.finish(peer, id, answer, now)
    }

    /// A request that ran ended without an answer.
    pub fn abandon(&mut self, peer: PeerId, id: u64) {
        self.ended(peer);
        self.answers.forget(peer, id);
    }

    fn ended(&mut self, peer: PeerId) {
        self.all = self.all.saturating_sub(1);
        if let Some(running) = self.running.get_mut(&peer) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                self.running.remove(&peer);
            }
        }
    }

    /// How many requests run.
    pub fn running(&self) -> usize {
        self.all
    }

    /// How many bytes the kept answers have.
    pub fn kept(&self) -> usize {
        self.answers.size().1
    }

    /// Forgets answers that nobody can ask for again.
    pub fn tidy(&mut self, now: Instant) {
        self.answers.expire_all(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    fn asked(n: u16, id: u64) -> Arrival {
        Arrival {
            peer: peer(n),
            id,
            kind: 1,
            bytes: 0,
            route: Some((1, 100)),
        }
    }

    fn refused(verdict: &Admit<()>) -> Option<(ServiceCode, u32, Pace)> {
        match verdict {
            Admit::Refused((), refusal, pace) => Some((refusal.code, refusal.retry_ms, *pace)),
            _ => None,
        }
    }

    /// Admits and answers at once.
    fn served(
        inflight: &mut Inflight<()>,
        asked: &Arrival,
        now: Instant,
    ) -> Option<(ServiceCode, u32, Pace)> {
        let verdict = inflight.admit(asked, (), now);
        if verdict == Admit::Run {
            assert_eq!(inflight.finish(asked.peer, asked.id, b"", now), [()]);
        }
        refused(&verdict)
    }

    #[test]
    fn a_hundred_at_once_fifty_a_second_and_who_waits_as_told_is_let_in() {
        let (mut inflight, start) = (Inflight::default(), Instant::now());
        let done = (0..1000)
            .filter(|id| served(&mut inflight, &asked(1, *id), start).is_none())
            .count();
        assert_eq!(done, 100);
        assert_eq!(
            served(&mut inflight, &asked(2, 1), start),
            None,
            "another's bucket is another's"
        );
        let now = start + Duration::from_secs(1);
        assert_eq!(
            (1000..2000)
                .filter(|id| served(&mut inflight, &asked(1, *id), now).is_none())
                .count(),
            50
        );
        let dear = Arrival {
            route: Some((10, 100)),
            ..asked(1, 3000)
        };
        let Some((ServiceCode::SlowDown, retry, _)) = served(&mut inflight, &dear, now) else {
            panic!("let in")
        };
        assert_eq!(retry, 200);
        let early = now + Duration::from_millis(u64::from(retry) - 5);
        assert!(served(&mut inflight, &dear, early).is_some());
        assert_eq!(
            served(
                &mut inflight,
                &dear,
                now + Duration::from_millis(u64::from(retry))
            ),
            None
        );
    }

    #[test]
    fn a_large_body_pays_for_its_size() {
        let (mut inflight, now) = (Inflight::default(), Instant::now());
        let large = |id| Arrival {
            bytes: 1024 * 1024,
            route: Some((1, 2 * 1024 * 1024)),
            ..asked(1, id)
        };
        assert_eq!(
            (0..100)
                .filter(|id| served(&mut inflight, &large(*id), now).is_none())
                .count(),
            5
        );
    }

    #[test]
    fn who_does_not_heed_a_refusal_is_told_slowly() {
        let (mut inflight, now) = (Inflight::default(), Instant::now());
        let paces: Vec<Pace> = (0..1000)
            .filter_map(|id| served(&mut inflight, &asked(1, id), now))
            .map(|(_, _, pace)| pace)
            .collect();
        assert_eq!(paces.iter().filter(|pace| **pace == Pace::Now).count(), 100);
        assert_eq!(paces.len(), 900);
        let junk = (0..1000)
            .filter(|_| inflight.malformed(peer(2), now) == Pace::Now)
            .count();
        assert_eq!(junk, 10);
    }

    #[test]
    fn unknown_kinds_and_bodies_too_large_are_answered_and_not_run() {
        let (mut inflight, now) = (Inflight::default(), Instant::now());
        let unknown = Arrival {
            route: None,
            ..asked(1, 1)
        };
        assert_eq!(
            served(&mut inflight, &unknown, now),
            Some((ServiceCode::Unknown, 0, Pace::Now))
        );
        let large = Arrival {
            bytes: 101,
            ..asked(1, 2)
        };
        assert_eq!(
            served(&mut inflight, &large, now),
            Some((ServiceCode::Invalid, 0, Pace::Now))
        );
        assert_eq!(inflight.running(), 0);
    }

    #[test]
    fn sixty_four_of_a_peer_run_at_a_time_and_four_thousand_in_all() {
        let (mut inflight, mut now) = (Inflight::default(), Instant::now());
        let runs = |inflight: &mut Inflight<()>, n: u16, ids: std::ops::Range<u64>, now| {
            ids.filter(|id| inflight.admit(&asked(n, *id), (), now) == Admit::Run)
                .count()
        };
        assert_eq!(runs(&mut inflight, 0, 0..80, now), RUNNING);
        assert_eq!(
            refused(&inflight.admit(&asked(0, 99), (), now)),
            Some((ServiceCode::SlowDown, CROWDED_RETRY_MS, Pace::Now))
        );
        let others: usize = (1..100)
            .map(|n| runs(&mut inflight, n, 0..RUNNING as u64, now))
            .sum();
        assert_eq!(
            (others, inflight.running()),
            (ALL_RUNNING - RUNNING, ALL_RUNNING)
        );
        // One that ends, in whichever way, makes room for one.
        now += Duration::from_secs(10);
        inflight.abandon(peer(0), 0);
        assert_eq!(runs(&mut inflight, 0, 100..110, now), 1);
        assert_eq!(inflight.finish(peer(0), 1, b"", now), [()]);
        assert_eq!(runs(&mut inflight, 200, 0..10, now), 1);
    }

    #[test]
    fn what_comes_again_while_it_runs_takes_no_second_place() {
        let (mut inflight, now) = (Inflight::default(), Instant::now());
        assert_eq!(inflight.admit(&asked(1, 1), (), now), Admit::Run);
        assert_eq!(inflight.admit(&asked(1, 1), (), now), Admit::Waits);
        assert_eq!(inflight.running(), 1);
        assert_eq!(inflight.finish(peer(1), 1, b"yes", now).len(), 2);
        assert_eq!(
            inflight.admit(&asked(1, 1), (), now),
            Admit::Again((), b"yes".to_vec())
        );
        assert_eq!(inflight.running(), 0);
    }
}
