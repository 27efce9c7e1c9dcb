//! A plan leads from whatever is seen to what is desired, and to nothing when it is reached.

mod taps;

use super::*;
use crate::model::host::{
    HostPolicy, MapConfig, Namespace, NetnsRef, Part, Proto, Route, TABLE, TunConfig, alias,
    inner_mac,
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
        netns: Some(netns(u64::from(w % 2 + variant))),
        by_engine: false,
        tap: None,
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
        draining: false,
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
        resting: BTreeSet::new(),
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
    let host = observed.namespace_mut(&Namespace::Host);
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
    let host = observed.namespace_mut(&Namespace::Host);
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
        (8, _) => observed.namespaces.retain(|ns, _| *ns == Namespace::Host),
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
        for state in observed.namespaces.values() {
            prop_assert!(state.links.is_empty() && state.routes.is_empty() && state.rules.is_empty());
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
        .namespace_mut(&Namespace::Host)
        .foreign
        .insert("bw-net1".to_owned());
    let changes = plan(&one(), &observed);
    assert!(changes.contains(&Change::Conflict {
        ns: Namespace::Host,
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
            ns: Namespace::Host,
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
        .insert(desired.workloads[0].netns.clone().unwrap());
    unreadable.namespaces.retain(|ns, _| *ns == Namespace::Host);
    assert_eq!(plan(&desired, &unreadable), Vec::new());
    observed.dead.insert((
        desired.workloads[0].subnet,
        desired.workloads[0].name.clone(),
    ));
    observed.namespaces.retain(|ns, _| *ns == Namespace::Host);
    let changes = reach(&desired, &mut observed);
    assert!(
        changes
            .iter()
            .any(|c| matches!(c, Change::DeleteLink { .. })),
        "{changes:?}"
    );
    assert!(
        !observed.namespaces[&Namespace::Host]
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
        ns: Namespace::Host,
        route,
        replace: true
    }));
    assert!(!changes.iter().any(
        |c| matches!(c, Change::DelRoute { route, .. } if route.destination == net("10.1.0.0/16"))
    ));
}

#[test]
fn each_change_is_of_the_part_it_is_made_for() {
    let desired = HostConfig {
        instance: "01234567".to_owned(),
        tuns: vec![tun(1, 0), tun(2, 0)],
        workloads: vec![workload(1, 1, 0), workload(1, 2, 0), workload(2, 4, 0)],
        ..HostConfig::default()
    };
    let part = |w: usize| Part::from(&desired.workloads[w]);
    let mut seen = BTreeSet::new();
    for change in plan(&desired, &kernel(true, true)) {
        let text = change.to_string();
        let parts = desired.parts_of(&change);
        let mut wanted = BTreeSet::new();
        for (w, workload) in desired.workloads.iter().enumerate() {
            let link = if *change.namespace() == Namespace::Host {
                &workload.host_link
            } else {
                &workload.inner_link
            };
            if text.contains(link.as_str()) {
                wanted.insert(part(w));
            }
        }
        for tun in desired.tuns.iter().filter(|tun| text.contains(&tun.name)) {
            wanted.insert(Part::Subnet(tun.subnet));
        }
        if !wanted.is_empty() {
            assert_eq!(parts, wanted, "{text}");
        }
        if matches!(change, Change::AddRule { .. }) && *change.namespace() == Namespace::Host {
            assert_eq!(parts, [Part::Machine].into(), "{text}");
        }
        assert!(!parts.contains(&Part::Former), "{text}");
        seen.extend(parts);
    }
    let all = [
        Part::Machine,
        Part::Subnet(SubnetId([1; 16])),
        Part::Subnet(SubnetId([2; 16])),
    ];
    assert_eq!(seen, (0..3).map(part).chain(all).collect());
    // Workloads 1 and 2 of different subnets share a namespace: what one of them does there is not the other's.
    let squatted = Change::Conflict {
        ns: Namespace::Netns(desired.workloads[1].netns.clone().unwrap()),
        link: desired.workloads[1].inner_link.clone(),
    };
    assert_eq!(desired.workloads[1].netns, desired.workloads[2].netns);
    assert_eq!(desired.parts_of(&squatted), [part(1)].into());
    let left = Change::DeleteLink {
        link: "bwvold".to_owned(),
        name: "bwvold".to_owned(),
    };
    assert_eq!(desired.parts_of(&left), [Part::Former].into());
}

#[test]
fn a_link_that_waits_for_its_engine_is_made_once_and_then_taken_over() {
    let mut observed = kernel(true, true);
    let mut desired = one();
    let netns = desired.workloads[0].netns.take().unwrap();
    desired.workloads[0].by_engine = true;
    let changes = plan(&desired, &observed);
    let made = |c: &&Change| matches!(c, Change::CreateVeth(w) if w.netns.is_none());
    assert_eq!(changes.iter().filter(made).count(), 1);
    let inside = |c: &Change| *c.namespace() == Namespace::Netns(netns.clone());
    assert!(
        !changes.iter().any(inside),
        "nothing is known of its container"
    );
    reach(&desired, &mut observed);
    assert_eq!(
        plan(&desired, &observed),
        Vec::new(),
        "where the end is now is the engine's matter"
    );
    // The engine has moved it, and called it otherwise.
    let workload = &mut desired.workloads[0];
    workload.netns = Some(netns.clone());
    workload.inner_link = "eth0".to_owned();
    let link = Link {
        name: "eth0".to_owned(),
        mac: Some(inner_mac(&desired.instance, &workload.host_link)),
        ..Link::default()
    };
    let ns = Namespace::Netns(netns);
    observed
        .namespace_mut(&ns)
        .links
        .insert("eth0".to_owned(), link);
    let changes = plan(&desired, &observed);
    let remade = |c: &Change| {
        matches!(
            c,
            Change::CreateVeth(_) | Change::DeleteLink { .. } | Change::Rename { .. }
        )
    };
    assert!(!changes.iter().any(remade), "{changes:?}");
    let routes = changes.iter().filter_map(|c| match c {
        Change::SetRoute {
            ns: at, replace, ..
        } if *at == ns => Some(*replace),
        _ => None,
    });
    let routes: Vec<bool> = routes.collect();
    assert!(
        !routes.is_empty() && routes.iter().all(|replace| *replace),
        "the engine's are in their place"
    );
    reach(&desired, &mut observed);
    assert_eq!(plan(&desired, &observed), Vec::new());
}
