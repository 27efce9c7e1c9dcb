//! Letting others in: the questions of strangers. This node's own joins are in `own_joins.rs`.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Core;
use super::check::{Asked, Question};
use super::nonces::Way;
use crate::api::types::Error;
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::{Ask, Proof, lookup};
use crate::model::members::{MAX_REQUESTS, REQUEST_LIFE, Request, Subnet};
use crate::model::record::{Admission, Grant, Role, Signed, Term, Verified};
use crate::model::resolve::SKEW;
use crate::model::source::Payer;
use crate::model::state::{Draft, RELEASED};
use crate::wire::control::{JoinAnswer, answer};

/// Requests that wait of one source, and of one member who passes them on.
const REQUESTS_EACH: (usize, usize) = (4, 16);
/// Requests that wait of one site: an IPv6 /48.
const REQUESTS_OF_SITE: usize = 8;
/// A request that nobody has repeated for so many seconds may go for a new one: who waits repeats it every five.
const SILENT: u64 = 60;

/// Members that an open subnet takes in a minute.
const OPENED_PER_MINUTE: usize = 60;

/// What to say to a joiner whose clock differs from this node's by more than grants allow for: it would be let in and could
/// not come. Asked before anything is used up. A clock that was never set takes its time from the records.
fn clocks_differ(asked: u64, now: u64) -> Option<String> {
    let off = asked.abs_diff(now);
    let way = if asked > now { "ahead" } else { "behind" };
    (off > SKEW && asked >= RELEASED && now >= RELEASED).then(|| {
        format!(
            "the clocks of the two machines differ by {off} s: the joining one is {way}; set the one that is wrong and join \
             again, nothing was used up"
        )
    })
}

/// What to do with a stranger's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinDecision {
    /// Answer it.
    Answer(JoinAnswer),
    /// Pass it on to the first of these that is connected, and its answer back.
    Forward(Vec<PeerId>),
}

/// Whether a grant is due and has not run out, as far as clocks agree.
fn is_valid(grant: &Grant, now: u64) -> bool {
    grant.not_before.saturating_sub(SKEW) <= now && now < grant.not_after
}

fn refused(error: &crate::model::error::Error) -> JoinAnswer {
    JoinAnswer::Refused {
        code: error.code.into(),
        message: error.message.clone(),
    }
}

fn refuse(code: impl AsRef<str>, message: &str) -> JoinDecision {
    JoinDecision::Answer(JoinAnswer::Refused {
        code: code.as_ref().to_owned(),
        message: message.to_owned(),
    })
}

impl Core {
    /// Decides about a request of the join protocol. `from` is who sent it, `payer` who is charged for it; `passed_on`
    /// says that a member forwarded it, and then it is not forwarded again.
    pub fn decide_join(
        &mut self,
        from: PeerId,
        payer: Payer,
        question: &Question,
        passed_on: bool,
    ) -> JoinDecision {
        // The connection proves who asks; a member vouches for whom it passes on, in its own subnets only. Without that,
        // anybody could use up another's attempts, or repeat a question it overheard and read the answer.
        let (subnet, joiner) = match question.asked() {
            Asked::Probe(subnet) | Asked::Show { subnet, .. } => (*subnet, from),
            Asked::Nonce { subnet, joiner, .. } | Asked::Withdraw { subnet, joiner } => {
                (*subnet, *joiner)
            }
            Asked::Ask { ask, .. } => (ask.subnet, ask.joiner),
            Asked::Decline(record) => (record.signed().subnet, record.signed().issuer),
            // Whoever knows a subnet answers itself.
            Asked::Genesis(_) if passed_on => return JoinDecision::Answer(JoinAnswer::Unknown),
            Asked::Genesis(wanted) => return JoinDecision::Answer(self.genesis_of(*wanted)),
        };
        let vouched = if passed_on {
            self.is_member(subnet, from)
        } else {
            joiner == from
        };
        if !vouched {
            return refuse(Code::Ask, "the join request does not come from who asks");
        }
        match question.asked() {
            Asked::Probe(subnet) => JoinDecision::Answer(self.probe(*subnet, from)),
            Asked::Decline(record) => JoinDecision::Answer(self.take_back(record)),
            Asked::Show { subnet, news } => JoinDecision::Answer(self.hear(*subnet, from, news)),
            Asked::Genesis(wanted) => JoinDecision::Answer(self.genesis_of(*wanted)),
            Asked::Nonce {
                subnet,
                issuer,
                joiner,
            } => {
                if !self.state.subnets.contains_key(subnet) {
                    JoinDecision::Answer(JoinAnswer::Unknown)
                } else if *issuer == self.state.me.peer {
                    self.give_nonce(
                        Way {
                            subnet: *subnet,
                            joiner: *joiner,
                            from,
                        },
                        payer,
                    )
                } else if passed_on {
                    JoinDecision::Answer(JoinAnswer::Unknown)
                } else {
                    JoinDecision::Forward(vec![*issuer])
                }
            }
            Asked::Withdraw { subnet, joiner } => {
                self.withdrawn((*subnet, *joiner), payer, passed_on)
            }
            Asked::Ask { ask, proven } => self.decide_ask((ask, *proven), from, payer, passed_on),
        }
    }

