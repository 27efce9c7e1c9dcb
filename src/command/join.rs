//! The verb `join`: starts the search, waits as long as it was told to, tells how it went.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::kernel::{Parts, settle, without};
use super::{Commands, subnets};
use crate::api::types::{Error, ErrorKind, Joined, Request, Response, SubnetState};
use crate::config::multiaddr;
use crate::link::Key;
use crate::model::error::{Code, Hint};
use crate::model::host::HostPolicy;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::join::{INVITE_PREFIX, Invite, fingerprint};
use crate::model::local::PendingJoin;
use crate::model::members::printable;
use crate::model::policy::Terms;
use crate::node::unix_now;
use crate::p2p::{Address, ProxyStatus};
use crate::service::join::{self, Progress, Running};

/// How long `join` waits where it is not to wait: a moment, so that an invite on a LAN is simply done.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long `join` waits for the first stream to a member after it was let in.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// How long a join that was saved may take to say so.
const DECIDED_PATIENCE: Duration = Duration::from_secs(3);

/// Does what a person asked for.
pub(super) async fn join_subnet(ctx: &Commands, request: Request) -> Result<Response, Error> {
    begin(ctx, request, false).await
}

/// Does what the configuration declares: such a membership goes with its declaration.
pub(super) async fn join_declared(ctx: &Commands, request: Request) -> Result<Response, Error> {
    begin(ctx, request, true).await
}

async fn begin(ctx: &Commands, request: Request, declared: bool) -> Result<Response, Error> {
    let Request::Join {
        target,
        peers,
        name,
        alias,
        ip,
        host,
        allow,
        timeout_ms,
        wait,
    } = request
    else {
        return Err(Error::new(ErrorKind::Usage, Code::Verb, "not join"));
    };
    let (id, invite) = aim(&target)?;
    let hints = hints(&peers)?;
    if let Some(mut joined) = joined(ctx, id).await? {
        if !declared {
            ctx.node.keep_by_hand(id).await?;
        }
        joined.ignored = ignored(&joined, name.as_ref(), alias.as_ref(), ip, host.as_ref());
        return Ok(Response::Joined(joined));
    }
    ctx.platform.ready()?;
    invite.as_ref().map_or(Ok(()), lasts)?;
    let keeps_host = host.is_none();
    let pending = PendingJoin {
        subnet: id,
        invite,
        hints,
        name_is_default: name.is_none(),
        name: name.unwrap_or_else(|| ctx.config.node_name.clone()),
        alias,
        ip,
        host: host.unwrap_or_default(),
        allow,
        since: unix_now(),
        founded_as: None,
        refused: None,
        declared,
    };
    let (typed, by_id) = (join::typed(&pending), pending.invite.is_none());
    let pending = ctx.node.begin_join(pending, keeps_host).await?;
    let asked = Asked {
        id,
        by_id,
        by_invite: pending.invite.is_some(),
        typed,
        peers,
        since: Instant::now(),
        running: join::start(&ctx.mesh, pending),
    };
    let (progress, over) = asked.wait(ctx, wait, timeout_ms).await?;
    match progress {
        Progress::Admitted(generation) => admitted(ctx, id, generation).await,
        Progress::Refused(error) => Err(error),
        Progress::Waiting { .. } | Progress::Searching if over && !waits(ctx, id).await? => {
            let message = format!("the join of subnet {id} was given up");
            answered(ctx, id, Code::JoinOver, message).await
        }
        Progress::Waiting { .. } | Progress::Searching => Ok(asked.pending(ctx)),
    }
}

/// The subnet that a text means, and the invite that it is, if it is one.
fn aim(target: &str) -> Result<(SubnetId, Option<Invite>), Error> {
    if target.starts_with(INVITE_PREFIX) {
        let invite = Invite::parse(target)?;
        return Ok((invite.subnet, Some(invite)));
    }
    let id = target.parse().map_err(|e| {
        let message = format!("{}: {e}", printable(target));
        Error::new(ErrorKind::Usage, Code::Id, message)
    })?;
    Ok((id, None))
}

