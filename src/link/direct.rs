//! The control task of the datagram carrier: keys and paths of every peer in every subnet.
//!
//! Owns one [`Session`] and one `Paths` per link. Carries out what they ask for: keys go to the receiving thread, the
//! route to the packet threads, probes and rekey messages out of the port, questions over the stream to whoever reads the
//! [`Ask`]s. Decides neither who is a member (the View does) nor what a packet may do.
//!
//! A peer leaves the stream when it has both a key and a path that answers, and is back on it the moment one of them is
//! gone. Everything is bounded: what cannot be queued is lost, and asked again by a timer.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use crate::peer::path::Origin;

use super::receive::Keyring;
use super::{Ends, Heard, Key, Link, Links, Route, lock};
use crate::crypto::frame::{Cipher, Library, Sealer};
use crate::model::id::PeerId;
use crate::model::view::View;
use crate::peer::path::{self, Output, Paths};
use crate::peer::session::{self, Action, Indices, PostQuantum, Session};
use crate::udp::{Port, receive_buffer};
use crate::wire::control;
use crate::wire::datagram::{Control, OVERHEAD, Trailer};

/// Orders that wait for the task.
const ORDERS: usize = 256;
/// Questions that wait to be asked; what is beyond fails at once and is asked again.
const ASKS: usize = 256;
/// News of the packet threads taken in one go: all that can wait.
const BATCH: usize = super::HEARD;
/// Least time between two rounds of timers: peers whose timers lie close together are served in one.
const ROUND: Duration = Duration::from_millis(10);
/// Between two looks at how far the peers are that send: the receive buffer follows.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes from a peer in that time from which on it counts as one that sends.
const TRAFFIC: u64 = 1_000_000;
/// Control messages of one peer taken in a second. A path takes about one, its search a dozen at once.
const CONTROLS: u32 = 128;
/// Round trips measured at once for one peer.
const PINGS: usize = 16;
/// Ways remembered of one peer.
const WAYS: usize = 4;
/// Our own addresses told to a peer.
const ENDPOINTS: usize = control::MAX_ENDPOINTS;

/// Who we are in every session.
#[derive(Clone)]
pub struct Config {
    /// We.
    pub me: PeerId,
    /// Our X25519 private key; the grants certify the public one.
    pub secret: Zeroizing<[u8; 32]>,
    /// Who computes AES here; none where this machine prefers ChaCha20. See [`sealing`](super::sealing).
    pub aes: Option<Library>,
    /// Whether ML-KEM is done.
    pub post_quantum: PostQuantum,
}

/// What goes with a message of a session over the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Of [`peer::session`](crate::peer::session).
    pub message: Vec<u8>,
    /// Where its sender may be reached by datagrams, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// A question for a peer, to be asked over the stream.
#[derive(Debug)]
pub struct Ask {
    /// Whom, in which subnet.
    pub key: Key,
    /// What.
    pub letter: Letter,
    /// Takes the answer.
    pub answer: Answerer,
}

/// Takes the answer to one [`Ask`]. Dropped, there is none.
#[derive(Debug)]
pub struct Answerer {
    key: Key,
    number: u64,
    orders: Option<mpsc::Sender<Order>>,
}

impl Answerer {
    /// Hands the answer in; waits while the task is busy.
    pub async fn give(mut self, answer: Option<Letter>) {
        if let Some(orders) = self.orders.take() {
            // The receiver is gone only when the task has stopped.
            let _ = orders.send(Order::Answer { key: self.key, number: self.number, answer }).await;
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        if let Some(orders) = self.orders.take() {
            // Full: the session's own timer ends the question.
            let _ = orders.try_send(Order::Answer { key: self.key, number: self.number, answer: None });
        }
    }
}

#[derive(Debug)]
enum Order {
    Connected { peer: PeerId },
    Closed { peer: PeerId },
    Request { key: Key, letter: Letter, answer: oneshot::Sender<Letter> },
    Answer { key: Key, number: u64, answer: Option<Letter> },
    Candidates { peer: PeerId, addresses: Vec<SocketAddr>, origin: Origin },
    Endpoints(Vec<SocketAddr>),
    Retain(Arc<View>),
    Ping { key: Key, answer: oneshot::Sender<Duration> },
    Status(oneshot::Sender<HashMap<Key, DirectStatus>>),
}

/// Asks things of the control task. Clones ask the same task.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Order>);

/// How the datagrams to one peer fare.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectStatus {
    /// The path packets take; none: the stream carries them.
    pub path: Option<PathStatus>,
    /// The cipher of the key in use; none: there is no key.
    pub cipher: Option<Cipher>,
    /// Whether an ML-KEM secret is in that key; none: there is no key.
    pub hybrid: Option<bool>,
    /// Whether there is no key because one end requires ML-KEM and the other does not do it.
    pub unmet: bool,
    /// Keys used so far, the first one included.
    pub keys: u64,
    /// Paths gained, lost or moved so far.
    pub path_changes: u64,
}

