//! `run`: a program in a network namespace of its own, with its own address in a subnet.
//!
//! This process starts itself once more as a child ([`inside`]), which makes the namespaces and waits. The daemon attaches
//! the child's network namespace, then the child becomes the program. So the program has the process number that the daemon
//! knows, and its standard streams are untouched: nothing of ours is written to standard output, not even an error.
//!
//! The daemon knows the workload as a container of the engine `run` whose ID is the process number with its start time and the
//! program's name. The workload ends with the program; where the workload is detached before, the program goes on without it. Where this process is killed, the kernel kills the program, and the daemon
//! notices that the namespace is gone.

pub(super) mod inside;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::value::wrong;
use super::workload::Place;
use super::{Context, blocking, left_out, print};
use crate::api::types::{
    Attached, ContainerInterface, Error, ErrorKind, ErrorReply, Request, Response, WorkloadKind,
};
use crate::model::error::Code;
use crate::model::host::resolver_text;
use crate::model::id::Name;
use crate::model::workload::RUN;

/// Name of the interface inside.
const INTERFACE: &str = "byway0";
/// Exit code where the program is there and cannot be run, and where it is not found, as shells have them.
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Characters of a program's name that its workload's ID has.
const LONGEST_NAME: usize = 64;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    place: Place,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Why the program was not run.
struct Failure {
    error: Error,
    exit: u8,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            exit: error.kind.exit_code(),
            error,
        }
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Failed, Code::Failed, format!("{what}: {error}"))
}

/// Runs the program to its end. Gives its exit code, 128 and the number of the signal that killed it, or that of an error
/// of ours before it began.
pub(super) fn run(args: RunArgs, context: &Context) -> u8 {
    // An error of the program's end is none of ours: it is the inner result.
    let ended = blocking(async { Ok(execute(args, context).await) });
    ended
        .unwrap_or_else(|error| Err(error.into()))
        .unwrap_or_else(|Failure { error, exit }| {
            print::stderr(&if context.json {
                print::error_json(&error)
            } else {
                print::error(context.style, &error)
            });
            exit
        })
}

async fn execute(args: RunArgs, context: &Context) -> Result<u8, Failure> {
    let place = args.place;
    let subnet = match place.subnet {
        Some(subnet) => subnet,
        None => {
            let line = "byway subnet ls      (then the same with --subnet SUBNET)";
            left_out::only(context, line).await?
        }
    };
    let (mut child, channel) = start(&args.command).map_err(|e| failed("start a process", &e))?;
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .ok_or_else(|| failed("start a process", &"it ended at once"))?;
    let wanted = Wanted {
        subnet,
        name: place.name,
        ip: place.ip,
        mac: place.mac,
        called: called(&args.command),
    };
    tokio::select! {
        ended = accompany(&mut child, pid, channel, wanted, context) => ended,
        error = pass_signals(Pid::from_raw(pid)) => Err(failed("listen to signals", &error).into()),
    }
}

/// What the daemon is asked for.
struct Wanted {
    subnet: String,
    name: Option<Name>,
    ip: Option<IpAddr>,
    mac: Option<String>,
    called: String,
}

/// What a program is called: the last part of its path.
fn called(command: &[OsString]) -> String {
    command
        .first()
        .and_then(|program| Path::new(program).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Starts this program once more, with one end of a channel.
fn start(command: &[OsString]) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let child = Command::new("/proc/self/exe")
        .arg0("byway")
        .args([
            inside::VERB,
            "--channel",
            &theirs.as_raw_fd().to_string(),
            "--",
        ])
        .args(command)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// Hands on what asks a process to end. Never ends itself but with an error.
///
/// The terminal sends an interrupt to all processes in its foreground, so the program has it already.
async fn pass_signals(to: Pid) -> io::Error {
    let listen = || {
        io::Result::Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::quit())?,
        ))
    };
    let (mut term, mut hup, mut int, mut quit) = match listen() {
        Ok(all) => all,
        Err(error) => return error,
    };
    loop {
        let passed = tokio::select! {
            _ = term.recv() => Signal::SIGTERM,
            _ = hup.recv() => Signal::SIGHUP,
            _ = int.recv() => continue,
            _ = quit.recv() => continue,
        };
        // One that has ended needs no signal any more.
        let _ = kill(to, passed);
    }
}

/// Has the child attached, become the program, and end.
async fn accompany(
    child: &mut Child,
    pid: i32,
    channel: UnixStream,
    wanted: Wanted,
    context: &Context,
) -> Result<u8, Failure> {
    let mut channel = BufReader::new(channel);
    let mut line = String::new();
    let heard = channel.read_line(&mut line).await;
    heard.map_err(|e| failed("hear of the new process", &e))?;
    if line != inside::READY {
        let status = child.wait().await;
        return match reported(&line) {
            Some(error) => Err(error.into()),
            // It was killed before it could say anything.
            None => status.map(exit_code).map_err(|e| failed("wait", &e).into()),
        };
    }
    let container =
        identity(pid, &wanted.called).map_err(|e| failed("look at the new process", &e))?;
    let attached = tokio::select! {
        // The daemon undoes what it attaches of a namespace that has ended.
        status = child.wait() => return status.map(exit_code).map_err(|e| failed("wait", &e).into()),
        attached = attach(&container, pid, wanted, context) => attached,
    };
    let ended = match attached {
        Ok(attached) => become_program(child, channel, &attached).await,
        Err(error) => {
            // It ends when it hears nothing.
            drop(channel);
            let _ = child.wait().await;
            return Err(error.into());
        }
    };
    let detach = Request::DetachContainer {
        engine: engine()?,
        container,
        interface: INTERFACE.to_owned(),
    };
    // A daemon that is away finds by itself that the namespace is gone. How the program ended is what counts here.
    let _ = context.client.call(&detach).await;
    ended
}

