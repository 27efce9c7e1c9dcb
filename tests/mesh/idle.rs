//! A subnet in which few are held: who is not is dialled when it is wanted, let go when nothing travels, and seen all the same.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use byway::api::types::{Path, PeerInfo, Request, Response, Role, SubnetState};
use byway::config::Config;
use byway::model::id::{PeerId, SubnetId};
use byway::model::neighbours::Bounds;

use super::node::{Home, Node, PATIENCE, until, within};
use super::packets::{arrives, packet};

/// How long a connection lies idle before it is let go.
const LET_GO: Duration = Duration::from_secs(3);
/// Members of the subnets here: more than are held.
const CROWD: usize = 9;

/// Members hold those beside them in the rings, and nobody else.
fn few(config: &mut Config) {
    config.neighbours = Bounds {
        everybody: 3,
        near: 0,
    };
    config.let_go = LET_GO;
}

/// A subnet whose members hold few, once the connections of the joins are let go; the owner is the first.
async fn crowd() -> (Vec<Node>, SubnetId) {
    crowd_with(few).await
}

async fn crowd_with(change: fn(&mut Config)) -> (Vec<Node>, SubnetId) {
    let names: Vec<String> = (0..CROWD).map(|n| format!("n{n}")).collect();
    let nodes = names.iter().map(|name| Home::new(name).start_with(change));
    let nodes = futures::future::join_all(nodes).await;
    let created = nodes[0].create("lab").await;
    let (_, invite) = nodes[0].invite("lab", 64, 3_600_000, Role::Member).await;
    for node in &nodes[1..] {
        node.join(&invite, &[], PATIENCE).await.unwrap();
    }
    let all: BTreeSet<PeerId> = nodes.iter().map(|n| n.peer).collect();
    for node in &nodes {
        until("everybody knows everybody", || async {
            node.peers("lab").await == all
        })
        .await;
    }
    within(PATIENCE * 2, "few are connected", || async {
        for node in &nodes {
            let peers = peers(node).await;
            let connected = peers.iter().filter(|p| p.connected).count();
            if connected > 4 || peers.iter().any(|p| p.path.kind == "offline") {
                return false;
            }
        }
        true
    })
    .await;
    (nodes, created.id)
}

async fn peers(node: &Node) -> Vec<PeerInfo> {
    match node.ok(Request::PeerLs).await {
        Response::Peers { peers } => peers,
        other => panic!("{other:?}"),
    }
}

/// The path to a member as `status` has it.
async fn path(node: &Node, peer: PeerId) -> Path {
    let status = node.status().await;
    let mut peers = status.subnets.into_iter().flat_map(|s| s.peers);
    peers.find(|p| p.peer_id == peer).expect("a member").path
}

