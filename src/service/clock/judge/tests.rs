//! Machines whose clocks are set and whose seconds pass as a test says.

use std::time::Duration;

use super::super::Held;
use super::*;
use crate::model::join::Ask;
use crate::model::members::Identity;
use crate::model::record::{Admission, Role};
use crate::model::state::{Founding, State};
use crate::testing::founding;

const YEARS: i64 = 730 * 86_400;
const DAY: i64 = 86_400_000;
const HOME: SubnetId = SubnetId([1; 16]);
const FOREIGN: SubnetId = SubnetId([2; 16]);

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

/// A subnet where all of these are, by rank, and nobody is away.
fn ranks(owner: &[u8], admins: &[u8], plain: &[u8]) -> Voices {
    let ranks =
        [owner, admins, plain].map(|rank| rank.iter().copied().map(peer).collect::<Vec<_>>());
    let members = Arc::new(ranks.iter().flatten().copied().collect());
    Voices {
        ranks,
        members,
        guests: false,
    }
}

/// A subnet of plain members.
fn plain(members: &[u8]) -> Voices {
    ranks(&[], &[], members)
}

/// A machine and what it knows of others.
struct Machine {
    start: Instant,
    passed: u64,
    ahead: i64,
    held: Held,
    opinion: Opinion,
    subnets: BTreeMap<SubnetId, Voices>,
    /// What members say: how far their clocks are ahead of the right time.
    others: BTreeMap<PeerId, i64>,
}

impl Machine {
    fn new() -> Machine {
        let start = Instant::now();
        let opinion = Opinion::new(Reading {
            unix_ms: 1_800_000_000_000,
            at: start,
        });
        let (subnets, others) = (BTreeMap::new(), BTreeMap::new());
        Machine {
            start,
            passed: 0,
            ahead: 0,
            held: Held::default(),
            opinion,
            subnets,
            others,
        }
    }

    /// Long after the start, with one member that agrees.
    fn in_peace() -> Machine {
        let mut machine = Machine::new();
        machine.subnets = BTreeMap::from([(HOME, plain(&[1]))]);
        for _ in 0..100 {
            machine.answer();
            machine.second();
        }
        assert!(!machine.words()[&HOME].doubted);
        machine
    }

    /// In these two subnets, where members whose numbers are above 100 say a time 150 s ahead, and all others the right one.
    fn between(home: Voices, foreign: Voices) -> Machine {
        let mut machine = Machine::new();
        let said = |peer: &PeerId| (*peer, if peer.0[0] > 100 { 150 } else { 0 });
        machine.others = [&home, &foreign]
            .into_iter()
            .flat_map(|s| s.members.iter())
            .map(said)
            .collect();
        machine.subnets = BTreeMap::from([(HOME, home), (FOREIGN, foreign)]);
        machine
    }

    fn clock(&self) -> Reading {
        let unix_ms = (1_800_000_000 + self.passed).saturating_add_signed(self.ahead) * 1000;
        Reading {
            unix_ms,
            at: self.start + Duration::from_secs(self.passed),
        }
    }

    /// Everybody who is there says what its clock shows.
    fn answer(&mut self) {
        for peer in self.connected() {
            let theirs = self.others.get(&peer).copied().unwrap_or(0);
            self.held
                .offsets
                .insert(peer, ((theirs - self.ahead) * 1000, self.clock()));
        }
    }

    fn connected(&self) -> Vec<PeerId> {
        self.subnets
            .values()
            .flat_map(|s| s.ranks.iter().flatten())
            .copied()
            .collect()
    }

    /// Nobody of a subnet is there any more; all are members as before.
    fn deserted(&mut self, subnet: SubnetId) {
        for rank in self
            .subnets
            .get_mut(&subnet)
            .into_iter()
            .flat_map(|s| s.ranks.iter_mut())
        {
            rank.clear();
        }
    }

    /// A second passes; whether the clock is doubted at home then.
    fn second(&mut self) -> bool {
        self.passed += 1;
        self.words()[&HOME].doubted
    }