    /// The genesis of a subnet that is or was here, for who knows its ID.
    fn genesis_of(&self, wanted: [u8; 16]) -> JoinAnswer {
        let here = self
            .state
            .subnets
            .iter()
            .map(|(id, s)| (id, &s.local.genesis));
        let past = self.state.past.iter().map(|p| (&p.id, &p.genesis));
        let found = here.chain(past).find(|(id, _)| lookup(**id) == wanted);
        found.map_or(JoinAnswer::Unknown, |(_, genesis)| {
            JoinAnswer::Genesis(genesis.clone())
        })
    }

    fn probe(&mut self, id: SubnetId, from: PeerId) -> JoinAnswer {
        if let Some(past) = self
            .state
            .past
            .iter()
            .find(|p| p.id == id && !p.proof.is_empty())
        {
            return JoinAnswer::Ended {
                genesis: past.genesis.clone(),
                heads: past.proof.clone(),
            };
        }
        let Some(subnet) = self.state.subnets.get(&id) else {
            return JoinAnswer::Unknown;
        };
        let (destroyed, genesis) = (subnet.records.destroyed(), subnet.local.genesis.clone());
        let proof = subnet.records.proof_about(from);
        if destroyed
            || self
                .roll(id)
                .is_some_and(|roll| roll.out.contains_key(&from))
        {
            return JoinAnswer::Ended {
                genesis,
                heads: proof,
            };
        }
        JoinAnswer::Known
    }

    /// A joiner that was let in and cannot come gives its leases back.
    fn take_back(&mut self, record: &Verified) -> JoinAnswer {
        let leaves = matches!(record, Verified::Doc(doc) if doc.body().left.is_some());
        let subnet = record.signed().subnet;
        if !leaves || !self.state.subnets.contains_key(&subnet) {
            return JoinAnswer::Unknown;
        }
        match self.take(subnet, vec![record.clone()], None) {
            Ok(verdict) if verdict.waiting => JoinAnswer::Refused {
                code: Code::Rate.into(),
                message: "too many documents; say it again".into(),
            },
            Ok(_) => JoinAnswer::Known,
            Err(error) => JoinAnswer::Refused {
                code: error.code,
                message: error.message,
            },
        }
    }

