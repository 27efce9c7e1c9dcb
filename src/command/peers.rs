//! Peers: connected, found by whatever they are called, measured.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::join::meant;
use super::wake::wake;
use super::{Commands, done};
use crate::api::types::{Error, ErrorKind, IdInfo, Path, PathKind, PingInfo, Problem, Response};
use crate::link::Key;
use crate::link::direct::Echo;
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::fingerprint;
use crate::model::members::printable;
use crate::node::{TargetPeer, Withheld, unix_now};
use crate::p2p::{self, Address, Command, Typed};
use crate::report::peers::peer_show;
use crate::report::unwell;
use crate::service::{lan, ping};

pub(super) async fn connect(ctx: &Commands, peer: &str) -> Result<Response, Error> {
    let failed = |e: crate::p2p::ConnectError| {
        Error::new(
            ErrorKind::Failed,
            Code::Connect,
            format!("connect {}: {e}", printable(peer)),
        )
    };
    // What is known here by that name is meant first; else it is where somebody is.
    let known = if peer.starts_with('/') {
        None
    } else {
        Some(peer_show(&ctx.report, peer).await)
    };
    let found = match known {
        Some(Ok(found)) => found,
        Some(Err(error)) if error.kind != ErrorKind::NotFound => return Err(error),
        other => {
            let unknown = other
                .and_then(Result::err)
                .filter(|_| !peer.contains(['.', ':']));
            return match (connect_to(ctx, peer).await, unknown) {
                (Ok(Ok(id)), _) => Ok(done(format!("connected {id}"), true)),
                // One word is a name more often than a host.
                (_, Some(unknown)) => Err(unknown),
                (Ok(Err(error)), None) => Err(failed(error)),
                (Err(error), None) => Err(error),
            };
        }
    };
    // The address book knows where, and who says so.
    let id = ctx
        .peers
        .connect(Vec::new(), Some(found.peer_id))
        .await
        .map_err(failed)?;
    Ok(done(format!("connected {id}"), !found.connected))
}

/// Dials where a person says.
async fn connect_to(
    ctx: &Commands,
    text: &str,
) -> Result<Result<PeerId, crate::p2p::ConnectError>, Error> {
    let wrong = |e: String| {
        Error::new(
            ErrorKind::Usage,
            Code::Address,
            format!("{}: {e}", printable(text)),
        )
    };
    let typed: Result<Vec<Typed>, _> = meant(text)
        .map_err(wrong)?
        .iter()
        .map(|a| a.parse::<Typed>())
        .collect();
    let typed = typed.map_err(|e| wrong(e.to_string()))?;
    let expected = typed.iter().find_map(|t| t.address().peer());
    Ok(ctx.peers.connect(typed, expected).await)
}

/// Carries out `peer disconnect`.
pub(super) async fn disconnect(ctx: &Commands, peer: &str) -> Result<Response, Error> {
    let found = peer_show(&ctx.report, peer).await?;
    let gone = || Error::new(ErrorKind::Failed, Code::Stopping, "the daemon is stopping");
    ctx.peers
        .send(Command::Disconnect {
            peer: found.peer_id,
        })
        .await
        .map_err(|_| gone())?;
    let message = format!("disconnected {}", found.peer_id);
    Ok(done(message, found.connected))
}

/// `id`: this peer, and where others dial it.
pub(super) async fn id(ctx: &Commands) -> Result<Response, Error> {
    let mut endpoints = ctx.node.endpoints().await?;
    keep_for_others(&mut endpoints, &ctx.config.listen);
    if endpoints.is_empty() {
        let on_links = lan::on_links(&ctx.mesh).await;
        endpoints.extend(on_links.iter().map(ToString::to_string));
    }
    let peer_id = ctx.peers.peer();
    let addresses = endpoints
        .iter()
        .map(|e| {
            let named = e.parse::<Address>().is_ok_and(|e| e.peer().is_some());
            if named {
                e.clone()
            } else {
                format!("{e}/p2p/{peer_id}")
            }
        })
        .collect();
    Ok(Response::Id(IdInfo {
        peer_id,
        name: ctx.config.node_name.clone(),
        fingerprint: fingerprint(peer_id),
        addresses,
    }))
}

/// Leaves out what leads anybody else to their own machine: loopback, unless `listen` names it. A machine without another
/// address tells it to daemons beside its own.
fn keep_for_others(endpoints: &mut Vec<String>, listen: &[String]) {
    let is_loopback = |text: &String| {
        let ip = text.parse::<Address>().ok().and_then(|at| at.ip());
        ip.is_some_and(|ip| ip.is_loopback())
    };
    if !listen.iter().any(is_loopback) {
        endpoints.retain(|endpoint| !is_loopback(endpoint));
    }
}

