//! The kernel follows the View: `observe`, `plan`, `apply`.
//!
//! Owns everything this daemon has in the kernel of its machine: links, addresses, routes, rules, sysctls, the nftables
//! table, the resolver files of workloads; and our rules in the firewalls of others. Deletes only what bears its mark. Tells
//! which of its own records cannot be written ([`Unwritten`](crate::model::unwritten::Unwritten)). Never decides what is
//! wanted: that is [`HostConfig`].

pub mod asking;
mod cleanup;
pub mod conntrack;
mod crowd;
pub mod door;
mod events;
mod exits;
mod firewall;
mod flows;
pub mod health;
mod inner;
mod journal;
mod lan_links;
mod linux;
pub mod listening;
mod living;
pub mod memory;
pub mod moved;
mod netconf;
pub mod netlink;
pub mod netns;
pub mod nft;
mod outward;
pub mod preflight;
pub mod proxy;
pub mod reconcile;
pub mod resolver;
mod rules;
mod sockets;
pub mod split_dns;
pub mod sysctl;
#[cfg(test)]
mod tests;
pub mod traffic;
mod untouched;
mod uplinks;
mod within;

use std::future::Future;
use std::sync::Arc;

pub use cleanup::{Cleaned, Guests, cleanup};
pub use lan_links::{LanLink, LinkChanges, lan_links};
pub use linux::{LinuxHost, Rules};
pub use living::{Living, Process, living, owner};
pub use netlink::{Router, foreign_links, gateways, routers, used_prefixes};
pub use outward::{Outward, keep_outward, outward};
pub use preflight::preflight;
pub use untouched::Untouched;
pub use uplinks::{Uplinks, Ways};

pub use crate::model::host::{Applied, Failure};
use crate::model::host::{Change, HostConfig, Observed, Part, TunConfig};

/// Opens a TUN by its configuration.
pub type OpenTun = Arc<dyn Fn(&TunConfig) -> anyhow::Result<()> + Send + Sync>;
/// Closes the TUN with that name.
pub type CloseTun = Arc<dyn Fn(&str) + Send + Sync>;

/// Gives the kernel a packet as if it came from the TUN of that name.
pub type InjectTun = Arc<dyn Fn(&str, &[u8]) -> anyhow::Result<()> + Send + Sync>;

/// How TUN devices are opened and closed: handed over by the daemon, which runs their packet loops.
#[derive(Clone)]
pub struct TunControl {
    /// Makes the device in the calling thread's namespace and starts its packet loop. Called again for a name that is
    /// open when the device was deleted from outside: the old one is dead then and is to be replaced.
    pub open: OpenTun,
    /// Ends the packet loop and drops the device; a name that is not open is no error.
    pub close: CloseTun,
    /// Sends a packet of our own into the kernel.
    pub inject: InjectTun,
}

/// A kernel that can be made to follow a [`HostConfig`].
pub trait Host: Send + 'static {
    /// What is, as far as `desired` and our earlier traces concern it.
    ///
    /// # Errors
    /// When the kernel cannot be read at all; single namespaces that cannot are in [`Observed::unreadable`].
    fn observe(
        &mut self,
        desired: &HostConfig,
    ) -> impl Future<Output = anyhow::Result<Observed>> + Send;

    /// Makes the changes, which were planned from `observed`, in order, and brings what is not planned object by object
    /// (ruleset, proxies) in line with `desired`. Goes on after a failure and returns all of them.
    fn apply(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        changes: Vec<Change>,
    ) -> impl Future<Output = Vec<Failure>> + Send;

    /// The daemon stops: what is applied from now on shall be done by then, and what is not is told.
    fn end_by(&mut self, _until: std::time::Instant) {}

    /// Resolves when something may have changed that concerns us.
    ///
    /// # Cancel safety
    /// Nothing is lost: a change seen before the future is dropped resolves the next one.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// A failure from anything with a text, of the whole machine: [`Failure::of`] says which part of it alone.
pub(crate) fn failure(what: impl ToString, why: impl ToString) -> Failure {
    Failure {
        what: what.to_string(),
        why: why.to_string(),
        of: [Part::Machine].into(),
    }
}

/// A change that was not made.
pub(crate) fn not_made(desired: &HostConfig, change: &Change, why: impl ToString) -> Failure {
    failure(change, why).of(desired.parts_of(change))
}
