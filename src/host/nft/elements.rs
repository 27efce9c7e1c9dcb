//! The elements of our sets and maps: what a `HostConfig` asks of the ruleset, and the difference of two of them.
//!
//! Pure. Everything that changes while a subnet is up is an element here; the chains around them (see `ruleset`) are
//! the same for every configuration, so a change never touches a rule.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use nftables::expr::Expression;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;

use super::atom::{Atom, CLOSED, Entry, FAMILIES, MapKey, REFUSED_FROM, Tuple, json, version};
use crate::host::failure;
use crate::model::host::{
    Barred, Crowd, Failure, Family, HostConfig, HostPolicy, Part, Ports, TunConfig, WorkloadConfig,
    inner_mac, is_link_name, shut,
};
use crate::model::id::SubnetId;

mod maps;

use maps::Led;

/// Elements of every set and map of our table.
///
/// There are many thousand port maps, and a change is of one. So each is one entry here, whatever elements the kernel has of
/// it: two states are compared map by map, and only what differs is spelled out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// By the name of the set: key, and the value where it is a map of nftables. Of port maps only what is none of ours or
    /// not whole, as a listing may have it.
    sets: BTreeMap<String, Set>,
    maps: BTreeMap<MapKey, Led>,
    /// Maps that let nobody new in while what began before goes on. In the table they are guarded, and nobody is allowed.
    draining: BTreeSet<MapKey>,
}

/// Elements of one set: keys, each with its value where the set is a map.
type Set = BTreeMap<Tuple, Option<Tuple>>;

/// Prefixes of one family, merged: interval sets refuse elements that overlap.
fn merged(prefixes: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&prefixes.map(|p| p.trunc()).collect())
}

impl Elements {
    /// What `config` asks for with `barred` shut and nothing begun by `crowd`, and what of it cannot be done.
    pub fn of(config: &HostConfig, barred: &Barred, crowd: &Crowd) -> (Self, Vec<Failure>) {
        let mut elements = Elements::default();
        elements.bars(barred);
        let mut failures = Vec::new();
        elements.links(config, &mut failures);
        elements.subnets(config);
        elements.quotas(config, crowd);
        elements.maps(config, &mut failures);
        (elements, failures)
    }

