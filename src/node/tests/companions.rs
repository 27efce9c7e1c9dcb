//! What an engine asks for beside a workload goes with it: its port maps and its further names.

use super::*;
use crate::api::types::{Error, Response, WorkloadInfo};
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::ports::PortRange;
use crate::model::record::NameEntry;
use crate::model::workload::Target;
use crate::node::{Beside, prepare_map};

pub(super) fn container(id: &str, inode: u64, aliases: &[&str]) -> NewWorkload {
    NewWorkload {
        name: id.parse().unwrap(),
        name_is_default: true,
        target: Target::of_engine("cni".parse().unwrap(), id.to_owned(), "eth0").unwrap(),
        netns: Some(NetnsRef {
            path: format!("/run/netns/{id}").into(),
            device: 1,
            inode,
            cookie: None,
        }),
        inner_link: "eth0".to_owned(),
        resolv_conf: ResolvConf::None,
        mac: None,
        followed: None,
        beside: Beside {
            network: Some("net".to_owned()),
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            ips: vec![],
            own: None,
        },
    }
}

pub(super) fn at(port: u16) -> PortRange {
    PortRange::new(port, port).unwrap()
}

async fn attach(node: &Node, new: NewWorkload) -> Addition {
    node.attach("lab".into(), new, None).await.unwrap().answer.1
}

async fn map(node: &Node, workload: &str, port: u16) -> Result<Addition, Error> {
    let mut new = prepare_map(
        Proto::Tcp,
        None,
        at(port),
        workload.into(),
        at(80),
        None,
        vec![],
    )
    .unwrap();
    new.workload = Some(workload.parse().unwrap());
    node.map_add("lab".into(), new).await.map(|e| e.answer)
}

/// The aliases that the announcement says with their addresses, and the maps with their targets.
async fn seen(node: &Node) -> (Vec<String>, Vec<String>) {
    let look = |core: &mut Core| {
        let subnet = core.state.subnets.values().next().unwrap();
        let said = subnet.records.announcement(core.state.me.peer);
        let names = said.map_or_else(Vec::new, |said| {
            let text = |n: &NameEntry| format!("{} {}", n.name, show::value_text(&n.data));
            said.names.iter().map(text).collect()
        });
        let maps = core.maps(None).unwrap();
        let maps = maps
            .iter()
            .map(|m| format!("{} {} {}", m.name, m.target, m.state));
        (names, maps.collect())
    };
    node.read(look).await.unwrap()
}

#[tokio::test]
async fn maps_and_aliases_go_with_their_workload_and_others_stay() {
    let lab = lab(1).await;
    let node = &lab.node;
    let _ = attach(
        node,
        container("web", 1, &["DB", "web", "cache.lab.internal"]),
    )
    .await;
    let _ = attach(node, container("two", 2, &["db"])).await;
    let _ = map(node, "web", 80).await.unwrap();
    let _ = map(node, "two", 81).await.unwrap();
    let none = map(node, "nobody", 82).await.unwrap_err();
    assert_eq!(none.code, "E-NO-WORKLOAD");
    let own = prepare_map(Proto::Tcp, None, at(83), "web".into(), at(80), None, vec![]).unwrap();
    let _ = node.map_add("lab".into(), own).await.unwrap();
    let ip = |w: &WorkloadInfo| w.addresses[0].to_string();
    let all = node.run(|core| core.workloads(None)).await.unwrap();
    let web = all.iter().find(|w| w.workload.as_str() == "web").unwrap();
    let two = all.iter().find(|w| w.workload.as_str() == "two").unwrap();
    assert_eq!(
        (web.network.as_deref(), &web.aliases[..]),
        (Some("net"), &["cache".to_owned(), "db".to_owned()][..])
    );
    let (web, two) = (ip(web), ip(two));
    let (names, maps) = seen(node).await;
    assert_eq!(
        names,
        [
            format!("db {web}"),
            format!("cache {web}"),
            format!("db {two}")
        ]
    );
    assert_eq!(
        maps,
        [
            "tcp-80 web.a:80 ok",
            "tcp-81 two.a:80 ok",
            "tcp-83 web:80 ok"
        ]
    );
    // Exactly that interface of that container: neither a prefix of its ID nor another's name.
    for (id, interface) in [("we", "eth0"), ("web", "eth1"), ("web-1", "eth0")] {
        let of = Target::of_engine("cni".parse().unwrap(), id.to_owned(), interface).unwrap();
        let none = node
            .detach_container(of, interface.to_owned())
            .await
            .unwrap();
        assert!(
            matches!(none.answer, Response::Done(ref d) if !d.changed),
            "{id}"
        );
    }
    let of = Target::of_engine("cni".parse().unwrap(), "web".to_owned(), "eth0").unwrap();
    node.detach_container(of, "eth0".to_owned()).await.unwrap();
    let (names, maps) = seen(node).await;
    assert_eq!(names, [format!("db {two}")]);
    assert_eq!(maps, ["tcp-81 two.a:80 ok", "tcp-83 web:80 no-target"]);
}

