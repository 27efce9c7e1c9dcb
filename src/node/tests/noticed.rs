//! What this node says of relays in its records, and what it takes of others.

use super::*;
use crate::model::notice::{Home, KIND, RelayNotice, Stance};
use crate::model::record::Item;

fn notice(n: u8) -> RelayNotice {
    RelayNotice {
        stance: Stance::Never,
        homes: vec![Home {
            relay: identity(n).peer,
            addresses: vec!["/ip4/192.0.2.9/udp/4100/quic-v1".to_owned()],
        }],
    }
}

fn item(id: SubnetId, by: u8, version: u64, data: Vec<u8>) -> Signed {
    let item = Item {
        kind: KIND,
        slot: vec![],
        version,
        issued: 1,
        expires: u64::MAX,
        data,
    };
    Signed::new(id, &Body::Item(item), &identity(by).key)
}

async fn writes(lab: &Lab) -> u64 {
    lab.node.run(|core| core.work().writes).await.unwrap()
}

#[tokio::test]
async fn a_notice_is_saved_and_told_once_and_stays_over_a_start_that_does_not_know_it_yet() {
    let mut lab = lab(2).await;
    let before = writes(&lab).await;
    lab.node.set_notice(notice(9)).await.unwrap();
    lab.settled().await;
    assert_eq!(lab.node.own_notice().await.unwrap(), notice(9));
    let saved = writes(&lab).await;
    assert_eq!(saved, before + 1);
    let mut told = 0;
    while let Ok(push) = tokio::time::timeout(Duration::from_secs(2), lab.pushes.recv()).await {
        let push = push.unwrap();
        let items = push
            .records
            .iter()
            .filter(|r| matches!(r, Verified::Item(_)));
        told += items.count();
        if told > 0 {
            break;
        }
    }
    assert_eq!(told, 1);
    lab.node.set_notice(notice(9)).await.unwrap();
    assert_eq!(writes(&lab).await, saved, "the same again is nothing new");
    // As after a start: what stands is not taken back before this node knows what to say.
    let look = |core: &mut Core| {
        core.notice = None;
        core.pulse = pulse::Pulse::new(Reading::now());
        core.tick()
    };
    lab.node.run(look).await.unwrap().unwrap();
    assert_eq!(lab.node.own_notice().await.unwrap(), notice(9));
    // Another machine with this identity spoke: the next look puts it right.
    let id = lab.id;
    let other = item(id, 1, u64::MAX / 2, notice(8).to_data());
    lab.receive(2, vec![other]).await;
    lab.settled().await;
    assert_eq!(lab.node.own_notice().await.unwrap(), notice(8));
    let look = |core: &mut Core| {
        core.notice = Some(notice(9));
        core.pulse = pulse::Pulse::new(Reading::now());
        core.tick()
    };
    lab.node.run(look).await.unwrap().unwrap();
    assert_eq!(lab.node.own_notice().await.unwrap(), notice(9));
}

#[tokio::test]
async fn notices_of_members_are_read_and_malformed_ones_are_counted() {
    let lab = lab(4).await;
    let id = lab.id;
    let too_many = RelayNotice {
        stance: Stance::Unsaid,
        homes: (0..50).flat_map(|n| notice(n).homes).collect(),
    };
    for (by, data) in [
        (2, notice(9).to_data()),
        (3, too_many.to_data()),
        (4, vec![7; 64]),
    ] {
        let verdict = lab
            .receive(by, vec![announcement(id, by, 1), item(id, by, 1, data)])
            .await;
        assert_eq!(verdict.news, 2, "what cannot be read is held and passed on");
    }
    lab.settled().await;
    let all = lab.node.notices().await.unwrap();
    assert_eq!(all.said, Arc::new([(identity(2).peer, notice(9))].into()));
    assert_eq!(all.malformed, 2);
}
