//! Requests of the control socket: what needs the outside world is done here, what is decided is decided by the node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::join::Progress;
use super::{Context, attach, join, status};
use crate::api::server::{Handler, Peer};
use crate::api::types::{
    Cidr, DnsInfo, Done, Error, ErrorKind, IdInfo, Joined, PingInfo, Request, Response, SubnetInfo, SubnetState,
};
use crate::config::Config;
use crate::dns::Outcome;
use crate::host::listening;
use crate::host::nft::MapKey;
use crate::link::Key;
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::{INVITE_PREFIX, Invite, fingerprint};
use crate::model::local::PendingJoin;
use crate::model::members::{holds_address, printable};
use crate::model::state::Founding;
use crate::node::{Core, Leaving, prepare_map, unix_now};
use crate::p2p::{Address, Command, Protocol};
use crate::wire::control::{self, ControlRequest};

/// How long a command waits for the kernel to follow.
const KERNEL_PATIENCE: Duration = Duration::from_secs(8);
/// How long `join` waits for the first stream to a member after it was let in.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);

/// The handler the control socket calls.
pub(crate) fn handler(ctx: Context) -> Handler {
    Arc::new(move |request: Request, _peer: Peer| {
        let ctx = ctx.clone();
        Box::pin(async move { call(&ctx, request).await })
    })
}

/// Does what a request asks for.
pub(crate) async fn call(ctx: &Context, request: Request) -> Result<Response, Error> {
    match request {
        Request::Create { .. } => create(ctx, request).await,
        Request::Join { .. } => join_subnet(ctx, request).await,
        Request::Leave { subnet } => {
            let text = subnet.clone();
            match ctx.node.run(move |core| core.leave(&text)).await?? {
                Leaving::Said(id) => end(ctx, Some(id), &subnet, "left").await,
                Leaving::Withdrawn => {
                    Ok(done(format!("the request to join {} is withdrawn", printable(&subnet)), true))
                }
                Leaving::Gone => end(ctx, None, &subnet, "left").await,
            }
        }
        Request::Destroy { subnet } => {
            let text = subnet.clone();
            let destroyed = ctx.node.run(move |core| core.destroy(&text)).await??;
            end(ctx, destroyed, &subnet, "destroyed").await
        }
        Request::Up { subnet } => {
            ctx.machine.ready()?;
            changed(ctx, move |core| core.set_up(subnet.as_deref(), true)).await
        }
        Request::Down { subnet } => changed(ctx, move |core| core.set_up(subnet.as_deref(), false)).await,
        Request::InviteCreate { subnet, uses, expires_ms, role, labels } => {
            ctx.node.run(move |core| core.invite_create(&subnet, uses, expires_ms, role, labels)).await?
        }
        Request::InviteRevoke { invite } => ctx.node.run(move |core| core.invite_revoke(&invite)).await?,
        Request::MemberApprove { subnet, member } => {
            changed(ctx, move |core| core.decide_request(&subnet, &member, true)).await
        }
        Request::MemberDeny { subnet, member } => {
            changed(ctx, move |core| core.decide_request(&subnet, &member, false)).await
        }
        Request::MemberRemove { subnet, member } => {
            changed(ctx, move |core| core.member_remove(&subnet, &member)).await
        }
        Request::MemberRole { subnet, member, role } => {
            changed(ctx, move |core| core.member_role(&subnet, &member, role)).await
        }
        Request::MemberLabel { subnet, member, labels } => {
            changed(ctx, move |core| core.member_label(&subnet, &member, &labels)).await
        }
        Request::LeaseAdd { subnet, prefix, member } => {
            changed(ctx, move |core| {
                let owner = core.lease_owner(&subnet, member.as_deref())?;
                core.lease_add(&subnet, &[(prefix, owner)])
            })
            .await
        }
        Request::LeaseImport { subnet, entries } => changed(ctx, move |core| core.lease_add(&subnet, &entries)).await,
        Request::LeaseRm { subnet, prefix, member: _ } => {
            changed(ctx, move |core| core.lease_rm(&subnet, prefix)).await
        }
        Request::Attach { workload, subnet, name, ip, mac } => {
            ctx.machine.ready()?;
            let text = subnet.clone();
            ctx.node.run(move |core| core.state.find(&text).map(drop)).await??;
            let new = attach::find(ctx, workload, name, mac).await?;
            let attached =
                ctx.node.run(move |core| core.attach(&subnet, new, ip).map(|a| (a, generation(core)))).await??;
            let (mut attached, generation) = attached;
            if let Err(error) = settle(ctx, generation).await {
                let name = attached.workload.to_string();
                let subnet = attached.subnet.to_string();
                let undone = ctx.node.run(move |core| core.detach(&name, Some(&subnet))).await;
                tracing::warn!(%error, undone = undone.is_ok(), "attach failed");
                return Err(error);
            }
            attached.resolver &= ctx.machine.is_kernel();
            Ok(Response::Attached(attached))
        }
        Request::Detach { workload, subnet } => {
            changed(ctx, move |core| core.detach(&workload, subnet.as_deref())).await
        }
        Request::DnsAdd { subnet, name, data, ttl } => {
            changed(ctx, move |core| core.dns_add(&subnet, &name, &data, ttl)).await
        }
        Request::DnsRm { subnet, name, kind } => {
            changed(ctx, move |core| core.dns_rm(&subnet, &name, kind.as_deref())).await
        }
        Request::DnsQuery { name, kind } => query(ctx, &name, &kind).await,
        Request::MapAdd { .. } => map_add(ctx, request).await,
        Request::MapRm { subnet, name, proto, listen, port } => {
            let key = proto.zip(listen).zip(port).map(|((p, l), port)| (p, l, port));
            changed(ctx, move |core| core.map_rm(&subnet, name.as_deref(), key)).await
        }
        Request::PeerConnect { peer } => connect(ctx, &peer).await,
        Request::PeerDisconnect { peer } => {
            let found = status::peer_show(ctx, &peer).await?;
            let gone = || Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping");
            ctx.peers.send(Command::Disconnect { peer: found.peer_id }).await.map_err(|_| gone())?;
            Ok(done(format!("disconnected {}", found.peer_id), found.connected))
        }
        Request::Ping { target, count, timeout_ms } => {
            ping(ctx, &target, count, Duration::from_millis(timeout_ms)).await
        }
        Request::Reload => reload(ctx).await,
        look => looking(ctx, look).await,
    }
}

