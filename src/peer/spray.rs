//! PURE: the search for a port that nobody can name (a spray), for all peers of this node.
//!
//! A symmetric NAT gives each of our sockets another port for each destination, and a NAT at the other end that lets in only
//! what it has sent to drops what comes from there. So one end opens many sockets, and the other one guesses ports:
//!
//! ```text
//! opener, behind the symmetric NAT               guesser
//!   | Ask, by the relayed path ------------------> |       Later: it searches with another peer, or did so lately
//!   | <--------------------------------------- Go  |
//!   | a probe from each of 256 sockets ----------> |       to the one address at which a relay sees the guesser
//!   | <------ probes to 2048 ports of one address  |       at which a relay sees the opener
//! ```
//!
//! With 256 of 64,512 ports open, 2048 guesses miss all of them with a probability of e^(-256 * 2048 / 64512), 0.03 %. The
//! first probe that passes tells the opener which of its sockets is met, and the peers go on by themselves: each probes the
//! address that the other's probes come from.
//!
//! # Limits
//!
//! A peer says what it likes about where it is. So nothing is aimed at an address that the peer alone names: the driver knows
//! one from a relay that saw it in use within a minute. One peer is searched at a time, with at most 250 packets a second in all ([`RATE`]).
//! A search that finds nothing is done again after ten minutes, then after an hour, and then no more, unless one of the two
//! ends is elsewhere. Where relays say that, it is done once in ten minutes at most, and never twice in a minute.
//!
//! Time, random bytes and where a peer is seen are arguments. After each call the driver takes out every [`Output`], then
//! [`Sprays::poll_timeout`].
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod packets;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::{Entropy, Remote};
use crate::backoff::Backoff;
use crate::limit::{Limit, TokenBucket};
use crate::model::id::PeerId;
use crate::wire::datagram::Spray;
use crate::wire::paths::{Mapping, NatFacts};

/// Sockets that the opener opens.
pub const SOCKETS: usize = 256;
/// The same behind a carrier's NAT, which often gives one home 512 ports in all.
pub const FEW_SOCKETS: usize = 64;
/// Ports that the guesser tries.
pub const GUESSES: u32 = 2048;
/// Packets of all searches at once, and a second after that.
pub const RATE: Limit = Limit::new(20, 210);
/// The same of ordinary probes to the host that a search is aimed at: with [`RATE`] no more than 250 in any second.
const OTHERS: Limit = Limit::new(10, 10);
/// How long the ordinary search has the first word.
const SETTLE: Duration = Duration::from_secs(2);
/// The time between two looks at whether a relay sees the peer, and how many there are.
const AIM_EVERY: Duration = Duration::from_millis(200);
const AIMS: u32 = 10;
/// The time between two questions to the guesser, and how many there are.
const ASK_EVERY: Duration = Duration::from_millis(400);
const ASKS: u32 = 6;
/// How long a search lasts: 2048 guesses take nine seconds.
const LASTS: Duration = Duration::from_secs(12);
/// The pauses after searches that found nothing; after the last of them there is none any more.
const PAUSES: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(3600)];
/// Least time from one search with a peer to the next where the first found a path, or this node is elsewhere.
const LEAST: Duration = Duration::from_secs(60);
/// The same where a relay says that one of the two ends is elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(600);
/// Places of both ends that are remembered.
const PLACES: usize = 8;
/// The pauses after a peer did not want to search.
const REFUSED: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(3600));
/// A pair whose turn comes within this is waiting for it.
const NEAR: Duration = Duration::from_secs(30);
/// Which part this node has in a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its NAT is symmetric: it opens many sockets.
    Opener,
    /// The peer's NAT is symmetric: it guesses ports of it.
    Guesser,
}

/// The part of this node in a search with a peer; none where a search is of no use: both NATs are symmetric, or neither is,
/// or the end that is not lets in every port of an address that it sends to.
pub fn role(here: &NatFacts, there: &NatFacts) -> Option<Role> {
    let is_hard = |facts: &NatFacts| matches!(facts.mapping, Mapping::Dependent { .. });
    let is_easy = |facts: &NatFacts| {
        matches!(facts.mapping, Mapping::Open | Mapping::Independent)
            && !facts.filtering.lets_in_any_port()
    };
    match (here, there) {
        _ if is_hard(here) && is_easy(there) => Some(Role::Opener),
        _ if is_easy(here) && is_hard(there) => Some(Role::Guesser),
        _ => None,
    }
}

