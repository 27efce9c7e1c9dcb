//! What each subnet's sockets serve, derived from the view.
//!
//! Pure: keeps the indexes of zones that did not change, and remembers every zone that was ever ours.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::question::{Owned, Served};
use super::zone::{ZoneIndex, absolute};
use crate::model::id::SubnetId;
use crate::model::view::{SubnetView, View};

/// Origins and prefixes remembered; far more than a machine has subnets.
const REMEMBERED: usize = 1024;

/// The zones of one view, ready to be served.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    indexes: BTreeMap<SubnetId, Arc<ZoneIndex>>,
    owned: Arc<Owned>,
}

impl Catalog {
    /// Takes over `view` and gives back what each subnet serves; `forwards` says whether there are resolvers outside.
    ///
    /// Origins of subnets that are down or left stay remembered for the life of the process: a question for such a name
    /// must not start to leave the machine because the subnet went away for a moment.
    pub(super) fn update(&mut self, view: &View, forwards: bool) -> BTreeMap<SubnetId, Served> {
        self.indexes.retain(|id, _| view.subnets.contains_key(id));
        let mut owned = Owned { origins: self.owned.origins.clone(), prefixes: Vec::new() };
        for (id, subnet) in &view.subnets {
            let known = self.indexes.get(id).is_some_and(|i| Arc::ptr_eq(i.zone(), &subnet.zone));
            if !known {
                match ZoneIndex::new(Arc::clone(&subnet.zone)) {
                    Some(index) => self.indexes.insert(*id, Arc::new(index)),
                    None => self.indexes.remove(id),
                };
            }
            if let Some(origin) = absolute(&subnet.zone.origin)
                && !owned.origins.contains(&origin)
            {
                owned.origins.push(origin);
            }
            owned.prefixes.extend(prefixes(subnet));
        }
        let excess = owned.origins.len().saturating_sub(REMEMBERED);
        owned.origins.drain(..excess);
        if *self.owned != owned {
            self.owned = Arc::new(owned);
        }
        view.subnets
            .values()
            .filter_map(|subnet| {
                let index = Arc::clone(self.indexes.get(&subnet.id)?);
                let served = Served {
                    index,
                    members: prefixes(subnet),
                    local: local(view, subnet.id),
                    owned: Arc::clone(&self.owned),
                    forwards,
                };
                Some((subnet.id, served))
            })
            .collect()
    }
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

/// Addresses of this node: never asked as resolvers, and local as askers.
pub(super) fn own_addresses(view: &View) -> HashSet<IpAddr> {
    view.subnets.values().flat_map(|s| s.addresses.iter().copied()).collect()
}

/// Who is local at the sockets of `subnet`: this node, and its workloads there. Workloads of its other subnets are not:
/// subnets do not see each other's names.
fn local(view: &View, subnet: SubnetId) -> HashSet<IpAddr> {
    let workloads = view.host.workloads.iter().filter(|w| w.subnet == subnet);
    let mut local = own_addresses(view);
    local.extend(workloads.flat_map(|w| w.addresses.iter().copied()));
    local
}
