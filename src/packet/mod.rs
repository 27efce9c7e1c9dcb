//! PURE: one IP packet: what it says, its checksums, segmenting and reassembling super-packets, the MSS, ICMP
//! replies, why it was dropped.
//!
//! Owns no buffer and knows no peer, route or device; every function works on bytes the caller holds.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod checksum;
pub(crate) mod coalesce;
pub mod drops;
pub mod icmp;
pub mod mss;
pub mod offload;
pub mod parse;
pub mod reassemble;
pub mod segment;
pub mod segment_plan;

pub use drops::{DropCounts, DropReason};
pub use offload::{Offload, TunOffload};
pub use parse::{Fragment, Packet, Version, parse};
