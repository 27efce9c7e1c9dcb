//! The names of a subnet, member by member: its own, its workloads', and what it added.
//!
//! No two members have a part in one name: what is a member's name or ends with it is that member's, and of any other name
//! one member is the holder. So a zone is the union of what each member brings, and a member that changed takes its old
//! part away and brings a new one. The same holds for what addresses are called, but for one thing: where nobody else
//! names an address, the owner or an admin may ([`Added`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Built, NAME_TTL};
use crate::model::id::PeerId;
use crate::model::members::Subnet;
use crate::model::record::{Role, data_fits};
use crate::model::resolve::{Member, Resolved};
use crate::model::zone::{Entry, RecordData, Zone};

pub(super) type Fragments = BTreeMap<PeerId, Arc<Fragment>>;

/// What those who have a say call addresses that are not theirs: the names they give, and those that stand in the zone,
/// because nobody with a better right gives one.
#[derive(Debug, Clone, Default)]
pub(super) struct Added {
    given: BTreeMap<IpAddr, Arc<str>>,
    standing: BTreeSet<IpAddr>,
}

/// The part of the zone that follows from one member alone, so that it is made again only when that
/// member changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fragment {
    names: Few<String, Arc<[Entry]>>,
    pointers: Few<IpAddr, Arc<str>>,
}

/// A map that is made once and mostly has one or two entries, of which there is one for each member: a tree would take
/// several times the room.
#[derive(Debug, PartialEq, Eq)]
struct Few<K, V>(Box<[(K, V)]>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Few(Box::default())
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for Few<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Few(map.into_iter().collect())
    }
}

impl<K: Ord, V> Few<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        let at = self.0.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl Fragment {
    fn new(peer: PeerId, member: &Member, resolved: &Resolved, domain: &str) -> Fragment {
        let mut names: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let mut pointers: BTreeMap<IpAddr, Arc<str>> = BTreeMap::new();
        let mut add = |name: &str, ttl: u32, data: &RecordData| {
            names.entry(name.to_owned()).or_default().push(Entry {
                ttl,
                data: data.clone(),
            });
        };
        for address in &member.addresses {
            add(
                member.name.as_str(),
                NAME_TTL,
                &RecordData::Address(*address),
            );
            pointers.insert(*address, format!("{}.{domain}", member.name).into());
        }
        // Below its member's name a workload has a name that nobody can contest; the flat one is whose it is.
        for (name, addresses) in &member.workloads {
            let flat = resolved.holds(peer, name.as_str());
            let below = format!("{name}.{}", member.name);
            for address in addresses {
                let data = RecordData::Address(*address);
                add(&below, NAME_TTL, &data);
                if flat {
                    add(name.as_str(), NAME_TTL, &data);
                }
                let shown = if flat { name.as_str() } else { &below };
                pointers.insert(*address, format!("{shown}.{domain}").into());
            }
        }
        for entry in member.names.iter().filter(|entry| data_fits(&entry.data)) {
            add(
                &format!("{}.{}", entry.name, member.name),
                entry.ttl,
                &entry.data,
            );
            if resolved.holds(peer, &entry.name) {
                add(&entry.name, entry.ttl, &entry.data);
            }
        }
        names.values_mut().for_each(as_sets);
        let holds = |address: &IpAddr| member.leases.iter().any(|lease| lease.contains(address));
        for (address, shown) in added(peer, member, resolved, holds) {
            pointers
                .entry(address)
                .or_insert_with(|| format!("{shown}.{domain}").into());
        }
        let names = names.into_iter();
        let names: BTreeMap<String, Arc<[Entry]>> = names
            .map(|(name, entries)| (name, entries.into()))
            .collect();
        Fragment {
            names: names.into(),
            pointers: pointers.into(),
        }
    }
}

/// Makes of the answers of one name what DNS asks for: none twice, one time to live for each type (RFC 2181, 5 and 5.2).
/// A name may be said in two ways: that of a member `e` for `svc` is also `svc.e`.
fn as_sets(answers: &mut Vec<Entry>) {
    let mut least: BTreeMap<&'static str, u32> = BTreeMap::new();
    for Entry { ttl, data } in answers.iter() {
        let of_kind = least.entry(data.kind()).or_insert(*ttl);
        *of_kind = (*of_kind).min(*ttl);
    }
    let mut seen = BTreeSet::new();
    answers.retain(|entry| seen.insert(entry.data.clone()));
    for entry in answers {
        entry.ttl = least.get(entry.data.kind()).copied().unwrap_or(entry.ttl);
    }
}

/// What the names that a member added call addresses, below the zone: flat names first.
fn added(
    peer: PeerId,
    member: &Member,
    resolved: &Resolved,
    of: impl Fn(&IpAddr) -> bool,
) -> Vec<(IpAddr, String)> {
    let mut found = Vec::new();
    for entry in &member.names {
        let RecordData::Address(address) = entry.data else {
            continue;
        };
        // A name for all below another is nobody's own.
        if of(&address) && !entry.name.starts_with("*.") {
            let flat = resolved.holds(peer, &entry.name);
            let shown = if flat {
                entry.name.clone()
            } else {
                format!("{}.{}", entry.name, member.name)
            };
            found.push((!flat, address, shown));
        }
    }
    found.sort();
    found
        .into_iter()
        .map(|(_, address, shown)| (address, shown))
        .collect()
}

