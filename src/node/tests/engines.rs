//! What container engines attach: an interface of a container, with its namespace or before it has one.

use super::*;
use crate::api::types::{Attached, Error};
use crate::model::host::{NetnsRef, ResolvConf};
use crate::model::workload::Target;

const CONTAINER: &str = "0123456789abcdef0123456789abcdef";

/// Interface `link` of the container, in the namespace of that number where there is one.
fn interface(name: Option<&str>, link: &str, inode: Option<u64>) -> NewWorkload {
    let target = Target::of_engine("cni".parse().unwrap(), CONTAINER.to_owned(), link).unwrap();
    NewWorkload {
        name: name.unwrap_or("c").parse().unwrap(),
        name_is_default: name.is_none(),
        target,
        netns: inode.map(|n| NetnsRef {
            path: format!("/run/netns/{n}").into(),
            device: 1,
            inode: n,
            cookie: None,
        }),
        inner_link: link.to_owned(),
        resolv_conf: ResolvConf::None,
        mac: None,
        beside: Default::default(),
        followed: None,
    }
}

async fn attach(node: &Node, new: NewWorkload) -> Result<Attached, Error> {
    node.attach("lab".into(), new, None)
        .await
        .map(|done| done.answer.0)
}

#[tokio::test]
async fn what_has_no_namespace_yet_has_its_lease_and_its_name_and_nothing_in_the_kernel() {
    let lab = lab(1).await;
    let web = attach(&lab.node, interface(Some("web"), "eth0", None))
        .await
        .unwrap();
    assert_eq!(
        (web.interface.as_str(), web.addresses.len(), web.already),
        ("eth0", 1, false)
    );
    let (address, id) = (web.addresses[0], lab.id);
    let seen = move |core: &mut Core| {
        let subnet = &core.state.subnets[&id];
        let told: Vec<String> = subnet
            .records
            .announcement(core.state.me.peer)
            .unwrap()
            .workloads
            .iter()
            .map(|w| w.name.to_string())
            .collect();
        let shown = core
            .workloads(None)
            .pop()
            .map(|w| (w.state, w.container, w.kind));
        let view = core.view();
        let links: Vec<String> = view
            .host
            .workloads
            .iter()
            .map(|w| w.inner_link.clone())
            .collect();
        (
            told,
            shown,
            view.subnets[&id].here.contains(&address),
            links,
        )
    };
    let shown = |state: &str| {
        Some((
            state.to_owned(),
            Some(CONTAINER.to_owned()),
            "cni".to_owned(),
        ))
    };
    let before = lab.node.run(seen).await.unwrap();
    assert_eq!(
        before,
        (vec!["web".to_owned()], shown("no-namespace"), false, vec![])
    );
    // Asked again it is the same; the namespace completes it, and is no second workload.
    assert!(
        attach(&lab.node, interface(None, "eth0", None))
            .await
            .unwrap()
            .already
    );
    let placed = attach(&lab.node, interface(None, "eth0", Some(1)))
        .await
        .unwrap();
    assert_eq!(
        (placed.workload.as_str(), &placed.addresses, placed.already),
        ("web", &web.addresses, false)
    );
    let after = lab.node.run(seen).await.unwrap();
    assert_eq!(
        after,
        (
            vec!["web".to_owned()],
            shown("ok"),
            true,
            vec!["eth0".to_owned()]
        )
    );
    for again in [Some(1), None] {
        assert!(
            attach(&lab.node, interface(None, "eth0", again))
                .await
                .unwrap()
                .already
        );
    }
    // Another namespace for it is a conflict: the former one was never detached.
    let other = attach(&lab.node, interface(None, "eth0", Some(2)))
        .await
        .unwrap_err();
    assert_eq!(
        (other.code.as_str(), other.hint.as_str()),
        ("E-ATTACHED", "byway detach web --subnet lab")
    );
}

#[tokio::test]
async fn an_attachment_without_a_namespace_is_there_after_a_restart_once_it_was_confirmed() {
    let lab = lab(1).await;
    let mut added = Vec::new();
    for name in ["sure", "doubted"] {
        let target = Target::of_engine("cni".parse().unwrap(), name.to_owned(), "eth0").unwrap();
        let new = NewWorkload {
            target,
            ..interface(Some(name), "eth0", None)
        };
        added.push(
            lab.node
                .attach("lab".into(), new, None)
                .await
                .unwrap()
                .answer
                .1,
        );
    }
    lab.node.confirm(added.remove(0)).await.unwrap();
    let lab = super::machine::restarted(lab).await;
    let there = |core: &mut Core| {
        core.workloads(None)
            .into_iter()
            .map(|w| (w.workload.to_string(), w.state))
            .collect()
    };
    let left: Vec<(String, String)> = lab.node.run(there).await.unwrap();
    assert_eq!(left, [("sure".to_owned(), "no-namespace".to_owned())]);
}

