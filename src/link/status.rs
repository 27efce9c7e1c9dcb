//! How a link fares: the stream it is on, and what each carrier moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The connection below a stream, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// The transport: `tcp`, `quic`, `ws`, `memory` or `relay`.
    pub transport: &'static str,
    /// The address of the far end, as text.
    pub remote: String,
    /// The transport of the connection to the relay, where it leads through one.
    pub below: Option<&'static str>,
}

/// What a carrier moved since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Inner bytes handed to it.
    pub tx_bytes: u64,
    /// Inner bytes that came from it, refused ones included.
    pub rx_bytes: u64,
    /// Packets handed to it; a super-packet is one.
    pub tx_packets: u64,
    /// Packets that came from it, refused ones included.
    pub rx_packets: u64,
}

impl std::ops::Add for Carried {
    type Output = Carried;

    fn add(self, other: Carried) -> Carried {
        Carried {
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            tx_packets: self.tx_packets.saturating_add(other.tx_packets),
            rx_packets: self.rx_packets.saturating_add(other.rx_packets),
        }
    }
}

/// Counts what a carrier moves.
#[derive(Debug, Default)]
pub(super) struct Tally {
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    rx_packets: AtomicU64,
}

impl Tally {
    pub(super) fn sent(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.rx_packets.fetch_add(1, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Carried {
        Carried {
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_packets: self.tx_packets.load(Ordering::Relaxed),
            rx_packets: self.rx_packets.load(Ordering::Relaxed),
        }
    }
}

/// How a link fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// The stream that carries packets out; none where the peer is offline.
    pub via: Option<Via>,
    /// When the link came onto that stream, or lost its last one; none before the first.
    pub since: Option<SystemTime>,
    /// What data streams moved to and from the peer.
    pub streams: Carried,
    /// What sealed datagrams moved to and from the peer.
    pub datagrams: Carried,
    /// Packets dropped in front of the stream: the queue was full, or there was none.
    pub queue_drops: u64,
}

impl LinkStatus {
    /// What both carriers moved together.
    pub fn carried(&self) -> Carried {
        self.streams + self.datagrams
    }
}
