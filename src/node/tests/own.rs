//! What users may do who may change nothing but their own.

use super::companions::{at, container};
use super::*;
use crate::api::types::Error;
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::ports::PortRange;
use crate::node::{Own, prepare_map};

const ALICE: Own = Own {
    user: 1000,
    quota: 2,
};
const BOB: Own = Own {
    user: 1001,
    quota: 2,
};

/// A container as a user's plugin asks for it.
fn of(own: Own, id: &str, inode: u64, aliases: &[&str]) -> NewWorkload {
    let mut new = container(id, inode, aliases);
    new.target = new.target.of(own.user);
    new.beside.own = Some(own);
    new
}

async fn attach(node: &Node, new: NewWorkload) -> Result<crate::api::types::Attached, Error> {
    let done = node.attach("lab".into(), new, None).await;
    done.map(|effect| effect.answer.0)
}

async fn map(node: &Node, own: Own, to: &str, first: u16, count: u16) -> Result<(), Error> {
    let ports = PortRange::new(first, first + count - 1).unwrap();
    let mut new = prepare_map(Proto::Tcp, None, ports, to.into(), ports, None, vec![]).unwrap();
    new.workload = Some(to.parse().unwrap());
    new.own = Some(own);
    node.map_add("lab".into(), new).await.map(drop)
}

fn refused<T: std::fmt::Debug>(what: Result<T, Error>, code: Code) {
    let error = what.unwrap_err();
    assert_eq!(error.code, code, "{error}");
}

#[tokio::test]
async fn a_user_has_as_many_workloads_as_it_may_and_another_has_its_own() {
    let lab = lab(1).await;
    let node = &lab.node;
    let one = attach(node, of(ALICE, "web", 1, &[])).await.unwrap();
    let _ = attach(node, of(ALICE, "db", 2, &[])).await.unwrap();
    refused(attach(node, of(ALICE, "third", 3, &[])).await, Code::Quota);
    // What is attached already is no further one.
    let again = attach(node, of(ALICE, "web", 1, &[])).await.unwrap();
    assert!(again.already && again.addresses == one.addresses);
    // The same ID at another user is another container, and so is one of root's.
    let bobs = attach(node, of(BOB, "web", 4, &[])).await.unwrap();
    let roots = attach(node, container("web", 5, &[])).await.unwrap();
    let names = [&one, &bobs, &roots].map(|a| a.workload.to_string());
    assert_eq!(names, ["web", "web-2", "web-3"]);
    // Each detaches its own by that ID, and nobody else's.
    let target = of(BOB, "web", 4, &[]).target;
    node.detach_container(target.clone(), "eth0".to_owned())
        .await
        .unwrap();
    let left = node.run(|core| core.workloads(None)).await.unwrap();
    let left: Vec<_> = left.iter().map(|w| (w.workload.as_str(), w.user)).collect();
    assert_eq!(
        left,
        [("web", Some(1000)), ("db", Some(1000)), ("web-3", None)]
    );
    // One that ended makes room.
    let target = of(ALICE, "db", 2, &[]).target;
    node.detach_container(target, "eth0".to_owned())
        .await
        .unwrap();
    let _ = attach(node, of(ALICE, "third", 3, &[])).await.unwrap();
}

#[tokio::test]
async fn a_user_takes_no_name_of_anothers() {
    let lab = lab(1).await;
    let node = &lab.node;
    let _ = attach(node, container("web", 1, &["shop"])).await.unwrap();
    let taken = |name, alias: &'static [&'static str]| of(ALICE, name, 2, alias);
    for alias in [&["shop"][..], &["web"], &["free", "SHOP"]] {
        refused(
            attach(node, of(ALICE, "x", 2, alias)).await,
            Code::NameTaken,
        );
    }
    let named = NewWorkload {
        name_is_default: false,
        ..taken("shop", &[])
    };
    refused(attach(node, named).await, Code::NameTaken);
    // Two of its own may share one.
    let _ = attach(node, taken("x", &["own"])).await.unwrap();
    let _ = attach(node, of(ALICE, "y", 3, &["own"])).await.unwrap();
    refused(
        attach(node, of(BOB, "z", 4, &["own"])).await,
        Code::NameTaken,
    );
}

