//! Members that are connected to a few others each, with messages that are lost, members that come and go, and some that pass
//! nothing on. The decisions are those of the daemon: whom a member is connected to ([`Neighbours`]), whom it tells and
//! compares with ([`Spread`]), and how a difference is found ([`Differing`]).

#[path = "crowd/exchange.rs"]
mod exchange;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use byway::model::id::PeerId;
use byway::model::members::{Identity, Subnet};
use byway::model::neighbours::{EVERYBODY, Known, Neighbours};
use byway::model::ranges::{Differing, Short, answer};
use byway::model::record::{Digest, Verified};
use byway::model::spread::Spread;
use byway::model::state::State;
use byway::model::subnet::Records;
use byway::testing::{Dice, fill, identity_of};
use byway::wire::control::{self, ControlAnswer, ControlRequest, set_hash, short};
use byway::wire::ranges::{Answer, Question};

use super::world::{World, draft};

/// What a message costs beside its body: headers of IP, UDP and QUIC, the stream's negotiation, and its acknowledgement.
const OVERHEAD: usize = 130;
/// How long an answer is waited for, as in `service/records`.
const QUESTION: u64 = 8_000;
/// Time between a push that was not taken and the comparison that makes up for it.
const CATCH_UP: u64 = 500;
/// After how long a comparison counts as stuck.
const STUCK: u64 = 2_000;
/// Time in which a node saves what it heard and publishes what follows, before it passes it on.
const PASS_ON: u64 = 100;
/// After how long a member that went without a word is replaced as a neighbour.
pub const DEAD_AFTER: u64 = 40_000;

/// A message between two members. All of them are lost alike.
pub enum Message {
    Push(Vec<Verified>),
    Taken,
    Compare(Digest),
    Same,
    Different,
    Ranges(Question),
    Found(Answer, Vec<Verified>),
}

pub enum Event {
    /// The node's next comparison is due.
    Turn(usize),
    /// The node passes on what it has heard.
    Pass(usize),
    Arrives {
        from: usize,
        to: usize,
        message: Message,
    },
    /// The answer of the second to what the first asked, or to its push, has not come in time.
    Overdue(usize, usize, bool, u64),
    /// The node compares with that one now.
    Compare(usize, usize),
    /// Somebody goes, or comes back.
    Churn,
    Returns(usize),
    /// A node that went is taken for dead by its neighbours.
    Dead(usize),
}

/// A comparison that a node asks for.
struct Asking {
    records: Records,
    salt: Short,
    differing: Option<Differing>,
    /// What was sent to the other, and what was taken from it, in this round.
    moved: bool,
    since: u64,
    /// The number of the question that is open.
    number: u64,
}

struct Member {
    state: State,
    spread: Spread,
    hash: Option<Digest>,
    /// Since when it is there, in milliseconds; none while it is away.
    online: Option<u64>,
    /// Whether it takes everything, says that it holds the same, and passes nothing on.
    silent: bool,
    /// Whom it chose to be connected to.
    chosen: BTreeSet<usize>,
    /// Who chose it.
    chosen_by: BTreeSet<usize>,
    /// News to pass on, by who told it.
    untold: BTreeMap<Option<usize>, Vec<Verified>>,
    asking: BTreeMap<usize, Asking>,
    /// Pushes of which no answer has come.
    open: BTreeSet<(usize, u64)>,
}

/// What was sent since the counts were last taken.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sent {
    pub pushes: usize,
    pub pushed: usize,
    pub questions: usize,
    pub asked: usize,
}

pub struct Net {
    start: Instant,
    pub now: u64,
    unix: u64,
    members: Vec<Member>,
    places: BTreeMap<PeerId, usize>,
    id: byway::model::id::SubnetId,
    neighbours: Neighbours,
    away: BTreeSet<PeerId>,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    dice: Dice,
    loss: u64,
    /// Whether the two halves hear nothing of each other.
    pub split: bool,
    /// Connections between the halves that are gone, with when they are back.
    broken: BTreeMap<(usize, usize), u64>,
    /// Time between two members that go; none: nobody does.
    pub churn: Option<u64>,
    pub sent: Sent,
}

