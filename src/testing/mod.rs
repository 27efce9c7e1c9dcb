//! What tests share: numbers that repeat, a network on a virtual clock, a pipe, and one way to wait.
//!
//! Nothing of the daemon uses this room (`tests/layering.rs`). [`Dice`] is there in every build, since the tests that stand
//! outside the library roll it too.

mod dice;
#[cfg(test)]
mod network;
#[cfg(test)]
pub(crate) mod pipe;
#[cfg(test)]
mod wait;

pub use dice::Dice;
#[cfg(test)]
pub(crate) use network::{Network, some_moment};
#[cfg(test)]
pub(crate) use wait::{PATIENCE, eventually};
