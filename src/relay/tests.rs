//! Legs and a relay on a virtual clock.

mod client;
mod hostile;
mod terms;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::model::id::PeerId;
use crate::testing::Dice;
use crate::wire::relay::{MESSAGE, Message, PREFIX, Refusal, Ticket, index, prefix};

const FREE: Terms = Terms {
    sessions: 4,
    mbit: None,
    is_stranger: false,
};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

/// A relay, and a clock that only the test moves.
struct World {
    server: Server,
    now: Instant,
    dice: Dice,
    /// Bytes that came in and went out, by the address of the client.
    heard: usize,
    said: usize,
}

/// What a relay has counted.
struct Counted {
    sessions: Vec<SessionStats>,
    bytes: u64,
    drops: Drops,
    refused: Refusals,
}

/// One end: its leg, and where it is.
struct End {
    leg: Leg,
    ticket: Ticket,
    at: SocketAddr,
    seen: Vec<SocketAddr>,
    ended: Option<Ended>,
    /// Where the relay sees its other uplinks, and where they were told to be seen.
    uplinks: Vec<SocketAddr>,
    looked: Vec<SocketAddr>,
}

const RELAY: &str = "203.0.113.1:4100";

impl World {
    fn new() -> World {
        let (now, mut dice) = (Instant::now(), Dice::new(7));
        let server = Server::new(now, Limits::default(), &mut |bytes| dice.fill(bytes));
        World {
            server,
            now,
            dice,
            heard: 0,
            said: 0,
        }
    }

    fn allocate(&mut self, a: u8, b: u8, terms: Terms) -> Result<(Ticket, Ticket), Refusal> {
        let dice = &mut self.dice;
        self.server
            .allocate(self.now, peer(a), peer(b), terms, &mut |bytes| {
                dice.fill(bytes)
            })
    }

    /// A session with both ends bound.
    fn pair(&mut self, terms: Terms) -> (End, End) {
        let (mine, theirs) = self.allocate(1, 2, terms).unwrap();
        let mut a = End::new(self.now, mine, "192.0.2.1:1000");
        let mut b = End::new(self.now, theirs, "198.51.100.2:2000");
        self.run(&mut a);
        self.run(&mut b);
        assert_eq!((&a.seen, &b.seen), (&vec![a.at], &vec![b.at]));
        (a, b)
    }

    /// Carries messages between one end and the relay until both are silent.
    fn run(&mut self, end: &mut End) {
        end.leg.handle_timeout(self.now);
        while let Some(output) = end.leg.poll() {
            match output {
                Output::Send { to, bytes } if to == at(RELAY) => {
                    self.heard += bytes.len();
                    if let Some(answer) = self.server.on_bind(self.now, (end.at, None), &bytes) {
                        self.said += answer.len();
                        end.hear(self.now, &answer);
                    }
                }
                Output::Send { .. } => {}
                Output::Look { uplink, bytes, .. } => {
                    let from = end.uplinks[uplink];
                    if let Some(answer) = self.server.on_bind(self.now, (from, None), &bytes) {
                        end.hear(self.now, &answer);
                    }
                }
                Output::Seen { seen } => end.looked.push(seen),
                Output::Bound { seen, .. } => end.seen.push(seen),
                Output::Ended(why) => end.ended = Some(why),
            }
        }
    }

    /// Everything that is counted, the sessions with the oldest first.
    fn stats(&self) -> Counted {
        let tallies = self.server.tallies();
        let mut sessions: Vec<SessionStats> = tallies.iter().map(|t| t.read(self.now)).collect();
        sessions.sort_by(|a, b| b.age.cmp(&a.age).then(a.peers.cmp(&b.peers)));
        let Totals {
            open,
            bytes,
            drops,
            refused,
        } = self.server.counters().read();
        assert_eq!(open, sessions.len() as u64);
        Counted {
            sessions,
            bytes,
            drops,
            refused,
        }
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }

    /// Sends `count` frames of `size` bytes by a leg, from `from`.
    fn send(&mut self, index: u32, from: SocketAddr, count: usize, size: usize) -> (Fate, Vec<u8>) {
        let mut run = frames(index, count, size);
        let fate = self
            .server
            .forward(self.now, (from, None), &mut run, size)
            .unwrap();
        (fate, run)
    }
}

