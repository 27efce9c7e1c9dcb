//! Two members that know no address of each other, and relays between them: real sockets on loopback.

use std::net::UdpSocket;
use std::thread::JoinHandle;

use super::*;
use crate::relay::{Fate, Limits, Server, Terms};
use crate::testing::Dice;
use crate::wire::relay::{self, Ticket};

const FREE: Terms = Terms {
    sessions: 8,
    mbit: None,
    is_stranger: false,
};

/// Both ends' legs at a relay of this program.
async fn call(relay: &Side, a: &Side, b: &Side) {
    let (mine, theirs) = relay
        .links
        .relay()
        .allocate(a.me.into(), b.me, FREE)
        .unwrap();
    legs(relay.me, relay.at, (a, mine), (b, theirs));
}

/// Has both ends bind their legs.
fn legs(relay: PeerId, at: SocketAddr, a: (&Side, Ticket), b: (&Side, Ticket)) {
    for ((side, ticket), other) in [(a, b.0.me), (b, a.0.me)] {
        let call = Call {
            relay,
            addresses: vec![at],
            reached: vec![at.ip()],
            ticket,
            by: relay,
        };
        let handle = side.handle.clone();
        tokio::spawn(async move { handle.leg(other, call).await });
    }
}

/// Two members that tell nobody where they are.
async fn strangers_to_each_other(streams: &Streams) -> (Side, Side) {
    let a = streams.start(1, view(1, 1, &[1, 2]), true).await;
    let b = streams.start(2, view(2, 1, &[1, 2]), true).await;
    streams.silent.store(true, Ordering::Relaxed);
    for side in [&a, &b] {
        side.handle.own(vec![]).await;
    }
    a.handle.connected(b.me).await;
    b.handle.connected(a.me).await;
    (a, b)
}

fn leads_by(side: &Side, other: &Side, relay: SocketAddr) -> bool {
    side.route(other)
        .is_some_and(|route| route.to.leg.is_some() && route.to.address == relay)
}

async fn relayed(a: &Side, b: &Side, relay: SocketAddr) -> Duration {
    eventually("a path over the relay both ways", SOON, async || {
        leads_by(a, b, relay) && leads_by(b, a, relay)
    })
    .await
}

#[tokio::test]
async fn two_members_without_a_way_of_their_own_meet_over_a_relay() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let c = streams.start(3, view(3, 0, &[]), true).await;
    call(&c, &a, &b).await;
    relayed(&a, &b, c.at).await;
    let key = a.key(0, &b);
    assert!(a.handle.ping(key).await.is_some());
    let echo = a.handle.echo(key, Some(true)).await.unwrap();
    assert_eq!((echo.to, echo.relay), (c.at, Some(c.me)));
    assert_eq!(a.handle.echo(key, Some(false)).await, None, "at once");
    // At least: the loopback interface carries jumbo frames, which are tried next.
    eventually("the size is known", SOON, async || {
        a.route(&b)
            .is_some_and(|r| r.settled && r.payload >= 1472 - relay::PREFIX)
    })
    .await;
    let sessions = c.links.relay().sessions();
    assert_eq!(sessions[0].peers, [a.me, b.me]);
    assert_eq!(sessions[0].addresses, [Some(a.at), Some(b.at)]);
    assert!(sessions[0].bytes.iter().all(|bytes| *bytes > 1400));
    for side in [a, b, c] {
        side.end().await;
    }
}

#[tokio::test]
async fn who_takes_no_datagrams_is_left_to_streams_at_once_and_no_leg_leads_there() {
    let streams = Streams::default();
    let a = streams.start(1, view(1, 1, &[1, 2]), true).await;
    let (b, mut said) = (peer(2), Paths::default());
    said.facts.udp = Udp::Off;
    a.handle.connected(b).await;
    assert!(a.handle.paths(b, said).await.is_ok());
    // Sooner than of a peer of which it is only found out.
    eventually("streams carry", Duration::from_secs(1), async || {
        *lock(&streams.blocked) == [(a.me, b, true)]
    })
    .await;
    a.handle.want_leg(b).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let wanted = lock(&streams.legs_wanted).clone();
    assert!(wanted.is_empty(), "{wanted:?}");
    let key = Key {
        subnet: subnet(0),
        peer: b,
    };
    let status = a.handle.status().await.remove(&key).unwrap();
    assert_eq!(status.here.udp, Udp::Unknown, "nothing is blocked here");
    assert_eq!(status.there.unwrap().udp, Udp::Off);
    a.end().await;
}

