//! The workloads attached to this machine: their names, addresses and namespaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Added, say};
use crate::model::error::{Code, Error, Hint, Kind, Result};
use crate::model::host::NetnsRef;
use crate::model::id::Name;
use crate::model::ipam::free_addresses;
use crate::model::local::Map;
use crate::model::members::{Identity, Subnet, printable};
use crate::model::record::WorkloadEntry;
use crate::model::resolve::Resolved;
use crate::model::workload::{Kept, Target, Workload};

/// Names of workloads that are gone whose addresses are kept, in each subnet.
const MAX_KEPT: usize = 1024;

/// The prefixes of one family.
fn of_family(prefixes: &[IpNet], ipv6: bool) -> Vec<IpNet> {
    let is = |prefix: &&IpNet| matches!(prefix, IpNet::V6(_)) == ipv6;
    prefixes.iter().filter(is).copied().collect()
}

impl Subnet {
    /// Whether no workload here `but` that one has the namespace of this one, or is of the same container.
    pub(super) fn is_apart(&self, workload: &Workload, but: Option<&Name>) -> Result<()> {
        let in_it = |w: &&Workload| workload.netns.as_ref().is_some_and(|netns| w.is_in(netns));
        // All interfaces of a container are in one namespace.
        let same = |w: &&Workload| match &w.target {
            Target::Engine { .. } | Target::OfUser { .. } => w.target == workload.target,
            Target::Docker { id, .. } | Target::Podman { id, .. } => {
                workload.target.container() == Some(id)
            }
            Target::Tap { .. } => w.target.tap_link() == workload.target.tap_link(),
            Target::Netns(_) => false,
        };
        let mut all = self.local.workloads.iter().filter(|w| Some(&w.name) != but);
        let (what, other) = match (all.clone().find(in_it), all.find(same)) {
            (Some(other), _) => (
                format!("has the network namespace of {}, which", other.name),
                other,
            ),
            (None, Some(other)) => (
                format!(
                    "has the interface {} as {}, which",
                    other.inner_link, other.name
                ),
                other,
            ),
            (None, None) => return Ok(()),
        };
        let message = format!(
            "{} {what} is attached to subnet {} already",
            workload.target.text(),
            self.name()
        );
        if other.target.moves_links() {
            let message = format!("{message}, by a network of its engine's");
            return Err(Error::new(Kind::Conflict, Code::Attached, message));
        }
        Err(
            Error::new(Kind::Conflict, Code::Attached, message).hint(Hint::Detach {
                workload: other.name.clone(),
                subnet: self.name().clone(),
            }),
        )
    }

    /// Gives a workload without a namespace the one that its engine has made. Its name and addresses stay: the others hear
    /// nothing of it. Where the kernel refuses it, [`unplace`](Self::unplace) takes the namespace away again.
    ///
    /// # Errors
    /// `E-ATTACHED`, `E-NO-WORKLOAD`.
    pub fn place(
        &mut self,
        name: &Name,
        netns: NetnsRef,
        mac: Option<[u8; 6]>,
    ) -> Result<Workload> {
        let waits = |w: &&mut Workload| w.name == *name && w.netns.is_none();
        let gone = || {
            Error::new(
                Kind::NotFound,
                Code::NoWorkload,
                format!("no workload {name} waits here"),
            )
        };
        let workload = self
            .local
            .workloads
            .iter_mut()
            .find(waits)
            .ok_or_else(gone)?;
        let placed = Workload {
            netns: Some(netns),
            mac: mac.or(workload.mac),
            ..workload.clone()
        };
        self.is_apart(&placed, Some(name))?;
        self.local
            .workloads
            .iter_mut()
            .filter(|w| w.name == *name)
            .for_each(|w| *w = placed.clone());
        Ok(placed)
    }

    /// Takes the namespace of a workload away that [`place`](Self::place) gave it; `before` is what it was. Whether it still
    /// had that namespace.
    pub fn unplace(&mut self, before: &Workload, netns: &NetnsRef) -> bool {
        let is = |w: &&mut Workload| {
            (&w.name, w.since) == (&before.name, before.since) && w.netns.as_ref() == Some(netns)
        };
        match self.local.workloads.iter_mut().find(is) {
            Some(workload) => {
                *workload = before.clone();
                true
            }
            None => false,
        }
    }

