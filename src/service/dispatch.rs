//! What happens at the peers: connections, streams, strangers' requests.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::records::tell;
use super::{Mesh, clock, inbox, sessions};
use crate::link::{Key, Via};
use crate::model::id::PeerId;
use crate::model::source::{Meter, Payer, Source};
use crate::node::JoinDecision;
use crate::p2p::{Address, Class, Command, Event, Heard, Protocol, Responder, Typed};
use crate::wire::control::{self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest};

/// Between two looks at where members are, and at subnets that have nobody connected.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What join requests are counted by.
const MINUTE: Duration = Duration::from_secs(60);
/// Who asks to join that is remembered; with more the oldest counts are forgotten.
const ASKERS: usize = 4096;
/// Join requests a member may pass on to us in a minute: ten who wait repeat theirs each second.
const FORWARDED: u32 = 600;
/// Join requests of one source that we pass on in a minute, so that no stranger spends all that we may.
const PASSED_ON: u32 = 150;
/// Peers seen on the local networks that are remembered: anybody can claim anything there, the newest are believed.
const NEIGHBOURS: usize = 256;
/// How long a member who may decide is waited for before the next one is asked too.
const PATIENCE: Duration = Duration::from_millis(500);
/// Members remembered with the time they went.
const GONE: usize = 4096;

/// Who is there, as far as events told.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    connected: BTreeMap<PeerId, BTreeMap<u64, Class>>,
    /// Oldest first.
    neighbours: VecDeque<(PeerId, Vec<Heard>)>,
    /// Since when (seconds since 1970) a member is gone.
    gone: BTreeMap<PeerId, u64>,
    /// Join requests, by who sent them.
    asked: Meter,
    /// Join requests that we passed on, by who sent them.
    passed_on: Meter,
    refused: u64,
}

impl Default for Inner {
    fn default() -> Self {
        Inner {
            connected: BTreeMap::new(),
            neighbours: VecDeque::new(),
            gone: BTreeMap::new(),
            asked: Meter::new(MINUTE, ASKERS),
            passed_on: Meter::new(MINUTE, ASKERS),
            refused: 0,
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, peer: PeerId, connection: u64, class: Class) {
        let mut inner = self.lock();
        inner.connected.entry(peer).or_default().insert(connection, class);
        if class == Class::Member {
            inner.gone.remove(&peer);
        }
    }

    fn left(&self, peer: PeerId, connection: u64, remaining: usize) {
        let mut inner = self.lock();
        let held = inner.connected.get_mut(&peer);
        let (class, others) = held.map_or((None, false), |held| {
            (held.remove(&connection), held.values().any(|class| *class == Class::Member))
        });
        if remaining == 0 {
            inner.connected.remove(&peer);
        }
        // Of strangers nobody asks, and there may be any number of them. Who removed this node, or was removed, may stay
        // connected as one for a while: as a member it is gone.
        if class == Some(Class::Member) && (remaining == 0 || !others) {
            inner.gone.insert(peer, crate::node::unix_now());
            if inner.gone.len() > GONE
                && let Some(oldest) = inner.gone.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer)
            {
                inner.gone.remove(&oldest);
            }
        }
    }

    fn seen(&self, peer: PeerId, addresses: &[Heard]) {
        let mut inner = self.lock();
        inner.neighbours.retain(|(known, _)| *known != peer);
        inner.neighbours.push_back((peer, addresses.to_vec()));
        if inner.neighbours.len() > NEIGHBOURS {
            inner.neighbours.pop_front();
        }
    }

    /// Whether a peer was connected before, as far as that is remembered.
    pub(crate) fn has_met(&self, peer: PeerId) -> bool {
        let inner = self.lock();
        inner.gone.contains_key(&peer) || inner.connected.contains_key(&peer)
    }

    /// Everybody connected, members and strangers.
    pub(crate) fn connected(&self) -> Vec<PeerId> {
        self.lock().connected.keys().copied().collect()
    }

    /// Those connected as members, in order.
    pub(crate) fn members(&self) -> Vec<PeerId> {
        let inner = self.lock();
        let member = |c: &&BTreeMap<u64, Class>| c.values().any(|class| *class == Class::Member);
        inner.connected.iter().filter(|(_, c)| member(c)).map(|(p, _)| *p).collect()
    }

    /// Whether a peer is connected as a member.
    pub(crate) fn is_member(&self, peer: PeerId) -> bool {
        self.lock().connected.get(&peer).is_some_and(|held| held.values().any(|class| *class == Class::Member))
    }

