//! Names and labels of containers, as the engine tells them after their links were made; and endpoints that it has no more.
//!
//! Each connection to the engine begins with a look at all its networks: what happened before it, or while this daemon or
//! the engine was away, is made good by that. Then its events say what is new.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::kept::Network;
use crate::api::types::{Problem, Request};
use crate::command::Commands;
use crate::engine::docker::{DockerError, Events, News};
use crate::engine::plugin::{Place, members, places};
use crate::model::error::Code;
use crate::model::id::{Name, SubnetId};
use crate::model::label::{HEALTH, MAP, NAME, likely_map, map_of};
use crate::model::members::printable;
use crate::node::{Asker, Container, ContainerNames, warning};

/// Containers that are asked for at the same time.
const AT_ONCE: usize = 8;
/// Containers that wait to be asked for.
const MOST_WAITING: usize = 1024;
/// Port maps of one container by its label.
const MOST_MAPS: usize = 64;
/// An endpoint as young as this may not be in the engine's lists yet.
const YOUNG: Duration = Duration::from_secs(10);

/// Follows the engine for as long as the plugin is installed, until `stop`.
pub(crate) async fn follow(ctx: Commands, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let changed = ctx.docker.changed.notified();
        let socket = ctx.docker.engine().await;
        let damage = ctx.docker.damage();
        ctx.node.tell(Asker::DockerFile, damage).await?;
        let engine = socket.clone().map(|socket| (socket, true));
        ctx.node.plugin_engine(engine).await?;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // Installed, removed or told of another engine: begin anew.
            () = changed => {}
            () = listen(&ctx, socket) => {}
        }
    }
}

/// Listens to one engine without end.
async fn listen(ctx: &Commands, socket: Option<PathBuf>) {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let mut events = Events::new(&socket, &["network", "container"], &["connect", "rename"]);
    // Containers that are to be looked at, each once however much is told of it; beyond their bound all are looked at.
    let (mut waiting, mut looks) = (BTreeSet::new(), JoinSet::new());
    let mut again: Option<tokio::time::Instant> = None;
    loop {
        while looks.len() < AT_ONCE
            && let Some(container) = waiting.pop_first()
        {
            let (ctx, socket): (Commands, PathBuf) = (ctx.clone(), socket.clone());
            looks.spawn(async move {
                let container: String = container;
                name(&ctx, &socket, &container).await;
            });
        }
        let due = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let news = tokio::select! {
            Some(_) = looks.join_next(), if !looks.is_empty() => continue,
            news = events.next() => Some(news),
            () = due => None,
        };
        match news {
            Some(News::Event(event)) => {
                let container = match event.kind.as_str() {
                    "container" => Some(event.id),
                    _ if ctx.docker.has_network(&event.id).await => {
                        event.attributes.get("container").cloned()
                    }
                    _ => None,
                };
                match container {
                    Some(container) if waiting.len() < MOST_WAITING => {
                        waiting.insert(container);
                    }
                    Some(_) => again = Some(again.unwrap_or(tokio::time::Instant::now() + YOUNG)),
                    None => {}
                }
            }
            Some(News::Gone(error)) => {
                tracing::debug!(%error, "the Docker engine tells nothing");
                drop(ctx.node.plugin_engine(Some((socket.clone(), false))).await);
            }
            Some(News::Standing) | None => match stands(ctx, &socket).await {
                Ok(young) => {
                    again = young.then(|| tokio::time::Instant::now() + YOUNG);
                }
                Err(error) => tracing::warn!(%error, "look at the Docker engine's networks"),
            },
        }
    }
}

/// The engine answers: what is here is compared with what it has.
async fn stands(ctx: &Commands, socket: &Path) -> Result<bool, DockerError> {
    let answers = Some((socket.to_owned(), true));
    drop(ctx.node.plugin_engine(answers).await);
    reconcile(ctx, socket).await
}

