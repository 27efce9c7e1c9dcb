//! What each subnet's sockets serve, derived from the view.
//!
//! Pure: keeps the indexes of zones that did not change, and nothing of a subnet that is not in the view any more. Its names
//! are names like any other from then on; who leaves a subnet is rid of what its founder called things.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name as DnsName;

use super::question::{Owned, Reach, Served};
use super::zone::{ZoneIndex, absolute};
use crate::model::host::WorkloadConfig;
use crate::model::id::SubnetId;
use crate::model::view::{SubnetView, View};
use crate::model::zone::RecordData;

/// The zones of one view, ready to be served.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    indexes: BTreeMap<SubnetId, Arc<ZoneIndex>>,
}

impl Catalog {
    /// Takes over `view` and gives back what each subnet serves; `forwards` says whether there are resolvers outside.
    pub(super) fn update(&mut self, view: &View, forwards: bool) -> BTreeMap<SubnetId, Served> {
        self.indexes.retain(|id, _| view.subnets.contains_key(id));
        for (id, subnet) in &view.subnets {
            let known = self
                .indexes
                .get(id)
                .is_some_and(|i| Arc::ptr_eq(i.zone(), &subnet.zone));
            if !known {
                match ZoneIndex::new(Arc::clone(&subnet.zone)) {
                    Some(index) => self.indexes.insert(*id, Arc::new(index)),
                    None => self.indexes.remove(id),
                };
            }
        }
        let all = Arc::new(self.reach(view, &view.subnets.keys().copied().collect()));
        let mut workloads = self.workloads(view);
        view.subnets
            .values()
            .filter_map(|subnet| {
                let served = Served {
                    index: Arc::clone(self.indexes.get(&subnet.id)?),
                    members: prefixes(subnet),
                    machine: own_addresses(view),
                    all: Arc::clone(&all),
                    workloads: workloads.remove(&subnet.id).unwrap_or_default(),
                    forwards,
                };
                Some((subnet.id, served))
            })
            .collect()
    }

    /// What those are told who are in all of these subnets.
    fn reach(&self, view: &View, subnets: &BTreeSet<SubnetId>) -> Reach {
        Reach {
            zones: subnets
                .iter()
                .filter_map(|id| self.indexes.get(id).cloned())
                .collect(),
            owned: owned(subnets.iter().filter_map(|id| view.subnets.get(id))),
        }
    }

    /// This node's workloads by subnet. One network namespace that is in several is one asker, by whichever of its addresses
    /// it asks; those that are in other subnets only are foreign: subnets do not see each other's names.
    fn workloads(&self, view: &View) -> BTreeMap<SubnetId, HashMap<IpAddr, Arc<Reach>>> {
        let mut askers: BTreeMap<_, Vec<&WorkloadConfig>> = BTreeMap::new();
        for workload in &view.host.workloads {
            // One that waits for its namespace is alone.
            let place = match &workload.netns {
                Some(netns) => Ok((netns.device, netns.inode, netns.cookie)),
                None => Err(workload.host_link.as_str()),
            };
            askers.entry(place).or_default().push(workload);
        }
        let mut reaches: BTreeMap<BTreeSet<SubnetId>, Arc<Reach>> = BTreeMap::new();
        let mut found: BTreeMap<SubnetId, HashMap<IpAddr, Arc<Reach>>> = BTreeMap::new();
        for asker in askers.values() {
            let subnets: BTreeSet<SubnetId> = asker.iter().map(|w| w.subnet).collect();
            let reach = reaches
                .entry(subnets.clone())
                .or_insert_with_key(|subnets| Arc::new(self.reach(view, subnets)));
            for id in subnets {
                let addresses = asker.iter().flat_map(|w| &w.addresses);
                found
                    .entry(id)
                    .or_default()
                    .extend(addresses.map(|a| (*a, Arc::clone(reach))));
            }
        }
        found
    }
}

/// What belongs to those who are in all of these subnets.
fn owned<'a>(subnets: impl IntoIterator<Item = &'a Arc<SubnetView>>) -> Owned {
    let mut owned = Owned::default();
    for subnet in subnets {
        owned.origins.extend(absolute(&subnet.zone.origin));
        owned.prefixes.extend(prefixes(subnet));
    }
    owned
}

/// Every prefix of a subnet: its own and those of its reverse zones.
fn prefixes(subnet: &SubnetView) -> Vec<ipnet::IpNet> {
    let mut all = subnet.zone.prefixes.clone();
    all.extend(subnet.cidr4.map(ipnet::IpNet::V4));
    all.extend(subnet.cidr6.map(ipnet::IpNet::V6));
    all.sort();
    all.dedup();
    all
}

/// Whether a name without a domain can only be meant below this subnet's: no name outside ends with a label of `_`, and
/// what a member is called is its own.
pub(super) fn is_within(subnet: &SubnetView, asked: &DnsName) -> bool {
    let last = asked.iter().next_back().unwrap_or_default();
    let last = String::from_utf8_lossy(last).to_ascii_lowercase();
    let full = format!("{last}.{}", subnet.zone.origin);
    // Others than a member may not give its address that name: what somebody added makes nobody a member.
    let is_machine = |a: &IpAddr| {
        (subnet.hosts.contains(a) || subnet.addresses.contains(a))
            && subnet.zone.pointer(*a) == Some(full.as_str())
    };
    let mut entries = subnet.zone.entries(&last).iter();
    last.starts_with('_')
        || entries.any(|e| matches!(&e.data, RecordData::Address(a) if is_machine(a)))
}

/// Addresses of this node: never asked as resolvers, and as askers the machine itself.
pub(super) fn own_addresses(view: &View) -> HashSet<IpAddr> {
    view.subnets
        .values()
        .flat_map(|s| s.addresses.iter().copied())
        .collect()
}