/// What a search with a peer would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Our part in it.
    pub role: Role,
    /// The sockets that are opened for it.
    pub sockets: usize,
    /// Where the peer's NAT counts its ports: the one it is expected to use next, and the step.
    pub counted: Option<(u16, i16)>,
    /// Where a relay last saw this node and the peer.
    pub places: Option<[Ipv4Addr; 2]>,
}

/// What a search wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Find out from relays where the peer is.
    Look {
        /// The peer.
        peer: PeerId,
    },
    /// Say this to the peer.
    Say {
        /// The peer.
        peer: PeerId,
        /// What is said.
        word: Spray,
    },
    /// Open so many sockets, and give their numbers to [`Sprays::opened`].
    Open {
        /// The peer that they are for.
        peer: PeerId,
        /// How many there are to be.
        sockets: usize,
    },
    /// Send a probe there.
    Probe {
        /// The peer.
        peer: PeerId,
        /// Where the probe goes.
        to: Remote,
    },
    /// The search is over: of the sockets that were opened for it only the one in use is kept.
    Over {
        /// The peer.
        peer: PeerId,
    },
}

/// How the searches of this node fare, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Probes sent.
    pub probes: u64,
    /// Searches begun.
    pub runs: u64,
    /// Those during which a direct path was found.
    pub found: u64,
    /// Peers that wait for their turn now, the one whose turn it is included.
    pub waiting: u64,
}

/// What is known of one peer.
#[derive(Debug)]
struct State {
    want: Option<Want>,
    /// Since when a search is wanted.
    since: Instant,
    /// When one may begin; none: not before one of the two is elsewhere.
    next: Option<Instant>,
    /// Searches in a row that found nothing, and those that the peer did not want.
    failures: u32,
    refusals: u32,
    /// When the last one began.
    began: Option<Instant>,
    /// Where both ends were, the newest last.
    places: Vec<[Ipv4Addr; 2]>,
    /// Until when the peer, which was put off, is expected to ask again.
    waits: Option<Instant>,
    /// When relays were last asked where it is, because it asked.
    looked: Option<Instant>,
}

/// The search whose turn it is.
#[derive(Debug)]
struct Run {
    peer: PeerId,
    due: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nobody but the peer has said yet where it is.
    Aiming { left: u32 },
    /// The peer is asked to guess.
    Asking { aim: SocketAddrV4, left: u32 },
    /// Each socket sends to the one address, twice.
    Opening {
        aim: SocketAddrV4,
        began: Instant,
        sockets: Vec<u16>,
        sent: usize,
    },
    /// Ports of the one address are guessed.
    Guessing {
        aim: Ipv4Addr,
        began: Instant,
        /// Where the guesses begin.
        start: u32,
        sent: u32,
    },
}

/// The searches of this node.
#[derive(Debug)]
pub struct Sprays {
    peers: BTreeMap<PeerId, State>,
    run: Option<Run>,
    bucket: TokenBucket,
    others: TokenBucket,
    stats: Stats,
    outputs: VecDeque<Output>,
}

impl Default for Sprays {
    fn default() -> Sprays {
        Sprays {
            peers: BTreeMap::new(),
            run: None,
            bucket: TokenBucket::new(RATE),
            others: TokenBucket::new(OTHERS),
            stats: Stats::default(),
            outputs: VecDeque::new(),
        }
    }
}

/// Says where somebody else than the peer itself sees it now.
pub type Aim<'a> = &'a dyn Fn(PeerId) -> Option<SocketAddrV4>;

impl State {
    fn new(now: Instant) -> State {
        State {
            want: None,
            since: now,
            next: Some(now),
            failures: 0,
            refusals: 0,
            began: None,
            places: Vec::new(),
            waits: None,
            looked: None,
        }
    }

    /// What failed before says nothing any more: a search may begin so long after the last one did.
    fn begin_anew(&mut self, pause: Duration) {
        (self.failures, self.refusals) = (0, 0);
        self.next = Some(self.began.map_or(self.since, |began| began + pause));
    }

    /// A relay sees both ends there. Two relays may see one of them at two places, and say so in turn: that is no news.
    fn are_at(&mut self, places: [Ipv4Addr; 2]) {
        if self.places.contains(&places) {
            return;
        }
        if !self.places.is_empty() {
            self.begin_anew(ELSEWHERE);
        }
        if self.places.len() >= PLACES {
            self.places.remove(0);
        }
        self.places.push(places);
    }

    /// When our question is due.
    fn due(&self) -> Option<Instant> {
        self.want.filter(|want| want.role == Role::Opener)?;
        Some(self.next?.max(self.since + SETTLE))
    }

