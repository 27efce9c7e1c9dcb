//! Relays of sealed datagrams: sessions that others ask for here, and legs that this node asks for to reach a peer.
//!
//! Of two peers the one with the smaller peer ID asks a relay for a session ([`wire::relay`](crate::wire::relay)), and tells
//! the other its leg over their control stream; each binds its own. Two relays are asked where there are two, of those that
//! their connection runs through, that keep a place for this node, and members that are connected: `choice` orders them by what
//! both ends measured, `offers` brings what members say, and `asking` leaves out for a while who failed. `serving` answers what
//! others ask of this node as a relay.
//!
//! Limits: what each peer may use is in [`Terms`](crate::relay::Terms); the questions and the calls of each peer have a bucket, and so have the
//! questions from each address; the legs to one peer are bounded. The addresses in a call may be invented by the member that
//! makes it: only those that datagrams may be sent to are tried, at most [`MAX_TRIED`](crate::relay::MAX_TRIED) of them.

mod asking;
mod choice;
mod homes;
pub(crate) mod offers;
mod serving;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use self::asking::Asking;
use self::choice::{Candidate, Moves, RoundTrips};
use self::homes::Homes;
pub(super) use self::serving::{arrived, follow};
use self::serving::{source, terms};
use super::Mesh;
use super::sessions::endpoint;
use crate::config::Config;
use crate::limit::{Buckets, Limit};
use crate::link::Links;
use crate::link::direct::{Call, LegOver};
use crate::model::id::PeerId;
use crate::model::notice::Notices;
use crate::model::source::{Payer, Source};
use crate::p2p::{self, Address, Protocol};
use crate::wire::control::{self, ControlAnswer, ControlRequest};
use crate::wire::relay::{MAX_ADDRESSES, RelayAnswer, RelayRequest, Relaying, Ticket};

/// Relays by which a peer is reached at once: one is used, the other is there when it goes.
const RELAYS: usize = 2;
/// Relays that are asked in one go.
const TRIES: usize = 6;
/// How long a question to a relay or a call may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// A call that was not taken is made again after these.
const CALL_AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// Questions that one peer may ask at once, and a second after that.
const ASKED: Limit = Limit::new(32, 2);
/// Calls that one member may make at once, and a second after that.
const CALLED: Limit = Limit::new(8, 1);
/// The same of one address, IPv6 /64 or relay, for those that come from there and are no members: a site of fifty nodes may
/// lose its relay at once.
const ASKED_FROM: Limit = Limit::new(256, 8);
/// How many peers' buckets are remembered, and those of how many addresses.
const PEERS: usize = 4096;

/// What this node knows of relays.
#[derive(Debug)]
pub(crate) struct Relays {
    state: Mutex<State>,
    config: watch::Receiver<Arc<Config>>,
    links: Links,
}

#[derive(Debug)]
struct State {
    /// The relay that a connection to a peer runs through, or ran last.
    through: BTreeMap<PeerId, PeerId>,
    /// Relays that keep a place for this node.
    reserved: BTreeSet<PeerId>,
    /// Peers, and the relays by which a leg leads to them.
    legs: BTreeMap<(PeerId, PeerId), Lead>,
    /// Where this node takes datagrams, as libp2p says.
    listening: Vec<SocketAddr>,
    /// The configured relays that keep a place for this node, each with the addresses that lead to it.
    kept: BTreeMap<PeerId, Vec<String>>,
    /// Those of them that this node's records name; none before it was looked what they name.
    homes: Option<Homes>,
    /// What others' records say.
    noted: Notices,
    asked: Buckets<PeerId>,
    asked_from: Buckets<Source>,
    called: Buckets<PeerId>,
    asking: Asking,
    /// Peers to which this end asks for legs.
    calls: BTreeSet<PeerId>,
    /// What members say, and what they were told.
    heard: BTreeMap<PeerId, Relaying>,
    told: BTreeMap<PeerId, Relaying>,
    trips: RoundTrips,
    moves: Moves,
    /// Connections that run through a relay.
    circuits: BTreeSet<u64>,
}

