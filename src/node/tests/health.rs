//! Workloads that are asked whether they are well: what the others hear of an unhealthy one, and what its maps do.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::api::types::{Error, HealthCheck, HealthProbe, WorkloadInfo};
use crate::model::followed::{Followed, Present, Why};
use crate::model::health::Turn;
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::record::{NameEntry, WorkloadEntry};
use crate::model::workload::Target;
use crate::node::{Beside, prepare_map};

fn netns(inode: u64) -> NetnsRef {
    NetnsRef {
        path: format!("/proc/{inode}/ns/net").into(),
        device: 4,
        inode,
        cookie: None,
    }
}

fn target() -> Target {
    Target::Docker {
        name: "web".to_owned(),
        id: "1".repeat(64),
    }
}

/// A node with the workload `web`, which has the alias `front`, and two maps to it: by name and by address.
async fn scene() -> Lab {
    let lab = lab(1).await;
    let new = NewWorkload {
        name: "web".parse().unwrap(),
        name_is_default: true,
        target: target(),
        netns: Some(netns(1)),
        inner_link: "byway0".into(),
        resolv_conf: ResolvConf::None,
        mac: None,
        beside: Beside {
            aliases: vec!["front".to_owned()],
            ..Beside::default()
        },
        followed: Some(Followed::default()),
    };
    let done = lab.node.attach("lab".into(), new, None).await.unwrap();
    let (web, added) = done.answer;
    lab.node.confirm(added).await.unwrap();
    for (port, target) in [
        ("80", "web.a".to_owned()),
        ("81", web.addresses[0].to_string()),
    ] {
        add_map(&lab, port, target).await.unwrap();
    }
    lab
}

async fn add_map(lab: &Lab, port: &str, target: String) -> Result<(), Error> {
    let listen = Some("127.0.0.1".parse().unwrap());
    let (port, to) = (port.parse().unwrap(), "80".parse().unwrap());
    let map = prepare_map(Proto::Tcp, listen, port, target, to, None, vec![]).unwrap();
    let added = lab.node.map_add("lab".into(), map).await?.answer;
    lab.node.confirm_map(added).await.map(drop)
}

fn check(probe: HealthProbe) -> Option<HealthCheck> {
    Some(HealthCheck {
        probe,
        interval_s: None,
        fail: None,
    })
}

async fn set(lab: &Lab, check: Option<HealthCheck>) -> Result<(), Error> {
    let set = lab.node.set_health("web".into(), Some("lab".into()), check);
    set.await.map(drop)
}

async fn turn(lab: &Lab, turn: Turn) {
    let asked = lab.node.asked().await.unwrap();
    let subject = asked.into_keys().next().unwrap();
    let told = vec![(subject, turn, "port 80 is shut".to_owned())];
    lab.node.judged(told).await.unwrap();
}

/// What is said of its health.
async fn said(lab: &Lab) -> String {
    web(lab).await.health.unwrap().state
}

async fn web(lab: &Lab) -> WorkloadInfo {
    lab.node.workload("web".into(), None).await.unwrap()
}

/// How many addresses this node tells of `web` and of `front`, and the version of what it tells.
async fn told(lab: &Lab) -> (usize, usize, u64) {
    let id = lab.id;
    let look = move |core: &mut Core| {
        let records = &core.state.subnets[&id].records;
        let told = records.announcement(core.state.me.peer).unwrap();
        let front = |n: &&NameEntry| n.name == "front";
        (
            told.workloads[0].addresses.len(),
            told.names.iter().filter(front).count(),
            told.version,
        )
    };
    lab.node.run(look).await.unwrap()
}

/// The states of the maps, and of each in the kernel where it leads and whether it drains.
async fn maps(lab: &Lab) -> (Vec<String>, Vec<(bool, bool)>) {
    let maps = lab.node.maps(None).await.unwrap();
    let view = lab.node.view().load_full();
    let kernel = view.host.maps.iter();
    (
        maps.into_iter().map(|m| m.state).collect(),
        kernel.map(|m| (m.target.is_some(), m.draining)).collect(),
    )
}

