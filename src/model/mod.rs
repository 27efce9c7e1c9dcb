//! PURE: the network as we believe it to be. No sockets, files, clock or randomness: time and seeds are arguments.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod address;
pub mod admitted;
pub mod build;
pub mod chunks;
mod claims;
pub mod error;
pub mod find;
pub mod genesis;
pub mod heard;
mod held;
pub mod host;
pub mod id;
pub mod interface;
pub mod ipam;
pub mod items;
pub mod join;
pub mod lives;
pub mod local;
pub mod members;
pub mod memo;
pub mod policy;
pub mod publish;
pub mod record;
mod registry;
pub mod resolve;
pub mod restored;
pub mod roll;
pub mod routes;
pub mod source;
pub mod state;
pub mod subnet;
pub mod unwritten;
pub mod upkeep;
pub mod view;
pub mod zone;