/// Compares what is here with what the engine has: what it has no more is given back. Whether something was too young to
/// tell.
async fn reconcile(ctx: &Commands, socket: &Path) -> Result<bool, DockerError> {
    let networks = ctx.docker.kept.lock().await.networks.clone();
    let staged = ctx.node.staged_endpoints().await.unwrap_or_default();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (mut here, mut containers, mut young) = (BTreeSet::new(), BTreeSet::new(), false);
    let mut gone = Vec::new();
    for (id, network) in &networks {
        match members(socket, id).await? {
            Some(found) => {
                containers.extend(found.keys().cloned());
                here.extend(found.into_values());
            }
            None if ctx.docker.is_young(id, YOUNG) => young = true,
            None => {
                tracing::info!(
                    network = id,
                    subnet = network.subnet,
                    "the engine has the network no more"
                );
                gone.push(id);
            }
        }
    }
    // Of a subnet that no network is known over nothing is known: what is there stays.
    let known: BTreeSet<SubnetId> = networks.values().filter_map(Network::subnet).collect();
    for endpoint in staged
        .iter()
        .filter(|endpoint| !here.contains(endpoint.id()) && known.contains(&endpoint.subnet))
    {
        let age = now.as_secs().saturating_sub(endpoint.workload.since);
        if age < YOUNG.as_secs() {
            young = true;
            continue;
        }
        tracing::info!(workload = %endpoint.workload.name, "the engine has the endpoint no more");
        if let Err(error) = ctx.node.remove_endpoint(endpoint.id().to_owned()).await {
            tracing::warn!(%error, "give back what the engine has no more");
        }
    }
    // Last: until then it is known whose the endpoints were.
    for id in gone {
        if let Err(error) = ctx.docker.forget_network(id).await {
            tracing::warn!(%error, "forget a network");
        }
    }
    for container in containers {
        name(ctx, socket, &container).await;
    }
    Ok(young)
}

/// Names the workloads of a container as the engine calls it.
async fn name(ctx: &Commands, socket: &Path, container: &str) {
    // In the list of a network there may be endpoints that no container has.
    let plain = container.len() <= 64 && container.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain {
        return;
    }
    let found = match places(socket, container).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(container, %error, "ask the Docker engine what a container is called");
            return;
        }
    };
    for place in found {
        if ctx
            .node
            .staged_endpoint(place.endpoint.clone())
            .await
            .is_ok()
        {
            tell(ctx, place).await;
        }
    }
}

/// Tells the node what one endpoint is called, and what of its labels cannot be had.
async fn tell(ctx: &Commands, place: Place) {
    let (name, mut wrong) = wanted_name(&place);
    let wanted = ContainerNames {
        name,
        aliases: place
            .aliases
            .iter()
            .map(|a| a.to_ascii_lowercase())
            .collect(),
        network: Some(place.network.clone()),
    };
    let id = place.endpoint.clone();
    let container = Container {
        name: place.name.clone(),
        id: place.container.clone(),
    };
    // Only for who looks.
    drop(ctx.node.container_is(id.clone(), container).await);
    let named = match ctx.node.name_endpoint(id.clone(), wanted.clone()).await {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(container = place.name, %error, "name its workload");
            return;
        }
    };
    if named.name != named.meant {
        wrong.push(renamed(&place, &named.meant, &named.name));
    }
    for (alias, error) in &named.refused {
        let message = format!(
            "the further name {alias} of container {} is not said: {}",
            place.name, error.message
        );
        let help = format!(
            "another --network-alias for it, or let the other one give the name up; then: docker restart {}",
            place.name
        );
        wrong.push(warning(Code::NameTaken, message, help));
    }
    let health = place.labels.get(HEALTH).cloned();
    if let Err(error) = ctx.node.label_health(id.clone(), health).await {
        wrong.push(refused_label(&place, HEALTH, &error.message, "tcp 80"));
    }
    wrong.extend(maps_of(ctx, &place, &named.name).await);
    for problem in &wrong {
        tracing::warn!(container = place.name, "{}", problem.message);
    }
    if let Err(error) = ctx.node.tell(Asker::Endpoint(id), wrong).await {
        tracing::warn!(container = place.name, %error, "tell what of it is wrong");
    }
}

