//! PURE: bytes between peers.

pub mod agent;
pub mod control;
pub mod datagram;
pub mod frame;
pub mod service;
