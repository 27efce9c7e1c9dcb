//! PURE: what one peer needs for datagrams: the keys of its sessions, the addresses it may have, the path in use.
//!
//! Time, random bytes and what was heard are arguments. What is to be done is asked for after each call; the driver
//! ([`link::direct`](crate::link::direct)) carries it out.

pub mod path;
pub mod session;

/// Where random bytes come from: fills the buffer it is given.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Where virtual clocks begin.
#[cfg(test)]
fn some_moment() -> std::time::Instant {
    std::time::Instant::now()
}
