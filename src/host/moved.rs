//! Where an engine has moved a link of ours: the namespace, and what the link is called there.
//!
//! The host end of the pair tells two numbers: which namespace the other end is in, as this namespace counts them, and the
//! index of the link there. The engine said a path before it made the namespace. That path may be mounted where this process
//! does not see it, so the namespaces of all processes are looked at as well.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use futures::StreamExt;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netlink::Netlink;
use super::netns::{self, inside};
use crate::model::host::{Moved, NetnsRef};

/// Namespaces that are looked at, at most.
const MOST: usize = 4096;

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
    let told = told.filter(|path| path.is_absolute()).map(Path::to_owned);
    let mut seen = BTreeSet::new();
    for path in told.into_iter().chain(of_processes().await?) {
        let Ok(Some(file)) = netns::open_namespace(&path) else {
            continue;
        };
        let Ok(meta) = file.metadata() else { continue };
        if !seen.insert((meta.dev(), meta.ino())) || seen.len() > MOST {
            continue;
        }
        if number(&netlink, &file).await.ok().flatten() != Some(moved.number) {
            continue;
        }
        let Some(path) = path.to_str() else { continue };
        let Ok((netns, _)) = netns::resolve(path).await else {
            continue;
        };
        return Ok(name_in(&netns, moved.index)
            .await?
            .map(|name| (netns, name)));
    }
    Ok(None)
}

/// The namespaces of all processes, that of the oldest process first: what a container began with lives as long as it does.
async fn of_processes() -> anyhow::Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut pids: Vec<u32> = std::fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        let path = |pid| PathBuf::from(format!("/proc/{pid}/ns/net"));
        Ok(pids.into_iter().map(path).collect())
    };
    tokio::task::spawn_blocking(list)
        .await
        .context("list processes")?
        .context("list processes")
}

/// The number that this namespace has for another one (`RTM_GETNSID`); none where it has none.
async fn number(netlink: &Netlink, file: &File) -> anyhow::Result<Option<i32>> {
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

/// What the link with that index is called in a namespace.
async fn name_in(netns: &NetnsRef, index: u32) -> anyhow::Result<Option<String>> {
    let (name, _) = inside(netns, None, move || async move {
        let netlink = Netlink::open()?;
        anyhow::Ok(netlink.link(Some(index), "").await?.map(|info| info.name))
    })
    .await?;
    name
}
