//! What a reload does about memberships: what was declared, what is declared now and what is here, compared. No I/O.

use std::collections::BTreeSet;

use crate::config::DeclaredSubnet;
use crate::model::id::SubnetId;

/// A declaration with the subnet that it means; `None` where its invite cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meant {
    pub id: Option<SubnetId>,
    pub table: DeclaredSubnet,
}

/// What is here of any subnet.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Memberships, and joins that wait for an answer.
    pub stands: BTreeSet<SubnetId>,
    /// Joins that were refused, which are shown until they are asked again or left.
    pub refused: BTreeSet<SubnetId>,
}

/// What an earlier reading could not do; the next one tries again.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Declared, and not in force.
    pub follow: Vec<DeclaredSubnet>,
    /// Declared no more, and here.
    pub leave: BTreeSet<SubnetId>,
}

/// A declaration to join or to follow.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Follow {
    pub table: DeclaredSubnet,
    /// The subnet that it means, where that is here: no invite is needed, so its file may be gone.
    pub stands: Option<SubnetId>,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub follow: Vec<Follow>,
    /// Declared no more.
    pub leave: BTreeSet<SubnetId>,
    /// Where something was declared of which nobody knows any more what it was.
    pub unknown: Vec<String>,
}

/// Whether two declarations say the same, wherever they stand.
pub(super) fn same(a: &DeclaredSubnet, b: &DeclaredSubnet) -> bool {
    let plain = |s: &DeclaredSubnet| DeclaredSubnet { origin: String::new(), ..s.clone() };
    plain(a) == plain(b)
}

/// Compares.
pub(super) fn plan(before: &[Meant], now: &[Meant], unfinished: &Unfinished, standing: &Standing) -> Plan {
    let mut plan = Plan::default();
    for Meant { id, table } in now {
        let alike = |b: &&Meant| match (b.id, id) {
            (Some(was), Some(id)) => was == *id,
            _ => b.table.invite_file.is_some() && b.table.invite_file == table.invite_file,
        };
        let was = before.iter().find(alike);
        let unchanged = was.is_some_and(|was| same(&was.table, table));
        let stands = (*id).filter(|id| standing.stands.contains(id));
        if !unchanged || stands.is_none() || unfinished.follow.iter().any(|t| same(t, table)) {
            plan.follow.push(Follow { table: table.clone(), stands });
        }
    }
    let declared: BTreeSet<SubnetId> = now.iter().filter_map(|n| n.id).collect();
    let here = |id: &SubnetId| standing.stands.contains(id) || standing.refused.contains(id);
    let left = |id: &SubnetId| !declared.contains(id) && here(id);
    let mut gone: BTreeSet<SubnetId> = unfinished.leave.iter().copied().filter(|id| left(id)).collect();
    for Meant { id, table } in before.iter().filter(|b| !now.iter().any(|n| same(&n.table, &b.table))) {
        match id {
            Some(id) if left(id) => {
                gone.insert(*id);
            }
            Some(_) => {}
            None if now.iter().any(|n| n.table.invite_file == table.invite_file) => {}
            None => plan.unknown.push(table.origin.clone()),
        }
    }
    plan.leave = gone;
    plan
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
