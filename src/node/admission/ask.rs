//! A question to be let in: by an invite this node issued, by a person's approval, or into an open subnet.

use std::time::Instant;

use super::waiting::make_room;
use super::{JoinDecision, is_valid, refusal, refuse, refused};
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::{Ask, Issued, Proof};
use crate::model::members::{REQUEST_LIFE, Request, Subnet};
use crate::model::record::{Admission, Grant, Role, Term};
use crate::model::resolve::SKEW;
use crate::model::source::Payer;
use crate::model::state::{Draft, RELEASED};
use crate::model::subnet::Records;
use crate::node::Core;
use crate::node::nonces::Way;
use crate::wire::control::{JoinAnswer, answer};

/// Members that an open subnet takes in a minute.
const OPENED_PER_MINUTE: usize = 60;
/// Seconds between a grant and the goodbye to it within which it was given back and not used.
const DECLINED_WITHIN: u64 = 60;

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

fn unknown_invite() -> JoinAnswer {
    refusal(
        Code::InviteUnknown,
        "this invite was not issued here, or is forged",
    )
}

/// Whether a peer gave back what it was let in by as soon as it had it: it never came, or its machine refused what it came
/// for. Such an invite is as good as before for this peer.
fn declined(records: &Records, joiner: PeerId) -> bool {
    let Some(said) = records.announcement(joiner) else {
        return false;
    };
    let at_once = |grant: &Grant| {
        Some(grant.generation) == said.left
            && said.issued.abs_diff(grant.not_before) <= DECLINED_WITHIN
    };
    said.left.is_some() && (said.version <= 2 || records.grants_of(joiner).any(at_once))
}

impl Core {
    /// `proven`: whether the proof in it holds for what it names.
    pub(super) fn decide_ask(
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
        let Some(nonce) = nonce else {
            return refusal(Code::InviteStale, "the attempt took too long; try again");
        };
        // The proof is one of what it names; it has to name this attempt.
        if !proven || proof.issuer != self.state.me.peer || proof.nonce != nonce {
            return unknown_invite();
        }
        self.let_in_by_invite(ask, proof, now)
    }

    /// Admits by an invite whose proof holds.
    fn let_in_by_invite(&mut self, ask: &Ask, proof: &Proof, now: u64) -> JoinAnswer {
        let Some(mut subnet) = self.state.subnets.get(&ask.subnet).cloned() else {
            return JoinAnswer::Unknown;
        };
        let invite = |i: &&Issued| i.public == proof.public;
        let Some(issued) = subnet.local.invites.iter().find(invite).cloned() else {
            return unknown_invite();
        };
        let declined = declined(&subnet.records, ask.joiner);
        if let Err(error) = issued.admits(ask.joiner, declined, now) {
            return refused(&error);
        }
        if subnet.records.roll().out.contains_key(&ask.joiner) {
            return refusal(
                Code::Removed,
                "this peer was removed from the subnet: only an approval lets it in again",
            );
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
            .iter_mut()
            .find(|invite| invite.public == proof.public)
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
            let message = format!("the request to join {} was denied", subnet.name());
            return refusal(Code::Denied, &message);
        }
        if subnet.records.genesis.admission == Admission::Open && !was_removed {
            return self.let_in_openly(subnet, ask, now);
        }
        subnet
            .requests
            .retain(|_, r| now.abs_diff(r.seen) < REQUEST_LIFE);
        if !subnet.requests.contains_key(&ask.joiner)
            && !make_room(&mut subnet.requests, payer, now)
        {
            return refusal(
                Code::RequestsFull,
                "too many requests from here wait for approval; try later",
            );
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
            Err(error) => refusal(&error.code, &error.message),
        }
    }

    /// Admits on trial whoever asks.
    fn let_in_openly(&mut self, mut subnet: Subnet, ask: &Ask, now: u64) -> JoinAnswer {
        if !self.may_open(ask.subnet, now) {
            return refusal(
                Code::Rate,
                "too many have come in within a minute; try again",
            );
        }
        let me = self.state.me.clone();
        match subnet.admit(
            &me,
            ask,
            (Role::Member, Term::Trial),
            &Default::default(),
            now,
        ) {
            Ok(()) => self.let_in(subnet, ask.joiner),
            Err(error) => refused(&error),
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
            Err(error) => refusal(&error.code, &error.message),
        }
    }
}

/// What a joiner is answered that is a member at `now`.
pub(in crate::node) fn bundle(subnet: &Subnet, joiner: PeerId, now: u64) -> JoinAnswer {
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