/// The verbs that only look.
async fn looking(ctx: &Context, request: Request) -> Result<Response, Error> {
    match request {
        Request::SubnetLs => {
            let subnets = ctx.node.run(|core| core.subnets()).await?;
            Ok(Response::Subnets { subnets })
        }
        Request::SubnetShow { subnet } => {
            let mut info = ctx.node.run(move |core| core.subnet_show(&subnet)).await??;
            count(ctx, &mut info.maps).await;
            Ok(Response::Subnet(Box::new(info)))
        }
        Request::InviteLs { subnet } => {
            let invites = ctx.node.run(move |core| core.invites(subnet.as_deref())).await??;
            Ok(Response::Invites { invites })
        }
        Request::MemberLs { subnet } => {
            Ok(Response::Members { members: ctx.node.run(move |core| core.members(&subnet)).await?? })
        }
        Request::MemberRequests { subnet } => {
            Ok(Response::Requests { requests: ctx.node.run(move |core| core.requests(&subnet)).await?? })
        }
        Request::LeaseLs { subnet } => {
            Ok(Response::Leases { leases: ctx.node.run(move |core| core.leases(&subnet)).await?? })
        }
        Request::WorkloadLs => Ok(Response::Workloads { workloads: ctx.node.run(|core| core.workloads(None)).await? }),
        Request::WorkloadShow { workload } => {
            Ok(Response::Workload(ctx.node.run(move |core| core.workload(&workload)).await??))
        }
        Request::DnsLs { subnet } => {
            Ok(Response::Dns { records: ctx.node.run(move |core| core.names(&subnet)).await?? })
        }
        Request::MapLs { subnet } => {
            let mut maps = ctx.node.run(move |core| core.maps(subnet.as_deref())).await??;
            count(ctx, &mut maps).await;
            Ok(Response::Maps { maps })
        }
        Request::Status { subnet } => Ok(Response::Status(Box::new(status::status(ctx, subnet).await?))),
        Request::Id => {
            let endpoints = ctx.node.run(|core| core.endpoints.clone()).await?;
            let peer_id = ctx.peers.peer();
            let addresses = endpoints
                .iter()
                .map(|e| if e.contains("/p2p/") { e.clone() } else { format!("{e}/p2p/{peer_id}") })
                .collect();
            Ok(Response::Id(IdInfo {
                peer_id,
                name: ctx.config.node_name.clone(),
                fingerprint: fingerprint(peer_id),
                addresses,
            }))
        }
        Request::PeerLs => Ok(Response::Peers { peers: status::peer_list(ctx).await? }),
        Request::PeerShow { peer } => Ok(Response::Peer(Box::new(status::peer_show(ctx, &peer).await?))),
        Request::Version => Ok(Response::Version { version: env!("CARGO_PKG_VERSION").into(), wire: 1 }),
        _ => Err(Error::new(ErrorKind::Usage, "E-VERB", "this daemon does not know that verb")),
    }
}