    /// What a stranger shows: a head of the owner's, or its own grant or its own revocation of who removed it, with the
    /// head that names the issuer. Nothing else of a stranger's is looked at, and what is not new costs no signature check.
    fn hear(&mut self, id: SubnetId, from: PeerId, news: &[Verified]) -> JoinAnswer {
        let Some(subnet) = self.state.subnets.get(&id) else {
            return JoinAnswer::Unknown;
        };
        let owner = subnet.records.genesis.owner;
        let is_head = |record: &&Verified| {
            matches!(record, Verified::Head(_)) && record.signed().issuer == owner
        };
        let heads: Vec<Verified> = news.iter().filter(is_head).cloned().collect();
        if let Err(error) = self.take_shown(id, heads, from) {
            return error;
        }
        // A revocation is judged by the head that came with it.
        let Some(subnet) = self.state.subnets.get(&id) else {
            return JoinAnswer::Unknown;
        };
        let shown = |record: &&Verified| match record {
            Verified::Grant(grant) => grant.body().subject == from,
            Verified::Revocation(revocation) => {
                record.signed().issuer == from
                    && subnet.records.takes_returned(revocation.body(), from)
            }
            _ => false,
        };
        let words: Vec<Verified> = news.iter().filter(shown).cloned().collect();
        if let Err(error) = self.take_shown(id, words, from) {
            return error;
        }
        if !self
            .roll(id)
            .is_some_and(|roll| roll.members.contains_key(&from))
        {
            return self.outdated(id, from);
        }
        if !self.is_member(id, from) {
            // It will ask as a member at once, and must be known as one by then.
            self.publish();
        }
        JoinAnswer::Known
    }

    fn take_shown(
        &mut self,
        id: SubnetId,
        records: Vec<Verified>,
        from: PeerId,
    ) -> Result<(), JoinAnswer> {
        if records.is_empty() {
            return Ok(());
        }
        let refused = |error: Error| JoinAnswer::Refused {
            code: error.code,
            message: error.message,
        };
        self.take(id, records, Some(from))
            .map(drop)
            .map_err(refused)
    }

    /// What to answer who believes that it is a member and is none: the owner's last word, which says so.
    fn outdated(&self, id: SubnetId, from: PeerId) -> JoinAnswer {
        let Some(subnet) = self.state.subnets.get(&id) else {
            return JoinAnswer::Unknown;
        };
        JoinAnswer::Ended {
            genesis: subnet.local.genesis.clone(),
            heads: subnet.records.proof_about(from),
        }
    }

    /// What shows this node to a member that does not know it: the owner's head, and this node's own grant.
    pub fn to_show(&self, id: SubnetId) -> Vec<Signed> {
        let Some(subnet) = self.state.subnets.get(&id) else {
            return vec![];
        };
        let proof = subnet.records.proof_about(self.state.me.peer);
        let mut shown: Vec<Signed> = proof
            .iter()
            .filter(|r| r.body.first() == Some(&1))
            .take(1)
            .cloned()
            .collect();
        let roll = subnet.records.roll();
        let mine = roll
            .members
            .get(&self.state.me.peer)
            .and_then(|entry| entry.best());
        shown.extend(mine.map(|granted| granted.signed().clone()));
        shown
    }

    /// What this node shows to a member in whose eyes it is out: each of its own revocations of who removed it, with the
    /// owner's head that names both.
    pub fn to_return(&self, id: SubnetId) -> Vec<Vec<Signed>> {
        let Some(subnet) = self.state.subnets.get(&id) else {
            return vec![];
        };
        let head = subnet.records.head_records().into_iter().next();
        let returned = subnet.records.returned_by(self.state.me.peer);
        returned
            .into_iter()
            .map(|revocation| head.clone().into_iter().chain([revocation]).collect())
            .collect()
    }

    fn give_nonce(&mut self, way: Way, payer: Payer) -> JoinDecision {
        let mut nonce = [0u8; 16];
        if getrandom::fill(&mut nonce).is_err() {
            return refuse(Code::Random, "no randomness on this machine");
        }
        if !self.nonces.give(way, payer, nonce, Instant::now()) {
            return refuse(
                Code::InviteRate,
                "too many attempts with invites; wait a minute",
            );
        }
        JoinDecision::Answer(JoinAnswer::Nonce(nonce))
    }

