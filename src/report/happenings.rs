//! The log of what happens to this node's subnets: one line for each, in the words of `status`.
//!
//! No part of the program tells of it where it does it: what is now is compared with what was, here and nowhere else. So
//! the same thing is never told twice, whoever caused it, and what comes and goes at once fills no log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Report, paths};
use crate::api::types::Path;
use crate::cli::print;
use crate::link::Key;
use crate::model::id::{PeerId, SubnetId};
use crate::model::local::Map;
use crate::model::members::Subnet;
use crate::model::record::Role;
use crate::model::resolve::Member;
use crate::model::workload::Workload;
use crate::node::Membership;

/// Time between two looks at the paths: one that does not last until the next look is not told.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of one look, for each subnet. Further ones are counted.
const LINES: usize = 20;

/// Memberships as they were last told.
type Subnets = BTreeMap<SubnetId, Membership>;

/// Writes the log until `stop`.
pub(crate) async fn run(ctx: Report, stop: CancellationToken) -> anyhow::Result<()> {
    let me = ctx.peers.peer();
    let mut published = ctx.node.published();
    let mut look = tokio::time::interval(LOOK);
    // Looks that were missed and made up for at once would take a path for one that lasts.
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = ctx.node.memberships().await?;
    told.values()
        .for_each(|now| tracing::info!("{}", greeting(now, me)));
    let mut paths = Paths::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = published.changed() => {
                changed?;
                let now = ctx.node.memberships().await?;
                news(&told, &now, me).iter().for_each(|line| tracing::info!("{line}"));
                told = now;
            }
            _ = look.tick() => {
                let seen = paths::paths(&ctx).await;
                let name = |key: Key| Some(named(told.get(&key.subnet)?, key.peer));
                for line in paths.look(seen, name, |key| ctx.peers.holds(key.peer)) {
                    tracing::info!("{line}");
                }
            }
        }
    }
}

/// `SUBNET: MEMBER`.
fn named(told: &Membership, peer: PeerId) -> String {
    let name = told
        .resolved
        .members
        .get(&peer)
        .map_or_else(|| peer.short(), |m| m.name.to_string());
    format!("{}: {name}", told.subnet.name())
}

/// A subnet that is here since the start.
fn greeting(now: &Membership, me: PeerId) -> String {
    let subnet = now.subnet.name();
    match now.resolved.members.get(&me) {
        Some(mine) => {
            let members = now.resolved.members.len();
            let members = if members == 1 {
                "1 member".to_owned()
            } else {
                format!("{members} members")
            };
            format!(
                "{subnet}: {members}, you: {}  {}",
                mine.name,
                print::addresses(&mine.addresses)
            )
        }
        None => format!("{subnet}: this node is no member now"),
    }
}

/// What happened between two looks, one line each.
fn news(before: &Subnets, after: &Subnets, me: PeerId) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, now) in after {
        match before.get(id) {
            Some(was) => {
                let all = changes(was, now, me);
                let more = all.len().saturating_sub(LINES);
                lines.extend(
                    all.into_iter()
                        .take(LINES)
                        .map(|line| format!("{}: {line}", now.subnet.name())),
                );
                if more > 0 {
                    lines.push(format!("{}: and {more} more changes", now.subnet.name()));
                }
            }
            None if now.subnet.records.genesis.owner == me => {
                lines.push(format!("{}: created", now.subnet.name()))
            }
            None => {
                lines.push(format!("{}: joined", now.subnet.name()));
                lines.push(greeting(now, me));
            }
        }
    }
    let gone = before.iter().filter(|(id, _)| !after.contains_key(id));
    lines.extend(gone.map(|(_, was)| format!("{}: this node has left it", was.subnet.name())));
    lines
}

