//! Two ends that search, on a virtual clock, with a NAT that gives each socket a port nobody can name.

use std::collections::BTreeSet;

use super::packets::{PORTS, guessed};
use super::*;
use crate::testing::{Dice, some_moment};
use crate::wire::paths::Filtering;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const OPENER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const GUESSER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn want(role: Role) -> Want {
    Want {
        role,
        sockets: SOCKETS,
        counted: None,
        places: None,
    }
}

/// The opener, the guesser, and what lies between them.
struct World {
    now: Instant,
    start: Instant,
    dice: Dice,
    ends: [Sprays; 2],
    /// Whether relays see the other end, as this end knows.
    seen: bool,
    /// Whether what the ends say to each other arrives.
    talk: bool,
    /// Whether a guess may hit.
    open: bool,
    /// By how much the NAT counts; none: it does not.
    step: Option<u16>,
    mapped: BTreeSet<u16>,
    last: u16,
    sent: Vec<(Instant, usize, Remote)>,
    begun: [Vec<Duration>; 2],
    found: Option<Duration>,
}

impl World {
    fn new(seed: u64) -> World {
        let now = some_moment();
        let mut world = World {
            now,
            start: now,
            dice: Dice::new(seed),
            ends: Default::default(),
            seen: true,
            talk: true,
            open: true,
            step: None,
            mapped: BTreeSet::new(),
            last: 40_000,
            sent: Vec::new(),
            begun: Default::default(),
            found: None,
        };
        world.ends[0].want(now, peer(2), Some(want(Role::Opener)));
        world.ends[1].want(now, peer(1), Some(want(Role::Guesser)));
        world
    }

    fn aim(&self, end: usize) -> Option<SocketAddrV4> {
        let at = SocketAddrV4::new([GUESSER, OPENER][end], 4100);
        self.seen.then_some(at)
    }

    /// What one end hears of the other.
    fn hear(&mut self, end: usize, word: Spray) {
        let (now, aim, dice) = (self.now, self.aim(end), &mut self.dice);
        let other = peer(2 - end as u8);
        self.ends[end].heard(now, other, word, &|_| aim, &mut |b| dice.fill(b));
    }

    fn map(&mut self) {
        let port = loop {
            let port = match self.step {
                Some(step) => self.last.wrapping_add(step),
                None => 1024 + (self.dice.roll() % 64_512) as u16,
            };
            self.last = port;
            if self.mapped.insert(port) {
                break port;
            }
        };
        assert!(port >= 1024);
    }

    fn obey(&mut self, end: usize) {
        let mut used = BTreeSet::new();
        while let Some(output) = self.ends[end].poll() {
            match output {
                Output::Look { .. } => {}
                Output::Say { word, .. } if self.talk => self.hear(1 - end, word),
                Output::Say { .. } => {}
                Output::Open { peer, sockets } => {
                    self.begun[end].push(self.now - self.start);
                    let open = (1..=sockets as u16).collect();
                    self.ends[end].opened(peer, open);
                }
                Output::Probe { to, .. } => {
                    self.sent.push((self.now, end, to));
                    match to.helper {
                        Some(helper) if used.insert(helper) && self.mapped.len() < SOCKETS => {
                            self.map();
                        }
                        None if self.open && self.mapped.contains(&to.address.port()) => {
                            self.found.get_or_insert(self.now - self.start);
                        }
                        _ => {}
                    }
                }
                Output::Over { .. } => self.mapped.clear(),
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for side in 0..2 {
                let aim = self.aim(side);
                self.ends[side].handle_timeout(self.now, &|_| aim);
                self.obey(side);
            }
            self.now += 10 * MS;
        }
    }

    /// Until it is found, or the search is over.
    fn search(&mut self) {
        while self.found.is_none() && self.now < self.start + 16 * SECOND {
            self.run(10 * MS);
        }
    }

    /// Packets that one end sent.
    fn count(&self, end: usize) -> usize {
        self.sent.iter().filter(|(_, side, _)| *side == end).count()
    }
}

/// Probes in the worst second.
fn worst(sent: &[(Instant, usize, Remote)], end: usize) -> usize {
    let times: Vec<Instant> = sent.iter().filter(|s| s.1 == end).map(|s| s.0).collect();
    let within = |from: &Instant| {
        times
            .iter()
            .filter(|t| *t >= from && **t < *from + SECOND)
            .count()
    };
    times.iter().map(within).max().unwrap_or(0)
}

#[test]
fn a_port_that_nobody_can_name_is_found_in_time() {
    let mut times = Vec::new();
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.search();
        times.extend(world.found);
    }
    times.sort();
    println!(
        "found {} of 400; median {:?}, last {:?}",
        times.len(),
        times[times.len() / 2],
        times.last()
    );
    assert!(times.len() >= 399, "{} of 400", times.len());
    assert!(times.last() < Some(&(14 * SECOND)));
}