    /// Who asked wants it no more. Where it was approved meanwhile it gets what it was given, and gives that back. What a
    /// member passes on takes back only what came by that member.
    fn withdrawn(
        &mut self,
        (id, joiner): (SubnetId, PeerId),
        payer: Payer,
        passed_on: bool,
    ) -> JoinDecision {
        let Some(roll) = self.roll(id) else {
            return JoinDecision::Answer(JoinAnswer::Unknown);
        };
        let Some(mut subnet) = self.state.subnets.get(&id).cloned() else {
            return JoinDecision::Answer(JoinAnswer::Unknown);
        };
        let now = self.now();
        if roll
            .members
            .get(&joiner)
            .is_some_and(|entry| entry.at(|grant| is_valid(grant, now)).is_some())
        {
            return JoinDecision::Answer(bundle(&subnet, joiner, now));
        }
        let (me, owner) = (self.state.me.peer, subnet.records.genesis.owner);
        if me != owner && !roll.is_admin(me) {
            let deciders = || {
                [owner]
                    .into_iter()
                    .chain(roll.admins.iter().copied())
                    .collect()
            };
            let unheard = JoinDecision::Answer(JoinAnswer::Pending { reached: false });
            return if passed_on {
                unheard
            } else {
                JoinDecision::Forward(deciders())
            };
        }
        if subnet
            .requests
            .get(&joiner)
            .is_some_and(|request| !passed_on || request.payer == payer)
        {
            tracing::info!("{}: {} asks to join no more", subnet.name(), joiner);
            subnet.requests.remove(&joiner);
            let mut draft = Draft::default();
            draft.put(subnet);
            // Requests are not saved: nothing can be refused.
            if let Err(error) = self.commit(draft) {
                return refuse(&error.code, &error.message);
            }
        }
        JoinDecision::Answer(JoinAnswer::Known)
    }

    /// `proven`: whether the proof in it holds for what it names.
    fn decide_ask(
        &mut self,
        (ask, proven): (&Ask, bool),
        from: PeerId,
        payer: Payer,
        passed_on: bool,
    ) -> JoinDecision {
        let now = self.now();
        let Some(subnet) = self.state.subnets.get(&ask.subnet) else {
            return JoinDecision::Answer(self.probe(ask.subnet, ask.joiner));
        };
        let (me, owner) = (self.state.me.peer, subnet.records.genesis.owner);
        let Some(roll) = self.roll(ask.subnet) else {
            return JoinDecision::Answer(JoinAnswer::Unknown);
        };
        if roll.destroyed {
            return JoinDecision::Answer(self.probe(ask.subnet, ask.joiner));
        }
        // Whose grant has run out, or is not due, may ask for another.
        let valid = |g: &Grant| is_valid(g, now);
        let holds = |peer: PeerId| {
            roll.members
                .get(&peer)
                .is_some_and(|e| peer == owner || e.at(valid).is_some())
        };
        if holds(ask.joiner) {
            let subnet = self.state.subnets.get(&ask.subnet);
            return JoinDecision::Answer(
                subnet.map_or(JoinAnswer::Unknown, |s| bundle(s, ask.joiner, now)),
            );
        }
        let decides = match &ask.proof {
            Some(proof) => proof.issuer == me,
            None => me == owner || (roll.is_admin(me) && holds(me)),
        };
        if let Some(message) = clocks_differ(ask.asked, now).filter(|_| decides) {
            return refuse(Code::Clock, &message);
        }
        match &ask.proof {
            Some(proof) if proof.issuer == self.state.me.peer => {
                JoinDecision::Answer(self.redeem(ask, proof, proven, from, now))
            }
            Some(proof) if !passed_on => JoinDecision::Forward(vec![proof.issuer]),
            None if decides => JoinDecision::Answer(self.consider(ask, payer, now)),
            None if !passed_on => {
                let mut deciders: Vec<PeerId> = vec![owner];
                deciders.extend(roll.admins.iter().copied());
                JoinDecision::Forward(deciders)
            }
            _ => JoinDecision::Answer(JoinAnswer::Pending { reached: false }),
        }
    }

