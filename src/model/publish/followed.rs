//! Workloads that come and go under one name: away while their namespace is gone, and the same again when they are back.

use std::net::IpAddr;

use crate::model::error::Result;
use crate::model::followed::{Away, Followed, Present, Why};
use crate::model::host::ResolvConf;
use crate::model::id::Name;
use crate::model::members::{Identity, Subnet};
use crate::model::workload::{Target, Workload};

/// Seconds for which the place is kept of a container that its engine has no more, and of a namespace that is gone.
pub const KEEP_REMOVED: u64 = 24 * 3600;

/// Containers without a trace at their engine whose places are kept, in each subnet.
const MAX_REMOVED: usize = 256;

impl Subnet {
    /// What is known of a workload that is followed; none for one that is not.
    pub fn followed(&self, name: &Name) -> Option<&Followed> {
        self.local.followed.get(name)
    }

    /// Why a workload is not here; none while it is.
    pub fn away(&self, name: &Name) -> Option<Away> {
        self.followed(name).and_then(|f| f.away)
    }

    /// A followed workload is not here: it keeps its name and addresses, and nobody is sent to it. Whether that is news.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement the others would refuse; this node makes none.
    pub fn went_away(
        &mut self,
        me: &Identity,
        name: &Name,
        (why, target): (Why, Option<Target>),
        now: u64,
    ) -> Result<bool> {
        let Some(followed) = self.local.followed.get_mut(name) else {
            return Ok(false);
        };
        let former = followed.away;
        // How long it is away counts from when it went; a removed one from when it was removed.
        let since = match former {
            Some(away) if away.why == why || why != Why::Removed => away.since,
            _ => now,
        };
        followed.away = Some(Away { why, since });
        followed.paused = false;
        let mut changed = former != followed.away;
        for workload in self.local.workloads.iter_mut().filter(|w| w.name == *name) {
            changed |= workload.netns.take().is_some();
            if let Some(target) = target.clone().filter(|t| *t != workload.target) {
                workload.target = target;
                changed = true;
            }
        }
        if changed {
            self.publish_workloads(me, now)?;
            self.bound_removed(me, now)?;
        }
        Ok(changed)
    }

    /// A followed workload is here, as it was found. Whether that is news.
    ///
    /// # Errors
    /// `E-ATTACHED` where another workload of this subnet has that namespace.
    pub fn came_back(
        &mut self,
        me: &Identity,
        name: &Name,
        present: Present,
        now: u64,
    ) -> Result<bool> {
        let found = self.local.workloads.iter().find(|w| w.name == *name);
        let (Some(workload), Some(followed)) = (found, self.local.followed.get(name)) else {
            return Ok(false);
        };
        let is_same = workload.is_in(&present.netns);
        let next = Workload {
            target: present.target,
            netns: match &workload.netns {
                Some(known) if is_same => Some(known.clone()),
                _ => Some(present.netns),
            },
            resolv_conf: match (&workload.resolv_conf, present.resolv_conf) {
                (known, _) if is_same => known.clone(),
                // The file that is there is the one that we made before.
                (known @ ResolvConf::Create(_), ResolvConf::None) => known.clone(),
                (_, found) => found,
            },
            ..workload.clone()
        };
        let known = Followed {
            labels: present.labels,
            paused: present.paused,
            away: None,
            ..followed.clone()
        };
        if *workload == next && *followed == known {
            return Ok(false);
        }
        self.is_apart(&next, Some(name))?;
        self.local.followed.insert(name.clone(), known);
        // Begun anew, it is well until it has shown otherwise.
        if let Some(health) = self.local.health.get_mut(name).filter(|_| !is_same) {
            health.unhealthy = None;
        }
        for workload in self.local.workloads.iter_mut().filter(|w| w.name == *name) {
            *workload = next.clone();
        }
        self.publish_workloads(me, now)?;
        Ok(true)
    }

    /// The namespaces that are gone and give way to a new workload, of another target, which wants the name or the address
    /// of one: whoever made that one may never make it again.
    pub fn give_way(&self, name: &Name, ip: Option<IpAddr>, target: &Target) -> Vec<Name> {
        let gone = |w: &&Workload| {
            matches!(w.target, Target::Netns(_))
                && w.target != *target
                && self.away(&w.name).is_some_and(|a| a.why == Why::Removed)
        };
        let wanted =
            |w: &&Workload| w.name == *name || ip.is_some_and(|ip| w.addresses.contains(&ip));
        let all = self.local.workloads.iter().filter(gone);
        all.filter(wanted).map(|w| w.name.clone()).collect()
    }

    /// Detaches those that their engine has had no more for [`KEEP_REMOVED`]. Gives their names.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement the others would refuse; this node makes none.
    pub fn end_removed(&mut self, me: &Identity, now: u64) -> Result<Vec<Name>> {
        let due = |away: &Away| now.saturating_sub(away.since) >= KEEP_REMOVED;
        let ended: Vec<Name> = self
            .removed()
            .into_iter()
            .filter(|(away, _)| due(away))
            .map(|(_, name)| name)
            .collect();
        for name in &ended {
            self.detach(me, name.as_str(), now)?;
        }
        Ok(ended)
    }

    /// Makes room: detaches the one that its engine has had no more for longest. Whether there was one.
    pub(super) fn end_oldest_removed(&mut self, me: &Identity, now: u64) -> Result<bool> {
        match self.removed().into_iter().next() {
            Some((_, name)) => self.detach(me, name.as_str(), now).map(|_| true),
            None => Ok(false),
        }
    }

    fn bound_removed(&mut self, me: &Identity, now: u64) -> Result<()> {
        let removed = self.removed();
        let surplus = removed.len().saturating_sub(MAX_REMOVED);
        for (_, name) in removed.into_iter().take(surplus) {
            self.detach(me, name.as_str(), now)?;
        }
        Ok(())
    }

    /// Workloads that their engine has no more, the first that was removed first.
    fn removed(&self) -> Vec<(Away, Name)> {
        let gone = |(name, f): (&Name, &Followed)| {
            f.away
                .filter(|away| away.why == Why::Removed)
                .map(|away| (away, name.clone()))
        };
        let mut all: Vec<(Away, Name)> = self.local.followed.iter().filter_map(gone).collect();
        all.sort_by_key(|(away, _)| away.since);
        all
    }
}
