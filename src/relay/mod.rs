//! PURE: sealed frames from one peer to another through a third, which does not open them.
//!
//! [`Server`] is what a relay keeps: sessions of two legs each, where each leg is bound, what each peer may use.
//! [`Leg`] is one end's way in: it binds the leg and keeps it bound. Time, random bytes and what was heard are arguments.
//! The format, and what each end may rely on, is in [`wire::relay`](crate::wire::relay).
//!
//! Work is paid for before it is done: a message that binds a leg by the leg or by the source it came from before its MAC is
//! checked, a frame by the asker of its session before it is looked into, a session by its asker and, of one that the relay
//! does not know, by its source.
//!
//! A relay cannot be made to send anywhere but to an address that has proved, by a cookie sent there, that it wants a
//! leg's frames; and no message of it is larger than what it answers. Nothing of a frame is read but its first bytes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod accounts;
mod leg;
mod server;
mod stats;

pub use accounts::{Asker, Terms};
pub use leg::{Ended, Leg, MAX_TRIED, MAX_UPLINKS, Output};
pub use server::{Fate, Limits, Onward, Server};
pub use stats::{Counters, Drop, Drops, Refusals, SessionStats, Tally, Totals};

/// Where random bytes come from: fills the buffer it is given.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

#[cfg(test)]
mod tests;
