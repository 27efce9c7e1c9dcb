//! What comes with a workload and goes with it: the port maps and further names that its engine asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::build::NAME_TTL;
use crate::model::error::Result;
use crate::model::id::Name;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{Announcement, NameEntry};
use crate::model::workload::{Companions, Workload};
use crate::model::zone::RecordData;

/// An alias, the addresses that the announcement says of it, and those that it should say.
type Due = (String, Vec<IpAddr>, Vec<IpAddr>);

/// Changes what an announcement says of aliases.
pub(in crate::model) fn say(due: &[Due], announcement: &mut Announcement) {
    for (alias, before, now) in due {
        let is = |n: &NameEntry, of: &[IpAddr]| {
            n.name == *alias && matches!(n.data, RecordData::Address(a) if of.contains(&a))
        };
        announcement.names.retain(|n| !is(n, before) && !is(n, now));
        announcement.names.extend(now.iter().map(|a| NameEntry {
            name: alias.clone(),
            data: RecordData::Address(*a),
            ttl: NAME_TTL,
        }));
    }
}

impl Subnet {
    /// Says further names of a workload that is attached, and remembers the network that its engine attached it by.
    ///
    /// # Errors
    /// Those of [`Subnet::dns_add`].
    pub fn accompany(
        &mut self,
        me: &Identity,
        workload: &Workload,
        network: Option<String>,
        aliases: &[String],
        now: u64,
    ) -> Result<()> {
        if network.is_none() && aliases.is_empty() {
            return Ok(());
        }
        let mut said = BTreeMap::new();
        for alias in aliases {
            let alias = self.relative(alias);
            // It has that name already.
            if alias == workload.name.as_str() {
                continue;
            }
            let data: Vec<_> = workload
                .addresses
                .iter()
                .map(|a| RecordData::Address(*a))
                .collect();
            self.dns_add(me, &alias, &data, NAME_TTL, now)?;
            said.insert(alias, workload.addresses.clone());
        }
        let companions = Companions {
            network,
            maps: BTreeSet::new(),
            aliases: said,
        };
        self.local
            .companions
            .insert(workload.name.clone(), companions);
        Ok(())
    }

    /// Says one more name of a workload that is attached.
    ///
    /// # Errors
    /// Those of [`Subnet::dns_add`], and then nothing is changed.
    pub fn say_alias(
        &mut self,
        me: &Identity,
        workload: &Workload,
        alias: &str,
        now: u64,
    ) -> Result<()> {
        let addresses = workload.addresses.iter();
        let data: Vec<_> = addresses.map(|a| RecordData::Address(*a)).collect();
        self.dns_add(me, alias, &data, NAME_TTL, now)?;
        let with = self
            .local
            .companions
            .entry(workload.name.clone())
            .or_default();
        with.aliases
            .insert(alias.to_owned(), workload.addresses.clone());
        Ok(())
    }

    /// Says no further name of a workload any more.
    ///
    /// # Errors
    /// As [`Subnet::accompany`].
    pub fn take_back_names(&mut self, me: &Identity, workload: &Name, now: u64) -> Result<()> {
        let Some(with) = self.local.companions.get_mut(workload) else {
            return Ok(());
        };
        let gone = std::mem::take(&mut with.aliases).into_iter();
        let due: Vec<Due> = gone
            .map(|(alias, before)| (alias, before, vec![]))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        self.publish(me, now, |announcement| say(&due, announcement))
    }

    /// Remembers that a port map goes with a workload.
    pub fn map_goes_with(&mut self, workload: &Name, map: &Name) {
        let companions = self.local.companions.entry(workload.clone()).or_default();
        companions.maps.insert(map.clone());
    }

    /// Takes away what came with a workload that is gone; gives what its announcement has to say no longer.
    pub(super) fn part_with(&mut self, workload: &Name) -> Vec<Due> {
        let Some(gone) = self.local.companions.remove(workload) else {
            return vec![];
        };
        self.map_remove(|map| gone.maps.contains(&map.name));
        let none = |(alias, before)| (alias, before, vec![]);
        gone.aliases.into_iter().map(none).collect()
    }

    /// Whether every alias has the addresses that are told of its workload, and every workload that has companions is attached.
    pub(in crate::model) fn companions_are_true(&self) -> bool {
        self.local.companions.iter().all(|(name, with)| {
            let workload = self.local.workloads.iter().find(|w| w.name == *name);
            let told = workload.map(|w| self.told_addresses(w));
            told.is_some_and(|told| with.aliases.values().all(|said| *said == told))
        })
    }

    /// Lets aliases follow their workloads: to other addresses, or away. Those of one that is away or unhealthy are not said. Gives what the announcement has to say otherwise.
    pub(in crate::model) fn follow_workloads(&mut self) -> Vec<Due> {
        let names: Vec<Name> = self.local.companions.keys().cloned().collect();
        let mut due = Vec::new();
        for name in names {
            let workload = self.local.workloads.iter().find(|w| w.name == name);
            let Some(now) = workload.map(|w| self.told_addresses(w)) else {
                due.extend(self.part_with(&name));
                continue;
            };
            let with = self.local.companions.entry(name).or_default();
            for (alias, said) in &mut with.aliases {
                if *said != now {
                    due.push((
                        alias.clone(),
                        std::mem::replace(said, now.clone()),
                        now.clone(),
                    ));
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_that_two_workloads_share_keeps_the_addresses_of_the_one_that_stays() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut announcement = Announcement::default();
        let (one, two) = (vec![ip("10.77.1.2")], vec![ip("10.77.1.3"), ip("fd7a::3")]);
        let db = || "db".to_owned();
        say(
            &[(db(), vec![], one.clone()), (db(), vec![], two.clone())],
            &mut announcement,
        );
        let said = |a: &Announcement| {
            let address = |n: &NameEntry| match n.data {
                RecordData::Address(a) => a,
                _ => unreachable!("only addresses were said"),
            };
            a.names.iter().map(address).collect::<Vec<_>>()
        };
        assert_eq!(said(&announcement), [one.clone(), two.clone()].concat());
        say(
            &[(db(), two.clone(), vec![ip("10.77.9.3")])],
            &mut announcement,
        );
        assert_eq!(said(&announcement), [one[0], ip("10.77.9.3")]);
        say(&[(db(), one, vec![])], &mut announcement);
        assert_eq!(said(&announcement), [ip("10.77.9.3")]);
    }
}
