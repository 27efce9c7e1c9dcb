//! The composition root: builds every part, hands over what crosses between them, runs the tasks, stops them in order.
//!
//! ```text
//! start  config, keys, records read and checked (nothing touched) | sockets | tasks, first reconcile, ready
//! stop   api refuses -> swarm closes -> links drain -> host applies the empty config -> TUNs drop
//!        -> tasks of the protocols end -> port closes -> node lets go of the state directory            (5 s in all)
//! ```

mod apply_view;
mod build;
mod cleanup;
mod door;
mod freed;
mod handed;
mod load;
mod network;
mod platform;
mod port;
mod tasks;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use cleanup::cleanup;
pub use platform::Platform;

use self::build::{Built, build};
use self::tasks::{Running, outcome};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::command::docker::Docker;
use crate::command::{self, Commands};
use crate::config::Config;
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::report::notify;
use crate::service::{clock, join};
use crate::{helper, host};

/// Time from the first signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Open files that are asked for, as in the unit.
const DESCRIPTORS: u64 = 65_536;

/// Runs the daemon until a signal: `byway daemon`.
///
/// # Errors
/// [`Error`] with what failed and what to do, before anything was touched; or the name of a task that ended early.
pub fn run(config: Config) -> Result<(), Error> {
    // Keys are in this memory: no core file, and no other process of the same user that reads it.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "this process can be read by others of its user");
    }
    more_descriptors();
    helper::ask_at(&config.helper_socket);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("byway")
        .build()
        .map_err(|e| {
            Error::new(
                ErrorKind::Failed,
                Code::Runtime,
                format!("start the runtime: {e}"),
            )
        })?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(on_signal(stop.clone()));
        let platform = Platform::of(&config);
        serve(config, platform, stop).await
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// Takes as many descriptors as there may be, up to [`DESCRIPTORS`]: the soft limit of a shell is 1,024.
fn more_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(DESCRIPTORS);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "raise the limit of open files");
    }
}

/// Cancels on the first SIGTERM or SIGINT; a second one ends the process at once.
async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    stop.cancel();
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, () = tokio::time::sleep(STOP_WITHIN) => {} }
    std::process::exit(1);
}

/// Begins what the configuration declares. Then SIGHUP reads it again, like `byway reload`, and time leaves what is declared no
/// more. What has begun is ended before this returns.
async fn follow_configuration(commands: Commands, stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Before all else: a signal that nothing hears ends the process.
    let hangup = signal(SignalKind::hangup());
    command::reload::declared(&commands).await;
    if let Ok(mut hangup) = hangup {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = commands.settings.second_reading() => {
                    command::reload::leave_waiting(&commands).await;
                    continue;
                }
                heard = hangup.recv() => if heard.is_none() { break },
            }
            match command::call(&commands, Request::Reload).await {
                Ok(Response::Done(done)) => tracing::info!("{}", done.message),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "read the configuration again"),
            }
        }
    }
    // A daemon that hears no signal is no worse for it.
    stop.cancelled().await;
    Ok(())
}

/// Everything between reading the state and the last goodbye, on the platform it is told.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    config: Config,
    platform: Platform,
    stop: CancellationToken,
) -> Result<(), Error> {
    // Before all else: Docker waits for its plugins.
    let docker = Arc::new(Docker::begin(&config, handed::docker()));
    if platform.is_kernel() {
        host::nft::features::look().await;
    }
    let Built { commands, loops } = build(config, &platform, docker).await?;
    // Also where the start fails, or a part does not stop in time.
    let _ended = commands.mesh.ends_with();
    clock::begin(&commands.node)
        .await
        .map_err(failed(Code::Stopping))?;
    let mut running = Running::start(&commands, loops);
    commands.docker.open(&commands);
    join::resume(&commands.mesh).await;
    tracing::info!(peer = %commands.peers.peer(), name = %commands.config.node_name, "ready");
    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = running.next_ended() => ended,
    };
    tracing::info!("stopping");
    commands.docker.close();
    notify::stopping();
    let within = STOP_WITHIN.saturating_sub(Duration::from_millis(500));
    let left = running.stop(&commands, within).await;
    outcome(early, left, &commands.config)
}

/// The error of a part that did not come to be.
fn failed(code: Code) -> impl Fn(anyhow::Error) -> Error {
    move |error| Error::new(ErrorKind::Failed, code, format!("{error:#}"))
}

/// Eight hex digits of the key: marks this daemon's objects in the kernel.
fn instance_of(peer: PeerId) -> String {
    data_encoding::HEXLOWER.encode(peer.0.get(..4).unwrap_or_default())
}

/// Whether this machine lets a daemon work: `byway daemon --check`.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub fn preflight(config: &Config) -> Result<(), Error> {
    let platform = Platform::of(config);
    if platform.is_kernel()
        && let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    {
        runtime.block_on(host::nft::features::look());
    }
    platform.kind().preflight()?;
    network::usable(config)?;
    if config.relay_only {
        // A relay needs no privilege, only a place of its own.
        let socket = config.socket.parent();
        [Some(config.state_dir.as_path()), socket]
            .into_iter()
            .flatten()
            .try_for_each(may_write)?;
    }
    Ok(())
}

/// Whether this user may write in a directory, or make it.
///
/// # Errors
/// Refuses with `E-PERMISSION` where this user may not write into the directory.
fn may_write(dir: &Path) -> Result<(), Error> {
    use nix::unistd::{AccessFlags, access};
    // Of a directory that is not there its nearest one that is counts.
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|why| {
        let message = format!("cannot write in {}: {}", dir.display(), why.desc());
        Error::new(ErrorKind::NotPermitted, Code::Permission, message)
            .hint("byway daemon --relay-only --state-dir DIR --socket PATH      (where this user may write)")
    })
}

#[cfg(test)]
pub(crate) mod tests;
