//! PURE: bytes between peers.

pub mod control;
pub mod frame;
