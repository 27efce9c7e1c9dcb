//! Publishing what follows from the state: a View with its number, and the news with which it is told to the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::saver::Wish;
use super::viewer::Wanted;
use super::{Core, Push, Told, unix_now, unix_now_ms};
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Verified;
use crate::model::view::View;

/// Members removed at once to whom it is proved unasked; others learn it when they ask.
const PROOFS: usize = 16;

impl Core {
    /// Builds and publishes the View: at once, or with what this job has decided.
    pub fn publish(&mut self) {
        let before = self.generation;
        let generation = self.next_generation();
        match &mut self.decided {
            Some(decided) => decided.want(Wish::Now, generation, before),
            None => self.build(generation),
        }
    }

    /// Has the View built beside this thread and published when it is there. An `urgent` one, by which somebody may be
    /// out, is not put off.
    pub(super) fn want_view(&mut self, urgent: bool) {
        let before = self.generation;
        let generation = self.next_generation();
        match &mut self.decided {
            Some(decided) => decided.want(Wish::Beside { urgent }, generation, before),
            None => self.want_built(generation, urgent),
        }
    }

    pub(super) fn want_built(&mut self, generation: u64, urgent: bool) {
        let (state, here) = (self.state.clone(), self.here.clone());
        let former = self.view.load_full();
        self.viewer.want(Box::new(Wanted {
            state,
            generation,
            now: unix_now(),
            here,
            urgent,
            former,
        }));
    }

    fn next_generation(&mut self) -> u64 {
        self.generation = unix_now_ms().max(self.generation.saturating_add(1));
        // What is built for a later time than it is has to be built again: the clock was set back.
        self.built_at = self.now();
        self.generation
    }

    /// Publishes a View that was built beside this thread.
    pub(super) fn built_beside(&mut self, view: View) {
        self.work.views_beside = self.work.views_beside.saturating_add(1);
        self.state.keep(
            view.built
                .iter()
                .map(|(id, built)| (*id, Arc::clone(built.resolved()))),
            self.now(),
        );
        self.install(view);
    }

    /// Publishes a View that was built, unless a newer one was published meanwhile, and tells the others what was saved.
    pub(super) fn install(&mut self, view: View) {
        let generation = view.generation;
        if generation <= self.view.load().generation {
            return;
        }
        let after = Arc::new(view);
        let before = self.view.swap(Arc::clone(&after));
        self.next_change = after.changes_at;
        self.published.send_replace(generation);
        let mut news: BTreeMap<SubnetId, Vec<Verified>> = BTreeMap::new();
        for ((subnet, except), mut records) in std::mem::take(&mut self.untold) {
            // What was replaced meanwhile need not be told any more.
            records.retain(|record| self.known.holds(subnet, &record.digest()));
            records.sort_by_key(Verified::rank);
            news.entry(subnet).or_default().extend_from_slice(&records);
            let new_life = except.is_some_and(|peer| self.lives.is_unsettled(peer, self.built_at));
            let _ = self.pushes.send(Push {
                subnet,
                records,
                to: Told::Members { except, new_life },
            });
        }
        for (id, former) in before.rolls.iter() {
            let Some(subnet) = self.state.subnets.get(id) else {
                continue;
            };
            let members = after.rolls.get(id);
            let removed: Vec<PeerId> = former
                .iter()
                .filter(|p| !members.is_some_and(|m| m.contains(p)))
                .copied()
                .collect();
            // Others may have heard of it before this View was there: then it is said once more, to whom it concerns.
            let about = || {
                removed
                    .iter()
                    .take(PROOFS)
                    .flat_map(|peer| subnet.records.proving(*peer))
                    .collect()
            };
            let late = || if members.is_some() { about() } else { vec![] };
            let records: Vec<Verified> = news.remove(id).unwrap_or_else(late);
            if !removed.is_empty() && !records.is_empty() {
                let _ = self.pushes.send(Push {
                    subnet: *id,
                    records,
                    to: Told::Removed(removed),
                });
            }
        }
    }
}
