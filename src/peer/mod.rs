//! PURE: one object per peer: its sessions, one for each subnet in common, and the datagram paths they share.
//!
//! Time, random bytes and what was heard are arguments of [`Peer`]. After each call the driver
//! ([`link::direct`](crate::link::direct)) takes out what is to be done: first every [`Event`], because a key must be there
//! before the answer to what is sent, then every [`Transmit`], then [`Peer::poll_timeout`].
//!
//! # Whose path it is
//!
//! A path belongs to the peer, not to a subnet: it is probed once, whatever number of subnets are shared, and every session
//! with the same [`PeerId`] uses it. Keys stay apart: each frame is sealed for one subnet, and opened by that subnet's key
//! or by none. A probe travels in a frame of one of the sessions and is answered in the same one. The sessions take turns,
//! those that carry traffic first, so that an idle peer costs the same with one subnet as with many. While one carries
//! traffic, an idle one's key is not asked; should the peer have lost it, that is found when it is used. A session begins to
//! use the path when a probe under its own key was answered; it leaves it when three of its probes were not while the path
//! answers others (`proof.rs`): the peer has lost that key, or ended that session.
//! A session that ends, because the peer is no member any more, takes nothing with it but itself.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod delivery;
pub mod knock;
mod membership;
mod output;
mod pair;
pub mod path;
mod proof;
pub mod session;
pub mod spray;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::crypto::frame::{Cipher, Library, Opener, Sealer};
use crate::model::id::{PeerId, SubnetId};
use crate::wire::datagram::{Control, Knock, Spray};
use crate::wire::paths::Candidate;
pub use output::{Buffers, Transmit};
pub use pair::{Pair, Remote};

use delivery::Verdict;
use membership::Membership;
use output::{Message, Waiting};
use path::{Change, Origin, Path, Paths, Tried};
use session::{Indices, PostQuantum, SessionError};

/// Where random bytes come from: fills the buffer it is given.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Who we are in every session, and what all peers of this machine share.
#[derive(Clone)]
pub struct Config {
    /// Our own peer ID.
    pub me: PeerId,
    /// Our X25519 private key; the grants certify the public one.
    pub secret: Zeroizing<[u8; 32]>,
    /// The library that computes AES here; none where this machine prefers ChaCha20.
    pub aes: Option<Library>,
    /// Whether ML-KEM is done.
    pub post_quantum: PostQuantum,
}

/// What packets to the peer are sealed with and where they go, in one subnet.
#[derive(Debug, Clone)]
pub struct Route {
    /// The key of this direction and its counter.
    pub sealer: Arc<Sealer>,
    /// Where the frames leave from and go to.
    pub pair: Pair,
    /// Bytes of the largest frame it carries.
    pub payload: usize,
    /// Whether that is what it carries at most, rather than what was tried so far.
    pub settled: bool,
}

impl PartialEq for Route {
    fn eq(&self, other: &Route) -> bool {
        Arc::ptr_eq(&self.sealer, &other.sealer)
            && (self.pair, self.payload, self.settled) == (other.pair, other.payload, other.settled)
    }
}

/// What changed for the rest of the program.
#[derive(Debug)]
pub enum Event {
    /// Accept frames under this receiver index, as packets of that subnet.
    Install {
        /// The subnet whose packets the frames carry.
        subnet: SubnetId,
        /// The receiver index that the peer puts into the frames; we chose it.
        index: u32,
        /// Opens the frames under that index.
        opener: Opener,
    },
    /// Accept frames under this receiver index no more.
    Remove {
        /// A receiver index that was installed.
        index: u32,
    },
    /// Packets of that subnet travel so from now on.
    Route {
        /// The subnet whose packets are meant.
        subnet: SubnetId,
        /// What to seal with and where to send; none for the stream.
        route: Option<Route>,
    },
    /// Ask the peer over the stream; the answer goes to [`Peer::handle_answer`].
    Ask {
        /// The subnet whose session asks.
        subnet: SubnetId,
        /// The number that has to be given back with the answer.
        number: u64,
        /// The question: a message of [`session`].
        message: Vec<u8>,
    },
    /// A probe was answered.
    Answered {
        /// The token of the probe, as [`Peer::ping`] gave it out.
        token: u64,
        /// The time from the probe to its answer.
        rtt: Duration,
    },
    /// The peer says at which address it sees our datagrams come from.
    Seen {
        /// That address: a NAT's, or our own.
        address: SocketAddr,
        /// Our address that the answer came to; none where the socket is bound to one.
        local: Option<IpAddr>,
    },
    /// Packets go straight to the peer since now, at that address.
    Direct {
        /// The peer's address.
        address: SocketAddr,
    },
    /// Nothing comes straight from the peer any more: whatever else runs between the same ports may be dead too.
    DirectLost,
    /// Packets go by the stream because somebody drops them as datagrams, though probes of the same ports pass.
    DataLost,
    /// The NAT before us will end the mapping that the path leaves by: open a helper socket for [`Peer::fresh`].
    Fresh,
    /// The peer says so about a search for a port that nobody can name ([`spray`]).
    Spray {
        /// What it says.
        word: Spray,
    },
    /// The peer says so about a knock ([`knock`]).
    Knock {
        /// What it says.
        word: Knock,
    },
}

