//! What a user may do who may change nothing but its own: attach containers up to a number, and lead ports to them.
//!
//! Names and ports are the machine's. Such a user gets what nobody else here has, and ends nothing of others.

use super::maps::NewMap;
use super::workloads::NewWorkload;
use crate::api::types::{Error, ErrorKind};
use crate::model::error::{Code, Hint};
use crate::model::id::Name;
use crate::model::local::Map;
use crate::model::members::{Subnet, printable};
use crate::model::workload::Workload;
use crate::node::Core;

/// Ports that a user may have mapped, for each workload that it may have.
const PORTS_PER_WORKLOAD: u32 = 64;

/// A user who may change nothing but its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The number of the user.
    pub user: u32,
    /// Workloads that it may have at a time, in all subnets together.
    pub quota: u32,
}

impl Own {
    fn has(self, workload: &Workload) -> bool {
        workload.target.user() == Some(self.user)
    }

    fn exceeded(self, what: &str) -> Error {
        let Own { user, quota } = self;
        let message = format!("user {user} has {what} as it may ({quota} workloads)");
        Error::new(ErrorKind::NotPermitted, Code::Quota, message).hint(Hint::EndWorkload)
    }
}

/// The alias that a user asks for. Anything but one label would be a name below somebody else's, or all names below one.
///
/// # Errors
/// `E-PERMISSION` for a name with a dot or a `*`, and for what is no name.
fn single_label(own: Own, alias: &str) -> Result<Name, Error> {
    alias.parse().map_err(|_| {
        let alias = printable(alias);
        let message = format!(
            "user {} may have further names of one label only, and {alias} is none",
            own.user
        );
        Error::new(ErrorKind::NotPermitted, Code::Permission, message)
            .hint("a name of letters, digits and '-', as web-2, without dots and '*'")
    })
}

impl Core {
    /// The workloads of a user, each with its subnet.
    fn owned(&self, own: Own) -> impl Iterator<Item = (&Subnet, &Workload)> {
        self.state.subnets.values().flat_map(move |subnet| {
            let all = subnet.local.workloads.iter();
            all.filter(move |w| own.has(w)).map(move |w| (subnet, w))
        })
    }

    /// # Errors
    /// `E-QUOTA` where the user has as many workloads as it may; `E-NAME-TAKEN` where it wants a name that something of
    /// others here has, or is to have by a file that was imported; `E-PERMISSION` for an alias that is not one label.
    pub(super) fn check_own(
        &self,
        own: Own,
        subnet: &Subnet,
        new: &NewWorkload,
    ) -> Result<(), Error> {
        let count = u32::try_from(self.owned(own).count()).unwrap_or(u32::MAX);
        if count >= own.quota {
            return Err(own.exceeded("as many workloads"));
        }
        let resolved = subnet.resolve(self.now());
        let taken = |name: &str| {
            let message = format!("the name {name} is another's in subnet {}", subnet.name());
            Error::new(ErrorKind::Conflict, Code::NameTaken, message)
                .hint(Hint::ListNames(subnet.name().clone()))
        };
        if subnet.planned_name(&new.name).is_some() {
            return Err(taken(new.name.as_str()));
        }
        // Whose alias it is follows from the workload in this subnet: another subnet may have one that is called the same.
        let is_own = |name: &Name| {
            let mut here = subnet.local.workloads.iter();
            here.any(|w| w.name == *name && own.has(w))
        };
        let is_anothers = |wanted: &str| {
            let companions = subnet.local.companions.iter();
            let (mut shared, mut foreign) = (false, false);
            for (name, _) in companions.filter(|(_, with)| with.aliases.contains_key(wanted)) {
                let own = is_own(name);
                (shared, foreign) = (shared || own, foreign || !own);
            }
            let held = !shared && resolved.flat.contains_key(wanted);
            foreign || held || subnet.is_planned(wanted)
        };
        // The name that it would get: where nobody chose one, that is a free one.
        let name = match new.name_is_default {
            true => subnet.free_name(&self.state.me, &resolved, &new.name),
            false => new.name.clone(),
        };
        if is_anothers(name.as_str()) {
            return Err(taken(name.as_str()));
        }
        for alias in &new.beside.aliases {
            let alias = single_label(own, &subnet.relative(alias))?;
            if is_anothers(alias.as_str()) || subnet.planned_name(&alias).is_some() {
                return Err(taken(alias.as_str()));
            }
        }
        Ok(())
    }

    /// Whether a map may be made by who asks, where that is a user who may change nothing but its own.
    ///
    /// # Errors
    /// `E-PERMISSION` where the map leads to something else than a workload of the user's, `E-QUOTA` where the user has
    /// as many ports as it may; `E-NO-SUBNET` and its kin.
    pub(in crate::node) fn may_map(&self, text: &str, new: &NewMap) -> Result<(), Error> {
        let subnet = self.state.find(text)?;
        match new.own {
            Some(own) => self.check_own_map(own, subnet, new).map(drop),
            None => Ok(()),
        }
    }

    /// The user's workload that a map leads to, with which it goes.
    ///
    /// # Errors
    /// `E-PERMISSION` where the map leads to something else than a workload of the user's, `E-QUOTA` where the user has
    /// as many ports as it may.
    pub(super) fn check_own_map(
        &self,
        own: Own,
        subnet: &Subnet,
        new: &NewMap,
    ) -> Result<Name, Error> {
        let resolved = subnet.resolve(self.now());
        let named = |map: &Map| subnet.workload_of_target(&self.state.me, &resolved, &map.target);
        let mut here = subnet.local.workloads.iter();
        let to = match &new.workload {
            Some(name) => here.find(|w| w.name == *name),
            None => new.maps.first().and_then(named),
        };
        let Some(to) = to.filter(|w| own.has(w)) else {
            let message = format!("user {} may lead ports to its own workloads only", own.user);
            return Err(
                Error::new(ErrorKind::NotPermitted, Code::Permission, message)
                    .hint(Hint::ListWorkloads),
            );
        };
        let ports = |map: &Map| u32::from(map.ports.count());
        // One name may stand for a map of each family: its ports count once.
        let had: u32 = self
            .owned(own)
            .filter_map(|(subnet, w)| Some((subnet, subnet.local.companions.get(&w.name)?)))
            .flat_map(|(subnet, with)| {
                let all = subnet.local.maps.iter();
                let mut theirs: Vec<&Map> =
                    all.filter(|map| with.maps.contains(&map.name)).collect();
                theirs.sort_by(|a, b| a.name.cmp(&b.name));
                theirs.dedup_by(|a, b| a.name == b.name);
                theirs
            })
            .map(ports)
            .sum();
        let more = new.maps.first().map_or(0, ports);
        if had.saturating_add(more) > own.quota.saturating_mul(PORTS_PER_WORKLOAD) {
            return Err(own.exceeded("as many ports mapped"));
        }
        Ok(to.name.clone())
    }

    /// Names of the port maps that go with workloads of a user, each with its subnet's.
    pub fn maps_of_user(&self, user: u32) -> Vec<(Name, Name)> {
        let own = Own { user, quota: 0 };
        self.owned(own)
            .filter_map(|(subnet, w)| Some((subnet, subnet.local.companions.get(&w.name)?)))
            .flat_map(|(subnet, with)| {
                let named = |map: &Name| (subnet.name().clone(), map.clone());
                with.maps.iter().map(named).collect::<Vec<_>>()
            })
            .collect()
    }
}
