//! Who is told the names of which subnet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::rr::RecordType;
use hickory_server::net::xfer::Protocol;
use ipnet::IpNet;

use super::super::question::Asker;
use super::{
    Catalog, Dns, DnsConfig, Found, Handler, Outcome, QueryError, Served, Shared, absolute,
    handler, question, read_answer, subnet, view, zone,
};
use crate::model::host::{HostConfig, NetnsRef, ResolvConf, WorkloadConfig};
use crate::model::id::SubnetId;
use crate::model::zone::{Entry, RecordData, Zone};

#[tokio::test]
async fn query_finds_short_names_pointers_and_nothing() {
    let dns = Dns::new(DnsConfig::default());
    let now = view(vec![subnet(1, &["127.0.9.1"], zone::tests::lab())]);
    let found = dns.query(&now, "db", "A").await.unwrap();
    let expected = Found {
        name: "db.lab.internal".into(),
        kind: "A".into(),
        ttl: 60,
        value: "10.42.7.20".into(),
    };
    assert_eq!((found.records, found.authoritative), (vec![expected], true));
    let pointer = dns.query(&now, "10.42.7.20", "PTR").await.unwrap();
    assert_eq!(
        pointer.records.first().map(|r| r.value.as_str()),
        Some("db.lab.internal")
    );
    assert_eq!(
        dns.query(&now, "nobody", "A").await.unwrap().outcome,
        Outcome::NoSuchName
    );
    assert_eq!(
        dns.query(&now, "x.lab.internal", "A")
            .await
            .unwrap()
            .outcome,
        Outcome::NoSuchName
    );
    assert_eq!(
        dns.query(&now, "db", "NONSENSE").await,
        Err(QueryError::Kind("NONSENSE".into()))
    );
    assert_eq!(
        dns.query(&now, "a..b", "A").await,
        Err(QueryError::Name("a..b".into()))
    );
    assert_eq!(
        dns.query(&view(vec![]), "a.b", "A").await,
        Err(QueryError::NoSubnet)
    );
}

#[tokio::test]
async fn a_name_of_several_labels_is_asked_for_as_it_was_added() {
    let service = RecordData::Srv {
        priority: 0,
        weight: 0,
        port: 80,
        target: "web".to_owned(),
    };
    let names = [
        ("_http._tcp", service),
        ("a", address("10.42.0.1")),
        ("web.a", address("10.42.0.9")),
        ("com", address("10.42.0.1")),
        ("www.example.com", address("10.42.0.8")),
        ("*", address("10.42.0.8")),
    ];
    // The name and another type of it are in the first one too.
    let text = |t: &str| RecordData::Txt(t.to_owned());
    let names_of_one = [
        ("web", text("one")),
        ("a", address("10.41.0.1")),
        ("web.a", text("one")),
        ("_http._tcp", text("one")),
    ];
    let pointed = |origin: &str, names: &[_], machine: &str| {
        let mut zone = Zone::clone(&zone_of(origin, names));
        zone.point(machine.parse().unwrap(), format!("a.{origin}").into());
        Arc::new(zone)
    };
    let one = pointed("one.internal", &names_of_one, "10.41.0.1");
    let mut one = subnet(1, &["127.0.9.1"], one);
    one.hosts = Arc::new(["10.41.0.1".parse().unwrap()].into());
    let two = pointed("two.internal", &names, "10.42.0.1");
    let two = subnet(2, &["10.42.0.1"], two);
    let now = view(vec![one, two]);
    let dns = Dns::new(DnsConfig::default());
    let asked = async |name: &str, kind: &str| {
        let found = dns.query(&now, name, kind).await.unwrap();
        let first = found.records.first().map(|r| r.name.clone());
        (first, found.outcome)
    };
    for (name, kind) in [("_http._tcp", "SRV"), ("web.a", "A"), ("WEB.A", "a")] {
        let (first, outcome) = asked(name, kind).await;
        assert_eq!(outcome, Outcome::Exists, "{name}");
        let full = format!("{}.two.internal", name.to_ascii_lowercase());
        assert_eq!(first.map(|n| n.to_ascii_lowercase()), Some(full));
    }
    let (first, _) = asked("web.a", "TXT").await;
    assert_eq!(first.as_deref(), Some("web.a.one.internal"));
    // Absolute, or of nobody here: for the host's resolvers, whatever a name that stands for all would answer, and whatever
    // somebody added that is a name outside.
    for name in ["web.a.", "example.org", "www.example.com"] {
        assert_eq!(asked(name, "A").await, (None, Outcome::Refused), "{name}");
    }
}

