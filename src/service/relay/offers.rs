//! What members tell each other of relays: whether each forwards for the other, and how far it is from relays.
//!
//! Each asks the other on connect, and again when what it says has changed; the answer is the same of the answerer. The
//! question is one of `/byway/service/1`, whose limits hold. What a member says is no more than a preference: a relay that
//! does not do what was said of it fails, and is asked more and more rarely.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;

use super::homes::Homes;
use super::{Relays, State, terms};
use crate::config::{Config, RelayFor, RelayOffer};
use crate::model::id::PeerId;
use crate::model::notice::{Home, MAX_ADDRESSES, MAX_HOMES, MAX_MBIT, RelayNotice, Stance};
use crate::p2p::{Address, Command};
use crate::service::settings::{self, serve};
use crate::service::{Handler, Mesh, Method, Unanswered};
use crate::wire::relay::{MAX_RELAYING, MAX_WAYS, Offer, Relaying, Way};
use crate::wire::service::{ServiceCode, kind};

/// What `relay ls` shows of a relay that only records tell of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfRecords {
    /// The relay: a member, or one that keeps a place for members.
    pub relay: PeerId,
    /// The Mbit/s that a member offers; none of a relay that is no member.
    pub mbit: Option<u32>,
    /// The members whose records name it; none of a member, which speaks for itself.
    pub named_by: Vec<PeerId>,
}

/// The most relays of records that are shown.
const SHOWN: usize = 128;
/// Milliseconds by which a round trip to a relay has to be another one, beside a quarter of it, for members to be told.
const APART: u16 = 10;
/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// A member that forwards for this node, as `relay ls` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// The member.
    pub relay: PeerId,
    /// What it says.
    pub offer: Offer,
    /// The round trip to it; none before it was measured.
    pub rtt: Option<Duration>,
}

impl State {
    /// How far this node is from the relays it knows, the nearest first.
    fn ways(&self) -> Vec<Way> {
        let offers = self.heard.iter().filter(|(_, said)| said.offer.is_some());
        let relays = self.reserved.iter().chain(offers.map(|(relay, _)| relay));
        let mut ways: Vec<Way> = relays
            .filter_map(|relay| {
                let rtt_ms = u16::try_from(self.trips.of(*relay)?.as_millis()).unwrap_or(u16::MAX);
                Some(Way {
                    relay: *relay,
                    rtt_ms,
                })
            })
            .collect();
        ways.sort_by_key(|way| (way.rtt_ms, way.relay));
        ways.dedup();
        ways.truncate(MAX_WAYS);
        ways
    }

    /// Takes what a member says; what it said before counts no more.
    fn hear(&mut self, member: PeerId, mut said: Relaying) {
        said.ways.truncate(MAX_WAYS);
        self.heard.insert(member, said);
    }
}

impl Relays {
    /// What this node says to a member.
    fn saying(&self, member: PeerId) -> Relaying {
        let config = self.config.borrow().clone();
        let terms = terms(&config, &serve(&config), &member, true);
        let served = terms.filter(|_| self.links.takes_clients());
        let offer = served.and_then(|terms| terms.mbit).map(|mbit| Offer {
            mbit,
            is_offered: config.relay.offer == RelayOffer::Always,
            load: self.links.relay().load(),
        });
        Relaying {
            offer,
            ways: self.lock().ways(),
        }
    }

    /// What this node's records are to say: whether its owner offers to forward, and which relays keep a place for it.
    fn notice(&self, members: &BTreeSet<PeerId>, now: Instant) -> RelayNotice {
        let config = self.config.borrow().clone();
        let stance = stance(&config, self.links.takes_clients());
        let named = settings::meeting(&config);
        let named: BTreeSet<PeerId> = named.iter().filter_map(|t| t.address().peer()).collect();
        let mut state = self.lock();
        let State { homes, kept, .. } = &mut *state;
        let homes = homes.as_mut().map_or(Vec::new(), |homes| {
            let may_name = |relay: &PeerId| named.contains(relay) && !members.contains(relay);
            homes.look(kept, may_name, now).to_vec()
        });
        RelayNotice { stance, homes }
    }

    /// The relays that records tell of: members that offer to forward and have not said so over a connection, and those
    /// that keep a place for members.
    pub(crate) fn of_records(&self) -> Vec<OfRecords> {
        let state = self.lock();
        let mut homes: BTreeMap<PeerId, Vec<PeerId>> = BTreeMap::new();
        let mut all = Vec::new();
        for (member, notice) in state.noted.said.iter() {
            if let (Stance::Offers(mbit), None) = (notice.stance, state.heard.get(member)) {
                all.push(OfRecords {
                    relay: *member,
                    mbit: Some(mbit),
                    named_by: Vec::new(),
                });
            }
            for home in &notice.homes {
                homes.entry(home.relay).or_default().push(*member);
            }
        }
        all.extend(homes.into_iter().map(|(relay, named_by)| OfRecords {
            relay,
            mbit: None,
            named_by,
        }));
        all.truncate(SHOWN);
        all
    }

