//! The control socket: HTTP+JSON on a unix socket.
pub mod client;
mod groups;
pub mod server;
pub mod types;