/// The path in use, as the packet threads need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Up {
    pair: Pair,
    payload: usize,
    settled: bool,
}

/// A peer: its sessions in all common subnets, and the datagram paths that they share.
pub struct Peer {
    id: PeerId,
    config: Config,
    indices: Indices,
    overlay: Arc<[IpNet]>,
    paths: Paths,
    up: Option<Up>,
    /// Frames of packets that came under the key of the last control message.
    arrived: u64,
    memberships: BTreeMap<SubnetId, Membership>,
    /// The number of the last question.
    asked: u64,
    /// When keys may be asked for again.
    keys_at: Option<Instant>,
    waiting: VecDeque<Waiting>,
    events: VecDeque<Event>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("up", &self.up)
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer without sessions and addresses. `overlay`: the prefixes no path may lead into.
    pub fn new(
        id: PeerId,
        config: Config,
        indices: Indices,
        overlay: Arc<[IpNet]>,
        entropy: Entropy<'_>,
    ) -> Peer {
        let mut start = [0; 8];
        entropy(&mut start);
        let waits_longer = config.me > id;
        Peer {
            id,
            config,
            indices,
            overlay,
            paths: Paths::new().waits_longer(waits_longer),
            up: None,
            arrived: 0,
            memberships: BTreeMap::new(),
            // An answer to a question of an earlier life of this object fits none of this one's.
            asked: u64::from_be_bytes(start),
            keys_at: None,
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// A subnet that the peer is a member of, with the X25519 key its grant certifies. A session under another key ends.
    pub fn join(&mut self, now: Instant, subnet: SubnetId, peer_key: [u8; 32]) {
        if self
            .memberships
            .get(&subnet)
            .is_some_and(|known| known.peer_key() != peer_key)
        {
            self.leave(now, subnet);
        }
        let (id, config, indices) = (self.id, &self.config, &self.indices);
        self.memberships.entry(subnet).or_insert_with(|| {
            Membership::new(id, subnet, peer_key, config.clone(), indices.clone())
        });
    }

    /// The peer is no member of that subnet any more: its keys there open and seal nothing from now on.
    pub fn leave(&mut self, now: Instant, subnet: SubnetId) {
        let Some(mut gone) = self.memberships.remove(&subnet) else {
            return;
        };
        self.waiting
            .retain(|waiting| !gone.seals_with(&waiting.sealer));
        self.events.extend(gone.end(subnet));
        self.pause(now);
        self.publish();
    }

    /// The subnets in common, with the keys the sessions there were made for.
    pub fn memberships(&self) -> impl Iterator<Item = (SubnetId, [u8; 32])> {
        self.memberships
            .iter()
            .map(|(subnet, membership)| (*subnet, membership.peer_key()))
    }

    /// A connection to the peer is there: sessions begin where there is none. Where there is a path, the peer may have begun
    /// anew: who was killed and is back had no time to close what it had before, nor has it its keys.
    pub fn connected(&mut self, now: Instant, entropy: Entropy<'_>) {
        self.begin(now, entropy);
        self.closed(now, entropy);
    }

    /// A connection has been there for a while, and subnets may be new in common: sessions begin where there is none. Paths
    /// and keys that are there are left alone, because this is said after every change of any subnet.
    pub fn begin(&mut self, now: Instant, entropy: Entropy<'_>) {
        for membership in self.memberships.values_mut() {
            membership.session.connected(now, entropy);
        }
        self.pump(now, None, entropy);
    }

    /// The last connection to the peer is gone, and so the peer may be.
    pub fn closed(&mut self, now: Instant, entropy: Entropy<'_>) {
        self.paths.suspect(now);
        self.memberships
            .values_mut()
            .for_each(|membership| membership.proof.suspect(now));
        self.pump(now, None, entropy);
    }

    /// The peer's message over the stream; the answer to it.
    ///
    /// # Errors
    /// [`SessionError`]; then nothing changed. [`SessionError::Role`] also where the subnet is not in common.
    pub fn handle_request(
        &mut self,
        now: Instant,
        subnet: SubnetId,
        message: &[u8],
        entropy: Entropy<'_>,
    ) -> Result<Vec<u8>, SessionError> {
        let membership = self
            .memberships
            .get_mut(&subnet)
            .ok_or(SessionError::Role)?;
        let answer = membership.session.on_request(now, message, entropy);
        self.pump(now, None, entropy);
        answer
    }

    /// The answer to the question of that number, `None` where there is none. One to an earlier question than the last
    /// changes nothing; whether it was the last one's.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        subnet: SubnetId,
        number: u64,
        answer: Option<&[u8]>,
        entropy: Entropy<'_>,
    ) -> bool {
        let Some(membership) = self.memberships.get_mut(&subnet) else {
            return false;
        };
        if membership
            .asking
            .take_if(|asking| *asking == number)
            .is_none()
        {
            return false;
        }
        membership.session.on_answer(now, answer, entropy);
        self.pump(now, None, entropy);
        true
    }

    /// Addresses the peer may have, best first.
    pub fn offer(&mut self, now: Instant, addresses: &[SocketAddr], origin: Origin) {
        self.paths.offer(now, addresses, origin, &self.overlay);
    }

    /// Where the peer says it may be reached, best first; at most so many of each kind are taken.
    pub fn offer_told(&mut self, now: Instant, candidates: &[Candidate]) {
        self.paths.offer_told(now, candidates, &self.overlay);
    }

    /// Both ends begin to probe at that moment, which may be now, where packets do not go straight to the peer already.
    pub fn burst(&mut self, at: Instant) {
        self.paths.burst(at);
    }

    /// This machine has these addresses from now on, best first: what was learnt of its own ends of the paths is void, the
    /// path in use is asked at once, and every other address is looked for anew.
    pub fn roamed(&mut self, now: Instant, locals: &[IpAddr], entropy: Entropy<'_>) {
        self.paths.roamed(now, locals);
        self.pump(now, None, entropy);
    }

    /// Every other address is looked for anew: somebody asks for a straight way.
    pub fn look(&mut self, now: Instant, entropy: Entropy<'_>) {
        self.paths.look(now);
        self.pump(now, None, entropy);
    }

    /// Our address that datagrams to there leave from, as far as it is known: for what is sent beside the sessions.
    pub fn local_to(&self, remote: Remote) -> Option<IpAddr> {
        self.paths.local_to(remote)
    }

    /// The relay of a leg answered there: what goes by the leg leaves from the same address of ours.
    pub fn leg_bound(&mut self, pair: Pair) {
        self.paths.note(pair);
    }

    /// Legs at relays that lead to the peer, best first. It replaces what was said before; a path over another one is lost.
    pub fn legs(&mut self, now: Instant, legs: &[Remote], entropy: Entropy<'_>) {
        self.paths.legs(now, legs, &self.overlay);
        self.pump(now, None, entropy);
    }

    /// Where packets go now: the address that answers, or the leg; none while the stream carries them.
    pub fn remote(&self) -> Option<Remote> {
        Some(self.paths.path()?.pair.remote)
    }

    /// A helper socket was opened, as [`Event::Fresh`] asked for.
    pub fn fresh(&mut self, now: Instant, helper: u16, entropy: Entropy<'_>) {
        self.paths.fresh(now, helper);
        self.pump(now, None, entropy);
    }

    /// The overlay's prefixes changed: no path leads into them.
    pub fn avoid(&mut self, now: Instant, overlay: Arc<[IpNet]>, entropy: Entropy<'_>) {
        self.overlay = overlay;
        self.paths.avoid(now, &self.overlay);
        self.pump(now, None, entropy);
    }

    /// A control message came in a frame that was opened under that index of that subnet, as so many frames of packets were
    /// before.
    pub fn handle_control(
        &mut self,
        now: Instant,
        (subnet, index, arrived): (SubnetId, u32, u64),
        pair: Pair,
        body: &[u8],
        entropy: Entropy<'_>,
    ) {
        let Some(membership) = self.memberships.get_mut(&subnet) else {
            return;
        };
        self.paths.note(pair);
        self.arrived = arrived;
        if membership.may_tell(now)
            && let Some(control) = Control::decode(body)
        {
            // The news of the first frame may have been lost on the way here.
            membership.session.on_first(now, index);
            match control {
                Control::Probe { token } => {
                    if self.up.is_none() {
                        membership.proof.prefer();
                    }
                    self.paths.on_probe(now, pair, token, &self.overlay);
                }
                Control::Answer {
                    token,
                    seen,
                    arrived,
                } => {
                    self.paths.seen(now, token, seen);
                    let full = self.paths.is_full(token);
                    let verdict = membership.data.answered(token, arrived, full);
                    // What comes by a leg was seen there to come from the relay.
                    if self.on_answer(now, pair, token, entropy) && pair.remote.leg.is_none() {
                        self.events.push_back(Event::Seen {
                            address: seen,
                            local: pair.local,
                        });
                    }
                    match verdict {
                        Verdict::Fine => {}
                        Verdict::Doubt => self.paths.doubt(now),
                        Verdict::Lost => self.paths.data_lost(now, entropy),
                    }
                }
                Control::Rekey(message) => membership.session.on_control(now, message, entropy),
                // Under a former key it is about a session that is over anyway.
                Control::Close if membership.newest() == Some(index) => {
                    membership.close();
                    membership.session.path_lost(now, entropy);
                    self.pause(now);
                }
                Control::Close => {}
                Control::Renewed { address } => {
                    let overlay = &self.overlay;
                    self.paths.on_renewed(now, pair, address, overlay, entropy);
                }
                Control::Spray(word) => self.events.push_back(Event::Spray { word }),
                Control::Knock(word) => self.events.push_back(Event::Knock { word }),
            }
        }
        self.pump(now, Some(subnet), entropy);
    }

    /// Whether it answers a probe of ours.
    fn on_answer(&mut self, now: Instant, pair: Pair, token: u64, entropy: Entropy<'_>) -> bool {
        // Whoever answers has opened the frame the probe went in.
        self.memberships
            .values_mut()
            .for_each(|membership| membership.proof.answered(token));
        let rtt = self.paths.on_answer(now, pair, token, entropy);
        self.events
            .extend(rtt.map(|rtt| Event::Answered { token, rtt }));
        rtt.is_some()
    }

    /// The first frame under an index of that subnet was opened, or with no index: the newest frame came another way than
    /// the one before.
    pub fn handle_packet_seen(
        &mut self,
        now: Instant,
        subnet: SubnetId,
        index: Option<u32>,
        pair: Pair,
        entropy: Entropy<'_>,
    ) {
        let Some(membership) = self.memberships.get_mut(&subnet) else {
            return;
        };
        self.paths.note(pair);
        if let Some(index) = index {
            membership.session.on_first(now, index);
        }
        self.paths.on_moved(now, pair, &self.overlay, entropy);
        self.pump(now, Some(subnet), entropy);
    }

    /// A frame of traffic was larger than the interface takes.
    pub fn handle_too_big(&mut self, now: Instant, entropy: Entropy<'_>) {
        self.paths.too_big(now, entropy);
        self.pump(now, None, entropy);
    }

    /// A [`Transmit`] with that probe was larger than the interface takes.
    pub fn handle_refused(&mut self, token: u64) {
        self.paths.refused(token);
    }

    /// Probes the path now under the key of that subnet, for somebody who waits for the round trip: the token that
    /// [`Event::Answered`] will have. None where the subnet's packets are on the stream.
    pub fn ping(&mut self, now: Instant, subnet: SubnetId, entropy: Entropy<'_>) -> Option<u64> {
        let (token, _) = self.echo(now, subnet, None, entropy)?;
        Some(token)
    }

    /// The same along a way of one kind, as [`Paths::echo`] says; with the far end.
    pub fn echo(
        &mut self,
        now: Instant,
        subnet: SubnetId,
        by_relay: Option<bool>,
        entropy: Entropy<'_>,
    ) -> Option<(u64, Remote)> {
        self.memberships.get(&subnet)?.told.as_ref()?;
        let sent = self.paths.echo(now, by_relay, entropy)?;
        self.pump(now, Some(subnet), entropy);
        Some(sent)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self
            .memberships
            .values()
            .filter_map(|membership| membership.session.poll_timeout());
        let path = self.paths.patience();
        let proofs = self
            .memberships
            .values()
            .filter(|m| m.sealer().is_some())
            .filter_map(|m| m.proof.due(path?));
        let proofs = proofs
            .min()
            .map(|at| self.keys_at.map_or(at, |next| at.max(next)));
        sessions
            .chain(proofs)
            .chain(self.paths.poll_timeout())
            .min()
    }

    /// Does what is due. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant, entropy: Entropy<'_>) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.memberships.values_mut().for_each(Membership::count);
        for membership in self
            .memberships
            .values_mut()
            .filter(|m| due(m.session.poll_timeout()))
        {
            membership.session.handle_timeout(now, entropy);
        }
        self.pump(now, None, entropy);
        self.paths.data(
            self.memberships
                .values()
                .map(Membership::traffic)
                .fold(0, u64::wrapping_add),
        );
        if due(self.paths.poll_timeout()) {
            self.paths.handle_timeout(now, entropy);
            self.pump(now, None, entropy);
        }
        self.ask_keys(now, entropy);
    }

