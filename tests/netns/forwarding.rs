//! The machine becomes a router for nobody because of us, and stays one where it was one before.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until};
use crate::machine::{serve, tcp, udp};

pub const CASES: &[Case] = &[
    fast!(a_port_map_is_no_way_into_other_networks_of_the_machine),
    fast!(forwarding_that_was_on_before_us_stays_open),
    fast!(who_turns_on_forwarding_of_every_link_takes_ours_over),
];

/// A network behind the machine that is none of ours.
pub struct Private {
    ns: Netns,
    _servers: Vec<Server>,
}

const PRIVATE4: &str = "192.168.50.2";
const PRIVATE6: &str = "2001:db8:50::2";

/// The network behind `a`, to which `x` believes that `a` is the way.
pub fn private(lab: &Lab, a: &Host, x: &Host) -> Result<Private> {
    let ns = lab.workload("priv")?;
    a.ns().ip(&[
        "link",
        "add",
        "in1",
        "type",
        "veth",
        "peer",
        "name",
        "in2",
        "netns",
        ns.name(),
    ])?;
    for (side, link, last) in [(a.ns(), "in1", 1), (&ns, "in2", 2)] {
        side.ip(&["addr", "add", &format!("192.168.50.{last}/24"), "dev", link])?;
        side.ip(&[
            "addr",
            "add",
            &format!("2001:db8:50::{last}/64"),
            "dev",
            link,
            "nodad",
        ])?;
        side.ip(&["link", "set", link, "up"])?;
    }
    ns.ip(&["route", "add", "default", "via", "192.168.50.1"])?;
    ns.ip(&["route", "add", "default", "via", "2001:db8:50::1"])?;
    x.ns()
        .ip(&["route", "add", "192.168.50.0/24", "via", a.under4()])?;
    x.ns()
        .ip(&["route", "add", "2001:db8:50::/64", "via", a.under6()])?;
    let servers = serve(&ns, 80)?;
    until(
        "the links of the private network have their own addresses",
        SOON,
        || {
            Ok(a.ns()
                .ip(&["-o", "-6", "addr", "show", "dev", "in1", "scope", "link"])?
                .contains("fe80"))
        },
    )?;
    Ok(Private {
        ns,
        _servers: servers,
    })
}

/// Undone, so that the lab finds the machines as they were.
pub fn remove(private: Private, a: &Host, x: &Host) -> Result<()> {
    drop(private._servers);
    a.ns().ip(&["link", "del", "in1"])?;
    x.ns().ip(&["route", "del", "192.168.50.0/24"])?;
    x.ns().ip(&["route", "del", "2001:db8:50::/64"])?;
    private.ns.delete();
    Ok(())
}

