//! Virtual machines at a TAP: a guest's own network stack in a namespace, behind a program that has the device open.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::netns::Netns;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, snapshot, text, until, v4, v6};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    fast!(a_tap_lasts_as_long_as_its_workload_and_leaves_nothing),
    ci!(a_guest_keeps_its_link_over_a_restart_of_the_daemon),
    long!(a_guest_at_a_stream_is_served_again_after_a_restart),
    ci!(
        a_guest_gets_its_addresses_and_speaks_for_nobody_else,
        "busybox"
    ),
];

/// A guest that has a TAP open; it ends when dropped.
pub struct Guest {
    pub ns: Netns,
    program: Child,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/guest.py");

impl Guest {
    /// Opens the TAP of a workload on `host`, as `at` tells of it.
    pub fn boot(lab: &Lab, host: &Host, at: &Value) -> Result<Guest> {
        let ns = lab.workload("guest")?;
        let (tap, mac) = (text(at, "interface")?, text(at, "mac")?);
        Guest::run(host, ns, &[&tap], &mac)
    }

    /// Has the workload's TAP as a stream of frames, and asks for it again each time that the stream ends.
    fn stream(lab: &Lab, host: &Host, at: &Value) -> Result<Guest> {
        let ns = lab.workload("streamed")?;
        let (socket, mac) = (text(at, "socket")?, text(at, "mac")?);
        Guest::run(host, ns, &["stream", &socket], &mac)
    }

    fn run(host: &Host, ns: Netns, to: &[&str], mac: &str) -> Result<Guest> {
        let words = [&["python3", PROGRAM], to, &[ns.name(), mac]].concat();
        let mut program = host.ns().command(&words).stdout(Stdio::piped()).spawn()?;
        let said = program.stdout.take().context("its output")?;
        let guest = Guest { ns, program };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line == "ready\n", "the guest does not start: {line:?}");
        Ok(guest)
    }

    /// Takes the workload's addresses without asking, with this machine as its router.
    fn configure(&self, host: &Host, at: &Value) -> Result<()> {
        let (gateway, own) = (host.overlay("lab")?.0, v4(at)?);
        self.ns
            .ip(&["addr", "add", &format!("{own}/16"), "dev", "eth0"])?;
        self.ns
            .ip(&["route", "replace", "default", "via", &gateway])
            .map(drop)
    }

    /// Asks for an address as a guest does that knows nothing, and takes what it gets: `ip=… mask=… router=…`.
    pub fn dhcp(&self, lab: &Lab) -> Result<String> {
        let script = lab.dir().join("udhcpc");
        let take = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
            ip addr replace $ip/$mask dev $interface\nip link set $interface mtu $mtu\n\
            ip route replace default via $router\n\
            echo \"ip=$ip mask=$mask router=$router dns=$dns domain=$domain search=$search mtu=$mtu lease=$lease\"\n";
        std::fs::write(&script, take)?;
        crate::lab::sh("chmod", &["755", &script.to_string_lossy()])?;
        let script = script.to_string_lossy();
        let words = [
            "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1",
        ];
        let more = ["-O", "mtu", "-O", "search", "-s", &script];
        self.ns.ok(&[&words[..], &more].concat())
    }

    /// Has the guest take an address of DHCPv6, and gives it with the resolver that it is told.
    pub fn dhcp6(&self) -> Result<(String, String)> {
        let told = self.ns.ok(&["python3", PROGRAM, "solicit"])?;
        let mut lines = told.lines().map(str::to_owned);
        let (own, resolver) = (lines.next().context(told.clone())?, lines.next());
        self.ns
            .ip(&["addr", "add", &format!("{own}/128"), "dev", "eth0", "nodad"])?;
        Ok((own, resolver.context("a resolver")?))
    }
}

fn attach(host: &Host, more: &[&str]) -> Result<Value> {
    host.json(&[&["attach", "tap", "vm", "--subnet", "lab"], more].concat())
}

/// What the kernel says of the device.
fn device(host: &Host) -> Result<String> {
    host.ns().ip(&["-d", "link", "show", "dev", "bwv-vm"])
}

