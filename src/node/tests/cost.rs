//! What a message may cost the node's thread, counted in writes and Views rather than in time.

use super::*;
use crate::model::counted::{Counts, counts};
use crate::model::record::WorkloadEntry;

#[tokio::test]
async fn forged_records_with_a_members_key_cost_that_member_nothing() {
    let lab = lab(3).await;
    for n in 0..2000u64 {
        // Member 2 sends records that name member 3 and that member 3 never signed.
        let mut forged = announcement(lab.id, 2, 1_000_000 + n);
        forged.issuer = identity(3).peer;
        let checked = lab.node.checker().records(lab.id, vec![forged]).await;
        assert_eq!((checked.good.len(), checked.forged), (0, 1));
    }
    let verdict = lab.receive(2, vec![announcement(lab.id, 3, 5)]).await;
    assert_eq!((verdict.news, verdict.waiting), (1, false));
}

#[tokio::test]
async fn only_what_is_new_is_charged_to_its_issuer() {
    let lab = lab(3).await;
    assert_eq!(
        lab.receive(2, vec![announcement(lab.id, 3, 1_000)])
            .await
            .news,
        1
    );
    lab.settled().await;
    for n in 0..500 {
        let verdict = lab.receive(2, vec![announcement(lab.id, 3, n)]).await;
        assert_eq!(
            (verdict.news, verdict.waiting),
            (0, false),
            "what is older is nothing new"
        );
    }
    assert_eq!(
        lab.receive(2, vec![announcement(lab.id, 3, 1_001)])
            .await
            .news,
        1
    );
    // What a member says itself, again and again, waits in the end.
    let mut waits = false;
    for n in 0..200 {
        waits |= lab
            .receive(3, vec![announcement(lab.id, 3, 2_000 + n)])
            .await
            .waiting;
    }
    assert!(waits);
    assert!(
        !lab.receive(2, vec![announcement(lab.id, 2, 1)])
            .await
            .waiting,
        "another member's announcements do not"
    );
}

#[tokio::test]
async fn many_announcements_are_one_write_few_views_and_one_message() {
    let mut lab = lab(40).await;
    while lab.pushes.try_recv().is_ok() {}
    let before = lab
        .node
        .run(|core| (core.work.writes, core.work.views))
        .await
        .unwrap();
    let mut last = tokio::time::Instant::now();
    for round in 1..=5u64 {
        for n in 2..=40 {
            assert_eq!(
                lab.receive(n, vec![announcement(lab.id, n, round)])
                    .await
                    .news,
                1
            );
        }
        last = tokio::time::Instant::now();
    }
    lab.settled().await;
    assert!(
        last.elapsed() < Duration::from_secs(2),
        "what was received is saved soon"
    );
    let after = lab
        .node
        .run(|core| (core.work.writes, core.work.views))
        .await
        .unwrap();
    // 195 announcements: as many writes as the time they came in has room for, whatever their number.
    assert!(after.0 - before.0 <= 40, "{} writes", after.0 - before.0);
    assert_eq!(after.1, before.1, "no View was built on the node's thread");
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 39 {
        let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
            .await
            .unwrap()
            .unwrap();
        told.extend(push.records.iter().map(|r| r.signed().issuer));
    }
}

#[tokio::test]
async fn records_of_nobody_known_are_counted_and_build_no_view() {
    let lab = lab(2).await;
    let strangers: Vec<Signed> = (100..164).map(|n| announcement(lab.id, n, 1)).collect();
    let generation = lab.node.view().load().generation;
    let verdict = lab.receive(2, strangers).await;
    assert_eq!(verdict.unknown, 64);
    lab.settled().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(lab.node.view().load().generation, generation);
}

#[tokio::test]
async fn an_announcement_of_a_peer_reaches_the_view() {
    let lab = lab(2).await;
    let workloads = (0..50u8)
        .map(|n| WorkloadEntry {
            name: format!("w{n}").parse().unwrap(),
            addresses: vec![],
        })
        .collect();
    let body = Announcement {
        version: 9,
        issued: 1,
        endpoints: vec!["/memory/1".into()],
        workloads,
        ..Announcement::default()
    };
    let record = Signed::new(lab.id, &Body::Announcement(body), &identity(2).key);
    let mut published = lab.node.published();
    published.borrow_and_update();
    assert_eq!(lab.receive(2, vec![record]).await.news, 1);
    tokio::time::timeout(Duration::from_secs(5), published.changed())
        .await
        .unwrap()
        .unwrap();
    let endpoints = lab.node.run(|core| core.state.endpoints()).await.unwrap();
    assert_eq!(endpoints[&identity(2).peer], ["/memory/1"]);
}

#[tokio::test]
async fn a_record_is_encoded_signed_and_digested_once_and_shared_by_state_and_peers() {
    let mut lab = lab(3).await;
    while lab.pushes.try_recv().is_ok() {}
    let id = lab.id;
    let begin = lab.node.run(|_| counts()).await.unwrap();
    // Its own: nothing is read back, on the way to the disk and to the others neither.
    let text = [RecordData::Txt("x".into())];
    lab.node
        .run(move |core| core.dns_add("lab", "wiki", &text, 60).map(drop))
        .await
        .unwrap()
        .unwrap();
    let own = lab.node.run(|_| counts()).await.unwrap();
    // The announcement, and this node's own side, which knows the name from now on.
    assert_eq!(
        own - begin,
        Counts {
            encoded: 2,
            digested: 1,
            ..Counts::default()
        }
    );
    // A member's: all of it is done beside the node's thread.
    let (known, before) = (Known::default(), counts());
    let good = check::check(&known, id, vec![announcement(id, 2, 7)]).good;
    // It was signed here, too.
    let once = Counts {
        encoded: 1,
        digested: 1,
        verified: 1,
        parsed: 1,
    };
    assert_eq!(counts() - before, once);
    let peer = identity(2).peer;
    lab.node
        .run(move |core| core.take(id, good, Some(peer)).map(drop))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        lab.node.run(|_| counts()).await.unwrap() - own,
        Counts::default()
    );
    let mut told = 0;
    while told < 2 {
        let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
            .await
            .unwrap()
            .unwrap();
        told += push.records.len();
        let held = lab.node.run(move |core| {
            core.state.subnets[&id]
                .records
                .verified()
                .collect::<Vec<_>>()
        });
        let held = held.await.unwrap();
        assert!(
            push.records
                .iter()
                .all(|record| held.iter().any(|held| held.is_same(record)))
        );
    }
}

#[tokio::test]
async fn a_plain_members_looks_copy_nothing_while_its_own_is_true() {
    let lab = lab_of_a_member(20).await;
    let look = || async {
        lab.node
            .run(|core| core.tick().map(|()| core.work.looks))
            .await
            .unwrap()
            .unwrap()
    };
    let mut looks = look().await;
    for _ in 0..50 {
        let next = look().await;
        if std::mem::replace(&mut looks, next) == next {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(looks > 0, "it says what it is once");
    for version in 1..=5 {
        assert_eq!(
            lab.receive(3, vec![announcement(lab.id, 3, version)])
                .await
                .news,
            1
        );
        lab.settled().await;
        // As if the node had just started: a look is due.
        lab.node
            .run(|core| core.pulse = pulse::Pulse::new(Reading::now()))
            .await
            .unwrap();
        assert_eq!(
            look().await,
            looks,
            "others' announcements change nothing of its own"
        );
    }
    let told = lab
        .node
        .run(|core| core.set_endpoints(vec!["/memory/2".into()]))
        .await
        .unwrap();
    told.unwrap();
    assert_eq!(look().await, looks, "that was published at once");
}