    /// The elements of one set, in order; none of port maps.
    pub fn in_set(&self, set: &str) -> impl Iterator<Item = (&Tuple, Option<&Tuple>)> {
        self.sets
            .get(set)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.as_ref()))
    }

    /// Adds an element, or replaces the value of its key.
    pub fn insert(&mut self, set: impl Into<String>, key: Tuple, value: Option<Tuple>) {
        self.sets.entry(set.into()).or_default().insert(key, value);
    }

    fn links(&mut self, config: &HostConfig, failures: &mut Vec<Failure>) {
        let refusal = |link: &str, of: Part| {
            failure(
                format!("filter packets of {link:?}"),
                "not the name of an interface",
            )
            .of([of])
        };
        for tun in &config.tuns {
            if is_link_name(&tun.name) {
                self.tun(tun);
            } else {
                failures.push(refusal(&tun.name, Part::Subnet(tun.subnet)));
            }
        }
        for workload in &config.workloads {
            if is_link_name(&workload.host_link) {
                self.workload(workload, config);
            } else {
                failures.push(refusal(&workload.host_link, workload.into()));
            }
        }
    }

    /// A link to the members of a subnet.
    fn tun(&mut self, tun: &TunConfig) {
        let link = Atom::Link(tun.name.clone());
        self.insert("tuns", vec![link.clone()], None);
        self.insert("links", vec![link.clone()], None);
        self.host(&link, &tun.host);
        self.members(&link, tun.prefixes.iter().copied());
        for addr in &tun.addresses {
            let v = version(addr);
            self.insert(format!("own{v}"), vec![Atom::Addr(*addr)], None);
            self.insert(
                format!("local{v}"),
                vec![link.clone(), Atom::Addr(*addr)],
                None,
            );
            if self
                .in_set(&format!("source{v}"))
                .all(|(key, _)| key.as_slice() != std::slice::from_ref(&link))
            {
                self.insert(
                    format!("source{v}"),
                    vec![link.clone()],
                    Some(vec![Atom::Addr(*addr)]),
                );
            }
        }
    }

    /// Enters the link of a workload in the sets that name it.
    fn workload(&mut self, workload: &WorkloadConfig, config: &HostConfig) {
        let link = Atom::Link(workload.host_link.clone());
        self.insert("workloads", vec![link.clone()], None);
        self.insert("flood", vec![link.clone()], None);
        self.insert("links", vec![link.clone()], None);
        self.insert(REFUSED_FROM, vec![link.clone()], None);
        if workload.tap.is_some() {
            let own = || inner_mac(&config.instance, &workload.host_link);
            let mac = Atom::Mac(workload.mac.unwrap_or_else(own));
            self.insert("taps", vec![link.clone()], None);
            self.insert("solicits", vec![link.clone()], None);
            self.insert("macs", vec![link.clone(), mac], None);
        }
        let tuns = || config.tuns.iter().filter(|t| t.subnet == workload.subnet);
        self.host(
            &link,
            tuns().next().map_or(&HostPolicy::Closed, |tun| &tun.host),
        );
        self.members(&link, tuns().flat_map(|t| t.prefixes.iter()).copied());
        for addr in tuns().flat_map(|t| &t.addresses).chain(&workload.gateways) {
            self.insert(
                format!("local{}", version(addr)),
                vec![link.clone(), Atom::Addr(*addr)],
                None,
            );
        }
        for addr in &workload.addresses {
            let v = version(addr);
            let own = Atom::Addr(*addr);
            self.insert(format!("leases{v}"), vec![link.clone(), own.clone()], None);
            self.insert(format!("refused_to{v}"), vec![own.clone()], None);
            let gateway = tuns().flat_map(|t| &t.addresses).chain(&workload.gateways);
            if let Some(gateway) = gateway.into_iter().find(|g| g.is_ipv4() == addr.is_ipv4()) {
                self.insert(
                    format!("self{v}"),
                    vec![own.clone(), own],
                    Some(vec![Atom::Addr(*gateway)]),
                );
            }
        }
    }

    /// What of the machine itself is reached by a link.
    fn host(&mut self, link: &Atom, policy: &HostPolicy) {
        self.insert(CLOSED, vec![link.clone()], None);
        if *policy == HostPolicy::Open {
            self.insert("host_open", vec![link.clone()], None);
        }
        for Ports { proto, first, last } in policy.ports() {
            let key = vec![
                link.clone(),
                Atom::Proto(*proto),
                Atom::ports(*first, *last),
            ];
            self.insert("host_ports", key, None);
        }
    }

    /// What of the machine itself is reached by a link; none where it is no link of ours.
    #[cfg(test)]
    pub fn policy(&self, link: &str) -> Option<HostPolicy> {
        let link = Atom::Link(link.to_owned());
        if !self
            .in_set(CLOSED)
            .any(|(key, _)| key.first() == Some(&link))
        {
            return None;
        }
        if self
            .in_set("host_open")
            .any(|(key, _)| key.first() == Some(&link))
        {
            return Some(HostPolicy::Open);
        }
        let ports = |key: &Tuple| match key.as_slice() {
            [of, Atom::Proto(proto), Atom::Port(port)] if *of == link => Some(Ports {
                proto: *proto,
                first: *port,
                last: *port,
            }),
            [of, Atom::Proto(proto), Atom::Ports(first, last)] if *of == link => Some(Ports {
                proto: *proto,
                first: *first,
                last: *last,
            }),
            _ => None,
        };
        let listed = self
            .in_set("host_ports")
            .filter_map(|(key, _)| ports(key))
            .collect();
        // A list that is too long was none of ours: everything it let in is looked at.
        Some(HostPolicy::of(listed).unwrap_or(HostPolicy::Open))
    }

    /// Enters the quotas of those that begin connections, and those that begin nothing.
    fn quotas(&mut self, config: &HostConfig, crowd: &Crowd) {
        for (_, net) in config.outer_leases() {
            self.insert(
                format!("crowd{}", version(&net.addr())),
                vec![Atom::net(net)],
                None,
            );
        }
        let (links, leases) = shut(config, crowd);
        for link in links.into_iter().filter(|link| is_link_name(link)) {
            self.insert("over", vec![Atom::Link(link.to_owned())], None);
        }
        for net in leases {
            self.insert(
                format!("over{}", version(&net.addr())),
                vec![Atom::net(net)],
                None,
            );
        }
    }

    fn bars(&mut self, barred: &Barred) {
        for (set, links) in [("barred4", &barred.v4), ("barred6", &barred.v6)] {
            links
                .iter()
                .for_each(|link| self.insert(set, vec![Atom::Link(link.clone())], None));
        }
        if barred.all_v6 {
            self.insert(FAMILIES, vec![Atom::Family(Family::V6)], None);
        }
    }

    fn members(&mut self, link: &Atom, prefixes: impl Iterator<Item = IpNet>) {
        for net in merged(prefixes) {
            self.insert(
                format!("member{}", version(&net.addr())),
                vec![link.clone(), Atom::net(net)],
                None,
            );
        }
    }

    fn subnets(&mut self, config: &HostConfig) {
        let mut of: BTreeMap<SubnetId, Vec<IpNet>> = BTreeMap::new();
        for tun in &config.tuns {
            of.entry(tun.subnet)
                .or_default()
                .extend(tun.prefixes.iter().copied());
        }
        for net in merged(config.tuns.iter().flat_map(|tun| config.overlay(tun))) {
            self.insert(
                format!("overlay{}", version(&net.addr())),
                vec![Atom::net(net)],
                None,
            );
        }
        for prefixes in of.into_values() {
            let nets = merged(prefixes.into_iter());
            for from in &nets {
                for to in nets
                    .iter()
                    .filter(|to| to.addr().is_ipv4() == from.addr().is_ipv4())
                {
                    let key = vec![Atom::net(*from), Atom::net(*to)];
                    self.insert(format!("within{}", version(&from.addr())), key, None);
                }
            }
        }
    }

    /// What turns `self` into `next`.
    pub fn delta(&self, next: &Elements) -> Delta {
        let mut delta = self.delta_of_maps(next);
        let rest = Delta::between(&self.sets, &next.sets);
        delta.delete.extend(rest.delete);
        delta.add.extend(rest.add);
        delta
    }

    /// Whether both hold the same elements (a set without elements is the same as no set).
    pub fn same(&self, other: &Elements) -> bool {
        self.delta(other).is_empty()
    }
}

