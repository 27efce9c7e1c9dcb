//! What a relay keeps: sessions, their legs, where each is bound, and what each asker may use.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Entropy;
use super::accounts::{Accounts, Asker, Terms};
use super::stats::{Counters, Drop, Tally};
use crate::crypto::mac::{MAC_KEY, Mac};
use crate::limit::{Limit, SharedBuckets, TokenBucket};
use crate::model::id::PeerId;
use crate::model::source::Source;
use crate::wire::relay::{
    COOKIE, MESSAGE, Message, PREFIX, Refusal, Ticket, carries_frame, index, readdress,
};

/// A session whose legs are not both bound by then ends.
const BIND_WITHIN: Duration = Duration::from_secs(30);
/// A session one of whose legs is silent for so long ends.
const IDLE: Duration = Duration::from_secs(300);
/// Least time between two looks for such sessions while there is room.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a cookie holds at least; twice that at most.
const COOKIE_AGE: Duration = Duration::from_secs(60);
/// Where a leg is bound is told to the other one while something came by it within this.
const IN_USE: Duration = Duration::from_secs(30);
/// Least time between two challenges to whoever sends frames of one leg from elsewhere.
const CHALLENGE_EVERY: Duration = Duration::from_millis(250);
/// Messages from where a leg is bound whose MAC is checked: at once, and a second after that. A client sends one each 25 s,
/// and two a second while it has no answer.
const BINDS_OF_LEG: Limit = Limit::new(16, 4);
/// The same from elsewhere, of one IPv4 address or IPv6 /64. Behind one address there may be a site with fifty clients, each
/// of which binds two legs with two messages or four.
const BINDS_OF_SOURCE: Limit = Limit::new(512, 16);
/// Buckets that the sources share: whoever makes addresses up has no more checked than all of them hold.
const SOURCES: usize = 256;

/// What the relay serves in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once, whoever asked for them.
    pub sessions: usize,
    /// The most of these that strangers have: the others are left to those whom the relay knows.
    pub strangers: usize,
    /// The most that the strangers of one source have.
    pub per_source: usize,
    /// Mbit/s of UDP payload, all together; none without a limit. Those who send share it evenly.
    pub mbit: Option<u32>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::of(1024)
    }
}

impl Limits {
    /// The usual shares of so many sessions: three quarters for strangers, a sixteenth for those of one source.
    pub fn of(sessions: usize) -> Limits {
        Limits {
            sessions,
            strangers: sessions - sessions / 4,
            per_source: (sessions / 16).max(1),
            mbit: None,
        }
    }
}

/// Forwards the frames of sessions that were asked for.
#[derive(Debug)]
pub struct Server {
    limits: Limits,
    /// Signs the cookies of challenges.
    secret: Mac,
    started: Instant,
    legs: HashMap<u32, Leg>,
    /// The asker's leg of each session, by the asker and the other peer.
    sessions: HashMap<(PeerId, PeerId), u32>,
    accounts: Accounts,
    binds: SharedBuckets,
    swept: Instant,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Leg {
    peer: PeerId,
    /// Whose session it is. What it may use is looked up by it, and never kept here: the terms change while it is there.
    asker: Asker,
    /// The leg by which its frames leave.
    other: u32,
    /// Which end of the session it is: 0 the asker's, 1 the other one.
    end: usize,
    key: Mac,
    created: Instant,
    bound: Option<Bound>,
    /// The greatest counter heard.
    counter: u64,
    /// When a frame or a Bind last came.
    heard: Instant,
    challenged: Option<Instant>,
    /// Messages from where it is bound.
    binds: TokenBucket,
    tally: Arc<Tally>,
}

/// Where a leg is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    from: SocketAddr,
    /// Our address that the client sends to; none where the socket is bound to one.
    local: Option<IpAddr>,
}

/// Where the first datagrams of a run go on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Onward {
    /// The address that the other leg is bound to.
    pub to: SocketAddr,
    /// Our address that they leave from; none where the kernel chooses.
    pub local: Option<IpAddr>,
    /// Bytes of the run that go on, from its beginning; the rest was counted as dropped.
    pub length: usize,
}

/// What becomes of a run of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They go on, with their index rewritten.
    Onward(Onward),
    /// They are dropped; this goes back to where they came from.
    Challenge([u8; MESSAGE]),
    /// They are dropped.
    Dropped,
}

fn random<const N: usize>(entropy: Entropy<'_>) -> [u8; N] {
    let mut bytes = [0; N];
    entropy(&mut bytes);
    bytes
}

