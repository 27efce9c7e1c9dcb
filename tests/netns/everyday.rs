//! What people do on any day: output that goes nowhere, names that meet, ends that are meant and ends that are not.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, binary, text, until};

pub const CASES: &[Case] =
    &[fast!(output_that_cannot_be_written_fails_and_loses_nothing), fast!(a_log_that_cannot_be_written_ends_no_daemon)];

/// Runs `byway ARGS` with standard output somewhere else.
fn into(host: &Host, target: &str, args: &[&str]) -> Result<crate::lab::host::Answer> {
    let (binary, socket) = (binary(), host.socket());
    let (binary, socket) = (binary.to_string_lossy(), socket.to_string_lossy());
    let script = format!("exec \"$@\" {target}");
    host.ns().run(&[&["sh", "-c", &script, "sh", &binary, "--socket", &socket], args].concat())
}

fn output_that_cannot_be_written_fails_and_loses_nothing(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let open = |a: &Host| -> Result<usize> {
        let list = a.json(&["invite", "ls"])?;
        let all = list["invites"].as_array().context("no `invites`")?;
        Ok(all.iter().filter(|i| i["revoked"] == Value::Bool(false)).count())
    };
    let answer = into(&a, ">/dev/full", &["--json", "create", "lab"])?;
    answer.assert_error(1, "E-OUTPUT")?;
    ensure!(answer.err.contains("its invite is withdrawn") && answer.err.contains("was founded"), "{answer}");
    ensure!(answer.err.contains("try:  byway invite create lab"), "{answer}");
    ensure!(open(&a)? == 0, "an invite that nobody saw is in force");
    let create = ["invite", "create", "lab"];
    into(&a, ">/dev/full", &create)?.assert_error(1, "E-OUTPUT")?;
    // A reader that is gone before the first byte cannot have read the invite.
    unread(&a, &create)?.assert_error(1, "E-OUTPUT")?;
    ensure!(open(&a)? == 0, "an invite that nobody saw is in force");
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["id"],
        &["metrics"],
        &["subnet", "show", "lab"],
        &["member", "ls", "lab"],
        &["up", "lab"],
        &["map", "ls"],
        &["version"],
        &["--help"],
        &["map", "add", "--help"],
        &["--version"],
        &["config", "show", "--effective"],
        &["status", "--watch"],
    ] {
        into(&a, ">/dev/full", args)?.assert_error(1, "E-OUTPUT").with_context(|| args.join(" "))?;
        let answer = unread(&a, args)?;
        ensure!(answer.code == 0 && answer.err.is_empty(), "a reader that went away is no error: {answer}");
    }
    // Why it failed is told all the same, and its exit code stays.
    let answer = into(&a, ">/dev/full", &["--json", "subnet", "show", "nosuch"])?;
    answer.assert_error(5, "E-NO-SUBNET")?;
    let seen = a.json(&["invite", "create", "lab"])?;
    ensure!(open(&a)? == 1, "an invite that was written stays in force");
    ensure!(text(&seen, "invite")?.starts_with("byway1"), "{seen}");
    Ok(())
}

/// Runs `byway ARGS` with standard output a pipe whose reader is gone.
fn unread(host: &Host, args: &[&str]) -> Result<crate::lab::host::Answer> {
    let (binary, socket) = (binary(), host.socket());
    let (binary, socket) = (binary.to_string_lossy(), socket.to_string_lossy());
    let words = [&["timeout", "20", &*binary, "--socket", &*socket], args].concat();
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    drop(reader);
    let output = host.ns().command(&words).stdout(writer).output().context("start byway")?;
    crate::lab::host::Answer::of(&words, &output)
}

fn a_log_that_cannot_be_written_ends_no_daemon(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.start_under(&["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"])?;
    until("the daemon answers", SOON, || {
        ensure!(a.ended()?.is_none(), "the daemon ended with {:?}", a.ended()?);
        Ok(a.byway(&["status"])?.code == 0)
    })?;
    a.json(&["create", "lab"])?;
    a.json(&["leave", "lab"])?;
    ensure!(a.ended()?.is_none(), "the daemon ended");
    Ok(())
}