fn done(message: impl Into<String>, changed: bool) -> Response {
    Response::Done(Done { message: message.into(), changed })
}

fn generation(core: &Core) -> u64 {
    core.generation()
}

/// Runs a changing verb and waits for the kernel to follow.
async fn changed(
    ctx: &Context,
    job: impl FnOnce(&mut Core) -> Result<Response, Error> + Send + 'static,
) -> Result<Response, Error> {
    let (response, generation) = ctx.node.run(move |core| job(core).map(|r| (r, generation(core)))).await??;
    settle(ctx, generation).await?;
    Ok(response)
}

/// Waits until the kernel matches a generation of the View.
async fn settle(ctx: &Context, generation: u64) -> Result<(), Error> {
    let mut applied = ctx.applied.clone();
    let reached = tokio::time::timeout(KERNEL_PATIENCE, applied.wait_for(|a| a.generation >= generation)).await;
    let failures = match reached {
        Ok(Ok(applied)) => applied.failures.clone(),
        Ok(Err(_)) => return Err(Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping")),
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                "E-KERNEL-SLOW",
                format!("the kernel did not follow within {} s", KERNEL_PATIENCE.as_secs()),
            )
            .hint("byway status"));
        }
    };
    match failures.first() {
        None => Ok(()),
        Some(_) => {
            let all: Vec<String> = failures.iter().map(|f| format!("{}: {}", f.what, f.why)).collect();
            Err(Error::new(ErrorKind::Failed, "E-KERNEL", format!("the kernel refused: {}", all.join("; ")))
                .hint("byway status"))
        }
    }
}

async fn create(ctx: &Context, request: Request) -> Result<Response, Error> {
    let Request::Create { name, cidr4, cidr6, block4, admission, domain, grant_life_s } = request else {
        return Err(Error::new(ErrorKind::Usage, "E-VERB", "not create"));
    };
    ctx.machine.ready()?;
    let routed = ctx.machine.routed(&ctx.instance).await?;
    let founding = Founding {
        name,
        cidr4: choice(cidr4),
        cidr6: choice(cidr6),
        block4,
        admission,
        domain,
        grant_life: grant_life_s,
        member: ctx.config.node_name.clone(),
        routed,
        salt: [0; 16],
    };
    let (response, generation) =
        ctx.node.run(move |core| core.create(founding).map(|r| (r, generation(core)))).await??;
    if let Err(error) = settle(ctx, generation).await {
        // What the kernel refuses was never founded.
        if let Response::Created(created) = &response {
            let id = created.id;
            ctx.node.run(move |core| core.forget(id)).await??;
        }
        return Err(error);
    }
    Ok(response)
}

fn choice<T>(cidr: Cidr<T>) -> Option<Option<T>> {
    match cidr {
        Cidr::None => None,
        Cidr::Auto => Some(None),
        Cidr::Given(prefix) => Some(Some(prefix)),
    }
}

/// After `leave` or `destroy`: gives the others a moment to hear of it, then forgets the subnet.
async fn end(ctx: &Context, subnet: Option<SubnetId>, text: &str, word: &str) -> Result<Response, Error> {
    let Some(id) = subnet else { return Ok(done(format!("{} was {word} already", printable(text)), false)) };
    if !ctx.table.members().is_empty() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let generation = ctx.node.run(move |core| core.forget(id)).await??;
    settle(ctx, generation).await?;
    Ok(done(format!("{word} {}", printable(text)), true))
}

async fn join_subnet(ctx: &Context, request: Request) -> Result<Response, Error> {
    let Request::Join { target, peers, name, alias, ip, timeout_ms, wait } = request else {
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
        since: unix_now(),
    };
    let saved = pending.clone();
    ctx.node.run(move |core| core.begin_join(saved)).await??;
    let mut progress = join::start(ctx, pending);
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
        })),
    }
}

fn decided(progress: &Progress) -> bool {
    matches!(progress, Progress::Admitted(_) | Progress::Refused(_))
}

