//! Ports of the router, and pinholes of its firewall: asked for by each protocol, used, renewed, given back. The router is
//! miniupnpd, as most homes have it.

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
    long!(an_ipv6_host_behind_a_firewall_has_pinholes_by_each_protocol_and_all_are_closed_again),
    long!(with_two_uplinks_each_router_opens_the_ports_and_closes_them_at_the_stop),
];

/// miniupnpd takes the addresses of documentation for private ones.
const OUTSIDE: &str = "203.0.112.77";
const SECOND: &str = "203.0.112.78";
/// As long as a port is open in these tests unless it is renewed, in seconds.
const LEASE: &str = "max_lifetime=24\n";
/// No datagram of PCP reaches the router, those of NAT-PMP do: what a router has that only knows the latter.
const NO_PCP: &str = "table ip pcp { chain i { type filter hook input priority 0; udp dport 5351 @th,64,8 2 drop; }; }";

/// No question of PCP reaches the router by IPv6: miniupnpd answers them whatever its settings say.
const NO_PCP6: &str =
    "table ip6 pcp { chain i { type filter hook input priority 0; udp dport 5351 drop; }; }";

fn miniupnpd() -> Result<std::path::PathBuf> {
    unpacked("miniupnpd-nftables", "usr/sbin/miniupnpd")
}

/// A host behind a router, whose daemon runs and looks for nobody on its link.
fn started(lab: &Lab, home: &Home, name: &str, place: u8) -> Result<Rc<Host>> {
    let host = home.host(lab, name, place)?;
    configure(&host, "[transport]\nlan_discovery = false\n")?;
    host.start()?;
    Ok(host)
}

/// A router that serves with these settings, and a host behind it whose daemon runs.
fn inside(lab: &Lab, inet: &Internet<'_>, settings: &str) -> Result<(Home, Rc<Host>)> {
    let home = inet.home("h", 7, OUTSIDE, miniupnpd()?)?;
    home.serve(settings)?;
    let a = started(lab, &home, "a", 2)?;
    Ok((home, a))
}

/// What comes of it while a second default route leads over the same router: the daemon asks at once.
fn beside_another_route<T>(
    home: &Home,
    host: &Host,
    then: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let gateway = home.gateway();
    let route = |word| {
        [
            "route",
            word,
            "default",
            "via",
            gateway.as_str(),
            "metric",
            "9",
        ]
    };
    host.ns().ip(&route("add"))?;
    let outcome = then()?;
    host.ns().ip(&route("del"))?;
    Ok(outcome)
}

/// The ports that `netcheck` shows, as `udp 4100 at A:P by PROTOCOL`.
fn shown(host: &Host) -> Result<Vec<String>> {
    Ok(ports_of(&netcheck(host)?["router"]))
}

/// The ports of one router, in these words.
fn ports_of(router: &Value) -> Vec<String> {
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
    ports.iter().map(line).collect()
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
    // On another port after a kill: what is wanted no more goes.
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
    a.kill9()?;
    let state = a.state().to_string_lossy().into_owned();
    let done = a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("removed udp port 4200 of the router 192.168.7.1"),
        "{done}"
    );
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
    let took = beside_another_route(&home, &a, || open(&home, &a, "pcp", FIVE))?;
    println!("  another route: open again after {took:?}");
    Ok(())
}

fn a_refusal_and_a_router_behind_another_are_told_and_no_candidates(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    // Of PCP this router tries every port before it refuses.
    let (home, a) = inside(lab, &inet, "enable_natpmp=no\n")?;
    open(&home, &a, "upnp", SOON)?;
    home.serve("enable_natpmp=no\ndeny 0-65535 0.0.0.0/0 0-65535\n")?;
    beside_another_route(&home, &a, || {
        until("the refusal is told", SOON, || {
            let told = netcheck(&a)?;
            ensure!(told["findings"].to_string().contains("refuses"), "{told}");
            let status = a.json(&["status"])?["problems"].to_string();
            ensure!(status.contains("E-PORT-MAPPING"), "{status}");
            Ok(true)
        })
    })?;
    a.terminate()?;
    drop(home);
    let inner = inet.home("i", 8, "10.64.0.2", miniupnpd()?)?;
    inner.serve("")?;
    let c = started(lab, &inner, "c", 2)?;
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
    let routers = [("yes", "pcp", SECOND), ("no", "upnp", "203.0.112.79")];
    for (natpmp, protocol, outside) in routers {
        let home = inet.home(protocol, 7, outside, miniupnpd()?)?;
        home.serve(&format!("enable_natpmp={natpmp}\n"))?;
        let host = |name: &str, place| started(lab, &home, &format!("{name}{protocol}"), place);
        let a = host("a", 2)?;
        leads(&home, a.under4())?;
        let b = host("b", 3)?;
        until("the second machine has ports of its own", SOON, || {
            let (ports, told) = (home.ports()?, shown(&b)?);
            ensure!(ports.len() == 4 && told.len() == 2, "{ports:?}: {told:?}");
            let taken = format!("{outside}:4100");
            ensure!(told.iter().all(|port| !port.contains(&taken)), "{told:?}");
            Ok(true)
        })?;
        leads(&home, a.under4())?;
        b.terminate()?;
        leads(&home, a.under4())?;
        a.terminate()?;
        closed(&home)?;
    }
    Ok(())
}