/// What is known of a leg to a peer.
#[derive(Debug)]
enum Lead {
    /// The relay is being asked.
    Wanted,
    /// This node asked for it; the call that tells the peer of its own leg.
    Asked(ControlRequest),
    /// The peer asked for it, and called; the number of this node's leg.
    Called(u32),
}

impl Relays {
    /// Knows of none yet.
    pub(super) fn new(config: watch::Receiver<Arc<Config>>, links: Links) -> Relays {
        let state = Mutex::new(State {
            through: BTreeMap::new(),
            reserved: BTreeSet::new(),
            legs: BTreeMap::new(),
            listening: Vec::new(),
            kept: BTreeMap::new(),
            homes: None,
            noted: Notices::default(),
            asked: Buckets::new(ASKED, PEERS),
            asked_from: Buckets::new(ASKED_FROM, PEERS),
            called: Buckets::new(CALLED, PEERS),
            asking: Asking::default(),
            calls: BTreeSet::new(),
            heard: BTreeMap::new(),
            told: BTreeMap::new(),
            trips: RoundTrips::default(),
            moves: Moves::default(),
            circuits: BTreeSet::new(),
        });
        Relays {
            state,
            config,
            links,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A relay keeps a place for this node. Gives the peers to which a leg leads by another relay alone.
    fn reserve(&self, relay: PeerId) -> Vec<PeerId> {
        let mut state = self.lock();
        state.reserved.insert(relay);
        state.asking.works(relay);
        let mut peers: BTreeMap<PeerId, usize> = BTreeMap::new();
        for (peer, by) in state.legs.keys() {
            let relays = peers.entry(*peer).or_default();
            *relays += if *by == relay { RELAYS } else { 1 };
        }
        let few = peers.into_iter().filter(|(_, relays)| *relays < RELAYS);
        few.map(|(peer, _)| peer).collect()
    }

    /// The relays by which legs lead to these peers.
    pub(super) fn leads(&self, peers: &[PeerId]) -> Vec<PeerId> {
        let state = self.lock();
        let leads = peers.iter().flat_map(|peer| state.to(*peer));
        leads.map(|(relay, _)| relay).collect()
    }

    /// A relay keeps no place for this node any more.
    pub(super) fn unreserved(&self, relay: PeerId) {
        self.lock().reserved.remove(&relay);
    }

    /// A relay refused, did not answer, or gave a leg that nothing came of.
    fn failed(&self, relay: PeerId) {
        self.lock()
            .asking
            .failed(relay, Instant::now(), random_byte());
    }

    /// Whether a peer may ask one question more, and so may the address that it comes from.
    fn pays(&self, payer: Payer, peer: PeerId, now: Instant) -> bool {
        let mut state = self.lock();
        // Whoever makes up peer IDs is known by the address, which is asked first.
        source(payer).is_none_or(|source| state.asked_from.take(source, 1, now))
            && state.asked.take(peer, 1, now)
    }

    /// Takes the addresses that this node listens on.
    pub(super) fn listening(&self, addresses: &[Address]) {
        let mut kept: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for address in addresses {
            if let (Some(relay), Some(hop)) = (address.relay(), address.hop()) {
                kept.entry(relay).or_default().push(hop.to_string());
            }
        }
        let mut state = self.lock();
        state.listening = addresses.iter().filter_map(endpoint).collect();
        state.kept = kept;
    }
}

impl State {
    /// The relays by which a leg leads to a peer.
    fn to(&self, peer: PeerId) -> impl Iterator<Item = (PeerId, &Lead)> {
        let from_there = self.legs.range((peer, PeerId([0; 32]))..);
        let to_peer = from_there.take_while(move |((to, _), _)| *to == peer);
        to_peer.map(|((_, relay), lead)| (*relay, lead))
    }
}

fn random_byte() -> u8 {
    let mut random = [0];
    // Without randomness all wait for equally long.
    let _ = getrandom::fill(&mut random);
    let [random] = random;
    random
}

/// Holds relayed sessions to what their askers may use now, tells members what has changed, and looks for better relays.
pub(super) fn look(mesh: &Arc<Mesh>) {
    follow(mesh);
    offers::tell_changes(mesh);
    look_for_better(mesh);
}

/// A member is connected through a relay: it is to be reached by a leg there at once. It may have begun anew, and know nothing
/// of the legs that it had: it is called again by each.
pub(super) async fn connected(mesh: Arc<Mesh>, peer: PeerId, relay: PeerId) {
    let calls: Vec<(PeerId, ControlRequest)> = {
        let mut state = mesh.relays.lock();
        state.through.insert(peer, relay);
        state.asking.works(relay);
        let to_peer = state.to(peer);
        let asked = to_peer.filter_map(|(relay, lead)| match lead {
            Lead::Asked(call) => Some((relay, call.clone())),
            Lead::Wanted | Lead::Called(_) => None,
        });
        asked.collect()
    };
    for (relay, call) in calls {
        mesh.spawn(tell(Arc::clone(&mesh), peer, relay, call));
    }
    if let Some(direct) = &mesh.direct {
        direct.want_leg(peer).await;
    }
}

/// A relay keeps a place for this node: whoever is reached by one leg gets a second.
pub(super) async fn reserved(mesh: Arc<Mesh>, relay: PeerId) {
    let peers = mesh.relays.reserve(relay);
    if let Some(direct) = &mesh.direct {
        direct.rebind(relay).await;
        for peer in peers {
            direct.want_leg(peer).await;
        }
    }
}

/// A relay is named no more: datagrams go through it no more, either.
pub(super) async fn left(mesh: Arc<Mesh>, relay: PeerId) {
    if let Some(direct) = &mesh.direct {
        direct.leave(relay).await;
    }
}

/// Legs are wanted to a member that datagrams do not reach otherwise; this node is to ask for them.
pub(super) async fn call(mesh: &Arc<Mesh>, peer: PeerId) {
    mesh.relays.lock().calls.insert(peer);
    let (used, others) = candidates(mesh, peer);
    let mut have = used.len();
    for other in others {
        if have >= RELAYS {
            return;
        }
        have += usize::from(enter(mesh, peer, other.relay).await);
    }
}

/// Asks one relay for a leg to the peer, where there is none; whether there is one then.
async fn enter(mesh: &Arc<Mesh>, peer: PeerId, relay: PeerId) -> bool {
    match mesh.relays.lock().legs.entry((peer, relay)) {
        Entry::Occupied(_) => return true,
        Entry::Vacant(free) => _ = free.insert(Lead::Wanted),
    }
    if begin(mesh, peer, relay).await {
        return true;
    }
    mesh.relays.lock().legs.remove(&(peer, relay));
    mesh.relays.failed(relay);
    false
}

/// The relays that lead to a peer now, and those that may be asked to, the best first.
fn candidates(mesh: &Mesh, peer: PeerId) -> (Vec<Candidate>, Vec<Candidate>) {
    let members = mesh.table.members();
    let state = mesh.relays.lock();
    let there = state.heard.get(&peer).map(|said| said.ways.as_slice());
    let of = |relay: PeerId| {
        let said = state.heard.get(&relay).filter(|_| members.contains(&relay));
        let offer = said.and_then(|said| said.offer);
        Candidate {
            relay,
            // Of a member that has said nothing it is not known whether it offers to.
            is_last_resort: members.contains(&relay) && !offer.is_some_and(|o| o.is_offered),
            load: offer.map_or(0, |offer| offer.load),
            is_proven: state.through.get(&peer) == Some(&relay),
            here: state.trips.of(relay),
            there: there.and_then(|ways| choice::way(ways, relay)),
        }
    };
    let used: Vec<Candidate> = state.to(peer).map(|(relay, _)| of(relay)).collect();
    let refuses = |relay: &PeerId| {
        let said = state.heard.get(relay);
        said.is_some_and(|said| said.offer.is_none())
    };
    let now = Instant::now();
    let through = state.through.get(&peer).into_iter();
    let all = through.chain(&state.reserved).chain(&members);
    let others = all.filter(|relay| {
        **relay != peer
            && !refuses(relay)
            && !state.legs.contains_key(&(peer, **relay))
            && state.asking.may_ask(**relay, now)
    });
    let mut others = choice::rank(others.map(|relay| of(*relay)).collect());
    others.truncate(TRIES);
    (used, others)
}

/// Looks whether another relay has long been better than those in use: then it is used beside them, and the path follows
/// what is measured.
fn look_for_better(mesh: &Arc<Mesh>) {
    let now = Instant::now();
    let calls: Vec<PeerId> = mesh.relays.lock().calls.iter().copied().collect();
    for peer in calls {
        let (used, others) = candidates(mesh, peer);
        let best = others.first().copied();
        let mut state = mesh.relays.lock();
        if used.is_empty() {
            state.calls.remove(&peer);
        }
        if state.moves.is_due(peer, &used, best, now)
            && let Some(best) = best
        {
            drop(state);
            let (mesh, relay) = (Arc::clone(mesh), best.relay);
            let task = Arc::clone(&mesh);
            mesh.spawn(async move {
                enter(&task, peer, relay).await;
            });
        }
    }
    let mut state = mesh.relays.lock();
    let State { moves, calls, .. } = &mut *state;
    moves.retain(|peer| calls.contains(&peer));
}

/// Asks a relay for a session with the peer, and binds both ends; whether there is one.
async fn begin(mesh: &Arc<Mesh>, peer: PeerId, relay: PeerId) -> bool {
    let body = crate::codec::encode(&RelayRequest::Allocate { peer });
    let said = mesh
        .peers
        .ask(relay, Protocol::Relay, body, QUESTION_TIMEOUT)
        .await;
    let (mine, theirs, mut addresses) = match said.map(|body| crate::codec::decode(&body)) {
        Ok(Ok(RelayAnswer::Allocated {
            mine,
            theirs,
            addresses,
        })) => (mine, theirs, addresses),
        other => {
            tracing::debug!(%peer, %relay, answer = ?other, "no relayed session");
            return false;
        }
    };
    addresses.truncate(MAX_ADDRESSES);
    p2p::keep_sendable(&mut addresses);
    let (reached, addresses) = with_connection(mesh, relay, addresses).await;
    let call = ControlRequest::CallVia {
        relay,
        addresses: addresses.clone(),
        ticket: theirs,
    };
    let lead = Lead::Asked(call.clone());
    mesh.relays.lock().legs.insert((peer, relay), lead);
    let mine = Call {
        relay,
        addresses,
        reached,
        ticket: mine,
        by: relay,
    };
    mesh.spawn(keep(Arc::clone(mesh), peer, mine));
    mesh.spawn(tell(Arc::clone(mesh), peer, relay, call));
    true
}

/// Tells the peer its leg.
async fn tell(mesh: Arc<Mesh>, peer: PeerId, relay: PeerId, call: ControlRequest) {
    let body = control::encode(&call);
    let mut again = CALL_AGAIN.iter();
    loop {
        let said = mesh
            .peers
            .ask(peer, Protocol::Control, body.clone(), QUESTION_TIMEOUT)
            .await;
        match said.map(|body| control::decode(&body)) {
            Ok(Ok(ControlAnswer::Done)) => return,
            other => tracing::debug!(%peer, %relay, answer = ?other, "call not taken"),
        }
        let Some(pause) = again.next() else { return };
        tokio::time::sleep(*pause).await;
    }
}

/// A member calls over a relay.
pub(super) async fn called(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    (relay, mut addresses, ticket): (PeerId, Vec<SocketAddr>, Ticket),
) -> ControlAnswer {
    if mesh.direct.is_none() {
        return ControlAnswer::NoSession;
    }
    if !mesh.relays.lock().called.take(peer, 1, Instant::now()) {
        mesh.table
            .refuse(peer, Protocol::Control, "too many calls over relays");
        return ControlAnswer::NoSession;
    }
    let known = (peer, relay);
    let is_ours = |lead: &Lead| matches!(lead, Lead::Called(index) if *index == ticket.index);
    if mesh.relays.lock().legs.get(&known).is_some_and(is_ours) {
        // It calls again because it cannot know that.
        return ControlAnswer::Done;
    }
    addresses.truncate(MAX_ADDRESSES);
    p2p::keep_sendable(&mut addresses);
    let (reached, addresses) = with_connection(mesh, relay, addresses).await;
    let lead = Lead::Called(ticket.index);
    mesh.relays.lock().legs.insert(known, lead);
    mesh.spawn(keep(
        Arc::clone(mesh),
        peer,
        Call {
            relay,
            addresses,
            reached,
            ticket,
            // It chose the key, and may be that relay itself: all legs that it names are one voice.
            by: peer,
        },
    ));
    ControlAnswer::Done
}

/// Where our own connections reach a relay, and its addresses, first the one where a QUIC connection of ours does.
async fn with_connection(
    mesh: &Mesh,
    relay: PeerId,
    told: Vec<SocketAddr>,
) -> (Vec<IpAddr>, Vec<SocketAddr>) {
    let Ok(status) = mesh.peers.status_of(relay).await else {
        return (Vec::new(), told);
    };
    let open = status.connections.iter();
    let open: Vec<Address> = open.filter_map(|c| c.remote.parse().ok()).collect();
    let mut all: Vec<SocketAddr> = open.iter().filter_map(endpoint).collect();
    all.extend(told);
    let mut seen = BTreeSet::new();
    all.retain(|address| seen.insert(*address));
    let reached = open.iter().filter_map(Address::ip);
    (reached.map(|ip| ip.to_canonical()).collect(), all)
}

/// Binds our leg, until it is over.
async fn keep(mesh: Arc<Mesh>, peer: PeerId, call: Call) {
    let Some(direct) = &mesh.direct else { return };
    let (relay, index, since) = (call.relay, call.ticket.index, Instant::now());
    let is_its_own = call.by == relay;
    let over = direct.leg(peer, call).await;
    tracing::debug!(%peer, %relay, ?over, "leg over");
    if over == LegOver::Replaced {
        // The leg that took its place is there.
        return;
    }
    let is_there = {
        let mut state = mesh.relays.lock();
        state.legs.remove(&(peer, relay));
        let now = Instant::now();
        state
            .asking
            .leg_over(relay, (over, is_its_own), now - since, now, random_byte());
        state.reserved.contains(&relay)
    };
    if over == LegOver::Lost && is_there {
        // It has begun anew, and can lead to the peer again.
        direct.want_leg(peer).await;
    }
    if over == LegOver::Unneeded {
        let body = crate::codec::encode(&RelayRequest::Release { index });
        // Without an answer it ends by itself.
        let _ = mesh
            .peers
            .ask(relay, Protocol::Relay, body, QUESTION_TIMEOUT)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_to_a_peer_use_the_relays_by_which_legs_lead_to_it_and_no_others() {
        let (links, _wanted) = Links::new(tokio::runtime::Handle::current(), None);
        let (_config, follow) = watch::channel(Arc::new(Config::defaults("here")));
        let relays = Relays::new(follow, links);
        let [b, c, near, spare, far] = [1, 2, 3, 4, 5].map(|n| PeerId([n; 32]));
        for (peer, relay) in [(b, near), (b, spare), (c, far)] {
            relays.lock().legs.insert((peer, relay), Lead::Called(7));
        }
        assert_eq!(relays.leads(&[b]), [near, spare], "the spare leg, too");
        assert_eq!(relays.leads(&[b, c]), [near, spare, far]);
        assert!(relays.leads(&[]).is_empty(), "nothing travels");
        relays.lock().legs.remove(&(b, near));
        assert_eq!(relays.leads(&[b]), [spare]);
    }
}
