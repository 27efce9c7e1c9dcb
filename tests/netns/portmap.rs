//! Ports of the router: asked for by each protocol, used, renewed, given back. The router is miniupnpd, as most homes have it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::home::Home;
use crate::lab::internet::Internet;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::reach::configure;
use crate::resolvers::unpacked;
use crate::underlay::{FIVE, datagrams};
use crate::{ci, long};

pub const CASES: &[Case] = &[
    ci!(a_member_behind_a_router_of_upnp_only_is_joined_at_its_port_without_a_relay),
    long!(each_protocol_opens_both_ports_and_all_are_given_back_at_the_stop),
    ci!(after_a_kill_ports_are_taken_over_and_cleanup_removes_them),
    long!(lost_ports_are_open_again_within_a_renewal_and_after_a_change_of_the_link_at_once),
    long!(a_refusal_and_a_router_behind_another_are_told_and_no_candidates),
    long!(a_port_of_another_machine_stays_its_own),
    long!(reload_switches_ports_on_and_off),
];

/// miniupnpd takes the addresses of documentation for private ones.
const OUTSIDE: &str = "203.0.112.77";
/// As long as a port is open in these tests unless it is renewed, in seconds.
const LEASE: &str = "max_lifetime=24\n";
/// No datagram of PCP reaches the router, those of NAT-PMP do: what a router has that only knows the latter.
const NO_PCP: &str = "table ip pcp { chain i { type filter hook input priority 0; udp dport 5351 @th,64,8 2 drop; }; }";

fn home(inet: &Internet<'_>, outside: &str) -> Result<Home> {
    let program = unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")?;
    inet.home("h", 7, outside, program)
}

/// A router that serves with these settings, and a host behind it whose daemon runs.
fn inside(lab: &Lab, inet: &Internet<'_>, settings: &str) -> Result<(Home, Rc<Host>)> {
    let home = home(inet, OUTSIDE)?;
    home.serve(settings)?;
    let a = home.host(lab, "a", 2)?;
    configure(&a, "[transport]\nlan_discovery = false\n")?;
    a.start()?;
    Ok((home, a))
}

/// The ports that `netcheck` shows, as `udp 4100 at A:P by PROTOCOL`.
fn shown(host: &Host) -> Result<Vec<String>> {
    let router = netcheck(host)?["router"].take();
    let ports = router["ports"].as_array().cloned().unwrap_or_default();
    let word = |port: &Value, field: &str| port[field].as_str().unwrap_or_default().to_owned();
    let line = |port: &Value| {
        format!(
            "{} {} at {} by {}",
            word(port, "proto"),
            port["port"],
            word(port, "external"),
            word(port, "protocol")
        )
    };
    Ok(ports.iter().map(line).collect())
}

fn netcheck(host: &Host) -> Result<Value> {
    host.byway(&["netcheck", "--json"])?.value()
}

fn both(protocol: &str) -> [String; 2] {
    ["udp", "tcp"].map(|proto| format!("{proto} 4100 at {OUTSIDE}:4100 by {protocol}"))
}

/// Waits until both ports lead to the host.
fn open(home: &Home, host: &Host, protocol: &str, limit: Duration) -> Result<Duration> {
    until("both ports are open", limit, || {
        let (shown, ports) = (shown(host)?, home.ports()?);
        ensure!(shown == both(protocol), "{shown:?}: {}", netcheck(host)?);
        let leads = ["tcp", "udp"].map(|p| format!("{p} 4100 to {}:4100", host.under4()));
        ensure!(ports == leads, "{ports:?}");
        Ok(true)
    })
}

fn closed(home: &Home) -> Result<()> {
    let ports = home.ports()?;
    ensure!(ports.is_empty(), "{ports:?}");
    Ok(())
}

