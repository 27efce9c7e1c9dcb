//! Who gets in by the ID of a subnet, and who does not.

use std::collections::BTreeSet;
use std::time::Duration;

use byway::api::types::{Admission, Cidr, Request, Response, Role, SubnetState};
use byway::model::id::{PeerId, SubnetId};
use byway::model::join::{Ask, Proof, SignedAsk};
use ed25519_dalek::SigningKey;

use super::node::{Node, PATIENCE, two, until};

pub const SHORT: Duration = Duration::from_secs(4);

/// A signed question of the peer with this seed.
pub fn ask(
    seed: [u8; 32],
    subnet: byway::model::id::SubnetId,
    name: &str,
    proof: Option<Proof>,
) -> SignedAsk {
    let key = SigningKey::from_bytes(&seed);
    let joiner = PeerId(key.verifying_key().to_bytes());
    let ask = Ask {
        subnet,
        joiner,
        data_key: [1; 32],
        seal_key: [2; 32],
        name: name.parse().unwrap(),
        name_is_default: true,
        ip: None,
        asked: 1,
        proof,
    };
    SignedAsk::new(&ask, &key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_by_id_waits_for_approval() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let pending = b
        .join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(pending.state, SubnetState::Pending);
    assert_eq!(a.requests("lab").await, vec![b.peer]);
    assert_eq!(a.peers("lab").await.len(), 1, "asking lets nobody in");
    a.ok(Request::MemberApprove {
        subnet: "lab".into(),
        member: b.peer.to_string(),
    })
    .await;
    until("the joiner is in", || async {
        b.peers("lab").await.len() == 2
    })
    .await;
    assert!(a.requests("lab").await.is_empty());
    // Saying it again is no error and changes nothing.
    let again = a
        .ok(Request::MemberApprove {
            subnet: "lab".into(),
            member: "b".into(),
        })
        .await;
    assert!(matches!(again, Response::Done(done) if !done.changed));
    let second = b
        .join(&created.id.to_string(), &[a.address()], SHORT)
        .await
        .unwrap();
    assert_eq!(
        second.addresses,
        b.members("lab")
            .await
            .iter()
            .find(|m| m.me)
            .unwrap()
            .addresses
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_found_nobody_is_over() {
    let a = Node::start("a").await;
    a.create("lab").await;
    let (_, invite) = a.invite("lab", 20, 3_600_000, Role::Member).await;
    // Given up at any moment of the way in: what was said is how it is afterwards.
    let mut over = 0;
    for moment in (0..60).step_by(5) {
        let b = Node::start("b").await;
        let outcome = b
            .join(&invite, &[], Duration::from_millis(moment + 1))
            .await;
        match outcome {
            Ok(joined) if joined.state == SubnetState::Ready => continue,
            // Somebody was found, and is asked on.
            Ok(_) => {
                until("the joiner is in", || async {
                    b.members("lab").await.len() > 1
                })
                .await
            }
            Err(error) => {
                assert_eq!(error.code, "E-NOBODY");
                tokio::time::sleep(Duration::from_millis(700)).await;
                assert!(
                    b.members("lab").await.is_empty(),
                    "in after all, after {moment} ms"
                );
                assert!(
                    !a.peers("lab").await.contains(&b.peer),
                    "admitted after all, after {moment} ms"
                );
                b.join(&invite, &[], PATIENCE)
                    .await
                    .expect("the invite is as good as before");
                over += 1;
            }
        }
    }
    assert!(over > 0, "every join was done before it could be given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_join_changes_nothing_and_says_what_it_was_asked_in_vain() {
    let (a, b, id) = two().await;
    let again = |name: &str, host: &str| Request::Join {
        target: id.to_string(),
        peers: vec![],
        name: name.parse().ok(),
        alias: name.parse().ok(),
        ip: None,
        host: host.parse().ok(),
        allow: Default::default(),
        timeout_ms: 1000,
        wait: true,
    };
    let ignored = async |request| match b.ok(request).await {
        Response::Joined(joined) => (joined.ignored, joined.host.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(ignored(again("", "")).await, (vec![], "closed".to_owned()));
    let all = ["--name", "--as", "--host"].map(str::to_owned).to_vec();
    assert_eq!(
        ignored(again("other", "open")).await,
        (all, "closed".to_owned())
    );
    assert_eq!(
        ignored(again("lab", "closed")).await.0,
        ["--name"],
        "what is so already is not in vain"
    );
    assert_eq!(a.peers("lab").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_is_taken_back_ends_for_who_waits_and_one_that_a_stop_cuts_off_goes_on() {
    let b = Node::start("b").await;
    let id = SubnetId([7; 16]).to_string();
    let waits = || async {
        b.status()
            .await
            .subnets
            .iter()
            .any(|s| s.state == SubnetState::Pending)
    };
    let taken_back = async {
        until("it waits", waits).await;
        b.ok(Request::Leave { subnet: id.clone() }).await;
    };
    let (told, ()) = tokio::join!(b.join(&id, &[], PATIENCE), taken_back);
    assert_eq!(told.unwrap_err().code, "E-JOIN-OVER");
    assert!(!waits().await);
    tokio::select! {
        told = b.join(&id, &[], PATIENCE) => panic!("{told:?}"),
        () = until("it waits again", waits) => {}
    }
    // Whoever asked has gone; the daemon is stopped in the middle of it.
    let b = b.stop().await.start().await;
    assert_eq!(
        b.status()
            .await
            .subnets
            .iter()
            .map(|s| s.state)
            .collect::<Vec<_>>(),
        [SubnetState::Pending]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_joiner_stays_out() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let _ = b
        .join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await;
    until("the question arrived", || async {
        !a.requests("lab").await.is_empty()
    })
    .await;
    a.ok(Request::MemberDeny {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    let refused = b
        .join(&created.id.to_string(), &[a.address()], PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(refused.code, "E-DENIED");
    assert_eq!(a.peers("lab").await.len(), 1);
}

/// Whether exactly these are members in the eyes of each.
async fn agree(nodes: &[&Node]) {
    let all: BTreeSet<PeerId> = nodes.iter().map(|node| node.peer).collect();
    for node in nodes {
        until("all are members everywhere", || async {
            node.peers("lab").await == all
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_left_while_its_decider_was_away_is_in_for_good_when_it_joins_again() {
    let (a, b, c) = tokio::join!(Node::start("a"), Node::start("b"), Node::start("c"));
    let created = a
        .create_with("lab", Cidr::Auto, Admission::Open)
        .await
        .unwrap();
    let id = created.id.to_string();
    let at = [a.address(), c.address()];
    c.join(&id, &at[..1], PATIENCE).await.unwrap();
    b.join(&id, &at, PATIENCE).await.unwrap();
    agree(&[&a, &b, &c]).await;
    let leave = || Request::Leave {
        subnet: "lab".into(),
    };
    // The goodbye comes to the decider before the question, after it, or by the joiner alone.
    let [mut a, mut c] = [a, c];
    let b_id = b.peer;
    for (heard, back_later) in [(true, false), (true, true), (false, false)] {
        let home = a.stop().await;
        if heard {
            b.ok(leave()).await;
            until("c has heard it", || async {
                !c.peers("lab").await.contains(&b_id)
            })
            .await;
        }
        let away = c.stop().await;
        if !heard {
            b.ok(leave()).await;
        }
        a = home.start().await;
        let joined = if back_later {
            let joined = b.join(&id, &at, PATIENCE).await.unwrap();
            c = away.start().await;
            joined
        } else {
            c = away.start().await;
            b.join(&id, &at, PATIENCE).await.unwrap()
        };
        assert_eq!(joined.state, SubnetState::Ready);
        agree(&[&a, &b, &c]).await;
        until("packets have a way", || async {
            a.reaches(b_id).await && b.reaches(a.peer).await && c.reaches(b_id).await
        })
        .await;
        let generations: BTreeSet<u32> = generation_of(&[&a, &b, &c], b_id).await;
        assert_eq!(generations.len(), 1, "{generations:?}");
    }
    let generation = generation_of(&[&a], b_id).await;
    assert_eq!(
        generation,
        [4].into(),
        "each time it left it needed another"
    );
}

async fn generation_of(nodes: &[&Node], of: PeerId) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for node in nodes {
        let members = node.members("lab").await;
        let found = members.iter().find(|member| member.peer_id == of);
        all.extend(found.map(|member| member.generation));
    }
    all
}
