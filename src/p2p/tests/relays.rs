//! Relays: places at them, circuits through them, and who may what.

mod hops;

use super::*;
use crate::p2p::address::{Circuit, is_circuit};

/// A node that serves as a relay, and is in no subnet.
async fn relay(seed: u8, serve: Serve) -> Node {
    let mut config = in_memory(seed);
    config.serve = serve;
    config.join = false;
    Node::start(config).await
}

/// The address of a relay with its name, as a person gives it.
fn named(relay: &Node) -> Typed {
    let text = format!("{}/p2p/{}", relay.address, relay.peer());
    text.parse().unwrap()
}

/// A node that nobody reaches by itself: all who dial it come through the relay.
async fn behind(seed: u8, relay: &Node) -> Node {
    let mut config = in_memory(seed);
    config.listen.clear();
    config.meeting = vec![named(relay)];
    Node::start(config).await
}

/// Waits for the first address that leads through a relay.
async fn through(node: &mut Node) -> Address {
    node.expect(|event| match event {
        Event::Listening { addresses } => addresses
            .into_iter()
            .find(|address| address.relay().is_some())
            .ok_or(Event::Listening { addresses: vec![] }),
        other => Err(other),
    })
    .await
}

/// Takes the news that a relay keeps a place.
fn place(event: Event) -> Result<(), Event> {
    match event {
        Event::Reserved { .. } => Ok(()),
        other => Err(other),
    }
}

async fn reserved(node: &mut Node) -> PeerId {
    node.expect(|event| match event {
        Event::Reserved { relay } => Ok(relay),
        other => Err(other),
    })
    .await
}

async fn places(node: &Node) -> Vec<PlaceStatus> {
    node.handle.places().await.unwrap()
}

fn heard(node: &Node) -> Vec<Heard> {
    vec![Heard::parse(&node.address.to_string()).unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_share_only_a_relay_are_connected_through_it() {
    let relay = relay(150, Serve::Anyone).await;
    let (mut a, b) = (behind(151, &relay).await, behind(152, &relay).await);
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    assert_eq!(
        a.handle.connect_heard(heard(&b), b.peer()).await,
        Ok(b.peer())
    );
    let connected = a
        .expect(|event| match event {
            Event::Connected {
                peer,
                class: Class::Member,
                transport,
                relay,
                ..
            } => Ok((peer, transport, relay)),
            other => Err(other),
        })
        .await;
    assert_eq!(connected, (b.peer(), "relay", Some(relay.peer())));
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Control, vec![1, 2], PATIENCE)
            .await
    });
    let mut b = b;
    assert_eq!(b.answer().await, (Protocol::Control, Class::Member));
    assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_asks_to_be_let_in_through_a_relay_that_it_knows_from_the_address_alone() {
    let relay = relay(153, Serve::Anyone).await;
    let mut b = behind(154, &relay).await;
    let a = Node::start(in_memory(155)).await;
    assert_eq!(
        a.handle.connect_heard(heard(&b), b.peer()).await,
        Ok(b.peer())
    );
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask =
        tokio::spawn(async move { handle.ask(peer, Protocol::Join, vec![1, 2], PATIENCE).await });
    assert_eq!(b.answer().await, (Protocol::Join, Class::Stranger));
    assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
    // So does one whose relay and peer a person names.
    let c = Node::start(in_memory(156)).await;
    let typed = format!("{}/p2p/{}", b.address, b.peer()).parse().unwrap();
    assert_eq!(c.handle.connect(vec![typed], None).await, Ok(b.peer()));
}

