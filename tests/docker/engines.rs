//! Engines out of the ordinary: the caller's own, one with users of its own, one that restarts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until, v4};

use super::engine::Engine;

pub const CASES: &[Case] = &[
    with_engine!(containers_with_users_of_their_own_are_attached_and_given_back),
    with_engine!(an_engine_that_restarts_below_live_containers_changes_nothing),
    with_engine!(a_container_is_found_at_the_engine_of_the_caller),
];

fn a_container_is_found_at_the_engine_of_the_caller(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    // The daemon was started with another engine in its environment.
    a.set_env("DOCKER_HOST", "unix:///nowhere/daemons.sock");
    a.start()?;
    a.json(&["create", "lab"])?;
    engine.run("web")?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "web", "--subnet", "lab"],
    )?;
    a.set_env("DOCKER_HOST", &engine.socket);
    let at = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    ensure!(
        engine.exec("web", &["ip", "addr"])?.contains(&v4(&at)?),
        "{at}"
    );
    Ok(())
}

/// The user whose range the containers get, in files that only the engine sees.
const REMAP: &str = "
grep -v ^dockremap: /etc/passwd >$D/passwd; echo dockremap:x:990:990::/nonexistent:/bin/false >>$D/passwd
grep -v ^dockremap: /etc/group >$D/group; echo dockremap:x:990: >>$D/group
echo dockremap:300000:65536 >$D/subuid; cp $D/subuid $D/subgid; touch /etc/subuid /etc/subgid
for f in passwd group subuid subgid; do mount --bind $D/$f /etc/$f; done";

fn containers_with_users_of_their_own_are_attached_and_given_back(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let a = lab.host("a")?;
    // The containers' root has to pass.
    for dir in [lab.dir(), a.dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
    }
    let script = REMAP.replace("$D", &a.dir().to_string_lossy());
    let engine = Engine::start_with(&a, &script, &["--userns-remap=dockremap"])?;
    ["web", "db"].iter().try_for_each(|name| engine.run(name))?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let path = engine
        .docker(&["inspect", "-f", "{{.ResolvConfPath}}", "web"])?
        .trim()
        .to_owned();
    let file = || -> Result<(u32, u32, u32, String)> {
        let is = std::fs::metadata(&path)?;
        Ok((
            is.uid(),
            is.gid(),
            is.mode(),
            std::fs::read_to_string(&path)?,
        ))
    };
    let (before, links) = (file()?, engine.exec("web", &["ip", "addr"])?);
    ensure!(
        before.0 == 300_000,
        "the engine gives its containers users of their own: {before:?}"
    );
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    a.json(&["attach", "docker", "db", "--subnet", "lab"])?;
    ensure!(
        engine.exec("web", &["ip", "addr"])?.contains(&v4(&web)?),
        "it has its address"
    );
    until("web reaches db by name", SOON, || {
        engine
            .exec("web", &["ping", "-c", "1", "-W", "1", "db"])
            .map(|_| true)
    })?;
    let during = file()?;
    ensure!(
        (during.0, during.1, during.2) == (before.0, before.1, before.2),
        "{during:?} instead of {before:?}"
    );
    ["web", "db"]
        .iter()
        .try_for_each(|name| a.ok(&["detach", name]).map(drop))?;
    ensure!(file()? == before, "{:?} instead of {before:?}", file()?);
    ensure!(
        engine.exec("web", &["ip", "addr"])? == links,
        "its links are as they were"
    );
    Ok(())
}

fn an_engine_that_restarts_below_live_containers_changes_nothing(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let mut engine = Engine::start_with(&a, "", &["--live-restore"])?;
    let done = restarts(lab, &a, &mut engine);
    if let Err(error) = &done {
        println!("{error:#}");
    }
    done
}

fn restarts(lab: &Lab, a: &Host, engine: &mut Engine) -> Result<()> {
    ["web", "db"].iter().try_for_each(|name| engine.run(name))?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let other = lab.workload("other")?;
    a.attach(&other, "lab", "other")?;
    for name in ["web", "db"] {
        a.json(&["attach", "docker", name, "--subnet", "lab"])?;
    }
    let listed = || Ok::<_, anyhow::Error>(a.json(&["workload", "ls"])?["workloads"].clone());
    let db = v4(&a.json(&["workload", "show", "db"])?)?;
    let before = listed()?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        engine.restart(signal, || {
            other.reaches(&db, SOON).context("while no engine runs")?;
            ensure!(listed()? == before, "while no engine runs: {}", listed()?);
            Ok(())
        })?;
        // Longer than until the end of a container is noticed.
        std::thread::sleep(Duration::from_secs(2));
        ensure!(listed()? == before, "after {signal}: {}", listed()?);
        engine
            .exec("web", &["ping", "-c", "1", "-W", "1", "db.lab.internal"])
            .context("by name, after a restart")?;
        other.reaches(&db, SOON)?;
    }
    // What ends afterwards is still noticed.
    engine.docker(&["rm", "-f", "db"])?;
    until("db is away", SOON, || {
        Ok(a.json(&["workload", "show", "db"])?["state"] == "removed")
    })?;
    a.ok(&["detach", "web"]).map(drop)
}
