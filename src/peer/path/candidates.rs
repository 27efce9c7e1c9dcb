//! The addresses a peer may have, and when each is probed.

mod pairs;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::ways::Ways;
use super::{Entropy, Pair, Remote, THIN, THIN_TRIES, jittered};
use crate::backoff::HoldDown;
use crate::limit::{Limit, TokenBucket};
use crate::model::address::is_within;
use crate::wire::paths::{self, Kind};
use pairs::Locals;

/// The most addresses that are kept of one peer: what it may tell, and what is known otherwise.
pub(super) const MAX_CANDIDATES: usize = 24;
/// The most of these that are kept because frames came from there: whoever can make frames
/// come from anywhere does not push the others out.
const MAX_FRAMES: usize = 2;
/// When the first probes of a search go out, in milliseconds from its beginning: a burst that opens the NATs of both ends
/// at the same moment, then fewer and fewer.
const BURST: [u64; 7] = [0, 50, 150, 350, 750, 1550, 3150];
/// The time between two probes after these, for a minute, and of a host that is known to be the peer's.
const STEADY: Duration = Duration::from_secs(5);
/// How long a search is steady.
const SEARCH: Duration = Duration::from_secs(60);
/// The time between two probes beyond that while packets travel by a relay, and to an address that is only hearsay: somebody
/// else may be there, who wants none of them.
const SLOW: Duration = Duration::from_secs(60);
/// The time between two probes asked for by the peer's own: a burst of them is answered with one.
const HURRY: Duration = Duration::from_millis(200);
/// The least time between two bursts that the peer's probes ask for.
const AGAIN: Duration = Duration::from_secs(2);
/// Probes to addresses of one peer that have not answered: at once, and a second after that.
const UNPROVEN: Limit = Limit::new(96, 24);
/// How long such a probe is put off where there are too many.
const PUT_OFF: Duration = Duration::from_millis(100);
/// Probes of a spare without an answer before it counts as none.
const SPARE_TRIES: u32 = 3;
/// Round trips in a row that must be better before a path moves within its class.
const BETTER: u32 = 3;

/// Times in a row that a path may be left because it was silent, and taken again, without being held back.
const FLAPS: u32 = 2;

/// How an address was learnt, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The peer, or libp2p's address book, says so.
    Told,
    /// The peer or the address book says so, of a host that a stream of the peer's has reached: its
    /// key has answered there.
    Host,
    /// An authenticated frame came from there.
    Frame,
    /// It is the far address of a live QUIC connection.
    Connection,
    /// It is a leg at a relay that both ends have bound.
    Leg,
}

/// An address at which the peer is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The far end.
    pub remote: Remote,
    /// How it was learnt.
    pub origin: Origin,
    /// What the peer says of the address.
    pub kind: Kind,
    /// Whether a probe was ever answered from there.
    pub answered: bool,
    /// Probes sent there since the last search began.
    pub tries: u32,
    /// When the last of them went out.
    pub last: Option<Instant>,
}

#[derive(Debug)]
struct Candidate {
    /// The far end, and our own where it is one of several.
    pair: Pair,
    origin: Origin,
    kind: Kind,
    /// When the search there began, or begins.
    base: Instant,
    due: Instant,
    /// Probes since then.
    tries: u32,
    /// Whether it was learnt otherwise than from frames.
    named: bool,
    /// Whether the peer's own list has it.
    listed: bool,
    /// Whether a probe was ever answered from there.
    answered: bool,
    sent: Option<Instant>,
    /// Padded probes sent after a small one was answered, and when the last.
    padded: u32,
    padded_at: Option<Instant>,
    /// Until when it is left alone, because probes passed there and packets did not.
    barren: Option<Instant>,
    /// Probes as a spare since the last answer.
    missed: u32,
    /// The last round trip of a probe there while another address had the path, and how many in a row were better than its.
    rtt: Option<Duration>,
    better: u32,
    /// A path that comes and goes takes no other one's place for a while.
    held: HoldDown,
}

/// The addresses that are probed, the newest first, at most [`MAX_CANDIDATES`], and behind them their pairs with addresses of
/// ours.
#[derive(Debug)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    locals: Locals,
    ways: Ways,
    unproven: TokenBucket,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates {
            list: Vec::new(),
            locals: Locals::default(),
            ways: Ways::default(),
            unproven: TokenBucket::new(UNPROVEN),
        }
    }
}