/// Story 9: the joiner knows the invite and nothing else, and nobody relays.
fn a_member_behind_a_router_of_upnp_only_is_joined_at_its_port_without_a_relay(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let (home, a) = inside(lab, &inet, "enable_natpmp=no\n")?;
    let took = open(&home, &a, "upnp", SOON)?;
    println!("  open after {took:?}");
    let b = inet.host("b", 2)?;
    configure(
        &b,
        "[transport]\nlan_discovery = false\nport_mapping = false\n",
    )?;
    b.start()?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    b.ns().reaches(&a.overlay("lab")?.0, FIVE)?;
    datagrams(&b, &a, FIVE)?;
    let said = netcheck(&a)?["addresses"].to_string();
    // Members see it there, too: the router leads what it lets in out by the same port.
    ensure!(said.contains(&format!("{OUTSIDE}:4100")), "{said}");
    // Nobody outside gets in but by the port.
    ensure!(!b.ns().pings(a.under4()));
    a.terminate()?;
    closed(&home)
}

fn each_protocol_opens_both_ports_and_all_are_given_back_at_the_stop(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (home, a) = inside(lab, &inet, "enable_natpmp=yes\n")?;
    open(&home, &a, "pcp", SOON)?;
    ensure!(a.state().join("portmap.json").exists(), "nothing is saved");
    a.terminate()?;
    closed(&home)?;
    ensure!(
        !a.state().join("portmap.json").exists(),
        "it is saved still"
    );
    let rules = lab.dir().join("no-pcp.nft");
    std::fs::write(&rules, NO_PCP)?;
    home.router().ok(&["nft", "-f", &rules.to_string_lossy()])?;
    a.start()?;
    open(&home, &a, "nat-pmp", SOON)?;
    a.terminate()?;
    closed(&home)
}

fn after_a_kill_ports_are_taken_over_and_cleanup_removes_them(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (home, a) = inside(lab, &inet, "enable_natpmp=yes\n")?;
    open(&home, &a, "pcp", SOON)?;
    a.kill9()?;
    ensure!(home.ports()?.len() == 2, "{:?}", home.ports()?);
    a.start()?;
    // By their own name: miniupnpd gives a port that has one to nobody else.
    open(&home, &a, "pcp", SOON)?;
    a.kill9()?;
    let state = a.state().to_string_lossy().into_owned();
    let done = a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("removed udp port 4100 of the router 192.168.7.1"),
        "{done}"
    );
    closed(&home)?;
    // On other ports after a kill: what is wanted no more goes.
    a.start()?;
    open(&home, &a, "pcp", SOON)?;
    a.kill9()?;
    a.set_env("BYWAY_TRANSPORT_LISTEN", "udp/4200");
    a.start()?;
    until(
        "the old ports are closed and the new one is open",
        SOON,
        || {
            let ports = home.ports()?;
            ensure!(ports == ["udp 4200 to 192.168.7.2:4200"], "{ports:?}");
            Ok(true)
        },
    )?;
    a.terminate()?;
    closed(&home)
}

fn lost_ports_are_open_again_within_a_renewal_and_after_a_change_of_the_link_at_once(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let (home, a) = inside(lab, &inet, LEASE)?;
    open(&home, &a, "pcp", SOON)?;
    for (what, restart) in [("table flushed", false), ("reboot", true)] {
        if restart {
            home.reboot()?;
        } else {
            home.masquerade()?;
        }
        closed(&home)?;
        let took = open(&home, &a, "pcp", Duration::from_secs(20))?;
        println!("  {what}: open again after {took:?}");
    }
    home.reboot()?;
    let route = [
        "route",
        "add",
        "default",
        "via",
        "192.168.7.1",
        "metric",
        "9",
    ];
    a.ns().ip(&route)?;
    let took = open(&home, &a, "pcp", FIVE)?;
    println!("  another route: open again after {took:?}");
    a.ns()
        .ip(&route.map(|word| if word == "add" { "del" } else { word }))
        .map(drop)
}