/// What happened in one subnet.
fn changes(was: &Membership, now: &Membership, me: PeerId) -> Vec<String> {
    let mut lines = Vec::new();
    let (old, new) = (&was.subnet.local, &now.subnet.local);
    if old.alias != new.alias {
        lines.push(format!("it was called {} before", old.alias));
    }
    if old.up != new.up {
        lines.push(if new.up { "up" } else { "down" }.to_owned());
    }
    if now.resolved.destroyed && !was.resolved.destroyed {
        lines.push("its owner ended it".to_owned());
    } else if !Arc::ptr_eq(&was.resolved, &now.resolved) {
        members(was, now, me, &mut lines);
    }
    // One that is followed is the same in whichever namespace it is.
    let same = |w: &Workload, n: &Workload| {
        let follows = old.followed.contains_key(&w.name) && new.followed.contains_key(&n.name);
        same_workload(w, n) || (follows && (&w.name, w.since) == (&n.name, n.since))
    };
    let gone = old
        .workloads
        .iter()
        .filter(|w| !new.workloads.iter().any(|n| same(w, n)));
    lines.extend(gone.map(|w| format!("{} detached", w.name)));
    for workload in &new.workloads {
        let away = |of: &Subnet| of.away(&workload.name).map(|away| away.why);
        match old.workloads.iter().find(|w| same(w, workload)) {
            None => lines.push(format!(
                "{} attached, {}",
                workload.name,
                print::addresses(&workload.addresses)
            )),
            Some(former) if former.name != workload.name => {
                lines.push(format!("{} is called {} now", former.name, workload.name));
            }
            Some(former) if former.addresses != workload.addresses => {
                lines.push(format!(
                    "{} has new addresses, {}",
                    workload.name,
                    print::addresses(&workload.addresses)
                ));
            }
            Some(_) if away(&was.subnet) != away(&now.subnet) => {
                lines.push(match away(&now.subnet) {
                    Some(why) => format!("{} is away: {}", workload.name, why.word()),
                    None => format!("{} is back", workload.name),
                });
            }
            Some(former) if former.netns != workload.netns => {
                lines.push(format!("{} has its namespace", workload.name))
            }
            Some(_) => {}
        }
    }
    let gone = old.maps.iter().filter(|m| !new.maps.contains(m));
    lines.extend(gone.map(|m| format!("map {} removed, {}", m.name, way(m))));
    let came = new.maps.iter().filter(|m| !old.maps.contains(m));
    lines.extend(came.map(|m| format!("map {} added, {}", m.name, way(m))));
    lines
}

/// The same attachment: one that was renewed in another namespace is another, and one that had none yet is not.
fn same_workload(one: &Workload, other: &Workload) -> bool {
    let waited = one.netns.is_none() || other.netns.is_none();
    let placed = waited && one.is_same_attachment(&other.target, &other.inner_link);
    // What Docker calls it is known after it is there.
    let named = one.target.moves_links() && one.target == other.target;
    named || one.name == other.name && (one.netns == other.netns || placed)
}

fn way(map: &Map) -> String {
    format!(
        "{} {} to {}",
        map.proto,
        map.listens_at(),
        print::clean(&map.leads_to())
    )
}

fn members(was: &Membership, now: &Membership, me: PeerId, lines: &mut Vec<String>) {
    let gone = was
        .resolved
        .members
        .iter()
        .filter(|(peer, _)| !now.resolved.members.contains_key(peer));
    lines.extend(gone.map(|(peer, former)| {
        let name = if *peer == me {
            format!("this node, {},", former.name)
        } else {
            former.name.to_string()
        };
        format!("{name} {}", why_gone(now, *peer, former))
    }));
    for (peer, member) in &now.resolved.members {
        match was.resolved.members.get(peer) {
            Some(former) if Arc::ptr_eq(former, member) => {}
            None => lines.push(format!(
                "{} admitted, {}",
                member.name,
                print::addresses(&member.addresses)
            )),
            Some(former) => {
                if former.name != member.name {
                    lines.push(format!("{} is called {} now", former.name, member.name));
                }
                if former.role != member.role {
                    lines.push(format!("{} is {} now", member.name, role(member.role)));
                }
            }
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Member => "a plain member",
        Role::Admin => "an admin",
        Role::Owner => "the owner",
    }
}

/// Why somebody is no member any more.
fn why_gone(now: &Membership, peer: PeerId, former: &Member) -> &'static str {
    let records = &now.subnet.records;
    let left = records
        .announcement(peer)
        .and_then(|announcement| announcement.left);
    if left.is_some_and(|left| left >= former.grant.generation) {
        "left"
    } else if now.resolved.roll.members.contains_key(&peer) {
        "is no member for now: its grant ran out, or its addresses are another's"
    } else {
        "removed"
    }
}

/// Paths as they were last told, and those that were seen once since.
#[derive(Debug, Default)]
struct Paths {
    told: BTreeMap<Key, String>,
    seen: BTreeMap<Key, String>,
}

