//! Members that test what a NAT lets in, on a virtual clock, with a NAT of each kind before one of them.

use std::collections::BTreeSet;

use super::*;
use crate::testing::{Dice, some_moment};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const PORT: u16 = 4100;

fn peer(n: usize) -> PeerId {
    PeerId([n as u8; 32])
}

fn at(end: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, end as u8), PORT)
}

/// Number 0 stands behind the NAT; the others are members that it reaches.
struct World {
    now: Instant,
    start: Instant,
    dice: Dice,
    ends: Vec<Knocks>,
    /// Where each end is seen.
    places: Vec<SocketAddrV4>,
    kind: Filtering,
    /// Whether the NAT gives each destination another port.
    symmetric: bool,
    /// Sockets and where they have sent to.
    sent: BTreeSet<(u16, SocketAddrV4)>,
    open: BTreeSet<u16>,
    helpers: u16,
    /// Knocks that get lost, beginning with the next.
    lose: usize,
    /// Members that say that they knock, and do not.
    liars: BTreeSet<usize>,
    /// Who the asker reaches over a relay alone.
    relayed: BTreeSet<usize>,
    knocks: Vec<(Instant, usize, SocketAddrV4)>,
    found: Vec<(Duration, Filtering, Unsure)>,
}

impl World {
    fn new(members: usize, kind: Filtering) -> World {
        let now = some_moment();
        let mut world = World {
            now,
            start: now,
            dice: Dice::new(7),
            ends: (0..=members).map(|_| Knocks::default()).collect(),
            places: (0..=members).map(at).collect(),
            kind,
            symmetric: false,
            sent: BTreeSet::new(),
            open: BTreeSet::new(),
            helpers: 0,
            lose: 0,
            liars: BTreeSet::new(),
            relayed: BTreeSet::new(),
            knocks: Vec::new(),
            found: Vec::new(),
        };
        world.ends[0].news(now);
        world
    }

    fn mapped(&self, helper: u16, to: SocketAddrV4) -> SocketAddrV4 {
        let of = if self.symmetric {
            to.ip().octets()[3]
        } else {
            0
        };
        SocketAddrV4::new(*self.places[0].ip(), 40_000 + 300 * u16::from(of) + helper)
    }

    fn members(&self) -> Vec<Member> {
        let member = |end: usize| Member {
            id: peer(end),
            at: (!self.relayed.contains(&end)).then_some(self.places[end]),
            local: None,
        };
        (1..self.ends.len()).map(member).collect()
    }

    fn hear(&mut self, end: usize, from: usize, word: Knock) {
        let (now, dice) = (self.now, &mut self.dice);
        let sees = [*self.places[from].ip()];
        self.ends[end].heard(now, peer(from), word, &sees, &mut |b| dice.fill(b));
        self.obey(end);
    }

    /// A knock arrives at the socket of that end, if its token is expected.
    fn arrive(&mut self, end: usize, token: u64, from: SocketAddrV4, helper: Option<u16>) {
        let now = self.now;
        if self.ends[end].expected(now).any(|of| of == token) {
            self.ends[end].came(now, token, from.into(), helper);
            self.obey(end);
        }
    }

    fn passes(&self, helper: u16, from: SocketAddrV4) -> bool {
        let sent = self.sent.iter().filter(|(of, _)| *of == helper);
        let mut sent = sent.map(|(_, to)| *to);
        match self.kind {
            Filtering::Independent => true,
            Filtering::AddressDependent => sent.any(|to| to.ip() == from.ip()),
            _ => sent.any(|to| to == from),
        }
    }

