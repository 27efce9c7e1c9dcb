//! Port maps among the elements: each is one entry, and its elements in seven sets are spelled out only where the kernel is
//! to hear of them.

use std::collections::{BTreeMap, btree_map};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Delta, Elements, Set, differing, merged};
use crate::host::failure;
use crate::host::nft::atom::{Atom, Entry, MapKey, Tuple, version};
use crate::model::host::{Failure, HostConfig, MapConfig, is_link_name};

/// The sets that have one element without a value for each map: who it is, and what passed.
const BESIDES: [&str; 4] = ["mapped", "conn", "rx", "tx"];
/// What the names of the sets of maps end with.
const KINDS: [&str; 4] = ["any4", "any6", "exact4", "exact6"];

/// Where a map leads, and whom it lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Led {
    target: (IpAddr, u16),
    /// Prefixes of clients, none of which overlap, in order; none where everybody may use the map.
    allow: Option<Arc<[Atom]>>,
}

/// What the names of a map's sets end with.
fn kind(key: &MapKey) -> String {
    let kind = if key.listen.is_unspecified() {
        "any"
    } else {
        "exact"
    };
    format!("{kind}{}", version(&key.listen))
}

/// The clients that `map` lets in, of the family of its address; none where everybody may.
fn clients(map: &MapConfig) -> Option<Arc<[Atom]>> {
    if map.draining {
        return Some(Arc::default());
    }
    let family = map
        .allow
        .iter()
        .filter(|net| net.addr().is_ipv4() == map.listen.is_ipv4());
    // A prefix of length 0 lets everybody in: the same as no list.
    if map.allow.is_empty() || family.clone().any(|net| net.prefix_len() == 0) {
        return None;
    }
    let mut clients: Vec<Atom> = merged(family.copied()).into_iter().map(Atom::net).collect();
    clients.sort();
    Some(clients.into())
}

/// Why a map cannot be made; none where it can.
fn refusal(map: &MapConfig, target: IpAddr, config: &HostConfig) -> Option<String> {
    if map.port == 0 || map.target_port == 0 {
        Some("port 0 cannot be mapped".to_owned())
    } else if target.is_ipv4() != map.listen.is_ipv4() {
        Some(format!("target {target} is of the other address family"))
    } else if config.underlay_ports.contains(&map.port) {
        Some("this daemon itself listens on that port".to_owned())
    } else {
        None
    }
}

impl Led {
    /// The elements of the map with that key, each with its set.
    fn elements(&self, key: &MapKey) -> Vec<(String, Entry)> {
        let (kind, tuple) = (kind(key), key.tuple());
        let value = vec![Atom::Addr(self.target.0), Atom::Port(self.target.1)];
        let besides = BESIDES.map(|set| (format!("{set}_{kind}"), (tuple.clone(), None)));
        let mut elements = vec![(kind.clone(), (tuple.clone(), Some(value)))];
        elements.extend(besides);
        if let Some(clients) = &self.allow {
            elements.push((format!("guarded_{kind}"), (tuple.clone(), None)));
            elements.extend(clients.iter().map(|client| {
                let key = [tuple.as_slice(), std::slice::from_ref(client)].concat();
                (format!("allowed_{kind}"), (key, None))
            }));
        }
        elements
    }
}

impl Elements {
    /// Enters the port maps that `config` asks for, and the addresses from which this node reaches their targets.
    pub(super) fn maps(&mut self, config: &HostConfig, failures: &mut Vec<Failure>) {
        // Many maps in a row let in the same clients: those of one range of ports.
        let mut last: Option<(&MapConfig, Option<Arc<[Atom]>>)> = None;
        let mut sources = BTreeMap::new();
        for map in &config.maps {
            // The kernel cannot rewrite to and from loopback without opening it to the LAN, and forwards nothing from a
            // link-local address: the proxies serve those.
            let link_local = matches!(map.listen, IpAddr::V6(a) if a.is_unicast_link_local());
            if map.listen.is_loopback() || link_local {
                continue;
            }
            let Some(target) = map.target else { continue };
            let key = MapKey::of(map);
            let why = refusal(map, target, config).or_else(|| {
                let btree_map::Entry::Vacant(entry) = self.maps.entry(key) else {
                    return Some("another map has the same protocol, address and port".to_owned());
                };
                let same = last.take().filter(|(before, _)| {
                    before.allow == map.allow
                        && before.draining == map.draining
                        && before.listen.is_ipv4() == map.listen.is_ipv4()
                });
                let allow = same.map_or_else(|| clients(map), |(_, allow)| allow);
                last = Some((map, allow.clone()));
                let target = (target, map.target_port);
                entry.insert(Led { target, allow });
                if map.draining {
                    self.draining.insert(key);
                }
                if let (false, Some(source)) = (map.local, map.source) {
                    sources.insert((map.subnet, map.listen.is_ipv4()), source);
                }
                None
            });
            if let Some(why) = why {
                let what = format!("map {key} to {}", map.name);
                failures.push(failure(what, why).of([map.into()]));
            }
        }
        for ((subnet, _), source) in sources {
            let tuns = config.tuns.iter().filter(|t| t.subnet == subnet);
            for tun in tuns.filter(|t| is_link_name(&t.name)) {
                let value = vec![Atom::Addr(source)];
                let key = vec![Atom::Link(tun.name.clone())];
                self.insert(format!("source{}", version(&source)), key, Some(value));
            }
        }
    }

