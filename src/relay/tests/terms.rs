//! What an asker may use changes while its sessions are there: the owner names it, or it joins or leaves.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::source::Source;

const KNOWN: Terms = Terms {
    sessions: 64,
    mbit: Some(80),
    is_stranger: false,
};
const STRANGER: Terms = Terms {
    sessions: 4,
    mbit: Some(2),
    is_stranger: true,
};

impl World {
    /// The kilobytes that pass by each of these legs in two seconds in which it sends 20 MB/s.
    fn two_seconds(&mut self, ends: [&End; 2]) -> [usize; 2] {
        let mut passed = [0; 2];
        for _ in 0..200 {
            self.later(Duration::from_millis(10));
            for (end, passed) in ends.iter().zip(&mut passed) {
                if let (Fate::Onward(onward), _) = self.send(end.index(), end.at, 200, 1_000) {
                    *passed += onward.length;
                }
            }
        }
        passed.map(|bytes| bytes / 1_000)
    }
}

/// A peer that asks from one of four addresses.
fn asker(n: u8) -> Asker {
    let address = std::net::IpAddr::from([192, 0, 2, n % 4]);
    Asker {
        peer: peer(n),
        source: Some(Source::of(address)),
    }
}

fn ask(world: &mut World, asker: Asker, to: u8, terms: Terms) -> Result<u32, Refusal> {
    let (dice, server) = (&mut world.dice, &mut world.server);
    let made = server.allocate(world.now, asker, peer(to), terms, &mut |b| dice.fill(b));
    made.map(|(mine, _)| mine.index)
}

#[test]
fn a_session_follows_its_asker_from_a_strangers_terms_to_those_of_a_named_peer_and_back() {
    let mut world = World::new();
    let (a, b) = world.pair(STRANGER);
    let (from, to) = (peer(1), peer(2));
    let _ = world.two_seconds([&a, &b]);
    for _ in 0..2 {
        // Two seconds at 250,000 bytes/s, both ways together.
        let little: usize = world.two_seconds([&a, &b]).iter().sum();
        assert!((400..=700).contains(&little), "{little} kB");
        assert_eq!(world.stats().sessions[0].mbit, Some(2));

        world.server.retain(|id| {
            assert_ne!(id, to, "only who asks has terms");
            (id == from).then_some(KNOWN)
        });
        let much = world.two_seconds([&a, &b]);
        // The first of the two takes what the bucket holds at each step; together they have 10 MB/s.
        let all: usize = much.iter().sum();
        assert!((19_000..=21_500).contains(&all), "{much:?} kB");
        let back = world.two_seconds([&b, &a]);
        assert!(back[0] > 9_000, "{back:?} kB");
        assert_eq!(world.stats().sessions[0].mbit, Some(80));

        world.server.retain(|_| Some(STRANGER));
    }
    world.server.retain(|_| None);
    assert!(world.server.is_empty());
}

#[test]
fn a_question_brings_new_terms_to_the_sessions_that_are_there() {
    let mut world = World::new();
    let (a, b) = world.pair(STRANGER);
    ask(&mut world, peer(1).into(), 3, KNOWN).unwrap();
    let all: usize = world.two_seconds([&a, &b]).iter().sum();
    assert!((19_000..=21_500).contains(&all), "{all} kB");
    let shown = world.stats().sessions;
    assert!(shown.iter().all(|s| s.mbit == Some(80)), "{shown:?}");
}

#[test]
fn who_is_a_member_no_more_keeps_a_strangers_sessions_where_it_is_bound() {
    let mut world = World::new();
    world.server.set_limits(Limits {
        per_source: 6,
        ..Limits::default()
    });
    // A member is not asked where it is.
    let mut ends = Vec::new();
    for n in 0..10 {
        let (mine, _) = world.allocate(1, 100 + n, KNOWN).unwrap();
        let mut end = End::new(world.now, mine, "192.0.2.2:1000");
        world.run(&mut end);
        ends.push(end);
        world.later(Duration::from_secs(1));
    }
    let other = asker(2);
    ask(&mut world, other, 50, STRANGER).unwrap();
    let of = |id| if id == peer(1) { STRANGER } else { KNOWN };
    world
        .server
        .retain(|id| Some(if id == peer(2) { STRANGER } else { of(id) }));
    let kept = world.stats().sessions;
    let kept: Vec<PeerId> = kept.iter().map(|s| s.peers[1]).collect();
    assert_eq!(
        kept,
        [peer(100), peer(101), peer(102), peer(103), peer(50)],
        "the oldest four, and the other's"
    );
    // They count where it is bound: of the six of that address one is left.
    ask(&mut world, asker(6), 51, STRANGER).unwrap();
    let crowded = ask(&mut world, asker(10), 52, STRANGER);
    assert_eq!(crowded, Err(Refusal::Crowded));
    // The member comes back: its four make room for strangers.
    world
        .server
        .retain(|id| Some(if id == peer(1) { KNOWN } else { STRANGER }));
    for n in 0..4 {
        ask(&mut world, asker(10), 52 + n, STRANGER).unwrap();
    }
    assert_eq!(world.stats().sessions.len(), 4 + 6);
}

proptest! {
    /// Whatever changes, in whatever order: no source has more than its share, and what is over is given back.
    #[test]
    fn accounts_hold_what_is_there(
        steps in proptest::collection::vec((0u8..5, 0u8..12, 0u8..6), 1..200),
    ) {
        let mut world = World::new();
        let limits = Limits { sessions: 40, strangers: 12, per_source: 5, mbit: None };
        world.server.set_limits(limits);
        let mut known = BTreeSet::new();
        let terms = |known: &BTreeSet<PeerId>, id: PeerId| {
            if known.contains(&id) { KNOWN } else { STRANGER }
        };
        let mut indexes = Vec::new();
        for (step, from, to) in steps {
            match step {
                0 => {
                    if !known.remove(&peer(from)) {
                        known.insert(peer(from));
                    }
                    world.server.retain(|id| Some(terms(&known, id)));
                }
                1 => {
                    if let Some((owner, index)) = indexes.pop() {
                        world.server.release(owner, index);
                    }
                }
                _ => {
                    // What it may use may have changed since the last look.
                    if step == 4 && !known.remove(&peer(from)) {
                        known.insert(peer(from));
                    }
                    let terms = terms(&known, peer(from));
                    if let Ok(index) = ask(&mut world, asker(from), 100 + to, terms) {
                        indexes.push((peer(from), index));
                    }
                }
            }
            let sessions = world.stats().sessions;
            let strange = sessions.iter().map(|s| s.peers[0]).filter(|id| !known.contains(id));
            let mut at: BTreeMap<u8, usize> = BTreeMap::new();
            strange.for_each(|id| *at.entry(id.0[0] % 4).or_default() += 1);
            prop_assert!(sessions.len() <= 40 && at.values().sum::<usize>() <= 12, "{at:?}");
            prop_assert!(at.values().all(|held| *held <= 5), "{at:?}");
        }
        world.server.retain(|_| None);
        prop_assert!(world.server.is_empty());
        // Each source has its whole share again, and all of them together theirs.
        let open = |world: &mut World, peers: Vec<u8>| {
            let free = peers.iter().filter(|n| ask(world, asker(**n), 200, STRANGER).is_ok());
            let open = free.count();
            world.server.retain(|_| None);
            open
        };
        for source in 0..4 {
            prop_assert_eq!(open(&mut world, (0..10).map(|n| n * 4 + source).collect()), 5);
        }
        prop_assert_eq!(open(&mut world, (0..40).collect()), 12);
    }
}
