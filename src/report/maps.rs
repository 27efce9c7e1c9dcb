//! Port maps as they are now: their counters, and what keeps them from working.

use std::net::IpAddr;

use super::{Report, condition};
use crate::api::types::MapInfo;
use crate::datapath::Refusal;
use crate::host::Rules;
use crate::host::nft::{MapCount, MapKey};
use crate::link::Key;
use crate::model::host::firewalls::{Hook, Obstacle};
use crate::model::host::{Family, Proto};
use crate::model::routes::Owner;
use crate::node::Called;
use crate::packet::parse::{TCP, UDP};

/// For each map whose target is another member's machine that refused its port lately: where it is opened.
async fn closed(ctx: &Report, maps: &[MapInfo]) -> Vec<Option<Called>> {
    let closed: Vec<Option<Key>> = maps.iter().map(|map| refused_by(ctx, map)).collect();
    if closed.iter().all(Option::is_none) {
        return vec![None; maps.len()];
    }
    let keys = closed
        .iter()
        .flatten()
        .map(|key| (key.subnet, key.peer))
        .collect();
    let mut names = ctx.node.called(keys).await.unwrap_or_default().into_iter();
    closed
        .into_iter()
        .map(|key| key.and_then(|_| names.next().flatten()))
        .collect()
}

/// The member whose machine refused the port that a map leads to.
fn refused_by(ctx: &Report, map: &MapInfo) -> Option<Key> {
    let view = ctx.node.view().load_full();
    let subnet = view.subnets.values().find(|s| s.name == map.subnet)?;
    let ports = map.target_ports()?;
    let address = map
        .address
        .filter(|a| map.state == "ok" && subnet.hosts.contains(a))?;
    let Some(Owner::Member(peer)) = subnet.routes.lookup(address) else {
        return None;
    };
    let proto = match map.proto {
        Proto::Tcp => TCP,
        Proto::Udp => UDP,
    };
    let key = Key {
        subnet: subnet.id,
        peer,
    };
    let refused = |r: &Refusal| {
        (r.address, r.proto) == (address, proto) && r.port.is_some_and(|port| ports.contains(port))
    };
    ctx.datapath
        .refusals(key)
        .iter()
        .any(refused)
        .then_some(key)
}

/// Which table, chain and rule of others stops what comes in there, and what to do about it.
fn blocked_by(blocked: &[Obstacle], listen: &IpAddr) -> Option<(String, String)> {
    // What a proxy serves is not forwarded.
    let local = matches!(listen, IpAddr::V6(a) if a.is_unicast_link_local());
    if listen.is_loopback() || local {
        return None;
    }
    let stops = |found: &&Obstacle| {
        found.hook == Hook::Forward && found.families.contains(&Family::of(listen))
    };
    let found: Vec<&Obstacle> = blocked.iter().filter(stops).collect();
    let join = |of: fn(&Obstacle) -> &str, between: &str| {
        let parts: Vec<&str> = found.iter().map(|found| of(found)).collect();
        parts.join(between)
    };
    (!found.is_empty()).then(|| {
        (
            join(|found| &found.message, "; "),
            join(|found| &found.remedy, " && "),
        )
    })
}

/// Whether it is one of the firewalls of others that stops a map: `status` says that once, and not of each.
pub(super) fn is_blocked_by_others(ctx: &Report, map: &MapInfo) -> bool {
    let blocked = ctx.rules.as_ref().map(Rules::blocked).unwrap_or_default();
    let by = map
        .listens()
        .and_then(|(listen, _)| blocked_by(&blocked, &listen));
    map.state == "blocked" && by.is_some_and(|(note, _)| map.note == Some(note))
}

/// Adds whether foreign rules stand in the way, and whether the target lets nobody in.
pub(crate) async fn judge(ctx: &Report, maps: &mut [MapInfo]) {
    let known = closed(ctx, maps).await;
    let refusing = condition::refusing(ctx, maps, &known).await;
    // A machine that is closed says so when it is asked, too.
    let closed = if refusing.is_empty() {
        known
    } else {
        closed(ctx, maps).await
    };
    condition::look(ctx, maps, &refusing, &closed).await;
    let blocked = ctx.rules.as_ref().map(Rules::blocked).unwrap_or_default();
    for map in maps.iter_mut().filter(|map| map.state == "ok") {
        let by = map
            .listens()
            .and_then(|(listen, _)| blocked_by(&blocked, &listen));
        if let Some((note, help)) = by {
            map.state = "blocked".into();
            map.note.get_or_insert(note);
            map.help.get_or_insert(help);
        }
    }
}

/// The same with the live counters, which are the whole table's: where there are many maps they take a while.
pub(crate) async fn count(ctx: &Report, maps: &mut [MapInfo]) {
    judge(ctx, maps).await;
    let Some(rules) = ctx.rules.as_ref().filter(|_| !maps.is_empty()) else {
        return;
    };
    let counts = rules.counts().await;
    for map in maps {
        let Some((listen, ports)) = map.listens() else {
            continue;
        };
        let mut sum = MapCount::default();
        for port in ports.iter() {
            let proto = map.proto;
            let key = MapKey {
                proto,
                listen,
                port,
            };
            sum += counts.maps.get(&key).copied().unwrap_or_default();
        }
        map.connections = sum.connections;
        map.rx_bytes = sum.rx_bytes;
        map.tx_bytes = sum.tx_bytes;
    }
}
