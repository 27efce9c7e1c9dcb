//! Whose turn it is: what waits for the node's thread, in lanes, with fair turns inside them.
//!
//! ```text
//! own       this node's own commands: always next, but for one turn in 32 that goes to the lanes below
//! urgent    heads and removals that peers sent, in fair turns; one turn in 8 goes to the ordinary ones
//! ordinary  everything else of members, in fair turns; between two rounds of them one turn of the strangers
//! house     timers; next when nothing else waits, or when 64 others went first
//! ```
//!
//! Fair means deficit round robin (Shreedhar and Varghese, 1995): each peer has a queue of its own and in each round as
//! much work done as any other, whatever it sends. A peer's queue is short, and who overflows it loses only its own.
//! Strangers share one place in the round, with a queue for each source among them.
//!
//! No clock and no lock: the order of calls decides everything.

use std::collections::{BTreeMap, VecDeque};

use crate::model::id::PeerId;
use crate::model::source::Payer;

/// Work of the heaviest job, in records it judges.
pub const MAX_COST: u32 = 128;
/// Work each peer may have done in a round.
const QUANTUM: u32 = 32;
/// Jobs of one member that wait at once.
const MEMBER_JOBS: usize = 16;
/// Jobs of one source of strangers that wait at once: behind one address may be a whole office.
const STRANGER_JOBS: usize = 32;
/// Jobs of all strangers that wait at once.
const STRANGERS_JOBS: usize = 1024;
/// Own commands served in a row while others wait.
const OWN_IN_A_ROW: u32 = 31;
/// Urgent jobs served in a row while ordinary ones wait.
const URGENT_IN_A_ROW: u32 = 7;
/// Jobs served while one of the house waits.
const HOUSE_WAITS: u32 = 64;

/// The queue that a job waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The job is a command of this node's own.
    Own,
    /// The job was asked by a peer.
    Peer {
        /// The peer that asked, or the source of its connection.
        from: Payer,
        /// Whether it removes somebody or may do so.
        urgent: bool,
        /// How much work it is at most, up to [`MAX_COST`].
        cost: u32,
    },
    /// The job was asked by a timer.
    House,
}

/// One peer's jobs with what each costs, and the work it may have done by now.
#[derive(Debug)]
struct Waiting<T> {
    jobs: VecDeque<(u32, T)>,
    left: u32,
}

/// Queues served in fair turns.
#[derive(Debug)]
struct Ring<K, T> {
    queues: BTreeMap<K, Waiting<T>>,
    order: VecDeque<K>,
    jobs: usize,
    jobs_each: usize,
    jobs_all: usize,
}

impl<K: Ord + Copy, T> Ring<K, T> {
    fn new(jobs_each: usize, jobs_all: usize) -> Self {
        Ring {
            queues: BTreeMap::new(),
            order: VecDeque::new(),
            jobs: 0,
            jobs_each,
            jobs_all,
        }
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn push(&mut self, key: K, cost: u32, job: T) -> Result<(), T> {
        if self.jobs >= self.jobs_all
            || self
                .queues
                .get(&key)
                .is_some_and(|w| w.jobs.len() >= self.jobs_each)
        {
            return Err(job);
        }
        self.jobs = self.jobs.saturating_add(1);
        let waiting = self.queues.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Waiting {
                jobs: VecDeque::new(),
                left: 0,
            }
        });
        waiting.jobs.push_back((cost.clamp(1, MAX_COST), job));
        Ok(())
    }

    fn pop(&mut self) -> Option<T> {
        // A few rounds find one whose work is paid for: each turn adds a share of the heaviest.
        while let Some(key) = self.order.pop_front() {
            let Some(waiting) = self.queues.get_mut(&key) else {
                continue;
            };
            waiting.left = waiting.left.saturating_add(QUANTUM).min(MAX_COST);
            let paid = waiting
                .jobs
                .front()
                .is_some_and(|(cost, _)| *cost <= waiting.left);
            let next = if paid { waiting.jobs.pop_front() } else { None };
            waiting.left = waiting
                .left
                .saturating_sub(next.as_ref().map_or(0, |(cost, _)| *cost));
            if waiting.jobs.is_empty() {
                // Who has nothing to do saves nothing up.
                self.queues.remove(&key);
            } else {
                self.order.push_back(key);
            }
            if let Some((_, job)) = next {
                self.jobs = self.jobs.saturating_sub(1);
                return Some(job);
            }
        }
        None
    }
}

