//! Containers that come and go are the same workload again: with their address, their name and the maps to them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until, v4};

use super::engine::{Engine, alone, scene};

pub const CASES: &[Case] = &[
    with_engine!(a_container_that_comes_and_goes_is_the_same_workload),
    with_engine!(a_container_made_anew_takes_the_place_of_the_former),
    crate::fast!(
        what_compose_makes_anew_is_the_same_workload,
        "docker",
        "dockerd",
        "docker-compose",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
    with_engine!(in_whatever_order_all_restart_it_ends_in_the_same_picture),
    crate::long!(
        in_more_orders_of_restarts_it_ends_in_the_same_picture,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
    with_engine!(two_engines_of_one_host_are_each_asked_for_their_own),
    crate::long!(
        a_crowd_that_comes_and_goes_below_kills_leaves_nothing_double,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
    crate::long!(
        a_hundred_that_come_and_go_below_kills_leave_nothing_double,
        "docker",
        "dockerd",
        "nsenter",
        "unshare",
        "tar",
        "busybox"
    ),
];

/// How soon a container is the same workload again once its engine has started it: a second, and as much again for a
/// machine on which other tests run.
const BACK: Duration = Duration::from_secs(2);

fn shown(a: &Host, name: &str) -> Result<Value> {
    a.json(&["workload", "show", name])
}

/// Waits until a workload is shown in a state; how long that took.
fn is_shown(a: &Host, name: &str, state: &str, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    until(&format!("{name} is {state}"), limit, || {
        Ok(text(&shown(a, name)?, "state")? == state)
    })?;
    Ok(begun.elapsed())
}

fn has(engine: &Engine, container: &str, address: &str, limit: Duration) -> Result<()> {
    until(&format!("{container} has {address}"), limit, || {
        Ok(engine
            .exec(container, &["ip", "addr"])
            .is_ok_and(|links| links.contains(address)))
    })
    .map(drop)
}

/// Whether the first map leads to its target. That nobody listens there is the target's affair.
fn map_leads(a: &Host) -> Result<()> {
    let maps = a.json(&["map", "ls"])?;
    let state = text(&maps["maps"][0], "state")?;
    ensure!(matches!(state.as_str(), "ok" | "refused"), "{maps}");
    Ok(())
}

fn a_container_that_comes_and_goes_is_the_same_workload(lab: &Lab) -> Result<()> {
    let [(a, ea), (b, _eb)] = scene(lab)?;
    let b4 = b.overlay("lab")?.0;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let ip = v4(&web)?;
    let question = ["web.lab.internal", "A"];
    b.ns().resolves(&b4, &question, &ip, SOON)?;
    a.ok(&["map", "add", "lab", "tcp", "127.0.0.1:8080", "web:80"])?;
    a.ok(&[
        "map",
        "add",
        "lab",
        "tcp",
        "127.0.0.1:8081",
        &format!("{ip}:80"),
    ])?;
    for (end, begin) in [
        (&["stop", "-t", "0", "web"][..], &["start", "web"][..]),
        (&["kill", "web"], &["restart", "-t", "0", "web"]),
    ] {
        ea.docker(end)?;
        is_shown(&a, "web", "stopped", BACK)?;
        until("nobody is sent to it", SOON, || {
            Ok(b.ns().dig(&b4, &question)?.status == "NXDOMAIN")
        })?;
        let maps = a.json(&["map", "ls"])?;
        let all = maps["maps"].as_array().context("maps")?;
        ensure!(all.iter().all(|m| m["state"] == "no-target"), "{maps}");
        ensure!(
            all.iter()
                .all(|m| m["note"] == "web is stopped" && m["help"] == "docker start web"),
            "it says what to do: {maps}"
        );
        let away = shown(&a, "web")?;
        ensure!(
            v4(&away)? == ip && away["away_since"].is_u64(),
            "it keeps its address: {away}"
        );
        // Neither its name nor its address are another's meanwhile.
        let other = lab.workload(end[0])?;
        let taken = ["attach", "netns", other.name(), "--subnet", "lab", "--name"];
        a.fails(6, "E-NAME-TAKEN", &[&taken[..], &["web"]].concat())?;
        a.fails(
            6,
            "E-ADDRESS-TAKEN",
            &[&taken[..], &["x", "--ip", &ip]].concat(),
        )?;
        ea.docker(begin)?;
        let took = is_shown(&a, "web", "ok", BACK)?;
        has(&ea, "web", &ip, BACK)?;
        println!("  back {} ms after {begin:?} returned", took.as_millis());
        b.ns().resolves(&b4, &question, &ip, SOON)?;
        map_leads(&a)?;
        ea.exec("web", &["ping", "-c", "1", "-W", "2", "b.lab.internal"])
            .context("names inside")?;
    }
    paused_and_renamed(&a, &ea, &ip)?;
    // A person detaches one that is away.
    ea.docker(&["stop", "-t", "0", "web2"])?;
    is_shown(&a, "web", "stopped", BACK)?;
    a.ok(&["detach", "web"])?;
    ea.docker(&["start", "web2"])?;
    a.fails(5, "E-NO-WORKLOAD", &["workload", "show", "web"])
        .map(drop)
}

/// One that is frozen is here all the same, and a container's new name is not the workload's.
fn paused_and_renamed(a: &Host, ea: &Engine, ip: &str) -> Result<()> {
    ea.docker(&["pause", "web"])?;
    is_shown(a, "web", "paused", BACK)?;
    map_leads(a)?;
    let own = a.overlay("lab")?.0;
    a.ns()
        .resolves(&own, &["web.lab.internal", "A"], ip, BACK)?;
    ea.docker(&["unpause", "web"])?;
    is_shown(a, "web", "ok", BACK)?;
    ea.docker(&["rename", "web", "web2"])?;
    until("its container is called web2", BACK, || {
        Ok(text(&shown(a, "web")?, "target")? == "web2")
    })?;
    ensure!(v4(&shown(a, "web")?)? == ip);
    // The engine's name means it, too.
    a.json(&["workload", "show", "web2"]).map(drop)
}

fn a_container_made_anew_takes_the_place_of_the_former(lab: &Lab) -> Result<()> {
    let (a, engine) = alone(lab)?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let ip = v4(&web)?;
    for _ in 0..2 {
        engine.docker(&["rm", "-f", "web"])?;
        is_shown(&a, "web", "removed", BACK)?;
        engine.run("web")?;
        is_shown(&a, "web", "ok", BACK)?;
        has(&engine, "web", &ip, BACK)?;
        engine.exec("web", &["ping", "-c", "1", "-W", "2", "a.lab.internal"])?;
    }
    // Attached by hand before it was noticed it is the same as well.
    a.terminate()?;
    engine.docker(&["rm", "-f", "web"])?;
    engine.run("web")?;
    a.start()?;
    let again = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    ensure!(v4(&again)? == ip && again["workload"] == "web", "{again}");
    has(&engine, "web", &ip, BACK)?;
    // Another container is another workload, whatever its state.
    engine.run("two")?;
    let two = a.json(&["attach", "docker", "two", "--subnet", "lab"])?;
    ensure!(v4(&two)? != ip, "{two}");
    let all = a.json(&["workload", "ls"])?;
    ensure!(
        all["workloads"].as_array().is_some_and(|w| w.len() == 2),
        "{all}"
    );
    // A name may be what the ID of another container begins with: the engine takes one for the other.
    let id = engine.docker(&["inspect", "-f", "{{.Id}}", "two"])?;
    a.ok(&["detach", "two"])?;
    let short = id.get(..3).context("the ID of a container")?;
    engine.run(short)?;
    a.json(&[
        "attach", "docker", short, "--subnet", "lab", "--name", "short",
    ])?;
    engine.docker(&["rm", "-f", short])?;
    is_shown(&a, "short", "removed", BACK).map(drop)
}

fn what_compose_makes_anew_is_the_same_workload(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let engine = Engine::start(&a)?;
    let file = a.dir().join("compose.yml");
    let write = |word: &str| {
        let service = format!(
            "image: box:1\n    network_mode: none\n    stop_grace_period: 0s\n    environment: [W={word}]\n    command: [/bin/sleep, '1000']\n    init: false"
        );
        std::fs::write(
            &file,
            format!("version: '2.4'\nservices:\n  web:\n    {service}\n"),
        )
    };
    let up = |more: &[&str]| {
        let path = file.to_string_lossy();
        let base = ["-H", &engine.socket, "-p", "shop", "-f", &path];
        crate::lab::sh("docker-compose", &[&base[..], more].concat())
    };
    write("one")?;
    up(&["up", "-d"])?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let web = a.json(&[
        "attach",
        "docker",
        "shop_web_1",
        "--subnet",
        "lab",
        "--name",
        "web",
    ])?;
    let (ip, first) = (v4(&web)?, text(&shown(&a, "web")?, "container")?);
    // The former container is renamed, stopped and removed, the new one takes its name.
    write("two")?;
    up(&["up", "-d"])?;
    is_shown(&a, "web", "ok", BACK)?;
    has(&engine, "shop_web_1", &ip, BACK)?;
    let second = text(&shown(&a, "web")?, "container")?;
    ensure!(first != second, "compose made it anew");
    // Down takes the container away, up brings another.
    up(&["down"])?;
    is_shown(&a, "web", "removed", BACK)?;
    up(&["up", "-d"])?;
    is_shown(&a, "web", "ok", BACK)?;
    has(&engine, "shop_web_1", &ip, BACK)?;
    ensure!(
        a.json(&["workload", "ls"])?["workloads"]
            .as_array()
            .is_some_and(|w| w.len() == 1)
    );
    up(&["down"]).map(drop)
}

/// What is done to this daemon, its engine and the container.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Ends and starts the engine: its containers end with it, and are started again by it.
    Engine(Signal),
    /// Ends this daemon as a stop does.
    End,
    /// Kills it.
    Kill,
    /// Starts it.
    Begin,
    /// Stops the container.
    Stop,
    /// Starts it.
    Start,
    /// Makes it anew.
    Anew,
}

/// Orders in which a machine's parts restart.
const ORDERS: &[&[Step]] = {
    use Step::{Anew, Begin, End, Engine, Kill, Start, Stop};
    &[
        &[End, Begin],
        &[Engine(Signal::SIGKILL)],
        &[Stop, Kill, Begin, Start],
        &[Kill, Stop, Start, Begin],
        &[End, Anew, Begin],
    ]
};

/// More of them, which take longer.
const MORE_ORDERS: &[&[Step]] = {
    use Signal::{SIGKILL, SIGTERM};
    use Step::{Begin, End, Engine, Kill, Start, Stop};
    &[
        &[Engine(SIGTERM)],
        &[End, Engine(SIGTERM), Begin],
        &[Kill, Engine(SIGKILL), Begin],
        &[Engine(SIGKILL), Kill, Begin],
        &[Kill, Stop, Begin, Start],
        &[Kill, Stop, Engine(SIGTERM), Begin, Start],
        &[Stop, Engine(SIGKILL), End, Start, Begin],
    ]
};

pub(super) fn runs_always(engine: &Engine, name: &str) -> Result<()> {
    let run = [
        "run",
        "-d",
        "--init=false",
        "--network",
        "none",
        "--restart",
        "always",
        "--stop-timeout",
        "1",
    ];
    let what = ["--name", name, "box:1", "/bin/sleep", "1000"];
    engine.docker(&[&run[..], &what].concat()).map(drop)
}

fn in_whatever_order_all_restart_it_ends_in_the_same_picture(lab: &Lab) -> Result<()> {
    same_picture_after(lab, ORDERS)
}

fn in_more_orders_of_restarts_it_ends_in_the_same_picture(lab: &Lab) -> Result<()> {
    same_picture_after(lab, MORE_ORDERS)
}

fn same_picture_after(lab: &Lab, orders: &[&[Step]]) -> Result<()> {
    let a = lab.host("a")?;
    let mut engine = Engine::start(&a)?;
    runs_always(&engine, "web")?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let other = lab.workload("other")?;
    a.attach(&other, "lab", "other")?;
    let web = a.json(&["attach", "docker", "web", "--subnet", "lab"])?;
    let ip = v4(&web)?;
    a.ok(&["map", "add", "lab", "tcp", "127.0.0.1:8080", "web:80"])?;
    for order in orders {
        let what = || format!("after {order:?}");
        for step in *order {
            take(*step, &a, &mut engine).with_context(what)?;
        }
        is_shown(&a, "web", "ok", SOON).with_context(what)?;
        has(&engine, "web", &ip, SOON).with_context(what)?;
        other.reaches(&ip, SOON).with_context(what)?;
        let own = a.overlay("lab")?.0;
        a.ns()
            .resolves(&own, &["web.lab.internal", "A"], &ip, SOON)
            .with_context(what)?;
        map_leads(&a).with_context(what)?;
        let all = a.json(&["workload", "ls"])?;
        ensure!(
            all["workloads"].as_array().is_some_and(|w| w.len() == 2),
            "{}: {all}",
            what()
        );
    }
    Ok(())
}

fn take(step: Step, a: &Host, engine: &mut Engine) -> Result<()> {
    match step {
        Step::Engine(signal) => engine.restart(signal, || {
            if a.is_running() && signal == Signal::SIGTERM {
                is_shown(a, "web", "engine-gone", SOON)?;
            }
            Ok(())
        }),
        Step::End => a.terminate(),
        Step::Kill => a.kill9(),
        Step::Begin => a.start(),
        Step::Stop => engine.docker(&["stop", "-t", "0", "web"]).map(drop),
        Step::Start => engine.docker(&["start", "web"]).map(drop),
        Step::Anew => {
            engine.docker(&["rm", "-f", "web"])?;
            runs_always(engine, "web")
        }
    }
}

fn two_engines_of_one_host_are_each_asked_for_their_own(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let first = Engine::start(&a)?;
    let second = Engine::start_as(
        &a,
        "second",
        "",
        &["--bridge=none", "--iptables=false", "--ip6tables=false"],
    )?;
    for engine in [&first, &second] {
        engine.run("web")?;
    }
    a.start()?;
    a.json(&["create", "lab"])?;
    let mut addresses = Vec::new();
    for (engine, name) in [(&first, "one"), (&second, "two")] {
        a.set_env("DOCKER_HOST", &engine.socket);
        let at = a.json(&["attach", "docker", "web", "--subnet", "lab", "--name", name])?;
        addresses.push(v4(&at)?);
    }
    second.docker(&["stop", "-t", "0", "web"])?;
    is_shown(&a, "two", "stopped", BACK)?;
    ensure!(text(&shown(&a, "one")?, "state")? == "ok");
    second.docker(&["start", "web"])?;
    first.docker(&["restart", "-t", "0", "web"])?;
    for (engine, name, ip) in [
        (&first, "one", &addresses[0]),
        (&second, "two", &addresses[1]),
    ] {
        is_shown(&a, name, "ok", BACK)?;
        has(engine, "web", ip, BACK)?;
    }
    Ok(())
}

fn a_crowd_that_comes_and_goes_below_kills_leaves_nothing_double(lab: &Lab) -> Result<()> {
    crowd(lab, 20, &[true])
}

fn a_hundred_that_come_and_go_below_kills_leave_nothing_double(lab: &Lab) -> Result<()> {
    crowd(lab, 100, &[false, true])
}

/// So many containers that come and go at once, while this daemon is killed, and in some rounds their engine with it.
fn crowd(lab: &Lab, count: usize, rounds: &[bool]) -> Result<()> {
    let a = lab.host("a")?;
    let mut engine = Engine::start(&a)?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let names: Vec<String> = (0..count).map(|n| format!("c{n}")).collect();
    let mut addresses = Vec::new();
    for name in &names {
        runs_always(&engine, name)?;
        let at = a.json(&["attach", "docker", name, "--subnet", "lab"])?;
        addresses.push(v4(&at)?);
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for engine_dies in rounds {
        let socket = engine.socket.clone();
        std::thread::scope(|scope| {
            let restart = scope.spawn(|| {
                let restart = [&["-H", &socket, "restart", "-t", "0"], &all[..]].concat();
                // The engine may be killed below it.
                drop(crate::lab::sh("docker", &restart));
            });
            std::thread::sleep(Duration::from_millis(700));
            a.kill9()?;
            let killed = match engine_dies {
                false => Ok(()),
                true => engine.restart(Signal::SIGKILL, || Ok(())),
            };
            drop(restart.join());
            killed.and_then(|()| a.start())
        })?;
        for name in &names {
            // An engine that was killed may take a container that it was restarting for one that runs already.
            if engine.docker(&["start", name]).is_err() {
                engine.docker(&["rm", "-f", name])?;
                runs_always(&engine, name)?;
            }
        }
        all_are_single(&a, &engine, &names, &addresses)?;
    }
    all_go(&a, &engine, &names)
}

/// Every container is back with its address, by one link in it and one on the machine.
pub(super) fn all_are_single(
    a: &Host,
    engine: &Engine,
    names: &[String],
    addresses: &[String],
) -> Result<()> {
    let count = names.len();
    until("all are back", Duration::from_secs(60), || {
        let listed = a.json(&["workload", "ls"])?;
        let listed = listed["workloads"].as_array().context("workloads")?.clone();
        Ok(listed.len() == count && listed.iter().all(|w| w["state"] == "ok"))
    })?;
    for (name, ip) in names.iter().zip(addresses) {
        has(engine, name, ip, SOON)?;
        let links = engine.exec(name, &["ip", "-o", "link"])?;
        ensure!(links.matches("byway0").count() == 1, "{name}: {links}");
    }
    let links = a.ns().ok(&["ip", "-o", "link"])?;
    let ours = links.lines().filter(|line| line.contains(" bwv")).count();
    ensure!(ours == count, "one link for each: {links}");
    Ok(())
}

/// The containers are removed, and nothing of them is left.
pub(super) fn all_go(a: &Host, engine: &Engine, names: &[String]) -> Result<()> {
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    engine.docker(&[&["rm", "-f"], &all[..]].concat())?;
    until("all are removed", SOON, || {
        let listed = a.json(&["workload", "ls"])?;
        let listed = listed["workloads"].as_array().context("workloads")?.clone();
        Ok(listed.iter().all(|w| w["state"] == "removed"))
    })?;
    until("no link is left", SOON, || {
        Ok(!a.ns().ok(&["ip", "-o", "link"])?.contains(" bwv"))
    })?;
    Ok(())
}
