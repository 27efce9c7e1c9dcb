//! Invites: made here, revoked here.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;

use super::{done, random};
use crate::api::types::{Error, ErrorKind, InviteCreated, Response};
use crate::model::error::{Code, Hint};
use crate::model::find::{Id, Named, find};
use crate::model::id::SubnetId;
use crate::model::join::{Invite, Issued};
use crate::model::members::{Subnet, printable};
use crate::model::policy::flags;
use crate::model::record::{Role, Term};
use crate::node::Core;

/// Addresses of this node in an invite, and how many of them lead through relays.
const TOLD: (usize, usize) = (6, 2);
/// What stands in an address between the relay and who is behind it.
const CIRCUIT: &str = "/p2p-circuit";

/// A few of our addresses are enough to find us; the text stays short enough to paste. Those through relays are among them:
/// behind a NAT nothing else leads here. Each relay has one before any has two: the one that is told alone may be down.
fn few(endpoints: &[String]) -> Vec<String> {
    let is_circuit = |address: &&String| address.contains(CIRCUIT);
    let (mut first, mut more, mut relays) = (Vec::new(), Vec::new(), BTreeSet::new());
    for address in endpoints.iter().filter(is_circuit) {
        let hop = address.split(CIRCUIT).next().unwrap_or_default();
        match relays.insert(hop.rsplit('/').next()) {
            true => first.push(address),
            false => more.push(address),
        }
    }
    let circuits: Vec<_> = first.into_iter().chain(more).take(TOLD.1).collect();
    let direct = endpoints.iter().filter(|address| !is_circuit(address));
    let room = TOLD.0 - circuits.len();
    let mut direct: Vec<_> = direct.collect();
    // Where little but HTTPS is let out nothing else leads here.
    let is_web = |address: &&String| address.ends_with("/wss") || address.ends_with("/ws");
    if let Some(at) = direct.iter().position(is_web)
        && at >= room
        && let Some(last) = room.checked_sub(1)
    {
        direct.swap(last, at);
    }
    direct.truncate(room);
    direct.into_iter().chain(circuits).cloned().collect()
}

impl Core {
    pub(super) fn new_invite(
        &self,
        subnet: &Subnet,
        uses: u32,
        expires_ms: u64,
        (role, term): (Role, Term),
        labels: BTreeMap<String, String>,
    ) -> Result<(Issued, String), Error> {
        let expires = self.now().saturating_add((expires_ms / 1000).max(1));
        let mut invite = Invite {
            subnet: subnet.records.id,
            issuer: self.state.me.peer,
            secret: random()?,
            expires,
            addresses: vec![],
        };
        invite.addresses = few(&self.endpoints);
        let key: SigningKey = invite.key();
        let me = self.state.me.peer;
        let issued = Issued {
            public: key.verifying_key().to_bytes(),
            seat: subnet.records.seat_of(me).unwrap_or(0),
            generation: subnet
                .records
                .grants_of(me)
                .map(|g| g.generation)
                .max()
                .unwrap_or(0),
            uses,
            used: vec![],
            expires,
            role,
            labels,
            term,
            revoked: false,
        };
        Ok((issued, invite.to_text()))
    }

    /// `invite create`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NOT-ADMIN`, `E-NOT-OWNER` for an admin's invite, `E-ROLE` for an owner's.
    pub fn invite_create(
        &mut self,
        text: &str,
        uses: u32,
        expires_ms: u64,
        (role, term): (Role, Term),
        labels: BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.resolve(now);
        subnet.require_admin(&self.state.me, &resolved)?;
        if role != Role::Member {
            subnet.require_owner(&self.state.me)?;
        }
        if role == Role::Owner {
            return Err(Error::new(
                ErrorKind::Usage,
                Code::Role,
                "an invite is for a member or an admin",
            ));
        }
        let (issued, invite) =
            self.new_invite(&subnet, uses.max(1), expires_ms, (role, term), labels)?;
        let (id, expires, uses) = (issued.id(), issued.expires, issued.uses);
        // Spent invites of long ago tell nothing any more.
        subnet
            .local
            .invites
            .retain(|i| now < i.expires.saturating_add(7 * 86_400));
        subnet.local.invites.push(issued);
        let join_flags = flags(&subnet.records.genesis);
        self.save(subnet)?;
        Ok(Response::Invite(InviteCreated {
            id,
            invite,
            uses,
            expires,
            join_flags,
            notes: Vec::new(),
        }))
    }

