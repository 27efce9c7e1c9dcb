//! The machine itself: a router for nobody because of us, and closed to its subnets but for what was opened.

use std::io::Read as _;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(a_port_map_is_no_way_into_other_networks_of_the_machine),
    fast!(forwarding_that_was_on_before_us_stays_open),
    fast!(who_turns_on_forwarding_of_every_link_takes_ours_over),
    fast!(members_and_workloads_reach_ping_and_names_and_what_is_opened),
    fast!(what_is_no_longer_open_ends_at_both_ends_within_a_second),
    fast!(a_flow_that_was_forgotten_is_reset_and_not_resumed),
    fast!(datagrams_that_are_no_longer_let_in_are_refused_within_a_second),
    fast!(a_server_that_pushes_on_is_heard_only_while_it_is_let_in),
    fast!(the_target_of_a_map_on_another_machine_needs_its_host),
    fast!(what_another_program_publishes_is_the_machine),
    fast!(the_policy_is_given_at_the_start_and_outlives_a_kill),
];

/// A network behind the machine that is none of ours.
struct Private {
    ns: Netns,
    _servers: Vec<Server>,
}

const PRIVATE4: &str = "192.168.50.2";
const PRIVATE6: &str = "2001:db8:50::2";

fn serve(ns: &Netns, port: u16) -> Result<Vec<Server>> {
    [
        ("tcp", "0.0.0.0"),
        ("tcp", "::"),
        ("udp", "0.0.0.0"),
        ("udp", "::"),
    ]
    .iter()
    .map(|(proto, any)| ns.serve(proto, any, port))
    .collect()
}

/// Connects to or asks a port: `tcp` or `udp`, an address, a port. Fails where nothing comes back soon.
const ASK: &str = r#"
import socket, sys
proto, to, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
s.settimeout(0.7)
s.connect((to, port))
s.shutdown(socket.SHUT_WR) if proto == "tcp" else s.send(b"who")
sys.exit(0 if s.recv(100) else 1)
"#;

fn asks(from: &Netns, proto: &str, to: &str, port: u16) -> bool {
    from.run(&["python3", "-c", ASK, proto, to, &port.to_string()])
        .is_ok_and(|a| a.code == 0)
}

fn tcp(from: &Netns, to: &str, port: u16) -> bool {
    asks(from, "tcp", to, port)
}

fn udp(from: &Netns, to: &str, port: u16) -> bool {
    asks(from, "udp", to, port)
}

