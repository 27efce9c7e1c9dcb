//! Workloads to come, as files describe them: names and addresses that are kept for them, and port maps that wait for them.
//!
//! What an import does to a subnet is done to a copy and saved whole, or dropped whole. In between the copy is without what
//! the file said before ([`Subnet::withdraw`]), so a file is not in its own way.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::error::{Code, Error, Hint, Kind, Result};
use crate::model::id::Name;
use crate::model::import::{Contents, Import, Planned, Wanted, WantedMap, of_line};
use crate::model::local::Map;
use crate::model::members::{Identity, Subnet};
use crate::model::workload::{DOCKER, Workload};

/// Workloads of one file at most.
pub const MAX_PLANNED: usize = 512;

fn conflict(code: Code, message: String) -> Error {
    Error::new(Kind::Conflict, code, message)
}

/// Has a refusal name the line of the file that is to blame, where that is known.
fn blamed(wanted: &Wanted, error: Error) -> Error {
    Error {
        message: of_line(wanted.line, &error.message),
        ..error
    }
}

impl Subnet {
    /// The workloads to come, of all files.
    pub fn planned(&self) -> impl Iterator<Item = (&Name, &Planned)> {
        self.local.imports.values().flat_map(|i| &i.now.planned)
    }

    /// Addresses that are kept for workloads to come, except for the one of that name.
    pub(super) fn planned_addresses(&self, but: Option<&Name>) -> BTreeSet<IpAddr> {
        let others = self.planned().filter(|(name, _)| Some(*name) != but);
        others.flat_map(|(_, p)| &p.addresses).copied().collect()
    }

    /// What is planned for the workload of that name.
    pub fn plan_of(&self, name: &Name) -> Option<&Planned> {
        self.planned().find(|(n, _)| *n == name).map(|(_, p)| p)
    }

    /// The name that a file gave the workload of the container that is called so, while no other workload has it.
    pub fn planned_name(&self, container: &Name) -> Option<&Name> {
        let is_here = |name: &Name| self.local.workloads.iter().any(|w| w.name == *name);
        let mut all = self.planned();
        let found = all.find(|(name, p)| *name == container || p.containers.contains(container));
        found.map(|(name, _)| name).filter(|name| !is_here(name))
    }

    /// Whether a file keeps that name for a workload to come, as its own or as a further one.
    pub fn is_planned(&self, name: &str) -> bool {
        let says = |p: &Planned| p.aliases.iter().any(|alias| self.relative(alias) == name);
        self.planned()
            .any(|(planned, p)| planned.as_str() == name || says(p))
    }

