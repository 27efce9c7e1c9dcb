//! The control task of the datagram carrier: it drives one [`Peer`] for each peer.
//!
//! Gives them the time, random bytes and what was heard, and carries out what they say: keys go to the receiving thread, the
//! route of each subnet to the packet threads, frames out of the port, questions over the stream to whoever reads the
//! [`Ask`]s. Decides neither who is a member (the View does) nor what a packet may do.
//!
//! Packets leave the stream when a peer has both a key and a path that answers, and are back on it the moment one of them is
//! gone. Everything is bounded: what cannot be queued is lost, and asked again by a timer.

mod blocked;
mod echo;
mod exchange;
mod handle;
mod knock;
mod legs;
mod members;
mod own;
mod spray;
mod status;
mod transmit;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use echo::Echo;
pub use exchange::PathsAnswerer;
pub use handle::{
    Answerer, Ask, Call, DirectStatus, Handle, Here, Leg, LegOver, PathChange, PathEnd, PathStatus,
    SessionMessage, Tried, Untold,
};

pub use crate::peer::Config;
pub use crate::peer::knock::{Stats as KnockStats, Unsure};
pub use crate::peer::path::{Cause, Origin};
pub use crate::peer::spray::Stats as SprayStats;
pub use crate::wire::paths::{Candidate, Filtering, Kind, Mapping, NatFacts, Paths, Udp};

use blocked::Blocked;
use echo::Waiting;
use exchange::Exchange;
use handle::Command;
use legs::{Held, Want};
use own::Own;
use spray::Helpers;

use super::receive::SessionUpdates;
use super::{FourTuple, Key, Link, Links, Route, RxEvent, lock};
use crate::limit::{Buckets, Limit};
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::View;
use crate::peer::knock::Knocks;
use crate::peer::session::Indices;
use crate::peer::spray::Sprays;
use crate::peer::{Buffers, Event, Peer};
use crate::udp::{Port, receive_buffer};
use crate::wire::control;

/// The most orders that wait for the task.
const ORDERS: usize = 256;
/// Questions that wait to be asked; what is beyond fails at once and is asked again.
const ASKS: usize = 256;
/// News of the packet threads taken in one go: all that can wait.
const BATCH: usize = super::HEARD;
/// Least time between two rounds of timers: peers whose timers lie close together are served in one.
const ROUND: Duration = Duration::from_millis(10);
/// The time between two looks at how far the peers are that send: the receive buffer follows.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes from a peer in that time from which on it counts as one that sends.
const TRAFFIC: u64 = 1_000_000;
/// Probes to one host that has not answered, at once, and a second after that: no more than 250 in any second.
const UNPROVEN: Limit = Limit::new(125, 125);
/// Hosts for which that is counted.
const STRANGERS: usize = 1024;
/// Our own addresses told to a peer.
const ENDPOINTS: usize = control::MAX_ENDPOINTS;

/// Drives the peers of all links; [`run`](Direct::run) is the control task.
pub struct Direct {
    links: Links,
    port: Port,
    updates: SessionUpdates,
    heard: mpsc::Receiver<RxEvent>,
    orders: mpsc::Receiver<Command>,
    /// Brings the answers to our own questions back to the task.
    own_orders: mpsc::Sender<Command>,
    asks: mpsc::Sender<Ask>,
    config: Config,
    view: Arc<View>,
    overlay: Arc<[IpNet]>,
    own: Own,
    /// The first of our own addresses, for who asks a session's question.
    endpoints: Vec<SocketAddr>,
    indices: Indices,
    peers: HashMap<PeerId, Entry>,
    /// When each peer's next timer is due.
    timers: BTreeSet<(Instant, PeerId)>,
    buffers: Buffers,
    /// Probes to addresses that have not answered, whoever named them: somebody else may be there.
    unproven: Buckets<IpAddr>,
    /// Searches for ports that nobody can name, with all peers.
    sprays: Sprays,
    /// Tests of what the NAT before this node lets in, and help for those of members.
    knocks: Knocks,
    /// When the peers were last looked at, and the port's receive buffer since.
    looked: Instant,
    receive_buffer: usize,
}

/// A peer, and what the driver keeps beside it.
struct Entry {
    peer: Peer,
    links: HashMap<SubnetId, Arc<Link>>,
    /// Bytes of packets that had come by the last look.
    came: u64,
    pings: Vec<Waiting>,
    /// The legs at relays that lead to the peer.
    legs: Vec<Leg>,
    exchange: Exchange,
    /// The same, and others that are not bound yet, with what binds them.
    held: Vec<Held>,
    blocked: Blocked,
    want: Want,
    helpers: Helpers,
    due: Option<Instant>,
}

/// Fills `bytes` from the random source of the system.
pub(super) fn entropy(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        // Linux never fails here once it has booted. Keys that are not random must not be used, and there is no other source.
        tracing::error!(%error, "read random bytes");
        std::process::abort();
    }
}