#[tokio::test]
async fn the_smaller_of_two_that_have_no_path_asks_for_legs() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    b.handle.want_leg(a.me).await;
    a.handle.want_leg(b.me).await;
    eventually("the question", SOON, async || {
        !lock(&streams.legs_wanted).is_empty()
    })
    .await;
    let c = streams.start(3, view(3, 0, &[]), true).await;
    call(&c, &a, &b).await;
    relayed(&a, &b, c.at).await;
    let wanted = lock(&streams.legs_wanted).clone();
    assert!(wanted.iter().all(|who| *who == (a.me, b.me)), "{wanted:?}");
    for side in [a, b, c] {
        side.end().await;
    }
}

#[tokio::test]
async fn a_second_relay_takes_over_without_a_new_handshake() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let c = streams.start(3, view(3, 0, &[]), true).await;
    let d = streams.start(4, view(4, 0, &[]), true).await;
    call(&c, &a, &b).await;
    relayed(&a, &b, c.at).await;
    call(&d, &a, &b).await;
    eventually("both legs there are bound", SOON, async || {
        let sessions = d.links.relay().sessions();
        sessions[0].addresses == [Some(a.at), Some(b.at)]
    })
    .await;
    // No new handshake can come over the stream.
    streams.down.store(true, Ordering::Relaxed);
    c.end().await;
    eventually("the other relay", SOON, async || {
        leads_by(&a, &b, d.at) && leads_by(&b, &a, d.at)
    })
    .await;
    let status = a.handle.status().await.remove(&a.key(0, &b)).unwrap();
    assert_eq!(status.keys, 1);
    for side in [a, b, d] {
        side.end().await;
    }
}

#[tokio::test]
async fn what_a_relay_that_began_anew_forgot_is_found_out_at_once() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let c = streams.start(3, view(3, 0, &[]), true).await;
    let (mine, theirs) = c.links.relay().allocate(a.me.into(), b.me, FREE).unwrap();
    let ends = [(&a, b.me, mine), (&b, a.me, theirs)].map(|(side, other, ticket)| {
        let call = Call {
            relay: c.me,
            addresses: vec![c.at],
            reached: vec![c.at.ip()],
            ticket,
            by: c.me,
        };
        let handle = side.handle.clone();
        tokio::spawn(async move { handle.leg(other, call).await })
    });
    relayed(&a, &b, c.at).await;
    assert!(c.links.relay().release(a.me, mine.index));
    a.handle.rebind(c.me).await;
    let [here, _] = ends;
    let over = tokio::time::timeout(Duration::from_secs(10), here).await;
    assert_eq!(over.unwrap().unwrap(), LegOver::Lost);
    for side in [a, b, c] {
        side.end().await;
    }
}

#[tokio::test]
async fn a_relay_that_is_left_is_used_no_more() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let c = streams.start(3, view(3, 0, &[]), true).await;
    let (mine, theirs) = c.links.relay().allocate(a.me.into(), b.me, FREE).unwrap();
    let ends = [(&a, b.me, mine), (&b, a.me, theirs)].map(|(side, other, ticket)| {
        let call = Call {
            relay: c.me,
            addresses: vec![c.at],
            reached: vec![c.at.ip()],
            ticket,
            by: c.me,
        };
        let handle = side.handle.clone();
        tokio::spawn(async move { handle.leg(other, call).await })
    });
    relayed(&a, &b, c.at).await;
    a.handle.leave(peer(99)).await;
    assert!(leads_by(&a, &b, c.at), "another relay");
    a.handle.leave(c.me).await;
    let [here, _] = ends;
    let over = tokio::time::timeout(Duration::from_secs(2), here).await;
    assert_eq!(over.unwrap().unwrap(), LegOver::Gone);
    eventually("no path", SOON, async || !leads_by(&a, &b, c.at)).await;
    for side in [a, b, c] {
        side.end().await;
    }
}

