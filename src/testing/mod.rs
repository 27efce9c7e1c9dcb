//! What tests share: numbers that repeat, the founding of a subnet, a network on a virtual clock, a pipe, and one way to wait.
//!
//! Nothing of the daemon uses this room (`tests/layering.rs`). [`Dice`], `founding` and what fills a subnet are there in every build, since the
//! tests that stand outside the library use them too.

mod dice;
mod founding;
#[cfg(test)]
pub(crate) mod fuzz;
mod many;
#[cfg(test)]
mod network;
#[cfg(test)]
pub(crate) mod pipe;
#[cfg(test)]
mod wait;

pub use dice::Dice;
pub use founding::founding;
pub use many::{fill, identity_of};
#[cfg(test)]
pub(crate) use network::{Network, some_moment};
#[cfg(test)]
pub(crate) use wait::{PATIENCE, eventually};
