//! The verb `join`: starts the search, waits as long as it was told to, tells how it went.

use std::time::{Duration, Instant};

use super::settle;
use crate::api::types::{Error, ErrorKind, Joined, Request, Response, SubnetInfo, SubnetState};
use crate::daemon::Context;
use crate::daemon::join::{self, Progress};
use crate::link::Key;
use crate::model::host::HostPolicy;
use crate::model::id::SubnetId;
use crate::model::join::{INVITE_PREFIX, Invite, fingerprint};
use crate::model::local::PendingJoin;
use crate::model::members::printable;
use crate::model::policy::Terms;
use crate::node::unix_now;
use crate::p2p::Address;

/// How long `join` waits for the first stream to a member after it was let in.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn join_subnet(ctx: &Context, request: Request) -> Result<Response, Error> {
    let Request::Join { target, peers, name, alias, ip, host, allow, timeout_ms, wait } = request else {
        return Err(Error::new(ErrorKind::Usage, "E-VERB", "not join"));
    };
    let invite = if target.starts_with(INVITE_PREFIX) { Some(Invite::parse(&target)?) } else { None };
    let id: SubnetId = match &invite {
        Some(invite) => invite.subnet,
        None => {
            target.parse().map_err(|e| Error::new(ErrorKind::Usage, "E-ID", format!("{}: {e}", printable(&target))))?
        }
    };
    for hint in &peers {
        hint.parse::<Address>()
            .map_err(|e| Error::new(ErrorKind::Usage, "E-ADDRESS", format!("--peer {}: {e}", printable(hint))))?;
    }
    if let Some(joined) = joined(ctx, id).await? {
        return Ok(joined);
    }
    ctx.machine.ready()?;
    if let Some(invite) = invite.as_ref().filter(|i| unix_now() >= i.expires) {
        let message = format!("the invite to subnet {} has expired", invite.subnet);
        return Err(Error::new(ErrorKind::Refused, "E-INVITE-EXPIRED", message)
            .hint("ask for a new one: byway invite create SUBNET"));
    }
    let pending = PendingJoin {
        subnet: id,
        invite,
        hints: peers,
        name_is_default: name.is_none(),
        name: name.unwrap_or_else(|| ctx.config.node_name.clone()),
        alias,
        ip,
        host,
        allow,
        since: unix_now(),
    };
    let saved = pending.clone();
    ctx.node.run(move |core| core.begin_join(saved)).await??;
    let started = join::start(ctx, pending);
    let mut progress = started.progress.clone();
    if !wait {
        // A moment, so that an invite on a LAN is simply done.
        let _ = tokio::time::timeout(Duration::from_millis(500), progress.wait_for(decided)).await;
    } else {
        let patience = Duration::from_millis(timeout_ms.max(1));
        let _ = tokio::time::timeout(patience, progress.wait_for(decided)).await;
    }
    let outcome = progress.borrow().clone();
    match outcome {
        Progress::Admitted(generation) => {
            if let Err(error) = settle(ctx, generation).await {
                ctx.node.run(move |core| core.forget(id)).await??;
                return Err(error);
            }
            first_stream(ctx, id).await;
            let gone = || Error::new(ErrorKind::Failed, "E-JOIN", "the membership ended at once");
            joined(ctx, id).await?.ok_or_else(gone)
        }
        Progress::Refused(error) => Err(error),
        Progress::Searching if wait => {
            ctx.node.run(move |core| core.drop_join(id)).await??;
            Err(Error::new(ErrorKind::Timeout, "E-NOBODY", format!("nobody was found who knows subnet {id}"))
                .hint(format!("byway join {id} --peer /ip4/ADDRESS/tcp/4100   (the address of any member)")))
        }
        Progress::Waiting { .. } | Progress::Searching => Ok(Response::Joined(Joined {
            id,
            name: None,
            state: SubnetState::Pending,
            addresses: vec![],
            interface: None,
            member: None,
            fingerprint: Some(fingerprint(ctx.peers.peer())),
            host: HostPolicy::Closed,
            terms: started.genesis.get().map(|genesis| Terms::of(genesis, id)),
        })),
    }
}

fn decided(progress: &Progress) -> bool {
    matches!(progress, Progress::Admitted(_) | Progress::Refused(_))
}

/// The answer of `join` for a subnet this node belongs to.
async fn joined(ctx: &Context, id: SubnetId) -> Result<Option<Response>, Error> {
    let (info, terms): (Option<SubnetInfo>, Option<Terms>) = ctx
        .node
        .run(move |core| {
            let terms = core.state.subnets.get(&id).map(|s| Terms::of(&s.records.genesis, id));
            (core.subnet_show(&id.to_string()).ok(), terms)
        })
        .await?;
    Ok(info.filter(|i| i.state == SubnetState::Ready).map(|i| {
        let member = i.members.iter().find(|m| m.me).map(|m| m.name.clone());
        Response::Joined(Joined {
            id,
            name: Some(i.name),
            state: SubnetState::Ready,
            addresses: i.addresses,
            interface: Some(i.interface),
            member,
            fingerprint: None,
            host: i.host,
            terms: terms.clone(),
        })
    }))
}

/// Waits a little for the first stream: a ping right after `join` shall pass.
async fn first_stream(ctx: &Context, id: SubnetId) {
    let deadline = Instant::now() + STREAM_PATIENCE;
    while Instant::now() < deadline {
        let view = ctx.node.view().load_full();
        let members = view.subnets.get(&id).map(|s| s.members.clone()).unwrap_or_default();
        if members.iter().any(|peer| ctx.links.status(Key { subnet: id, peer: *peer }).via.is_some()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