#[test]
fn a_nat_that_counts_its_ports_is_met_by_the_first_guesses() {
    for step in [1, 2, 5] {
        let mut world = World::new(7);
        world.step = Some(step);
        let counted = Some((40_000 + step, step as i16));
        let guesser = Want {
            counted,
            ..want(Role::Guesser)
        };
        world.ends[1].want(world.now, peer(1), Some(guesser));
        // Other destinations have taken some since it was told.
        world.last += 5 * step;
        world.search();
        assert!(
            world.found < Some(3 * SECOND),
            "step {step}: {:?}",
            world.found
        );
        assert!(world.count(1) <= 60, "{} guesses", world.count(1));
    }
}

#[test]
fn neither_end_sends_more_than_the_rate_and_each_stops() {
    let mut world = World::new(3);
    world.open = false;
    world.run(60 * SECOND);
    for end in 0..2 {
        let worst = worst(&world.sent, end);
        assert!((200..=250).contains(&worst), "{worst} in a second");
    }
    let all = [world.count(0), world.count(1)];
    assert_eq!(all, [2 * SOCKETS, GUESSES as usize]);
    let ports: BTreeSet<u16> = world
        .sent
        .iter()
        .filter(|s| s.1 == 1)
        .map(|(_, _, to)| to.address.port())
        .collect();
    assert_eq!(ports.len(), GUESSES as usize, "none is tried twice");
    assert!(ports.iter().all(|port| *port >= 1024));
    let aims: BTreeSet<(usize, IpAddr)> =
        world.sent.iter().map(|s| (s.1, s.2.address.ip())).collect();
    let only = [(0, GUESSER.into()), (1, OPENER.into())];
    assert_eq!(aims.into_iter().collect::<Vec<_>>(), only);
    assert_eq!(world.ends[1].stats(world.now).probes, u64::from(GUESSES));
}

/// Whatever a peer says: it alone does not say where anything is aimed.
#[test]
fn nothing_is_sent_to_where_nobody_else_sees_the_peer() {
    let mut world = World::new(4);
    world.seen = false;
    world.run(30 * SECOND);
    for word in [Spray::Ask, Spray::Go, Spray::Later] {
        for end in 0..2 {
            world.hear(end, word);
            world.run(30 * SECOND);
        }
    }
    assert!(world.sent.is_empty() && world.begun[0].is_empty());
    assert_eq!(world.ends[0].stats(world.now).runs, 0);
}

#[test]
fn what_finds_nothing_is_done_again_after_ten_minutes_then_after_an_hour_and_then_no_more() {
    let mut world = World::new(5);
    world.open = false;
    world.run(Duration::from_secs(4 * 3600));
    let begun: Vec<u64> = world.begun[0].iter().map(Duration::as_secs).collect();
    assert_eq!(begun.len(), 3, "{begun:?}");
    assert!((600..660).contains(&(begun[1] - begun[0])), "{begun:?}");
    assert!((3600..3700).contains(&(begun[2] - begun[1])), "{begun:?}");
    assert_eq!(world.count(1), 3 * GUESSES as usize);
    assert!(!world.ends[0].is_waiting(world.now, peer(2)));
    // The opener is elsewhere now.
    let places = |last| Want {
        places: Some([[198, 51, 100, last].into(), GUESSER]),
        ..want(Role::Opener)
    };
    for place in [places(1), places(2)] {
        world.ends[0].want(world.now, peer(2), Some(place));
        let there = Want {
            role: Role::Guesser,
            places: place.places.map(|[a, b]| [b, a]),
            ..place
        };
        world.ends[1].want(world.now, peer(1), Some(there));
    }
    world.run(60 * SECOND);
    assert_eq!(world.begun[0].len(), 4);
}

/// A member that says something else all the time, and asks all the time.
#[test]
fn no_spray_storm() {
    let mut world = World::new(6);
    world.open = false;
    world.run(4 * SECOND);
    for second in 0..1800_u32 {
        for _ in 0..20 {
            world.hear(1, Spray::Ask);
        }
        let role = (second % 3 != 0).then_some(want(Role::Guesser));
        let now = world.now;
        world.ends[1].want(now, peer(1), role);
        world.obey(1);
        world.run(SECOND);
    }
    let all = world.count(1);
    assert!(worst(&world.sent, 1) <= 250);
    assert!(all <= 2 * GUESSES as usize, "{all} in half an hour");
    // And one that moves between two places of its own.
    let before = world.count(1);
    for second in 0..600_u32 {
        let places = Some([GUESSER, [198, 51, 100, (second % 2) as u8].into()]);
        let guesser = Want {
            places,
            ..want(Role::Guesser)
        };
        let now = world.now;
        world.ends[1].want(now, peer(1), Some(guesser));
        world.hear(1, Spray::Ask);
        world.run(SECOND);
    }
    let all = world.count(1) - before;
    assert!(all <= 2 * GUESSES as usize, "{all} in ten minutes");
}

