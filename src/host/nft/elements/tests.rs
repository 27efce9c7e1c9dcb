//! Which elements a configuration asks for, and that a difference of two leads from one to the other.

use std::net::IpAddr;

use super::super::atom::text;
use super::*;
use crate::model::host::{MapConfig, NetnsRef, Proto, ResolvConf};
use proptest::prelude::*;

/// The elements of `config` where nothing is barred.
pub fn elements(config: &HostConfig) -> (Elements, Vec<Failure>) {
    Elements::of(config, &Barred::default(), &Crowd::new())
}

pub fn subnet(n: u8) -> SubnetId {
    SubnetId([n; 16])
}

/// Subnet `n`: 10.N.0.0/16 and fdN::/48, this node at .1.
pub fn tun(n: u8) -> TunConfig {
    TunConfig {
        subnet: subnet(n),
        name: format!("bw-net{n}"),
        mtu: 1420,
        addresses: vec![
            IpAddr::from([10, n, 1, 1]),
            format!("fd00:{n}::1").parse().unwrap(),
        ],
        prefixes: vec![
            format!("10.{n}.0.0/16").parse().unwrap(),
            format!("fd00:{n}::/48").parse().unwrap(),
        ],
        held: vec![],
        host: HostPolicy::Closed,
        others: vec![],
    }
}

pub fn workload(n: u8, host: u8) -> WorkloadConfig {
    WorkloadConfig {
        subnet: subnet(n),
        name: format!("w{n}-{host}").parse().unwrap(),
        tun: format!("bw-net{n}"),
        host_link: format!("bwv{n:04}{host:04}"),
        inner_link: "byway0".to_owned(),
        netns: Some(NetnsRef {
            path: "/run/netns/none".into(),
            device: 0,
            inode: 0,
            cookie: None,
        }),
        by_engine: false,
        tap: None,
        mtu: 1420,
        addresses: vec![
            IpAddr::from([10, n, 1, host]),
            format!("fd00:{n}::{host}").parse().unwrap(),
        ],
        gateways: vec![
            IpAddr::from([10, n, 1, 1]),
            format!("fd00:{n}::1").parse().unwrap(),
        ],
        prefixes: vec![],
        resolv_conf: ResolvConf::None,
        search: "net.internal".to_owned(),
        mac: None,
    }
}

pub fn map(
    n: u8,
    proto: Proto,
    listen: &str,
    port: u16,
    target: &str,
    target_port: u16,
) -> MapConfig {
    let listen: IpAddr = listen.parse().unwrap();
    MapConfig {
        subnet: subnet(n),
        name: format!("m{port}").parse().unwrap(),
        proto,
        listen,
        port,
        target: Some(target.parse().unwrap()),
        target_port,
        local: true,
        source: tun(n)
            .addresses
            .into_iter()
            .find(|a| a.is_ipv4() == listen.is_ipv4()),
        allow: vec![],
        draining: false,
    }
}

pub fn config() -> HostConfig {
    HostConfig {
        instance: "0123abcd".to_owned(),
        tuns: vec![tun(7), tun(8)],
        workloads: vec![workload(7, 2), workload(8, 2)],
        maps: vec![],
        underlay_ports: vec![4001],
        resting: BTreeSet::new(),
        connected: vec![],
    }
}

prop_compose! {
    fn any_map()(n in 7u8..9, tcp: bool, v6: bool, any in 0u8..3, port in 1u16..6, host in 2u8..5, to in 1u16..4,
                 local: bool, allow in proptest::collection::vec(0u8..4, 0..3)) -> MapConfig {
        let listen = match (v6, any) {
            (false, 0) => "0.0.0.0", (false, 1) => "192.0.2.1", (false, _) => "127.0.0.1",
            (true, 0) => "::", (true, 1) => "2001:db8::1", (true, _) => "::1",
        };
        let target = if v6 { format!("fd00:{n}::{host}") } else { format!("10.{n}.1.{host}") };
        let proto = if tcp { Proto::Tcp } else { Proto::Udp };
        let mut map = map(n, proto, listen, port, &target, to);
        map.local = local;
        map.allow = allow.into_iter().map(|a| match v6 {
            false => format!("203.0.{a}.0/{}", 22 + a).parse().unwrap(),
            true => format!("2001:db8:{a}::/{}", 46 + a).parse().unwrap(),
        }).collect();
        map
    }
}