/// The network behind `a`, to which `x` believes that `a` is the way.
fn private(lab: &Lab, a: &Host, x: &Host) -> Result<Private> {
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
fn remove(private: Private, a: &Host, x: &Host) -> Result<()> {
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

fn sysctl(host: &Host, key: &str) -> Result<String> {
    Ok(host.ns().ok(&["sysctl", "-n", key])?.trim().to_owned())
}

fn set(host: &Host, settings: &[&str]) -> Result<()> {
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

/// The problem that says that `member`'s machine is closed, in `status` of this host.
fn told(host: &Host) -> Result<Option<Value>> {
    let status = host.json(&["status"])?;
    let problems = status["problems"].as_array().context("problems")?;
    Ok(problems
        .iter()
        .find(|p| p["code"] == "E-HOST-CLOSED")
        .cloned())
}

fn members_and_workloads_reach_ping_and_names_and_what_is_opened(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (here, there) = (lab.workload("here")?, lab.workload("there")?);
    a.attach(&here, "lab", "here")?;
    b.attach(&there, "lab", "there")?;
    let _servers = serve(a.ns(), 2222)?;
    let (a4, a6) = a.overlay("lab")?;
    let askers = [
        ("a member", b.ns()),
        ("a workload here", &here),
        ("a workload of a member", &there),
    ];
    for (who, ns) in askers {
        ns.reaches(&a4, SOON)?;
        ns.reaches(&a6, SOON)?;
        for own in [&a4, &a6] {
            let asked = Instant::now();
            ensure!(
                !tcp(ns, own, 2222) && !udp(ns, own, 2222),
                "{who} reaches port 2222 of {own}"
            );
            ensure!(
                asked.elapsed() < Duration::from_secs(4),
                "{who} hears nothing of the refusal"
            );
            let names = ns.dig(own, &["a.lab.internal", "A"])?;
            ensure!(
                names.answers == [a4.clone()],
                "{who} has no names: {names:?}"
            );
        }
    }
    for under in [a.under4(), a.under6()] {
        ensure!(
            !tcp(&here, under, 2222),
            "a workload reaches the machine by {under}"
        );
    }
    ensure!(a.drops("lab", "host-closed")? >= 8, "{}", a.status("lab")?);
    ensure!(
        b.drops("lab", "host-closed")? == 0,
        "nothing was asked of b"
    );
    // The asker's own machine says what is the matter, and what to do about it.
    let problem = told(b)?.context("b is not told")?;
    let says = |field: &str, part: &str| problem[field].as_str().is_some_and(|t| t.contains(part));
    ensure!(
        says("message", "tcp/2222") && says("message", "of a is closed to subnet lab"),
        "{problem}"
    );
    ensure!(
        says("help", "byway subnet host lab udp/2222,tcp/2222")
            || says("help", "byway subnet host lab tcp/2222,udp/2222"),
        "{problem}"
    );
    ensure!(
        b.ok(&["status", "--check", "healthy"]).is_ok(),
        "it is no fault of b's"
    );
    let ping = b.ok(&["ping", "a", "-c", "1"])?;
    ensure!(
        ping.contains("is closed to subnet lab") && ping.contains("byway subnet host lab"),
        "{ping}"
    );
    ensure!(b.json(&["ping", "a", "-c", "1"])?["refused"][0]["code"] == "E-HOST-CLOSED");

    ensure!(a.json(&["subnet", "host", "lab"])?["host"] == "closed");
    let set = a.json(&["subnet", "host", "lab", "udp/53,tcp/2222"])?;
    ensure!(
        set["host"] == "tcp/2222,udp/53" && set["changed"] == true,
        "{set}"
    );
    ensure!(
        a.ok(&["subnet", "host", "lab"])?
            .contains("tcp/2222,udp/53")
    );
    for (who, ns) in askers {
        for own in [&a4, &a6] {
            ensure!(
                tcp(ns, own, 2222),
                "{who} does not reach port 2222 of {own}"
            );
            ensure!(!udp(ns, own, 2222), "{who} reaches UDP");
        }
    }
    ensure!(
        tcp(&here, a.under4(), 2222),
        "every address of the machine is the machine"
    );
    let problem = told(b)?.context("UDP is refused still")?;
    ensure!(
        problem["message"]
            .as_str()
            .is_some_and(|t| t.contains("udp/2222") && !t.contains("tcp/2222")),
        "{problem}"
    );
    a.ok(&["subnet", "host", "lab", "open"])?;
    ensure!(
        udp(b.ns(), &a4, 2222) && udp(&there, &a6, 2222),
        "open is open"
    );
    ensure!(told(b)?.is_none(), "what answers is no problem any more");
    a.ok(&["subnet", "host", "lab", "closed"])?;
    ensure!(!tcp(b.ns(), &a4, 2222), "closed is closed");
    for (spec, code) in [("tcp/0", 2), ("tcp/22,", 2), ("ssh", 2), ("tcp/9-8", 2)] {
        a.fails(code, "E-HOST", &["subnet", "host", "lab", spec])?;
    }
    a.fails(5, "E-NO-SUBNET", &["subnet", "host", "nosuch", "open"])
        .map(drop)
}

/// One end of a connection that speaks every 20 ms or never, and says how it ended: the name of the error.
const END: &str = r#"
import errno, select, socket, sys
role, to, port, speaks = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "speaks"
family = socket.AF_INET6 if ":" in to else socket.AF_INET
kind = socket.SOCK_DGRAM if role.startswith("udp") else socket.SOCK_STREAM
s = socket.socket(family, kind)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if role == "serves":
    s.bind((to, port)); s.listen(); print("ready", flush=True); s = s.accept()[0]
else:
    s.settimeout(2); s.connect((to, port)); print("ready", flush=True)
s.settimeout(2)
try:
    while True:
        if speaks: s.send(b"word")
        if select.select([s], [], [], 0.02)[0] and not s.recv(100): sys.exit("closed in order")
except OSError as error:
    print(errno.errorcode.get(error.errno, error), flush=True)
"#;

/// A process that is one [`END`], ready; killed when dropped, so that a failed test leaves nothing.
pub struct End(std::process::Child);

impl End {
    /// Role (`serves`, `asks` or `udp`), address, port, and `speaks` or `listens`.
    pub fn new(ns: &Netns, args: [&str; 4]) -> Result<End> {
        End::of(END, ns, &args)
    }

    fn of(program: &str, ns: &Netns, args: &[&str]) -> Result<End> {
        let argv = [&["python3", "-c", program], args].concat();
        let child = ns
            .command(&argv)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start python")?;
        let mut end = End(child);
        ensure!(end.line()? == "ready", "it is not ready");
        Ok(end)
    }

    /// The next line it prints.
    fn line(&mut self) -> Result<String> {
        let stdout = self.0.stdout.as_mut().context("stdout")?;
        #[expect(
            clippy::unbuffered_bytes,
            reason = "what a buffer holds would be lost for the next line"
        )]
        let bytes = stdout
            .bytes()
            .take_while(|b| !matches!(b, Ok(b'\n')))
            .collect::<Result<Vec<u8>, _>>()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn what_is_no_longer_open_ends_at_both_ends_within_a_second(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let here = lab.workload("here")?;
    a.attach(&here, "lab", "here")?;
    let (a4, a6) = a.overlay("lab")?;
    for (who, ns) in [("a member", b.ns()), ("a workload", &here)] {
        for own in [&a4, &a6] {
            ns.reaches(own, SOON)?;
            for (asker, machine) in [
                ("speaks", "listens"),
                ("listens", "speaks"),
                ("listens", "listens"),
            ] {
                let what = format!("{who} that {asker}, a machine that {machine}, by {own}");
                a.ok(&["subnet", "host", "lab", "tcp/2222,tcp/2223"])?;
                let mut server = End::new(a.ns(), ["serves", own, "2222", machine])?;
                let mut client = End::new(ns, ["asks", own, "2222", asker])?;
                std::thread::sleep(Duration::from_millis(300));
                ensure!(
                    !client.has_ended()? && !server.has_ended()?,
                    "{what}: the connection was under way"
                );
                a.ok(&["subnet", "host", "lab", "tcp/2223"])?;
                let took = until("both ends end", SOON, || {
                    Ok(client.has_ended()? && server.has_ended()?)
                })
                .with_context(|| what.clone())?;
                ensure!(took < Duration::from_secs(1), "{what}: only after {took:?}");
                for (end, told) in [("asker", client.line()?), ("machine", server.line()?)] {
                    let reset = ["ECONNRESET", "ECONNABORTED", "EPIPE"].contains(&told.as_str());
                    ensure!(reset, "{what}: the {end} is told {told:?}");
                }
            }
        }
    }
    Ok(())
}

fn a_flow_that_was_forgotten_is_reset_and_not_resumed(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    a.ok(&["subnet", "host", "lab", "tcp/2222"])?;
    let (a4, a6) = a.overlay("lab")?;
    // As where the kernel cannot end sockets: only what passes is left to tell them, and the port is open all along.
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        for (asker, machine) in [("speaks", "listens"), ("listens", "speaks")] {
            let mut server = End::new(a.ns(), ["serves", own, "2222", machine])?;
            let mut client = End::new(b.ns(), ["asks", own, "2222", asker])?;
            std::thread::sleep(Duration::from_millis(300));
            a.ns()
                .ok(&["conntrack", "-D", "-p", "tcp", "--orig-port-dst", "2222"])?;
            let speaker = if asker == "speaks" {
                &mut client
            } else {
                &mut server
            };
            let took = until("who speaks is told", SOON, || speaker.has_ended())?;
            ensure!(took < Duration::from_secs(1), "{own}: only after {took:?}");
        }
    }
    Ok(())
}

fn datagrams_that_are_no_longer_let_in_are_refused_within_a_second(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (a4, a6) = a.overlay("lab")?;
    let _servers = serve(a.ns(), 2222)?;
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        a.ok(&["subnet", "host", "lab", "udp/2222"])?;
        let mut asker = End::new(b.ns(), ["udp", own, "2222", "speaks"])?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(!asker.has_ended()?, "the flow was under way");
        a.ok(&["subnet", "host", "lab", "closed"])?;
        let took = until("the asker is told", SOON, || asker.has_ended())?;
        ensure!(took < Duration::from_secs(1), "{own}: only after {took:?}");
        let told = asker.line()?;
        ensure!(
            ["EHOSTUNREACH", "EACCES"].contains(&told.as_str()),
            "{own}: told {told:?}"
        );
    }
    Ok(())
}

/// The two ends of a flow of datagrams in which the machine speaks most. `pushes` answers whoever asked last, for ever;
/// `hears` asks once from port 40001, says when nothing has come for half a second, then asks on until it is refused.
const PUSH: &str = r#"
import errno, socket, sys, time
role, to, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if role == "pushes":
    s.bind((to, port)); print("ready", flush=True)
    peer = s.recvfrom(100)[1]; s.settimeout(0.02)
    while True:
        try: s.sendto(b"word", peer)
        except OSError: pass
        try: peer = s.recvfrom(100)[1]
        except OSError: pass
s.bind(("", 40001)); s.connect((to, port)); s.settimeout(0.5); s.send(b"word"); s.recv(100); print("ready", flush=True)
until = time.time() + 10
try:
    while time.time() < until: s.recv(100)
    sys.exit("heard still")
except TimeoutError: print("silent", flush=True)
s.settimeout(0.02)
try:
    while time.time() < until:
        s.send(b"word")
        try: print("heard", s.recv(100), flush=True); break
        except TimeoutError: pass
except OSError as error: print(errno.errorcode.get(error.errno, error), flush=True)
"#;

fn a_server_that_pushes_on_is_heard_only_while_it_is_let_in(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (a4, a6) = a.overlay("lab")?;
    for own in [&a4, &a6] {
        b.ns().reaches(own, SOON)?;
        let _server = End::of(PUSH, a.ns(), &["pushes", own, "2222"])?;
        // Twice: what was ended is no obstacle once it is let in again.
        for round in 0..2 {
            a.ok(&["subnet", "host", "lab", "udp/2222"])?;
            let mut client = End::of(PUSH, b.ns(), &["hears", own, "2222"])?;
            std::thread::sleep(Duration::from_millis(700));
            ensure!(
                !client.has_ended()?,
                "{own}, {round}: the flow was under way"
            );
            a.ok(&["subnet", "host", "lab", "closed"])?;
            // Nobody but the server has spoken for half a second, and it goes on.
            ensure!(
                client.line()? == "silent",
                "{own}, {round}: the server is heard still"
            );
            until("the client is told", SOON, || client.has_ended())?;
            let told = client.line()?;
            ensure!(
                ["EHOSTUNREACH", "EACCES"].contains(&told.as_str()),
                "{own}, {round}: told {told:?}"
            );
        }
    }
    Ok(())
}

fn map_state(host: &Host, listen: &str) -> Result<String> {
    let list = host.json(&["map", "ls", "lab"])?;
    let maps = list["maps"].as_array().context("maps")?;
    let map = maps
        .iter()
        .find(|m| m["listen"].as_str().is_some_and(|l| l.ends_with(listen)));
    text(
        map.with_context(|| format!("no map of {listen} in {list}"))?,
        "state",
    )
}

fn the_target_of_a_map_on_another_machine_needs_its_host(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b, x) = (&hosts[0], &hosts[1], lab.host("x")?);
    let (_here, _there) = (serve(a.ns(), 2222)?, serve(b.ns(), 2222)?);
    let (a4, b4) = (a.overlay("lab")?.0, b.overlay("lab")?.0);
    a.ns().reaches(&b4, SOON)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "b:2222"])?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8081", "a:2222"])?;
    ensure!(!tcp(x.ns(), a.under4(), 8080), "b lets nobody in");
    ensure!(
        map_state(a, ":8080")? == "refused" && map_state(a, ":8081")? == "ok",
        "{}",
        a.json(&["map", "ls"])?
    );
    // What helps is to be typed there.
    let (there, list) = (
        "on b: byway subnet host lab tcp/2222",
        a.ok(&["map", "ls", "lab"])?,
    );
    ensure!(
        list.contains(there) && !list.contains("let something listen"),
        "{list}"
    );
    let status = a.json(&["status"])?;
    let problems = status["problems"].as_array().context("problems")?;
    let refused = problems
        .iter()
        .find(|p| p["code"] == "E-TARGET-REFUSED")
        .context("the map's problem")?;
    ensure!(
        refused["help"]
            .as_str()
            .is_some_and(|help| help.starts_with(there)),
        "{refused}"
    );
    // A map to the machine itself answers the outside and the subnet, whatever the machine lets in.
    ensure!(
        tcp(x.ns(), a.under4(), 8081) && tcp(b.ns(), &a4, 8081),
        "a map to the machine itself"
    );
    ensure!(!tcp(b.ns(), &a4, 2222), "and opens nothing else");
    let list = a.json(&["map", "ls", "lab"])?;
    let counted = |m: &Value, field: &str| m[field].as_u64() > Some(0);
    let to_itself = list["maps"]
        .as_array()
        .and_then(|maps| maps.iter().find(|m| m["target"] == "a:2222"));
    let to_itself = to_itself.context("the map")?;
    ensure!(
        ["connections", "rx_bytes", "tx_bytes"]
            .iter()
            .all(|f| counted(to_itself, f)),
        "not counted: {list}"
    );
    b.ok(&["subnet", "host", "lab", "tcp/2222"])?;
    ensure!(tcp(x.ns(), a.under4(), 8080), "b lets it in now");
    ensure!(
        map_state(a, ":8080")? == "ok",
        "{}",
        a.json(&["map", "ls"])?
    );
    b.ok(&["subnet", "host", "lab", "closed"])?;
    ensure!(
        !tcp(x.ns(), a.under4(), 8080) && map_state(a, ":8080")? == "refused",
        "and no more"
    );
    // The proxy of the loopback is no way around it.
    ensure!(
        !tcp(a.ns(), "127.0.0.1", 8080) && tcp(a.ns(), "127.0.0.1", 8081),
        "by loopback"
    );
    Ok(())
}

