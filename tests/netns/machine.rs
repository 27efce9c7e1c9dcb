//! The machine itself is closed to its subnets but for what was opened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::forwarding::{private, remove, set, sysctl};
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(members_and_workloads_reach_ping_and_names_and_what_is_opened),
    fast!(the_target_of_a_map_on_another_machine_needs_its_host),
    fast!(what_another_program_publishes_is_the_machine),
    fast!(the_policy_is_given_at_the_start_and_outlives_a_kill),
];

pub fn serve(ns: &Netns, port: u16) -> Result<Vec<Server>> {
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

pub fn tcp(from: &Netns, to: &str, port: u16) -> bool {
    asks(from, "tcp", to, port)
}

pub fn udp(from: &Netns, to: &str, port: u16) -> bool {
    asks(from, "udp", to, port)
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
    the_asker_is_told_what_helps(b)?;
    only_what_is_named_is_opened(a, &askers)?;
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

/// The asker's own machine says what is the matter, and what to do about it.
fn the_asker_is_told_what_helps(b: &Host) -> Result<()> {
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
    Ok(())
}

/// TCP port 2222 answers at both addresses, and UDP does not.
fn only_what_is_named_is_opened(a: &Host, askers: &[(&str, &Netns)]) -> Result<()> {
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
    let (a4, a6) = a.overlay("lab")?;
    for (who, ns) in askers {
        for own in [&a4, &a6] {
            ensure!(
                tcp(ns, own, 2222),
                "{who} does not reach port 2222 of {own}"
            );
            ensure!(!udp(ns, own, 2222), "{who} reaches UDP");
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