/// A zone with these names.
fn zone_of(origin: &str, names: &[(&str, RecordData)]) -> Arc<Zone> {
    let mut zone = Zone::empty(&"x".parse().unwrap());
    zone.origin = origin.to_owned();
    for (name, data) in names {
        zone.add(
            name,
            Entry {
                ttl: 60,
                data: data.clone(),
            },
        );
    }
    Arc::new(zone)
}

fn address(text: &str) -> RecordData {
    RecordData::Address(text.parse().unwrap())
}

#[tokio::test]
async fn who_is_in_two_subnets_is_told_the_names_of_both_at_each_resolver_and_nobody_else_is() {
    let alias = RecordData::Cname("other.two.internal".to_owned());
    let one = zone_of(
        "one.internal",
        &[("web", address("10.41.0.9")), ("across", alias)],
    );
    let two = zone_of("two.internal", &[("other", address("10.42.0.77"))]);
    let mut subnets = vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ];
    for (subnet, cidr) in subnets.iter_mut().zip(["10.41.0.0/16", "10.42.0.0/16"]) {
        subnet.cidr4 = Some(cidr.parse().unwrap());
    }
    let mut now = view(subnets);
    // A namespace in both subnets, one in the first, one in the second.
    let apart = |mut workload: WorkloadConfig, inode| {
        workload.netns.as_mut().unwrap().inode = inode;
        workload
    };
    let both = [workload(1, "10.41.0.20"), workload(2, "10.42.0.20")];
    let workloads = both.into_iter().chain([
        apart(workload(1, "10.41.0.30"), 1),
        apart(workload(2, "10.42.0.30"), 2),
    ]);
    now.host = Arc::new(HostConfig {
        workloads: workloads.collect(),
        ..HostConfig::default()
    });
    let shared = Arc::new(Shared::new());
    let told = |subnet: u8, source: &str, name: &str| {
        let served = Catalog::default()
            .update(&now, false)
            .remove(&SubnetId([subnet; 16]))
            .unwrap();
        let handler = Handler::new(Arc::new(ArcSwap::from_pointee(served)), Arc::clone(&shared));
        let source = SocketAddr::new(source.parse().unwrap(), 999);
        let reply = handler::answer(
            Arc::new(handler),
            question(name, RecordType::A),
            source,
            Protocol::Udp,
        );
        let answer = futures::executor::block_on(reply).map(|reply| read_answer(&reply))?;
        answer.records.last().map(|record| record.value.clone())
    };
    let all = [
        ("web.one.internal", "10.41.0.9"),
        ("other.two.internal", "10.42.0.77"),
        ("across.one.internal", "10.42.0.77"),
    ];
    for source in [
        "127.0.0.1",
        "10.41.0.1",
        "10.42.0.1",
        "10.41.0.20",
        "10.42.0.20",
    ] {
        for ((name, value), subnet) in all.iter().flat_map(|name| [(name, 1), (name, 2)]) {
            assert_eq!(
                told(subnet, source, name).as_deref(),
                Some(*value),
                "{source} asks for {name} at {subnet}"
            );
        }
    }
    for (subnet, source, foreign) in [
        (1, "10.41.0.30", "other.two.internal"),
        (2, "10.42.0.30", "web.one.internal"),
    ] {
        assert_eq!(
            told(subnet, source, foreign),
            None,
            "{source} is in one of them"
        );
        assert_eq!(
            told(3 - subnet, source, foreign),
            None,
            "{source} may not even ask there"
        );
    }
    // Members elsewhere and workloads of one subnet hear of the alias and no more.
    for source in ["10.41.7.7", "10.41.0.30"] {
        assert_eq!(
            told(1, source, "across.one.internal").as_deref(),
            Some("other.two.internal"),
            "{source}"
        );
        assert_eq!(told(1, source, "other.two.internal"), None, "{source}");
    }
}

#[tokio::test]
async fn two_subnets_with_one_domain_do_not_hide_each_other() {
    let zones = [
        zone_of("lab.internal", &[("web", address("10.41.0.9"))]),
        zone_of("lab.internal", &[("db", address("10.42.0.9"))]),
    ];
    let [one, two] = zones;
    let now = view(vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ]);
    let dns = Dns::new(DnsConfig::default());
    for (name, value) in [
        ("web", "10.41.0.9"),
        ("db", "10.42.0.9"),
        ("web.lab.internal", "10.41.0.9"),
        ("db.lab.internal", "10.42.0.9"),
    ] {
        let found = dns.query(&now, name, "A").await.unwrap();
        assert_eq!(
            found.records.first().map(|r| r.value.as_str()),
            Some(value),
            "{name}"
        );
    }
    assert_eq!(
        dns.query(&now, "x.lab.internal", "A")
            .await
            .unwrap()
            .outcome,
        Outcome::NoSuchName
    );
}

