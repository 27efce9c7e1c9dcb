//! One look at a workload's container: whether it is here, and where.

use std::path::Path;

use crate::engine::docker::inspect::{by_id, named, running};
use crate::engine::docker::{Container, DockerError, Event, State};
use crate::helper;
use crate::host::netns::{self, NetnsError};
use crate::model::followed::{Present, Why};
use crate::model::host::{NetnsRef, ResolvConf};
use crate::node::{Pursued, Seen};

/// Why a container that was found has no place to attach.
#[derive(Debug)]
pub(in crate::command) enum Miss {
    Engine(DockerError),
    Namespace(NetnsError),
    /// It was started anew between two looks.
    Anew,
}

impl From<DockerError> for Miss {
    fn from(error: DockerError) -> Miss {
        Miss::Engine(error)
    }
}

/// The namespace that a container lives in, and the file that names its resolver.
pub(in crate::command) async fn lives(
    engine: &Path,
    found: &Container,
) -> Result<(NetnsRef, ResolvConf), Miss> {
    let pid = found.process()?;
    // An engine that is not root's may say anything. What it tells of is its own user's, or is refused.
    let user = (found.told_by != 0).then_some(found.told_by);
    let netns = netns::of_pid(pid, user).await.map_err(Miss::Namespace)?;
    // A process that ended in between may have left its number to another: then the engine says so now.
    let still = by_id(engine, &found.id).await?;
    if still.pid != found.pid || still.told_by != found.told_by {
        return Err(Miss::Anew);
    }
    let shared = found
        .network_mode
        .strip_prefix("container:")
        .unwrap_or(&found.id);
    let resolv_conf = match &found.resolv_conf {
        Some(path) if user.is_none() && is_own(path, &[&found.id, shared], pid).await? => {
            ResolvConf::Replace(path.clone())
        }
        _ => ResolvConf::None,
    };
    Ok((netns, resolv_conf))
}

/// Whether a resolver file is the one that the engine made for that container.
async fn is_own(path: &Path, ids: &[&str], pid: u32) -> Result<bool, Miss> {
    helper::is_engines_own(path, ids, pid)
        .await
        .map_err(|error| Miss::Namespace(error.into()))
}

/// Whether an event may be about a workload: about its container, or about one that takes its place.
pub(super) fn concerns(workload: &Pursued, event: &Event) -> bool {
    let Some((name, id)) = workload.target.followed() else {
        return false;
    };
    let bears = |label: &String| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        event.attributes.get(key).is_some_and(|v| v == value)
    };
    let alike = !workload.labels.is_empty() && workload.labels.iter().all(bears);
    let named = event.attributes.get("name").is_some_and(|n| n == name);
    event.id == id || named || alike
}

/// Looks at a workload's container.
///
/// # Errors
/// Where the engine does not answer: then nothing is known.
pub(super) async fn look(engine: &Path, workload: &Pursued) -> Result<Seen, DockerError> {
    let Some((name, id)) = workload.target.followed() else {
        return Ok(Seen::Away(Why::NoNamespace, None));
    };
    let found = match by_id(engine, id).await {
        Ok(found) if found.pid.is_some() => Some(found),
        Ok(found) => Some(made_alike(engine, workload).await?.unwrap_or(found)),
        Err(DockerError::NotFound(_)) => match made_alike(engine, workload).await? {
            Some(other) => Some(other),
            None => match named(engine, name).await? {
                Some(other) => known(by_id(engine, &other).await)?,
                None => None,
            },
        },
        Err(error) => return Err(error),
    };
    match found {
        Some(found) => here(engine, workload, found).await,
        None => Ok(Seen::Away(Why::Removed, None)),
    }
}

/// A running container that compose made to take the place of this one.
async fn made_alike(engine: &Path, workload: &Pursued) -> Result<Option<Container>, DockerError> {
    if workload.labels.is_empty() {
        return Ok(None);
    }
    let ids = running(engine, &workload.labels).await?;
    let others = ids
        .iter()
        .filter(|id| workload.target.container() != Some(id));
    // While there are several it is not known which one stays.
    match others.collect::<Vec<_>>()[..] {
        [only] => known(by_id(engine, only).await),
        _ => Ok(None),
    }
}

/// A container that the engine knows.
fn known(found: Result<Container, DockerError>) -> Result<Option<Container>, DockerError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What that container means for the workload.
async fn here(engine: &Path, workload: &Pursued, found: Container) -> Result<Seen, DockerError> {
    let target = workload
        .target
        .follows(found.name.clone(), found.id.clone());
    let Some(target) = target else {
        return Ok(Seen::Away(Why::NoNamespace, None));
    };
    let away = |why| Ok(Seen::Away(why, Some(target.clone())));
    if found.pid.is_none() {
        return away(match found.state {
            State::Restarting => Why::Restarting,
            _ => Why::Stopped,
        });
    }
    match lives(engine, &found).await {
        Ok((netns, resolv_conf)) => Ok(Seen::Here(Present {
            target,
            netns,
            resolv_conf,
            labels: found.compose(),
            paused: found.state == State::Paused,
        })),
        Err(Miss::Engine(DockerError::HostNetwork(_))) => away(Why::NoNamespace),
        // It ended while it was looked at, or began anew: the event of that is on its way, and another look with it.
        Err(
            Miss::Engine(DockerError::NotFound(_))
            | Miss::Namespace(NetnsError::Missing(_) | NetnsError::Gone(_))
            | Miss::Anew,
        ) => away(Why::Stopped),
        // Nobody looked, for the helper begins anew or has too much to do: then nothing is known.
        Err(Miss::Namespace(NetnsError::Helper(
            error @ (helper::Error::Unreachable { .. } | helper::Error::Refused(_)),
        ))) => Err(DockerError::Unreachable {
            socket: engine.to_owned(),
            source: std::io::Error::other(error),
        }),
        Err(Miss::Namespace(error)) => {
            tracing::warn!(%error, workload = %workload.name, "the namespace of a container that runs cannot be used");
            away(Why::NoNamespace)
        }
        Err(Miss::Engine(error)) => Err(error),
    }
}
