//! What the daemon writes to standard error, and `BYWAY_LOG`, which says how much.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Context;
use super::value::wrong;
use crate::api::types::Error;
use crate::model::members::printable;

/// The environment of `daemon`, for its help.
pub(super) const HELP: &str = "\
Environment:
  BYWAY_LOG  How much is logged: off, error, warn, info, debug or trace [default: info].
             Single parts as PART=LEVEL, separated by commas: info,byway::dns=debug,libp2p_swarm=info";

/// Our own name, which every part of the program begins with.
const OWN: &str = "byway";

/// Libraries that a flood of a peer or a busy network would make write line after line.
const NOISY: [(&str, LevelFilter); 3] = [
    ("libp2p_request_response", LevelFilter::ERROR),
    ("libp2p_swarm", LevelFilter::ERROR),
    ("libp2p_mdns", LevelFilter::OFF),
];

/// What `BYWAY_LOG` asks for, over what is written where it is not set.
///
/// # Errors
/// `E-LOG`.
fn levels(text: &str) -> Result<Targets, Error> {
    let mut targets = Targets::new().with_default(LevelFilter::WARN).with_target(OWN, LevelFilter::INFO);
    targets = targets.with_targets(NOISY);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (of, level) = part.split_once('=').unwrap_or((OWN, part));
        let named = !of.is_empty() && of.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
        let level = match level {
            "off" => Some(LevelFilter::OFF),
            "error" => Some(LevelFilter::ERROR),
            "warn" => Some(LevelFilter::WARN),
            "info" => Some(LevelFilter::INFO),
            "debug" => Some(LevelFilter::DEBUG),
            "trace" => Some(LevelFilter::TRACE),
            _ => None,
        };
        let Some(level) = level.filter(|_| named) else {
            let message = format!(
                "BYWAY_LOG: {:?} is neither off, error, warn, info, debug, trace nor PART=LEVEL",
                printable(part)
            );
            return Err(wrong("E-LOG", message).hint("BYWAY_LOG=info,byway::dns=debug byway daemon"));
        };
        targets = targets.with_target(of, level);
    }
    Ok(targets)
}

/// What `BYWAY_LOG` of this process asks for; empty is as if not set.
///
/// # Errors
/// `E-LOG`.
pub(super) fn wanted() -> Result<Targets, Error> {
    levels(&std::env::var_os("BYWAY_LOG").unwrap_or_default().to_string_lossy())
}

/// Logs to standard error from now on.
pub(super) fn to_stderr(wanted: Targets, context: &Context) {
    let colours = !context.colours_refused
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::stderr().is_terminal();
    // A log that cannot be written (a full disk, a reader that went away) must not end the daemon: the subscriber would
    // tell of it on the very same standard error, and panic.
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr).log_internal_errors(false);
    // A second subscriber would mean that someone embeds the command line and logs already.
    let _ = tracing_subscriber::registry().with(wanted).with(lines).try_init();
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_quiet_and_a_level_alone_is_ours() {
        let default = levels("").unwrap();
        assert!(default.would_enable("byway::daemon", &Level::INFO));
        assert!(!default.would_enable("byway::daemon", &Level::DEBUG));
        assert!(default.would_enable("hickory_server", &Level::WARN));
        assert!(!default.would_enable("hickory_server", &Level::INFO));
        assert!(!default.would_enable("libp2p_request_response::handler", &Level::WARN));
        assert!(!default.would_enable("libp2p_swarm", &Level::INFO));
        assert!(!default.would_enable("libp2p_mdns::behaviour", &Level::ERROR));
        let debug = levels("debug").unwrap();
        assert!(debug.would_enable("byway::dns", &Level::DEBUG) && !debug.would_enable("libp2p_swarm", &Level::DEBUG));
        let parts = levels("warn, byway::dns=trace,libp2p_mdns=debug,").unwrap();
        assert!(parts.would_enable("byway::dns::zone", &Level::TRACE));
        assert!(!parts.would_enable("byway::daemon", &Level::INFO));
        assert!(parts.would_enable("libp2p_mdns", &Level::DEBUG));
        for wrong in ["loud", "INFO", "byway=", "=info", "byway=loud", "a b=info", "info;debug", "3"] {
            assert_eq!(levels(wrong).unwrap_err().code, "E-LOG", "{wrong}");
        }
    }
}
