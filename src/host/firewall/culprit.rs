//! Which rule of a chain drops: itself, or in a chain it leads to. Of several it cannot be known which one met our packets;
//! the first is named, with how many more there are.

use std::collections::{BTreeSet, VecDeque};

use crate::host::nft::run::{OwnRuns, nft};
use crate::text;

/// Chains of one table that are looked at for one finding.
const LOOKS: usize = 32;
/// Characters of a rule that are shown.
const LONGEST: usize = 160;

/// A rule as people are shown it, in one line: its comment is another program's.
fn shown(rule: &str) -> String {
    text::short(rule, LONGEST)
}

/// The rules of a chain as `nft list chain` prints it, one a line.
pub(super) fn rules(listed: &str) -> impl Iterator<Item = &str> {
    let lines = listed.lines().map(str::trim);
    lines.filter(|line| {
        let block = line.starts_with("table ") || line.starts_with("chain ");
        !block && !line.starts_with("type ") && !line.is_empty() && *line != "}"
    })
}

/// Whether a rule drops by itself.
fn drops(rule: &str) -> bool {
    let mut words = rule.split_whitespace();
    words.any(|word| ["drop", "reject", "queue"].contains(&word))
}

/// The chains that a rule leads to, also by a map that is written in it.
fn leads_to(rule: &str) -> impl Iterator<Item = String> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let next = |pair: &[&str]| match pair {
        ["jump" | "goto", chain] => Some(chain.trim_end_matches(',').to_owned()),
        _ => None,
    };
    words
        .windows(2)
        .filter_map(next)
        .collect::<Vec<_>>()
        .into_iter()
}

/// What the rules found are called.
fn named(found: &[String]) -> Option<String> {
    let first = found.first()?;
    Some(match found.len() {
        1 => first.clone(),
        many => format!("{first}, or one of {} more", many - 1),
    })
}

/// The rule that drops in a chain whose listing is given, or in one that it leads to.
pub(super) async fn of_nft(
    family: &str,
    table: &str,
    chain: &str,
    listed: &str,
    own: &OwnRuns,
) -> Option<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([chain.to_owned()]);
    let mut waiting = VecDeque::new();
    look(listed, None, &mut found, &mut waiting);
    while let Some(next) = waiting.pop_front() {
        if seen.len() >= LOOKS || !seen.insert(next.clone()) {
            continue;
        }
        let args = ["-s", "list", "chain", family, table, &next];
        let listed = nft("list a chain", &args, &[], own)
            .await
            .unwrap_or_default();
        let listed = String::from_utf8_lossy(&listed);
        look(&listed, Some(&next), &mut found, &mut waiting);
    }
    named(&found)
}

/// Takes what of one chain drops, and where it leads on.
fn look(listed: &str, chain: Option<&str>, found: &mut Vec<String>, on: &mut VecDeque<String>) {
    for rule in rules(listed) {
        if drops(rule) {
            found.push(match chain {
                Some(chain) => format!("{} in chain {chain}", shown(rule)),
                None => shown(rule),
            });
        }
        on.extend(leads_to(rule));
    }
}

/// The rule that drops among those that `iptables -S` prints of one chain.
pub(super) fn of_iptables(listed: &str) -> Option<String> {
    let drops = |line: &&str| {
        line.starts_with("-A ")
            && ["-j DROP", "-j REJECT", "-j NFQUEUE"]
                .iter()
                .any(|end| line.contains(end))
    };
    let found: Vec<String> = listed.lines().filter(drops).map(shown).collect();
    named(&found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_drops_is_named() {
        let listed = "table inet fw {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy accept;\n\
                      \t\tiifname \"lo\" accept\n\t\ttcp dport 80 drop\n\t\tjump more\n\
                      \t\tiifname vmap { \"a\" : jump one, \"b\" : goto two }\n\t}\n}\n";
        let (mut found, mut on) = (Vec::new(), VecDeque::new());
        look(listed, None, &mut found, &mut on);
        assert_eq!(found, ["tcp dport 80 drop"]);
        assert_eq!(on, ["more", "one", "two"]);
        look(
            "chain two {\n\t\treject\n\t}",
            Some("two"),
            &mut found,
            &mut on,
        );
        assert_eq!(
            named(&found).as_deref(),
            Some("tcp dport 80 drop, or one of 1 more")
        );
        assert_eq!(named(&[]), None);
    }

    #[test]
    fn of_iptables_only_rules_count_and_no_policy() {
        let listed = "-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT\n-A FORWARD -i br0 -j REJECT\n";
        assert_eq!(
            of_iptables(listed).as_deref(),
            Some("-A FORWARD -i br0 -j REJECT")
        );
        assert_eq!(of_iptables("-P FORWARD DROP\n"), None);
    }
}
