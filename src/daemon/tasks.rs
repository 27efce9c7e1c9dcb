//! The tasks of a daemon, and what is said of how they ended.

use anyhow::anyhow;
use tokio::task::{JoinError, JoinSet};

use super::cleanup;
use crate::api::types::{Error, ErrorKind};
use crate::config::Config;
use crate::host::Failure;
use crate::model::error::Code;

/// The tasks of a daemon, by name. Each runs until it is told to stop: one that ends by itself ends the daemon.
#[derive(Default)]
pub(super) struct Tasks(pub JoinSet<(&'static str, anyhow::Result<()>)>);

/// A task that has ended.
pub(super) type Ended = Result<(&'static str, anyhow::Result<()>), JoinError>;

impl Tasks {
    pub fn start(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// The same for one that cannot fail.
    pub fn keep(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.start(name, async move {
            task.await;
            Ok(())
        });
    }
}

/// How it went: `early` ended before it was told to, `left` is what the reconciler could not remove.
pub(super) fn outcome(
    early: Option<Ended>,
    left: Option<Vec<Failure>>,
    config: &Config,
) -> Result<(), Error> {
    let why = match early {
        None => return nothing_left(left, config),
        Some(Ok((name, result))) => {
            let why = result
                .err()
                .unwrap_or_else(|| anyhow!("it ended by itself"));
            format!("task {name} ended early: {why:#}")
        }
        Some(Err(panic)) => format!("a task died: {panic}"),
    };
    Err(Error::new(ErrorKind::Failed, Code::Task, why))
}

/// Whether a stop removed everything. `left` is unknown where the host did not end in time.
fn nothing_left(left: Option<Vec<Failure>>, config: &Config) -> Result<(), Error> {
    let text = match left {
        Some(left) if left.is_empty() => return Ok(()),
        Some(left) => left
            .iter()
            .map(|f| format!("{}: {}", f.what, f.why))
            .collect::<Vec<_>>()
            .join("; "),
        None => "the kernel did not let go in time".to_owned(),
    };
    Err(Error::new(
        ErrorKind::Failed,
        Code::NotRemoved,
        format!("stopped, but not everything was removed: {text}"),
    )
    .hint(cleanup::again(config, "")))
}
