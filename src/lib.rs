//! byway: private IPs for containers and VMs, across peers.

pub mod api;
pub mod attach;
pub mod config;
pub mod datapath;
pub mod dns;
pub mod host;
pub mod link;
pub mod model;
pub mod node;
pub mod p2p;
pub mod packet;
pub mod store;
pub mod tun;
pub mod wire;
