//! PURE: bytes between peers.

pub mod control;
pub mod datagram;
pub mod frame;
