//! ufw: rules that it keeps on disk, so only where the configuration names it.

use std::collections::BTreeSet;

use super::chains::Chain;
use super::{Firewalls, has, tables};
use crate::host::failure;
use crate::host::nft::run::{OwnRuns, complaint, program};
use crate::model::host::Failure;
use crate::model::host::firewalls::mark;

/// The chain of its rules for what is forwarded.
const FORWARD: &str = "ufw-user-forward";

/// What one link needs: in and out where it is forwarded, and in.
fn rules(link: &str) -> [Vec<&str>; 3] {
    [
        vec!["route", "allow", "in", "on", link],
        vec!["route", "allow", "out", "on", link],
        vec!["allow", "in", "on", link],
    ]
}

async fn ufw(args: &[&str], own: &OwnRuns) -> Result<(), String> {
    match program("ufw", args, &[], own).await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(complaint(&output)),
        Err(error) => Err(format!("run ufw: {error}")),
    }
}

/// Brings the rules in line with `links`.
pub(super) async fn follow(
    firewalls: &mut Firewalls,
    chains: &[Chain],
    links: &BTreeSet<String>,
) -> Vec<Failure> {
    let mut failures = remove(firewalls, links).await;
    // ufw is on where its chains are.
    if links.is_empty() || !has(chains, "ip", "filter", FORWARD) {
        return failures;
    }
    // It asks for root's number, not for rights. Who stops our packets is named with the line to type all the same.
    if !nix::unistd::geteuid().is_root() {
        if !std::mem::replace(&mut firewalls.ufw_refuses, true) {
            tracing::warn!(
                "ufw takes rules from root alone, and this daemon is not root: `byway status` says what to type where it \
                 stops packets"
            );
        }
        return failures;
    }
    let listed = match tables::tables("ip", false)
        .list(FORWARD, &firewalls.own)
        .await
    {
        Ok(listed) => listed.unwrap_or_default(),
        Err(why) => {
            failures.push(failure("look at ufw's rules", why));
            return failures;
        }
    };
    let comment = mark(&firewalls.instance);
    for link in links
        .iter()
        .filter(|link| !listed.contains(&format!("-A {FORWARD} -i {link} -j ACCEPT")))
    {
        let mut done = firewalls
            .journal
            .change(|data| data.ufw.insert(link.clone()))
            .map_err(|error| format!("{error:#}"));
        for rule in rules(link) {
            if done.is_ok() {
                done = ufw(
                    &[&rule[..], &["comment", &comment]].concat(),
                    &firewalls.own,
                )
                .await;
            }
        }
        match done {
            Ok(()) => firewalls.made = true,
            Err(why) => failures.push(failure(format!("let {link} through ufw"), why)),
        }
    }
    failures
}

/// Removes the rules of links that are no longer ours.
async fn remove(firewalls: &mut Firewalls, links: &BTreeSet<String>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let gone: Vec<String> = firewalls.journal.ufw().difference(links).cloned().collect();
    for link in gone {
        let what = || format!("remove ufw's rules for {link}");
        let mut done = Ok(());
        for rule in rules(&link) {
            // `ufw delete` of what is not there ends well.
            let args = match rule.split_first() {
                Some((&"route", rest)) => [&["route", "delete"], rest].concat(),
                _ => [&["delete"], &rule[..]].concat(),
            };
            let began = firewalls.in_time();
            done = match (done, began) {
                (Ok(()), Ok(())) => ufw(&args, &firewalls.own).await,
                (Err(why), _) | (_, Err(why)) => Err(why),
            };
        }
        let forgotten = done.and_then(|()| {
            firewalls
                .journal
                .change(|data| data.ufw.remove(&link))
                .map_err(|error| format!("{error:#}"))
        });
        if let Err(why) = forgotten {
            failures.push(failure(what(), why));
        }
    }
    failures
}
