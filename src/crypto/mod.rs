//! PURE: handshakes between two peers, the frames their keys seal, and which frames were seen.
//!
//! Bytes, time and entropy come as arguments, except that ML-KEM draws from aws-lc's own generator.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod aead;
pub mod blind;
pub mod frame;
pub mod handshake;
pub mod mac;
pub mod replay;

mod counter;

/// What [`counter`] takes its atomics from.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}
