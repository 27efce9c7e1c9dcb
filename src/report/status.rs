//! `status`, `peer ls`, `peer show`: what the node believes joined with what links, peers and host see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Report, unwell};
use crate::api::types::{
    self, Carriers, Error, ErrorKind, Path, PeerInfo, Problem, SessionInfo, Status, SubnetState,
};
use crate::config::PostQuantum;
use crate::host::Rules;
use crate::link::direct::{DirectStatus, PathStatus};
use crate::link::{Carried, Key, LinkStatus};
use crate::model::build::MTU;
use crate::model::error::{Code, Hint};
use crate::model::find::{Named, find};
use crate::model::host::neighbour::{Hook, Obstacle};
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::fingerprint;
use crate::model::members::printable;
use crate::node::{Called, Overview, unix_now};
use crate::p2p;
use crate::service::{clock, sessions, versions};
use crate::wire::datagram::OVERHEAD;

/// Addresses shown of a peer that is offline.
const SHOWN: usize = 2;

/// What the peers' task knows, by peer.
type Peers = BTreeMap<PeerId, p2p::PeerStatus>;
/// What the control task of the datagrams knows.
type Sessions = HashMap<Key, DirectStatus>;

async fn peers(ctx: &Report) -> Peers {
    ctx.peers
        .status()
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|p| (p.peer, p))
        .collect()
}

