//! Removes what a daemon that is gone left behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::netlink::{LinkInfo, Netlink};
use super::{failure, firewall, netns, nft, resolver, split_dns, sysctl};
use crate::model::host::{Change, Failure, Namespace, TABLE, host_mac};

/// What `cleanup` did, and what it could not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What it did, in words; a second time, nothing.
    pub done: Vec<String>,
    /// The changes that failed, each with its reason.
    pub left: Vec<Failure>,
}

impl Cleaned {
    fn note(&mut self, change: &Change, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.done.push(past(change)),
            Err(error) => self.left.push(failure(change, format!("{error:#}"))),
        }
    }
}

/// What is done with a TAP that a virtual machine has open: a guest whose device is deleted cannot have another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guests {
    /// It is set down, and the next daemon takes it up again.
    Keep,
    /// It is deleted as any link.
    Remove,
}

/// A change in words, as one that was made.
fn past(change: &Change) -> String {
    match change {
        Change::DeleteLink { name, .. } => format!("removed link {name}"),
        Change::RestLink { name, .. } => format!("set down link {name}, which a guest has open"),
        Change::DelRoute { route, .. } => format!("removed route {route}"),
        Change::DelRule {
            ns: Namespace::Host,
            rule,
        } => format!("removed rule {rule}"),
        Change::DelRule {
            ns: Namespace::Netns(netns),
            rule,
        } => {
            format!("removed rule {rule} in {}", netns.path.display())
        }
        Change::RestoreSysctl { key } => format!("put sysctl {key} back"),
        Change::RestoreResolver { path } => format!("put {} back", path.display()),
        other => format!("done: {other}"),
    }
}

/// Removes every trace of one daemon, or of all on this machine: links, routes, rules, nftables tables, its
/// rules in the firewalls of others; puts sysctls and
/// resolver files back.
///
/// Only for when the daemon does not run: it would put everything back.
///
/// # Errors
/// When netlink cannot be used.
pub async fn cleanup(
    instance: Option<&str>,
    state_dir: &Path,
    guests: Guests,
) -> anyhow::Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let netlink = Netlink::open()?;
    links(&netlink, instance, guests, &mut cleaned).await?;
    routes_and_rules(&netlink, instance, &mut cleaned).await?;
    let mut kept = Journal::open(state_dir);
    for key in kept.sysctls().keys().cloned().collect::<Vec<_>>() {
        let result = sysctl::restore(&mut kept, &key);
        cleaned.note(&Change::RestoreSysctl { key }, result);
    }
    let (done, left) = firewall::cleanup(instance, state_dir).await;
    cleaned.done.extend(done);
    cleaned.left.extend(left);
    let (done, left) = split_dns::cleanup(state_dir).await;
    cleaned.done.extend(done);
    cleaned.left.extend(left);
    // The bar falls after its link has stopped forwarding.
    match nft::cleanup(instance).await {
        Ok(tables) => cleaned.done.extend(
            tables
                .iter()
                .map(|table| format!("removed nftables table inet {table}")),
        ),
        Err(error) => cleaned.left.push(failure("remove nftables tables", error)),
    }
    let paths: Vec<_> = kept.resolvers().keys().cloned().collect();
    let results = resolver::restore(&mut kept, paths.iter().map(PathBuf::as_path).collect()).await;
    for (path, result) in paths.into_iter().zip(results) {
        cleaned.note(&Change::RestoreResolver { path }, result);
    }
    inner_rules(&mut kept, &mut cleaned).await?;
    Ok(cleaned)
}

/// Links, all of them at once.
async fn links(
    netlink: &Netlink,
    instance: Option<&str>,
    guests: Guests,
    cleaned: &mut Cleaned,
) -> anyhow::Result<()> {
    let all = netlink.links().await?.into_values();
    let left = all.filter(|link| left_behind(instance, link));
    let (resting, left): (Vec<LinkInfo>, Vec<LinkInfo>) =
        left.partition(|link| guests == Guests::Keep && has_guest(link));
    for link in resting.into_iter().filter(|link| link.link.up) {
        let change = Change::RestLink {
            link: link.name.clone(),
            name: link.name,
        };
        cleaned.note(&change, netlink.apply(&change).await);
    }
    let changes: Vec<Change> = left
        .into_iter()
        .map(|link| Change::DeleteLink {
            link: link.name.clone(),
            name: link.name,
        })
        .collect();
    let left = netlink.delete_links(&changes).await;
    let gone = changes
        .iter()
        .filter(|change| left.iter().all(|(stays, _)| stays != change));
    cleaned.done.extend(gone.map(past));
    let left = left.into_iter().map(|(change, why)| failure(change, why));
    cleaned.left.extend(left);
    Ok(())
}

/// Rules in namespaces of workloads. Those that stay are remembered.
async fn inner_rules(kept: &mut Journal, cleaned: &mut Cleaned) -> anyhow::Result<()> {
    let mut stay = BTreeSet::new();
    for (netns, rule) in kept.rules().clone() {
        let change = Change::DelRule {
            ns: Namespace::Netns(netns.clone()),
            rule: rule.clone(),
        };
        let text = past(&change);
        match netns::exists(&netns).await {
            Ok(true) => match netns::apply(&netns, None, vec![change]).await {
                Ok(none) if none.is_empty() => cleaned.done.push(text),
                failed => {
                    let left = failed.map(|left| {
                        let one = |(change, why)| failure(change, why);
                        left.into_iter().map(one).collect()
                    });
                    cleaned.left.extend(left.unwrap_or_else(|one| vec![one]));
                    stay.insert((netns, rule));
                }
            },
            Ok(false) => {}
            Err(error) => {
                cleaned.left.push(failure(change, error));
                stay.insert((netns, rule));
            }
        }
    }
    kept.set_rules(stay)
}

/// By its alias, or by the hardware address pairs are made with, which a kill may have left without one.
fn left_behind(instance: Option<&str>, link: &LinkInfo) -> bool {
    match instance {
        Some(instance) => {
            link.link.alias.starts_with(&format!("byway:{instance}:"))
                || link.link.mac == Some(host_mac(instance, &link.name))
        }
        None => {
            link.link.alias.starts_with("byway:")
                || (link.name.starts_with("bwv")
                    && link
                        .link
                        .mac
                        .is_some_and(|mac| mac.starts_with(&[2, 0x62, 0x77])))
        }
    }
}

/// Whether it is a TAP that a program has open.
fn has_guest(link: &LinkInfo) -> bool {
    let role = link.link.alias.split(':').nth(2);
    role == Some("tap") && link.link.carrier
}

/// Routes went with their links; where every daemon's traces go, so do those without. The rules go with the last route.
async fn routes_and_rules(
    netlink: &Netlink,
    instance: Option<&str>,
    cleaned: &mut Cleaned,
) -> anyhow::Result<()> {
    let (mut routes, rules) = netlink.leftovers().await?;
    if instance.is_none() {
        for route in routes.drain(..) {
            let change = Change::DelRoute {
                ns: Namespace::Host,
                route,
            };
            cleaned.note(&change, netlink.apply(&change).await);
        }
    }
    if routes.is_empty() {
        for rule in rules
            .into_iter()
            .filter(|rule| rule.table == TABLE && rule.source.is_none())
        {
            let change = Change::DelRule {
                ns: Namespace::Host,
                rule,
            };
            cleaned.note(&change, netlink.apply(&change).await);
        }
    }
    Ok(())
}