/// The answer of `join` for a subnet this node belongs to.
async fn joined(ctx: &Context, id: SubnetId) -> Result<Option<Response>, Error> {
    let info: Option<SubnetInfo> = ctx.node.run(move |core| core.subnet_show(&id.to_string()).ok()).await?;
    Ok(info.filter(|i| i.state == SubnetState::Ready).map(|i| {
        let member = i.members.iter().find(|m| m.me).map(|m| m.name.clone());
        Response::Joined(Joined {
            id,
            name: Some(i.name),
            state: SubnetState::Ready,
            addresses: i.addresses,
            interface: Some(i.interface),
            member,
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

async fn map_add(ctx: &Context, request: Request) -> Result<Response, Error> {
    let Request::MapAdd { subnet, proto, listen, port, target, target_port, name, allow } = request else {
        return Err(Error::new(ErrorKind::Usage, "E-VERB", "not map add"));
    };
    ctx.machine.ready()?;
    let map = prepare_map(proto, listen, port, target, target_port, name, allow)?;
    let (text, new) = (subnet.clone(), map.clone());
    let mapped_here = ctx
        .node
        .run(move |core| {
            let mut maps = core.state.subnets.values().flat_map(|s| s.local.maps.iter());
            let mapped =
                maps.any(|m| (m.proto, m.port, m.listen.is_ipv4()) == (new.proto, new.port, new.listen.is_ipv4()));
            core.state.find(&text).map(|_| mapped)
        })
        .await??;
    // Where a map of ours has the port, its own proxy listens there; the node names that conflict.
    if !mapped_here && ctx.machine.is_kernel() {
        let free = tokio::task::spawn_blocking(move || listening::check(proto, listen, port)).await;
        if let Ok(Err(conflict)) = free {
            let message = format!("map {proto} port {port}: {conflict}");
            return Err(
                Error::new(ErrorKind::Conflict, "E-PORT-IN-USE", message).hint(format!("ss -lnp sport = :{port}"))
            );
        }
    }
    let (found, mapped) = (subnet.clone(), map.name.to_string());
    let generation = ctx.node.run(move |core| core.map_add(&subnet, map).map(|_| generation(core))).await??;
    if let Err(error) = settle(ctx, generation).await {
        let _ = ctx.node.run(move |core| core.map_rm(&found, Some(&mapped), None)).await?;
        return Err(error);
    }
    let maps = ctx.node.run(move |core| core.maps(Some(&found))).await??;
    let map = maps.into_iter().find(|m| m.name.as_str() == mapped);
    map.map(Response::Map).ok_or_else(|| Error::new(ErrorKind::Failed, "E-MAP", "the map is gone again"))
}

/// Adds the live counters.
async fn count(ctx: &Context, maps: &mut [crate::api::types::MapInfo]) {
    let Some(rules) = &ctx.rules else { return };
    if maps.is_empty() {
        return;
    }
    let counts = rules.counts().await;
    for map in maps {
        let Ok(listen) = map.listen.parse::<SocketAddr>() else { continue };
        let key = MapKey { proto: map.proto, listen: listen.ip(), port: listen.port() };
        if let Some(found) = counts.maps.get(&key) {
            map.connections = found.connections;
            map.rx_bytes = found.rx_bytes;
            map.tx_bytes = found.tx_bytes;
        }
    }
}

async fn query(ctx: &Context, name: &str, kind: &str) -> Result<Response, Error> {
    let view = ctx.node.view().load_full();
    let answer =
        ctx.dns.query(&view, name, kind).await.map_err(|e| Error::new(ErrorKind::Usage, "E-QUERY", e.to_string()))?;
    let shown = printable(name);
    match answer.outcome {
        Outcome::Exists => {
            let source = if answer.authoritative { "zone" } else { "upstream" };
            let record = |r: crate::dns::Found| DnsInfo {
                name: r.name,
                r#type: r.kind,
                value: r.value,
                ttl: r.ttl,
                source: source.into(),
            };
            Ok(Response::Dns { records: answer.records.into_iter().map(record).collect() })
        }
        Outcome::NoSuchName => Err(Error::new(ErrorKind::NotFound, "E-NXDOMAIN", format!("there is no name {shown}"))),
        Outcome::Refused => {
            Err(Error::new(ErrorKind::Failed, "E-DNS-REFUSED", format!("{shown} {kind} is not answered")))
        }
        Outcome::Failed => Err(Error::new(
            ErrorKind::Failed,
            "E-DNS-FAILED",
            format!("the host's resolvers did not answer for {shown}"),
        )
        .hint("cat /etc/resolv.conf")),
    }
}

async fn connect(ctx: &Context, peer: &str) -> Result<Response, Error> {
    let failed = |e: crate::p2p::ConnectError| {
        Error::new(ErrorKind::Failed, "E-CONNECT", format!("connect {}: {e}", printable(peer)))
    };
    if peer.starts_with('/') {
        let address: Address =
            peer.parse().map_err(|e| Error::new(ErrorKind::Usage, "E-ADDRESS", format!("{}: {e}", printable(peer))))?;
        let expected = address.peer();
        let id = ctx.peers.connect(vec![address], expected).await.map_err(failed)?;
        return Ok(done(format!("connected {id}"), true));
    }
    let found = status::peer_show(ctx, peer).await?;
    let addresses = found.addresses.iter().filter_map(|a| a.parse().ok()).collect();
    let id = ctx.peers.connect(addresses, Some(found.peer_id)).await.map_err(failed)?;
    Ok(done(format!("connected {id}"), !found.connected))
}

/// Who is behind a peer ID, member or workload name, or overlay address.
async fn resolve(ctx: &Context, target: &str) -> Result<(PeerId, Option<SubnetId>, Option<IpAddr>), Error> {
    let text = target.to_owned();
    let found = ctx
        .node
        .run(move |core| {
            let now = core.now();
            let address: Option<IpAddr> = text.parse().ok();
            for subnet in core.state.subnets.values() {
                let resolved = subnet.records.resolve(now);
                let id = Some(subnet.records.id);
                if let Some(address) = address {
                    if let Some((peer, _)) = resolved.members.iter().find(|(_, m)| holds_address(m, address)) {
                        return Some((*peer, id, Some(address)));
                    }
                    continue;
                }
                let any = IpAddr::from([0, 0, 0, 0]);
                let target = subnet.target_address(&core.state.me, &resolved, &text, any);
                let target =
                    target.or_else(|| subnet.target_address(&core.state.me, &resolved, &text, IpAddr::from([0u16; 8])));
                if let Some((address, _)) = target {
                    let owner = resolved.members.iter().find(|(_, m)| holds_address(m, address)).map(|(p, _)| *p)?;
                    return Some((owner, id, Some(address)));
                }
                if let Ok(peer) = subnet.find_member(&resolved, &text) {
                    let address = resolved.members.get(&peer).and_then(|m| m.addresses.first().copied());
                    return Some((peer, id, address));
                }
            }
            None
        })
        .await?;
    match found {
        Some(found) => Ok(found),
        None => Ok((status::peer_show(ctx, target).await?.peer_id, None, None)),
    }
}

async fn ping(ctx: &Context, target: &str, count: u32, timeout: Duration) -> Result<Response, Error> {
    let (peer, subnet, address) = resolve(ctx, target).await?;
    if peer == ctx.peers.peer() {
        return Err(Error::new(
            ErrorKind::Usage,
            "E-SELF",
            format!("{} is on this node; ping measures the way to other peers", printable(target)),
        ));
    }
    let timeout = timeout.clamp(Duration::from_millis(100), Duration::from_secs(10));
    let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let (mut control_rtt_ms, mut rtt_ms) = (Vec::new(), Vec::new());
    let count = count.clamp(1, 100);
    for n in 0..count {
        let start = Instant::now();
        let body = control::encode(&ControlRequest::Ping);
        let answer = ctx.peers.ask(peer, Protocol::Control, body, timeout).await;
        control_rtt_ms.push(answer.ok().map(|_| ms(start.elapsed())));
        let data = match subnet {
            Some(subnet) => {
                tokio::time::timeout(timeout, ctx.links.probe(Key { subnet, peer })).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        rtt_ms.push(data.map(ms));
        if n + 1 < count {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let counted = if subnet.is_some() { &rtt_ms } else { &control_rtt_ms };
    let received = u32::try_from(counted.iter().flatten().count()).unwrap_or(0);
    let path = status::peer_show(ctx, &peer.to_string()).await.map(|p| p.path)?;
    Ok(Response::Ping(PingInfo {
        target: target.to_owned(),
        peer_id: peer,
        address,
        sent: count,
        received,
        control_rtt_ms,
        rtt_ms,
        path,
    }))
}

/// Reads the configuration again and says what needs a restart; declared memberships are joined at once.
async fn reload(ctx: &Context) -> Result<Response, Error> {
    let fresh = Config::load(&ctx.config.sources).map_err(|errors| {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Error::new(ErrorKind::Usage, "E-CONFIG", all.join("; ")).hint("byway config check")
    })?;
    let same = fresh
        .values()
        .zip(ctx.config.values())
        .filter(|((_, a, _), (_, b, _))| a != b)
        .map(|((key, ..), _)| key)
        .collect::<Vec<_>>();
    if same.is_empty() {
        Ok(done("configuration read again; nothing changed", false))
    } else {
        Ok(done(format!("configuration read again; a restart is needed for: {}", same.join(", ")), true))
    }
}
