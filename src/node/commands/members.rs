//! Members: who asked decided on, removed, given a role, labelled.

use std::collections::BTreeMap;

use super::done;
use crate::api::types::{Error, ErrorKind, Response};
use crate::model::error::Code;
use crate::model::id::{Name, PeerId};
use crate::model::members::{Identity, REQUEST_LIFE, Subnet, printable};
use crate::model::record::{Role, Term};
use crate::node::Core;

impl Core {
    fn on_member(
        &mut self,
        text: &str,
        member: &str,
        act: impl FnOnce(&mut Subnet, &Identity, PeerId, u64) -> crate::model::error::Result<()>,
    ) -> Result<Name, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.resolve(now);
        let peer = subnet.find_member(&resolved, member, now)?;
        let name = resolved
            .members
            .get(&peer)
            .map(|m| m.name.clone())
            .unwrap_or_else(|| Name::from_host("member"));
        act(&mut subnet, &self.state.me.clone(), peer, now)?;
        self.save(subnet)?;
        Ok(name)
    }

    /// `member approve` and `member deny`.
    ///
    /// # Errors
    /// `E-NO-REQUEST`, `E-AMBIGUOUS`, `E-NOT-ADMIN`, `E-POOL-FULL`.
    pub fn decide_request(
        &mut self,
        text: &str,
        who: &str,
        approve: bool,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.resolve(now);
        subnet.require_admin(&self.state.me, &resolved)?;
        let request = match subnet.find_request(who) {
            Ok(peer) => subnet.requests.get(&peer).cloned(),
            Err(error)
                if error.code == Code::NoRequest && approve && subnet.was_denied(who).is_some() =>
            {
                return self.undeny(subnet, who);
            }
            // Approving twice is no error.
            Err(error)
                if error.code == Code::NoRequest
                    && approve
                    && subnet.find_member(&resolved, who, now).is_ok() =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        let Some(request) = request else {
            return Ok(done(
                format!("{} is a member already", printable(who)),
                false,
            ));
        };
        let me = self.state.me.clone();
        if approve {
            let full = (Role::Member, Term::Full);
            subnet.admit(&me, &request.ask, full, &BTreeMap::new(), now)?;
        } else {
            subnet.requests.remove(&request.ask.joiner);
            subnet
                .local
                .denied
                .insert(request.ask.joiner, now.saturating_add(REQUEST_LIFE));
        }
        self.save(subnet)?;
        let (name, peer) = (&request.ask.name, request.ask.joiner);
        let told = if approve {
            format!("approved {name} ({peer})")
        } else {
            format!(
                "denied {name} ({peer}) here for {} minutes; approve its ID to take that back. The owner and every admin \
                 answer for themselves: each other one can still approve it",
                REQUEST_LIFE / 60
            )
        };
        Ok(done(told, true))
    }

    /// Takes a denial back by the ID that it named: the peer's next question waits again.
    fn undeny(&mut self, mut subnet: Subnet, who: &str) -> Result<Response, Error> {
        let peer = subnet.was_denied(who);
        subnet.local.denied.retain(|p, _| Some(*p) != peer);
        self.save(subnet)?;
        let told = format!(
            "{} is denied no more: approve it when it asks again",
            printable(who)
        );
        Ok(done(told, true))
    }

    /// `member remove`; once more it is no error for as long as the revocation is kept.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-ADMIN`, `E-OWNER-STAYS`.
    pub fn member_remove(&mut self, text: &str, member: &str) -> Result<Response, Error> {
        let subnet = self.state.find(text)?;
        let (now, resolved) = (self.now(), subnet.resolve(self.now()));
        if subnet.find_member(&resolved, member, now).is_err()
            && let Some(name) = subnet.was_removed(&resolved, member)
        {
            subnet.require_admin(&self.state.me, &resolved)?;
            return Ok(done(format!("{name} was removed already"), false));
        }
        let name = self.on_member(text, member, |s, me, peer, now| s.remove(me, peer, now))?;
        Ok(done(format!("removed {name}"), true))
    }

    /// `member role`.
    ///
    /// # Errors
    /// `E-ROLE`, `E-NO-MEMBER`, `E-NOT-OWNER`.
    pub fn member_role(&mut self, text: &str, member: &str, role: Role) -> Result<Response, Error> {
        if role == Role::Owner {
            return Err(Error::new(
                ErrorKind::Usage,
                Code::Role,
                "a subnet has one owner, its founder; roles to give are member and admin",
            ));
        }
        let admin = role == Role::Admin;
        let mut changed = false;
        let name = self.on_member(text, member, |s, me, peer, now| {
            changed = s.records.head().seat(peer).is_some() != admin;
            s.set_admin(me, peer, admin, now)
        })?;
        Ok(done(
            format!(
                "{name} is {} now",
                if admin { "an admin" } else { "a member" }
            ),
            changed,
        ))
    }

    /// `member label`: an empty value takes a label away.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-ADMIN`.
    pub fn member_label(
        &mut self,
        text: &str,
        member: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        let name = self.on_member(text, member, |s, me, peer, now| {
            s.label(me, peer, labels, now)
        })?;
        Ok(done(format!("labelled {name}"), true))
    }
}