impl End {
    fn new(now: Instant, ticket: Ticket, address: &str) -> End {
        End {
            leg: Leg::new(now, ticket, &[at(RELAY)]),
            ticket,
            at: at(address),
            uplinks: Vec::new(),
            looked: Vec::new(),
            seen: Vec::new(),
            ended: None,
        }
    }

    fn hear(&mut self, now: Instant, bytes: &[u8]) {
        let message = Message::decode(bytes, self.leg.key()).unwrap();
        self.leg.on_message(now, at(RELAY), message);
    }

    fn index(&self) -> u32 {
        self.ticket.index
    }
}

/// Frames one behind the other; what they carry differs.
fn frames(index: u32, count: usize, size: usize) -> Vec<u8> {
    let mut run = Vec::new();
    for n in 0..count {
        run.extend(prefix(index));
        run.extend([4, 0, 0, 0]);
        run.resize((n + 1) * size, u8::try_from(n % 251).unwrap());
    }
    run
}

#[test]
fn frames_pass_between_two_bound_legs_with_nothing_changed_but_the_index() {
    let mut world = World::new();
    let (a, b) = world.pair(FREE);
    let (fate, run) = world.send(a.index(), a.at, 3, 100);
    assert_eq!(
        fate,
        Fate::Onward(Onward {
            to: b.at,
            local: None,
            length: 300
        })
    );
    assert_eq!(run, frames(b.index(), 3, 100));
    let (fate, run) = world.send(b.index(), b.at, 1, 60);
    assert!(matches!(fate, Fate::Onward(onward) if onward.to == a.at));
    assert_eq!(run, frames(a.index(), 1, 60));
    let stats = world.stats();
    assert_eq!(stats.sessions[0].peers, [peer(1), peer(2)]);
    assert_eq!(stats.sessions[0].bytes, [300, 60]);
    assert_eq!(stats.sessions[0].addresses, [Some(a.at), Some(b.at)]);
    assert_eq!((stats.bytes, stats.drops), (360, Drops::default()));
}

#[test]
fn nothing_is_forwarded_to_an_address_that_did_not_answer_a_challenge() {
    let mut world = World::new();
    let (mine, theirs) = world.allocate(1, 2, FREE).unwrap();
    let mut a = End::new(world.now, mine, "192.0.2.1:1000");
    world.run(&mut a);
    let (fate, _) = world.send(a.index(), a.at, 2, 100);
    assert_eq!(fate, Fate::Dropped, "the other leg is not bound");
    // Whoever knows the leg's key, but is not where it says: the challenge goes elsewhere.
    let key = crate::crypto::mac::Mac::new(&theirs.key);
    let victim = at("192.0.2.99:53");
    let bind = Message::Bind { counter: 1 }.encode(theirs.index, &key);
    let answer = world.server.on_bind(world.now, (victim, None), &bind);
    assert!(answer.is_some_and(|answer| matches!(
        Message::decode(&answer, &key),
        Some(Message::Challenge { .. })
    )));
    let cookie = [7; 16];
    let confirm = Message::Confirm { counter: 2, cookie }.encode(theirs.index, &key);
    let answer = world.server.on_bind(world.now, (victim, None), &confirm);
    let is_bound = |answer: &[u8; MESSAGE]| {
        matches!(Message::decode(answer, &key), Some(Message::Bound { .. }))
    };
    assert!(!answer.is_some_and(|answer| is_bound(&answer)));
    assert_eq!(world.send(a.index(), a.at, 2, 100).0, Fate::Dropped);
    assert_eq!(world.stats().drops.unbound, 4);
}

#[test]
fn a_cookie_of_another_address_or_leg_binds_nothing() {
    let mut world = World::new();
    let (mine, theirs) = world.allocate(1, 2, FREE).unwrap();
    let cookie_for = |world: &mut World, ticket: Ticket, from: SocketAddr| {
        let key = crate::crypto::mac::Mac::new(&ticket.key);
        let bind = Message::Bind { counter: 1 }.encode(ticket.index, &key);
        let answer = world
            .server
            .on_bind(world.now, (from, None), &bind)
            .unwrap();
        match Message::decode(&answer, &key) {
            Some(Message::Challenge { cookie, .. }) => cookie,
            other => panic!("{other:?}"),
        }
    };
    let (here, there) = (at("192.0.2.1:1000"), at("192.0.2.1:1001"));
    let own = cookie_for(&mut world, mine, here);
    let key = crate::crypto::mac::Mac::new(&mine.key);
    let foreign = [
        cookie_for(&mut world, mine, there),
        cookie_for(&mut world, theirs, here),
    ];
    let confirm = |world: &mut World, counter, cookie| {
        let confirm = Message::Confirm { counter, cookie }.encode(mine.index, &key);
        let answer = world.server.on_bind(world.now, (here, None), &confirm);
        answer.and_then(|answer| Message::decode(&answer, &key))
    };
    for cookie in foreign {
        let answer = confirm(&mut world, 2, cookie);
        assert!(
            matches!(answer, Some(Message::Challenge { .. })),
            "{answer:?}"
        );
    }
    world.later(Duration::from_secs(121));
    let answer = confirm(&mut world, 3, own);
    assert!(
        matches!(answer, Some(Message::Challenge { .. })),
        "the cookie is old: {answer:?}"
    );
}

