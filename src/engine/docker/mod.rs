//! A client of the Docker engine's API, as far as following containers needs it. It never changes anything at the engine.
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

/// Sockets that engines listen on unless told otherwise.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

/// Why a container cannot be attached, or an engine not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Not what an engine would call a container.
    #[error(
        "{0:?} is no container name or ID: letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    Name(String),
    /// `$DOCKER_HOST` names something other than a unix socket.
    #[error("the Docker engine at {0:?} is not on this machine: only unix:// sockets can be used")]
    Host(String),
    /// Nobody listens on the engine's socket, or this process may not use it.
    #[error("ask the Docker engine at {}: {source}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The error that the kernel gave.
        source: io::Error,
    },
    /// The engine did not answer in time.
    #[error("the Docker engine at {} did not answer in {} s", .0.display(), client::TIMEOUT.as_secs())]
    Timeout(PathBuf),
    /// The engine has no such container.
    #[error("no container {0:?} at the Docker engine")]
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
    #[error("the Docker engine at {} answered {what}", socket.display())]
    Answer {
        /// The socket that answered.
        socket: PathBuf,
        /// What was wrong with the answer, in words.
        what: String,
    },
}

impl DockerError {
    /// A command to try next; empty where there is none.
    pub fn hint(&self) -> String {
        match self {
            DockerError::Name(_) | DockerError::NotFound(_) => "docker ps".to_owned(),
            DockerError::Host(_) => "DOCKER_HOST=unix:///run/docker.sock".to_owned(),
            DockerError::Unreachable { .. } | DockerError::Timeout(_) => {
                "systemctl status docker".to_owned()
            }
            DockerError::NotRunning { name, .. } => format!("docker start {name}"),
            DockerError::HostNetwork(_) => "start the container without --network host".to_owned(),
            DockerError::Answer { .. } => String::new(),
        }
    }
}

/// The socket of the engine: `host` (`unix://PATH` or a path), else `$DOCKER_HOST`, else the first default that exists.
///
/// # Errors
/// [`DockerError::Host`] where it is not a unix socket.
pub fn socket(host: Option<&str>) -> Result<PathBuf, DockerError> {
    let from_environment = || std::env::var("DOCKER_HOST").ok();
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
            let found = SOCKETS.into_iter().find(|s| Path::new(s).exists());
            Ok(PathBuf::from(found.unwrap_or("/run/docker.sock")))
        }
    }
}