/// A datagram path.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStatus {
    /// The far address.
    pub to: SocketAddr,
    /// Since when.
    pub since: SystemTime,
    /// Smoothed round trip of the probes.
    pub rtt: Option<Duration>,
    /// Bytes of the largest IP packet of the underlay.
    pub mtu: u16,
    /// The share of keep-alives of the last two minutes that was not answered, 0 to 1.
    pub loss: Option<f64>,
}

impl Handle {
    async fn order(&self, order: Order) {
        // The receiver is gone only when the task has stopped.
        let _ = self.0.send(order).await;
    }

    /// A member's connection is there: sessions with it begin, in every common subnet. Where there is a path already, the
    /// member may have begun anew.
    pub async fn connected(&self, peer: PeerId) {
        self.order(Order::Connected { peer }).await;
    }

    /// The last connection to a peer is gone: so may be the peer.
    pub async fn closed(&self, peer: PeerId) {
        self.order(Order::Closed { peer }).await;
    }

    /// A member's message over the stream; the answer, or none where it is refused.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the message may have been taken all the same.
    pub async fn request(&self, key: Key, letter: Letter) -> Option<Letter> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Request { key, letter, answer }).await;
        answered.await.ok()
    }

    /// Where a peer may be, best first.
    pub async fn candidates(&self, peer: PeerId, addresses: Vec<SocketAddr>, origin: Origin) {
        self.order(Order::Candidates { peer, addresses, origin }).await;
    }

    /// Where we may be reached, best first; the first eight are told to peers. Replaces what was said before.
    pub async fn endpoints(&self, addresses: Vec<SocketAddr>) {
        self.order(Order::Endpoints(addresses)).await;
    }

    /// Who is a member with which key, and which addresses are the overlay's. Replaces what was said before.
    pub async fn retain(&self, view: Arc<View>) {
        self.order(Order::Retain(view)).await;
    }

    /// The round trip of one probe on the datagram path; none where there is no path. The caller sets the time limit.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the probe.
    pub async fn ping(&self, key: Key) -> Option<Duration> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Ping { key, answer }).await;
        answered.await.ok()
    }

    /// How all peers fare.
    pub async fn status(&self) -> HashMap<Key, DirectStatus> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Status(answer)).await;
        answered.await.unwrap_or_default()
    }
}

/// The task.
pub struct Direct {
    config: Config,
    links: Links,
    port: Port,
    keyring: Keyring,
    heard: mpsc::Receiver<Heard>,
    orders: mpsc::Receiver<Order>,
    /// For the answers to questions.
    own_orders: mpsc::Sender<Order>,
    asks: mpsc::Sender<Ask>,
    view: Arc<View>,
    overlay: Vec<IpNet>,
    endpoints: Vec<SocketAddr>,
    indices: Indices,
    peers: HashMap<Key, Peer>,
    /// When each peer's next timer is due.
    timers: BTreeSet<(Instant, Key)>,
    /// Questions asked so far.
    asked: u64,
    buffers: Buffers,
    /// When the peers were last looked at, and the port's receive buffer since.
    looked: Instant,
    receive_buffer: usize,
}

/// Where control messages are put together.
#[derive(Default)]
struct Buffers {
    body: Vec<u8>,
    frame: Vec<u8>,
}

struct Peer {
    /// The peer's public key, as the View had it.
    peer_key: [u8; 32],
    session: Session,
    paths: Paths,
    link: Arc<Link>,
    sealer: Option<Arc<Sealer>>,
    /// Control frames sealed with it: what is beyond was traffic.
    controls: u64,
    /// Bytes of packets that had come by the last look.
    came: u64,
    route: Option<Up>,
    /// Which way its frames came last, by its address; the newest last.
    ways: Vec<Ends>,
    installed: Vec<u32>,
    /// The question whose answer is waited for.
    asking: Option<u64>,
    pings: Vec<(u64, oneshot::Sender<Duration>)>,
    keys: u64,
    due: Option<Instant>,
    /// Control messages taken in the present second.
    taken: (Instant, u32),
}