/// Whether an invite may still be used.
fn lasts(invite: &Invite) -> Result<(), Error> {
    if unix_now() < invite.expires {
        return Ok(());
    }
    let message = format!("the invite to subnet {} has expired", invite.subnet);
    Err(Error::new(ErrorKind::Refused, Code::InviteExpired, message).hint(Hint::NewInvite))
}

/// Where `--peer` says that members are.
fn hints(peers: &[String]) -> Result<Vec<String>, Error> {
    let mut hints = Vec::new();
    for peer in peers {
        let wrong = |e: String| {
            let message = format!("--peer {}: {e}", printable(peer));
            Error::new(ErrorKind::Usage, Code::Address, message)
        };
        for hint in meant(peer).map_err(wrong)? {
            hint.parse::<Address>().map_err(|e| wrong(e.to_string()))?;
            hints.push(hint);
        }
    }
    Ok(hints)
}

/// A join that a person asked for just now.
struct Asked {
    id: SubnetId,
    /// Whether it was asked by the bare ID.
    by_id: bool,
    /// Whether there is an invite, which may have been given before.
    by_invite: bool,
    /// The word that the person typed for the subnet.
    typed: String,
    /// The addresses that `--peer` gave.
    peers: Vec<String>,
    /// When it was asked.
    since: Instant,
    running: Running,
}

impl Asked {
    /// Waits for what comes of it, where that is asked for as long as `timeout_ms` says. How it goes then, and whether it may
    /// have ended undecided.
    ///
    /// # Errors
    /// `E-NOBODY` where nobody was found, and it is given up for that.
    async fn wait(
        &self,
        ctx: &Commands,
        wait: bool,
        timeout_ms: u64,
    ) -> Result<(Progress, bool), Error> {
        let mut progress = self.running.progress.clone();
        let patience = if wait {
            Duration::from_millis(timeout_ms.max(1))
        } else {
            AT_ONCE
        };
        // It may end undecided: a person took it back, or asked anew for the same subnet, or stops the daemon, which goes on
        // with it at its next start.
        let over = tokio::select! {
            told = tokio::time::timeout(patience, progress.wait_for(decided)) => matches!(told, Ok(Err(_))),
            () = ctx.stop.cancelled() => true,
        };
        let mut outcome = progress.borrow().clone();
        // An invite that was given before is not lost to a question by the bare ID that finds nobody.
        let kept = self.by_id && self.by_invite;
        let hopeless =
            matches!(outcome, Progress::Searching) && self.running.genesis.get().is_none();
        if hopeless && wait && !kept && !over {
            // What the command says is how it is: from here on nobody is asked, or somebody has let this peer in just now.
            if ctx.node.give_up(self.id).await? {
                let proxy = ctx.peers.proxy();
                return Err(self.nobody(&silent(ctx, &self.peers).await, proxy.as_ref()));
            }
            let _ = tokio::time::timeout(DECIDED_PATIENCE, progress.wait_for(decided)).await;
            outcome = progress.borrow().clone();
        }
        Ok((outcome, over))
    }

    /// Nobody was found; what those addresses and the proxy have to do with it.
    fn nobody(&self, silent: &[String], proxy: Option<&ProxyStatus>) -> Error {
        let mut message = format!("nobody was found who knows subnet {}", self.id);
        if !silent.is_empty() {
            let silent: Vec<String> = silent.iter().map(|text| self.with_reason(text)).collect();
            message = format!("no answer from {}; {message}", silent.join(" and "));
        }
        // Refused while it was asked, or closed for everything.
        let said = proxy.filter(|status| {
            let at = status.refused.as_ref().map(|(_, age)| *age);
            status.is_closed() || at.is_some_and(|age| age <= self.since.elapsed())
        });
        if let Some(said) = said.and_then(ProxyStatus::said) {
            message = format!("{message}; {said}");
        }
        let typed = &self.typed;
        let hint = if self.peers.is_empty() {
            format!("byway join {typed} --peer HOST      (the address of any member)")
        } else {
            "see that byway runs at that address, is a member of that subnet, and that its port is let through".to_owned()
        };
        Error::new(ErrorKind::Timeout, Code::Nobody, message).hint(hint)
    }

