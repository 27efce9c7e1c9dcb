//! What is said where one identity runs on two machines.

use std::path::Path;

use crate::api::types::Problem;
use crate::model::error::Code;
use crate::node::Twice;

/// The problem that `status` shows of an identity that runs twice.
pub(super) fn problem(twice: &Twice, state_dir: &Path) -> Problem {
    let place = |ends: &Vec<String>| {
        if ends.is_empty() {
            "an unknown address".into()
        } else {
            ends.join(" ")
        }
    };
    let places = twice
        .places
        .iter()
        .map(place)
        .collect::<Vec<String>>()
        .join(", and at ");
    let (who, on) = match &twice.name {
        None => (
            "this machine's identity runs on another one too".to_owned(),
            "on the copy, this or the other",
        ),
        Some(name) => (
            format!(
                "the identity of {name} ({}) runs on two machines",
                twice.peer.short()
            ),
            "on the copy",
        ),
    };
    Problem {
        code: Code::IdentityTwice.to_string(),
        severity: "error".into(),
        message: format!("{who}: at {places}; packets for either get lost"),
        help: format!(
            "{on}: stop byway, move its state directory {} away, start byway, and join again: it makes an identity of its own",
            state_dir.display()
        ),
    }
}
