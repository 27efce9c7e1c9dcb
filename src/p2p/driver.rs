//! The peers' task: owns the swarm, turns commands into dials and requests, and what happens into events.
//!
//! It never waits for whoever reads the events: they queue, and while too many do, the swarm is not polled, so that the
//! peers wait instead.

mod asks;
mod avoided;
mod dials;
mod doubts;
mod hearsay;
mod holes;
mod kept;
mod links;
mod listeners;
mod meeting;
mod noted;
mod places;
mod rest;
mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, Swarm, request_response};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::asks::{Answer, Asks};
use self::dials::{Dialling, Waiter};
use self::holes::Hole;
use self::kept::Kept;
use self::links::Link;
use self::meeting::Relays;
use self::noted::Noted;
use super::address_book::{Book, Source};
use super::admission::Seen;
use super::behaviour::{Behaviour, BehaviourEvent, MeetingEvent, MembersEvent};
use super::circuits::{Handshakes, Shares};
use super::command::Neighbourhood;
use super::data::{Direction, Opened};
use super::gate::Served;
use super::own::Own;
use super::ping;
use super::redial::Budget;
use super::transport::Overlay;
use super::{Carrier, Class, Command, Config, Event, Heard, Members, Protocol};
use crate::model::address::is_private;
use crate::model::id::PeerId;

/// Events that may queue before the swarm has to wait.
const BACKLOG: usize = 512;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What the task and the transports and behaviours below it have in common.
pub(super) struct Shared {
    pub(super) overlay: Overlay,
    pub(super) seen: Seen,
    pub(super) served: Served,
    pub(super) handshakes: Handshakes,
    pub(super) shares: Shares,
    pub(super) neighbourhood: Neighbourhood,
}

/// The peers' task; see [`Driver::run`].
pub struct Driver {
    swarm: Swarm<Behaviour>,
    me: PeerId,
    config: Config,
    overlay: Overlay,
    /// Where members were last seen.
    seen: Seen,
    /// Whom this node serves as a relay.
    served: Served,
    /// The circuits that came in and have shown nothing yet.
    handshakes: Handshakes,
    /// What its clients hold of it.
    shares: Shares,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    backlog: VecDeque<Event>,
    members: Arc<Members>,
    book: Book,
    own: Own,
    /// Dials of addresses that a person gave.
    typed: HashSet<ConnectionId>,
    links: HashMap<ConnectionId, Link>,
    next_link: u64,
    dialling: BTreeMap<PeerId, Dialling>,
    /// The relays of this node, and what waits for them.
    relays: Relays,
    /// The relays that members' records tell of.
    noted: Noted,
    /// Where datagrams of members pass, to be dialled.
    holes: BTreeMap<PeerId, Hole>,
    /// Bounds the dials that nobody waits for.
    budget: Budget,
    /// Peers disconnected by command.
    held: BTreeSet<PeerId>,
    /// The members that stay connected, and those that are wanted.
    kept: Kept,
    waiters: Vec<Waiter>,
    asks: Asks,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    listening: HashSet<(ListenerId, Multiaddr)>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A memory listener keeps its number until it is removed: dropping it with its transport is not enough.
        for (id, _) in &self.listening {
            self.swarm.remove_listener(*id);
        }
    }
}

