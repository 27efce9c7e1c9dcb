//! What is thought of this machine's clock in each subnet, by what that subnet's own members say.
//!
//! What the members of one subnet say stops nothing in another. In a subnet the owner's word decides, else most of the
//! admins that are there, else most of the other members. Whoever came in without anybody's word has none until its trial
//! is over: of such there are as many as somebody has keys.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::{ALONE, MOST, SET, is_off};
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Term;
use crate::model::roll::Roll;
use crate::node::{Reading, Word};

/// The members of one subnet that have a say, of those that are connected.
#[derive(Debug, Clone, Default)]
pub(super) struct Voices {
    /// The owner, the admins, and the other members: the first of these that is not divided decides.
    ranks: [Vec<PeerId>; 3],
    /// Whether a member on trial is connected.
    guests: bool,
    /// All other members of the subnet.
    pub(super) members: Arc<BTreeSet<PeerId>>,
}

/// By how much a member's clock is ahead. What is known is in the order of the peers.
fn said(known: &[(PeerId, i64)], peer: PeerId) -> Option<i64> {
    let place = known.binary_search_by_key(&peer, |(of, _)| *of).ok()?;
    known.get(place).map(|(_, offset)| *offset)
}

impl Voices {
    /// The voices by who is in, and who is connected.
    pub(super) fn of(roll: &Roll, members: Arc<BTreeSet<PeerId>>, connected: &[PeerId]) -> Voices {
        let mut voices = Voices {
            members,
            ..Voices::default()
        };
        let [owner, admins, plain] = &mut voices.ranks;
        for peer in connected.iter().copied() {
            let Some(entry) = roll
                .members
                .get(&peer)
                .filter(|_| voices.members.contains(&peer))
            else {
                continue;
            };
            if roll.owner == Some(peer) {
                owner.push(peer);
            } else if roll.is_admin(peer) {
                admins.push(peer);
            } else if entry.grants().iter().all(|g| g.grant().term == Term::Trial) {
                voices.guests = true;
            } else {
                plain.push(peer);
            }
        }
        voices
    }

    fn is_empty(&self) -> bool {
        self.ranks.iter().all(Vec::is_empty)
    }

    /// Those with a say that have told their time.
    fn speakers(&self, known: &[(PeerId, i64)]) -> BTreeSet<PeerId> {
        let spoke = |peer: &&PeerId| said(known, **peer).is_some();
        self.ranks.iter().flatten().filter(spoke).copied().collect()
    }

    /// Whether one of them has said anything.
    pub(super) fn has_spoken(&self, known: &[(PeerId, i64)]) -> bool {
        self.ranks
            .iter()
            .flatten()
            .any(|peer| said(known, *peer).is_some())
    }

    /// Whether members are there and none has said anything.
    fn is_silent(&self, known: &[(PeerId, i64)]) -> bool {
        !self.is_empty() && !self.has_spoken(known)
    }

    /// What they say of this machine's clock.
    fn verdict(&self, known: &[(PeerId, i64)]) -> Verdict {
        for rank in &self.ranks {
            let (off, agree): (Vec<i64>, Vec<i64>) = rank
                .iter()
                .filter_map(|peer| said(known, *peer))
                .partition(|offset| is_off(*offset));
            match off.len().cmp(&agree.len()) {
                Ordering::Greater => return Verdict::Off,
                Ordering::Less => return Verdict::Agreed,
                Ordering::Equal => {}
            }
        }
        Verdict::Divided
    }
}

/// What a subnet's members say of this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Off,
    Agreed,
    /// As many say the one as the other, or nobody has said anything.
    Divided,
}

/// What is thought of this machine's clock.
#[derive(Debug)]
pub(super) struct Opinion {
    /// The last word of each subnet on the clock as it is, and whose word it was.
    said: BTreeMap<SubnetId, (Verdict, BTreeSet<PeerId>)>,
    /// The clock as it was last looked at.
    last: Reading,
    /// When the daemon started, or the clock was last set.
    anew: Instant,
    /// It was set far away, and nobody has said anything of it since.
    far: bool,
}

impl Opinion {
    pub(super) fn new(clock: Reading) -> Opinion {
        Opinion {
            said: BTreeMap::new(),
            last: clock,
            anew: clock.at,
            far: false,
        }
    }

    /// Whether the members of a subnet contradict the clock.
    pub(super) fn contradicts(&self, subnet: SubnetId) -> bool {
        self.said
            .get(&subnet)
            .is_some_and(|(verdict, _)| *verdict == Verdict::Off)
    }

    /// Whether some subnet's members contradict it and no subnet's agree with it.
    fn is_wrong(&self) -> bool {
        let says = |wanted: Verdict| self.said.values().any(|(verdict, _)| *verdict == wanted);
        says(Verdict::Off) && !says(Verdict::Agreed)
    }

    /// Whether what the clock says is probably untrue.
    pub(super) fn contradicted(&self) -> bool {
        self.is_wrong() || self.far
    }

    /// Judges the clock, by what is known of the others'.
    pub(super) fn judge(
        &mut self,
        clock: Reading,
        subnets: &BTreeMap<SubnetId, Voices>,
        known: &[(PeerId, i64)],
    ) -> BTreeMap<SubnetId, Word> {
        let set = clock.set_since(&self.last);
        self.last = clock;
        if set > SET {
            self.anew = clock.at;
        }
        // What was said of a clock that is no more is void; what was said of this one stands, also where who said so is
        // gone, but not where that one is a member no more.
        self.said.retain(|id, (_, speakers)| {
            set <= MOST
                && subnets
                    .get(id)
                    .is_some_and(|s| !s.members.is_disjoint(speakers))
        });
        for (id, subnet) in subnets {
            let speakers = subnet.speakers(known);
            if !speakers.is_empty() {
                self.said.insert(*id, (subnet.verdict(known), speakers));
            }
        }
        let waiting = clock.at.saturating_duration_since(self.anew) < ALONE;
        let silent = subnets.values().any(|s| s.is_silent(known));
        let spoken = subnets.values().any(|s| s.has_spoken(known));
        self.far = !spoken && (silent || waiting) && (self.far || set > MOST);
        let wrong = self.is_wrong();
        subnets
            .iter()
            .map(|(id, subnet)| (*id, self.word((*id, subnet), known, waiting, wrong)))
            .collect()
    }

    fn word(
        &self,
        (id, subnet): (SubnetId, &Voices),
        known: &[(PeerId, i64)],
        waiting: bool,
        wrong: bool,
    ) -> Word {
        let unheard = subnet.is_silent(known) || (subnet.is_empty() && waiting);
        // Where members are and nobody is there, nothing that is signed reaches anybody: that can wait.
        let deserted = subnet.is_empty() && !subnet.guests && !subnet.members.is_empty();
        let off = match self.said.get(&id) {
            Some((verdict, _)) => *verdict == Verdict::Off,
            None => deserted && wrong,
        };
        // What is forgotten is lost for good: only by the word of those who are there now.
        let agreed = !subnet.is_empty() && subnet.verdict(known) == Verdict::Agreed;
        Word {
            doubted: off || unheard,
            agreed,
        }
    }
}

#[cfg(test)]
mod tests;
