//! What those with a say do about names: registered, released, and told where two claim one.

use super::error::{Code, Error, Hint, Kind, Result};
use super::id::{Name, PeerId};
use super::members::{Identity, Subnet, printable};
use super::record::{Body, MAX_REGISTERED, Registration};
use super::resolve::Resolved;

impl Subnet {
    /// Remembers whose the names are that were claimed just now and that nobody else claims: this is answered from now on,
    /// whoever comes to claim the same before it is registered.
    pub(super) fn note_answers(&mut self, fresh: &[(String, PeerId)]) {
        for (name, by) in fresh
            .iter()
            .filter(|(name, by)| self.records.claims.of(name) == [*by])
        {
            self.local.seen.insert(name.as_str().into(), *by);
        }
    }

    /// Changes this node's registration of a member's names; says nothing where nothing changes.
    pub(super) fn register(
        &mut self,
        me: &Identity,
        holder: PeerId,
        change: impl FnOnce(&mut Registration),
    ) -> Result<()> {
        let seat = self.seat(me)?;
        let old = self.records.registrations.get(&(holder, me.peer)).cloned();
        let empty = Registration {
            holder,
            version: 0,
            seat,
            names: Default::default(),
            released: Default::default(),
        };
        let old = old.as_ref().map_or(&empty, |statement| &statement.body);
        let mut new = old.clone();
        change(&mut new);
        // Over the bound the last ones stay unregistered: they answer as long as nobody else claims them.
        while new.names.len() > MAX_REGISTERED {
            new.names.pop_last();
        }
        let version = self.records.announcement(holder).map_or(0, |d| d.version);
        if new.released.len() > MAX_REGISTERED {
            new.released.retain(|_, answered| *answered == version);
        }
        if new == *old {
            return Ok(());
        }
        new.version = new.version.saturating_add(1);
        self.issue(me, Body::Registration(new))
    }

    /// Takes a flat name from who holds it, or from `member`: it is free until that member says it anew. A member that is
    /// there does so at once where the owner registered the name and an admin took it.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-NO-NAME`, `E-NAME-CONTESTED` where several claim it and none was named.
    pub fn dns_release(
        &mut self,
        me: &Identity,
        name: &str,
        member: Option<PeerId>,
        now: u64,
    ) -> Result<PeerId> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        let name = self.relative(name);
        let holder = member.or_else(|| resolved.flat.get(name.as_str()).copied());
        let claims = |holder: &PeerId| {
            resolved.holds(*holder, &name)
                || resolved
                    .contested
                    .get(name.as_str())
                    .is_some_and(|c| c.contains(holder))
        };
        let Some(holder) = holder.filter(claims) else {
            return Err(match resolved.contested.get(name.as_str()) {
                Some(claimants) if member.is_none() => {
                    let names: Vec<String> = claimants
                        .iter()
                        .filter_map(|p| resolved.members.get(p))
                        .map(|m| m.name.to_string())
                        .collect();
                    let message = format!(
                        "{name} is claimed by {} and nobody holds it",
                        names.join(" and ")
                    );
                    Error::new(Kind::Conflict, Code::NameContested, message).hint(
                        Hint::ReleaseName {
                            subnet: self.name().clone(),
                            name: name.to_string(),
                        },
                    )
                }
                _ => Error::new(
                    Kind::NotFound,
                    Code::NoName,
                    format!("no member holds the name {}", printable(&name)),
                )
                .hint(Hint::ListNames(self.name().clone())),
            });
        };
        let version = self.records.announcement(holder).map_or(0, |d| d.version);
        self.register(me, holder, |r| {
            r.names.remove(&name);
            r.released.insert(name, version);
        })?;
        // Who claims it as well has it from this moment: else the former holder could be first again.
        self.keep_names(me, now)?;
        Ok(holder)
    }

    /// A peer whose request was denied a moment ago, by its ID.
    pub fn was_denied(&self, text: &str) -> Option<PeerId> {
        let peer = text.parse::<PeerId>().ok()?;
        self.local.denied.contains_key(&peer).then_some(peer)
    }

    /// Names that nobody holds by an admin's word, as who may do something about it sees them: those this node claims, and
    /// all of them for the owner and admins. Subnet, name, claimants.
    pub fn contested_names(
        &self,
        me: &Identity,
        resolved: &Resolved,
    ) -> Vec<(Name, String, Vec<String>)> {
        let admin = self.require_admin(me, resolved).is_ok();
        let concerns = |by: &[PeerId]| admin || by.contains(&me.peer);
        let called = |peer: &PeerId| {
            resolved
                .members
                .get(peer)
                .map_or_else(|| peer.to_string(), |m| m.name.to_string())
        };
        (resolved.contested.iter())
            .filter(|(_, by)| concerns(by))
            .map(|(name, by)| {
                (
                    self.name().clone(),
                    name.to_string(),
                    by.iter().map(called).collect(),
                )
            })
            .collect()
    }
}
