//! What a person adds on this machine: workloads with their addresses, maps, leases.

use std::net::IpAddr;

use super::*;
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::ports::PortRange;
use crate::model::workload::Target;

pub(super) fn workload(name: &str, inode: u64) -> NewWorkload {
    NewWorkload {
        name: name.parse().unwrap(),
        name_is_default: false,
        target: Target::Netns(name.to_owned()),
        netns: Some(NetnsRef {
            path: format!("/run/netns/{name}-{inode}").into(),
            device: 1,
            inode,
            cookie: None,
        }),
        inner_link: "byway0".into(),
        resolv_conf: ResolvConf::None,
        mac: None,
        beside: Default::default(),
        followed: None,
    }
}

pub(super) async fn attach(
    node: &Node,
    name: &'static str,
    inode: u64,
    ip: Option<IpAddr>,
) -> Vec<IpAddr> {
    node.attach("lab".into(), workload(name, inode), ip)
        .await
        .unwrap()
        .answer
        .0
        .addresses
}

pub(super) async fn detach(node: &Node, name: &'static str) {
    node.detach(name.into(), None, None).await.unwrap();
}

pub(super) fn map(port: u16) -> NewMap {
    let listen = Some("0.0.0.0".parse().unwrap());
    let ports = PortRange::new(port, port).unwrap();
    let target = PortRange::new(80, 80).unwrap();
    prepare_map(
        Proto::Tcp,
        listen,
        ports,
        "sure".into(),
        target,
        None,
        vec![],
    )
    .unwrap()
}

/// The workloads and the maps of this machine.
async fn here(node: &Node) -> String {
    let all = node.memberships().await.unwrap();
    let local = &all.values().next().unwrap().subnet.local;
    let workloads: Vec<&str> = local.workloads.iter().map(|w| w.name.as_str()).collect();
    let maps: Vec<&str> = local.maps.iter().map(|m| m.name.as_str()).collect();
    format!("{}, {}", workloads.join(" "), maps.join(" "))
}

/// The same state directory, read by a new daemon.
pub(super) async fn restarted(lab: Lab) -> Lab {
    lab.node.close().await;
    let store = Store::open(lab._dir.path()).unwrap();
    let (state, damage) = State::load(identity(1), store.load().unwrap().records);
    assert_eq!(damage.len(), 0, "{damage:?}");
    let parts = Parts {
        state,
        damage,
        store,
        here: Here::default(),
        node_name: "a".parse().unwrap(),
    };
    let (node, pushes) = Node::start(parts).unwrap();
    Lab {
        node,
        pushes,
        ..lab
    }
}

#[tokio::test]
async fn what_the_kernel_has_not_taken_does_not_stand_after_a_restart() {
    let lab = lab(1).await;
    let node = &lab.node;
    let mut added = Vec::new();
    for (name, inode) in [("sure", 1), ("doubted", 2)] {
        added.push(
            node.attach("lab".into(), workload(name, inode), None)
                .await
                .unwrap()
                .answer
                .1,
        );
    }
    let mut mapped = Vec::new();
    for port in [80, 81] {
        mapped.push(node.map_add("lab".into(), map(port)).await.unwrap().answer);
    }
    node.confirm(added.remove(0)).await.unwrap();
    let made = node.confirm_map(mapped.remove(0)).await.unwrap();
    assert_eq!(
        made.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
        ["tcp-80"]
    );
    assert_eq!(here(node).await, "sure doubted, tcp-80 tcp-81");
    let mut lab = restarted(lab).await;
    for _ in 0..2 {
        assert_eq!(here(&lab.node).await, "sure, tcp-80");
        // The others are told what is left of it.
        lab.node.run(|core| core.tick()).await.unwrap().unwrap();
        let told = |core: &mut Core| {
            let subnet = core.state.subnets.values().next().unwrap();
            subnet
                .records
                .announcement(core.state.me.peer)
                .unwrap()
                .workloads
                .len()
        };
        assert_eq!(lab.node.read(told).await.unwrap(), 1);
        lab = restarted(lab).await;
    }
}

#[tokio::test]
async fn what_the_kernel_refused_is_taken_back_and_nothing_else() {
    let lab = lab(1).await;
    let node = &lab.node;
    let added = async |name: &str, inode| {
        node.attach("lab".into(), workload(name, inode), None)
            .await
            .unwrap()
            .answer
    };
    let mapped = async |port| node.map_add("lab".into(), map(port)).await.unwrap().answer;
    node.confirm(added("sure", 1).await.1).await.unwrap();
    let (doubted, refused) = (added("doubted", 2).await.1, mapped(80).await);
    assert_eq!(here(node).await, "sure doubted, tcp-80");
    assert!(node.undo(doubted.clone()).await.unwrap() && node.undo(refused.clone()).await.unwrap());
    assert_eq!(here(node).await, "sure, ");
    assert!(
        !node.undo(doubted.clone()).await.unwrap() && !node.undo(refused.clone()).await.unwrap(),
        "it is gone"
    );
    // What stands, and what came since under the same name, is another's.
    let (again, same) = (added("sure", 1).await, added("doubted", 3).await.1);
    assert!(again.0.already && !node.undo(again.1).await.unwrap());
    node.confirm(same).await.unwrap();
    node.confirm_map(mapped(80).await).await.unwrap();
    assert!(!node.undo(doubted).await.unwrap() && !node.undo(refused).await.unwrap());
    assert_eq!(here(node).await, "sure doubted, tcp-80");
    // A map that was removed while the kernel was asked stays removed.
    let removed = mapped(81).await;
    node.map_rm("lab".into(), Some("tcp-81".into()), None, None)
        .await
        .unwrap();
    assert_eq!(node.confirm_map(removed).await.unwrap(), []);
    assert_eq!(
        here(&restarted(lab).await.node).await,
        "sure doubted, tcp-80"
    );
}