    /// Peers seen on the local networks and where.
    pub(crate) fn neighbours(&self) -> Vec<(PeerId, Vec<Heard>)> {
        self.lock().neighbours.iter().cloned().collect()
    }

    /// Since when (seconds since 1970) a peer is gone.
    pub(crate) fn gone_since(&self, peer: PeerId) -> Option<u64> {
        self.lock().gone.get(&peer).copied()
    }

    /// Whether one more join request of `payer` is within its rate.
    fn may_ask(&self, payer: Payer, per_minute: u32) -> bool {
        self.lock().asked.allows(payer, per_minute, Instant::now())
    }

    /// Whether one more join request of `payer` may be passed on at our expense.
    fn may_pass_on(&self, payer: Payer) -> bool {
        self.lock().passed_on.allows(payer, PASSED_ON, Instant::now())
    }

    /// Counts a request that was malformed or over its rate.
    pub(crate) fn refuse(&self, peer: PeerId, protocol: Protocol, why: &'static str) {
        let mut inner = self.lock();
        inner.refused = inner.refused.saturating_add(1);
        // Every power of two: a flood does not fill the log.
        if inner.refused.is_power_of_two() {
            tracing::warn!(%peer, protocol = protocol.as_str(), total = inner.refused, "{why}");
        }
    }

    /// Requests refused since the start because they were malformed or over their rate.
    pub(crate) fn refused(&self) -> u64 {
        self.lock().refused
    }
}

/// Follows the events of the peers' task.
pub(crate) async fn run(
    mesh: Arc<Mesh>,
    mut events: mpsc::Receiver<Event>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                on_event(&mesh, event).await?;
            }
            _ = look.tick() => {
                tell_whereabouts(&mesh).await?;
                dial_hints(&mesh).await?;
            }
        }
    }
}

async fn on_event(mesh: &Arc<Mesh>, event: Event) -> anyhow::Result<()> {
    match event {
        Event::Connected { peer, connection, class, transport, remote, outbound } => {
            tracing::debug!(%peer, connection, ?class, transport, remote, "connected");
            mesh.table.arrived(peer, connection, class);
            if class == Class::Member {
                if outbound && Heard::parse(&remote).is_some() {
                    mesh.node.note_reached(peer, remote).await?;
                }
                mesh.spawn(tell::with_peer(Arc::clone(mesh), peer));
                mesh.spawn(clock::compare(Arc::clone(mesh), peer));
                mesh.spawn(sessions::connected(Arc::clone(mesh), peer));
            }
            mesh.joins.hurry();
        }
        Event::Closed { peer, connection, remaining } => {
            mesh.links.drop_connection(peer, connection);
            mesh.table.left(peer, connection, remaining);
            if let Some(direct) = mesh.direct.as_ref().filter(|_| remaining == 0) {
                direct.closed(peer).await;
            }
        }
        Event::StreamOut { peer, connection, subnet, transport, remote, stream } => {
            let via = Via { transport, remote };
            mesh.datapath.carry_out(Key { subnet, peer }, connection, via, stream);
        }
        Event::StreamIn { peer, connection, subnet, stream } => {
            mesh.datapath.carry_in(Key { subnet, peer }, connection, stream);
        }
        Event::Asked { peer, class, protocol: Protocol::Join, remote_ip, body, responder, .. } => {
            let payer = payer_of(peer, class, remote_ip);
            if mesh.table.may_ask(payer, mesh.config().limits.joins_per_minute) {
                mesh.spawn(on_join(Arc::clone(mesh), peer, payer, body, responder));
            } else {
                let message = "too many requests from this address; wait a minute".to_owned();
                mesh.table.refuse(peer, Protocol::Join, "too many join requests from one source");
                responder.respond(control::encode(&JoinAnswer::Refused { code: "E-RATE".into(), message }));
            }
        }
        Event::Asked { peer, protocol: Protocol::Control, body, responder, .. } => {
            inbox::arrived(mesh, peer, body, responder);
        }
        Event::Asked { peer, protocol: Protocol::Service, body, responder, .. } => {
            inbox::service_arrived(mesh, peer, body, responder);
        }
        Event::Discovered { peer, addresses } => {
            mesh.table.seen(peer, &addresses);
            let member = mesh.node.view().load().members().contains(&peer);
            if member {
                sessions::found(mesh, peer, &addresses).await;
            }
            mesh.joins.hurry();
        }
        Event::Listening { addresses } => {
            sessions::listening(mesh, &addresses).await;
            let mut endpoints: Vec<String> = mesh.config().advertise.clone();
            endpoints.extend(addresses.iter().map(ToString::to_string));
            if let Err(error) = mesh.node.set_endpoints(endpoints).await {
                tracing::warn!(%error, "publish this node's addresses");
            }
        }
        Event::Observed { address, .. } => sessions::observed(mesh, &address).await,
        Event::Rtt { .. } => {}
    }
    Ok(())
}

