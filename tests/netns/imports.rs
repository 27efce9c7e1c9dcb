//! Compose files: imported, what they describe comes and gets its name, address and ports, and all of it taken back.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ci;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, addresses, until};

pub const CASES: &[Case] = &[ci!(
    what_a_compose_file_describes_is_there_when_its_workloads_come
)];

const FILE: &str = r#"
name: shop
services:
  web:
    image: nginx
    container_name: front
    labels: {byway.name: web}
    hostname: www
    ports: ["${PORT:-8080}:80"]
    networks:
      lab: {ipv4_address: 10.77.1.99, mac_address: "02:00:00:00:00:07", aliases: [shop]}
  db:
    image: postgres
    networks: [lab]
networks:
  lab:
    driver: byway
    driver_opts: {subnet: lab}
"#;

fn import(host: &Host, more: &[&str]) -> Result<Value> {
    let file = host.dir().join("compose.yml").display().to_string();
    host.json(&[&["import", "compose", &file], more].concat())
}

fn write(host: &Rc<Host>, text: &str) -> Result<String> {
    let file = host.dir().join("compose.yml");
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

fn what_a_compose_file_describes_is_there_when_its_workloads_come(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    a.start()?;
    b.start()?;
    let made = a.json(&["create", "lab", "--cidr4", "10.77.0.0/16"])?;
    let invite = made["invite"].as_str().context("an invite")?;
    b.json(&["join", invite])?;
    let outside = a.ns().ruleset()?;
    let file = write(&a, FILE)?;
    std::fs::write(a.dir().join(".env"), "PORT=8088\n")?;
    let first = import(&a, &[])?;
    ensure!(first["changed"] == true, "{first}");
    let again = import(&a, &[])?;
    ensure!(
        again["changed"] == false && again["workloads"] == first["workloads"],
        "{again}"
    );
    let maps = a.json(&["map", "ls", "lab"])?;
    ensure!(maps["maps"][0]["state"] == "no-target", "{maps}");
    // The container comes by the name that compose gives it; here it is a namespace.
    let front = lab.workload("front")?;
    let attached = a.json(&[
        "attach",
        "netns",
        front.name(),
        "--subnet",
        "lab",
        "--name",
        "web",
    ])?;
    let mine = addresses(&attached)?;
    ensure!(mine.contains(&"10.77.1.99".parse()?), "{attached}");
    let inside = front.ip(&["-o", "link", "show", "dev", "byway0"])?;
    ensure!(inside.contains("02:00:00:00:00:07"), "{inside}");
    let served = front.serve("tcp", "10.77.1.99", 80)?;
    let client = lab.workload("client")?;
    b.attach(&client, "lab", "client")?;
    for name in ["web", "www", "shop"] {
        client.reaches(&format!("{name}.lab.internal"), SOON)?;
    }
    until("the port leads to it", SOON, || {
        Ok(b.ns().tcp(a.under4(), 8088, 100).is_ok())
    })?;
    drop(served);
    // One thing that is wrong, and nothing is another.
    let before = (a.json(&["map", "ls"])?, a.ns().ruleset()?);
    for (wrong, code) in [
        (FILE.replace("hostname", "links"), "E-COMPOSE"),
        (FILE.replace("10.77.1.99", "192.0.2.1"), "E-"),
        (FILE.replace("subnet: lab", "subnet: prod"), "E-NO-SUBNET"),
    ] {
        write(&a, &wrong)?;
        let answer = a.byway(&["--json", "import", "compose", &file])?;
        ensure!(
            answer.err.contains(code) || answer.out.contains(code),
            "{answer}"
        );
    }
    let after = (a.json(&["map", "ls"])?, a.ns().ruleset()?);
    ensure!(before.1 == after.1, "{} {}", before.0, after.0);
    let line = a.fails(
        2,
        "E-COMPOSE",
        &[
            "import",
            "compose",
            &write(&a, "services:\n  w:\n    link: [x]\n")?,
        ],
    )?;
    ensure!(
        line.err.contains("line 3") && line.err.contains("link"),
        "{line}"
    );
    // A refusal of the daemon's names the file and its line as well.
    for (wrong, line) in [
        (FILE.replace("10.77.1.99", "192.0.2.1"), 4),
        (FILE.replace("subnet: lab", "subnet: prod"), 4),
        (FILE.replace("${PORT:-8080}", "4100"), 4),
    ] {
        let file = write(&a, &wrong)?;
        let answer = a.byway(&["import", "compose", &file])?;
        ensure!(
            answer.code != 0 && answer.err.contains(&format!("compose.yml: line {line}: ")),
            "{answer}"
        );
    }
    // An edited file, and back to the one before; and no further.
    write(&a, &FILE.replace("${PORT:-8080}", "8090"))?;
    let edited = import(&a, &[])?;
    ensure!(
        edited["removed"] == serde_json::json!(["tcp-8088"]),
        "{edited}"
    );
    let back = import(&a, &["--rollback"])?;
    ensure!(back["removed"] == serde_json::json!(["tcp-8090"]), "{back}");
    listed_and_removed(&a, &file)?;
    ensure!(a.ns().ruleset()? == before.1, "the former map is back");
    a.fails(5, "E-IMPORT", &["import", "compose", &file, "--rollback"])?;
    a.ok(&["detach", "web"])?;
    write(
        &a,
        "services: {db: {networks: [lab]}}\nnetworks: {lab: {driver: byway}}\n",
    )?;
    import(&a, &[])?;
    until("nothing is mapped any more", SOON, || {
        Ok(a.ns().ruleset()? == outside)
    })?;
    Ok(())
}

/// A file that is gone is still listed by its path, and what it brought is taken away; not back onto a port in use.
fn listed_and_removed(a: &Rc<Host>, file: &str) -> Result<()> {
    let listed = a.json(&["import", "ls"])?;
    let one = &listed["imports"][0];
    ensure!(
        one["source"] == file && one["rollback"] == false,
        "{listed}"
    );
    let states: Vec<(&str, bool)> = (one["workloads"].as_array().into_iter().flatten())
        .filter_map(|w| Some((w["workload"].as_str()?, w["here"].as_bool()?)))
        .collect();
    ensure!(states == [("db", false), ("web", true)], "{listed}");
    let shown = a.ok(&["import", "ls"])?;
    ensure!(shown.contains("planned") && shown.contains(file), "{shown}");
    std::fs::remove_file(file)?;
    a.fails(
        5,
        "E-IMPORT",
        &["import", "compose", "/no/such.yml", "--remove"],
    )?;
    let gone = import(a, &["--remove"])?;
    ensure!(
        gone["removed"] == serde_json::json!(["db", "tcp-8088", "web"])
            && gone["workloads"] == serde_json::json!([]),
        "{gone}"
    );
    let taken = a.ns().serve("tcp", "0.0.0.0", 8088)?;
    let refused = a.fails(
        6,
        "E-PORT-IN-USE",
        &["import", "compose", file, "--rollback"],
    )?;
    ensure!(refused.err.contains("8088"), "{refused}");
    ensure!(a.json(&["map", "ls"])?["maps"] == serde_json::json!([]));
    drop(taken);
    let back = import(a, &["--rollback"])?;
    ensure!(
        back["workloads"]
            .as_array()
            .is_some_and(|all| all.len() == 2),
        "{back}"
    );
    Ok(())
}