fn what_another_program_publishes_is_the_machine(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b, x) = (&hosts[0], &hosts[1], lab.host("x")?);
    let here = lab.workload("here")?;
    a.attach(&here, "lab", "here")?;
    // As Docker does: a bridge, forwarding of every link, a port published by a rule.
    let private = private(lab, a, &x)?;
    set(a, &["net.ipv4.ip_forward=1"])?;
    let docker = "table ip docker { chain pre { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 8088 dnat to 192.168.50.2:80; }; }";
    a.ns().ok(&["nft", docker])?;
    let a4 = a.overlay("lab")?.0;
    b.ns().reaches(&a4, SOON)?;
    for (who, ns) in [("a member", b.ns()), ("a workload", &here)] {
        ensure!(!tcp(ns, &a4, 8088), "{who} reaches what Docker publishes");
    }
    ensure!(a.drops("lab", "host-closed")? >= 2, "it is counted");
    ensure!(
        tcp(x.ns(), a.under4(), 8088),
        "the outside is not ours to judge"
    );
    a.ok(&["subnet", "host", "lab", "tcp/80"])?;
    ensure!(
        !tcp(b.ns(), &a4, 8088),
        "the port behind it is not what was asked for"
    );
    a.ok(&["subnet", "host", "lab", "tcp/8088"])?;
    for (who, ns) in [("a member", b.ns()), ("a workload", &here)] {
        ensure!(tcp(ns, &a4, 8088), "{who} is let in and does not reach it");
    }
    a.ns().ok(&["nft", "delete table ip docker"])?;
    set(a, &["net.ipv4.ip_forward=0"])?;
    // Turning it off took it from our links as well.
    until("our links forward again", SOON, || {
        Ok(sysctl(a, "net.ipv4.conf.bw-lab.forwarding")? == "1")
    })?;
    remove(private, a, &x)
}

