//! Removes what a daemon that is gone left behind.

use std::path::Path;

use super::kept::Kept;
use super::netlink::{LinkInfo, Netlink};
use super::{firewall, netns, nft, resolver, sysctl};
use crate::model::host::{Change, Place, TABLE, host_mac};

/// Removes every trace of one daemon, or of all on this machine: links, routes, rules, nftables tables, its
/// rules in the firewalls of others; puts sysctls and
/// resolver files back. Returns what it removed, in words; a second time, nothing.
///
/// Only for when the daemon does not run: it would put everything back.
///
/// # Errors
/// When netlink cannot be used; single objects that stay are named in what is returned.
pub async fn cleanup(instance: Option<&str>, state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    let netlink = Netlink::open()?;
    for link in netlink.links().await?.into_values().filter(|link| left_behind(instance, link)) {
        let change = Change::DeleteLink { link: link.name.clone(), name: link.name };
        note(&mut done, &change, netlink.apply(&change).await);
    }
    routes_and_rules(&netlink, instance, &mut done).await?;
    let mut kept = Kept::open(state_dir);
    for key in kept.sysctls().keys().cloned().collect::<Vec<_>>() {
        let result = sysctl::restore(&mut kept, &key);
        note(&mut done, &Change::RestoreSysctl { key }, result);
    }
    done.extend(firewall::cleanup(instance, state_dir).await);
    // The bar falls after its link has stopped forwarding.
    match nft::cleanup(instance).await {
        Ok(tables) => done.extend(tables),
        Err(error) => done.push(format!("delete nftables tables: {error}")),
    }
    for path in kept.resolvers().keys().cloned().collect::<Vec<_>>() {
        let result = resolver::restore(&mut kept, &path);
        note(&mut done, &Change::RestoreResolver { path }, result);
    }
    for (netns, rule) in kept.rules().clone() {
        let change = Change::DelRule { place: Place::Netns(netns.clone()), rule };
        let text = change.to_string();
        match netns::exists(&netns) {
            Ok(true) => {
                let failures = netns::apply(&netns, None, vec![change]).await;
                done.push(failures.first().map_or(text, |f| format!("{}: {}", f.what, f.why)));
            }
            Ok(false) => {}
            Err(error) => done.push(format!("{text}: {error}")),
        }
    }
    kept.set_rules(Default::default())?;
    Ok(done)
}

fn note(done: &mut Vec<String>, change: &Change, result: anyhow::Result<()>) {
    done.push(match result {
        Ok(()) => change.to_string(),
        Err(error) => format!("{change}: {error:#}"),
    });
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
                || (link.name.starts_with("bwv") && link.link.mac.is_some_and(|mac| mac.starts_with(&[2, 0x62, 0x77])))
        }
    }
}

/// Routes went with their links; where every daemon's traces go, so do those without. The rules go with the last route.
async fn routes_and_rules(netlink: &Netlink, instance: Option<&str>, done: &mut Vec<String>) -> anyhow::Result<()> {
    let (mut routes, rules) = netlink.leftovers().await?;
    if instance.is_none() {
        for route in routes.drain(..) {
            let change = Change::DelRoute { place: Place::Host, route };
            note(done, &change, netlink.apply(&change).await);
        }
    }
    if routes.is_empty() {
        for rule in rules.into_iter().filter(|rule| rule.table == TABLE && rule.source.is_none()) {
            let change = Change::DelRule { place: Place::Host, rule };
            note(done, &change, netlink.apply(&change).await);
        }
    }
    Ok(())
}