    fn obey(&mut self, end: usize) {
        while let Some(output) = self.ends[end].poll() {
            match output {
                Output::Say { to, word } => self.hear(usize::from(to.0[0]), end, word),
                Output::Open => {
                    self.helpers += 1;
                    self.open.insert(self.helpers);
                    let now = self.now;
                    self.ends[end].opened(now, Some(self.helpers));
                }
                Output::Close { helper } => assert!(self.open.remove(&helper)),
                Output::Show {
                    helper, to, token, ..
                } => {
                    self.sent.insert((helper, to));
                    let from = self.mapped(helper, to);
                    let witness = self.places.iter().position(|place| *place == to).unwrap();
                    self.arrive(witness, token, from, None);
                }
                Output::Knock {
                    asker,
                    to,
                    token,
                    other_port,
                } => {
                    let mut from = self.places[end];
                    if other_port {
                        from.set_port(60_000);
                    }
                    let lost = self.lose > 0 || self.liars.contains(&end);
                    self.lose = self.lose.saturating_sub(1);
                    if !lost {
                        self.knocks.push((self.now, end, to));
                    }
                    let sent = self
                        .sent
                        .iter()
                        .find(|(helper, dest)| self.mapped(*helper, *dest) == to);
                    if let Some(helper) = sent
                        .map(|(helper, _)| *helper)
                        .filter(|helper| self.open.contains(helper))
                        && !lost
                        && self.passes(helper, from)
                    {
                        self.arrive(0, token, from, Some(helper));
                    }
                    self.ends[end].knocked(asker, token, true);
                }
                Output::Found {
                    filtering, unsure, ..
                } => {
                    self.found.push((self.now - self.start, filtering, unsure));
                }
            }
        }
    }

    /// Lets time pass, and looks at nothing but what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.ends[0].poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            let (now, members, dice) = (self.now, self.members(), &mut self.dice);
            self.ends[0].handle_timeout(now, &members, &mut |b| dice.fill(b));
            self.obey(0);
        }
        self.now = end;
    }

    fn last(&self) -> (Filtering, Unsure) {
        self.found
            .last()
            .map(|(_, filtering, unsure)| (*filtering, *unsure))
            .unwrap()
    }
}

const KINDS: [Filtering; 3] = [
    Filtering::Independent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];

#[test]
fn three_members_tell_each_kind_within_five_seconds() {
    for kind in KINDS {
        for symmetric in [false, true] {
            let mut world = World::new(2, kind);
            world.symmetric = symmetric;
            world.pass(5 * SECOND);
            let (after, found, _) = world.found[0];
            assert_eq!(found, kind, "symmetric: {symmetric}");
            println!("{kind:?} after {after:?}");
            assert!(after <= 5 * SECOND, "{kind:?} after {after:?}");
            assert!(world.open.is_empty(), "the socket is closed");
            // What is closed is made sure of once, then there is peace for hours.
            world.pass(5 * 3600 * SECOND);
            let tests = if kind == Filtering::Independent { 1 } else { 2 };
            assert_eq!((world.found.len(), world.last().0), (tests, kind));
        }
    }
}

#[test]
fn one_member_alone_tells_only_that_nothing_else_is_let_in() {
    for kind in KINDS {
        let mut world = World::new(1, kind);
        world.pass(10 * SECOND);
        let told = match kind {
            Filtering::AddressAndPortDependent => (kind, Unsure::default()),
            _ => (Filtering::Unknown, Unsure::NoStranger),
        };
        assert_eq!(world.last(), told, "{kind:?}");
    }
}

#[test]
fn a_stranger_that_is_reached_over_a_relay_helps_and_a_witness_there_does_not() {
    let mut world = World::new(2, Filtering::Independent);
    world.relayed.insert(2);
    world.pass(5 * SECOND);
    assert_eq!(world.last().0, Filtering::Independent);
    let mut world = World::new(2, Filtering::Independent);
    world.relayed.extend([1, 2]);
    world.pass(5 * SECOND);
    assert!(
        world.found.is_empty() && world.helpers == 0,
        "nobody is there to test with"
    );
    // One is reached directly since.
    world.relayed.remove(&1);
    let now = world.now;
    world.ends[0].news(now);
    world.pass(5 * SECOND);
    assert_eq!(world.last().0, Filtering::Independent);
}