#[test]
fn one_peer_is_searched_at_a_time_and_the_others_wait() {
    let (start, mut sprays) = (some_moment(), Sprays::default());
    for n in 1..=3 {
        sprays.want(start, peer(n), Some(want(Role::Opener)));
    }
    let now = start + SETTLE;
    let aim = SocketAddrV4::new(GUESSER, 4100);
    for _ in 0..3 {
        sprays.handle_timeout(now, &|_| Some(aim));
    }
    assert_eq!(sprays.stats(now).waiting, 3);
    assert_eq!((1..=3).filter(|n| sprays.is_running(peer(*n))).count(), 1);
    sprays.heard(now, peer(1), Spray::Go, &|_| Some(aim), &mut |b| b.fill(0));
    // Who is not asked opens nothing, and who asks meanwhile is put off.
    sprays.heard(now, peer(2), Spray::Go, &|_| Some(aim), &mut |b| b.fill(0));
    sprays.want(now, peer(4), Some(want(Role::Guesser)));
    sprays.heard(now, peer(4), Spray::Ask, &|_| Some(aim), &mut |b| b.fill(0));
    let all: Vec<Output> = std::iter::from_fn(|| sprays.poll()).collect();
    let opened = all.iter().filter(|o| matches!(o, Output::Open { .. }));
    assert_eq!(opened.count(), 1);
    let word = Spray::Later;
    assert_eq!(
        all.last(),
        Some(&Output::Say {
            peer: peer(4),
            word
        })
    );
    assert_eq!(sprays.stats(now).waiting, 4);
    // Ordinary probes to the host that is searched count as well.
    let host = IpAddr::V4(GUESSER);
    let taken = (0..1000).filter(|_| sprays.may_probe(now, host) == Some(true));
    assert_eq!(taken.count(), 10);
    assert_eq!(sprays.may_probe(now, OPENER.into()), None);
    // The next one's turn comes when the path is there.
    sprays.direct(now, peer(1));
    assert_eq!(sprays.poll(), Some(Output::Over { peer: peer(1) }));
    assert_eq!((sprays.stats(now).found, sprays.stats(now).waiting), (1, 3));
    sprays.handle_timeout(now, &|_| Some(aim));
    assert!(sprays.is_running(peer(2)));
    sprays.forget(now, peer(2));
    assert!(!sprays.is_waiting(now, peer(2)));
}

#[test]
fn a_lost_answer_is_asked_for_again_and_silence_ends_the_turn() {
    let mut world = World::new(8);
    world.talk = false;
    world.run(3 * SECOND);
    assert!(world.ends[0].is_running(peer(2)));
    // The first Go was lost.
    world.hear(1, Spray::Ask);
    world.obey(1);
    world.talk = true;
    world.run(SECOND);
    assert_eq!(world.begun[0].len(), 1);
    let mut silent = World::new(9);
    silent.talk = false;
    silent.run(120 * SECOND);
    assert!(silent.sent.is_empty());
    assert!(!silent.ends[0].is_running(peer(2)));
}

#[test]
fn only_a_symmetric_nat_and_one_that_is_not_search() {
    let facts = |mapping, filtering| NatFacts {
        mapping,
        filtering,
        ..NatFacts::default()
    };
    let hard = facts(Mapping::Dependent { step: None }, Filtering::Unknown);
    for mapping in [Mapping::Independent, Mapping::Open] {
        let easy = facts(mapping, Filtering::AddressAndPortDependent);
        assert_eq!(role(&hard, &easy), Some(Role::Opener));
        assert_eq!(role(&easy, &hard), Some(Role::Guesser));
        for open in [Filtering::Independent, Filtering::AddressDependent] {
            assert_eq!(role(&hard, &facts(mapping, open)), None, "{open:?}");
        }
        assert_eq!(role(&easy, &easy), None);
    }
    assert_eq!(role(&hard, &hard), None);
    assert_eq!(role(&hard, &NatFacts::default()), None);
}

#[test]
fn no_guess_is_a_port_of_a_service() {
    for counted in [
        None,
        Some((1030, -2)),
        Some((65_530, 32)),
        Some((5000, i16::MIN)),
    ] {
        for number in 0..GUESSES {
            assert!(guessed(PORTS - 1, number, counted) >= 1024);
        }
    }
}