/// What [`Output::Up`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Up {
    to: SocketAddr,
    payload: usize,
    settled: bool,
}

/// Random bytes of the system.
fn entropy(bytes: &mut [u8]) {
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
            keyring: links.0.keyring.clone(),
            heard,
            orders,
            own_orders,
            asks,
            view: Arc::default(),
            overlay: Vec::new(),
            endpoints: Vec::new(),
            indices: Indices::new(&mut entropy),
            peers: HashMap::new(),
            timers: BTreeSet::new(),
            asked: 0,
            buffers: Buffers::default(),
            looked: Instant::now(),
            receive_buffer: receive_buffer(Duration::ZERO),
        };
        Some((direct, handle, asked))
    }

    /// Works until `stop`; then every peer is told that there will be no more, and goes back to the stream.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut served = Instant::now();
        loop {
            let next = self.timers.first().map(|(due, _)| tokio::time::Instant::from_std((*due).max(served + ROUND)));
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
                let Ok(news) = self.heard.try_recv() else { break };
                self.on_heard(Instant::now(), news);
            }
            let now = Instant::now();
            if now >= served + ROUND && self.timers.first().is_some_and(|(due, _)| *due <= now) {
                served = now;
                self.on_timers(now);
            }
        }
        let keys: Vec<Key> = self.peers.keys().copied().collect();
        for key in keys {
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(up) = peer.route
            {
                peer.send(&self.port, &mut self.buffers, up.to, &Control::Close, 0);
            }
            self.forget(key);
        }
    }

    fn on_timers(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.fit_receive_buffer();
        }
        while let Some((due, key)) = self.timers.first().copied() {
            if due > now {
                return;
            }
            self.timers.pop_first();
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            peer.due = None;
            if let Some(sealer) = &peer.sealer {
                peer.paths.data(sealer.used().saturating_sub(peer.controls));
            }
            if peer.session.poll_timeout().is_some_and(|due| due <= now) {
                peer.session.handle_timeout(now, &mut entropy);
            }
            if peer.paths.poll_timeout().is_some_and(|due| due <= now) {
                peer.paths.handle_timeout(now, &mut entropy);
            }
            self.carry_out(now, key);
        }
    }

    /// The farthest peer that sends says how much the port keeps of what came; while none does, the farthest of all.
    fn fit_receive_buffer(&mut self) {
        let (mut farthest, mut sending) = (Duration::ZERO, None);
        for peer in self.peers.values_mut() {
            let came = peer.link.datagrams.read().rx_bytes;
            let fresh = came.saturating_sub(std::mem::replace(&mut peer.came, came));
            let Some(rtt) = peer.paths.path().and_then(|path| path.rtt) else { continue };
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

    fn on_heard(&mut self, now: Instant, heard: Heard) {
        let key = match &heard {
            Heard::Control { key, .. }
            | Heard::First { key, .. }
            | Heard::Moved { key, .. }
            | Heard::TooBig { key } => *key,
        };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match heard {
            Heard::Control { index, ends, body, .. } => {
                peer.note(ends);
                if peer.may_tell(now)
                    && let Some(control) = Control::decode(&body)
                {
                    peer.on_control(now, index, ends.from, control, &self.overlay);
                }
            }
            Heard::First { index, ends, .. } => {
                peer.note(ends);
                peer.session.on_first(now, index);
                peer.paths.on_moved(now, ends.from, &self.overlay, &mut entropy);
            }
            Heard::Moved { ends, .. } => {
                peer.note(ends);
                peer.paths.on_moved(now, ends.from, &self.overlay, &mut entropy);
            }
            Heard::TooBig { .. } => peer.paths.too_big(now, &mut entropy),
        }
        self.carry_out(now, key);
    }

    fn on_order(&mut self, now: Instant, order: Order) {
        match order {
            Order::Connected { peer } => {
                let common: Vec<Key> = self.common(peer).collect();
                for key in common {
                    if let Some(peer) = self.peer(key) {
                        peer.session.connected(now, &mut entropy);
                        // Who was killed and is back had no time to close what it had before, nor has it its keys.
                        peer.paths.suspect(now);
                    }
                    self.carry_out(now, key);
                }
            }
            Order::Closed { peer } => {
                let common: Vec<Key> = self.common(peer).collect();
                for key in common {
                    let Some(peer) = self.peers.get_mut(&key) else { continue };
                    peer.paths.suspect(now);
                    self.carry_out(now, key);
                }
            }
            Order::Request { key, letter, answer } => self.on_request(now, key, &letter, answer),
            Order::Answer { key, number, answer } => {
                let Some(peer) = self.peers.get_mut(&key) else { return };
                // An earlier question's: a newer one is out.
                if peer.asking.take_if(|asking| *asking == number).is_none() {
                    return;
                }
                if let Some(letter) = &answer {
                    peer.paths.offer(now, &letter.endpoints, Origin::Told, &self.overlay);
                }
                peer.session.on_answer(now, answer.as_ref().map(|letter| letter.message.as_slice()), &mut entropy);
                self.carry_out(now, key);
            }
            Order::Candidates { peer, addresses, origin } => {
                let common: Vec<Key> = self.common(peer).collect();
                for key in common {
                    let Some(peer) = self.peers.get_mut(&key) else { continue };
                    peer.paths.offer(now, &addresses, origin, &self.overlay);
                    self.carry_out(now, key);
                }
            }
            Order::Endpoints(addresses) => {
                let usable = |address: &SocketAddr| path::usable(*address, Origin::Told, &self.overlay);
                self.endpoints = addresses.iter().filter_map(usable).take(ENDPOINTS).collect();
            }
            Order::Retain(view) => self.retain(now, view),
            Order::Ping { key, answer } => {
                let Some(peer) = self.peers.get_mut(&key) else { return };
                peer.pings.retain(|(_, answer)| !answer.is_closed());
                if peer.pings.len() < PINGS
                    && let Some(token) = peer.paths.ping(now, &mut entropy)
                {
                    peer.pings.push((token, answer));
                }
                self.carry_out(now, key);
            }
            Order::Status(answer) => {
                let status = self.peers.iter().map(|(key, peer)| (*key, peer.status(now))).collect();
                let _ = answer.send(status);
            }
        }
    }

    fn on_request(&mut self, now: Instant, key: Key, letter: &Letter, answer: oneshot::Sender<Letter>) {
        let endpoints = self.endpoints.clone();
        // No member, or no key in its grant: the answer is dropped.
        let Some(peer) = self.peer(key) else { return };
        match peer.session.on_request(now, &letter.message, &mut entropy) {
            Ok(message) => {
                let _ = answer.send(Letter { message, endpoints });
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.paths.offer(now, &letter.endpoints, Origin::Told, &self.overlay);
                }
            }
            Err(error) => tracing::debug!(subnet = %key.subnet, peer = %key.peer, %error, "session refused"),
        }
        self.carry_out(now, key);
    }

    /// The subnets here that the peer is a member of.
    fn common(&self, peer: PeerId) -> impl Iterator<Item = Key> {
        let of = move |(id, subnet): (&_, &Arc<crate::model::view::SubnetView>)| {
            subnet.members.contains(&peer).then_some(Key { subnet: *id, peer })
        };
        self.view.subnets.iter().filter_map(of)
    }

    /// The public key of a member.
    fn peer_key(view: &View, key: Key) -> Option<[u8; 32]> {
        let subnet = view.subnets.get(&key.subnet).filter(|subnet| subnet.members.contains(&key.peer))?;
        subnet.data_keys.get(&key.peer).copied()
    }

    /// What is kept of a member, made on first use.
    fn peer(&mut self, key: Key) -> Option<&mut Peer> {
        let peer_key = Self::peer_key(&self.view, key)?;
        let peer = self.peers.entry(key).or_insert_with(|| {
            let config = session::Config {
                me: self.config.me,
                peer: key.peer,
                subnet: key.subnet,
                secret: self.config.secret.clone(),
                peer_key,
                aes: self.config.aes,
                post_quantum: self.config.post_quantum,
            };
            Peer {
                peer_key,
                session: Session::new(config, self.indices.clone()),
                paths: Paths::new(),
                link: self.links.link(key),
                sealer: None,
                controls: 0,
                came: 0,
                route: None,
                ways: Vec::new(),
                installed: Vec::new(),
                asking: None,
                pings: Vec::new(),
                keys: 0,
                due: None,
                taken: (Instant::now(), 0),
            }
        });
        Some(peer)
    }

    /// Follows the View: sessions of those who are members no more, or have another key, end.
    fn retain(&mut self, now: Instant, view: Arc<View>) {
        let gone = |(key, peer): (&Key, &Peer)| (Self::peer_key(&view, *key) != Some(peer.peer_key)).then_some(*key);
        let gone: Vec<Key> = self.peers.iter().filter_map(gone).collect();
        gone.into_iter().for_each(|key| self.forget(key));
        let prefixes = |subnet: &Arc<crate::model::view::SubnetView>| {
            [subnet.cidr4.map(IpNet::V4), subnet.cidr6.map(IpNet::V6)].into_iter().flatten()
        };
        let overlay: Vec<IpNet> = view.subnets.values().flat_map(prefixes).collect();
        self.view = view;
        if overlay != self.overlay {
            self.overlay = overlay;
            let inside = |ip: IpAddr| self.overlay.iter().any(|net| net.contains(&ip));
            self.endpoints.retain(|address| !inside(address.ip()));
            let keys: Vec<Key> = self.peers.keys().copied().collect();
            for key in keys {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.paths.avoid(now, &self.overlay);
                }
                self.carry_out(now, key);
            }
        }
    }

    /// Ends a session: its keys open and seal nothing more.
    fn forget(&mut self, key: Key) {
        let Some(peer) = self.peers.remove(&key) else { return };
        peer.link.set_route(None);
        peer.installed.iter().for_each(|index| self.keyring.remove(*index));
        if let Some(due) = peer.due {
            self.timers.remove(&(due, key));
        }
    }

    /// Does what the machines of a peer ask for, and sets its timer.
    fn carry_out(&mut self, now: Instant, key: Key) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        loop {
            if let Some(action) = peer.session.poll_action() {
                match action {
                    Action::Ask(message) => {
                        self.asked = self.asked.saturating_add(1);
                        let number = self.asked;
                        peer.asking = Some(number);
                        let letter = Letter { message, endpoints: self.endpoints.clone() };
                        let answer = Answerer { key, number, orders: Some(self.own_orders.clone()) };
                        if self.asks.try_send(Ask { key, letter, answer }).is_err() {
                            tracing::debug!(subnet = %key.subnet, peer = %key.peer, "session: no room to ask");
                        }
                    }
                    Action::Send(message) => {
                        if let Some(up) = peer.route {
                            peer.send(&self.port, &mut self.buffers, up.to, &Control::Rekey(&message), 0);
                        }
                    }
                    Action::Install { index, opener } => {
                        peer.installed.push(index);
                        self.keyring.install(index, opener, Arc::clone(&peer.link));
                    }
                    Action::Remove { index } => {
                        peer.installed.retain(|installed| *installed != index);
                        self.keyring.remove(index);
                    }
                    Action::Use(sealer) => {
                        peer.sealer = Some(sealer);
                        peer.controls = 0;
                        peer.keys = peer.keys.saturating_add(1);
                        peer.paths.start(now);
                        peer.publish();
                    }
                    Action::Stop => {
                        peer.sealer = None;
                        peer.paths.stop();
                        peer.publish();
                    }
                }
                continue;
            }
            let Some(output) = peer.paths.poll() else { break };
            match output {
                Output::Probe { to, token, pad_to } => {
                    let sent = peer.send(&self.port, &mut self.buffers, to, &Control::Probe { token }, pad_to);
                    if sent == Sent::TooBig {
                        peer.paths.refused(token);
                    }
                }
                Output::Answer { to, token } => {
                    peer.send(&self.port, &mut self.buffers, to, &Control::Answer { token, seen: to }, 0);
                }
                Output::Up { to, payload, settled } => {
                    if peer.route.is_none_or(|up| up.to != to) {
                        tracing::debug!(subnet = %key.subnet, peer = %key.peer, %to, "datagrams carry packets");
                    }
                    peer.route = Some(Up { to, payload, settled });
                    peer.publish();
                }
                Output::Lost => {
                    tracing::debug!(subnet = %key.subnet, peer = %key.peer, "datagram path lost");
                    peer.route = None;
                    peer.ways.clear();
                    peer.publish();
                    if peer.sealer.is_some() {
                        peer.session.path_lost(now, &mut entropy);
                    }
                }
            }
        }
        let due = [peer.session.poll_timeout(), peer.paths.poll_timeout()].into_iter().flatten().min();
        if due != peer.due {
            if let Some(former) = peer.due {
                self.timers.remove(&(former, key));
            }
            if let Some(due) = due {
                self.timers.insert((due, key));
            }
            peer.due = due;
        }
    }
}

