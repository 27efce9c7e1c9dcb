//! What the daemon writes to standard error; `log.level` says how much, and `BYWAY_LOG` is its variable.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::Subscriber;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use super::Context;
use super::value::wrong;
use crate::api::types::Error;
use crate::config::log::levels;
use crate::model::error::Code;
use crate::text;

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

/// Events as a line each, whatever others had to say in them: nothing but the subscriber's own colours drives a terminal.
fn lines<S, W>(colours: bool, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let fields = debug_fn(|out, field, value| {
        let said = text::plain(&format!("{value:?}"));
        match field.name() {
            "message" => write!(out, "{said}"),
            name => write!(out, "{name}={said}"),
        }
    });
    // A log that cannot be written (a full disk, a reader that went away) must not end the daemon: the subscriber would
    // tell of it on the very same standard error, and panic.
    tracing_subscriber::fmt::layer()
        .fmt_fields(fields.delimited(" "))
        .with_ansi(colours)
        .with_writer(writer)
        .log_internal_errors(false)
}

/// Logs to standard error from now on.
pub(super) fn to_stderr(level: &str, context: &Context) {
    let (wanted, handle) = reload::Layer::new(levels(level).unwrap_or_default());
    let _ = LEVELS.set(handle);
    let colours = !context.colours_refused
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::stderr().is_terminal();
    // A second subscriber would mean that someone embeds the command line and logs already.
    let _ = tracing_subscriber::registry()
        .with(wanted)
        .with(lines(colours, std::io::stderr))
        .try_init();
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_peers_say_is_one_line_of_the_log_and_drives_no_terminal() {
        for colours in [false, true] {
            let kept = Kept::default();
            let writer = kept.clone();
            let lines = lines(colours, move || writer.clone());
            let subscriber = tracing_subscriber::registry().with(lines);
            tracing::subscriber::with_default(subscriber, || {
                let said = "a\x1b[2J\n\u{202e}forged\u{9b}";
                tracing::info!(said, error = %said, "{said}");
            });
            let logged = String::from_utf8(kept.0.lock().clone()).unwrap();
            assert_eq!(logged.matches('\n').count(), 1, "{logged:?}");
            assert!(
                logged.ends_with('\n') && logged.contains("\\u{202e}forged"),
                "{logged:?}"
            );
            assert!(
                !logged.contains("\x1b[2J") && logged.contains("error=a\\u{1b}[2J"),
                "{logged:?}"
            );
            assert_eq!(logged.contains("\x1b["), colours, "{logged:?}");
            let hidden = |c: &char| !matches!(c, '\n' | '\x1b') && !text::is_plain(*c);
            assert_eq!(logged.chars().find(hidden), None, "{logged:?}");
        }
    }
}
