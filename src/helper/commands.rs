//! Runs a command in a container to ask whether it is well, by the means of the container's engine.
//!
//! The engine gives the command the container's user, capabilities, control group and filters, as `docker exec` does; the
//! host's root has no part in it. But who may have an engine run anything anywhere is root. So a command is run only
//!
//! - where the container's own label `byway.health` asks for that very command: then who started the container asks; or
//! - where the container was attached (its namespace has a link with our mark) and is not as good as root, as far as its
//!   engine tells: not privileged, in no namespace of the host's, without capabilities, devices and options that lead out of
//!   it and without a directory of the host's that does.
//!
//! A daemon that somebody has taken over can attach any container, and so run in it what its user may. The second rule
//! keeps him out of those that are the host's root in all but name; a volume that leads out is not known here.
//!
//! No engine can end a command that it began. One that is not done in time goes on, and the same is not begun a second time
//! meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::http::{self, End, MAX_ANSWER};
use super::wire::Error;
use super::{links, namespaces};
use crate::model::health::{Check, Probe, is_command};
use crate::model::label::HEALTH;

/// The longest that the engine may take for anything but the command itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions whether a command has ended that says nothing more.
const PAUSE: Duration = Duration::from_millis(50);
/// The most that is read of what a command says, in bytes.
const MAX_SAID: usize = 256 * 1024;
/// The longest line that is passed on, in bytes.
const MAX_LINE: usize = 200;
/// The longest that a command may be given, in milliseconds.
const MAX_LIMIT: u32 = 10_000;
/// The most commands of a container that are looked at.
const MAX_LOOKED: usize = 32;
/// The most commands that are waited for at the same time.
const MAX_RUNNING: usize = 24;
/// Commands that are waited for.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// One of [`RUNNING`].
struct Running;

