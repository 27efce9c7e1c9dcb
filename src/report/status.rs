//! `status`: what the node believes joined with what links, peers and host see.

use std::collections::{BTreeMap, BTreeSet};

use super::netcheck::nat_here;
use super::paths::{
    Peers, Sessions, carriers, inner_mtu, millis, path, peers, rtt_ms, seconds, session, sessions,
};
use super::reach::{changes, explain, tried};
use super::{PlatformKind, Report, unwell};
use crate::api::types::{Error, MapInfo, PeerStatus, Problem, Status, SubnetState, SubnetStatus};
use crate::host::Rules;
use crate::link::Key;
use crate::model::build::MTU;
use crate::model::error::Code;
use crate::model::host::firewalls::{Hook, Obstacle};
use crate::model::id::{PeerId, SubnetId};
use crate::node::{Called, Overview, SubnetOverview, unix_now};
use crate::service::{self, clock, versions};

/// Names of byway's own links.
fn own_links(ctx: &Report) -> BTreeSet<String> {
    let view = ctx.node.view().load_full();
    let tuns = view.host.tuns.iter().map(|t| t.name.clone());
    tuns.chain(view.host.workloads.iter().map(|w| w.host_link.clone()))
        .collect()
}

/// The problem of a machine none of whose links leads anywhere, where the daemon has sockets of the machine.
pub(super) fn no_link(ctx: &Report) -> Option<Problem> {
    let has_sockets = ctx.platform != PlatformKind::Memory;
    has_sockets.then(|| super::condition::no_way_out(&own_links(ctx)))?
}

/// What peers and sessions see, asked once for a whole status.
struct Seen {
    peers: Peers,
    sessions: Sessions,
    dropped: DroppedByRules,
    /// What members are called.
    names: BTreeMap<PeerId, String>,
}

/// Answers `status`.
pub(crate) async fn status(ctx: &Report, only: Option<String>) -> Result<Status, Error> {
    let mut overview = ctx.node.overview(only).await?;
    let (known, sessions) = (peers(ctx).await, sessions(ctx).await);
    let mut problems = problems(ctx);
    problems.extend(blocked(ctx));
    let maps = std::mem::take(&mut overview.maps);
    problems.extend(of_maps(ctx, maps, &overview.subnets).await);
    if overview.subnets.iter().any(|part| !part.peers.is_empty()) {
        problems.extend(no_link(ctx));
    }
    problems.extend(super::lan::problem(ctx));
    problems.extend(of_memberships(ctx, &overview));
    let parts = overview.subnets;
    let members = parts.iter().flat_map(|part| &part.peers);
    let seen = Seen {
        peers: known,
        sessions,
        dropped: dropped_by_rules(ctx).await,
        names: members
            .map(|(peer, info)| (*peer, info.name.to_string()))
            .collect(),
    };
    let name = |peer: PeerId| {
        seen.names
            .get(&peer)
            .cloned()
            .unwrap_or_else(|| peer.short())
    };
    problems.extend(super::found::problems(ctx, name));
    let judgement = ctx.mesh.clocks.judgement();
    problems.extend(clock::problems(&judgement, &ctx.mesh.table.members(), name));
    problems.extend(versions::problems(seen.peers.values(), name));
    let mut subnets = Vec::new();
    for part in parts {
        subnets.push(subnet_now(ctx, &seen, part, &mut problems));
    }
    super::waiting::add(ctx, overview.only, &mut subnets).await?;
    subnets.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    clock::blame(&judgement, &mut problems);
    blame_links(&mut problems);
    let nat = match ctx.config.relay_only {
        // Its addresses count as reachable, as its owner says.
        true => None,
        false => Some(nat_here(ctx).await?),
    };
    let applied = ctx.applied.borrow().generation;
    Ok(Status {
        peer_id: ctx.peers.peer(),
        name: ctx.config.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: applied >= ctx.node.view().load().generation
            && problems.iter().all(|p| p.severity != "error"),
        uptime_s: ctx.started.elapsed().as_secs(),
        sealing: service::sessions::sealing(ctx.config.data_cipher).to_string(),
        relay_only: ctx.config.relay_only,
        nat,
        host_names: super::host_names::info(&ctx.host_names.borrow()),
        subnets,
        problems,
    })
}