/// The jobs that wait, in queues served in turn.
#[derive(Debug)]
pub struct Turns<T> {
    own: VecDeque<T>,
    urgent: Ring<PeerId, T>,
    members: Ring<PeerId, T>,
    strangers: Ring<Payer, T>,
    house: VecDeque<T>,
    own_row: u32,
    urgent_row: u32,
    /// Turns members had since the strangers had theirs.
    since_strangers: usize,
    house_waited: u32,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns {
            own: VecDeque::new(),
            urgent: Ring::new(MEMBER_JOBS, usize::MAX),
            members: Ring::new(MEMBER_JOBS, usize::MAX),
            strangers: Ring::new(STRANGER_JOBS, STRANGERS_JOBS),
            house: VecDeque::new(),
            own_row: 0,
            urgent_row: 0,
            since_strangers: 0,
            house_waited: 0,
        }
    }
}

impl<T> Turns<T> {
    /// Lets a job wait for its turn.
    ///
    /// # Errors
    /// The job itself, where the queue of who sent it is full. Own commands and timers are bounded by who queues them.
    pub fn push(&mut self, lane: Lane, job: T) -> Result<(), T> {
        match lane {
            Lane::Own => self.own.push_back(job),
            Lane::House => self.house.push_back(job),
            Lane::Peer {
                from: Payer::Member(peer),
                urgent: false,
                cost,
            } => return self.members.push(peer, cost, job),
            Lane::Peer {
                from: Payer::Member(peer),
                cost,
                ..
            } => return self.urgent.push(peer, cost, job),
            // A stranger's word removes nobody.
            Lane::Peer { from, cost, .. } => return self.strangers.push(from, cost, job),
        }
        Ok(())
    }

    /// Whether a command of this node's own waits.
    pub fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// The job whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let peers_wait =
            !self.urgent.is_empty() || !self.members.is_empty() || !self.strangers.is_empty();
        if !self.house.is_empty() {
            let busy = peers_wait || !self.own.is_empty();
            if !busy || self.house_waited >= HOUSE_WAITS {
                self.house_waited = 0;
                return self.house.pop_front();
            }
            self.house_waited = self.house_waited.saturating_add(1);
        }
        if !self.own.is_empty() && (!peers_wait || self.own_row < OWN_IN_A_ROW) {
            self.own_row = self.own_row.saturating_add(1);
            return self.own.pop_front();
        }
        self.own_row = 0;
        let others = !self.members.is_empty() || !self.strangers.is_empty();
        if !self.urgent.is_empty() && (!others || self.urgent_row < URGENT_IN_A_ROW) {
            self.urgent_row = self.urgent_row.saturating_add(1);
            return self.urgent.pop();
        }
        self.urgent_row = 0;
        let round = self.members.queues.len();
        if !self.strangers.is_empty() && (round == 0 || self.since_strangers >= round) {
            self.since_strangers = 0;
            return self.strangers.pop();
        }
        self.since_strangers = self.since_strangers.saturating_add(1);
        self.members.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source::Source;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn of(n: u8, cost: u32) -> Lane {
        Lane::Peer {
            from: Payer::Member(peer(n)),
            urgent: false,
            cost,
        }
    }

    fn stranger(n: u8) -> Lane {
        Lane::Peer {
            from: Payer::Source(Source::of([10, 0, 0, n].into())),
            urgent: false,
            cost: 1,
        }
    }

