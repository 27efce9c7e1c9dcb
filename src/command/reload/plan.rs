//! What a reload does about memberships: what was declared, what is declared now and what is here, compared. No I/O.

use std::collections::BTreeSet;

use super::leaving::Leaving;
use crate::config::DeclaredSubnet;
use crate::model::id::SubnetId;

/// A declaration with the subnet that it means; `None` where its invite cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meant {
    pub id: Option<SubnetId>,
    pub table: DeclaredSubnet,
}

impl Meant {
    /// Whether it is for the same subnet as another declaration, as far as one can tell.
    fn is_of(&self, id: Option<SubnetId>, table: &DeclaredSubnet) -> bool {
        match (self.id, id) {
            (Some(was), Some(id)) => was == id,
            _ => self.table.invite_file.is_some() && self.table.invite_file == table.invite_file,
        }
    }
}

/// The memberships and joins that are on this machine.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Memberships, and joins that wait for an answer.
    pub stands: BTreeSet<SubnetId>,
    /// Joins that were refused, which are shown until they are asked again or left.
    pub refused: BTreeSet<SubnetId>,
    /// Those of both that no declaration brought here: what a person created or joined is left by a person.
    pub by_hand: BTreeSet<SubnetId>,
}

impl Standing {
    /// Those of both that a declaration brought here.
    pub fn by_declaration(&self) -> impl Iterator<Item = SubnetId> {
        let all = self.stands.union(&self.refused).copied();
        all.filter(|id| !self.by_hand.contains(id))
    }
}

/// What an earlier reading could not do; the next one tries again.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Declarations that are not in force yet.
    pub follow: Vec<DeclaredSubnet>,
    /// Subnets that are declared no more, and still here.
    pub leave: BTreeSet<SubnetId>,
    /// Since when these have been found declared no more.
    pub leaving: Leaving,
}

/// A declaration to join or to follow.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Follow {
    pub table: DeclaredSubnet,
    /// The subnet that it means, where that is here: no invite is needed, so its file may be gone.
    pub stands: Option<SubnetId>,
    /// What was declared of the same subnet before.
    pub was: Option<DeclaredSubnet>,
}

/// What a reload has to join, leave and change so that the memberships follow the new tables.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub follow: Vec<Follow>,
    /// Subnets that are declared no more.
    pub leave: BTreeSet<SubnetId>,
    /// Declared no more, as far as one can tell while a declared invite cannot be read: it may be for one of these.
    pub kept: BTreeSet<SubnetId>,
    /// Declared no more, and here by a person's hand.
    pub stays: BTreeSet<SubnetId>,
    /// Where something was declared of which nobody knows any more what it was.
    pub unknown: Vec<String>,
    /// Files that are gone, each with a subnet that would be left for that.
    pub missing: Vec<(String, SubnetId)>,
}

/// Whether two declarations say the same, wherever they stand.
pub(super) fn same(a: &DeclaredSubnet, b: &DeclaredSubnet) -> bool {
    let plain = |s: &DeclaredSubnet| DeclaredSubnet {
        origin: String::new(),
        ..s.clone()
    };
    plain(a) == plain(b)
}

/// Compares. `exists` tells whether a configuration file is there.
pub(super) fn plan(
    before: &[Meant],
    now: &[Meant],
    unfinished: &Unfinished,
    standing: &Standing,
    exists: impl Fn(&str) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for Meant { id, table } in now {
        let was = before.iter().find(|b| b.is_of(*id, table));
        let was = was.map(|b| b.table.clone());
        let unchanged = was.as_ref().is_some_and(|was| same(was, table));
        let stands = (*id).filter(|id| standing.stands.contains(id));
        if !unchanged || stands.is_none() || unfinished.follow.iter().any(|t| same(t, table)) {
            plan.follow.push(Follow {
                table: table.clone(),
                stands,
                was,
            });
        }
    }
    let declared: BTreeSet<SubnetId> = now.iter().filter_map(|n| n.id).collect();
    let here = |id: &SubnetId| standing.stands.contains(id) || standing.refused.contains(id);
    let is_over = |id: &SubnetId| !declared.contains(id) && here(id);
    let left = |id: &SubnetId| is_over(id) && !standing.by_hand.contains(id);
    let mut gone: BTreeSet<SubnetId> = unfinished
        .leave
        .iter()
        .copied()
        .filter(|id| left(id))
        .collect();
    for Meant { id, table } in before
        .iter()
        .filter(|b| !now.iter().any(|n| same(&n.table, &b.table)))
    {
        match id {
            Some(id) if left(id) => {
                gone.insert(*id);
                let file = table
                    .origin
                    .rsplit_once(':')
                    .map_or(table.origin.as_str(), |(file, _)| file);
                if !exists(file) {
                    plan.missing.push((file.to_owned(), *id));
                }
            }
            Some(id) if is_over(id) => {
                plan.stays.insert(*id);
            }
            Some(_) => {}
            None if now.iter().any(|n| n.table.invite_file == table.invite_file) => {}
            None => plan.unknown.push(table.origin.clone()),
        }
    }
    let all_known = now.iter().all(|n| n.id.is_some());
    *(if all_known {
        &mut plan.leave
    } else {
        &mut plan.kept
    }) = gone;
    plan
}

/// Whether what this machine opens was declared and is not any more: what is open stays open, as if it had been typed.
pub(super) fn host_removed(was: Option<&DeclaredSubnet>, now: &DeclaredSubnet) -> bool {
    was.is_some_and(|was| was.host.is_some()) && now.host.is_none()
}

/// The keys whose change is not taken over: a membership keeps what it was joined with. `ignored` are the flags that `join`
/// did not take; a join that still waits (`ready` is false) takes what is new and keeps what is declared no more.
pub(super) fn not_taken(
    was: Option<&DeclaredSubnet>,
    now: &DeclaredSubnet,
    ready: bool,
    ignored: &[String],
) -> Vec<&'static str> {
    let flagged = |flag: &str| ignored.iter().any(|i| i == flag);
    let removed = |given: fn(&DeclaredSubnet) -> bool| was.is_some_and(given) && !given(now);
    let lost = |list: fn(&DeclaredSubnet) -> Vec<String>| {
        let (was, now) = (was.map(list).unwrap_or_default(), list(now));
        was.iter().any(|one| !now.contains(one))
    };
    let changed = |list: fn(&DeclaredSubnet) -> Vec<String>| {
        lost(list)
            || ready && was.is_some_and(|was| list(now).iter().any(|one| !list(was).contains(one)))
    };
    let keys = [
        ("name", flagged("--name") || removed(|s| s.name.is_some())),
        ("as", flagged("--as") || removed(|s| s.alias.is_some())),
        ("ip", flagged("--ip") || removed(|s| s.ip.is_some())),
        ("peer", lost(|s| s.peers.clone())),
        (
            "allow_prefix",
            changed(|s| s.allow.prefixes.iter().map(ToString::to_string).collect()),
        ),
        ("allow_domain", changed(|s| s.allow.domains.clone())),
    ];
    keys.into_iter()
        .filter(|(_, kept)| *kept)
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
