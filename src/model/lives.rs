//! Whether one identity runs on two machines at once: a cloned disk, a state directory that was copied.
//!
//! Each start of a daemon is a life, and its announcements name it. The versions of a member's announcements only grow,
//! so the lives of one machine follow each other and none comes back. A life that does come back after another one is
//! alive beside it. A node sees the same of its own announcements, but for one thing: where an old state was restored,
//! the announcement of the former life comes once from the others, is overruled, and stays silent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::id::{PeerId, SubnetId};

/// How long a finding stands after the last life that came back, seconds. Two that contradict each other do so more often.
pub const STANDS: u64 = 180;
/// How long after a new life began it is worth asking around whether the former one goes on, seconds.
const UNSETTLED: u64 = 10;
/// Lives remembered of one member in one subnet, the newest ones.
const REMEMBERED: usize = 4;
/// Members whose lives are remembered; with more, those that have been quiet longest are forgotten.
const MEMBERS: usize = 8192;

/// One start of a daemon, as its announcements tell it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    number: u64,
    /// The addresses at which it said that it can be dialled.
    endpoints: Vec<String>,
}

/// The lives of one member in one subnet.
#[derive(Debug, Clone, Default)]
struct Member {
    /// The lives, oldest first; the last one spoke last.
    lives: VecDeque<Life>,
    /// When the last announcement came, in seconds since 1970.
    heard: u64,
    /// When another life than the one before was heard, in seconds since 1970.
    changed: Option<u64>,
    /// When a former life came back, in seconds since 1970.
    came_back: Option<u64>,
}

/// The lives of members, as their announcements name them.
#[derive(Debug, Clone, Default)]
pub struct Lives(BTreeMap<(SubnetId, PeerId), Member>);

impl Lives {
    /// Notes the life and the endpoints of an announcement that replaced the one before it. `own` says that this node
    /// signed it itself: it overrules another life then, which proves nothing. `now` is seconds since 1970.
    pub fn note(
        &mut self,
        of: (SubnetId, PeerId),
        number: u64,
        endpoints: &[String],
        own: bool,
        now: u64,
    ) {
        if self.0.len() >= MEMBERS
            && !self.0.contains_key(&of)
            && let Some(quiet) = self
                .0
                .iter()
                .min_by_key(|(_, member)| member.heard)
                .map(|(of, _)| *of)
        {
            self.0.remove(&quiet);
        }
        let member = self.0.entry(of).or_default();
        member.heard = now;
        let life = Life {
            number,
            endpoints: endpoints.to_vec(),
        };
        if member
            .lives
            .back()
            .is_some_and(|last| last.number != number)
        {
            member.changed = Some(now);
        }
        if member
            .lives
            .back()
            .is_some_and(|last| last.number == number)
        {
            member.lives.pop_back();
        } else if let Some(place) = member.lives.iter().position(|known| known.number == number) {
            member.lives.remove(place);
            if !own {
                member.came_back = Some(now);
            }
        }
        member.lives.push_back(life);
        if member.lives.len() > REMEMBERED {
            member.lives.pop_front();
        }
    }

    /// The members that live twice, in which subnet, and where each life said that it can be
    /// dialled.
    pub fn twice(&self, now: u64) -> impl Iterator<Item = ((SubnetId, PeerId), Vec<&[String]>)> {
        let fresh =
            move |member: &Member| member.came_back.is_some_and(|at| now.abs_diff(at) < STANDS);
        self.0
            .iter()
            .filter(move |(_, member)| fresh(member))
            .map(|(of, member)| {
                // The two that spoke last.
                let lives = member
                    .lives
                    .iter()
                    .rev()
                    .take(2)
                    .map(|life| life.endpoints.as_slice())
                    .collect();
                (*of, lives)
            })
    }

    /// The members whose life changed a moment ago: the former one, where it goes on, does not hear
    /// of the new one by itself.
    pub fn unsettled(&self, now: u64) -> BTreeSet<PeerId> {
        let moved = |member: &Member| {
            member
                .changed
                .is_some_and(|at| now.abs_diff(at) < UNSETTLED)
        };
        self.0
            .iter()
            .filter(|(_, member)| moved(member))
            .map(|((_, peer), _)| *peer)
            .collect()
    }

    /// Whether a member is one of those.
    pub fn is_unsettled(&self, peer: PeerId, now: u64) -> bool {
        self.unsettled(now).contains(&peer)
    }

    /// Whether a member lives twice in some subnet.
    pub fn is_twice(&self, peer: PeerId, now: u64) -> bool {
        self.twice(now).any(|((_, of), _)| of == peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: (SubnetId, PeerId) = (SubnetId([1; 16]), PeerId([2; 32]));

    fn lives(said: &[(u64, bool)]) -> Lives {
        let mut lives = Lives::default();
        for (number, own) in said {
            lives.note(
                OF,
                *number,
                &[format!("/ip4/192.0.2.{number}/tcp/4100")],
                *own,
                1000,
            );
        }
        lives
    }

    #[test]
    fn a_life_that_comes_back_after_another_is_a_second_machine() {
        let twice = lives(&[(1, false), (2, false), (1, false)]);
        let (of, ends) = twice.twice(1000 + STANDS - 1).next().unwrap();
        assert_eq!(of, OF);
        assert_eq!(
            ends.concat(),
            ["/ip4/192.0.2.1/tcp/4100", "/ip4/192.0.2.2/tcp/4100"]
        );
        assert!(twice.is_twice(OF.1, 1000) && !twice.is_twice(PeerId([3; 32]), 1000));
        assert!(!twice.is_twice(OF.1, 1000 + STANDS), "one of them ended");
    }

    #[test]
    fn restarts_are_no_second_machine() {
        assert!(
            !lives(&[(1, false), (1, false), (2, false), (2, false), (3, false)])
                .is_twice(OF.1, 1000)
        );
    }

    #[test]
    fn who_began_a_new_life_is_asked_about_for_a_moment() {
        assert!(lives(&[(1, false), (1, false)]).unsettled(1000).is_empty());
        let changed = lives(&[(1, false), (2, false)]);
        assert_eq!(
            changed.unsettled(1000 + UNSETTLED - 1),
            BTreeSet::from([OF.1])
        );
        assert!(changed.unsettled(1000 + UNSETTLED).is_empty());
    }

    #[test]
    fn a_restored_state_is_no_second_machine_and_a_clone_is_one() {
        // Life 9 was restored from a backup: it speaks, hears what life 3 said last, and overrules it.
        assert!(!lives(&[(9, true), (3, false), (9, true), (9, true)]).is_twice(OF.1, 1000));
        assert!(lives(&[(9, true), (3, false), (9, true), (3, false)]).is_twice(OF.1, 1000));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lives = Lives::default();
        for n in 0..10_000_u64 {
            let mut key = [0; 32];
            key.first_chunk_mut::<8>()
                .unwrap()
                .copy_from_slice(&(n % 9000).to_be_bytes());
            lives.note((OF.0, PeerId(key)), n, &[], false, n);
        }
        assert!(lives.0.len() <= MEMBERS && lives.0.values().all(|m| m.lives.len() <= REMEMBERED));
    }
}