    /// So do some, while everybody answers; what is thought at home and in the foreign subnet then.
    fn seconds(&mut self, count: u64) -> [Word; 2] {
        for _ in 0..count {
            self.answer();
            self.second();
        }
        let words = self.words();
        [words[&HOME], words[&FOREIGN]]
    }

    fn words(&mut self) -> BTreeMap<SubnetId, Word> {
        let (clock, mut connected) = (self.clock(), self.connected());
        connected.sort_unstable();
        let known = self.held.fresh(&connected, clock);
        self.opinion.judge(clock, &self.subnets, &known)
    }
}

const BELIEVED: Word = Word {
    doubted: false,
    agreed: true,
};
const DOUBTED: Word = Word {
    doubted: true,
    agreed: false,
};
const UNSURE: Word = Word {
    doubted: false,
    agreed: false,
};

#[test]
fn most_members_decide_whose_clock_is_wrong() {
    let verdict = |known: &[(PeerId, i64)]| plain(&[1, 2, 3]).verdict(known);
    assert_eq!(verdict(&[]), Verdict::Divided);
    assert_eq!(verdict(&[(peer(1), 900)]), Verdict::Agreed);
    assert_eq!(
        verdict(&[(peer(1), 60_000)]),
        Verdict::Agreed,
        "a minute is ordinary"
    );
    assert_eq!(verdict(&[(peer(1), -DAY)]), Verdict::Off);
    assert_eq!(
        verdict(&[(peer(1), DAY), (peer(2), 0)]),
        Verdict::Divided,
        "one against one tells nothing"
    );
    assert_eq!(
        verdict(&[(peer(1), DAY), (peer(2), 0), (peer(3), -5)]),
        Verdict::Agreed
    );
    assert_eq!(
        verdict(&[(peer(7), DAY), (peer(8), DAY)]),
        Verdict::Divided,
        "they are in another subnet"
    );
}

#[test]
fn the_owner_and_the_admins_are_not_outvoted_by_plain_members() {
    let subnet = ranks(&[1], &[2, 3, 4], &[5, 6, 7, 8, 9]);
    // Who is heard, and whose clocks differ.
    let verdict = |heard: &[u8], off: &[u8]| {
        let known: Vec<_> = heard
            .iter()
            .map(|n| (peer(*n), if off.contains(n) { DAY } else { 0 }))
            .collect();
        subnet.verdict(&known)
    };
    let (all, liars) = ([1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7, 8, 9]);
    assert_eq!(verdict(&all, &liars), Verdict::Agreed);
    assert_eq!(
        verdict(&[1, 5, 6, 7, 8, 9], &liars),
        Verdict::Agreed,
        "the owner alone"
    );
    assert_eq!(
        verdict(&[2, 3, 4, 5, 6, 7, 8, 9], &[4, 5, 6, 7, 8, 9]),
        Verdict::Agreed,
        "two admins of three"
    );
    assert_eq!(
        verdict(&[1, 5, 6, 7, 8, 9], &[1]),
        Verdict::Off,
        "nor is what they contradict"
    );
    assert_eq!(verdict(&[2, 3, 4, 5, 6, 7, 8, 9], &[2, 3]), Verdict::Off);
    assert_eq!(
        verdict(&[1, 2, 3, 4], &[2, 3, 4]),
        Verdict::Agreed,
        "the owner before admins"
    );
    assert_eq!(
        verdict(&[2, 3, 5, 6, 7], &[2, 5, 6]),
        Verdict::Off,
        "where admins are divided the others decide"
    );
    assert_eq!(verdict(&[2, 3, 5, 6, 7], &[2, 5]), Verdict::Agreed);
}