impl Net {
    pub fn new(count: usize, seed: u64) -> Net {
        let world = World::found(1, seed);
        let owner = world.nodes[0].me.key.clone();
        let mut subnet = world.nodes[0].subnets[&world.id].clone();
        let others = u32::try_from(count - 1).unwrap();
        fill(&mut subnet, &owner, others, world.now);
        let (start, id) = (Instant::now(), world.id);
        let mut dice = Dice::new(seed);
        let mut members = Vec::new();
        let mut places = BTreeMap::new();
        for n in 0..count {
            let mut state = if n == 0 {
                world.nodes[0].clone()
            } else {
                State::new(identity_of(u32::try_from(n).unwrap()))
            };
            state.absorb(draft(subnet.clone()));
            places.insert(state.me.peer, n);
            members.push(Member {
                spread: Spread::new(state.me.peer, Duration::from_secs(30), start),
                state,
                hash: None,
                online: Some(0),
                silent: n > 0 && dice.percent(3),
                chosen: BTreeSet::new(),
                chosen_by: BTreeSet::new(),
                untold: BTreeMap::new(),
                asking: BTreeMap::new(),
                open: BTreeSet::new(),
            });
        }
        let mut neighbours = Neighbours::default();
        let granted: BTreeMap<PeerId, Digest> = places.keys().map(|peer| (*peer, peer.0)).collect();
        neighbours.set(id, granted);
        let mut net = Net {
            start,
            now: 0,
            unix: world.now,
            members,
            places,
            id,
            neighbours,
            away: BTreeSet::new(),
            events: BTreeMap::new(),
            number: 0,
            dice,
            loss: 5,
            split: false,
            broken: BTreeMap::new(),
            churn: None,
            sent: Sent::default(),
        };
        for n in 0..count {
            let chosen = net.choose(n);
            net.set_chosen(n, chosen);
            let first = net.dice.below(3000);
            net.later(first, Event::Turn(n));
        }
        net
    }