    /// An address that was typed, and why nobody is reached there, where the dials have said so.
    fn with_reason(&self, typed: &str) -> String {
        let mut why: Vec<String> = meant(typed)
            .unwrap_or_default()
            .iter()
            .filter_map(|address| self.running.failure(address))
            .collect();
        why.dedup();
        match why.as_slice() {
            [] => typed.to_owned(),
            why => format!("{typed} ({})", why.join("; ")),
        }
    }

    fn pending(&self, ctx: &Commands) -> Response {
        let genesis = self.running.genesis.get();
        Response::Joined(Joined {
            id: self.id,
            name: None,
            state: SubnetState::Pending,
            addresses: vec![],
            interface: None,
            member: None,
            fingerprint: (!self.by_invite).then(|| fingerprint(ctx.peers.peer())),
            invite: self.by_invite,
            host: HostPolicy::Closed,
            ignored: vec![],
            terms: genesis.map(|genesis| Terms::of(genesis, self.id)),
        })
    }
}

/// The answer once this peer was let in: when the kernel has followed. What it refuses is given back.
async fn admitted(ctx: &Commands, id: SubnetId, generation: u64) -> Result<Response, Error> {
    if let Err(error) = settle(ctx, generation, &Parts::of_subnets([id])).await {
        // Where the daemon stops, the membership stands and its next start carries it out.
        return Err(if error.code == Code::Stopping {
            error
        } else {
            without(id, error, subnets::give_back(ctx, id).await)
        });
    }
    first_stream(ctx, id).await;
    let message = "the membership ended at once".to_owned();
    answered(ctx, id, Code::Join, message).await
}

/// The answer for a membership that is here, or that it is not.
async fn answered(
    ctx: &Commands,
    id: SubnetId,
    code: Code,
    message: String,
) -> Result<Response, Error> {
    joined(ctx, id)
        .await?
        .map(Response::Joined)
        .ok_or_else(|| Error::new(ErrorKind::Failed, code, message))
}

/// Whether a join of a subnet still waits for an answer.
async fn waits(ctx: &Commands, id: SubnetId) -> Result<bool, Error> {
    Ok(ctx
        .node
        .joins()
        .await?
        .iter()
        .any(|join| join.subnet == id && join.refused.is_none()))
}

/// The addresses that a text of a person means: itself, or those of a host.
///
/// # Errors
/// What is wrong with it; also that it is an address of one link and names none that is here.
pub(super) fn meant(text: &str) -> Result<Vec<String>, String> {
    let all = if text.starts_with('/') {
        vec![text.to_owned()]
    } else {
        multiaddr::expand(text, multiaddr::Peer::Optional)?
    };
    for address in all.iter().filter_map(|text| text.parse::<Address>().ok()) {
        if let Some(link) = address.missing_link() {
            return Err(format!("there is no link {link:?} on this machine"));
        }
        if let Some(ip) = address.lacks_link() {
            return Err(format!(
                "{ip} is an address of one link: name the link behind it, as in {ip}%eth0"
            ));
        }
    }
    Ok(all)
}