fn a_tap_lasts_as_long_as_its_workload_and_leaves_nothing(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let at = attach(a, &["--user", "1234", "--mac", "52:54:00:01:02:03"])?;
    ensure!(text(&at, "interface")? == "bwv-vm", "{at}");
    ensure!(text(&at, "mac")? == "52:54:00:01:02:03", "{at}");
    let made = device(a)?;
    for part in ["tun type tap", "persist on", "user 1234", "byway:"] {
        ensure!(made.contains(part), "{part} of {made}");
    }
    // The same again is the same; what is meant otherwise is a conflict.
    let again = attach(a, &["--user", "1234"])?;
    ensure!(
        again["already"] == true && v4(&again)? == v4(&at)?,
        "{again}"
    );
    let other = ["attach", "tap", "vm", "--subnet", "lab", "--name", "other"];
    a.fails(6, "E-ATTACHED", &other)?;
    a.fails(
        2,
        "E-INTERFACE",
        &["attach", "tap", "a-name-too-long", "--subnet", "lab"],
    )?;
    let shown = a.json(&["workload", "show", "vm"])?;
    ensure!(shown["kind"] == "tap" && shown["state"] == "ok", "{shown}");
    ensure!(shown["link"]["mac"] == "52:54:00:01:02:03", "{shown}");
    ensure!(shown["socket"] == at["socket"], "{shown}");
    let server = b.overlay("lab")?.0;
    b.ns()
        .resolves(&server, &["vm.lab.internal", "A"], &v4(&at)?, SOON)?;
    // It is there again after a kill, and once only.
    a.kill9()?;
    a.start()?;
    until("it is the same workload", SOON, || {
        let shown = a.json(&["workload", "show", "vm"])?;
        Ok(shown["state"] == "ok" && v4(&shown)? == v4(&at)?)
    })?;
    ensure!(device(a)? == made, "the device as it was: {}", device(a)?);
    // Who has it open gives it to another user: that is said, and ends with the program.
    let script = "import fcntl, struct, sys
tun = open('/dev/net/tun', 'r+b', buffering=0)
fcntl.ioctl(tun, 0x400454CA, struct.pack('16sH22x', b'bwv-vm', 0x1002))
fcntl.ioctl(tun, 0x400454CC, 4321)
print('ready', flush=True)
sys.stdin.read()";
    let words = ["python3", "-c", script];
    let mut other = a
        .ns()
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(other.stdout.take().context("its output")?).read_line(&mut line)?;
    ensure!(line == "ready\n" && device(a)?.contains("user 4321"));
    until("it is said", SOON, || {
        let status = a.byway(&["status"])?;
        Ok(status.out.contains("give bwv-vm back to user 1234"))
    })?;
    drop(other.stdin.take());
    other.wait()?;
    until("it is its owner's again", SOON, || {
        Ok(device(a)?.contains("user 1234"))
    })?;
    // Somebody deletes it: it comes back.
    a.ns().ip(&["link", "del", "bwv-vm"])?;
    until("the device is made anew", SOON, || {
        Ok(device(a).is_ok_and(|d| d.contains("user 1234")))
    })?;
    a.ok(&["down", "lab"])?;
    ensure!(device(a).is_err(), "no device while the subnet is down");
    a.ok(&["up", "lab"])?;
    ensure!(device(a)?.contains("user 1234"), "it is back");
    a.ok(&["detach", "vm"])?;
    ensure!(device(a).is_err(), "it went with its workload");
    let before = snapshot::of(a.ns())?;
    attach(a, &[])?;
    ensure!(device(a).is_ok(), "it is made at once");
    a.ok(&["detach", "vm"])?;
    before.assert_same(&snapshot::of(a.ns())?, "the host after detach")
}

/// The kernel's number of the device, where it is there: another device has another.
fn number(host: &Host) -> Result<Option<String>> {
    let shown = device(host).ok();
    Ok(shown.and_then(|shown| Some(shown.split(':').next()?.to_owned())))
}

/// `byway cleanup` of the host's daemon, which does not run.
fn clean(host: &Host, more: &[&str]) -> Result<()> {
    let state = host.state().display().to_string();
    let line = [&["cleanup", "--state-dir", &state], more].concat();
    host.ok(&line).map(drop)
}

