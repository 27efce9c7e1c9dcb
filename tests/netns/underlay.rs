//! What the tests of the fast path share: which carrier is in use, programs in a namespace, captures, TCP under change.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::netns::wait_end;
use crate::lab::{Host, Lab, Netns, SOON, text, until};
use crate::tool::{frame, pcap};

/// The port of the underlay.
pub const PORT: u16 = 4100;
/// How soon a datagram path is there where there can be one.
pub const FIVE: Duration = Duration::from_secs(5);

/// How `of` reaches the member `to` of `lab`, as `status` says.
///
/// # Errors
/// There is no such member.
pub fn path(of: &Host, to: &str) -> Result<Value> {
    let status = of.status("lab")?;
    let peers = status["peers"].as_array().context("no `peers`")?;
    let peer = peers
        .iter()
        .find(|p| p["name"] == to)
        .with_context(|| format!("no peer {to} in {status}"))?;
    Ok(peer["path"].clone())
}

/// Waits until `of` reaches `to` by this carrier.
///
/// # Errors
/// It does not in time.
pub fn carried(of: &Host, to: &str, carrier: &str, limit: Duration) -> Result<Duration> {
    until(
        &format!("{} reaches {to} by {carrier}", of.name()),
        limit,
        || {
            let path = path(of, to)?;
            ensure!(
                path["kind"] == "direct" && path["carrier"] == carrier,
                "{path}"
            );
            Ok(true)
        },
    )
}

/// Waits until both reach each other by datagrams.
///
/// # Errors
/// They do not in time.
pub fn datagrams(a: &Host, b: &Host, limit: Duration) -> Result<()> {
    carried(a, b.name(), "datagram", limit)?;
    carried(b, a.name(), "datagram", limit).map(drop)
}

/// Two hosts `a` and `b` in `lab` with datagrams both ways; `a` founded it.
///
/// # Errors
/// They get no such path.
pub fn pair(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>)> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = hosts.as_slice() else {
        bail!("two hosts")
    };
    datagrams(a, b, FIVE)?;
    Ok((Rc::clone(a), Rc::clone(b)))
}

