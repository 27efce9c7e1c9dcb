//! What `status` says of a subnet, its members and this one's place in it that is not well. What is wrong with the machine's
//! links and maps is `condition`'s, what stands in the way of a kernel that matches is `found`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Report;
use super::reason::Reason;
use crate::api::types::{PeerStatus, Problem, WorkloadInfo};
use crate::config::{Config, PostQuantum, RelayFor};
use crate::link::Key;
use crate::link::direct::DirectStatus;
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::local::PendingJoin;
use crate::model::resolve::Member;
use crate::model::state::Damage;
use crate::node::{Called, Nearness, nearness};
use crate::packet::parse::{TCP, UDP};

/// How long a path of datagrams may take to be found, in seconds.
const PATH_SEARCH_TIME: u64 = 15;

/// The problem of what was left out of the saved state.
pub(super) fn damaged(damage: &Damage) -> Problem {
    Problem {
        code: Code::StateDamaged.to_string(),
        severity: "warning".into(),
        message: format!(
            "{} was left out of the saved state: {}",
            damage.what, damage.why
        ),
        help: "nothing has to be done: it is fetched from the other members when one is connected"
            .into(),
    }
}

/// The problem of joiners that wait for this node's decision.
pub(super) fn asked(subnet: &Name, names: &[Name]) -> Problem {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    Problem {
        code: Code::JoinRequests.to_string(),
        severity: "info".into(),
        message: format!("asking to join {subnet}: {}", names.join(", ")),
        help: format!("byway member requests {subnet}"),
    }
}

/// The problem of a name that several members claim.
pub(super) fn contested(subnet: &Name, name: &str, members: &[String]) -> Problem {
    Problem {
        code: Code::NameContested.to_string(),
        severity: "warning".into(),
        message: format!(
            "{} claim the name {name} in {subnet}, and nobody has registered it",
            members.join(" and ")
        ),
        help: format!(
            "an admin: byway dns release {subnet} {name} --member MEMBER; or one of them gives it up"
        ),
    }
}

/// A workload that others do not reach, or not by its name, because of what an admin took from this machine.
pub(super) fn workload(subnet: &Name, workload: &WorkloadInfo) -> Option<Problem> {
    let name = &workload.workload;
    let (code, what) = match workload.state.as_str() {
        "not-leased" => (
            Code::NotLeased,
            format!(
                "workload {name} in {subnet} has an address that is leased to this machine no more, and nobody reaches it there"
            ),
        ),
        "name-released" => (
            Code::NoName,
            format!(
                "the name {name} in {subnet} was released, and nobody finds the workload by it"
            ),
        ),
        "unhealthy" => return unhealthy(subnet, workload),
        "name-taken" => return Some(name_taken(subnet, workload)),
        _ => return None,
    };
    Some(Problem {
        code: code.into(),
        severity: "warning".into(),
        message: what,
        help: format!("byway detach {name} --subnet {subnet}, then attach it again"),
    })
}

/// A workload whose name is another's: that of a member, or of another member's workload.
fn name_taken(subnet: &Name, workload: &WorkloadInfo) -> Problem {
    let WorkloadInfo { workload, fqdn, .. } = workload;
    Problem {
        code: Code::NameTaken.into(),
        severity: "warning".into(),
        message: format!(
            "the name {workload} in {subnet} is another's: the workload is found as {fqdn} only"
        ),
        help: format!(
            "byway detach {workload} --subnet {subnet}, then attach it with --name; or let the other one give the name up"
        ),
    }
}

/// A workload that fails its health check.
fn unhealthy(subnet: &Name, workload: &WorkloadInfo) -> Option<Problem> {
    let (name, health) = (&workload.workload, workload.health.as_ref()?);
    let why = health.failure.as_ref().map(|why| format!(" ({why})"));
    // A command may be long; `workload show` has all of it.
    let check: String = health.check.chars().take(80).collect();
    Some(Problem {
        code: Code::Health.into(),
        severity: "warning".into(),
        message: format!(
            "workload {name} in {subnet} is unhealthy: {check} fails{}; its names are withdrawn and its maps let nobody new in",
            why.unwrap_or_default()
        ),
        help: format!(
            "let it answer again, or: byway workload health {name} none --subnet {subnet}"
        ),
    })
}

