//! What the clients of a map meet: the first words sent before it was made, link-local addresses, targets that refuse.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until};
use crate::surroundings::{not_told, pair, told};

pub const CASES: &[Case] = &[
    fast!(a_client_that_sends_before_its_map_is_answered_after_it),
    fast!(a_map_of_every_address_answers_at_link_local_ones),
    fast!(a_target_of_one_family_needs_nothing_to_be_done),
    fast!(a_target_that_refuses_is_a_refused_connection_and_told),
    fast!(a_service_that_a_map_shadows_is_named),
];

/// Sends from one port every 100 ms and prints who answers, each time that changes.
const CLIENT: &str = r#"
import socket, sys, time
to, port, own = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
v6 = ":" in to
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("::" if v6 else "0.0.0.0", own))
s.settimeout(0.1)
last = ""
while True:
    now = "nobody"
    try:
        s.sendto(b"hello", (to, port))
        now = s.recv(100).decode()
    except TimeoutError:
        pass
    except OSError:
        time.sleep(0.1)
    if now != last:
        print(now, flush=True)
        last = now
    time.sleep(0.05)
"#;

/// Answers with a name.
const SERVER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(sys.argv[2].encode(), peer)
"#;

/// A program that goes with the test.
struct Program(Child, std::path::PathBuf);

impl Program {
    fn start(lab: &Lab, ns: &Netns, name: &str, script: &str, args: &[&str]) -> Result<Program> {
        let path = lab.dir().join(name);
        let out = std::fs::File::create(&path).context("make a file for what it says")?;
        let words = [&["python3", "-c", script], args].concat();
        let child = ns
            .command(&words)
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .context("start python3")?;
        Ok(Program(child, path))
    }

