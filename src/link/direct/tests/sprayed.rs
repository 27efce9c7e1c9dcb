//! Searches for a port, with a relay that sees both ends: real sockets on loopback.
//!
//! Loopback has no NAT, so that the first socket of the opener is met at once. What others say of each end makes one of them
//! look as if it were behind a symmetric NAT.

use super::*;
use crate::peer::spray::{Role, Want};
use crate::wire::relay::Ticket;

/// As if somebody saw the side at that port.
async fn seen_at(side: &Side, port: u16, by: PeerId) {
    let address = SocketAddr::new(side.at.ip(), port);
    side.handle.observed(address, by).await;
}

/// Has both ends bind a leg, and says who vouches for it at the second one.
fn legs(relay: &Side, a: &Side, b: &Side, by: PeerId) {
    legs_reached(relay, a, b, by, vec![relay.at.ip()]);
}

/// As [`legs`], where the second one's own connections reach the relay at these.
fn legs_reached(relay: &Side, a: &Side, b: &Side, by: PeerId, reached: Vec<IpAddr>) {
    let terms = crate::relay::Terms {
        sessions: 8,
        mbit: None,
        is_stranger: false,
    };
    let allocated = relay.links.relay().allocate(a.me.into(), b.me, terms);
    let (mine, theirs) = allocated.unwrap();
    leg(relay, a, b.me, mine, (relay.me, vec![relay.at.ip()]));
    leg(relay, b, a.me, theirs, (by, reached));
}

/// Has one end bind a leg: who vouches for it, and where its own connections reach the relay that is named.
fn leg(relay: &Side, side: &Side, other: PeerId, ticket: Ticket, of: (PeerId, Vec<IpAddr>)) {
    let (by, reached) = of;
    let call = Call {
        relay: relay.me,
        addresses: vec![relay.at],
        reached,
        ticket,
        by,
    };
    let handle = side.handle.clone();
    tokio::spawn(async move { handle.leg(other, call).await });
}

/// Two ends of which the first looks symmetric and the other does not, and a relay. Neither knows an address of the other.
async fn unlike(streams: &Streams) -> (Side, Side, Side) {
    let a = streams.start(1, view(1, 1, &[1, 2]), true).await;
    let b = streams.start(2, view(2, 1, &[1, 2]), true).await;
    let relay = streams.start(3, view(3, 0, &[]), true).await;
    streams.hiding.store(true, Ordering::Relaxed);
    for side in [&a, &b] {
        side.handle.own(vec![]).await;
    }
    // The relay sees them elsewhere, or at the same place.
    seen_at(&a, 5000, peer(20)).await;
    seen_at(&b, b.at.port(), peer(20)).await;
    a.handle.connected(b.me).await;
    b.handle.connected(a.me).await;
    (a, b, relay)
}

async fn runs(side: &Side) -> u64 {
    side.handle.here().await.unwrap().sprays.runs
}

#[tokio::test]
async fn the_socket_that_is_met_carries_the_path_and_all_others_are_closed() {
    let streams = Streams::default();
    let (a, b, relay) = unlike(&streams).await;
    legs(&relay, &a, &b, relay.me);
    let helper = || a.route(&b).and_then(|route| route.to.helper);
    eventually("a path by a helper", 2 * SOON, async || {
        helper().is_some() && b.route(&a).is_some_and(|route| route.to.leg.is_none())
    })
    .await;
    assert_ne!(b.route(&a).unwrap().to.address, a.at, "the port's own");
    let port = a.links.port().unwrap().clone();
    eventually("the others are closed", SOON, async || {
        // As many as there may be, but for those that were met.
        let open: Vec<u16> = std::iter::from_fn(|| port.open_helper().ok()).collect();
        port.retain_helpers(|helper| !open.contains(&helper));
        open.len() >= crate::udp::MAX_HELPERS - 4
    })
    .await;
    let found = a.handle.here().await.unwrap().sprays;
    assert_eq!((found.runs, found.found, found.waiting), (1, 1, 0));
    // Without a NAT very many are met, and the other end may have used one of those that are closed.
    for (of, to) in [(&a, &b), (&b, &a)] {
        eventually("an answer", 2 * SOON, async || {
            let asked = of.handle.ping(of.key(0, to));
            let answered = tokio::time::timeout(Duration::from_secs(1), asked).await;
            answered.is_ok_and(|rtt| rtt.is_some())
        })
        .await;
    }
    // No connection can be made to a helper, nor from one.
    assert!(lock(&streams.punched).is_empty());
    let status = a.handle.status().await.remove(&a.key(0, &b)).unwrap();
    assert!(!status.spraying);
    // Who is no member any more leaves no socket behind.
    a.handle.retain(view(1, 1, &[1])).await;
    eventually("all are closed", SOON, async || {
        let open: Vec<u16> = std::iter::from_fn(|| port.open_helper().ok()).collect();
        port.retain_helpers(|helper| !open.contains(&helper));
        open.len() == crate::udp::MAX_HELPERS
    })
    .await;
    for side in [a, b, relay] {
        side.end().await;
    }
}