#[test]
fn an_old_cookie_is_challenged_again() {
    let mut world = World::new();
    let (a, _b) = world.pair(FREE);
    let key = a.leg.key().clone();
    let moved = at("192.0.2.1:5555");
    let bind = Message::Bind { counter: 50 }.encode(a.index(), &key);
    let challenge = world
        .server
        .on_bind(world.now, (moved, None), &bind)
        .unwrap();
    let Some(Message::Challenge { cookie, .. }) = Message::decode(&challenge, &key) else {
        panic!("no challenge");
    };
    for (after, good) in [(61, true), (60, false)] {
        world.later(Duration::from_secs(after));
        let counter = 51 + after;
        let confirm = Message::Confirm { counter, cookie }.encode(a.index(), &key);
        // From a third address where it is to be refused, because a bound source needs no cookie.
        let from = if good { moved } else { at("192.0.2.1:6666") };
        let answer = world
            .server
            .on_bind(world.now, (from, None), &confirm)
            .and_then(|answer| Message::decode(&answer, &key));
        assert_eq!(
            matches!(answer, Some(Message::Bound { .. })),
            good,
            "{answer:?}"
        );
    }
}

#[test]
fn a_message_that_was_heard_before_changes_nothing() {
    let mut world = World::new();
    let (mut a, b) = world.pair(FREE);
    // The messages of the first place, kept by somebody on the way.
    let mut kept = Vec::new();
    world.later(Duration::from_secs(25));
    a.at = at("192.0.2.77:7777");
    a.leg.handle_timeout(world.now);
    while let Some(output) = a.leg.poll() {
        if let Output::Send { bytes, .. } = output {
            kept.push(bytes);
            let answer = world.server.on_bind(world.now, (a.at, None), &bytes);
            if let Some(answer) = answer {
                a.hear(world.now, &answer);
            }
        }
    }
    assert_eq!(kept.len(), 2, "a Bind and a Confirm");
    world.later(Duration::from_secs(25));
    a.at = at("192.0.2.1:1000");
    world.run(&mut a);
    for bytes in kept {
        let answer = world
            .server
            .on_bind(world.now, (at("192.0.2.77:7777"), None), &bytes);
        assert_eq!(answer, None);
    }
    let (fate, _) = world.send(b.index(), b.at, 1, 100);
    assert!(matches!(fate, Fate::Onward(onward) if onward.to == a.at));
}

#[test]
fn a_client_behind_a_new_mapping_is_bound_there_one_round_trip_later() {
    let mut world = World::new();
    let (mut a, b) = world.pair(FREE);
    world.later(Duration::from_secs(3));
    a.at = at("192.0.2.1:3333");
    let (fate, _) = world.send(a.index(), a.at, 2, 100);
    let Fate::Challenge(challenge) = fate else {
        panic!("{fate:?}");
    };
    let (again, _) = world.send(a.index(), a.at, 2, 100);
    assert_eq!(again, Fate::Dropped, "at most four a second");
    a.hear(world.now, &challenge);
    world.run(&mut a);
    assert_eq!(a.seen.last(), Some(&a.at));
    assert!(matches!(
        world.send(a.index(), a.at, 2, 100).0,
        Fate::Onward(onward) if onward.to == b.at
    ));
    assert_eq!(world.stats().drops.elsewhere, 4);
}

#[test]
fn a_frame_too_small_to_be_challenged_is_dropped_in_silence() {
    let mut world = World::new();
    let (a, _b) = world.pair(FREE);
    let (fate, _) = world.send(a.index(), at("192.0.2.9:9"), 1, MESSAGE - 1);
    assert_eq!(fate, Fate::Dropped, "an answer would be larger");
}