fn a_refusal_and_a_router_behind_another_are_told_and_no_candidates(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    // Of PCP this router tries every port before it refuses.
    let (home, a) = inside(lab, &inet, "enable_natpmp=no\n")?;
    open(&home, &a, "upnp", SOON)?;
    home.serve("enable_natpmp=no\ndeny 0-65535 0.0.0.0/0 0-65535\n")?;
    let route = [
        "route",
        "add",
        "default",
        "via",
        "192.168.7.1",
        "metric",
        "9",
    ];
    a.ns().ip(&route)?;
    until("the refusal is told", SOON, || {
        let told = netcheck(&a)?;
        ensure!(told["findings"].to_string().contains("refuses"), "{told}");
        let status = a.json(&["status"])?["problems"].to_string();
        ensure!(status.contains("E-PORT-MAPPING"), "{status}");
        Ok(true)
    })?;
    a.ns()
        .ip(&route.map(|word| if word == "add" { "del" } else { word }))?;
    a.terminate()?;
    drop(home);
    let program = unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")?;
    let inner = inet.home("i", 8, "10.64.0.2", program)?;
    inner.serve("")?;
    let c = inner.host(lab, "c", 2)?;
    configure(&c, "[transport]\nlan_discovery = false\n")?;
    c.start()?;
    until("the second NAT is told", SOON, || {
        let told = netcheck(&c)?;
        // miniupnpd opens nothing there, and does not say which address it has.
        ensure!(told["router"]["trouble"] == "refused", "{told}");
        let text = told["findings"].to_string();
        ensure!(text.contains("behind another NAT"), "{told}");
        let addresses = told["addresses"].to_string();
        ensure!(!addresses.contains("\"mapped\""), "{told}");
        Ok(true)
    })
    .map(drop)
}

fn a_port_of_another_machine_stays_its_own(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let routers = [
        ("yes", "pcp", "203.0.112.78"),
        ("no", "upnp", "203.0.112.79"),
    ];
    for (natpmp, protocol, outside) in routers {
        let program = unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")?;
        let home = inet.home(protocol, 7, outside, program)?;
        home.serve(&format!("enable_natpmp={natpmp}\n"))?;
        let host = |name: &str, place| -> Result<Rc<Host>> {
            let host = home.host(lab, &format!("{name}{protocol}"), place)?;
            configure(&host, "[transport]\nlan_discovery = false\n")?;
            host.start()?;
            Ok(host)
        };
        let a = host("a", 2)?;
        open_at(&home, &a, 4100)?;
        let b = host("b", 3)?;
        until("the second machine has ports of its own", SOON, || {
            let (ports, told) = (home.ports()?, shown(&b)?);
            ensure!(ports.len() == 4 && told.len() == 2, "{ports:?}: {told:?}");
            let taken = format!("{outside}:4100");
            ensure!(told.iter().all(|port| !port.contains(&taken)), "{told:?}");
            Ok(true)
        })?;
        open_at(&home, &a, 4100)?;
        b.terminate()?;
        open_at(&home, &a, 4100)?;
        a.terminate()?;
        closed(&home)?;
    }
    Ok(())
}

/// Waits until both external ports of that number lead to the host.
fn open_at(home: &Home, host: &Host, external: u16) -> Result<()> {
    until("the ports lead to the host", SOON, || {
        let ports = home.ports()?;
        for proto in ["tcp", "udp"] {
            let line = format!("{proto} {external} to {}:4100", host.under4());
            ensure!(ports.contains(&line), "{ports:?}: {}", netcheck(host)?);
        }
        Ok(true)
    })
    .map(drop)
}

fn reload_switches_ports_on_and_off(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (home, a) = inside(lab, &inet, "")?;
    open(&home, &a, "pcp", SOON)?;
    configure(&a, "port_mapping = false\n")?;
    let said = a.ok(&["reload"])?;
    ensure!(
        said.contains("taken over: transport.port_mapping"),
        "{said}"
    );
    until("the ports are closed", SOON, || {
        closed(&home).map(|()| true)
    })?;
    ensure!(netcheck(&a)?["router"].is_null());
    let file = a.dir().join("byway.toml");
    let kept = std::fs::read_to_string(&file)?.replace("port_mapping = false\n", "");
    std::fs::write(&file, kept)?;
    a.ok(&["reload"])?;
    open(&home, &a, "pcp", SOON).map(drop)
}
