//! Probes: packets of our own that pass every chain of everybody, counted before the first and behind the last.
//!
//! What entered and did not come out was dropped in between, whoever did it and whatever their rules look like. A probe
//! is a UDP packet whose eight bytes name this daemon's table and the way it takes; behind the last count it ends, so
//! that neither a workload nor a member nor our resolver ever sees one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::run::{Error, OwnRuns, nft};
use crate::model::host::Family;

/// The way a probe takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From a subnet's TUN to a workload.
    Enter = 1,
    /// From a workload to a subnet's TUN.
    Leave = 2,
    /// From a workload to another one here.
    Local = 3,
    /// From a workload to the resolver of this machine.
    Names = 4,
}

impl Way {
    /// Every way there is.
    pub const ALL: [Way; 4] = [Way::Enter, Way::Leave, Way::Local, Way::Names];

    fn word(self) -> &'static str {
        match self {
            Way::Enter => "enter",
            Way::Leave => "leave",
            Way::Local => "local",
            Way::Names => "names",
        }
    }

    fn hook(self) -> &'static str {
        if self == Way::Names {
            "input"
        } else {
            "forward"
        }
    }
}

/// The stages a probe is counted at, before everybody's chains and behind them, with their
/// priorities.
const STAGES: [(&str, i16); 2] = [("probed", -500), ("passed", 500)];

fn version(family: Family) -> char {
    if family == Family::V4 { '4' } else { '6' }
}

fn keys() -> impl Iterator<Item = (Way, Family)> {
    Way::ALL
        .into_iter()
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, family)))
}

fn name(stage: &str, way: Way, family: Family) -> String {
    format!("{stage}_{}{}", way.word(), version(family))
}

/// Names of the counters, of every stage, way and family.
pub fn names() -> impl Iterator<Item = String> {
    STAGES
        .into_iter()
        .flat_map(|(stage, _)| keys().map(move |(way, family)| name(stage, way, family)))
}

/// The first four bytes of this table's probes: FNV-1a of its name.
fn mark(table: &str) -> u32 {
    table.bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The eight bytes that a probe carries: the table's mark and the way.
pub fn payload(table: &str, way: Way) -> [u8; 8] {
    ((u64::from(mark(table)) << 32) | way as u64).to_be_bytes()
}

/// The chains that count probes, as nft reads them.
pub fn chains(table: &str) -> String {
    let mut out = String::new();
    for (stage, priority) in STAGES {
        for hook in ["forward", "input"] {
            let _ = writeln!(out, "\tchain {stage}_{hook} {{");
            let _ = writeln!(
                out,
                "\t\ttype filter hook {hook} priority {priority}; policy accept;"
            );
            let _ = writeln!(out, "\t\tmeta l4proto != udp return");
            let _ = writeln!(out, "\t\tudp length != 16 return");
            let _ = writeln!(out, "\t\t@th,64,32 != {} return", mark(table));
            for (way, family) in keys().filter(|(way, _)| way.hook() == hook) {
                let end = if stage == "passed" { " drop" } else { "" };
                let _ = writeln!(
                    out,
                    "\t\tmeta nfproto ipv{} @th,96,32 {} counter name {}{end}",
                    version(family),
                    way as u32,
                    name(stage, way, family)
                );
            }
            out.push_str("\t}\n");
        }
    }
    out
}

/// Probes that entered, and those of them that came out.
pub type Seen = BTreeMap<(Way, Family), (u64, u64)>;

/// Reads the counters.
///
/// # Errors
/// nft is missing or refused; there is no table.
pub async fn read(table: &str, own: &OwnRuns) -> Result<Seen, Error> {
    let listed = nft(
        "list the probes",
        &["-j", "list", "counters", "table", "inet", table],
        &[],
        own,
    )
    .await?;
    let listed: Value =
        serde_json::from_slice(&listed).map_err(|_| Error::Listing(table.to_owned()))?;
    let objects = listed
        .get("nftables")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let count = |counter: &Value| {
        Some((
            counter.get("name")?.as_str()?.to_owned(),
            counter.get("packets").and_then(Value::as_u64)?,
        ))
    };
    let counts: BTreeMap<String, u64> = objects
        .filter_map(|object| object.get("counter"))
        .filter_map(count)
        .collect();
    let count = |stage, way, family| {
        counts
            .get(&name(stage, way, family))
            .copied()
            .unwrap_or_default()
    };
    Ok(keys()
        .map(|(way, family)| {
            (
                (way, family),
                (count("probed", way, family), count("passed", way, family)),
            )
        })
        .collect())
}