    pub fn later(&mut self, after: u64, event: Event) {
        self.number += 1;
        self.events.insert((self.now + after, self.number), event);
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    /// Whom a member holds a connection to, by its own choice.
    fn choose(&self, node: usize) -> BTreeSet<usize> {
        let (homes, round_trips) = (BTreeSet::new(), BTreeMap::new());
        let known = Known {
            homes: &homes,
            round_trips: &round_trips,
            away: &self.away,
            held: &homes,
            round: 0,
        };
        let me = self.members[node].state.me.peer;
        let chosen = self.neighbours.choose(me, EVERYBODY, &known);
        let there = chosen.keys().filter(|peer| !self.away.contains(peer));
        there.map(|peer| self.places[peer]).collect()
    }

    /// Whom a member has a connection to, whoever of the two chose it.
    pub fn linked(&self, node: usize) -> BTreeSet<usize> {
        let member = &self.members[node];
        member.chosen.union(&member.chosen_by).copied().collect()
    }

    fn set_chosen(&mut self, node: usize, chosen: BTreeSet<usize>) {
        let former = std::mem::replace(&mut self.members[node].chosen, chosen.clone());
        for other in former.difference(&chosen) {
            self.members[*other].chosen_by.remove(&node);
        }
        for other in chosen {
            self.members[other].chosen_by.insert(node);
        }
    }

    /// A member chooses anew; it and those who are new to it compare.
    fn choose_anew(&mut self, node: usize) {
        let chosen = self.choose(node);
        let new: Vec<usize> = chosen.difference(&self.linked(node)).copied().collect();
        self.set_chosen(node, chosen);
        for other in new {
            let after = self.dice.below(300);
            self.later(after, Event::Compare(node, other));
            self.later(after, Event::Compare(other, node));
        }
    }

    fn records(&self, node: usize) -> &Records {
        &self.members[node].state.subnets[&self.id].records
    }

    fn hash(&mut self, node: usize) -> Digest {
        if self.members[node].hash.is_none() {
            let hash = set_hash(self.records(node).index().keys());
            self.members[node].hash = Some(hash);
        }
        self.members[node].hash.unwrap()
    }

    pub fn peer(&self, node: usize) -> PeerId {
        self.members[node].state.me.peer
    }

    fn hear_each_other(&self, a: usize, b: usize) -> bool {
        let both = |n: usize| self.members[n].online.is_some();
        let back = self.broken.get(&(a.min(b), a.max(b)));
        let apart = self.split && a % 2 != b % 2;
        both(a) && both(b) && !apart && back.is_none_or(|back| self.now >= *back)
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let subnet = self.id;
        let body = match &message {
            Message::Push(records) => {
                let records = records.iter().map(|r| r.signed().clone()).collect();
                control::encode(&ControlRequest::Push { subnet, records }).len()
            }
            Message::Taken => control::encode(&ControlAnswer::Done).len(),
            Message::Compare(hash) => control::encode(&ControlRequest::Compare {
                subnet,
                hash: *hash,
            })
            .len(),
            Message::Same | Message::Different => 1,
            Message::Ranges(question) => question.encode().len() + 30,
            Message::Found(answer, _) => answer.encode().len() + 14,
        };
        match &message {
            Message::Push(_) | Message::Taken => {
                self.sent.pushes += 1;
                self.sent.pushed += body + OVERHEAD;
            }
            _ => {
                self.sent.questions += 1;
                self.sent.asked += body + OVERHEAD;
            }
        }
        if self.dice.percent(self.loss) || !self.hear_each_other(from, to) {
            return;
        }
        let after = 10 + self.dice.below(90);
        self.later(after, Event::Arrives { from, to, message });
    }

    fn push(&mut self, from: usize, to: usize, records: Vec<Verified>) {
        self.send(from, to, Message::Push(records));
        self.number += 1;
        let number = self.number;
        self.members[from].open.insert((to, number));
        self.later(QUESTION, Event::Overdue(from, to, true, number));
    }

    /// Takes records in; what is new is passed on in a moment.
    fn take(&mut self, node: usize, from: Option<usize>, records: &[Verified]) -> bool {
        if let Some(from) = from {
            let peer = self.peer(from);
            let spread = &mut self.members[node].spread;
            records.iter().for_each(|r| spread.heard(peer, r.digest()));
        }
        let Some((draft, news)) = self.members[node].state.take(self.id, records) else {
            return false;
        };
        let member = &mut self.members[node];
        member.state.absorb(draft);
        member.hash = None;
        if member.untold.is_empty() && !member.silent {
            self.later(PASS_ON, Event::Pass(node));
        }
        let untold = self.members[node].untold.entry(from).or_default();
        untold.extend(news);
        true
    }

    fn pass(&mut self, node: usize) {
        let untold = std::mem::take(&mut self.members[node].untold);
        if self.members[node].online.is_none() || self.members[node].silent {
            return;
        }
        let now = self.instant();
        self.members[node].spread.changed(now);
        for (from, records) in untold {
            let linked = self.linked(node).into_iter();
            let others = linked.filter(|other| Some(*other) != from);
            let peers: Vec<PeerId> = others.map(|other| self.peer(other)).collect();
            let news: Vec<Digest> = records.iter().map(Verified::digest).collect();
            let spread = &self.members[node].spread;
            for peer in spread.receivers(peers, &news, from.is_none()) {
                self.push(node, self.places[&peer], records.clone());
            }
        }
    }

    /// A member says something of its own.
    pub fn change(&mut self, node: usize, act: impl FnOnce(&mut Subnet, &Identity, u64)) -> Digest {
        let me = self.members[node].state.me.clone();
        let mut subnet = self.members[node].state.edit(&self.id.to_string()).unwrap();
        let before = subnet.records.clone();
        self.unix += 1;
        act(&mut subnet, &me, self.unix);
        let after = subnet.records.verified();
        let news: Vec<Verified> = after.filter(|r| !before.knows(&r.digest())).collect();
        self.members[node].state.absorb(draft(subnet));
        self.members[node].hash = None;
        let last = news.last().unwrap().digest();
        self.members[node].untold.insert(None, news);
        self.later(PASS_ON, Event::Pass(node));
        last
    }

    fn goes(&mut self) {
        let count = self.members.len();
        let node = 1 + self.dice.index(count - 1);
        if self.members[node].online.take().is_some() {
            self.members[node].asking.clear();
            self.members[node].open.clear();
            self.later(DEAD_AFTER, Event::Dead(node));
            let back = 20_000 + self.dice.below(40_000);
            self.later(back, Event::Returns(node));
        }
    }

    fn returns(&mut self, node: usize) {
        self.members[node].online = Some(self.now);
        let was_dead = self.away.remove(&self.peer(node));
        if was_dead {
            self.choose_anew(node);
            let others: Vec<usize> = self.linked(node).into_iter().collect();
            others.into_iter().for_each(|n| self.choose_anew(n));
        } else {
            // Its neighbours dial it as soon as its connections are gone, and compare.
            for other in self.linked(node) {
                let after = self.dice.below(2000);
                self.later(after, Event::Compare(node, other));
            }
        }
    }

    fn dead(&mut self, node: usize) {
        if self.members[node].online.is_none() {
            let linked: Vec<usize> = self.linked(node).into_iter().collect();
            self.away.insert(self.peer(node));
            self.set_chosen(node, BTreeSet::new());
            linked.into_iter().for_each(|other| self.choose_anew(other));
        }
    }

    fn turn(&mut self, node: usize) {
        let linked = self.linked(node);
        let peers: Vec<PeerId> = linked.iter().map(|n| self.peer(*n)).collect();
        let (now, random) = (self.instant(), self.dice.roll());
        if self.members[node].online.is_some()
            && let Some(peer) = self.members[node].spread.next(peers, now, random)
        {
            let (hash, id) = (self.hash(node), self.id);
            if !self.members[node].spread.was_asked(peer, id, &hash, now) {
                self.compare(node, self.places[&peer]);
            }
        }
        let due = self.members[node].spread.due();
        let after = due.saturating_duration_since(now).as_millis();
        self.later(u64::try_from(after).unwrap().max(1), Event::Turn(node));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Turn(node) => self.turn(node),
            Event::Pass(node) => self.pass(node),
            Event::Arrives { from, to, message } => self.arrives(from, to, message),
            Event::Overdue(asker, of, true, number) => {
                if self.members[asker].open.remove(&(of, number)) {
                    self.later(CATCH_UP, Event::Compare(asker, of));
                }
            }
            Event::Overdue(asker, of, false, number) => {
                let asking = &mut self.members[asker].asking;
                if asking.get(&of).is_some_and(|a| a.number == number) {
                    asking.remove(&of);
                }
            }
            Event::Compare(node, with) => self.compare(node, with),
            Event::Churn => {
                self.goes();
                if let Some(every) = self.churn {
                    self.later(every, Event::Churn);
                }
            }
            Event::Returns(node) => self.returns(node),
            Event::Dead(node) => self.dead(node),
        }
    }

