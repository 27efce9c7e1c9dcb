//! What a container asked for and did not get is a problem of `status`, from the engine's labels to the person who looks.

use anyhow::{Result, ensure};

use super::plugin::{CREATE, host, run};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

pub const CASES: &[Case] = &[crate::long!(
    labels_and_names_that_are_refused_and_a_damaged_file_are_problems_until_mended,
    "docker",
    "dockerd",
    "nsenter",
    "unshare",
    "tar",
    "busybox"
)];

/// Whether `status` has a problem with that code whose words hold `what`.
fn has(host: &Host, code: &str, what: &str) -> Result<bool> {
    let status = host.json(&["status"])?;
    let mut all = status["problems"].as_array().into_iter().flatten();
    Ok(all.any(|p| p["code"] == code && p["message"].as_str().unwrap_or("").contains(what)))
}

fn comes(host: &Host, code: &str, what: &str) -> Result<()> {
    until(&format!("{code} {what}"), SOON, || has(host, code, what)).map(drop)
}

fn goes(host: &Host, code: &str, what: &str) -> Result<()> {
    let gone = format!("{code} {what} is gone");
    until(&gone, SOON, || Ok(!has(host, code, what)?)).map(drop)
}

fn labels_and_names_that_are_refused_and_a_damaged_file_are_problems_until_mended(
    lab: &Lab,
) -> Result<()> {
    let (a, engine) = host(lab, "a", &[])?;
    a.start()?;
    a.json(&["create", "lab"])?;
    a.ok(&["integration", "install", "docker"])?;
    engine.docker(&[&CREATE[..], &["lab"]].concat())?;
    for (name, label) in [
        ("one", "exec true fail=2"),
        ("two", "http http://example.com/"),
        ("three", "tcp 80 interval=500ms"),
    ] {
        let label = format!("--label=byway.health={label}");
        run(&engine, name, &["--network", "lab", &label])?;
        let what = format!("byway.health of container {name}");
        comes(&a, "E-LABEL", &what)?;
        let shown = a.json(&["workload", "show", name])?;
        ensure!(shown["health"].is_null(), "it is not asked: {shown}");
        engine.docker(&["rm", "-f", name])?;
        goes(&a, "E-LABEL", &what)?;
    }
    // A name that another workload has.
    let other = lab.workload("other")?;
    a.attach(&other, "lab", "web")?;
    run(&engine, "web", &["--network", "lab"])?;
    comes(&a, "E-NAME-TAKEN", "web of container web is taken")?;
    a.json(&["workload", "show", "web-2"])?;
    a.ok(&["detach", "web"])?;
    engine.docker(&["restart", "-t", "0", "web"])?;
    goes(&a, "E-NAME-TAKEN", "container web")?;
    // What is kept of Docker cannot be read: volume commands are not held up, and networks are not forgotten.
    let file = a.state().join("docker.json");
    let kept = std::fs::read(&file)?;
    a.terminate()?;
    std::fs::write(&file, b"{\"installed\": tru")?;
    a.start()?;
    comes(&a, "E-STATE-DAMAGED", "plugin is not served")?;
    let begun = std::time::Instant::now();
    engine.docker(&["volume", "ls"])?;
    ensure!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
    a.fails(1, "E-STATE-DAMAGED", &["integration", "install", "docker"])?;
    ensure!(
        std::fs::read(&file)?.starts_with(b"{\"installed\": tru"),
        "it is left for who mends it"
    );
    a.terminate()?;
    std::fs::write(&file, kept)?;
    a.start()?;
    goes(&a, "E-STATE-DAMAGED", "plugin")?;
    until("the container is back", SOON, || {
        Ok(a.json(&["workload", "show", "web"])?["state"] == "ok")
    })?;
    engine.docker(&["rm", "-f", "web"])?;
    engine.docker(&["network", "rm", "lab"])?;
    Ok(())
}
