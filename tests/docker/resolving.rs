//! What containers ask for names with: the file that the engine made for them, and no other.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

use super::engine::{Engine, alone};

pub const CASES: &[Case] = &[
    with_engine!(what_resolved_before_resolves_while_attached),
    with_engine!(file_that_is_not_the_containers_is_never_written),
];

/// A network of its own for containers, whose names the engine answers inside them.
const NETWORK: &[&str] = &["network", "create", "back"];

fn what_resolved_before_resolves_while_attached(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    engine.docker(NETWORK)?;
    let run = ["run", "-d", "--network", "back"];
    engine.docker(&[&run[..], &["--name", "db1", "box:1", "/bin/sleep", "1000"]].concat())?;
    let options = [
        "--dns-search",
        "corp.example",
        "--dns-opt",
        "timeout:1",
        "--name",
        "web",
        "box:1",
        "/bin/sleep",
        "1000",
    ];
    engine.docker(&[&run[..], &options].concat())?;
    let pings = |name: &str| engine.exec("web", &["ping", "-c", "1", "-W", "1", name]);
    let file = || engine.exec("web", &["cat", "/etc/resolv.conf"]);
    pings("db1").context("before it is attached")?;
    let before = file()?;
    a.start()?;
    a.json(&["create", "lab"])?;
    for _ in 0..2 {
        a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
        let now = file()?;
        ensure!(
            now.contains("search lab.internal corp.example"),
            "search lists are joined: {now}"
        );
        ensure!(
            now.contains("timeout:1") && now.contains("ndots:0"),
            "options stay: {now}"
        );
        pings("db1").with_context(|| format!("its neighbour: {now}"))?;
        pings("a.lab.internal")?;
        // A neighbour that comes later, and one that is attached itself.
        engine.docker(&[&run[..], &["--name", "late", "box:1", "/bin/sleep", "1000"]].concat())?;
        pings("late")?;
        engine.docker(&["rm", "-f", "late"])?;
        ensure!(pings("late").is_err(), "nothing is remembered of it");
        a.terminate()?;
        a.start()?;
        until(
            "its neighbour's name after a restart of the daemon",
            SOON,
            || Ok(pings("db1").is_ok()),
        )?;
        a.ok(&["detach", "web"])?;
        ensure!(file()? == before, "the file is as it was");
        pings("db1").context("after it was detached")?;
    }
    names_of_another_network_are_answered(&a, &engine)
}

/// The engine writes the file anew while the container is attached: that is what was there before us now.
fn names_of_another_network_are_answered(a: &Host, engine: &Engine) -> Result<()> {
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    engine.docker(&["network", "create", "more"])?;
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "more",
        "--name",
        "far",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    engine.docker(&["network", "connect", "more", "web"])?;
    for name in ["far", "db1", "a.lab.internal"] {
        until(
            &format!("{name} after another network was connected"),
            SOON,
            || {
                Ok(engine
                    .exec("web", &["ping", "-c", "1", "-W", "1", name])
                    .is_ok())
            },
        )?;
    }
    Ok(())
}

fn file_that_is_not_the_containers_is_never_written(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    mounted_files_are_left_alone(&a, &engine)?;
    a_container_that_may_not_write_resolves(&a, &engine)?;
    what_somebody_else_wrote_stays(&a, &engine)
}

/// Mounted as a file, read-only and not; as the file of another container; by its directory; with no file to write.
fn mounted_files_are_left_alone(a: &Host, engine: &Engine) -> Result<()> {
    let text = "nameserver 10.99.0.9\n";
    let dir = a.dir().join("mounted");
    std::fs::create_dir(&dir)?;
    let own = |name: &str| dir.join(name).to_string_lossy().into_owned();
    for name in ["resolv.conf", "hosts", "linked"] {
        std::fs::write(dir.join(name), text)?;
    }
    let root = engine.docker(&["inspect", "-f", "{{.ResolvConfPath}}", "web"])?;
    let mounts = [
        format!("{}:/etc/resolv.conf:ro", own("resolv.conf")),
        format!("{}:/etc/resolv.conf", own("linked")),
        format!("{}:/etc/resolv.conf", root.trim()),
        format!("{}:/etc", dir.display()),
    ];
    let others = || -> Result<Vec<String>> {
        let paths = ["resolv.conf", "hosts", "linked"].map(|name| dir.join(name));
        paths
            .iter()
            .map(Path::new)
            .chain([Path::new(root.trim())])
            .map(|p| Ok(std::fs::read_to_string(p)?))
            .collect()
    };
    let before = others()?;
    for (number, mount) in mounts.iter().enumerate() {
        let name = format!("c{number}");
        engine.docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "-v",
            mount,
            "--name",
            &name,
            "box:1",
            "/bin/sleep",
            "1000",
        ])?;
        let at = a.json(&["attach", "docker", &name, "--subnet", "lab"])?;
        ensure!(
            others()? == before,
            "{mount}: a file of somebody else was written: {:?}",
            others()?
        );
        let by_directory = mount.ends_with(":/etc");
        ensure!(
            at["resolver"] == by_directory,
            "{mount}: only the engine's file is ours to write: {at}"
        );
        ensure!(
            at["dns"][0].is_string(),
            "the address is reported all the same: {at}"
        );
        a.ok(&["detach", &name])?;
        ensure!(
            others()? == before,
            "{mount}: given back what was never taken"
        );
    }
    Ok(())
}

/// One that may not write at all has a file of its own all the same.
fn a_container_that_may_not_write_resolves(a: &Host, engine: &Engine) -> Result<()> {
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "none",
        "--read-only",
        "--name",
        "ro",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    let inside = engine.exec("ro", &["cat", "/etc/resolv.conf"])?;
    a.json(&["attach", "docker", "ro", "--subnet", "lab"])?;
    engine.exec("ro", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])?;
    a.ok(&["detach", "ro"])?;
    ensure!(
        engine.exec("ro", &["cat", "/etc/resolv.conf"])? == inside,
        "the file is as it was"
    );
    Ok(())
}

/// A detach leaves a file alone that somebody wrote after we did.
fn what_somebody_else_wrote_stays(a: &Host, engine: &Engine) -> Result<()> {
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.terminate()?;
    a.start()?;
    engine.exec(
        "web",
        &["sh", "-c", "echo 'nameserver 10.99.0.7' > /etc/resolv.conf"],
    )?;
    a.ok(&["detach", "web"])?;
    let now = engine.exec("web", &["cat", "/etc/resolv.conf"])?;
    ensure!(
        now.contains("10.99.0.7"),
        "somebody else's text stays: {now}"
    );
    Ok(())
}
