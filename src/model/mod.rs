//! PURE: the network as we believe it to be. No sockets, files, clock or randomness: time and seeds are arguments.

pub mod address;
pub mod build;
pub mod error;
pub mod find;
pub mod genesis;
pub mod heard;
pub mod host;
pub mod id;
pub mod interface;
pub mod ipam;
pub mod join;
pub mod local;
pub mod members;
pub mod policy;
pub mod publish;
pub mod record;
mod registry;
pub mod resolve;
pub mod roll;
pub mod source;
pub mod state;
pub mod subnet;
pub mod upkeep;
pub mod view;
pub mod zone;
