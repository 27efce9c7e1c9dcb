//! `reload`: what of the configuration a running daemon takes over, and the memberships that it declares.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, watch};

use super::{Context, handler, metrics, notify};
use crate::api::server;
use crate::api::types::{
    ConfigInfo, ConfigSubnet, ConfigValue, Error, ErrorKind, Joined, Request, Response, SubnetState,
};
use crate::cli::log;
use crate::config::{Config, DeclaredSubnet, Value};
use crate::model::id::SubnetId;
use crate::model::join::{INVITE_PREFIX, Invite, unwrapped};
use crate::model::members::Subnet;
use crate::node::Lane;
use crate::p2p::Command;

/// The configuration in force. Clones are one.
#[derive(Clone)]
pub(crate) struct Settings {
    config: Arc<watch::Sender<Arc<Config>>>,
    api_clients: Arc<AtomicUsize>,
    metrics: mpsc::Sender<metrics::Move>,
    /// One reading at a time.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl Settings {
    pub(super) fn new(config: Arc<Config>) -> (Settings, mpsc::Receiver<metrics::Move>) {
        let api_clients = Arc::new(AtomicUsize::new(clients(&config)));
        let (metrics, moves) = mpsc::channel(1);
        let config = Arc::new(watch::Sender::new(config));
        (Settings { config, api_clients, metrics, reading: Arc::default() }, moves)
    }

    /// What is in force now.
    pub(crate) fn now(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// How many clients the control socket takes.
    pub(super) fn api_clients(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.api_clients)
    }
}

fn clients(config: &Config) -> usize {
    usize::try_from(config.limits.api_clients).unwrap_or(server::MAX_CLIENTS)
}

/// Reads the configuration again, takes over what it can, and says what needs a restart.
///
/// # Errors
/// `E-CONFIG` where a file is wrong, `E-LISTEN-IN-USE` and `E-LISTEN` where metrics cannot be served where it says; then
/// nothing was taken over.
pub(super) async fn reload(ctx: &Context) -> Result<Response, Error> {
    let _alone = ctx.settings.reading.lock().await;
    notify::reloading();
    let done = read_again(ctx).await;
    match &done {
        Ok(Response::Done(done)) => notify::ready(&done.message),
        Ok(_) => notify::ready("configuration read again"),
        Err(error) => notify::ready(&format!("the configuration was not read again: {}", error.message)),
    }
    done
}

async fn read_again(ctx: &Context) -> Result<Response, Error> {
    let fresh = Config::load(&ctx.config.sources).map_err(|errors| {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let file = ctx.config.sources.file.as_ref().map(|f| format!(" --config {}", f.display())).unwrap_or_default();
        Error::new(ErrorKind::Usage, "E-CONFIG", all.join("; ")).hint(format!("byway config check{file}"))
    })?;
    let before = ctx.settings.now();
    let (next, taken, restart) = before.taking_over(&fresh);
    if next.metrics_listen != before.metrics_listen {
        metrics::relocate(&ctx.settings.metrics, next.metrics_listen).await?;
    }
    let limits = Command::Limits {
        connections: next.limits.connections,
        per_peer: next.limits.connections_per_peer,
        memory: next.limits.memory_bytes(),
    };
    ctx.settings.api_clients.store(clients(&next), Ordering::Relaxed);
    log::change(&next.log_level);
    let next = Arc::new(next);
    ctx.settings.config.send_replace(Arc::clone(&next));
    ctx.peers.send(limits).await.map_err(|_| Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping"))?;
    for found in next.idle() {
        tracing::warn!("{found} ({})", found.code);
    }
    let told = memberships(ctx, &before.subnets, &next.subnets).await;
    let mut parts = vec!["configuration read again".to_owned()];
    if !taken.is_empty() {
        parts.push(format!("taken over: {}", taken.join(", ")));
    }
    parts.extend(told);
    if !restart.is_empty() {
        parts.push(format!("a restart is needed for: {}", restart.join(", ")));
    }
    let changed = parts.len() > 1;
    if !changed {
        parts.push("nothing changed".to_owned());
    }
    Ok(handler::done(parts.join("; "), changed))
}

/// Joins what is declared now and was not, and leaves what was declared and is not any more; what was done, in words.
async fn memberships(ctx: &Context, before: &[DeclaredSubnet], now: &[DeclaredSubnet]) -> Vec<String> {
    let same = |a: &DeclaredSubnet, b: &DeclaredSubnet| {
        let plain = |s: &DeclaredSubnet| DeclaredSubnet { origin: String::new(), ..s.clone() };
        plain(a) == plain(b)
    };
    let fresh: Vec<DeclaredSubnet> = now.iter().filter(|s| !before.iter().any(|b| same(s, b))).cloned().collect();
    let mut told = declared(ctx, &fresh).await;
    let kept: BTreeSet<SubnetId> = now.iter().filter_map(meant).collect();
    for gone in before.iter().filter(|s| !now.iter().any(|n| same(s, n))) {
        let Some(id) = meant(gone) else {
            if !now.iter().any(|n| n.invite_file == gone.invite_file) {
                told.push(format!("what was declared at {} is not known: its invite cannot be read", gone.origin));
            }
            continue;
        };
        if kept.contains(&id) {
            continue;
        }
        told.push(match Box::pin(handler::call(ctx, Request::Leave { subnet: id.to_string() })).await {
            Ok(_) => format!("left {id}"),
            Err(error) => format!("{id} is declared no more and was not left: {} ({})", error.message, error.code),
        });
    }
    told
}

/// `config show` of this daemon: the values in force, flags among them, and every membership with what the command line made
/// of it.
pub(super) async fn show(ctx: &Context) -> Result<ConfigInfo, Error> {
    let config = ctx.settings.now();
    let json = |value: Value| match value {
        Value::Text(text) => serde_json::json!(text),
        Value::Number(n) => serde_json::json!(n),
        Value::Switch(on) => serde_json::json!(on),
        Value::List(list) => serde_json::json!(list),
    };
    let value = |(path, value, origin): (&'static str, Value, Option<&str>)| {
        (path.to_owned(), ConfigValue { value: json(value), origin: origin.unwrap_or("default").to_owned() })
    };
    let declared: Vec<(Option<SubnetId>, DeclaredSubnet)> =
        config.subnets.iter().map(|s| (meant(s), s.clone())).collect();
    let subnets = ctx
        .node
        .read(move |core| {
            let me = core.state.me.peer;
            let shown = |subnet: &Subnet| {
                let id = subnet.records.id;
                let file = declared.iter().find(|(meant, _)| *meant == Some(id)).map(|(_, file)| file);
                let made =
                    if subnet.records.genesis.owner == me { "command line (create)" } else { "command line (join)" };
                let written = file.and_then(|file| file.host.clone()).unwrap_or_default();
                let host_origin = written != subnet.local.host;
                ConfigSubnet {
                    id,
                    r#as: subnet.name().clone(),
                    host: subnet.local.host.clone(),
                    peer: subnet.local.hints.clone(),
                    up: subnet.local.up,
                    origin: file.map_or_else(|| made.to_owned(), |file| file.origin.clone()),
                    host_origin: host_origin.then(|| "command line (subnet host)".to_owned()),
                }
            };
            core.state.subnets.values().map(shown).collect()
        })
        .await?;
    Ok(ConfigInfo { values: config.values().map(value).collect(), subnets })
}

/// The subnet of a declaration.
fn meant(subnet: &DeclaredSubnet) -> Option<SubnetId> {
    let by_invite = || Invite::parse(&unwrapped(&std::fs::read_to_string(subnet.invite_file.as_ref()?).ok()?)).ok();
    subnet.id.or_else(|| by_invite().map(|invite| invite.subnet))
}

/// Memberships declared in the configuration: the same as `join` and its flags, without waiting. What was done, in words.
pub(super) async fn declared(ctx: &Context, subnets: &[DeclaredSubnet]) -> Vec<String> {
    let mut told = Vec::new();
    for subnet in subnets {
        match join(ctx, subnet).await {
            Ok(Some(words)) => told.push(words),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, origin = %subnet.origin, "join a declared subnet");
                told.push(format!("not joined, declared at {}: {} ({})", subnet.origin, error.message, error.code));
            }
        }
    }
    told
}

