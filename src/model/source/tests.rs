use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn source(text: &str) -> Source {
    Source::of(ip(text))
}

fn places() -> Places<u32> {
    Places::new(Sizes::shared(64, 8, SECOND))
}

#[test]
fn one_host_s_addresses_are_one_source() {
    assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
    assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    assert_eq!(
        source("2001:db8::1").site(),
        source("2001:db8:0:ffff::1").site()
    );
    assert_ne!(source("2001:db8::1").site(), source("2001:db8:1::1").site());
    for form in ["::ffff:192.0.2.1", "64:ff9b::192.0.2.1"] {
        assert_eq!(source(form), source("192.0.2.1"), "{form}");
    }
    assert_ne!(source("192.0.2.1").site(), source("192.0.2.2").site());
    assert_eq!(source("2001:db8:0:7::1").to_string(), "2001:db8:0:7::/64");
}

#[test]
fn one_source_and_one_site_leave_room_for_others() {
    let (mut places, now) = (places(), Instant::now());
    let taken =
        |places: &mut Places<u32>, ids: std::ops::Range<u32>, address: &dyn Fn(u32) -> String| {
            ids.filter(|n| places.take(*n, source(&address(*n)), None, now) == Taken::Free)
                .count()
        };
    assert_eq!(
        taken(&mut places, 0..100, &|n| format!("2001:db8::{n:x}")),
        8
    );
    assert_eq!(
        taken(&mut places, 100..1000, &|n| format!("2001:db8:0:{n:x}::1")),
        8
    );
    assert_eq!(
        places.take(2000, source("192.0.2.1"), None, now),
        Taken::Free
    );
}

#[test]
fn all_who_come_through_one_relay_have_the_share_of_one_site() {
    let (mut places, now) = (places(), Instant::now());
    let through = |relay: u8| Source::Relay(PeerId([relay; 32]));
    let taken = (0..100).filter(|n| places.take(*n, through(1), None, now) == Taken::Free);
    assert_eq!(taken.count(), 16);
    assert_eq!(places.take(200, through(2), None, now), Taken::Free);
    assert_eq!(
        places.take(201, source("192.0.2.1"), None, now),
        Taken::Free
    );
}

#[test]
fn full_tables_take_from_who_has_most_and_never_from_the_reserve() {
    let (mut places, start) = (places(), Instant::now());
    let member = PeerId([7; 32]);
    for n in 0..48u32 {
        // Site 0 has eight, the others have one each.
        let address = if n < 8 {
            source("192.0.2.1")
        } else {
            Source::of(IpAddr::from([198, 51, 100, n as u8]))
        };
        assert_eq!(places.take(n, address, None, start), Taken::Free, "{n}");
    }
    assert_eq!(
        places.take(100, source("203.0.113.1"), None, start),
        Taken::Full,
        "nobody has settled"
    );
    let later = start + SECOND;
    assert_eq!(
        places.take(100, source("203.0.113.1"), None, later),
        Taken::Instead(0)
    );
    assert_eq!(
        places.take(101, source("203.0.113.2"), None, later),
        Taken::Instead(1)
    );
    for n in 0..4 {
        assert_eq!(
            places.take(200 + n, source("203.0.113.9"), Some(member), later),
            Taken::Free
        );
    }
    assert!(
        places.take(204, source("203.0.113.9"), Some(member), later) != Taken::Free,
        "a member has four"
    );
    assert!(places.len() <= 64);
}

#[test]
fn a_member_behind_a_crowded_source_has_its_own_places() {
    let (mut places, now) = (places(), Instant::now());
    for n in 0..100u32 {
        places.take(n, source(&format!("2001:db8::{n:x}")), None, now);
    }
    assert_eq!(
        places.take(500, source("2001:db8::b"), None, now),
        Taken::Full
    );
    assert_eq!(
        places.take(500, source("2001:db8::b"), Some(PeerId([1; 32])), now),
        Taken::Free
    );
}

#[test]
fn an_announcement_cannot_claim_where_another_was_seen() {
    let (victim, thief) = (PeerId([2; 32]), PeerId([1; 32]));
    let mut whereabouts = Whereabouts::default();
    let said = |peer| (peer, vec![ip("192.0.2.1")]);
    whereabouts.say([said(thief), (victim, vec![])].into());
    assert_eq!(whereabouts.member_at(ip("192.0.2.1")), Some(thief));
    whereabouts.see(victim, ip("192.0.2.1"));
    assert_eq!(whereabouts.member_at(ip("::ffff:192.0.2.1")), Some(victim));
    for n in 0..100 {
        whereabouts.see(victim, IpAddr::from([198, 51, 100, n]));
    }
    assert_eq!(whereabouts.seen[&victim].len(), ADDRESSES);
    whereabouts.say([said(thief)].into());
    assert_eq!(
        whereabouts.member_at(ip("198.51.100.99")),
        None,
        "who is no member any more has no reserve"
    );
}

