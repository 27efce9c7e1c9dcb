//! Health of workloads: what is asked of them, and what came of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::done;
use super::runner::Runner;
use crate::api::types::{Error, HealthCheck, HealthInfo, HealthProbe, Response, SubnetState};
use crate::model::health::{Check, Health, Probe, Subject, Turn};
use crate::model::host::NetnsRef;
use crate::model::id::{Name, SubnetId};
use crate::model::members::Subnet;
use crate::model::workload::Workload;
use crate::node::Core;

/// A workload that is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// How it is asked, and how it is.
    pub health: Health,
    /// The addresses that it is asked at.
    pub addresses: Vec<IpAddr>,
    /// The namespace it lives in; a virtual machine has none.
    pub netns: Option<NetnsRef>,
    /// Who can run a command in it.
    pub runner: Runner,
}

/// Which attachment of a workload has succeeded, and with what: when it was attached, its namespace, and the check.
pub(in crate::node) type Proven = (u64, Option<NetnsRef>, Check);

/// What a workload proves by a success now.
fn proof(subnet: &Subnet, name: &Name) -> Option<Proven> {
    let check = &subnet.local.health.get(name)?.check;
    let mut all = subnet.local.workloads.iter();
    let workload = all.find(|w| w.name == *name)?;
    Some((workload.since, workload.netns.clone(), check.clone()))
}

