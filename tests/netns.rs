//! The real binary on a real kernel: hosts are network namespaces, and every claim is proven by packets that arrive.
//!
//! Needs root. Each test has a lab of its own and ends by checking that nothing was left. The fast set runs with every
//! change; `BYWAY_TESTS=ci` adds what CI has time for, `--all` (or `BYWAY_TESTS=all`) that and the longest. A word on the
//! command line picks tests by name. `netns tool` is the other half: the programs that capture, replay, flood and delay,
//! run by the tests and by `scripts/bench`; `netns evil` is the malicious peer.

#[path = "evil/mod.rs"]
mod evil;
mod lab;

#[path = "netns/canary.rs"]
mod canary;
#[path = "netns/datagram.rs"]
mod datagram;
#[path = "netns/drive.rs"]
mod drive;
#[path = "netns/durability.rs"]
mod durability;
#[path = "netns/everyday.rs"]
mod everyday;
#[path = "netns/evil_admin.rs"]
mod evil_admin;
#[path = "netns/evil_matrix.rs"]
mod evil_matrix;
#[path = "netns/evil_members.rs"]
mod evil_members;
#[path = "netns/firewall.rs"]
mod firewall;
#[path = "netns/habits.rs"]
mod habits;
#[path = "netns/hearsay.rs"]
mod hearsay;
#[path = "netns/hostile.rs"]
mod hostile;
#[path = "netns/input.rs"]
mod input;
#[path = "netns/kills.rs"]
mod kills;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/machine.rs"]
mod machine;
#[path = "netns/maps.rs"]
mod maps;
#[path = "netns/membership.rs"]
mod membership;
#[path = "netns/mtu.rs"]
mod mtu;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/peculiar.rs"]
mod peculiar;
#[path = "netns/remedies.rs"]
mod remedies;
#[path = "netns/sources.rs"]
mod sources;
#[path = "netns/surroundings.rs"]
mod surroundings;
#[path = "netns/tool/mod.rs"]
mod tool;
#[path = "netns/underlay.rs"]
mod underlay;
#[path = "netns/workloads.rs"]
mod workloads;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("tool") => return tool::main(words),
        Some("evil") => {
            return evil::cli::main(&words.collect::<Vec<_>>()).unwrap_or(ExitCode::from(2));
        }
        _ => {}
    }
    let groups = [
        membership::CASES,
        lifecycle::CASES,
        workloads::CASES,
        names::CASES,
        maps::CASES,
        machine::CASES,
        durability::CASES,
        kills::CASES,
        input::CASES,
        everyday::CASES,
        datagram::CASES,
        firewall::CASES,
        habits::CASES,
        hearsay::CASES,
        hostile::CASES,
        mtu::CASES,
        canary::CASES,
        remedies::CASES,
        sources::CASES,
        surroundings::CASES,
        peculiar::CASES,
        evil_matrix::CASES,
        evil_members::CASES,
        evil_admin::CASES,
    ];
    lab::runner::main(&groups.concat())
}