#[tokio::test]
async fn a_leg_is_over_when_its_relay_is_not_there_and_when_another_takes_its_place() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let of = |index| Call {
        relay: peer(9),
        addresses: vec![nobody.local_addr().unwrap()],
        reached: Vec::new(),
        ticket: Ticket {
            index,
            key: [1; 16],
        },
        by: peer(9),
    };
    let first = tokio::spawn({
        let (handle, call) = (a.handle.clone(), of(1));
        async move { handle.leg(peer(2), call).await }
    });
    eventually("a Bind", SOON, async || {
        let mut bytes = [0; 100];
        nobody.set_nonblocking(true).unwrap();
        nobody.recv(&mut bytes).is_ok_and(|n| n == relay::MESSAGE)
    })
    .await;
    let second = tokio::spawn({
        let (handle, call) = (a.handle.clone(), of(2));
        async move { handle.leg(peer(2), call).await }
    });
    assert_eq!(first.await.unwrap(), LegOver::Replaced);
    assert_eq!(a.handle.leg(peer(77), of(3)).await, LegOver::Gone);
    assert_eq!(second.await.unwrap(), LegOver::NoAnswer);
    a.end().await;
    b.end().await;
}

type Heard = Arc<parking_lot::Mutex<Vec<Vec<u8>>>>;

/// A relay that keeps everything it hears, and may lie.
struct Tap {
    at: SocketAddr,
    heard: Heard,
    /// Whether it lies already.
    lies: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// What a relay does with a frame that it should forward: the datagrams that it sends to the receiver instead.
type Lie = fn(&mut Dice, &mut Vec<Vec<u8>>, Vec<u8>) -> Vec<Vec<u8>>;

impl Tap {
    fn start(a: PeerId, b: PeerId, lie: Lie) -> (Tap, Ticket, Ticket) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut dice = Dice::new(3);
        let mut server = Server::new(Instant::now(), Limits::default(), &mut |bytes| {
            dice.fill(bytes)
        });
        let (mine, theirs) = server
            .allocate(Instant::now(), a, b, FREE, &mut |bytes| dice.fill(bytes))
            .unwrap();
        let (heard, stop): (Heard, Arc<AtomicBool>) = Default::default();
        let (at, all, ended) = (socket.local_addr().unwrap(), heard.clone(), stop.clone());
        let lies = Arc::new(AtomicBool::new(false));
        let is_lying = lies.clone();
        let thread = std::thread::spawn(move || {
            let (mut bytes, mut kept) = ([0; 2048], Vec::new());
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                let one = &mut bytes[..length];
                lock(&all).push(one.to_vec());
                if let Some(answer) = server.on_bind(Instant::now(), (from, None), one) {
                    socket.send_to(&answer, from).unwrap();
                } else if let Some(Fate::Onward(onward)) =
                    server.forward(Instant::now(), (from, None), one, length)
                {
                    let sent = match is_lying.load(Ordering::Relaxed) {
                        true => lie(&mut dice, &mut kept, one.to_vec()),
                        false => vec![one.to_vec()],
                    };
                    for one in sent {
                        socket.send_to(&one, onward.to).unwrap();
                    }
                }
            }
        });
        let tap = Tap {
            at,
            heard,
            lies,
            stop,
            thread,
        };
        (tap, mine, theirs)
    }

    fn end(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *lock(&self.heard))
    }
}

