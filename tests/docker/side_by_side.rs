//! Two engines on one host in one subnet: Docker with a network of its own, and a runtime that calls network plugins.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::lab::cni::{Container, Network};
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, until, v4};

use super::plugin::{run, scene};

pub const CASES: &[Case] = &[crate::ci!(
    two_engines_of_one_host_share_a_subnet,
    "docker",
    "dockerd",
    "nsenter",
    "unshare",
    "tar",
    "busybox"
)];

fn two_engines_of_one_host_share_a_subnet(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, eb)] = scene(lab, &[])?;
    let space = lab.workload("pod")?;
    let (net, empty) = (Network::new(&a, "net", json!({}))?, json!({}));
    let mut pod = Container::of("0f1e2d3c4b5a", &space);
    pod.args = "IgnoreUnknown=1;K8S_POD_NAME=pod".to_owned();
    net.add(&pod, &empty)?;
    let pod4 = v4(&a.json(&["workload", "show", "pod"])?)?;
    // A name as people give them to containers: it is a label of DNS for the others.
    run(&ea, "My_Web.1", &["--network", "lab"])?;
    run(&eb, "far", &["--network", "lab"])?;
    let known = || -> Result<Vec<String>> {
        let all = a.json(&["workload", "ls"])?;
        let all = all["workloads"].as_array().context("workloads")?;
        let name = |w: &serde_json::Value| w["workload"].as_str().unwrap_or_default().to_owned();
        let mut names: Vec<String> = all.iter().map(name).collect();
        names.sort();
        Ok(names)
    };
    until("both are known by name", SOON, || {
        Ok(known()? == ["my-web-1", "pod"])
    })?;
    let web4 = v4(&a.json(&["workload", "show", "my-web-1"])?)?;
    ensure!(web4 != pod4, "an address for each");
    let pings = |to: &str| {
        for (engine, from) in [(&ea, "My_Web.1"), (&eb, "far")] {
            until(&format!("{from} pings {to}"), SOON, || {
                engine
                    .exec(from, &["ping", "-c", "1", "-W", "1", to])
                    .map(|_| true)
            })?;
        }
        anyhow::Ok(())
    };
    pings("pod")?;
    pings("my-web-1")?;
    space.reaches(&web4, SOON)?;
    // A name that the other engine's container has is not taken from it.
    run(&ea, "pod", &["--network", "lab"])?;
    until("it has a name with a number", SOON, || {
        Ok(known()? == ["my-web-1", "pod", "pod-2"])
    })?;
    // The engine's own containers ask the engine first, which has a `pod` of its own; nobody else does.
    let answer = eb.exec("far", &["ping", "-c", "1", "-W", "1", "pod"])?;
    ensure!(answer.contains(&pod4), "{answer}");
    ea.docker(&["rm", "-f", "pod"])?;
    ensure!(
        v4(&a.json(&["workload", "show", "pod"])?)? == pod4,
        "the first is as it was"
    );
    // What one takes away is not the other's.
    ea.docker(&["rm", "-f", "My_Web.1"])?;
    until("only the other's is left", SOON, || Ok(known()? == ["pod"]))?;
    space.reaches(&v4(&b.json(&["workload", "show", "far"])?)?, SOON)?;
    net.del(&pod)?;
    ensure!(known()?.is_empty(), "nothing is left");
    Ok(())
}
