//! The demonstration that the README tells people to run, as they run it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::ci;
use crate::lab::runner::Case;
use crate::lab::{Lab, binary, sh};

pub const CASES: &[Case] = &[ci!(
    the_demo_of_nats_shows_relay_reason_and_direct_path_by_one_command,
    "bash"
)];

/// Story 8.
fn the_demo_of_nats_shows_relay_reason_and_direct_path_by_one_command(lab: &Lab) -> Result<()> {
    // The NATs of the demo are a tool of this program.
    let nats = lab.dir().join("lab");
    let me = std::env::current_exe().context("this program's path")?;
    std::fs::write(
        &nats,
        format!("#!/bin/sh\nexec {} tool \"$@\"\n", me.display()),
    )?;
    std::fs::set_permissions(&nats, PermissionsExt::from_mode(0o755))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo");
    let output = Command::new("timeout")
        .args(["-k", "10", "180", script, "nat"])
        .env("BYWAY_BIN", binary())
        .env("LAB_BIN", &nats)
        .stdin(Stdio::null())
        .output()
        .context("start scripts/demo")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let relayed = said.find("(both NATs symmetric)");
    let relayed = relayed.with_context(|| format!("no reason in {said}"))?;
    let after = said.get(relayed..).unwrap_or_default();
    ensure!(
        after.contains("direct udp 203.0.113."),
        "no direct path after the relayed one in {said}"
    );
    let left = sh("ip", &["netns", "list"])?;
    ensure!(!left.contains("bwd-"), "{left}");
    Ok(())
}