/// Joins one, or has a membership that stands follow its declaration.
async fn join(ctx: &Context, subnet: &DeclaredSubnet) -> Result<Option<String>, Error> {
    let unread = |error: std::io::Error| Error::new(ErrorKind::Failed, "E-FILE", format!("read its invite: {error}"));
    let invite = subnet.invite_file.as_ref().map(std::fs::read_to_string);
    let target = match (invite, subnet.id) {
        (Some(Ok(text)), _) => unwrapped(&text),
        (Some(Err(error)), None) => return Err(unread(error)),
        (_, Some(id)) => id.to_string(),
        (None, None) => return Ok(None),
    };
    let id =
        if target.starts_with(INVITE_PREFIX) { Invite::parse(&target)?.subnet.to_string() } else { target.clone() };
    let was_member = ctx.node.read(move |core| core.state.find(&id).is_ok()).await?;
    let request = Request::Join {
        target,
        peers: subnet.peers.clone(),
        name: subnet.name.clone(),
        alias: subnet.alias.clone(),
        ip: subnet.ip,
        host: subnet.host.clone(),
        allow: subnet.allow.clone(),
        timeout_ms: 0,
        wait: false,
    };
    let Response::Joined(joined) = Box::pin(handler::call(ctx, request)).await? else { return Ok(None) };
    if joined.state != SubnetState::Ready {
        return Ok(Some(format!("asked to join {}", joined.id)));
    }
    let mut words = follow(ctx, subnet, &joined).await?;
    if !was_member {
        words.insert(0, format!("joined {}", joined.id));
    }
    Ok((!words.is_empty()).then(|| words.join(", ")))
}

/// Has a membership that stands follow its declaration: what of this machine is open, and where members may be.
async fn follow(ctx: &Context, subnet: &DeclaredSubnet, joined: &Joined) -> Result<Vec<String>, Error> {
    let (id, mut words) = (joined.id, Vec::new());
    if let Some(host) = subnet.host.clone() {
        let request = Request::SubnetHost { subnet: id.to_string(), host: Some(host.clone()) };
        if let Response::Host(info) = Box::pin(handler::call(ctx, request)).await?
            && info.changed
        {
            words.push(format!("this machine is {host} to {id}"));
        }
    }
    let peers = subnet.peers.clone();
    let hinted = ctx.node.decide(Lane::Own, move |core| core.add_hints(id, &peers)).await??;
    if hinted {
        words.push(format!("new addresses for {id}"));
    }
    let ignored: Vec<&str> = joined.ignored.iter().filter(|flag| *flag != "--host").map(String::as_str).collect();
    if !ignored.is_empty() {
        let keys = ignored.join(", ").replace("--", "");
        tracing::warn!(origin = %subnet.origin, "{keys} of a subnet that was joined before: a declaration does not change it");
    }
    Ok(words)
}