fn rtt_ms(status: Option<&p2p::PeerStatus>) -> Option<f64> {
    status?
        .connections
        .iter()
        .rev()
        .find_map(|c| c.rtt)
        .map(millis)
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// `A:P` of a multiaddr with an IP address; any other as it is.
pub(super) fn endpoint_text(remote: &str) -> String {
    let address = remote.parse::<p2p::Address>().ok();
    let endpoint = address
        .as_ref()
        .and_then(|a| Some(SocketAddr::new(a.ip()?, a.port()?)));
    endpoint.map_or_else(|| remote.to_owned(), |e| e.to_string())
}

async fn sessions(ctx: &Report) -> Sessions {
    match &ctx.mesh.direct {
        Some(direct) => direct.status().await,
        None => Sessions::new(),
    }
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

fn carried(carried: Carried) -> types::Carried {
    let Carried {
        tx_bytes,
        rx_bytes,
        tx_packets,
        rx_packets,
    } = carried;
    types::Carried {
        tx_bytes,
        rx_bytes,
        tx_packets,
        rx_packets,
    }
}

fn carriers(link: &LinkStatus) -> Carriers {
    Carriers {
        datagram: carried(link.datagrams),
        stream: carried(link.streams),
    }
}

fn session(status: &DirectStatus) -> SessionInfo {
    SessionInfo {
        cipher: status.cipher.map(|cipher| cipher.to_string()),
        post_quantum: status.hybrid,
        keys: status.keys,
        path_changes: status.path_changes,
    }
}

/// Bytes of the largest packet of a subnet on a path: what the underlay's headers and the frame leave of it.
fn inner_mtu(path: &PathStatus) -> u16 {
    let headers = if path.to.is_ipv4() { 28 } else { 48 };
    let frame = u16::try_from(OVERHEAD).unwrap_or(u16::MAX);
    path.mtu
        .saturating_sub(headers)
        .saturating_sub(frame)
        .min(MTU)
}

/// The path of datagrams.
fn datagrams(path: &PathStatus) -> Path {
    Path {
        kind: "direct".into(),
        carrier: Some("datagram".into()),
        transport: Some("udp".into()),
        via: Some(path.to.to_string()),
        reason: None,
        since: seconds(path.since).unwrap_or_else(unix_now),
        mtu: Some(path.mtu),
    }
}

/// How packets reach a peer: by datagrams, by the stream in use, or since when by nothing.
fn path(
    ctx: &Report,
    peer: PeerId,
    link: Option<&LinkStatus>,
    direct: Option<&PathStatus>,
    status: Option<&p2p::PeerStatus>,
) -> Path {
    if let Some(direct) = direct {
        return datagrams(direct);
    }
    let since = link.and_then(|l| l.since).and_then(seconds);
    let direct = |transport: &str, via: String, since| Path {
        kind: "direct".into(),
        carrier: Some("stream".into()),
        transport: Some(transport.into()),
        via: Some(endpoint_text(&via)),
        reason: None,
        since,
        mtu: None,
    };
    if let Some(via) = link.and_then(|l| l.via.as_ref()) {
        return direct(
            via.transport,
            via.remote.clone(),
            since.unwrap_or_else(unix_now),
        );
    }
    // Where no stream may carry packets, a connection is no way for them.
    let by_streams = ctx.config.post_quantum != PostQuantum::Require;
    // Connected, but in no common subnet's stream yet.
    if let (None, Some(connection)) = (
        link,
        status
            .and_then(|s| s.connections.last())
            .filter(|_| by_streams),
    ) {
        return direct(
            connection.transport,
            connection.remote.clone(),
            unix_now().saturating_sub(connection.age.as_secs()),
        );
    }
    let gone = ctx
        .mesh
        .table
        .gone_since(peer)
        .or(since)
        .unwrap_or_else(|| unix_now().saturating_sub(ctx.started.elapsed().as_secs()));
    let (reason, via) = unreached(status).unzip();
    let reason = reason.map(str::to_owned);
    Path {
        kind: "offline".into(),
        carrier: None,
        transport: None,
        via: via.flatten(),
        reason,
        since: gone,
        mtu: None,
    }
}

/// Why a peer that is not connected is not, and where it was not reached; nothing where nobody has tried yet.
fn unreached(status: Option<&p2p::PeerStatus>) -> Option<(&'static str, Option<String>)> {
    let Some(status) = status.filter(|s| !s.addresses.is_empty()) else {
        return Some(("no-address", None));
    };
    let mut tried: Vec<String> = Vec::new();
    for address in &status.addresses {
        let text = endpoint_text(&address.to_string());
        if !tried.contains(&text) {
            tried.push(text);
        }
    }
    let more = tried.len().saturating_sub(SHOWN);
    tried.truncate(SHOWN);
    let list = tried.join(", ");
    let list = if more > 0 {
        format!("{list} and {more} more")
    } else {
        list
    };
    (status.failures > 0).then_some(("not-reached", Some(list)))
}

/// How packets reach each member that is connected, or has a path of datagrams.
pub(super) async fn paths(ctx: &Report) -> BTreeMap<Key, Path> {
    let view = ctx.node.view().load_full();
    let sessions = sessions(ctx).await;
    let connected = ctx.mesh.table.members();
    let mut paths = BTreeMap::new();
    for subnet in view.subnets.values() {
        let by_datagrams = sessions
            .iter()
            .filter(|(key, s)| key.subnet == subnet.id && s.path.is_some());
        let peers = by_datagrams
            .map(|(key, _)| key.peer)
            .chain(connected.iter().copied());
        for peer in peers.filter(|peer| subnet.members.contains(peer)) {
            let key = Key {
                subnet: subnet.id,
                peer,
            };
            let direct = sessions.get(&key).and_then(|s| s.path.as_ref());
            paths
                .entry(key)
                .or_insert_with(|| path(ctx, peer, Some(&ctx.links.status(key)), direct, None));
        }
    }
    paths
}

/// Names of byway's own links.
fn own_links(ctx: &Report) -> BTreeSet<String> {
    let view = ctx.node.view().load_full();
    let tuns = view.host.tuns.iter().map(|t| t.name.clone());
    tuns.chain(view.host.workloads.iter().map(|w| w.host_link.clone()))
        .collect()
}

/// `status`.
pub(crate) async fn status(ctx: &Report, only: Option<String>) -> Result<Status, Error> {
    let Overview {
        only,
        subnets: parts,
        mut maps,
        contested,
        damage,
        asking,
        twice,
        ended,
        refused,
    } = ctx.node.overview(only).await?;
    let known = peers(ctx).await;
    let sessions = sessions(ctx).await;
    let mut problems = problems(ctx);
    problems.extend(blocked(ctx));
    super::maps::count(ctx, &mut maps).await;
    // Where the whole subnet is off, that is the problem, and not each of its maps.
    maps.retain(|map| {
        parts
            .iter()
            .any(|p| p.status.name == map.subnet && p.status.state == SubnetState::Ready)
    });
    problems.extend(super::condition::of_maps(&maps));
    if ctx.platform.is_kernel() && parts.iter().any(|part| !part.peers.is_empty()) {
        problems.extend(super::condition::no_way_out(&own_links(ctx)));
    }
    let dropped = dropped_by_rules(ctx).await;
    problems.extend(damage.into_iter().map(|d| {
        Problem {
            code: Code::StateDamaged.to_string(),
            severity: "warning".into(),
            message: format!("{} was left out of the saved state: {}", d.what, d.why),
            help:
                "nothing has to be done: it is fetched from the other members when one is connected"
                    .into(),
        }
    }));
    problems.extend(asking.into_iter().map(|(subnet, names)| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Problem {
            code: Code::JoinRequests.to_string(),
            severity: "info".into(),
            message: format!("asking to join {subnet}: {}", names.join(", ")),
            help: format!("byway member requests {subnet}"),
        }
    }));
    for part in &parts {
        let name = &part.status.name;
        problems.extend(
            part.mine
                .as_ref()
                .and_then(|mine| unwell::renamed_member(name, mine)),
        );
        problems.extend(part.forked.then(|| unwell::forked(name)));
        problems.extend(
            part.restored
                .and_then(|invites| unwell::restored(name, invites)),
        );
    }
    problems.extend(
        twice
            .iter()
            .map(|twice| super::lives::problem(twice, &ctx.config.state_dir)),
    );
    problems.extend(ended.iter().map(|(name, id)| unwell::ended(name, *id)));
    problems.extend(refused.iter().filter_map(unwell::not_let_in));
    problems.extend(unwell::idle(&ctx.settings.borrow()));
    problems.extend(contested.into_iter().map(|(subnet, name, members)| Problem {
        code: Code::NameContested.to_string(),
        severity: "warning".into(),
        message: format!("{} claim the name {name} in {subnet}, and nobody has registered it", members.join(" and ")),
        help: format!("an admin: byway dns release {subnet} {name} --member MEMBER; or one of them gives it up"),
    }));
    let names: BTreeMap<PeerId, String> = parts
        .iter()
        .flat_map(|p| p.peers.iter().map(|(peer, s)| (*peer, s.name.to_string())))
        .collect();
    let name = |peer: PeerId| names.get(&peer).cloned().unwrap_or_else(|| peer.short());
    problems.extend(super::found::problems(ctx, name));
    let judgement = ctx.mesh.clocks.judgement();
    problems.extend(clock::problems(&judgement, &ctx.mesh.table.members(), name));
    problems.extend(versions::problems(known.values(), name));
    let mut subnets = Vec::new();
    for part in parts {
        let mut status = part.status;
        for (peer, mut info) in part.peers {
            let key = Key {
                subnet: status.id,
                peer,
            };
            // Off the wire there is no path, and what was measured before says nothing of now.
            if status.state == SubnetState::Down {
                status.peers.push(info);
                continue;
            }
            let called = Called {
                member: info.name.clone(),
                subnet: part.named.clone(),
            };
            problems.extend(unwell::closed_machine(ctx, key, &called));
            let link = ctx.links.status(key);
            let direct = sessions.get(&key).and_then(|s| s.path.as_ref());
            info.path = path(ctx, peer, Some(&link), direct, known.get(&peer));
            info.rtt_ms = match direct.and_then(|path| path.rtt) {
                Some(rtt) => Some(millis(rtt)),
                None if info.path.kind == "offline" => None,
                None => rtt_ms(known.get(&peer)),
            };
            // Nobody of a subnet that this node is out of was seen since the start: no time is known.
            if status.state == SubnetState::Removed
                && ctx
                    .mesh
                    .table
                    .gone_since(peer)
                    .or(link.since.and_then(seconds))
                    .is_none()
            {
                info.path.since = 0;
            }
            problems.extend(unwell::unanswered(&info, sessions.get(&key), unix_now()));
            problems.extend(unwell::unmet(
                &info,
                sessions.get(&key),
                ctx.config.post_quantum,
            ));
            info.loss = direct.and_then(|path| path.loss);
            info.mtu = direct.map_or(MTU, inner_mtu);
            info.tx_bytes = link.carried().tx_bytes;
            info.rx_bytes = link.carried().rx_bytes;
            info.carriers = carriers(&link);
            info.session = sessions.get(&key).map(session);
            status.peers.push(info);
        }
        status.drops = ctx
            .datapath
            .drops(status.id)
            .into_iter()
            .map(|(reason, n)| (reason.text().to_owned(), n))
            .collect();
        // The ruleset counts for the machine: it is shown where the workloads are.
        if !status.workloads.is_empty() {
            for (reason, packets) in &dropped.by_reason {
                let count = status.drops.entry(reason.clone()).or_insert(0);
                *count = count.saturating_add(*packets);
            }
        }
        status.drops.insert(
            "host-closed".to_owned(),
            dropped.closed.get(&status.id).copied().unwrap_or(0),
        );
        match part.ended {
            true => problems.push(unwell::ended(&status.name, status.id)),
            false => {
                let grant = part
                    .mine
                    .map(|mine| (mine.grant.not_before, mine.grant.not_after));
                problems.extend(unwell::expiry((&status.name, status.id), grant, unix_now()));
            }
        }
        subnets.push(status);
    }
    super::waiting::add(ctx, only, &mut subnets).await?;
    clock::blame(&judgement, &mut problems);
    let applied = ctx.applied.borrow().generation;
    Ok(Status {
        peer_id: ctx.peers.peer(),
        name: ctx.config.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: applied >= ctx.node.view().load().generation
            && problems.iter().all(|p| p.severity != "error"),
        uptime_s: ctx.started.elapsed().as_secs(),
        sealing: sessions::sealing(ctx.config.data_cipher).to_string(),
        subnets,
        problems,
    })
}

/// What the ruleset dropped.
#[derive(Default)]
pub(super) struct DroppedByRules {
    /// Under the names `drops` has: a workload's forged source, what the filter refused.
    by_reason: BTreeMap<String, u64>,
    /// What was asked of this machine itself and not let in, by subnet.
    pub(super) closed: BTreeMap<SubnetId, u64>,
}

pub(super) async fn dropped_by_rules(ctx: &Report) -> DroppedByRules {
    let Some(rules) = &ctx.rules else {
        return DroppedByRules::default();
    };
    let counts = rules.counts().await;
    let mut by_reason = BTreeMap::new();
    for (name, count) in counts.drops {
        let reason = if name == "source_not_leased" {
            "source-not-leased"
        } else {
            "filtered"
        };
        let sum: &mut u64 = by_reason.entry(reason.to_owned()).or_insert(0);
        *sum = sum.saturating_add(count.packets);
    }
    DroppedByRules {
        by_reason,
        closed: counts.closed,
    }
}

/// Firewalls of others that stop what we forward or answer: an accept of ours cannot overrule them.
fn blocked(ctx: &Report) -> Vec<Problem> {
    let problem = |obstacle: Obstacle| Problem {
        code: match obstacle.hook {
            Hook::Forward => Code::ForwardBlocked.to_string(),
            Hook::Input => Code::InputBlocked.to_string(),
        },
        severity: "warning".into(),
        message: obstacle.message,
        help: obstacle.remedy,
    };
    ctx.rules
        .iter()
        .flat_map(Rules::blocked)
        .map(problem)
        .collect()
}

fn problems(ctx: &Report) -> Vec<Problem> {
    let mut all = Vec::new();
    if let Err(missing) = ctx.platform.ready() {
        all.push(Problem {
            code: missing.code,
            severity: "error".into(),
            message: missing.message,
            help: missing.hint,
        });
    }
    all.extend(ctx.applied.borrow().failures.iter().map(|f| Problem {
        code: Code::Kernel.to_string(),
        severity: "error".into(),
        message: format!("{}: {}", f.what, f.why),
        help: "it is tried again every few seconds; byway cleanup and a restart remove what is in the way".into(),
    }));
    all.extend(super::storage::problems(ctx));
    let refused = ctx.mesh.table.refused();
    if refused > 0 {
        all.push(Problem {
            code: Code::PeerRequests.to_string(),
            severity: "info".into(),
            message: format!("{refused} requests of peers were refused: malformed, or too many"),
            help: "the log names the peers".into(),
        });
    }
    let silent = ctx.dns.problems().borrow().clone();
    let (lacking, silent): (Vec<_>, Vec<_>) = silent.into_iter().partition(|p| p.no_family);
    // As this machine is made: no fault, so that it can be healthy.
    all.extend(lacking.first().map(|p| {
        let (lost, kept) = if p.address.is_ipv6() { ("IPv6", "IPv4") } else { ("IPv4", "IPv6") };
        Problem {
            code: Code::NoFamily.to_string(),
            severity: "info".into(),
            message: format!("this machine has no sockets of {lost}: names, peers and loopback maps use {kept} only"),
            help: format!("nothing to do where {lost} is off on purpose; else turn it on and restart byway"),
        }
    }));
    all.extend(silent.into_iter().map(|p| Problem {
        code: Code::DnsBind.to_string(),
        severity: "error".into(),
        message: format!("names are not answered on {}: {}", p.address, p.error),
        help: if p.in_use {
            format!("find who listens: ss -lnp sport = :{}", p.address.port())
        } else {
            String::new()
        },
    }));
    all
}

/// `peer ls`: every member of any subnet, and everybody connected.
pub(crate) async fn peer_list(ctx: &Report) -> Result<Vec<PeerInfo>, Error> {
    let mut names = ctx.node.known_as().await?;
    let known = peers(ctx).await;
    let direct = sessions(ctx).await;
    for peer in known.keys() {
        names.entry(*peer).or_default();
    }
    let info = |(peer, (names, subnets)): (PeerId, (Vec<String>, Vec<_>))| {
        let keys: Vec<Key> = subnets
            .into_iter()
            .map(|subnet| Key { subnet, peer })
            .collect();
        let links: Vec<LinkStatus> = keys.iter().map(|key| ctx.links.status(*key)).collect();
        let direct: Vec<&DirectStatus> = keys.iter().filter_map(|key| direct.get(key)).collect();
        let datagrams = direct.iter().find_map(|d| d.path.as_ref());
        let best = links.iter().find(|l| l.via.is_some()).or(links.first());
        let status = known.get(&peer);
        let connected = status.is_some_and(|s| !s.connections.is_empty());
        let path = path(
            ctx,
            peer,
            best.filter(|l| l.via.is_some() || !connected),
            datagrams,
            status,
        );
        let all = |of: fn(&LinkStatus) -> Carried| {
            links
                .iter()
                .map(of)
                .fold(Carried::default(), |sum, one| sum + one)
        };
        let total = all(LinkStatus::carried);
        PeerInfo {
            peer_id: peer,
            names,
            fingerprint: fingerprint(peer),
            connected,
            path,
            addresses: status
                .map(|s| s.addresses.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            rtt_ms: datagrams
                .and_then(|path| path.rtt)
                .map(millis)
                .or_else(|| rtt_ms(status)),
            tx_bytes: total.tx_bytes,
            rx_bytes: total.rx_bytes,
            carriers: Carriers {
                datagram: carried(all(|l| l.datagrams)),
                stream: carried(all(|l| l.streams)),
            },
            sessions: direct.into_iter().map(session).collect(),
        }
    };
    Ok(names.into_iter().map(info).collect())
}

/// One peer by peer ID, member name with or without the subnet, or a prefix of the ID.
pub(crate) async fn peer_show(ctx: &Report, text: &str) -> Result<PeerInfo, Error> {
    let all = peer_list(ctx).await?;
    let none = || {
        crate::model::error::Error::new(
            crate::model::error::Kind::NotFound,
            Code::NoPeer,
            format!("no peer {} is known", printable(text)),
        )
        .hint(Hint::ListPeers)
    };
    let named = |p: &PeerInfo| {
        let alone = p
            .names
            .iter()
            .filter_map(|n| n.split('.').next())
            .map(ToOwned::to_owned);
        Named {
            what: p.peer_id,
            id: Some(p.peer_id.into()),
            names: p.names.iter().cloned().chain(alone).collect(),
        }
    };
    let peers: Vec<Named<PeerId>> = all.iter().map(named).collect();
    let found = find(&peers, text).map_err(|miss| miss.error(text, none))?;
    let gone = || {
        Error::new(
            ErrorKind::NotFound,
            Code::NoPeer,
            format!("no peer {} is known", printable(text)),
        )
    };
    all.into_iter()
        .find(|p| p.peer_id == found)
        .ok_or_else(gone)
}