    /// The members that forward for this node.
    pub(crate) fn known(&self) -> Vec<Known> {
        let state = self.lock();
        let offers = state.heard.iter();
        let known = offers.filter_map(|(relay, said)| {
            Some(Known {
                relay: *relay,
                offer: said.offer?,
                rtt: state.trips.of(*relay),
            })
        });
        known.collect()
    }

    /// A ping of a connection came back. What comes back through another relay says nothing of the way to the peer itself.
    pub(in crate::service) fn measured(&self, peer: PeerId, connection: u64, rtt: Duration) {
        let mut state = self.lock();
        if !state.circuits.contains(&connection) {
            state.trips.measured(peer, rtt, Instant::now());
        }
    }

    /// A connection is there; `relayed` where it runs through a relay.
    pub(in crate::service) fn connected(&self, connection: u64, relayed: bool) {
        if relayed {
            self.lock().circuits.insert(connection);
        }
    }

    /// A connection is closed.
    pub(in crate::service) fn closed(&self, connection: u64) {
        self.lock().circuits.remove(&connection);
    }
}

/// Whether this node's records say that it forwards. Where only some may use it, each is told over its connection.
fn stance(config: &Config, has_port: bool) -> Stance {
    let is_for_all = !matches!(config.relay.for_whom, RelayFor::Peers(_));
    match (config.relay.offer, config.relay_mbit()) {
        (RelayOffer::Never, _) | (_, None) => Stance::Never,
        (RelayOffer::Always, Some(mbit)) if has_port && is_for_all => {
            Stance::Offers(mbit.clamp(1, MAX_MBIT))
        }
        (RelayOffer::Auto | RelayOffer::Always, Some(_)) => Stance::Unsaid,
    }
}

/// The relays through which an announcement says that its member is reached now: a notice names them a minute later.
fn homes_in(endpoints: &[String]) -> Vec<Home> {
    let mut homes: Vec<Home> = Vec::new();
    for address in endpoints.iter().filter_map(|e| e.parse::<Address>().ok()) {
        let (Some(relay), Some(hop)) = (address.relay(), address.hop()) else {
            continue;
        };
        let hop = hop.to_string();
        let has_room = homes.len() < MAX_HOMES;
        match homes.iter_mut().find(|home| home.relay == relay) {
            Some(home) if home.addresses.len() < MAX_ADDRESSES => home.addresses.push(hop),
            None if has_room => homes.push(Home {
                relay,
                addresses: vec![hop],
            }),
            _ => {}
        }
    }
    homes
}

/// Keeps true what this node's records say of relays.
pub(in crate::service) async fn keep_record(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let is_new = mesh.relays.lock().homes.is_none();
    if is_new {
        let said = mesh.node.own_notice().await?;
        mesh.relays.lock().homes = Some(Homes::new(said.homes, Instant::now()));
    }
    let members = mesh.node.view().load().members();
    let notice = mesh.relays.notice(&members, Instant::now());
    if let Err(error) = mesh.node.set_notice(notice).await {
        tracing::warn!(%error, "publish what this node says of relays");
    }
    Ok(())
}

/// Takes what the records of others say of relays. It is worth while only where there is another View than before.
pub(in crate::service) async fn follow_records(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let members = mesh.node.view().load().members();
    let mut noted = mesh.node.notices().await?;
    let said = Arc::make_mut(&mut noted.said);
    for (peer, endpoints) in mesh.node.member_endpoints().await? {
        let homes = homes_in(&endpoints);
        if !homes.is_empty() {
            said.entry(peer).or_default().add(homes);
        }
    }
    let me = mesh.peers.peer();
    said.retain(|peer, _| members.contains(peer) && *peer != me);
    let news = {
        let mut state = mesh.relays.lock();
        if state.noted.malformed != noted.malformed && noted.malformed > 0 {
            tracing::warn!(
                members = noted.malformed,
                "records that say of relays what nobody may: left out"
            );
        }
        state.noted.malformed = noted.malformed;
        (state.noted.said != noted.said).then(|| {
            state.noted.said = noted.said;
            Arc::clone(&state.noted.said)
        })
    };
    if let Some(said) = news {
        mesh.peers.send(Command::Noted(said)).await?;
    }
    Ok(())
}

