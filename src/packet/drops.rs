//! Why a packet did not get through, and how often.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// Why one packet was dropped; `text()` is its name in `status --json` under `drops`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum DropReason { $($(#[$doc])* #[error($text)] $variant,)* }

        impl DropReason {
            /// Every reason, in the order they are shown.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),*];

            /// The name in `status --json`.
            pub fn text(self) -> &'static str {
                match self { $(DropReason::$variant => $text),* }
            }
        }
    };
}

reasons! {
    /// The inner source address is not leased to who sent it.
    SourceNotLeased => "source-not-leased",
    /// The sender is no member of that subnet.
    NotMember => "not-member",
    /// Nobody holds a lease for the destination, or it is not here.
    NoRoute => "no-route",
    /// A rule forbids the packet, or its destination is outside the subnet.
    Filtered => "filtered",
    /// The bounded queue to the peer was full, or the packet had waited too long in it; the oldest went.
    QueueFull => "queue-full",
    /// The bytes are no well-formed IPv4 or IPv6 packet, or the frame says one thing and holds
    /// another.
    Malformed => "malformed",
    /// No key of its session opens the frame: it was damaged on the way, or forged.
    BadFrame => "bad-frame",
    /// The frame came before: its counter was seen, or is too old to tell.
    Replayed => "replayed",
    /// The peer is known and there is no connection to it.
    Unreachable => "unreachable",
    /// The packet is larger than the MTU and must not be cut.
    TooBig => "too-big",
    /// The kernel refused the write to the TUN.
    TunWrite => "tun-write",
}

/// One counter per reason; shared by the packet loops and read by `status`.
#[derive(Debug, Default)]
pub struct DropCounts([AtomicU64; DropReason::ALL.len()]);

impl DropCounts {
    /// Counts `packets` dropped for `reason`.
    pub fn add(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// What was counted so far, every reason named.
    pub fn snapshot(&self) -> Vec<(DropReason, u64)> {
        DropReason::ALL
            .iter()
            .copied()
            .zip(self.0.iter().map(|c| c.load(Ordering::Relaxed)))
            .collect()
    }
}