    /// Admits by an invite this node issued: one winner per use.
    fn redeem(
        &mut self,
        ask: &Ask,
        proof: &Proof,
        proven: bool,
        from: PeerId,
        now: u64,
    ) -> JoinAnswer {
        let nonce = self.nonces.take(
            Way {
                subnet: ask.subnet,
                joiner: ask.joiner,
                from,
            },
            Instant::now(),
        );
        let unknown = || JoinAnswer::Refused {
            code: Code::InviteUnknown.into(),
            message: "this invite was not issued here, or is forged".into(),
        };
        let Some(nonce) = nonce else {
            return JoinAnswer::Refused {
                code: Code::InviteStale.into(),
                message: "the attempt took too long; try again".into(),
            };
        };
        // The proof is one of what it names; it has to name this attempt.
        if !proven || proof.issuer != self.state.me.peer || proof.nonce != nonce {
            return unknown();
        }
        let Some(mut subnet) = self.state.subnets.get(&ask.subnet).cloned() else {
            return JoinAnswer::Unknown;
        };
        let Some(place) = subnet
            .local
            .invites
            .iter()
            .position(|i| i.public == proof.public)
        else {
            return unknown();
        };
        let Some(issued) = subnet.local.invites.get(place).cloned() else {
            return unknown();
        };
        // Its first word was a goodbye: it was let in and never came.
        let declined = subnet
            .records
            .doc(ask.joiner)
            .is_some_and(|doc| doc.version == 1 && doc.left.is_some());
        if let Err(error) = issued.admits(ask.joiner, declined, now) {
            return refused(&error);
        }
        if subnet.records.roll().out.contains_key(&ask.joiner) {
            return JoinAnswer::Refused {
                code: Code::Removed.into(),
                message: "this peer was removed from the subnet: only an approval lets it in again"
                    .into(),
            };
        }
        if let Err(error) = subnet.admit(
            &self.state.me.clone(),
            ask,
            (issued.role, issued.term),
            &issued.labels,
            now,
        ) {
            return refused(&error);
        }
        if let Some(invite) = subnet
            .local
            .invites
            .get_mut(place)
            .filter(|invite| !invite.used.contains(&ask.joiner))
        {
            invite.used.push(ask.joiner);
        }
        self.let_in(subnet, ask.joiner)
    }

    /// A bare-ID request at someone who may decide.
    fn consider(&mut self, ask: &Ask, payer: Payer, now: u64) -> JoinAnswer {
        let was_removed = self
            .roll(ask.subnet)
            .is_some_and(|roll| roll.out.contains_key(&ask.joiner));
        let Some(mut subnet) = self.state.subnets.get(&ask.subnet).cloned() else {
            return JoinAnswer::Unknown;
        };
        if subnet
            .local
            .denied
            .get(&ask.joiner)
            .is_some_and(|until| now < *until)
        {
            return JoinAnswer::Refused {
                code: Code::Denied.into(),
                message: format!("the request to join {} was denied", subnet.name()),
            };
        }
        if subnet.records.genesis.admission == Admission::Open && !was_removed {
            if !self.may_open(ask.subnet, now) {
                return JoinAnswer::Refused {
                    code: Code::Rate.into(),
                    message: "too many have come in within a minute; try again".into(),
                };
            }
            let me = self.state.me.clone();
            return match subnet.admit(
                &me,
                ask,
                (Role::Member, Term::Trial),
                &Default::default(),
                now,
            ) {
                Ok(()) => self.let_in(subnet, ask.joiner),
                Err(error) => refused(&error),
            };
        }
        subnet
            .requests
            .retain(|_, r| now.abs_diff(r.seen) < REQUEST_LIFE);
        if !subnet.requests.contains_key(&ask.joiner)
            && !make_room(&mut subnet.requests, payer, now)
        {
            return JoinAnswer::Refused {
                code: Code::RequestsFull.into(),
                message: "too many requests from here wait for approval; try later".into(),
            };
        }
        let alias = subnet.name().clone();
        let request = subnet.requests.entry(ask.joiner).or_insert_with(|| {
            tracing::info!("{alias}: {} asks to join, {}", ask.name, ask.joiner);
            Request {
                ask: ask.clone(),
                payer,
                since: now,
                seen: now,
            }
        });
        request.seen = now;
        request.ask = ask.clone();
        let mut draft = Draft::default();
        draft.put(subnet);
        match self.commit(draft) {
            Ok(_) => JoinAnswer::Pending { reached: true },
            Err(error) => JoinAnswer::Refused {
                code: error.code,
                message: error.message,
            },
        }
    }

