//! Counters of a relay: its sessions, and the datagrams that it did not forward, by reason.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::id::PeerId;

/// Why a datagram was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// It came from another address than its leg is bound to.
    Elsewhere,
    /// The other leg is not bound.
    Unbound,
    /// The asker's share of the rate is used up.
    Rate,
    /// The socket's send buffer was full.
    Full,
    /// It carries no frame.
    Malformed,
}

/// Datagrams that were not forwarded, by [`Drop`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// Of [`Drop::Elsewhere`].
    pub elsewhere: u64,
    /// Of [`Drop::Unbound`].
    pub unbound: u64,
    /// Of [`Drop::Rate`].
    pub rate: u64,
    /// Of [`Drop::Full`].
    pub full: u64,
    /// Of [`Drop::Malformed`].
    pub malformed: u64,
}

impl Drops {
    /// Counts that many more.
    pub(super) fn add(&mut self, why: Drop, datagrams: u64) {
        let counter = match why {
            Drop::Elsewhere => &mut self.elsewhere,
            Drop::Unbound => &mut self.unbound,
            Drop::Rate => &mut self.rate,
            Drop::Full => &mut self.full,
            Drop::Malformed => &mut self.malformed,
        };
        *counter = counter.saturating_add(datagrams);
    }

    /// Every count with the name of its reason.
    pub fn named(self) -> [(&'static str, u64); 5] {
        [
            ("elsewhere", self.elsewhere),
            ("unbound", self.unbound),
            ("rate", self.rate),
            ("full", self.full),
            ("malformed", self.malformed),
        ]
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Drops) -> Drops {
        Drops {
            elsewhere: self.elsewhere.saturating_add(other.elsewhere),
            unbound: self.unbound.saturating_add(other.unbound),
            rate: self.rate.saturating_add(other.rate),
            full: self.full.saturating_add(other.full),
            malformed: self.malformed.saturating_add(other.malformed),
        }
    }
}

/// One session of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStats {
    /// The peer that asked for it, then the other one.
    pub peers: [PeerId; 2],
    /// Where each is bound; none where it is not yet.
    pub addresses: [Option<SocketAddr>; 2],
    /// Bytes of UDP payload that were forwarded from each of them.
    pub bytes: [u64; 2],
    /// What the asker may use in all its sessions together, in Mbit/s; none without a limit.
    pub mbit: Option<u32>,
    /// What was not forwarded.
    pub drops: Drops,
    /// How long it has been there.
    pub age: Duration,
}

/// What a relay serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// The sessions that are there, the oldest first.
    pub sessions: Vec<SessionStats>,
    /// Bytes of UDP payload forwarded since the start, of sessions that are over as well.
    pub bytes: u64,
    /// Drops since the start, of sessions that are over as well.
    pub drops: Drops,
    /// Sessions that were refused since the start.
    pub refused: u64,
}