/// A virtual machine whose card has another hardware address than it was told: nothing of it passes.
pub(super) fn guest(
    subnet: &Name,
    workload: &WorkloadInfo,
    strangers: &BTreeMap<String, BTreeSet<String>>,
) -> Option<Problem> {
    let link = workload.link.as_ref()?;
    let strange = strangers.get(&link.host_interface)?;
    let (name, right) = (&workload.workload, &link.mac);
    let wrong = strange.first()?;
    let others = match strange.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    Some(Problem {
        code: Code::Mac.to_string(),
        severity: "warning".into(),
        message: format!(
            "the guest of {name} in subnet {subnet} sends from {wrong}{others}, which is dropped: its hardware address is {right}"
        ),
        help: format!(
            "give its network card mac={right}; or: byway detach {name} --subnet {subnet} && byway attach tap {} --subnet {subnet} --name {name} --mac {wrong}",
            workload.target
        ),
    })
}

/// The owner ended the subnet, perhaps while this node was away: said until a person leaves it. Its name may be another's
/// by then.
pub(super) fn ended(subnet: &Name, id: SubnetId) -> Problem {
    Problem {
        code: Code::SubnetEnded.to_string(),
        severity: "warning".into(),
        message: format!("the owner of subnet {subnet} ended it for every member"),
        help: format!("byway leave {id}"),
    }
}

/// What the configuration asks for in vain.
pub(super) fn idle(config: &Config) -> impl Iterator<Item = Problem> {
    config.idle().into_iter().map(|found| {
        // What was meant is not in force.
        if found.code == Code::ConfigKey {
            return Problem {
                code: found.code.into(),
                severity: "warning".into(),
                help: format!(
                    "mend or unset {} where the daemon is started, then start it again",
                    found.place
                ),
                message: found.to_string(),
            };
        }
        Problem {
            code: found.code.into(),
            severity: "info".into(),
            help: format!("take {} out, at {}", found.key, found.place),
            message: found.message,
        }
    })
}

/// The host asks nobody but this node for names, in the resolver file `path`: so this node has nobody to ask.
pub(super) fn alone(path: &Path) -> Problem {
    let path = path.display();
    Problem {
        code: Code::NoUpstream.into(),
        severity: "warning".into(),
        message: format!(
            "{path} names only this node: names outside of the subnets are not resolved, neither here nor for the workloads"
        ),
        help: format!(
            "add a line `nameserver ADDRESS` with your own name server to {path}, behind this node's; it is read again within \
             five seconds"
        ),
    }
}

/// Where the configuration names this node itself as somebody else. Only a daemon knows its own ID.
pub(super) fn oneself(config: &Config, me: PeerId) -> Vec<Problem> {
    let mine = format!("/p2p/{me}");
    let is_bootstrap = config.bootstrap.iter().any(|at| at.ends_with(&mine));
    let is_served = matches!(&config.relay.for_whom, RelayFor::Peers(peers) if peers.contains(&me));
    let named = [
        (
            "transport.bootstrap",
            is_bootstrap,
            "a node keeps no place at itself, and asks itself nothing",
        ),
        (
            "transport.relay.for",
            is_served,
            "a node forwards nothing for itself",
        ),
    ];
    let problem = |(key, _, why): (&str, bool, &str)| {
        let place = config.origins.get(key).map_or("", String::as_str);
        Problem {
            code: Code::ConfigIdle.into(),
            severity: "info".into(),
            message: format!("{key} names this node itself ({me}): {why}"),
            help: format!("take that entry out, at {place}"),
        }
    };
    let found = named.into_iter().filter(|(_, is_so, _)| *is_so);
    found.map(problem).collect()
}

/// A join was refused, and nobody waited to be told.
pub(super) fn not_let_in(join: &PendingJoin) -> Option<Problem> {
    let refused = join.refused.as_ref()?;
    let id = join.subnet;
    let next = if refused.hint.is_empty() {
        format!("byway join {id}      (asks again)")
    } else {
        refused.hint.clone()
    };
    Some(Problem {
        code: refused.code.clone(),
        severity: "warning".into(),
        message: format!("not let into subnet {}: {}", join.shown(), refused.message),
        help: format!("{next}; or byway leave {id}"),
    })
}

/// A peer that could be reached by datagrams, and for a while has answered none of ours.
pub(super) fn unanswered(
    info: &PeerStatus,
    session: Option<&DirectStatus>,
    now: u64,
) -> Option<Problem> {
    let stream = info.path.kind == "direct" && info.path.carrier.as_deref() == Some("stream");
    let lasts = stream && now.saturating_sub(info.path.since) >= PATH_SEARCH_TIME;
    // Without keys the peer has no port for datagrams.
    session
        .filter(|session| lasts && session.cipher.is_some() && session.path.is_none())
        .map(|_| Problem {
            code: Code::UdpUnanswered.to_string(),
            severity: "warning".into(),
            message: format!(
                "{} answers no datagram: its packets go over {}, which is slower",
                info.name,
                carrier(info.path.transport.as_deref())
            ),
            help: format!(
                "let byway's UDP port, 4100 unless configured, through to this machine or to {}",
                info.name
            ),
        })
}