fn number(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

impl Server {
    /// A relay without sessions.
    pub fn new(now: Instant, limits: Limits, entropy: Entropy<'_>) -> Server {
        Server {
            limits,
            secret: Mac::new(&random::<MAC_KEY>(entropy)),
            started: now,
            legs: HashMap::new(),
            sessions: HashMap::new(),
            accounts: Accounts::default(),
            binds: SharedBuckets::new(BINDS_OF_SOURCE, SOURCES),
            swept: now,
            counters: Arc::default(),
        }
    }

    /// Makes a session between the asker and another peer: the tickets of both. One that the asker has with that peer
    /// ends. The terms hold for all sessions of the asker from now on.
    ///
    /// # Errors
    /// [`Refusal::NotServed`] where the terms allow no session or the peer is the asker itself, [`Refusal::TooMany`],
    /// [`Refusal::Crowded`], [`Refusal::Full`]. Each is counted.
    pub fn allocate(
        &mut self,
        now: Instant,
        asker: impl Into<Asker>,
        peer: PeerId,
        terms: Terms,
        entropy: Entropy<'_>,
    ) -> Result<(Ticket, Ticket), Refusal> {
        let asker = asker.into();
        let is_full = self.sessions.len() >= self.limits.sessions;
        if is_full || self.swept + SWEEP_EVERY <= now {
            self.sweep(now);
        }
        if let Some(former) = self.sessions.get(&(asker.peer, peer)).copied() {
            self.end(former);
        }
        self.hold_to(asker.peer, terms);
        if let Some(refusal) = self.refusal(asker, peer, terms) {
            self.counters.refuse(refusal);
            return Err(refusal);
        }
        self.accounts.enter(asker, terms);
        let mut ticket = |taken: Option<u32>| {
            // With 1,024 sessions a taken index is met once in two million tries.
            let index = loop {
                let index = u32::from_be_bytes(random(entropy));
                if taken != Some(index) && !self.legs.contains_key(&index) {
                    break index;
                }
            };
            Ticket {
                index,
                key: random(entropy),
            }
        };
        let mine = ticket(None);
        let theirs = ticket(Some(mine.index));
        let tally = Tally::new(Arc::clone(&self.counters), [asker.peer, peer], now);
        tally.set_mbit(terms.mbit);
        let tally = Arc::new(tally);
        let ends = [(mine, theirs, asker.peer), (theirs, mine, peer)];
        for (end, (own, other, owner)) in ends.into_iter().enumerate() {
            let leg = Leg {
                peer: owner,
                asker,
                other: other.index,
                end,
                key: Mac::new(&own.key),
                created: now,
                bound: None,
                counter: 0,
                heard: now,
                challenged: None,
                binds: TokenBucket::new(BINDS_OF_LEG),
                tally: Arc::clone(&tally),
            };
            self.legs.insert(own.index, leg);
        }
        self.sessions.insert((asker.peer, peer), mine.index);
        self.counters.set_open(self.sessions.len());
        Ok((mine, theirs))
    }

    /// Why there is no session for that asker now.
    fn refusal(&self, asker: Asker, peer: PeerId, terms: Terms) -> Option<Refusal> {
        if asker.peer == peer {
            return Some(Refusal::NotServed);
        }
        let is_full = self.sessions.len() >= self.limits.sessions;
        let full = is_full.then_some(Refusal::Full);
        self.beyond(asker, terms).or(full)
    }

    /// Which limit of these terms one session more of that asker is beyond.
    fn beyond(&self, asker: Asker, terms: Terms) -> Option<Refusal> {
        let (accounts, limits) = (&self.accounts, &self.limits);
        if terms.sessions == 0 {
            return Some(Refusal::NotServed);
        }
        if accounts.sessions_of(asker.peer) >= terms.sessions {
            return Some(Refusal::TooMany);
        }
        if !terms.is_stranger {
            return None;
        }
        let at = asker.source.map_or(0, |at| accounts.sessions_at(at));
        if at >= limits.per_source {
            return Some(Refusal::Crowded);
        }
        (accounts.strangers() >= limits.strangers).then_some(Refusal::Full)
    }

    /// Ends the session of that leg, where it is the asker's; whether it was.
    pub fn release(&mut self, asker: PeerId, index: u32) -> bool {
        let of = self.legs.get(&index);
        let is_theirs = of.is_some_and(|leg| leg.asker.peer == asker);
        if is_theirs {
            self.end(index);
        }
        is_theirs
    }

    /// Follows a change of whom the relay serves: what each asker may use from now on, for the sessions that are there as
    /// well. Those that its terms leave no room for end, the newest first; so do all of who may have none.
    pub fn retain(&mut self, terms: impl Fn(PeerId) -> Option<Terms>) {
        let askers: Vec<PeerId> = self.accounts.askers().collect();
        for asker in askers {
            self.hold_to(asker, terms(asker).unwrap_or(Terms::NONE));
        }
    }

    /// Holds all sessions of an asker to these terms, and moves them from one account to the other where it is a stranger no
    /// more or has become one.
    fn hold_to(&mut self, asker: PeerId, terms: Terms) {
        if self.accounts.terms_of(asker).is_none_or(|now| now == terms) {
            return;
        }
        let own = self.legs.iter();
        let own = own.filter(|(_, leg)| leg.asker.peer == asker && leg.end == 0);
        let mut own: Vec<(Instant, u32)> = own.map(|(index, leg)| (leg.created, *index)).collect();
        own.sort_unstable();
        // All leave before the first enters: an account holds one set of terms.
        for (_, index) in &own {
            if let Some(leg) = self.legs.get(index) {
                self.accounts.leave(leg.asker);
            }
        }
        for (_, index) in own {
            let Some(asker) = self.locate(index) else {
                continue;
            };
            if self.beyond(asker, terms).is_some() {
                self.remove(index);
                continue;
            }
            self.accounts.enter(asker, terms);
            if let Some(leg) = self.legs.get(&index) {
                leg.tally.set_mbit(terms.mbit);
            }
        }
    }

    /// The asker of the session that begins with that leg. Of a member it was not asked where it is: as a stranger it counts
    /// where its leg is bound.
    fn locate(&mut self, index: u32) -> Option<Asker> {
        let leg = self.legs.get(&index)?;
        let bound = leg.bound.map(|bound| Source::of(bound.from.ip()));
        let (other, mut asker) = (leg.other, leg.asker);
        asker.source = asker.source.or(bound);
        for index in [index, other] {
            self.legs.get_mut(&index)?.asker = asker;
        }
        Some(asker)
    }

    /// Follows a change of what the relay serves in all.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Ends what was not bound in time, and what is idle. Called now and then; a new session does it as well, where none has
    /// for a second or there is no room.
    pub fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let is_over = |leg: &Leg| match leg.bound {
            None => now.saturating_duration_since(leg.created) >= BIND_WITHIN,
            Some(_) => now.saturating_duration_since(leg.heard) >= IDLE,
        };
        let over = self.legs.iter().filter(|(_, leg)| is_over(leg));
        let over: Vec<u32> = over.map(|(index, _)| *index).collect();
        over.into_iter().for_each(|index| self.end(index));
    }

    /// Ends the session of that leg.
    fn end(&mut self, index: u32) {
        if let Some(asker) = self.remove(index) {
            self.accounts.leave(asker);
        }
    }

    /// Removes both legs of a session, which its asker's account still counts; whose it was.
    fn remove(&mut self, index: u32) -> Option<Asker> {
        let one = self.legs.remove(&index)?;
        let other = self.legs.remove(&one.other)?;
        let peer = if one.end == 0 { other.peer } else { one.peer };
        self.sessions.remove(&(one.asker.peer, peer));
        self.counters.set_open(self.sessions.len());
        Some(one.asker)
    }

    /// Whether there is no session: then nothing that comes is for the relay.
    pub fn is_empty(&self) -> bool {
        self.legs.is_empty()
    }

    /// Whether that is the index of a leg here.
    pub fn has(&self, index: u32) -> bool {
        self.legs.contains_key(&index)
    }

    /// A message that binds a leg came: the answer, which goes back the way it came. None where it is no good.
    pub fn on_bind(
        &mut self,
        now: Instant,
        (from, local): (SocketAddr, Option<IpAddr>),
        bytes: &[u8],
    ) -> Option<[u8; MESSAGE]> {
        let (_, index) = index(bytes)?;
        let other = self.in_use(now, index);
        let (age, leg) = (self.age(now), self.legs.get_mut(&index)?);
        // Paid for before the MAC is checked. Who is bound pays by its leg, so that no flood from elsewhere unbinds it.
        let is_here = leg.bound.is_some_and(|bound| bound.from == from);
        let is_paid = if is_here {
            leg.binds.take(now)
        } else {
            self.binds.take(Source::of(from.ip()), now)
        };
        if !is_paid {
            leg.tally.dropped(Drop::Flood, 1);
            return None;
        }
        let (counter, cookie) = match Message::decode(bytes, &leg.key)? {
            Message::Bind { counter } => (counter, None),
            Message::Confirm { counter, cookie } => (counter, Some(cookie)),
            Message::Challenge { .. } | Message::Bound { .. } => return None,
        };
        if counter <= leg.counter {
            return None;
        }
        let here = Some(Bound { from, local });
        let good = |cookie: [u8; COOKIE]| {
            [age, age.saturating_sub(1)]
                .into_iter()
                .any(|age| self.secret.verify(&facts(age, index, from), &cookie))
        };
        let message = if leg.bound == here || cookie.is_some_and(good) {
            if !is_here {
                leg.tally.bound(leg.end, from);
            }
            (leg.bound, leg.counter, leg.heard) = (here, counter, now);
            Message::Bound {
                counter,
                seen: from,
                other,
            }
        } else {
            Message::Challenge {
                counter,
                cookie: self.secret.sign(&facts(age, index, from)),
                seen: Some(from),
            }
        };
        Some(message.encode(index, &leg.key))
    }

    /// Where the other leg of that one is bound, while its client is heard there.
    fn in_use(&self, now: Instant, index: u32) -> Option<SocketAddrV4> {
        let other = self.legs.get(&self.legs.get(&index)?.other)?;
        let bound = other.bound.filter(|_| now < other.heard + IN_USE)?;
        match (bound.from.ip().to_canonical(), bound.from.port()) {
            (IpAddr::V4(ip), port) => Some(SocketAddrV4::new(ip, port)),
            (IpAddr::V6(_), _) => None,
        }
    }

    /// Datagrams of one leg came, `segment` bytes each, the last perhaps shorter: what becomes of them. Those that go on
    /// have the other leg's index from now on. None where the leg is not one of this relay's; then nothing was changed.
    ///
    /// All of them must begin with the same eight bytes as the first.
    pub fn forward(
        &mut self,
        now: Instant,
        (from, local): (SocketAddr, Option<IpAddr>),
        run: &mut [u8],
        segment: usize,
    ) -> Option<Fate> {
        let (_, index) = index(run)?;
        let age = self.age(now);
        let leg = self.legs.get(&index)?;
        let (other, datagrams) = (leg.other, number(run.len().div_ceil(segment.max(1))));
        let onward = self.legs.get(&other).and_then(|leg| leg.bound);
        let leg = self.legs.get_mut(&index)?;
        if leg.bound.is_none_or(|bound| bound.from != from) {
            leg.tally.dropped(Drop::Elsewhere, datagrams);
            let is_due = leg.challenged.is_none_or(|at| at + CHALLENGE_EVERY <= now);
            if !is_due || segment.min(run.len()) < MESSAGE {
                return Some(Fate::Dropped);
            }
            leg.challenged = Some(now);
            let message = Message::Challenge {
                counter: leg.counter,
                cookie: self.secret.sign(&facts(age, index, from)),
                seen: Some(from),
            };
            return Some(Fate::Challenge(message.encode(index, &leg.key)));
        }
        (leg.heard, leg.bound) = (now, Some(Bound { from, local }));
        let size = (segment.min(run.len()), datagrams);
        let paid = self.accounts.charge(now, leg.asker, self.limits.mbit, size);
        leg.tally
            .dropped(Drop::Rate, datagrams.saturating_sub(paid));
        let Some(onward) = onward else {
            leg.tally.dropped(Drop::Unbound, paid);
            return Some(Fate::Dropped);
        };
        let paid = usize::try_from(paid).unwrap_or(usize::MAX);
        let mut good = 0;
        for one in run.chunks_mut(segment.max(1)).take(paid) {
            if !carries_frame(one) {
                break;
            }
            readdress(one, other);
            good += 1;
        }
        leg.tally
            .dropped(Drop::Malformed, number(paid.saturating_sub(good)));
        let length = segment.saturating_mul(good).min(run.len());
        if length == 0 {
            return Some(Fate::Dropped);
        }
        leg.tally.forwarded(leg.end, number(length));
        Some(Fate::Onward(Onward {
            to: onward.from,
            local: onward.local,
            length,
        }))
    }

    /// Datagrams that were to leave by that leg did not.
    pub fn lost(&self, index: u32, datagrams: u64) {
        if let Some(leg) = self.legs.get(&index) {
            leg.tally.dropped(Drop::Full, datagrams);
        }
    }

    /// The counters of each session, to be read when this server is not held any more.
    pub fn tallies(&self) -> Vec<Arc<Tally>> {
        let askers = self.sessions.values();
        askers
            .filter_map(|index| Some(Arc::clone(&self.legs.get(index)?.tally)))
            .collect()
    }

    /// What was done since the start, to be read at any time.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The number of the minute, by which cookies grow old.
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / COOKIE_AGE.as_secs()
    }
}

/// What a cookie stands for.
fn facts(age: u64, index: u32, from: SocketAddr) -> Vec<u8> {
    let mut bytes = age.to_be_bytes().to_vec();
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes.extend_from_slice(&from.port().to_be_bytes());
    match from.ip() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
    bytes
}

const _: () = assert!(PREFIX <= MESSAGE);
