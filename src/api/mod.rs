//! The control socket: HTTP+JSON on a unix socket.
pub mod client;
pub mod server;
pub mod types;
