//! Which part of what is wanted a failure keeps from being: a command fails by its own part alone.

use std::collections::BTreeSet;
use std::path::Path;

use super::{
    Change, HostConfig, MapConfig, Namespace, Proto, ResolvConf, WorkloadConfig, inner_table,
};
use crate::model::id::{Name, SubnetId};

/// A part of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What every other part stands on: the ruleset, the rules that lead into our routing table, switches of every link.
    Machine,
    /// The TUN of a subnet, with its addresses, routes and policy.
    Subnet(SubnetId),
    /// A workload's link, with its routes, what is entered in its namespace and its resolver file.
    Workload(SubnetId, Name),
    /// The port maps of one name.
    Map(SubnetId, Name),
    /// What is not wanted any more and has to go.
    Former,
}

impl From<&WorkloadConfig> for Part {
    fn from(workload: &WorkloadConfig) -> Part {
        Part::Workload(workload.subnet, workload.name.clone())
    }
}

impl From<&MapConfig> for Part {
    fn from(map: &MapConfig) -> Part {
        Part::Map(map.subnet, map.name.clone())
    }
}

impl HostConfig {
    /// Whether both want the same but for port maps, which no link, address, route or rule depends on.
    pub fn is_same_but_for_maps(&self, other: &HostConfig) -> bool {
        let HostConfig {
            instance,
            tuns,
            workloads,
            maps: _,
            underlay_ports,
            resting,
            // It is seen, and not wanted.
            connected: _,
        } = self;
        *instance == other.instance
            && *tuns == other.tuns
            && *workloads == other.workloads
            && *resting == other.resting
            && *underlay_ports == other.underlay_ports
    }

    /// The parts that `change` is made for: none where a workload that is not wanted any more left something in its
    /// namespace.
    pub fn parts_of(&self, change: &Change) -> BTreeSet<Part> {
        let ns = change.namespace();
        match change {
            Change::OpenTun(tun) => [Part::Subnet(tun.subnet)].into(),
            Change::CreateVeth(workload) | Change::CreateTap(workload) => {
                [Part::from(&**workload)].into()
            }
            Change::Conflict { link, .. }
            | Change::CloseTun { link, .. }
            | Change::RestLink { link, .. }
            | Change::SetOwner { link, .. }
            | Change::DeleteLink { link, .. }
            | Change::Rename { to: link, .. }
            | Change::SetLink { link, .. }
            | Change::AddAddress { link, .. }
            | Change::DelAddress { link, .. }
            | Change::SetNeighbour { link, .. }
            | Change::DelNeighbour { link, .. } => self.parts_of_link(ns, link),
            Change::SetRoute { route, .. } | Change::DelRoute { route, .. } => {
                self.parts_of_link(ns, &route.link)
            }
            Change::AddRule { rule, .. } | Change::DelRule { rule, .. } => {
                self.parts_inside(ns, |w| inner_table(&w.inner_link) == rule.table)
            }
            Change::SetSysctl { key, .. } => match key.split('/').nth(3) {
                Some(link) if self.has_link(ns, link) => self.parts_of_link(ns, link),
                _ => self.parts_inside(ns, |_| true),
            },
            Change::WriteResolver { path, .. } => self.parts_of_file(path),
            Change::RestoreResolver { .. }
            | Change::RestoreSysctl { .. }
            | Change::ForgetSysctl { .. } => [Part::Former].into(),
        }
    }

    /// The maps that listen there.
    pub fn parts_of_port(
        &self,
        proto: Proto,
        listen: std::net::IpAddr,
        port: u16,
    ) -> BTreeSet<Part> {
        let here = |map: &&MapConfig| (map.proto, map.listen, map.port) == (proto, listen, port);
        self.maps.iter().filter(here).map(Part::from).collect()
    }

    fn has_link(&self, ns: &Namespace, link: &str) -> bool {
        match ns {
            Namespace::Host => {
                self.tuns.iter().any(|tun| tun.name == link)
                    || self.workloads.iter().any(|w| w.host_link == link)
            }
            Namespace::Netns(_) => !self.parts_inside(ns, |w| w.inner_link == link).is_empty(),
        }
    }

    fn parts_of_link(&self, ns: &Namespace, link: &str) -> BTreeSet<Part> {
        if *ns != Namespace::Host {
            return self.parts_inside(ns, |w| w.inner_link == link);
        }
        let tuns = self.tuns.iter().filter(|tun| tun.name == link);
        let workloads = self.workloads.iter().filter(|w| w.host_link == link);
        let wanted: BTreeSet<Part> = tuns
            .map(|tun| Part::Subnet(tun.subnet))
            .chain(workloads.map(Part::from))
            .collect();
        if wanted.is_empty() {
            [Part::Former].into()
        } else {
            wanted
        }
    }

    /// The workloads of a namespace that `is_meant` holds for; of the machine's own it is the machine's.
    fn parts_inside(
        &self,
        ns: &Namespace,
        is_meant: impl Fn(&WorkloadConfig) -> bool,
    ) -> BTreeSet<Part> {
        match ns {
            Namespace::Host => [Part::Machine].into(),
            Namespace::Netns(netns) => self
                .workloads
                .iter()
                .filter(|w| w.netns.as_ref() == Some(netns) && is_meant(w))
                .map(Part::from)
                .collect(),
        }
    }

    fn parts_of_file(&self, path: &Path) -> BTreeSet<Part> {
        let has = |w: &&WorkloadConfig| match &w.resolv_conf {
            ResolvConf::Create(file) | ResolvConf::Replace(file) => file == path,
            ResolvConf::None => false,
        };
        self.workloads.iter().filter(has).map(Part::from).collect()
    }
}