/// What those who have a say call addresses of others, and of nobody. They are few, so all of it is looked at each time.
fn given(resolved: &Resolved, domain: &str) -> BTreeMap<IpAddr, Arc<str>> {
    let mut given = BTreeMap::new();
    for (peer, member) in resolved
        .members
        .iter()
        .filter(|(_, member)| member.role != Role::Member)
    {
        let others = |address: &IpAddr| !member.leases.iter().any(|lease| lease.contains(address));
        for (address, shown) in added(*peer, member, resolved, others) {
            given
                .entry(address)
                .or_insert_with(|| format!("{shown}.{domain}").into());
        }
    }
    given
}

/// The zone of a subnet. It is the one before where no name changed.
pub(super) fn of(
    subnet: &Subnet,
    generation: u64,
    built: &mut Built,
    before: Option<(&Arc<Zone>, &Built)>,
) -> Arc<Zone> {
    let domain = &subnet.records.genesis.domain;
    let resolved = &built.resolved;
    let touched = match before {
        Some((_, before)) => touched(resolved, &before.resolved),
        None => resolved.members.keys().copied().collect(),
    };
    built.fragments = before
        .map(|(_, before)| before.fragments.clone())
        .unwrap_or_default();
    let moved = remade(built, touched, domain);
    built.pointers.given = given(&built.resolved, domain);
    let mut zone = match before {
        Some((zone, before))
            if moved.is_empty() && before.pointers.given == built.pointers.given =>
        {
            built.pointers = before.pointers.clone();
            return Arc::clone(zone);
        }
        Some((zone, _)) => Zone::clone(zone),
        None => Zone::new(domain.clone(), subnet.records.prefixes()),
    };
    for address in before
        .iter()
        .flat_map(|(_, before)| &before.pointers.standing)
    {
        zone.unpoint(*address);
    }
    let (mut zone, names) = renewed(zone, &moved);
    for (address, name) in &built.pointers.given {
        if zone.pointer(*address).is_none() {
            zone.point(*address, Arc::clone(name));
            built.pointers.standing.insert(*address);
        }
    }
    built.work.names = names;
    // Generations are milliseconds since 1970 or more: their seconds fit a serial until 2106.
    zone.serial = u32::try_from((generation / 1000) & u64::from(u32::MAX)).unwrap_or(1);
    Arc::new(zone)
}

/// Makes the parts of these members anew. Gives those that changed, the old one first.
fn remade(
    built: &mut Built,
    touched: BTreeSet<PeerId>,
    domain: &str,
) -> Vec<(Arc<Fragment>, Arc<Fragment>)> {
    let resolved = &built.resolved;
    let mut moved = Vec::new();
    for peer in touched {
        let new = resolved
            .members
            .get(&peer)
            .map(|member| Arc::new(Fragment::new(peer, member, resolved, domain)));
        built.work.fragments = built
            .work
            .fragments
            .saturating_add(usize::from(new.is_some()));
        let old = built.fragments.remove(&peer);
        if let Some(new) = &new {
            built.fragments.insert(peer, Arc::clone(new));
        }
        if old != new {
            moved.push((old.unwrap_or_default(), new.unwrap_or_default()));
        }
    }
    moved
}

/// Members that may bring something else than they did.
fn touched(new: &Resolved, old: &Resolved) -> BTreeSet<PeerId> {
    let other = |a: &Resolved, b: &Resolved| -> Vec<PeerId> {
        let same = |peer, member| {
            b.members
                .get(peer)
                .is_some_and(|other| Arc::ptr_eq(member, other))
        };
        a.members
            .iter()
            .filter(|(peer, member)| !same(*peer, *member))
            .map(|(peer, _)| *peer)
            .collect()
    };
    let mut all: BTreeSet<PeerId> = other(new, old).into_iter().chain(other(old, new)).collect();
    for (_, now, before) in new.flat.differences(&old.flat, PeerId::eq) {
        all.extend(now.into_iter().chain(before));
    }
    all
}

/// Puts the new parts in the place of the old ones. A name may go from one member to another, so what goes goes first.
fn renewed(mut zone: Zone, moved: &[(Arc<Fragment>, Arc<Fragment>)]) -> (Zone, usize) {
    let mut count = 0_usize;
    for (old, new) in moved {
        for name in old
            .names
            .keys()
            .filter(|name| !new.names.contains_key(*name))
        {
            zone.remove(name);
            count = count.saturating_add(1);
        }
        old.pointers
            .keys()
            .filter(|a| !new.pointers.contains_key(*a))
            .for_each(|a| zone.unpoint(*a));
    }
    for (old, new) in moved {
        for (name, entries) in new
            .names
            .iter()
            .filter(|(name, entries)| old.names.get(*name) != Some(*entries))
        {
            zone.set(name, Arc::clone(entries));
            count = count.saturating_add(1);
        }
        for (address, name) in new
            .pointers
            .iter()
            .filter(|(a, name)| old.pointers.get(*a) != Some(*name))
        {
            zone.point(*address, Arc::clone(name));
        }
    }
    (zone, count)
}