/// The address as it is kept, without flow label and IPv4 mapping; `None` where nobody may send: overlay addresses in any
/// form, unspecified, multicast, broadcast, port 0, and from hearsay link-local IPv6 without its link, where it means nothing. No
/// message carries a link: one that has it was heard on that link.
pub fn usable(address: SocketAddr, origin: Origin, overlay: &[IpNet]) -> Option<SocketAddr> {
    let address =
        match address {
            SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
                Some(ip) => SocketAddr::new(IpAddr::V4(ip), v6.port()),
                None if v6.ip().is_unicast_link_local() => SocketAddr::V6(
                    std::net::SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()),
                ),
                None => SocketAddr::new(IpAddr::V6(*v6.ip()), v6.port()),
            },
            v4 => v4,
        };
    let usable = match address.ip() {
        IpAddr::V4(ip) => {
            ip.octets().first() != Some(&0) && !ip.is_multicast() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            let has_link = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            let is_vague = ip.is_unicast_link_local() && origin == Origin::Told && !has_link;
            !ip.is_unspecified() && !ip.is_multicast() && !is_vague
        }
    };
    (usable && address.port() != 0 && !is_within(address.ip(), overlay)).then_some(address)
}

impl Remote {
    /// The same with its address as it is kept; `None` where nobody may send: see [`usable`].
    pub(super) fn usable(self, origin: Origin, overlay: &[IpNet]) -> Option<Remote> {
        let address = usable(self.address, origin, overlay)?;
        Some(Remote { address, ..self })
    }
}

impl Candidate {
    fn new(now: Instant, pair: Pair, origin: Origin) -> Candidate {
        Candidate {
            pair,
            origin,
            kind: kind_of(pair.remote, origin),
            base: now,
            due: now,
            tries: 0,
            named: origin != Origin::Frame,
            listed: false,
            answered: false,
            sent: None,
            padded: 0,
            padded_at: None,
            barren: None,
            missed: 0,
            rtt: None,
            better: 0,
            held: HoldDown::new(FLAPS),
        }
    }

    /// Whether it is loopback from hearsay, which may be somebody else's own machine: it is tried
    /// only where there is nothing else.
    fn is_doubtful(&self) -> bool {
        self.origin == Origin::Told && self.pair.remote.address.ip().is_loopback()
    }

    /// Whether the peer is known to have been there.
    fn is_proven(&self) -> bool {
        self.answered || self.origin >= Origin::Host
    }

    /// A search there begins at that moment.
    fn begin(&mut self, at: Instant) {
        self.base = at;
        self.due = at;
        self.tries = 0;
        self.padded = 0;
        self.padded_at = None;
    }

    /// Whether it has carried no packets a short while ago.
    fn is_barren(&self, now: Instant) -> bool {
        self.barren.is_some_and(|until| now < until)
    }

    /// It is no spare any more.
    fn fail(&mut self) {
        (self.answered, self.rtt, self.better) = (false, None, 0);
    }

    /// A probe goes out: when the next one does.
    fn probed(&mut self, now: Instant, relayed: bool, entropy: Entropy<'_>) {
        let before = BURST.get(self.tries as usize).copied();
        self.tries = self.tries.saturating_add(1);
        self.sent = Some(now);
        let next = BURST.get(self.tries as usize).copied();
        self.due = match before.zip(next) {
            // A burst that was late keeps its distances.
            Some((before, next)) => (self.base + Duration::from_millis(next))
                .max(now + Duration::from_millis(next.saturating_sub(before)) / 2),
            None if now < self.base + SEARCH => now + jittered(STEADY, entropy),
            None if self.is_proven() && !relayed => now + jittered(STEADY, entropy),
            None => now + jittered(SLOW, entropy),
        };
    }
}

/// Whether the first is of a better class than the second: the peer itself, rather than a relay.
pub(super) fn is_better(a: Pair, b: Pair) -> bool {
    a.remote.leg.is_none() && b.remote.leg.is_some()
}

fn kind_of(remote: Remote, origin: Origin) -> Kind {
    match origin {
        _ if remote.leg.is_some() => Kind::Relay,
        Origin::Frame | Origin::Connection => Kind::Observed,
        _ => Kind::Host,
    }
}