prop_compose! {
    fn any_config()(tuns in proptest::collection::btree_set(7u8..10, 1..3),
                    hosts in proptest::collection::btree_set((7u8..10, 2u8..5), 0..4),
                    maps in proptest::collection::vec(any_map(), 0..8),
                    hosts_of in proptest::sample::select(vec!["closed", "open", "tcp/22", "tcp/22-30,udp/5", "tcp/25-40"]),
                    others in proptest::collection::vec((2u8..5, 20u8..=32), 0..4)) -> HostConfig {
        HostConfig {
            instance: "0123abcd".to_owned(),
            tuns: tuns
                .into_iter()
                .map(|n| TunConfig {
                    host: hosts_of.parse().unwrap(),
                    others: others.iter().map(|(m, len)| format!("10.{n}.{m}.0/{len}").parse().unwrap()).collect(),
                    ..tun(n)
                })
                .collect(),
            workloads: hosts.into_iter().map(|(n, h)| workload(n, h)).collect(),
            maps,
            underlay_ports: vec![5],
            resting: BTreeSet::new(),
        connected: vec![],
        }
    }
}

proptest! {
    #[test]
    fn deltas_reach_what_a_fresh_table_holds(a in any_config(), b in any_config()) {
        let (a, b) = (elements(&a).0, elements(&b).0);
        let mut model = Elements { sets: a.spelled_out(), ..Elements::default() };
        let delta = a.delta(&b);
        for (set, keys) in &delta.delete {
            for key in keys {
                prop_assert!(model.sets.get_mut(set).unwrap().remove(key).is_some(), "deletes what is there");
            }
        }
        for (set, elements) in &delta.add {
            for (key, value) in elements {
                prop_assert!(!model.sets.get(set).is_some_and(|s| s.contains_key(key)), "adds what is not there");
                model.insert(set.clone(), key.clone(), value.clone());
            }
        }
        // What is listed is the same once it is put together, and not before.
        prop_assert_eq!(model.same(&b), b.maps.is_empty());
        prop_assert_eq!(model.ended(&b), vec![]);
        model.gather();
        prop_assert!(model.same(&b));
        prop_assert!(b.delta(&b).is_empty());
    }

    #[test]
    fn removing_a_map_undoes_adding_it(before in any_config(), map in any_map()) {
        let mut after = before.clone();
        after.maps.push(map);
        let (before, after) = (elements(&before).0, elements(&after).0);
        let (forth, back) = (before.delta(&after), after.delta(&before));
        let keys = |d: &Delta| d.add.iter().map(|(s, e)| (s.clone(), e.len())).collect::<Vec<_>>();
        let gone = |d: &Delta| d.delete.iter().map(|(s, e)| (s.clone(), e.len())).collect::<Vec<_>>();
        prop_assert_eq!(keys(&forth), gone(&back));
    }
}

#[test]
fn a_map_of_an_underlay_port_is_refused() {
    let mut config = config();
    config
        .maps
        .push(map(7, Proto::Udp, "0.0.0.0", 4001, "10.7.1.2", 80));
    let (elements, failures) = elements(&config);
    assert!(elements.targets().is_empty());
    assert_eq!(failures.len(), 1, "{failures:?}");
}

#[test]
fn two_maps_never_share_a_key() {
    let mut config = config();
    config
        .maps
        .push(map(7, Proto::Tcp, "0.0.0.0", 80, "10.7.1.2", 80));
    config
        .maps
        .push(map(8, Proto::Tcp, "0.0.0.0", 80, "10.8.1.2", 80));
    let (elements, failures) = elements(&config);
    assert_eq!(
        elements.targets().into_values().collect::<Vec<_>>(),
        [("10.7.1.2".parse().unwrap(), 80)]
    );
    assert_eq!(failures.len(), 1, "{failures:?}");
}

