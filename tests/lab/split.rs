//! A host whose daemon has the rights of its unit and nothing more, beside its helper.

use std::cell::RefCell;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Child;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

use super::{Host, Lab, SOON, binary, until};

/// A user that this machine knows nothing of.
pub const USER: &str = "4000000";

/// What starts a program with the rights that a unit gives, read from it, so that unit and test cannot drift apart.
fn rights(unit: &str, user: Option<&str>) -> Result<Vec<String>> {
    let path = format!("{}/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path)?;
    let set = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let names = line.unwrap_or_default().split_whitespace();
        names
            .map(|name| name.to_lowercase().replace("cap_", ",+"))
            .collect::<String>()
    };
    let (bounding, ambient) = (set("CapabilityBoundingSet="), set("AmbientCapabilities="));
    ensure!(!bounding.is_empty(), "a bounding set in {unit}");
    let mut words = vec!["setpriv".to_owned(), "--no-new-privs".to_owned()];
    words.push(format!("--inh-caps=-all{ambient}"));
    words.push(format!("--ambient-caps=-all{ambient}"));
    words.push(format!("--bounding-set=-all{bounding}"));
    if let Some(user) = user {
        words.extend([format!("--reuid={user}"), format!("--regid={user}")]);
        words.push("--clear-groups".to_owned());
    }
    Ok(words)
}

/// A host whose daemon is that user's, and its helper.
pub struct Split {
    /// The host; its daemon is not started yet.
    pub host: Rc<Host>,
    /// The binary where that user may read it.
    pub program: String,
    socket: PathBuf,
    /// Sockets of engines that the helper may look at beside the usual ones.
    pub engines: Vec<String>,
    helper: RefCell<Option<Child>>,
}

impl Drop for Split {
    fn drop(&mut self) {
        let _ = self.kill_helper();
    }
}

impl Split {
    /// The host with its program and the directory of its helper's socket.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Split> {
        let host = lab.host(name)?;
        std::fs::set_permissions(lab.dir(), PermissionsExt::from_mode(0o755))?;
        let user: u32 = USER.parse()?;
        chown(host.dir(), Some(user), Some(user))?;
        // Where that user may read it.
        let program = host.dir().join("byway");
        std::fs::copy(binary(), &program).context("copy the binary")?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        // The directory of the helper's socket is root's, as in the units.
        let socket = lab.dir().join(format!("helper-{name}"));
        host.set_env("BYWAY_NODE_HELPER_SOCKET", &socket.to_string_lossy());
        Ok(Split {
            host,
            program: program.to_string_lossy().into_owned(),
            socket,
            engines: Vec::new(),
            helper: RefCell::default(),
        })
    }

    /// Starts the helper as root, with a socket that it makes itself.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_helper(&self) -> Result<()> {
        let socket = self.socket.to_string_lossy();
        let words = [
            self.program.as_str(),
            "helper",
            "--listen",
            &socket,
            "--user",
            USER,
        ];
        let engines = self.engines.iter().flat_map(|e| ["--engine", e]);
        self.spawn_helper(&words.into_iter().chain(engines).collect::<Vec<_>>())
    }

    /// Starts the helper as its unit does: with few rights, on a socket that was made for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_helper_by_its_unit(&self) -> Result<()> {
        let rights = rights("byway-helper", None)?;
        let socket = self.socket.to_string_lossy();
        let activate = ["systemd-socket-activate", "--seqpacket", "-l", &socket];
        let words = activate
            .into_iter()
            .chain(rights.iter().map(String::as_str));
        let words = words.chain([self.program.as_str(), "helper", "--user", USER]);
        let words = words.chain(self.engines.iter().flat_map(|e| ["--engine", e]));
        self.spawn_helper(&words.collect::<Vec<_>>())?;
        until("the socket is there", SOON, || Ok(self.socket.exists()))?;
        let user: u32 = USER.parse()?;
        chown(&self.socket, Some(user), None)?;
        std::fs::set_permissions(&self.socket, PermissionsExt::from_mode(0o600)).map_err(Into::into)
    }

    fn spawn_helper(&self, words: &[&str]) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.host.dir().join("helper.log"))?;
        let bus = format!("unix:path={}", self.host.dir().join("bus").display());
        let mut command = self.host.ns().command(words);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus);
        let child = command.stderr(log).spawn()?;
        *self.helper.borrow_mut() = Some(child);
        Ok(())
    }

    /// Ends the helper at once, where one runs.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn kill_helper(&self) -> Result<()> {
        if let Some(mut helper) = self.helper.borrow_mut().take() {
            helper.kill()?;
            helper.wait()?;
        }
        Ok(())
    }

    /// Starts the daemon with the rights of its unit, and waits for its first answer.
    ///
    /// # Errors
    /// It ends, or does not answer.
    pub fn start(&self) -> Result<()> {
        self.start_under(&[])?;
        self.answers()
    }

    /// The same, once that script has run, which sees mounts of its own.
    ///
    /// # Errors
    /// It ends, or does not answer.
    pub fn start_with(&self, script: &str) -> Result<()> {
        let script = format!("{script} && exec \"$@\"");
        self.start_under(&["sh", "-c", &script, "sh"])?;
        self.answers()
    }

    /// Starts the daemon with the rights of its unit below another program, and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_under(&self, before: &[&str]) -> Result<()> {
        // The device is everybody's on a machine with udev, not in every container that tests run in.
        let device =
            "mount -t tmpfs none /dev/net && mknod -m 0666 /dev/net/tun c 10 200 && exec \"$@\"";
        let shift = "shift; exec \"$0\" \"$@\"";
        let rights = rights("byway", Some(USER))?;
        let words = ["sh", "-c", device, "sh"].into_iter();
        let words = words.chain(before.iter().copied());
        let words = words.chain(rights.iter().map(String::as_str));
        let words = words.chain(["sh", "-c", shift, &self.program]);
        self.host.start_under(&words.collect::<Vec<_>>())
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// It ends, or does not answer.
    pub fn answers(&self) -> Result<()> {
        until("the daemon answers", SOON, || {
            if let Some(code) = self.host.ended()? {
                bail!("the daemon ended with {code}");
            }
            Ok(self.host.byway(&["status", "--json"])?.code == 0)
        })
        .with_context(|| self.host.log_tail(20))
        .map(drop)
    }
}
