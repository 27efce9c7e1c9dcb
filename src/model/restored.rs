//! A state that is older than what others have of it: a machine restored from a backup.
//!
//! Records come back from the members. What is nowhere but here does not: who used an invite, and which were revoked. So a
//! node that is shown what it has signed itself and does not know withdraws every invite that is still open.

use super::id::SubnetId;
use super::record::{Body, Verified};
use super::state::Draft;

/// Whether a node to which these records of its own are news had forgotten them. What it says of itself, whom it admitted
/// and who administers is saved before anybody is told, and known for as long as it counts.
pub fn had_forgotten<'a>(mut own: impl Iterator<Item = &'a Verified>, now: u64) -> bool {
    own.any(|record| match record.body() {
        Body::Head(_) | Body::Doc(_) => true,
        Body::Grant(grant) => now < grant.not_after,
        Body::Revocation(_) | Body::Registration(_) | Body::Item(_) => false,
    })
}

impl Draft {
    /// Withdraws the invites of a subnet that are open at `now`; how many.
    pub fn withdraw_invites(&mut self, subnet: SubnetId, now: u64) -> usize {
        let Some(subnet) = self.subnet_mut(subnet) else { return 0 };
        let open = subnet.local.invites.iter_mut().filter(|invite| !invite.revoked && now < invite.expires);
        open.filter(|invite| invite.used.len() < invite.uses as usize).map(|invite| invite.revoked = true).count()
    }
}