    /// Whether one more may come in on nobody's word: each leaves a record behind for an hour.
    fn may_open(&mut self, subnet: SubnetId, now: u64) -> bool {
        self.opened
            .retain(|(_, at)| now < at.saturating_add(60) && *at <= now);
        let may = self.opened.iter().filter(|(id, _)| *id == subnet).count() < OPENED_PER_MINUTE;
        if may {
            self.opened.push_back((subnet, now));
        }
        may
    }

    fn let_in(&mut self, subnet: Subnet, joiner: PeerId) -> JoinAnswer {
        let answer = bundle(&subnet, joiner, self.now());
        let id = subnet.records.id;
        let mut draft = Draft::default();
        draft.put(subnet);
        match self.settle(draft, &Default::default()) {
            Ok(_) => {
                // The joiner connects as a member once the View says that it is one.
                self.want_view(true);
                tracing::debug!(peer = %joiner, subnet = %id, "grant signed");
                answer
            }
            Err(error) => JoinAnswer::Refused {
                code: error.code,
                message: error.message,
            },
        }
    }

    /// Takes the proof that a subnet is over, or over for us.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn take_ended(&mut self, id: SubnetId, heads: Vec<Verified>) -> Result<(), Error> {
        self.take(id, heads, None).map(drop)
    }
}

/// Whether a new request of `payer` has a place among those that wait, perhaps instead of one that goes.
///
/// A full share takes from itself only, and only a request that is not repeated any more. A full table takes one of those
/// first, then the newest of who has most, so that junk does not push out who asked before.
fn make_room(requests: &mut BTreeMap<PeerId, Request>, payer: Payer, now: u64) -> bool {
    let site = |payer: Payer| {
        if let Payer::Source(source) = payer {
            Some(source.site())
        } else {
            None
        }
    };
    let count = |of: &dyn Fn(&Request) -> bool| requests.values().filter(|r| of(r)).count();
    let silent = |of: &dyn Fn(&Request) -> bool| {
        let gone = requests
            .iter()
            .filter(|(_, r)| of(r) && r.seen.saturating_add(SILENT) <= now);
        gone.min_by_key(|(_, r)| r.seen).map(|(peer, _)| *peer)
    };
    let same = |r: &Request| r.payer == payer;
    let near = |r: &Request| site(r.payer).is_some() && site(r.payer) == site(payer);
    let each = if site(payer).is_some() {
        REQUESTS_EACH.0
    } else {
        REQUESTS_EACH.1
    };
    let goes = if count(&same) >= each {
        silent(&same)
    } else if count(&near) >= REQUESTS_OF_SITE {
        silent(&near)
    } else if requests.len() < MAX_REQUESTS {
        return true;
    } else {
        let most = requests
            .values()
            .map(|r| (count(&|o| o.payer == r.payer), r.payer))
            .max();
        let newest_of_most = most
            .filter(|(n, _)| *n > count(&same).saturating_add(1))
            .and_then(|(_, most)| {
                let theirs = requests.iter().filter(|(_, r)| r.payer == most);
                theirs.max_by_key(|(_, r)| r.since).map(|(peer, _)| *peer)
            });
        silent(&|_| true).or(newest_of_most)
    };
    goes.is_some_and(|peer| requests.remove(&peer).is_some())
}

