//! What the kernel's nf_tables must be able to do for our table, tried before the table is needed.
//!
//! Kernels are built without parts of it, or have them as modules that are not installed; what nft says of that is "No such
//! file or directory". So a table like ours is put to the kernel without the end of its transaction (`nft --check`): it
//! checks everything and takes nothing. Where that fails, each part is tried alone, and those that are missing are named.

use std::fmt;
use std::sync::OnceLock;

use super::counters::Counters;
use super::elements::Elements;
use super::ruleset;
use super::run::{Error, OwnRuns, nft};

/// The table that is tried; it never exists.
const TABLE: &str = "byway_check";

/// A part of nf_tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// What it does, in words.
    pub name: &'static str,
    /// The option that a kernel is built with to have it.
    pub option: &'static str,
    /// The body of a table that needs it and as little else as can be.
    body: &'static str,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.option)
    }
}

/// A rule in a base chain of a hook.
macro_rules! rule {
    ($kind:literal, $hook:literal, $rule:literal) => {
        concat!(
            "chain c { type ",
            $kind,
            " hook ",
            $hook,
            " priority 0; ",
            $rule,
            "; }"
        )
    };
}

const fn feature(name: &'static str, option: &'static str, body: &'static str) -> Feature {
    Feature { name, option, body }
}

/// The parts that our table needs, what others stand on first.
const FEATURES: [Feature; 10] = [
    feature("tables of both families", "CONFIG_NF_TABLES_INET", ""),
    feature(
        "maps to an address and a port",
        "CONFIG_NF_TABLES, Linux 4.1",
        "map m { type inet_proto . inet_service : ipv4_addr . inet_service; }",
    ),
    feature(
        "sets of pairs with prefixes",
        "CONFIG_NF_TABLES, Linux 5.6",
        "set s { type ifname . ipv4_addr; flags interval; }",
    ),
    feature(
        "sets whose elements count",
        "CONFIG_NF_TABLES, Linux 5.7",
        "set s { type ifname; counter; }",
    ),
    feature(
        "conntrack",
        "CONFIG_NFT_CT",
        rule!("filter", "input", "ct state new ct status dnat accept"),
    ),
    feature(
        "NAT",
        "CONFIG_NFT_NAT",
        rule!("nat", "prerouting", "dnat ip to 192.0.2.1"),
    ),
    feature(
        "fib",
        "CONFIG_NFT_FIB_INET",
        rule!("filter", "prerouting", "fib daddr type local accept"),
    ),
    feature(
        "limit",
        "CONFIG_NFT_LIMIT",
        rule!("filter", "input", "limit rate 1/second accept"),
    ),
    feature(
        "reject",
        "CONFIG_NFT_REJECT_INET",
        rule!("filter", "input", "reject with icmpx admin-prohibited"),
    ),
    feature(
        "TCP options",
        "CONFIG_NF_TABLES",
        rule!(
            "filter",
            "forward",
            "tcp flags syn tcp option maxseg size set rt mtu"
        ),
    ),
];

/// Whether the kernel would take a table.
async fn takes(text: &str, own: &OwnRuns) -> Result<bool, Error> {
    let checked = nft(
        "check what the kernel can",
        &["--check", "--file", "-"],
        text.as_bytes(),
        own,
    );
    match checked.await {
        Ok(_) => Ok(true),
        Err(Error::Refused { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Those of `features` that this kernel does not have.
async fn lacking(features: &[Feature], own: &OwnRuns) -> Result<Vec<Feature>, Error> {
    let mut missing = Vec::new();
    for feature in features {
        let text = format!("table inet {TABLE} {{ {} ; }}\n", feature.body);
        if !takes(&text, own).await? {
            missing.push(*feature);
        }
    }
    Ok(missing)
}

/// The parts of nf_tables that our table needs and this kernel does not have. Changes nothing.
///
/// # Errors
/// nft cannot be run, or refuses the table although no part of it is missing.
pub async fn missing() -> Result<Vec<Feature>, Error> {
    let own = OwnRuns::default();
    let table = ruleset::whole(TABLE, &Elements::default(), &Counters::default());
    let checked = nft(
        "check what the kernel can",
        &["--check", "--file", "-"],
        table.as_bytes(),
        &own,
    );
    let Err(why) = checked.await else {
        return Ok(Vec::new());
    };
    match why {
        Error::Refused { .. } => match lacking(&FEATURES, &own).await?.as_slice() {
            [] => Err(why),
            missing => Ok(missing.to_vec()),
        },
        other => Err(other),
    }
}

/// What was found when this process started.
static FOUND: OnceLock<Vec<Feature>> = OnceLock::new();

/// Tries it once, for [`found`] to tell. That nft is not there is told elsewhere.
pub async fn look() {
    match missing().await {
        Ok(missing) => {
            let _ = FOUND.set(missing);
        }
        Err(error) => tracing::warn!(%error, "check what the kernel's nf_tables can"),
    }
}

/// What [`look`] found missing.
pub fn found() -> &'static [Feature] {
    FOUND.get().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that our table does not need, and that the kernels of test machines often lack.
    const QUEUE: Feature = feature(
        "queue",
        "CONFIG_NFT_QUEUE",
        rule!("filter", "input", "queue num 1"),
    );
    /// What no kernel has.
    const NONE: Feature = feature("nonsense", "CONFIG_NONE", "set s { type nonsense; }");

    #[tokio::test]
    #[ignore = "needs root and nft"]
    async fn what_the_kernel_lacks_is_named_and_nothing_else() {
        let own = OwnRuns::default();
        assert_eq!(missing().await.unwrap(), []);
        assert_eq!(lacking(&FEATURES, &own).await.unwrap(), []);
        let more = [FEATURES[0], NONE, QUEUE, FEATURES[6]];
        let named = lacking(&more, &own).await.unwrap();
        assert!(named.contains(&NONE), "{named:?}");
        assert!(
            named.iter().all(|part| [NONE, QUEUE].contains(part)),
            "{named:?}"
        );
        let listed = nft("list", &["list", "tables"], &[], &own).await.unwrap();
        assert!(!String::from_utf8_lossy(&listed).contains(TABLE));
    }
}