#[test]
fn an_address_that_is_said_for_each_protocol_is_one() {
    let member = PeerId([2; 32]);
    let mut whereabouts = Whereabouts::default();
    let said = [1, 1, 2, 2, 3, 4, 5].map(|n| IpAddr::from([192, 0, 2, n]));
    whereabouts.say([(member, said.to_vec())].into());
    assert_eq!(whereabouts.member_at(ip("192.0.2.4")), Some(member));
    assert_eq!(whereabouts.member_at(ip("192.0.2.5")), None);
}

#[test]
fn a_full_meter_refuses_nobody_for_the_others() {
    let start = Instant::now();
    let mut meter = Meter::new(SECOND, 16);
    let v4 = |n: u32| Payer::Source(Source::V4(n.into()));
    assert!((0..10_000).all(|n| meter.allows(v4(n), 2, start)));
    assert!(meter.counts.len() <= 16 && meter.order.len() <= 16);
    assert!(meter.allows(v4(9_999), 2, start));
    assert!(
        !meter.allows(v4(9_999), 2, start),
        "a source that is remembered has its limit"
    );
    assert!(
        meter.allows(v4(9_999), 2, start + SECOND),
        "and a new window"
    );
}

#[test]
fn a_site_has_four_times_the_allowance_of_a_source() {
    let (start, mut meter) = (Instant::now(), Meter::new(SECOND, 1024));
    let v6 = |n: u16| Payer::Source(source(&format!("2001:db8:0:{n:x}::1")));
    let allowed = (0..1000).filter(|n| meter.allows(v6(*n), 3, start)).count();
    assert_eq!(allowed, 12);
    assert!(meter.allows(Payer::Source(source("2001:db8:1::1")), 3, start));
}

const QUIET: Duration = Duration::from_millis(500);

/// Places of handshakes: steps are told, and loopback is everybody.
fn handshakes() -> Places<u32> {
    Places::new(Sizes {
        quiet: Some(QUIET),
        ..Sizes::shared(64, 8, SECOND).with_all_for_loopback()
    })
}

#[test]
fn who_says_nothing_gives_way_before_who_has_got_on() {
    let (mut places, start) = (handshakes(), Instant::now());
    let crowd = source("192.0.2.1");
    for n in 0..8 {
        assert_eq!(places.take(n, crowd, None, start), Taken::Free);
    }
    // The oldest two get on: one asks, one has begun.
    places.reach(0, Step::Begun, start);
    places.reach(1, Step::Asked, start);
    assert_eq!(
        places.take(100, crowd, None, start + QUIET / 2),
        Taken::Full,
        "a slow client has its time"
    );
    let later = start + QUIET;
    let lost: Vec<_> = (100..107)
        .map(|n| places.take(n, crowd, None, later))
        .collect();
    let silent = (2..8).chain([1]).map(Taken::Instead);
    assert!(lost.into_iter().eq(silent), "who has asked goes last");
    assert_eq!(
        places.take(200, crowd, None, later),
        Taken::Full,
        "a handshake that has begun has a second"
    );
    for n in 100..107 {
        places.reach(n, Step::Begun, later);
    }
    assert_eq!(
        places.take(200, crowd, None, start + SECOND),
        Taken::Instead(0)
    );
}

#[test]
fn each_step_gives_time_and_none_is_taken_twice() {
    let (mut places, start) = (handshakes(), Instant::now());
    let crowd = source("192.0.2.1");
    for n in 0..8 {
        places.take(n, crowd, None, start);
        places.reach(n, Step::Asked, start + QUIET);
        // Neither the same step again nor one back.
        places.reach(n, Step::Asked, start + 2 * QUIET);
        places.reach(n, Step::Connected, start + 2 * QUIET);
    }
    let just_before = start + 2 * QUIET - Duration::from_millis(1);
    assert_eq!(places.take(8, crowd, None, just_before), Taken::Full);
    assert_eq!(
        places.take(8, crowd, None, start + 2 * QUIET),
        Taken::Instead(0)
    );
    places.reach(0, Step::Begun, start + 2 * QUIET);
    assert_eq!(places.len(), 8, "one that is gone is not brought back");
}

/// How many of 20 clients end their handshakes, each with a round trip of 200 ms, while 200 connections a second come from
/// the same address that say nothing.
fn served(mut places: Places<u32>) -> usize {
    let (start, crowd) = (Instant::now(), source("127.0.0.1"));
    let mut done = 0;
    let mut client: Option<(u32, u32)> = None;
    for at in (0..20_000).step_by(5) {
        let now = start + Duration::from_millis(u64::from(at));
        places.take(at, crowd, None, now);
        match client {
            None if at % 1000 == 500 => {
                let id = 1_000_000 + at;
                let taken = places.take(id, crowd, None, now);
                client = (taken != Taken::Full).then_some((id, at));
            }
            Some((id, came)) if at == came + 200 => places.reach(id, Step::Begun, now),
            Some((id, came)) if at == came + 400 => {
                done += usize::from(places.holders.contains_key(&id));
                places.give_back(id);
                client = None;
            }
            _ => {}
        }
    }
    done
}