impl Driver {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        me: PeerId,
        config: Config,
        shared: Shared,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let Shared {
            overlay,
            seen,
            served,
            handshakes,
            shares,
            neighbourhood,
        } = shared;
        let kept = Kept::new(&config, neighbourhood, Instant::now());
        let meeting = config.meeting.clone();
        let mut driver = Driver {
            swarm,
            me,
            config,
            overlay,
            seen,
            served,
            handshakes,
            shares,
            commands,
            events,
            backlog: VecDeque::new(),
            members: Arc::default(),
            book: Book::default(),
            own: Own::default(),
            typed: HashSet::new(),
            links: HashMap::new(),
            next_link: 0,
            dialling: BTreeMap::new(),
            relays: Relays::default(),
            noted: Noted::default(),
            holes: BTreeMap::new(),
            budget: Budget::new(),
            held: BTreeSet::new(),
            kept,
            waiters: Vec::new(),
            asks: Asks::default(),
            answers: FuturesUnordered::new(),
            listening: HashSet::new(),
        };
        driver.handle_meeting(&meeting, Instant::now());
        driver
    }

    /// Runs until `stop`, or until every [`Handle`](super::Handle) or the event receiver is gone. All connections end
    /// with it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let events = self.events.clone();
        loop {
            let room = self.backlog.len() < BACKLOG;
            tokio::select! {
                () = stop.cancelled() => break,
                () = events.closed() => break,
                permit = events.reserve(), if !self.backlog.is_empty() => match (permit, self.backlog.pop_front()) {
                    (Ok(permit), Some(event)) => permit.send(event),
                    (Err(_), _) => break,
                    (Ok(_), None) => {}
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => break,
                },
                Some(answer) = self.answers.next() => self.handle_answer(answer),
                event = self.swarm.select_next_some(), if room => self.handle_swarm(event),
                _ = tick.tick() => self.handle_tick(Instant::now()),
            }
        }
        self.asks.fail_all();
        let links: Vec<_> = self.links.keys().copied().collect();
        for id in links {
            self.swarm.close_connection(id);
        }
        // Half a second for the goodbyes, so that peers need no ping to miss us.
        let goodbye = async {
            while self.swarm.connected_peers().next().is_some() {
                let _ = self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
    }

    fn emit(&mut self, event: Event) {
        self.backlog.push_back(event);
    }

    fn handle_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Members(members) => self.handle_members(members, now),
            Command::Grants(grants) => self.handle_grants(&grants, now),
            Command::InUse { peer } => self.handle_in_use(peer, now),
            Command::Limits {
                connections,
                per_peer,
                memory,
            } => {
                self.swarm
                    .behaviour_mut()
                    .gate
                    .set_limits(connections, per_peer, memory);
            }
            Command::Connect {
                typed,
                heard,
                peer,
                reply,
            } => self.handle_connect(typed, &heard, peer, reply, now),
            Command::Disconnect { peer } => self.handle_disconnect(peer),
            Command::Ask {
                peer,
                protocol,
                body,
                timeout,
                reply,
            } => {
                let deadline = now + timeout;
                self.handle_ask(
                    asks::Ask {
                        peer,
                        protocol,
                        body,
                        deadline,
                        reply,
                        tries: 0,
                        after: None,
                    },
                    now,
                );
            }
            Command::Known {
                peer,
                heard,
                answered,
            } => self.handle_known(peer, &heard, &answered, now),
            Command::OnLan { peer, heard } => self.handle_on_lan(peer, heard, now),
            Command::Whereabouts(announcements) => self.seen.say(announcements),
            Command::Overlay(prefixes) => {
                let avoided = self.overlay.load().with_overlay(prefixes);
                self.handle_avoided(avoided);
            }
            Command::Deny(prefixes) => {
                let avoided = self.overlay.load().with_denied(prefixes);
                self.handle_avoided(avoided);
            }
            Command::Wanted { peer } => {
                self.want(peer, now);
                self.wish(peer, now);
                self.handle_wanted(peer, now);
            }
            Command::Meeting(relays) => self.handle_meeting(&relays, now),
            Command::Noted(said) => self.handle_noted(said, now),
            Command::Serve(serve) => self.handle_serve(serve),
            Command::Punched { peer, address } => self.handle_punched(peer, address, now),
            Command::DirectLost { peer } => self.handle_direct_lost(peer, now),
            Command::DataLost { peer } => self.handle_data_lost(peer, now),
            Command::Roamed => self.handle_roamed(now),
            Command::UdpBlocked { peer, blocked } => {
                let members = &mut self.swarm.behaviour_mut().members;
                members.inner.data.set_blocked(peer, blocked);
            }
            Command::Status { reply } => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.status(now));
            }
            Command::StatusOf { peer, reply } => {
                let _ = reply.send(self.status_of(peer, now));
            }
            Command::Places { reply } => {
                let _ = reply.send(self.relays.status(now));
            }
            Command::Circuits { reply } => {
                let _ = reply.send(self.circuit_counts());
            }
        }
    }

    fn handle_disconnect(&mut self, peer: PeerId) {
        self.held.insert(peer);
        self.dialling.remove(&peer);
        self.links_of(peer)
            .into_iter()
            .for_each(|id| self.close(id, "disconnected by command"));
    }

    /// Takes what the node knows of a peer's addresses: those in `answered` have worked before.
    fn handle_known(&mut self, peer: PeerId, heard: &[Heard], answered: &[Heard], now: Instant) {
        for address in self.believed(answered, now) {
            self.book.worked(peer, &address, Source::Earlier);
        }
        let heard = self.believed(heard, now);
        if self.book.heard(peer, &heard, Source::Announcement) || !answered.is_empty() {
            self.kept.is_there(peer);
            self.hurry(peer, now);
        }
    }

    /// The heard addresses that may be dialled: the likeliest first, which are those on a network
    /// of ours, then public ones.
    fn believed(&mut self, heard: &[Heard], now: Instant) -> Vec<Multiaddr> {
        self.own.refresh(now);
        let overlay = self.overlay.load_full();
        let mut good: Vec<&Heard> = heard
            .iter()
            .filter(|h| h.may_dial(&overlay, &self.own))
            .collect();
        good.sort_by_key(|heard| match heard.address().ip() {
            Some(ip) if self.own.is_near(ip) => 0,
            Some(ip) if !is_private(ip) => 1,
            _ => 2,
        });
        good.into_iter()
            .map(|heard| heard.address().0.clone())
            .collect()
    }

    fn handle_members(&mut self, members: Arc<Members>, now: Instant) {
        let before = std::mem::replace(&mut self.members, members.clone());
        self.book.pin(members.keys().copied().collect());
        self.handshakes.set_members(members.clone());
        self.shares.set_members(members.clone());
        let behaviour = self.swarm.behaviour_mut();
        behaviour.gate.set_members(members.clone());
        behaviour.members.inner.data.set_members(members.clone());
        let outdated: Vec<_> = self
            .links
            .iter()
            .map(|(id, link)| (*id, link.peer, link.class))
            .collect();
        for (id, peer, class) in outdated {
            match (class, members.contains_key(&peer)) {
                (Class::Member, false) => self.close(id, "no member any more"),
                (Class::Stranger | Class::Meeting, true) => self.retire(id, now),
                _ => {}
            }
        }
        for peer in before.keys().filter(|peer| !members.contains_key(peer)) {
            self.dialling.remove(peer);
            self.kept.forget(*peer);
            self.asks.fail_of_member(*peer);
        }
        self.judge_noted(now);
        for peer in members.keys().filter(|peer| !before.contains_key(peer)) {
            self.hurry(*peer, now);
        }
        self.handle_dials(now);
    }

    fn handle_tick(&mut self, now: Instant) {
        self.watch(now);
        self.follow_noted(now);
        self.keep_neighbours(now);
        self.keep_places(now);
        self.let_go(now);
        self.dial_punched(now);
        self.handle_dials(now);
        self.asks.expire(now);
        self.asks
            .due_again(now)
            .into_iter()
            .for_each(|peer| self.send_waiting(peer, now));
    }

    fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(event) => self.handle_behaviour(event, now),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.handle_established(&peer_id, connection_id, &endpoint, now);
            }
            SwarmEvent::ConnectionClosed {
                connection_id,
                cause,
                ..
            } => {
                self.handle_closed(connection_id, cause.map(|c| c.to_string()), now);
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                tracing::debug!(peer = ?peer_id, %error, "dial failed");
                self.handle_dial_failed(connection_id, &error, now);
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                tracing::debug!(remote = %send_back_addr, %error, "incoming connection failed");
            }
            event => self.handle_listener(event, now),
        }
    }

    fn handle_behaviour(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Gate(moved) => self.handle_moved(moved),
            BehaviourEvent::Join(event) => self.handle_exchange(Protocol::Join, event, now),
            BehaviourEvent::Meeting(MeetingEvent::Relay(event)) => {
                self.handle_exchange(Protocol::Relay, event, now)
            }
            BehaviourEvent::Meeting(MeetingEvent::Ping(event)) => self.handle_ping(event, now),
            BehaviourEvent::Meeting(MeetingEvent::Identify(event)) => self.handle_identify(event),
            BehaviourEvent::Meeting(MeetingEvent::Circuits(event)) => {
                self.handle_place_kept(event.listener, now);
            }
            BehaviourEvent::Server(event) => self.handle_served(&event, now),
            BehaviourEvent::Members(MembersEvent::Control(event)) => {
                self.handle_exchange(Protocol::Control, event, now)
            }
            BehaviourEvent::Members(MembersEvent::Service(event)) => {
                self.handle_exchange(Protocol::Service, event, now)
            }
            BehaviourEvent::Members(MembersEvent::Data(opened)) => self.handle_stream(opened),
        }
    }

    fn handle_exchange(
        &mut self,
        protocol: Protocol,
        event: request_response::Event<Vec<u8>, Vec<u8>>,
        now: Instant,
    ) {
        use request_response::{Event as Exchange, Message};
        match event {
            Exchange::Message {
                connection_id,
                message:
                    Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                self.handle_request(protocol, connection_id, request, channel, now);
            }
            Exchange::Message {
                connection_id,
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                if let Some(link) = self.links.get_mut(&connection_id) {
                    link.hear(now);
                }
                self.asks.finish(protocol, request_id, Ok(response));
            }
            Exchange::OutboundFailure {
                request_id, error, ..
            } => {
                self.asks.failed(protocol, request_id, error, now);
            }
            Exchange::InboundFailure {
                connection_id,
                error,
                ..
            } => {
                tracing::debug!(%error, "request not answered");
                self.answered(connection_id);
            }
            Exchange::ResponseSent { connection_id, .. } => self.answered(connection_id),
        }
    }

    fn handle_stream(&mut self, opened: Opened) {
        let Opened {
            connection,
            subnet,
            direction,
            stream,
        } = opened;
        let Some(link) = self.links.get(&connection).filter(|link| !link.closing) else {
            return;
        };
        let (peer, connection, transport, remote, below) = (
            link.peer,
            link.number,
            link.carrier.as_str(),
            link.remote.to_string(),
            link.below.map(Carrier::as_str),
        );
        self.emit(match direction {
            Direction::Outbound => Event::StreamOut {
                peer,
                connection,
                subnet,
                transport,
                remote,
                below,
                stream,
            },
            Direction::Inbound => Event::StreamIn {
                peer,
                connection,
                subnet,
                stream,
            },
        });
    }

    fn handle_ping(&mut self, event: ping::Event, now: Instant) {
        let Some(link) = self
            .links
            .get_mut(&event.connection)
            .filter(|link| !link.closing)
        else {
            return;
        };
        let result = match event.news {
            ping::News::Ours(result) => result,
            ping::News::Theirs => {
                link.is_asked(now);
                return;
            }
        };
        match result {
            Ok(ping::Answer { sent, rtt }) => {
                link.answer(now, sent);
                link.rtt = Some(rtt);
                let (peer, connection) = (link.peer, link.number);
                self.relays.answers(peer, now);
                if link.class == Class::Member {
                    self.kept.measured(peer, rtt);
                }
                self.emit(Event::Rtt {
                    peer,
                    connection,
                    rtt,
                });
            }
            // The peer sees us as a stranger: the connection is of little use, and dies of silence.
            Err(ping::Failure::Unsupported) => {
                link.one_sided = true;
                let peer = link.peer;
                self.relays.refused(peer, now);
            }
            Err(error) => {
                tracing::debug!(peer = %link.peer, %error, "ping failed");
                self.close(event.connection, "ping failed");
            }
        }
    }
}