/// What a stream of packets runs over, in words.
fn carrier(transport: Option<&str>) -> &'static str {
    match transport {
        Some("quic") => "a QUIC stream",
        Some("tcp") => "TCP",
        Some("ws") => "a WebSocket",
        _ => "a stream",
    }
}

/// A member is relayed for a reason that a person can mend.
pub(super) fn relayed(info: &PeerStatus, why: Reason, cause: &str) -> Option<Problem> {
    let remedy = info.path.remedy.as_deref().filter(|_| why.is_a_problem())?;
    Some(Problem {
        code: Code::Relayed.to_string(),
        severity: "warning".into(),
        message: format!("{} is relayed because {cause}; {remedy}", info.name),
        help: format!("byway doctor {}", info.name),
    })
}

/// One end requires post-quantum key agreement and the other does not do it: no packet goes between them.
pub(super) fn unmet(
    info: &PeerStatus,
    session: Option<&DirectStatus>,
    ours: PostQuantum,
) -> Option<Problem> {
    let peer = &info.name;
    let (message, on) = if ours == PostQuantum::Require {
        (
            format!(
                "no packets to {peer}: it does no post-quantum key agreement, and this machine requires it"
            ),
            peer.as_str(),
        )
    } else {
        (
            format!(
                "no packets to {peer}: it requires post-quantum key agreement, which is off here"
            ),
            "this machine",
        )
    };
    session.filter(|session| session.unmet).map(|_| Problem {
        code: Code::PostQuantum.to_string(),
        severity: "warning".into(),
        message,
        help: format!("on {on}: transport.post_quantum = \"prefer\" in byway.toml, then start the daemon again"),
    })
}

/// The owner signed two heads with one number: for a day after it was seen.
pub(super) fn forked(subnet: &Name) -> Problem {
    Problem {
        code: Code::OwnerForked.to_string(),
        severity: "warning".into(),
        message: format!(
            "the owner of {subnet} signed two decisions with one number: it was restored from a backup, or runs twice; \
             let it run once, and look whether the admins are as they should be"
        ),
        help: format!("on the owner: byway member ls {subnet}"),
    }
}

/// This machine's state was older than what others had of it: for a day, where that cost anything.
pub(super) fn restored(subnet: &Name, invites: usize) -> Option<Problem> {
    (invites > 0).then(|| Problem {
        code: Code::StateOld.to_string(),
        severity: "warning".into(),
        message: format!(
            "others have what this machine signed in {subnet} and does not know, as after a backup: {invites} open invites \
             are withdrawn, for they may have been used or revoked since"
        ),
        help: format!("byway invite create {subnet}, for those that are still wanted"),
    })
}

/// A member whose name went to another that was granted it as well.
pub(super) fn renamed_member(subnet: &Name, mine: &Member) -> Option<Problem> {
    (mine.name != mine.grant.name).then(|| Problem {
        code: Code::NameTaken.to_string(),
        severity: "warning".into(),
        message: format!(
            "this member is {} in {subnet}: {} was given to two, and the other one's grant counts before",
            mine.name, mine.grant.name
        ),
        help: "it keeps the new name with its next grant; nothing has to be done".into(),
    })
}

/// What a member's machine refused lately, and what to type there, where the subnet has its own name.
pub(crate) fn closed_machine(ctx: &Report, key: Key, called: &Called) -> Option<Problem> {
    let Called {
        member: name,
        subnet,
    } = called;
    let refusals = ctx.datapath.refusals(key);
    let newest = refusals.first()?;
    let mut ports: Vec<(Proto, u16)> = Vec::new();
    for refusal in &refusals {
        let proto = match refusal.proto {
            TCP => Proto::Tcp,
            UDP => Proto::Udp,
            _ => continue,
        };
        if let Some(port) = refusal.port.filter(|port| !ports.contains(&(proto, *port))) {
            ports.push((proto, port));
        }
    }
    let list: Vec<String> = ports
        .iter()
        .map(|(proto, port)| format!("{proto}/{port}"))
        .collect();
    let (what, spec) = match list.len() {
        0 => ("what was asked of it".to_owned(), "open".to_owned()),
        _ => (list.join(", "), list.join(",")),
    };
    Some(Problem {
        code: Code::HostClosed.to_string(),
        severity: "info".into(),
        message: format!(
            "the machine of {name} is closed to subnet {subnet}: it refused {what}, {} s ago",
            newest.heard.elapsed().as_secs()
        ),
        help: opened(name, subnet, &spec),
    })
}

/// What opens a member's machine, where the subnet has its own name.
pub(super) fn opened(member: &Name, subnet: &Name, spec: &str) -> String {
    format!("on {member}: byway subnet host {subnet} {spec}; a list replaces the one it has there")
}

