//! PURE: bytes between peers.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod address;
pub mod agent;
pub mod control;
pub mod datagram;
pub mod forwarded;
pub mod frame;
pub mod http;
pub mod paths;
pub mod presence;
pub mod ranges;
pub mod relay;
pub mod service;
pub mod summary;
pub mod websocket;
