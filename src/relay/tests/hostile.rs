//! One hostile host: however many peer IDs it makes up and however much it sends, others are served.

use std::net::IpAddr;

use super::*;
use crate::model::source::Source;

/// What a stranger may have.
const STRANGER: Terms = Terms {
    sessions: 4,
    mbit: Some(2),
    is_stranger: true,
};

fn id(n: u32) -> PeerId {
    let mut bytes = [0xee; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PeerId(bytes)
}

/// A peer that the relay does not know, at an address.
fn stranger(n: u32, address: &str) -> Asker {
    let address: IpAddr = address.parse().unwrap();
    Asker {
        peer: id(n),
        source: Some(Source::of(address)),
    }
}

impl World {
    fn allocate_for(&mut self, asker: Asker, terms: Terms) -> Result<(Ticket, Ticket), Refusal> {
        let dice = &mut self.dice;
        self.server
            .allocate(self.now, asker, id(u32::MAX), terms, &mut |bytes| {
                dice.fill(bytes)
            })
    }

    /// Makes a session whose two ends are bound at two ports of one address.
    fn bound(&mut self, asker: Asker, terms: Terms, address: &str, port: u16) -> (End, End) {
        let (mine, theirs) = self.allocate_for(asker, terms).unwrap();
        let mut a = End::new(self.now, mine, &format!("{address}:{port}"));
        let mut b = End::new(self.now, theirs, &format!("{address}:{}", port + 1));
        self.run(&mut a);
        self.run(&mut b);
        assert!(a.leg.relay().is_some() && b.leg.relay().is_some());
        (a, b)
    }
}

#[test]
fn one_host_with_any_number_of_peer_ids_has_its_share_of_the_sessions() {
    let mut world = World::new();
    let mut got = 0;
    for n in 0..2_000 {
        match world.allocate_for(stranger(n, "203.0.113.66"), STRANGER) {
            Ok(_) => got += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::Crowded),
        }
    }
    assert_eq!(got, Limits::default().per_source);
    assert_eq!(world.stats().refused.crowded, 2_000 - 64);
    // A /64 of IPv6 is one host, too.
    let of_prefix = (0..500).filter(|n| {
        let asker = stranger(10_000 + n, &format!("2001:db8::{n:x}"));
        world.allocate_for(asker, STRANGER).is_ok()
    });
    assert_eq!(of_prefix.count(), 64);
    assert!(
        world
            .allocate_for(stranger(9_999, "198.51.100.1"), STRANGER)
            .is_ok()
    );
}

#[test]
fn strangers_of_many_addresses_leave_room_for_members() {
    let mut world = World::new();
    for n in 0..2_000u32 {
        let asker = stranger(n, &format!("203.0.{}.{}", n / 200, n % 200));
        let made = world.allocate_for(asker, STRANGER);
        assert_eq!(made.is_ok(), n < 768, "{n}");
    }
    assert_eq!(world.stats().refused.full, 2_000 - 768);
    // Fifty members behind the very address of a crowd of strangers.
    for n in 0..50 {
        world
            .allocate_for(Asker::from(id(50_000 + n)), FREE)
            .unwrap();
    }
    assert_eq!(world.stats().sessions.len(), 768 + 50);
}

#[test]
fn a_session_that_is_over_is_given_back_to_the_source_it_came_from() {
    let mut world = World::new();
    world.server.set_limits(Limits {
        per_source: 1,
        ..Limits::default()
    });
    for _ in 0..100 {
        let (mine, _) = world
            .allocate_for(stranger(1, "203.0.113.66"), STRANGER)
            .unwrap();
        // The same peer, from elsewhere: the former session ends, and its place is free.
        world
            .allocate_for(stranger(1, "198.51.100.7"), STRANGER)
            .unwrap();
        assert!(!world.server.release(id(1), mine.index));
        world
            .allocate_for(stranger(2, "203.0.113.66"), STRANGER)
            .unwrap();
        world.later(Duration::from_secs(31));
        world.server.sweep(world.now);
        assert!(world.server.is_empty());
    }
}