#[test]
fn members_of_one_subnet_stop_nothing_in_another() {
    let mut machine = Machine::between(plain(&[1]), ranks(&[101], &[102], &[103, 104]));
    assert_eq!(machine.seconds(10), [BELIEVED, DOUBTED]);
    assert!(
        !machine.opinion.contradicted(),
        "one subnet confirms the clock"
    );
    // What was said at home stands when everybody there has gone.
    machine.deserted(HOME);
    assert_eq!(machine.seconds(300), [UNSURE, DOUBTED]);
    // Nor do liars at home make a clock right elsewhere, or what is forgotten there.
    let mut machine = Machine::between(plain(&[1]), plain(&[101, 102, 103]));
    machine.ahead = 150;
    assert_eq!(machine.seconds(10), [DOUBTED, BELIEVED]);
}

#[test]
fn one_subnets_silence_stops_nothing_in_another() {
    let mut machine = Machine::between(plain(&[1]), plain(&[101]));
    for _ in 0..100 {
        machine.held.offsets.insert(peer(1), (0, machine.clock()));
        machine.second();
    }
    let words = machine.words();
    assert_eq!([words[&HOME], words[&FOREIGN]], [BELIEVED, DOUBTED]);
}

#[test]
fn where_nobody_was_ever_heard_a_clock_that_all_others_contradict_is_not_believed() {
    let mut machine = Machine::between(plain(&[1]), plain(&[101, 102]));
    machine.deserted(HOME);
    assert_eq!(machine.seconds(10), [DOUBTED, DOUBTED]);
    assert!(machine.opinion.contradicted());
    // That costs nothing: whoever comes is heard.
    machine.subnets.insert(HOME, plain(&[1]));
    assert_eq!(machine.seconds(1), [BELIEVED, DOUBTED]);
    // Nobody else is a member, so that nobody else can be harmed by what is signed, or say that the clock is right.
    let mut alone = Machine::between(plain(&[]), plain(&[101, 102]));
    assert_eq!(alone.seconds(10), [UNSURE, DOUBTED]);
    // Guests are there, and have no say: they are given their grants.
    let mut open = Machine::between(plain(&[1]), plain(&[101, 102]));
    open.deserted(HOME);
    open.subnets.get_mut(&HOME).unwrap().guests = true;
    assert_eq!(open.seconds(10), [UNSURE, DOUBTED]);
}

#[test]
fn one_liar_elsewhere_keeps_nothing_from_being_forgotten_and_liars_alone_have_nothing_forgotten() {
    let mut machine = Machine::between(plain(&[1]), plain(&[101]));
    assert_eq!(machine.seconds(10)[0], BELIEVED);
    // A clock that is wrong: what another subnet's liars say of it loses no member here.
    let mut wrong = Machine::between(ranks(&[1], &[], &[101, 102, 103]), plain(&[104]));
    wrong.ahead = 150;
    assert_eq!(wrong.seconds(10), [DOUBTED, BELIEVED]);
    wrong.deserted(HOME);
    assert_eq!(wrong.seconds(10)[0], DOUBTED);
    // One against one is no reason to lose members for good.
    let mut divided = Machine::between(plain(&[1, 101]), plain(&[2]));
    assert_eq!(divided.seconds(10)[0], UNSURE);
    // Nor is the word of those who are gone.
    divided.subnets.insert(HOME, plain(&[1]));
    assert_eq!(divided.seconds(1)[0], BELIEVED);
    divided.deserted(HOME);
    assert_eq!(divided.seconds(1)[0], UNSURE);
}

#[test]
fn the_word_of_who_was_removed_does_not_stand() {
    let mut machine = Machine::between(plain(&[101]), plain(&[1]));
    assert_eq!(machine.seconds(10)[0], DOUBTED);
    machine.deserted(HOME);
    assert_eq!(machine.seconds(10)[0], DOUBTED);
    machine.subnets.insert(
        HOME,
        Voices {
            members: Arc::new([peer(9)].into()),
            ..Voices::default()
        },
    );
    assert_eq!(machine.seconds(1)[0], UNSURE);
}

