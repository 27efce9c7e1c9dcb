//! `relay`: the sessions that this node forwards, and whether it offers to.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;

use super::netcheck;
use super::print::{self, Style, Table};
use crate::api::types::{KnownRelay, RelayInfo, RelaySession, Request};
use crate::model::id::PeerId;

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
    /// Back to the default: forward for members that have no other way, at most 10 Mbit/s in all
    #[command(
        after_help = "A daemon that only relays forwards for whom transport.relay.for names, up to transport.relay.max_mbit. As offer and \
                      off, it holds after a restart, until the next of the three, or until the configuration says something else of \
                      it than now."
    )]
    Auto,
}

impl RelayVerb {
    pub(super) fn request(self) -> Request {
        match self {
            RelayVerb::Ls => Request::RelayLs,
            RelayVerb::Offer { max_mbit } => Request::RelayOffer { max_mbit },
            RelayVerb::Off => Request::RelayOff,
            RelayVerb::Auto => Request::RelayAuto,
        }
    }
}

pub(super) fn list(info: &RelayInfo, style: Style) -> String {
    let mut out = format!("{}\n", print::clean(&info.offers));
    let word = match &info.offer {
        serde_json::Value::String(word) => word.clone(),
        other => other.to_string(),
    };
    let offer = format!("{word}   ({})", info.offer_origin);
    out += &print::fields(&[("offer", offer), ("forwarded", print::bytes(info.bytes))]);
    if !info.drops.is_empty() {
        out += &print::fields(&[("dropped", dropped(&info.drops))]);
    }
    if !info.refused.is_empty() {
        out += &print::fields(&[("refused", drops(&info.refused))]);
    }
    out += &relays(info, style);
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
                dropped(&session.drops)
            },
        ]);
    }
    out + &table.render()
}

/// The relays of this node: where it has a place at each, what each would forward for it, and to whom it does.
fn relays(info: &RelayInfo, style: Style) -> String {
    let places = info.places.iter().map(|point| point.peer_id);
    let known = info.known.iter().map(|relay| relay.peer_id);
    let used = info.uses.iter().map(|used| used.relay);
    let all: BTreeSet<PeerId> = places.chain(known).chain(used).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "RELAY FOR US",
        "PLACE",
        "MBIT/S",
        "RTT",
        "OFFERED",
        "KNOWN BY",
        "USED FOR",
    ]);
    for relay in all {
        let place = info.places.iter().find(|point| point.peer_id == relay);
        let known = info.known.iter().find(|known| known.peer_id == relay);
        let used = info.uses.iter().find(|used| used.relay == relay);
        let none = || "-".to_owned();
        let rtt_us = place.and_then(|point| point.rtt_us);
        // Microseconds of a round trip are few: exact in a double.
        let rtt = rtt_us.map(|us| us as f64 / 1000.0);
        table.row([
            place
                .and_then(|point| point.name.clone())
                .unwrap_or_else(|| relay.short()),
            place.map_or_else(none, |point| netcheck::place(point, style)),
            known
                .and_then(|known| known.max_mbit)
                .map_or_else(none, |mbit| mbit.to_string()),
            rtt.or(known.and_then(|known| known.rtt_ms))
                .map_or_else(none, print::millis),
            known.map_or_else(none, offered),
            match (known, place) {
                (Some(known), _) => print::clean(&known.source),
                (None, Some(point)) if point.configured => "configuration".to_owned(),
                // A member that keeps a place and has said nothing of what it offers.
                (None, Some(_)) => "connection".to_owned(),
                (None, None) => none(),
            },
            used.map_or_else(none, |used| print::listed(&used.names)),
        ]);
    }
    table.render()
}

fn offered(relay: &KnownRelay) -> String {
    if relay.offered {
        "yes".to_owned()
    } else {
        "where there is no other way".to_owned()
    }
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

/// Datagrams that were not forwarded, each reason in words.
fn dropped(drops: &BTreeMap<String, u64>) -> String {
    let worded = |why: &str| match why {
        "unbound" => "while the other end was not there".to_owned(),
        "elsewhere" => "from another address".to_owned(),
        "rate" => "over the rate".to_owned(),
        "full" => "for want of room".to_owned(),
        "flood" => "in a flood".to_owned(),
        other => print::clean(other),
    };
    let each = drops
        .iter()
        .map(|(why, count)| format!("{count} {}", worded(why)));
    each.collect::<Vec<_>>().join(", ")
}

/// `2 crowded, 3 full`.
fn drops(drops: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = drops
        .iter()
        .map(|(why, count)| format!("{count} {}", print::clean(why)))
        .collect();
    each.join(", ")
}
