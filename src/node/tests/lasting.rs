//! Containers that go away and come back: what of them stays, and until when.

use std::net::IpAddr;

use super::*;
use crate::api::types::Attached;
use crate::model::followed::{Followed, Present, Why};
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::publish::followed::KEEP_REMOVED;
use crate::model::workload::Target;

fn netns(number: u64) -> NetnsRef {
    NetnsRef {
        path: format!("/proc/{number}/ns/net").into(),
        device: 4,
        inode: number,
        cookie: Some(number),
    }
}

fn target(name: &str, id: &str) -> Target {
    Target::Docker {
        name: name.to_owned(),
        id: id.repeat(64),
    }
}

/// The container of that name and number, which lives in the namespace of that number.
fn container(name: &str, id: &str, number: u64) -> NewWorkload {
    NewWorkload {
        name: name.parse().unwrap(),
        name_is_default: true,
        target: target(name, id),
        netns: Some(netns(number)),
        inner_link: "byway0".into(),
        resolv_conf: ResolvConf::None,
        mac: None,
        beside: Default::default(),
        followed: Some(Followed {
            engine: Some("/run/docker.sock".into()),
            ..Followed::default()
        }),
    }
}

async fn attach(lab: &Lab, new: NewWorkload, ip: Option<IpAddr>) -> Result<Attached, Error> {
    let done = lab.node.attach("lab".into(), new, ip).await?;
    let (attached, added) = done.answer;
    lab.node.confirm(added).await?;
    Ok(attached)
}

async fn see(lab: &Lab, name: &str, seen: Seen) {
    let followed = lab.node.followed().await.unwrap();
    let known = followed.into_iter().find(|k| k.name.as_str() == name);
    lab.node
        .sighted(vec![(known.unwrap(), seen)])
        .await
        .unwrap();
}

fn here(name: &str, id: &str, number: u64) -> Seen {
    Seen::Here(Present {
        target: target(name, id),
        netns: netns(number),
        resolv_conf: ResolvConf::None,
        labels: vec![],
        paused: false,
    })
}

/// Name and state of each workload, and what this node tells the others of each.
async fn picture(lab: &Lab) -> Vec<(String, String, usize)> {
    let id = lab.id;
    let look = move |core: &mut Core| {
        let told = core.state.subnets[&id]
            .records
            .announcement(core.state.me.peer)
            .map(|a| a.workloads.clone())
            .unwrap_or_default();
        let said = |name: &Name| told.iter().find(|w| w.name == *name);
        let all = core.workloads(None).into_iter();
        all.map(|w| {
            let said = said(&w.workload).map_or(99, |s| s.addresses.len());
            (w.workload.to_string(), w.state, said)
        })
        .collect()
    };
    lab.node.run(look).await.unwrap()
}

fn one(state: &str, said: usize) -> Vec<(String, String, usize)> {
    vec![("web".to_owned(), state.to_owned(), said)]
}

#[tokio::test]
async fn one_that_is_away_keeps_its_name_and_address_and_nobody_is_sent_to_it() {
    let lab = lab(1).await;
    let web = attach(&lab, container("web", "1", 1), None).await.unwrap();
    for target in ["web".to_owned(), web.addresses[0].to_string()] {
        let listen = Some("127.0.0.1".parse().unwrap());
        let port = if target == "web" { "80" } else { "81" };
        let (port, to) = (port.parse().unwrap(), "80".parse().unwrap());
        let map = prepare_map(Proto::Tcp, listen, port, target, to, None, vec![]).unwrap();
        let added = lab.node.map_add("lab".into(), map).await.unwrap().answer;
        lab.node.confirm_map(added).await.unwrap();
    }
    let maps = async || {
        let maps = lab.node.maps(None).await.unwrap();
        maps.into_iter().map(|m| m.state).collect::<Vec<_>>()
    };
    assert_eq!(
        (picture(&lab).await, maps().await),
        (one("ok", 1), vec!["ok".into(), "ok".into()])
    );
    see(&lab, "web", Seen::Away(Why::Stopped, None)).await;
    assert_eq!(picture(&lab).await, one("stopped", 0));
    assert_eq!(maps().await, ["no-target", "no-target"]);
    assert!(lab.node.view().load().host.workloads.is_empty());
    // Both stay its own.
    let other = |name: &str| NewWorkload {
        name_is_default: false,
        ..container(name, "2", 2)
    };
    let taken = attach(&lab, other("web"), None).await.unwrap();
    assert_eq!(
        taken.addresses, web.addresses,
        "made anew under its name it is the same"
    );
    see(&lab, "web", Seen::Away(Why::Removed, None)).await;
    let named = NewWorkload {
        target: target("else", "3"),
        ..other("web")
    };
    assert_eq!(
        attach(&lab, named, None).await.unwrap_err().code,
        "E-NAME-TAKEN"
    );
    let ip = Some(web.addresses[0]);
    assert_eq!(
        attach(&lab, container("x", "3", 3), ip)
            .await
            .unwrap_err()
            .code,
        "E-ADDRESS-TAKEN"
    );
    // A restart of the daemon changes nothing of it.
    let lab = super::machine::restarted(lab).await;
    assert_eq!(picture(&lab).await, one("removed", 0));
    lab.node
        .engine_answers("/run/docker.sock".into(), false)
        .await
        .unwrap();
    assert_eq!(picture(&lab).await, one("engine-gone", 0));
    lab.node
        .engine_answers("/run/docker.sock".into(), true)
        .await
        .unwrap();
    see(&lab, "web", here("web", "4", 4)).await;
    assert_eq!(picture(&lab).await, one("ok", 1));
    let placed = lab.node.view().load().host.workloads[0].netns.clone();
    assert_eq!(placed, Some(netns(4)));
}

