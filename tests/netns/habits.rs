//! What people type without looking it up, and what they expect to see then.

use anyhow::{Result, ensure};

use crate::everyday::at_terminal;
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(a_join_at_a_terminal_says_whom_it_asks_and_waits_visibly, "script"),
    fast!(alone_it_shows_the_status_of_the_daemon),
];

fn a_join_at_a_terminal_says_whom_it_asks_and_waits_visibly(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let empty = b.ok(&["status"])?;
    ensure!(empty.contains("try:  byway create NAME") && empty.contains("try:  byway join ID|INVITE"), "{empty}");
    let own = text(&b.json(&["id"])?, "fingerprint")?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    let answer = at_terminal(&b, "", &["join", &id, "--peer", &peer, "--timeout", "4s"])?;
    ensure!(answer.code == 7 && answer.out.contains("E-PENDING"), "{answer}");
    // In this order: what is typed is said before anybody answered.
    let mut rest = answer.out.as_str();
    let asked = format!(" at {}:", a.under4());
    for part in [&format!("asking for subnet {id}: {peer}"), &own, "asked", &asked, "waiting for approval: 2 s of 4 s"]
    {
        let Some((_, after)) = rest.split_once(part) else { anyhow::bail!("no {part:?} in its place: {answer}") };
        rest = after;
    }
    // Programs get none of it.
    let piped = b.byway(&["join", &id, "--timeout", "1s"])?;
    ensure!(piped.code == 7 && !piped.err.contains("asking for") && !piped.err.contains("waiting for"), "{piped}");
    let shown = b.ok(&["status"])?;
    ensure!(shown.contains("pending") && shown.contains(&own) && shown.contains("  asked  "), "{shown}");
    let status = b.json(&["status", &id])?["subnets"][0].clone();
    let who = text(&a.json(&["id"])?, "peer_id")?;
    ensure!(status["state"] == "pending" && status["id"] == *id && status["name"] == "lab", "{status}");
    ensure!(status["waiting"]["fingerprint"] == *own && status["waiting"]["reached"] == true, "{status}");
    ensure!(status["waiting"]["asked"][0]["peer_id"] == *who, "{status}");
    b.fails(9, "E-DEGRADED", &["status", "--check", "ready"])?;
    a.ok(&["member", "approve", "lab", "b"])?;
    until("who was approved waits no more", SOON, || {
        let all = b.json(&["status"])?["subnets"].clone();
        let [one] = all.as_array().map(Vec::as_slice).unwrap_or_default() else { return Ok(false) };
        Ok(one["state"] == "ready" && one["waiting"].is_null())
    })?;
    // Who is in already is not told that it asks.
    let again = at_terminal(&b, "", &["join", &id])?;
    ensure!(again.code == 0 && !again.out.contains("asking for"), "{again}");
    Ok(())
}

fn alone_it_shows_the_status_of_the_daemon(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let shown = a.ok(&[])?;
    ensure!(shown.starts_with("subnet lab  ") && shown == a.ok(&["status"])?, "{shown}");
    ensure!(a.json(&[])?["schema"] == "byway.status/1");
    Ok(())
}