impl Candidates {
    /// Takes addresses in, best first, in front of what was known. `keep` is never pushed out.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        addresses: &[SocketAddr],
        origin: Origin,
        overlay: &[IpNet],
        keep: Option<Remote>,
    ) {
        let remotes: Vec<Remote> = addresses.iter().copied().map(Remote::from).collect();
        self.take(now, &remotes, origin, overlay, keep);
    }

    /// Takes the peer's own list, in place of the one before.
    pub(super) fn offer_told(
        &mut self,
        now: Instant,
        told: &[paths::Candidate],
        overlay: &[IpNet],
        keep: Option<Remote>,
    ) {
        let usable = |address| usable(address, Origin::Told, overlay);
        let told = paths::within_quotas(told.iter().copied(), usable);
        let is_told = |c: &Candidate| told.iter().any(|t| c.pair.remote == t.address.into());
        let answered: Vec<Remote> = self
            .list
            .iter()
            .filter(|c| c.answered)
            .map(|c| c.pair.remote)
            .collect();
        self.list.retain(|c| {
            let is_answered = answered.contains(&c.pair.remote);
            let is_former = c.listed && !is_answered && c.origin == Origin::Told;
            !is_former || is_told(c) || Some(c.pair.remote) == keep
        });
        for candidate in &mut self.list {
            candidate.listed &= told
                .iter()
                .any(|t| candidate.pair.remote == t.address.into());
        }
        let remotes: Vec<Remote> = told.iter().map(|t| t.address.into()).collect();
        self.take(now, &remotes, Origin::Told, overlay, keep);
        for told in told {
            let of = |c: &&mut Candidate| c.pair.remote == told.address.into();
            for candidate in self.list.iter_mut().filter(of) {
                candidate.kind = told.kind;
                candidate.listed = true;
            }
        }
    }

    /// The same of the peer's own addresses and of legs at relays.
    pub(super) fn take(
        &mut self,
        now: Instant,
        remotes: &[Remote],
        origin: Origin,
        overlay: &[IpNet],
        keep: Option<Remote>,
    ) {
        let good = remotes
            .iter()
            .filter_map(|remote| remote.usable(origin, overlay));
        let good: Vec<Remote> = good.take(MAX_CANDIDATES).collect();
        for remote in good.into_iter().rev() {
            let known = self.list.iter().position(|c| c.pair == remote.into());
            let candidate = match known {
                Some(index) => {
                    let mut known = self.list.remove(index);
                    known.origin = known.origin.max(origin);
                    known.named |= origin != Origin::Frame;
                    known
                }
                None => Candidate::new(now, remote.into(), origin),
            };
            self.list.insert(0, candidate);
        }
        let plain = || self.list.iter().filter(|c| c.pair.local.is_none());
        let of_frames = plain().filter(|c| c.origin == Origin::Frame).count();
        let mut too_many = plain().count().saturating_sub(MAX_CANDIDATES);
        if of_frames > MAX_FRAMES
            && self.remove_last(|c| c.origin == Origin::Frame && Some(c.pair.remote) != keep)
        {
            too_many = too_many.saturating_sub(1);
        }
        for _ in 0..too_many {
            if !self.remove_last(|c| c.origin == Origin::Told && Some(c.pair.remote) != keep) {
                self.remove_last(|c| Some(c.pair.remote) != keep);
            }
        }
        self.pair_up(now, keep);
    }

    fn remove_last(&mut self, which: impl Fn(&Candidate) -> bool) -> bool {
        let is_one = |c: &Candidate| c.pair.local.is_none() && which(c);
        let Some(index) = self.list.iter().rposition(is_one) else {
            return false;
        };
        self.list.remove(index);
        true
    }

    fn get(&mut self, pair: Pair) -> Option<&mut Candidate> {
        self.list.iter_mut().find(|c| c.pair == pair)
    }

    /// Removes the candidates that `gone` names.
    pub(super) fn drop_where(&mut self, gone: impl Fn(Remote) -> bool) {
        self.list.retain(|c| !gone(c.pair.remote));
    }

    pub(super) fn has_answered(&self, remote: Remote) -> bool {
        self.list
            .iter()
            .any(|c| c.answered && c.pair.remote == remote)
    }

    /// What there is, the newest first, each address of the peer once.
    pub(super) fn tried(&self) -> impl Iterator<Item = Tried> {
        let plain = self.list.iter().filter(|c| c.pair.local.is_none());
        plain.map(|c| Tried {
            remote: c.pair.remote,
            origin: c.origin,
            kind: c.kind,
            answered: self.has_answered(c.pair.remote),
            tries: c.tries,
            last: c.sent,
        })
    }

    /// Drops addresses inside the overlay: a path there would lead through itself.
    pub(super) fn avoid(&mut self, overlay: &[IpNet]) {
        self.list
            .retain(|c| !is_within(c.pair.remote.address.ip(), overlay));
    }

    /// Every address is probed from that moment on, as if it were new: either end is elsewhere.
    pub(super) fn restart(&mut self, at: Instant) {
        for candidate in &mut self.list {
            candidate.barren = None;
            candidate.begin(at);
        }
    }

    /// The same but for what carried nothing a short while ago: that another path is lost, or that both ends begin to probe,
    /// does not mend it.
    pub(super) fn rush(&mut self, at: Instant) {
        let is_meant = |c: &&mut Candidate| !c.is_barren(at);
        let meant = self.list.iter_mut().filter(is_meant);
        meant.for_each(|c| c.begin(at));
    }

    /// What has not answered yet is probed from that moment on, beside a path straight to the peer: only what somebody named,
    /// and not again at once.
    pub(super) fn look_around(&mut self, at: Instant) {
        let is_meant = |c: &&mut Candidate| c.named && !c.answered && c.base + AGAIN <= at;
        let meant = self.list.iter_mut().filter(is_meant);
        meant.for_each(|c| c.begin(at));
    }

    /// The peer probes from there: the way is open now, and what was sent before died at its NAT.
    pub(super) fn hurry(&mut self, now: Instant, address: Pair) {
        if let Some(candidate) = self.get(address)
            && candidate.padded < THIN_TRIES
            && candidate.sent.is_none_or(|sent| sent + HURRY <= now)
        {
            if candidate.base + AGAIN <= now {
                candidate.begin(now);
            }
            candidate.due = now;
        }
    }

    /// A small probe was answered: whether padded ones are to follow now.
    pub(super) fn answered(&mut self, now: Instant, address: Pair) -> bool {
        let Some(candidate) = self.get(address).filter(|c| !c.is_barren(now)) else {
            return false;
        };
        (candidate.answered, candidate.missed) = (true, 0);
        if candidate.padded_at.is_some_and(|sent| sent + HURRY > now)
            || candidate.padded >= THIN_TRIES
        {
            return false;
        }
        candidate.padded = candidate.padded.saturating_add(1);
        candidate.padded_at = Some(now);
        candidate.due = candidate.due.min(now + Duration::from_millis(400));
        if candidate.padded == THIN_TRIES {
            candidate.due = now + THIN;
        }
        true
    }

    /// A probe was answered from there while another address had the path. `score`: the path's, which counts like a round
    /// trip. Whether that one is clearly better for the third time in a row.
    pub(super) fn is_there(
        &mut self,
        now: Instant,
        address: Pair,
        rtt: Duration,
        score: Option<Duration>,
    ) -> bool {
        // Probes are answered by what carries no packets, too: that makes it no spare.
        let Some(candidate) = self.get(address).filter(|c| !c.is_barren(now)) else {
            return false;
        };
        (candidate.answered, candidate.missed) = (true, 0);
        candidate.rtt = Some(rtt);
        let is_better = score.is_some_and(|score| {
            let margin = (score / 10).max(Duration::from_millis(5));
            rtt + margin < score
        });
        candidate.better = if is_better {
            candidate.better.saturating_add(1)
        } else {
            0
        };
        candidate.better >= BETTER && candidate.named
    }

    /// Another pair than the path's that has answered: of the best class, then one that differs from it in our address, the
    /// family or the relay, then the shortest way. Not one that only frames came from, which whoever copies frames chooses.
    pub(super) fn spare(&self, path: Pair) -> Option<Pair> {
        let classes = [false, true].into_iter();
        classes
            .filter_map(|is_leg| self.best_spare(path, is_leg))
            .next()
    }

    /// The same of one class: legs at relays, or the peer's own addresses.
    pub(super) fn best_spare(&self, path: Pair, is_leg: bool) -> Option<Pair> {
        let is_spare = |c: &&Candidate| {
            c.answered
                && c.named
                && c.pair != path
                && c.pair.remote.leg.is_some() == is_leg
                && !self.is_double(c.pair)
        };
        let spares = self.list.iter().filter(is_spare);
        let best = spares.min_by_key(|c| (!self.differs(c.pair, path), c.rtt.is_none(), c.rtt));
        best.map(|c| c.pair)
    }

    /// The spares that are kept warm now: the best of the peer's own addresses, and the best leg. Who did not answer three
    /// times is none any more.
    pub(super) fn take_spares(&mut self, path: Pair) -> Vec<Pair> {
        let mut taken = Vec::new();
        for is_leg in [false, true] {
            let best = self.best_spare(path, is_leg);
            if let Some(candidate) = best.and_then(|best| self.get(best)) {
                if candidate.missed >= 2 {
                    // It loses, too.
                    candidate.better = 0;
                }
                candidate.missed = candidate.missed.saturating_add(1);
                if candidate.missed > SPARE_TRIES {
                    candidate.fail();
                } else {
                    taken.push(candidate.pair);
                }
            }
        }
        taken
    }

    /// A spare did not answer when it was needed: another one is the next.
    pub(super) fn failed(&mut self, pair: Pair) {
        if let Some(candidate) = self.get(pair) {
            candidate.fail();
        }
    }

    /// The path there was left because it did not answer.
    pub(super) fn left(&mut self, now: Instant, pair: Pair) {
        if let Some(candidate) = self.get(pair) {
            candidate.held.changed(now);
        }
    }

    /// Whether that one came and went so often that it takes no other path's place now.
    pub(super) fn is_held(&self, now: Instant, pair: Pair) -> bool {
        let candidate = self.list.iter().find(|c| c.pair == pair);
        candidate.is_some_and(|c| c.held.until(now).is_some())
    }

    /// Whether a pair is one that is looked for while `path` is in use: of a better class, or of the same in the first burst
    /// of a search, because it may be the spare, or faster; and a leg that has not answered yet. One that was bound later than
    /// the path came up would never become the spare otherwise.
    fn allowed(&self, path: Option<Pair>) -> impl Fn(&Candidate, &Ways) -> bool + use<> {
        let mut own = self.list.iter().filter(|c| c.pair.remote.leg.is_none());
        let nothing_else = own.all(Candidate::is_doubtful);
        move |candidate, ways| {
            let pair = candidate.pair;
            let is_first = || {
                candidate.named && !candidate.answered && (candidate.tries as usize) < BURST.len()
            };
            let is_double = pair.local.is_some() && ways.of(pair.remote) == pair.local;
            (nothing_else || !candidate.is_doubtful())
                && !is_double
                && path.is_none_or(|path| {
                    let is_new_leg = pair.remote.leg.is_some() && !candidate.answered;
                    let may_be_spare = is_new_leg || (!is_better(path, pair) && is_first());
                    is_better(pair, path) || (pair != path && may_be_spare)
                })
        }
    }

    /// When the next one is to be probed.
    pub(super) fn due(&self, path: Option<Pair>) -> Option<Instant> {
        let allowed = self.allowed(path);
        let meant = self.list.iter().filter(|c| allowed(c, &self.ways));
        meant.map(|c| c.due).min()
    }

    /// One that is to be probed now.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        path: Option<Pair>,
        entropy: Entropy<'_>,
    ) -> Option<Pair> {
        let allowed = self.allowed(path);
        let relayed = path.is_some();
        for candidate in &mut self.list {
            if candidate.due > now || !allowed(candidate, &self.ways) {
                continue;
            }
            if !candidate.answered && !self.unproven.take(now) {
                candidate.due = now + PUT_OFF;
                continue;
            }
            if candidate.padded >= THIN_TRIES {
                candidate.padded = 0;
            }
            candidate.probed(now, relayed, entropy);
            return Some(candidate.pair);
        }
        None
    }

    /// The addresses, the newest first.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.list.iter().map(|c| c.pair.remote.address).collect()
    }
}
