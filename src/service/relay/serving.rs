//! What this node does for others as a relay: whom it serves, how much of it each may use, and the answers to their questions.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use crate::config::Config;
use crate::model::id::PeerId;
use crate::model::source::{Payer, Source};
use crate::p2p::{Protocol, Responder, Serve};
use crate::relay::{Asker, Terms};
use crate::service::Mesh;
use crate::service::sessions::endpoint;
use crate::service::settings::serve;
use crate::wire::relay::{MAX_ADDRESSES, Refusal, RelayAnswer, RelayRequest};

/// What a member, or a peer that the configuration names, may have beside the rate.
const SESSIONS: usize = 64;
/// What anybody else may have.
const STRANGER: Terms = Terms {
    sessions: 4,
    mbit: Some(2),
    is_stranger: true,
};

/// Whom this node serves as a relay, and how much of it each may use; none for nobody.
pub(super) fn terms(
    config: &Config,
    serve: &Serve,
    peer: &PeerId,
    is_member: bool,
) -> Option<Terms> {
    let mbit = config.relay_mbit()?;
    if !serve.serves(peer, is_member) {
        return None;
    }
    Some(match is_known(serve, is_member) {
        true => Terms {
            sessions: SESSIONS,
            mbit: Some(mbit),
            is_stranger: false,
        },
        false => Terms {
            mbit: STRANGER.mbit.map(|most| most.min(mbit)),
            ..STRANGER
        },
    })
}

/// Whether those whom this node serves are known to it one by one: a member is, and whom the configuration names.
fn is_known(serve: &Serve, is_member: bool) -> bool {
    is_member || matches!(serve, Serve::Only(_))
}

/// Whether the peer is a member of a subnet here.
fn is_member(mesh: &Mesh, peer: PeerId) -> bool {
    mesh.node.view().load().members().contains(&peer)
}

/// A question of `/byway/relay/1`. It is paid for before it is read.
pub(in crate::service) fn arrived(
    mesh: &Mesh,
    payer: Payer,
    peer: PeerId,
    body: &[u8],
    responder: Responder,
) {
    if !mesh.relays.pays(payer, peer, Instant::now()) {
        mesh.links.relay().refuse_unread();
        return mesh
            .table
            .refuse(peer, Protocol::Relay, "too many questions to a relay");
    }
    match crate::codec::decode(body) {
        Ok(request) => {
            responder.respond(crate::codec::encode(&answer(mesh, payer, peer, &request)))
        }
        Err(_) => mesh
            .table
            .refuse(peer, Protocol::Relay, "a malformed question to a relay"),
    }
}

fn answer(mesh: &Mesh, payer: Payer, asker: PeerId, request: &RelayRequest) -> RelayAnswer {
    let relay = mesh.links.relay();
    let peer = match request {
        RelayRequest::Allocate { peer } => *peer,
        RelayRequest::Release { index } => {
            relay.release(asker, *index);
            return RelayAnswer::Released;
        }
    };
    let config = mesh.config();
    let whom = serve(&config);
    let is_member = is_member(mesh, asker);
    let refused = |why| {
        relay.refuse(why);
        Err(why)
    };
    let made = match terms(&config, &whom, &asker, is_member) {
        None => refused(Refusal::NotServed),
        Some(_) if !mesh.links.takes_clients() => refused(Refusal::NoPort),
        Some(terms) => {
            let source = source(payer);
            let asker = Asker {
                peer: asker,
                source,
            };
            relay.allocate(asker, peer, terms)
        }
    };
    match made {
        Ok((mine, theirs)) => {
            tracing::debug!(%asker, %peer, "relayed session");
            RelayAnswer::Allocated {
                mine,
                theirs,
                addresses: own_addresses(mesh, &config),
            }
        }
        Err(refusal) => {
            tracing::debug!(%asker, %peer, %refusal, "relayed session refused");
            RelayAnswer::Refused(refusal)
        }
    }
}

/// Where somebody comes from, for who is no member.
pub(super) fn source(payer: Payer) -> Option<Source> {
    match payer {
        Payer::Source(source) => Some(source),
        Payer::Member(_) | Payer::Inside => None,
    }
}

/// Where this node takes datagrams: what its owner says, then what libp2p found.
fn own_addresses(mesh: &Mesh, config: &Config) -> Vec<SocketAddr> {
    let said = config.advertise.iter().filter_map(|text| text.parse().ok());
    let said = said.chain(mesh.mapped());
    let mut all: Vec<SocketAddr> = said.filter_map(|address| endpoint(&address)).collect();
    all.extend(mesh.relays.lock().listening.iter());
    let mut seen = BTreeSet::new();
    all.retain(|address| seen.insert(*address));
    all.truncate(MAX_ADDRESSES);
    all
}

/// Holds relayed sessions to what their askers may use now: the configuration or the members have changed. Those of who is
/// served no more end, and so does what is idle.
pub(in crate::service) fn follow(mesh: &Mesh) {
    let config = mesh.config();
    let whom = serve(&config);
    let members = mesh.node.view().load().members();
    mesh.links.relay().retain(config.relay_mbit(), |asker| {
        terms(&config, &whom, &asker, members.contains(&asker))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelayOffer;

    #[test]
    fn a_stranger_gets_little_a_member_the_rate_and_a_named_peer_too() {
        let (config, peer) = (Config::defaults("a"), PeerId([7; 32]));
        let of = |serve: &Serve, is_member| terms(&config, serve, &peer, is_member);
        assert_eq!(of(&Serve::Nobody, true), None);
        assert_eq!(of(&Serve::Members, false), None);
        let member = Terms {
            sessions: SESSIONS,
            mbit: config.relay_mbit(),
            is_stranger: false,
        };
        assert_eq!(of(&Serve::Members, true), Some(member));
        assert_eq!(of(&Serve::Anyone, true), Some(member));
        assert_eq!(of(&Serve::Anyone, false), Some(STRANGER));
        assert_eq!(of(&Serve::Only([peer].into()), false), Some(member));
        assert_eq!(of(&Serve::Only(BTreeSet::new()), true), None);
        let mut never = config.clone();
        never.relay.offer = RelayOffer::Never;
        assert_eq!(terms(&never, &Serve::Anyone, &peer, true), None);
    }
}
