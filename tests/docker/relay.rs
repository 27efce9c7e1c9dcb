//! A relay in a container of its own, built as the README says.

use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::engine::Engine;
use crate::lab::host::Answer;
use crate::lab::internet::{Internet, Uplink};
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, binary, text, until, v4};

pub const CASES: &[Case] = &[with_engine!(
    a_relay_in_a_container_of_its_own_serves_two_members
)];

/// Builds the image from nothing but this machine's files.
fn built(lab: &Lab, engine: &Engine) -> Result<()> {
    let context = lab.dir().join("context").to_string_lossy().into_owned();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/relay/context");
    let made = Command::new(script)
        .arg("--binary")
        .arg(binary())
        .arg(&context)
        .output()?;
    let made = Answer::of(&[script], &made)?;
    ensure!(made.code == 0, "{made}");
    let file = format!("{context}/Containerfile");
    let build = ["build", "-q", "-t", "byway-relay", "-f", &file, &context];
    engine.docker(&build).map(drop)
}

/// Starts the container, as the README says; the addresses under which others know it.
fn served(engine: &Engine, host: &Host) -> Result<Vec<String>> {
    let advertise = format!("BYWAY_TRANSPORT_ADVERTISE={}", host.under4());
    engine.docker(&[
        "run",
        "-d",
        "--name",
        "relay",
        "-p",
        "4100:4100/udp",
        "-p",
        "4100:4100/tcp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "-v",
        "byway-relay:/var/lib/byway",
        "-e",
        &advertise,
        "byway-relay",
    ])?;
    let mut id = Value::Null;
    let outside = format!("/ip4/{}/", host.under4());
    let answers = until("the relay in the container answers", SOON, || {
        id = serde_json::from_str(&engine.exec("relay", &["byway", "id", "--json"])?)?;
        Ok(id["addresses"].to_string().contains(&outside))
    });
    answers.with_context(|| engine.docker(&["logs", "relay"]).unwrap_or_default())?;
    let all = id["addresses"].as_array().context("addresses")?;
    let all = all.iter().filter_map(Value::as_str);
    let all = all.filter(|address| address.starts_with(&outside));
    Ok(all.map(str::to_owned).collect())
}

/// A member behind a NAT that drops all but answers, which knows the relay.
fn member(inet: &Internet<'_>, name: &str, number: u8, relay: &[String]) -> Result<Rc<Host>> {
    let nat = Uplink::behind(Kind::port_restricted());
    let (_, host) = inet.behind(name, number, &nat)?;
    host.set_env("BYWAY_TRANSPORT_BOOTSTRAP", &relay.join(","));
    host.start()?;
    Ok(host)
}

fn a_relay_in_a_container_of_its_own_serves_two_members(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let host = inet.host("relay", 1)?;
    let engine = Engine::start(&host)?;
    built(lab, &engine)?;
    let relay = served(&engine, &host)?;
    ensure!(relay.len() == 2, "{relay:?}");
    let (a, b) = (
        member(&inet, "a", 10, &relay)?,
        member(&inet, "b", 11, &relay)?,
    );
    for member in [&a, &b] {
        until("it has a place at the relay", SOON, || {
            Ok(member.ok(&["id", "--json"])?.contains("p2p-circuit"))
        })?;
    }
    let created = a.json(&["create", "lab"])?;
    b.json(&["join", &text(&created, "invite")?])?;
    let inside = v4(&created)?;
    b.ns().reaches(&inside, Duration::from_secs(5))?;
    // It keeps its key in the volume: who knows it finds it again.
    engine.docker(&["rm", "-f", "relay"])?;
    ensure!(served(&engine, &host)? == relay, "another key");
    // The bridge got an address of its own with its first container.
    host.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.docker0.disable_ipv6=1"])
        .map(drop)
}
