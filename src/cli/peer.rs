//! `id`, `peer`.

use clap::{Args, Subcommand};

use super::netcheck::end;
use super::print::{self, Style, Table};
use super::value;
use crate::api::types::{IdInfo, Path, PathChange, PeerInfo, Request, ResolvedPeer, Tried};
use crate::model::find::peer_prefixes;

#[derive(Debug, Args)]
pub(super) struct OnePeer {
    /// Peer ID, name, or the first characters of the ID (at least 8 after 12D3KooW)
    #[arg(value_parser = value::object)]
    peer: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum PeerVerb {
    /// Every peer known
    Ls,
    /// One of them
    Show(OnePeer),
    /// List every known address of a peer, with its source
    Resolve(OnePeer),
    /// Connect to a peer, and keep its address
    Connect {
        /// Multiaddr, HOST, HOST:PORT, or a peer already known
        #[arg(value_parser = value::peer, value_name = "MULTIADDR|HOST[:PORT]|PEER")]
        peer: String,
    },
    /// Close the connections to a peer
    Disconnect(OnePeer),
}

impl PeerVerb {
    pub(super) fn request(self) -> Request {
        match self {
            PeerVerb::Ls => Request::PeerLs,
            PeerVerb::Show(OnePeer { peer }) => Request::PeerShow { peer },
            PeerVerb::Resolve(OnePeer { peer }) => Request::PeerResolve { peer },
            PeerVerb::Connect { peer } => Request::PeerConnect { peer },
            PeerVerb::Disconnect(OnePeer { peer }) => Request::PeerDisconnect { peer },
        }
    }
}

pub(super) fn id(id: &IdInfo) -> String {
    let mut out = format!("node {}  {}\n", id.name, id.peer_id);
    out += &print::fields(&[("fingerprint", id.fingerprint.clone())]);
    for address in &id.addresses {
        out += &print::fields(&[("address", address.clone())]);
    }
    let zone = |address: &String| {
        let link = address.strip_prefix("/ip6zone/")?.split('/').next()?;
        Some(link.to_owned())
    };
    let note = match id.addresses.first() {
        None => "none that others can dial".to_owned(),
        // It is written as this machine would dial it.
        Some(first) => zone(first).map_or_else(String::new, |link| {
            format!("these lead to this machine on its own links alone; elsewhere the name of the link there stands for {link}")
        }),
    };
    let name = match id.addresses.is_empty() {
        true => "address",
        false => "",
    };
    out + &print::fields(&[(name, note)])
}

pub(super) fn list(peers: &[PeerInfo], style: Style) -> String {
    let mut table = Table::new(&["NAMES", "PATH", "RTT", "TX/RX", "PEER"]);
    let prefixes = peer_prefixes(peers.iter().map(|p| p.peer_id));
    for (p, prefix) in peers.iter().zip(prefixes) {
        table.row([
            print::listed(&p.names),
            print::path(style, &p.path),
            p.rtt_ms.map_or("-".to_owned(), print::millis),
            format!(
                "{} / {}",
                print::bytes(p.tx_bytes),
                print::bytes(p.rx_bytes)
            ),
            prefix,
        ]);
    }
    table.render()
}

/// Why this node keeps a connection to the peer.
fn held(p: &PeerInfo) -> String {
    match p.held.as_deref() {
        None => "",
        Some("everybody") => "the subnet is small: everybody is connected to everybody",
        Some("home") => "it is a relay of this node",
        Some("ring") => "it is a neighbour: records spread over these",
        Some("near") => "it answers soon",
        Some("trial") => "it is tried, so that its round trip is known",
        Some(other) => other,
    }
    .to_owned()
}

pub(super) fn show(p: &PeerInfo, style: Style) -> String {
    let mut out = format!(
        "peer {}  {}\n",
        p.peer_id,
        if p.connected {
            "connected"
        } else {
            "not connected"
        }
    );
    out += &print::fields(&[
        ("names", print::listed(&p.names)),
        ("fingerprint", p.fingerprint.clone()),
        ("path", print::path(style, &p.path)),
        ("since", since(style, &p.path)),
        ("held", held(p)),
        ("remedy", p.path.remedy.clone().unwrap_or_default()),
        ("rtt", p.rtt_ms.map(print::millis).unwrap_or_default()),
        (
            "tx/rx",
            format!(
                "{} / {}",
                print::bytes(p.tx_bytes),
                print::bytes(p.rx_bytes)
            ),
        ),
    ]);
    if let Some(mtu) = p.path.mtu {
        out += &print::fields(&[("path mtu", mtu.to_string())]);
    }
    for (which, nat) in [("here", &p.here), ("there", &p.there)] {
        out += &print::fields(&[(which, nat.as_ref().map(end).unwrap_or_default())]);
    }
    for session in &p.sessions {
        let cipher = session.cipher.as_deref().unwrap_or("no key");
        let without = if session.post_quantum == Some(false) {
            "  not post-quantum"
        } else {
            ""
        };
        let text = format!(
            "{cipher}{without}  key {}  path changes {}",
            session.keys, session.path_changes
        );
        out += &print::fields(&[("session", text)]);
    }
    for address in &p.addresses {
        out += &print::fields(&[("address", address.clone())]);
    }
    out + &history(style, &p.tried, &p.changes)
}

/// What was tried, and how the path changed.
pub(super) fn history(style: Style, tried: &[Tried], changes: &[PathChange]) -> String {
    let tried = tried
        .iter()
        .map(|tried| ("tried", print::tried(style, tried)));
    let changes = changes
        .iter()
        .map(|change| ("change", print::change(style, change)));
    print::fields(&tried.chain(changes).collect::<Vec<_>>())
}

/// Every address of a peer, and who says so.
pub(super) fn resolved(peer: &ResolvedPeer) -> String {
    let mut out = format!("peer {}  {}\n", peer.peer_id, print::listed(&peer.names));
    if peer.addresses.is_empty() {
        return out + "  no address known\n";
    }
    let mut table = Table::new(&["ADDRESS", "SOURCE", "STATE"]);
    for known in &peer.addresses {
        let state = match (known.used, known.reached) {
            (true, _) => "in use",
            (false, true) => "answered",
            (false, false) => "-",
        };
        table.row([
            known.address.clone(),
            known.source.clone(),
            state.to_owned(),
        ]);
    }
    out += &table.render();
    out
}

/// Since when a path is what it is; nothing of an offline one, which says so itself, nor of an idle one, which is none.
pub(super) fn since(style: Style, path: &Path) -> String {
    match path.kind.as_str() {
        "offline" | "idle" => String::new(),
        _ => print::moment(style, path.since),
    }
}
