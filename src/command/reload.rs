//! `reload`: what of the configuration a running daemon takes over, and the memberships that it declares.

mod leaving;
mod plan;
mod settings;
mod shown;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};

use self::leaving::LEAVE_AFTER;
use self::plan::{Follow, Meant, Plan, Standing, Unfinished, plan};
use self::settings::clients;
pub(crate) use self::settings::{Relaying, Settings};
pub(super) use self::shown::show;
use super::join::join_declared;
use super::relay::keep_word;
use super::{Commands, call, done};
use crate::api::types::{Error, ErrorKind, Joined, Request, Response, SubnetState};
use crate::cli::log;
use crate::config::{Config, DeclaredSubnet, Sources, contents};
use crate::model::error::Code;
use crate::model::host::HostPolicy;
use crate::model::id::SubnetId;
use crate::model::join::{INVITE_PREFIX, Invite, unwrapped};
use crate::node::Membership;
use crate::p2p::{Command, Fresh};
use crate::report::{metrics, notify};
use crate::service;

/// Declared memberships that are begun at the same time: each waits a moment for who may let this node in.
const AT_ONCE: usize = 16;

/// What reading the configuration again came to.
struct Reading {
    message: String,
    changed: bool,
    /// The first membership that could not follow its declaration.
    failed: Option<Error>,
}

/// What came of following the declared memberships.
#[derive(Default)]
struct Told {
    words: Vec<String>,
    failed: Vec<(String, Error)>,
}

/// Reads the configuration again, takes over what it can, and says what needs a restart. What is declared no more is left
/// by a further reading, some seconds later.
///
/// # Errors
/// `E-CONFIG` where a file is wrong, `E-CONFIG-READ` where one cannot be read or is gone that declared a membership,
/// `E-CERTIFICATE` where the certificate cannot be used, `E-LISTEN-IN-USE` and `E-LISTEN` where metrics cannot be served
/// where it says; then nothing was taken over. The error of the first membership that could not be joined, followed or
/// left, with everything that was done; the next reading tries that again.
pub(super) async fn reload(ctx: &Commands) -> Result<Response, Error> {
    let mut unfinished = ctx.settings.unfinished.lock().await;
    notify::reloading();
    let read = read_again(ctx, &mut unfinished).await;
    wait_again(ctx, &mut unfinished, read.is_ok());
    match &read {
        Ok(reading) => notify::ready(&reading.message),
        Err(error) => notify::ready(&format!(
            "the configuration was not read again: {}",
            error.message
        )),
    }
    let Reading {
        message,
        changed,
        failed,
    } = read?;
    match failed {
        Some(error) => Err(Error { message, ..error }),
        None => Ok(done(message, changed)),
    }
}

/// Says when the files are looked at again for what waits to be left: all of it begins to wait anew where they could not be
/// read.
fn wait_again(ctx: &Commands, unfinished: &mut Unfinished, is_read: bool) {
    if !is_read {
        unfinished.leaving.put_off(now());
    }
    ctx.settings.again.send_replace(unfinished.leaving.next());
}

/// Leaves what the files still do not declare, some seconds after a reading found that. Nothing else in them is taken over:
/// somebody may be editing them.
pub(crate) async fn leave_waiting(ctx: &Commands) {
    let mut unfinished = ctx.settings.unfinished.lock().await;
    let told = leave_missed(ctx, &mut unfinished).await;
    wait_again(ctx, &mut unfinished, told.is_ok());
    match told {
        Ok(told) => {
            for word in told.words {
                tracing::info!("{word}");
            }
            for (what, error) in told.failed {
                tracing::warn!(%error, "{what}");
            }
        }
        Err(error) => tracing::warn!(%error, "look again for what is declared no more"),
    }
}

async fn leave_missed(ctx: &Commands, unfinished: &mut Unfinished) -> Result<Told, Error> {
    let fresh = load(&ctx.config.sources)?;
    let before = ctx.settings.now();
    let (was, now) = (
        ctx.settings.all_meant(&before.subnets),
        ctx.settings.all_meant(&fresh.subnets),
    );
    let todo = plan(&was, &now, unfinished, &standing(ctx).await?, |file| {
        Path::new(file).exists()
    });
    // What was taken out of the files since the last reading is for the next one.
    let gone = todo
        .leave
        .intersection(&unfinished.leave)
        .copied()
        .collect();
    let mut told = Told::default();
    leave(ctx, &gone, unfinished, &mut told).await;
    Ok(told)
}

