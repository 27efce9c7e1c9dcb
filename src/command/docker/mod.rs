//! Docker's networks over subnets: what its engine asks over the plugin's socket, carried out.
//!
//! A call is decided by the node and answered; it never asks the engine, which waits for the answer. Once the engine has
//! moved a link into a container, the kernel tells ([`follow`]), and the workload is adopted.
//!
//! Whether the plugin is installed, and which network of the engine's is over which subnet, is kept in one file of the state
//! directory: the engine makes a network once and never speaks of it again.

mod adopt;
mod calls;
mod kept;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{Commands, done};
use crate::api::types::{Error, ErrorKind, Problem, Response};
use crate::config::Config;
use crate::engine::docker;
use crate::engine::plugin::{Handler, Server};
use crate::helper;
use crate::model::error::Code;
use crate::model::id::SubnetId;
use crate::node::warning;

pub(crate) use adopt::follow;
use kept::Kept;
pub(crate) use names::follow as follow_names;

/// How a daemon that may not make the socket has systemd make it, which makes none for a service that runs.
const BY_SYSTEMD: &str = "systemctl stop byway && systemctl enable --now byway-docker.socket && systemctl start byway      \
    (then the same again)";
/// Name of the plugin's socket: that by which engines know the driver.
const SOCKET: &str = "byway.sock";

/// What this daemon is to Docker.
pub(crate) struct Docker {
    state_dir: PathBuf,
    plugin_dir: PathBuf,
    /// One change at a time, of the file and of what follows from it.
    kept: tokio::sync::Mutex<Kept>,
    server: Mutex<Option<Server>>,
    /// Who carries calls out, for the server; none until the daemon has begun.
    handler: watch::Sender<Option<Handler>>,
    known: Mutex<Known>,
    /// Why what is kept cannot be read; none once it can.
    damage: Mutex<Option<Error>>,
    /// Fired when it is installed, removed, or told of another engine.
    changed: Notify,
    /// Addresses that the engine has and that no endpoint has yet, each until when.
    promised: tokio::sync::Mutex<BTreeMap<IpAddr, Instant>>,
}

/// What was said of endpoints since the daemon began.
#[derive(Debug, Default)]
struct Known {
    /// Paths of the namespaces that endpoints are about to get.
    sandboxes: BTreeMap<String, String>,
    /// Endpoints whose link is taken out of its container.
    left: BTreeSet<String>,
    /// Labels of endpoints whose port maps were made.
    mapped: BTreeSet<(String, String)>,
    /// Networks that were made, each with when.
    made: BTreeMap<String, Instant>,
}

impl Docker {
    /// Reads what is kept, and serves the plugin's socket where it is installed: before all else of the daemon, for every
    /// volume command waits for the answer. `made` is a socket that was handed over.
    pub(crate) fn begin(config: &Config, made: Option<UnixListener>) -> Docker {
        let (kept, damage) = match Kept::read(&config.state_dir) {
            Ok(kept) => (kept, None),
            Err(error) => {
                tracing::warn!(%error, "Docker's plugin is not served");
                (Kept::default(), Some(error))
            }
        };
        let docker = Docker {
            state_dir: config.state_dir.clone(),
            plugin_dir: config.docker_plugin_dir.clone(),
            server: Mutex::default(),
            handler: watch::Sender::new(None),
            known: Mutex::default(),
            damage: Mutex::new(damage),
            promised: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            kept: tokio::sync::Mutex::new(Kept::default()),
        };
        if (kept.installed || made.is_some())
            && !config.relay_only
            && let Err(error) = docker.serve(made)
        {
            tracing::warn!(error = error.message, "Docker's plugin is not served");
        }
        Docker {
            kept: tokio::sync::Mutex::new(kept),
            ..docker
        }
    }

    /// The problem of what is kept and cannot be read.
    fn damage(&self) -> Vec<Problem> {
        let damage = self.damage.lock();
        let problem = |error: &Error| {
            let message = format!("Docker's plugin is not served: {}", error.message);
            let help = match error.hint.as_str() {
                "" => {
                    "mend that file, or remove it where the engine has no network of byway's; then: byway integration install docker"
                }
                hint => hint,
            };
            warning(Code::StateDamaged, message, help.to_owned())
        };
        damage.iter().map(problem).collect()
    }

    /// Path of the socket.
    fn socket(&self) -> PathBuf {
        self.plugin_dir.join(SOCKET)
    }

