//! Invites that are withdrawn because somebody else may have meant to end them.
//!
//! A state may be older than what others have of it: a machine restored from a backup. Records come back from the members. What is nowhere but here does not: who used an invite, and which were revoked. So a
//! node that is shown what it has signed itself and does not know withdraws every invite that is still open. And whoever
//! takes a seat from an admin ends what was handed out in it, whatever seat that admin is given later.

use super::id::{PeerId, SubnetId};
use super::join::Issued;
use super::record::Verified;
use super::state::Draft;

/// Whether a node to which these records of its own are news had forgotten them. What it says of itself, whom it admitted
/// and who administers is saved before anybody is told, and known for as long as it counts.
pub fn had_forgotten<'a>(mut own: impl Iterator<Item = &'a Verified>, now: u64) -> bool {
    own.any(|record| match record {
        Verified::Head(_) | Verified::Announcement(_) => true,
        Verified::Grant(grant) => now < grant.body.not_after,
        Verified::Revocation(_) | Verified::Registration(_) | Verified::Item(_) => false,
    })
}

impl Draft {
    /// Withdraws the invites of a subnet that are open at `now`; how many.
    pub fn withdraw_invites(&mut self, subnet: SubnetId, now: u64) -> usize {
        self.subnet_mut(subnet).map_or(0, |subnet| {
            withdraw(&mut subnet.local.invites, now, |_| true)
        })
    }

    /// Withdraws the open invites that `me` made in a seat which it has lost since, also where it has one again; how many.
    /// A seat is lost by the owner's head, and by the word of another admin: who comes back after that has a grant of a
    /// higher generation, and an epoch of the owner's raises nobody above its least.
    pub fn withdraw_former_invites(&mut self, subnet: SubnetId, me: PeerId, now: u64) -> usize {
        let Some(subnet) = self.subnet_mut(subnet) else {
            return 0;
        };
        let records = &subnet.records;
        if subnet.local.invites.is_empty() || me == records.genesis.owner {
            return 0;
        }
        let (roll, seat, least) = (records.roll(), records.seat_of(me), records.head().least);
        let best = roll.members.get(&me).and_then(|entry| entry.best());
        let generation = best.map_or(0, |granted| granted.grant().generation);
        let is_out = roll.out.contains_key(&me);
        let former =
            |i: &Issued| is_out || seat != Some(i.seat) || generation > i.generation.max(least);
        withdraw(&mut subnet.local.invites, now, former)
    }
}

fn withdraw(invites: &mut [Issued], now: u64, which: impl Fn(&Issued) -> bool) -> usize {
    let open = invites
        .iter_mut()
        .filter(|i| !i.revoked && now < i.expires && i.used.len() < i.uses as usize);
    open.filter(|invite| which(invite))
        .map(|invite| invite.revoked = true)
        .count()
}