/// Those of the addresses that were typed where nobody answered.
async fn silent(ctx: &Commands, typed: &[String]) -> Vec<String> {
    let peers = ctx.peers.status().await.unwrap_or_default();
    let connected: Vec<Address> = peers
        .iter()
        .flat_map(|p| &p.connections)
        .filter_map(|c| c.remote.parse().ok())
        .collect();
    let answered = |address: String| {
        let address = address.parse::<Address>().ok();
        // A name stands for addresses nobody told us: any connection may be to one of them.
        match address.and_then(|a| a.ip()) {
            Some(ip) => connected.iter().any(|c| {
                c.ip()
                    .is_some_and(|c| c.to_canonical() == ip.to_canonical())
            }),
            None => !connected.is_empty(),
        }
    };
    typed
        .iter()
        .filter(|text| !meant(text).unwrap_or_default().into_iter().any(answered))
        .cloned()
        .collect()
}

fn decided(progress: &Progress) -> bool {
    matches!(progress, Progress::Admitted(_) | Progress::Refused(_))
}

/// Which flags ask for something else than what this member has: a second join changes nothing.
fn ignored(
    joined: &Joined,
    name: Option<&Name>,
    alias: Option<&Name>,
    ip: Option<IpAddr>,
    host: Option<&HostPolicy>,
) -> Vec<String> {
    let flags = [
        ("--name", name.is_some() && name != joined.member.as_ref()),
        ("--as", alias.is_some() && alias != joined.name.as_ref()),
        ("--ip", ip.is_some_and(|ip| !joined.addresses.contains(&ip))),
        ("--host", host.is_some_and(|host| *host != joined.host)),
    ];
    flags
        .iter()
        .filter(|(_, ignored)| *ignored)
        .map(|(flag, _)| (*flag).to_owned())
        .collect()
}

/// The answer of `join` for a subnet this node belongs to.
async fn joined(ctx: &Commands, id: SubnetId) -> Result<Option<Joined>, Error> {
    Ok(ctx.node.joined(id).await?.map(|(i, terms)| {
        let member = i.members.iter().find(|m| m.me).map(|m| m.name.clone());
        Joined {
            id,
            name: Some(i.name),
            state: SubnetState::Ready,
            addresses: i.addresses,
            interface: Some(i.interface),
            member,
            fingerprint: None,
            invite: false,
            host: i.host,
            ignored: vec![],
            terms: Some(terms),
        }
    }))
}

/// Whether a member of a subnet has a path of datagrams.
async fn by_datagrams(ctx: &Commands, id: SubnetId) -> bool {
    let Some(direct) = &ctx.mesh.direct else {
        return false;
    };
    direct
        .status()
        .await
        .iter()
        .any(|(key, status)| key.subnet == id && status.path.is_some())
}

/// Waits a little for the first stream, or the first path of datagrams: a ping right after `join` shall pass.
async fn first_stream(ctx: &Commands, id: SubnetId) {
    let deadline = Instant::now() + STREAM_PATIENCE;
    while Instant::now() < deadline && !ctx.stop.is_cancelled() {
        let view = ctx.node.view().load_full();
        let members = view
            .subnets
            .get(&id)
            .map(|s| s.members.clone())
            .unwrap_or_default();
        let by_stream = |peer: &PeerId| {
            ctx.links
                .status(Key {
                    subnet: id,
                    peer: *peer,
                })
                .via
                .is_some()
        };
        if members.iter().any(by_stream) || by_datagrams(ctx, id).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_one_link_names_a_link_that_is_here() {
        for (text, why) in [
            ("fe80::1%nosuch", "there is no link \"nosuch\""),
            ("[fe80::1%nosuch]:4100", "there is no link \"nosuch\""),
            ("/ip6zone/nosuch/ip6/fe80::1/tcp/4100", "there is no link"),
            ("fe80::1", "as in fe80::1%eth0"),
            ("[fe80::1]:4100", "as in fe80::1%eth0"),
            ("wss://[fe80::1]", "as in fe80::1%eth0"),
        ] {
            let said = meant(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        for text in ["fe80::1%lo", "2001:db8::1", "a.example", "10.0.0.1:4100"] {
            assert!(meant(text).is_ok(), "{text}");
        }
    }
}
