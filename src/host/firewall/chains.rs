//! The chains of others, as far as they may stop what comes through.

use std::collections::BTreeSet;

use serde_json::Value;

use super::tables;
use super::{culprit, has};
use crate::host::nft::TABLE_PREFIX;
use crate::host::nft::run::{Error, OwnRuns, nft};
use crate::model::host::firewalls::{DOCKER_USER, ForeignChain, Hook, Stopped};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub family: String,
    pub table: String,
    pub name: String,
    /// The hook of a base chain, and whether it drops what no rule accepts; none for other chains.
    pub hook: Option<(String, bool)>,
}

/// Every chain, without rules.
///
/// # Errors
/// nft is missing or refused.
pub(super) async fn list(own: &OwnRuns) -> Result<Vec<Chain>, Error> {
    let listed = nft("list chains", &["-j", "list", "chains"], &[], own).await?;
    parse(&listed).ok_or_else(|| Error::Listing("of every chain".to_owned()))
}

fn parse(listed: &[u8]) -> Option<Vec<Chain>> {
    let listed: Value = serde_json::from_slice(listed).ok()?;
    let chain = |chain: &Value| {
        let field = |name: &str| {
            chain
                .get(name)
                .and_then(Value::as_str)
                .map(ToOwned::to_owned)
        };
        let hook = (field("type").as_deref() == Some("filter"))
            .then(|| field("hook"))
            .flatten();
        let drops = field("policy").as_deref() == Some("drop");
        Some(Chain {
            family: field("family")?,
            table: field("table")?,
            name: field("name")?,
            hook: hook.map(|hook| (hook, drops)),
        })
    };
    let objects = listed.get("nftables")?.as_array()?;
    Some(
        objects
            .iter()
            .filter_map(|object| object.get("chain"))
            .filter_map(chain)
            .collect(),
    )
}

fn hook_of(word: &str) -> Option<Hook> {
    match word {
        "forward" => Some(Hook::Forward),
        "input" => Some(Hook::Input),
        _ => None,
    }
}

/// Whether rules, as nft or iptables print them, may drop: themselves, or in a chain they lead to.
fn may_drop(rules: &str) -> bool {
    let words = [
        "drop", "reject", "jump", "goto", "queue", "DROP", "REJECT", "-j", "-g",
    ];
    rules.split_whitespace().any(|word| words.contains(&word))
}

/// The base chains of others on the hooks where something was stopped. `integrated` are the programs by which our rules
/// are in `DOCKER-USER`.
pub(super) async fn foreign(
    stopped: &[Stopped],
    integrated: &BTreeSet<String>,
    own: &OwnRuns,
) -> Vec<ForeignChain> {
    let hooks: BTreeSet<Hook> = stopped.iter().map(|s| s.hook).collect();
    let chains = list(own).await.unwrap_or_default();
    let mut found = Vec::new();
    for chain in &chains {
        let Some((hook, policy_drops)) = chain
            .hook
            .as_ref()
            .and_then(|(hook, drops)| Some((hook_of(hook)?, *drops)))
        else {
            continue;
        };
        let theirs = ["ip", "ip6", "inet"].contains(&chain.family.as_str())
            && !chain.table.starts_with(TABLE_PREFIX);
        if !theirs || !hooks.contains(&hook) {
            continue;
        }
        let (family, table, name) = (&chain.family, &chain.table, &chain.name);
        let args = ["-s", "list", "chain", family, table, name];
        let listed = nft("list a chain", &args, &[], own)
            .await
            .unwrap_or_default();
        let rules = String::from_utf8_lossy(&listed);
        let rule = culprit::of_nft(family, table, name, &rules, own).await;
        // Behind the line with type, hook and policy.
        let rules = rules.split_once("policy").map_or("", |(_, rules)| rules);
        let docker =
            hook == Hook::Forward && has(&chains, &chain.family, &chain.table, DOCKER_USER);
        found.push(ForeignChain {
            family: chain.family.clone(),
            table: chain.table.clone(),
            name: chain.name.clone(),
            hook,
            policy_drops,
            rules_drop: may_drop(rules.split_once(';').map_or("", |(_, rules)| rules)),
            rule,
            legacy: false,
            ufw: has(&chains, &chain.family, &chain.table, "ufw-before-forward")
                || has(&chains, &chain.family, &chain.table, "ufw6-before-forward"),
            docker,
            integrated: docker && integrated.contains(tables::program(&chain.family, false)),
        });
    }
    for family in ["ip", "ip6"] {
        for hook in &hooks {
            found.extend(legacy(family, *hook, integrated, own).await);
        }
    }
    found
}

/// The chain of the tables of before nftables, where they are in use.
async fn legacy(
    family: &str,
    hook: Hook,
    integrated: &BTreeSet<String>,
    own: &OwnRuns,
) -> Option<ForeignChain> {
    let name = if hook == Hook::Forward {
        "FORWARD"
    } else {
        "INPUT"
    };
    let place = tables::legacy(family).await?;
    let listed = place.list(name, own).await.ok()??;
    let ufw = if family == "ip" {
        "ufw-before-forward"
    } else {
        "ufw6-before-forward"
    };
    let docker = hook == Hook::Forward && listed.contains(DOCKER_USER);
    Some(ForeignChain {
        family: family.to_owned(),
        table: "filter".to_owned(),
        name: name.to_owned(),
        hook,
        policy_drops: listed.contains(&format!("-P {name} DROP")),
        rules_drop: may_drop(&listed),
        rule: culprit::of_iptables(&listed),
        legacy: true,
        ufw: listed.contains(ufw) || listed.contains(&ufw.replace("forward", "input")),
        docker,
        integrated: docker && integrated.contains(tables::program(family, true)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filters_on_a_hook_stop_packets() {
        let listed = br#"{"nftables":[{"metainfo":{}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"drop"}},
            {"chain":{"family":"ip","table":"nat","name":"POSTROUTING","handle":1,"type":"nat","hook":"postrouting","prio":100,"policy":"accept"}},
            {"chain":{"family":"ip","table":"filter","name":"DOCKER-USER","handle":2}}]}"#;
        let chains = parse(listed).unwrap();
        assert_eq!(chains[0].hook, Some(("forward".to_owned(), true)));
        assert_eq!((&chains[1].hook, &chains[2].hook), (&None, &None));
        assert!(
            has(&chains, "ip", "filter", DOCKER_USER)
                && !has(&chains, "ip6", "filter", DOCKER_USER)
        );
        assert_eq!(parse(b"no JSON"), None);
    }

    #[test]
    fn rules_that_only_accept_and_count_do_not_drop() {
        assert!(!may_drop(
            "\n\t\tiifname \"x\" counter packets 1 bytes 2 accept\n\t}\n}"
        ));
        assert!(may_drop("reject with icmpx admin-prohibited"));
        assert!(may_drop("-A FORWARD -i eth0 -j NFQUEUE"));
    }
}
