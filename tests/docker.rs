//! Real containers on two hosts: attached by name, talking by name, freed when they stop.
//!
//! Each host of the lab gets a Docker daemon of its own: own data root, exec root, socket and pid file in the lab's
//! directory, in the host's network namespace and a mount namespace of its own. The image is a static busybox, imported
//! from a tar archive, so that no registry is needed. Where Docker cannot run, the tests are counted as skipped. Each engine
//! ends by checking that no process, mount or control group of it is left.

#[expect(
    dead_code,
    reason = "the laboratory is shared with the netns tests, which use more of it"
)]
mod lab;

/// A case in the fast set that starts an engine.
macro_rules! with_engine {
    ($name:ident) => {
        $crate::fast!(
            $name, "docker", "dockerd", "nsenter", "unshare", "tar", "busybox"
        )
    };
}

#[path = "docker/attaching.rs"]
mod attaching;
#[path = "docker/composing.rs"]
mod composing;
#[path = "docker/containerd.rs"]
mod containerd;
#[path = "docker/engine.rs"]
mod engine;
#[path = "docker/engines.rs"]
mod engines;
#[path = "docker/health.rs"]
mod health;
#[path = "docker/lasting.rs"]
mod lasting;
#[path = "docker/plugin.rs"]
mod plugin;
#[path = "docker/podman.rs"]
mod podman;
#[path = "docker/refusals.rs"]
mod refusals;
#[path = "docker/relay.rs"]
mod relay;
#[path = "docker/resolving.rs"]
mod resolving;
#[path = "docker/side_by_side.rs"]
mod side_by_side;
#[path = "docker/split.rs"]
mod split;
#[path = "docker/told.rs"]
mod told;

use std::process::ExitCode;

fn main() -> ExitCode {
    let groups = [
        attaching::CASES,
        resolving::CASES,
        refusals::CASES,
        engines::CASES,
        lasting::CASES,
        relay::CASES,
        plugin::CASES,
        composing::CASES,
        containerd::CASES,
        split::CASES,
        side_by_side::CASES,
        podman::CASES,
        health::CASES,
        told::CASES,
    ];
    lab::runner::main(&groups.concat())
}
