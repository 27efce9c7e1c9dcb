//! Where an engine has moved a link of ours: the namespace, and what the link is called there.
//!
//! The host end of the pair tells two numbers: which namespace the other end is in, as this namespace counts them, and the
//! index of the link there. The engine said a path before it made the namespace. That path may be mounted where this process
//! does not see it, so the namespaces of all processes are looked at as well.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use futures::StreamExt;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netlink::Netlink;
use super::netns::{self, NetnsError};
use crate::helper;
use crate::model::host::{Moved, NetnsRef};

/// Finds the namespace that the end is in, and the name that it has there. `told` is the path that the engine spoke of.
/// None: it is in none that this process can see, or it is no more there.
///
/// # Errors
/// When netlink cannot be asked.
pub async fn find(
    moved: &Moved,
    told: Option<&Path>,
) -> anyhow::Result<Option<(NetnsRef, String)>> {
    let netlink = Netlink::open()?;
    let told = match told.filter(|path| path.is_absolute()) {
        Some(path) => helper::name(path.to_owned(), None).await.ok(),
        None => None,
    };
    if let Some(found) = among(&netlink, moved, told).await? {
        return Ok(Some(found));
    }
    // Every process is looked at only where that path leads nowhere.
    among(&netlink, moved, helper::of_processes().await?).await
}

/// The one among these namespaces that the end is in, and the name that it has there.
async fn among(
    netlink: &Netlink,
    moved: &Moved,
    all: impl IntoIterator<Item = NetnsRef>,
) -> anyhow::Result<Option<(NetnsRef, String)>> {
    let mut seen = BTreeSet::new();
    for found in all {
        if !seen.insert((found.device, found.inode)) {
            continue;
        }
        let Ok(file) = helper::open(found.clone()).await else {
            continue;
        };
        if number(netlink, &file).await.ok().flatten() != Some(moved.number) {
            continue;
        }
        let Some(path) = found.path.to_str() else {
            continue;
        };
        let Ok((netns, _)) = netns::resolve(path).await else {
            continue;
        };
        return Ok(netns::link_name(&netns, moved.index)
            .await?
            .map(|name| (netns, name)));
    }
    Ok(None)
}

/// What the link is called there once the engine has configured it: it makes the routes last. None before.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub async fn configured(
    moved: &Moved,
    netns: &NetnsRef,
    routes: &[IpNet],
) -> Result<Option<String>, NetnsError> {
    netns::routed_link(netns, moved.index, routes).await
}

/// The number that this namespace has for another one (`RTM_GETNSID`); none where it has none.
async fn number(netlink: &Netlink, file: &OwnedFd) -> anyhow::Result<Option<i32>> {
    let mut ask = NsidMessage::default();
    let descriptor = u32::try_from(file.as_raw_fd())?;
    ask.attributes.push(NsidAttribute::Fd(descriptor));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(ask));
    message.header.flags = NLM_F_REQUEST;
    let mut answers = netlink.handle().clone().request(message)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer.payload {
            let id = answer
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(*id),
                    _ => None,
                });
            return Ok(id.filter(|id| *id >= 0));
        }
    }
    Ok(None)
}
