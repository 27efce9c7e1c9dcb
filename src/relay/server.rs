//! What a relay keeps: sessions, their legs, where each is bound, and what each asker may use.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Entropy;
use super::stats::{Drop, Drops, SessionStats, Stats};
use crate::crypto::mac::{MAC_KEY, Mac};
use crate::limit::{Limit, TokenBucket};
use crate::model::id::PeerId;
use crate::wire::relay::{
    COOKIE, MESSAGE, Message, PREFIX, Refusal, Ticket, carries_frame, index, readdress,
};

/// A session whose legs are not both bound by then ends.
const BIND_WITHIN: Duration = Duration::from_secs(30);
/// A session one of whose legs is silent for so long ends.
const IDLE: Duration = Duration::from_secs(300);
/// How long a cookie holds at least; twice that at most.
const COOKIE_AGE: Duration = Duration::from_secs(60);
/// Least time between two challenges to whoever sends frames of one leg from elsewhere.
const CHALLENGE_EVERY: Duration = Duration::from_millis(250);
/// The time that a full bucket of an asker's rate is worth.
const BURST: Duration = Duration::from_millis(100);
/// The time between two looks at who sends: the shares of the rate follow.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes that a bucket holds at least: one message of the kernel's.
const LEAST_BURST: u64 = 128 * 1024;

/// What one asker may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Sessions at once.
    pub sessions: usize,
    /// Mbit/s of UDP payload, both ways and all its sessions together; none without a limit.
    pub mbit: Option<u32>,
}

/// What the relay serves in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once, whoever asked for them.
    pub sessions: usize,
    /// Mbit/s of UDP payload, all together; none without a limit. Those who send share it evenly.
    pub mbit: Option<u32>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 1024,
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
    askers: HashMap<PeerId, Asker>,
    looked: Instant,
    /// Of sessions that are over.
    bytes: u64,
    drops: Drops,
    refused: u64,
}

#[derive(Debug)]
struct Asker {
    terms: Terms,
    bucket: Option<TokenBucket>,
    sessions: usize,
    /// Whether it sent since the last look.
    sends: bool,
}

#[derive(Debug)]
struct Leg {
    peer: PeerId,
    /// Whose session it is, and whose rate.
    asker: PeerId,
    /// The leg by which its frames leave.
    other: u32,
    key: Mac,
    created: Instant,
    bound: Option<Bound>,
    /// The greatest counter heard.
    counter: u64,
    /// When a frame or a Bind last came.
    heard: Instant,
    challenged: Option<Instant>,
    bytes: u64,
    drops: Drops,
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

/// The bucket of a rate in Mbit/s.
fn limit(mbit: Option<u32>) -> Option<Limit> {
    Some(of_rate(u64::from(mbit?).saturating_mul(125_000)))
}

/// The bucket of so many bytes a second.
fn of_rate(per_second: u64) -> Limit {
    let burst = u64::try_from(BURST.as_millis())
        .unwrap_or(0)
        .saturating_mul(per_second / 1000)
        .max(LEAST_BURST);
    Limit::new(burst, per_second.max(1))
}

impl Server {
    /// A relay without sessions.
    pub fn new(now: Instant, limits: Limits, entropy: Entropy<'_>) -> Server {
        Server {
            limits,
            secret: Mac::new(&random::<MAC_KEY>(entropy)),
            started: now,
            legs: HashMap::new(),
            askers: HashMap::new(),
            looked: now,
            bytes: 0,
            drops: Drops::default(),
            refused: 0,
        }
    }

