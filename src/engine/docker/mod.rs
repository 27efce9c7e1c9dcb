//! A client of the Docker engine's API, as far as following containers needs it. It never changes anything at the engine.
//!
//! Podman's service speaks the same API on a socket of its own: [`Brand`] says which of them is asked.
//!
//! | file | what it does |
//! |---|---|
//! | `client.rs` | asks one question, or holds one connection that tells lines without end |
//! | `inspect.rs` | reads what the engine says of one container, and which of several is meant |
//! | `events.rs` | tells what happens at an engine for as long as it is asked, over restarts of the engine |

use std::io;
use std::path::{Path, PathBuf};

pub mod client;
pub mod events;
pub mod inspect;
#[cfg(test)]
mod testing;

pub use events::{Event, Events, News};
pub use inspect::{Container, State, inspect};

/// Whose engine speaks the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brand {
    /// The Docker engine.
    Docker,
    /// Podman's service, which need not run for containers to run.
    Podman,
}

impl Brand {
    /// The command line of the engine.
    pub fn program(self) -> &'static str {
        match self {
            Brand::Docker => "docker",
            Brand::Podman => "podman",
        }
    }

    /// The variable by which the engine's own programs are told of its socket.
    pub fn variable(self) -> &'static str {
        match self {
            Brand::Docker => "DOCKER_HOST",
            Brand::Podman => "CONTAINER_HOST",
        }
    }

    /// Sockets that the engine listens on unless told otherwise, the usual one first.
    fn sockets(self) -> [&'static str; 2] {
        match self {
            Brand::Docker => ["/run/docker.sock", "/var/run/docker.sock"],
            Brand::Podman => ["/run/podman/podman.sock", "/var/run/podman/podman.sock"],
        }
    }

    /// The unit of systemd by which it answers.
    fn unit(self) -> &'static str {
        match self {
            Brand::Docker => "docker",
            Brand::Podman => "podman.socket",
        }
    }
}

/// Why a container cannot be attached, or an engine not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Not what an engine would call a container.
    #[error(
        "{0:?} is no container name or ID: letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    Name(String),
    /// What names the engine is something other than a unix socket.
    #[error(
        "the container engine at {0:?} is not on this machine: only unix:// sockets can be used"
    )]
    Host(String),
    /// Nobody listens on the engine's socket, or this process may not use it.
    #[error("ask the container engine at {}: {source}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The error that the kernel gave.
        source: io::Error,
    },
    /// The engine did not answer in time.
    #[error("the container engine at {} did not answer in {} s", .0.display(), client::TIMEOUT.as_secs())]
    Timeout(PathBuf),
    /// The engine has no such container.
    #[error("no container {0:?} at the engine")]
    NotFound(String),
    /// The container is created, stopped, half way paused, or dead.
    #[error("container {name:?} is not running (it is {state})")]
    NotRunning {
        /// Name of the container.
        name: String,
        /// The engine's word for its state.
        state: State,
    },
    /// It lives in the host's own network namespace.
    #[error("container {0:?} uses the host's network: it has no namespace of its own to attach")]
    HostNetwork(String),
    /// The answer is not the API's, or is longer than what is read.
    #[error("the container engine at {} answered {what}", socket.display())]
    Answer {
        /// The socket that answered.
        socket: PathBuf,
        /// What was wrong with the answer, in words.
        what: String,
    },
}

impl DockerError {
    /// A command to try next; empty where there is none.
    pub fn hint(&self, brand: Brand) -> String {
        let program = brand.program();
        match self {
            DockerError::Name(_) | DockerError::NotFound(_) => format!("{program} ps"),
            DockerError::Host(_) => {
                let [usual, _] = brand.sockets();
                format!("{}=unix://{usual}", brand.variable())
            }
            DockerError::Unreachable { .. } | DockerError::Timeout(_) => {
                format!("systemctl status {}", brand.unit())
            }
            DockerError::NotRunning { name, .. } => format!("{program} start {name}"),
            DockerError::HostNetwork(_) => "start the container without --network host".to_owned(),
            DockerError::Answer { .. } => String::new(),
        }
    }
}

/// The socket of the Docker engine, as [`socket_of`] finds it.
///
/// # Errors
/// [`DockerError::Host`] where it is not a unix socket.
pub fn socket(host: Option<&str>) -> Result<PathBuf, DockerError> {
    socket_of(Brand::Docker, host)
}

/// The socket of an engine: `host` (`unix://PATH` or a path), else what its [variable](Brand::variable) says, else the first
/// default that exists.
///
/// # Errors
/// [`DockerError::Host`] where it is not a unix socket.
pub fn socket_of(brand: Brand, host: Option<&str>) -> Result<PathBuf, DockerError> {
    let from_environment = || std::env::var(brand.variable()).ok();
    match host
        .map(str::to_owned)
        .or_else(from_environment)
        .filter(|h| !h.is_empty())
    {
        Some(host) => {
            let path = host.strip_prefix("unix://").unwrap_or(&host);
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err(DockerError::Host(host.chars().take(200).collect()))
            }
        }
        None => {
            let [usual, _] = brand.sockets();
            let found = brand.sockets().into_iter().find(|s| Path::new(s).exists());
            Ok(PathBuf::from(found.unwrap_or(usual)))
        }
    }
}