#[test]
fn a_knock_that_is_lost_is_made_good_by_the_second_test() {
    let mut world = World::new(2, Filtering::Independent);
    world.lose = 2;
    world.pass(10 * SECOND);
    assert_eq!(world.last().0, Filtering::AddressAndPortDependent);
    world.pass(70 * SECOND);
    assert_eq!(world.last().0, Filtering::Independent);
    // Later a loss is no reason to think worse of it before it is made sure of.
    world.lose = 2;
    world.pass(6 * 3600 * SECOND + 10 * SECOND);
    assert_eq!(world.last().0, Filtering::Independent);
    assert_eq!(world.found.len(), 3, "it was tested once more");
}

#[test]
fn members_on_our_side_of_the_nat_are_no_witnesses_while_there_are_others() {
    let mut world = World::new(3, Filtering::AddressAndPortDependent);
    world.places[1] = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 7), PORT);
    world.pass(10 * SECOND);
    assert_eq!(world.last().0, Filtering::AddressAndPortDependent);
    assert!(world.sent.iter().all(|(_, to)| !to.ip().is_private()));
    assert!(world.knocks.iter().all(|(_, end, _)| *end != 1));
}

#[test]
fn a_storm_of_questions_leads_to_one_knock_a_minute_for_each_and_ten_in_all() {
    let mut world = World::new(40, Filtering::Independent);
    let to = SocketAddr::from(([203, 0, 113, 9], 50_000));
    world.places[9] = at(9);
    for n in 0..600u64 {
        let word = Knock::Ask {
            token: n + 1,
            to,
            other_port: n % 2 == 0,
        };
        world.hear(0, 9, word);
        world.now += 100 * MS;
    }
    assert_eq!(world.knocks.len(), 1, "in a minute");
    let stats = world.ends[0].stats();
    assert_eq!((stats.sent, stats.refused), (1, [599, 0, 0, 0]));
    // The same question again is answered, and nothing is sent.
    let again = world.knocks.len();
    world.hear(
        0,
        9,
        Knock::Ask {
            token: 1,
            to,
            other_port: false,
        },
    );
    assert_eq!(world.knocks.len(), again);
    // Many askers, each with its own address, for ten minutes.
    let begun = world.now;
    for n in 0..6000usize {
        let end = 1 + n % 40;
        let to = SocketAddr::from((*world.places[end].ip(), 50_000));
        world.hear(
            0,
            end,
            Knock::Ask {
                token: 10_000 + n as u64,
                to,
                other_port: false,
            },
        );
        world.now += 100 * MS;
    }
    let in_all = world.knocks.iter().filter(|(at, ..)| *at >= begun).count();
    assert!((90..=110).contains(&in_all), "{in_all} in ten minutes");
}

#[test]
fn nothing_is_sent_to_an_address_that_is_not_the_askers() {
    let mut world = World::new(2, Filtering::Independent);
    for (to, why) in [
        ("198.51.100.1:50000", 1),
        ("[2001:db8::1]:50000", 1),
        ("203.0.113.2:0", 1),
        ("203.0.113.1:50000", 1),
    ] {
        let before = world.ends[0].stats().refused;
        world.hear(
            0,
            2,
            Knock::Ask {
                token: 5,
                to: to.parse().unwrap(),
                other_port: false,
            },
        );
        let after = world.ends[0].stats().refused;
        assert_eq!(after[why], before[why] + 1, "{to}");
    }
    let now = world.now;
    let to = "203.0.113.2:50000".parse().unwrap();
    let word = Knock::Ask {
        token: 6,
        to,
        other_port: true,
    };
    world.ends[0].heard(now, peer(2), word, &[], &mut |_| {});
    assert_eq!(world.ends[0].stats().refused, [0, 4, 1, 0]);
    assert!(world.knocks.is_empty());
    // What was refused is no reason to refuse what is right.
    world.hear(0, 2, word);
    assert_eq!(world.knocks.len(), 1);
}