/// Who is charged for a request: a member, wherever it is; else where the connection came from.
fn payer_of(peer: PeerId, class: Class, remote: Option<IpAddr>) -> Payer {
    match (class, remote) {
        (Class::Member, _) => Payer::Member(peer),
        (Class::Stranger, Some(address)) => Payer::Source(Source::of(address)),
        (Class::Stranger, None) => Payer::Inside,
    }
}

/// A stranger's request, or a member's about joining.
async fn on_join(mesh: Arc<Mesh>, peer: PeerId, payer: Payer, body: Vec<u8>, responder: Responder) {
    let Ok(request) = control::decode::<JoinRequest>(&body) else {
        return mesh.table.refuse(peer, Protocol::Join, "a malformed request");
    };
    if let Some(answer) = decide(&mesh, peer, payer, request, false).await {
        responder.respond(control::encode(&answer));
    }
}

/// Decides about a request of the join protocol in the turn of who pays for it. Signatures are checked before that.
pub(crate) async fn decide(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    payer: Payer,
    request: JoinRequest,
    passed_on: bool,
) -> Option<JoinAnswer> {
    let refused = |code: &str, message: String| Some(JoinAnswer::Refused { code: code.to_owned(), message });
    // The member pays for whom it passes on.
    if passed_on && !mesh.table.may_ask(Payer::Member(peer), FORWARDED) {
        mesh.table.refuse(peer, Protocol::Join, "too many join requests passed on by one member");
        return Some(crowded());
    }
    let question = match mesh.node.checker().question(request.clone()).await {
        Ok(question) => question,
        Err(error) => return refused(error.code.as_str(), error.message),
    };
    match mesh.node.decide_join(peer, payer, question, passed_on).await {
        Ok(JoinDecision::Answer(answer)) => Some(answer),
        Ok(JoinDecision::Forward(_)) if !mesh.table.may_pass_on(payer) => Some(crowded()),
        Ok(JoinDecision::Forward(deciders)) => Some(forward(mesh, deciders, request).await),
        Err(error) if error.code == "E-BUSY" => {
            mesh.table.refuse(peer, Protocol::Join, "too many join requests of one source wait");
            refused("E-RATE", "too many requests from this address wait; try again".to_owned())
        }
        Err(error) if error.code == "E-STOPPING" => None,
        Err(error) => Some(JoinAnswer::Refused { code: error.code, message: error.message }),
    }
}

fn crowded() -> JoinAnswer {
    let message = "too many requests are passed on here; wait a minute, or ask another member".to_owned();
    JoinAnswer::Refused { code: "E-RATE".into(), message }
}

/// Passes a stranger's request on to whoever may decide and is connected; the first who answers decides.
///
/// One who does not answer holds the stranger up for [`PATIENCE`] only: then the next is asked beside.
async fn forward(mesh: &Arc<Mesh>, deciders: Vec<PeerId>, request: JoinRequest) -> JoinAnswer {
    let connected = mesh.table.members();
    let body = control::encode(&ControlRequest::Forward(request));
    let ask = |decider| {
        let body = body.clone();
        async move {
            let answer = mesh.peers.ask(decider, Protocol::Control, body, Duration::from_secs(5)).await.ok()?;
            match control::decode(&answer).ok()? {
                ControlAnswer::Forwarded(answer) => Some(answer),
                _ => None,
            }
        }
    };
    let connected = deciders.into_iter().filter(|decider| connected.contains(decider));
    first_answer(connected.map(ask), PATIENCE).await.unwrap_or(JoinAnswer::Pending { reached: false })
}

/// The first answer of several questions; each is begun when all before it failed, or did not answer within `patience`.
async fn first_answer<F, T>(questions: impl Iterator<Item = F>, patience: Duration) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let mut questions = questions.fuse();
    let mut asked = FuturesUnordered::new();
    loop {
        let more = match questions.next() {
            Some(question) => {
                asked.push(question);
                true
            }
            None => false,
        };
        let next = async {
            if more {
                tokio::time::sleep(patience).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(next);
        // Until the next one's turn, or there is nobody left to wait for.
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Some(answer)) => return Some(answer),
                    Some(None) => {}
                    None if more => break,
                    None => return None,
                },
                () = &mut next => break,
            }
        }
    }
}

