//! What is said where one identity runs on two machines.

use std::collections::BTreeSet;
use std::path::Path;

use crate::api::types::Problem;
use crate::node::Core;

/// Members whose identity runs on two machines, as far as this node has heard both.
pub(super) fn problems(core: &Core, now: u64, state_dir: &Path) -> Vec<Problem> {
    let me = core.state.me.peer;
    // In several subnets it is one finding.
    let mut told = BTreeSet::new();
    let mut problems = Vec::new();
    for ((id, peer), lives) in core.lives.twice(now) {
        let Some(subnet) = core.state.subnets.get(&id).filter(|_| told.insert(peer)) else { continue };
        let places: Vec<String> = lives
            .iter()
            .map(|ends| if ends.is_empty() { "an unknown address".into() } else { ends.join(" ") })
            .collect();
        let places = places.join(", and at ");
        let who = if peer == me {
            "this machine's identity runs on another one too".to_owned()
        } else {
            let resolved = subnet.resolve(now);
            let name = resolved.members.get(&peer).map_or_else(|| peer.short(), |m| m.name.to_string());
            format!("the identity of {name} ({}) runs on two machines", peer.short())
        };
        let on = if peer == me { "on the copy, this or the other" } else { "on the copy" };
        problems.push(Problem {
            code: "E-IDENTITY-TWICE".into(),
            severity: "error".into(),
            message: format!("{who}: at {places}; packets for either get lost"),
            help: format!(
                "{on}: stop byway, move its state directory {} away, start byway, and join again: it makes an identity of its own",
                state_dir.display()
            ),
        });
    }
    problems
}
