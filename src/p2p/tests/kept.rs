//! Members that are no neighbours: dialled when they are wanted, let go when nobody uses them, and left alone in between.

use std::collections::BTreeSet;

use super::*;
use crate::model::neighbours::{Bounds, Known, Neighbours};
use crate::model::record::Digest;
use crate::testing::Dice;

const LET_GO: Duration = Duration::from_secs(1);
const BOUNDS: Bounds = Bounds {
    everybody: 3,
    near: 0,
};

fn few(seed: u8) -> Config {
    let mut config = in_memory(seed);
    config.neighbours = BOUNDS;
    config.timing.let_go = LET_GO;
    config
}

/// A subnet of two and many who are not there, in which the two are no neighbours.
fn roll(a: PeerId, b: PeerId) -> BTreeMap<PeerId, Digest> {
    let (nobody, nothing) = (BTreeSet::new(), BTreeMap::new());
    let known = Known {
        homes: &nobody,
        round_trips: &nothing,
        away: &nobody,
        held: &nobody,
        round: 0,
    };
    let mut dice = Dice::new(7);
    loop {
        let mut roll: BTreeMap<PeerId, Digest> =
            (0..200).map(|_| (PeerId(dice.key()), dice.key())).collect();
        roll.extend([(a, dice.key()), (b, dice.key())]);
        let mut neighbours = Neighbours::default();
        neighbours.set(LAB, roll.clone());
        // Who is not there has others stand in for it: the two must be far apart.
        let away: BTreeSet<PeerId> = roll
            .keys()
            .copied()
            .filter(|p| *p != a && *p != b)
            .collect();
        let known = Known {
            away: &away,
            ..known
        };
        let is_far = |me, other| {
            !neighbours
                .choose_within(me, BOUNDS, &known)
                .contains_key(&other)
        };
        if is_far(a, b) && is_far(b, a) {
            return roll;
        }
    }
}

/// Two that know where the other is, and are no neighbours.
async fn two(seeds: (u8, u8)) -> (Node, Node) {
    two_of([few(seeds.0), few(seeds.1)]).await
}

async fn two_of([a, b]: [Config; 2]) -> (Node, Node) {
    let (a, b) = (Node::start(a).await, Node::start(b).await);
    let roll = Arc::new(roll(a.peer(), b.peer()));
    for (node, other) in [(&a, &b), (&b, &a)] {
        let rolls = [(LAB, Arc::clone(&roll))].into();
        node.handle.send(Command::Grants(rolls)).await.unwrap();
        node.members(&[(other.peer(), &[LAB])]).await;
        let heard = Heard::of(other.address.0.clone(), true)
            .into_iter()
            .collect();
        let known = Command::Known {
            peer: other.peer(),
            heard,
            answered: Vec::new(),
        };
        node.handle.send(known).await.unwrap();
    }
    (a, b)
}

async fn is_connected(a: &Node, b: &Node) -> bool {
    !a.connections(b.peer()).await.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_neighbour_is_dialled_when_packets_want_it_and_let_go_when_idle() {
    let (a, b) = two((141, 142)).await;
    eventually("they know", PATIENCE, async || {
        !a.handle.holds(b.peer()) && !b.handle.holds(a.peer())
    })
    .await;
    tokio::time::sleep(LET_GO).await;
    assert!(!is_connected(&a, &b).await, "nobody wants it");
    let begun = Instant::now();
    a.handle
        .send(Command::Wanted { peer: b.peer() })
        .await
        .unwrap();
    eventually("it is dialled", PATIENCE, async || {
        is_connected(&a, &b).await
    })
    .await;
    println!("connected after {:?}", begun.elapsed());
    // A wish lasts: packets that wait do not repeat it at once.
    eventually("it is let go", PATIENCE * 2, async || {
        !is_connected(&a, &b).await && !is_connected(&b, &a).await
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        !is_connected(&a, &b).await && !is_connected(&b, &a).await,
        "and stays so"
    );
    let status = a.handle.status_of(b.peer()).await.unwrap();
    assert_eq!(
        (status.away, status.failures),
        (None, 0),
        "it is not taken for lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_few_more_connections_can_be_made_idle_ones_are_let_go_sooner() {
    let slow = |seed| {
        let mut config = few(seed);
        config.timing.let_go = Duration::from_secs(60);
        config
    };
    let mut crowded = slow(147);
    crowded.timing.let_go = Duration::from_secs(10);
    crowded.limits.connections = 1;
    let (a, b) = two_of([crowded, slow(148)]).await;
    b.handle
        .send(Command::Wanted { peer: a.peer() })
        .await
        .unwrap();
    eventually("it is dialled", PATIENCE, async || {
        is_connected(&a, &b).await
    })
    .await;
    let begun = Instant::now();
    eventually("it is let go", PATIENCE, async || {
        !is_connected(&a, &b).await
    })
    .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_dials_who_is_no_neighbour_and_datagrams_keep_it_until_they_cease() {
    let (a, mut b) = two((143, 144)).await;
    let asked = {
        let handle = a.handle.clone();
        let peer = b.peer();
        tokio::spawn(async move {
            handle
                .ask(peer, Protocol::Control, b"?".to_vec(), PATIENCE)
                .await
        })
    };
    let responder = b
        .expect(|event| match event {
            Event::Asked { responder, .. } => Ok(responder),
            other => Err(other),
        })
        .await;
    responder.respond(b"!".to_vec());
    assert_eq!(asked.await.unwrap(), Ok(b"!".to_vec()));
    let until = Instant::now() + LET_GO * 3;
    while Instant::now() < until {
        for (node, other) in [(&a, &b), (&b, &a)] {
            let used = Command::InUse { peer: other.peer() };
            node.handle.send(used).await.unwrap();
        }
        tokio::time::sleep(LET_GO / 4).await;
        assert!(is_connected(&a, &b).await, "datagrams travel beside it");
    }
    eventually("nothing travels any more", PATIENCE, async || {
        !is_connected(&a, &b).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_when_it_is_wanted_is_away_until_it_does() {
    let (a, b) = two((145, 146)).await;
    let (peer, address) = (b.peer(), b.address.clone());
    let want = async || a.handle.send(Command::Wanted { peer }).await.unwrap();
    want().await;
    eventually("it has answered", PATIENCE, async || {
        is_connected(&a, &b).await
    })
    .await;
    b.stop().await;
    let status = async || a.handle.status_of(peer).await.unwrap();
    eventually("it is gone", PATIENCE, async || {
        status().await.connections.is_empty()
    })
    .await;
    want().await;
    eventually("it is away", PATIENCE, async || {
        status().await.away.is_some()
    })
    .await;
    let mut again = few(146);
    again.listen = vec![address];
    let b = Node::start(again).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    eventually("it is there", PATIENCE, async || {
        want().await;
        status().await.away.is_none()
    })
    .await;
}
