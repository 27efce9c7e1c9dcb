//! A workload that fails its health check: no name, no new connection by its maps, and what began before goes on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::flows::End;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until};
use crate::taps::Guest;
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(an_unhealthy_workload_loses_its_name_and_its_map_drains_until_it_answers),
    long!(
        a_virtual_machine_is_asked_by_its_port_and_runs_no_command,
        "busybox"
    ),
];

fn a_virtual_machine_is_asked_by_its_port_and_runs_no_command(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let at = a.json(&["attach", "tap", "vm", "--subnet", "lab"])?;
    let guest = Guest::boot(lab, a, &at)?;
    guest.dhcp(lab)?;
    let b4 = b.overlay("lab")?.0;
    let dig = || b.ns().dig(&b4, &["vm.lab.internal", "A"]);
    let health =
        || -> Result<Value> { Ok(a.json(&["workload", "show", "vm"])?["health"]["state"].clone()) };
    let check = ["workload", "health", "vm", "tcp", "81"];
    a.ok(&[&check[..], &["--interval", "1", "--fail", "3"]].concat())?;
    ensure!(health()? == "starting", "it has not been asked");
    ensure!(dig()?.answers.len() == 1, "its name is told meanwhile");
    until("nobody listens in the guest", SOON, || {
        Ok(health()? == "unhealthy" && dig()?.answers.is_empty())
    })?;
    let _server = guest.ns.serve("tcp", "0.0.0.0", 81)?;
    until("the guest answers", SOON, || {
        Ok(health()? == "healthy" && dig()?.answers.len() == 1)
    })?;
    let refused = a.fails(2, "E-HEALTH", &["workload", "health", "vm", "exec", "true"])?;
    ensure!(refused.err.contains("virtual machine"), "{refused}");
    ensure!(health()? == "healthy", "it is asked as before");
    a.ok(&["detach", "vm"]).map(drop)
}

/// The state of the map that listens at port 8090.
fn map_state(host: &Host) -> Result<Value> {
    let maps = host.json(&["map", "ls"])?;
    let mut all = maps["maps"].as_array().into_iter().flatten();
    let map = all.find(|m| m["listen"] == "0.0.0.0:8090");
    Ok(map.map_or(Value::Null, |m| m["state"].clone()))
}

fn is_told(host: &Host) -> Result<bool> {
    let status = host.json(&["status"])?;
    let mut problems = status["problems"].as_array().into_iter().flatten();
    Ok(problems.any(|p| p["code"] == "E-HEALTH"))
}

/// What a workload says under an address that is not its own is refused, and counts for it.
fn refusals_are_counted(a: &Host, web: &Netns, target: &str) -> Result<()> {
    let refused = || -> Result<Option<u64>> {
        let shown = a.json(&["workload", "show", "web"])?;
        Ok(shown["traffic"]["sent"]["refused"].as_u64())
    };
    let before = refused()?.context("what it sent and was refused")?;
    let spoofed = "10.77.99.99";
    let own = format!("{spoofed}/32");
    // Not on its interface: there this machine keeps the addresses as they are to be.
    web.ip(&["addr", "add", &own, "dev", "lo"])?;
    let from = web.run(&[
        "ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.5", "-I", spoofed, target,
    ])?;
    web.ip(&["addr", "del", &own, "dev", "lo"])?;
    let after = refused()?;
    ensure!(
        from.code == 1 && after >= Some(before + 3),
        "{before} {after:?}: {from}"
    );
    let text = a.ok(&["workload", "show", "web"])?;
    ensure!(text.contains(" refused\n"), "{text}");
    Ok(())
}

fn an_unhealthy_workload_loses_its_name_and_its_map_drains_until_it_answers(
    lab: &Lab,
) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (outside, web) = (lab.host("x")?, lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    let (b4, to) = (b.overlay("lab")?.0, a.under4());
    let _serves = web.serve("tcp", "0.0.0.0", 90)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8090", "web:90"])?;
    let mut asks = End::new(outside.ns(), ["asks", to, "8090", "speaks"])?;
    b.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8091", "web:90"])?;
    let mut over = End::new(outside.ns(), ["asks", b.under4(), "8091", "speaks"])?;
    let server = web.serve("tcp", "0.0.0.0", 81)?;
    let check = [
        "workload",
        "health",
        "web",
        "tcp",
        "81",
        "--interval",
        "1s",
        "--fail",
        "2",
    ];
    a.ok(&check)?;
    let dig = || b.ns().dig(&b4, &["web.lab.internal", "A"]);
    std::thread::sleep(Duration::from_secs(3));
    let (answers, state) = (dig()?.answers, map_state(a)?);
    ensure!(
        answers.len() == 1 && state == "ok",
        "it is well: {answers:?} {state}"
    );

    drop(server);
    let took = until("the name is withdrawn at the other member", SOON, || {
        Ok(dig()?.answers.is_empty())
    })?;
    ensure!(
        took < Duration::from_secs(6),
        "two failures of 1 s, one tell: {took:?}"
    );
    until("its map drains", SOON, || Ok(map_state(a)? == "unhealthy"))?;
    ensure!(is_told(a)?, "status says so");
    let pinged = b.fails(5, "E-HEALTH", &["ping", "web", "-c", "1"])?;
    ensure!(pinged.err.contains("unhealthy"), "{pinged}");
    let refused = End::new(outside.ns(), ["asks", to, "8090", "listens"]);
    ensure!(refused.is_err(), "nobody new is let in");
    let refused = End::new(outside.ns(), ["asks", b.under4(), "8091", "listens"]);
    ensure!(refused.is_err(), "nor by the other member");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(!asks.has_ended()?, "what began before goes on");
    ensure!(!over.has_ended()?, "by the other member, too");
    let shown = a.json(&["workload", "show", "web"])?;
    ensure!(
        shown["health"]["state"] == "unhealthy" && shown["state"] == "unhealthy",
        "{shown}"
    );
    let sent = &shown["traffic"]["sent"];
    ensure!(
        sent["packets"].as_u64() > Some(10) && sent["bytes"].as_u64() > Some(1000),
        "what passed its link is counted: {shown}"
    );
    refusals_are_counted(a, &web, &b4)?;

    let _again = web.serve("tcp", "0.0.0.0", 81)?;
    until("one answer is enough", SOON, || {
        Ok(dig()?.answers.len() == 1)
    })?;
    until(
        "its map lets clients in",
        SOON,
        || Ok(map_state(a)? == "ok"),
    )?;
    ensure!(!is_told(a)? && !asks.has_ended()?, "as before");
    ensure!(!over.has_ended()?, "as before");
    End::new(outside.ns(), ["asks", b.under4(), "8091", "speaks"]).map(drop)?;
    Ok(())
}