/// A grant (from, until) that ends soon is warned of 30, 7 and 1 days before.
pub(super) fn expiry(
    (subnet, id): (&Name, SubnetId),
    grant: Option<(u64, u64)>,
    now: u64,
) -> Option<Problem> {
    let problem = |severity: &str, message: String, help: String| {
        Some(Problem {
            code: Code::GrantExpires.to_string(),
            severity: severity.into(),
            message,
            help,
        })
    };
    let Some((from, until)) = grant else {
        return Some(Problem {
            code: Code::NotMember.to_string(),
            severity: "error".into(),
            message: format!(
                "this node is no member of subnet {subnet} any more: removed, expired, or its addresses went to another"
            ),
            help: format!(
                "byway leave {subnet}; or ask its owner to admit this node again: byway join {id}"
            ),
        });
    };
    let left = until.saturating_sub(now);
    let when = match left {
        0..3600 => format!("{} minutes", left / 60),
        3600..86_400 => format!("{} hours", left / 3600),
        _ => format!("{} days", left / 86_400),
    };
    let severity = match nearness(left, until.saturating_sub(from))? {
        Nearness::Day => "error",
        Nearness::Week => "warning",
        Nearness::Month => "info",
    };
    let help = "an online owner or admin renews it by itself; start one".to_owned();
    problem(
        severity,
        format!("the grant in subnet {subnet} ends in {when}"),
        help,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_in_vain_is_a_word_in_status_and_no_warning() {
        let mut config = Config::defaults("a");
        config.listen.clear();
        assert!(idle(&config).next().is_none());
        config
            .origins
            .insert("transport.port_mapping", "/etc/byway/byway.toml:7".into());
        let told: Vec<Problem> = idle(&config).collect();
        assert_eq!(
            (told.len(), told[0].code.as_str(), told[0].severity.as_str()),
            (1, "E-CONFIG-IDLE", "info")
        );
        assert_eq!(
            told[0].help,
            "take transport.port_mapping out, at /etc/byway/byway.toml:7"
        );
    }

    #[test]
    fn a_misspelt_variable_is_a_warning() {
        let mut config = Config::defaults("a");
        config.sources.env = vec![("BYWAY_NODE_NMAE".to_owned(), "b".to_owned())];
        let told: Vec<Problem> = idle(&config).collect();
        assert_eq!((told.len(), told[0].severity.as_str()), (1, "warning"));
        assert!(told[0].message.contains("BYWAY_NODE_NAME"), "{told:?}");
        assert!(told[0].help.contains("BYWAY_NODE_NMAE"), "{told:?}");
    }

    #[test]
    fn a_node_that_names_itself_is_told_so() {
        let (me, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let mut config = Config::defaults("a");
        config.bootstrap = vec![format!("/ip4/192.0.2.1/tcp/4100/p2p/{other}")];
        config.relay.for_whom = RelayFor::Peers(vec![other]);
        assert_eq!(oneself(&config, me), []);
        let told = oneself(&config, other);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0]
                .message
                .starts_with("transport.bootstrap names this node itself")
        );
        assert!(
            told[1]
                .message
                .starts_with("transport.relay.for names this node itself")
        );
    }

    #[test]
    fn what_carries_packets_in_place_of_datagrams_is_named() {
        let words = [Some("quic"), Some("tcp"), Some("ws"), None].map(carrier);
        assert_eq!(words, ["a QUIC stream", "TCP", "a WebSocket", "a stream"]);
    }

    #[test]
    fn a_grant_that_ends_is_told_in_three_steps() {
        const DAY: u64 = 86_400;
        let lab = Name::from_host("lab");
        let subnet = (&lab, SubnetId([1; 16]));
        let at = |left: u64| {
            expiry(
                subnet,
                Some((1000, 1000 + 90 * DAY)),
                1000 + 90 * DAY - left,
            )
        };
        let severity = |left| at(left).map(|p| p.severity);
        assert_eq!(severity(60 * DAY), None);
        assert_eq!(severity(30 * DAY), None);
        assert_eq!(severity(30 * DAY - 1).as_deref(), Some("info"));
        assert_eq!(severity(7 * DAY - 1).as_deref(), Some("warning"));
        assert_eq!(severity(DAY - 1).as_deref(), Some("error"));
        assert!(
            at(3 * DAY)
                .is_some_and(|p| p.code == "E-GRANT-EXPIRES" && p.message.ends_with("in 3 days"))
        );
        assert!(at(7300).is_some_and(|p| p.message.ends_with("in 2 hours")));
        assert!(
            expiry(subnet, None, 0)
                .is_some_and(|p| p.code == "E-NOT-MEMBER" && p.severity == "error")
        );
    }
}
