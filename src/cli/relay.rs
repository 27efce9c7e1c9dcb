//! `relay`: the sessions that this node forwards, and whether it offers to.

use std::collections::BTreeMap;

use clap::Subcommand;

use super::print::{self, Table};
use crate::api::types::{KnownRelay, RelayInfo, RelaySession, Request};

#[derive(Debug, Subcommand)]
pub(super) enum RelayVerb {
    /// List the sessions that are forwarded, their rates, and what was dropped
    Ls,
    /// Forward for the peers that transport.relay.for names, up to the rate that is given here
    Offer {
        /// Mbit/s of all peers together [default: transport.relay.max_mbit]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        max_mbit: Option<u32>,
    },
    /// Forward for nobody; the sessions that run are ended
    Off,
}

impl RelayVerb {
    pub(super) fn request(self) -> Request {
        match self {
            RelayVerb::Ls => Request::RelayLs,
            RelayVerb::Offer { max_mbit } => Request::RelayOffer { max_mbit },
            RelayVerb::Off => Request::RelayOff,
        }
    }
}

pub(super) fn list(info: &RelayInfo) -> String {
    let mut out = format!("{}\n", print::clean(&info.offers));
    out += &print::fields(&[("forwarded", print::bytes(info.bytes))]);
    if !info.drops.is_empty() {
        out += &print::fields(&[("dropped", drops(&info.drops))]);
    }
    if !info.refused.is_empty() {
        out += &print::fields(&[("refused", drops(&info.refused))]);
    }
    if !info.known.is_empty() {
        out += &known(&info.known);
    }
    if info.sessions.is_empty() {
        return out;
    }
    let mut table = Table::new(&["PEERS", "AT", "MBIT/S", "RX/TX", "DROPPED"]);
    for session in &info.sessions {
        table.row([
            both(session.peers.iter().map(|peer| peer.short())),
            both(session.addresses.iter().map(|at| match at {
                Some(at) => print::clean(at),
                None => "-".to_owned(),
            })),
            rate(session),
            format!(
                "{} / {}",
                print::bytes(session.rx_bytes),
                print::bytes(session.tx_bytes)
            ),
            if session.drops.is_empty() {
                "-".to_owned()
            } else {
                drops(&session.drops)
            },
        ]);
    }
    out + &table.render()
}

/// The members that forward for this node.
fn known(known: &[KnownRelay]) -> String {
    let mut table = Table::new(&["RELAY FOR US", "MBIT/S", "RTT", "OFFERED"]);
    for relay in known {
        table.row([
            relay.peer_id.short(),
            relay.max_mbit.to_string(),
            relay
                .rtt_ms
                .map_or("-".to_owned(), |rtt| format!("{rtt:.1} ms")),
            if relay.offered {
                "yes".to_owned()
            } else {
                "where there is no other way".to_owned()
            },
        ]);
    }
    table.render()
}

fn both(of_each: impl Iterator<Item = String>) -> String {
    of_each.collect::<Vec<_>>().join(" ")
}

/// The Mbit/s forwarded and the most that there may be: `3.2 of 10`.
fn rate(session: &RelaySession) -> String {
    match session.max_mbit {
        Some(most) => format!("{:.1} of {most}", session.mbit),
        None => format!("{:.1}", session.mbit),
    }
}

/// `12 rate, 3 full`.
fn drops(drops: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = drops
        .iter()
        .map(|(why, count)| format!("{count} {}", print::clean(why)))
        .collect();
    each.join(", ")
}
