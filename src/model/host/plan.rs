//! The pure difference between the desired and the observed state.
//!
//! Add before delete: what stays is never without its way, and removing the last address of a link takes its routes
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::desired::{LinkWant, NamespaceWant, alive, resolvers, wanted};
use super::{
    Change, GSO_MAX_SIZE, HostConfig, Link, LinkSet, Namespace, NamespaceState, Observed,
    ResolvConf, WorkloadConfig,
};

/// The changes that lead from what is to what should be; empty when nothing differs.
///
/// Objects that do not bear our mark are never in it, except as [`Change::Conflict`] where one has a name we need.
pub fn plan(desired: &HostConfig, observed: &Observed) -> Vec<Change> {
    let mut plan = Plan::default();
    let mut want = wanted(desired, observed);
    let empty = NamespaceState::default();
    let host = observed.places.get(&Namespace::Host).unwrap_or(&empty);
    plan.adds.extend(
        observed
            .lost_switches()
            .map(|key| Change::ForgetSysctl { key: key.clone() }),
    );
    plan.make_links(desired, observed, host, &mut want);
    for (place, scene) in &want {
        plan.scene(
            place,
            scene,
            observed.places.get(place).unwrap_or(&empty),
            observed,
        );
    }
    // Namespaces nothing is wanted in any more: only rules outlive a link there.
    for (place, scene) in &observed.places {
        if !want.contains_key(place) && !unreadable(place, observed) {
            plan.scene(place, &NamespaceWant::default(), scene, observed);
        }
    }
    plan.resolvers(desired, observed);
    plan.delete_links(desired, host, want.get(&Namespace::Host));
    plan.restore_sysctls(observed, want.get(&Namespace::Host));
    plan.adds.extend(plan.deletes);
    plan.adds
}

fn unreadable(place: &Namespace, observed: &Observed) -> bool {
    matches!(place, Namespace::Netns(netns) if observed.unreadable.contains(netns))
}

#[derive(Default)]
struct Plan {
    adds: Vec<Change>,
    deletes: Vec<Change>,
    /// Links made by this plan: nothing observed holds for them.
    fresh: BTreeSet<(Namespace, String)>,
}

impl Plan {
    /// Makes the links that are missing; what cannot be made is taken out of the wanted state.
    fn make_links(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        host: &NamespaceState,
        want: &mut BTreeMap<Namespace, NamespaceWant>,
    ) {
        for tun in desired
            .tuns
            .iter()
            .filter(|t| !host.links.contains_key(&t.name))
        {
            if host.foreign.contains(&tun.name) {
                self.refuse(&Namespace::Host, &tun.name, want);
            } else {
                self.adds.push(Change::OpenTun(tun.clone()));
                self.fresh.insert((Namespace::Host, tun.name.clone()));
            }
        }
        for workload in alive(desired, observed) {
            self.make_pair(workload, observed, host, want);
        }
    }

    fn make_pair(
        &mut self,
        workload: &WorkloadConfig,
        observed: &Observed,
        host: &NamespaceState,
        want: &mut BTreeMap<Namespace, NamespaceWant>,
    ) {
        let inner_place = Namespace::Netns(workload.netns.clone());
        let inner = observed.places.get(&inner_place);
        let has_inner = inner.is_some_and(|scene| scene.links.contains_key(&workload.inner_link));
        let outer = host.links.get(&workload.host_link);
        if outer.is_some() && has_inner {
            return;
        }
        let taken = [
            (
                &Namespace::Host,
                &workload.host_link,
                host.foreign.contains(&workload.host_link),
            ),
            (
                &inner_place,
                &workload.inner_link,
                inner.is_some_and(|scene| scene.foreign.contains(&workload.inner_link)),
            ),
        ];
        if let Some((place, name, _)) = taken.iter().find(|(.., taken)| *taken) {
            self.adds.push(Change::Conflict {
                place: (*place).clone(),
                link: (*name).clone(),
            });
            forget(&Namespace::Host, &workload.host_link, want);
            forget(&inner_place, &workload.inner_link, want);
            return;
        }
        // Half a pair is of no use (its other end was moved away), and its name is needed: the one delete ahead of
        // an add.
        if let Some(link) = outer {
            self.adds.push(Change::DeleteLink {
                link: workload.host_link.clone(),
                name: link.name.clone(),
            });
        }
        self.adds
            .push(Change::CreateVeth(Box::new(workload.clone())));
        self.fresh
            .insert((Namespace::Host, workload.host_link.clone()));
        self.fresh
            .insert((inner_place, workload.inner_link.clone()));
    }