#[tokio::test]
async fn an_unhealthy_workload_keeps_its_name_is_told_nowhere_and_its_maps_drain() {
    let lab = scene().await;
    assert!(lab.node.asked().await.unwrap().is_empty());
    set(&lab, check(HealthProbe::Tcp(80))).await.unwrap();
    let (addresses, aliases, before) = told(&lab).await;
    assert_eq!(
        (addresses, aliases),
        (1, 1),
        "well until it has shown otherwise"
    );
    let health = web(&lab).await.health.unwrap();
    assert_eq!(
        (
            health.check.as_str(),
            health.interval_s,
            health.fail,
            health.state.as_str()
        ),
        ("tcp 80", 10, 3, "starting")
    );
    let all = |state: &str, kernel| (vec![state.to_owned(), state.to_owned()], vec![kernel; 2]);
    assert_eq!(maps(&lab).await, all("ok", (true, false)));

    turn(&lab, Turn::Begun).await;
    assert_eq!(
        (said(&lab).await.as_str(), told(&lab).await.2),
        ("healthy", before)
    );

    turn(&lab, Turn::Unhealthy).await;
    let (addresses, aliases, version) = told(&lab).await;
    assert_eq!(
        (addresses, aliases, version),
        (0, 0, before + 1),
        "one change for all its names"
    );
    assert_eq!(maps(&lab).await, all("unhealthy", (true, true)));
    let ill = web(&lab).await;
    assert_eq!((ill.state.as_str(), ill.aliases.len()), ("unhealthy", 1));
    assert_eq!(
        ill.health.unwrap().failure.as_deref(),
        Some("port 80 is shut")
    );
    for (text, is_meant) in [
        ("web", true),
        ("web.a", true),
        ("web.lab", true),
        ("web.a.lab.internal", true),
        ("front", false),
        ("web.b", false),
    ] {
        let found = lab.node.withheld(text.to_owned()).await.unwrap();
        let found = found.map(|w| (w.workload.to_string(), w.unhealthy));
        let meant = is_meant.then(|| ("web".to_owned(), Some(true)));
        assert_eq!(found, meant, "{text}");
    }
    turn(&lab, Turn::Unhealthy).await;
    assert_eq!(told(&lab).await.2, version, "the same once more is no news");
    // A map that is added now drains from the start. Its own name cannot be taken.
    add_map(&lab, "82", "web".to_owned()).await.unwrap();
    assert_eq!(maps(&lab).await.1, [(true, true); 3]);

    // A restart of the daemon does not make it well, and one success does.
    let lab = super::machine::restarted(lab).await;
    assert_eq!(
        (told(&lab).await.0, maps(&lab).await.1),
        (0, vec![(true, true); 3])
    );
    turn(&lab, Turn::Healthy).await;
    let (addresses, aliases, _) = told(&lab).await;
    assert_eq!(
        (addresses, aliases, web(&lab).await.state.as_str()),
        (1, 1, "ok")
    );
    assert_eq!(maps(&lab).await.1, [(true, false); 3]);
    assert_eq!(said(&lab).await, "healthy");
    set(&lab, check(HealthProbe::Tcp(81))).await.unwrap();
    assert_eq!(said(&lab).await, "starting", "it has not answered this one");
    // Who is no longer asked is well.
    turn(&lab, Turn::Unhealthy).await;
    set(&lab, None).await.unwrap();
    assert_eq!((told(&lab).await.0, web(&lab).await.health), (1, None));
}

