//! A machine of the lab on which a real systemd runs.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Host, Lab, until};
use crate::nspawn::{BOOTED, Container, Root};
use crate::resolvers::unpacked;

/// A host of the lab whose first process is systemd. Its `/usr` is this machine's, with what is installed there on top.
pub struct Machine {
    pub host: Rc<Host>,
    root: Root,
    /// `None` while it is switched off.
    running: Option<Container>,
}

impl Machine {
    /// A machine that is not switched on yet.
    ///
    /// # Errors
    /// systemd or systemd-nspawn is missing, or a file cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Machine> {
        unpacked("systemd-container", "usr/bin/systemd-nspawn")?;
        if !Path::new("/usr/lib/systemd/systemd").exists() {
            let why = "systemd is not installed here".to_owned();
            return Err(crate::lab::runner::Skip(why).into());
        }
        let host = lab.host(name)?;
        let root = Root::make(lab.dir().join(format!("machine-{name}")))?;
        for dir in ["upper", "src"] {
            std::fs::create_dir_all(root.path(dir))?;
        }
        // As udev makes it: for everybody.
        let device = root.path("tun").to_string_lossy().into_owned();
        crate::lab::sh("mknod", &["-m", "666", &device, "c", "10", "200"])?;
        std::fs::write(root.path("etc/hostname"), format!("{name}\n"))?;
        // Files below /usr are some users' of this machine, by number.
        for file in ["passwd", "group"] {
            std::fs::copy(Path::new("/etc").join(file), root.path("etc").join(file))?;
        }
        let machine = Machine {
            host,
            root,
            running: None,
        };
        Ok(machine)
    }

    /// Adds what a package has below `/usr` and `/lib`, as an installation of it would.
    ///
    /// # Errors
    /// The package is not unpacked here.
    pub fn add(&self, package: &str) -> Result<()> {
        for (from, to) in [("usr/.", "."), ("lib/.", "lib")] {
            let Ok(from) = unpacked(package, from) else {
                continue;
            };
            let to = self.path("upper").join(to);
            std::fs::create_dir_all(&to)?;
            let words = ["-a", &from.to_string_lossy(), &to.to_string_lossy()];
            crate::lab::sh("cp", &words)?;
        }
        unpacked(package, ".").map(drop)
    }

    /// A file of its own as this machine sees it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path(below)
    }

    /// Switches it on, and waits until systemd has started everything.
    ///
    /// # Errors
    /// systemd-nspawn ends, or systemd is not ready in time.
    pub fn boot(&mut self) -> Result<Duration> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let words = [
            format!("--overlay=/usr:{}:/usr", text(self.path("upper"))),
            format!(
                "--network-namespace-path=/run/netns/{}",
                self.host.ns().name()
            ),
            format!("--bind={}:/dev/net/tun", text(self.path("tun"))),
            format!("--bind-ro={}:/src", env!("CARGO_MANIFEST_DIR")),
            format!("--bind-ro={}:/program", text(crate::lab::binary())),
            format!("--machine={}", self.host.ns().name()),
            format!("--hostname={}", self.host.name()),
            "--capability=all".to_owned(),
            "--boot".to_owned(),
            "systemd.unit=multi-user.target".to_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let container = Container::start(&self.host, &self.root, &words)?;
        let booted = until("systemd has started everything", BOOTED, || {
            let said = container.run(&["systemctl", "is-system-running"])?.out;
            // A unit that fails is named by the rows that care.
            ensure!(["running", "degraded"].contains(&said.trim()), "{said}");
            Ok(true)
        })?;
        self.running = Some(container);
        Ok(booted)
    }

    /// Takes its power away: every process of it ends at once, its files stay.
    ///
    /// # Errors
    /// What its kernel would have forgotten cannot be taken away.
    pub fn cut(&mut self) -> Result<()> {
        self.running = None;
        // Its network namespace is the lab's and stays; a machine without power has no links but its cable.
        let ns = self.host.ns();
        for line in ns.ip(&["-o", "link"])?.lines() {
            let name = line.split([':', '@']).nth(1).unwrap_or_default().trim();
            if name.starts_with("bw") {
                ns.ip(&["link", "del", name])?;
            }
        }
        for family in ["-4", "-6"] {
            for line in ns.ip(&[family, "rule"])?.lines() {
                let pref = line.split(':').next().unwrap_or_default();
                if !["0", "32766", "32767"].contains(&pref) {
                    ns.ip(&[family, "rule", "del", "pref", pref])?;
                }
            }
        }
        ns.ok(&["nft", "flush", "ruleset"]).map(drop)
    }

    /// What runs on it.
    ///
    /// # Errors
    /// It is switched off.
    pub fn inside(&self) -> Result<&Container> {
        self.running.as_ref().context("the machine is off")
    }
}
