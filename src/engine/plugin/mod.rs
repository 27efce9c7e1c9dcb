//! Docker's network and IPAM driver: what the engine asks over the plugin's socket, and how it is answered.
//!
//! The engine finds the socket by its name in `/run/docker/plugins` and speaks HTTP with JSON over it. Each volume command
//! activates every socket there as well, and a call has no deadline of the engine's own. So the socket is served by a thread
//! of its own, which is there before the daemon has read its state, and no call goes unanswered for longer than
//! [`PATIENCE`].
//!
//! [`protocol`](self) reads calls and writes answers; [`server`](self) owns the socket. What follows from a call is done by
//! whoever carries out commands in the daemon ([`Handler`]); it never asks the engine, which waits for the answer.

mod look;
mod protocol;
mod server;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use look::{Place, members, places};
pub use protocol::{
    Addresses, Call, Endpoint, Join, Joined, Network, Pool, PoolAsked, Reply, Route,
};
pub use server::Server;

/// Longest a call is answered in.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Carries out a call of the engine. The error is one sentence for the person who typed the engine's command.
pub type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Reply, String>> + Send + Sync>;

#[cfg(test)]
mod tests;
