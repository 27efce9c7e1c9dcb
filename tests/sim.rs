//! Many states, a virtual clock, links that lose, partition and heal: what members believe ends the same everywhere.
//!
//! set: fast, but for what is marked as ignored, which is in the set of everything. No sockets, no root. Each run prints its seed; `BYWAY_SEED=n` repeats one.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "sim/world.rs"]
mod world;

#[path = "sim/admins.rs"]
mod admins;
#[path = "sim/crowd.rs"]
mod crowd;
#[path = "sim/life.rs"]
mod life;
#[path = "sim/membership.rs"]
mod membership;
#[path = "sim/memory.rs"]
mod memory;
#[path = "sim/names.rs"]
mod names;
#[path = "sim/records.rs"]
mod records;
#[path = "sim/spread.rs"]
mod spread;