impl Running {
    fn new() -> Option<Running> {
        let one_more = |n: usize| (n < MAX_RUNNING).then(|| n + 1);
        RUNNING
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()
            .map(|_| Running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A command in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Socket of the engine.
    pub engine: PathBuf,
    /// The engine's ID of the container, 64 hex digits.
    pub container: String,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// What is known of the command that was run in the container before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Former {
    /// Nothing: the container is looked at for one that still runs.
    Unknown,
    /// It has ended, so another one may begin.
    Ended,
    /// It had not ended; the engine's ID of it.
    Runs(String),
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ran {
    /// It ended within its time.
    Ended {
        /// Its exit code; 126 where the engine never began it.
        code: i64,
        /// The last line that it said, printable, at most 200 bytes.
        said: String,
    },
    /// It did not end in time, or said more than is read, and goes on.
    GoesOn {
        /// The engine's ID of it.
        id: String,
        /// Whether it said too much.
        talks: bool,
    },
    /// One of before goes on, so none was begun.
    Before {
        /// The engine's ID of the former one.
        id: String,
    },
}

/// `GET /containers/ID/json`, as far as it is read.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    state: State,
    image: String,
    config: Config,
    host_config: HostConfig,
    mounts: Option<Vec<Mount>>,
    #[serde(rename = "ExecIDs")]
    commands: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    pid: u32,
    running: bool,
    paused: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    labels: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    privileged: bool,
    network_mode: String,
    pid_mode: String,
    ipc_mode: String,
    userns_mode: String,
    cap_add: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    devices: Option<Vec<IgnoredAny>>,
    device_requests: Option<Vec<IgnoredAny>>,
    device_cgroup_rules: Option<Vec<IgnoredAny>>,
}

/// `GET /images/ID/json`, as far as it is read.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Image {
    config: Option<Config>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    #[serde(rename = "Type")]
    kind: String,
    source: String,
}

/// `GET /exec/ID/json`, as far as it is read.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Exec {
    running: bool,
    exit_code: Option<i64>,
    process_config: Process,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Process {
    entrypoint: String,
    arguments: Option<Vec<String>>,
}

/// The answer to a command that was made.
#[derive(Deserialize)]
struct Made {
    #[serde(rename = "Id")]
    id: String,
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Asks an engine on behalf of one command.
struct Engine<'a> {
    command: &'a Command,
}

impl Engine<'_> {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        let at = self.command.engine.display();
        // What an engine says stands in it.
        let what = last_line(what.to_string().as_bytes());
        Error::Engine(format!("the container engine at {at}: {what}"))
    }

    fn ask(&self, line: &str, body: Option<&str>, until: Instant) -> Result<(u16, Vec<u8>), Error> {
        let whole = || {
            let answer = http::ask(&self.command.engine, line, body, until)?;
            let status = answer.status;
            match answer.body(MAX_ANSWER, until)? {
                (body, End::Whole) => Ok((status, body)),
                (_, End::Long) => Err(io::ErrorKind::InvalidData.into()),
                (_, End::Late) => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        whole().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => Error::NotAllowed(error.to_string()),
            _ => self.error(error),
        })
    }

    fn read<T: for<'de> Deserialize<'de>>(
        &self,
        (status, body): (u16, Vec<u8>),
    ) -> Result<T, Error> {
        if !(200..300).contains(&status) {
            return Err(self.error(format!("{status} {}", last_line(&body))));
        }
        serde_json::from_slice(&body).map_err(|error| self.error(error))
    }

    fn container(&self, until: Instant) -> Result<Container, Error> {
        let line = format!("GET /containers/{}/json", self.command.container);
        let found: Container = self.read(self.ask(&line, None, until)?)?;
        match found.state.running && !found.state.paused && found.state.pid != 0 {
            true => Ok(found),
            false => Err(self.error("the container does not run")),
        }
    }

    /// The check that whoever started the container asks for by its label. One that its image brings along is nobody's word
    /// here.
    fn label(&self, container: &Container, until: Instant) -> Result<Option<String>, Error> {
        let labels = container.config.labels.as_ref();
        let Some(label) = labels.and_then(|labels| labels.get(HEALTH)) else {
            return Ok(None);
        };
        let image = &container.image;
        let hash = image.strip_prefix("sha256:").unwrap_or(image);
        if !is_id(hash) {
            return Err(self.error("a container without an image"));
        }
        let found: Image =
            self.read(self.ask(&format!("GET /images/{image}/json"), None, until)?)?;
        let of_image = found.config.and_then(|config| config.labels);
        let of_image = of_image.and_then(|mut labels| labels.remove(HEALTH));
        Ok((of_image.as_ref() != Some(label)).then(|| label.clone()))
    }

    /// A command by its ID; none where the engine has forgotten it.
    fn exec(&self, id: &str, until: Instant) -> Result<Option<Exec>, Error> {
        match self.ask(&format!("GET /exec/{id}/json"), None, until)? {
            (404, _) => Ok(None),
            answered => self.read(answered).map(Some),
        }
    }

    /// The command of before that still runs in the container.
    fn before(
        &self,
        container: &Container,
        former: &Former,
        until: Instant,
    ) -> Result<Option<String>, Error> {
        let words = &self.command.words;
        let is_alike = |exec: &Exec| {
            let arguments = exec.process_config.arguments.iter().flatten();
            let theirs = std::iter::once(&exec.process_config.entrypoint).chain(arguments);
            theirs.eq(words.iter())
        };
        let all = container.commands.as_deref().unwrap_or_default();
        let looked: Vec<&String> = match former {
            Former::Ended => vec![],
            Former::Runs(id) => vec![id],
            Former::Unknown => all.iter().rev().take(MAX_LOOKED).collect(),
        };
        for id in looked.into_iter().filter(|id| is_id(id)) {
            let exec = self.exec(id, until)?.filter(|exec| exec.running);
            if exec.is_some_and(|exec| is_alike(&exec)) {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    }

    /// Makes the command. It does not run yet.
    fn make(&self, until: Instant) -> Result<String, Error> {
        let body = serde_json::json!({
            "AttachStdin": false, "AttachStdout": true, "AttachStderr": true, "Tty": false,
            "Cmd": self.command.words,
        });
        let line = format!("POST /containers/{}/exec", self.command.container);
        let made: Made = self.read(self.ask(&line, Some(&body.to_string()), until)?)?;
        match is_id(&made.id) {
            true => Ok(made.id),
            false => Err(self.error("a command without an ID")),
        }
    }

    /// Runs a command that was made, until it ends or the time is over.
    fn run(&self, id: String, limit: Duration) -> Result<Ran, Error> {
        let until = Instant::now() + limit;
        let start = || -> io::Result<(u16, (Vec<u8>, End))> {
            let line = format!("POST /exec/{id}/start");
            let body = r#"{"Detach":false,"Tty":false}"#;
            let answer = http::ask(&self.command.engine, &line, Some(body), until)?;
            let status = answer.status;
            Ok((status, answer.body(MAX_SAID, until)?))
        };
        let (status, (said, end)) = match start() {
            Ok(answered) => answered,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => (200, (vec![], End::Late)),
            Err(error) => return Err(self.error(error)),
        };
        // Who holds its output open is not always the command itself, so the engine is asked in any case.
        let last = until.min(Instant::now() + PATIENCE);
        loop {
            let exec = self.exec(&id, Instant::now() + PATIENCE)?;
            let exec = exec.ok_or_else(|| self.error("it has forgotten the command"))?;
            if !exec.running {
                let code = match (status, exec.exit_code) {
                    // It was never begun, whatever code the engine gives it.
                    (300.., None | Some(0)) => 126,
                    (_, code) => code.unwrap_or(126),
                };
                let said = last_line(&unframed(&said));
                return Ok(Ran::Ended { code, said });
            }
            if end != End::Whole || Instant::now() >= last {
                let talks = end == End::Long;
                return Ok(Ran::GoesOn { id, talks });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Whether that command may be run in that container.
///
/// # Errors
/// [`Error::NotAllowed`] with the reason.
fn judge(command: &Command, container: &Container, label: Option<&str>) -> Result<(), Error> {
    let asked = label.and_then(|text| Check::of_label(text, |_| false).ok());
    if asked.is_some_and(|check| check.probe == Probe::Exec(command.words.clone())) {
        return Ok(());
    }
    match outside(container) {
        Some(why) => Err(Error::NotAllowed(format!(
            "the container is as good as root here ({why}), so only its own label {HEALTH} may ask for a command in it"
        ))),
        None => Ok(()),
    }
}

/// Capabilities that do not lead out of a container.
const HARMLESS: [&str; 6] = [
    "NET_ADMIN",
    "NET_RAW",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "SYS_NICE",
    "IPC_LOCK",
];

/// Directories of the host that lead out of a container, with all that is in them.
const LEADING_OUT: [&str; 13] = [
    "bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "usr", "var",
];

/// Whether a directory or file of the host leads out of a container that has it: one of the system's, a whole home, what is
/// hidden there, or a socket.
fn leads_out(source: &str) -> bool {
    let mut parts: Vec<&str> = Vec::new();
    for part in source.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let hidden = parts.iter().any(|part| part.starts_with('.'));
    hidden
        || match parts.as_slice() {
            [] | ["home"] | ["home", _] => true,
            [top, ..] if LEADING_OUT.contains(top) => true,
            [.., last] => last.ends_with(".sock"),
        }
}

/// By what a container is as good as the host's root; none where nothing of that is known.
fn outside(container: &Container) -> Option<String> {
    let host = &container.host_config;
    if host.privileged {
        return Some("it is privileged".to_owned());
    }
    let modes = [
        ("processes", &host.pid_mode),
        ("network", &host.network_mode),
        ("memory", &host.ipc_mode),
        ("users", &host.userns_mode),
    ];
    if let Some((what, _)) = modes.into_iter().find(|(_, mode)| *mode == "host") {
        return Some(format!("it has the host's {what}"));
    }
    let mut devices = [
        &host.devices,
        &host.device_requests,
        &host.device_cgroup_rules,
    ]
    .into_iter();
    if devices.any(|all| all.as_ref().is_some_and(|all| !all.is_empty())) {
        return Some("it has devices of the host".to_owned());
    }
    let open = |opt: &&String| opt.contains("unconfined") || opt.starts_with("systempaths");
    if let Some(open) = host.security_opt.iter().flatten().find(open) {
        return Some(format!("security option {}", last_line(open.as_bytes())));
    }
    let strong = |name: &&String| {
        let name = name.trim_start_matches("CAP_");
        !HARMLESS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
    };
    if let Some(strong) = host.cap_add.iter().flatten().find(strong) {
        return Some(format!("capability {}", last_line(strong.as_bytes())));
    }
    let leads = |mount: &&Mount| mount.kind == "bind" && leads_out(&mount.source);
    let mount = container.mounts.iter().flatten().find(leads)?;
    Some(format!("{} is mounted", last_line(mount.source.as_bytes())))
}

/// Looks at the container of a command, and whether the command may be run there. The calling thread may be in the
/// container's namespace afterwards.
fn allowed(
    command: &Command,
    more: Option<&[PathBuf]>,
    until: Instant,
) -> Result<Container, Error> {
    if !is_id(&command.container) || !is_command(&command.words) {
        return Err(Error::Refused("no command in a container".to_owned()));
    }
    if let Some(more) = more {
        super::engine::is_known(&command.engine, more)?;
    }
    let container = Engine { command }.container(until)?;
    let label = Engine { command }.label(&container, until)?;
    judge(command, &container, label.as_deref())?;
    let path = PathBuf::from(format!("/proc/{}/ns/net", container.state.pid));
    namespaces::name(path, None)?;
    match links::has_own() {
        Ok(true) => Ok(container),
        // Nothing is known then: a daemon that begins anew has yet to make the link.
        Ok(false) => Err(Engine { command }.error("the container has no link to a subnet")),
        Err(error) => Err(Error::system(
            "list links of",
            Path::new(&command.container),
        )(error)),
    }
}

/// Whether a command may be run in its container. `more` are engines beside the usual ones; none where any is one.
///
/// # Errors
/// [`Error::NotAllowed`] where it may not be; [`Error::Engine`] where nothing is known.
pub(super) fn may_run(command: &Command, more: Option<&[PathBuf]>) -> Result<(), Error> {
    allowed(command, more, Instant::now() + PATIENCE).map(drop)
}

/// Runs a command in its container, for at most `limit` milliseconds.
///
/// # Errors
/// As [`may_run`].
pub(super) fn run(
    command: &Command,
    limit: u32,
    former: &Former,
    more: Option<&[PathBuf]>,
) -> Result<Ran, Error> {
    let _running = Running::new()
        .ok_or_else(|| Error::Engine("too many commands are waited for".to_owned()))?;
    let until = Instant::now() + PATIENCE;
    let container = allowed(command, more, until)?;
    let engine = Engine { command };
    if let Some(id) = engine.before(&container, former, until)? {
        return Ok(Ran::Before { id });
    }
    let id = engine.make(until)?;
    engine.run(id, Duration::from_millis(limit.min(MAX_LIMIT).into()))
}

/// What a command said, out of the frames that an engine puts it in: a byte for the stream, three of zero, four for the
/// length. What is in no frame is taken as it is.
fn unframed(said: &[u8]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), said);
    while let [0..=2, 0, 0, 0, a, b, c, d, behind @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(behind.len());
        let (frame, next) = behind.split_at(length);
        all.extend(frame);
        rest = next;
    }
    all.extend(rest);
    all
}

/// The last line that holds anything, without what cannot be printed, at most 200 bytes.
fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said.get(said.len().saturating_sub(4096)..).unwrap_or(said));
    let plain = |line: &str| -> String {
        let blank = |c: char| if c == '\t' { ' ' } else { c };
        let shown = |c: &char| *c == ' ' || !c.is_whitespace() && c.escape_debug().len() == 1;
        let quoted = |c: &char| matches!(c, '"' | '\'' | '\\');
        line.chars()
            .map(blank)
            .filter(|c| shown(c) || quoted(c))
            .collect()
    };
    let mut lines = text.split(['\n', '\r']).rev().map(plain);
    let mut line = lines
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    while line.len() > MAX_LINE {
        line.pop();
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests;
