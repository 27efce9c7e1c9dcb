//! byway: private IPs for containers and VMs, across peers.

pub mod model;
pub mod packet;
pub mod wire;
