//! Who may speak with whom: whoever holds a grant that counts, whatever the other has missed.

use std::time::Duration;

use byway::api::types::{Request, Role};

use super::node::{Node, PATIENCE, until};

/// An owner that is away, an admin, and a member whom the admin let in meanwhile.
async fn let_in_unseen() -> (super::node::Home, Node, Node) {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    a.create("lab").await;
    let (_, invite) = a.invite("lab", 1, 3_600_000, Role::Admin).await;
    b.join(&invite, &[], PATIENCE).await.unwrap();
    until("b is an admin", || async {
        b.members("lab")
            .await
            .iter()
            .any(|m| m.me && m.role == Role::Admin)
    })
    .await;
    // An address that c only heard of is tried once, and a is away then: this one is typed.
    let address = a.address();
    let a = a.stop().await;
    let (_, invite) = b.invite("lab", 1, 3_600_000, Role::Member).await;
    let c = Node::start("c").await;
    c.join(&invite, &[address], PATIENCE).await.unwrap();
    (a, b, c)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_the_owner_never_heard_of_shows_its_grant() {
    let (a, b, c) = let_in_unseen().await;
    let _b = b.stop().await;
    let a = a.start().await;
    until("the owner knows c", || async {
        a.peers("lab").await.contains(&c.peer)
    })
    .await;
    until("packets have a way", || async {
        a.reaches(c.peer).await && c.reaches(a.peer).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_admitted_by_an_admin_unnamed_unseen_asks_again_by_itself() {
    let (a, b, c) = let_in_unseen().await;
    let (_b, c) = (b.stop().await, c.stop().await);
    let a = a.start().await;
    // The owner has never heard of c, and cannot keep what the admin granted.
    a.ok(Request::MemberRole {
        subnet: "lab".into(),
        member: "b".into(),
        role: Role::Member,
    })
    .await;
    let c = c.start().await;
    until("c asks", || async {
        a.requests("lab").await == vec![c.peer]
    })
    .await;
    assert!(!a.peers("lab").await.contains(&c.peer));
    a.ok(Request::MemberApprove {
        subnet: "lab".into(),
        member: c.peer.to_string(),
    })
    .await;
    until("c is in", || async {
        a.reaches(c.peer).await && c.reaches(a.peer).await
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(a.requests("lab").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_cut_off_alone_puts_out_who_put_it_out_when_it_meets_a_member() {
    let mut nodes = Vec::new();
    for name in ["o", "a", "b", "m"] {
        nodes.push(Node::start(name).await);
    }
    nodes[0].create("lab").await;
    let addresses: Vec<String> = nodes.iter().map(Node::address).collect();
    for (node, role) in nodes[1..]
        .iter()
        .zip([Role::Admin, Role::Admin, Role::Member])
    {
        let (_, invite) = nodes[0].invite("lab", 1, 3_600_000, role).await;
        node.join(&invite, &addresses, PATIENCE).await.unwrap();
    }
    for node in &nodes {
        let admins = || async {
            node.members("lab")
                .await
                .iter()
                .filter(|m| m.role == Role::Admin)
                .count()
        };
        until("everybody knows the admins", || async {
            admins().await == 2 && node.peers("lab").await.len() == 4
        })
        .await;
    }
    let [o, a, b, m] = <[Node; 4]>::try_from(nodes).unwrap_or_else(|_| panic!("four nodes"));
    let (a_id, b_id) = (a.peer, b.peer);
    let remove = |member: &str| Request::MemberRemove {
        subnet: "lab".into(),
        member: member.into(),
    };
    // The owner is away. On one side a alone, on the other b and m.
    let (_o, b, m) = (o.stop().await, b.stop().await, m.stop().await);
    a.ok(remove("b")).await;
    let a = a.stop().await;
    let (b, m) = (b.start().await, m.start().await);
    b.ok(remove("a")).await;
    until("m follows b", || async {
        !m.peers("lab").await.contains(&a_id)
    })
    .await;
    assert!(m.peers("lab").await.contains(&b_id));
    let _a = a.start().await;
    until("both are out", || async {
        !m.peers("lab").await.contains(&b_id)
    })
    .await;
    assert!(!m.peers("lab").await.contains(&a_id));
    until("b learns it", || async {
        b.status()
            .await
            .subnets
            .iter()
            .any(|s| s.state == byway::api::types::SubnetState::Removed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_took_itself_off_the_wire_learns_that_it_was_removed() {
    let (a, b, id) = super::node::two().await;
    b.ok(Request::Down {
        subnet: Some("lab".into()),
    })
    .await;
    a.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    until("b knows", || async {
        b.status()
            .await
            .subnets
            .iter()
            .any(|s| s.id == id && s.state == byway::api::types::SubnetState::Removed)
    })
    .await;
}