/// Where no link leads anywhere, that is why peers answer nothing: it is said once, and not of each of them.
fn blame_links(problems: &mut Vec<Problem>) {
    if problems.iter().any(|p| p.code == Code::NoLink.as_str()) {
        problems.retain(|p| p.code != Code::UdpUnanswered.as_str());
    }
}

/// What keeps port maps from working.
async fn of_maps(ctx: &Report, mut maps: Vec<MapInfo>, parts: &[SubnetOverview]) -> Vec<Problem> {
    super::maps::count(ctx, &mut maps).await;
    // Where the whole subnet is off, that is the problem, and not each of its maps.
    maps.retain(|map| {
        parts
            .iter()
            .any(|p| p.status.name == map.subnet && p.status.state == SubnetState::Ready)
    });
    maps.retain(|map| !super::maps::is_blocked_by_others(ctx, map));
    super::condition::of_maps(&maps)
}

/// What the node knows to be wrong, before anybody looks at the kernel, the peers and the links.
fn of_memberships(ctx: &Report, overview: &Overview) -> Vec<Problem> {
    let damaged = overview.damage.iter().map(unwell::damaged);
    let mut problems: Vec<Problem> = damaged.collect();
    let asking = overview.asking.iter();
    problems.extend(asking.map(|(subnet, names)| unwell::asked(subnet, names)));
    for part in &overview.subnets {
        let name = &part.status.name;
        problems.extend(
            part.mine
                .as_ref()
                .and_then(|mine| unwell::renamed_member(name, mine)),
        );
        let workloads = part.status.workloads.iter();
        problems.extend(workloads.filter_map(|w| unwell::workload(name, w)));
        problems.extend(part.forked.then(|| unwell::forked(name)));
        problems.extend(
            part.restored
                .and_then(|invites| unwell::restored(name, invites)),
        );
    }
    let twice = overview.twice.iter();
    problems.extend(twice.map(|twice| super::lives::problem(twice, &ctx.config.state_dir)));
    let ended = overview.ended.iter();
    problems.extend(ended.map(|(name, id)| unwell::ended(name, *id)));
    problems.extend(overview.refused.iter().filter_map(unwell::not_let_in));
    problems.extend(overview.silent.iter().map(super::engines::silent));
    problems.extend(overview.told.iter().cloned());
    problems.extend(unwell::idle(&ctx.settings.borrow()));
    problems.extend(super::proxy::problem(ctx));
    problems.extend(super::router::problems(ctx));
    problems.extend(super::handshakes::problem(ctx));
    problems.extend(super::certificate::problems(ctx));
    problems.extend(unwell::oneself(&ctx.settings.borrow(), ctx.peers.peer()));
    let contested = overview.contested.iter();
    problems
        .extend(contested.map(|(subnet, name, members)| unwell::contested(subnet, name, members)));
    problems
}

/// A membership with what is seen of its members now; what is wrong with it and them goes to `problems`.
fn subnet_now(
    ctx: &Report,
    seen: &Seen,
    part: SubnetOverview,
    problems: &mut Vec<Problem>,
) -> SubnetStatus {
    let mut status = part.status;
    for (peer, mut info) in part.peers {
        // Off the wire there is no path, and what was measured before says nothing of now.
        if status.state != SubnetState::Down {
            let key = Key {
                subnet: status.id,
                peer,
            };
            let called = Called {
                member: info.name.clone(),
                subnet: part.named.clone(),
            };
            problems.extend(unwell::closed_machine(ctx, key, &called));
            member_now(ctx, seen, key, status.state, &mut info);
            let name = info.name.to_string();
            let called = |peer: PeerId| seen.names.get(&peer).cloned();
            let session = seen.sessions.get(&key);
            info.changes = session
                .map(|session| changes(session, &called))
                .unwrap_or_default();
            if info.path.kind != "direct" {
                info.tried = session.map(tried).unwrap_or_default();
            }
            if let Some((why, cause)) = explain(ctx, &mut info.path, &name, session, &called) {
                problems.extend(unwell::relayed(&info, why, &cause));
            }
            problems.extend(unwell::unanswered(&info, session, unix_now()));
            problems.extend(unwell::unmet(&info, session, ctx.config.post_quantum));
        }
        status.peers.push(info);
    }
    add_drops(ctx, &seen.dropped, &mut status);
    let guests = status.workloads.iter();
    problems.extend(guests.filter_map(|w| unwell::guest(&status.name, w, &seen.dropped.strangers)));
    match part.ended {
        true => problems.push(unwell::ended(&status.name, status.id)),
        false => {
            let grant = part
                .mine
                .map(|mine| (mine.grant.not_before, mine.grant.not_after));
            problems.extend(unwell::expiry((&status.name, status.id), grant, unix_now()));
        }
    }
    status
}