    /// Lets so many milliseconds pass.
    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            self.now = entry.key().0;
            let event = entry.remove();
            self.happens(event);
        }
        self.now = end;
    }

    /// Connections between the halves come back one by one, as each pause between two dials ends, at either end.
    pub fn reconnect(&mut self) {
        for node in 0..self.members.len() {
            let linked = self.linked(node).into_iter();
            for other in linked.filter(|other| *other > node && other % 2 != node % 2) {
                let after = self.dice.below(30_000).min(self.dice.below(30_000));
                self.broken.insert((node, other), self.now + after);
                self.later(after, Event::Compare(node, other));
                self.later(after, Event::Compare(other, node));
            }
        }
    }

    /// Honest members that have been there since `since` and do not hold a record.
    pub fn without(&self, record: &Digest, since: u64) -> usize {
        let honest = self.members.iter().enumerate().filter(|(_, m)| !m.silent);
        let there = honest.filter(|(_, m)| m.online.is_some_and(|online| online <= since));
        let lacking = there.filter(|(n, _)| !self.records(*n).knows(record));
        lacking.count()
    }

    /// Runs until all that were there at `since` hold these records: the time in milliseconds, and what was sent.
    pub fn spread(&mut self, records: &[Digest], since: u64, most: u64) -> (u64, Sent) {
        let (began, before) = (self.now, self.sent);
        loop {
            let lacking = records.iter().map(|record| self.without(record, since));
            let (lacking, waited): (usize, u64) = (lacking.sum(), self.now - began);
            if lacking == 0 {
                break;
            }
            assert!(waited < most, "{lacking} do not hold it after {waited} ms");
            self.run(100);
        }
        let (now, sent) = (self.now - began, self.sent);
        let sent = Sent {
            pushes: sent.pushes - before.pushes,
            pushed: sent.pushed - before.pushed,
            questions: sent.questions - before.questions,
            asked: sent.asked - before.asked,
        };
        (now, sent)
    }

    pub fn tell(&self, what: &str, (took, sent): (u64, Sent)) {
        let count = self.members.len();
        println!(
            "{what}: {took} ms; of each member {:.1} push messages, {} B, and {:.1} of comparisons, {} B",
            sent.pushes as f64 / count as f64,
            sent.pushed / count,
            sent.questions as f64 / count as f64,
            sent.asked / count,
        );
    }
}