/// A host whose cable has IPv4 only: what is captured and made by hand here is IPv4.
///
/// # Errors
/// The kernel refuses one of the parts.
pub fn plain_host(lab: &Lab, name: &str) -> Result<Rc<Host>> {
    let host = lab.host(name)?;
    host.ns()
        .ok(&["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])?;
    host.rebase()?;
    Ok(host)
}

/// As [`pair`], over IPv4 only.
///
/// # Errors
/// They get no such path.
pub fn pair4(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>)> {
    let (a, b) = (plain_host(lab, "a")?, plain_host(lab, "b")?);
    a.start()?;
    b.start()?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    datagrams(&a, &b, FIVE)?;
    Ok((a, b))
}

/// Packets of at most the MTU on a host's cable: one verdict of a rule is one datagram.
///
/// # Errors
/// The kernel refuses.
pub fn plain_cable(lab: &Lab, host: &Host) -> Result<()> {
    let off = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
    host.ns()
        .ok(&[&["ethtool", "-K", "eth0"][..], &off].concat())?;
    lab.switch()
        .ok(&[&["ethtool", "-K", &Lab::port(host)][..], &off].concat())
        .map(drop)
}

/// Lengthens a host's cable: each packet takes so many microseconds more, both ways, until the tool ends.
///
/// # Errors
/// The kernel refuses one of the parts.
pub fn lengthen(lab: &Lab, host: &Host, delay: u32) -> Result<Tool> {
    // The relay carries single packets with whole checksums.
    plain_cable(lab, host)?;
    host.ns().ok(&["ethtool", "-K", "eth0", "tx", "off"])?;
    let switch = lab.switch();
    switch.ip(&[
        "link", "add", "far0", "type", "veth", "peer", "name", "far1",
    ])?;
    switch.ok(&[
        "ethtool",
        "-K",
        "far0",
        "tx",
        "off",
        "tso",
        "off",
        "gso",
        "off",
        "tx-udp-segmentation",
        "off",
    ])?;
    for words in [
        ["far0", "master", "sw"].as_slice(),
        &["far0", "up"],
        &["far1", "up"],
        &[&Lab::port(host), "nomaster"],
    ] {
        switch.ip(&[&["link", "set"], words].concat())?;
    }
    Tool::start(
        switch,
        &["relay", &Lab::port(host), "far1", &format!("delay={delay}")],
        true,
    )
}

/// Rules at the switch for what hosts send: `rules` are lines of one chain at the ingress of these hosts' ports.
///
/// # Errors
/// `nft` refuses them.
pub fn ingress(lab: &Lab, table: &str, hosts: &[&Host], rules: &[&str]) -> Result<()> {
    let chain = |host: &&Host| {
        let port = Lab::port(host);
        let lines: String = rules.iter().map(|r| format!("    {r}\n")).collect();
        format!(
            "  chain c_{} {{\n    type filter hook ingress device \"{port}\" priority 0; policy accept;\n{lines}  }}\n",
            host.name()
        )
    };
    let chains: String = hosts.iter().map(chain).collect();
    lab.rules(&format!("table netdev {table} {{\n{chains}}}\n"))
}

/// Removes the rules of that name.
///
/// # Errors
/// There are none.
pub fn heal(lab: &Lab, table: &str) -> Result<()> {
    lab.rules(&format!("delete table netdev {table}\n"))
}

/// No UDP leaves these hosts any more.
///
/// # Errors
/// `nft` refuses it.
pub fn block_udp(lab: &Lab, hosts: &[&Host]) -> Result<()> {
    ingress(lab, "noudp", hosts, &["meta l4proto udp drop"])
}

/// Packets the `counter`s of a table have seen.
///
/// # Errors
/// There is no such table.
pub fn counted(lab: &Lab, table: &str) -> Result<u64> {
    let text = lab
        .switch()
        .ok(&["nft", "list", "table", "netdev", table])?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let counts = words.windows(3).filter_map(|w| match w {
        ["counter", "packets", n] => n.parse::<u64>().ok(),
        _ => None,
    });
    Ok(counts.sum())
}

/// Frames of `lab` refused so far: opened by no key of their session, or seen before.
///
/// # Errors
/// There is no such counter.
pub fn refused(of: &Host) -> Result<(u64, u64)> {
    Ok((of.drops("lab", "bad-frame")?, of.drops("lab", "replayed")?))
}

/// Datagrams of no session that came so far: the sum of the metrics that speak of them.
///
/// # Errors
/// There is no such metric.
pub fn strays(of: &Host) -> Result<u64> {
    let text = of.ok(&["metrics"])?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with('#') && ["stray", "unknown"].iter().any(|w| l.contains(w)))
        .collect();
    ensure!(
        !lines.is_empty(),
        "no metric of {} counts frames without a session:\n{text}",
        of.name()
    );
    let value = |line: &&str| {
        line.rsplit_once(' ')
            .and_then(|(_, v)| v.parse::<f64>().ok())
            .unwrap_or_default() as u64
    };
    Ok(lines.iter().map(value).sum())
}

/// Echo requests the kernel of a namespace has had so far.
///
/// # Errors
/// It does not tell.
pub fn echoes(ns: &Netns) -> Result<u64> {
    let text = ns.ok(&["cat", "/proc/self/net/snmp"])?;
    let mut icmp = text.lines().filter_map(|l| l.strip_prefix("Icmp: "));
    let (names, values) = (
        icmp.next().unwrap_or_default(),
        icmp.next().unwrap_or_default(),
    );
    let found = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(n, _)| *n == "InEchos");
    found
        .and_then(|(_, v)| v.parse().ok())
        .context("no InEchos")
}