#[tokio::test]
async fn who_is_away_or_paused_is_not_asked_and_comes_back_well() {
    let lab = scene().await;
    set(&lab, check(HealthProbe::Http("http://localhost/up".into())))
        .await
        .unwrap();
    turn(&lab, Turn::Unhealthy).await;
    let see = async |seen: Seen| {
        let known = lab.node.followed().await.unwrap().remove(0);
        lab.node.sighted(vec![(known, seen)]).await.unwrap();
    };
    let here = |inode, paused| {
        Seen::Here(Present {
            target: target(),
            netns: netns(inode),
            resolv_conf: ResolvConf::None,
            labels: vec![],
            paused,
        })
    };
    see(here(1, true)).await;
    assert!(
        lab.node.asked().await.unwrap().is_empty(),
        "it cannot answer"
    );
    see(here(1, false)).await;
    assert_eq!(
        web(&lab).await.state,
        "unhealthy",
        "the same container as before"
    );
    see(Seen::Away(Why::Stopped, None)).await;
    assert!(lab.node.asked().await.unwrap().is_empty());
    let states = maps(&lab).await;
    assert_eq!(
        (&states.0[..], states.1[0]),
        (
            &["no-target".to_owned(), "no-target".to_owned()][..],
            (false, false)
        )
    );
    see(here(2, false)).await;
    assert_eq!(
        (web(&lab).await.state.as_str(), told(&lab).await.0),
        ("ok", 1),
        "begun anew"
    );
    assert_eq!(said(&lab).await, "starting");
    // What was found of one that was attached before counts for nothing.
    let mut asked = lab.node.asked().await.unwrap().into_keys();
    let (id, name, since) = asked.next().unwrap();
    let old = (id, name, since + 1);
    lab.node
        .judged(vec![(old, Turn::Unhealthy, String::new())])
        .await
        .unwrap();
    assert_eq!(web(&lab).await.state, "ok");
    lab.node.detach("web".into(), None, None).await.unwrap();
    assert!(lab.node.asked().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_check_that_leads_elsewhere_is_refused_and_changes_nothing() {
    let lab = scene().await;
    let own = web(&lab).await.addresses[0];
    for host in [
        "localhost",
        "127.0.0.1",
        "web",
        "web.lab.internal",
        "web.a.lab.internal",
        &own.to_string(),
    ] {
        let url = format!("http://{host}:8080/");
        set(&lab, check(HealthProbe::Http(url))).await.unwrap();
    }
    let before = web(&lab).await.health;
    let gateway = web(&lab).await.dns[0];
    for url in [
        format!("http://{gateway}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://front.example/".to_owned(),
        "https://web/".to_owned(),
    ] {
        let error = set(&lab, check(HealthProbe::Http(url.clone())))
            .await
            .unwrap_err();
        assert_eq!(error.code, "E-HEALTH", "{url}");
    }
    for wrong in [HealthProbe::Tcp(0), HealthProbe::Exec(vec![])] {
        assert!(
            set(&lab, check(wrong))
                .await
                .is_err_and(|e| e.code == "E-HEALTH")
        );
    }
    assert_eq!(web(&lab).await.health, before);
    let none = lab
        .node
        .set_health("nobody".into(), None, check(HealthProbe::Tcp(1)));
    assert!(none.await.is_err_and(|e| e.code == "E-NO-WORKLOAD"));
}

#[tokio::test]
async fn a_map_to_another_members_workload_drains_while_nobody_is_sent_there() {
    let lab = lab(2).await;
    let id = lab.id;
    let own = move |core: &mut Core| {
        let resolved = core.state.subnets[&id].resolve(core.now());
        resolved.members[&identity(2).peer].addresses[0]
    };
    let IpAddr::V4(own) = lab.node.run(own).await.unwrap() else {
        panic!("its first address is of IPv4")
    };
    let at = IpAddr::from(Ipv4Addr::from(u32::from(own) + 1));
    let say = async |version, workloads: Vec<(&str, Vec<IpAddr>)>| {
        let entry = |(name, addresses): (&str, Vec<IpAddr>)| WorkloadEntry {
            name: name.parse().unwrap(),
            addresses,
        };
        let body = Body::Announcement(Announcement {
            version,
            issued: 1,
            workloads: workloads.into_iter().map(entry).collect(),
            ..Announcement::default()
        });
        let signed = Signed::new(id, &body, &identity(2).key);
        lab.receive(2, vec![signed]).await;
        lab.settled().await;
    };
    // What others say is built beside the node's thread.
    let becomes = async |state: &str, kernel: (bool, bool)| {
        let wanted = (vec![state.to_owned(); 2], vec![kernel; 2]);
        for _ in 0..100 {
            if maps(&lab).await == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(maps(&lab).await, wanted);
    };
    say(1, vec![("db", vec![at])]).await;
    for (port, target) in [("80", "db.m2".to_owned()), ("81", at.to_string())] {
        add_map(&lab, port, target).await.unwrap();
    }
    becomes("ok", (true, false)).await;
    say(2, vec![("db", vec![])]).await;
    becomes("no-target", (true, true)).await;
    let note = lab.node.maps(None).await.unwrap()[0].note.clone().unwrap();
    assert!(note.contains("unhealthy or not running"), "{note}");
    say(3, vec![("db", vec![]), ("web", vec![])]).await;
    becomes("no-target", (true, true)).await;
    say(4, vec![("db", vec![at])]).await;
    becomes("ok", (true, false)).await;
    say(5, vec![]).await;
    becomes("no-target", (false, false)).await;
}