/// Who is behind a peer ID, member or workload name, or overlay address.
pub(super) async fn resolve(
    ctx: &Commands,
    target: &str,
) -> Result<(PeerId, Option<SubnetId>, Option<IpAddr>), Error> {
    match ctx.node.target(target.to_owned()).await? {
        Some(TargetPeer {
            peer,
            subnet,
            address,
        }) => Ok((peer, Some(subnet), address)),
        None => {
            if let Some(withheld) = ctx.node.withheld(target.to_owned()).await? {
                return Err(nobody_is_sent(withheld));
            }
            // The first characters of an ID may be a member's.
            let peer = peer_show(&ctx.report, target).await?.peer_id;
            let member = ctx.node.target(peer.to_string()).await?;
            Ok((peer, member.map(|member| member.subnet), None))
        }
    }
}

/// The name of a workload leads nowhere now, for nobody is sent there.
fn nobody_is_sent(withheld: Withheld) -> Error {
    let Withheld {
        workload,
        subnet,
        member,
        unhealthy,
        planned,
    } = withheld;
    // There is no such workload to show yet.
    if planned {
        let message = format!("{workload} of {member} is planned by a file, and is not here yet");
        return Error::new(ErrorKind::NotFound, Code::Health, message)
            .hint("byway import ls      (the files, and what they plan)");
    }
    let why = match unhealthy {
        Some(true) => "it is unhealthy",
        Some(false) => "it is not running",
        // Its member tells the others only that it has no address.
        None => "it is unhealthy or not running",
    };
    let message = format!("{workload} of {member} is sent nobody now: {why}");
    let hint = format!("byway workload show {workload} --subnet {subnet}      (on {member})");
    Error::new(ErrorKind::NotFound, Code::Health, message).hint(hint)
}

/// The round trip on the carrier that packets take.
pub(super) async fn data_rtt(ctx: &Commands, key: Key) -> Option<Duration> {
    if let Some(direct) = &ctx.mesh.direct
        && let Some(rtt) = direct.ping(key).await
    {
        return Some(rtt);
    }
    ctx.links.probe(key).await.ok()
}

/// What came of one probe along a way of one kind.
enum Along {
    /// Its round trip, and the way.
    Answered(Duration, Path),
    Silent,
    /// No such way leads to the peer now.
    Absent,
}

/// One probe by a relay or straight to the peer, whatever packets take: the way that carries them where it is of that kind,
/// else one that is kept ready beside it.
async fn along(ctx: &Commands, key: Key, kind: PathKind) -> Along {
    let by_relay = kind == PathKind::Relay;
    if let Some(direct) = &ctx.mesh.direct
        && let Some(echo) = direct.echo(key, Some(by_relay)).await
    {
        return Along::Answered(echo.rtt, way(ctx, &echo).await);
    }
    let Ok(info) = peer_show(&ctx.report, &key.peer.to_string()).await else {
        return Along::Absent;
    };
    // Where no datagrams pass, a stream is the way.
    if info.path.kind != kind.word() || info.path.carrier.as_deref() != Some("stream") {
        return Along::Absent;
    }
    match ctx.links.probe(key).await {
        Ok(rtt) => Along::Answered(rtt, info.path),
        Err(_) => Along::Silent,
    }
}

/// The way that a probe went.
async fn way(ctx: &Commands, echo: &Echo) -> Path {
    let (kind, via) = match echo.relay {
        Some(relay) => (PathKind::Relay, relay.to_string()),
        None => (PathKind::Direct, p2p::named(echo.to)),
    };
    let relay = match echo.relay {
        Some(relay) => peer_show(&ctx.report, &relay.to_string()).await.ok(),
        None => None,
    };
    Path {
        kind: kind.word().to_owned(),
        carrier: Some("datagram".to_owned()),
        transport: Some("udp".to_owned()),
        via: Some(via),
        via_name: relay.and_then(|relay| relay.names.into_iter().next()),
        since: unix_now(),
        ..Path::default()
    }
}

/// What the peer's machine refused lately: a ping that passes does not say that it lets in more.
async fn refused(ctx: &Commands, key: Key) -> Result<Vec<Problem>, Error> {
    let called = ctx
        .node
        .called(vec![(key.subnet, key.peer)])
        .await?
        .into_iter()
        .flatten()
        .next();
    Ok(called
        .and_then(|called| unwell::closed_machine(&ctx.report, key, &called))
        .into_iter()
        .collect())
}