async fn read_again(ctx: &Commands, unfinished: &mut Unfinished) -> Result<Reading, Error> {
    let changing = ctx.settings.change().await;
    let mut fresh = load(&ctx.config.sources)?;
    let word = ctx.settings.relaying().word;
    let relaying = Relaying::over(&mut fresh, word.clone());
    let before = ctx.settings.now();
    let (next, taken, restart) = before.taking_over(&fresh);
    let (was, now) = (
        ctx.settings.all_meant(&before.subnets),
        ctx.settings.all_meant(&next.subnets),
    );
    let todo = plan(&was, &now, unfinished, &standing(ctx).await?, |file| {
        Path::new(file).exists()
    });
    if let Some((file, id)) = todo.missing.first() {
        return Err(missing(file, *id));
    }
    let certificate = certificate(ctx, &next)?;
    if next.metrics_listen != before.metrics_listen {
        metrics::relocate(&ctx.settings.metrics, next.metrics_listen).await?;
    }
    if relaying.word != word {
        keep_word(ctx, relaying.word.clone()).await?;
    }
    let limits = Command::Limits {
        connections: next.limits.connections,
        per_peer: next.limits.connections_per_peer,
        memory: next.limits.memory_bytes(),
    };
    ctx.settings
        .api_clients
        .store(clients(&next), Ordering::Relaxed);
    log::change(&next.log_level);
    if next.workload_users != before.workload_users {
        let (users, listed) = (ctx.settings.users.clone(), next.workload_users.clone());
        // The user database may be on the network.
        let _ = tokio::task::spawn_blocking(move || users.set(&listed)).await;
    }
    let next = Arc::new(next);
    // From here on the tables are in force: what is not done about them by the end is for the next reading.
    unfinished.follow = todo.follow.iter().map(|one| one.table.clone()).collect();
    unfinished.leave = todo.leave.union(&todo.kept).copied().collect();
    ctx.settings.relays(relaying);
    ctx.settings.replace(Arc::clone(&next));
    drop(changing);
    ctx.mesh.portmap.ask_again();
    ctx.peers
        .send(limits)
        .await
        .map_err(|_| Error::new(ErrorKind::Failed, Code::Stopping, "the daemon is stopping"))?;
    for found in next.idle() {
        tracing::warn!("{found} ({})", found.code);
    }
    let is_shown = certificate.show();
    let mut told = memberships(ctx, todo, unfinished).await;
    if is_shown {
        let word = "whoever connects inside TLS is shown another certificate from now on";
        told.words.insert(0, word.to_owned());
    }
    Ok(reading(&taken, &restart, told))
}

/// The configuration as its sources say it now.
fn load(sources: &Sources) -> Result<Config, Error> {
    Config::load(sources).map_err(|errors| {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let unread = errors.iter().find(|error| error.code == Code::ConfigRead);
        let code = unread.map_or(Code::Config, |error| error.code);
        let file = sources
            .file
            .as_ref()
            .map(|f| format!(" --config {}", f.display()))
            .unwrap_or_default();
        Error::new(ErrorKind::Usage, code, all.join("; ")).hint(format!("byway config check{file}"))
    })
}

/// The certificate that a configuration names, not shown yet.
fn certificate(ctx: &Commands, config: &Config) -> Result<Fresh, Error> {
    let files = service::settings::certificate(config);
    ctx.peers.read_certificate(files.as_ref()).map_err(|why| {
        tracing::warn!(error = %why, "the certificate was not taken over: the one before is still shown");
        let message =
            format!("cannot use the certificate of transport.tls_cert: {why}; nothing was changed");
        Error::new(ErrorKind::Failed, Code::Certificate, message)
            .hint("byway reload      (once both files are whole and belong together)")
    })
}

/// A file is gone that declared a membership.
fn missing(file: &str, id: SubnetId) -> Error {
    let message = format!(
        "cannot read the configuration: {file} is gone, and it declared {id}; nothing was changed"
    );
    let hint = format!(
        "byway leave {id}      (or put the file back, an empty one to leave what it declared)"
    );
    Error::new(ErrorKind::Usage, Code::ConfigRead, message).hint(hint)
}