    /// Whether its turn comes soon.
    fn waits(&self, now: Instant) -> bool {
        self.want.is_some()
            && (self.due().is_some_and(|due| due <= now + NEAR)
                || self.waits.is_some_and(|until| now < until))
    }

    fn refused(&mut self, now: Instant) {
        self.next = Some(now + REFUSED.pause(self.refusals));
        self.refusals = self.refusals.saturating_add(1);
    }
}

impl Sprays {
    /// What a search with that peer would be; none where there is to be none, though the peer is not reached directly.
    pub fn want(&mut self, now: Instant, id: PeerId, want: Option<Want>) {
        if want.is_none() && !self.peers.contains_key(&id) {
            return;
        }
        let state = self.peers.entry(id).or_insert_with(|| State::new(now));
        if state.want.is_none() {
            state.since = now;
        }
        state.want = want;
        if let Some(places) = want.and_then(|want| want.places) {
            state.are_at(places);
        }
        if want.is_none() && self.is_running(id) {
            self.finish(now, false);
        }
    }

    /// Packets go straight to that peer.
    pub fn direct(&mut self, now: Instant, id: PeerId) {
        if self.is_running(id) {
            self.finish(now, true);
        }
        if let Some(state) = self.peers.get_mut(&id) {
            state.want = None;
        }
    }

    /// That peer is no member any more.
    pub fn forget(&mut self, now: Instant, id: PeerId) {
        if self.is_running(id) {
            self.finish(now, false);
        }
        self.peers.remove(&id);
    }

    /// This node is elsewhere.
    pub fn moved(&mut self) {
        let all = self.peers.values_mut();
        all.for_each(|state| state.begin_anew(LEAST));
    }

    /// Whether it is that peer's turn.
    pub fn is_running(&self, id: PeerId) -> bool {
        self.run.as_ref().is_some_and(|run| run.peer == id)
    }

    /// Whether the peer waits for its turn, or has it.
    pub fn is_waiting(&self, now: Instant, id: PeerId) -> bool {
        self.is_running(id) || self.peers.get(&id).is_some_and(|state| state.waits(now))
    }

    /// How the searches fare.
    pub fn stats(&self, now: Instant) -> Stats {
        let waiting = self.peers.keys().filter(|id| self.is_waiting(now, **id));
        Stats {
            waiting: u64::try_from(waiting.count()).unwrap_or(u64::MAX),
            ..self.stats
        }
    }