/// Through a relay go PeerIds, addresses and sealed bytes: neither what a join asks nor what members ask can be asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_learns_no_subnet() {
    let mut relay = relay(157, Serve::Anyone).await;
    let a = behind(158, &relay).await;
    for protocol in [Protocol::Join, Protocol::Control, Protocol::Service] {
        let asked = a
            .handle
            .ask(relay.peer(), protocol, vec![7; 16], PATIENCE)
            .await;
        assert_eq!(asked, Err(AskError::Refused), "{protocol:?}");
    }
    let (handle, peer) = (a.handle.clone(), relay.peer());
    let ask = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Relay, vec![1, 2], PATIENCE)
            .await
    });
    assert_eq!(
        relay.answer().await,
        (Protocol::Relay, Class::Meeting),
        "the first thing it was asked"
    );
    assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
    // It may ask back.
    let (handle, peer) = (relay.handle.clone(), a.peer());
    let ask = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Relay, vec![3, 4], PATIENCE)
            .await
    });
    let mut a = a;
    assert_eq!(a.answer().await, (Protocol::Relay, Class::Meeting));
    assert_eq!(ask.await.unwrap(), Ok(vec![4, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_served_gets_no_place_and_knows_it() {
    let relay = relay(159, Serve::Members).await;
    let mut config = in_memory(160);
    config.meeting = vec![named(&relay)];
    let mut a = Node::start(config).await;
    assert!(a.within(Duration::from_secs(3), place).await.is_none());
    let asked = a
        .handle
        .ask(relay.peer(), Protocol::Relay, vec![1], PATIENCE)
        .await;
    assert_eq!(asked, Err(AskError::Refused));
    let said = places(&a).await;
    let [only] = said.as_slice() else {
        unreachable!("{said:?}")
    };
    assert_eq!((only.relay, only.is_configured), (relay.peer(), true));
    assert_eq!(only.kept, None);
    let (why, age) = only.refused.unwrap();
    assert_eq!(why, Refusal::Unsupported);
    assert!(
        age >= Duration::from_secs(1),
        "the first no counts: {age:?}"
    );
    // Served from now on, it has one.
    relay
        .handle
        .send(Command::Serve(Serve::Only([a.peer()].into())))
        .await
        .unwrap();
    a.handle
        .send(Command::Meeting(vec![named(&relay)]))
        .await
        .unwrap();
    assert_eq!(reserved(&mut a).await, relay.peer());
    let only = places(&a).await[0];
    assert!(only.kept.is_some() && only.refused.is_none(), "{only:?}");
    relay.stop().await;
    // A relay that is gone refuses nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let only = places(&a).await[0];
    assert!(only.kept.is_none() && only.refused.is_none(), "{only:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_room_says_so() {
    let mut config = in_memory(239);
    config.serve = Serve::Anyone;
    config.join = false;
    config.limits.circuits = 1;
    let relay = Node::start(config).await;
    let (first, second) = (behind(245, &relay).await, behind(246, &relay).await);
    eventually("one has the place and one is told", PATIENCE, async || {
        let mut said = Vec::new();
        for node in [&first, &second] {
            let only = places(node).await[0];
            said.push((only.kept.is_some(), only.refused.map(|(why, _)| why)));
        }
        said.sort();
        said == [(false, Some(Refusal::Full)), (true, None)]
    })
    .await;
}

/// As after `relay off` and `relay offer` in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_took_us_for_a_stranger_is_asked_as_soon_as_it_answers() {
    let relay = relay(236, Serve::Members).await;
    let mut config = in_memory(237);
    config.meeting = vec![named(&relay)];
    let mut a = Node::start(config).await;
    assert!(a.within(Duration::from_secs(3), place).await.is_none());
    let served = Command::Serve(Serve::Anyone);
    relay.handle.send(served).await.unwrap();
    // Where it was being met just then, it has given the place already.
    let early = a.within(Duration::from_secs(3), place).await;
    // Else a circuit brings a connection to the relay, over which it is seen that we are no stranger any more.
    let b = behind(238, &relay).await;
    let connected = a.handle.connect_heard(heard(&b), b.peer()).await;
    assert_eq!(connected, Ok(b.peer()));
    let soon = early.or(a.within(Duration::from_secs(5), place).await);
    assert!(soon.is_some(), "it is left alone for a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_had_again_after_the_relay_was_away() {
    let relay = relay(161, Serve::Anyone).await;
    let mut a = behind(162, &relay).await;
    let address = relay.address.clone();
    relay.stop().await;
    a.expect(|event| match event {
        Event::Unreserved { .. } => Ok(()),
        other => Err(other),
    })
    .await;
    let gone = a
        .expect(|event| match event {
            Event::Listening { addresses } => Ok(addresses),
            other => Err(other),
        })
        .await;
    assert!(gone.iter().all(|a| a.relay().is_none()), "{gone:?}");
    let mut again = in_memory(161);
    again.listen = vec![address];
    again.serve = Serve::Anyone;
    let relay = Node::start(again).await;
    assert_eq!(reserved(&mut a).await, relay.peer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_renewed() {
    let mut config = in_memory(163);
    config.serve = Serve::Anyone;
    config.timing.reservation = Duration::from_secs(4);
    let relay = Node::start(config).await;
    let mut a = behind(164, &relay).await;
    let lost = |event| match event {
        Event::Unreserved { .. } => Ok(()),
        other => Err(other),
    };
    assert!(a.within(Duration::from_secs(9), lost).await.is_none());
    let b = Node::start(in_memory(165)).await;
    assert_eq!(
        b.handle.connect_heard(heard(&a), a.peer()).await,
        Ok(a.peer())
    );
}

/// Strangers who come through one relay have their share, so that others, through it and past it, find room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_relay_of_strangers_leaves_room_for_members() {
    let relay = relay(166, Serve::Anyone).await;
    let mut config = in_memory(167);
    config.meeting = vec![named(&relay)];
    config.limits.strangers = 16;
    config.limits.per_source = 2;
    let mut b = Node::start(config).await;
    let direct = b.address.clone();
    b.address = through(&mut b).await;
    let strangers = async |b: &Node| {
        let status = b.handle.status().await.unwrap();
        let strange = |s: &&PeerStatus| s.connections.iter().any(|c| c.class == Class::Stranger);
        status.iter().filter(strange).count()
    };
    let mut crowd = Vec::new();
    for seed in 170..178 {
        let stranger = Node::start(in_memory(seed)).await;
        // Who is refused hears of it only after its own half of the handshake.
        let _ = stranger.handle.connect_heard(heard(&b), b.peer()).await;
        crowd.push(stranger);
    }
    eventually("the share of one relay", PATIENCE, async || {
        strangers(&b).await == 4
    })
    .await;
    let other = Node::start(in_memory(168)).await;
    let past = vec![Typed::new(direct)];
    assert_eq!(other.handle.connect(past, None).await, Ok(b.peer()));
    eventually("room for another stranger", PATIENCE, async || {
        strangers(&b).await == 5
    })
    .await;
    let member = behind(169, &relay).await;
    b.members(&[(member.peer(), &[LAB])]).await;
    member.members(&[(b.peer(), &[LAB])]).await;
    assert_eq!(
        member.handle.connect_heard(heard(&b), b.peer()).await,
        Ok(b.peer())
    );
    eventually("the member is in", PATIENCE, async || {
        let held = b.connections(member.peer()).await;
        held.iter().any(|c| c.class == Class::Member)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuit_never_carries_packets_when_udp_works() {
    let relay = relay(180, Serve::Anyone).await;
    let (mut a, b) = (behind(181, &relay).await, behind(182, &relay).await);
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    a.handle.connect_heard(heard(&b), b.peer()).await.unwrap();
    let stream = |event| match event {
        Event::StreamOut { .. } | Event::StreamIn { .. } => Ok(()),
        other => Err(other),
    };
    assert!(a.within(Duration::from_secs(2), stream).await.is_none());
    // One end alone does not decide it.
    let blocked = |peer| Command::UdpBlocked {
        peer,
        blocked: true,
    };
    a.handle.send(blocked(b.peer())).await.unwrap();
    assert!(a.within(Duration::from_secs(1), stream).await.is_none());
    b.handle.send(blocked(a.peer())).await.unwrap();
    let mut b = b;
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    carries(&mut out, &mut into).await;
}

/// Its owner opens no UDP port: it waits for nobody to say that datagrams do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuits_carry_packets_of_a_node_without_datagrams() {
    let relay = relay(80, Serve::Anyone).await;
    let mut config = in_memory(81);
    config.meeting = vec![named(&relay)];
    config.listen.clear();
    config.datagrams = false;
    let (mut a, mut b) = (Node::start(config).await, behind(82, &relay).await);
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    a.handle.connect_heard(heard(&b), b.peer()).await.unwrap();
    let stream = |event| match event {
        Event::StreamOut { .. } | Event::StreamIn { .. } => Ok(()),
        other => Err(other),
    };
    // The other end, which has datagrams, says when they do not reach this one.
    assert!(b.within(Duration::from_secs(1), stream).await.is_none());
    let blocked = Command::UdpBlocked {
        peer: a.peer(),
        blocked: true,
    };
    b.handle.send(blocked).await.unwrap();
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    carries(&mut out, &mut into).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_connection_ends_the_circuit_and_nobody_dials_it_again() {
    let relay = relay(183, Serve::Anyone).await;
    let mut config = in_memory(184);
    config.meeting = vec![named(&relay)];
    let mut b = Node::start(config).await;
    let direct = b.address.clone();
    b.address = through(&mut b).await;
    let a = behind(185, &relay).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    a.handle.connect_heard(heard(&b), b.peer()).await.unwrap();
    let relayed = async |want: bool| {
        let held = a.connections(b.peer()).await;
        !held.is_empty() && held.iter().all(|c| c.relay.is_some() == want)
    };
    assert!(relayed(true).await);
    let known = Command::Known {
        peer: b.peer(),
        heard: vec![
            Heard::parse(&direct.to_string()).unwrap(),
            Heard::parse(&b.address.to_string()).unwrap(),
        ],
        answered: vec![],
    };
    a.handle.send(known).await.unwrap();
    eventually("direct only", PATIENCE, async || relayed(false).await).await;
    tokio::time::sleep(fast().circuit * 3).await;
    assert!(relayed(false).await);
    assert_eq!(a.connections(b.peer()).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_relay_fails_what_waits_for_it() {
    let relay = relay(188, Serve::Anyone).await;
    let b = behind(189, &relay).await;
    let away = relay.address.clone();
    let peer = relay.peer();
    relay.stop().await;
    let a = Node::start(in_memory(190)).await;
    let failed = a.handle.connect_heard(heard(&b), b.peer()).await;
    let Err(ConnectError::Failed(why)) = failed else {
        panic!("{failed:?}");
    };
    assert!(why.contains(&peer.to_string()), "{why}");
    let hop = Circuit::of(&b.address.0).unwrap().hop;
    assert_eq!((hop, is_circuit(&b.address.0)), (away.0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_share_only_a_third_meet_there_without_being_told() {
    let mut config = in_memory(191);
    config.serve = Serve::Members;
    let third = Node::start(config).await;
    let unreachable = |seed| {
        let mut config = in_memory(seed);
        config.listen.clear();
        config
    };
    let (a, a_events, a_driver) = start(unreachable(192)).unwrap();
    let (b, b_events, b_driver) = start(unreachable(193)).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(a_driver.run(stop.clone()));
    tokio::spawn(b_driver.run(stop.clone()));
    let all = [a.peer(), b.peer(), third.peer()];
    let members = |me: PeerId| {
        let others = all.into_iter().filter(move |peer| *peer != me);
        others.map(|peer| (peer, vec![LAB])).collect()
    };
    for handle in [&a, &b, &third.handle] {
        handle.members(members(handle.peer())).await.unwrap();
    }
    let there = || vec![Typed::new(third.address.clone())];
    a.connect(there(), None).await.unwrap();
    b.connect(there(), None).await.unwrap();
    eventually(
        "both are connected through the third",
        PATIENCE,
        async || {
            let there = a.status_of(b.peer()).await.unwrap().connections;
            there.iter().any(|c| c.relay == Some(third.peer()))
        },
    )
    .await;
    drop((a_events, b_events));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_named_no_more_is_left() {
    let (first, second) = (
        relay(194, Serve::Anyone).await,
        relay(195, Serve::Anyone).await,
    );
    let mut a = behind(196, &first).await;
    assert_eq!(a.connections(first.peer()).await.len(), 1);
    let meeting = Command::Meeting(vec![named(&second)]);
    a.handle.send(meeting).await.unwrap();
    let unreserved = |event| match event {
        Event::Unreserved { relay, why } => Ok((relay, why)),
        other => Err(other),
    };
    let (left, why) = a.expect(unreserved).await;
    assert_eq!(left, first.peer());
    assert!(why.contains("no more"), "{why}");
    loop {
        let relay = reserved(&mut a).await;
        if relay == second.peer() {
            break;
        }
    }
    eventually("the connection is closed", PATIENCE, async || {
        a.connections(first.peer()).await.is_empty() && first.connections(a.peer()).await.is_empty()
    })
    .await;
    // Nobody comes through it any more, and it is not met again.
    let b = Node::start(in_memory(197)).await;
    assert!(b.handle.connect_heard(heard(&a), a.peer()).await.is_err());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(a.connections(first.peer()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_named_as_a_relay_no_more_stays_connected_and_brings_nobody() {
    let relay = relay(198, Serve::Anyone).await;
    let a = behind(199, &relay).await;
    a.members(&[(relay.peer(), &[LAB])]).await;
    relay.members(&[(a.peer(), &[LAB])]).await;
    let mut a = a;
    eventually("connected as members, with a place", PATIENCE, async || {
        let held = a.connections(relay.peer()).await;
        held.len() == 1 && held[0].class == Class::Member
    })
    .await;
    let (through, peer) = (heard(&a), a.peer());
    let reached = async |seed| {
        let b = Node::start(in_memory(seed)).await;
        let reached = b.handle.connect_heard(through.clone(), peer).await;
        (reached.is_ok(), b.stop().await).0
    };
    eventually("it brings strangers", PATIENCE, async || reached(210).await).await;
    a.handle.send(Command::Meeting(vec![])).await.unwrap();
    let unreserved = |event| match event {
        Event::Unreserved { .. } => Ok(()),
        other => Err(other),
    };
    // The first may have been that of the connection which became a member's.
    while a.within(Duration::from_secs(2), unreserved).await.is_some() {}
    assert!(!reached(220).await, "it has no place any more");
    assert_eq!(a.connections(relay.peer()).await.len(), 1);
    let counts = a.handle.circuits().await.unwrap();
    assert_eq!(counts.client.get(&Refusal::NoReservation), Some(&1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_leaves_places_at_a_relay_to_others() {
    let mut config = Config::new([221; 32]);
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
        "/ip6/::1/tcp/0".parse().unwrap(),
    ];
    config.timing = fast();
    (config.serve, config.limits.circuits) = (Serve::Anyone, 16);
    let mut relay = Node::start(config).await;
    let both = |event| match event {
        Event::Listening { addresses } if addresses.len() == 2 => Ok(addresses),
        other => Err(other),
    };
    let addresses = relay.expect(both).await;
    let client = async |seed: u8, v6: bool| {
        let at = addresses.iter().find(|a| a.ip().unwrap().is_ipv6() == v6);
        let named = format!("{}/p2p/{}", at.unwrap(), relay.peer());
        let mut config = Config::new([seed; 32]);
        config.timing = fast();
        config.meeting = vec![named.parse().unwrap()];
        let (handle, events, driver) = start(config).unwrap();
        let task = tokio::spawn(driver.run(CancellationToken::new()));
        (handle, events, task)
    };
    type Client = (Handle, mpsc::Receiver<Event>, JoinHandle<()>);
    let has_place = async |client: &mut Client| {
        let kept = async {
            while let Some(event) = client.1.recv().await {
                if matches!(event, Event::Reserved { .. }) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(4), kept).await.is_ok()
    };
    let mut crowd = Vec::new();
    for (seed, v6, good) in [
        (222, false, true),
        (223, false, true),
        (224, false, false),
        (225, true, true),
    ] {
        let mut one = client(seed, v6).await;
        assert_eq!(has_place(&mut one).await, good, "{seed}");
        crowd.push(one);
    }
    let refused = crowd[2].0.circuits().await.unwrap().client;
    assert!(
        refused.get(&Refusal::Full).is_some_and(|n| *n >= 1),
        "{refused:?}"
    );
    assert!(relay.handle.circuits().await.unwrap().beyond_share >= 1);
    // A place that is given up is had by the next.
    let first = crowd.remove(0);
    first.2.abort();
    drop(first);
    let kept = timeout(PATIENCE, async { while !has_place(&mut crowd[1]).await {} });
    assert!(kept.await.is_ok());
    crowd.into_iter().for_each(|(_, _, task)| task.abort());
}
