//! `peer ls`, `peer show`: every member of any subnet, and everybody connected.

use std::collections::BTreeMap;

use super::Report;
use super::paths::{carried, millis, path, peers, rtt_ms, session, sessions};
use super::reach::{changes, ends, explain, tried};
use crate::api::types::{Carriers, Error, ErrorKind, PeerInfo};
use crate::link::direct::DirectStatus;
use crate::link::{Carried, Key, LinkStatus};
use crate::model::error::{Code, Hint};
use crate::model::find::{Named, find};
use crate::model::id::PeerId;
use crate::model::join::fingerprint;
use crate::model::members::printable;

/// `peer ls`: every member of any subnet, and everybody connected.
pub(crate) async fn peer_list(ctx: &Report) -> Result<Vec<PeerInfo>, Error> {
    let mut names = ctx.node.known_as().await?;
    let known = peers(ctx).await;
    let held = ctx.peers.neighbours();
    let direct = sessions(ctx).await;
    for peer in known.keys() {
        names.entry(*peer).or_default();
    }
    let called: BTreeMap<PeerId, String> = names
        .iter()
        .filter_map(|(peer, (names, _))| Some((*peer, names.first()?.clone())))
        .collect();
    let info = |(peer, (names, subnets)): (PeerId, (Vec<String>, Vec<_>))| {
        let keys: Vec<Key> = subnets
            .into_iter()
            .map(|subnet| Key { subnet, peer })
            .collect();
        let links: Vec<LinkStatus> = keys.iter().map(|key| ctx.links.status(*key)).collect();
        let direct: Vec<&DirectStatus> = keys.iter().filter_map(|key| direct.get(key)).collect();
        let datagrams = direct.iter().find_map(|d| d.path.as_ref());
        let best = links.iter().find(|l| l.via.is_some()).or(links.first());
        let status = known.get(&peer);
        let connected = status.is_some_and(|s| !s.connections.is_empty());
        let mut path = path(
            ctx,
            peer,
            best.filter(|l| l.via.is_some() || !connected),
            datagrams,
            status,
        );
        let shown = called.get(&peer).cloned().unwrap_or_else(|| peer.short());
        let name = |peer: PeerId| called.get(&peer).cloned();
        let session_of = direct.first().copied();
        explain(ctx, &mut path, &shown, session_of, &name);
        let (here, there) = session_of.map(ends).unzip();
        let there = there.flatten();
        let all = |of: fn(&LinkStatus) -> Carried| {
            links
                .iter()
                .map(of)
                .fold(Carried::default(), |sum, one| sum + one)
        };
        let total = all(LinkStatus::carried);
        PeerInfo {
            peer_id: peer,
            names,
            fingerprint: fingerprint(peer),
            connected,
            held: held
                .as_ref()
                .and_then(|held| held.get(&peer))
                .map(|why| why.as_str().into()),
            path,
            addresses: status
                .map(|s| s.addresses.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            rtt_ms: datagrams
                .and_then(|path| path.rtt)
                .map(millis)
                .or_else(|| rtt_ms(status)),
            tx_bytes: total.tx_bytes,
            rx_bytes: total.rx_bytes,
            carriers: Carriers {
                datagram: carried(all(|l| l.datagrams)),
                stream: carried(all(|l| l.streams)),
            },
            sessions: direct.into_iter().map(session).collect(),
            here,
            there,
            tried: session_of.map(tried).unwrap_or_default(),
            changes: session_of
                .map(|session| changes(session, &name))
                .unwrap_or_default(),
        }
    };
    Ok(names.into_iter().map(info).collect())
}

/// One peer by peer ID, member name with or without the subnet, or a prefix of the ID.
pub(crate) async fn peer_show(ctx: &Report, text: &str) -> Result<PeerInfo, Error> {
    let all = peer_list(ctx).await?;
    let none = || {
        crate::model::error::Error::new(
            crate::model::error::Kind::NotFound,
            Code::NoPeer,
            format!("no peer {} is known", printable(text)),
        )
        .hint(Hint::ListPeers)
    };
    let named = |p: &PeerInfo| {
        let alone = p
            .names
            .iter()
            .filter_map(|n| n.split('.').next())
            .map(ToOwned::to_owned);
        Named {
            what: p.peer_id,
            id: Some(p.peer_id.into()),
            names: p.names.iter().cloned().chain(alone).collect(),
        }
    };
    let peers: Vec<Named<PeerId>> = all.iter().map(named).collect();
    let found = find(&peers, text).map_err(|miss| miss.error(text, none))?;
    let gone = || {
        Error::new(
            ErrorKind::NotFound,
            Code::NoPeer,
            format!("no peer {} is known", printable(text)),
        )
    };
    all.into_iter()
        .find(|p| p.peer_id == found)
        .ok_or_else(gone)
}
