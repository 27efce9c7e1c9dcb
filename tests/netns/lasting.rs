//! Namespaces that are deleted and made anew under their name are the same workload again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::fast;
use crate::lab::netns::Netns;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until, v4};

pub const CASES: &[Case] = &[
    fast!(a_namespace_made_anew_under_its_name_is_the_same_workload),
    fast!(in_whatever_order_namespace_and_byway_restart_it_is_the_same_workload),
    fast!(a_namespace_that_is_gone_gives_way_to_another_of_its_name),
];

/// How soon it is the same again: a second, and as much again for a machine on which other tests run.
const BACK: Duration = Duration::from_secs(2);

fn is_shown(a: &Host, name: &str, state: &str, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    until(&format!("{name} is {state}"), limit, || {
        Ok(text(&a.json(&["workload", "show", name])?, "state")? == state)
    })?;
    Ok(begun.elapsed())
}

fn delete(space: &Netns) -> Result<()> {
    crate::lab::sh("ip", &["netns", "del", space.name()]).map(drop)
}

fn resolver(space: &Netns) -> std::path::PathBuf {
    format!("/etc/netns/{}/resolv.conf", space.name()).into()
}

/// It is here, with that address, and finds names as it is found by its own.
fn is_whole(a: &Host, space: &Netns, from: &Netns, address: &str) -> Result<()> {
    is_shown(a, "web", "ok", BACK)?;
    ensure!(v4(&a.json(&["workload", "show", "web"])?)? == address);
    from.reaches("web.lab.internal", SOON)?;
    until("it has a resolver", SOON, || Ok(resolver(space).exists()))?;
    space.reaches("db.lab.internal", SOON).map(drop)
}

fn a_namespace_made_anew_under_its_name_is_the_same_workload(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let before = crate::lab::snapshot::of(a.ns())?;
    let address = v4(&a.attach(&web, "lab", "web")?)?;
    b.attach(&db, "lab", "db")?;
    a.ok(&["map", "add", "lab", "tcp", "127.0.0.1:8080", "web:80"])?;
    is_whole(a, &web, &db, &address)?;
    for _ in 0..3 {
        delete(&web)?;
        is_shown(a, "web", "removed", BACK)?;
        let b4 = b.overlay("lab")?.0;
        until("nobody is sent to it", SOON, || {
            Ok(b.ns().dig(&b4, &["web.lab.internal", "A"])?.status == "NXDOMAIN")
        })?;
        let maps = a.json(&["map", "ls"])?;
        let map = &maps["maps"][0];
        ensure!(
            map["state"] == "no-target" && map["note"] == "web is removed",
            "{maps}"
        );
        ensure!(
            map["help"].as_str().is_some_and(|h| h.contains(web.name())),
            "it says what to do: {maps}"
        );
        Netns::make(web.name())?;
        let took = is_shown(a, "web", "ok", BACK)?;
        println!("  back {} ms after it was made", took.as_millis());
        is_whole(a, &web, &db, &address)?;
    }
    // So fast that nobody saw it away.
    delete(&web)?;
    Netns::make(web.name())?;
    let begun = Instant::now();
    until("it has its address", BACK, || {
        Ok(web.ip(&["addr"])?.contains(&address))
    })?;
    println!(
        "  has its address again after {} ms",
        begun.elapsed().as_millis()
    );
    is_whole(a, &web, &db, &address)?;
    // Detached it is no more followed.
    a.ok(&["map", "rm", "lab", "tcp", "127.0.0.1:8080"])?;
    delete(&web)?;
    is_shown(a, "web", "removed", BACK)?;
    a.ok(&["detach", "web"])?;
    Netns::make(web.name())?;
    std::thread::sleep(Duration::from_millis(700));
    a.fails(5, "E-NO-WORKLOAD", &["workload", "show", "web"])?;
    ensure!(!web.ip(&["addr"])?.contains(&address));
    before.assert_same(&crate::lab::snapshot::of(a.ns())?, "the host after it")
}

fn in_whatever_order_namespace_and_byway_restart_it_is_the_same_workload(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let address = v4(&a.attach(&web, "lab", "web")?)?;
    b.attach(&db, "lab", "db")?;
    for order in [
        "stop start delete make",
        "stop delete start make",
        "stop delete make start",
        "delete stop start make",
        "delete stop make start",
        "delete make stop start",
        "kill delete make start",
        "delete kill make start",
    ] {
        for step in order.split(' ') {
            match step {
                "stop" => a.terminate()?,
                "kill" => a.kill9()?,
                "start" => a.start()?,
                "delete" => delete(&web)?,
                _ => drop(Netns::make(web.name())?),
            }
        }
        is_whole(a, &web, &db, &address).map_err(|e| e.context(order))?;
    }
    Ok(())
}

fn a_namespace_that_is_gone_gives_way_to_another_of_its_name(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let (web, other, third) = (
        lab.workload("web")?,
        lab.workload("other")?,
        lab.workload("third")?,
    );
    let address = v4(&a.attach(&web, "lab", "web")?)?;
    a.fails(
        6,
        "E-NAME-TAKEN",
        &[
            "attach",
            "netns",
            other.name(),
            "--subnet",
            "lab",
            "--name",
            "web",
        ],
    )?;
    delete(&web)?;
    let at = a.attach(&other, "lab", "web")?;
    ensure!(v4(&at)? == address, "the address is the name's: {at}");
    // The former one has nothing to come back to.
    Netns::make(web.name())?;
    std::thread::sleep(Duration::from_millis(700));
    ensure!(!web.ip(&["addr"])?.contains(&address));
    ensure!(text(&a.json(&["workload", "show", "web"])?, "state")? == "ok");
    // So it is with its address.
    delete(&other)?;
    is_shown(&a, "web", "removed", BACK)?;
    let line = [
        "attach",
        "netns",
        third.name(),
        "--subnet",
        "lab",
        "--ip",
        &address,
    ];
    ensure!(v4(&a.json(&line)?)? == address);
    // The namespace of a process ends with it.
    let holder = std::process::Command::new("unshare")
        .args(["--net", "sleep", "60"])
        .spawn();
    let mut holder = holder?;
    let path = format!("/proc/{}/ns/net", holder.id());
    until("it is in its namespace", SOON, || {
        Ok(std::fs::read_link(&path)? != std::fs::read_link("/proc/self/ns/net")?)
    })?;
    a.json(&["attach", "netns", &path, "--subnet", "lab", "--name", "job"])?;
    holder.kill()?;
    holder.wait()?;
    until("it is detached", Duration::from_secs(5), || {
        Ok(a.byway(&["workload", "show", "job"])?.code == 5)
    })
    .map(drop)
}