/// What a reading came to, in one line: the keys that were taken over, the memberships, and the keys that need a restart.
fn reading(taken: &[&str], restart: &[&str], told: Told) -> Reading {
    let mut parts = vec!["configuration read again".to_owned()];
    if !taken.is_empty() {
        parts.push(format!("taken over: {}", taken.join(", ")));
    }
    parts.extend(told.words);
    if !restart.is_empty() {
        parts.push(format!("a restart is needed for: {}", restart.join(", ")));
    }
    let changed = parts.len() > 1;
    let failed = told.failed.first().map(|(_, error)| error.clone());
    parts.extend(told.failed.iter().map(|(what, error)| match &failed {
        // The code of the first one stands behind them all.
        Some(first) if first.code == error.code => format!("{what}: {}", error.message),
        _ => format!("{what}: {} ({})", error.message, error.code),
    }));
    if parts.len() == 1 {
        parts.push("nothing changed".to_owned());
    }
    Reading {
        message: parts.join("; "),
        changed,
        failed,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Which subnets are here.
async fn standing(ctx: &Commands) -> Result<Standing, Error> {
    // In this order: what is let in between the two is in both, and not in neither.
    let joins = ctx.node.joins().await?;
    let memberships = ctx.node.memberships().await?;
    let mut standing = Standing::default();
    for (id, Membership { subnet, .. }) in memberships {
        standing.stands.insert(id);
        if !subnet.local.declared {
            standing.by_hand.insert(id);
        }
    }
    for join in joins {
        if !join.declared && !standing.stands.contains(&join.subnet) {
            standing.by_hand.insert(join.subnet);
        }
        let list = if join.refused.is_none() {
            &mut standing.stands
        } else {
            &mut standing.refused
        };
        list.insert(join.subnet);
    }
    Ok(standing)
}

/// Joins what is declared now and was not, and leaves what was declared and is not any more. What was done is taken off
/// `unfinished`.
async fn memberships(ctx: &Commands, todo: Plan, unfinished: &mut Unfinished) -> Told {
    let mut told = follow_all(ctx, &todo.follow, unfinished).await;
    leave(ctx, &todo.leave, unfinished, &mut told).await;
    for id in todo.stays {
        told.words.push(format!(
            "{id} stays although it is declared no more: it did not come by a declaration (byway leave {id})"
        ));
    }
    for id in todo.kept {
        told.words.push(format!(
            "{id} is kept until each declared invite can be read: one may be for it"
        ));
    }
    for origin in todo.unknown {
        told.words.push(format!(
            "what was declared at {origin} is not known: its invite cannot be read"
        ));
    }
    told
}

/// Leaves those of `gone` that have waited long enough; says of the others that they wait.
async fn leave(
    ctx: &Commands,
    gone: &BTreeSet<SubnetId>,
    unfinished: &mut Unfinished,
    told: &mut Told,
) {
    let due = unfinished.leaving.due(gone, now());
    for id in &due {
        let request = Request::Leave {
            subnet: id.to_string(),
        };
        match ask(ctx, request).await {
            Ok(_) => {
                unfinished.leave.remove(id);
                unfinished.leaving.left(id);
                told.words.push(format!("left {id}"));
            }
            Err(error) => told
                .failed
                .push((format!("{id} is declared no more and was not left"), error)),
        }
    }
    for id in gone.difference(&due) {
        told.words.push(format!(
            "{id} is declared no more: it is left in {} s, unless the files declare it again by then",
            LEAVE_AFTER.as_secs()
        ));
    }
}

/// Memberships that the configuration declares at the start: the same as `join` and its flags, without waiting. What fails
/// is logged, and tried again by the next reading.
pub(crate) async fn declared(ctx: &Commands) {
    let mut unfinished = ctx.settings.unfinished.lock().await;
    // A reading may have come first, and has begun some of them.
    let config = ctx.settings.now();
    let subnets = &config.subnets;
    // An invite is read before it has served: from then on its file may go.
    let meant = ctx.settings.all_meant(subnets);
    // The daemon may have stopped before it left what was declared no more: the next reading finds it.
    match standing(ctx).await {
        Ok(here) => {
            let is_over = |id: &SubnetId| !meant.iter().any(|one| one.id == Some(*id));
            for id in here.by_declaration().filter(is_over) {
                tracing::warn!(%id, "declared no more: the next readings of the configuration leave it");
                unfinished.leave.insert(id);
            }
        }
        Err(error) => tracing::warn!(%error, "look what was declared before"),
    }
    let all: Vec<_> = meant
        .into_iter()
        .map(|Meant { table, .. }| Follow {
            table,
            ..Follow::default()
        })
        .collect();
    unfinished.follow.clone_from(subnets);
    follow_all(ctx, &all, &mut unfinished).await;
}

/// Does what a person could ask for.
fn ask(ctx: &Commands, request: Request) -> BoxFuture<'_, Result<Response, Error>> {
    call(ctx, request).boxed()
}

/// Joins or follows each, [`AT_ONCE`] at a time; takes what went well off `unfinished`. Once the daemon stops, no further one
/// is begun.
async fn follow_all(ctx: &Commands, all: &[Follow], unfinished: &mut Unfinished) -> Told {
    let mut told = Told::default();
    let begun = |one| async move {
        if ctx.stop.is_cancelled() {
            return None;
        }
        Some(join(ctx, one).await)
    };
    let joins: Vec<BoxFuture<'_, _>> = all.iter().map(|one| begun(one).boxed()).collect();
    let mut joins = stream::iter(joins).buffered(AT_ONCE);
    for one in all {
        let Some(joined) = joins.next().await.flatten() else {
            break;
        };
        match joined {
            Ok(words) => {
                unfinished
                    .follow
                    .retain(|table| !plan::same(table, &one.table));
                told.words
                    .extend((!words.is_empty()).then(|| words.join(", ")));
            }
            Err(error) => {
                tracing::warn!(%error, origin = %one.table.origin, "join a declared subnet");
                told.failed.push((
                    format!("what is declared at {} is not in force", one.table.origin),
                    error,
                ));
            }
        }
    }
    told
}

/// What is to be joined: an invite that can be read, or the ID.
fn target(one: &Follow) -> Result<Option<String>, Error> {
    let invite = one.table.invite_file.as_deref().map(contents);
    match (invite, one.table.id.or(one.stands)) {
        (Some(Ok(text)), _) => Ok(Some(unwrapped(&text))),
        (_, Some(id)) => Ok(Some(id.to_string())),
        (None, None) => Ok(None),
        (Some(Err(error)), None) => {
            let message = format!("read its invite: {error}");
            let hint = "write id = \"SUBNET\" beside invite_file: then the invite may go once it has served";
            Err(Error::new(ErrorKind::Failed, Code::File, message).hint(hint))
        }
    }
}

/// Joins one, or has a membership that stands follow its declaration.
async fn join(ctx: &Commands, one: &Follow) -> Result<Vec<String>, Error> {
    let (subnet, was) = (&one.table, one.was.as_ref());
    let Some(target) = target(one)? else {
        return Ok(Vec::new());
    };
    let id = if target.starts_with(INVITE_PREFIX) {
        Invite::parse(&target)?.subnet.to_string()
    } else {
        target.clone()
    };
    let was_member = ctx.node.find(id).await.is_ok();
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
    let Response::Joined(joined) = join_declared(ctx, request).await? else {
        return Ok(Vec::new());
    };
    let ready = joined.state == SubnetState::Ready;
    let mut words = if ready {
        follow(ctx, subnet, &joined).await?
    } else {
        Vec::new()
    };
    if !ready {
        words.push(format!("asked to join {}", joined.id));
    } else if !was_member {
        words.insert(0, format!("joined {}", joined.id));
    }
    let kept = plan::not_taken(was, subnet, ready, &joined.ignored);
    if !kept.is_empty() {
        let keys = kept.join(", ");
        tracing::warn!(origin = %subnet.origin, "{keys} of a subnet that was joined before: a declaration does not change it");
        words.push(format!(
            "not taken over for {}: {keys} (leave and join again to change that)",
            joined.id
        ));
    }
    let host = if ready {
        Some(&joined.host)
    } else {
        was.and_then(|was| was.host.as_ref())
    };
    let open = host.filter(|host| **host != HostPolicy::Closed);
    words.extend(
        open.filter(|_| plan::host_removed(was, subnet))
            .map(|host| stays_open(joined.id, host)),
    );
    Ok(words)
}

/// What is open stays open when nothing declares it any more.
fn stays_open(id: SubnetId, host: &HostPolicy) -> String {
    format!(
        "this machine stays {host} to {id}, although host is declared no more (byway subnet host {id} closed)"
    )
}

/// Has a membership that stands follow its declaration: what of this machine is open, and where members may be.
async fn follow(
    ctx: &Commands,
    subnet: &DeclaredSubnet,
    joined: &Joined,
) -> Result<Vec<String>, Error> {
    let (id, mut words) = (joined.id, Vec::new());
    if let Some(host) = subnet.host.clone() {
        let request = Request::SubnetHost {
            subnet: id.to_string(),
            host: Some(host.clone()),
        };
        if let Response::Host(info) = ask(ctx, request).await?
            && info.changed
        {
            words.push(format!("this machine is {host} to {id}"));
        }
    }
    if ctx.node.add_hints(id, subnet.peers.clone()).await? {
        words.push(format!("new addresses for {id}"));
    }
    Ok(words)
}

#[cfg(test)]
mod tests;