    /// The maps published here, with the address and port each leads to.
    pub fn targets(&self) -> BTreeMap<MapKey, (IpAddr, u16)> {
        let whole = self.maps.iter().map(|(key, led)| (*key, led.target));
        whole
            .chain(self.odd().map(|(key, led)| (key, led.target)))
            .collect()
    }

    /// The address and port that the map with that key leads to.
    pub fn target(&self, key: &MapKey) -> Option<(IpAddr, u16)> {
        self.maps.get(key).map(|led| led.target)
    }

    /// Whether the set has an element with that key.
    pub fn has(&self, set: &str, key: &Tuple) -> bool {
        let plain = self.sets.get(set).is_some_and(|set| set.contains_key(key));
        plain || MapKey::parse(set, key).is_some_and(|key| self.maps.contains_key(&key))
    }

    /// Maps that were listed without all of their elements: they lead somewhere, but are none of ours as we write them.
    fn odd(&self) -> impl Iterator<Item = (MapKey, Led)> {
        let of = |set: &'static str| self.in_set(set).map(move |(key, value)| (set, key, value));
        KINDS
            .into_iter()
            .flat_map(of)
            .filter_map(|(set, key, value)| {
                let Some([Atom::Addr(address), Atom::Port(port)]) = value.map(Vec::as_slice) else {
                    return None;
                };
                let led = Led {
                    target: (*address, *port),
                    allow: self.allowed(set, key),
                };
                Some((MapKey::parse(set, key)?, led))
            })
    }

    /// The clients that may use a map which was listed; none where everybody may.
    fn allowed(&self, kind: &str, tuple: &Tuple) -> Option<Arc<[Atom]>> {
        self.sets.get(&format!("guarded_{kind}"))?.get(tuple)?;
        let listed = self.sets.get(&format!("allowed_{kind}"));
        let from = listed.map(|set| set.range(tuple.clone()..));
        let of = from.into_iter().flatten().map(|(key, _)| key);
        let of = of.take_while(|key| key.starts_with(tuple));
        Some(of.filter_map(|key| key.get(tuple.len()).cloned()).collect())
    }

    /// Puts what was listed of port maps together, each where all of it is there.
    pub fn gather(&mut self) {
        let found: Vec<(MapKey, Led)> = self.odd().collect();
        for (key, led) in found {
            let elements = led.elements(&key);
            let listed = |(set, (key, value)): &(String, Entry)| {
                self.sets.get(set).and_then(|set| set.get(key)) == Some(value)
            };
            if !elements.iter().all(listed) {
                continue;
            }
            for (set, (key, _)) in elements {
                self.sets.get_mut(&set).and_then(|set| set.remove(&key));
            }
            self.maps.insert(key, led);
        }
        self.sets.retain(|_, set| !set.is_empty());
    }

    /// Every element of every set by itself, those of port maps too.
    pub fn spelled_out(&self) -> BTreeMap<String, Set> {
        let mut sets = self.sets.clone();
        for (key, led) in &self.maps {
            for (set, (key, value)) in led.elements(key) {
                sets.entry(set).or_default().insert(key, value);
            }
        }
        sets
    }

    /// Maps of `self` that let nobody new in, and let clients in again in `next`, with where they lead.
    pub fn resumed(&self, next: &Elements) -> Vec<(MapKey, (IpAddr, u16))> {
        let again = self.draining.difference(&next.draining);
        let there = |key: &MapKey| next.maps.get(key).map(|led| (*key, led.target));
        again.filter_map(there).collect()
    }

    /// Maps of `self` that are gone in `next`, lead elsewhere, or let in other clients: flows they began must end. Those of
    /// one that drains go on, and also when it drains no more.
    pub fn ended(&self, next: &Elements) -> Vec<(MapKey, (IpAddr, u16))> {
        let goes_on = |key: &MapKey, led: &Led| {
            let drains = |of: &Elements| of.draining.contains(key);
            drains(self) != drains(next)
                && next
                    .maps
                    .get(key)
                    .is_some_and(|after| after.target == led.target)
        };
        let changed = differing(&self.maps, &next.maps).filter_map(|(before, _)| before);
        let mut ended: Vec<_> = changed
            .filter(|(key, led)| !goes_on(key, led))
            .map(|(key, led)| (*key, led.target))
            .collect();
        for (key, led) in self.odd() {
            let same = next.maps.get(&key) == Some(&led)
                || next.odd().any(|(other, it)| other == key && it == led);
            if !same {
                ended.push((key, led.target));
            }
        }
        ended
    }

    /// What turns the port maps of `self` into those of `next`.
    pub(super) fn delta_of_maps(&self, next: &Elements) -> Delta {
        let (mut gone, mut come) = (BTreeMap::new(), BTreeMap::new());
        let enter = |sets: &mut BTreeMap<String, Set>, (key, led): (&MapKey, &Led)| {
            for (set, (key, value)) in led.elements(key) {
                sets.entry(set).or_default().insert(key, value);
            }
        };
        for (before, after) in differing(&self.maps, &next.maps) {
            before.into_iter().for_each(|map| enter(&mut gone, map));
            after.into_iter().for_each(|map| enter(&mut come, map));
        }
        Delta::between(&gone, &come)
    }
}
