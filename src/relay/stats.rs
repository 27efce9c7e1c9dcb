//! Counters of a relay: its sessions, and the datagrams and questions that it did not serve, by reason.
//!
//! Whoever forwards adds to them while it holds the relay's state; whoever lists them reads them without it, so that a long
//! list holds up no frame. They are counted one by one: a reader may see one of two that belong together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::model::id::PeerId;
use crate::wire::relay::Refusal;

/// Why a datagram was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// It came from another address than its leg is bound to.
    Elsewhere,
    /// The other leg is not bound.
    Unbound,
    /// The share of the rate of whoever asked for the session is used up.
    Rate,
    /// The socket's send buffer was full.
    Full,
    /// It carries no frame.
    Malformed,
    /// It is one of too many messages that bind a leg: it was not even checked.
    Flood,
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
    /// Of [`Drop::Flood`].
    pub flood: u64,
}

impl Drops {
    /// Every count with the name of its reason.
    pub fn named(self) -> [(&'static str, u64); 6] {
        [
            ("elsewhere", self.elsewhere),
            ("unbound", self.unbound),
            ("rate", self.rate),
            ("full", self.full),
            ("malformed", self.malformed),
            ("flood", self.flood),
        ]
    }
}

/// Questions for a session that were refused, by [`Refusal`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Of [`Refusal::NotServed`].
    pub not_served: u64,
    /// Of [`Refusal::TooMany`].
    pub too_many: u64,
    /// Of [`Refusal::Crowded`].
    pub crowded: u64,
    /// Of [`Refusal::Full`].
    pub full: u64,
    /// Of [`Refusal::NoPort`].
    pub no_port: u64,
    /// Not even read: there were too many from one peer or one address.
    pub flood: u64,
}

impl Refusals {
    /// Every count with the name of its reason.
    pub fn named(self) -> [(&'static str, u64); 6] {
        [
            ("not-served", self.not_served),
            ("too-many", self.too_many),
            ("crowded", self.crowded),
            ("full", self.full),
            ("no-port", self.no_port),
            ("flood", self.flood),
        ]
    }

    /// The sum of all.
    pub fn all(self) -> u64 {
        let counts = self.named().into_iter().map(|(_, count)| count);
        counts.fold(0, u64::saturating_add)
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

/// What a relay did since the start, sessions that are over included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// The sessions that are there now.
    pub open: u64,
    /// Bytes of UDP payload that were forwarded.
    pub bytes: u64,
    /// Datagrams that were not forwarded.
    pub drops: Drops,
    /// Questions for a session that were refused.
    pub refused: Refusals,
}

/// Counters of dropped datagrams, one for each [`Drop`].
#[derive(Debug, Default)]
struct DropCounters([AtomicU64; 6]);

impl DropCounters {
    fn add(&self, why: Drop, datagrams: u64) {
        if let Some(counter) = self.0.get(why as usize) {
            counter.fetch_add(datagrams, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Drops {
        let [elsewhere, unbound, rate, full, malformed, flood] =
            self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Drops {
            elsewhere,
            unbound,
            rate,
            full,
            malformed,
            flood,
        }
    }
}

/// The counters behind [`Totals`], shared with whoever reads them.
#[derive(Debug, Default)]
pub struct Counters {
    open: AtomicU64,
    bytes: AtomicU64,
    drops: DropCounters,
    refused: [AtomicU64; 5],
    flood: AtomicU64,
}

impl Counters {
    /// What they stand at.
    pub fn read(&self) -> Totals {
        let [not_served, too_many, full, no_port, crowded] = self
            .refused
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        Totals {
            open: self.open.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: self.drops.read(),
            refused: Refusals {
                not_served,
                too_many,
                crowded,
                full,
                no_port,
                flood: self.flood.load(Ordering::Relaxed),
            },
        }
    }

    /// A session was refused, for this reason.
    pub fn refuse(&self, why: Refusal) {
        let at = match why {
            Refusal::NotServed => 0,
            Refusal::TooMany => 1,
            Refusal::Full => 2,
            Refusal::NoPort => 3,
            Refusal::Crowded => 4,
        };
        if let Some(counter) = self.refused.get(at) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A question was one of too many, and was not read.
    pub fn refuse_unread(&self) {
        self.flood.fetch_add(1, Ordering::Relaxed);
    }

    /// So many sessions are there.
    pub(super) fn set_open(&self, sessions: usize) {
        self.open.store(
            u64::try_from(sessions).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

/// The counters of one session, and what does not change of it.
#[derive(Debug)]
pub struct Tally {
    peers: [PeerId; 2],
    created: Instant,
    all: Arc<Counters>,
    /// 0 stands for no limit.
    mbit: AtomicU32,
    /// Of the asker's leg, then of the other one.
    bytes: [AtomicU64; 2],
    addresses: [ArcSwapOption<SocketAddr>; 2],
    drops: DropCounters,
}

impl Tally {
    pub(super) fn new(all: Arc<Counters>, peers: [PeerId; 2], created: Instant) -> Tally {
        Tally {
            peers,
            created,
            all,
            mbit: AtomicU32::new(0),
            bytes: Default::default(),
            addresses: Default::default(),
            drops: DropCounters::default(),
        }
    }

    /// What it stands at.
    pub fn read(&self, now: Instant) -> SessionStats {
        let address = |at: &ArcSwapOption<SocketAddr>| at.load().as_deref().copied();
        SessionStats {
            peers: self.peers,
            addresses: self.addresses.each_ref().map(address),
            bytes: self
                .bytes
                .each_ref()
                .map(|count| count.load(Ordering::Relaxed)),
            mbit: Some(self.mbit.load(Ordering::Relaxed)).filter(|mbit| *mbit > 0),
            drops: self.drops.read(),
            age: now.saturating_duration_since(self.created),
        }
    }

    pub(super) fn set_mbit(&self, mbit: Option<u32>) {
        self.mbit.store(mbit.unwrap_or(0), Ordering::Relaxed);
    }

    /// The leg of that end is bound there now.
    pub(super) fn bound(&self, end: usize, at: SocketAddr) {
        if let Some(address) = self.addresses.get(end) {
            address.store(Some(Arc::new(at)));
        }
    }

    /// Bytes went on that came by the leg of that end.
    pub(super) fn forwarded(&self, end: usize, bytes: u64) {
        if let Some(count) = self.bytes.get(end) {
            count.fetch_add(bytes, Ordering::Relaxed);
            self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self, why: Drop, datagrams: u64) {
        if datagrams > 0 {
            self.drops.add(why, datagrams);
            self.all.drops.add(why, datagrams);
        }
    }
}
