//! A peer's access to a relay: it binds its leg, and keeps it bound.
//!
//! ```text
//! seeking     a Bind to each address of the relay at once, after 200 ms, then in growing steps up to 10 s; the first that
//!             challenges is confirmed. From the third on they go by every uplink
//! bound       a Bind every 25 s, and when the address here may have changed; a missed one again every 500 ms. As often one
//!             from every other uplink, whose Challenge tells where the relay sees that one, and 1 and 4 s after a change too
//! ended       ten seconds without success, or four missed ones
//! ```

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::crypto::mac::Mac;
use crate::wire::relay::{COOKIE, MESSAGE, Message, Ticket};

/// The times after the first Bind at which the next ones are sent while nothing is bound.
const TRIES: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(1400),
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(10),
];
/// Tries that may go without an answer before other uplinks are tried as well.
const PATIENT: usize = 2;
/// The time between two Binds of a leg that is bound.
const REFRESH: Duration = Duration::from_secs(25);
/// A missed Bind is sent again after this.
const REPEAT: Duration = Duration::from_millis(500);
/// Binds in a row without an answer before a bound leg has ended.
const MISSES: u32 = 4;
/// While one address is being confirmed, challenges from others wait for so long.
const CONFIRMING: Duration = Duration::from_millis(600);
/// Least time between two confirmations of a leg: whoever repeats a challenge is not answered more often.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);
/// The times between the first questions by another uplink after the addresses here may have changed.
const LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Least time between two rounds of such questions.
const LEAST_LOOK: Duration = Duration::from_secs(1);
/// How long the answer to a question by another uplink may take.
const LOOK: Duration = Duration::from_secs(2);
/// How long such a question is known for one: its answer, taken for that to a Bind, would move the leg to that uplink.
const LATE: Duration = Duration::from_secs(30);
/// The most uplinks beside its own by which a leg asks.
pub const MAX_UPLINKS: usize = 2;
/// The most addresses of one relay that are tried: a peer that lies aims at most so many datagrams, seven times, elsewhere.
pub const MAX_TRIED: usize = 4;

/// Why a leg is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The relay never answered.
    NoAnswer,
    /// The relay answered once, and does not any more.
    Lost,
}

/// What a leg wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Send this datagram.
    Send {
        /// The relay's address.
        to: SocketAddr,
        /// The whole datagram.
        bytes: [u8; MESSAGE],
    },
    /// Send this datagram by another uplink: its answer tells where the relay sees that one.
    Look {
        /// Which of the other uplinks, from 0.
        uplink: usize,
        /// The relay's address.
        to: SocketAddr,
        /// The whole datagram.
        bytes: [u8; MESSAGE],
    },
    /// The relay sees another uplink there.
    Seen {
        /// Its address, as the relay sees it.
        seen: SocketAddr,
    },
    /// Frames pass by that address of the relay from now on. Said again when the relay sees us elsewhere.
    Bound {
        /// The relay's address.
        relay: SocketAddr,
        /// Where the relay sees us.
        seen: SocketAddr,
    },
    /// The leg has ended, for this reason.
    Ended(Ended),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Seeking {
        since: Instant,
        tries: usize,
        /// The address that is being confirmed, and since when.
        confirming: Option<(SocketAddr, Instant)>,
    },
    Bound {
        to: SocketAddr,
        seen: SocketAddr,
        missed: u32,
        /// The last Bind was not answered yet.
        asked: Option<Instant>,
    },
    Ended,
}

/// A question by an uplink that the leg is not bound by.
#[derive(Debug)]
struct Look {
    counter: u64,
    asked: Instant,
    is_answered: bool,
}

/// A leg at a relay.
#[derive(Debug)]
pub struct Leg {
    index: u32,
    key: Mac,
    addresses: Vec<SocketAddr>,
    counter: u64,
    /// The counter of the last message that binds.
    said: u64,
    /// A message of ours waits for its answer: each is taken once.
    open: bool,
    state: State,
    due: Instant,
    confirmed: Option<Instant>,
    rtt: Option<Duration>,
    /// Where the relay last saw the peer, and when it said so.
    peer: Option<(SocketAddrV4, Instant)>,
    /// Uplinks beside the one that the leg is bound by.
    uplinks: usize,
    /// The last questions by these.
    looks: Vec<Look>,
    /// What was told of our address is void: it is told again.
    is_void: bool,
    /// When they are asked next, and how often they were since the addresses here may have changed.
    look_at: Option<Instant>,
    looked: usize,
    outputs: VecDeque<Output>,
}

