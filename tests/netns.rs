//! The real binary on a real kernel: hosts are network namespaces, and every claim is proven by packets that arrive.
//!
//! Needs root. Each test has a lab of its own and ends by checking that nothing was left. The fast set runs with every
//! change; `--all` (or `BYWAY_TESTS=all`) adds the long one. A word on the command line picks tests by name.

mod lab;

#[path = "netns/durability.rs"]
mod durability;
#[path = "netns/input.rs"]
mod input;
#[path = "netns/kills.rs"]
mod kills;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/maps.rs"]
mod maps;
#[path = "netns/membership.rs"]
mod membership;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/workloads.rs"]
mod workloads;

use std::process::ExitCode;

fn main() -> ExitCode {
    let groups = [
        membership::CASES,
        lifecycle::CASES,
        workloads::CASES,
        names::CASES,
        maps::CASES,
        durability::CASES,
        kills::CASES,
        input::CASES,
    ];
    lab::runner::main(&groups.concat())
}