/// The problem of a container whose name another workload has.
fn renamed(place: &Place, wanted: &Name, named: &Name) -> Problem {
    let container = &place.name;
    warning(
        Code::NameTaken,
        format!("the name {wanted} of container {container} is taken: its workload is {named}"),
        format!(
            "docker rename {container} OTHER, or let go of the other {wanted} and: docker restart {container}"
        ),
    )
}

/// The problem of a label that is not honoured. `right` is one that would be.
fn refused_label(place: &Place, label: &str, why: &str, right: &str) -> Problem {
    let container = &place.name;
    warning(
        Code::Label,
        format!("the label {label} of container {container} is refused: {why}"),
        format!("run {container} anew with --label {label}=\"{right}\", or without"),
    )
}

/// Makes the port maps of a container's label; gives what is wrong with them.
async fn maps_of(ctx: &Commands, place: &Place, workload: &Name) -> Vec<Problem> {
    let maps = place
        .labels
        .get(MAP)
        .map(String::as_str)
        .unwrap_or_default();
    let mut all = maps.split(',').map(str::trim).filter(|t| !t.is_empty());
    let mut wrong = Vec::new();
    for text in all.by_ref().take(MOST_MAPS) {
        if let Err(why) = map(ctx, place, workload, text).await {
            let right = match map_of(text) {
                // It is right in itself: its ports cannot be had.
                Some((proto, _, _, target)) => format!("{proto}/OTHER:{target}"),
                None => likely_map(text),
            };
            let text: String = text.chars().take(60).collect();
            let why = format!("{}: {why}", printable(&text));
            wrong.push(refused_label(place, MAP, &why, &right));
        }
    }
    if all.next().is_some() {
        let why = format!("it has more than {MOST_MAPS} port maps");
        let first: Vec<&str> = maps.split(',').take(MOST_MAPS).collect();
        wrong.push(refused_label(place, MAP, &why, &first.join(",")));
    }
    wrong
}

/// The name that a container's workload is to have: by its label, else its own. And what is wrong with the label.
fn wanted_name(place: &Place) -> (Name, Vec<Problem>) {
    let own = || Name::from_container(&place.name);
    match place.labels.get(NAME).map(|label| label.parse::<Name>()) {
        None => (own(), vec![]),
        Some(Ok(name)) => (name, vec![]),
        Some(Err(error)) => {
            let label = place.labels.get(NAME).map_or("", String::as_str);
            let right = Name::from_container(label);
            let wrong = refused_label(place, NAME, &error.to_string(), right.as_str());
            (own(), vec![wrong])
        }
    }
}

/// Makes a port map of a label, which goes with the workload. One that it has already stays.
///
/// # Errors
/// Why it cannot be made, in words.
async fn map(ctx: &Commands, place: &Place, workload: &Name, text: &str) -> Result<(), String> {
    let (proto, listen, ports, target_ports) =
        map_of(text).ok_or_else(|| "it is no port map".to_owned())?;
    let Ok(staged) = ctx.node.staged_endpoint(place.endpoint.clone()).await else {
        return Ok(());
    };
    let key = (place.endpoint.clone(), text.to_owned());
    if !ctx.docker.known.lock().mapped.insert(key.clone()) {
        return Ok(());
    }
    let request = Request::MapAdd {
        subnet: staged.subnet.to_string(),
        proto,
        listen,
        ports,
        target: workload.to_string(),
        target_ports,
        name: None,
        allow: vec![],
        workload: Some(workload.clone()),
    };
    let made = crate::command::maps::map_add(ctx, request).await;
    made.map(drop).map_err(|error| {
        // What was in the way may be gone when it is looked at again.
        ctx.docker.known.lock().mapped.remove(&key);
        error.message
    })
}
