//! Container and VM front ends: each only finds out what a workload is and where its namespace is.
//!
//! Nothing here touches a namespace, a link or the state.

pub mod docker;
