//! Health of this machine's workloads: what of an unhealthy one the others still hear.
//!
//! An unhealthy workload keeps its name and has no address, as one that is away: nobody is sent to it. Its aliases are
//! withdrawn. Its address stays its own and its packets pass, so that what began before goes on.

use std::net::IpAddr;

use super::say;
use crate::model::error::Result;
use crate::model::health::{Check, Health, Turn};
use crate::model::id::Name;
use crate::model::members::{Identity, Subnet};
use crate::model::resolve::Resolved;
use crate::model::workload::Workload;

impl Subnet {
    /// Since when a workload is unhealthy, in seconds since 1970; none while it is well, or not asked.
    pub fn unhealthy(&self, name: &Name) -> Option<u64> {
        self.local.health.get(name).and_then(|h| h.unhealthy)
    }

    /// The addresses that others are told of a workload: none while nobody is to be sent to it.
    pub(in crate::model) fn told_addresses(&self, workload: &Workload) -> Vec<IpAddr> {
        let name = &workload.name;
        match self.away(name).is_none() && self.unhealthy(name).is_none() {
            true => workload.addresses.clone(),
            false => vec![],
        }
    }

    /// Sets how a workload is asked whether it is well, or that it is not asked. Another question makes it healthy until it
    /// has failed that one. Whether that changes anything.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement the others would refuse; this node makes none.
    pub fn set_health(
        &mut self,
        me: &Identity,
        name: &Name,
        (check, by_label): (Option<Check>, bool),
        now: u64,
    ) -> Result<bool> {
        let before = self.local.health.get(name);
        if before.map(|h| (&h.check, h.by_label)) == check.as_ref().map(|c| (c, by_label)) {
            return Ok(false);
        }
        let same = before.filter(|h| Some(&h.check) == check.as_ref());
        let unhealthy = same.and_then(|h| h.unhealthy);
        match check {
            None => drop(self.local.health.remove(name)),
            Some(check) => {
                let health = Health {
                    check,
                    unhealthy,
                    by_label,
                };
                self.local.health.insert(name.clone(), health);
            }
        }
        self.publish_health(me, now)?;
        Ok(true)
    }

    /// Takes in what became of workloads that were asked. Whether that changes anything.
    ///
    /// # Errors
    /// As [`Subnet::set_health`].
    pub fn judge_health(
        &mut self,
        me: &Identity,
        turns: &[(Name, Turn)],
        now: u64,
    ) -> Result<bool> {
        let mut changed = false;
        for (name, turn) in turns {
            if let Some(health) = self.local.health.get_mut(name) {
                let was = health.unhealthy;
                health.unhealthy = match turn {
                    Turn::Begun | Turn::Healthy => None,
                    Turn::Unhealthy => was.or(Some(now)),
                };
                changed |= was != health.unhealthy;
            }
        }
        if changed {
            self.publish_health(me, now)?;
        }
        Ok(changed)
    }

    /// Says what the others are to hear of workloads and their aliases.
    fn publish_health(&mut self, me: &Identity, now: u64) -> Result<()> {
        let entries = self.workload_entries();
        let due = self.follow_workloads();
        self.publish(me, now, |d| {
            d.workloads = entries;
            say(&due, d);
        })
    }

    /// The workload here that a map's target means.
    pub fn workload_of_target(
        &self,
        me: &Identity,
        resolved: &Resolved,
        target: &str,
    ) -> Option<&Workload> {
        let name = self.relative(target);
        let mine = resolved.members.get(&me.peer);
        // `web.a` is this member's `web`, whoever has the bare name.
        let below = mine.and_then(|m| name.strip_suffix(m.name.as_str())?.strip_suffix('.'));
        let at = target.parse::<IpAddr>().ok();
        let mut all = self.local.workloads.iter();
        all.find(|w| {
            w.name.as_str() == below.unwrap_or(&name)
                || at.is_some_and(|at| w.addresses.contains(&at))
        })
    }

    /// Whether a map's target is a workload of another member that keeps its place while nobody is to be sent to it: it is
    /// unhealthy or does not run. Its member does not tell at which address it is.
    pub fn is_withheld(&self, me: &Identity, resolved: &Resolved, target: &str) -> bool {
        let name = self.relative(target);
        let short = name
            .strip_suffix(&format!(".{}", self.name()))
            .unwrap_or(&name);
        let at = target.parse::<IpAddr>().ok();
        let mut others = resolved
            .members
            .iter()
            .filter(|(peer, _)| **peer != me.peer);
        others.any(|(_, member)| match at {
            Some(at) => {
                member.withheld().next().is_some() && member.leases.iter().any(|l| l.contains(&at))
            }
            None => {
                let below = short.strip_suffix(member.name.as_str());
                let below = below.and_then(|name| name.strip_suffix('.'));
                let meant = below.unwrap_or(short);
                member.withheld().any(|name| name == meant)
            }
        })
    }

    /// Where a map leads whose target is unhealthy: nobody new is led there, and what began before goes on.
    pub fn draining_target(
        &self,
        me: &Identity,
        resolved: &Resolved,
        target: &str,
        like: IpAddr,
    ) -> Option<IpAddr> {
        let workload = self.workload_of_target(me, resolved, target)?;
        self.unhealthy(&workload.name)?;
        let mut addresses = workload.addresses.iter().copied();
        match target.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) => addresses.find(|a| a.is_ipv4() == like.is_ipv4()),
        }
        .filter(|_| self.away(&workload.name).is_none())
    }
}
