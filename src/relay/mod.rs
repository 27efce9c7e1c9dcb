//! PURE: sealed frames from one peer to another through a third, which does not open them.
//!
//! [`Server`] is what a relay keeps: sessions of two legs each, where each leg is bound, what each peer may use.
//! [`Leg`] is one end's way in: it binds the leg and keeps it bound. Time, random bytes and what was heard are arguments.
//! The format, and what each end may rely on, is in [`wire::relay`](crate::wire::relay).
//!
//! A relay cannot be made to send anywhere but to an address that has proved, by a cookie sent there, that it wants a
//! leg's frames; and no message of it is larger than what it answers. Nothing of a frame is read but its first bytes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod leg;
mod server;
mod stats;

pub use leg::{Ended, Leg, MAX_TRIED, Output};
pub use server::{Fate, Limits, Onward, Server, Terms};
pub use stats::{Drop, Drops, SessionStats, Stats};

/// Where random bytes come from: fills the buffer it is given.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

#[cfg(test)]
mod tests;