#[test]
fn overlapping_allow_prefixes_become_one() {
    let mut config = config();
    let mut m = map(7, Proto::Tcp, "0.0.0.0", 80, "10.7.1.2", 80);
    m.allow = vec![
        "192.0.2.0/24".parse().unwrap(),
        "192.0.2.7/32".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    config.maps.push(m);
    let (elements, _) = elements(&config);
    assert_eq!(
        elements
            .spelled_out()
            .get("allowed_any4")
            .into_iter()
            .flatten()
            .map(|(k, _)| text(k))
            .collect::<Vec<_>>(),
        ["tcp . 80 . 192.0.2.0/24"]
    );
    assert_eq!(elements.spelled_out()["guarded_any4"].len(), 1);
}

#[test]
fn a_narrower_allow_list_ends_flows_of_the_map_only() {
    let mut config = config();
    config
        .maps
        .push(map(7, Proto::Tcp, "0.0.0.0", 80, "10.7.1.2", 80));
    config
        .maps
        .push(map(7, Proto::Udp, "192.0.2.1", 53, "10.7.1.2", 53));
    let before = elements(&config).0;
    config.maps[0].allow = vec!["192.0.2.0/24".parse().unwrap()];
    let after = elements(&config).0;
    let ended = before.ended(&after);
    assert_eq!(ended.iter().map(|(k, _)| k.port).collect::<Vec<_>>(), [80]);
    assert!(after.ended(&after).is_empty());
}

#[test]
fn a_map_that_drains_lets_nobody_in_and_ends_no_flow_until_it_is_removed() {
    let mut config = config();
    let target = "10.7.1.2";
    config.maps = vec![map(7, Proto::Tcp, "0.0.0.0", 80, target, 80)];
    let open = elements(&config).0;
    config.maps[0].draining = true;
    let shut = elements(&config).0;
    let key = MapKey::of(&config.maps[0]);
    let sets = shut.spelled_out();
    assert!(
        sets["guarded_any4"].contains_key(&key.tuple()) && !sets.contains_key("allowed_any4"),
        "guarded, and nobody is allowed"
    );
    let led = BTreeMap::from([(key, (target.parse::<IpAddr>().unwrap(), 80))]);
    assert_eq!((open.targets(), shut.targets()), (led.clone(), led.clone()));
    // Flows go on both ways. What a client said to the closed port is forgotten when that opens again.
    assert_eq!((open.ended(&shut), shut.ended(&open)), (vec![], vec![]));
    assert_eq!(open.resumed(&shut), []);
    assert_eq!(shut.resumed(&open), led.into_iter().collect::<Vec<_>>());
    let gone = Elements::default();
    assert_eq!((shut.ended(&gone).len(), shut.resumed(&gone)), (1, vec![]));
}

#[test]
fn policies_are_read_back_and_hold_for_every_link_of_their_subnet() {
    for spec in ["closed", "open", "tcp/22", "tcp/22,tcp/8000-8010,udp/53"] {
        let mut config = config();
        config.tuns[0].host = spec.parse().unwrap();
        let of = elements(&config).0;
        for link in ["bw-net7", "bwv00070002"] {
            assert_eq!(of.policy(link), Some(spec.parse().unwrap()), "{link}");
        }
        for link in ["bw-net8", "bwv00080002"] {
            assert_eq!(of.policy(link), Some(HostPolicy::Closed), "{link}");
        }
        assert_eq!(of.policy("eth0"), None);
    }
}

#[test]
fn a_lease_inside_another_has_no_quota_of_its_own() {
    let mut config = config();
    let nets = |list: &[&str]| {
        list.iter()
            .map(|net| net.parse().unwrap())
            .collect::<Vec<IpNet>>()
    };
    config.tuns[0].others = nets(&[
        "10.7.3.5/32",
        "10.7.2.0/24",
        "10.7.3.0/24",
        "fd00:7:0:2::/64",
    ]);
    config.tuns[1].others = nets(&["10.7.3.64/26", "10.8.3.0/24"]);
    let of = elements(&config).0;
    let set = |name: &str| {
        of.in_set(name)
            .map(|(key, _)| text(key))
            .collect::<Vec<_>>()
    };
    assert_eq!(set("crowd4"), ["10.7.2.0/24", "10.7.3.0/24", "10.8.3.0/24"]);
    assert_eq!(set("crowd6"), ["fd00:7:0:2::/64"]);
}

/// What another program took from a map in the kernel, or added to it, is seen, and the flows of what is left end.
#[test]
fn a_map_that_lacks_an_element_is_not_ours() {
    let mut config = config();
    let mut guarded = map(7, Proto::Tcp, "0.0.0.0", 80, "10.7.1.2", 80);
    guarded.allow = vec!["192.0.2.0/24".parse().unwrap()];
    config.maps.push(guarded);
    let whole = elements(&config).0;
    let key = *whole.targets().keys().next().unwrap();
    for (set, elements) in whole.spelled_out() {
        if !set.ends_with("any4") {
            continue;
        }
        for element in elements.keys() {
            let mut listed = Elements {
                sets: whole.spelled_out(),
                ..Elements::default()
            };
            listed.sets.get_mut(&set).unwrap().remove(element);
            listed.gather();
            assert!(!listed.same(&whole), "{set}");
            // Without its target it has no flows.
            let left = usize::from(set != "any4");
            assert_eq!(listed.targets().len(), left, "{set}");
            assert_eq!(listed.ended(&Elements::default()).len(), left, "{set}");
        }
    }
    let mut listed = whole.clone();
    let more = [
        key.tuple(),
        vec![Atom::net("198.51.100.0/24".parse().unwrap())],
    ]
    .concat();
    listed.insert("allowed_any4", more, None);
    listed.sets = listed.spelled_out();
    listed.maps.clear();
    listed.gather();
    assert!(!listed.same(&whole));
    assert_eq!(listed.ended(&whole).len(), 1);
}

#[test]
fn names_that_would_be_wildcards_are_refused() {
    let mut config = config();
    config.workloads[0].host_link = "bwv*".to_owned();
    let (elements, failures) = elements(&config);
    assert_eq!(elements.in_set("workloads").count(), 1);
    assert_eq!(failures.len(), 1);
}