    /// Makes a session between the asker and another peer: the tickets of both. One that the asker has with that peer
    /// ends. The terms hold for all sessions of the asker from now on.
    ///
    /// # Errors
    /// [`Refusal::NotServed`] where the terms allow no session or the peer is the asker itself, [`Refusal::TooMany`],
    /// [`Refusal::Full`].
    pub fn allocate(
        &mut self,
        now: Instant,
        asker: PeerId,
        peer: PeerId,
        terms: Terms,
        entropy: Entropy<'_>,
    ) -> Result<(Ticket, Ticket), Refusal> {
        self.sweep(now);
        let mut former = self
            .legs
            .iter()
            .filter(|(_, leg)| leg.asker == asker && leg.peer == peer && leg.peer != asker);
        let former = former.next().map(|(index, _)| *index);
        if let Some(former) = former {
            self.end(former);
        }
        let held = self.askers.get(&asker).map_or(0, |asker| asker.sessions);
        let refusal = if terms.sessions == 0 || asker == peer {
            Some(Refusal::NotServed)
        } else if held >= terms.sessions {
            Some(Refusal::TooMany)
        } else if self.legs.len() / 2 >= self.limits.sessions {
            Some(Refusal::Full)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.refused = self.refused.saturating_add(1);
            return Err(refusal);
        }
        let entry = self.askers.entry(asker).or_insert(Asker {
            terms,
            bucket: limit(terms.mbit).map(TokenBucket::new),
            sessions: 0,
            sends: false,
        });
        entry.terms = terms;
        entry.sessions = entry.sessions.saturating_add(1);
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
        for (own, other, owner) in [(mine, theirs, asker), (theirs, mine, peer)] {
            let leg = Leg {
                peer: owner,
                asker,
                other: other.index,
                key: Mac::new(&own.key),
                created: now,
                bound: None,
                counter: 0,
                heard: now,
                challenged: None,
                bytes: 0,
                drops: Drops::default(),
            };
            self.legs.insert(own.index, leg);
        }
        Ok((mine, theirs))
    }

    /// Ends the session of that leg, where it is the asker's; whether it was.
    pub fn release(&mut self, asker: PeerId, index: u32) -> bool {
        let is_theirs = self.legs.get(&index).is_some_and(|leg| leg.asker == asker);
        if is_theirs {
            self.end(index);
        }
        is_theirs
    }

    /// Follows a change of whom the relay serves: what each asker may use from now on. Sessions of those who may have none
    /// end.
    pub fn retain(&mut self, terms: impl Fn(PeerId) -> Option<Terms>) {
        let now: Vec<(PeerId, Option<Terms>)> =
            self.askers.keys().map(|id| (*id, terms(*id))).collect();
        for (id, terms) in now {
            match terms.filter(|terms| terms.sessions > 0) {
                Some(terms) => {
                    if let Some(asker) = self.askers.get_mut(&id) {
                        asker.terms = terms;
                    }
                }
                None => {
                    let of = self.legs.iter().filter(|(_, leg)| leg.asker == id);
                    let gone: Vec<u32> = of.map(|(index, _)| *index).collect();
                    gone.into_iter().for_each(|index| self.end(index));
                }
            }
        }
    }

    /// Follows a change of what the relay serves in all.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Gives each asker its share: of the whole rate as much as each other one that sends, and not more than its terms say.
    fn share(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        let sending = self.askers.values().filter(|asker| asker.sends).count();
        let whole = limit(self.limits.mbit).map(|all| all.per_second);
        for asker in self.askers.values_mut() {
            // Who begins to send takes its share from the others at the next look.
            let others = sending.saturating_sub(usize::from(asker.sends));
            let even = whole.map(|whole| whole / number(others.saturating_add(1)));
            let own = limit(asker.terms.mbit).map(|own| own.per_second);
            asker.sends = false;
            match (even.into_iter().chain(own).min(), &mut asker.bucket) {
                (Some(rate), Some(bucket)) => bucket.set_limit(now, of_rate(rate)),
                (Some(rate), none) => *none = Some(TokenBucket::new(of_rate(rate))),
                (None, bucket) => *bucket = None,
            }
        }
    }