fn the_policy_is_given_at_the_start_and_outlives_a_kill(lab: &Lab) -> Result<()> {
    let (a, b, c) = (lab.node("a")?, lab.node("b")?, lab.host("c")?);
    let made = a.json(&["create", "lab", "--host", "tcp/2222"])?;
    ensure!(made["host"] == "tcp/2222", "{made}");
    a.fails(2, "E-HOST", &["create", "other", "--host", "22"])?;
    let joined = b.json(&["join", &text(&made, "invite")?, "--host", "open"])?;
    ensure!(joined["host"] == "open", "{joined}");
    // A declared membership.
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    let file = c.dir().join("invite");
    std::fs::write(&file, &invite)?;
    let config = c.dir().join("byway.toml");
    let declared = format!(
        "\n[[subnet]]\ninvite_file = \"{}\"\nhost = \"tcp/2222,udp/9\"\n",
        file.display()
    );
    std::fs::write(&config, std::fs::read_to_string(&config)? + &declared)?;
    c.start()?;
    until("c has joined", SOON, || {
        Ok(c.json(&["subnet", "host", "lab"])?["host"] == "tcp/2222,udp/9")
    })?;
    let servers: Vec<_> = [&a, &b, &c]
        .iter()
        .map(|h| serve(h.ns(), 2222))
        .collect::<Result<_>>()?;
    let reached = || -> Result<()> {
        for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
            let to4 = to.overlay("lab")?.0;
            from.ns().reaches(&to4, SOON)?;
            ensure!(
                tcp(from.ns(), &to4, 2222),
                "{} does not reach {}",
                from.name(),
                to.name()
            );
        }
        Ok(())
    };
    reached().context("as they were told at the start")?;
    for host in [&a, &b, &c] {
        host.kill9()?;
        host.start()?;
    }
    reached().context("after a kill")?;
    ensure!(a.json(&["subnet", "show", "lab"])?["host"] == "tcp/2222");
    // Without a word nothing is open.
    for line in [
        a.ok(&["create", "third"])?,
        a.ok(&["subnet", "host", "third"])?,
    ] {
        ensure!(
            line.contains("byway subnet host third tcp/22"),
            "the line that opens ssh: {line}"
        );
    }
    drop(servers);
    Ok(())
}
