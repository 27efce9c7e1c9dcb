//! The program itself where no daemon is needed: exact output and exit codes of what is refused.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot run what it tests has failed"
)]

#[path = "cli/configuration.rs"]
mod configuration;
#[path = "cli/packaging.rs"]
mod packaging;
#[path = "cli/permission.rs"]
mod permission;
#[path = "cli/quiet.rs"]
mod quiet;
#[path = "cli/reach.rs"]
mod reach;
#[path = "cli/scripts.rs"]
mod scripts;
#[path = "cli/serving.rs"]
mod serving;
#[path = "cli/streams.rs"]
mod streams;
#[path = "cli/units.rs"]
mod units;
#[path = "cli/usage.rs"]
mod usage;

use std::process::{Command, Output};

fn byway(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("BYWAY_"))
    {
        command.env_remove(name);
    }
    command.args(args).env("NO_COLOR", "1").output().unwrap()
}

/// Exit code, standard output, standard error.
fn told(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = byway(args);
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}