#[tokio::test]
async fn aliases_that_lead_to_each_other_across_subnets_end() {
    let cname = |target: &str| RecordData::Cname(target.to_owned());
    let one = zone_of("one.internal", &[("a", cname("a.two.internal"))]);
    let two = zone_of("two.internal", &[("a", cname("a.one.internal"))]);
    let now = view(vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ]);
    let answer = Dns::new(DnsConfig::default())
        .query(&now, "a.one.internal", "A")
        .await
        .unwrap();
    assert_eq!(answer.outcome, Outcome::Failed);
}

#[test]
fn workloads_belong_to_their_own_subnet_and_a_zone_ends_with_its_subnet() {
    let lab = subnet(1, &["10.42.7.1"], zone::tests::lab());
    let mut other = Zone::empty(&"prod".parse().unwrap());
    other.prefixes = vec!["10.50.0.0/16".parse::<IpNet>().unwrap()];
    let prod = subnet(2, &["10.50.7.1"], Arc::new(other));
    let mut now = view(vec![lab.clone(), prod]);
    now.host = Arc::new(HostConfig {
        workloads: vec![workload(2, "10.50.7.9")],
        ..HostConfig::default()
    });
    let mut catalog = Catalog::default();
    let served = catalog.update(&now, true);
    let (one, two) = (SubnetId([1; 16]), SubnetId([2; 16]));
    let workload: IpAddr = "10.50.7.9".parse().unwrap();
    assert_eq!(
        served.get(&two).map(|s| s.asker(workload)),
        Some(Asker::Workload)
    );
    assert_eq!(
        served.get(&one).map(|s| s.asker(workload)),
        Some(Asker::Foreign)
    );
    let name = absolute("db.prod.internal").unwrap();
    let machine = |served: &BTreeMap<SubnetId, Served>| {
        served.get(&one).is_some_and(|s| s.all.owned.covers(&name))
    };
    let told = |served: &BTreeMap<SubnetId, Served>| {
        served
            .get(&two)
            .map(|s| s.workloads.get(&workload).cloned())
    };
    assert!(
        machine(&served)
            && told(&served)
                .flatten()
                .is_some_and(|reach| reach.owned.covers(&name))
    );
    let served = catalog.update(&view(vec![lab]), true);
    assert!(
        !machine(&served),
        "left, its names are anybody's again at once"
    );
}

#[test]
fn a_workload_means_its_own_subnet_by_a_name_without_a_dot() {
    let lab = subnet(1, &["10.42.7.1"], zone::tests::lab());
    let mut prod = Zone::empty(&"prod".parse().unwrap());
    let there = RecordData::Address("10.50.7.20".parse().unwrap());
    prod.add(
        "cache",
        Entry {
            data: there,
            ttl: 60,
        },
    );
    let mut now = view(vec![lab, subnet(2, &["10.50.7.1"], Arc::new(prod))]);
    now.host = Arc::new(HostConfig {
        workloads: vec![workload(1, "10.42.7.9")],
        ..HostConfig::default()
    });
    let served = Catalog::default().update(&now, true);
    let lab = served.get(&SubnetId([1; 16])).unwrap();
    let reach = lab.workloads.values().next().unwrap();
    let bare = |name: &str, kind| lab.bare(reach, &absolute(name).unwrap(), kind);
    let answer = bare("db", RecordType::A).unwrap();
    let names: Vec<String> = answer.answers.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["db."], "by the name that was asked for");
    // There is such a name, and it has nothing of that type: nobody else is to be asked.
    assert!(bare("db", RecordType::AAAA).is_some_and(|a| a.answers.is_empty()));
    assert!(bare("com", RecordType::A).is_none());
    assert!(bare("cache", RecordType::A).is_none(), "another subnet's");
}

fn workload(subnet: u8, address: &str) -> WorkloadConfig {
    WorkloadConfig {
        subnet: SubnetId([subnet; 16]),
        name: "db".parse().unwrap(),
        tun: "bw-prod".to_owned(),
        host_link: "bwv0".to_owned(),
        inner_link: "byway0".to_owned(),
        netns: Some(NetnsRef {
            path: "/run/netns/x".into(),
            device: 0,
            inode: 0,
            cookie: None,
        }),
        by_engine: false,
        tap: None,
        mtu: 1280,
        addresses: vec![address.parse().unwrap()],
        gateways: vec![],
        prefixes: vec![],
        resolv_conf: ResolvConf::None,
        search: "prod.internal".to_owned(),
        mac: None,
    }
}