impl Direct {
    /// The task for the port of `links`, what to ask it, and what it asks. None where there is no port, or the task was made
    /// already.
    pub fn new(links: &Links, config: Config) -> Option<(Direct, Handle, mpsc::Receiver<Ask>)> {
        let port = links.0.port.clone()?;
        let heard = lock(&links.0.hears).take()?;
        let (own_orders, orders) = mpsc::channel(ORDERS);
        let (asks, asked) = mpsc::channel(ASKS);
        let handle = Handle(own_orders.clone());
        let direct = Direct {
            config,
            links: links.clone(),
            port,
            updates: links.0.updates.clone(),
            heard,
            orders,
            own_orders,
            asks,
            view: Arc::default(),
            overlay: Arc::default(),
            own: Own::default(),
            endpoints: Vec::new(),
            indices: Indices::new(&mut entropy),
            peers: HashMap::new(),
            timers: BTreeSet::new(),
            buffers: Buffers::default(),
            unproven: Buckets::new(UNPROVEN, STRANGERS),
            sprays: Sprays::default(),
            knocks: Knocks::default(),
            looked: Instant::now(),
            receive_buffer: receive_buffer(Duration::ZERO),
        };
        Some((direct, handle, asked))
    }

    /// Works until `stop`; then every peer is told that there will be no more, and goes back to the stream.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut served = Instant::now();
        loop {
            let next = self
                .next()
                .map(|due| tokio::time::Instant::from_std(due.max(served + ROUND)));
            tokio::select! {
                () = stop.cancelled() => break,
                news = self.heard.recv() => match news {
                    Some(news) => self.on_heard(Instant::now(), news),
                    None => break,
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.on_order(Instant::now(), order),
                    None => break,
                },
                () = sleep_until(next) => {}
            }
            // What was heard goes before the timers: an answer that is there already is not missing.
            for _ in 0..BATCH {
                let Ok(news) = self.heard.try_recv() else {
                    break;
                };
                self.on_heard(Instant::now(), news);
            }
            let now = Instant::now();
            if now >= served + ROUND && self.next().is_some_and(|due| due <= now) {
                served = now;
                self.on_timers(now);
            }
        }
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            if let Some(entry) = self.peers.get_mut(&id) {
                entry.peer.close();
            }
            self.carry_out(id);
            self.keep_members(id, |_, _| false);
        }
    }

    /// When the next timer is due.
    fn next(&self) -> Option<Instant> {
        let first = self.timers.first().map(|(due, _)| *due);
        let others = [self.sprays.poll_timeout(), self.knocks.poll_timeout()];
        first.into_iter().chain(others.into_iter().flatten()).min()
    }

    fn on_timers(&mut self, now: Instant) {
        self.keep_sprays(now);
        self.keep_knocks(now);
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.fit_receive_buffer();
        }
        // One pass: a timer that is due again at once waits for the next round, so that no peer keeps the others waiting.
        let after = (now + Duration::from_nanos(1), PeerId([0; 32]));
        let later = self.timers.split_off(&after);
        for (_, id) in std::mem::replace(&mut self.timers, later) {
            if let Some(entry) = self.peers.get_mut(&id) {
                entry.due = None;
                entry.peer.handle_timeout(now, &mut entropy);
                entry.keep_helpers(now, &self.port);
            }
            self.keep_legs(now, id);
            self.carry_out(id);
            if self.peers.get(&id).is_some_and(|e| e.exchange.is_due(now)) {
                self.tell(now, id);
            }
        }
    }

    /// The farthest peer that sends says how much the port keeps of what came; while none does, the farthest of all.
    fn fit_receive_buffer(&mut self) {
        let (mut farthest, mut sending) = (Duration::ZERO, None);
        for entry in self.peers.values_mut() {
            let came = entry
                .links
                .values()
                .map(|link| link.datagrams.read().rx_bytes)
                .sum::<u64>();
            let fresh = came.saturating_sub(std::mem::replace(&mut entry.came, came));
            let Some(rtt) = entry.peer.rtt() else {
                continue;
            };
            farthest = farthest.max(rtt);
            if fresh >= TRAFFIC {
                sending = sending.max(Some(rtt));
            }
        }
        let farthest = sending.unwrap_or(farthest);
        let bytes = receive_buffer(farthest);
        if std::mem::replace(&mut self.receive_buffer, bytes) != bytes
            && let Err(error) = self.port.set_receive_buffer(bytes)
        {
            tracing::debug!(%error, bytes, "set the receive buffer");
        }
    }

    fn on_heard(&mut self, now: Instant, heard: RxEvent) {
        let key = match &heard {
            RxEvent::Control { key, .. }
            | RxEvent::First { key, .. }
            | RxEvent::Moved { key, .. }
            | RxEvent::TooBig { key } => *key,
            RxEvent::Leg {
                four_tuple,
                message,
            } => return self.on_leg(now, (*four_tuple).into(), *message),
            RxEvent::Knock { four_tuple, token } => return self.on_knock(now, *four_tuple, *token),
        };
        let Some(Entry { peer, helpers, .. }) = self.peers.get_mut(&key.peer) else {
            return;
        };
        match heard {
            RxEvent::Control {
                index,
                four_tuple,
                arrived,
                body,
                ..
            } => {
                if let Some(helper) = four_tuple.from.helper {
                    helpers.heard(now, helper);
                }
                peer.handle_control(
                    now,
                    (key.subnet, index, arrived),
                    four_tuple.into(),
                    &body,
                    &mut entropy,
                );
            }
            RxEvent::First {
                index, four_tuple, ..
            } => {
                peer.handle_packet_seen(
                    now,
                    key.subnet,
                    Some(index),
                    four_tuple.into(),
                    &mut entropy,
                );
            }
            RxEvent::Moved { four_tuple, .. } => {
                peer.handle_packet_seen(now, key.subnet, None, four_tuple.into(), &mut entropy)
            }
            RxEvent::TooBig { .. } => peer.handle_too_big(now, &mut entropy),
            RxEvent::Leg { .. } | RxEvent::Knock { .. } => {}
        }
        self.carry_out(key.peer);
    }

    fn on_order(&mut self, now: Instant, order: Command) {
        match order {
            Command::Connected { peer } => self.on_connected(now, peer),
            Command::Begin { peer } => self.on_begin(now, peer),
            Command::Closed { peer } => self.on_closed(now, peer),
            Command::LetGo { peer } => self.keep_members(peer, |_, _| false),
            Command::Request {
                key,
                message,
                answer,
            } => self.on_request(now, key, &message, answer),
            Command::Answer {
                key,
                number,
                answer,
            } => self.on_answer(now, key, number, answer.as_ref()),
            Command::Candidates {
                peer,
                addresses,
                origin,
            } => {
                if let Some(entry) = self.peers.get_mut(&peer) {
                    entry.peer.offer(now, &addresses, origin);
                }
                self.carry_out(peer);
            }
            Command::Own(named) => self.on_own(now, named),
            Command::External(seen) => self.on_external(seen),
            Command::Uplinks(links, ips, exits) => self.on_uplinks(now, links, ips, &exits),
            Command::Deny(networks) => {
                if self.own.deny(networks) {
                    self.avoid(now);
                    self.tell_all();
                }
            }
            Command::Paths { peer, said, answer } => self.on_paths(now, peer, &said, answer),
            Command::Told { peer, answer } => self.on_told(now, peer, answer),
            Command::Observed { address, by } => self.on_observed(now, address, (by, None), None),
            Command::Retain(view) => self.retain(now, view),
            Command::Echo {
                key,
                by_relay,
                answer,
            } => self.on_echo(now, key, by_relay, answer),
            Command::WantLeg { peer } => {
                self.enter(peer);
                self.ask_leg(now, peer, true);
            }
            Command::Look { peer } => {
                if let Some(entry) = self.peers.get_mut(&peer) {
                    entry.peer.look(now, &mut entropy);
                    self.carry_out(peer);
                }
            }
            Command::Leg { peer, call, over } => self.enter_leg(now, peer, &call, over),
            Command::Rebind { relay } => self.rebind_legs(now, Some(relay)),
            Command::Leave { relay } => self.leave_relay(now, relay),
            Command::Here(answer) => {
                let _ = answer.send(self.here(now));
            }
            Command::Status(answer) => {
                let _ = answer.send(self.statuses(now));
            }
        }
    }

    fn on_connected(&mut self, now: Instant, peer: PeerId) {
        self.enter(peer);
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.peer.connected(now, &mut entropy);
            entry.exchange.begin();
        }
        self.carry_out(peer);
        self.tell(now, peer);
    }

    fn on_begin(&mut self, now: Instant, peer: PeerId) {
        self.enter(peer);
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.peer.begin(now, &mut entropy);
        }
        self.carry_out(peer);
    }

    fn on_closed(&mut self, now: Instant, peer: PeerId) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.peer.closed(now, &mut entropy);
            entry.exchange.connected = false;
        }
        self.carry_out(peer);
    }

    fn on_request(
        &mut self,
        now: Instant,
        key: Key,
        said: &SessionMessage,
        answer: oneshot::Sender<SessionMessage>,
    ) {
        let endpoints = self.endpoints.clone();
        // No member, or no key in its grant: the answer is dropped.
        let Some(Entry { peer, .. }) = self.entry(key) else {
            return;
        };
        match peer.handle_request(now, key.subnet, &said.message, &mut entropy) {
            Ok(message) => {
                let _ = answer.send(SessionMessage { message, endpoints });
                peer.offer(now, &said.endpoints, Origin::Told);
            }
            Err(error) => {
                tracing::debug!(subnet = %key.subnet, peer = %key.peer, %error, "session refused")
            }
        }
        self.carry_out(key.peer);
    }

    fn on_answer(&mut self, now: Instant, key: Key, number: u64, answer: Option<&SessionMessage>) {
        let Some(Entry { peer, .. }) = self.peers.get_mut(&key.peer) else {
            return;
        };
        let message = answer.map(|said| said.message.as_slice());
        if peer.handle_answer(now, key.subnet, number, message, &mut entropy)
            && let Some(said) = answer
        {
            peer.offer(now, &said.endpoints, Origin::Told);
        }
        self.carry_out(key.peer);
    }

    /// Does what a peer asks for, and sets its timer.
    fn carry_out(&mut self, id: PeerId) {
        while let Some(event) = self
            .peers
            .get_mut(&id)
            .and_then(|entry| entry.peer.poll_event())
        {
            self.on_event(id, event);
        }
        self.with(id, |_| {});
        let now = Instant::now();
        self.follow_blocked(now, id);
        self.follow_spray(now, id);
        self.carry_out_sprays(now);
        self.set_timer(id);
    }

    /// Carries out one thing that a peer asks for: keys, routes, questions, answers to pings.
    fn on_event(&mut self, id: PeerId, event: Event) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        match event {
            Event::Install {
                subnet,
                index,
                opener,
            } => {
                if let Some(link) = entry.links.get(&subnet) {
                    self.updates.install(index, opener, Arc::clone(link));
                }
            }
            Event::Remove { index } => self.updates.remove(index),
            Event::Route { subnet, route } => {
                tracing::debug!(%subnet, peer = %id, to = ?route.as_ref().map(|route| route.pair), "datagram route");
                if route.is_some() {
                    self.knocks.news(Instant::now());
                }
                if let Some(link) = entry.links.get(&subnet) {
                    link.set_route(route.map(|route| Arc::new(route.into())));
                }
                self.follow_way(Instant::now(), id);
            }
            Event::Ask {
                subnet,
                number,
                message,
            } => self.ask(Key { subnet, peer: id }, number, message),
            Event::Seen { address, local } => {
                self.on_observed(Instant::now(), address, (id, None), local)
            }
            Event::Spray { word } => self.on_spray(Instant::now(), id, word),
            Event::Knock { word } => self.on_knock_word(Instant::now(), id, word),
            Event::Fresh => self.open_fresh(Instant::now(), id),
            // What was guessed is one socket of the peer's, which takes no connections; where it says that it is, it takes some.
            Event::Direct { address }
                if self.sprays.is_running(id) && !entry.exchange.is_told(address) => {}
            Event::Direct { address } => {
                // Without room for it the stream stays where it is; the next move says it again.
                let _ = self.asks.try_send(Ask::Punched { peer: id, address });
            }
            // Without room for it a dead connection is missed by its own silence, which takes longer.
            Event::DirectLost => drop(self.asks.try_send(Ask::DirectLost { peer: id })),
            // Without room for it the stream stays where it is.
            Event::DataLost => drop(self.asks.try_send(Ask::DataLost { peer: id })),
            Event::Answered { token, rtt } => {
                if let Some(at) = entry.pings.iter().position(|ping| ping.token == token) {
                    entry.pings.swap_remove(at).answer(rtt);
                }
            }
        }
    }

    /// Has a session's message asked over the stream; without room for it there is no answer.
    fn ask(&self, key: Key, number: u64, message: Vec<u8>) {
        let message = SessionMessage {
            message,
            endpoints: self.endpoints.clone(),
        };
        let answer = Answerer {
            key,
            number,
            orders: Some(self.own_orders.clone()),
        };
        let ask = Ask::Session {
            key,
            message,
            answer,
        };
        if self.asks.try_send(ask).is_err() {
            tracing::debug!(subnet = %key.subnet, peer = %key.peer, "session: no room to ask");
        }
    }

    /// Enters when a peer's next timer is due.
    fn set_timer(&mut self, id: PeerId) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let legs = entry.held.iter().filter_map(Held::due);
        let due = legs
            .chain(entry.peer.poll_timeout())
            .chain(entry.blocked.due())
            .chain(entry.exchange.due())
            .chain(entry.helpers.due())
            .min();
        let former = std::mem::replace(&mut entry.due, due);
        if due == former {
            return;
        }
        if let Some(former) = former {
            self.timers.remove(&(former, id));
        }
        if let Some(due) = due {
            self.timers.insert((due, id));
        }
    }
}

/// Sleeps until `at`, or for ever where there is no such moment.
async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
