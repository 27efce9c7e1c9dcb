//! `DOCKER-USER`, by the program that Docker itself uses: `iptables`, in the kernel's tables of today and of before.

use std::collections::BTreeSet;
use std::io;

use super::chains::Chain;
use super::{Firewalls, has};
use crate::helper;
use crate::host::failure;
use crate::host::nft::run::{OwnRuns, complaint, program as run};
use crate::model::host::Failure;
use crate::model::host::firewalls::{DOCKER_USER, chain_changes};

/// Seconds to wait for others that change the tables. What is not done is tried again soon, and nobody who waits for the
/// kernel to follow waits for them.
const LOCK_TIMEOUT_S: &str = "1";
/// What the programs say where the chain is not there: those for the tables of before nftables, and of today.
const NO_CHAIN: [&str; 2] = ["No chain", "is incompatible"];

/// The tables of one family, of today's kind or of before nftables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    /// The program that can only be meant for these.
    program: &'static str,
    /// What it is called where there is but one kind.
    plain: &'static str,
    /// Whether the helper runs it, for this process may not.
    by_helper: bool,
}

/// The program for the tables of a family.
pub(super) fn program(family: &str, legacy: bool) -> &'static str {
    match (family, legacy) {
        ("ip6", false) => "ip6tables-nft",
        ("ip6", true) => "ip6tables-legacy",
        (_, false) => "iptables-nft",
        (_, true) => "iptables-legacy",
    }
}

/// The programs for the tables of a family.
pub(super) fn tables(family: &str, legacy: bool) -> Tables {
    let plain = if family == "ip6" {
        "ip6tables"
    } else {
        "iptables"
    };
    Tables {
        program: program(family, legacy),
        plain,
        by_helper: false,
    }
}

/// The tables of before nftables, where somebody uses them: only to ask would make them.
pub(super) async fn legacy(family: &str) -> Option<Tables> {
    let names = if family == "ip6" {
        "/proc/net/ip6_tables_names"
    } else {
        "/proc/net/ip_tables_names"
    };
    let (used, by_helper) = match std::fs::read_to_string(names) {
        Ok(names) => (names.lines().any(|name| name == "filter"), false),
        // Root alone may read it, and may use them.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let used = helper::are_tables_used(family == "ip6").await;
            let used = used.unwrap_or_else(|error| {
                tracing::debug!(%error, "whether iptables-legacy is used is not known");
                false
            });
            (used, true)
        }
        Err(_) => return None,
    };
    used.then(|| Tables {
        by_helper,
        ..tables(family, true)
    })
}

/// The tables of before nftables of both families, where somebody uses them.
async fn all_legacy() -> Vec<Tables> {
    let mut all = Vec::new();
    for family in ["ip", "ip6"] {
        all.extend(legacy(family).await);
    }
    all
}

/// Whether anybody uses the tables of before nftables.
pub(super) async fn is_legacy_used() -> bool {
    !all_legacy().await.is_empty()
}

impl Tables {
    /// Runs it, with what is behind its name. None: it is not installed.
    async fn run(
        self,
        suffix: &str,
        args: &[&str],
        input: &str,
        own: &OwnRuns,
    ) -> Option<Result<String, String>> {
        for name in [self.program, self.plain] {
            return match run(&format!("{name}{suffix}"), args, input.as_bytes(), own).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Some(Err(error.to_string())),
                Ok(output) if output.status.success() => {
                    Some(Ok(String::from_utf8_lossy(&output.stdout).into_owned()))
                }
                Ok(output) => Some(Err(complaint(&output))),
            };
        }
        None
    }

    /// The rules of a chain; none where there is no such chain, or no program for it.
    pub(super) async fn list(self, chain: &str, own: &OwnRuns) -> Result<Option<String>, String> {
        if self.by_helper {
            let rules = helper::table_rules(self.is_ipv6(), chain).await;
            return rules.map_err(|error| error.to_string());
        }
        match self
            .run("", &["-w", LOCK_TIMEOUT_S, "-S", chain], "", own)
            .await
        {
            Some(Ok(rules)) => Ok(Some(rules)),
            Some(Err(why)) if !lacks_chain(&why) => Err(why),
            _ => Ok(None),
        }
    }

    fn is_ipv6(self) -> bool {
        self.plain == "ip6tables"
    }

    /// Has Docker's chain, as it was listed, hold the rules of a daemon for `links`: all of them or none is changed. Whether
    /// there was something to do.
    async fn bring(
        self,
        instance: &str,
        links: &BTreeSet<String>,
        listed: &str,
        own: &OwnRuns,
    ) -> Result<bool, String> {
        let Some(changes) = chain_changes(instance, DOCKER_USER, links, listed) else {
            return Ok(false);
        };
        let done = if self.by_helper {
            let done = helper::let_through(self.is_ipv6(), instance, links).await;
            done.map_err(|error| error.to_string())
        } else {
            self.restore(&changes, own).await
        };
        done.map(|()| true)
    }

    /// Changes rules, all of them or none.
    async fn restore(self, changes: &str, own: &OwnRuns) -> Result<(), String> {
        match self
            .run(
                "-restore",
                &["-w", LOCK_TIMEOUT_S, "--noflush"],
                changes,
                own,
            )
            .await
        {
            Some(done) => done.map(drop),
            None => Err(format!("{} is not installed", self.plain)),
        }
    }
}