/// What a joiner is answered that is a member at `now`.
pub(super) fn bundle(subnet: &Subnet, joiner: PeerId, now: u64) -> JoinAnswer {
    let resolved = subnet.resolve(now);
    let told = subnet.records.told_to(joiner, &resolved);
    JoinAnswer::Admitted {
        genesis: subnet.local.genesis.clone(),
        records: answer(&told.decides, &told.rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source::Source;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    fn source(text: &str) -> Payer {
        Payer::Source(Source::of(text.parse().unwrap()))
    }

    /// Adds a request if there is room for it.
    fn ask(requests: &mut BTreeMap<PeerId, Request>, joiner: u16, payer: Payer, now: u64) -> bool {
        let ask = Ask {
            subnet: SubnetId([1; 16]),
            joiner: peer(joiner),
            data_key: [0; 32],
            seal_key: [1; 32],
            name: "guest".parse().unwrap(),
            name_is_default: true,
            ip: None,
            asked: now,
            proof: None,
        };
        let room = make_room(requests, payer, now);
        if room {
            requests.insert(
                peer(joiner),
                Request {
                    ask,
                    payer,
                    since: now,
                    seen: now,
                },
            );
        }
        room
    }

    #[test]
    fn junk_of_one_source_or_member_leaves_room_for_who_asks_elsewhere() {
        let mut requests = BTreeMap::new();
        let taken = (0..100)
            .filter(|n| ask(&mut requests, *n, source("192.0.2.1"), 100))
            .count();
        assert_eq!(taken, 4);
        let site = |n: u16| source(&format!("2001:db8:0:{n:x}::1"));
        assert_eq!(
            (100..200)
                .filter(|n| ask(&mut requests, *n, site(*n), 100))
                .count(),
            8
        );
        assert_eq!(
            (200..300)
                .filter(|n| ask(&mut requests, *n, Payer::Member(peer(9)), 100))
                .count(),
            16
        );
        assert!(ask(&mut requests, 500, source("192.0.2.2"), 100));
        assert!(!ask(&mut requests, 501, source("192.0.2.1"), 100));
    }

    #[test]
    fn newest_junk_does_not_push_out_who_asked_before() {
        let mut requests = BTreeMap::new();
        assert!(ask(&mut requests, 1, source("203.0.113.1"), 90));
        for n in 0..200u16 {
            for k in 0..4 {
                ask(
                    &mut requests,
                    1000 + n * 4 + k,
                    source(&format!("198.51.100.{n}")),
                    100,
                );
            }
        }
        assert_eq!(requests.len(), MAX_REQUESTS);
        assert!(requests.contains_key(&peer(1)), "the first one waits still");
        assert!(
            ask(&mut requests, 2, source("203.0.113.2"), 101),
            "and another comes in"
        );
        assert!(requests.contains_key(&peer(1)) && requests.len() == MAX_REQUESTS);
    }

    #[test]
    fn who_does_not_ask_any_more_makes_room() {
        let mut requests = BTreeMap::new();
        for n in 0..256u16 {
            assert!(
                ask(&mut requests, n, source(&format!("198.51.100.{n}")), 100),
                "{n}"
            );
        }
        assert!(
            !ask(&mut requests, 900, source("203.0.113.1"), 100),
            "everybody has one and repeats it"
        );
        requests
            .values_mut()
            .filter(|r| r.ask.joiner != peer(7))
            .for_each(|r| r.seen = 160);
        assert!(ask(&mut requests, 900, source("203.0.113.1"), 160));
        assert!(!requests.contains_key(&peer(7)));
    }

    #[test]
    fn a_joiner_whose_clock_is_off_is_told_by_how_much_and_nothing_is_used_up() {
        let now = RELEASED + 86_400;
        assert_eq!(clocks_differ(now, now), None);
        assert_eq!(clocks_differ(now + SKEW, now), None);
        let ahead = clocks_differ(now + 3600, now).unwrap();
        assert!(
            ahead.contains("3600 s") && ahead.contains("is ahead"),
            "{ahead}"
        );
        assert!(
            clocks_differ(now - 3600, now)
                .unwrap()
                .contains("is behind")
        );
        assert_eq!(
            clocks_differ(60, now),
            None,
            "a clock that was never set takes its time from the records"
        );
    }
}
