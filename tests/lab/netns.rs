//! One network namespace and what a test does inside it: programs, pings, names, sockets.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::host::Answer;
use super::{SOON, sh, until};

/// Longest a program inside a namespace may run, in seconds.
const PROGRAM_S: &str = "60";

/// A namespace by name. Copies name the same one; [`Netns::delete`] ends it.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A fresh namespace with `lo` up and addresses usable at once.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn make(name: &str) -> Result<Netns> {
        sh("ip", &["netns", "add", name])?;
        let ns = Netns {
            name: name.to_owned(),
        };
        ns.ok(&[
            "sysctl",
            "-qw",
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
        ])?;
        ns.ip(&["link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has not been deleted.
    pub fn exists(&self) -> bool {
        PathBuf::from("/run/netns").join(&self.name).exists()
    }

    /// Ends what still runs inside and deletes it; quiet, for it also serves the cleaning up after a failure.
    pub fn delete(&self) {
        if !self.exists() {
            return;
        }
        for pid in sh("ip", &["netns", "pids", &self.name])
            .unwrap_or_default()
            .lines()
        {
            let _ = sh("kill", &["-KILL", pid]);
        }
        let _ = sh("ip", &["netns", "del", &self.name]);
        // `ip netns exec` binds files found there; a daemon that was killed had no chance to remove its own.
        let _ = std::fs::remove_file(
            PathBuf::from("/etc/netns")
                .join(&self.name)
                .join("resolv.conf"),
        );
        let _ = std::fs::remove_dir(PathBuf::from("/etc/netns").join(&self.name));
    }

    /// `ip -n NS ARGS`.
    ///
    /// # Errors
    /// As [`sh`].
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        sh("ip", &[&["-n", &self.name], args].concat())
    }

    /// A command that will run inside.
    pub fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .args(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program inside, for a minute at most.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, program: &[&str]) -> Result<Answer> {
        let bounded = [&["timeout", "-k", "2", PROGRAM_S], program].concat();
        Answer::of(
            program,
            &self
                .command(&bounded)
                .output()
                .with_context(|| format!("start {program:?}"))?,
        )
    }

    /// Runs a program inside that must succeed; returns its standard output.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub fn ok(&self, program: &[&str]) -> Result<String> {
        let answer = self.run(program)?;
        ensure!(answer.code == 0, "in {}: {answer}", self.name);
        Ok(answer.out)
    }

    /// Whether one echo request to `target` (an address or a name) is answered within 300 ms.
    pub fn pings(&self, target: &str) -> bool {
        self.run(&["ping", "-n", "-q", "-c", "1", "-W", "0.3", target])
            .is_ok_and(|a| a.code == 0)
    }

    /// Waits until `target` answers a ping.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn reaches(&self, target: &str, limit: Duration) -> Result<Duration> {
        until(&format!("{} reaches {target}", self.name), limit, || {
            Ok(self.pings(target))
        })
    }

    /// Waits until `target` answers no ping: three in a row are lost.
    ///
    /// # Errors
    /// It still answers after `limit`.
    pub fn loses(&self, target: &str, limit: Duration) -> Result<Duration> {
        until(
            &format!("{} is cut from {target}", self.name),
            limit,
            || Ok((0..3).all(|_| !self.pings(target))),
        )
    }

    /// Asks a name server; `question` as on the command line of `dig`.
    ///
    /// # Errors
    /// No answer in three seconds.
    pub fn dig(&self, server: &str, question: &[&str]) -> Result<Dig> {
        let at = format!("@{server}");
        let base = ["dig", "+time=3", "+tries=1", "+norecurse", "+noedns", &at];
        Dig::parse(&self.ok(&[&base[..], question].concat())?)
    }

    /// Waits until a question has an answer with `value` in it.
    ///
    /// # Errors
    /// It has none within `limit`.
    pub fn resolves(
        &self,
        server: &str,
        question: &[&str],
        value: &str,
        limit: Duration,
    ) -> Result<Duration> {
        until(
            &format!("{question:?} at {server} is {value}"),
            limit,
            || {
                let dig = self.dig(server, question)?;
                ensure!(
                    dig.answers.iter().any(|a| a == value),
                    "{} {:?}",
                    dig.status,
                    dig.answers
                );
                Ok(true)
            },
        )
    }

    /// Runs the socket helper inside.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn socket(&self, args: &[&str]) -> Result<Answer> {
        let (python, script) = helper();
        self.run(&[&[python.as_str(), script.as_str()], args].concat())
    }

    /// Starts the echo server inside: `proto` is `tcp` or `udp`. It is listening when this returns.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn serve(&self, proto: &str, address: &str, port: u16) -> Result<Server> {
        let (python, script) = helper();
        let mut child = self
            .command(&[&python, &script, "serve", proto, address, &port.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the echo server")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out)
                .read_line(&mut line)
                .context("read from the echo server")?;
        }
        let server = Server(child);
        ensure!(
            line.trim() == "ready",
            "the {proto} server on {address}:{port} in {} did not start",
            self.name
        );
        Ok(server)
    }

    /// Starts to send so many echo requests, so many milliseconds apart.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn probe(&self, target: &str, count: u32, apart_ms: u32) -> Result<Probes> {
        let (python, script) = helper();
        let words = [
            &python,
            &script,
            "probe",
            target,
            &count.to_string(),
            &apart_ms.to_string(),
        ];
        Ok(Probes(
            self.command(&words)
                .stdout(Stdio::piped())
                .spawn()
                .context("start to probe")?,
        ))
    }

    /// Starts to talk to an echo server over UDP, from one port for as long as it is held.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn talk(&self, address: &str, port: u16) -> Result<Talk> {
        let (python, script) = helper();
        let mut child = self
            .command(&[&python, &script, "talk", address, &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .context("start to talk")?;
        let out = BufReader::new(child.stdout.take().context("its output")?);
        let answers = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&answers);
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .for_each(|_| _ = count.fetch_add(1, Relaxed))
        });
        Ok(Talk { child, answers })
    }

    /// A UDP socket of this process that lives in the namespace.
    ///
    /// # Errors
    /// There is no such address inside, or the port is taken.
    pub fn udp_socket(&self, address: &str) -> Result<UdpSocket> {
        let address: SocketAddr = address.parse()?;
        self.inside(move || UdpSocket::bind(address).with_context(|| format!("bind to {address}")))
    }

    /// A socket of this process that takes TCP connections in the namespace.
    ///
    /// # Errors
    /// There is no such address inside, or the port is taken.
    pub fn tcp_listener(&self, address: &str) -> Result<TcpListener> {
        let address: SocketAddr = address.parse()?;
        self.inside(move || {
            TcpListener::bind(address).with_context(|| format!("bind to {address}"))
        })
    }

    fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = File::open(PathBuf::from("/run/netns").join(&self.name))?;
        // A thread is in one namespace; this one must not leave its own.
        let bound = std::thread::spawn(move || -> Result<T> {
            setns(file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            make()
        });
        bound
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    }

    /// Sends `bytes` random bytes over TCP, checks that they come back, and returns the address the server saw.
    ///
    /// # Errors
    /// They do not within ten seconds.
    pub fn tcp(&self, address: &str, port: u16, bytes: usize) -> Result<String> {
        self.exchange("tcp", address, port, bytes)
    }

    /// Sends one datagram of `bytes` that must not be fragmented, checks that it comes back, and returns the address
    /// the server saw.
    ///
    /// # Errors
    /// It does not within two seconds.
    pub fn udp(&self, address: &str, port: u16, bytes: usize) -> Result<String> {
        self.exchange("udp", address, port, bytes)
    }

    fn exchange(&self, proto: &str, address: &str, port: u16, bytes: usize) -> Result<String> {
        let answer = self.socket(&[proto, address, &port.to_string(), &bytes.to_string()])?;
        let Some(peer) = answer
            .out
            .trim()
            .strip_prefix("peer=")
            .filter(|_| answer.code == 0)
        else {
            bail!(
                "{proto} from {} to {address} port {port}: {answer}",
                self.name
            )
        };
        Ok(peer.to_owned())
    }

    /// Bytes sent so far on a link of this namespace.
    ///
    /// # Errors
    /// There is no such link.
    pub fn sent(&self, link: &str) -> Result<u64> {
        let list: serde_json::Value =
            serde_json::from_str(&self.ip(&["-j", "-s", "link", "show", "dev", link])?)?;
        list[0]["stats64"]["tx"]["bytes"]
            .as_u64()
            .with_context(|| format!("no counters of {link}"))
    }

    /// The ruleset without counters.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn ruleset(&self) -> Result<String> {
        self.ok(&["nft", "-s", "list", "ruleset"])
    }
}