/// Sleeps until then, or for ever.
async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What became of a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is out, or lost like any datagram.
    Perhaps,
    /// The interface does not take so many bytes.
    TooBig,
}

impl Peer {
    /// Remembers which of our addresses the peer's frames come to: what goes back comes from there, or a NAT on the way
    /// lets it not in.
    fn note(&mut self, ends: Ends) {
        if self.ways.last() == Some(&ends) {
            return;
        }
        let before = self.route.map(|up| self.local(up.to));
        self.ways.retain(|way| way.from != ends.from);
        if self.ways.len() >= WAYS {
            self.ways.remove(0);
        }
        self.ways.push(ends);
        if before != self.route.map(|up| self.local(up.to)) {
            self.publish();
        }
    }

    /// Our address that frames from there came to last.
    fn local(&self, from: SocketAddr) -> Option<IpAddr> {
        self.ways.iter().find(|way| way.from == from)?.local
    }

    /// Which of our addresses a control message comes from. Of keep-alives that are sent again, every second one from what
    /// the kernel chooses: it may know a better address by now.
    fn source(&self, to: SocketAddr, control: &Control<'_>) -> Option<IpAddr> {
        let missed = self.paths.missed();
        let is_free = matches!(control, Control::Probe { .. }) && missed > 0 && missed.is_multiple_of(2);
        self.local(to).filter(|_| !is_free)
    }