    /// Attaches a workload: a free name and free addresses out of this node's leases. `workload` comes without
    /// addresses, or with those that it is to have and no others; `ips` are those that it is to have among others.
    ///
    /// # Errors
    /// `E-NAME-TAKEN`, `E-ATTACHED`, `E-ADDRESS-TAKEN`, `E-NOT-LEASED`, `E-BLOCK-FULL`.
    pub fn attach(
        &mut self,
        me: &Identity,
        mut workload: Workload,
        ips: impl IntoIterator<Item = IpAddr>,
        now: u64,
    ) -> Result<Workload> {
        let resolved = self.resolve(now);
        let mine = self.myself(me, &resolved)?;
        self.is_apart(&workload, None)?;
        if self.name_is_taken(me, &resolved, workload.name.as_str()) {
            let message = format!(
                "the name {} is taken in subnet {}",
                workload.name,
                self.name()
            );
            let error = Error::new(Kind::Conflict, Code::NameTaken, message);
            let (kind, target) = (
                workload.target.kind().to_owned(),
                workload.target.text().to_owned(),
            );
            return Err(match workload.target {
                // The engine chooses the name.
                Target::Engine { .. } | Target::OfUser { .. } => error,
                _ => error.hint(Hint::AttachNamed {
                    kind,
                    target,
                    subnet: self.name().clone(),
                }),
            });
        }
        let ips: Vec<IpAddr> = ips.into_iter().collect();
        let exactly = std::mem::take(&mut workload.addresses);
        workload.addresses = loop {
            let used = self.used(&resolved, &mine.leases);
            let found = if exactly.is_empty() {
                self.addresses_for(&workload.name, &mine.leases, &used, ips.iter().copied())
            } else {
                self.exactly(exactly.clone(), &mine.leases, &used)
            };
            match found {
                // Who is here goes before what its engine has no more.
                Err(full) if full.code == Code::BlockFull => {
                    if !self.end_oldest_removed(me, now)? {
                        return Err(full);
                    }
                }
                found => break found?,
            }
        };
        workload.since = now;
        self.local
            .unconfirmed
            .workloads
            .insert(workload.name.clone());
        self.local.workloads.push(workload.clone());
        self.publish_workloads(me, now)?;
        Ok(workload)
    }

