//! How a join becomes a membership: what this node asks, what it will have, and what it makes of the answer.

use super::error::{Code, Error, Hint, Kind, Result};
use super::founding::Coming;
use super::join::{Ask, Proof};
use super::local::{Local, PendingJoin};
use super::members::Subnet;
use super::policy::{self, Around};
use super::record::{Announcement, Body, Genesis, Grant, Signed, Verified};
use super::state::{RELEASED, State};
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
            Some(old) => old.clone(),
            None => {
                let alias = join.alias.clone().unwrap_or_else(|| parsed.name.clone());
                let interface = self.interface_name(&alias, join.subnet, &around.links);
                let local = Local::new(genesis.to_vec(), alias, interface, join.host.clone());
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
        // A revocation is of no use, and not held, before the grant that it ends.
        let mut ordered: Vec<&Verified> = records.iter().collect();
        ordered.sort_by_key(|record| record.rank());
        for record in ordered {
            let _ = subnet.records.absorb(record.clone());
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

    /// This node's own goodbye to a subnet that let it in and that it cannot belong to: none where it was not let in.
    pub fn decline(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        now: u64,
    ) -> Option<Signed> {
        let parsed = Genesis::parse(genesis)
            .ok()
            .filter(|g| g.id() == join.subnet)?;
        let mut held = Records::new(parsed);
        for record in records.iter().cloned() {
            let _ = held.absorb(record);
        }
        let generation = held.grants_of(self.me.peer).map(|g| g.generation).max()?;
        let version = held
            .announcement(self.me.peer)
            .map_or(0, |d| d.version)
            .saturating_add(1);
        let announcement = Announcement {
            version,
            issued: now,
            left: Some(generation),
            ..Announcement::default()
        };
        Some(Signed::new(
            join.subnet,
            &Body::Announcement(announcement),
            &self.me.key,
        ))
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