#[test]
fn only_frames_are_forwarded() {
    let mut world = World::new();
    let (a, _b) = world.pair(FREE);
    let mut run = frames(a.index(), 3, 100);
    run[200 + PREFIX] = 0x40;
    let fate = world
        .server
        .forward(world.now, (a.at, None), &mut run, 100)
        .unwrap();
    assert!(matches!(fate, Fate::Onward(onward) if onward.length == 200));
    let mut short = frames(a.index(), 1, 47);
    let fate = world
        .server
        .forward(world.now, (a.at, None), &mut short, 47)
        .unwrap();
    assert_eq!(fate, Fate::Dropped);
    assert_eq!(world.stats().drops.malformed, 2);
}

#[test]
fn a_leg_of_another_relay_is_left_alone() {
    let mut world = World::new();
    let (a, _b) = world.pair(FREE);
    let mut run = frames(a.index().wrapping_add(1), 1, 100);
    let before = run.clone();
    assert_eq!(
        world.server.forward(world.now, (a.at, None), &mut run, 100),
        None
    );
    assert_eq!(run, before);
}

#[test]
fn an_asker_has_so_many_sessions_and_a_new_one_with_a_peer_replaces_the_old() {
    let mut world = World::new();
    for n in 2..6 {
        world.allocate(1, n, FREE).unwrap();
    }
    assert_eq!(world.allocate(1, 9, FREE), Err(Refusal::TooMany));
    let (again, _) = world.allocate(1, 2, FREE).unwrap();
    assert_eq!(world.stats().sessions.len(), 4);
    assert!(world.server.release(peer(1), again.index));
    assert!(!world.server.release(peer(1), again.index));
    world.allocate(1, 9, FREE).unwrap();
    let (_, theirs) = world.allocate(3, 1, FREE).unwrap();
    assert!(
        !world.server.release(peer(1), theirs.index),
        "the asker ends it, not the other one"
    );
    let none = Terms {
        sessions: 0,
        mbit: None,
        is_stranger: false,
    };
    assert_eq!(world.allocate(7, 8, none), Err(Refusal::NotServed));
    assert_eq!(world.allocate(7, 7, FREE), Err(Refusal::NotServed));
    assert_eq!(world.stats().refused.all(), 3);
}

#[test]
fn sessions_in_all_are_bounded_and_those_of_who_is_served_no_more_end() {
    let mut world = World::new();
    world.server = Server::new(world.now, Limits::of(3), &mut |bytes| bytes.fill(9));
    for n in 1..4 {
        world.allocate(n, 100, FREE).unwrap();
    }
    assert_eq!(world.allocate(5, 100, FREE), Err(Refusal::Full));
    world.server.retain(|id| (id != peer(2)).then_some(FREE));
    let left = world.stats().sessions;
    assert_eq!(
        left.iter().map(|s| s.peers[0]).collect::<Vec<_>>(),
        [peer(1), peer(3)]
    );
    world.allocate(5, 100, FREE).unwrap();
}

#[test]
fn a_leg_that_nobody_binds_ends_after_thirty_seconds_and_an_idle_one_after_five_minutes() {
    let mut world = World::new();
    let (mut a, mut b) = world.pair(FREE);
    let (half, _) = world.allocate(3, 4, FREE).unwrap();
    let mut c = End::new(world.now, half, "192.0.2.3:1");
    world.run(&mut c);
    world.later(Duration::from_secs(31));
    world.server.sweep(world.now);
    let stats = world.stats();
    assert_eq!(stats.sessions.len(), 1, "the half that was bound goes, too");
    for _ in 0..20 {
        world.run(&mut a);
        world.run(&mut b);
        world.later(Duration::from_secs(25));
        world.server.sweep(world.now);
    }
    assert!(!world.server.is_empty(), "who binds it keeps it");
    for _ in 0..13 {
        world.run(&mut a);
        world.later(Duration::from_secs(25));
        world.server.sweep(world.now);
    }
    assert!(world.server.is_empty(), "one end is gone");
}

