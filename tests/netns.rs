//! The real binary on a real kernel: hosts are network namespaces, and every claim is proven by packets that arrive.
//!
//! Needs root. Each test has a lab of its own and ends by checking that nothing was left. The fast set runs with every
//! change; `BYWAY_TESTS=ci` adds what CI has time for, `--all` (or `BYWAY_TESTS=all`) that and the longest. A word on the
//! command line picks tests by name. `netns tool` is the other half: the programs that capture, replay, flood and delay,
//! run by the tests and by `scripts/bench`; `netns evil` is the malicious peer.

#[path = "evil/mod.rs"]
mod evil;
mod lab;

#[path = "netns/blocked.rs"]
mod blocked;
#[path = "netns/booted.rs"]
mod booted;
#[path = "netns/canary.rs"]
mod canary;
#[path = "netns/clocks.rs"]
mod clocks;
#[path = "netns/cni.rs"]
mod cni;
#[path = "netns/containers.rs"]
mod containers;
#[path = "netns/crowd.rs"]
mod crowd;
#[path = "netns/datagram.rs"]
mod datagram;
#[path = "netns/demo.rs"]
mod demo;
#[path = "netns/denied.rs"]
mod denied;
#[path = "netns/drive.rs"]
mod drive;
#[path = "netns/durability.rs"]
mod durability;
#[path = "netns/engines.rs"]
mod engines;
#[path = "netns/everyday.rs"]
mod everyday;
#[path = "netns/evil_admin.rs"]
mod evil_admin;
#[path = "netns/evil_knocks.rs"]
mod evil_knocks;
#[path = "netns/evil_matrix.rs"]
mod evil_matrix;
#[path = "netns/evil_members.rs"]
mod evil_members;
#[path = "netns/external.rs"]
mod external;
#[path = "netns/fake_engine.rs"]
mod fake_engine;
#[path = "netns/figures.rs"]
mod figures;
#[path = "netns/filtering.rs"]
mod filtering;
#[path = "netns/firewall.rs"]
mod firewall;
#[path = "netns/firewalld.rs"]
mod firewalld;
#[path = "netns/flows.rs"]
mod flows;
#[path = "netns/forwarding.rs"]
mod forwarding;
#[path = "netns/grid.rs"]
mod grid;
#[path = "netns/habits.rs"]
mod habits;
#[path = "netns/hard_nats.rs"]
mod hard_nats;
#[path = "netns/health.rs"]
mod health;
#[path = "netns/hearsay.rs"]
mod hearsay;
#[path = "netns/host_names.rs"]
mod host_names;
#[path = "netns/hostile.rs"]
mod hostile;
#[path = "netns/icmp.rs"]
mod icmp;
#[path = "netns/imports.rs"]
mod imports;
#[path = "netns/input.rs"]
mod input;
#[path = "netns/ipv4_only.rs"]
mod ipv4_only;
#[path = "netns/kills.rs"]
mod kills;
#[path = "netns/known.rs"]
mod known;
#[path = "netns/lan.rs"]
mod lan;
#[path = "netns/lasting.rs"]
mod lasting;
#[path = "netns/liars.rs"]
mod liars;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/lifetimes.rs"]
mod lifetimes;
#[path = "netns/machine.rs"]
mod machine;
#[path = "netns/map_clients.rs"]
mod map_clients;
#[path = "netns/map_ranges.rs"]
mod map_ranges;
#[path = "netns/maps.rs"]
mod maps;
#[path = "netns/measure.rs"]
mod measure;
#[path = "netns/meltdown.rs"]
mod meltdown;
#[path = "netns/membership.rs"]
mod membership;
#[path = "netns/mtu.rs"]
mod mtu;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/nats.rs"]
mod nats;
#[path = "netns/netavark.rs"]
mod netavark;
#[path = "netns/noted.rs"]
mod noted;
#[path = "netns/nspawn.rs"]
mod nspawn;
#[path = "netns/outbound.rs"]
mod outbound;
#[path = "netns/partition.rs"]
mod partition;
#[path = "netns/peculiar.rs"]
mod peculiar;
#[path = "netns/portmap.rs"]
mod portmap;
#[path = "netns/privilege.rs"]
mod privilege;
#[path = "netns/reach.rs"]
mod reach;
#[path = "netns/reasons.rs"]
mod reasons;
#[path = "netns/relay_only.rs"]
mod relay_only;
#[path = "netns/relay_places.rs"]
mod relay_places;
#[path = "netns/relay_terms.rs"]
mod relay_terms;
#[path = "netns/relayed.rs"]
mod relayed;
#[path = "netns/relays.rs"]
mod relays;
#[path = "netns/reload.rs"]
mod reload;
#[path = "netns/remedies.rs"]
mod remedies;
#[path = "netns/resolvers.rs"]
mod resolvers;
#[path = "netns/restarts.rs"]
mod restarts;
#[path = "netns/roaming.rs"]
mod roaming;
#[path = "netns/rogue.rs"]
mod rogue;
#[path = "netns/rootless.rs"]
mod rootless;
#[path = "netns/rootless_attacks.rs"]
mod rootless_attacks;
#[path = "netns/run.rs"]
mod run;
#[path = "netns/sources.rs"]
mod sources;
#[path = "netns/surroundings.rs"]
mod surroundings;
#[path = "netns/systemd.rs"]
mod systemd;
#[path = "netns/taps.rs"]
mod taps;
#[path = "netns/tool/mod.rs"]
mod tool;
#[path = "netns/ufw.rs"]
mod ufw;
#[path = "netns/underlay.rs"]
mod underlay;
#[path = "netns/vms.rs"]
mod vms;
#[path = "netns/weather.rs"]
mod weather;
#[path = "netns/web.rs"]
mod web;
#[path = "netns/workloads.rs"]
mod workloads;