    /// Those addresses and no others, where they can be had.
    fn exactly(
        &mut self,
        addresses: Vec<IpAddr>,
        leases: &[IpNet],
        used: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>> {
        let pools = self.records.pools();
        for address in &addresses {
            let family: Vec<IpNet> = of_family(leases, address.is_ipv6());
            free_addresses(&pools, &family, used, &[*address])?;
        }
        self.local
            .kept
            .retain(|k| !k.addresses.iter().any(|a| addresses.contains(a)));
        Ok(addresses)
    }

    /// An address of one family that a workload may have: the one that is wanted, or a free one outside `avoid`, and one
    /// that belongs to no other name while there are such.
    ///
    /// # Errors
    /// `E-ADDRESS-TAKEN`, `E-NOT-LEASED`, `E-BLOCK-FULL`, `E-NOT-MEMBER`.
    pub fn free_address(
        &self,
        me: &Identity,
        ipv6: bool,
        wanted: Option<IpAddr>,
        avoid: &BTreeSet<IpAddr>,
        now: u64,
    ) -> Result<IpAddr> {
        let resolved = self.resolve(now);
        let leases = of_family(&self.myself(me, &resolved)?.leases, ipv6);
        let held = resolved.members.values().flat_map(|m| &m.addresses);
        let attached = self.local.workloads.iter().flat_map(|w| &w.addresses);
        let used: BTreeSet<IpAddr> = held.chain(attached).chain(avoid).copied().collect();
        let pools = self.records.pools();
        let kept = self.local.kept.iter().flat_map(|k| &k.addresses).copied();
        let mut used = used;
        if wanted.is_none() {
            used.extend(self.planned_addresses(None));
        }
        let apart = used.iter().copied().chain(kept).collect();
        let mut found = match wanted {
            None => free_addresses(&pools, &leases, &apart, &[]),
            Some(_) => Ok(vec![]),
        }
        .unwrap_or_default();
        if found.is_empty() {
            found = free_addresses(&pools, &leases, &used, wanted.as_slice())?;
        }
        found.pop().ok_or_else(|| {
            Error::new(Kind::Conflict, Code::BlockFull, "there is no free address")
                .hint(Hint::AddLease)
        })
    }

    /// Changes what this machine alone knows of a workload: the others hear nothing of it.
    pub fn alter(&mut self, name: &Name, change: impl FnOnce(&mut Workload)) {
        if let Some(workload) = self.local.workloads.iter_mut().find(|w| w.name == *name) {
            change(workload);
        }
    }

    /// Gives a workload another name, which is free.
    ///
    /// # Errors
    /// As [`Subnet::attach`].
    pub fn rename_workload(
        &mut self,
        me: &Identity,
        from: &Name,
        to: &Name,
        now: u64,
    ) -> Result<()> {
        self.alter(from, |workload| workload.name = to.clone());
        let local = &mut self.local;
        if let Some(health) = local.health.remove(from) {
            local.health.insert(to.clone(), health);
        }
        if let Some(followed) = local.followed.remove(from) {
            local.followed.insert(to.clone(), followed);
        }
        if self.local.unconfirmed.workloads.remove(from) {
            self.local.unconfirmed.workloads.insert(to.clone());
        }
        if let Some(companions) = self.local.companions.remove(from) {
            let theirs = |map: &&mut Map| companions.maps.contains(&map.name);
            for map in self.local.maps.iter_mut().filter(theirs) {
                if let Some(member) = map.target.strip_prefix(&format!("{from}.")) {
                    map.target = format!("{to}.{member}");
                }
            }
            self.local.companions.insert(to.clone(), companions);
        }
        // The name that it had for want of a better one keeps no address.
        self.local.kept.retain(|k| k.name != *to);
        self.publish_workloads(me, now)
    }

    /// Addresses of these leases that workloads and members have.
    pub(super) fn used(&self, resolved: &Resolved, leases: &[IpNet]) -> BTreeSet<IpAddr> {
        let own = self.local.workloads.iter().flat_map(|w| &w.addresses);
        let members = resolved.members.values().flat_map(|m| &m.addresses);
        // What others hold elsewhere is none of those that are looked for.
        let near = |a: &&IpAddr| leases.iter().any(|l| l.contains(*a));
        own.chain(members.filter(near)).copied().collect()
    }

    /// The addresses that are planned for the name or that it had before, else free ones that belong to no other name: until
    /// no other are left, then the name that is gone for longest gives its up. What is planned for another stays its own.
    pub(super) fn addresses_for(
        &mut self,
        name: &Name,
        leases: &[IpNet],
        used: &BTreeSet<IpAddr>,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Vec<IpAddr>> {
        let pools = self.records.pools();
        let mut wanted: Vec<IpAddr> = ips.into_iter().collect();
        let used: BTreeSet<IpAddr> = used | &self.planned_addresses(Some(name));
        let used = &used;
        let ours = |a: &IpAddr| {
            pools.usable(*a) && !used.contains(a) && leases.iter().any(|l| l.contains(a))
        };
        let planned = self.plan_of(name).into_iter().flat_map(|p| &p.addresses);
        let kept = self.local.kept.iter().filter(|k| k.name == *name);
        for address in planned.chain(kept.flat_map(|k| &k.addresses)) {
            if ours(address) && !wanted.iter().any(|w| w.is_ipv4() == address.is_ipv4()) {
                wanted.push(*address);
            }
        }
        // What could be had if nothing was kept: of a family that is used up no address is missed.
        let families = free_addresses(&pools, leases, used, &wanted)?.len();
        self.local
            .kept
            .retain(|k| k.name != *name && !k.addresses.iter().any(|a| wanted.contains(a)));
        loop {
            let kept = self
                .local
                .kept
                .iter()
                .flat_map(|k| k.addresses.iter().copied());
            let avoid = used.iter().copied().chain(kept).collect();
            match free_addresses(&pools, leases, &avoid, &wanted) {
                Ok(found) if found.len() >= families => return Ok(found),
                other if self.local.kept.is_empty() => return other,
                _ => drop(self.local.kept.remove(0)),
            }
        }
    }

    pub(super) fn publish_workloads(&mut self, me: &Identity, now: u64) -> Result<()> {
        let entries = self.workload_entries();
        self.publish(me, now, |d| d.workloads = entries)
    }

    /// The workloads attached here, as this node's announcement says them, and those to come. One that is away, unhealthy or
    /// to come has its name and no address: the name answers nothing, and an admin who registered it keeps it for this node.
    pub(in crate::model) fn workload_entries(&self) -> Vec<WorkloadEntry> {
        let entry = |w: &Workload| WorkloadEntry {
            name: w.name.clone(),
            addresses: self.told_addresses(w),
        };
        let here = self.local.workloads.iter().map(entry);
        let to_come = |name: &&Name| !self.local.workloads.iter().any(|w| w.name == **name);
        let planned = self.planned().map(|(name, _)| name).filter(to_come);
        let planned = planned.map(|name| WorkloadEntry {
            name: name.clone(),
            addresses: vec![],
        });
        here.chain(planned).collect()
    }

    /// Detaches a workload; its name is free again, its addresses are kept for when that comes back.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`.
    pub fn detach(&mut self, me: &Identity, name: &str, now: u64) -> Result<Workload> {
        let place = self
            .local
            .workloads
            .iter()
            .position(|w| w.name.as_str().eq_ignore_ascii_case(name));
        let Some(place) = place else {
            return Err(Error::new(
                Kind::NotFound,
                Code::NoWorkload,
                format!("no workload {} here", printable(name)),
            )
            .hint(Hint::ListWorkloads));
        };
        let gone = self.local.workloads.remove(place);
        self.local.followed.remove(&gone.name);
        self.local.health.remove(&gone.name);
        self.confirm(&gone.name, Added::Workload);
        let due = self.part_with(&gone.name);
        self.local.kept.retain(|k| k.name != gone.name);
        self.local.kept.push(Kept {
            name: gone.name.clone(),
            addresses: gone.addresses.clone(),
        });
        let surplus = self.local.kept.len().saturating_sub(MAX_KEPT);
        self.local.kept.drain(..surplus);
        let entries = self.workload_entries();
        self.publish(me, now, |d| {
            d.workloads = entries;
            say(&due, d);
        })?;
        Ok(gone)
    }
}
