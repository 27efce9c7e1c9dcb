//! Names this node publishes.

use super::done;
use crate::api::types::{Error, Response};
use crate::model::record::NameEntry;
use crate::model::zone::RecordData;
use crate::node::Core;

impl Core {
    /// `dns add`.
    ///
    /// # Errors
    /// See [`Subnet::dns_add`](crate::model::members::Subnet::dns_add).
    pub fn dns_add(
        &mut self,
        text: &str,
        name: &str,
        data: &[RecordData],
        ttl: u32,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let relative = subnet.relative(name);
        let said = subnet
            .records
            .announcement(self.state.me.peer)
            .map(|announcement| &announcement.names);
        let is_said = |answer: &RecordData| {
            let same = |n: &NameEntry| n.name == relative && n.data == *answer && n.ttl == ttl;
            said.is_some_and(|names| names.iter().any(same))
        };
        let changed = !data.iter().all(is_said);
        subnet.dns_add(&self.state.me.clone(), name, data, ttl, self.now())?;
        let full = format!("{relative}.{}", subnet.records.genesis.domain);
        if changed {
            self.save(subnet)?;
        }
        Ok(done(format!("added {full}"), changed))
    }

    /// `dns release`: a name of whoever holds it, or of one member.
    ///
    /// # Errors
    /// See [`Subnet::dns_release`](crate::model::members::Subnet::dns_release).
    pub fn dns_release(
        &mut self,
        text: &str,
        name: &str,
        member: Option<&str>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.resolve(now);
        let member = member
            .map(|m| subnet.find_member(&resolved, m, now))
            .transpose()?;
        let from = subnet.dns_release(&self.state.me.clone(), name, member, now)?;
        let (owner, relative) = (subnet.records.genesis.owner, subnet.relative(name));
        let by_owner = subnet
            .records
            .registration(from, owner)
            .is_some_and(|r| r.names.contains(&relative));
        let from = resolved
            .members
            .get(&from)
            .map_or_else(|| from.to_string(), |m| m.name.to_string());
        let full = format!("{relative}.{}", subnet.records.genesis.domain);
        self.save(subnet)?;
        let again = if by_owner {
            format!(" (the owner registered it: {from} has it back once it is there)")
        } else {
            String::new()
        };
        Ok(done(format!("released {full} from {from}{again}"), true))
    }

    /// `dns rm`.
    ///
    /// # Errors
    /// `E-NO-NAME`.
    pub fn dns_rm(
        &mut self,
        text: &str,
        name: &str,
        kind: Option<&str>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let count = subnet.dns_rm(&self.state.me.clone(), name, kind, self.now())?;
        self.save(subnet)?;
        Ok(done(
            format!(
                "removed {count} record{}",
                if count == 1 { "" } else { "s" }
            ),
            true,
        ))
    }
}