/// `a` in a subnet of its own with a workload `web` that serves port 80, and a plain neighbour `x`.
fn one(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>, Vec<Server>)> {
    let hosts = lab.subnet(&["a"])?;
    let (a, x, web) = (Rc::clone(&hosts[0]), lab.host("x")?, lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    let servers = serve(&web, 80)?;
    Ok((a, x, servers))
}

fn publish(a: &Host, how: &str) -> Result<()> {
    for any in ["0.0.0.0:8080", "[::]:8080"] {
        let target: &[&str] = if how == "add" { &["web:80"] } else { &[] };
        a.ok(&[&["map", how, "lab", "tcp", any], target].concat())?;
    }
    Ok(())
}

pub fn sysctl(host: &Host, key: &str) -> Result<String> {
    Ok(host.ns().ok(&["sysctl", "-n", key])?.trim().to_owned())
}

pub fn set(host: &Host, settings: &[&str]) -> Result<()> {
    host.ns()
        .ok(&[&["sysctl", "-qw"], settings].concat())
        .map(drop)
}

fn a_port_map_is_no_way_into_other_networks_of_the_machine(lab: &Lab) -> Result<()> {
    let (a, x, _web) = one(lab)?;
    let private = private(lab, &a, &x)?;
    let forwards = "net.ipv4.conf.eth0.forwarding";
    ensure!(
        sysctl(&a, forwards)? == "0" && !tcp(x.ns(), PRIVATE4, 80),
        "nothing is forwarded at first"
    );
    let ruleset = a.ns().ruleset()?;
    publish(&a, "add")?;
    ensure!(sysctl(&a, forwards)? == "1", "the map's link forwards");
    let closed = |when: &str| -> Result<()> {
        for to in [PRIVATE4, PRIVATE6] {
            ensure!(!tcp(x.ns(), to, 80), "{to} is reached {when}");
        }
        Ok(())
    };
    closed("with a map")?;
    for to in [PRIVATE4, PRIVATE6] {
        ensure!(
            !udp(x.ns(), to, 80) && !x.ns().pings(to),
            "{to} is reached with a map"
        );
    }
    let maps = |when: &str| -> Result<()> {
        for to in [a.under4(), a.under6()] {
            ensure!(
                tcp(x.ns(), to, 8080),
                "the map of {to} does not answer {when}"
            );
        }
        Ok(())
    };
    maps("at first")?;
    // What another program translates is its own business.
    let foreign = "table ip other { chain pre { type nat hook prerouting priority dstnat; ip daddr 10.99.0.0/24 tcp dport 8090 dnat to 192.168.50.2:80; }; }";
    a.ns().ok(&["nft", foreign])?;
    set(&a, &["net.ipv4.conf.in1.forwarding=1"])?;
    ensure!(
        tcp(x.ns(), a.under4(), 8090),
        "another program's translation is dropped"
    );
    set(&a, &["net.ipv4.conf.in1.forwarding=0"])?;
    a.ns().ok(&["nft", "delete table ip other"])?;
    a.kill9()?;
    closed("while no daemon runs")?;
    a.start()?;
    until("the map answers again", SOON, || {
        Ok(tcp(x.ns(), a.under4(), 8080))
    })?;
    closed("after a kill")?;
    a.terminate()?;
    ensure!(sysctl(&a, forwards)? == "0", "a stop puts it back");
    closed("after a stop")?;
    a.start()?;
    until("the map answers again", SOON, || {
        Ok(tcp(x.ns(), a.under4(), 8080))
    })?;
    closed("after a start")?;
    publish(&a, "rm")?;
    ensure!(sysctl(&a, forwards)? == "0", "it goes with the map");
    ensure!(
        a.ns().ruleset()? == ruleset,
        "the ruleset is not what it was"
    );
    remove(private, &a, &x)
}

fn forwarding_that_was_on_before_us_stays_open(lab: &Lab) -> Result<()> {
    let (a, x, _web) = one(lab)?;
    let private = private(lab, &a, &x)?;
    set(
        &a,
        &[
            "net.ipv4.conf.eth0.forwarding=1",
            "net.ipv4.conf.in1.forwarding=1",
            "net.ipv6.conf.all.forwarding=1",
        ],
    )?;
    let open = || -> Result<()> {
        for to in [PRIVATE4, PRIVATE6] {
            ensure!(
                tcp(x.ns(), to, 80) && udp(x.ns(), to, 80),
                "{to} is not reached"
            );
        }
        Ok(())
    };
    open().context("a router before us")?;
    publish(&a, "add")?;
    open().context("with a map")?;
    ensure!(
        tcp(x.ns(), a.under4(), 8080) && tcp(x.ns(), a.under6(), 8080),
        "the map answers"
    );
    a.kill9()?;
    a.start()?;
    open().context("after a kill")?;
    publish(&a, "rm")?;
    open().context("after the map")?;
    ensure!(
        sysctl(&a, "net.ipv4.conf.eth0.forwarding")? == "1",
        "it was not ours to put back"
    );
    set(
        &a,
        &[
            "net.ipv4.conf.eth0.forwarding=0",
            "net.ipv4.conf.in1.forwarding=0",
            "net.ipv6.conf.all.forwarding=0",
        ],
    )?;
    remove(private, &a, &x)
}

fn who_turns_on_forwarding_of_every_link_takes_ours_over(lab: &Lab) -> Result<()> {
    let (a, x, _web) = one(lab)?;
    let private = private(lab, &a, &x)?;
    publish(&a, "add")?;
    ensure!(
        !tcp(x.ns(), PRIVATE4, 80) && !tcp(x.ns(), PRIVATE6, 80),
        "barred at first"
    );
    // As Docker does when it starts.
    set(
        &a,
        &["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"],
    )?;
    let took = until("the machine is a router", SOON, || {
        Ok(tcp(x.ns(), PRIVATE4, 80) && tcp(x.ns(), PRIVATE6, 80))
    })?;
    ensure!(took < Duration::from_secs(4), "seen after {took:?} only");
    ensure!(
        a.log_tail(200)
            .contains("another program turned on forwarding of every link"),
        "it is not journalled"
    );
    publish(&a, "rm")?;
    ensure!(
        sysctl(&a, "net.ipv4.conf.eth0.forwarding")? == "1",
        "their forwarding ends with our map"
    );
    ensure!(
        tcp(x.ns(), PRIVATE4, 80) && tcp(x.ns(), PRIVATE6, 80),
        "they are a router still"
    );
    set(
        &a,
        &["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"],
    )?;
    // What the new state of every link takes away from ours comes back.
    publish(&a, "add")?;
    until("the map answers", SOON, || {
        Ok(tcp(x.ns(), a.under4(), 8080) && tcp(x.ns(), a.under6(), 8080))
    })?;
    ensure!(
        !tcp(x.ns(), PRIVATE4, 80) && !tcp(x.ns(), PRIVATE6, 80),
        "barred again"
    );
    remove(private, &a, &x)
}
