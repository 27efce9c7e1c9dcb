//! A member that turns on the others.

use std::time::Instant;

use byway::model::id::PeerId;
use byway::model::record::{Body, Doc, Signed};
use byway::wire::control::{ControlAnswer, ControlRequest};
use ed25519_dalek::SigningKey;

use super::hostile::Hostile;
use super::node::{Node, PATIENCE, lab, two};

fn doc(version: u64, issued: u64) -> Body {
    Body::Doc(Doc { version, issued, left: None, endpoints: vec![], workloads: vec![], names: vec![] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cannot_push_time_forward() {
    let (a, b, id) = two().await;
    let seed = b.stop().await.seed();
    let key = SigningKey::from_bytes(&seed);
    let mallory = Hostile::start(seed);
    mallory.meet(&a, &[id]).await;
    let now = byway::node::unix_now();
    for step in 1..40u64 {
        let record = Signed::new(id, &doc(u64::MAX - 100 + step, now + 290 * step), &key);
        let _ = mallory.control(&a, &ControlRequest::Push { subnet: id, records: vec![record] }).await;
    }
    // An invite of one hour, made by a clock that was pushed, would end later than one hour from now.
    let (_, text) = a.invite("lab", 1, 3_600_000, byway::api::types::Role::Member).await;
    let ends = byway::model::join::Invite::parse(&text).unwrap().expires;
    assert!(ends <= byway::node::unix_now() + 3600, "the clock runs {} s ahead", ends - now - 3600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_records_leaves_room_for_others() {
    let (mut nodes, id) = lab(&["a", "b", "c"]).await;
    let (c, b, a) = (nodes.pop().unwrap(), nodes.pop().unwrap(), nodes.pop().unwrap());
    let seed = b.stop().await.seed();
    let key = SigningKey::from_bytes(&seed);
    let mallory = Hostile::start(seed);
    mallory.meet(&a, &[id]).await;
    let now = byway::node::unix_now();
    let mut flood = Vec::new();
    let mut taken = 0;
    for n in 0..400u64 {
        let record = Signed::new(id, &doc(now * 1000 + 1_000_000 + n, now), &key);
        flood.push(ControlRequest::Push { subnet: id, records: vec![record] });
    }
    for request in &flood {
        match mallory.control(&a, request).await {
            Ok(ControlAnswer::Done) => taken += 1,
            _ => break,
        }
    }
    assert!(taken < 400, "every one of the flood was taken");
    // The others go on meanwhile.
    let began = Instant::now();
    let (_, invite) = a.invite("lab", 1, 3_600_000, byway::api::types::Role::Member).await;
    let d = Node::start("d").await;
    d.join(&invite, &[], PATIENCE).await.unwrap();
    assert!(began.elapsed() < PATIENCE);
    drop(c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_made_up_issuers_cost_no_room() {
    let (a, b, id) = two().await;
    let mallory = Hostile::start(b.stop().await.seed());
    mallory.meet(&a, &[id]).await;
    let now = byway::node::unix_now();
    let junk: Vec<Signed> = (0..600u32)
        .map(|n| {
            let mut seed = [9; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            Signed::new(id, &doc(1, now), &SigningKey::from_bytes(&seed))
        })
        .collect();
    let _ = mallory.control(&a, &ControlRequest::Push { subnet: id, records: junk }).await;
    let pull = ControlRequest::Pull { subnet: id, have: vec![] };
    let Ok(ControlAnswer::Records { records, .. }) = mallory.control(&a, &pull).await else { panic!("no answer") };
    let issuers: std::collections::BTreeSet<PeerId> = records.iter().map(|r| r.issuer).collect();
    assert!(issuers.len() <= 2, "junk is not passed on");
    assert_eq!(a.peers("lab").await.len(), 2);
}