/// The subnet in which the way to a peer is measured: not to this node itself, and not in a subnet that is down here.
/// Packets go to members only, and nobody else answers a question on a control connection.
///
/// # Errors
/// `E-ONESELF`, `E-NO-MEMBER`, `E-SUBNET-DOWN`.
pub(super) async fn away(
    ctx: &Commands,
    target: &str,
    peer: PeerId,
    subnet: Option<SubnetId>,
) -> Result<SubnetId, Error> {
    if peer == ctx.peers.peer() {
        let message = format!(
            "{} is on this node; this measures the way to other peers",
            printable(target)
        );
        return Err(Error::new(ErrorKind::Usage, Code::Oneself, message));
    }
    let Some(id) = subnet else {
        let message = format!("{} is no member of a subnet here", printable(target));
        return Err(Error::new(ErrorKind::NotFound, Code::NoMember, message).hint("byway peer ls"));
    };
    if let Some((name, false)) = ctx.node.is_up(id).await? {
        let message =
            format!("subnet {name} is down on this machine: nothing of it is reached from here");
        return Err(Error::new(ErrorKind::Conflict, Code::SubnetDown, message)
            .hint(format!("byway up {name}")));
    }
    Ok(id)
}

pub(super) async fn ping(
    ctx: &Commands,
    target: &str,
    count: u32,
    timeout: Duration,
    over: Option<PathKind>,
) -> Result<Response, Error> {
    let (peer, subnet, address) = resolve(ctx, target).await?;
    let subnet = away(ctx, target, peer, subnet).await?;
    let key = Key { subnet, peer };
    let timeout = timeout.clamp(Duration::from_millis(100), Duration::from_secs(10));
    let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let (mut control_rtt_ms, mut rtt_ms) = (Vec::new(), Vec::new());
    let (mut way, mut absent) = (None, false);
    wake(ctx, key, timeout).await;
    let count = count.clamp(1, 100);
    for n in 0..count {
        let start = Instant::now();
        let answer = ping::ping(&ctx.mesh.service, peer, timeout).await;
        control_rtt_ms.push(answer.ok().map(|_| ms(start.elapsed())));
        let data = async {
            match over {
                None => data_rtt(ctx, key).await,
                Some(kind) => match along(ctx, key, kind).await {
                    Along::Answered(rtt, along) => {
                        way = Some(along);
                        Some(rtt)
                    }
                    Along::Silent => None,
                    Along::Absent => {
                        absent = true;
                        None
                    }
                },
            }
        };
        let data = tokio::time::timeout(timeout, data).await;
        rtt_ms.push(data.ok().flatten().map(ms));
        if absent {
            break;
        }
        if n + 1 < count {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let received = u32::try_from(rtt_ms.iter().flatten().count()).unwrap_or(0);
    let path = peer_show(&ctx.report, &peer.to_string())
        .await
        .map(|p| p.path)?;
    let refused = refused(ctx, key).await?;
    Ok(Response::Ping(PingInfo {
        target: target.to_owned(),
        peer_id: peer,
        address,
        sent: u32::try_from(rtt_ms.len()).unwrap_or(count),
        received,
        control_rtt_ms,
        rtt_ms,
        path,
        over: way,
        absent,
        refused,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_is_told_to_dial_loopback_unless_it_is_listened_on_by_name() {
        let kept = |listen: &[&str], endpoints: &[&str]| {
            let owned = |all: &[&str]| -> Vec<String> {
                all.iter().map(|text| (*text).to_owned()).collect()
            };
            let mut endpoints = owned(endpoints);
            keep_for_others(&mut endpoints, &owned(listen));
            endpoints
        };
        let everywhere = ["/ip4/0.0.0.0/tcp/4100", "/ip6/::/tcp/4100"];
        let (v4, v6) = ("/ip4/127.0.0.1/tcp/4100", "/ip6/::1/udp/4100/quic-v1");
        let out = "/ip4/192.0.2.7/tcp/4100";
        assert_eq!(kept(&everywhere, &[v4, v6]), [""; 0]);
        assert_eq!(
            kept(&everywhere, &[v4, out, "/dns4/a.example/tcp/443/wss"]),
            [out, "/dns4/a.example/tcp/443/wss"]
        );
        assert_eq!(kept(&["/ip4/127.0.0.1/tcp/0"], &[v4]), [v4]);
    }
}
