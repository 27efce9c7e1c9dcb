//! Letting others in: the questions of strangers. This node's own joins are in `own_joins.rs`.

mod ask;
mod waiting;

use std::time::Instant;

pub(super) use ask::bundle;

use super::Core;
use super::check::{Asked, Question};
use super::nonces::Way;
use crate::api::types::Error;
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::lookup;
use crate::model::record::{Grant, Signed, Verified};
use crate::model::resolve::SKEW;
use crate::model::source::Payer;
use crate::model::state::Draft;
use crate::wire::control::JoinAnswer;

/// What to do with a stranger's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinDecision {
    /// The request is answered at once.
    Answer(JoinAnswer),
    /// The request is passed on to the first of these that is connected, and its answer back.
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

fn refusal(code: impl AsRef<str>, message: &str) -> JoinAnswer {
    JoinAnswer::Refused {
        code: code.as_ref().to_owned(),
        message: message.to_owned(),
    }
}

fn refuse(code: impl AsRef<str>, message: &str) -> JoinDecision {
    JoinDecision::Answer(refusal(code, message))
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
                let way = Way {
                    subnet: *subnet,
                    joiner: *joiner,
                    from,
                };
                self.nonce_of(*issuer, way, payer, passed_on)
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
        let leaves = matches!(record, Verified::Announcement(announcement) if announcement.body().left.is_some());
        let subnet = record.signed().subnet;
        if !leaves || !self.state.subnets.contains_key(&subnet) {
            return JoinAnswer::Unknown;
        }
        match self.take(subnet, vec![record.clone()], None) {
            Ok(verdict) if verdict.waiting => JoinAnswer::Refused {
                code: Code::Rate.into(),
                message: "too many announcements; say it again".into(),
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

    /// The nonce for an attempt with an invite of `issuer`'s, who alone gives one.
    fn nonce_of(
        &mut self,
        issuer: PeerId,
        way: Way,
        payer: Payer,
        passed_on: bool,
    ) -> JoinDecision {
        if !self.state.subnets.contains_key(&way.subnet) {
            JoinDecision::Answer(JoinAnswer::Unknown)
        } else if issuer == self.state.me.peer {
            self.give_nonce(way, payer)
        } else if passed_on {
            JoinDecision::Answer(JoinAnswer::Unknown)
        } else {
            JoinDecision::Forward(vec![issuer])
        }
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

    /// Takes the proof that a subnet is over, or over for us.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn take_ended(&mut self, id: SubnetId, heads: Vec<Verified>) -> Result<(), Error> {
        self.take(id, heads, None).map(drop)
    }
}
