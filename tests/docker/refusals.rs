//! What cannot be attached is named.

use anyhow::{Result, ensure};

use crate::fast;
use crate::lab::Lab;
use crate::lab::runner::Case;

use super::engine::alone;

pub const CASES: &[Case] = &[
    with_engine!(second_container_of_one_namespace_is_a_conflict_that_names_the_first),
    with_engine!(what_cannot_be_attached_is_named),
    fast!(engine_that_is_not_there_is_named),
];

fn second_container_of_one_namespace_is_a_conflict_that_names_the_first(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let run = [
        "run",
        "-d",
        "--network",
        "container:web",
        "--name",
        "side",
        "box:1",
        "/bin/sleep",
        "1000",
    ];
    engine.docker(&run)?;
    a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let refused = a.fails(
        6,
        "E-ATTACHED",
        &["attach", "docker", "side", "--subnet", "lab"],
    )?;
    ensure!(
        refused.to_string().contains("namespace of web"),
        "the first is named: {refused}"
    );
    let pid = engine.docker(&["inspect", "-f", "{{.State.Pid}}", "side"])?;
    let path = format!("/proc/{}/ns/net", pid.trim());
    a.fails(
        6,
        "E-ATTACHED",
        &[
            "attach", "netns", &path, "--subnet", "lab", "--name", "path",
        ],
    )?;
    // The address is both containers', and so are the names: they share the engine's file.
    engine.exec("side", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])?;
    a.ok(&["detach", "web"])?;
    let at = a.json(&["attach", "docker", "side", "--subnet", "lab"])?;
    ensure!(
        at["resolver"] == true,
        "the file that the engine made for both: {at}"
    );
    engine
        .exec("web", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])
        .map(drop)
}

fn what_cannot_be_attached_is_named(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    a.fails(
        5,
        "E-NO-CONTAINER",
        &["attach", "docker", "nosuch", "--subnet", "lab"],
    )?;
    engine.docker(&[
        "create",
        "--network",
        "none",
        "--name",
        "still",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "still", "--subnet", "lab"],
    )?;
    engine.docker(&[
        "run",
        "-d",
        "--network",
        "host",
        "--name",
        "bare",
        "box:1",
        "/bin/sleep",
        "1000",
    ])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "bare", "--subnet", "lab"],
    )?;
    a.fails(5, "E-", &["attach", "docker", "web", "--subnet", "nosuch"])?;
    let left = a.json(&["workload", "ls"])?;
    ensure!(
        left["workloads"].as_array().is_some_and(Vec::is_empty),
        "a refusal leaves nothing: {left}"
    );
    Ok(())
}

fn engine_that_is_not_there_is_named(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.set_env(
        "DOCKER_HOST",
        &format!("unix://{}", a.dir().join("none").display()),
    );
    a.start()?;
    a.json(&["create", "lab"])?;
    a.fails(
        1,
        "E-DOCKER",
        &["attach", "docker", "web", "--subnet", "lab"],
    )
    .map(drop)
}