    /// Whether one more ordinary probe may go to that host, if a search is aimed there. None where no search is.
    pub fn may_probe(&mut self, now: Instant, host: IpAddr) -> Option<bool> {
        let aim = match self.run.as_ref()?.stage {
            Stage::Opening { aim, .. } => *aim.ip(),
            Stage::Guessing { aim, .. } => aim,
            Stage::Aiming { .. } | Stage::Asking { .. } => return None,
        };
        (host.to_canonical() == IpAddr::V4(aim)).then(|| self.others.take(now))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.run {
            Some(run) => Some(run.due),
            None => self.peers.values().filter_map(State::due).min(),
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant, aim: Aim<'_>) {
        if self.run.is_none() {
            let due = |(id, state): (&PeerId, &State)| Some((state.due()?, *id));
            let first = self.peers.iter().filter_map(due).min();
            let Some((_, peer)) = first.filter(|(due, _)| *due <= now) else {
                return;
            };
            self.outputs.push_back(Output::Look { peer });
            self.run = Some(Run {
                peer,
                due: now,
                stage: Stage::Aiming { left: AIMS },
            });
        }
        let Some(run) = self.run.as_mut().filter(|run| run.due <= now) else {
            return;
        };
        match &mut run.stage {
            Stage::Aiming { left } => match aim(run.peer) {
                Some(aim) => {
                    run.stage = Stage::Asking { aim, left: ASKS };
                    self.ask(now);
                }
                None if *left == 0 => self.give_up(now),
                None => {
                    *left = left.saturating_sub(1);
                    run.due = now + AIM_EVERY;
                    self.outputs.push_back(Output::Look { peer: run.peer });
                }
            },
            Stage::Asking { .. } => self.ask(now),
            Stage::Opening { .. } => self.open(now),
            Stage::Guessing { .. } => self.guess(now),
        }
    }

    /// The peer says so.
    pub fn heard(
        &mut self,
        now: Instant,
        peer: PeerId,
        word: Spray,
        aim: Aim<'_>,
        entropy: Entropy<'_>,
    ) {
        let stage = self.run.as_ref().filter(|run| run.peer == peer);
        match (word, stage.map(|run| &run.stage)) {
            (Spray::Go, Some(Stage::Asking { aim, .. })) => self.begin_opening(now, peer, *aim),
            (Spray::Later, Some(Stage::Asking { .. })) => self.give_up(now),
            (Spray::Go | Spray::Later, _) => {}
            // The answer was lost.
            (Spray::Ask, Some(Stage::Guessing { .. })) => self.say(peer, Spray::Go),
            (Spray::Ask, _) => {
                let is_free = self.run.is_none();
                let state = self.peers.get_mut(&peer);
                let state = state.filter(|state| {
                    let is_guesser = |want: Want| want.role == Role::Guesser;
                    state.want.is_some_and(is_guesser) && state.next.is_some_and(|at| at <= now)
                });
                match (state, aim(peer)) {
                    (Some(_), Some(aim)) if is_free => {
                        self.begin_guessing(now, peer, *aim.ip(), entropy)
                    }
                    // It asks again in a moment; relays are not asked at its pace.
                    (Some(state), None) if is_free => {
                        if state.looked.is_none_or(|at| at + AIM_EVERY <= now) {
                            state.looked = Some(now);
                            self.outputs.push_back(Output::Look { peer });
                        }
                    }
                    (Some(state), _) => {
                        state.waits = Some(now + NEAR);
                        self.say(peer, Spray::Later);
                    }
                    (None, _) => self.say(peer, Spray::Later),
                }
            }
        }
    }

    /// The sockets that [`Output::Open`] wanted are open, or as many of them as could be.
    pub fn opened(&mut self, peer: PeerId, open: Vec<u16>) {
        if let Some(run) = self.run.as_mut().filter(|run| run.peer == peer)
            && let Stage::Opening { sockets, began, .. } = &mut run.stage
        {
            *sockets = open;
            run.due = *began;
        }
    }

    fn say(&mut self, peer: PeerId, word: Spray) {
        self.outputs.push_back(Output::Say { peer, word });
    }

    /// Asks the peer to guess, or gives up.
    fn ask(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        let Stage::Asking { left, .. } = &mut run.stage else {
            return;
        };
        if *left == 0 {
            return self.give_up(now);
        }
        *left = left.saturating_sub(1);
        run.due = now + ASK_EVERY;
        let peer = run.peer;
        self.say(peer, Spray::Ask);
    }

    /// The search could not begin: another peer has its turn.
    fn give_up(&mut self, now: Instant) {
        if let Some(run) = self.run.take()
            && let Some(state) = self.peers.get_mut(&run.peer)
        {
            state.refused(now);
        }
    }

    /// A search begins.
    fn begin(&mut self, now: Instant, peer: PeerId, stage: Stage) {
        self.stats.runs = self.stats.runs.saturating_add(1);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.began = Some(now);
            (state.refusals, state.waits) = (0, None);
        }
        self.run = Some(Run {
            peer,
            due: now,
            stage,
        });
    }

    fn begin_opening(&mut self, now: Instant, peer: PeerId, aim: SocketAddrV4) {
        let want = self.peers.get(&peer).and_then(|state| state.want);
        let Some(Want { sockets, .. }) = want else {
            return self.give_up(now);
        };
        let stage = Stage::Opening {
            aim,
            began: now,
            sockets: Vec::new(),
            sent: 0,
        };
        self.begin(now, peer, stage);
        self.outputs.push_back(Output::Open { peer, sockets });
    }

    fn begin_guessing(&mut self, now: Instant, peer: PeerId, aim: Ipv4Addr, entropy: Entropy<'_>) {
        let mut random = [0; 4];
        entropy(&mut random);
        let stage = Stage::Guessing {
            aim,
            began: now,
            start: u32::from_be_bytes(random) % packets::PORTS,
            sent: 0,
        };
        self.begin(now, peer, stage);
        self.say(peer, Spray::Go);
    }

    /// The search is over.
    fn finish(&mut self, now: Instant, found: bool) {
        let Some(run) = self.run.take() else { return };
        let is_begun = matches!(run.stage, Stage::Opening { .. } | Stage::Guessing { .. });
        if !is_begun {
            return;
        }
        self.outputs.push_back(Output::Over { peer: run.peer });
        self.stats.found = self.stats.found.saturating_add(u64::from(found));
        let Some(state) = self.peers.get_mut(&run.peer) else {
            return;
        };
        if found {
            return state.begin_anew(LEAST);
        }
        let failed = usize::try_from(state.failures).unwrap_or(usize::MAX);
        state.next = PAUSES.get(failed).map(|pause| now + *pause);
        state.failures = state.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