#[test]
fn one_asker_gets_its_rate_and_no_more_and_another_is_not_slowed() {
    let terms = Terms {
        sessions: 4,
        mbit: Some(2),
        is_stranger: false,
    };
    let mut world = World::new();
    let (a, b) = world.pair(terms);
    let (mine, theirs) = world.allocate(5, 6, terms).unwrap();
    let mut c = End::new(world.now, mine, "192.0.2.5:5");
    let mut d = End::new(world.now, theirs, "192.0.2.6:6");
    world.run(&mut c);
    world.run(&mut d);
    let mut passed = 0;
    for _ in 0..1_000 {
        world.later(Duration::from_millis(10));
        for (index, from) in [(a.index(), a.at), (b.index(), b.at)] {
            if let (Fate::Onward(onward), _) = world.send(index, from, 40, 1_000) {
                passed += onward.length;
            }
        }
    }
    // Ten seconds at 250,000 bytes/s, and what the bucket held.
    assert!((2_400_000..=2_700_000).contains(&passed), "{passed}");
    let (fate, _) = world.send(c.index(), c.at, 40, 1_000);
    assert!(matches!(fate, Fate::Onward(onward) if onward.length == 40_000));
    let stats = world.stats();
    assert_eq!(
        stats.drops.rate,
        (80_000_000 - u64::try_from(passed).unwrap()) / 1_000
    );
}

#[test]
fn those_who_send_share_the_whole_rate_evenly_and_one_alone_has_all_of_it() {
    let mut world = World::new();
    world.server.set_limits(Limits {
        mbit: Some(80),
        ..Limits::of(100)
    });
    let ends: Vec<(u32, SocketAddr)> = (0..4)
        .map(|n| {
            let (mine, theirs) = world.allocate(10 + n, 20 + n, FREE).unwrap();
            let mut end = End::new(world.now, mine, &format!("192.0.2.{}:1", 10 + n));
            let mut other = End::new(world.now, theirs, &format!("192.0.2.{}:1", 20 + n));
            world.run(&mut end);
            world.run(&mut other);
            (end.index(), end.at)
        })
        .collect();
    // Ten seconds at 10 MB/s, of which each wants all; the fourth is silent.
    let mut run = |senders: &[(usize, usize)]| {
        let mut passed = [0; 4];
        for _ in 0..10_000 {
            world.later(Duration::from_millis(1));
            for (who, count) in senders {
                let (index, from) = ends[*who];
                if let (Fate::Onward(onward), _) = world.send(index, from, *count, 1_000) {
                    passed[*who] += onward.length;
                }
            }
        }
        passed.map(|bytes| bytes / 1_000_000)
    };
    run(&[(0, 40)]);
    let alone = run(&[(0, 40)])[0];
    assert!((98..=102).contains(&alone), "{alone} MB");
    run(&[(0, 40), (1, 40), (2, 10)]);
    let three = run(&[(0, 40), (1, 40), (2, 10)]);
    assert!(
        three[..3].iter().all(|mb| (31..=36).contains(mb)),
        "{three:?}"
    );
}

proptest! {
    /// Whatever a stranger sends, the relay never says more than it heard, and binds nothing.
    #[test]
    fn no_stranger_makes_the_relay_send_more_than_it_got(
        junk in proptest::collection::vec((0usize..4, proptest::collection::vec(any::<u8>(), 0..120)), 1..50),
    ) {
        let mut world = World::new();
        let (a, b) = world.pair(FREE);
        let from = at("192.0.2.66:6");
        for (kind, mut bytes) in junk {
            let index = [a.index(), b.index()][kind % 2];
            let head = if kind < 2 { prefix(index) } else {
                let mut head = prefix(index);
                head[0] = 5;
                head
            };
            let length = bytes.len().min(PREFIX);
            bytes[..length].copy_from_slice(&head[..length]);
            if kind < 2 {
                match world.server.forward(world.now, (from, None), &mut bytes, 120) {
                    Some(Fate::Onward(onward)) => prop_assert!(false, "{:?}", onward),
                    Some(Fate::Challenge(answer)) => prop_assert!(answer.len() <= bytes.len()),
                    Some(Fate::Dropped) | None => {}
                }
            } else {
                prop_assert_eq!(world.server.on_bind(world.now, (from, None), &bytes), None);
            }
        }
        let bound = world.stats().sessions[0].addresses;
        prop_assert_eq!(bound, [Some(a.at), Some(b.at)]);
    }
}

#[test]
fn binding_costs_the_relay_no_more_bytes_than_the_client() {
    let mut world = World::new();
    let (mut a, _b) = world.pair(FREE);
    for _ in 0..10 {
        world.later(Duration::from_secs(25));
        world.run(&mut a);
    }
    assert!(world.said <= world.heard, "{} {}", world.said, world.heard);
    assert_eq!(index(&frames(7, 1, 60)), Some((6, 7)));
}
