//! Hosts as network namespaces: the laboratory of the tests that run the real binary on a real kernel.
//!
//! A [`Lab`] is one switch (a bridge in a namespace of its own) with hosts on it: each a namespace with `lo`, one veth
//! `eth0`, an address of both families and no default route. A daemon is started by `ip netns exec NS byway daemon …`,
//! which replaces itself by the program, so that a signal reaches the daemon itself. Everything made here bears the
//! name `bwt-PID-N-…` and goes when the lab is dropped, after a failure too. [`internet`] is the other topology: hosts that
//! reach each other through NATs ([`nat`]) only.
//!
//! Nothing here waits blindly: [`until`] asks again and again up to a deadline.

pub mod cni;
pub mod crowd;
pub mod home;
pub mod host;
pub mod internet;
pub mod nat;
pub mod netns;
pub mod runner;
pub mod snapshot;
pub mod split;

use std::cell::RefCell;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use host::Host;
pub use netns::Netns;

/// How long an ordinary condition may take before the test fails.
pub const SOON: Duration = Duration::from_secs(10);

/// How long what works already may take to show it: one answer may be late where the processors are busy.
pub const NOW: Duration = Duration::from_secs(2);

/// Asks `check` every 20 ms until it says yes. An error of the check counts as "not yet" and is shown at the deadline.
///
/// # Errors
/// `what` has not become true in time.
pub fn until(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let last = check();
        if matches!(last, Ok(true)) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            let why = last.err().map(|e| format!(": {e:#}")).unwrap_or_default();
            bail!(
                "waited {:.1} s in vain until {what}{why}",
                start.elapsed().as_secs_f64()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program of this machine and returns its standard output.
///
/// # Errors
/// It cannot be started or ends with another code than 0; its standard error is in the message.
pub fn sh(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("start {program}"))?;
    ensure!(
        out.status.success(),
        "{program} {}: {} {}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The addresses in a field `addresses` of an answer.
///
/// # Errors
/// There is no such field, or it holds no addresses.
pub fn addresses(answer: &Value) -> Result<Vec<IpAddr>> {
    let list = answer["addresses"]
        .as_array()
        .with_context(|| format!("no `addresses` in {answer}"))?;
    list.iter()
        .map(|a| {
            let text = a.as_str().with_context(|| format!("no address: {a}"))?;
            text.parse()
                .with_context(|| format!("no address without a prefix length: {text}"))
        })
        .collect()
}

/// The first IPv4 address in a field `addresses`.
///
/// # Errors
/// There is none.
pub fn v4(answer: &Value) -> Result<String> {
    let first = addresses(answer)?.into_iter().find(IpAddr::is_ipv4);
    first
        .map(|a| a.to_string())
        .with_context(|| format!("no IPv4 address in {answer}"))
}

/// The first IPv6 address in a field `addresses`.
///
/// # Errors
/// There is none.
pub fn v6(answer: &Value) -> Result<String> {
    let first = addresses(answer)?.into_iter().find(IpAddr::is_ipv6);
    first
        .map(|a| a.to_string())
        .with_context(|| format!("no IPv6 address in {answer}"))
}

/// A string field.
///
/// # Errors
/// There is none of that name.
pub fn text(answer: &Value, field: &str) -> Result<String> {
    Ok(answer[field]
        .as_str()
        .with_context(|| format!("no text `{field}` in {answer}"))?
        .to_owned())
}

/// The binary under test: `BYWAY_BIN`, or the one cargo built for this run.
pub fn binary() -> PathBuf {
    std::env::var_os("BYWAY_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_byway")), PathBuf::from)
}

/// One switch with hosts on it.
pub struct Lab {
    prefix: String,
    dir: tempfile::TempDir,
    switch: Netns,
    hosts: RefCell<Vec<Rc<Host>>>,
    /// What stands between hosts: neither is it looked at afterwards, nor does a daemon run there.
    grounds: RefCell<Vec<Netns>>,
    sites: RefCell<Vec<Rc<internet::Site>>>,
    spaces: RefCell<Vec<(Netns, snapshot::Snapshot)>>,
    main: snapshot::Snapshot,
    next: RefCell<u8>,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A switch without hosts.
    ///
    /// # Errors
    /// The kernel refuses a namespace or a bridge.
    pub fn new() -> Result<Lab> {
        let prefix = format!(
            "bwt-{}-{}",
            std::process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let main = snapshot::of_machine()?;
        let dir = tempfile::Builder::new()
            .prefix("bwt-")
            .tempdir()
            .context("make a directory for the lab")?;
        let switch = Netns::make(&format!("{prefix}-sw"))?;
        // Multicast goes to every port at once, as on a plain switch: mDNS must not wait for a snooping querier.
        switch.ip(&[
            "link",
            "add",
            "sw",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
            "forward_delay",
            "0",
        ])?;
        switch.ip(&["link", "set", "sw", "up"])?;
        Ok(Lab {
            prefix,
            dir,
            switch,
            hosts: RefCell::default(),
            grounds: RefCell::default(),
            sites: RefCell::default(),
            spaces: RefCell::default(),
            main,
            next: RefCell::new(1),
        })
    }

    /// The lab's own directory; it goes with the lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A host of that name on the switch; its daemon is not started yet.
    ///
    /// # Errors
    /// The kernel refuses one of the parts.
    pub fn host(&self, name: &str) -> Result<Rc<Host>> {
        let number = self.next.replace_with(|n| n.saturating_add(1));
        let ns = Netns::make(&format!("{}-{name}", self.prefix))?;
        let port = format!("p-{name}");
        self.switch.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            ns.name(),
        ])?;
        self.switch
            .ip(&["link", "set", &port, "master", "sw", "up"])?;
        let (under4, under6) = (format!("10.99.0.{number}"), format!("fd99::{number:x}"));
        ns.ip(&["addr", "add", &format!("{under4}/24"), "dev", "eth0"])?;
        ns.ip(&[
            "addr",
            "add",
            &format!("{under6}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
        ns.ip(&["link", "set", "eth0", "up"])?;
        self.settle(name, ns, under4, under6)
    }

    /// A namespace with a cable `eth0` becomes a host of the lab.
    fn settle(&self, name: &str, ns: Netns, under4: String, under6: String) -> Result<Rc<Host>> {
        until(
            "eth0 has a carrier and its link-local address",
            SOON,
            || {
                Ok(ns
                    .ip(&["-o", "-6", "addr", "show", "dev", "eth0", "scope", "link"])?
                    .contains("fe80"))
            },
        )?;
        let host = Rc::new(Host::new(name, ns, self.dir(), under4, under6)?);
        self.hosts.borrow_mut().push(Rc::clone(&host));
        Ok(host)
    }

    /// A host with a running daemon.
    ///
    /// # Errors
    /// As [`Lab::host`], or the daemon does not answer in time.
    pub fn node(&self, name: &str) -> Result<Rc<Host>> {
        let host = self.host(name)?;
        host.start()?;
        Ok(host)
    }

    /// Hosts of these names in one subnet `lab`: the first founds it, the others join by invite.
    ///
    /// # Errors
    /// One of the steps fails.
    pub fn subnet(&self, names: &[&str]) -> Result<Vec<Rc<Host>>> {
        let hosts = names
            .iter()
            .map(|n| self.node(n))
            .collect::<Result<Vec<_>>>()?;
        let Some((first, others)) = hosts.split_first() else {
            bail!("a subnet has at least one host")
        };
        first.json(&["create", "lab"])?;
        if !others.is_empty() {
            let uses = others.len().to_string();
            let invite = text(
                &first.json(&["invite", "create", "lab", "--uses", &uses])?,
                "invite",
            )?;
            for host in others {
                host.json(&["join", &invite])?;
            }
        }
        Ok(hosts)
    }

    /// An empty namespace with `lo` up, to be attached as a workload.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn workload(&self, name: &str) -> Result<Netns> {
        let ns = Netns::make(&format!("{}-w-{name}", self.prefix))?;
        let before = snapshot::of(&ns)?;
        self.spaces.borrow_mut().push((ns.clone(), before));
        Ok(ns)
    }

    /// The namespace of the switch: each host's cable ends there, at [`Lab::port`].
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// The switch's end of a host's cable: what the host sends comes in here, and goes out here to the host.
    pub fn port(host: &Host) -> String {
        format!("p-{}", host.name())
    }

    /// Loads rules in the switch's namespace; they go with the lab.
    ///
    /// # Errors
    /// `nft` refuses them.
    pub fn rules(&self, text: &str) -> Result<()> {
        let file = self.dir().join("rules.nft");
        std::fs::write(&file, text).context("write rules")?;
        self.switch
            .ok(&["nft", "-f", &file.to_string_lossy()])
            .map(drop)
    }

    /// Cuts a host off the switch; its own link stays up without a carrier.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn unplug(&self, host: &Host) -> Result<()> {
        self.switch
            .ip(&["link", "set", &format!("p-{}", host.name()), "down"])
            .map(drop)
    }

    /// Puts a host back on the switch.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn plug(&self, host: &Host) -> Result<()> {
        self.switch
            .ip(&["link", "set", &format!("p-{}", host.name()), "up"])
            .map(drop)
    }

    /// Stops every daemon in order and checks that nothing differs from before: links, addresses, routes, rules,
    /// neighbours, ruleset, sysctls, resolver files, processes.
    ///
    /// # Errors
    /// The first thing that was left, with the daemon it was left by.
    pub fn finish(&self) -> Result<()> {
        for host in self.hosts.borrow().iter() {
            if host.is_running() {
                host.terminate()?;
            }
            host.assert_clean()?;
        }
        for (ns, before) in self.spaces.borrow().iter().filter(|(ns, _)| ns.exists()) {
            before.assert_same(&snapshot::of(ns)?, ns.name())?;
        }
        self.assert_no_resolver_left()?;
        let left = self.processes();
        ensure!(left.is_empty(), "processes were left: {left:?}");
        self.main
            .assert_same(&snapshot::of_machine()?, "the machine's own namespace")
    }

    /// What the daemons wrote, for a failed test.
    pub fn logs(&self) -> String {
        self.hosts.borrow().iter().map(|h| h.log_tail(60)).collect()
    }

    fn assert_no_resolver_left(&self) -> Result<()> {
        let Ok(dir) = std::fs::read_dir("/etc/netns") else {
            return Ok(());
        };
        for entry in dir.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(
                !name.starts_with(&format!("{}-", self.prefix)),
                "/etc/netns/{name} was left"
            );
        }
        Ok(())
    }

    /// Processes whose command line names this lab's directory.
    fn processes(&self) -> Vec<String> {
        let mine = self.dir().to_string_lossy().into_owned();
        let Ok(proc) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        proc.flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_string_lossy().parse::<u32>().ok()?;
                let words = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&words).replace('\0', " ");
                line.contains(&mine).then(|| format!("{pid} {line}"))
            })
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in self.hosts.borrow().iter() {
            host.end();
            host.ns().delete();
        }
        for (ns, _) in self.spaces.borrow().iter() {
            ns.delete();
        }
        // A namespace lives as long as a device of it is open.
        self.sites.borrow_mut().clear();
        for ns in self.grounds.borrow().iter() {
            ns.delete();
        }
        self.switch.delete();
    }
}
