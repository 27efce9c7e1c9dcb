//! Workloads that come and go: what their followers know of them, and what they saw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::api::types::Error;
use crate::model::followed::{Present, Why};
use crate::model::host::NetnsRef;
use crate::model::id::{Name, SubnetId};
use crate::model::members::Subnet;
use crate::model::workload::{Target, Workload};
use crate::node::Core;

/// A workload that is followed, as it was when its follower was told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pursued {
    /// The subnet it is attached to.
    pub subnet: SubnetId,
    /// Its name there.
    pub name: Name,
    /// When it was attached, in seconds since 1970: another one may have that name later.
    pub since: u64,
    /// The namespace or container.
    pub target: Target,
    /// The socket of its engine; none for a namespace that is known by its name.
    pub engine: Option<PathBuf>,
    /// See [`Followed::labels`](crate::model::followed::Followed::labels).
    pub labels: Vec<String>,
    /// The namespace it lives in; none while it is away.
    pub netns: Option<NetnsRef>,
}

/// What was seen of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is here.
    Here(Present),
    /// It is not, for that reason; its engine may call it otherwise by now.
    Away(Why, Option<Target>),
}

impl Core {
    /// The workloads that keep their place while they are away.
    pub fn followed(&self) -> Vec<Pursued> {
        let of = |subnet: &Subnet, w: &Workload| {
            let followed = subnet.followed(&w.name)?;
            Some(Pursued {
                subnet: subnet.records.id,
                name: w.name.clone(),
                since: w.since,
                target: w.target.clone(),
                engine: followed.engine.clone(),
                labels: followed.labels.clone(),
                netns: w.netns.clone(),
            })
        };
        let all = self.state.subnets.values();
        all.flat_map(|s| s.local.workloads.iter().filter_map(move |w| of(s, w)))
            .collect()
    }

    /// What followers saw. It counts for workloads that are still as they were when the look at them began; gives the
    /// others, which are to be looked at again. Each subnet is saved once.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn sighted(&mut self, sightings: Vec<(Pursued, Seen)>) -> Result<Vec<Pursued>, Error> {
        let mut changed: BTreeMap<SubnetId, Subnet> = BTreeMap::new();
        let mut stale = Vec::new();
        for (known, seen) in sightings {
            let held = || self.state.subnets.get(&known.subnet).cloned();
            let Some(mut subnet) = changed.get(&known.subnet).cloned().or_else(held) else {
                continue;
            };
            let is = |w: &Workload| {
                (&w.name, w.since, &w.target, &w.netns)
                    == (&known.name, known.since, &known.target, &known.netns)
            };
            if !subnet.local.workloads.iter().any(is) {
                stale.push(known);
            } else if self.take_in(&mut subnet, known.name, seen) {
                changed.insert(subnet.records.id, subnet);
            }
        }
        for (_, subnet) in changed {
            self.save(subnet)?;
        }
        Ok(stale)
    }

    /// Whether that changes the subnet.
    fn take_in(&self, subnet: &mut Subnet, name: Name, seen: Seen) -> bool {
        let (me, now) = (self.state.me.clone(), self.now());
        let taken = match seen {
            Seen::Here(present) => subnet.came_back(&me, &name, present, now),
            Seen::Away(why, target) => subnet.went_away(&me, &name, (why, target), now),
        };
        match taken {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(%error, workload = %name, subnet = %subnet.name(), "a workload is back and cannot be attached");
                false
            }
        }
    }

    /// Whether the engine at that socket answers.
    pub fn engine_answers(&mut self, engine: &Path, answers: bool) {
        if answers {
            self.engines.silent.remove(engine);
        } else {
            self.engines.silent.insert(engine.to_owned());
        }
    }

    /// Detaches workloads that their engines have had no more for a day.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn end_removed(&mut self) -> Result<(), Error> {
        let (me, now) = (self.state.me.clone(), self.now());
        for id in self.state.subnets.keys().copied().collect::<Vec<_>>() {
            let Some(mut subnet) = self.state.subnets.get(&id).cloned() else {
                continue;
            };
            let ended = subnet.end_removed(&me, now)?;
            if ended.is_empty() {
                continue;
            }
            let names: Vec<&str> = ended.iter().map(Name::as_str).collect();
            tracing::info!(subnet = %subnet.name(), workloads = names.join(", "), "detached: they have been gone for a day");
            self.save(subnet)?;
        }
        Ok(())
    }
}