impl Paths {
    /// What is new of `now` and was there at the look before, too. `named` says whose path it is, or nobody's whose
    /// membership is over: that was told already. `is_held` says whose connection is held though nothing travels.
    fn look(
        &mut self,
        now: BTreeMap<Key, Path>,
        named: impl Fn(Key) -> Option<String>,
        is_held: impl Fn(Key) -> bool,
    ) -> Vec<String> {
        let style = print::Style {
            colour: false,
            now: 0,
        };
        let reached = now.into_iter().filter(|(_, path)| path.kind != "offline");
        let now: BTreeMap<Key, String> = reached
            .map(|(key, path)| (key, print::path(style, &path)))
            .collect();
        let mut lines = Vec::new();
        let lasting = now
            .iter()
            .filter(|(key, path)| self.seen.get(key) == Some(path));
        for (key, path) in lasting {
            let former = self.told.insert(*key, path.clone());
            let Some(name) = named(*key).filter(|_| former.as_ref() != Some(path)) else {
                continue;
            };
            lines.push(match former {
                None => format!("{name} connected, {path}"),
                Some(former) => format!("{name} moved to {path}, was {former}"),
            });
        }
        let lost = |key: &Key| !now.contains_key(key) && !self.seen.contains_key(key);
        let gone: Vec<Key> = self.told.keys().filter(|key| lost(key)).copied().collect();
        for key in gone {
            let former = self.told.remove(&key).unwrap_or_default();
            // Whom nobody holds is let go when nothing travels.
            let word = if is_held(key) { "offline" } else { "idle" };
            lines.extend(named(key).map(|name| format!("{name} {word}, was {former}")));
        }
        self.seen = now;
        let more = lines.len().saturating_sub(LINES);
        lines.truncate(LINES);
        if more > 0 {
            lines.push(format!("and {more} more paths"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: u8) -> Key {
        Key {
            subnet: SubnetId([1; 16]),
            peer: PeerId([peer; 32]),
        }
    }

    fn direct(carrier: &str, transport: &str) -> Path {
        Path {
            kind: "direct".into(),
            carrier: Some(carrier.into()),
            transport: Some(transport.into()),
            via: Some("10.99.0.2:4100".into()),
            since: 7,
            ..Path::default()
        }
    }

    #[test]
    fn a_path_that_lasts_is_told_once_and_one_that_flaps_is_not() {
        let mut paths = Paths::default();
        let mut look = |path: Option<Path>| {
            paths.look(
                path.map(|path| (key(2), path)).into_iter().collect(),
                |_| Some("lab: b".to_owned()),
                |_| true,
            )
        };
        let (udp, tcp) = (
            || Some(direct("datagram", "udp")),
            || Some(direct("stream", "tcp")),
        );
        // The stream comes first and the datagrams take over: one line.
        assert_eq!(look(tcp()), [""; 0]);
        assert_eq!(look(udp()), [""; 0]);
        assert_eq!(look(udp()), ["lab: b connected, direct udp 10.99.0.2:4100"]);
        assert_eq!(look(udp()), [""; 0]);
        for _ in 0..5 {
            assert_eq!(look(tcp()), [""; 0]);
            assert_eq!(look(udp()), [""; 0]);
            assert_eq!(look(None), [""; 0]);
        }
        assert_eq!(look(tcp()), [""; 0]);
        assert_eq!(
            look(tcp()),
            ["lab: b moved to direct tcp 10.99.0.2:4100, was direct udp 10.99.0.2:4100"]
        );
        assert_eq!(look(None), [""; 0]);
        assert_eq!(
            look(None),
            ["lab: b offline, was direct tcp 10.99.0.2:4100"]
        );
        assert_eq!(look(None), [""; 0]);
    }

    #[test]
    fn many_paths_at_once_are_counted() {
        let mut paths = Paths::default();
        let all = || {
            (0..60)
                .map(|peer| (key(peer), direct("stream", "tcp")))
                .collect::<BTreeMap<_, _>>()
        };
        let named = |key: Key| Some(format!("lab: {}", key.peer.short()));
        assert_eq!(paths.look(all(), named, |_| true).len(), 0);
        let lines = paths.look(all(), named, |_| true);
        assert_eq!(
            (lines.len(), lines.last().map(String::as_str)),
            (LINES + 1, Some("and 40 more paths"))
        );
        paths.look(BTreeMap::new(), named, |_| false);
        let lines = paths.look(BTreeMap::new(), named, |_| false);
        assert!(lines[0].contains(" idle, was direct tcp"), "{lines:?}");
    }
}