#[tokio::test]
async fn an_alias_of_a_workload_that_is_called_the_same_in_another_subnet_is_anothers() {
    let lab = lab(1).await;
    let node = &lab.node;
    let made = node.run(|core| {
        let founding = crate::testing::founding("dev".parse().unwrap(), "a".parse().unwrap());
        let mut draft = Draft::default();
        draft.put(core.state.found(founding, FOUNDED).unwrap());
        core.commit(draft).map(drop)
    });
    made.await.unwrap().unwrap();
    // Root's `web` here has the alias, and the user's `web` is in the other subnet.
    let _ = attach(node, container("web", 1, &["shop"])).await.unwrap();
    let other = node.attach("dev".into(), of(ALICE, "web", 2, &[]), None);
    assert_eq!(other.await.unwrap().answer.0.workload.as_str(), "web");
    let shared = of(ALICE, "x", 3, &["shop"]);
    refused(attach(node, shared).await, Code::NameTaken);
    // Nor does a container that is called so get the name.
    refused(
        attach(node, of(ALICE, "shop", 3, &[])).await,
        Code::NameTaken,
    );
}

#[tokio::test]
async fn an_alias_of_a_user_is_one_label() {
    let lab = lab(1).await;
    let node = &lab.node;
    for alias in [
        "nonex.bob",
        "*.at",
        "*.lab",
        "x.a.lab.internal",
        "*",
        "_x",
        "",
    ] {
        let new = NewWorkload {
            beside: Beside {
                aliases: vec![alias.to_owned()],
                ..of(ALICE, "x", 1, &[]).beside
            },
            ..of(ALICE, "x", 1, &[])
        };
        refused(attach(node, new).await, Code::Permission);
    }
    // A name with the zone behind it is the same name.
    let _ = attach(node, of(ALICE, "x", 1, &["shop", "front.lab.internal."]))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_user_takes_no_name_that_a_file_keeps() {
    let lab = lab(1).await;
    let node = &lab.node;
    super::imports::import(&lab, "/srv/shop.yml", &["web-2 +front"])
        .await
        .unwrap();
    let _ = attach(node, container("web", 1, &[])).await.unwrap();
    for alias in [&["front"][..], &["web-2"], &["shop-web-2-1"]] {
        refused(
            attach(node, of(ALICE, "x", 2, alias)).await,
            Code::NameTaken,
        );
    }
    // Neither as its name, whether it chose that or is given it because its own is taken.
    for name in ["front", "web-2", "web"] {
        refused(attach(node, of(ALICE, name, 2, &[])).await, Code::NameTaken);
    }
    let _ = attach(node, of(ALICE, "x", 2, &["free"])).await.unwrap();
}

#[tokio::test]
async fn a_user_maps_ports_to_its_own_workloads_up_to_a_number() {
    let lab = lab(1).await;
    let node = &lab.node;
    let _ = attach(node, of(ALICE, "web", 1, &[])).await.unwrap();
    let _ = attach(node, container("db", 2, &[])).await.unwrap();
    refused(map(node, ALICE, "db", 2000, 1).await, Code::Permission);
    refused(map(node, BOB, "web", 2000, 1).await, Code::Permission);
    let open = |own, to: &str, port| {
        let new = prepare_map(Proto::Tcp, None, at(port), to.into(), at(80), None, vec![]);
        NewMap {
            own: Some(own),
            ..new.unwrap()
        }
    };
    let add = async |new| node.map_add("lab".into(), new).await.map(drop);
    refused(add(open(ALICE, "db", 2000)).await, Code::Permission);
    refused(add(open(BOB, "web", 2000)).await, Code::Permission);
    // The same is known before anything is made.
    let may = async |new| node.may_map("lab".into(), new).await;
    refused(may(open(BOB, "web", 2000)).await, Code::Permission);
    may(open(ALICE, "web", 2000)).await.unwrap();
    // By the name of its own workload it may, and the map goes with that. Nobody else takes it away.
    add(open(ALICE, "web", 2000)).await.unwrap();
    assert_eq!(node.maps_of_user(1000).await.unwrap().len(), 1);
    let key = Some((Proto::Tcp, None, at(2000)));
    let remove = async |own| node.map_rm("lab".into(), None, key, own).await.map(drop);
    refused(remove(Some(BOB)).await, Code::NoMap);
    remove(Some(ALICE)).await.unwrap();
    map(node, ALICE, "web", 2000, 100).await.unwrap();
    refused(map(node, ALICE, "web", 3000, 29).await, Code::Quota);
    map(node, ALICE, "web", 3000, 28).await.unwrap();
    let theirs = node.maps_of_user(1000).await.unwrap();
    assert_eq!(theirs.len(), 2, "{theirs:?}");
    assert_eq!(node.maps_of_user(1001).await.unwrap(), []);
}
