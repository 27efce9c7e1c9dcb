//! A change that is decided and not yet saved.
//!
//! A command is decided on a copy of a subnet ([`State::edit`]), what it [changes](Draft::changes) is saved by the caller,
//! and only then the draft is absorbed ([`State::absorb`]): what could not be saved has changed nothing.

use std::collections::BTreeMap;

use super::id::SubnetId;
use super::local::{FormerSubnet, PendingJoin};
use super::members::Subnet;
use super::record::{Digest, encode};
use super::state::State;
use super::verified::Verified;

/// A change that is decided and not yet saved.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// Subnets as they shall be; `None` removes one.
    subnets: BTreeMap<SubnetId, Option<Box<Subnet>>>,
    joins: BTreeMap<SubnetId, Option<PendingJoin>>,
    past: Option<Vec<FormerSubnet>>,
}

/// Key and value as they go to disk; no value deletes.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// What a draft changes of what is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Records that came: what the store and the other members get.
    pub came: Vec<Verified>,
    /// Records that no longer count: the store deletes them.
    pub went: Vec<(SubnetId, Digest)>,
    /// Memberships, joins and the history, as they go to disk.
    pub rest: Vec<Write>,
}

impl Changes {
    /// Whether there is nothing to save.
    pub fn is_empty(&self) -> bool {
        self.came.is_empty() && self.went.is_empty() && self.rest.is_empty()
    }

    /// All of it as it goes to disk: one transaction.
    pub fn into_writes(self) -> Vec<Write> {
        let went = self
            .went
            .iter()
            .map(|(id, digest)| (record_key(*id, digest), None));
        let came = self.came.iter().map(|record| {
            let signed = record.signed();
            (
                record_key(signed.subnet, &record.digest()),
                Some(signed.encode()),
            )
        });
        went.chain(came).chain(self.rest).collect()
    }
}

impl Draft {
    /// Sets a subnet as it shall be.
    pub fn put(&mut self, subnet: Subnet) {
        self.subnets
            .insert(subnet.records.id, Some(Box::new(subnet)));
    }

    /// The subnet as it shall be, to be changed further.
    pub(super) fn subnet_mut(&mut self, id: SubnetId) -> Option<&mut Subnet> {
        self.subnets.get_mut(&id)?.as_deref_mut()
    }

    /// A subnet that shall be here no more, nor be joined.
    pub(super) fn remove(&mut self, id: SubnetId) {
        self.subnets.insert(id, None);
        self.joins.insert(id, None);
    }

    /// Sets a join that waits, or takes it off with `None`.
    pub fn join(&mut self, id: SubnetId, join: Option<PendingJoin>) {
        self.joins.insert(id, join);
    }

    /// Sets the former subnets that shall be remembered.
    pub fn remember(&mut self, past: Vec<FormerSubnet>) {
        self.past = Some(past);
    }

    /// Whether there is anything to save.
    pub fn is_empty(&self) -> bool {
        self.subnets.is_empty() && self.joins.is_empty() && self.past.is_none()
    }

    /// What of `state` is another one with this draft, of what is saved.
    pub fn changes(&self, state: &State) -> Changes {
        let mut changes = Changes::default();
        for (id, new) in &self.subnets {
            let old = state.subnets.get(id);
            changes.add_records(*id, old, new.as_deref());
            let (before, after) = (old.map(|s| &s.local), new.as_ref().map(|s| &s.local));
            if before != after {
                changes
                    .rest
                    .push((key(b'l', *id, &[]), after.map(|local| encode(&**local))));
            }
        }
        for (id, join) in &self.joins {
            if state.joins.get(id) != join.as_ref() {
                changes
                    .rest
                    .push((key(b'j', *id, &[]), join.as_ref().map(encode)));
            }
        }
        if let Some(past) = self.past.as_ref().filter(|p| **p != state.past) {
            changes.rest.push((vec![b'p'], Some(encode(past))));
        }
        changes
    }
}

impl Changes {
    fn add_records(&mut self, id: SubnetId, old: Option<&Subnet>, new: Option<&Subnet>) {
        match (old, new) {
            (Some(old), Some(new)) => {
                let (went, came) = old.records.changes(&new.records);
                self.went
                    .extend(went.into_iter().map(|digest| (id, digest)));
                self.came.extend(came);
            }
            (old, new) => {
                let went = old
                    .into_iter()
                    .flat_map(|s| s.records.entries())
                    .map(|(digest, _)| (id, *digest));
                self.went.extend(went);
                self.came
                    .extend(new.into_iter().flat_map(|s| s.records.verified()));
            }
        }
    }
}

impl State {
    /// Makes a saved draft true; gives the draft that takes it back.
    pub fn absorb(&mut self, draft: Draft) -> Draft {
        let mut undo = Draft::default();
        for (id, subnet) in draft.subnets {
            let former = match subnet {
                Some(subnet) => self.subnets.insert(id, *subnet),
                None => self.subnets.remove(&id),
            };
            undo.subnets.insert(id, former.map(Box::new));
        }
        for (id, join) in draft.joins {
            let former = match join {
                Some(join) => self.joins.insert(id, join),
                None => self.joins.remove(&id),
            };
            undo.joins.insert(id, former);
        }
        undo.past = draft
            .past
            .map(|past| std::mem::replace(&mut self.past, past));
        self.note_signed_time();
        undo
    }
}

/// The store's key of a record.
pub fn record_key(id: SubnetId, digest: &Digest) -> Vec<u8> {
    key(b'r', id, digest)
}

/// `kind | subnet ID | rest`.
fn key(kind: u8, id: SubnetId, rest: &[u8]) -> Vec<u8> {
    [&[kind], id.0.as_slice(), rest].concat()
}