    fn refuse(
        &mut self,
        place: &Namespace,
        link: &str,
        want: &mut BTreeMap<Namespace, NamespaceWant>,
    ) {
        self.adds.push(Change::Conflict {
            place: place.clone(),
            link: link.to_owned(),
        });
        forget(place, link, want);
    }

    /// Everything within one namespace.
    fn scene(
        &mut self,
        place: &Namespace,
        want: &NamespaceWant,
        scene: &NamespaceState,
        observed: &Observed,
    ) {
        for name in want.links.keys() {
            if let Some(link) = scene
                .links
                .get(name)
                .filter(|l| l.name != *name && !self.is_fresh(place, name))
            {
                self.adds.push(Change::Rename {
                    place: place.clone(),
                    from: link.name.clone(),
                    to: name.clone(),
                });
            }
        }
        self.sysctls(place, want, scene);
        for (name, link) in &want.links {
            let fresh = Link::default();
            let is = if self.is_fresh(place, name) {
                &fresh
            } else {
                scene.links.get(name).unwrap_or(&fresh)
            };
            self.link(place, name, link, is);
        }
        self.routes(place, want, scene);
        for rule in want.rules.difference(&scene.rules) {
            self.adds.push(Change::AddRule {
                place: place.clone(),
                rule: rule.clone(),
            });
        }
        let keep_rules = *place == Namespace::Host && observed.table_shared;
        for rule in scene.rules.difference(&want.rules).filter(|_| !keep_rules) {
            self.deletes.push(Change::DelRule {
                place: place.clone(),
                rule: rule.clone(),
            });
        }
    }

    fn is_fresh(&self, place: &Namespace, link: &str) -> bool {
        self.fresh.contains(&(place.clone(), link.to_owned()))
    }

    /// A sysctl of a fresh link is written without looking; one that does not exist elsewhere is not written at all.
    fn sysctls(&mut self, place: &Namespace, want: &NamespaceWant, scene: &NamespaceState) {
        for sysctl in &want.sysctls {
            let fresh = sysctl
                .key
                .split('/')
                .nth(3)
                .is_some_and(|link| self.is_fresh(place, link));
            let value = scene.sysctls.get(&sysctl.key).map(String::as_str);
            let differs = match (fresh, sysctl.only_over) {
                (true, _) => true,
                (false, Some(over)) => value == Some(over),
                (false, None) => value != Some(sysctl.value),
            };
            if differs {
                self.adds.push(Change::SetSysctl {
                    place: place.clone(),
                    key: sysctl.key.clone(),
                    value: sysctl.value.to_owned(),
                    keep: sysctl.keep,
                });
            }
        }
    }

    fn link(&mut self, place: &Namespace, name: &str, want: &LinkWant, is: &Link) {
        let set = LinkSet {
            alias: (is.alias != want.alias).then(|| want.alias.clone()),
            mtu: (is.mtu != want.mtu).then_some(want.mtu),
            txqueuelen: want.txqueuelen.filter(|len| is.txqueuelen != *len),
            gso_max_size: (is.gso_max_size != GSO_MAX_SIZE).then_some(GSO_MAX_SIZE),
            mac: want.mac.filter(|mac| is.mac != Some(*mac)),
            up: !is.up,
        };
        let link = name.to_owned();
        if set != LinkSet::default() {
            self.adds.push(Change::SetLink {
                place: place.clone(),
                link: link.clone(),
                set,
            });
        }
        for address in want.addresses.difference(&is.addresses) {
            self.adds.push(Change::AddAddress {
                place: place.clone(),
                link: link.clone(),
                address: *address,
            });
        }
        for (address, mac) in want
            .neighbours
            .iter()
            .filter(|(address, mac)| is.neighbours.get(address) != Some(mac))
        {
            let (address, mac) = (*address, *mac);
            self.adds.push(Change::SetNeighbour {
                place: place.clone(),
                link: link.clone(),
                address,
                mac,
            });
        }
        for address in is.addresses.difference(&want.addresses) {
            self.deletes.push(Change::DelAddress {
                place: place.clone(),
                link: link.clone(),
                address: *address,
            });
        }
        for address in is
            .neighbours
            .keys()
            .filter(|address| !want.neighbours.contains_key(address))
        {
            self.deletes.push(Change::DelNeighbour {
                place: place.clone(),
                link: link.clone(),
                address: *address,
            });
        }
    }

