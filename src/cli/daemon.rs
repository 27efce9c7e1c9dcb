//! `daemon`, `cleanup`: flags over the configuration, then what the composition root does with it.

use std::path::PathBuf;

use clap::Args;

use super::config::{load, socket_flag};
use super::value::wrong;
use super::{Context, Entry, Outcome, log, print};
use crate::api::types::{Done, Error, ErrorKind, Response};
use crate::config::Value;
use crate::helper;
use crate::host::Guests;
use crate::model::error::Code;

#[derive(Debug, Args)]
#[command(after_help = log::HELP)]
pub(super) struct DaemonArgs {
    /// Configuration; must exist where it is named [default: BYWAY_CONFIG, else /etc/byway/byway.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Identity and records [default: /var/lib/byway]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Only tell whether the daemon could run here
    #[arg(long)]
    check: bool,
    /// Only forward for others: no TUN, no privilege, no subnets; for whom: transport.relay.for, anyone by default
    #[arg(long)]
    relay_only: bool,
    /// ed25519 key to use instead of the one in the state directory
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Key of the private swarm: refused, this version has no private swarms
    #[arg(long, value_name = "FILE")]
    swarm_key_file: Option<PathBuf>,
    /// Where to listen; none: outbound only; may be repeated
    #[arg(long, value_name = "MULTIADDR|none")]
    listen: Vec<String>,
}

impl DaemonArgs {
    fn flags(&self) -> Result<Vec<(&'static str, Value)>, Error> {
        let mut flags = Vec::new();
        for (key, path) in [
            ("node.state_dir", &self.state_dir),
            ("node.identity_file", &self.identity_file),
            ("node.swarm_key_file", &self.swarm_key_file),
        ] {
            if let Some(path) = path {
                flags.push((key, Value::Text(absolute(path)?)));
            }
        }
        if self.relay_only {
            flags.push(("node.relay_only", Value::Switch(true)));
        }
        if !self.listen.is_empty() {
            flags.push(("transport.listen", Value::List(self.listen.clone())));
        }
        Ok(flags)
    }
}

/// A path that stays the same file wherever the daemon works.
fn absolute(path: &PathBuf) -> Result<String, Error> {
    let shown = path.display();
    std::path::absolute(path)
        .map(|p| p.display().to_string())
        .map_err(|e| wrong(Code::File, format!("{shown:?} is no path: {e}")))
}

pub(super) fn run(args: DaemonArgs, context: &Context, entry: Entry) -> Result<Outcome, Error> {
    log::wanted()?;
    let mut flags = args.flags()?;
    flags.extend(socket_flag(context));
    let config = load(args.config, flags, context)?;
    if args.check {
        (entry.preflight)(&config)?;
        let done = Response::Done(Done {
            message: "ok".to_owned(),
            changed: false,
        });
        return Outcome::of(&done, context.style);
    }
    log::to_stderr(&config.log_level, context);
    for found in config.idle() {
        tracing::warn!("{found} ({})", found.code);
    }
    for (path, why) in &config.skipped {
        tracing::info!("not read: {} ({why})", path.display());
    }
    (entry.run)(config).map_err(failure)?;
    Ok(Outcome::default())
}

/// An error that knows its code keeps it; any other is a plain failure with everything it was doing.
fn failure(error: anyhow::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(other) => Error::new(ErrorKind::Failed, Code::Failed, format!("{other:#}")),
    }
}

#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    /// Where to listen, unless systemd hands a socket over
    #[arg(long, value_name = "PATH", default_value = helper::DEFAULT_SOCKET)]
    listen: PathBuf,
    /// The user whose daemon is served, beside root
    #[arg(long, value_name = "NAME|UID", default_value = helper::serve::DEFAULT_USER)]
    user: String,
    /// Socket of a container engine that may be looked at, beside Docker's and podman's usual ones; may be repeated
    #[arg(long, value_name = "PATH")]
    engine: Vec<PathBuf>,
}

pub(super) fn helper(args: HelperArgs, context: &Context) -> Result<Outcome, Error> {
    log::wanted()?;
    let level = std::env::var("BYWAY_LOG").unwrap_or_default();
    log::to_stderr(if level.is_empty() { "info" } else { &level }, context);
    helper::serve::run(&args.listen, &args.user, args.engine)
        .map_err(|error| Error::new(ErrorKind::Failed, Code::Helper, format!("{error:#}")))?;
    Ok(Outcome::default())
}

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// Configuration of the daemon that is gone [default: BYWAY_CONFIG, else /etc/byway/byway.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its state directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Remove what any byway daemon left on this machine; refused while one runs here
    #[arg(long)]
    all: bool,
    /// Leave the TAPs that a virtual machine has open, set down, for a daemon that starts again
    #[arg(long)]
    keep_guests: bool,
}

pub(super) fn cleanup(
    args: CleanupArgs,
    context: &Context,
    entry: Entry,
) -> Result<Outcome, Error> {
    let mut flags = socket_flag(context);
    if let Some(path) = &args.state_dir {
        flags.push(("node.state_dir", Value::Text(absolute(path)?)));
    }
    let config = load(args.config, flags, context)?;
    let guests = if args.keep_guests {
        Guests::Keep
    } else {
        Guests::Remove
    };
    let done = (entry.cleanup)(&config, args.all, guests)?;
    // A line for each thing.
    let text: String = done
        .message
        .lines()
        .map(|line| print::clean(line) + "\n")
        .collect();
    Ok(Outcome {
        text,
        ..Outcome::of(&Response::Done(done), context.style)?
    })
}
