//! Machines without IPv6: turned off, or with no sockets of it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until, v4};
use crate::peculiar::problems;

pub const CASES: &[Case] = &[
    fast!(where_ipv6_is_turned_off_everything_works_over_ipv4),
    fast!(where_no_socket_of_ipv6_is_to_be_had_everything_works_over_ipv4),
];

/// What everybody does, on hosts whose daemons run and of which the first has no IPv6: the subnet is made, joined and
/// used, and the machine is called healthy.
fn works_over_ipv4(lab: &Lab, a: &Host, b: &Host, off_inside: bool) -> Result<Vec<Server>> {
    let x = lab.host("x")?;
    b.json(&["join", &text(&a.json(&["create", "lab"])?, "invite")?])?;
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    if off_inside {
        turn_off(&web)?;
    }
    let (at_web, at_db) = (
        v4(&a.attach(&web, "lab", "web")?)?,
        v4(&b.attach(&db, "lab", "db")?)?,
    );
    let servers = vec![
        web.serve("tcp", "0.0.0.0", 80)?,
        db.serve("tcp", "0.0.0.0", 80)?,
        db.serve("tcp", "::", 80)?,
    ];
    web.reaches(&at_db, SOON)?;
    db.tcp(&at_web, 80, 100_000)?;
    web.tcp(&at_db, 80, 100_000)?;
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    let own = a.overlay("lab")?.0;
    web.resolves(&own, &["db.lab.internal", "A"], &at_db, SOON)?;
    // A bare port means every address of both families.
    a.ok(&["map", "add", "lab", "tcp", "8080", "db:80"])?;
    x.ns().tcp(a.under4(), 8080, 100_000)?;
    a.ns().tcp("127.0.0.1", 8080, 100_000)?;
    let healthy = a.byway(&["status", "--check", "healthy"])?;
    ensure!(
        healthy.code == 0,
        "a machine without IPv6 is ill: {healthy}"
    );
    a.ok(&[
        "map",
        "add",
        "lab",
        "tcp",
        "[::1]:8081",
        "web:80",
        "--name",
        "six",
    ])?;
    if off_inside {
        // It has no such address; that is not how this machine is made, but what was asked for.
        ensure!(
            a.ok(&["map", "ls", "lab"])?
                .contains("! six: this machine has no address ::1 now"),
            "nothing is said"
        );
    }
    a.ok(&["map", "rm", "lab", "six"])?;
    a.ok(&["detach", "web"])?;
    turn(&web, 0)?;
    Ok(servers)
}

fn turn_off(ns: &Netns) -> Result<()> {
    turn(ns, 1)
}

fn turn(ns: &Netns, off: u8) -> Result<()> {
    let every = ["all", "default"].map(|link| format!("net.ipv6.conf.{link}.disable_ipv6={off}"));
    ns.ok(&["sysctl", "-qw", &every[0], &every[1]]).map(drop)
}

/// A11: one family is turned off.
fn where_ipv6_is_turned_off_everything_works_over_ipv4(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.node("b")?);
    turn_off(a.ns())?;
    a.rebase()?;
    a.start()?;
    let _servers = works_over_ipv4(lab, &a, &b, true)?;
    // Maps of both families outlive a restart, and ::1 is answered as soon as it is here.
    a.terminate()?;
    a.start()?;
    until("it is well", SOON, || {
        let healthy = a.byway(&["status", "--check", "healthy"])?;
        ensure!(healthy.code == 0, "{healthy}");
        Ok(true)
    })?;
    a.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0"])?;
    until("the map answers at ::1", Duration::from_secs(3), || {
        Ok(a.ns().tcp("::1", 8080, 100).is_ok())
    })?;
    a.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"])
        .map(drop)
}

fn where_no_socket_of_ipv6_is_to_be_had_everything_works_over_ipv4(lab: &Lab) -> Result<()> {
    let program = std::env::current_exe()
        .context("this program's path")?
        .to_string_lossy()
        .into_owned();
    let hosts: Vec<Rc<Host>> = vec![lab.host("a")?, lab.host("b")?];
    for host in &hosts {
        host.start_under(&[&program, "tool", "without-ipv6"])?;
        until(
            "it answers",
            SOON,
            || Ok(host.byway(&["status"])?.code == 0),
        )
        .with_context(|| host.log_tail(20))?;
    }
    let _servers = works_over_ipv4(lab, &hosts[0], &hosts[1], false)?;
    for host in &hosts {
        ensure!(problems(host)? == ["E-NO-FAMILY"], "{:?}", problems(host)?);
        ensure!(
            host.ok(&["status"])?
                .contains("! this machine has no sockets of IPv6"),
            "what is lost is not told"
        );
    }
    let db = lab.workload("third")?;
    hosts[1].attach(&db, "lab", "third")?;
    let asked = std::fs::read_to_string(format!("/etc/netns/{}/resolv.conf", db.name()))
        .context("its resolver file")?;
    let servers = asked.lines().filter(|line| line.starts_with("nameserver "));
    ensure!(
        servers.clone().count() == 1 && servers.clone().all(|line| !line.contains(':')),
        "{asked}"
    );
    hosts[1].ok(&["detach", "third"]).map(drop)
}
