//! How a join becomes a membership: what this node asks, what it will have, and what it makes of the answer.
//!
//! Who left and joins again needs a grant of a later generation: its goodbye ends the earlier ones at everybody, also where
//! it arrives after the join. So the goodbye is kept ([`State::last_goodbye`]), whoever is asked hears it first, a grant that
//! it ends is not taken ([`State::is_given_back`]), and this node's announcements go on from its version.

use super::error::{Code, Error, Hint, Kind, Result};
use super::founding::Coming;
use super::id::SubnetId;
use super::join::{Ask, Proof};
use super::local::{FormerSubnet, Local, PendingJoin};
use super::members::Subnet;
use super::policy::{self, Around};
use super::record::{Announcement, Body, Genesis, Grant, Verified};
use super::state::{Draft, RELEASED, State};
use super::subnet::Records;

impl State {
    /// Whether this node will have the subnet it asks to join: its genesis is judged before anything is asked, so that a
    /// refusal uses nothing up. A subnet that is here already was judged once.
    ///
    /// # Errors
    /// `E-BAD-ANSWER`, `E-SUBNET-EXISTS`, `E-CIDR-OVERLAP`, `E-JOIN-POLICY`.
    pub fn judge_join(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        around: &Around,
    ) -> Result<Genesis> {
        if Genesis::id_of(genesis) != join.subnet {
            return Err(bad_answer(join, "is about another subnet"));
        }
        let beyond = || {
            let message = format!(
                "what the founder of subnet {} chose is no subnet that anybody may have",
                join.subnet
            );
            Error::new(Kind::Refused, Code::JoinPolicy, message).hint(Hint::AskInviter)
        };
        let parsed = Genesis::parse(genesis).map_err(|_| beyond())?;
        if self.subnets.contains_key(&join.subnet) {
            return Ok(parsed);
        }
        let alias = join.alias.as_ref().unwrap_or(&parsed.name);
        let target = if join.invite.is_some() {
            "INVITE".to_owned()
        } else {
            join.subnet.to_string()
        };
        let coming = Coming::Joined { target: &target };
        self.check_alias(alias, coming)?;
        let prefixes = Records::new(parsed.clone()).prefixes();
        let routed = Around {
            routed: around.routed.clone(),
            ..Around::default()
        };
        self.check_overlap(alias, &prefixes, &routed, coming)?;
        policy::judge(&parsed, alias, &target, &join.allow, &around.needs)?;
        Ok(parsed)
    }

    /// Turns an answer to our join into a membership: genesis and records are checked, our grant must be among them.
    ///
    /// # Errors
    /// See [`judge_join`](Self::judge_join); `E-BAD-ANSWER` also where no grant of ours is among the records.
    pub fn accept(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        around: &Around,
        now: u64,
    ) -> Result<Subnet> {
        let parsed = self.judge_join(join, genesis, around)?;
        let mut subnet = match self.subnets.get(&join.subnet) {
            // What a person created or joined stays a person's, whoever asks again.
            Some(old) => {
                let mut subnet = old.clone();
                subnet.local.declared &= join.declared;
                subnet
            }
            None => {
                let alias = join.alias.clone().unwrap_or_else(|| parsed.name.clone());
                let interface = self.interface_name(&alias, join.subnet, &around.links);
                let mut local = Local::new(genesis.to_vec(), alias, interface, join.host.clone());
                local.declared = join.declared;
                Subnet::new(Records::new(parsed), local)
            }
        };
        subnet.local.up = true;
        let known = &subnet.local.hints;
        let hints: Vec<String> = join
            .hints
            .iter()
            .filter(|hint| !known.contains(hint))
            .cloned()
            .collect();
        subnet.local.hints.extend(hints);
        self.hear(&mut subnet.records, records);
        if self.is_given_back(&subnet.records) {
            return Err(bad_answer(
                join,
                "holds only a grant that this node has given back",
            ));
        }
        // Where the clock is wrong, what was signed tells the time.
        let now = if now < RELEASED {
            now.max(subnet.records.latest())
        } else {
            now
        };
        let resolved = subnet.resolve(now);
        match resolved.members.get(&self.me.peer) {
            Some(me) if !me.addresses.is_empty() => Ok(subnet),
            _ => Err(
                match resolved
                    .roll
                    .members
                    .get(&self.me.peer)
                    .and_then(|e| e.best())
                {
                    Some(mine) if !resolved.members.contains_key(&self.me.peer) => {
                        clock_error(mine.grant(), now)
                    }
                    _ => bad_answer(join, "holds no valid grant for this node"),
                },
            ),
        }
    }

    /// Takes in what was answered to a join, beside this node's own last word.
    fn hear(&self, held: &mut Records, records: &[Verified]) {
        let goodbye = self.last_goodbye(held.id);
        // A revocation is of no use, and not held, before the grant that it ends.
        let mut ordered: Vec<&Verified> = records.iter().chain(&goodbye).collect();
        ordered.sort_by_key(|record| record.rank());
        for record in ordered {
            let _ = held.absorb(record.clone());
        }
    }