/// A member can name a relay that this node knows, and answer in its place at an address of its own.
#[tokio::test]
async fn a_relay_that_answers_where_no_connection_of_ours_reaches_it_aims_nothing() {
    let streams = Streams::default();
    let (a, b, relay) = unlike(&streams).await;
    // It is known by its own word, as one that sees this node.
    seen_at(&b, b.at.port(), relay.me).await;
    let elsewhere = vec!["127.0.0.99".parse().unwrap()];
    legs_reached(&relay, &a, &b, a.me, elsewhere);
    eventually("a path over the relay", SOON, async || {
        b.route(&a).is_some_and(|route| route.to.leg.is_some())
    })
    .await;
    eventually("the question", 2 * SOON, async || {
        a.handle.here().await.unwrap().sprays.waiting > 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((runs(&a).await, runs(&b).await), (0, 0));
    for side in [a, b, relay] {
        side.end().await;
    }
}

/// A member can name a relay of its own, which says that the member is where a victim is.
#[tokio::test]
async fn a_relay_that_the_peer_alone_vouches_for_aims_nothing() {
    let streams = Streams::default();
    let (a, b, relay) = unlike(&streams).await;
    legs(&relay, &a, &b, a.me);
    eventually("a path over the relay", SOON, async || {
        b.route(&a).is_some_and(|route| route.to.leg.is_some())
    })
    .await;
    eventually("the question", 2 * SOON, async || {
        a.handle.here().await.unwrap().sprays.waiting > 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((runs(&a).await, runs(&b).await), (0, 0));
    // The same relay, known to that node itself.
    seen_at(&b, b.at.port(), relay.me).await;
    eventually("a path by a helper", 4 * SOON, async || {
        a.route(&b).is_some_and(|route| route.to.helper.is_some())
    })
    .await;
    for side in [a, b, relay] {
        side.end().await;
    }
}

/// What a search finds is a socket that takes no connections; what it finds beside that is not.
#[tokio::test]
async fn during_a_search_only_an_address_that_the_peer_tells_is_one_to_dial() {
    let port = Port::bind(&["127.0.0.1:0".parse().unwrap()], &Options::default()).unwrap();
    let (links, _) = Links::new(tokio::runtime::Handle::current(), Some(port));
    let config = Config {
        me: peer(1),
        secret: secret(1),
        aes: None,
        post_quantum: Default::default(),
    };
    let (mut direct, _handle, mut asks) = Direct::new(&links, config).unwrap();
    let (now, b) = (Instant::now(), peer(2));
    direct.retain(now, view(1, 1, &[1, 2]));
    let [told, guessed] = ["192.0.2.7:4100", "192.0.2.7:5555"].map(|at| at.parse().unwrap());
    let said = Paths {
        candidates: vec![Candidate {
            address: told,
            kind: Kind::Host,
        }],
        ..Paths::default()
    };
    direct.on_paths(now, b, &said, oneshot::channel().0);
    let want = Want {
        role: Role::Opener,
        sockets: 4,
        counted: None,
        places: None,
    };
    direct.sprays.want(now, b, Some(want));
    let later = now + Duration::from_secs(3600);
    direct.sprays.handle_timeout(later, &|_| None);
    assert!(direct.sprays.is_running(b));
    while asks.try_recv().is_ok() {}
    direct.on_event(b, Event::Direct { address: guessed });
    assert!(asks.try_recv().is_err());
    direct.on_event(b, Event::Direct { address: told });
    let asked = asks.try_recv();
    assert!(
        matches!(asked, Ok(Ask::Punched { peer, address }) if peer == b && address == told),
        "{asked:?}"
    );
    links.close_port();
}
