//! What a client does: whom it asks, how often, and when it gives up.

use super::*;
use crate::model::source::Source;

#[test]
fn a_relay_that_died_ends_the_leg_within_three_seconds_of_the_next_look() {
    let mut world = World::new();
    let (mut a, _b) = world.pair(FREE);
    world.server = Server::new(world.now, Limits::default(), &mut |bytes| bytes.fill(1));
    a.leg.rebind(world.now);
    let start = world.now;
    while a.ended.is_none() {
        world.run(&mut a);
        world.now = a.leg.poll_timeout().unwrap_or(world.now);
        assert!(world.now < start + Duration::from_secs(3));
    }
    assert_eq!(a.ended, Some(Ended::Lost));
}

#[test]
fn a_relay_that_is_not_there_is_asked_seven_times_at_most_and_at_four_addresses() {
    let (now, mut sent) = (Instant::now(), Vec::new());
    let addresses: Vec<SocketAddr> = (1..9)
        .map(|n| SocketAddr::from(([192, 0, 2, n], 1)))
        .collect();
    let ticket = Ticket {
        index: 1,
        key: [1; 16],
    };
    let (mut leg, mut at) = (Leg::new(now, ticket, &addresses), now);
    let (mut ended, mut late) = (None, None);
    while let Some(due) = leg.poll_timeout() {
        at = at.max(due);
        leg.handle_timeout(at);
        if leg.is_unanswered() {
            late.get_or_insert(at);
        }
        while let Some(output) = leg.poll() {
            match output {
                Output::Send { to, bytes } => sent.push((to, bytes.len())),
                Output::Ended(why) => ended = Some(why),
                Output::Bound { .. } | Output::Look { .. } | Output::Seen { .. } => {
                    panic!("nobody answered")
                }
            }
        }
    }
    assert_eq!(ended, Some(Ended::NoAnswer));
    assert_eq!(at - now, Duration::from_secs(10));
    let third = Some(now + Duration::from_millis(600));
    assert_eq!(late, third, "from then on every uplink is tried");
    assert!(sent.len() <= 28, "{}", sent.len());
    assert!(sent.iter().all(|(to, _)| addresses[..4].contains(to)));
}

#[test]
fn the_address_that_answers_first_is_the_one_that_is_bound() {
    let mut world = World::new();
    let (mine, _) = world.allocate(1, 2, FREE).unwrap();
    let other = at("[2001:db8::1]:4100");
    let mut end = End::new(world.now, mine, "192.0.2.1:1000");
    end.leg = Leg::new(world.now, mine, &[other, at(RELAY)]);
    world.run(&mut end);
    assert_eq!(end.leg.relay(), Some(at(RELAY)));
    // The relay's other address challenges late: it is not confirmed, or the leg would be bound to where it is not used.
    let challenge = Message::Challenge {
        counter: 1,
        cookie: [1; 16],
        seen: None,
    };
    end.leg.on_message(world.now, other, challenge);
    assert_eq!(end.leg.poll(), None);
}

#[test]
fn every_other_uplink_is_told_where_the_relay_sees_it_and_the_leg_stays_where_it_is() {
    let mut world = World::new();
    let (mut a, b) = world.pair(FREE);
    a.uplinks = vec![at("203.0.113.7:7"), at("203.0.113.8:8")];
    a.leg.set_uplinks(2);
    a.seen.clear();
    a.leg.rebind(world.now);
    world.run(&mut a);
    assert_eq!(a.looked, a.uplinks);
    for seconds in [1, 3, 25] {
        world.later(Duration::from_secs(seconds));
        assert!(a.leg.poll_timeout() <= Some(world.now), "after {seconds} s");
        a.looked.clear();
        world.run(&mut a);
        assert_eq!(a.looked, a.uplinks);
    }
    assert_eq!(a.seen, [a.at], "bound as before");
    let (fate, _) = world.send(b.index(), b.at, 1, 60);
    assert!(matches!(fate, Fate::Onward(onward) if onward.to == a.at));
    // Frames by another uplink move the leg all the same, as those of a peer that roams.
    let (fate, _) = world.send(a.index(), a.uplinks[0], 1, 60);
    let Fate::Challenge(challenge) = fate else {
        panic!("{fate:?}")
    };
    world.later(Duration::from_secs(1));
    a.at = a.uplinks[0];
    a.hear(world.now, &challenge);
    world.run(&mut a);
    let (fate, _) = world.send(b.index(), b.at, 1, 60);
    assert!(matches!(fate, Fate::Onward(onward) if onward.to == a.at));
}

impl World {
    /// What the relay answers to the questions by the other uplinks that are due now; what the leg itself asks is lost.
    fn challenges(&mut self, end: &mut End) -> Vec<[u8; MESSAGE]> {
        end.leg.handle_timeout(self.now);
        let mut answers = Vec::new();
        while let Some(output) = end.leg.poll() {
            if let Output::Look { uplink, bytes, .. } = output {
                let from = end.uplinks[uplink];
                answers.extend(self.server.on_bind(self.now, (from, None), &bytes));
            }
        }
        answers
    }
}

