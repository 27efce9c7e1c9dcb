//! Adapters: each puts one engine's words about containers and VMs into the words of the API.
//!
//! An engine is a program that runs workloads: Docker, a CNI runtime, podman with netavark, a hypervisor. Its adapter is one
//! file here. It speaks the engine's protocol, and asks the daemon for what follows by the same requests that the command
//! line makes ([`Request`](crate::api::types::Request)): over the control socket where the engine starts it as a program
//! (CNI and netavark do), or by whatever carries them out where it lives in the daemon (a Docker plugin's socket does). No
//! adapter touches a namespace, a link, the model or the state, and none knows another.
//!
//! | engine | file | what it translates |
//! |---|---|---|
//! | Docker, one container | `docker/` | name or ID of a container to its process and its resolver's file, and what happens to it |
//! | Docker, as a plugin | `plugin/` | `CreateEndpoint` to a workload that waits for its namespace, `Join` and `Leave` to its interface |
//! | CNI | `cni/` | `ADD`, `DEL`, `CHECK`, `GC`, `STATUS`: `CNI_CONTAINERID` and `CNI_IFNAME` to container and interface |
//! | Podman | `netavark/` | `create`, `setup` and `teardown` of its network plugins |
//! | a hypervisor | `tap.rs` | a VM's name to the interface of this machine that it is behind |
//!
//! The last has its place, and is not written yet. `program/` is what the plugins share that engines run as programs.

pub mod cni;
pub mod docker;
pub mod netavark;
pub mod plugin;
mod program;