/// One of our tools at work; ended when dropped.
pub struct Tool {
    child: Child,
    out: BufReader<ChildStdout>,
}

fn tool_words(words: &[&str]) -> Result<Vec<String>> {
    let program = std::env::current_exe()
        .context("this program's path")?
        .to_string_lossy()
        .into_owned();
    Ok([program, "tool".to_owned()]
        .into_iter()
        .chain(words.iter().map(|w| (*w).to_owned()))
        .collect())
}

/// Runs a tool to its end, a minute at most; what it said.
///
/// # Errors
/// It fails.
pub fn tool(ns: &Netns, words: &[&str]) -> Result<String> {
    let words = tool_words(words)?;
    ns.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

impl Tool {
    /// Starts a tool; with `ready`, it is at work when this returns.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(ns: &Netns, words: &[&str], ready: bool) -> Result<Tool> {
        let line = tool_words(words)?;
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut child = ns
            .command(&line)
            .stdout(Stdio::piped())
            .spawn()
            .context("start a tool")?;
        let mut out = BufReader::new(child.stdout.take().context("its output")?);
        let mut first = String::new();
        if ready {
            out.read_line(&mut first)?;
        }
        let tool = Tool { child, out };
        ensure!(!ready || first.trim() == "ready", "{words:?} did not start");
        Ok(tool)
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Ends it in order; what it said.
    ///
    /// # Errors
    /// It failed.
    pub fn stop(mut self) -> Result<String> {
        if self.child.try_wait()?.is_none() {
            kill(
                Pid::from_raw(i32::try_from(self.child.id())?),
                Signal::SIGTERM,
            )
            .context("stop a tool")?;
        }
        let code = wait_end(&mut self.child)?;
        let mut said = String::new();
        self.out.read_to_string(&mut said)?;
        ensure!(code == 0, "a tool ended with {code}: {said}");
        Ok(said)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A capture at one interface of a namespace.
pub struct Capture {
    tool: Tool,
    file: PathBuf,
}

impl Capture {
    /// Begins it; the file is `NAME.pcap` in the lab's directory.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &Lab, ns: &Netns, interface: &str, name: &str) -> Result<Capture> {
        let file = lab.dir().join(format!("{name}.pcap"));
        let tool = Tool::start(ns, &["capture", interface, &file.to_string_lossy()], true)?;
        Ok(Capture { tool, file })
    }

    /// What it has so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn so_far(&self) -> Result<Vec<Vec<u8>>> {
        pcap::read(&self.file)
    }

    /// Ends it; every frame.
    ///
    /// # Errors
    /// It failed.
    pub fn stop(self) -> Result<(PathBuf, Vec<Vec<u8>>)> {
        self.tool.stop()?;
        let frames = pcap::read(&self.file)?;
        Ok((self.file, frames))
    }
}

/// Our underlay's address of a host.
///
/// # Errors
/// It is none.
pub fn underlay(host: &Host) -> Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(host.under4().parse()?, PORT))
}

/// The newest sealed datagram that went between these hosts, in `frames`.
pub fn newest(frames: &[Vec<u8>], from: SocketAddrV4, to: SocketAddrV4) -> Option<frame::Sealed> {
    let sealed = |f: &Vec<u8>| {
        let udp = frame::udp(f).filter(|u| u.from == from && u.to == to)?;
        frame::sealed(udp.payload)
    };
    frames.iter().rev().find_map(sealed)
}

/// The receiver index that frames between these hosts bear now.
///
/// # Errors
/// None goes there.
pub fn index(lab: &Lab, from: &Host, to: &Host) -> Result<u32> {
    let capture = Capture::start(lab, lab.switch(), &Lab::port(from), "index")?;
    let (source, target) = (underlay(from)?, underlay(to)?);
    let inside = to.overlay("lab")?.0;
    let mut found = None;
    until("a sealed datagram passes", FIVE, || {
        from.ns().pings(&inside);
        found = newest(&capture.so_far()?, source, target);
        Ok(found.is_some())
    })?;
    capture.stop()?;
    Ok(found.context("a sealed datagram")?.receiver)
}

