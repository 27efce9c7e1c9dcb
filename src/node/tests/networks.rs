//! Endpoints of Docker's networks, from the address to the end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::model::error::Code;
use crate::model::host::NetnsRef;

const ID: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90";

fn netns(inode: u64) -> NetnsRef {
    NetnsRef {
        path: format!("/run/netns/{inode}").into(),
        device: 1,
        inode,
        cookie: None,
    }
}

fn called(name: &str, aliases: &[&str]) -> ContainerNames {
    ContainerNames {
        name: name.parse().unwrap(),
        aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        network: Some("lab".to_owned()),
    }
}

/// An endpoint with an address that is free.
async fn staged(lab: &Lab, id: &str) -> Staged {
    let free = lab.node.free_address(lab.id, false, None, BTreeSet::new());
    let new = NewEndpoint {
        id: id.to_owned(),
        addresses: vec![free.await.unwrap()],
        mac: None,
    };
    let (staged, added) = lab.node.stage(lab.id, new).await.unwrap().answer;
    lab.node.confirm(added).await.unwrap();
    staged
}

/// The links that the kernel is to have inside, each with whether it waits for the engine.
async fn links(lab: &Lab) -> Vec<(String, bool)> {
    let seen = |core: &mut Core| {
        let view = core.view();
        let all = view.host.workloads.iter();
        all.map(|w| (w.inner_link.clone(), w.netns.is_none()))
            .collect()
    };
    lab.node.run(seen).await.unwrap()
}

#[tokio::test]
async fn an_endpoint_is_staged_adopted_taken_out_and_removed() {
    let lab = lab(1).await;
    let free = |wanted, avoid| lab.node.free_address(lab.id, false, wanted, avoid);
    let first = free(None, BTreeSet::new()).await.unwrap();
    let next = free(None, BTreeSet::from([first])).await.unwrap();
    assert_ne!(
        first, next,
        "what the engine has already is not given again"
    );
    let staged = staged(&lab, ID).await;
    assert_eq!(
        staged.workload.addresses,
        [first],
        "no address but those it asked for"
    );
    assert_eq!(
        staged.workload.name.as_str(),
        "a1b2c3d4e5f6",
        "until its name is known"
    );
    let stage = staged.workload.inner_link.clone();
    assert!(stage.starts_with("bwi") && stage.len() <= 15);
    assert_eq!(links(&lab).await, [(stage.clone(), true)]);
    let taken = free(Some(first), BTreeSet::new()).await;
    assert!(taken.is_err_and(|e| e.code == Code::AddressTaken));
    // The engine has moved the link.
    let adopt = |inode| {
        lab.node
            .adopt(ID.to_owned(), netns(inode), "eth0".to_owned())
    };
    assert!(adopt(1).await.unwrap());
    assert!(!adopt(2).await.unwrap(), "it is in one container already");
    assert_eq!(links(&lab).await, [("eth0".to_owned(), false)]);
    // A namespace that ends frees no address: the engine does that.
    let name = lab.node.name_endpoint(ID.to_owned(), called("web", &[]));
    assert_eq!(name.await.unwrap().name.as_str(), "web");
    let died = lab
        .node
        .workload_died(lab.id, "web".parse().unwrap(), netns(1));
    died.await.unwrap();
    assert_eq!(
        links(&lab).await,
        [],
        "there is nothing to make in the kernel"
    );
    assert!(lab.node.staged_endpoint(ID.to_owned()).await.is_ok());
    // Where it joins another container a link waits again, until it is removed.
    assert!(lab.node.unstage(ID.to_owned()).await.unwrap());
    assert_eq!(links(&lab).await, []);
    lab.node.restage(ID.to_owned()).await.unwrap();
    assert_eq!(links(&lab).await, [(stage, true)]);
    lab.node.remove_endpoint(ID.to_owned()).await.unwrap();
    lab.node.remove_endpoint(ID.to_owned()).await.unwrap();
    assert_eq!(links(&lab).await, []);
    assert!(!lab.node.unstage(ID.to_owned()).await.unwrap());
}