    /// What a workload that is called `now` is to be called, by the name of its container: a file may have given that
    /// another name.
    pub fn name_for<'a>(&'a self, now: &'a Name, container: &'a Name) -> &'a Name {
        match self.plan_of(now) {
            Some(plan) if plan.containers.contains(container) => now,
            _ => self.planned_name(container).unwrap_or(container),
        }
    }

    /// Says the further names that are planned for a workload which is here now. Gives those that cannot be said, each with
    /// why not.
    pub fn say_planned(
        &mut self,
        me: &Identity,
        workload: &Workload,
        now: u64,
    ) -> Vec<(String, Error)> {
        let plan = self.plan_of(&workload.name).cloned();
        let mut refused = Vec::new();
        for alias in plan.into_iter().flat_map(|plan| plan.aliases) {
            if let Err(why) = self.say_alias(me, workload, &alias, now) {
                refused.push((alias, why));
            }
        }
        refused
    }

    /// Whether Docker publishes the ports of a map by itself now: a file said so, and the workload it leads to is a
    /// container of Docker's here.
    pub fn is_published_by_engine(&self, map: &Map) -> bool {
        let mut files = self.local.imports.values();
        let said = files.any(|i| i.now.by_engine.contains(&map.name) && i.now.maps.contains(map));
        said && {
            let name = map.target.split('.').next().unwrap_or_default();
            let mut here = self.local.workloads.iter();
            here.any(|w| w.name.as_str() == name && w.target.kind() == DOCKER)
        }
    }

    /// Name of the map that a file made already in the place of these, which are to lead to that target.
    pub fn imported_map(&self, maps: &[Map], target: &str) -> Option<Name> {
        let first = maps.first()?;
        let same = |made: &&Map| {
            (made.proto, made.listen, made.ports, made.target_port)
                == (first.proto, first.listen, first.ports, first.target_port)
                && made.target == target
                && self.local.maps.contains(made)
        };
        let mut all = self.local.imports.values().flat_map(|i| &i.now.maps);
        all.find(same).map(|made| made.name.clone())
    }

    /// Takes out what a file made here, and gives it. Leases stay: [`plan`](Self::plan) and [`revert`](Self::revert) see to
    /// them.
    pub fn withdraw(&mut self, source: &str) -> Contents {
        let Some(import) = self.local.imports.get_mut(source) else {
            return Contents::default();
        };
        let gone = std::mem::take(&mut import.now);
        self.map_remove(|map| gone.maps.contains(map));
        gone
    }

    /// Makes what a file wants of a subnet that [`withdraw`](Self::withdraw) took `former` out of. `others` are the maps of
    /// every other subnet here. Whether anything is another now.
    ///
    /// # Errors
    /// `E-NAME-TAKEN`, `E-ADDRESS-TAKEN`, `E-NOT-LEASED`, `E-BLOCK-FULL`, `E-PORT-TAKEN`, `E-TOO-MANY-NAMES`, `E-IMPORT`;
    /// those of [`Subnet::lease`] for an address outside this node's leases.
    pub fn plan(
        &mut self,
        me: &Identity,
        source: &str,
        (former, wanted): (Contents, &[Wanted]),
        others: &[Map],
        now: u64,
    ) -> Result<bool> {
        if wanted.len() > MAX_PLANNED {
            let message = format!("one file has at most {MAX_PLANNED} workloads");
            return Err(conflict(Code::Import, message));
        }
        let mut made = Contents {
            leases: self.lease_for(me, wanted, &former, now)?,
            ..Contents::default()
        };
        // What is asked for by name goes before what is chosen.
        let mut order: Vec<&Wanted> = wanted.iter().collect();
        order.sort_by_key(|w| w.planned.addresses.is_empty());
        for wanted in order {
            let planned = self.planned_as(me, wanted, &former, &made, now);
            let planned = planned.map_err(|error| blamed(wanted, error))?;
            made.planned.insert(wanted.name.clone(), planned);
        }
        self.release(me, &former.leases, &made.leases, now)?;
        self.imported(source).now = made.clone();
        let resolved = self.resolve(now);
        let member = self.myself(me, &resolved)?.name.clone();
        // In an order that is not the file's: what is moved about in that is the same.
        let mut order: Vec<&Wanted> = wanted.iter().collect();
        order.sort_by(|a, b| a.name.cmp(&b.name));
        for w in order {
            let target = format!("{}.{member}", w.name);
            let mut maps: Vec<&WantedMap> = w.maps.iter().collect();
            maps.sort_by_key(|map| (map.ports, map.listen, map.target_port));
            for map in maps {
                let name = self.import_map(w, map, &target, others);
                let name = name.map_err(|error| blamed(w, error))?;
                if map.by_engine {
                    made.by_engine.insert(name.clone());
                }
                let new = self.local.maps.iter().filter(|m| m.name == name);
                made.maps.extend(new.cloned());
            }
        }
        let changed = made != former;
        if made.is_empty() && former.is_empty() {
            self.local.imports.remove(source);
        } else {
            let import = self.imported(source);
            import.now = made;
            import.before = Some(former);
        }
        self.publish_workloads(me, now)?;
        Ok(changed)
    }

    /// Brings back what the subnet had by a file before its last import. `others` are the maps of every other subnet here.
    ///
    /// # Errors
    /// `E-IMPORT` where something that is in the way was changed since, by its name; `E-PORT-TAKEN`; those of
    /// [`Subnet::lease`] and [`Subnet::unlease`].
    pub fn revert(
        &mut self,
        me: &Identity,
        source: &str,
        former: &Contents,
        others: &[Map],
        now: u64,
    ) -> Result<()> {
        let Some(before) = self.imported(source).before.take() else {
            return Ok(());
        };
        let fresh = before.leases.iter().filter(|l| !former.leases.contains(l));
        let entries: Vec<_> = fresh.map(|l| (*l, me.peer)).collect();
        if !entries.is_empty() {
            self.lease(me, &entries, now)?;
        }
        for (name, planned) in &before.planned {
            self.is_name_free(me, name, now)?;
            self.are_free(name, &planned.addresses)?;
        }
        self.release(me, &former.leases, &before.leases, now)?;
        for map in &before.maps {
            self.has_room(map, others)?;
            self.local.maps.push(map.clone());
        }
        if before.is_empty() {
            self.local.imports.remove(source);
        } else {
            self.imported(source).now = before;
        }
        self.publish_workloads(me, now)
    }

    /// Whether what a file made is still as it made it.
    ///
    /// # Errors
    /// `E-IMPORT`, with the name of a map that was removed or made anew since.
    pub fn is_untouched(&self, source: &str) -> Result<()> {
        let Some(import) = self.local.imports.get(source) else {
            return Ok(());
        };
        let changed = |map: &&Map| !self.local.maps.contains(map);
        match import.now.maps.iter().find(changed) {
            Some(map) => {
                let message = format!(
                    "map {} of subnet {} was changed since the import: import the file again, and then roll back",
                    map.name,
                    self.name()
                );
                Err(conflict(Code::Import, message).hint(Hint::ListMaps))
            }
            None => Ok(()),
        }
    }

    /// Whether all that a file made is still here: none of its maps and leases was taken away by hand.
    pub fn is_whole(&self, me: &Identity, source: &str, now: u64) -> bool {
        let Some(import) = self.local.imports.get(source) else {
            return true;
        };
        let resolved = self.resolve(now);
        let mine = self.myself(me, &resolved);
        let held = mine.map(|m| m.leases.clone()).unwrap_or_default();
        import.now.leases.iter().all(|l| held.contains(l)) && self.is_untouched(source).is_ok()
    }

    fn imported(&mut self, source: &str) -> &mut Import {
        self.local.imports.entry(source.to_owned()).or_default()
    }

    /// Leases addresses that a file names and this node does not hold; gives the prefixes of such.
    fn lease_for(
        &mut self,
        me: &Identity,
        wanted: &[Wanted],
        former: &Contents,
        now: u64,
    ) -> Result<Vec<IpNet>> {
        let resolved = self.resolve(now);
        let held = &self.myself(me, &resolved)?.leases;
        let pools = self.records.pools();
        let named = wanted.iter().flat_map(|w| &w.planned.addresses);
        let mut leases = Vec::new();
        let mut fresh = Vec::new();
        for address in named.filter(|a| pools.usable(**a)) {
            let prefix = IpNet::from(*address);
            if former.leases.contains(&prefix) {
                leases.push(prefix);
            }
            if !held.iter().any(|lease| lease.contains(address)) {
                leases.push(prefix);
                fresh.push((prefix, me.peer));
            }
        }
        if !fresh.is_empty() {
            self.lease(me, &fresh, now)?;
        }
        leases.sort();
        leases.dedup();
        Ok(leases)
    }

    /// Gives leases back that are needed no more.
    fn release(&mut self, me: &Identity, former: &[IpNet], kept: &[IpNet], now: u64) -> Result<()> {
        for prefix in former.iter().filter(|prefix| !kept.contains(prefix)) {
            let inside = |a: &IpAddr| prefix.contains(a);
            let mut here = self.local.workloads.iter();
            if let Some(w) = here.find(|w| w.addresses.iter().any(inside)) {
                let message = format!(
                    "workload {} has an address of {prefix}, which would be given back: stop it first",
                    w.name
                );
                return Err(conflict(Code::Import, message).hint(Hint::ListWorkloads));
            }
            // Who gave it back by hand has done it already.
            let resolved = self.resolve(now);
            let is_held = self.myself(me, &resolved)?.leases.contains(prefix);
            if is_held {
                self.unlease(me, *prefix, Some(me.peer), now)?;
            }
        }
        Ok(())
    }

    /// Refuses a name that another member, another file or a record of this subnet has.
    fn is_name_free(&self, me: &Identity, name: &Name, now: u64) -> Result<()> {
        let resolved = self.resolve(now);
        let other = |(source, _): &(&String, &Import)| (*source).clone();
        let planned = self.local.imports.iter();
        let mut planned = planned.filter(|(_, i)| i.now.planned.contains_key(name));
        if let Some(source) = planned.next().as_ref().map(other) {
            let message = format!("the name {name} is planned by {source} already");
            return Err(conflict(Code::NameTaken, message));
        }
        if self.is_name_of_another(me, &resolved, name.as_str()) {
            let message = format!("the name {name} is taken in subnet {}", self.name());
            return Err(
                conflict(Code::NameTaken, message).hint(Hint::ListNames(self.name().clone()))
            );
        }
        Ok(())
    }

    /// Refuses addresses that another workload has or is to have.
    fn are_free(&self, name: &Name, addresses: &[IpAddr]) -> Result<()> {
        let planned = self.planned_addresses(Some(name));
        for address in addresses {
            let mut others = self.local.workloads.iter().filter(|w| w.name != *name);
            let taken = others.find(|w| w.addresses.contains(address));
            let by = match taken {
                Some(other) => format!("workload {} has {address}", other.name),
                None if planned.contains(address) => format!("another file keeps {address}"),
                None => continue,
            };
            return Err(
                conflict(Code::Import, format!("{by}, which is kept for {name}"))
                    .hint(Hint::ListWorkloads),
            );
        }
        Ok(())
    }

    /// The plan for one workload: its name is free, and so are its addresses.
    fn planned_as(
        &mut self,
        me: &Identity,
        wanted: &Wanted,
        former: &Contents,
        made: &Contents,
        now: u64,
    ) -> Result<Planned> {
        let name = &wanted.name;
        self.is_name_free(me, name, now)?;
        let resolved = self.resolve(now);
        let leases = self.myself(me, &resolved)?.leases.clone();
        let here = self.local.workloads.iter().find(|w| w.name == *name);
        let own: Vec<IpAddr> = here.map(|w| w.addresses.clone()).unwrap_or_default();
        let mut used = self.used(&resolved, &leases);
        used.retain(|address| !own.contains(address));
        used.extend(made.planned.values().flat_map(|p| &p.addresses));
        let mut ips = wanted.planned.addresses.clone();
        // Those that the file kept for it before, whatever its engine gave it since; and those it has already.
        let before = former.planned.get(name).map(|p| p.addresses.clone());
        for address in before.unwrap_or_default().into_iter().chain(own) {
            let is_ours = leases.iter().any(|l| l.contains(&address)) && !used.contains(&address);
            if is_ours && !ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4()) {
                ips.push(address);
            }
        }
        // What is kept for names that are gone stays kept, should this be taken back.
        let kept = self.local.kept.clone();
        let addresses = self.addresses_for(name, &leases, &used, ips);
        self.local.kept = kept;
        let mut addresses = addresses?;
        let named = &wanted.planned.addresses;
        addresses.retain(|a| a.is_ipv4() || !wanted.ipv4_only || named.contains(a));
        Ok(Planned {
            addresses,
            ..wanted.planned.clone()
        })
    }

    /// Refuses a map whose ports or whose name another has.
    fn has_room(&self, map: &Map, others: &[Map]) -> Result<()> {
        self.is_port_free(map, others)?;
        self.is_port_free(map, &self.local.maps)?;
        if self
            .local
            .maps
            .iter()
            .any(|m| m.name == map.name && !m.is_other_half(map))
        {
            let message = format!("a map named {} exists in subnet {}", map.name, self.name());
            return Err(conflict(Code::NameTaken, message).hint(Hint::ListMaps));
        }
        Ok(())
    }

    /// Makes the map of a workload that need not be here; its name.
    fn import_map(
        &mut self,
        workload: &Wanted,
        wanted: &WantedMap,
        target: &str,
        others: &[Map],
    ) -> Result<Name> {
        let every = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let plan = self.plan_of(&workload.name).cloned();
        let has = |like: IpAddr| {
            let mut addresses = plan.iter().flat_map(|p| &p.addresses);
            addresses.any(|a| a.is_ipv4() == like.is_ipv4())
        };
        let default = Map::default_name(wanted.proto, wanted.listen, wanted.ports)?;
        let name = default.free(|name| self.local.maps.iter().any(|m| m.name == *name));
        let named = wanted.listen.as_slice();
        let listens = if named.is_empty() { &every[..] } else { named };
        for listen in listens.iter().filter(|listen| has(**listen)) {
            let map = Map {
                name: name.clone(),
                proto: wanted.proto,
                listen: *listen,
                ports: wanted.ports,
                target: target.to_owned(),
                target_port: wanted.target_port,
                allow: vec![],
            };
            self.has_room(&map, others)?;
            self.local.maps.push(map);
        }
        if !self.local.maps.iter().any(|m| m.name == name) {
            let family = if named.iter().any(IpAddr::is_ipv6) {
                "IPv6"
            } else {
                "IPv4"
            };
            let (name, subnet) = (&workload.name, self.name());
            let message = format!("{name} has no {family} address in subnet {subnet}");
            return Err(Error::new(Kind::NotFound, Code::NoTarget, message));
        }
        Ok(name)
    }
}
