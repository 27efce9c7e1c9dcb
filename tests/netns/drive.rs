//! Driving the malicious peer (`tests/evil`) inside a namespace, and what a victim looks like afterwards.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Host, Lab, Netns, text};

fn words_of(words: &[&str]) -> Result<Vec<String>> {
    let program = std::env::current_exe()
        .context("this program's path")?
        .to_string_lossy()
        .into_owned();
    Ok([program, "evil".to_owned()]
        .into_iter()
        .chain(words.iter().map(|w| (*w).to_owned()))
        .collect())
}

/// Makes a move to its end, a minute at most; what it was answered.
///
/// # Errors
/// It cannot be made at all.
pub fn evil(ns: &Netns, words: &[&str]) -> Result<String> {
    let line = words_of(words)?;
    let said = ns.ok(&line.iter().map(String::as_str).collect::<Vec<_>>())?;
    println!(
        "  evil {}: {}",
        words.first().unwrap_or(&""),
        said.lines().last().unwrap_or_default()
    );
    Ok(said)
}

/// A move under way; it ends when this is dropped.
pub struct Attack {
    child: Child,
    /// The line it began with.
    pub first: String,
    /// Held open: it writes what it was answered when it ends.
    _out: BufReader<ChildStdout>,
}

impl Attack {
    /// Begins a move, and returns when it has begun.
    ///
    /// # Errors
    /// It cannot be begun.
    pub fn start(ns: &Netns, words: &[&str]) -> Result<Attack> {
        let line = words_of(words)?;
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut child = ns
            .command(&line)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the malicious peer")?;
        let mut out = BufReader::new(child.stdout.take().context("its output")?);
        let mut first = String::new();
        out.read_line(&mut first)?;
        let attack = Attack {
            child,
            first,
            _out: out,
        };
        ensure!(
            attack.first.starts_with("ready"),
            "{words:?} did not start: {}",
            attack.first
        );
        Ok(attack)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where daemons listen, as the malicious peer is told.
pub fn places(hosts: &[&Host]) -> String {
    hosts
        .iter()
        .map(|h| format!("{}:4100", h.under4()))
        .collect::<Vec<_>>()
        .join(",")
}

/// A host's identity, as whoever owns the machine has it.
pub fn key(host: &Host) -> String {
    host.state().to_string_lossy().into_owned()
}

/// The ID of a host's daemon.
///
/// # Errors
/// It does not answer.
pub fn peer(host: &Host) -> Result<String> {
    text(&host.json(&["id"])?, "peer_id")
}

/// The ID of subnet `lab`.
///
/// # Errors
/// The host has no such subnet.
pub fn subnet(host: &Host) -> Result<String> {
    text(&host.status("lab")?, "id")
}

/// Lets a host in, as a member or an admin.
///
/// # Errors
/// It is not let in.
pub fn admit(by: &Host, joiner: &Host, role: &str) -> Result<()> {
    let invite = text(
        &by.json(&["invite", "create", "lab", "--role", role])?,
        "invite",
    )?;
    joiner.json(&["join", &invite]).map(drop)
}

/// An owner `a` with subnet `lab`, an admin `b`, and members of these names.
///
/// # Errors
/// One of the steps fails.
pub fn with_admin(lab: &Lab, members: &[&str]) -> Result<Vec<Rc<Host>>> {
    let mut hosts = vec![lab.node("a")?, lab.node("b")?];
    hosts[0].json(&["create", "lab"])?;
    admit(&hosts[0], &hosts[1], "admin")?;
    for name in members {
        let host = lab.node(name)?;
        admit(&hosts[0], &host, "member")?;
        hosts.push(host);
    }
    let everyone: Vec<String> = hosts.iter().map(|h| h.name().to_owned()).collect();
    for host in &hosts {
        crate::lab::until("everybody knows everybody", crate::lab::SOON, || {
            Ok(host.members("lab")? == everyone)
        })?;
        crate::lab::until("the admin is one", crate::lab::SOON, || {
            Ok(member(host, "b")?["role"] == "admin")
        })?;
    }
    Ok(hosts)
}

/// A member as a host sees it.
///
/// # Errors
/// It sees no member of that name.
pub fn member(host: &Host, name: &str) -> Result<Value> {
    let list = host.json(&["member", "ls", "lab"])?;
    let all = list["members"].as_array().context("no `members`")?;
    all.iter()
        .find(|m| m["name"] == name)
        .cloned()
        .with_context(|| format!("{} sees no {name}: {list}", host.name()))
}

/// What a subnet is at a host, without what changes by itself: members, roles, addresses, workloads, names.
///
/// # Errors
/// It does not tell.
pub fn belief(host: &Host) -> Result<Vec<String>> {
    let list = host.json(&["member", "ls", "lab"])?;
    let of = |m: &Value| {
        format!(
            "{} {} {} {} {}",
            m["name"], m["peer_id"], m["role"], m["addresses"], m["leases"]
        )
    };
    let mut all: Vec<String> = list["members"]
        .as_array()
        .context("no `members`")?
        .iter()
        .map(of)
        .collect();
    let names = host.json(&["dns", "ls", "lab"])?;
    let records = names["records"].as_array().context("no `records`")?;
    all.extend(
        records
            .iter()
            .map(|r| format!("{} {} {}", r["name"], r["type"], r["value"])),
    );
    all.sort();
    Ok(all)
}

/// Checks again and again, for as long as `lasts`, that something stays as it is.
///
/// # Errors
/// It does not.
pub fn stays(what: &str, lasts: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < lasts {
        match check() {
            Ok(true) => std::thread::sleep(Duration::from_millis(200)),
            Ok(false) => bail!("{what} ended after {:.1} s", start.elapsed().as_secs_f64()),
            Err(e) => {
                return Err(e.context(format!(
                    "{what} ended after {:.1} s",
                    start.elapsed().as_secs_f64()
                )));
            }
        }
    }
    Ok(())
}

/// Memory that a host's daemon has written, in KiB. Code that it has read is not counted.
///
/// # Errors
/// It does not run.
pub fn resident(host: &Host) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid()?))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .context("RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Bytes of a host's state directory.
///
/// # Errors
/// It cannot be read.
pub fn state_bytes(host: &Host) -> Result<u64> {
    let sizes = std::fs::read_dir(host.state())?
        .map(|e| Ok(e?.metadata()?.len()))
        .collect::<Result<Vec<u64>>>()?;
    Ok(sizes.iter().sum())
}

/// Lets the switch carry nothing between two sides.
///
/// # Errors
/// `nft` refuses the rules.
pub fn apart(lab: &Lab, one: &[&Host], other: &[&Host]) -> Result<()> {
    let set = |side: &[&Host]| {
        side.iter()
            .map(|h| format!("\"{}\"", Lab::port(h)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (one, other) = (set(one), set(other));
    lab.rules(&format!(
        "table bridge apart {{\n chain f {{\n  type filter hook forward priority 0; policy accept;\n  \
         iifname {{ {one} }} oifname {{ {other} }} drop\n  iifname {{ {other} }} oifname {{ {one} }} drop\n }}\n}}\n"
    ))
}

/// Lets the switch carry everything again.
///
/// # Errors
/// Nobody was apart.
pub fn together(lab: &Lab) -> Result<()> {
    lab.switch()
        .ok(&["nft", "delete", "table", "bridge", "apart"])
        .map(drop)
}

/// Gives a host so many addresses of one /64; they are named with commas between.
///
/// # Errors
/// The kernel refuses one.
pub fn many(host: &Host, count: u32) -> Result<String> {
    let all: Vec<String> = (1..=count).map(|n| format!("fd99::bad:{n:x}")).collect();
    for address in &all {
        host.ns().ip(&[
            "addr",
            "add",
            &format!("{address}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
    }
    host.rebase()?;
    Ok(all.join(","))
}