#[test]
fn an_answer_by_another_uplink_that_is_late_or_repeated_does_not_move_the_leg() {
    for late in [0, 1_500, 2_500, 5_000, 25_000] {
        let mut world = World::new();
        let (mut a, b) = world.pair(FREE);
        a.uplinks = vec![at("203.0.113.7:7"), at("203.0.113.8:8")];
        a.leg.set_uplinks(2);
        a.leg.rebind(world.now);
        let answers = world.challenges(&mut a);
        assert_eq!(answers.len(), 2);
        // Meanwhile further rounds are asked, and refreshed as it should be.
        let end = world.now + Duration::from_millis(late);
        while world.now < end {
            world.later(Duration::from_millis(500));
            world.run(&mut a);
        }
        a.looked.clear();
        for answer in answers.iter().chain(&answers) {
            a.hear(world.now, answer);
        }
        let mut seen = Vec::new();
        while let Some(output) = a.leg.poll() {
            match output {
                Output::Seen { seen: at } => seen.push(at),
                other => panic!("after {late} ms: {other:?}"),
            }
        }
        let is_fresh = late <= 2_000;
        let expected = if is_fresh { a.uplinks.clone() } else { vec![] };
        assert_eq!(seen, expected, "after {late} ms");
        let (fate, _) = world.send(b.index(), b.at, 1, 60);
        assert!(matches!(fate, Fate::Onward(onward) if onward.to == a.at));
    }
}

#[test]
fn an_answer_is_taken_once() {
    let mut world = World::new();
    let (mut a, _b) = world.pair(FREE);
    world.run(&mut a);
    while a.leg.poll().is_some() {}
    let relay = a.leg.relay().unwrap();
    for n in 1..=100u16 {
        let seen = SocketAddr::from(([203, 0, 113, 9], n));
        for counter in 0..20 {
            a.leg.on_message(
                world.now,
                relay,
                Message::Bound {
                    counter,
                    seen,
                    other: None,
                },
            );
        }
    }
    assert_eq!(a.leg.poll(), None, "nobody asked");
}

#[test]
fn each_end_learns_where_the_other_is_seen_while_it_is_heard() {
    let mut world = World::new();
    let (mut a, mut b) = world.pair(FREE);
    let of = |end: &End| end.leg.peer().map(|(at, when)| (SocketAddr::V4(at), when));
    assert_eq!(of(&a), None, "the other was not there yet");
    assert_eq!(of(&b), Some((a.at, world.now)));
    a.leg.rebind(world.now);
    world.run(&mut a);
    assert_eq!(of(&a), Some((b.at, world.now)));
    // One that fell silent is not told for new.
    let heard = world.now;
    for _ in 0..4 {
        world.now += Duration::from_secs(10);
        b.leg.rebind(world.now);
        world.run(&mut b);
    }
    assert_eq!(of(&b), Some((a.at, heard + Duration::from_secs(20))));
}

#[test]
fn a_challenge_that_is_repeated_is_answered_ten_times_a_second() {
    let mut world = World::new();
    let (mut a, _b) = world.pair(FREE);
    let challenge = Message::Challenge {
        counter: 1,
        cookie: [1; 16],
        seen: None,
    };
    let mut sent = 0;
    for _ in 0..1_000 {
        world.later(Duration::from_millis(1));
        a.leg.on_message(world.now, at(RELAY), challenge);
        while a.leg.poll().is_some() {
            sent += 1;
        }
    }
    assert_eq!(sent, 10);
}

#[test]
fn fifty_strangers_behind_one_nat_are_back_a_moment_after_the_relay_was_restarted() {
    let mut world = World::new();
    let nat = |n: u8, end: u16| SocketAddr::from(([192, 0, 2, 1], 1000 + 2 * u16::from(n) + end));
    let stranger = |n: u8| Asker {
        peer: peer(n),
        source: Some(Source::of(nat(0, 0).ip())),
    };
    // What anybody may have.
    let terms = Terms {
        sessions: 4,
        mbit: Some(2),
        is_stranger: true,
    };
    for secret in 3..6 {
        // All of them at once, and each answer only at the second try.
        world.server = Server::new(world.now, Limits::default(), &mut |bytes| {
            bytes.fill(secret)
        });
        let mut ends = Vec::new();
        for n in 1..51 {
            let dice = &mut world.dice;
            let made =
                world
                    .server
                    .allocate(world.now, stranger(n), peer(200), terms, &mut |bytes| {
                        dice.fill(bytes)
                    });
            let (mine, theirs) = made.unwrap();
            for (ticket, port) in [(mine, 0), (theirs, 1)] {
                let mut end = End::new(world.now, ticket, RELAY);
                end.at = nat(n, port);
                end.leg.handle_timeout(world.now);
                while let Some(output) = end.leg.poll() {
                    if let Output::Send { bytes, .. } = output {
                        let lost = world.server.on_bind(world.now, (end.at, None), &bytes);
                        assert!(lost.is_some(), "it is answered");
                    }
                }
                ends.push(end);
            }
        }
        world.later(Duration::from_millis(200));
        for end in &mut ends {
            world.run(end);
            assert_eq!(end.leg.relay(), Some(at(RELAY)));
        }
        assert_eq!(world.stats().sessions.len(), 50);
        assert_eq!(world.stats().drops, Drops::default());
    }
}
