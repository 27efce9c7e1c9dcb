//! What the daemon writes to standard error; `log.level` says how much, and `BYWAY_LOG` is its variable.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use super::Context;
use super::value::wrong;
use crate::api::types::Error;
use crate::config::log::levels;
use crate::model::error::Code;

/// The environment of `daemon`, for its help.
pub(super) const HELP: &str = "\
Environment:
  BYWAY_LOG  How much is logged: off, error, warn, info, debug or trace [default: info].
             Single parts as PART=LEVEL, separated by commas: info,byway::dns=debug,libp2p_swarm=info. It stands before
             log.level of the configuration, which is also taken over by byway reload";

/// Changes what is logged while the daemon runs.
static LEVELS: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Checks `BYWAY_LOG` of this process, ahead of the configuration that it is a part of; empty is as if not set.
///
/// # Errors
/// `E-LOG`.
pub(super) fn wanted() -> Result<(), Error> {
    let text = std::env::var_os("BYWAY_LOG").unwrap_or_default();
    levels(&text.to_string_lossy()).map(drop).map_err(|e| {
        wrong(Code::Log, format!("BYWAY_LOG: {e}"))
            .hint("BYWAY_LOG=info,byway::dns=debug byway daemon")
    })
}

/// Logs what `log.level` says from now on, where `to_stderr` has begun it.
pub fn change(level: &str) {
    let (Some(handle), Ok(levels)) = (LEVELS.get(), levels(level)) else {
        return;
    };
    if let Err(error) = handle.reload(levels) {
        tracing::warn!(%error, "change what is logged");
    }
}

/// Logs to standard error from now on.
pub(super) fn to_stderr(level: &str, context: &Context) {
    let (wanted, handle) = reload::Layer::new(levels(level).unwrap_or_default());
    let _ = LEVELS.set(handle);
    let colours = !context.colours_refused
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::stderr().is_terminal();
    // A log that cannot be written (a full disk, a reader that went away) must not end the daemon: the subscriber would
    // tell of it on the very same standard error, and panic.
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // A second subscriber would mean that someone embeds the command line and logs already.
    let _ = tracing_subscriber::registry()
        .with(wanted)
        .with(lines)
        .try_init();
}
