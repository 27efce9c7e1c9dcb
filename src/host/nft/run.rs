//! Runs the `nft` program: one call is one kernel transaction, and its complaint comes back with the error. And the
//! programs of other firewalls, in the same way.
//!
//! The schema crate's own runner leaves nft's messages on the daemon's stderr; they belong into the error.

use std::collections::VecDeque;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::model::error::Code;

/// Longest one call may take. A table of 10,000 maps loads in 0.3 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where a program is looked for besides PATH, in which a daemon may lack the sbin directories.
const PLACES: [&str; 3] = ["", "/usr/sbin/", "/sbin/"];

/// How many of our processes the watcher can tell from other people's.
const REMEMBERED: usize = 64;

/// The reason why nft did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program nft is not installed.
    #[error(
        "run nft: not installed; port maps and the packet filter need it: install the package nftables (E-NO-NFT)"
    )]
    Missing,
    /// It could not be started, or its pipes failed.
    #[error("run nft to {what}")]
    Run {
        /// What nft was to do, in words.
        what: &'static str,
        /// The error that the system gave.
        source: io::Error,
    },
    /// It did not end within its time.
    #[error("run nft to {0}: no answer within 10 s")]
    Timeout(&'static str),
    /// It ran, and refused.
    #[error("run nft to {what}: {stderr}")]
    Refused {
        /// What nft was to do, in words.
        what: &'static str,
        /// The first lines of what it said.
        stderr: String,
    },
    /// What it listed is not what `nft -j` prints; the value is the table's name.
    #[error("read the listing of table {0}: not what nft -j prints")]
    Listing(String),
}

impl Error {
    /// The code people and programs know the error by.
    pub fn code(&self) -> Code {
        match self {
            Error::Missing => Code::NoNft,
            _ => Code::Nft,
        }
    }

    /// Whether nft says that the object is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::Refused { stderr, .. } if stderr.contains("No such file or directory"))
    }
}

/// Process ids of our latest nft runs: the kernel names the process behind each change.
#[derive(Debug, Default)]
pub struct OwnRuns(Mutex<VecDeque<u32>>);

impl OwnRuns {
    pub(super) fn add(&self, pid: u32) {
        let mut pids = self.0.lock();
        pids.push_back(pid);
        if pids.len() > REMEMBERED {
            pids.pop_front();
        }
    }

    /// Whether `pid` was one of our runs.
    pub fn contains(&self, pid: u32) -> bool {
        self.0.lock().contains(&pid)
    }
}

fn spawn(program: &str, args: &[&str]) -> Result<Child, io::Error> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in PLACES {
        let started = Command::new(format!("{place}{program}"))
            .args(args)
            // Messages are matched on and go into logs: in one language.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match started {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
            other => return other,
        }
    }
    Err(last)
}

/// Runs a program with `input` on its stdin to its end.
///
/// # Errors
/// It is not there, cannot be spoken to, or takes longer than ten seconds ([`io::ErrorKind::TimedOut`]).
///
/// # Cancel safety
/// A dropped call kills the process.
pub async fn program(
    program: &str,
    args: &[&str],
    input: &[u8],
    own: &OwnRuns,
) -> io::Result<Output> {
    let mut child = spawn(program, args)?;
    // Before it has its input: the change must not be reported before its author is known.
    if let Some(pid) = child.id() {
        own.add(pid);
    }
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A process that ended early says why on stderr: that is the better error.
            let _ = stdin.write_all(input).await;
            let _ = stdin.shutdown().await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    tokio::time::timeout(TIMEOUT, both)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The first lines of what a program complained of.
pub fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines()
        .take(6)
        .collect::<Vec<_>>()
        .join("; ")
        .chars()
        .take(600)
        .collect()
}

/// Runs nft with `args`, `input` on its stdin, and returns its stdout.
///
/// # Errors
/// See [`Error`]; `what` completes "run nft to …".
///
/// # Cancel safety
/// A dropped call kills the process; the kernel then has the whole transaction or nothing of it.
pub async fn nft(
    what: &'static str,
    args: &[&str],
    input: &[u8],
    own: &OwnRuns,
) -> Result<Vec<u8>, Error> {
    let output = program("nft", args, input, own)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing,
            io::ErrorKind::TimedOut => Error::Timeout(what),
            _ => Error::Run { what, source },
        })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Refused {
            what,
            stderr: complaint(&output),
        })
    }
}