    fn routes(&mut self, place: &Namespace, want: &NamespaceWant, scene: &NamespaceState) {
        let lives = |link: &str| {
            want.links.contains_key(link) && !self.fresh.contains(&(place.clone(), link.to_owned()))
        };
        // Routes of a link that goes, or was made anew, went with it.
        let here: BTreeSet<_> = scene.routes.iter().filter(|r| lives(&r.link)).collect();
        let mut missing: Vec<_> = want.routes.iter().filter(|r| !here.contains(r)).collect();
        // Next hops must be reachable when they are named.
        missing.sort_by_key(|r| r.gateway.is_some());
        let mut replaced = BTreeSet::new();
        for route in missing {
            let key = (route.table, route.destination);
            let replace = here.iter().any(|r| (r.table, r.destination) == key);
            if replace {
                replaced.insert(key);
            }
            self.adds.push(Change::SetRoute {
                place: place.clone(),
                route: route.clone(),
                replace,
            });
        }
        for route in here {
            if !want.routes.contains(route) && !replaced.contains(&(route.table, route.destination))
            {
                self.deletes.insert(
                    0,
                    Change::DelRoute {
                        place: place.clone(),
                        route: route.clone(),
                    },
                );
            }
        }
    }

    fn resolvers(&mut self, desired: &HostConfig, observed: &Observed) {
        let want = resolvers(desired, observed);
        for (path, resolver) in &want {
            let is = observed.resolvers.get(path);
            let foreign = is.is_some() && !observed.kept_resolvers.contains(path);
            if is != Some(&resolver.text) && !(resolver.create && foreign) {
                self.adds.push(Change::WriteResolver {
                    path: path.clone(),
                    text: resolver.text.clone(),
                });
            }
        }
        let stay = |path: &PathBuf| {
            want.contains_key(path)
                || desired.workloads.iter().any(|w| {
                    let file = match &w.resolv_conf {
                        ResolvConf::None => None,
                        ResolvConf::Create(file) | ResolvConf::Replace(file) => Some(file),
                    };
                    observed.unreadable.contains(&w.netns) && file == Some(path)
                })
        };
        for path in observed.kept_resolvers.iter().filter(|path| !stay(path)) {
            self.deletes
                .push(Change::RestoreResolver { path: path.clone() });
        }
    }

    fn delete_links(
        &mut self,
        desired: &HostConfig,
        host: &NamespaceState,
        want: Option<&NamespaceWant>,
    ) {
        for (key, link) in &host.links {
            if want.is_some_and(|want| want.links.contains_key(key)) {
                continue;
            }
            let (link, name) = (key.clone(), link.name.clone());
            let is_tun = host.links.get(key).is_some_and(|l| {
                l.mac.is_none() || l.alias == super::alias(&desired.instance, "tun", key)
            });
            self.deletes.push(if is_tun {
                Change::CloseTun { link, name }
            } else {
                Change::DeleteLink { link, name }
            });
        }
    }

    fn restore_sysctls(&mut self, observed: &Observed, want: Option<&NamespaceWant>) {
        let stays = |key: &String| {
            want.is_some_and(|want| want.sysctls.iter().any(|s| s.keep && s.key == *key))
        };
        let lost: BTreeSet<&String> = observed.lost_switches().collect();
        for key in observed
            .kept_sysctls
            .keys()
            .filter(|key| !stays(key) && !lost.contains(key))
        {
            self.deletes
                .push(Change::RestoreSysctl { key: key.clone() });
        }
    }
}

