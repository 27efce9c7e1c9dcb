//! A compose file that is imported first: what compose starts from it has what was kept.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, sh, text, until};

use super::plugin::host;

pub const CASES: &[Case] = &[crate::ci!(
    what_compose_starts_has_what_was_imported,
    "docker",
    "dockerd",
    "docker-compose",
    "nsenter",
    "unshare",
    "tar",
    "busybox"
)];

fn workload(host: &Host, name: &str) -> Result<Value> {
    let all = host.json(&["workload", "ls"])?;
    let mut all = all["workloads"].as_array().context("workloads")?.iter();
    Ok(all
        .find(|w| w["workload"] == name)
        .cloned()
        .unwrap_or_default())
}

fn what_compose_starts_has_what_was_imported(lab: &Lab) -> Result<()> {
    let (a, engine) = host(lab, "a", &[])?;
    a.start()?;
    a.json(&["create", "lab", "--cidr4", "10.77.0.0/16"])?;
    a.ok(&["integration", "install", "docker"])?;
    let own = a.json(&["subnet", "show", "lab"])?;
    let prefix = text(&own, "cidr4")?;
    let service = "image: box:1\n    stop_grace_period: 0s\n    init: false";
    let file = a.dir().join("compose.yml");
    std::fs::write(
        &file,
        format!(
            r#"version: '2.4'
services:
  web:
    {service}
    command: [/bin/sleep, '1000']
    ports: ["8080:80"]
    labels: {{byway.map: "udp/5300:53"}}
    networks: {{lab: {{ipv4_address: 10.77.1.99}}}}
  db:
    {service}
    command: [/bin/sleep, '1000']
    networks: [lab]
networks:
  lab:
    driver: byway
    driver_opts: {{subnet: lab}}
    ipam: {{driver: byway, options: {{subnet: lab}}, config: [{{subnet: {prefix}}}]}}
"#
        ),
    )?;
    let path = file.display().to_string();
    let compose = |more: &[&str]| {
        let base = ["-H", &engine.socket, "-p", "shop", "-f", &path];
        sh("docker-compose", &[&base[..], more].concat())
    };
    let import = |more: &[&str]| a.json(&[&["import", "compose", &path], more].concat());
    import(&["--project", "shop"])?;
    compose(&["up", "-d"])?;
    // They are called as in the file, and not as compose calls its containers.
    for name in ["web", "db"] {
        until("the workload is there", SOON, || {
            Ok(workload(&a, name)?["state"] == "ok")
        })?;
    }
    let web = workload(&a, "web")?;
    ensure!(web["addresses"][0] == "10.77.1.99", "{web}");
    let problems = a.json(&["status"])?["problems"].to_string();
    ensure!(
        !problems.contains("E-NAME-TAKEN"),
        "a name that the file gave is nobody else's: {problems}"
    );
    ensure!(
        !problems.contains("docker-proxy"),
        "what Docker publishes is Docker's to answer for: {problems}"
    );
    let maps = a.json(&["map", "ls", "lab"])?;
    let mut named: Vec<&str> = maps["maps"]
        .as_array()
        .context("maps")?
        .iter()
        .filter_map(|m| m["name"].as_str())
        .collect();
    named.sort_unstable();
    named.dedup();
    ensure!(named == ["tcp-8080", "udp-5300"], "each once: {maps}");
    let rules = a.ns().ruleset()?;
    let ours = rules
        .split("table ")
        .filter(|table| table.contains("byway"));
    let ours: String = ours.collect();
    ensure!(
        ours.contains("5300") && !ours.contains("8080"),
        "Docker has the other port: {ours}"
    );
    let listening = a.ns().ok(&["ss", "-ltnH", "sport = :8080"])?;
    ensure!(listening.contains("8080"), "Docker publishes the port");
    // The same again while all of it runs changes nothing.
    let again = import(&["--project", "shop"])?;
    ensure!(again["changed"] == false, "{again}");
    compose(&["down"])?;
    until("the workloads are gone", SOON, || {
        Ok(workload(&a, "web")?.is_null() && workload(&a, "db")?.is_null())
    })?;
    let back = import(&["--rollback"])?;
    ensure!(back["workloads"] == serde_json::json!([]), "{back}");
    let maps = a.json(&["map", "ls", "lab"])?;
    ensure!(maps["maps"] == serde_json::json!([]), "{maps}");
    Ok(())
}