fn a_guest_keeps_its_link_over_a_restart_of_the_daemon(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let at = attach(a, &[])?;
    let guest = Guest::boot(lab, a, &at)?;
    guest.configure(a, &at)?;
    let there = b.overlay("lab")?.0;
    let talks = |when: &str| {
        until(when, SOON, || Ok(guest.ns.pings(&there)))?;
        b.ns().reaches(&v4(&at)?, SOON).map(drop)
    };
    talks("the guest talks at first")?;
    let first = number(a)?;
    let rests = |when: &str| {
        let shown = device(a)?;
        let up = shown.lines().next().unwrap_or_default().contains("UP,");
        ensure!(!up && number(a)? == first, "{when}: {shown}");
        ensure!(!guest.ns.pings(&there), "{when}: packets pass");
        Ok(())
    };
    a.terminate()?;
    rests("after a stop")?;
    a.start()?;
    talks("it talks after a stop and a start")?;
    a.kill9()?;
    clean(a, &["--keep-guests"])?;
    rests("after a kill and the unit's cleanup")?;
    a.start()?;
    talks("it talks after a kill and a start")?;
    a.ok(&["down", "lab"])?;
    until("it rests while the subnet is down", SOON, || {
        Ok(rests("down").is_ok())
    })?;
    a.ok(&["up", "lab"])?;
    talks("it talks after down and up")?;
    ensure!(number(a)? == first, "it is the same device all the time");
    // Who wants it gone has it gone, guest or not.
    a.terminate()?;
    clean(a, &[])?;
    ensure!(number(a)?.is_none(), "cleanup leaves nothing");
    a.start()?;
    until("it is made anew", SOON, || Ok(number(a)?.is_some()))?;
    drop(guest);
    a.terminate()?;
    ensure!(
        number(a)?.is_none(),
        "without a guest a stop leaves nothing"
    );
    a.start()?;
    a.ok(&["detach", "vm"])?;
    ensure!(number(a)?.is_none(), "it went with its workload");
    Ok(())
}

fn a_guest_at_a_stream_is_served_again_after_a_restart(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let at = attach(a, &[])?;
    let socket = std::path::PathBuf::from(text(&at, "socket")?);
    let guest = Guest::stream(lab, a, &at)?;
    guest.configure(a, &at)?;
    let there = b.overlay("lab")?.0;
    let talks = |when: &str| until(when, SOON, || Ok(guest.ns.pings(&there)));
    talks("the guest talks at first")?;
    a.terminate()?;
    ensure!(number(a)?.is_none(), "the TAP was the daemon's alone");
    ensure!(!socket.exists(), "the socket goes with the daemon");
    a.start()?;
    talks("it talks after a stop and a start")?;
    a.kill9()?;
    ensure!(socket.exists(), "a kill leaves the socket");
    clean(a, &["--keep-guests"])?;
    ensure!(!socket.exists(), "cleanup takes it");
    ensure!(number(a)?.is_none(), "and the TAP, which no guest had");
    a.start()?;
    talks("it talks after a kill and a start").map(drop)
}

fn a_guest_gets_its_addresses_and_speaks_for_nobody_else(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    let web_at = b.attach(&web, "lab", "web")?;
    let at = attach(a, &[])?;
    let guest = Guest::boot(lab, a, &at)?;
    taught(lab, a, &guest, &at)?;
    both_ways(a, b, &guest, &at, &web, &web_at)?;
    guarded(a, b, &guest, &at)
}

/// The guest hears its addresses, its router, its resolver and the largest packet.
pub fn taught(lab: &Lab, a: &Host, guest: &Guest, at: &Value) -> Result<()> {
    let (gateway4, gateway6) = a.overlay("lab")?;
    let told = guest.dhcp(lab)?;
    let own = v4(at)?;
    for part in [
        format!("ip={own} "),
        format!("router={gateway4} "),
        format!("dns={gateway4} "),
        "domain=lab.internal search=lab.internal ".to_owned(),
        format!("mtu={} ", at["mtu"]),
        "lease=3600".to_owned(),
    ] {
        ensure!(told.contains(&part), "{part} of {told}");
    }
    let (own6, resolver) = guest.dhcp6()?;
    ensure!(own6 == v6(at)? && resolver == gateway6, "{own6} {resolver}");
    until("the guest has a router of IPv6", SOON, || {
        let routes = guest.ns.ip(&["-6", "route", "show", "default"])?;
        Ok(routes.contains("via fe80::") && routes.contains("proto ra"))
    })
    .map(drop)
}