/// The receiver index between these hosts once it stays: of two that ask each other at the same time one may want another
/// session, two seconds after the first.
///
/// # Errors
/// It does not stay.
pub fn settled(lab: &Lab, from: &Host, to: &Host) -> Result<u32> {
    let mut last = index(lab, from, to)?;
    until("the session stays", SOON, || {
        std::thread::sleep(Duration::from_secs(3));
        let before = std::mem::replace(&mut last, index(lab, from, to)?);
        Ok(before == last)
    })?;
    Ok(last)
}

/// The Ethernet address of a host's cable.
///
/// # Errors
/// The kernel does not tell.
pub fn mac(host: &Host) -> Result<String> {
    let list: Value = serde_json::from_str(&host.ns().ip(&["-j", "link", "show", "dev", "eth0"])?)?;
    Ok(list[0]["address"]
        .as_str()
        .context("an address")?
        .to_owned())
}

/// A TCP transfer by `iperf3`, measured every half second where it arrives.
pub struct Transfer {
    server: Child,
    client: Option<Child>,
}

/// How a transfer went.
pub struct Flow {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes in each half second.
    pub steps: Vec<u64>,
}

impl Flow {
    /// The longest time in which nothing arrived.
    pub fn stall(&self) -> Duration {
        let mut longest = 0;
        let mut run = 0;
        for step in &self.steps {
            run = if *step == 0 { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        Duration::from_millis(500) * longest
    }
}

impl Transfer {
    /// From `from` to `to` for some seconds; at most `limit` (as `20M`) each second.
    ///
    /// # Errors
    /// `iperf3` does not start.
    pub fn start(from: &Host, to: &Host, seconds: u32, limit: &str) -> Result<Transfer> {
        from.ok(&["subnet", "host", "lab", "tcp/5201"])?;
        let address = from.overlay("lab")?.0;
        let server = from
            .ns()
            .command(&["iperf3", "-s", "-1", "-B", &address])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start iperf3")?;
        let mut transfer = Transfer {
            server,
            client: None,
        };
        until("iperf3 listens", FIVE, || {
            Ok(from
                .ns()
                .ok(&["ss", "-Hltn", "sport = 5201"])?
                .contains(&address))
        })?;
        // The far side asks and receives: what it counts has arrived.
        let time = seconds.to_string();
        let client = to
            .ns()
            .command(&[
                "iperf3", "-c", &address, "-R", "-J", "-i", "0.5", "-t", &time, "-b", limit,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start iperf3")?;
        transfer.client = Some(client);
        Ok(transfer)
    }

    /// Waits for its end; it must not have been broken.
    ///
    /// # Errors
    /// It was.
    pub fn wait(mut self, seconds: u64) -> Result<Flow> {
        let mut client = self.client.take().context("a client")?;
        let done = until("iperf3 ends", Duration::from_secs(seconds), || {
            Ok(client.try_wait()?.is_some())
        });
        if let Err(error) = done {
            let _ = client.kill();
            let _ = client.wait();
            return Err(error);
        }
        let output = client.wait_with_output()?;
        let said: Value = serde_json::from_slice(&output.stdout).context("what iperf3 said")?;
        ensure!(
            said["error"].is_null() && output.status.success(),
            "the transfer broke: {}",
            said["error"]
        );
        let intervals = said["intervals"].as_array().context("no `intervals`")?;
        let steps = intervals
            .iter()
            .filter_map(|i| i["sum"]["bytes"].as_u64())
            .collect();
        Ok(Flow {
            bytes: said["end"]["sum_received"]["bytes"]
                .as_u64()
                .context("no bytes")?,
            steps,
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for child in self
            .client
            .iter_mut()
            .chain(std::iter::once(&mut self.server))
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