#[tokio::test]
async fn a_workload_that_another_took_back_meanwhile_is_not_confirmed() {
    let lab = lab(1).await;
    let node = &lab.node;
    let attach = async || {
        node.attach("lab".into(), workload("db", 1), None)
            .await
            .unwrap()
            .answer
    };
    let (first, second) = (attach().await, attach().await);
    assert!(second.0.already);
    assert!(node.undo(first.1.clone()).await.unwrap());
    for gone in [second.1, first.1] {
        assert_eq!(node.confirm(gone).await.unwrap_err().code, "E-NO-WORKLOAD");
    }
    assert_eq!(here(node).await, ", ");
}

#[tokio::test]
async fn half_of_a_map_that_the_kernel_refused_leaves_the_other_half() {
    let lab = start(State::new(identity(1)));
    let node = &lab.node;
    node.create(super::twice::founding("lab")).await.unwrap();
    node.confirm(
        node.attach("lab".into(), workload("sure", 1), None)
            .await
            .unwrap()
            .answer
            .1,
    )
    .await
    .unwrap();
    let half = |listen: &str| {
        let name = Some("web".parse().unwrap());
        prepare_map(
            Proto::Tcp,
            Some(listen.parse().unwrap()),
            "80".parse().unwrap(),
            "sure".into(),
            "80".parse().unwrap(),
            name,
            vec![],
        )
        .unwrap()
    };
    let one = node
        .map_add("lab".into(), half("0.0.0.0"))
        .await
        .unwrap()
        .answer;
    node.confirm_map(one).await.unwrap();
    let other = node.map_add("lab".into(), half("::")).await.unwrap().answer;
    assert_eq!(here(node).await, "sure, web web");
    assert!(node.undo(other).await.unwrap());
    let left = node.maps(Some("lab".into())).await.unwrap();
    assert_eq!(
        left.iter().map(|m| m.listen.as_str()).collect::<Vec<_>>(),
        ["0.0.0.0:80"]
    );
}

#[tokio::test]
async fn an_address_comes_back_to_its_workload() {
    let lab = lab(1).await;
    let web = attach(&lab.node, "web", 1, None).await;
    detach(&lab.node, "web").await;
    // Another name does not get it meanwhile, and a new namespace under the old name does, also after a restart.
    let db = attach(&lab.node, "db", 2, None).await;
    assert!(
        web.len() == 1 && db.iter().all(|a| !web.contains(a)),
        "{web:?} {db:?}"
    );
    let lab = restarted(lab).await;
    assert_eq!(attach(&lab.node, "web", 3, None).await, web);
    detach(&lab.node, "web").await;
    // Whoever asks for that very address gets it; then the name has to take others.
    assert_eq!(attach(&lab.node, "thief", 4, Some(web[0])).await[0], web[0]);
    let other = attach(&lab.node, "web", 5, None).await;
    assert!(!other.contains(&web[0]) && other.len() == 1, "{other:?}");
}

#[tokio::test]
async fn in_a_full_block_the_name_that_is_gone_for_longest_gives_its_address_up() {
    let lab = lab(1).await;
    let name = |n: u64| -> &'static str { Box::leak(format!("w{n}").into_boxed_str()) };
    let mut had = BTreeMap::new();
    let v4 = |addresses: &[IpAddr]| addresses.iter().find(|a| a.is_ipv4()).copied();
    let mut n = 0;
    // One after the other comes and goes until the whole block is kept for somebody.
    while n < 253 {
        let got = attach(&lab.node, name(n), n + 1, None).await;
        assert!(
            had.values().all(|former| *former != got),
            "{n} got what is kept"
        );
        had.insert(n, got);
        detach(&lab.node, name(n)).await;
        n += 1;
    }
    let free = attach(&lab.node, "new", 1000, None).await;
    assert_eq!(v4(&free), v4(&had[&0]), "the oldest goes first");
    assert_eq!(attach(&lab.node, name(2), 1001, None).await, had[&2]);
    let again = attach(&lab.node, name(0), 1002, None).await;
    assert_eq!(v4(&again), v4(&had[&1]), "then the next");
}

#[tokio::test]
async fn a_lease_is_taken_back_from_the_member_that_is_named() {
    let lab = lab(3).await;
    let prefix: ipnet::IpNet = "10.77.200.0/24".parse().unwrap();
    let pool = lab
        .node
        .read(|core| {
            core.state
                .subnets
                .values()
                .next()
                .unwrap()
                .records
                .prefixes()
        })
        .await
        .unwrap();
    let prefix = match pool.first() {
        Some(ipnet::IpNet::V4(pool)) => {
            let base = u32::from(pool.network()) | 200 << 8;
            ipnet::IpNet::new(std::net::Ipv4Addr::from(base).into(), 24).unwrap()
        }
        _ => prefix,
    };
    let result = lab.node.run(move |core| {
        let owner = core.lease_owner("lab", Some("m2")).unwrap();
        core.lease_add("lab", &[(prefix, owner)]).unwrap();
        let wrong = core.lease_rm("lab", prefix, Some("m3")).unwrap_err();
        let unknown = core.lease_rm("lab", prefix, Some("nobody")).unwrap_err();
        let right = core.lease_rm("lab", prefix, Some("m2")).is_ok();
        (wrong.code, wrong.message, unknown.code, right)
    });
    let message = format!("m3 does not hold {prefix} in subnet lab: m2 does");
    assert_eq!(
        result.await.unwrap(),
        ("E-NO-LEASE".into(), message, "E-NO-MEMBER".into(), true)
    );
}