/// Waits until both ports 4100 of the router lead to the port of this number at that address.
fn leads(home: &Home, to: &str) -> Result<Duration> {
    until("the ports lead to the host", SOON, || {
        let ports = home.ports()?;
        for proto in ["tcp", "udp"] {
            let line = format!("{proto} 4100 to {to}:4100");
            ensure!(ports.contains(&line), "{ports:?}: {}", home.log());
        }
        Ok(true)
    })
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

/// Waits until both pinholes of the host are open, and told.
fn pinholes(home: &Home, host: &Host, protocol: &str) -> Result<Duration> {
    let at = host.under6();
    let want = ["udp", "tcp"].map(|proto| format!("{proto} 4100 at [{at}]:4100 by {protocol}"));
    until("both pinholes are open", SOON, || {
        let (open, told) = (home.pinholes(at)?, netcheck(host)?["router"].take());
        let shown = ports_of(&told["others"][0]);
        ensure!(open == 2 && shown == want, "{open}: {told}: {}", home.log());
        Ok(true)
    })
}

fn an_ipv6_host_behind_a_firewall_has_pinholes_by_each_protocol_and_all_are_closed_again(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let home = inet.home_of_both("h", 7, OUTSIDE, miniupnpd()?)?;
    home.serve("enable_natpmp=yes\n")?;
    let a = started(lab, &home, "a", 2)?;
    let closed = |what: &str| -> Result<()> {
        let open = home.pinholes(a.under6())?;
        ensure!(open == 0, "{what}: {open} pinholes");
        closed(&home)
    };
    pinholes(&home, &a, "pcp")?;
    a.kill9()?;
    ensure!(home.pinholes(a.under6())? == 2);
    let state = a.state().to_string_lossy().into_owned();
    let done = a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("removed udp port 4100 of the router fe80::1"),
        "{done}"
    );
    closed("after cleanup")?;
    a.start()?;
    pinholes(&home, &a, "pcp")?;
    a.terminate()?;
    closed("after the stop, by PCP")?;
    home.serve("enable_natpmp=no\n")?;
    let rules = lab.dir().join("no-pcp6.nft");
    std::fs::write(&rules, NO_PCP6)?;
    home.router().ok(&["nft", "-f", &rules.to_string_lossy()])?;
    a.start()?;
    let took = pinholes(&home, &a, "upnp")?;
    println!("  by UPnP after {took:?}");
    a.kill9()?;
    a.start()?;
    pinholes(&home, &a, "upnp")?;
    let b = inet.host("b", 2)?;
    configure(
        &b,
        "[transport]\nlan_discovery = false\nport_mapping = false\n",
    )?;
    b.start()?;
    let at = format!("[{}]:4100", a.under6());
    b.ok(&["peer", "connect", &at])?;
    a.terminate()?;
    closed("after the stop, by UPnP")?;
    // Without a pinhole nobody comes in, so that it was the pinhole.
    home.masquerade()?;
    a.set_env("BYWAY_TRANSPORT_PORT_MAPPING", "false");
    a.start()?;
    b.fails(1, "E-CONNECT", &["peer", "connect", &at]).map(drop)
}

fn with_two_uplinks_each_router_opens_the_ports_and_closes_them_at_the_stop(
    lab: &Lab,
) -> Result<()> {
    let inet = lab.internet()?;
    let first = inet.home("h", 7, OUTSIDE, miniupnpd()?)?;
    let second = inet.home("i", 8, SECOND, miniupnpd()?)?;
    first.serve("")?;
    second.serve("")?;
    let a = first.host(lab, "a", 2)?;
    let there = second.second_cable(&a)?;
    configure(&a, "[transport]\nlan_discovery = false\n")?;
    a.start()?;
    leads(&first, a.under4())?;
    leads(&second, &there)?;
    until("both routers are told", SOON, || {
        let told = netcheck(&a)?;
        let other = &told["router"]["others"][0];
        ensure!(other["gateway"] == second.gateway().as_str(), "{told}");
        let ports = ports_of(other);
        let want = ["udp", "tcp"].map(|proto| format!("{proto} 4100 at {SECOND}:4100 by pcp"));
        ensure!(ports == want && shown(&a)? == both("pcp"), "{told}");
        for outside in [OUTSIDE, SECOND] {
            let addresses = told["addresses"].to_string();
            ensure!(addresses.contains(&format!("{outside}:4100")), "{told}");
        }
        Ok(true)
    })?;
    a.terminate()?;
    closed(&first)?;
    closed(&second)?;
    // The cable was no part of the host before.
    a.ns().ip(&["link", "del", "eth1"]).map(drop)
}
