//! Local networks: members find each other there with nobody else's help, and their names tell others nothing.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::internet::Uplink;
use crate::lab::nat::Kind;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, NOW, SOON, text, until, v4};
use crate::membership::answer_request;
use crate::underlay::{Capture, path};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    ci!(an_isolated_lan_works_by_itself),
    ci!(a_lan_with_link_local_addresses_alone_works),
    fast!(a_port_5353_that_another_program_has_for_itself_is_told),
    long!(nine_hosts_on_an_isolated_switch),
    long!(two_daemons_of_one_machine_meet_without_ipv4),
    long!(two_daemons_and_their_subnet_are_not_named_on_the_lan),
    long!(an_interface_that_comes_later_is_searched),
    long!(a_network_without_multicast_is_named),
    long!(two_behind_one_nat_meet_on_their_lan_by_discovery_alone),
    long!(
        another_responder_of_the_machine_keeps_its_unicast,
        "python3"
    ),
    long!(idle_packets_of_nine_members_are_few),
];

/// A host joins by the bare ID, which nothing but the local network leads to.
fn joined(founder: &Host, id: &str, host: &Host) -> Result<()> {
    let join = host.spawn(&["--json", "join", id, "--timeout", "30s"])?;
    answer_request(founder, "approve")?;
    let done = join.wait()?;
    ensure!(
        done.code == 0 && done.value()?["state"] == "ready",
        "{done}"
    );
    Ok(())
}

/// So many hosts, of which the first founds `lab` and the others join by its bare ID.
fn isolated(lab: &Lab, count: u8) -> Result<Vec<Rc<Host>>> {
    let names = (0..count).map(|n| char::from(b'a' + n).to_string());
    let hosts: Vec<_> = names.map(|name| lab.node(&name)).collect::<Result<_>>()?;
    let (founder, others) = hosts.split_first().context("no host")?;
    let id = text(&founder.json(&["create", "lab"])?, "id")?;
    for host in others {
        joined(founder, &id, host)?;
    }
    Ok(hosts)
}

/// Pings among all, a name, and a port that leads to a workload of another host.
fn works(lab: &Lab, hosts: &[Rc<Host>]) -> Result<()> {
    for from in hosts {
        for to in hosts.iter().filter(|to| to.name() != from.name()) {
            let (inside4, inside6) = to.overlay("lab")?;
            from.ns().reaches(&inside4, SOON)?;
            from.ns().reaches(&inside6, SOON)?;
        }
    }
    let [a, b, .., last] = hosts else {
        anyhow::bail!("three hosts at least")
    };
    let web = lab.workload("web")?;
    let at = v4(&a.attach(&web, "lab", "web")?)?;
    let _server = web.serve("tcp", &at, 80)?;
    let (inside, _) = last.overlay("lab")?;
    last.ns()
        .resolves(&inside, &["web.lab.internal", "A"], &at, SOON)?;
    b.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let outside = lab.host("x")?;
    until("the port leads to the workload", SOON, || {
        Ok(outside.ns().tcp(b.under4(), 8080, 1000).is_ok())
    })?;
    Ok(())
}

fn an_isolated_lan_works_by_itself(lab: &Lab) -> Result<()> {
    works(lab, &isolated(lab, 3)?)
}

fn nine_hosts_on_an_isolated_switch(lab: &Lab) -> Result<()> {
    let start = Instant::now();
    let hosts = isolated(lab, 9)?;
    println!("nine hosts were in after {:?}", start.elapsed());
    works(lab, &hosts)?;
    println!("and everything worked after {:?}", start.elapsed());
    Ok(())
}

/// A host that has link-local addresses alone, and of IPv6.
fn bare(lab: &Lab, name: &str) -> Result<Rc<Host>> {
    let host = lab.host(name)?;
    let ns = host.ns();
    ns.ip(&["-4", "addr", "flush", "dev", "eth0"])?;
    ns.ip(&["-6", "addr", "flush", "dev", "eth0", "scope", "global"])?;
    host.rebase()?;
    host.start()?;
    Ok(host)
}

