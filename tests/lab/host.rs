//! One machine of the lab: its namespace, its daemon, its command line.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::netns::{Netns, wait_end, wait_end_within};
use super::snapshot::{self, Snapshot};
use super::{SOON, binary, until};

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// What was run, for messages.
    pub command: String,
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// From a finished program.
    ///
    /// # Errors
    /// None today; a `Result` because every caller is in one.
    pub fn of(command: &[&str], output: &Output) -> Result<Answer> {
        Ok(Answer {
            command: command.join(" "),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The JSON object on standard output.
    ///
    /// # Errors
    /// There is none.
    pub fn value(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON on stdout of {self}"))
    }

    /// Checks that this failed as the contract says: the exit code, one line `error: … (CODE)` on standard error whose
    /// code begins with `code_prefix`, and nothing on standard output.
    ///
    /// # Errors
    /// It did not.
    pub fn assert_error(&self, exit: i32, code_prefix: &str) -> Result<()> {
        ensure!(
            self.code == exit,
            "expected exit {exit} and {code_prefix}: {self}"
        );
        ensure!(
            self.err
                .lines()
                .any(|l| l.starts_with("error: ") && l.contains(&format!("({code_prefix}"))),
            "expected a line `error: … ({code_prefix}…)`: {self}"
        );
        ensure!(!self.err.contains("panicked"), "a panic: {self}");
        Ok(())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {}\n  stdout: {}\n  stderr: {}",
            self.command,
            self.code,
            self.out.trim(),
            self.err.trim()
        )
    }
}

/// One machine of the lab.
pub struct Host {
    name: String,
    ns: Netns,
    dir: PathBuf,
    under4: String,
    under6: String,
    before: RefCell<Snapshot>,
    daemon: RefCell<Option<Child>>,
    environment: RefCell<Vec<(String, String)>>,
    starts: Cell<u32>,
}

impl Host {
    /// A machine without a daemon; its present state is what it must return to.
    ///
    /// # Errors
    /// Its directory cannot be made, or its state not be read.
    pub fn new(name: &str, ns: Netns, lab: &Path, under4: String, under6: String) -> Result<Host> {
        let dir = lab.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        std::fs::write(
            dir.join("byway.toml"),
            format!("version = 1\n[node]\nname = \"{name}\"\n"),
        )
        .context("write the configuration")?;
        let before = RefCell::new(snapshot::of(&ns)?);
        // The lab's machines have no resolver of their own, and share the bus of the one that runs the tests.
        let alone = vec![("BYWAY_DNS_HOST".to_owned(), "off".to_owned())];
        let (daemon, environment, starts) = (RefCell::default(), RefCell::new(alone), Cell::new(0));
        Ok(Host {
            name: name.to_owned(),
            ns,
            dir,
            under4,
            under6,
            before,
            daemon,
            environment,
            starts,
        })
    }

    /// Its name, also that of its node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its IPv4 address on the switch.
    pub fn under4(&self) -> &str {
        &self.under4
    }

    /// Its IPv6 address on the switch.
    pub fn under6(&self) -> &str {
        &self.under6
    }

    /// Its own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The daemon's state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The daemon's control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// Sets a variable for the daemon and the command line started from now on.
    pub fn set_env(&self, key: &str, value: &str) {
        self.environment
            .borrow_mut()
            .push((key.to_owned(), value.to_owned()));
    }

    /// The arguments that start this host's daemon in the foreground.
    pub fn daemon_args(&self) -> Vec<String> {
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        vec![
            path(binary()),
            "daemon".to_owned(),
            "--config".to_owned(),
            path(self.dir.join("byway.toml")),
            "--state-dir".to_owned(),
            path(self.state()),
            "--socket".to_owned(),
            path(self.socket()),
        ]
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// It ends at once, or does not answer in ten seconds; its log is in the message.
    pub fn start(&self) -> Result<()> {
        self.start_under(&[])?;
        until(
            &format!("the daemon of {} answers", self.name),
            SOON,
            || {
                if let Some(code) = self.ended()? {
                    bail!("the daemon of {} ended with {code}", self.name);
                }
                Ok(self.byway(&["status", "--json"])?.code == 0)
            },
        )
        .with_context(|| self.log_tail(20))
        .map(drop)
    }

    /// Starts the daemon below another program (`setpriv …`, `unshare …`), which must replace itself by it; does not
    /// wait for an answer.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_under(&self, before: &[&str]) -> Result<()> {
        let args = self.daemon_args();
        let words: Vec<&str> = before
            .iter()
            .copied()
            .chain(args.iter().map(String::as_str))
            .collect();
        let log = self.log()?;
        self.starts.set(self.starts.get() + 1);
        let child = self
            .with_env(self.ns.command(&words))
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("start the daemon")?;
        *self.daemon.borrow_mut() = Some(child);
        Ok(())
    }

    fn with_env(&self, mut command: Command) -> Command {
        command
            .env_remove("BYWAY_SOCKET")
            .env("RUST_BACKTRACE", "1");
        command.envs(self.environment.borrow().iter().map(|(k, v)| (k, v)));
        command
    }

    fn log(&self) -> Result<File> {
        let path = self.dir.join("log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// The last lines the daemon wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let tail = all
            .get(all.len().saturating_sub(lines)..)
            .unwrap_or_default();
        format!(
            "--- daemon of {} ({} lines of {})\n{}\n",
            self.name,
            tail.len(),
            all.len(),
            tail.join("\n")
        )
    }

    /// Process number of the daemon.
    ///
    /// # Errors
    /// It was not started.
    pub fn pid(&self) -> Result<i32> {
        let daemon = self.daemon.borrow();
        let id = daemon
            .as_ref()
            .with_context(|| format!("the daemon of {} is not started", self.name))?
            .id();
        i32::try_from(id).context("a process number")
    }

    /// The exit code of the daemon if it has ended.
    ///
    /// # Errors
    /// It was not started, or the kernel does not tell.
    pub fn ended(&self) -> Result<Option<i32>> {
        let mut daemon = self.daemon.borrow_mut();
        let child = daemon
            .as_mut()
            .with_context(|| format!("the daemon of {} is not started", self.name))?;
        Ok(child.try_wait()?.map(|s| s.code().unwrap_or(-1)))
    }

    /// Waits until the daemon ends by itself; its exit code.
    ///
    /// # Errors
    /// It runs on.
    pub fn wait_ended(&self) -> Result<i32> {
        let child = self.daemon.borrow_mut().take();
        let mut child =
            child.with_context(|| format!("the daemon of {} is not started", self.name))?;
        let code = wait_end(&mut child);
        if code.is_err() {
            *self.daemon.borrow_mut() = Some(child);
        }
        code
    }

    /// Whether a daemon was started and has not been stopped.
    pub fn is_running(&self) -> bool {
        self.daemon.borrow().is_some()
    }

    /// SIGKILL, as a crash.
    ///
    /// # Errors
    /// There is no daemon.
    pub fn kill9(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), Signal::SIGKILL).context("kill the daemon")?;
        self.wait_ended().map(drop)
    }

    /// Does something while the daemon stands still, so that what it undoes can be looked at before.
    ///
    /// # Errors
    /// There is no daemon, or what was to be done fails.
    pub fn stopped<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let pid = Pid::from_raw(self.pid()?);
        kill(pid, Signal::SIGSTOP).context("stop the daemon for a while")?;
        let done = act();
        kill(pid, Signal::SIGCONT).context("let the daemon go on")?;
        done
    }

    /// SIGTERM: the daemon must end with 0 within five seconds, and must not have panicked.
    ///
    /// # Errors
    /// It does not.
    pub fn terminate(&self) -> Result<()> {
        let start = Instant::now();
        kill(Pid::from_raw(self.pid()?), Signal::SIGTERM).context("stop the daemon")?;
        let code = self.wait_ended()?;
        ensure!(
            code == 0,
            "the daemon of {} ended with {code} on SIGTERM\n{}",
            self.name,
            self.log_tail(20)
        );
        let took = start.elapsed();
        ensure!(
            took <= Duration::from_secs(5),
            "the daemon of {} took {took:?} to stop",
            self.name
        );
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        ensure!(
            !log.contains("panicked at"),
            "the daemon of {} panicked\n{}",
            self.name,
            self.log_tail(40)
        );
        Ok(())
    }

    /// Ends the daemon at once, quietly: for the cleaning up.
    pub fn end(&self) {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Takes the present state of the machine as what it must return to: for what the test itself added.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn rebase(&self) -> Result<()> {
        let now = snapshot::of(&self.ns)?;
        *self.before.borrow_mut() = now;
        Ok(())
    }

    /// Checks that the machine is as it was before the daemon.
    ///
    /// # Errors
    /// Names what came or went.
    pub fn assert_clean(&self) -> Result<()> {
        self.before
            .borrow()
            .assert_same(&snapshot::of(&self.ns)?, &format!("host {}", self.name))
    }

    fn words<'a>(&self, args: &[&'a str]) -> Vec<String> {
        let fixed = [
            binary().to_string_lossy().into_owned(),
            "--socket".to_owned(),
        ];
        let socket = self.socket().to_string_lossy().into_owned();
        fixed
            .into_iter()
            .chain([socket])
            .chain(args.iter().map(|a: &&'a str| (*a).to_owned()))
            .collect()
    }

    /// Runs `byway ARGS` on this host, for a minute at most.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn byway(&self, args: &[&str]) -> Result<Answer> {
        let words = self.words(args);
        let bounded: Vec<&str> = ["timeout", "-k", "2", "60"]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let output = self
            .with_env(self.ns.command(&bounded))
            .output()
            .context("start byway")?;
        Answer::of(&[&["byway"], args].concat(), &output)
    }

    /// Runs `byway ARGS`, which must succeed.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let answer = self.byway(args)?;
        ensure!(answer.code == 0, "on {}: {answer}", self.name);
        Ok(answer.out)
    }

    /// Runs `byway ARGS --json`, which must succeed; the object it printed.
    ///
    /// # Errors
    /// It ends with another code than 0, or prints no object with a schema.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let answer = self.byway(&[&["--json"], args].concat())?;
        ensure!(answer.code == 0, "on {}: {answer}", self.name);
        let value = answer.value()?;
        let schema = value["schema"].as_str().unwrap_or_default();
        ensure!(
            schema.starts_with("byway.") && schema.contains('/'),
            "no `schema` in {answer}"
        );
        Ok(value)
    }

    /// Runs `byway ARGS`, which must fail with this exit code and an error code of this beginning.
    ///
    /// # Errors
    /// It does not.
    pub fn fails(&self, exit: i32, code_prefix: &str, args: &[&str]) -> Result<Answer> {
        let answer = self.byway(args)?;
        answer
            .assert_error(exit, code_prefix)
            .with_context(|| format!("on {}", self.name))?;
        Ok(answer)
    }

    /// Starts `byway ARGS` and returns at once.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Running> {
        let words = self.words(args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let child = self
            .with_env(self.ns.command(&words))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start byway")?;
        Ok(Running {
            child: Some(child),
            command: format!("byway {}", args.join(" ")),
        })
    }

    /// The object of a subnet in `status --json`.
    ///
    /// # Errors
    /// There is no such subnet.
    pub fn status(&self, subnet: &str) -> Result<Value> {
        let status = self.json(&["status"])?;
        let all = status["subnets"]
            .as_array()
            .context("no `subnets` in status")?;
        all.iter()
            .find(|s| s["name"] == subnet)
            .cloned()
            .with_context(|| format!("no subnet {subnet} in {status}"))
    }

    /// Packets of a subnet dropped so far for one reason.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn drops(&self, subnet: &str, reason: &str) -> Result<u64> {
        let status = self.status(subnet)?;
        status["drops"][reason]
            .as_u64()
            .with_context(|| format!("no drops.{reason} in {status}"))
    }

    /// This node's overlay addresses in a subnet, IPv4 and IPv6.
    ///
    /// # Errors
    /// It lacks one of them.
    pub fn overlay(&self, subnet: &str) -> Result<(String, String)> {
        let status = self.status(subnet)?;
        Ok((super::v4(&status)?, super::v6(&status)?))
    }

    /// Names of the members of a subnet as this node knows them, sorted.
    ///
    /// # Errors
    /// It does not know the subnet.
    pub fn members(&self, subnet: &str) -> Result<Vec<String>> {
        let list = self.json(&["member", "ls", subnet])?;
        let members = list["members"].as_array().context("no `members`")?;
        let mut names: Vec<String> = members
            .iter()
            .filter_map(|m| m["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Attaches a namespace as a workload; what the command answered.
    ///
    /// # Errors
    /// It fails.
    pub fn attach(&self, workload: &Netns, subnet: &str, name: &str) -> Result<Value> {
        self.json(&[
            "attach",
            "netns",
            workload.name(),
            "--subnet",
            subnet,
            "--name",
            name,
        ])
    }
}

/// A command under way; ended when dropped.
pub struct Running {
    child: Option<Child>,
    command: String,
}

impl Running {
    /// Waits for its end, ten seconds at most.
    ///
    /// # Errors
    /// It still runs.
    pub fn wait(self) -> Result<Answer> {
        self.wait_within(SOON)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait_within(mut self, limit: Duration) -> Result<Answer> {
        if let Some(child) = self.child.as_mut() {
            wait_end_within(child, limit).with_context(|| self.command.clone())?;
        }
        let child = self.child.take().context("waited for twice")?;
        Answer::of(
            &[&self.command],
            &child.wait_with_output().context("read what it wrote")?,
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