fn engine() -> Result<Name, Error> {
    RUN.parse()
        .map_err(|e: crate::model::id::IdError| wrong(Code::Name, e.to_string()))
}

/// What tells this process from all others until the machine starts anew: its number and when it started, in clock ticks
/// since then. What the program is called stands behind it for people, as far as it fits into an ID.
fn identity(pid: i32, called: &str) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let started = started(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let called: String = called.chars().filter(plain).take(LONGEST_NAME).collect();
    let dash = if called.is_empty() { "" } else { "-" };
    Ok(format!("{pid}-{started}{dash}{called}"))
}

/// Field 22 of /proc/PID/stat. The second is the program's name in parentheses, which may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19)?.parse().ok()
}

async fn attach(
    container: &str,
    pid: i32,
    wanted: Wanted,
    context: &Context,
) -> Result<Attached, Error> {
    let request = Request::Attach {
        workload: WorkloadKind::Container(ContainerInterface {
            engine: engine()?,
            container: container.to_owned(),
            interface: INTERFACE.to_owned(),
            netns: Some(format!("/proc/{pid}/ns/net")),
            network: None,
            called: Some(wanted.called),
            ips: vec![],
            aliases: vec![],
        }),
        subnet: wanted.subnet,
        name: wanted.name,
        ip: wanted.ip,
        mac: wanted.mac,
        engine: None,
    };
    match context.client.call(&request).await? {
        Response::Attached(attached) => Ok(attached),
        _ => Err(Error::new(
            ErrorKind::Failed,
            Code::Api,
            "the daemon answered something else than what it attached",
        )),
    }
}

/// Lets the child become the program, and waits for its end.
async fn become_program(
    child: &mut Child,
    mut channel: BufReader<UnixStream>,
    attached: &Attached,
) -> Result<u8, Failure> {
    let begun = if attached.down {
        let message = format!(
            "subnet {} is down: the program would be alone",
            attached.subnet
        );
        let hint = format!("byway up {}", attached.subnet);
        Err(Error::new(ErrorKind::Failed, Code::SubnetDown, message).hint(hint))
    } else {
        let text = resolver_text(
            std::slice::from_ref(&attached.search),
            attached.dns.clone(),
            &[],
        );
        // Where the child has ended meanwhile its exit code says how.
        let _ = channel
            .write_all(format!("{}{text}", inside::GO).as_bytes())
            .await;
        let _ = channel.shutdown().await;
        let mut said = String::new();
        let _ = channel.read_to_string(&mut said).await;
        match reported(&said) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    };
    drop(channel);
    let status = child.wait().await.map_err(|e| failed("wait", &e))?;
    match begun {
        Ok(()) => Ok(exit_code(status)),
        Err(error) => Err(Failure {
            exit: match error.kind {
                _ if error.code != Code::Command => error.kind.exit_code(),
                ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_RUN,
            },
            error,
        }),
    }
}

/// The error that the child reports, if it is one.
fn reported(line: &str) -> Option<Error> {
    let reply: ErrorReply = serde_json::from_str(line).ok()?;
    Some(reply.error)
}

fn exit_code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or_else(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start_whatever_it_is_called() {
        let tail = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        assert_eq!(started(&format!("7 (sh) {tail}")), Some(4711));
        assert_eq!(started(&format!("7 (a) S 1 ) b) {tail}")), Some(4711));
        assert_eq!(started("7 (sh) S 1"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        let known = identity(own, "a b/c\n-d").unwrap();
        assert!(known.starts_with(&format!("{own}-")), "{known}");
        assert!(known.ends_with("-abc-d"), "{known}");
        assert_eq!(identity(own, "/").unwrap().split('-').count(), 2);
    }

    #[test]
    fn the_exit_code_is_that_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
    }

    #[test]
    fn what_stands_behind_the_program_is_the_programs() {
        use clap::Parser as _;
        for line in [
            "byway run --subnet lab curl --json -x --subnet y",
            "byway run --subnet lab -- curl --json -x --subnet y",
        ] {
            let cli = super::super::Cli::try_parse_from(line.split(' ')).unwrap();
            let Some(super::super::Verb::Run(args)) = cli.verb else {
                panic!("{line}")
            };
            assert_eq!(args.command, ["curl", "--json", "-x", "--subnet", "y"]);
            assert_eq!(
                (args.place.subnet.as_deref(), cli.global.json),
                (Some("lab"), false)
            );
        }
    }

    #[test]
    fn a_workload_is_called_as_its_program() {
        let of = |text: &str| called(&[OsString::from(text)]);
        assert_eq!(
            (of("/usr/bin/web"), of("web")),
            ("web".into(), "web".into())
        );
        assert_eq!(of("/"), "");
    }
}
