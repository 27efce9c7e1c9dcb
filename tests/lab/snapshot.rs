//! What a namespace looks like to the kernel, as sorted lines that can be compared before and after.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::netns::Netns;
use super::{SOON, sh, until};

/// Links, addresses, routes of every table, rules, fixed neighbours, ruleset and the sysctls a router touches.
const SCRIPT: &str = r#"
ip -o link show | sed 's/^/link /'
ip -o addr show | sed 's/^/addr /'
ip -4 route show table all | sed 's/^/route4 /'
ip -6 route show table all | sed 's/^/route6 /'
ip -4 rule show | sed 's/^/rule4 /'
ip -6 rule show | sed 's/^/rule6 /'
ip neigh show nud permanent | sed 's/^/neighbour /'
nft -s list ruleset | sed 's/^/nft /'
for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/rp_filter \
  /proc/sys/net/ipv4/conf/*/route_localnet /proc/sys/net/ipv4/conf/*/accept_local /proc/sys/net/ipv4/conf/*/proxy_arp \
  /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/force_forwarding \
  /proc/sys/net/ipv6/conf/*/accept_ra /proc/sys/net/ipv6/conf/*/proxy_ndp; do
  [ -r "$f" ] && printf 'sysctl %s=%s\n' "${f#/proc/sys/}" "$(cat "$f")"
done
true
"#;

/// The lines of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// The state of a namespace. A change under way is waited for: two readings in a row must agree.
///
/// # Errors
/// One of the programs fails.
pub fn of(ns: &Netns) -> Result<Snapshot> {
    settled(|| ns.ok(&["sh", "-c", SCRIPT]))
}

/// The state of the namespace this test runs in, and the names of all namespaces that are not the lab's own.
///
/// # Errors
/// One of the programs fails.
pub fn of_machine() -> Result<Snapshot> {
    settled(|| {
        let spaces = sh("ip", &["netns", "list"])?;
        let foreign = spaces
            .lines()
            .filter(|l| l.starts_with("bw") && !l.starts_with("bwt-"));
        Ok(foreign.map(|l| format!("netns {l}\n")).collect::<String>()
            + &sh("sh", &["-c", MACHINE])?)
    })
}

/// The machine's own namespace is shared with whatever else runs there: only what could be ours is compared.
const MACHINE: &str = r#"
ip -o link show | grep -E ': bw' | sed 's/^/link /'
ip -4 rule show | grep 4110 | sed 's/^/rule4 /'
ip -6 rule show | grep 4110 | sed 's/^/rule6 /'
ip -4 route show table 4110 2>/dev/null | sed 's/^/route4 /'
ip -6 route show table 4110 2>/dev/null | sed 's/^/route6 /'
nft -s list tables | grep byway | sed 's/^/nft /'
printf 'sysctl ip_forward=%s\n' "$(cat /proc/sys/net/ipv4/ip_forward)"
true
"#;

fn settled(read: impl Fn() -> Result<String>) -> Result<Snapshot> {
    let parse = |text: String| Snapshot(text.lines().map(normal).collect());
    let mut last = parse(read()?);
    until("the kernel state stands still", SOON, || {
        let now = parse(read()?);
        let same = now == last;
        last = now;
        Ok(same)
    })?;
    Ok(last)
}

/// Without what changes by itself.
fn normal(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Snapshot {
    /// # Errors
    /// `after` differs: names every line that came or went.
    pub fn assert_same(&self, after: &Snapshot, place: &str) -> Result<()> {
        let gone: Vec<_> = self
            .0
            .difference(&after.0)
            .map(|l| format!("- {l}"))
            .collect();
        let left: Vec<_> = after
            .0
            .difference(&self.0)
            .map(|l| format!("+ {l}"))
            .collect();
        ensure!(
            gone.is_empty() && left.is_empty(),
            "{place} differs:\n{}",
            [gone, left].concat().join("\n")
        );
        Ok(())
    }
}
