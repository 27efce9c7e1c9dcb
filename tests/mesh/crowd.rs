//! Many at once: joins of a whole crowd, and everybody dialling everybody.

use std::collections::BTreeMap;

use byway::api::types::{Request, Response, Role};
use byway::model::id::{PeerId, SubnetId};
use byway::p2p::{self, Handle, TransportKind};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::node::{Node, PATIENCE, until};

const CROWD: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_join_at_once_and_everybody_reaches_everybody() {
    let names: Vec<String> = (0..CROWD).map(|n| format!("n{n}")).collect();
    let nodes = futures::future::join_all(names.iter().map(|name| Node::start(name))).await;
    nodes[0].create("lab").await;
    let (_, invite) = nodes[0].invite("lab", 9, 3_600_000, Role::Member).await;
    let joins = nodes[1..]
        .iter()
        .map(|node| node.join(&invite, &[], PATIENCE));
    for joined in futures::future::join_all(joins).await {
        joined.unwrap();
    }
    until("every pair has one way", || async {
        for node in &nodes {
            let Response::Peers { peers } = node.ok(Request::PeerLs).await else {
                return false;
            };
            let ways = nodes.iter().filter(|other| other.peer != node.peer);
            let linked = |p: PeerId| {
                peers
                    .iter()
                    .any(|i| i.peer_id == p && i.connected && i.path.carrier.is_some())
            };
            if !ways.into_iter().all(|other| linked(other.peer)) {
                return false;
            }
        }
        true
    })
    .await;
    let mut blocks: Vec<_> = nodes[0]
        .members("lab")
        .await
        .into_iter()
        .flat_map(|m| m.leases)
        .collect();
    let all = blocks.len();
    blocks.sort();
    blocks.dedup();
    assert_eq!(
        (blocks.len(), all),
        (2 * CROWD, 2 * CROWD),
        "nobody shares a block"
    );
}

/// One end of many connections, of which nothing is used.
async fn dialler(n: usize) -> (Handle, String, DropGuard) {
    let address = format!("/memory/{}", 910_000 + n);
    let mut config = p2p::Config::new([200 + u8::try_from(n).unwrap(); 32]);
    config.transport = TransportKind::Memory;
    config.listen = vec![address.parse().unwrap()];
    let (handle, mut events, driver) = p2p::start(config).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(driver.run(stop.clone()));
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    (handle, address, stop.drop_guard())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_dials_at_once_end_with_one_connection_a_pair() {
    let crowd = futures::future::join_all((0..CROWD).map(dialler)).await;
    let members: BTreeMap<PeerId, Vec<SubnetId>> = crowd
        .iter()
        .map(|(handle, ..)| (handle.peer(), vec![SubnetId([1; 16])]))
        .collect();
    for (handle, ..) in &crowd {
        let others = members
            .iter()
            .filter(|(p, _)| **p != handle.peer())
            .map(|(p, s)| (*p, s.clone()))
            .collect();
        handle.members(others).await.unwrap();
    }
    let pairs = (0..CROWD).flat_map(|a| (0..CROWD).filter(move |b| *b != a).map(move |b| (a, b)));
    let dials = pairs.map(|(a, b)| {
        crowd[a]
            .0
            .connect(vec![crowd[b].1.parse().unwrap()], Some(crowd[b].0.peer()))
    });
    let reached = futures::future::join_all(dials)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert!(
        reached >= CROWD * (CROWD - 1) / 2,
        "only {reached} of 90 dials reached their peer"
    );
    until("one connection for each pair, at both ends", || async {
        for (handle, ..) in &crowd {
            let status = handle.status().await.unwrap();
            let single = status.iter().filter(|p| p.connections.len() == 1).count();
            if status.len() != CROWD - 1 || single != CROWD - 1 {
                return false;
            }
        }
        true
    })
    .await;
}