/// Two members that hold no connection to each other, neither of them the owner.
async fn apart(nodes: &[Node]) -> (&Node, &Node) {
    for one in &nodes[1..] {
        for other in &nodes[1..] {
            if other.peer != one.peer && path(one, other.peer).await.kind == "idle" {
                return (one, other);
            }
        }
    }
    panic!("everybody is connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_packet_to_an_idle_member_arrives_and_it_is_idle_again_later() {
    let (nodes, id) = crowd().await;
    let (a, b) = apart(&nodes).await;
    let (ta, tb) = (a.tap(id), b.tap(id));
    let (from, to) = (a.own("lab", true).await, b.own("lab", true).await);
    let begun = Instant::now();
    ta.inject(&packet(from, to, "the first"));
    let tap = tb.clone();
    let read = move || tap.read(Duration::from_secs(3));
    let first = tokio::task::spawn_blocking(read).await.unwrap();
    let (_, first) = first.expect("the first packet is not lost");
    println!("the first packet came after {:?}", begun.elapsed());
    assert_eq!(first, packet(from, to, "the first"));
    assert_eq!(path(a, b.peer).await.kind, "direct");
    // For as long as packets travel it stays, longer than an idle connection is kept.
    let word = packet(from, to, "and more");
    for _ in 0..8 {
        tokio::time::sleep(LET_GO / 4).await;
        assert_eq!(path(a, b.peer).await.kind, "direct");
        arrives(&ta, &tb, &word).await;
    }
    for (one, other) in [(a, b), (b, a)] {
        until("idle again", || async {
            path(one, other.peer).await.kind == "idle"
        })
        .await;
    }
    let peers = peers(a).await;
    let moved = peers.iter().find(|p| p.peer_id == b.peer).unwrap().tx_bytes;
    assert!(moved > 0, "what was counted stays");
    arrives(&ta, &tb, &word).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_gone_is_offline_once_somebody_wants_it() {
    let (mut nodes, id) = crowd().await;
    let gone = apart(&nodes).await.1.peer;
    let at = nodes.iter().position(|n| n.peer == gone).unwrap();
    let to = nodes[at].own("lab", true).await;
    let asker = nodes.iter().position(|n| n.peer != gone);
    let mut asker = asker.unwrap();
    for (n, node) in nodes.iter().enumerate() {
        if node.peer != gone && path(node, gone).await.kind == "idle" {
            asker = n;
        }
    }
    let asker = nodes[asker].peer;
    let home = nodes.remove(at).stop().await;
    let a = nodes.iter().find(|n| n.peer == asker).unwrap();
    let (tap, from) = (a.tap(id), a.own("lab", true).await);
    until("it is offline", || async {
        tap.inject(&packet(from, to, "is anybody there"));
        let path = path(a, gone).await;
        path.kind == "offline" && path.reason.as_deref() == Some("not-reached")
    })
    .await;
    // It is back: those beside it in the rings are, too.
    let back = home.start_with(few).await;
    let word = packet(from, to, "and back");
    within(PATIENCE * 2, "it is reached", || async {
        tap.inject(&word);
        path(a, gone).await.kind == "direct"
    })
    .await;
    arrives(&tap, &back.tap(id), &word).await;
}

/// The time between two tellings of who was seen: a minute in the field.
const PERIOD: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_gone_is_offline_by_what_others_tell_and_one_that_is_there_is_not() {
    let telling = |config: &mut Config| {
        few(config);
        config.presence = PERIOD;
    };
    let (mut nodes, _) = crowd_with(telling).await;
    let (watcher, gone) = apart(&nodes).await;
    let (watcher, gone) = (watcher.peer, gone.peer);
    // As long as it takes to be gone: whoever is there is seen by others all that time.
    tokio::time::sleep(PERIOD * 14).await;
    let here = |nodes: &[Node]| nodes.iter().position(|n| n.peer == watcher).unwrap();
    for node in nodes.iter().filter(|n| n.peer != watcher) {
        let path = path(&nodes[here(&nodes)], node.peer).await;
        assert_ne!(path.kind, "offline", "{path:?}");
    }
    let at = nodes.iter().position(|n| n.peer == gone).unwrap();
    nodes.remove(at).stop().await;
    let (node, begun) = (&nodes[here(&nodes)], Instant::now());
    within(PERIOD * 30, "others see it no more", || async {
        path(node, gone).await.kind == "offline"
    })
    .await;
    let took = begun.elapsed();
    println!(
        "offline after {:.1} periods",
        took.as_secs_f64() / PERIOD.as_secs_f64()
    );
    // It was not dialled: a dial in vain would be a reason of its own.
    let path_to_gone = path(node, gone).await;
    assert_eq!(path_to_gone.reason, None, "{path_to_gone:?}");
    assert!(
        took > PERIOD * 8,
        "{took:?}: not before others had the time to tell"
    );
    for other in nodes.iter().filter(|n| n.peer != watcher) {
        let path = path(node, other.peer).await;
        assert_ne!(path.kind, "offline", "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_the_admin_is_not_connected_to_is_cut_by_all() {
    let (nodes, _) = crowd().await;
    let owner = &nodes[0];
    let mut removed = None;
    for node in &nodes[1..] {
        if path(owner, node.peer).await.kind == "idle" {
            removed = Some(node);
        }
    }
    let removed = removed.expect("somebody the owner does not hold");
    let begun = Instant::now();
    owner
        .ok(Request::MemberRemove {
            subnet: "lab".to_owned(),
            member: removed.peer.to_string(),
        })
        .await;
    let others = nodes.iter().filter(|n| n.peer != removed.peer);
    for node in others {
        within(Duration::from_secs(10), "it is out", || async {
            // As a stranger it may knock again.
            let is_out = !node.peers("lab").await.contains(&removed.peer);
            is_out && !node.reaches(removed.peer).await
        })
        .await;
    }
    println!("cut by all after {:?}", begun.elapsed());
    // And it hears of it.
    until("the removed one knows", || async {
        let status = removed.status().await;
        status
            .subnets
            .iter()
            .all(|s| s.state == SubnetState::Removed)
    })
    .await;
}