#[test]
fn who_has_a_say_follows_from_the_grants_and_seats() {
    let me = |n: u8| Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32]);
    let owner = State::new(me(1));
    let founding = Founding {
        cidr6: None,
        admission: Admission::Open,
        ..founding("lab".parse().unwrap(), "a".parse().unwrap())
    };
    let now = 1_800_000_000;
    let mut subnet = owner.found(founding, now).unwrap();
    let given = [
        (2, Role::Admin, Term::Full),
        (3, Role::Member, Term::Full),
        (4, Role::Member, Term::Ephemeral),
    ];
    for (n, role, term) in given
        .into_iter()
        .chain([5, 6, 7, 8].map(|n| (n, Role::Member, Term::Trial)))
    {
        let ask = Ask {
            subnet: subnet.records.id,
            joiner: me(n).peer,
            data_key: me(n).data_key,
            seal_key: me(n).seal_key,
            name: format!("m{n}").parse().unwrap(),
            name_is_default: true,
            ip: None,
            asked: now,
            proof: None,
        };
        subnet
            .admit(&owner.me, &ask, (role, term), &BTreeMap::new(), now)
            .unwrap();
    }
    let roll = subnet.records.roll();
    let members = Arc::new(roll.members.keys().copied().collect());
    // The last one is no member at all.
    let connected: Vec<PeerId> = (1..=9).map(|n| me(n).peer).collect();
    let voices = Voices::of(&roll, Arc::clone(&members), &connected);
    assert_eq!(
        voices.ranks,
        [
            vec![me(1).peer],
            vec![me(2).peer],
            vec![me(3).peer, me(4).peer]
        ]
    );
    // An outsider with four keys against one member; then the outsider alone, as if nobody were there.
    let mut known: Vec<_> = [3, 5, 6, 7, 8]
        .map(|n| (me(n).peer, if n == 3 { 0 } else { DAY }))
        .into();
    known.sort_unstable();
    assert_eq!(voices.verdict(&known), Verdict::Agreed);
    let guests = Voices::of(&roll, members, &connected[4..]);
    assert!(guests.guests && guests.is_empty() && guests.verdict(&known) == Verdict::Divided);
    assert!(!guests.is_silent(&[]), "nobody waits for their word");
}

#[test]
fn a_clock_that_was_set_is_doubted_until_somebody_answers_by_it() {
    for ahead in [YEARS, -YEARS, 90, -5] {
        let mut machine = Machine::in_peace();
        machine.ahead = ahead;
        // What was answered by the clock of before says nothing of this one, however long nobody answers.
        assert!((0..300).all(|_| machine.second()), "{ahead}");
        machine.answer();
        assert_eq!(machine.second(), ahead.abs() > 60, "{ahead}");
        machine.ahead = 0;
        assert!(machine.second(), "{ahead}");
        machine.answer();
        assert!(!machine.second(), "{ahead}");
    }
}

#[test]
fn a_clock_is_no_better_because_whoever_said_so_is_gone() {
    let mut machine = Machine::in_peace();
    machine.ahead = YEARS;
    machine.second();
    machine.answer();
    assert!(machine.second());
    machine.deserted(HOME);
    assert!(
        (0..300).all(|_| machine.second()),
        "nobody has said that it is right"
    );
    // Set right with nobody there to say so: what was said was of another clock.
    machine.ahead = 0;
    assert_eq!((0..10).position(|_| !machine.second()), Some(2));
}

#[test]
fn an_answer_that_is_too_old_does_not_make_a_clock_right() {
    let mut machine = Machine::in_peace();
    machine.ahead = YEARS;
    machine.second();
    machine.answer();
    assert!(
        (0..300).all(|_| machine.second()),
        "it is there and answers no more"
    );
}

#[test]
fn a_machine_that_starts_waits_a_moment_for_others() {
    let mut alone = Machine::new();
    alone.subnets = BTreeMap::from([(HOME, plain(&[]))]);
    assert_eq!((0..10).position(|_| !alone.second()), Some(1));
    let mut late = Machine::new();
    late.subnets = BTreeMap::from([(HOME, plain(&[1]))]);
    assert!((0..10).all(|_| late.second()), "it has not been answered");
    late.answer();
    assert!(!late.second());
}