/// The keys that go and the elements that come from `old` to `new`; an element with another value does both.
fn difference(old: &Set, new: &Set) -> (Vec<Tuple>, Vec<Entry>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (before, after) in differing(old, new) {
        gone.extend(before.map(|(key, _)| key.clone()));
        come.extend(after.map(|(key, value)| (key.clone(), value.clone())));
    }
    (gone, come)
}

/// An entry of a map, as its iterator gives it.
type Item<'a, K, V> = Option<(&'a K, &'a V)>;

/// The entries that only one of both has, or both with other values. Both are in order, so they are walked side by side: many
/// thousands differ by one, and a lookup of each took longest.
fn differing<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (Item<'a, K, V>, Item<'a, K, V>)> {
    let (mut left, mut right) = (old.iter().peekable(), new.iter().peekable());
    let step = move || {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        let before = left.next_if(|_| order.is_le());
        Some((before, right.next_if(|_| order.is_ge())))
    };
    std::iter::from_fn(step).filter(|(before, after)| before != after)
}

/// Element changes that go to the kernel as one transaction: deletions, then additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Keys that go, by set. A key whose value changes is here and in `add`.
    pub delete: Vec<(String, Vec<Tuple>)>,
    /// Elements that come, by set, with their values.
    pub add: Vec<(String, Vec<Entry>)>,
}

impl Delta {
    /// What turns the sets of `old` into those of `new`; a set that one of them lacks has no elements there.
    fn between(old: &BTreeMap<String, Set>, new: &BTreeMap<String, Set>) -> Delta {
        let mut delta = Delta::default();
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let none = BTreeMap::new();
        for name in names {
            let (gone, come) = difference(
                old.get(name).unwrap_or(&none),
                new.get(name).unwrap_or(&none),
            );
            if !gone.is_empty() {
                delta.delete.push((name.clone(), gone));
            }
            if !come.is_empty() {
                delta.add.push((name.clone(), come));
            }
        }
        delta
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    /// The transaction, as `nft -j -f -` reads it.
    pub fn commands(&self, table: &str) -> Nftables<'static> {
        let element = |set: &str, elem: Vec<Expression<'static>>| {
            NfListObject::Element(Element {
                family: NfFamily::INet,
                table: table.to_owned().into(),
                name: set.to_owned().into(),
                elem: elem.into(),
            })
        };
        let deletes = self.delete.iter().map(|(set, keys)| {
            NfObject::CmdObject(NfCmd::Delete(element(
                set,
                keys.iter().map(|key| json(key)).collect(),
            )))
        });
        let adds = self.add.iter().map(|(set, elements)| {
            let elem = elements.iter().map(|(key, value)| match value {
                Some(value) => Expression::List(vec![json(key), json(value)]),
                None => json(key),
            });
            NfObject::CmdObject(NfCmd::Add(element(set, elem.collect())))
        });
        Nftables {
            objects: deletes.chain(adds).collect::<Vec<_>>().into(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