#[tokio::test]
async fn what_was_seen_of_another_attachment_or_namespace_counts_for_nothing() {
    let lab = lab(1).await;
    attach(&lab, container("web", "1", 1), None).await.unwrap();
    let known = lab.node.followed().await.unwrap().remove(0);
    see(&lab, "web", here("web", "1", 2)).await;
    let gone = Seen::Away(Why::Stopped, None);
    lab.node.sighted(vec![(known, gone)]).await.unwrap();
    assert_eq!(picture(&lab).await, one("ok", 1));
    // Its namespace ended before its engine told: the same, until the engine says more.
    let dead = lab
        .node
        .workload_died(lab.id, "web".parse().unwrap(), netns(2));
    dead.await.unwrap();
    assert_eq!(picture(&lab).await, one("stopped", 0));
    // The container is attached once, also while it is away.
    let twice = NewWorkload {
        name: "again".parse().unwrap(),
        name_is_default: false,
        ..container("web", "1", 3)
    };
    assert_eq!(
        attach(&lab, twice, None).await.unwrap_err().code,
        "E-ATTACHED"
    );
}

#[tokio::test]
async fn the_place_of_a_removed_container_is_kept_for_a_day() {
    let lab = lab(1).await;
    for (name, id, number) in [("web", "1", 1), ("db", "2", 2)] {
        attach(&lab, container(name, id, number), None)
            .await
            .unwrap();
    }
    see(&lab, "web", Seen::Away(Why::Removed, None)).await;
    see(&lab, "db", Seen::Away(Why::Stopped, None)).await;
    let id = lab.id;
    let later = move |core: &mut Core| {
        let mut subnet = core.state.subnets[&id].clone();
        let since = subnet.away(&"web".parse().unwrap()).unwrap().since;
        let me = core.state.me.clone();
        let mut end = |after: u64| subnet.end_removed(&me, since + after).unwrap();
        (end(KEEP_REMOVED - 1), end(KEEP_REMOVED))
    };
    let (before, after) = lab.node.run(later).await.unwrap();
    assert_eq!(
        (before.len(), after.len()),
        (0, 1),
        "and that of a stopped one until it is detached"
    );
    assert_eq!(after[0].as_str(), "web");
}

/// The namespace of that name, which is followed, as the one of that number.
fn named(name: &str, spec: &str, number: u64) -> NewWorkload {
    NewWorkload {
        target: Target::Netns(spec.into()),
        resolv_conf: ResolvConf::Create(format!("/etc/netns/{spec}/resolv.conf").into()),
        followed: Some(Followed::default()),
        name_is_default: false,
        ..container(name, "1", number)
    }
}

#[tokio::test]
async fn a_namespace_made_anew_is_the_same_with_its_resolver_and_gives_way_while_it_is_gone() {
    let lab = lab(1).await;
    let web = attach(&lab, named("web", "a", 1), None).await.unwrap();
    let dead = lab
        .node
        .workload_died(lab.id, "web".parse().unwrap(), netns(1));
    dead.await.unwrap();
    assert_eq!(picture(&lab).await, one("removed", 0));
    // What we wrote for the former one stands there still.
    let back = Seen::Here(Present {
        target: Target::Netns("a".into()),
        netns: netns(2),
        resolv_conf: ResolvConf::None,
        labels: vec![],
        paused: false,
    });
    see(&lab, "web", back).await;
    assert_eq!(picture(&lab).await, one("ok", 1));
    let file = lab.node.view().load().host.workloads[0].resolv_conf.clone();
    assert_eq!(file, ResolvConf::Create("/etc/netns/a/resolv.conf".into()));
    let other = attach(&lab, named("web", "b", 3), None).await.unwrap_err();
    assert_eq!(other.code, "E-NAME-TAKEN", "it is here");
    see(&lab, "web", Seen::Away(Why::Removed, None)).await;
    // One that is stopped is not gone, whoever wants its name.
    attach(&lab, container("db", "2", 4), None).await.unwrap();
    see(&lab, "db", Seen::Away(Why::Stopped, None)).await;
    let other = attach(&lab, named("db", "b", 3), None).await.unwrap_err();
    assert_eq!(other.code, "E-NAME-TAKEN");
    let other = attach(&lab, named("web", "b", 3), None).await.unwrap();
    assert_eq!(other.addresses, web.addresses, "they are the name's");
    see(&lab, "web", Seen::Away(Why::Removed, None)).await;
    let ip = Some(web.addresses[0]);
    attach(&lab, named("x", "c", 5), ip).await.unwrap();
    let names = picture(&lab).await.into_iter().map(|(name, ..)| name);
    assert_eq!(names.collect::<Vec<_>>(), ["db", "x"]);
}
