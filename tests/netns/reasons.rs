//! Why two members are relayed, as every verb that looks says it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{found, relay, relayed, two_with};
use crate::underlay::path;

pub const CASES: &[Case] = &[fast!(
    two_symmetric_nats_are_named_with_a_remedy_by_each_verb_that_looks
)];

/// What a verb says that ends with 9.
fn degraded(of: &Host, words: &[&str]) -> Result<Value> {
    let answer = of.byway(&[words, &["--json"]].concat())?;
    ensure!(answer.code == 9, "{answer}");
    answer.value()
}

fn has(list: &Value, code: &str) -> bool {
    list.as_array()
        .is_some_and(|all| all.iter().any(|one| one["code"] == code))
}

fn two_symmetric_nats_are_named_with_a_remedy_by_each_verb_that_looks(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    // Two see each of them, so that each knows that its NAT tells every one another port.
    let second = relay(&inet, "second", 2)?;
    let nat = Uplink::behind(Kind::symmetric());
    let two = two_with(&inet, &nat, &nat, &[&second])?;
    let (a, b) = (&two.a, &two.b);
    found(a, b)?;
    relayed(a, "b", SOON)?;
    until("both ends' facts are known", SOON, || {
        let path = path(a, "b")?;
        ensure!(path["reason"] == "symmetric-nat-both", "{path}");
        ensure!(path["remedy"].is_string(), "{path}");
        Ok(true)
    })?;
    let said = a.ok(&["status"])?;
    ensure!(said.contains("(both NATs symmetric)"), "{said}");
    let status = a.json(&["status"])?;
    ensure!(has(&status["problems"], "E-RELAYED"), "{status}");

    let doctor = degraded(a, &["doctor", "b"])?;
    let peer = &doctor["peers"][0];
    for end in ["here", "there"] {
        ensure!(peer[end]["mapping"] == "dependent", "{end}: {peer}");
    }
    ensure!(text(peer, "cause")?.contains("symmetric"), "{peer}");
    ensure!(
        peer["tried"].as_array().is_some_and(|t| !t.is_empty())
            && peer["changes"].as_array().is_some_and(|c| !c.is_empty()),
        "{peer}"
    );

    let netcheck = degraded(a, &["netcheck"])?;
    ensure!(has(&netcheck["findings"], "E-NAT-SYMMETRIC"), "{netcheck}");
    let points = netcheck["meeting_points"].as_array();
    let kept = points.map(|all| all.iter().filter(|p| p["reserved"] == true).count());
    ensure!(kept >= Some(1), "{netcheck}");
    let seen = netcheck["addresses"].to_string();
    ensure!(seen.contains("seen_by"), "{netcheck}");

    let relays = a.json(&["relay", "ls"])?;
    let used = &relays["uses"][0];
    ensure!(
        used["relay"] == path(a, "b")?["via"] && used["names"][0] == "b.lab",
        "{relays}"
    );
    let places = relays["places"].as_array().context("places")?;
    ensure!(
        places.iter().any(|place| place["reserved_since"].is_u64()),
        "{relays}"
    );
    let said = a.ok(&["relay", "ls"])?;
    ensure!(
        said.contains("keeps a place") && said.contains("b.lab"),
        "{said}"
    );

    let refused = a.byway(&["ping", "b", "--until-direct", "-c", "2"])?;
    ensure!(refused.code == 8, "{refused}");
    ensure!(refused.err.contains("symmetric"), "{refused}");
    a.ok(&["ping", "b", "--path", "relay", "-c", "2"])?;
    ensure!(a.byway(&["ping", "b", "--path", "direct", "-c", "1"])?.code == 8);

    let resolved = a.json(&["peer", "resolve", "b"])?;
    let through = resolved["addresses"]
        .as_array()
        .is_some_and(|all| all.iter().any(|at| at["relay"].is_string()));
    ensure!(through, "{resolved}");
    let probe = a.json(&["probe", "b"])?;
    ensure!(
        probe["path"]["kind"] == "relay" && probe["mbit"].as_f64() > Some(0.1),
        "{probe}"
    );
    Ok(())
}
