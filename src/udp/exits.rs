//! By which link the datagrams from some of our addresses leave.
//!
//! A machine with two uplinks usually has two default routes of different metrics, and no policy routing. The kernel then sends
//! everything by the better route, also what comes from the address of the other uplink; the network there drops that as
//! forged. For such an address each message names the link, and the kernel looks for a route over that link alone. Which
//! addresses need it is found out elsewhere, by asking the kernel.
//!
//! The kernel may refuse a link that it took before: the link is down, or its route is gone. Then the message leaves without
//! a link, as if this table were empty, and so do all from that address for half a minute.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::errno::Errno;

/// How long a link that the kernel refused is not named again.
const REFUSED: Duration = Duration::from_secs(30);

/// The link by which datagrams from one of our addresses leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The address of ours that the datagrams come from.
    pub local: IpAddr,
    /// The index of the link that has this address.
    pub link: u32,
    /// What the kernel is told beside the link.
    pub source: Source,
}

/// Who chooses the address that a datagram comes from, where its link is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The message names it.
    Named,
    /// The kernel does, and is known to choose that one on this link. Of IPv6 it keeps to the link only then: where a source
    /// is named, too, the route of the least metric is taken, over whatever link.
    OfLink,
}

/// The exits of one port, replaced as a whole.
#[derive(Debug)]
pub(super) struct Exits {
    held: ArcSwap<Vec<Held>>,
    began: Instant,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Held {
    exit: Exit,
    /// Until when the link is not named, in milliseconds since the port was bound; 0 for one that was not refused.
    until: AtomicU64,
}

impl Default for Exits {
    fn default() -> Exits {
        Exits {
            held: ArcSwap::default(),
            began: Instant::now(),
            refused: AtomicU64::new(0),
        }
    }
}

impl Exits {
    /// Takes these in place of those before; whether anything is different. Then what was refused is tried again.
    pub(super) fn set(&self, exits: &[Exit]) -> bool {
        let held = self.held.load();
        if held.iter().map(|held| &held.exit).eq(exits) {
            return false;
        }
        let held = exits.iter().map(|exit| Held {
            exit: *exit,
            until: AtomicU64::new(0),
        });
        self.held.store(Arc::new(held.collect()));
        true
    }

    /// The exit of datagrams from that address; none where the kernel is to choose the link.
    pub(super) fn of(&self, local: IpAddr) -> Option<Exit> {
        let all = self.held.load();
        let held = all.iter().find(|held| held.exit.local == local)?;
        let until = held.until.load(Ordering::Relaxed);
        (until == 0 || self.now() >= until).then_some(held.exit)
    }

    /// The kernel refused a message by that link, and took it without.
    pub(super) fn refuse(&self, exit: Exit, error: Errno) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed);
        let all = self.held.load();
        if let Some(held) = all.iter().find(|held| held.exit == exit) {
            let pause = u64::try_from(REFUSED.as_millis()).unwrap_or(u64::MAX);
            let until = self.now().saturating_add(pause);
            held.until.store(until, Ordering::Relaxed);
        }
        tracing::debug!(local = %exit.local, link = exit.link, %error, count, "the kernel does not send by that link");
    }

    /// Messages that the kernel refused to send by the link of their address, and took without it.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whether the kernel says so where it does not send by a link that is named: it is gone or down, has no such address, or
/// leads nowhere.
pub(super) fn is_refusal(error: Errno) -> bool {
    matches!(
        error,
        Errno::ENODEV
            | Errno::EINVAL
            | Errno::EADDRNOTAVAIL
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_was_refused_is_not_named_until_anything_changes() {
        let exits = Exits::default();
        let of = |local: &str| Exit {
            local: local.parse().unwrap(),
            link: 7,
            source: Source::Named,
        };
        let (one, other) = (of("192.0.2.1"), of("2001:db8::1"));
        assert_eq!(exits.of(one.local), None);
        assert!(exits.set(&[one, other]));
        exits.refuse(one, Errno::ENETUNREACH);
        let both = || [exits.of(one.local), exits.of(other.local)];
        assert_eq!(both(), [None, Some(other)]);
        assert!(!exits.set(&[one, other]));
        assert_eq!(both(), [None, Some(other)], "nothing is different");
        assert!(exits.set(&[one]));
        assert_eq!((both(), exits.refused()), ([Some(one), None], 1));
    }
}