    /// `invite revoke`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NO-INVITE` also for an invite of another subnet than the one named, `E-AMBIGUOUS`.
    pub fn invite_revoke(&mut self, of: Option<&str>, id: &str) -> Result<Response, Error> {
        let only = of.map(|s| self.state.find(s)).transpose()?;
        let only = only.map(|s| (s.records.id, s.name().clone()));
        // People paste the invite itself as well as its short name.
        let public = Invite::parse(id)
            .ok()
            .map(|i| i.key().verifying_key().to_bytes());
        let text = public.map_or_else(
            || id.to_ascii_lowercase(),
            |public| HEXLOWER.encode(&public),
        );
        let issued = self
            .state
            .subnets
            .values()
            .filter(|s| only.as_ref().is_none_or(|(id, _)| *id == s.records.id))
            .flat_map(|s| s.local.invites.iter().map(|i| (s.records.id, i.public)));
        let all: Vec<Named<(SubnetId, [u8; 32])>> = issued
            .map(|what| Named {
                what,
                id: Some(Id::plain(HEXLOWER.encode(&what.1))),
                names: vec![],
            })
            .collect();
        let within = only.as_ref().map(|(_, name)| format!(" for {name}"));
        let none = || {
            crate::model::error::Error::new(
                crate::model::error::Kind::NotFound,
                Code::NoInvite,
                format!(
                    "no invite {} was issued here{}",
                    printable(id),
                    within.unwrap_or_default()
                ),
            )
            .hint(Hint::ListInvites)
        };
        let (subnet, public) = find(&all, &text).map_err(|miss| miss.error(id, none))?;
        let mut subnet = self.state.edit(&subnet.to_string())?;
        let mut changed = false;
        for invite in subnet
            .local
            .invites
            .iter_mut()
            .filter(|i| i.public == public)
        {
            changed |= !invite.revoked;
            invite.revoked = true;
        }
        self.save(subnet)?;
        Ok(done("invite revoked", changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_names_relays_beside_any_number_of_addresses() {
        let direct = |n: usize| format!("/ip4/192.0.2.{n}/tcp/4100");
        let circuit = |n: usize| format!("{}/p2p/R/p2p-circuit", direct(n));
        let all: Vec<_> = (0..9).map(direct).chain((0..3).map(circuit)).collect();
        let told = few(&all);
        assert_eq!(told[..4], all[..4]);
        assert_eq!(told[4..], [circuit(0), circuit(1)]);
        assert_eq!(few(&all[..3]), all[..3]);
    }

    #[test]
    fn an_invite_names_a_websocket_where_there_is_one() {
        let web = "/ip4/192.0.2.1/tcp/443/wss".to_owned();
        let direct = (0..9).map(|n: usize| format!("/ip4/192.0.2.{n}/tcp/4100"));
        let mut all: Vec<_> = direct.chain([web.clone()]).collect();
        let told = few(&all);
        assert_eq!(told[..5], all[..5]);
        assert_eq!(told[5], web);
        all.swap(0, 9);
        assert_eq!(few(&all), all[..6], "in its own place where it has one");
    }

    #[test]
    fn an_invite_names_two_relays_where_there_are_two() {
        let through =
            |relay: &str, way: &str| format!("/ip4/192.0.2.1/{way}/p2p/{relay}/p2p-circuit");
        let all = [
            through("R", "udp/4100/quic-v1"),
            through("R", "tcp/4100"),
            through("S", "udp/4100/quic-v1"),
            through("S", "tcp/4100"),
        ];
        assert_eq!(few(&all), [all[0].clone(), all[2].clone()]);
        assert_eq!(few(&all[..2]), all[..2]);
    }
}