impl Leg {
    /// A leg that is bound at one of the relay's addresses, best first; the first [`MAX_TRIED`] are tried.
    pub fn new(now: Instant, ticket: Ticket, addresses: &[SocketAddr]) -> Leg {
        Leg {
            index: ticket.index,
            key: Mac::new(&ticket.key),
            addresses: addresses.iter().copied().take(MAX_TRIED).collect(),
            counter: 0,
            said: 0,
            open: false,
            state: State::Seeking {
                since: now,
                tries: 0,
                confirming: None,
            },
            due: now,
            confirmed: None,
            rtt: None,
            peer: None,
            uplinks: 0,
            looks: Vec::new(),
            is_void: false,
            look_at: None,
            looked: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The index of the leg.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The key of the messages that bind it.
    pub fn key(&self) -> &Mac {
        &self.key
    }

    /// The relay's addresses that are tried.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The relay's address that the leg is bound at; none while it is not.
    pub fn relay(&self) -> Option<SocketAddr> {
        match self.state {
            State::Bound { to, .. } => Some(to),
            _ => None,
        }
    }

    /// The round trip to the relay, of the last Bind that was answered.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Where the relay sees us; none while the leg is not bound.
    pub fn seen(&self) -> Option<SocketAddr> {
        match self.state {
            State::Bound { seen, .. } => Some(seen),
            _ => None,
        }
    }

    /// Where the relay saw the peer in the 30 s before it said so, and when that was; none where it never did.
    pub fn peer(&self) -> Option<(SocketAddrV4, Instant)> {
        self.peer
    }

    /// The number of uplinks beside the one that the leg is bound by; at most [`MAX_UPLINKS`] are asked by.
    pub fn set_uplinks(&mut self, uplinks: usize) {
        self.uplinks = uplinks.min(MAX_UPLINKS);
    }

    /// Whether the relay has not answered for a while: the uplink that the kernel prefers may let no datagrams pass.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.state, State::Seeking { tries, .. } if tries > PATIENT)
    }

    /// Asks by every other uplink where the relay sees it: now, and soon again, because routes come after addresses. The
    /// questions bind nothing, because they are not confirmed.
    fn look(&mut self, now: Instant, to: SocketAddr) {
        let pause = LOOKS.get(self.looked).copied().unwrap_or(REFRESH);
        self.looked = self.looked.saturating_add(1);
        self.look_at = Some(now + pause);
        self.looks.retain(|look| look.asked + LATE >= now);
        for uplink in 0..self.uplinks {
            self.counter = self.counter.saturating_add(1);
            let counter = self.counter;
            self.looks.push(Look {
                counter,
                asked: now,
                is_answered: false,
            });
            let bytes = Message::Bind { counter }.encode(self.index, &self.key);
            self.outputs.push_back(Output::Look { uplink, to, bytes });
        }
    }

    /// Whether a challenge answers one of these questions, in time or late, for the first time or again: confirmed, it would
    /// move the leg.
    fn on_look(&mut self, now: Instant, counter: u64, seen: Option<SocketAddr>) -> bool {
        let Some(look) = self.looks.iter_mut().find(|look| look.counter == counter) else {
            return false;
        };
        let is_known = std::mem::replace(&mut look.is_answered, true);
        if !is_known && look.asked + LOOK >= now {
            self.outputs.extend(seen.map(|seen| Output::Seen { seen }));
        }
        true
    }

    /// Our address, or the NAT's, may have changed: the leg is bound anew now.
    pub fn rebind(&mut self, now: Instant) {
        self.is_void = true;
        // However often this is asked for, by peers too: the relay charges each question to everybody at our address.
        let last = self.looks.last().map(|look| look.asked + LEAST_LOOK);
        self.look_at = Some(last.map_or(now, |least| least.max(now)));
        self.looked = 0;
        if let State::Bound { asked: None, .. } = self.state {
            self.due = now;
        }
    }

    /// A message came from that address of the relay; its MAC was good.
    pub fn on_message(&mut self, now: Instant, from: SocketAddr, message: Message) {
        if !self.addresses.contains(&from) {
            return;
        }
        match message {
            Message::Challenge { counter, seen, .. } if self.on_look(now, counter, seen) => {}
            Message::Challenge { cookie, .. } => self.on_challenge(now, from, cookie),
            Message::Bound {
                counter,
                seen,
                other,
            } if self.open && (counter == self.said || self.is_seeking()) => {
                self.on_bound(now, from, seen, other)
            }
            // What a client sends, or the answer to a question that was asked again since.
            _ => {}
        }
    }

    fn is_seeking(&self) -> bool {
        matches!(self.state, State::Seeking { .. })
    }

    fn on_challenge(&mut self, now: Instant, from: SocketAddr, cookie: [u8; COOKIE]) {
        if self.confirmed.is_some_and(|at| at + CONFIRM_EVERY > now) {
            return;
        }
        match &mut self.state {
            State::Seeking { confirming, .. } => {
                if confirming.is_some_and(|(to, at)| to != from && at + CONFIRMING > now) {
                    return;
                }
                *confirming = Some((from, now));
            }
            State::Bound { to, .. } if *to == from => {}
            State::Bound { .. } | State::Ended => return,
        }
        self.confirmed = Some(now);
        let counter = self.count();
        self.send(from, Message::Confirm { counter, cookie });
    }

    fn on_bound(
        &mut self,
        now: Instant,
        from: SocketAddr,
        seen: SocketAddr,
        other: Option<SocketAddrV4>,
    ) {
        let is_new = self.is_seeking();
        let news = match self.state {
            State::Seeking { confirming, .. } => {
                // The relay holds the leg to what was confirmed last.
                if confirming.is_some_and(|(to, _)| to != from) {
                    return;
                }
                true
            }
            State::Bound {
                to,
                seen: before,
                asked,
                ..
            } => {
                if to != from {
                    return;
                }
                if let Some(asked) = asked {
                    self.rtt = Some(now.saturating_duration_since(asked));
                }
                seen != before
            }
            State::Ended => return,
        };
        self.open = false;
        self.state = State::Bound {
            to: from,
            seen,
            missed: 0,
            asked: None,
        };
        self.due = now + REFRESH;
        if is_new {
            self.look_at = Some(now);
        }
        if news || std::mem::take(&mut self.is_void) {
            self.outputs.push_back(Output::Bound { relay: from, seen });
        }
        self.peer = other.map(|other| (other, now)).or(self.peer);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; none once the leg is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look_at = self
            .look_at
            .filter(|_| self.uplinks > 0 && self.relay().is_some());
        (self.state != State::Ended).then_some(look_at.map_or(self.due, |at| at.min(self.due)))
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.uplinks > 0
            && self.look_at.is_some_and(|at| at <= now)
            && let Some(to) = self.relay()
        {
            self.look(now, to);
        }
        if self.due > now {
            return;
        }
        match &mut self.state {
            State::Seeking { since, tries, .. } => {
                let (since, tried) = (*since, *tries);
                *tries = tried.saturating_add(1);
                if tried >= TRIES.len() {
                    return self.end(Ended::NoAnswer);
                }
                self.due = TRIES
                    .get(tried)
                    .map_or(now, |after| since + *after)
                    .max(now);
                for to in self.addresses.clone() {
                    let counter = self.count();
                    self.send(to, Message::Bind { counter });
                }
            }
            State::Bound {
                to, missed, asked, ..
            } => {
                if asked.is_some() {
                    *missed = missed.saturating_add(1);
                }
                if *missed >= MISSES {
                    return self.end(Ended::Lost);
                }
                *asked = Some(now);
                let to = *to;
                self.due = now + REPEAT;
                let counter = self.count();
                self.send(to, Message::Bind { counter });
            }
            State::Ended => {}
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn end(&mut self, why: Ended) {
        self.state = State::Ended;
        self.outputs.push_back(Output::Ended(why));
    }

    fn count(&mut self) -> u64 {
        self.open = true;
        self.counter = self.counter.saturating_add(1);
        self.said = self.counter;
        self.counter
    }

    fn send(&mut self, to: SocketAddr, message: Message) {
        let bytes = message.encode(self.index, &self.key);
        self.outputs.push_back(Output::Send { to, bytes });
    }
}
