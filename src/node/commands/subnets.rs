//! Subnets: founded, left, ended, up and down.

use std::collections::BTreeMap;

use super::{done, random};
use crate::api::types::{Created, Error, ErrorKind, HostInfo, Response};
use crate::model::error::{Code, Hint};
use crate::model::host::HostPolicy;
use crate::model::id::SubnetId;
use crate::model::members::Subnet;
use crate::model::policy::flags;
use crate::model::record::{Role, Term};
use crate::model::state::{Draft, Founding};
use crate::node::Core;

/// What `leave` came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// A membership: goodbye is said, forgetting follows.
    Said(SubnetId),
    /// A join that waited; it waits no more.
    Withdrawn,
    /// The subnet was left before; nothing is done.
    Gone,
}

impl Core {
    /// `create`. Gives the answer with the one-use invite; the same once more changes nothing and invites nobody.
    ///
    /// # Errors
    /// See [`State::found`](crate::model::state::State::found).
    pub fn create(&mut self, mut founding: Founding) -> Result<Created, Error> {
        let now_ms = self.now_ms();
        if let Some(here) = self.state.founded(&founding) {
            return self.created(here, None, now_ms / 1000);
        }
        founding.salt = random()?;
        let name = founding.name.clone();
        let mut subnet = self.state.found(founding, now_ms / 1000)?;
        subnet.set_endpoints(&self.state.me, &self.endpoints, now_ms / 1000)?;
        let (issued, text) = self.new_invite(
            &subnet,
            1,
            86_400_000,
            (Role::Member, Term::Full),
            BTreeMap::new(),
        )?;
        subnet.local.invites.push(issued);
        let created = self.created(&subnet, Some(text), now_ms / 1000)?;
        let mut draft = Draft::default();
        draft.put(subnet);
        // What had the name is known to have ended. It is not forgotten: what this node said when it left it is told to who
        // was away, and counts where it is joined again.
        let mut past = self.state.past.clone();
        past.iter_mut()
            .filter(|p| p.name == name)
            .for_each(|p| p.untold = false);
        draft.remember(past);
        self.commit(draft)?;
        Ok(created)
    }

    /// What `create` tells of a subnet.
    fn created(&self, subnet: &Subnet, invite: Option<String>, now: u64) -> Result<Created, Error> {
        let resolved = subnet.resolve(now);
        let me = subnet.myself(&self.state.me, &resolved)?;
        Ok(Created {
            id: subnet.records.id,
            name: subnet.name().clone(),
            cidr4: subnet.records.pools().v4,
            cidr6: subnet.records.pools().v6,
            addresses: me.addresses.clone(),
            interface: subnet.local.interface.clone(),
            invite,
            member: me.name.clone(),
            host: subnet.local.host.clone(),
            join_flags: flags(&subnet.records.genesis),
            notes: Vec::new(),
        })
    }

    /// `leave`: says goodbye, or takes a waiting join back. What is left here goes with [`Core::forget`], which the
    /// caller calls once the others were told.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-OWNER-STAYS`.
    pub fn leave(&mut self, text: &str) -> Result<Leaving, Error> {
        let id = match self.state.find_joined_or_waiting(text) {
            Ok(id) => id,
            Err(error) if error.code == Code::NoSubnet => {
                let Some(id) = self.state.find_past(text).map(|past| past.id) else {
                    return Err(error.into());
                };
                self.told_of_end(id)?;
                return Ok(Leaving::Gone);
            }
            Err(error) => return Err(error.into()),
        };
        // A membership that ended may wait to be let in again: the join goes with what is left here.
        let Some(mut subnet) = self.state.subnets.get(&id).cloned() else {
            self.drop_join(id)?;
            return Ok(Leaving::Withdrawn);
        };
        let me = self.state.me.clone();
        let resolved = subnet.resolve(self.now());
        if subnet.records.genesis.owner == me.peer && resolved.members.len() > 1 {
            return Err(Error::new(
                ErrorKind::Conflict,
                Code::OwnerStays,
                format!(
                    "the owner cannot leave subnet {} while it has other members",
                    subnet.name()
                ),
            )
            .hint(Hint::Destroy(subnet.name().clone())));
        }
        if resolved.members.contains_key(&me.peer) {
            subnet.say_goodbye(&me, self.now())?;
            self.save(subnet)?;
        }
        Ok(Leaving::Said(id))
    }

