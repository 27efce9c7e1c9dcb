//! What members believe: the same, soon, and after every kind of goodbye.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use byway::api::types::{Admission, Cidr, Request, Response, Role};
use byway::model::zone::RecordData;

use super::node::{Node, PATIENCE, lab, two, until, within};

/// What the design promises for a change to be everywhere.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_agree_within_five_seconds() {
    let (nodes, _) = lab(&["a", "b", "c", "d", "e"]).await;
    let names: BTreeSet<String> = nodes[0].names("lab").await;
    assert_eq!(names.len(), 10, "five names of two addresses: {names:?}");
    let text = "pg.lab.internal TXT \"hello\"".to_owned();
    let request = Request::DnsAdd {
        subnet: "lab".into(),
        name: "pg".into(),
        data: vec![RecordData::Txt("hello".into())],
        ttl: 30,
    };
    nodes[3].ok(request).await;
    let began = Instant::now();
    for node in &nodes {
        within(SOON, "the name is everywhere", || async {
            node.names("lab")
                .await
                .iter()
                .any(|n| n.starts_with("pg.lab.internal TXT"))
        })
        .await;
    }
    assert!(began.elapsed() < SOON, "{text}");
    let all = nodes[0].names("lab").await;
    for node in &nodes {
        assert_eq!(node.names("lab").await, all);
    }
    // Another member cannot claim it.
    let clash = Request::DnsAdd {
        subnet: "lab".into(),
        name: "pg".into(),
        data: vec![RecordData::Txt("mine".into())],
        ttl: 30,
    };
    assert_eq!(nodes[1].call(clash).await.unwrap_err().code, "E-NAME-TAKEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_named_a_moment_ago_is_believed_at_once() {
    let (nodes, id) = lab(&["a", "b", "c"]).await;
    // Two statements in a row by two members: the second may overtake the first on its way to the third.
    nodes[0]
        .ok(Request::MemberRole {
            subnet: "lab".into(),
            member: "b".into(),
            role: Role::Admin,
        })
        .await;
    until("b knows", || async {
        nodes[1]
            .members("lab")
            .await
            .iter()
            .any(|m| m.me && m.role == Role::Admin)
    })
    .await;
    let d = Node::start("d").await;
    let _ = d
        .join(&id.to_string(), &[nodes[1].address()], Duration::ZERO)
        .await;
    until("the question arrived", || async {
        !nodes[1].requests("lab").await.is_empty()
    })
    .await;
    nodes[1]
        .ok(Request::MemberApprove {
            subnet: "lab".into(),
            member: "d".into(),
        })
        .await;
    for node in &nodes {
        within(SOON, "the new member is everywhere", || async {
            node.peers("lab").await.len() == 4
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admins_remove_two_members_apart_and_both_hold() {
    let (mut nodes, _) = lab(&["a", "b", "c", "x", "y"]).await;
    for admin in ["b", "c"] {
        nodes[0]
            .ok(Request::MemberRole {
                subnet: "lab".into(),
                member: admin.into(),
                role: Role::Admin,
            })
            .await;
    }
    for node in &nodes[1..3] {
        until("admins know", || async {
            node.members("lab")
                .await
                .iter()
                .any(|m| m.me && m.role == Role::Admin)
        })
        .await;
    }
    let (y, x) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (gone_x, gone_y) = (x.peer, y.peer);
    let (c, b, a) = (
        nodes.pop().unwrap(),
        nodes.pop().unwrap(),
        nodes.pop().unwrap(),
    );
    x.stop().await;
    y.stop().await;
    // Each admin acts while nobody else is there.
    let (a, c_home) = (a.stop().await, c.stop().await);
    b.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "x".into(),
    })
    .await;
    let b = b.stop().await;
    let c = c_home.start().await;
    c.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "y".into(),
    })
    .await;
    let (a, b) = (a.start().await, b.start().await);
    for node in [&a, &b, &c] {
        until("both removals hold", || async {
            let peers = node.peers("lab").await;
            peers.len() == 3 && !peers.contains(&gone_x) && !peers.contains(&gone_y)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroy_ends_it_for_all_and_for_one_that_was_away() {
    let (mut nodes, id) = lab(&["a", "b", "c"]).await;
    let away = nodes.pop().unwrap().stop().await;
    nodes[0]
        .ok(Request::Destroy {
            subnet: "lab".into(),
        })
        .await;
    until("it ended at the other", || async {
        nodes[1].members("lab").await.is_empty()
    })
    .await;
    let c = away.start().await;
    within(PATIENCE * 2, "it ended at who was away", || async {
        c.members("lab").await.is_empty()
    })
    .await;
    // Saying it again is no error, and joining it again is.
    let again = nodes[0]
        .ok(Request::Destroy {
            subnet: "lab".into(),
        })
        .await;
    assert!(matches!(again, Response::Done(done) if !done.changed));
    let refused = c
        .join(&id.to_string(), &[nodes[0].address()], PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(refused.code, "E-ENDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leave_frees_lease_and_name() {
    let (a, b, id) = two().await;
    let held = b.own("lab", true).await;
    b.ok(Request::Leave {
        subnet: "lab".into(),
    })
    .await;
    within(SOON, "the others know", || async {
        a.peers("lab").await.len() == 1
    })
    .await;
    assert!(!a.names("lab").await.iter().any(|n| n.starts_with("b.")));
    // Its place is free for the next, and it may come again.
    let (_, invite) = a.invite("lab", 5, 3_600_000, Role::Member).await;
    let c = Node::start("c").await;
    c.join(&invite, &[], PATIENCE).await.unwrap();
    assert_eq!(c.own("lab", true).await, held);
    b.join(&invite, &[], PATIENCE).await.unwrap();
    for node in [&a, &b, &c] {
        within(SOON, "all three", || async {
            node.peers("lab").await.len() == 3
        })
        .await;
    }
    let me = b.members("lab").await.into_iter().find(|m| m.me).unwrap();
    assert_eq!((me.generation, me.peer_id), (2, b.peer), "{id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_while_nobody_is_there_is_told_later() {
    let (a, b, _) = two().await;
    let away = a.stop().await;
    b.ok(Request::Leave {
        subnet: "lab".into(),
    })
    .await;
    let a = away.start().await;
    within(PATIENCE * 2, "it hears of it", || async {
        a.peers("lab").await.len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_removed_while_away_learns_it_when_it_is_back() {
    let (a, b, _) = two().await;
    let away = b.stop().await;
    a.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    let b = away.start().await;
    until("it knows", || async {
        !b.members("lab").await.iter().any(|m| m.me)
    })
    .await;
}

/// How many questions of the kind that is about all subnets at once a node has answered.
async fn asked_at_once(node: &Node) -> u64 {
    let Response::Metrics { text } = node.ok(Request::Metrics).await else {
        panic!("no metrics")
    };
    let of_kind = |line: &&str| {
        line.starts_with("byway_service_requests") && line.contains("kind=\"records\"")
    };
    text.lines()
        .filter(of_kind)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_share_subnets_ask_about_all_at_once_and_compare_the_one_that_differs() {
    let (a, b, _) = two().await;
    let created = a
        .create_with(
            "wide",
            Cidr::Given("10.99.0.0/16".parse().unwrap()),
            Admission::Approve,
        )
        .await
        .unwrap();
    b.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap();
    let away = b.stop().await;
    let before = asked_at_once(&a).await;
    a.ok(Request::DnsAdd {
        subnet: "wide".into(),
        name: "pg".into(),
        data: vec![RecordData::Txt("hello".into())],
        ttl: 30,
    })
    .await;
    // Nobody was there to be told: what b lacks it finds by comparing.
    let b = away.start().await;
    until("the name is there", || async {
        b.names("wide")
            .await
            .iter()
            .any(|n| n.starts_with("pg.wide"))
    })
    .await;
    assert_eq!(a.names("lab").await, b.names("lab").await);
    until("one question was about both", || async {
        asked_at_once(&a).await > before
    })
    .await;
}
