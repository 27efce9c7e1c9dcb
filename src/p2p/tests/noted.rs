//! Relays that members' records tell of.

use super::*;
use crate::model::notice::{Home, RelayNotice, Stance};

/// A node that nobody reaches by itself, and whose configuration names no relay.
fn unreachable(seed: u8) -> (Handle, mpsc::Receiver<Event>) {
    let mut config = in_memory(seed);
    config.listen.clear();
    let (handle, events, driver) = start(config).unwrap();
    tokio::spawn(driver.run(CancellationToken::new()));
    (handle, events)
}

async fn relay(seed: u8) -> Node {
    let mut config = in_memory(seed);
    config.serve = Serve::Anyone;
    config.join = false;
    Node::start(config).await
}

fn keeps_a_place_at(relay: PeerId, address: &str) -> RelayNotice {
    RelayNotice {
        stance: Stance::Unsaid,
        homes: vec![Home {
            relay,
            addresses: vec![address.to_owned()],
        }],
    }
}

/// Tells a node who its members are, and what the records of one of them say.
async fn tell(node: &Handle, members: &[PeerId], of: PeerId, notice: RelayNotice) {
    let others = members.iter().filter(|peer| **peer != node.peer());
    let members = others.map(|peer| (*peer, vec![LAB])).collect();
    // Records may be read before their issuer counts as a member here.
    let noted = Command::Noted(Arc::new([(of, notice)].into()));
    node.send(noted).await.unwrap();
    node.members(members).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_meet_at_a_relay_that_only_the_records_of_a_third_name() {
    let relay = relay(220).await;
    let ((a, _a_events), (b, _b_events)) = (unreachable(221), unreachable(222));
    // The third is away: nothing but its records is left of it.
    let third = PeerId([3; 32]);
    let members = [a.peer(), b.peer(), third];
    for node in [&a, &b] {
        let notice = keeps_a_place_at(relay.peer(), &relay.address.to_string());
        tell(node, &members, third, notice).await;
    }
    eventually("connected through the relay", PATIENCE, async || {
        let there = a.status_of(b.peer()).await.unwrap().connections;
        there.iter().any(|c| c.relay == Some(relay.peer()))
    })
    .await;
    let known = a.status_of(relay.peer()).await.unwrap().known;
    let sources: Vec<Source> = known.iter().map(|known| known.source).collect();
    assert_eq!(sources, [Source::Record]);
    assert_eq!(a.circuits().await.unwrap().home_silent, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_who_is_no_member_says_of_relays_counts_for_nothing() {
    let relay = relay(223).await;
    let ((a, _a_events), stranger) = (unreachable(224), PeerId([4; 32]));
    let notice = keeps_a_place_at(relay.peer(), &relay.address.to_string());
    tell(&a, &[a.peer(), PeerId([3; 32])], stranger, notice).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(a.status_of(relay.peer()).await.unwrap().known.is_empty());
    assert!(relay.connections(a.peer()).await.is_empty());
}

/// A member may name the address of somebody who has nothing to do with us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_member_names_as_its_relay_is_knocked_at_rarely_and_counted() {
    let victim = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, _a_events) = unreachable(225);
    let third = PeerId([3; 32]);
    let members = [a.peer(), third, PeerId([5; 32])];
    // An address of this machine's own is never dialled on hearsay; one that nobody listens at is tried once.
    let port = victim.local_addr().unwrap().port();
    for address in [
        format!("/ip4/127.0.0.1/tcp/{port}"),
        "/memory/4242424242".to_owned(),
    ] {
        let notice = keeps_a_place_at(PeerId([77; 32]), &address);
        tell(&a, &members, third, notice).await;
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
    let counts = a.circuits().await.unwrap();
    assert_eq!(
        (counts.home_unusable, counts.home_silent),
        (1, 1),
        "{counts:?}"
    );
    let knocked = timeout(Duration::from_millis(100), victim.accept()).await;
    assert!(knocked.is_err(), "{knocked:?}");
}