/// Takes a link that cannot be made out of the wanted state.
fn forget(place: &Namespace, link: &str, want: &mut BTreeMap<Namespace, NamespaceWant>) {
    if let Some(scene) = want.get_mut(place) {
        scene.links.remove(link);
        scene.routes.retain(|r| r.link != link);
        scene
            .sysctls
            .retain(|s| s.key.split('/').nth(3) != Some(link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{
        HostPolicy, MapConfig, Namespace, NetnsRef, Proto, Route, TABLE, TunConfig,
    };
    use crate::model::id::SubnetId;
    use ipnet::IpNet;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn netns(n: u64) -> NetnsRef {
        NetnsRef {
            path: format!("/run/netns/ns{n}").into(),
            device: 4,
            inode: n,
            cookie: None,
        }
    }

    /// Subnet `s` with two families and possibly other addresses and prefixes (`variant`).
    fn tun(s: u8, variant: u8) -> TunConfig {
        TunConfig {
            subnet: SubnetId([s; 16]),
            name: format!("bw-net{s}"),
            mtu: 1400 + u16::from(variant),
            addresses: vec![
                ip(&format!("10.{s}.{variant}.1")),
                ip(&format!("fd00:{s}::{variant}:1")),
            ],
            prefixes: vec![
                net(&format!("10.{s}.0.0/16")),
                net(&format!("fd00:{s}::/48")),
            ],
            held: vec![],
            host: HostPolicy::Closed,
            others: vec![],
        }
    }

    /// Workload `w` of subnet `s`, in one of two namespaces.
    fn workload(s: u8, w: u8, variant: u8) -> WorkloadConfig {
        let tun = tun(s, variant);
        WorkloadConfig {
            subnet: tun.subnet,
            name: format!("w{w}").parse().unwrap(),
            tun: tun.name,
            host_link: format!("bwv{s:02x}{w:02x}"),
            inner_link: format!("byway{}", s * 4 + w),
            netns: netns(u64::from(w % 2 + variant)),
            mtu: tun.mtu,
            addresses: vec![
                ip(&format!("10.{s}.{variant}.{}", 10 + w)),
                ip(&format!("fd00:{s}::{variant}:1{w}")),
            ],
            gateways: tun.addresses,
            prefixes: tun.prefixes,
            resolv_conf: match (w + variant) % 3 {
                0 => ResolvConf::None,
                1 => ResolvConf::Create(format!("/etc/netns/ns{w}/resolv.conf").into()),
                _ => ResolvConf::Replace(format!("/containers/{w}/resolv.conf").into()),
            },
            search: format!("net{s}.internal"),
            mac: (w == 2).then_some([2, 0, 0, 0, s, w]),
        }
    }

    fn map(s: u8, n: u8) -> MapConfig {
        MapConfig {
            subnet: SubnetId([s; 16]),
            name: format!("m{n}").parse().unwrap(),
            proto: Proto::Tcp,
            listen: ip(if n == 0 { "0.0.0.0" } else { "::" }),
            port: 80,
            target: Some(ip(&if n == 0 {
                format!("10.{s}.0.10")
            } else {
                format!("fd00:{s}::10")
            })),
            target_port: 80,
            local: true,
            source: None,
            allow: Vec::new(),
        }
    }

    fn any_config() -> impl Strategy<Value = HostConfig> {
        let tuns = proptest::collection::btree_map(0u8..3, 0u8..3, 0..3);
        let workloads = proptest::collection::btree_set((0u8..3, 0u8..4), 0..6);
        let maps = proptest::collection::btree_set((0u8..3, 0u8..2), 0..3);
        (tuns, workloads, maps).prop_map(|(tuns, workloads, maps)| HostConfig {
            instance: "01234567".to_owned(),
            workloads: workloads
                .into_iter()
                .filter_map(|(s, w)| tuns.get(&s).map(|variant| workload(s, w, *variant)))
                .collect(),
            tuns: tuns.iter().map(|(s, variant)| tun(*s, *variant)).collect(),
            maps: maps.into_iter().map(|(s, n)| map(s, n)).collect(),
            underlay_ports: Vec::new(),
            connected: Vec::new(),
        })
    }

    /// A kernel with foreign things in it.
    fn kernel(ipv6: bool, force_forwarding: bool) -> Observed {
        let uplink = BTreeSet::from([ip("192.0.2.1"), ip("2001:db8::1")]);
        let mut observed = Observed {
            ipv6,
            force_forwarding,
            uplinks: BTreeMap::from([("eth0".to_owned(), uplink)]),
            ..Observed::default()
        };
        observed.resolvers.insert(
            "/containers/2/resolv.conf".into(),
            "nameserver 192.0.2.53\n".to_owned(),
        );
        observed.resolvers.insert(
            "/etc/netns/ns1/resolv.conf".into(),
            "nameserver 192.0.2.54\n".to_owned(),
        );
        let host = observed.scene(&Namespace::Host);
        host.foreign.insert("eth0".to_owned());
        host.sysctls
            .insert("net/ipv4/conf/eth0/forwarding".to_owned(), "0".to_owned());
        host.sysctls
            .insert("net/ipv6/conf/eth0/accept_ra".to_owned(), "1".to_owned());
        observed
    }

    fn reach(desired: &HostConfig, observed: &mut Observed) -> Vec<Change> {
        let changes = plan(desired, observed);
        for change in &changes {
            observed.absorb(desired, change);
        }
        changes
    }

    /// Someone takes things away.
    fn disturb(observed: &mut Observed, what: u8) {
        let host = observed.scene(&Namespace::Host);
        let first = host.links.keys().next().cloned();
        match (what, first) {
            (0, _) => host.routes.clear(),
            (1, _) => host.rules.clear(),
            (2, Some(first)) => {
                host.links.remove(&first);
                host.routes.retain(|r| r.link != first);
            }
            (3, _) => host.links.values_mut().for_each(|link| link.up = false),
            (4, _) => host
                .links
                .values_mut()
                .for_each(|link| link.addresses.clear()),
            (5, _) => host
                .links
                .values_mut()
                .for_each(|link| link.name = format!("{}x", link.name)),
            (6, _) => host.sysctls.clear(),
            (7, _) => host.links.values_mut().for_each(|link| {
                link.addresses.insert("198.51.100.1".parse().unwrap());
            }),
            (8, _) => observed.places.retain(|place, _| *place == Namespace::Host),
            _ => host.links.values_mut().for_each(|link| link.alias.clear()),
        }
    }

    proptest! {
        #[test]
        fn plan_of_reached_state_is_empty(
            configs in proptest::collection::vec((any_config(), proptest::option::of(0u8..10)), 1..4),
            ipv6: bool,
            force: bool,
        ) {
            let mut observed = kernel(ipv6, force);
            for (desired, disturbance) in configs {
                reach(&desired, &mut observed);
                prop_assert_eq!(plan(&desired, &observed), Vec::new());
                if let Some(what) = disturbance {
                    disturb(&mut observed, what);
                    reach(&desired, &mut observed);
                    prop_assert_eq!(plan(&desired, &observed), Vec::new());
                }
            }
        }

        #[test]
        fn empty_config_leaves_no_trace(desired in any_config(), ipv6: bool, force: bool) {
            let mut observed = kernel(ipv6, force);
            reach(&desired, &mut observed);
            reach(&HostConfig { instance: desired.instance, ..HostConfig::default() }, &mut observed);
            for scene in observed.places.values() {
                prop_assert!(scene.links.is_empty() && scene.routes.is_empty() && scene.rules.is_empty());
            }
            prop_assert!(observed.kept_sysctls.is_empty() && observed.kept_resolvers.is_empty());
        }

        #[test]
        fn nothing_is_deleted_before_the_last_add(from in any_config(), to in any_config()) {
            let mut observed = kernel(true, true);
            reach(&from, &mut observed);
            let changes = plan(&to, &observed);
            let made: Vec<_> = changes.iter().filter_map(|c| match c {
                Change::CreateVeth(w) => Some(w.host_link.clone()),
                _ => None,
            }).collect();
            let deletes = |c: &Change| match c {
                Change::DelAddress { .. } | Change::DelRoute { .. } | Change::DelRule { .. } | Change::CloseTun { .. } => true,
                // A pair whose far end has to be elsewhere makes room for itself.
                Change::DeleteLink { link, .. } => !made.contains(link),
                _ => false,
            };
            if let Some(first) = changes.iter().position(deletes) {
                let adds = |c: &Change| matches!(
                    c,
                    Change::AddAddress { .. } | Change::SetRoute { .. } | Change::OpenTun(_) | Change::CreateVeth(_)
                );
                prop_assert!(!changes[first..].iter().any(adds));
            }
        }
    }

    fn one() -> HostConfig {
        HostConfig {
            instance: "01234567".to_owned(),
            tuns: vec![tun(1, 0)],
            workloads: vec![workload(1, 0, 0)],
            ..HostConfig::default()
        }
    }

    #[test]
    fn foreign_kernel_objects_survive() {
        let mut observed = kernel(true, true);
        observed
            .scene(&Namespace::Host)
            .foreign
            .insert("bw-net1".to_owned());
        let changes = plan(&one(), &observed);
        assert!(changes.contains(&Change::Conflict {
            place: Namespace::Host,
            link: "bw-net1".to_owned()
        }));
        let touches = |c: &Change| match c {
            Change::OpenTun(t) => t.name == "bw-net1",
            Change::SetLink { link, .. } | Change::AddAddress { link, .. } => link == "bw-net1",
            Change::SetRoute { route, .. } => route.link == "bw-net1",
            _ => false,
        };
        assert!(!changes.iter().any(touches), "{changes:?}");
        // A resolver that is already there is not replaced by one we would only have made.
        let mut desired = one();
        desired.workloads[0].resolv_conf = ResolvConf::Create("/etc/netns/ns1/resolv.conf".into());
        assert!(
            !plan(&desired, &observed)
                .iter()
                .any(|c| matches!(c, Change::WriteResolver { .. }))
        );
    }

    #[test]
    fn what_a_container_searched_and_asked_before_stays() {
        let mut desired = one();
        let path = PathBuf::from("/containers/1/resolv.conf");
        desired.workloads[0].resolv_conf = ResolvConf::Replace(path.clone());
        let mut observed = kernel(true, true);
        let before =
            "search corp.example net1.internal\nnameserver 127.0.0.11\noptions ndots:0 timeout:1\n";
        observed.formers.insert(path.clone(), before.to_owned());
        let written = plan(&desired, &observed)
            .into_iter()
            .find_map(|change| match change {
                Change::WriteResolver { text, .. } => Some(text),
                _ => None,
            });
        let text = written.unwrap();
        assert!(
            text.contains("search net1.internal corp.example\n"),
            "{text}"
        );
        assert!(
            text.contains("options ndots:0 timeout:1\n") && !text.contains("127.0.0.11"),
            "{text}"
        );
        let asked = super::super::former_servers(&desired, &observed);
        assert_eq!(
            asked[&path].iter().map(|s| s.ip).collect::<Vec<_>>(),
            [ip("127.0.0.11")]
        );
        // A file that we make where there was none takes nobody's place.
        desired.workloads[0].resolv_conf = ResolvConf::Create(path);
        assert!(super::super::former_servers(&desired, &observed).is_empty());
    }

    #[test]
    fn rules_stay_while_another_daemon_has_routes() {
        let mut observed = kernel(true, true);
        reach(&one(), &mut observed);
        observed.table_shared = true;
        let changes = plan(
            &HostConfig {
                instance: one().instance,
                ..HostConfig::default()
            },
            &observed,
        );
        assert!(!changes.iter().any(|c| matches!(
            c,
            Change::DelRule {
                place: Namespace::Host,
                ..
            }
        )));
    }

    #[test]
    fn dead_workload_is_removed_and_unreadable_one_stays() {
        let mut observed = kernel(true, true);
        let desired = one();
        reach(&desired, &mut observed);
        let mut unreadable = observed.clone();
        unreadable
            .unreadable
            .insert(desired.workloads[0].netns.clone());
        unreadable
            .places
            .retain(|place, _| *place == Namespace::Host);
        assert_eq!(plan(&desired, &unreadable), Vec::new());
        observed.dead.insert((
            desired.workloads[0].subnet,
            desired.workloads[0].name.clone(),
        ));
        observed.places.retain(|place, _| *place == Namespace::Host);
        let changes = reach(&desired, &mut observed);
        assert!(
            changes
                .iter()
                .any(|c| matches!(c, Change::DeleteLink { .. })),
            "{changes:?}"
        );
        assert!(
            !observed.places[&Namespace::Host]
                .routes
                .iter()
                .any(|r| r.link.starts_with("bwv"))
        );
    }

    #[test]
    fn changed_source_replaces_the_route() {
        let mut observed = kernel(true, true);
        reach(&one(), &mut observed);
        let mut desired = one();
        desired.tuns[0].addresses = vec![ip("10.1.9.9")];
        let changes = plan(&desired, &observed);
        let route = Route {
            table: TABLE,
            destination: net("10.1.0.0/16"),
            link: "bw-net1".to_owned(),
            gateway: None,
            source: Some(ip("10.1.9.9")),
        };
        assert!(changes.contains(&Change::SetRoute {
            place: Namespace::Host,
            route,
            replace: true
        }));
        assert!(
            !changes
                .iter()
                .any(|c| matches!(c, Change::DelRoute { route, .. } if route.destination == net("10.1.0.0/16")))
        );
    }
}