/// Answers what members ask, and learns from their questions as well.
pub(in crate::service) fn method(relays: &Arc<Relays>) -> Method<Handler> {
    let relays = Arc::clone(relays);
    let handler: Handler = Box::new(move |call| {
        let answer = crate::codec::decode(&call.body).map(|said| {
            relays.lock().hear(call.peer, said);
            crate::codec::encode(&relays.saying(call.peer))
        });
        async move { answer.map_err(|_| ServiceCode::Invalid.into()) }.boxed()
    });
    Method {
        name: "relays",
        cost: 1,
        most: MAX_RELAYING,
        handler,
    }
}

/// Tells a member, and asks the same.
pub(in crate::service) async fn tell(mesh: Arc<Mesh>, member: PeerId) {
    let saying = mesh.relays.saying(member);
    let body = crate::codec::encode(&saying);
    let answer = mesh
        .service
        .ask(member, kind::RELAYS, None, body, QUESTION_TIMEOUT)
        .await;
    match answer.map(|body| crate::codec::decode(&body)) {
        Ok(Ok(said)) => {
            let mut state = mesh.relays.lock();
            state.hear(member, said);
            state.told.insert(member, saying);
        }
        // A version that does not know of it: it is not asked again before something has changed.
        Ok(Err(_)) | Err(Unanswered::Refused(_)) => {
            mesh.relays.lock().told.insert(member, saying);
        }
        Err(error) => tracing::debug!(peer = %member, %error, "relays: no answer"),
    }
}

/// Whether what is to be said differs from what was said by more than round trips ever do. Without that bound each idle
/// connection would carry a question about every half minute.
fn is_news(told: &Relaying, saying: &Relaying) -> bool {
    let former: BTreeMap<PeerId, u16> = told.ways.iter().map(|w| (w.relay, w.rtt_ms)).collect();
    let is_other = |way: &Way| {
        former.get(&way.relay).is_none_or(|was| {
            let apart = was.abs_diff(way.rtt_ms);
            apart >= APART && apart >= way.rtt_ms.max(*was) / 4
        })
    };
    told.offer != saying.offer
        || former.len() != saying.ways.len()
        || saying.ways.iter().any(is_other)
}

/// Tells the connected members that were told something else, and forgets who is no member any more.
pub(in crate::service) fn tell_changes(mesh: &Arc<Mesh>) {
    let connected = mesh.table.members();
    let members = mesh.node.view().load().members();
    {
        let mut state = mesh.relays.lock();
        let State {
            heard,
            told,
            trips,
            reserved,
            ..
        } = &mut *state;
        heard.retain(|peer, _| members.contains(peer));
        told.retain(|peer, _| connected.contains(peer));
        trips.retain(|peer| connected.contains(&peer) || reserved.contains(&peer));
    }
    // The others are told when they are connected.
    for member in connected.into_iter().filter(|peer| mesh.is_in_use(*peer)) {
        let saying = mesh.relays.saying(member);
        let is_due = |told: &Relaying| is_news(told, &saying);
        if mesh.relays.lock().told.get(&member).is_none_or(is_due) {
            mesh.spawn(tell(Arc::clone(mesh), member));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saying(ways: &[(u8, u16)]) -> Relaying {
        let way = |(relay, rtt_ms): &(u8, u16)| Way {
            relay: PeerId([*relay; 32]),
            rtt_ms: *rtt_ms,
        };
        Relaying {
            offer: None,
            ways: ways.iter().map(way).collect(),
        }
    }

    #[test]
    fn a_round_trip_that_differs_a_little_is_told_to_nobody() {
        let told = saying(&[(1, 20), (2, 200)]);
        let is_news = |ways: &[(u8, u16)]| super::is_news(&told, &saying(ways));
        assert!(!is_news(&[(1, 20), (2, 200)]));
        // The nearest is the first; which it is may change with every ping.
        assert!(!is_news(&[(2, 200), (1, 29)]));
        assert!(!is_news(&[(1, 11), (2, 240)]));
        assert!(is_news(&[(1, 30), (2, 200)]));
        assert!(is_news(&[(1, 20), (2, 150)]));
        assert!(is_news(&[(1, 20)]), "one is gone");
        assert!(is_news(&[(1, 20), (3, 200)]), "one is another");
        assert!(is_news(&[(1, 20), (2, 200), (3, 9)]), "one is new");
        let offer = Offer {
            mbit: 50,
            is_offered: true,
            load: 0,
        };
        let offers = Relaying {
            offer: Some(offer),
            ..told.clone()
        };
        assert!(super::is_news(&told, &offers));
    }
}
