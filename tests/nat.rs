//! The NAT of the laboratory by itself: each behaviour on packets made by hand, without a kernel. `netns` proves the same with
//! sockets.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot run what it tests has failed"
)]

#[expect(
    dead_code,
    reason = "the laboratory is shared with the netns tests, which use more of it"
)]
#[path = "lab/nat/mod.rs"]
mod nat;

#[path = "nat/line.rs"]
mod line;
#[path = "nat/mapping.rs"]
mod mapping;
#[path = "nat/packets.rs"]
mod packets;