#[test]
fn a_flood_through_a_proxy_of_this_machine_shuts_out_nobody_behind_it() {
    let few = Sizes::shared(256, 8, SECOND);
    let many = Sizes {
        quiet: Some(QUIET),
        ..few.with_all_for_loopback()
    };
    let (few, many) = (served(Places::new(few)), served(Places::new(many)));
    assert_eq!(many, 20);
    assert!(few < 10, "{few}: the flood is one that shuts out");
}

#[test]
fn who_has_few_places_takes_one_at_once_from_the_silent_of_who_has_many() {
    let (mut places, now) = (handshakes(), Instant::now());
    let flood = |n: u32| source(&format!("198.51.100.{}", n % 16));
    for n in 0..1000 {
        places.take(n, flood(n), None, now);
    }
    assert_eq!(places.len(), 48, "three for each");
    assert_eq!(
        places.take(2000, source("203.0.113.1"), None, now),
        Taken::Instead(0)
    );
    for n in 3000..4000 {
        let taken = places.take(n, flood(n), None, now);
        assert_ne!(taken, Taken::Instead(2000), "it is kept");
    }
    // With as much as the others it waits as they do.
    assert!(matches!(
        places.take(2001, source("203.0.113.1"), None, now),
        Taken::Instead(_)
    ));
    assert_eq!(
        places.take(2002, source("203.0.113.1"), None, now),
        Taken::Full
    );
    // A handshake that has begun is not given up for somebody who has less.
    let begun: Vec<u32> = places.holders.keys().copied().collect();
    for n in begun {
        places.reach(n, Step::Begun, now);
    }
    assert_eq!(
        places.take(5000, source("203.0.113.9"), None, now),
        Taken::Full
    );
}

#[test]
fn loopback_has_the_places_of_all_and_leaves_the_reserve_and_others_theirs() {
    let (mut places, now) = (handshakes(), Instant::now());
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert!(source(address).is_loopback(), "{address}");
    }
    assert!(!source("2001:db8::1").is_loopback());
    let free = |n: &u32| places.take(*n, source("127.0.0.1"), None, now) == Taken::Free;
    assert_eq!((0..1000).filter(free).count(), 48);
    assert_eq!(
        places.take(2000, source("192.0.2.1"), None, now),
        Taken::Instead(0)
    );
    let member = Some(PeerId([7; 32]));
    assert_eq!(
        places.take(2001, source("127.0.0.1"), member, now),
        Taken::Free
    );
}

#[test]
fn loopback_shuts_nobody_else_out_however_far_it_gets() {
    let strangers = Places::new(Sizes::shared(64, 8, SECOND).with_all_for_loopback());
    for mut places in [handshakes(), strangers] {
        let start = Instant::now();
        let (mut next, mut let_in) = (0, 0);
        for step in 0..50u32 {
            // Each place is taken again as soon as it may be, and every handshake begun.
            let now = start + QUIET / 5 * step;
            for _ in 0..60 {
                next += 1;
                places.take(next, source("127.0.0.1"), None, now);
                places.reach(next, Step::Begun, now);
            }
            let remote = Source::of(IpAddr::from([192, 0, 2, (step % 20) as u8]));
            let id = 100_000 + step;
            let_in += usize::from(places.take(id, remote, None, now) != Taken::Full);
            let earlier = id.saturating_sub(5);
            let is_there = step < 5 || places.holders.contains_key(&earlier);
            assert!(is_there, "nobody takes it from there");
            places.give_back(earlier);
        }
        assert_eq!(let_in, 50, "everybody else has a place at once");
    }
}

proptest! {
    #[test]
    fn places_are_bounded_and_count_what_is_held(
        steps in proptest::collection::vec((0u32..200, 0u8..40, any::<bool>(), 0u64..3), 1..300),
    ) {
        let (mut places, mut now) = (places(), Instant::now());
        let mut held = std::collections::BTreeSet::new();
        for (id, host, member, wait) in steps {
            now += SECOND * u32::try_from(wait).unwrap();
            if held.contains(&id) {
                places.give_back(id);
                held.remove(&id);
                continue;
            }
            let member = member.then_some(PeerId([host; 32]));
            match places.take(id, Source::of(IpAddr::from([192, 0, 2, host])), member, now) {
                Taken::Free => drop(held.insert(id)),
                Taken::Instead(other) => {
                    prop_assert!(held.remove(&other));
                    held.insert(id);
                }
                Taken::Full => {}
            }
            prop_assert_eq!(places.len(), held.len());
            prop_assert!(held.len() <= 64);
        }
    }
}
