//! What wakes the reconcile loop: events of the kernel that concern us.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use parking_lot::Mutex;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{nft, rules};
use crate::model::host::TABLE;

/// Wakes the loop when someone else changes our table, and tells when they change one of theirs.
pub(super) fn of_rules(
    nft: &nft::Nft,
    wake: Arc<Notify>,
    theirs: Arc<Notify>,
) -> anyhow::Result<JoinHandle<()>> {
    let watcher = nft.watch().context("listen to nftables")?;
    let (changed, others) = (watcher.changed(), watcher.theirs());
    Ok(tokio::spawn(async move {
        let stop = tokio_util::sync::CancellationToken::new();
        let follow = async {
            loop {
                changed.notified().await;
                wake.notify_one();
            }
        };
        let tell = async {
            loop {
                others.notified().await;
                theirs.notify_one();
            }
        };
        tokio::select! {
            () = watcher.run(stop.clone()) => {}
            () = follow => {}
            () = tell => {}
        }
    }))
}

/// Listens to what happens to links, addresses, routes and rules. An overflow of the socket counts as an event: every
/// pass looks at everything anyway.
pub(super) fn of_links(
    wake: Arc<Notify>,
    indexes: Arc<Mutex<BTreeSet<u32>>>,
) -> anyhow::Result<JoinHandle<()>> {
    use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link};
    let groups = [
        Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route, Ipv4Rule, Ipv6Rule,
    ];
    let (connection, _, mut messages) =
        rtnetlink::new_multicast_connection(&groups).context("listen to netlink")?;
    Ok(tokio::spawn(async move {
        let listen = async {
            while let Some((message, _)) = messages.next().await {
                let indexes = indexes.lock();
                let concerns = match &message.payload {
                    NetlinkPayload::InnerMessage(message) => concerns(message, &indexes),
                    _ => true,
                };
                if concerns {
                    wake.notify_one();
                }
            }
            tracing::warn!("netlink events ended: the slow tick remains");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = connection => {}
            () = listen => {}
        }
    }))
}

/// Whether an event is about ours: a busy router's route changes are not.
fn concerns(message: &RouteNetlinkMessage, indexes: &BTreeSet<u32>) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            link_concerns(link, indexes)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route_concerns(route)
        }
        RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
            rules::concerns(rule)
        }
        _ => true,
    }
}

fn link_concerns(link: &LinkMessage, indexes: &BTreeSet<u32>) -> bool {
    indexes.contains(&link.header.index)
        || link.attributes.iter().any(|a| match a {
            LinkAttribute::IfName(name) => name.starts_with("bw"),
            LinkAttribute::IfAlias(alias) => alias.starts_with("byway:"),
            _ => false,
        })
}

fn route_concerns(route: &RouteMessage) -> bool {
    route
        .attributes
        .iter()
        .any(|a| matches!(a, RouteAttribute::Table(TABLE)))
}