    fn drain(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn who_sends_much_waits_for_itself_alone() {
        let mut turns = Turns::default();
        let taken = (0..1000)
            .filter(|_| turns.push(of(1, MAX_COST), "flood").is_ok())
            .count();
        assert_eq!(taken, MEMBER_JOBS, "a queue has an end");
        turns.push(of(2, 1), "quiet").unwrap();
        let order = drain(&mut turns);
        let place = order.iter().position(|job| *job == "quiet").unwrap();
        assert!(place <= 1, "{order:?}");
    }

    #[test]
    fn turns_are_fair_by_work_and_not_by_number() {
        let mut turns = Turns::default();
        for _ in 0..MEMBER_JOBS {
            turns.push(of(1, MAX_COST), "heavy").unwrap();
            turns.push(of(2, MAX_COST / 4), "light").unwrap();
        }
        let order: Vec<&str> = drain(&mut turns).into_iter().take(15).collect();
        let heavy = order.iter().filter(|job| **job == "heavy").count();
        assert!(
            (2..=4).contains(&heavy),
            "four light ones weigh one heavy: {order:?}"
        );
    }

    #[test]
    fn own_commands_go_first_and_starve_nobody() {
        let mut turns = Turns::default();
        for _ in 0..200 {
            turns.push(Lane::Own, "own").unwrap();
        }
        for _ in 0..MEMBER_JOBS {
            turns.push(of(1, 1), "peer").unwrap();
        }
        turns.push(Lane::House, "house").unwrap();
        let order = drain(&mut turns);
        assert!(order.iter().take(31).all(|job| *job == "own"));
        assert_eq!(
            order.iter().take(64).filter(|job| **job == "peer").count(),
            2
        );
        assert!(order.iter().position(|job| *job == "house").unwrap() <= 65);
    }

    #[test]
    fn a_removal_overtakes_what_waits_and_starves_nobody() {
        let mut turns = Turns::default();
        for n in 1..=20 {
            turns.push(of(n, MAX_COST), "announcement").unwrap();
        }
        let urgent = |n| Lane::Peer {
            from: Payer::Member(peer(n)),
            urgent: true,
            cost: MAX_COST,
        };
        for _ in 0..MEMBER_JOBS {
            turns.push(urgent(1), "junk").unwrap();
        }
        turns.push(urgent(2), "removal").unwrap();
        let order = drain(&mut turns);
        assert!(
            order.iter().position(|job| *job == "removal").unwrap() <= 2,
            "{order:?}"
        );
        assert_eq!(
            order
                .iter()
                .take(16)
                .filter(|job| **job == "announcement")
                .count(),
            2,
            "{order:?}"
        );
    }

    #[test]
    fn strangers_share_one_place_and_each_source_has_a_turn_in_it() {
        let mut turns = Turns::default();
        let taken = (0..100)
            .filter(|_| turns.push(stranger(1), "junk").is_ok())
            .count();
        assert_eq!(taken, STRANGER_JOBS);
        turns.push(stranger(2), "joiner").unwrap();
        for n in 1..=3 {
            for _ in 0..4 {
                turns.push(of(n, MAX_COST), "member").unwrap();
            }
        }
        let order = drain(&mut turns);
        assert!(
            order.iter().position(|job| *job == "joiner").unwrap() <= 8,
            "{order:?}"
        );
        assert_eq!(
            order.iter().take(8).filter(|job| **job == "member").count(),
            6,
            "{order:?}"
        );
        assert_eq!(order.len(), STRANGER_JOBS + 1 + 12);
    }

    #[test]
    fn strangers_from_everywhere_are_bounded() {
        let mut turns = Turns::default();
        let taken = (0..=u16::MAX).filter(|n| {
            let [a, b] = n.to_be_bytes();
            let from = Payer::Source(Source::of([10, 0, a, b].into()));
            turns
                .push(
                    Lane::Peer {
                        from,
                        urgent: false,
                        cost: 1,
                    },
                    "junk",
                )
                .is_ok()
        });
        assert_eq!(taken.count(), STRANGERS_JOBS);
    }
}