/// Peers that have packets and no stream are dialled.
pub(crate) async fn follow_wanted(
    mesh: Arc<Mesh>,
    mut wanted: mpsc::Receiver<Key>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            key = wanted.recv() => {
                let Some(key) = key else { return Ok(()) };
                mesh.peers.send(Command::Wanted { peer: key.peer }).await?;
            }
        }
    }
}

/// Tells where members are by their documents: places for handshakes are kept for these addresses, also when this daemon
/// has just been started and has seen nobody yet.
async fn tell_whereabouts(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let members = mesh.node.view().load().members();
    let documents = mesh.node.member_endpoints().await?;
    let addresses = |peer: &PeerId| {
        let texts = documents.get(peer).into_iter().flatten();
        texts.filter_map(|text| text.parse::<Address>().ok()?.ip()).collect::<Vec<_>>()
    };
    let told = members.iter().map(|peer| (*peer, addresses(peer))).collect();
    mesh.peers.send(Command::Whereabouts(told)).await?;
    Ok(())
}

/// Addresses given by hand are tried while a subnet has nobody connected: they may name no peer, so the address book
/// cannot hold them.
async fn dial_hints(mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let connected = mesh.table.members();
    let view = mesh.node.view().load_full();
    for (id, hints) in mesh.node.hints().await? {
        let alone =
            view.rolls.get(&id).is_some_and(|roll| !roll.is_empty() && !roll.iter().any(|m| connected.contains(m)));
        let addresses: Vec<Typed> =
            hints.iter().chain(&mesh.config().bootstrap).filter_map(|h| h.parse().ok()).collect();
        if alone && !addresses.is_empty() {
            let peers = mesh.peers.clone();
            mesh.spawn(async move {
                // Whoever answers is heard of as an event, also after this has ended.
                let _ = tokio::time::timeout(LOOK_EVERY, peers.connect(addresses, None)).await;
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_former_members_leave_a_bounded_trace() {
        let table = Table::default();
        let peer = |n: u32| {
            let mut bytes = [0; 32];
            bytes.first_chunk_mut::<4>().unwrap().copy_from_slice(&n.to_be_bytes());
            PeerId(bytes)
        };
        for n in 0..10_000 {
            let class = if n % 2 == 0 { Class::Stranger } else { Class::Member };
            table.arrived(peer(n), u64::from(n), class);
            table.left(peer(n), u64::from(n), 0);
        }
        assert!(table.connected().is_empty());
        assert!(!table.has_met(peer(0)), "a stranger is forgotten");
        assert!(table.has_met(peer(9_999)));
        assert!(table.lock().gone.len() <= GONE);
    }

    #[test]
    fn a_member_that_stays_connected_as_a_stranger_is_gone_since_it_was_none_any_more() {
        let (table, peer) = (Table::default(), PeerId([1; 32]));
        table.arrived(peer, 1, Class::Member);
        table.arrived(peer, 2, Class::Member);
        table.left(peer, 1, 1);
        assert_eq!(table.gone_since(peer), None, "another connection of a member is there");
        table.arrived(peer, 3, Class::Stranger);
        table.left(peer, 2, 1);
        let gone = table.gone_since(peer);
        assert!(gone.is_some());
        table.left(peer, 3, 0);
        assert_eq!(table.gone_since(peer), gone);
        table.arrived(peer, 4, Class::Stranger);
        assert_eq!(table.gone_since(peer), gone, "a stranger's connection brings no member back");
        table.arrived(peer, 5, Class::Member);
        assert_eq!(table.gone_since(peer), None);
    }

    #[tokio::test]
    async fn one_who_does_not_answer_holds_a_stranger_up_for_a_moment_only() {
        let (brief, forever) = (Duration::from_millis(5), Duration::from_secs(3600));
        let ask = |answer: Option<Option<u8>>| async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        };
        let silent = [None, None, Some(Some(3))];
        assert_eq!(first_answer(silent.into_iter().map(ask), brief).await, Some(3));
        // Who fails is not waited for at all.
        let failing = [Some(None), Some(Some(2)), Some(Some(3))];
        assert_eq!(first_answer(failing.into_iter().map(ask), forever).await, Some(2));
        assert_eq!(first_answer([Some(None), Some(None)].into_iter().map(ask), forever).await, None);
        assert_eq!(first_answer([].into_iter().map(ask), forever).await, None);
    }
}