/// The interpreter and the script that opens sockets for the tests.
fn helper() -> (String, String) {
    let system = "/usr/bin/python3";
    let python = if PathBuf::from(system).exists() {
        system
    } else {
        "python3"
    };
    (
        python.to_owned(),
        format!("{}/tests/lab/sock.py", env!("CARGO_MANIFEST_DIR")),
    )
}

/// A running echo server; ends when dropped.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Echo requests under way; they end when this is dropped.
pub struct Probes(Child);

impl Probes {
    /// How many were answered, when all are sent and each had two seconds.
    ///
    /// # Errors
    /// They could not be sent.
    pub fn answered(mut self) -> Result<u32> {
        let mut said = String::new();
        self.0
            .stdout
            .take()
            .context("its output")?
            .read_to_string(&mut said)?;
        said.trim()
            .strip_prefix("answered=")
            .and_then(|n| n.parse().ok())
            .with_context(|| format!("it said {said:?}"))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Somebody who talks to an echo server; ends when dropped.
pub struct Talk {
    child: Child,
    answers: Arc<AtomicU64>,
}

impl Talk {
    /// Answers since this was last asked.
    pub fn answered(&self) -> u64 {
        self.answers.swap(0, Relaxed)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a name server said.
#[derive(Debug, Default)]
pub struct Dig {
    /// `NOERROR`, `NXDOMAIN`, ….
    pub status: String,
    /// Header flags in lower case: `qr`, `aa`, ….
    pub flags: Vec<String>,
    /// Right-hand sides of the answer section.
    pub answers: Vec<String>,
    /// Record types in the authority section.
    pub authority: Vec<String>,
}

impl Dig {
    fn parse(text: &str) -> Result<Dig> {
        let mut dig = Dig::default();
        let mut section = "";
        for line in text.lines() {
            if let Some(rest) = line.split_once("status: ").map(|(_, r)| r) {
                dig.status = rest.split(',').next().unwrap_or_default().to_owned();
            } else if let Some(rest) = line.strip_prefix(";; flags: ") {
                let flags = rest.split(';').next().unwrap_or_default();
                dig.flags = flags.split_whitespace().map(str::to_owned).collect();
            } else if line.starts_with(";; ") && line.ends_with("SECTION:") {
                section = line;
            } else if !line.starts_with(';') && !line.is_empty() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let (kind, value) = (
                    words.get(3).copied().unwrap_or_default(),
                    words.get(4..).unwrap_or_default(),
                );
                if section.contains("ANSWER") {
                    dig.answers.push(value.join(" "));
                } else if section.contains("AUTHORITY") {
                    dig.authority.push(kind.to_owned());
                }
            }
        }
        ensure!(!dig.status.is_empty(), "no answer in {text:?}");
        Ok(dig)
    }
}

/// Ends namespaces of earlier runs whose process is gone.
pub fn sweep() {
    for line in sh("ip", &["netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let pid = name
            .strip_prefix("bwt-")
            .and_then(|rest| rest.split('-').next());
        if let Some(pid) = pid
            .and_then(|p| p.parse::<u32>().ok())
            .filter(|p| !PathBuf::from(format!("/proc/{p}")).exists())
        {
            eprintln!("removing {name}, left by process {pid} that is gone");
            Netns {
                name: name.to_owned(),
            }
            .delete();
        }
    }
}

/// Waits for a child's end, for ten seconds at most.
///
/// # Errors
/// It still runs.
pub fn wait_end(child: &mut Child) -> Result<i32> {
    wait_end_within(child, SOON)
}

/// Waits for a child's end.
///
/// # Errors
/// It still runs after `limit`.
pub fn wait_end_within(child: &mut Child, limit: Duration) -> Result<i32> {
    let mut code = None;
    until("the process ends", limit, || {
        code = child.try_wait()?;
        Ok(code.is_some())
    })?;
    Ok(code.and_then(|c| c.code()).unwrap_or(-1))
}