    /// Whether one more control message is within the peer's rate: answering costs more than asking.
    fn may_tell(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.taken.0) >= Duration::from_secs(1) {
            self.taken = (now, 0);
        }
        self.taken.1 = self.taken.1.saturating_add(1);
        self.taken.1 <= CONTROLS
    }

    fn on_control(&mut self, now: Instant, index: u32, from: SocketAddr, control: Control<'_>, overlay: &[IpNet]) {
        match control {
            Control::Probe { token } => self.paths.on_probe(now, from, token, overlay),
            Control::Answer { token, .. } => {
                let rtt = self.paths.on_answer(now, token, &mut entropy);
                if let Some(at) = self.pings.iter().position(|(ping, _)| *ping == token) {
                    let (_, answer) = self.pings.swap_remove(at);
                    if let Some(rtt) = rtt {
                        let _ = answer.send(rtt);
                    }
                }
            }
            Control::Rekey(message) => self.session.on_control(now, message, &mut entropy),
            // Under a former key it is about a session that is over anyway.
            Control::Close if self.installed.last() == Some(&index) => {
                self.paths.stop();
                self.session.path_lost(now, &mut entropy);
            }
            Control::Close => {}
        }
    }

    /// Seals and sends a control message, in a UDP payload of at least `pad_to` bytes.
    fn send(
        &mut self,
        port: &Port,
        buffers: &mut Buffers,
        to: SocketAddr,
        control: &Control<'_>,
        pad_to: usize,
    ) -> Sent {
        let Some(sealer) = &self.sealer else { return Sent::Perhaps };
        if !control.encode(pad_to.saturating_sub(OVERHEAD), &mut buffers.body) {
            return Sent::Perhaps;
        }
        let Some(nonce) = sealer.take(1).and_then(|mut nonces| nonces.next()) else { return Sent::Perhaps };
        self.controls = self.controls.saturating_add(1);
        buffers.frame.resize(buffers.body.len().saturating_add(OVERHEAD), 0);
        let trailer = Trailer::Control.encode();
        let Some(length) = sealer.seal(nonce, &buffers.body, &trailer, &mut buffers.frame) else {
            return Sent::Perhaps;
        };
        match port.send_one(buffers.frame.get(..length).unwrap_or_default(), to, self.source(to, control)) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Sent::TooBig,
            _ => Sent::Perhaps,
        }
    }

    /// Tells the packet threads what to seal with and where to send it, or that the stream carries.
    fn publish(&self) {
        let route = match (&self.sealer, self.route) {
            (Some(sealer), Some(Up { to, payload, settled })) => {
                Some(Arc::new(Route { sealer: Arc::clone(sealer), to, local: self.local(to), payload, settled }))
            }
            _ => None,
        };
        self.link.set_route(route);
    }

    fn status(&self, now: Instant) -> DirectStatus {
        let path = self.paths.path().filter(|_| self.sealer.is_some()).map(|path| PathStatus {
            to: path.to,
            since: SystemTime::now()
                .checked_sub(now.saturating_duration_since(path.since))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            rtt: path.rtt,
            mtu: path.mtu,
            loss: path.loss,
        });
        DirectStatus {
            path,
            cipher: self.sealer.as_ref().map(|sealer| sealer.cipher()),
            hybrid: self.session.is_hybrid(),
            unmet: self.session.is_unmet(),
            keys: self.keys,
            path_changes: self.paths.changes(),
        }
    }
}

#[cfg(test)]
mod tests;
