//! Leases: prefixes given to one member and taken back.

use ipnet::IpNet;

use super::done;
use crate::api::types::{Error, Response};
use crate::model::id::PeerId;
use crate::node::Core;

impl Core {
    /// `lease add` (one entry) and `lease import` (a whole routing table): all or nothing.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-LEASE-OUTSIDE`, `E-LEASE-TAKEN`, `E-LEASE-MANY`.
    pub fn lease_add(
        &mut self,
        text: &str,
        entries: &[(IpNet, PeerId)],
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let changed = subnet.lease(&self.state.me.clone(), entries, self.now())?;
        self.save(subnet)?;
        Ok(done(
            format!(
                "{} leased",
                if entries.len() == 1 {
                    "1 prefix".to_owned()
                } else {
                    format!("{} prefixes", entries.len())
                }
            ),
            changed,
        ))
    }

    /// The peer a lease goes to: a member by name or ID, any full peer ID, or this node.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NO-MEMBER`.
    pub fn lease_owner(&self, text: &str, member: Option<&str>) -> Result<PeerId, Error> {
        let subnet = self.state.find(text)?;
        let Some(member) = member else {
            return Ok(self.state.me.peer);
        };
        match member.parse::<PeerId>() {
            Ok(peer) => Ok(peer),
            Err(_) => {
                let now = self.now();
                Ok(subnet.find_member(&subnet.resolve(now), member, now)?)
            }
        }
    }

    /// `lease rm`; whoever holds it, where no member is named. What nobody holds is given back already.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NO-LEASE`, `E-NOT-ADMIN`, `E-LEASE-OWN`.
    pub fn lease_rm(
        &mut self,
        text: &str,
        prefix: IpNet,
        member: Option<&str>,
    ) -> Result<Response, Error> {
        let from = member.map(|_| self.lease_owner(text, member)).transpose()?;
        let mut subnet = self.state.edit(text)?;
        if !subnet.unlease(&self.state.me.clone(), prefix, from, self.now())? {
            return Ok(done(format!("nobody holds {prefix} any more"), false));
        }
        self.save(subnet)?;
        Ok(done(format!("{prefix} given back"), true))
    }
}
