//! What a member says of itself: endpoints, workloads, names; and its own port maps, which it tells nobody.

mod companions;
pub mod followed;
mod health;
mod imports;
mod maps;
mod names;
mod workloads;

use super::claims::claimed;
use super::error::{Code, Error, Hint, Kind, Result};
use super::id::{Name, PeerId};
use super::members::{Identity, Subnet, would_be_refused};
use super::record::{Announcement, Body, MAX_ENTRIES, MAX_RECORD, RecordError, Verified};
use super::resolve::{Member, Resolved};
pub(in crate::model) use companions::say;
pub use maps::{MAX_PORTS, endpoint};

/// What a person adds to this machine and the kernel has to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// A workload, which `attach` adds.
    Workload,
    /// A port map, which `map add` adds.
    Map,
}

impl Subnet {
    /// This node as a member.
    ///
    /// # Errors
    /// `E-NOT-MEMBER` while the grant has run out or was revoked.
    pub fn myself<'a>(&self, me: &Identity, resolved: &'a Resolved) -> Result<&'a Member> {
        resolved
            .members
            .get(&me.peer)
            .map(AsRef::as_ref)
            .ok_or_else(|| {
                Error::new(
                    Kind::Refused,
                    Code::NotMember,
                    format!("this node is no member of subnet {} now", self.name()),
                )
                .hint(Hint::Join(self.records.id))
            })
    }

    /// Publishes this node's announcement with `change` applied; the same announcement again is not published. `now` is
    /// seconds since 1970.
    pub(super) fn publish(
        &mut self,
        me: &Identity,
        now: u64,
        change: impl FnOnce(&mut Announcement),
    ) -> Result<()> {
        let old = self.records.announcements.get(&me.peer).cloned();
        let old = old.as_ref().map(|statement| &statement.body);
        let mut announcement = old.cloned().unwrap_or_default();
        change(&mut announcement);
        announcement.life = me.life;
        // Who was let in again has left no more.
        if announcement
            .left
            .is_some_and(|left| self.records.grants_of(me.peer).any(|g| g.generation > left))
        {
            announcement.left = None;
        }
        if old == Some(&announcement) {
            return Ok(());
        }
        if announcement
            .workloads
            .len()
            .saturating_add(announcement.names.len())
            > MAX_ENTRIES
        {
            return Err(Error::new(
                Kind::Conflict,
                Code::TooManyNames,
                format!("one member publishes at most {MAX_ENTRIES} workloads and names"),
            ));
        }
        announcement.version = announcement.version.saturating_add(1);
        announcement.issued = now;
        let before = old.map(claimed).unwrap_or_default();
        let fresh: Vec<(String, PeerId)> = claimed(&announcement)
            .difference(&before)
            .map(|name| ((*name).to_owned(), me.peer))
            .collect();
        let record = Verified::sign(self.records.id, Body::Announcement(announcement), &me.key)
            .map_err(|error| match error {
                RecordError::Size(_) => Error::new(
                    Kind::Conflict,
                    Code::TooManyNames,
                    format!(
                        "what one member publishes in a subnet has at most {} KiB",
                        MAX_RECORD / 1024
                    ),
                ),
                _ => would_be_refused(),
            })?;
        self.take_own(record)?;
        self.note_answers(&fresh);
        Ok(())
    }

    /// Says where this node can be dialled.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement the others would refuse; this node makes none.
    pub fn set_endpoints(&mut self, me: &Identity, endpoints: &[String], now: u64) -> Result<()> {
        let list: Vec<String> = endpoints.iter().take(32).cloned().collect();
        self.publish(me, now, |d| d.endpoints = list)
    }

    /// Gives this node's leases back: the member that leaves says so itself.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement the others would refuse; this node makes none.
    pub fn say_goodbye(&mut self, me: &Identity, now: u64) -> Result<()> {
        let generation = self
            .records
            .grants_of(me.peer)
            .map(|g| g.generation)
            .max()
            .unwrap_or(0);
        self.publish(me, now, |d| {
            d.left = Some(generation);
            d.workloads.clear();
            d.names.clear();
            d.endpoints.clear();
        })
    }

    /// What the kernel has taken stands from now on, also after the daemon was killed.
    pub fn confirm(&mut self, name: &Name, what: Added) {
        match what {
            Added::Workload => self.local.unconfirmed.workloads.remove(name),
            Added::Map => self.local.unconfirmed.maps.remove(name),
        };
    }
}