    /// Waits until the last line it wrote is this.
    fn says(&self, last: &str, limit: Duration) -> Result<()> {
        until(&format!("{} says {last}", self.1.display()), limit, || {
            let said = std::fs::read_to_string(&self.1).context("read what it says")?;
            ensure!(said.lines().last() == Some(last), "{said:?}");
            Ok(true)
        })
        .map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_client_that_sends_before_its_map_is_answered_after_it(lab: &Lab) -> Result<()> {
    let (a, b, (web, _), (db, _)) = pair(lab)?;
    let x = lab.host("x")?;
    let servers = [(&web, "web"), (&db, "db")]
        .iter()
        .map(|(ns, name)| Program::start(lab, ns, &format!("s-{name}"), SERVER, &["5300", name]))
        .collect::<Result<Vec<_>>>()?;
    servers
        .iter()
        .try_for_each(|server| server.says("ready", SOON))?;
    let clients = [(a.under4(), "4001"), (a.under6(), "4002")];
    let clients = clients
        .iter()
        .map(|(to, own)| {
            Program::start(lab, x.ns(), &format!("c-{own}"), CLIENT, &[to, "7000", own])
        })
        .collect::<Result<Vec<_>>>()?;
    let all = |says: &str| {
        clients
            .iter()
            .try_for_each(|client| client.says(says, SOON).context("after a change"))
    };
    all("nobody")?;
    let map = |verb: &str, target: Option<&str>| -> Result<()> {
        for any in ["0.0.0.0:7000", "[::]:7000"] {
            a.ok(&[&["map", verb, "lab", "udp", any], target.as_slice()].concat())?;
        }
        Ok(())
    };
    map("add", Some("web:5300"))?;
    all("web")?;
    // It leads elsewhere: gone and added anew, from the client's side a change.
    map("rm", None)?;
    all("nobody")?;
    map("add", Some("db:5300"))?;
    all("db")?;
    // The target leaves, and comes back with what another has taken meanwhile: another address.
    b.ok(&["detach", "db"])?;
    all("nobody")?;
    let other = lab.workload("other")?;
    b.attach(&other, "lab", "other")?;
    b.attach(&db, "lab", "db")?;
    all("db")
}

fn a_map_of_every_address_answers_at_link_local_ones(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, x, web) = (&hosts[0], lab.host("x")?, lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    let _servers = [web.serve("tcp", "::", 80)?, web.serve("udp", "::", 80)?];
    let local = |host: &Host| -> Result<String> {
        let shown = host
            .ns()
            .ip(&["-br", "-6", "addr", "show", "dev", "eth0", "scope", "link"])?;
        let address = shown
            .split_whitespace()
            .nth(2)
            .and_then(|a| a.split('/').next());
        Ok(address.context("no link-local address")?.to_owned())
    };
    let at = format!("{}%eth0", local(a)?);
    for proto in ["tcp", "udp"] {
        a.ok(&["map", "add", "lab", proto, "[::]:8080", "web:80"])?;
    }
    x.ns()
        .tcp(a.under6(), 8080, 1000)
        .context("at a global address")?;
    x.ns()
        .tcp(&at, 8080, 100_000)
        .context("tcp at the link-local one")?;
    x.ns()
        .udp(&at, 8080, 1000)
        .context("udp at the link-local one")?;
    // It comes and goes with the address.
    a.ns()
        .ip(&["addr", "add", "fe80::77/64", "dev", "eth0", "nodad"])?;
    until("a new address answers", SOON, || {
        Ok(x.ns().tcp("fe80::77%eth0", 8080, 1000).is_ok())
    })?;
    a.ns().ip(&["addr", "del", "fe80::77/64", "dev", "eth0"])?;
    a.ok(&["map", "rm", "lab", "tcp", "[::]:8080"])?;
    ensure!(
        x.ns().tcp(&at, 8080, 10).is_err(),
        "a removed map is closed"
    );
    Ok(())
}

/// Connects, and says how that failed and after how long.
const CONNECT: &str = r#"
import errno, socket, sys, time
to, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
s.settimeout(4)
start = time.time()
try:
    s.connect((to, port))
    print("connected")
except TimeoutError:
    print("silence")
except OSError as e:
    print(errno.errorcode[e.errno] if time.time() - start < 1 else "late")
"#;

pub fn connects(ns: &Netns, to: &str, port: u16) -> Result<String> {
    Ok(ns
        .ok(&["python3", "-c", CONNECT, to, &port.to_string()])?
        .trim()
        .to_owned())
}

fn a_target_of_one_family_needs_nothing_to_be_done(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, web) = (&hosts[0], lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    let want =
        "web:80 refuses connections over IPv6   (over IPv4 it works; nothing has to be done)";
    for said in [
        a.ok(&["map", "add", "lab", "tcp", "8080", "web:80"])?,
        a.ok(&["map", "ls"])?,
        a.ok(&["status"])?,
    ] {
        ensure!(said.contains(want) && !said.contains("map rm"), "{said}");
    }
    ensure!(
        a.ns().tcp("127.0.0.1", 8080, 1000).is_ok(),
        "it works over IPv4"
    );
    // Who is not there at all has an address of no family.
    let none = a.fails(
        5,
        "E-NO-TARGET",
        &["map", "add", "lab", "tcp", "8081", "nope:80"],
    )?;
    ensure!(
        none.err
            .contains("subnet lab has no workload or member nope (E-NO-TARGET)"),
        "{none}"
    );
    Ok(())
}

fn a_target_that_refuses_is_a_refused_connection_and_told(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, web) = (&hosts[0], lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    for listen in ["127.0.0.1:9000", "[::1]:9000"] {
        a.ok(&["map", "add", "lab", "tcp", listen, "web:80"])?;
    }
    for to in ["127.0.0.1", "::1"] {
        ensure!(
            connects(a.ns(), to, 9000)? == "ECONNREFUSED",
            "{to} accepts for nobody"
        );
    }
    told(
        a,
        "E-TARGET-REFUSED",
        &["map tcp-9000 of lab", "web:80 refuses connections"],
    )?;
    let maps = a.json(&["map", "ls", "lab"])?;
    ensure!(maps["maps"][0]["state"] == "refused", "{maps}");
    let servers = [
        web.serve("tcp", "0.0.0.0", 80)?,
        web.serve("tcp", "::", 80)?,
    ];
    for to in ["127.0.0.1", "::1"] {
        until("the map answers once its target does", SOON, || {
            Ok(a.ns().tcp(to, 9000, 1000).is_ok())
        })?;
    }
    not_told(a, "E-TARGET-REFUSED")?;
    drop(servers);
    // The first client finds out; no client is taken for good.
    until("it refuses again", SOON, || {
        Ok(connects(a.ns(), "127.0.0.1", 9000)? == "ECONNREFUSED")
    })?;
    told(a, "E-TARGET-REFUSED", &["web:80"]).map(drop)
}

fn a_service_that_a_map_shadows_is_named(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, web) = (&hosts[0], lab.workload("web")?);
    a.attach(&web, "lab", "web")?;
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    ensure!(
        a.byway(&["status", "--check", "healthy"])?.code == 0,
        "all is well at first"
    );
    let late = a.ns().serve("tcp", a.under4(), 8080)?;
    told(
        a,
        "E-PORT-SHADOWED",
        &[
            "map tcp-8080 of lab",
            "python3",
            &format!("{}:8080", a.under4()),
        ],
    )?;
    let list = a.ok(&["map", "ls", "lab"])?;
    ensure!(
        list.contains("! tcp-8080: nobody reaches python3"),
        "{list}"
    );
    drop(late);
    not_told(a, "E-PORT-SHADOWED")
}