use std::process::ExitCode;

// The tools name it so, also where they are an example.
use lab::nat;

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
        measure::CASES,
        meltdown::CASES,
        outbound::CASES,
        crowd::CASES,
        known::CASES,
        reasons::CASES,
        membership::CASES,
        lifecycle::CASES,
        workloads::CASES,
        lan::CASES,
        lasting::CASES,
        taps::CASES,
        vms::CASES,
        portmap::CASES,
        external::CASES,
        privilege::CASES,
        fake_engine::CASES,
        rootless::CASES,
        rootless_attacks::CASES,
        run::CASES,
        containers::CASES,
        denied::CASES,
        systemd::CASES,
        engines::CASES,
        cni::CASES,
        names::CASES,
        host_names::CASES,
        maps::CASES,
        machine::CASES,
        forwarding::CASES,
        flows::CASES,
        durability::CASES,
        kills::CASES,
        input::CASES,
        everyday::CASES,
        relay_only::CASES,
        datagram::CASES,
        filtering::CASES,
        figures::CASES,
        firewall::CASES,
        ufw::CASES,
        firewalld::CASES,
        habits::CASES,
        reload::CASES,
        health::CASES,
        hearsay::CASES,
        hostile::CASES,
        mtu::CASES,
        canary::CASES,
        remedies::CASES,
        sources::CASES,
        surroundings::CASES,
        rogue::CASES,
        map_clients::CASES,
        map_ranges::CASES,
        imports::CASES,
        peculiar::CASES,
        ipv4_only::CASES,
        restarts::CASES,
        evil_knocks::CASES,
        evil_matrix::CASES,
        evil_members::CASES,
        clocks::CASES,
        evil_admin::CASES,
        nats::CASES,
        netavark::CASES,
        reach::CASES,
        grid::CASES,
        hard_nats::CASES,
        liars::CASES,
        lifetimes::CASES,
        relays::CASES,
        noted::CASES,
        relay_places::CASES,
        relay_terms::CASES,
        relayed::CASES,
        blocked::CASES,
        icmp::CASES,
        demo::CASES,
        roaming::CASES,
        weather::CASES,
        web::CASES,
        partition::CASES,
    ];
    lab::runner::main(&groups.concat())
}
