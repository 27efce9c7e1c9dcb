//! How much is logged (`log.level`): a level, and other levels for single parts of the program.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::model::members::printable;

/// Our own name, which every part of the program begins with.
const OWN: &str = "byway";

/// Libraries that a flood of a peer, a busy network or a daemon that stops would make write line after line.
const NOISY: [(&str, LevelFilter); 3] = [
    ("libp2p_request_response", LevelFilter::ERROR),
    ("libp2p_swarm", LevelFilter::ERROR),
    ("yamux", LevelFilter::ERROR),
];

/// What a text asks for, over what is written where it says nothing: `LEVEL` for all of byway, `PART=LEVEL` for one part,
/// separated by commas.
///
/// # Errors
/// The part that is neither.
pub fn levels(text: &str) -> Result<Targets, String> {
    let mut targets = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(OWN, LevelFilter::INFO);
    targets = targets.with_targets(NOISY);
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (of, level) = part.split_once('=').unwrap_or((OWN, part));
        let named = !of.is_empty()
            && of
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
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
            return Err(format!(
                "{:?} is neither off, error, warn, info, debug, trace nor PART=LEVEL",
                printable(part)
            ));
        };
        targets = targets.with_target(of, level);
    }
    Ok(targets)
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
        assert!(!default.would_enable("yamux::connection", &Level::WARN));
        let debug = levels("debug").unwrap();
        assert!(
            debug.would_enable("byway::dns", &Level::DEBUG)
                && !debug.would_enable("libp2p_swarm", &Level::DEBUG)
        );
        let parts = levels("warn, byway::dns=trace,libp2p_ping=debug,").unwrap();
        assert!(parts.would_enable("byway::dns::zone", &Level::TRACE));
        assert!(!parts.would_enable("byway::daemon", &Level::INFO));
        assert!(parts.would_enable("libp2p_ping", &Level::DEBUG));
        for wrong in [
            "loud",
            "INFO",
            "byway=",
            "=info",
            "byway=loud",
            "a b=info",
            "info;debug",
            "3",
        ] {
            assert!(levels(wrong).is_err(), "{wrong}");
        }
    }
}