fn lacks_chain(complaint: &str) -> bool {
    NO_CHAIN.iter().any(|words| complaint.contains(words))
}

/// The programs for the tables that have Docker's chain.
async fn places(chains: &[Chain]) -> Vec<Tables> {
    let today = ["ip", "ip6"]
        .into_iter()
        .filter(|family| has(chains, family, "filter", DOCKER_USER));
    let today = today.map(|family| tables(family, false));
    today.chain(all_legacy().await).collect()
}

/// Brings our rules in line with `links`.
pub(super) async fn follow(
    firewalls: &mut Firewalls,
    chains: &[Chain],
    links: &BTreeSet<String>,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    if links.is_empty() && firewalls.journal.docker().is_empty() {
        return failures;
    }
    for place in places(chains).await {
        let what = || format!("let our links through {DOCKER_USER} of {}", place.program);
        let listed = match place.list(DOCKER_USER, &firewalls.own).await {
            Ok(Some(listed)) => listed,
            Ok(None) => continue,
            Err(why) => {
                failures.push(failure(what(), why));
                continue;
            }
        };
        if chain_changes(&firewalls.instance, DOCKER_USER, links, &listed).is_none() {
            continue;
        }
        let noted = |error: anyhow::Error| failure(what(), format!("{error:#}"));
        if !links.is_empty()
            && let Err(error) = firewalls
                .journal
                .change(|data| data.docker.insert(place.program.to_owned()))
        {
            failures.push(noted(error));
            continue;
        }
        let brought = place.bring(&firewalls.instance, links, &listed, &firewalls.own);
        match brought.await {
            Ok(_) => {
                firewalls.made |= !links.is_empty();
                tracing::info!(
                    program = place.program,
                    "rules of ours in {DOCKER_USER} follow our links"
                );
            }
            // Whoever removed the chain since it was listed removed our rules with it.
            Err(why) if lacks_chain(&why) => {}
            Err(why) => failures.push(failure(what(), why)),
        }
    }
    if links.is_empty()
        && failures.is_empty()
        && let Err(error) = firewalls.journal.change(|data| data.docker.clear())
    {
        failures.push(failure(
            "forget the rules in other firewalls",
            format!("{error:#}"),
        ));
    }
    failures
}

/// Removes the rules of one daemon, or of all. Returns what it removed, in words, and what it could not remove.
pub(super) async fn cleanup(
    instance: Option<&str>,
    chains: &[Chain],
    own: &OwnRuns,
) -> (Vec<String>, Vec<Failure>) {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for place in places(chains).await {
        let listed = match place.list(DOCKER_USER, own).await {
            Ok(Some(listed)) => listed,
            Ok(None) => continue,
            Err(why) => {
                failures.push(failure(
                    format!("look at {DOCKER_USER} of {}", place.program),
                    why,
                ));
                continue;
            }
        };
        let marks: BTreeSet<&str> = listed
            .split_whitespace()
            .filter_map(|word| word.trim_matches('"').strip_prefix("byway:"))
            .collect();
        for mark in marks
            .into_iter()
            .filter(|mark| instance.is_none_or(|instance| instance == *mark))
        {
            let rules = format!("rules in {DOCKER_USER} of {}", place.program);
            match place.bring(mark, &BTreeSet::new(), &listed, own).await {
                Ok(false) => {}
                Ok(true) => done.push(format!("removed {rules}")),
                Err(why) => failures.push(failure(format!("remove {rules}"), why)),
            }
        }
    }
    (done, failures)
}