#[tokio::test]
async fn names_of_containers_are_numbered_where_they_are_taken() {
    let lab = lab(1).await;
    let (one, two) = (staged(&lab, ID).await, staged(&lab, "b2c3d4e5f6a1").await);
    let web = async |id: &str| {
        let named = lab
            .node
            .name_endpoint(id.to_owned(), called("web", &["front"]));
        let named = named.await.unwrap();
        assert!(named.refused.is_empty(), "{named:?}");
        Ok::<_, ()>(named.name)
    };
    assert_eq!(web(one.id()).await.unwrap().as_str(), "web");
    let second = web(two.id()).await.unwrap();
    assert_ne!(second.as_str(), "web");
    assert_eq!(
        web(two.id()).await.unwrap(),
        second,
        "asked again it keeps it"
    );
    assert_eq!(
        web(one.id()).await.unwrap().as_str(),
        "web",
        "asked again it has it"
    );
    let told = lab.node.workloads().await.unwrap();
    let addresses = |name: &str| -> Vec<IpAddr> {
        let of = told.iter().find(|w| w.workload.as_str() == name);
        of.map(|w| w.addresses.clone()).unwrap_or_default()
    };
    assert_eq!(addresses("web"), one.workload.addresses);
    assert_eq!(addresses(second.as_str()), two.workload.addresses);
    // Both have the further name, which goes with them.
    let front = || async {
        let all = lab.node.names("lab".into()).await.unwrap();
        all.iter().filter(|n| n.name.starts_with("front")).count()
    };
    assert_eq!(front().await, 2);
    lab.node.remove_endpoint(two.id().to_owned()).await.unwrap();
    assert_eq!(front().await, 1);
    let fewer = lab
        .node
        .name_endpoint(one.id().to_owned(), called("shop", &[]));
    assert_eq!(fewer.await.unwrap().name.as_str(), "shop");
    assert_eq!(front().await, 0);
    // One endpoint is one.
    let again = NewEndpoint {
        id: ID.to_owned(),
        addresses: vec![],
        mac: None,
    };
    let refused = lab.node.stage(lab.id, again).await;
    assert!(refused.is_err_and(|e| e.code == Code::Attached));
}

#[tokio::test]
async fn a_label_sets_a_check_and_takes_it_away_and_a_persons_stays() {
    let lab = lab(1).await;
    let one = staged(&lab, ID).await;
    let label = async |text: Option<&str>| {
        let set = lab
            .node
            .label_health(one.id().to_owned(), text.map(str::to_owned));
        set.await.map_err(|e| e.code)
    };
    let shown = async || {
        let all = lab.node.workloads().await.unwrap();
        all[0].health.clone().map(|h| (h.check, h.by_label))
    };
    assert_eq!(label(None).await, Ok(false));
    assert_eq!(label(Some("tcp 80 fail=2")).await, Ok(true));
    assert_eq!(shown().await, Some(("tcp 80".to_owned(), true)));
    assert_eq!(
        label(Some("tcp 80 fail=2")).await,
        Ok(false),
        "the same again"
    );
    // It goes with its container's new name.
    let named = lab.node.name_endpoint(ID.to_owned(), called("web", &[]));
    assert_eq!(named.await.unwrap().name.as_str(), "web");
    assert_eq!(shown().await, Some(("tcp 80".to_owned(), true)));
    for wrong in ["http http://10.0.0.1/", "exec", "tcp"] {
        assert_eq!(
            label(Some(wrong)).await,
            Err("E-HEALTH".to_owned()),
            "{wrong}"
        );
        assert_eq!(
            shown().await,
            None,
            "one that is refused leaves none of before"
        );
        assert_eq!(label(Some("http http://web:81/up")).await, Ok(true));
    }
    assert_eq!(label(Some("interval=5s exec test -e /ok")).await, Ok(true));
    let by_command = Some(("exec test -e /ok".to_owned(), true));
    assert_eq!(shown().await, by_command);
    assert_eq!(label(None).await, Ok(true));
    assert_eq!(shown().await, None);
    let check = crate::api::types::HealthCheck {
        probe: crate::api::types::HealthProbe::Tcp(90),
        interval_s: None,
        fail: None,
    };
    let set = lab.node.set_health("web".into(), None, Some(check));
    set.await.unwrap();
    for text in [Some("tcp 80"), None] {
        assert_eq!(label(text).await, Ok(false));
        assert_eq!(shown().await, Some(("tcp 90".to_owned(), false)));
    }
}