    /// Serves the socket, where it is not yet.
    fn serve(&self, made: Option<UnixListener>) -> Result<(), Error> {
        let mut server = self.server.lock();
        if server.is_none() {
            let path = self.socket();
            let started = Server::start(&path, made, self.handler.subscribe());
            *server = Some(started.map_err(|error| {
                let message = format!("serve Docker's plugin at {}: {error}", path.display());
                // Its unit lets it write nowhere below /run but in its own directory.
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) {
                    return Error::new(ErrorKind::NotPermitted, Code::Permission, message)
                        .hint(BY_SYSTEMD);
                }
                Error::new(ErrorKind::Failed, Code::Docker, message)
            })?);
        }
        Ok(())
    }

    /// The engine's socket, where the plugin is installed.
    async fn engine(&self) -> Option<PathBuf> {
        let kept = self.kept.lock().await;
        let socket = docker::socket(kept.host.as_deref()).ok();
        socket.filter(|_| kept.installed)
    }

    /// The engine's networks over a subnet, each by the first digits of its ID.
    pub(crate) async fn networks_over(&self, subnet: SubnetId) -> Vec<String> {
        let kept = self.kept.lock().await;
        let over = kept
            .networks
            .iter()
            .filter(|(_, n)| n.subnet() == Some(subnet));
        over.map(|(id, _)| id.chars().take(12).collect()).collect()
    }

    /// Whether a network of the engine's is over a subnet.
    async fn has_network(&self, id: &str) -> bool {
        self.kept.lock().await.networks.contains_key(id)
    }

    /// Whether a network was made less than `age` ago: the engine may not list it yet.
    fn is_young(&self, id: &str, age: Duration) -> bool {
        let known = self.known.lock();
        known.made.get(id).is_some_and(|made| made.elapsed() < age)
    }

    /// The engine has a network no more.
    ///
    /// # Errors
    /// Where that cannot be saved: then it is kept.
    async fn forget_network(&self, id: &str) -> Result<(), Error> {
        let mut kept = self.kept.lock().await;
        let mut next = kept.clone();
        if next.networks.remove(id).is_some() {
            next.write(&self.state_dir).await?;
            *kept = next;
        }
        self.known.lock().made.remove(id);
        Ok(())
    }

    /// Has calls carried out from now on.
    pub(crate) fn open(&self, ctx: &Commands) {
        self.handler.send_replace(Some(calls::handler(ctx.clone())));
    }

    /// Serves the socket no more, and removes it.
    pub(crate) fn close(&self) {
        drop(self.server.lock().take());
        self.handler.send_replace(None);
    }
}

/// Removes a socket of the plugin that a killed daemon left: each volume command of the engine would wait for it. Whether
/// there was one.
pub(crate) fn remove_dead(config: &Config) -> bool {
    if !Kept::read(&config.state_dir).is_ok_and(|kept| kept.installed) {
        return false;
    }
    let path = config.docker_plugin_dir.join(SOCKET);
    let refused = std::os::unix::net::UnixStream::connect(&path)
        .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    refused && std::fs::remove_file(&path).is_ok()
}

/// `integration install docker`: the plugin is served from now on, also after restarts.
pub(super) async fn install(ctx: &Commands, host: Option<String>) -> Result<Response, Error> {
    ctx.platform.ready()?;
    let refused = |e: docker::DockerError| {
        Error::new(ErrorKind::Usage, Code::Docker, e.to_string())
            .hint(e.hint(docker::Brand::Docker))
    };
    let engine = docker::socket(host.as_deref()).map_err(refused)?;
    if ctx.asker.is_some() && host.is_some() && !helper::is_usual(&engine) {
        // What an engine tells is believed about every container of this machine.
        let message = format!("only root makes {} the machine's engine", engine.display());
        return Err(
            Error::new(ErrorKind::NotPermitted, Code::Permission, message).hint("the same as root"),
        );
    }
    let docker = &ctx.docker;
    let mut kept = docker.kept.lock().await;
    // What cannot be read now is not written over: it says which networks the engine has.
    Kept::read(&docker.state_dir)?;
    *docker.damage.lock() = None;
    let socket = |host: &Option<String>| docker::socket(host.as_deref()).ok();
    if let Some(id) = kept.networks.keys().next()
        && socket(&kept.host) != socket(&host)
    {
        let short: String = id.chars().take(12).collect();
        let message = format!("another engine has networks of byway's, as {short}");
        return Err(Error::new(ErrorKind::Conflict, Code::Docker, message)
            .hint("byway integration remove docker      (once it has none)"));
    }
    let next = Kept {
        installed: true,
        host,
        ..kept.clone()
    };
    let changed = *kept != next;
    docker.serve(None)?;
    if let Err(error) = next.write(&docker.state_dir).await {
        if !kept.installed {
            drop(docker.server.lock().take());
        }
        return Err(error);
    }
    *kept = next;
    docker.changed.notify_one();
    let message = format!("Docker's plugin is served at {}", docker.socket().display());
    Ok(done(message, changed))
}

/// `integration remove docker`: the plugin is served no more.
pub(super) async fn remove(ctx: &Commands) -> Result<Response, Error> {
    let docker = &ctx.docker;
    let mut kept = docker.kept.lock().await;
    if let Some(id) = kept.networks.keys().next() {
        let short: String = id.chars().take(12).collect();
        let message = format!("the Docker engine has networks of byway's: {short}");
        return Err(Error::new(ErrorKind::Conflict, Code::Docker, message)
            .hint(format!("docker network rm {short}")));
    }
    let next = Kept::default();
    let changed = kept.installed;
    next.write(&docker.state_dir).await?;
    *kept = next;
    drop(docker.server.lock().take());
    docker.changed.notify_one();
    Ok(done("Docker's plugin is served no more", changed))
}