    /// What was answered to a join; none where that is about another subnet.
    fn answered(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
    ) -> Option<Records> {
        let parsed = Genesis::parse(genesis)
            .ok()
            .filter(|g| g.id() == join.subnet)?;
        let mut held = Records::new(parsed);
        self.hear(&mut held, records);
        Some(held)
    }

    /// This node's goodbye to a subnet that it has left, or that let it in and that it could not belong to. None once it was
    /// let in again.
    pub fn last_goodbye(&self, id: SubnetId) -> Option<Verified> {
        let me = self.me.peer;
        let here = self.subnets.get(&id);
        let here = here.and_then(|subnet| subnet.records.goodbye(me));
        let past = self.past.iter().filter(|former| former.id == id);
        let own = past
            .flat_map(|former| &former.proof)
            .chain(here)
            .filter(|record| record.issuer == me);
        let said = own.filter_map(|record| record.clone().check().ok());
        said.filter_map(|record| Some((left(&record)?, record)))
            .max_by_key(|((_, version), _)| *version)
            .map(|(_, record)| record)
    }

    /// Whether each grant of this node's among these records is one that it has given back.
    pub fn is_given_back(&self, held: &Records) -> bool {
        let goodbye = self.last_goodbye(held.id);
        let left = goodbye.as_ref().and_then(left);
        let granted = held.grants_of(self.me.peer).map(|g| g.generation).max();
        left.zip(granted)
            .is_some_and(|((left, _), granted)| granted <= left)
    }

    /// What to say to who let this node in by a grant that it has given back, which it has not heard of: the goodbye. None
    /// for any other answer.
    pub fn unheard_goodbye(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        now: u64,
    ) -> Option<Verified> {
        let held = self.answered(join, genesis, records)?;
        self.is_given_back(&held)
            .then(|| self.decline(join, genesis, records, now))?
    }

    /// This node's own goodbye to a subnet that let it in and that it cannot belong to: none where it was not let in.
    pub fn decline(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        now: u64,
    ) -> Option<Verified> {
        let held = self.answered(join, genesis, records)?;
        let me = &self.me;
        let generation = held.grants_of(me.peer).map(|g| g.generation).max()?;
        let said = held.goodbye(me.peer).and_then(|s| s.clone().check().ok());
        if let Some(said) = said.filter(|s| left(s).is_some_and(|(left, _)| left >= generation)) {
            return Some(said);
        }
        let version = held
            .announcement(me.peer)
            .map_or(0, |d| d.version)
            .saturating_add(1);
        let announcement = Announcement {
            version,
            issued: now,
            left: Some(generation),
            ..Announcement::default()
        };
        Verified::sign(join.subnet, Body::Announcement(announcement), &me.key).ok()
    }

    /// The draft that remembers a goodbye to a subnet that this node does not belong to, as after [`State::forget`].
    pub fn keep_goodbye(&self, join: &PendingJoin, genesis: &[u8], goodbye: &Verified) -> Draft {
        let mut draft = Draft::default();
        let former = self.past.iter().find(|former| former.id == join.subnet);
        let told = former.is_some_and(|f| f.is_destroyed());
        if told || self.last_goodbye(join.subnet).as_ref() == Some(goodbye) {
            return draft;
        }
        draft.remember(self.past_with(FormerSubnet {
            id: join.subnet,
            name: former.map_or_else(|| join.shown(), |former| former.name.clone()),
            proof: vec![goodbye.signed().clone()],
            genesis: genesis.to_vec(),
            untold: former.is_some_and(|former| former.untold),
        }));
        draft
    }

    /// The question this node asks to join.
    pub fn ask(&self, join: &PendingJoin, proof: Option<Proof>, now: u64) -> Ask {
        Ask {
            subnet: join.subnet,
            joiner: self.me.peer,
            data_key: self.me.data_key,
            seal_key: self.me.seal_key,
            name: join.name.clone(),
            name_is_default: join.name_is_default,
            ip: join.ip,
            asked: now,
            proof,
        }
    }
}

/// Generation that an announcement says was left, and the announcement's version.
fn left(record: &Verified) -> Option<(u32, u64)> {
    match record {
        Verified::Announcement(held) => Some((held.body.left?, held.body.version)),
        _ => None,
    }
}

/// What to say of a grant that is valid at another time than this machine's.
fn clock_error(grant: &Grant, now: u64) -> Error {
    let (off, way) = if now < grant.not_before {
        (grant.not_before.saturating_sub(now), "behind")
    } else {
        (now.saturating_sub(grant.not_before), "ahead")
    };
    let message = format!(
        "the clock of this machine, or that of who admits it, is wrong: they differ by {off} s, this one is {way}"
    );
    Error::new(Kind::Failed, Code::Clock, message).hint(Hint::SetClockAndJoin)
}

fn bad_answer(join: &PendingJoin, why: &str) -> Error {
    Error::new(
        Kind::Failed,
        Code::BadAnswer,
        format!("the answer to joining {} {why}", join.subnet),
    )
}
