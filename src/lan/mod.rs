//! PURE: who is on the local networks: what to ask there, what to answer, and what to believe.
//!
//! A member of a subnet asks each of its links who else is there, and tells where it is reached itself; a node that wants to
//! join asks as well. The messages are DNS's ([`mdns`](crate::mdns) has the sockets and the bytes); their names are blinded
//! ([`crypto::blind`](crate::crypto::blind)), and what they tell is sealed: who does not know the ID of a subnet learns that a
//! machine runs byway, and neither which peer it is nor what it is a member of. Whoever knows the ID may claim anything: what
//! is heard is a hint where to dial, and only addresses of the link itself are taken.
//!
//! Time and random bytes are arguments. Memory and work are bounded: [`MAX_SUBNETS`], [`MAX_HEARD`] for a link, and a [`Gate`]
//! for each socket, before which nothing is read.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod gate;
mod link;
mod offer;
mod schedule;
mod state;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use self::gate::Gate;
pub use self::offer::{MAX_OFFER, MAX_PLACES, Offer, Place, decode, encode};
pub use self::schedule::Pace;
pub use self::state::{Counts, Lan};

use crate::model::id::{PeerId, SubnetId};

/// Random bytes, from whoever calls.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

/// The most subnets that are asked for and told of.
pub const MAX_SUBNETS: usize = 16;
/// The most answers that are remembered of one link.
pub const MAX_HEARD: usize = 512;
/// The most names in one question, and the most answers that it says are known already.
pub const MAX_NAMES: usize = 16;
/// How long others may remember an answer: what RFC 6762 (section 10) gives records that name no host.
pub const TTL: Duration = Duration::from_secs(75 * 60);

/// A blinded name: see [`crypto::blind`](crate::crypto::blind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub [u8; 16]);

/// What is said on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Who is in any of these subnets says so.
    Ask {
        /// One name for each subnet, at most [`MAX_NAMES`].
        wanted: Vec<Label>,
        /// The answers that the asker has, at most [`MAX_NAMES`]: they are not given again.
        known: Vec<Label>,
    },
    /// Where the speaker is, once for each subnet.
    Say(Vec<Said>),
}

/// Where a speaker is, for those who know one subnet of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The name that it goes by.
    pub label: Label,
    /// Where the speaker may be reached, sealed under a key of the subnet's ID.
    pub sealed: Vec<u8>,
}

/// A subnet that this node is in or wants to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The ID that its names and keys are derived from.
    pub subnet: SubnetId,
    /// The members that may be found: none where nobody else is in it, one where this node waits to be let in.
    pub others: usize,
    /// Whether this node is a member, and tells that it is there.
    pub announces: bool,
}

/// A link of this machine as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkIs {
    /// The kernel's index of it.
    pub index: u32,
    /// This machine's addresses on it, each with its network.
    pub networks: Vec<IpNet>,
    /// Where this machine is reached on it; nothing is told where that is empty.
    pub places: Vec<Place>,
}

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Where it came from, as it says itself.
    pub address: IpAddr,
    /// Whether a program of this machine sent it: the kernel's word, which nobody on the link can make up.
    pub is_here: bool,
}

/// A peer that was heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The peer that it says it is.
    pub peer: PeerId,
    /// Where it says it is, on that link.
    pub places: Vec<Place>,
    /// Whether another program of this machine said so.
    pub is_here: bool,
}

/// Whether an address is of the link itself, whatever its networks are.
fn is_of_any_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// 20 to 120 ms: how long an answer, and a first question, waits, so that not all speak at once (RFC 6762, section 6).
fn spread(entropy: Entropy<'_>) -> Duration {
    let mut byte = [0];
    entropy(&mut byte);
    let [byte] = byte;
    Duration::from_millis(20 + u64::from(byte) * 100 / 255)
}