#[test]
fn a_host_that_floods_by_all_its_sessions_does_not_slow_a_member() {
    let mut world = World::new();
    world.server.set_limits(Limits {
        mbit: Some(80),
        ..Limits::default()
    });
    let (member, other) = world.bound(Asker::from(id(1)), FREE, "192.0.2.1", 1000);
    let mut hostile = Vec::new();
    for n in 0..16 {
        let port = 1_000 + 2 * u16::try_from(n).unwrap();
        let asker = stranger(100 + n, "203.0.113.66");
        hostile.push(world.bound(asker, STRANGER, "203.0.113.66", port));
    }
    let (mut passed, mut flooded) = (0, 0);
    for round in 0..5_000 {
        world.later(Duration::from_millis(1));
        // All of them as much as comes through: tiny frames, which cost as much work as large ones.
        for (a, b) in &hostile {
            for end in [a, b] {
                if let (Fate::Onward(onward), _) = world.send(end.index(), end.at, 20, 48) {
                    flooded += usize::from(round >= 2_000) * onward.length;
                }
            }
        }
        // The member: 4 MB/s of the 10 that there are.
        if let (Fate::Onward(onward), _) = world.send(member.index(), member.at, 4, 1_000) {
            passed += usize::from(round >= 2_000) * onward.length;
        }
    }
    assert!(
        passed > 11_970_000,
        "{passed} bytes of 12 MB in three seconds"
    );
    // Four times what one stranger has is 1 MB/s; a frame of 48 bytes costs 128.
    let frames = flooded / 48;
    assert!(frames * 128 < 3_060_000, "{frames} frames in three seconds");
    assert!(frames * 128 > 2_500_000, "{frames} frames in three seconds");
    let _ = other;
}

#[test]
fn a_flood_of_binds_is_not_even_checked_and_unbinds_nobody() {
    let mut world = World::new();
    let (mut a, b) = world.pair(FREE);
    // Whoever knows the index of a leg, from any number of addresses: its messages are false.
    let (key, mut junk) = (crate::crypto::mac::Mac::new(&[1; 16]), 0);
    for n in 0..200_000u32 {
        let from = SocketAddr::from(([198, 18, (n >> 8) as u8, n as u8], 1_000));
        let bytes = Message::Bind { counter: 1 }.encode(a.index(), &key);
        assert_eq!(world.server.on_bind(world.now, (from, None), &bytes), None);
        junk += 1;
    }
    let flood = world.stats().drops.flood;
    assert!(flood > 0 && flood < junk);
    // One address, as a flood would use it.
    let before = world.stats().drops.flood;
    for _ in 0..10_000 {
        let bytes = Message::Bind { counter: 1 }.encode(a.index(), &key);
        let from = at("198.51.100.99:9");
        assert_eq!(world.server.on_bind(world.now, (from, None), &bytes), None);
    }
    let checked = 10_000 - (world.stats().drops.flood - before);
    assert!(checked <= 512, "{checked} were checked");
    // Who is bound stays so, and refreshes its leg.
    world.later(Duration::from_secs(25));
    let seen = a.seen.len();
    world.run(&mut a);
    assert_eq!((a.ended, a.seen.len()), (None, seen));
    let (fate, _) = world.send(a.index(), a.at, 1, 100);
    assert!(matches!(fate, Fate::Onward(onward) if onward.to == b.at));
}

#[test]
fn a_client_that_repeats_itself_pays_by_its_leg_alone() {
    let mut world = World::new();
    let (mut a, mut b) = world.pair(FREE);
    for counter in 100..10_100 {
        let bytes = Message::Bind { counter }.encode(a.index(), a.leg.key());
        world.server.on_bind(world.now, (a.at, None), &bytes);
    }
    assert!(world.stats().drops.flood > 9_900);
    world.later(Duration::from_secs(25));
    world.run(&mut b);
    assert_eq!(b.ended, None, "the other end of the session");
    world.run(&mut a);
    assert_eq!(a.ended, None);
}