#[test]
fn who_lies_makes_the_result_worse_and_nothing_grow() {
    // All say that they knock, and none does.
    let mut world = World::new(3, Filtering::Independent);
    world.liars.extend([1, 2, 3]);
    world.pass(24 * 3600 * SECOND);
    assert_eq!(world.last().0, Filtering::AddressAndPortDependent);
    assert!(
        world.ends[0].stats().tests <= 10,
        "{:?}",
        world.ends[0].stats()
    );
    // One of three lies: the others are asked the second time.
    let mut world = World::new(4, Filtering::Independent);
    world.liars.extend([1, 2]);
    world.pass(100 * SECOND);
    assert_eq!(world.last().0, Filtering::Independent);
    // Words that belong to nothing are counted.
    let mut world = World::new(2, Filtering::Independent);
    let from = "198.51.100.1:1".parse().unwrap();
    for token in 0..50 {
        world.hear(0, 1, Knock::Seen { token, from });
        world.hear(0, 1, Knock::Sent { token });
        world.hear(
            0,
            1,
            Knock::Refused {
                token,
                why: Refusal::Failed,
            },
        );
        let now = world.now;
        world.ends[0].came(now, token, from, Some(3));
    }
    assert_eq!(world.ends[0].stats().stray, 200);
    assert!(world.found.is_empty() && world.knocks.is_empty() && world.helpers == 0);
}

#[test]
fn a_witness_that_names_another_address_gets_nobody_to_knock_there() {
    let mut world = World::new(2, Filtering::Independent);
    let (now, members, dice) = (world.now + 2 * SECOND, world.members(), &mut world.dice);
    world.ends[0].handle_timeout(now, &members, &mut |b| dice.fill(b));
    assert_eq!(world.ends[0].poll(), Some(Output::Open));
    world.ends[0].opened(now, Some(1));
    world.open.insert(1);
    world.ends[0].handle_timeout(now, &members, &mut |_| {});
    let Some(Output::Say { to, word }) = world.ends[0].poll() else {
        panic!("the witness is not told");
    };
    let lie = Knock::Seen {
        token: word.token(),
        from: "198.51.100.1:53".parse().unwrap(),
    };
    world.now = now;
    world.hear(0, usize::from(to.0[0]), lie);
    assert!(world.knocks.is_empty());
    assert_eq!(
        world.ends[1].stats().refused[1] + world.ends[2].stats().refused[1],
        2
    );
    assert_eq!(world.last(), (Filtering::Unknown, Unsure::NoKnock));
}

#[test]
fn elsewhere_it_is_tested_anew_and_never_twice_in_a_minute() {
    let mut world = World::new(2, Filtering::Independent);
    world.pass(5 * SECOND);
    world.kind = Filtering::AddressDependent;
    for _ in 0..100 {
        let now = world.now;
        world.ends[0].moved(now, |_| false);
        world.obey(0);
        world.pass(3 * SECOND);
    }
    let tests = world.ends[0].stats().tests;
    assert!(tests <= 6, "{tests} tests in five minutes of roaming");
    world.pass(70 * SECOND);
    assert_eq!(world.last().0, Filtering::AddressDependent);
    // Where another address of ours is gone, this one is not tested for it.
    let (tests, now) = (world.ends[0].stats().tests, world.now);
    world.ends[0].moved(now, |local| local.is_none());
    world.pass(3600 * SECOND);
    assert!(world.ends[0].stats().tests <= tests + 1, "to make sure");
}

#[test]
fn what_is_expected_of_members_is_bounded_and_ends() {
    let mut world = World::new(100, Filtering::Independent);
    for end in 1..=100 {
        world.hear(0, end, Knock::Expect { token: end as u64 });
        world.hear(
            0,
            end,
            Knock::Expect {
                token: 1000 + end as u64,
            },
        );
    }
    let now = world.now;
    let expected: Vec<u64> = world.ends[0].expected(now).collect();
    assert_eq!(expected.len(), MAX_EXPECTED / 2);
    assert!(
        expected.iter().all(|token| *token > 1000),
        "the later one counts"
    );
    assert_eq!(world.ends[0].expected(now + EXPECTED_FOR).count(), 0);
    world.ends[0].forget(peer(1));
    assert_eq!(world.ends[0].expected(now).count(), MAX_EXPECTED / 2 - 1);
}