/// Adds to a member of a subnet in `state` how its packets travel, and what was measured of that.
fn member_now(ctx: &Report, seen: &Seen, key: Key, state: SubnetState, info: &mut PeerStatus) {
    let link = ctx.links.status(key);
    let known = seen.peers.get(&key.peer);
    let found = seen.sessions.get(&key);
    let direct = found.and_then(|s| s.path.as_ref());
    info.path = path(ctx, key.peer, Some(&link), direct, known);
    info.rtt_ms = match direct.and_then(|path| path.rtt) {
        Some(rtt) => Some(millis(rtt)),
        None if matches!(info.path.kind.as_str(), "offline" | "idle") => None,
        None => rtt_ms(known),
    };
    // Nobody of a subnet that this node is out of was seen since the start: no time is known.
    let gone = ctx.mesh.table.gone_since(key.peer);
    if state == SubnetState::Removed && gone.or(link.since.and_then(seconds)).is_none() {
        info.path.since = 0;
    }
    info.loss = direct.and_then(|path| path.loss);
    info.mtu = direct.map_or(MTU, inner_mtu);
    info.tx_bytes = link.carried().tx_bytes;
    info.rx_bytes = link.carried().rx_bytes;
    info.carriers = carriers(&link);
    info.session = found.map(session);
}

/// Adds to a subnet how many of its packets were dropped, by reason.
fn add_drops(ctx: &Report, dropped: &DroppedByRules, status: &mut SubnetStatus) {
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
}

/// Packets that the ruleset dropped.
#[derive(Default)]
pub(super) struct DroppedByRules {
    /// Under the names `drops` has: a workload's forged source, what the filter refused.
    by_reason: BTreeMap<String, u64>,
    /// What was asked of this machine itself and not let in, by subnet.
    pub(super) closed: BTreeMap<SubnetId, u64>,
    /// Hardware addresses that are not the virtual machine's, by its TAP.
    strangers: BTreeMap<String, BTreeSet<String>>,
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
        strangers: counts.strangers,
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
    if let Err(missing) = ctx.platform.preflight() {
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
    if !refused.is_empty() {
        let total: u64 = refused.values().copied().fold(0, u64::saturating_add);
        let why: Vec<String> = refused
            .iter()
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        all.push(Problem {
            code: Code::PeerRequests.to_string(),
            severity: "info".into(),
            message: format!("{total} requests of peers were refused: {}", why.join("; ")),
            help: "the log names the peers".into(),
        });
    }
    all.extend(ctx.dns.names_only_us().map(unwell::alone));
    all.extend(super::host_names::problem(&ctx.host_names.borrow()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_said_in_place_of_each_silent_peer() {
        let problem = |code: Code| Problem {
            code: code.into(),
            severity: "warning".into(),
            message: "it is so".into(),
            help: "mend it".into(),
        };
        let codes = |mut problems: Vec<Problem>| {
            blame_links(&mut problems);
            problems.into_iter().map(|p| p.code).collect::<Vec<_>>()
        };
        let silent = [problem(Code::UdpUnanswered), problem(Code::UdpUnanswered)];
        assert_eq!(codes(silent.to_vec()), ["E-UDP-UNANSWERED"; 2]);
        let mut all = silent.to_vec();
        all.extend([problem(Code::NoLink), problem(Code::GrantExpires)]);
        assert_eq!(codes(all), ["E-NO-LINK", "E-GRANT-EXPIRES"]);
    }
}