    /// Says goodbye in every session that is in use; no key is dropped yet.
    pub fn close(&mut self) {
        let Some(up) = self.up else { return };
        for membership in self.memberships.values_mut() {
            if let Some(sealer) = membership.seal() {
                self.waiting.push_back(Waiting {
                    sealer,
                    pair: up.pair,
                    message: Message::Close,
                });
            }
        }
    }

    /// Takes out what changed, the oldest first; none where everything was taken.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The path that packets of that subnet take; none where they are on the stream.
    pub fn path(&self, subnet: SubnetId) -> Option<Path> {
        self.memberships.get(&subnet)?.told.as_ref()?;
        self.paths.path()
    }

    /// The smoothed round trip of the path in use.
    pub fn rtt(&self) -> Option<Duration> {
        self.paths.path()?.rtt
    }

    /// The cipher of the key in use in that subnet, and how many keys were used there so far.
    pub fn keys(&self, subnet: SubnetId) -> (Option<Cipher>, u64) {
        let membership = self.memberships.get(&subnet);
        membership.map_or((None, 0), |m| {
            (m.sealer().map(|sealer| sealer.cipher()), m.keys)
        })
    }

    /// Whether an ML-KEM secret is in the key in use, none without a key; and whether there is none because one end requires
    /// ML-KEM and the other does not do it.
    pub fn post_quantum(&self, subnet: SubnetId) -> (Option<bool>, bool) {
        let session = self.memberships.get(&subnet).map(|m| &m.session);
        session.map_or((None, false), |s| (s.is_hybrid(), s.is_unmet()))
    }

    /// Paths gained, lost or moved so far.
    pub fn path_changes(&self) -> u64 {
        self.paths.changes()
    }

    /// The last of these, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Change> {
        self.paths.history()
    }

    /// Whether a probe was ever answered from there: before that it may be somebody else's, whom the peer names.
    pub fn has_answered(&self, remote: Remote) -> bool {
        self.paths.has_answered(remote)
    }

    /// Where the peer is looked for.
    pub fn tried(&self) -> impl Iterator<Item = Tried> {
        self.paths.tried()
    }
}

#[cfg(test)]
mod tests;