fn both_ways(
    a: &Host,
    b: &Host,
    guest: &Guest,
    at: &Value,
    web: &Netns,
    web_at: &Value,
) -> Result<()> {
    let gateway4 = a.overlay("lab")?.0;
    for address in [v4(web_at)?, v6(web_at)?] {
        guest.ns.reaches(&address, SOON)?;
    }
    for address in [v4(at)?, v6(at)?] {
        web.reaches(&address, SOON)?;
        b.ns().reaches(&address, SOON)?;
    }
    // The server sees the guest's own address.
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    ensure!(
        guest.ns.tcp(&v4(web_at)?, 80, 100_000)? == v4(at)?,
        "real source"
    );
    // Everybody is on the guest's link: this machine answers for them, with its own hardware address.
    let gateway = guest.ns.ip(&["neigh", "show", &v4(web_at)?])?;
    ensure!(gateway.contains("02:62:77"), "{gateway}");
    guest
        .ns
        .resolves(&gateway4, &["web.lab.internal", "A"], &v4(web_at)?, SOON)
        .map(drop)
}

/// What a guest says under another address, or for others, is dropped and counted.
fn guarded(a: &Host, b: &Host, guest: &Guest, at: &Value) -> Result<()> {
    let drops = || a.drops("lab", "source-not-leased");
    let target = b.overlay("lab")?.0;
    let neighbours = a.ns().ip(&["neigh", "show", "nud", "permanent"])?;
    let first = drops()?;
    // Another address of its own lease's prefix.
    let spoofed = "10.77.99.99";
    guest
        .ns
        .ip(&["addr", "add", &format!("{spoofed}/32"), "dev", "eth0"])?;
    let from = guest.ns.run(&[
        "ping", "-n", "-c", "2", "-i", "0.2", "-W", "0.5", "-I", spoofed, &target,
    ])?;
    ensure!(from.code != 0, "an address of nobody passes");
    let second = drops()?;
    ensure!(second > first, "counted: {first} {second}");
    // It asks under very many addresses: the machine's table of neighbours is not its own.
    let lines = a
        .ns()
        .ip(&["-6", "-o", "addr", "show", "dev", "bwv-vm", "scope", "link"])?;
    let router = lines.split_whitespace().find(|w| w.starts_with("fe80:"));
    let router = router.context("a link-local address")?;
    let router = router.split('/').next().unwrap_or_default();
    let answer = guest.ns.socket(&["solicit", "eth0", router, "600"])?;
    ensure!(answer.code == 0, "{answer}");
    let known = a.ns().ip(&["-6", "neigh", "show", "dev", "bwv-vm"])?;
    let known = known.matches("fe80::bad:").count();
    ensure!((1..100).contains(&known), "{known} of 600 were entered");
    // Another hardware address.
    guest
        .ns
        .ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"])?;
    ensure!(!guest.ns.pings(&target), "another hardware address passes");
    ensure!(drops()? > second, "counted");
    let mac = text(at, "mac")?;
    let status = a.json(&["status"])?;
    let problems = status["problems"].as_array().into_iter().flatten();
    let told: Vec<&Value> = problems.filter(|p| p["code"] == "E-MAC").collect();
    ensure!(told.len() == 1, "{status}");
    for part in ["02:00:00:00:00:99", &mac] {
        let message = told[0]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(part), "{part} of {message}");
    }
    guest.ns.ip(&["link", "set", "eth0", "address", &mac])?;
    // It takes the gateway's address, and says so to everybody.
    let gateway = a.overlay("lab")?.0;
    guest
        .ns
        .ip(&["addr", "add", &format!("{gateway}/32"), "dev", "eth0"])?;
    let _ = guest
        .ns
        .run(&["busybox", "arping", "-U", "-c", "2", "-I", "eth0", &gateway]);
    guest
        .ns
        .ip(&["addr", "del", &format!("{gateway}/32"), "dev", "eth0"])?;
    ensure!(
        a.ns().ip(&["neigh", "show", "nud", "permanent"])? == neighbours,
        "the neighbours are as they were"
    );
    b.ns().reaches(&v4(at)?, SOON).map(drop)
}