#[tokio::test]
async fn a_map_that_was_removed_and_given_again_goes_with_nobody() {
    let lab = lab(1).await;
    let node = &lab.node;
    let _ = attach(node, container("web", 1, &[])).await;
    let _ = map(node, "web", 80).await.unwrap();
    node.map_rm("lab".into(), Some("tcp-80".into()), None, None)
        .await
        .unwrap();
    let own = prepare_map(Proto::Tcp, None, at(80), "a".into(), at(80), None, vec![]).unwrap();
    let _ = node.map_add("lab".into(), own).await.unwrap();
    node.detach("web".into(), None, None).await.unwrap();
    assert_eq!(seen(node).await.1, ["tcp-80 a:80 ok"]);
}

#[tokio::test]
async fn after_a_kill_what_was_not_confirmed_leaves_no_alias_behind() {
    let lab = lab(1).await;
    let sure = attach(&lab.node, container("sure", 1, &["db"])).await;
    lab.node.confirm(sure).await.unwrap();
    let _doubted = attach(&lab.node, container("doubted", 2, &["db", "tmp"])).await;
    let _unconfirmed = map(&lab.node, "sure", 80).await.unwrap();
    let confirmed = map(&lab.node, "sure", 81).await.unwrap();
    lab.node.confirm_map(confirmed).await.unwrap();
    let lab = super::machine::restarted(lab).await;
    lab.node.run(|core| core.tick()).await.unwrap().unwrap();
    let all = lab.node.run(|core| core.workloads(None)).await.unwrap();
    assert_eq!(all.len(), 1);
    let (names, maps) = seen(&lab.node).await;
    assert_eq!(names, [format!("db {}", all[0].addresses[0])]);
    assert_eq!(maps, ["tcp-81 sure.a:80 ok"]);
    // The map of before the kill still goes with it.
    lab.node.detach("sure".into(), None, None).await.unwrap();
    assert_eq!(seen(&lab.node).await, (vec![], vec![]));
}

#[tokio::test]
async fn an_alias_follows_its_workload_to_another_lease() {
    let lab = lab(1).await;
    let node = &lab.node;
    let lease: ipnet::IpNet = "10.77.200.0/24".parse().unwrap();
    node.lease_add("lab".into(), lease, None).await.unwrap();
    let there = NewWorkload {
        beside: Beside {
            ips: vec!["10.77.200.9".parse().unwrap()],
            ..container("web", 1, &["db"]).beside
        },
        ..container("web", 1, &[])
    };
    let added = attach(node, there).await;
    node.confirm(added).await.unwrap();
    assert_eq!(seen(node).await.0, ["db 10.77.200.9"]);
    node.lease_rm("lab".into(), lease, None).await.unwrap();
    node.run(|core| core.tick()).await.unwrap().unwrap();
    let all = node.run(|core| core.workloads(None)).await.unwrap();
    assert!(!lease.contains(&all[0].addresses[0]), "{all:?}");
    assert_eq!(seen(node).await.0, [format!("db {}", all[0].addresses[0])]);
}