fn a_lan_with_link_local_addresses_alone_works(lab: &Lab) -> Result<()> {
    let (a, b) = (bare(lab, "a")?, bare(lab, "b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    joined(&a, &id, &b)?;
    let (inside4, inside6) = a.overlay("lab")?;
    b.ns().reaches(&inside4, SOON)?;
    b.ns().reaches(&inside6, SOON)?;
    until(
        "datagrams go straight by a link-local address",
        SOON,
        || {
            let path = path(&b, "a")?;
            let is_direct = path["kind"] == "direct" && path["carrier"] == "datagram";
            ensure!(is_direct && path.to_string().contains("fe80::"), "{path}");
            Ok(true)
        },
    )?;
    Ok(())
}

/// The founder's subnet is down, since one machine can have its prefix only once.
fn two_daemons_of_one_machine_meet_without_ipv4(lab: &Lab) -> Result<()> {
    let a = bare(lab, "a")?;
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    a.ok(&["down", "lab"])?;
    let (v4, v6) = (a.under4().to_owned(), a.under6().to_owned());
    let b = Host::new("b", a.ns().clone(), lab.dir(), v4, v6)?;
    let config = "version = 1\n[node]\nname = \"b\"\n\
                  [transport]\nlisten = [\"/ip6/::/udp/4200/quic-v1\", \"/ip6/::/tcp/4200\"]\n";
    std::fs::write(b.dir().join("byway.toml"), config)?;
    b.start()?;
    joined(&a, &id, &b)?;
    b.terminate()
}

fn a_port_5353_that_another_program_has_for_itself_is_told(lab: &Lab) -> Result<()> {
    let host = lab.host("a")?;
    let taken = host.ns().udp_socket("0.0.0.0:5353")?;
    host.start()?;
    let made = host.json(&["create", "lab"])?;
    until("the taken port is told", SOON, || {
        let said = host.byway(&["--json", "netcheck"])?.value()?;
        ensure!(said["findings"].to_string().contains("E-LAN"), "{said}");
        Ok(true)
    })?;
    let b = lab.node("b")?;
    b.json(&["join", &text(&made, "invite")?])?;
    b.ns().reaches(&v4(&made)?, SOON)?;
    drop(taken);
    Ok(())
}

/// Frames of multicast DNS, of both families.
fn of_mdns(frames: &[Vec<u8>]) -> usize {
    let to_group = |frame: &&Vec<u8>| {
        frame.starts_with(&[0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb])
            || frame.starts_with(&[0x33, 0x33, 0x00, 0x00, 0x00, 0xfb])
    };
    frames.iter().filter(to_group).count()
}

fn two_daemons_and_their_subnet_are_not_named_on_the_lan(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let capture = Capture::start(lab, lab.switch(), &Lab::port(&a), "mdns")?;
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    joined(&a, &id, &b)?;
    let (_, frames) = capture.stop()?;
    let mdns: Vec<&Vec<u8>> = frames
        .iter()
        .filter(|f| of_mdns(std::slice::from_ref(*f)) > 0)
        .collect();
    ensure!(mdns.len() >= 4, "{} frames of mDNS", mdns.len());
    let ids = [
        text(&a.json(&["id"])?, "peer_id")?,
        text(&b.json(&["id"])?, "peer_id")?,
        id,
    ];
    for name in &ids {
        let has = |frame: &&&Vec<u8>| frame.windows(name.len()).any(|w| w == name.as_bytes());
        ensure!(!mdns.iter().any(|f| has(&f)), "{name} is named");
    }
    Ok(())
}

fn an_interface_that_comes_later_is_searched(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let b = lab.host("b")?;
    b.ns().ip(&["link", "set", "eth0", "down"])?;
    b.rebase()?;
    b.start()?;
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let join = b.spawn(&["--json", "join", &id, "--timeout", "30s"])?;
    std::thread::sleep(NOW);
    b.ns().ip(&["link", "set", "eth0", "up"])?;
    b.ns().ip(&[
        "addr",
        "replace",
        &format!("{}/64", b.under6()),
        "dev",
        "eth0",
        "nodad",
    ])?;
    let up = Instant::now();
    answer_request(&a, "approve")?;
    ensure!(join.wait()?.code == 0, "the join ends well");
    println!("found {:?} after the interface came up", up.elapsed());
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    // The link stays up, which it was not before.
    b.terminate()?;
    b.rebase()
}

fn a_network_without_multicast_is_named(lab: &Lab) -> Result<()> {
    lab.rules(
        "table bridge quiet {\n chain f {\n type filter hook forward priority 0\n udp dport 5353 drop\n }\n }\n",
    )?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    let join = b.spawn(&["--json", "join", &id, "--peer", &peer, "--timeout", "30s"])?;
    answer_request(&a, "approve")?;
    ensure!(join.wait()?.code == 0, "the join ends well");
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    until("the filtered multicast is named", 2 * SOON, || {
        let said = b.byway(&["--json", "netcheck"])?.value()?;
        let named = said["findings"].to_string();
        ensure!(
            named.contains("E-LAN") && named.contains("multicast does not pass on eth0"),
            "{said}"
        );
        Ok(true)
    })?;
    Ok(())
}

/// Behind a NAT that turns no packet round, and with nobody outside to help.
fn two_behind_one_nat_meet_on_their_lan_by_discovery_alone(lab: &Lab) -> Result<()> {
    let inet = lab.internet()?;
    let (site, a) = inet.behind("a", 2, &Uplink::behind(Kind::symmetric()))?;
    let b = site.host(lab, "b")?;
    for host in [&a, &b] {
        host.start()?;
    }
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    joined(&a, &id, &b)?;
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    let took = until("they meet on their local network", SOON, || {
        let path = path(&b, "a")?;
        let via = path["via"].to_string();
        let is_local = via.contains(a.under4()) || via.contains("[fe80");
        ensure!(path["kind"] == "direct" && is_local, "{path}");
        Ok(true)
    })?;
    println!("on the local network after {took:?}");
    Ok(())
}

/// As avahi and systemd-resolved do, a program shares port 5353 with byway: what is sent to it alone reaches it.
fn another_responder_of_the_machine_keeps_its_unicast(lab: &Lab) -> Result<()> {
    const RESPONDER: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', 5353))
s.settimeout(10)
while s.recvfrom(9000)[0] != b'hello': pass";
    const ASKER: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'hello', (sys.argv[1], 5353))";
    for is_first in [true, false] {
        let names = if is_first { ["a", "b"] } else { ["c", "d"] };
        let (a, b) = (lab.host(names[0])?, lab.node(names[1])?);
        let begin = || a.ns().command(&["python3", "-c", RESPONDER]).spawn();
        let before = if is_first { Some(begin()?) } else { None };
        until("the other responder has the port", SOON, || {
            let open = a.ns().ok(&["ss", "-Hlun", "sport = 5353"])?;
            Ok(!is_first || open.contains("5353"))
        })?;
        a.start()?;
        let id = text(&a.json(&["create", "lab"])?, "id")?;
        joined(&a, &id, &b)?;
        let mut responder = before.map_or_else(begin, Ok)?;
        until("what is sent to it alone reaches it", SOON, || {
            b.ns().ok(&["python3", "-c", ASKER, a.under4()])?;
            Ok(responder.try_wait()?.is_some_and(|end| end.success()))
        })?;
    }
    Ok(())
}

/// What nine members say on an idle local network: in the first minute, and in the one after.
fn idle_packets_of_nine_members_are_few(lab: &Lab) -> Result<()> {
    let hosts = isolated(lab, 9)?;
    let first = hosts.first().context("no host")?;
    let minute = || -> Result<usize> {
        let capture = Capture::start(lab, lab.switch(), &Lab::port(first), "idle")?;
        std::thread::sleep(Duration::from_secs(60));
        let (_, frames) = capture.stop()?;
        Ok(of_mdns(&frames))
    };
    let (one, two) = (minute()?, minute()?);
    println!("packets of mDNS on an idle network of nine: {one} in one minute, {two} in the next");
    // Two families, and a question that an answer follows: more than this is no silence.
    ensure!(two <= 12, "{two} packets in a minute");
    Ok(())
}