    /// Ends what was not bound in time, and what is idle. Called now and then; each new session does it as well.
    pub fn sweep(&mut self, now: Instant) {
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
        let Some(one) = self.legs.remove(&index) else {
            return;
        };
        let other = self.legs.remove(&one.other);
        for leg in [Some(&one), other.as_ref()].into_iter().flatten() {
            self.bytes = self.bytes.saturating_add(leg.bytes);
            self.drops = self.drops.plus(leg.drops);
        }
        if let Some(asker) = self.askers.get_mut(&one.asker) {
            asker.sessions = asker.sessions.saturating_sub(1);
            if asker.sessions == 0 {
                self.askers.remove(&one.asker);
            }
        }
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
        let (age, leg) = (self.age(now), self.legs.get_mut(&index)?);
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
            (leg.bound, leg.counter, leg.heard) = (here, counter, now);
            Message::Bound {
                counter,
                seen: from,
            }
        } else {
            Message::Challenge {
                counter,
                cookie: self.secret.sign(&facts(age, index, from)),
            }
        };
        Some(message.encode(index, &leg.key))
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
        self.legs.get(&index)?;
        self.share(now);
        let leg = self.legs.get(&index)?;
        let (other, asker) = (leg.other, leg.asker);
        let onward = self.legs.get(&other).and_then(|leg| leg.bound);
        let leg = self.legs.get_mut(&index)?;
        let datagrams = run.len().div_ceil(segment.max(1));
        if leg.bound.is_none_or(|bound| bound.from != from) {
            leg.drops.add(Drop::Elsewhere, number(datagrams));
            let is_due = leg.challenged.is_none_or(|at| at + CHALLENGE_EVERY <= now);
            if !is_due || segment.min(run.len()) < MESSAGE {
                return Some(Fate::Dropped);
            }
            leg.challenged = Some(now);
            let message = Message::Challenge {
                counter: leg.counter,
                cookie: self.secret.sign(&facts(age, index, from)),
            };
            return Some(Fate::Challenge(message.encode(index, &leg.key)));
        }
        (leg.heard, leg.bound) = (now, Some(Bound { from, local }));
        let Some(onward) = onward else {
            leg.drops.add(Drop::Unbound, number(datagrams));
            return Some(Fate::Dropped);
        };
        let mut segments = run.chunks(segment.max(1));
        let good = segments
            .position(|one| !carries_frame(one))
            .unwrap_or(datagrams);
        leg.drops
            .add(Drop::Malformed, number(datagrams.saturating_sub(good)));
        let asker = self.askers.get_mut(&asker);
        let bucket = asker.and_then(|asker| {
            asker.sends = true;
            asker.bucket.as_mut()
        });
        let allowed = match bucket {
            Some(bucket) => bucket.take_most(now, number(segment.min(run.len())), number(good)),
            None => number(good),
        };
        leg.drops
            .add(Drop::Rate, number(good).saturating_sub(allowed));
        let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
        let length = segment.saturating_mul(allowed).min(run.len());
        if length == 0 {
            return Some(Fate::Dropped);
        }
        leg.bytes = leg.bytes.saturating_add(number(length));
        for one in run.chunks_mut(segment.max(1)).take(allowed) {
            readdress(one, other);
        }
        Some(Fate::Onward(Onward {
            to: onward.from,
            local: onward.local,
            length,
        }))
    }

    /// Datagrams that were to leave by that leg did not.
    pub fn lost(&mut self, index: u32, datagrams: u64) {
        let from = self.legs.get(&index).map(|leg| leg.other);
        if let Some(leg) = from.and_then(|from| self.legs.get_mut(&from)) {
            leg.drops.add(Drop::Full, datagrams);
        }
    }

    /// The sessions, their bytes, and what was dropped or refused since the start.
    pub fn stats(&self, now: Instant) -> Stats {
        let mut sessions: Vec<SessionStats> = self
            .legs
            .values()
            .filter(|leg| leg.peer == leg.asker)
            .filter_map(|one| {
                let other = self.legs.get(&one.other)?;
                Some(SessionStats {
                    peers: [one.peer, other.peer],
                    addresses: [one, other].map(|leg| leg.bound.map(|bound| bound.from)),
                    bytes: [one.bytes, other.bytes],
                    mbit: self.askers.get(&one.asker).and_then(|a| a.terms.mbit),
                    drops: one.drops.plus(other.drops),
                    age: now.saturating_duration_since(one.created),
                })
            })
            .collect();
        sessions.sort_by(|a, b| b.age.cmp(&a.age).then(a.peers.cmp(&b.peers)));
        let live = self.legs.values();
        let (bytes, drops) = live.fold((self.bytes, self.drops), |(bytes, drops), leg| {
            (bytes.saturating_add(leg.bytes), drops.plus(leg.drops))
        });
        Stats {
            sessions,
            bytes,
            drops,
            refused: self.refused,
        }
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
