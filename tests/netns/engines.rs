//! What a container engine asks of the daemon: its own words, and which engine is asked.

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until, v4, v6};

pub const CASES: &[Case] = &[
    fast!(an_engine_attaches_a_container_before_it_has_a_namespace),
    fast!(the_engine_asked_for_a_container_is_the_callers),
];

/// An engine's own words, as its adapter would send them: what `byway` itself does not say.
fn asks(host: &Host, request: &serde_json::Value) -> Result<serde_json::Value> {
    let client = byway::api::client::Client::new(host.socket());
    let request = serde_json::from_value(request.clone()).context("a request")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime
        .block_on(client.call(&request))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(serde_json::to_value(answer)?)
}

fn an_engine_attaches_a_container_before_it_has_a_namespace(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    b.attach(&db, "lab", "db")?;
    let before = crate::lab::snapshot::of(a.ns())?;
    let of = |netns: Option<&str>| {
        let at = serde_json::json!({"engine": "cni", "container": "0f1e2d", "interface": "eth0", "netns": netns});
        serde_json::json!({"verb": "attach", "subnet": "lab", "workload": {"container": at}, "name": "web"})
    };
    // Its lease and its name are there, also for the others, and nothing in the kernel.
    asks(a, &of(None))?;
    let shown = a.json(&["workload", "show", "web"])?;
    let (web4, web6) = (v4(&shown)?, v6(&shown)?);
    ensure!(
        shown["state"] == "no-namespace" && shown["container"] == "0f1e2d",
        "{shown}"
    );
    until("the other host has the name", SOON, || {
        Ok(b.json(&["dns", "query", "web.lab.internal"])
            .is_ok_and(|found| found.to_string().contains(&web4)))
    })?;
    ensure!(
        crate::lab::snapshot::of(a.ns())? == before,
        "nothing was made"
    );
    // The namespace completes it, with the interface called as the engine wants.
    asks(a, &of(Some(web.name())))?;
    let inside = web.ip(&["-o", "addr", "show", "dev", "eth0"])?;
    ensure!(
        inside.contains(&web4) && inside.contains(&web6),
        "the same addresses, on eth0: {inside}"
    );
    db.reaches(&web4, SOON)?;
    db.reaches("web.lab.internal", SOON)?;
    // A link of that name that is somebody's own is in the way, and what was asked for leaves nothing behind.
    let other = lab.workload("other")?;
    other.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "eth1",
    ])?;
    let taken = serde_json::json!({"engine": "cni", "container": "99", "interface": "eth0", "netns": other.name()});
    let taken =
        serde_json::json!({"verb": "attach", "subnet": "lab", "workload": {"container": taken}});
    let refused = asks(a, &taken)
        .err()
        .context("eth0 is another's")?
        .to_string();
    ensure!(
        refused.contains("eth0") && refused.contains("E-KERNEL"),
        "{refused}"
    );
    ensure!(
        a.json(&["workload", "ls"])?["workloads"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
    );
    let gone = serde_json::json!({"verb": "detach", "workload": "0f1e2d", "interface": "eth0", "subnet": null});
    asks(a, &gone)?;
    until("nothing is left of it", SOON, || {
        Ok(crate::lab::snapshot::of(a.ns())? == before)
    })?;
    ensure!(
        !web.ip(&["-o", "link", "show"])?.contains("eth0"),
        "the interface is gone"
    );
    ensure!(
        other.ip(&["-o", "link", "show"])?.contains("eth0"),
        "and the one that was there stays"
    );
    other.ip(&["link", "del", "eth0"])?;
    Ok(())
}

fn the_engine_asked_for_a_container_is_the_callers(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    a.set_env("DOCKER_HOST", "unix:///nowhere/own.sock");
    let answer = a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "web", "--subnet", "lab"],
    )?;
    ensure!(answer.err.contains("/nowhere/own.sock"), "{answer}");
    Ok(())
}