#[tokio::test]
async fn relay_learns_no_subnet() {
    let streams = Streams::default();
    let (a, b) = strangers_to_each_other(&streams).await;
    let (tap, mine, theirs) = Tap::start(a.me, b.me, |_, _, frame| vec![frame]);
    legs(peer(3), tap.at, (&a, mine), (&b, theirs));
    relayed(&a, &b, tap.at).await;
    // Traffic of both ends, with what a relay must not learn in it.
    for side in [(&a, &b), (&b, &a)] {
        let key = side.0.key(0, side.1);
        for _ in 0..3 {
            side.0.handle.ping(key).await.unwrap();
        }
        send_packet(side.0, side.1);
    }
    eventually("the packets", SOON, async || {
        carried(&a, &b) > 0 && carried(&b, &a) > 0
    })
    .await;
    let heard = tap.end();
    assert!(heard.len() > 10);
    let secrets: [&[u8]; 4] = [
        &subnet(0).0,
        b"lab",
        b"a-name-of-a-host",
        &[10, 7, 0, 1, 10, 7, 0, 2],
    ];
    for datagram in &heard {
        for secret in secrets {
            let is_there = datagram.windows(secret.len()).any(|part| part == secret);
            assert!(!is_there, "{secret:?} in {datagram:?}");
        }
    }
    a.end().await;
    b.end().await;
}

/// Packets that came of the other.
fn carried(side: &Side, other: &Side) -> u64 {
    side.links.status(side.key(0, other)).datagrams.rx_packets
}

/// Sends one packet, where there is a path.
fn send_packet(side: &Side, other: &Side) {
    let key = side.key(0, other);
    let link = side.links.link(key);
    let Some(route) = link.route() else { return };
    let packet = packet_of(b"a-name-of-a-host.lab");
    let parsed = crate::packet::parse::parse(&packet).unwrap();
    let offload = crate::packet::Offload::NONE;
    let framing = route.framing(&parsed, &offload).unwrap();
    let mut datagrams = side.links.datagrams(key.subnet).unwrap();
    datagrams.push(&link, &route, framing, (&parsed, &offload), &packet);
    datagrams.flush();
}

/// A UDP packet from 10.7.0.1 to 10.7.0.2.
fn packet_of(text: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv4([10, 7, 0, 1], [10, 7, 0, 2], 64).udp(1000, 53);
    let mut packet = Vec::new();
    builder.write(&mut packet, text).unwrap();
    packet
}

#[tokio::test]
async fn a_relay_that_lies_makes_no_storm_and_no_packet() {
    let lies: [(&str, Lie); 5] = [
        ("drops half", |dice, _, frame| {
            if dice.percent(50) {
                vec![]
            } else {
                vec![frame]
            }
        }),
        ("sends everything eight times", |_, _, frame| vec![frame; 8]),
        ("replays what it kept", |_, kept, frame| {
            kept.push(frame.clone());
            let old = kept.len().saturating_sub(20);
            [vec![frame], kept[old..].to_vec()].concat()
        }),
        ("changes a byte", |dice, _, frame| {
            let mut wrong = frame.clone();
            let at = relay::PREFIX + dice.index(wrong.len() - relay::PREFIX);
            wrong[at] ^= 1;
            vec![wrong, frame]
        }),
        ("swaps neighbours", |_, kept, frame| match kept.pop() {
            Some(last) => vec![frame, last],
            None => {
                kept.push(frame);
                vec![]
            }
        }),
    ];
    for (what, lie) in lies {
        let streams = Streams::default();
        let (a, b) = strangers_to_each_other(&streams).await;
        let (tap, mine, theirs) = Tap::start(a.me, b.me, lie);
        legs(peer(3), tap.at, (&a, mine), (&b, theirs));
        relayed(&a, &b, tap.at).await;
        tap.lies.store(true, Ordering::Relaxed);
        let (before, start) = (lock(&tap.heard).len(), Instant::now());
        for _ in 0..20 {
            send_packet(&a, &b);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = (lock(&tap.heard).len() - before) as f64 / seconds;
        assert!(rate < 60.0, "{what}: {rate} datagrams a second");
        assert!(carried(&b, &a) <= 20, "{what}: no packet comes twice");
        assert_eq!(carried(&a, &b), 0, "{what}: none comes that nobody sent");
        tap.end();
        a.end().await;
        b.end().await;
    }
}
