//! `status`: what the node believes joined with what links, peers and host see.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{carriers, inner_mtu, millis, path, peers, rtt_ms, seconds, session, sessions};
use super::{Report, unwell};
use crate::api::types::{Error, Problem, Status, SubnetState};
use crate::host::Rules;
use crate::link::Key;
use crate::model::build::MTU;
use crate::model::error::Code;
use crate::model::host::neighbour::{Hook, Obstacle};
use crate::model::id::{PeerId, SubnetId};
use crate::node::{Called, Overview, unix_now};
use crate::service::{self, clock, versions};

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
        sealing: service::sessions::sealing(ctx.config.data_cipher).to_string(),
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
