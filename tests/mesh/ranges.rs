//! Many records, of which a member missed a few: those alone are sent to it.

use std::collections::BTreeSet;

use byway::api::types::{Request, Response};
use byway::model::id::SubnetId;
use byway::model::record::{Body, Digest, Item, Signed};
use byway::wire::control::{ControlAnswer, ControlRequest, set_hash};
use ed25519_dalek::SigningKey;

use super::hostile::Hostile;
use super::node::{Node, lab, until};

/// Records that one member makes: more than are compared by a list.
const MANY: u8 = 100;

fn item(id: SubnetId, key: &SigningKey, slot: u8, version: u64) -> Signed {
    let now = byway::node::unix_now();
    let item = Item {
        kind: 40_000,
        slot: vec![slot],
        version,
        issued: now,
        expires: now + 3600,
        data: vec![slot; 500],
    };
    Signed::new(id, &Body::Item(item), key)
}

/// What a node holds, by a member that has nothing.
async fn held(hand: &Hostile, node: &Node, subnet: SubnetId) -> BTreeSet<Digest> {
    let pull = ControlRequest::Pull {
        subnet,
        have: vec![],
    };
    match hand.control(node, &pull).await {
        Ok(ControlAnswer::Records { records, .. }) => records.iter().map(Signed::digest).collect(),
        _ => BTreeSet::new(),
    }
}

/// How often members have asked a node where their records differ.
async fn asked(node: &Node) -> u64 {
    let Response::Metrics { text } = node.ok(Request::Metrics).await else {
        panic!("no metrics")
    };
    let line = text.lines().find(|line| {
        line.starts_with("byway_service_requests_total{") && line.contains("\"ranges\"")
    });
    let count = line.and_then(|line| line.rsplit(' ').next());
    count
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_missed_of_many_records_is_found_among_them() {
    let (mut nodes, id) = lab(&["a", "b", "c"]).await;
    let seed = nodes.pop().unwrap().stop().await.seed();
    let key = SigningKey::from_bytes(&seed);
    let b = nodes.pop().unwrap().stop().await;
    let a = &nodes[0];
    let hand = Hostile::start(seed);
    hand.meet(a, &[id]).await;
    let push = |records| ControlRequest::Push {
        subnet: id,
        records,
    };
    let many = (0..MANY).map(|slot| item(id, &key, slot, 1)).collect();
    assert_eq!(hand.control(a, &push(many)).await, Ok(ControlAnswer::Done));
    // It has few records, and misses all of these.
    let b = b.start().await;
    let same = async |b: &Node| {
        let all = held(&hand, a, id).await;
        hand.meet(b, &[id]).await;
        let there = held(&hand, b, id).await;
        hand.meet(a, &[id]).await;
        all.len() > usize::from(MANY) && set_hash(&all) == set_hash(&there)
    };
    until("who has few records gets the many", || same(&b)).await;
    // Now it has as many, and misses one.
    let b = b.stop().await;
    let before = asked(a).await;
    let one = vec![item(id, &key, 7, 2)];
    let wanted = one[0].digest();
    assert_eq!(hand.control(a, &push(one)).await, Ok(ControlAnswer::Done));
    let b = b.start().await;
    until("what it missed comes", || same(&b)).await;
    assert!(held(&hand, a, id).await.contains(&wanted));
    let questions = asked(a).await - before + asked(&b).await;
    assert!((1..=12).contains(&questions), "{questions} questions");
}