    /// A person knows that the subnet has ended.
    ///
    /// # Errors
    /// When it could not be saved.
    fn told_of_end(&mut self, id: SubnetId) -> Result<(), Error> {
        let mut past = self.state.past.clone();
        past.iter_mut()
            .filter(|p| p.id == id)
            .for_each(|p| p.untold = false);
        if past != self.state.past {
            let mut draft = Draft::default();
            draft.remember(past);
            self.commit(draft)?;
        }
        Ok(())
    }

    /// Removes a subnet from this node and remembers its name.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn forget(&mut self, id: SubnetId) -> Result<u64, Error> {
        if !self.state.subnets.contains_key(&id) {
            // Forgotten by itself meanwhile.
            self.told_of_end(id)?;
        }
        let draft = self.state.forget(id, true);
        self.commit(draft)
    }

    /// `destroy`: the owner's head ends the subnet; forgetting follows once the others were told. `None` when it was
    /// left or ended before.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NOT-OWNER`.
    pub fn destroy(&mut self, text: &str) -> Result<Option<SubnetId>, Error> {
        let mut subnet = match self.state.edit(text) {
            Ok(subnet) => subnet,
            Err(error) if error.code == Code::NoSubnet && self.state.find_past(text).is_some() => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        subnet.destroy(&self.state.me.clone(), self.now())?;
        let id = subnet.records.id;
        self.save(subnet)?;
        Ok(Some(id))
    }

    /// Adds addresses where members of a subnet may be; whether one of them is new.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, or it could not be saved.
    pub fn add_hints(&mut self, id: SubnetId, hints: &[String]) -> Result<bool, Error> {
        let mut subnet = self.state.edit(&id.to_string())?;
        let changed = subnet.local.add_hints(hints);
        if changed {
            self.save(subnet)?;
        }
        Ok(changed)
    }

    /// Notes that a person asked for a membership, so that it no longer goes with its declaration.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, or it could not be saved.
    pub fn keep_by_hand(&mut self, id: SubnetId) -> Result<(), Error> {
        let mut subnet = self.state.edit(&id.to_string())?;
        if subnet.local.declared {
            subnet.local.declared = false;
            self.save(subnet)?;
        }
        Ok(())
    }

    /// `subnet host SUBNET`: what of this machine itself a subnet reaches.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn host_policy(&self, text: &str) -> Result<HostInfo, Error> {
        let subnet = self.state.find(text)?;
        Ok(HostInfo {
            subnet: subnet.name().clone(),
            host: subnet.local.host.clone(),
            changed: false,
        })
    }

    /// `subnet host SUBNET SPEC`: replaces it.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, or it could not be saved.
    pub fn set_host_policy(&mut self, text: &str, host: HostPolicy) -> Result<HostInfo, Error> {
        let mut subnet = self.state.edit(text)?;
        let info = HostInfo {
            subnet: subnet.name().clone(),
            changed: subnet.local.host != host,
            host,
        };
        if info.changed {
            subnet.local.host = info.host.clone();
            self.save(subnet)?;
        }
        Ok(info)
    }

    /// `up` and `down`; without a subnet all of them.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, also where there is none.
    pub fn set_up(&mut self, text: Option<&str>, up: bool) -> Result<Response, Error> {
        let mut chosen: Vec<Subnet> = match text {
            Some(text) => vec![self.state.edit(text)?],
            None => self.state.subnets.values().cloned().collect(),
        };
        if chosen.is_empty() {
            let message = "this machine has no subnet";
            let error = Error::new(ErrorKind::NotFound, Code::NoSubnet, message);
            return Err(error.hint(Hint::Found));
        }
        let mut draft = Draft::default();
        let mut changed = false;
        for subnet in &mut chosen {
            changed |= subnet.local.up != up;
            subnet.local.up = up;
            draft.put(subnet.clone());
        }
        self.commit(draft)?;
        let names: Vec<&str> = chosen.iter().map(|s| s.name().as_str()).collect();
        Ok(done(
            format!("{} {}", names.join(", "), if up { "up" } else { "down" }),
            changed,
        ))
    }
}
