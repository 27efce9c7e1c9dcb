//! A NAT in userspace: what home routers, mobile networks and firewalls do to packets, each behaviour by itself.
//!
//! nftables cannot show them all: its masquerading is not reliably endpoint-independent, and sequential ports, absolute
//! lifetimes and quotas of ports cannot be had from it. So this is a machine without I/O ([`Nat`], the terms are those of
//! RFC 4787), with time as an argument; [`Site`] puts several in series, with a stateful firewall for IPv6; [`Wire`] delays,
//! loses and doubles packets, for there is no netem here either; [`pipe`] is the thread that carries packets through all of
//! it, between two TUN devices that may stand in two namespaces.
//!
//! Not here: fragments, port mapping protocols, ALGs.

pub mod machine;
pub mod packet;
pub mod pipe;
pub mod site;
mod tun;
pub mod wire;

pub use machine::{Kind, Nat};
pub use site::{Side, Site};
pub use wire::{Weather, Wire};
