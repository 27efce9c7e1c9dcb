//! Whole daemons in memory: real records, real libp2p over channels of this process, real packet loops, no root.
//!
//! set: fast. Every wait is for a condition and is bounded; the only clock is the one the daemons use themselves.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[expect(
    dead_code,
    reason = "its command line is for people and for namespaces"
)]
#[path = "evil/mod.rs"]
mod evil;
#[path = "mesh/hostile.rs"]
mod hostile;
#[path = "mesh/node.rs"]
mod node;

#[path = "mesh/abuse.rs"]
mod abuse;
#[path = "mesh/crowd.rs"]
mod crowd;
#[path = "mesh/declared.rs"]
mod declared;
#[path = "mesh/durability.rs"]
mod durability;
#[path = "mesh/founder.rs"]
mod founder;
#[path = "mesh/growth.rs"]
mod growth;
#[path = "mesh/idle.rs"]
mod idle;
#[path = "mesh/invites.rs"]
mod invites;
#[path = "mesh/joining.rs"]
mod joining;
#[path = "mesh/packets.rs"]
mod packets;
#[path = "mesh/ranges.rs"]
mod ranges;
#[path = "mesh/records.rs"]
mod records;
#[path = "mesh/roll.rs"]
mod roll;
#[path = "mesh/stopping.rs"]
mod stopping;
#[path = "mesh/strangers.rs"]
mod strangers;
#[path = "mesh/thousand.rs"]
mod thousand;
#[path = "mesh/walk.rs"]
mod walk;
