//! Relays that nobody configured here: members' records tell of them.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::{Relay, configure, relay, relayed, reserved, start};
use crate::underlay::path;
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(a_member_is_found_through_the_relay_that_its_record_names),
    long!(one_member_that_knows_a_relay_teaches_the_others),
];

/// How long a connection may take to come back when the member that carried it is gone.
const BACK: Duration = Duration::from_secs(20);

/// A public founder of `lab`, and hosts behind symmetric NATs that have joined through it and know no relay.
fn members(inet: &Internet<'_>, names: &[&str]) -> Result<(Rc<Host>, Vec<Rc<Host>>)> {
    let founder = inet.host("c", 2)?;
    founder.start()?;
    founder.json(&["create", "lab"])?;
    let uses = names.len().to_string();
    let created = founder.json(&["invite", "create", "lab", "--uses", &uses])?;
    let invite = text(&created, "invite")?;
    let symmetric = Uplink::behind(Kind::symmetric());
    let hosts = names.iter().zip(10..).map(|(name, number)| {
        let (_, host) = inet.behind(name, number, &symmetric)?;
        host.start()?;
        host.json(&["join", &invite])?;
        Ok(host)
    });
    let hosts = hosts.collect::<Result<_>>()?;
    Ok((founder, hosts))
}

/// Names the relay in a host's configuration, as its owner does after a move.
fn names(host: &Host, relay: &Relay) -> Result<()> {
    configure(
        host,
        &format!("[transport]\nbootstrap = {:?}\n", relay.addresses),
    )?;
    host.ok(&["reload"])?;
    reserved(host).map(drop)
}

/// `a` has joined through `c`, and `b` keeps a place at a relay that only its own configuration names. The record that says
/// so has reached `a` before `c` goes: who hears nothing of where a member went finds it only by the relays that others'
/// records name.
fn a_member_is_found_through_the_relay_that_its_record_names(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let (c, hosts) = members(&inet, &["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    names(b, &relay)?;
    until("a has the record", SOON, || {
        let known = a.json(&["peer", "resolve", "b"])?;
        Ok(known["addresses"].to_string().contains(&relay.id))
    })?;
    c.kill9()?;
    let gone = Instant::now();
    relayed(a, "b", BACK)?;
    until("a and b talk through it", BACK, || {
        let path = path(a, "b")?;
        ensure!(path["via"] == relay.id.as_str(), "{path}");
        Ok(true)
    })?;
    a.ns().reaches(&b.overlay("lab")?.0, SOON)?;
    println!(
        "  through the relay {:?} after the member was gone",
        gone.elapsed()
    );
    until(
        "a is connected through it, and knows it by the record",
        BACK,
        || {
            let known = a
                .byway(&["--json", "peer", "resolve", &relay.id])?
                .value()?;
            Ok(known["addresses"][0]["source"] == "record")
        },
    )?;
    // What the kill has left there is taken away.
    c.start()
}

/// Whether a host knows of the relay from records.
fn knows(host: &Host, relay: &Relay) -> Result<bool> {
    let known = host.json(&["relay", "ls"])?["known"].clone();
    let known = known.as_array().cloned().unwrap_or_default();
    let is_it = |r: &Value| r["peer_id"] == relay.id.as_str() && r["source"] == "record";
    Ok(known.iter().any(is_it))
}

/// B alone has a relay in its configuration. Once B and the founder are gone, those that have learned of the relay from the
/// records of B meet there, although no announcement names it any more: the relay was away when B last made one.
fn one_member_that_knows_a_relay_teaches_the_others(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let relay = relay(&inet, "relay", 1)?;
    let (c, hosts) = members(&inet, &["a", "d"])?;
    let (a, d) = (&hosts[0], &hosts[1]);
    let (_, b) = inet.behind("b", 12, &Uplink::behind(Kind::symmetric()))?;
    start(&b, &[&relay])?;
    let created = c.json(&["invite", "create", "lab"])?;
    b.json(&["join", &text(&created, "invite")?])?;
    reserved(&b)?;
    let begun = Instant::now();
    for host in [a, d] {
        until("it has learned of the relay", SOON, || knows(host, &relay))?;
    }
    println!("  learned after {:?}", begun.elapsed());
    // A relay is named for good once its place has stood for a minute.
    std::thread::sleep(Duration::from_secs(80));
    relay.host.kill9()?;
    until("b announces it no more", Duration::from_secs(30), || {
        Ok(!b.json(&["id"])?["addresses"]
            .to_string()
            .contains("p2p-circuit"))
    })?;
    // The word of it takes a moment, and then longer than the time between two looks at the records.
    std::thread::sleep(Duration::from_secs(13));
    for host in [a, d] {
        ensure!(knows(host, &relay)?, "{} has forgotten it", host.name());
    }
    for host in [&b, &c] {
        host.terminate()?;
    }
    relay.host.start()?;
    let gone = Instant::now();
    relayed(a, "d", Duration::from_secs(100))?;
    until("a and d talk through it", BACK, || {
        let path = path(a, "d")?;
        ensure!(path["via"] == relay.id.as_str(), "{path}");
        Ok(true)
    })?;
    a.ns().reaches(&d.overlay("lab")?.0, SOON)?;
    println!(
        "  met there {:?} after the others were gone",
        gone.elapsed()
    );
    Ok(())
}