/// A second subnet of the same node.
async fn second_subnet(node: &Node) {
    let founding = Founding {
        cidr6: None,
        salt: [2; 16],
        ..crate::testing::founding("two".parse().unwrap(), "a".parse().unwrap())
    };
    node.create(founding).await.unwrap();
}

#[tokio::test]
async fn each_interface_of_a_container_is_a_workload_of_another_subnet() {
    let lab = lab(1).await;
    second_subnet(&lab.node).await;
    let first = attach(&lab.node, interface(None, "eth0", None))
        .await
        .unwrap();
    let second = lab
        .node
        .attach("two".into(), interface(None, "net1", None), None)
        .await
        .unwrap()
        .answer
        .0;
    assert!(first.addresses != second.addresses);
    // In one subnet a container is attached once: all its interfaces are in one namespace.
    for link in ["eth0", "net2"] {
        let twice = attach(&lab.node, interface(Some("other"), link, None))
            .await
            .unwrap_err();
        assert!(
            twice.code == "E-ATTACHED" && twice.message.contains("interface eth0"),
            "{twice}"
        );
    }
    let detach = |interface: Option<&str>| {
        lab.node
            .detach(CONTAINER.into(), None, interface.map(str::to_owned))
    };
    assert_eq!(detach(None).await.unwrap_err().code, "E-AMBIGUOUS");
    assert_eq!(
        detach(Some("eth7")).await.unwrap_err().code,
        "E-NO-WORKLOAD"
    );
    detach(Some("eth0")).await.unwrap();
    let left = lab.node.run(|core| core.workloads(None)).await.unwrap();
    assert_eq!(
        left.iter()
            .map(|w| w.interface.as_str())
            .collect::<Vec<_>>(),
        ["net1"]
    );
    // What comes back under its name has its address again.
    assert_eq!(
        attach(&lab.node, interface(None, "eth0", Some(3)))
            .await
            .unwrap()
            .addresses,
        first.addresses
    );
}

#[tokio::test]
async fn a_namespace_that_the_kernel_refuses_leaves_the_attachment_as_it_was_without_one() {
    let lab = lab(1).await;
    let Effect {
        answer: (before, added),
        ..
    } = lab
        .node
        .attach("lab".into(), interface(Some("web"), "eth0", None), None)
        .await
        .unwrap();
    lab.node.confirm(added).await.unwrap();
    // The hardware address is told with the namespace.
    let with = |inode| NewWorkload {
        mac: Some([2, 0, 0, 0, 0, 1]),
        ..interface(None, "eth0", Some(inode))
    };
    let (placed, added) = lab
        .node
        .attach("lab".into(), with(1), None)
        .await
        .unwrap()
        .answer;
    assert_eq!(
        (&placed.workload, &placed.addresses),
        (&before.workload, &before.addresses)
    );
    assert!(lab.node.undo(added.clone()).await.unwrap());
    assert!(
        !lab.node.undo(added).await.unwrap(),
        "it is taken back once"
    );
    let left = lab.node.run(|core| core.workloads(None)).await.unwrap();
    let left: Vec<_> = left
        .iter()
        .map(|w| (w.workload.as_str(), w.state.as_str(), &w.addresses))
        .collect();
    assert_eq!(left, [("web", "no-namespace", &before.addresses)]);
    // A kill in between takes away nothing that was confirmed.
    let _unconfirmed = lab
        .node
        .attach("lab".into(), with(2), None)
        .await
        .unwrap()
        .answer
        .1;
    let lab = super::machine::restarted(lab).await;
    let left = lab.node.run(|core| core.workloads(None)).await.unwrap();
    assert_eq!(
        left.iter().map(|w| w.workload.as_str()).collect::<Vec<_>>(),
        ["web"]
    );
}

#[tokio::test]
async fn a_containers_id_that_reads_like_a_name_is_not_taken_for_that_workload() {
    let lab = lab(1).await;
    let called = |id: &str, name: &str, inode| NewWorkload {
        target: Target::of_engine("cni".parse().unwrap(), id.to_owned(), "eth0").unwrap(),
        ..interface(Some(name), "eth0", Some(inode))
    };
    attach(&lab.node, called("web", "c", 1)).await.unwrap();
    attach(&lab.node, called("other", "web", 2)).await.unwrap();
    lab.node.detach("web".into(), None, None).await.unwrap();
    let left = lab.node.run(|core| core.workloads(None)).await.unwrap();
    assert_eq!(
        left.iter().map(|w| w.workload.as_str()).collect::<Vec<_>>(),
        ["c"]
    );
    lab.node
        .detach("web".into(), None, Some("eth0".into()))
        .await
        .unwrap();
}