impl Core {
    /// Whether a host that a URL names is the workload itself.
    fn is_own_host(&self, subnet: &Subnet, workload: &Workload, host: &str) -> bool {
        let resolved = subnet.resolve(self.now());
        let mine = resolved.members.get(&self.state.me.peer);
        let name = subnet.relative(host);
        let below = mine.and_then(|m| name.strip_suffix(m.name.as_str())?.strip_suffix('.'));
        match host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || workload.addresses.contains(&address),
            Err(_) => name == "localhost" || below.unwrap_or(&name) == workload.name.as_str(),
        }
    }

    /// Sets how a workload is asked whether it is well; it is asked no more where no check is given.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`, `E-NO-SUBNET`; `E-HEALTH` for a check that is none.
    pub fn set_health(
        &mut self,
        workload: &str,
        subnet: Option<&str>,
        check: Option<HealthCheck>,
    ) -> Result<Response, Error> {
        let (id, name) = self.find_workload(workload, subnet, None)?;
        let check = match check {
            None => None,
            Some(HealthCheck {
                probe,
                interval_s,
                fail,
            }) => {
                let subnet = self.state.find(&id.to_string())?;
                let mut here = subnet.local.workloads.iter();
                let here = here.find(|w| w.name == name);
                let is_own = |host: &str| here.is_some_and(|w| self.is_own_host(subnet, w, host));
                let probe = match probe {
                    HealthProbe::Tcp(port) => Probe::Tcp(port),
                    HealthProbe::Http(url) => Probe::http(&url, is_own)?,
                    HealthProbe::Exec(words) => Probe::exec(words)?,
                };
                Some(Check::new(probe, interval_s, fail)?)
            }
        };
        let told = match &check {
            None => format!("{name} is not asked whether it is well"),
            Some(check) => format!(
                "{name} is asked every {} s: {}",
                check.interval,
                check.probe.text()
            ),
        };
        let changed = self.change_health(id, &name, (check, false))?;
        Ok(done(told, changed))
    }

    fn change_health(
        &mut self,
        id: SubnetId,
        name: &Name,
        check: (Option<Check>, bool),
    ) -> Result<bool, Error> {
        let (me, now) = (self.state.me.clone(), self.now());
        let mut subnet = self.state.edit(&id.to_string())?;
        let changed = subnet.set_health(&me, name, check, now)?;
        if changed {
            self.save(subnet)?;
        }
        Ok(changed)
    }

    /// Sets the check that the label of an endpoint's container asks for; without one, a check of a former label goes. What a
    /// person has set stays. Whether that changes anything.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`; `E-HEALTH` where the label is no check: then a check of a former label goes all the same.
    pub fn label_health(&mut self, endpoint: &str, label: Option<&str>) -> Result<bool, Error> {
        let staged = self.staged_endpoint(endpoint)?;
        let (id, workload) = (staged.subnet, staged.workload);
        let subnet = self.state.find(&id.to_string())?;
        let known = subnet.local.health.get(&workload.name);
        let by_label = known.map(|health| health.by_label);
        let is_own = |host: &str| self.is_own_host(subnet, &workload, host);
        let check = label.map(|text| Check::of_label(text, is_own)).transpose();
        if by_label == Some(false) {
            return Ok(false);
        }
        match check {
            Ok(None) if by_label.is_none() => Ok(false),
            Ok(check) => self.change_health(id, &workload.name, (check, true)),
            Err(error) => {
                if by_label.is_some() {
                    self.change_health(id, &workload.name, (None, true))?;
                }
                Err(error.into())
            }
        }
    }

    /// The workloads that are to be asked now: those that are here, in a subnet that is up.
    pub fn asked(&self) -> BTreeMap<Subject, Examined> {
        let now = self.now();
        let up = |s: &&Subnet| {
            !s.local.health.is_empty()
                && self.subnet_state(s, &s.resolve(now)) == SubnetState::Ready
        };
        let of = |subnet: &Subnet, w: &Workload| {
            let health = subnet.local.health.get(&w.name)?;
            let paused = subnet.followed(&w.name).is_some_and(|f| f.paused);
            // A virtual machine has no namespace here, and is asked as any other.
            let is_here = w.netns.is_some() || w.target.tap_link().is_some();
            if paused || !is_here {
                return None;
            }
            let subject = (subnet.records.id, w.name.clone(), w.since);
            let asked = Examined {
                health: health.clone(),
                addresses: w.addresses.clone(),
                netns: w.netns.clone(),
                runner: self.runner(subnet, w),
            };
            subnet.away(&w.name).is_none().then_some((subject, asked))
        };
        let all = self.state.subnets.values().filter(up);
        all.flat_map(|s| s.local.workloads.iter().filter_map(move |w| of(s, w)))
            .collect()
    }

    /// What became of workloads that were asked, each with why. Each subnet is saved once.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn judged(&mut self, turns: Vec<(Subject, Turn, String)>) -> Result<(), Error> {
        let (me, now) = (self.state.me.clone(), self.now());
        let mut by_subnet: BTreeMap<SubnetId, Vec<(Name, Turn, String)>> = BTreeMap::new();
        for ((id, name, since), turn, why) in turns {
            let is = |w: &Workload| w.name == name && w.since == since;
            let subnet = self.state.subnets.get(&id);
            if subnet.is_some_and(|s| s.local.workloads.iter().any(is)) {
                by_subnet.entry(id).or_default().push((name, turn, why));
            }
        }
        for (id, turns) in by_subnet {
            let Some(mut subnet) = self.state.subnets.get(&id).cloned() else {
                continue;
            };
            let words: Vec<_> = turns
                .iter()
                .map(|(name, t, _)| (name.clone(), *t))
                .collect();
            if subnet.judge_health(&me, &words, now)? {
                self.save(subnet)?;
            }
            for (name, turn, why) in turns {
                if turn == Turn::Unhealthy {
                    self.ailments.insert((id, name), why);
                    continue;
                }
                self.ailments.remove(&(id, name.clone()));
                if let Some(proof) = self.state.subnets.get(&id).and_then(|s| proof(s, &name)) {
                    self.proven.insert((id, name), proof);
                }
            }
        }
        let known = &self.state.subnets;
        self.ailments
            .retain(|(id, name), _| known.get(id).is_some_and(|s| s.unhealthy(name).is_some()));
        self.proven.retain(|(id, name), proven| {
            known.get(id).and_then(|s| proof(s, name)).as_ref() == Some(proven)
        });
        Ok(())
    }

    /// Whether a workload that is asked has succeeded since it is as it is now.
    fn is_proven(&self, subnet: &Subnet, name: &Name) -> bool {
        let known = self.proven.get(&(subnet.records.id, name.clone()));
        known.is_some() && known == proof(subnet, name).as_ref()
    }

    /// What `workload show` tells of a workload's health.
    pub(in crate::node) fn health_info(&self, subnet: &Subnet, name: &Name) -> Option<HealthInfo> {
        let Health {
            check,
            unhealthy,
            by_label,
        } = subnet.local.health.get(name)?;
        let why = self.ailments.get(&(subnet.records.id, name.clone()));
        Some(HealthInfo {
            check: check.probe.text(),
            interval_s: check.interval,
            fail: check.fail,
            state: match unhealthy {
                None if self.is_proven(subnet, name) => "healthy",
                None => "starting",
                Some(_) => "unhealthy",
            }
            .to_owned(),
            since: *unhealthy,
            failure: why.cloned().filter(|_| unhealthy.is_some()),
            by_label: *by_label,
        })
    }
}
