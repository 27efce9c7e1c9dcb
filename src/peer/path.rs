//! Which address of a peer datagrams go to, and how large they may be: probing, keep-alive, path MTU, roaming.
//!
//! Owns the addresses a peer may have, the probes under way and the path in use, for all subnets in common with it. A machine
//! without I/O: time, entropy and what was heard are arguments, what is to be done comes out of [`Paths::poll`]. Probes and
//! answers travel in sealed frames, so whoever answers holds the session's keys; tokens are random, so nobody can answer
//! for an address where the probe did not arrive. Nothing but probes and answers goes to an address that has not answered:
//! at most three times the bytes that came from there.
//!
//! ```text
//! no path   each candidate is probed at 0, 50, 150, 350, 750, 1550 and 3150 ms, then every 5 s for a minute, then every
//!           minute, or still every 5 s where the peer is known to be there; anew when both ends have told each other more
//! answered  two padded probes, 1280 and 1500 bytes: the first of them that is answered makes the path
//! pairs     where several addresses of ours may reach the peer, each of them is tried with each of the peer's: a path is a
//!           pair, and a machine with two uplinks goes on by the other one
//! relayed   the path is a leg at a relay: the peer's own addresses are looked for all the same, at last every minute, and
//!           the first that carries 1280 bytes takes the path over
//! bad       three of the last eight keep-alives were lost, or answered after more than a second: the spares are probed every
//!           350 ms, and one that is clearly better three times in a row takes the path over; each further time it has to be
//!           kept for longer first
//! spare     the best other pair and the best other leg that have answered are probed every 15 s, and more often while
//!           the path loses much; first one that differs from the path in our address, the family or the relay. One of the path's
//!           class that is clearly faster three times in a row takes the path over, ten seconds after the last change
//! quiet     a minute without a packet: fewer and fewer keep-alives, at last one in 25 s, by one end alone, and none of the spares
//! path      a probe every 2 s, with traffic every 0.7 s, and padded to the path MTU; a missed one again after 400 ms,
//!           and every 300 ms from the third on
//! moved     a newer frame came from elsewhere: both addresses are probed; the old one keeps the path if it answers in 1 s, and
//!           is left in peace for 30 s then, for as long as it misses nothing
//! silent    a second probe was missed: another pair that has answered before is probed beside the path's, and takes the
//!           path over if it alone answers within 1 s, or if it answers three times and the path not half as often
//! suspect   when the last connection to the peer closed: three probes, 150 ms apart, settle it
//! aging     two mappings of ours ended at the same age: the next one is left for another socket's when it has lived for
//!           four fifths of that, and the peer is told
//! flapping  what was left as silent more than twice takes no other path's place for 1 s, then for 2 s, up to a minute
//! lost      no answer for 3.5 s, with traffic 3 s, and three probes: the stream carries, every candidate is probed again
//! ```

mod aging;
mod answers;
mod candidates;
mod history;
mod lead;
mod live;
mod lossy;
mod mtu;
mod output;
mod probes;
mod quiet;
mod ways;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

pub use candidates::{Origin, Tried, usable};
pub use history::{Cause, Change};
pub use mtu::BASE;
pub use output::{Output, Path};

use super::proof::Patience;
use super::{Entropy, Pair, Remote};
use aging::Aging;
use candidates::{Candidates, is_better};
use history::History;
use live::{Challenge, Live};
use lossy::Haste;
use probes::Pending;
use quiet::Quiet;

use crate::model::address::is_within;
use crate::wire::paths::Candidate;
use crate::wire::relay;

/// The time between two probes on a path with traffic, and between two looks at whether there is any. With two repeats, a
/// silent path is left for its spare within 1.6 s; so is one whose probes pass and whose packets do not, of which half an
/// interval may have gone well.
const BUSY_PROBE_INTERVAL: Duration = Duration::from_millis(700);
/// The time between two probes on a path without traffic: with the peer's own under 300 bytes/s, IP
/// headers included.
const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// A missed probe is sent again after this, or twice the round trip where that is longer.
const REPEAT: Duration = Duration::from_millis(400);
/// The same where two in a row were missed: the more of them are lost, the less it is chance.
const PRESSING: Duration = Duration::from_millis(300);
/// A path without an answer for so long is lost, after at least [`LOST_PROBES`].
const LOST: Duration = Duration::from_millis(3500);
/// The same with traffic, whose probes begin sooner: seven of them are missed by then.
const BUSY_LOST: Duration = Duration::from_secs(3);
/// The time between two probes of a path that is suspected.
const SUSPECT: Duration = Duration::from_millis(150);
/// Probes that must have gone unanswered before a path is lost: a process that slept asks first.
const LOST_PROBES: u32 = 3;
/// The old address keeps the path when it answers within this of a frame from another address.
const CHALLENGE: Duration = Duration::from_secs(1);
/// After the old address has won, frames from elsewhere challenge it no more for so long, unless it misses a keep-alive: a
/// peer of two families that both work sends from the one while it is answered from the other.
const SETTLED: Duration = Duration::from_secs(30);
/// The time between two probes of a challenge.
const CHALLENGE_REPEAT: Duration = Duration::from_millis(300);
/// How long a path is used before another one of its class takes its place because it is faster.
const DWELL: Duration = Duration::from_secs(10);
/// The time between two probes of a spare: it keeps the NATs on the way open, and tells whether it is there.
const SPARE: Duration = Duration::from_secs(15);
/// The time to the next probe where few packets arrive.
const DOUBT: Duration = Duration::from_millis(250);
/// A probe is forgotten after this.
const FORGET: Duration = Duration::from_secs(5);
/// Bound of twice the round trip where it decides how long an answer may take.
const MAX_ANSWER_TIME: Duration = Duration::from_millis(1500);
/// An address whose small probes are answered and whose padded ones never is left alone for so long.
const THIN: Duration = Duration::from_secs(30);
/// Padded probes to an address without an answer before that.
const THIN_TRIES: u32 = 4;
/// Probes and answers that wait to be sent; the caller takes them out after every call.
const MAX_OUTPUTS: usize = 256;

/// Finds the paths to one peer, and keeps one of them in use.
#[derive(Debug, Default)]
pub struct Paths {
    /// There is a key to seal probes with.
    running: bool,
    candidates: Candidates,
    pending: VecDeque<Pending>,
    live: Option<Live>,
    outputs: VecDeque<Output>,
    /// Frames of traffic sent so far, as the caller tells.
    data: u64,
    history: History,
    haste: Haste,
    aging: Aging,
    quiet: Quiet,
    /// Which end is the later where both ask at once.
    waits_longer: bool,
}

/// Bytes of the frame in an IP packet of `size` bytes: the UDP payload, less what stands in front of a frame to a relay.
fn payload(to: Remote, size: u16) -> usize {
    let headers = if to.address.is_ipv4() { 28 } else { 48 };
    let prefix = if to.leg.is_some() { relay::PREFIX } else { 0 };
    usize::from(size).saturating_sub(headers + prefix)
}

fn bytes<const N: usize>(entropy: Entropy<'_>) -> [u8; N] {
    let mut bytes = [0; N];
    entropy(&mut bytes);
    bytes
}

/// `time`, give or take a sixteenth: two hundred peers do not probe in step.
fn jittered(time: Duration, entropy: Entropy<'_>) -> Duration {
    let [random] = bytes(entropy);
    (time - time / 16) + time / 8 * u32::from(random) / 256
}

impl Paths {
    /// Begins without a candidate, a key or a path.
    pub fn new() -> Paths {
        Paths::default()
    }

    /// Legs at relays that lead to the peer, best first. It replaces what was said before; a path over another one is lost.
    pub fn legs(&mut self, now: Instant, legs: &[Remote], overlay: &[IpNet]) {
        let gone = |remote: Remote| remote.leg.is_some() && !legs.contains(&remote);
        if self.live.as_ref().is_some_and(|live| gone(live.to.remote)) {
            self.lose(now, Cause::LegGone);
        }
        self.candidates.drop_where(gone);
        let keep = self.keep();
        self.candidates.take(now, legs, Origin::Leg, overlay, keep);
    }

    /// Addresses the peer may have, best first; those nobody may send to (see [`usable`]) are left out.
    pub fn offer(
        &mut self,
        now: Instant,
        addresses: &[SocketAddr],
        origin: Origin,
        overlay: &[IpNet],
    ) {
        let keep = self.keep();
        self.candidates.offer(now, addresses, origin, overlay, keep);
    }

    /// Where the peer says it may be reached, in place of what it said before.
    pub fn offer_told(&mut self, now: Instant, told: &[Candidate], overlay: &[IpNet]) {
        let keep = self.keep();
        self.candidates.offer_told(now, told, overlay, keep);
    }

    /// The peer's address that is in use: it is never pushed out.
    fn keep(&self) -> Option<Remote> {
        self.live.as_ref().map(|live| live.to.remote)
    }

    /// Both ends begin to probe at that moment: every address where no path leads straight to the peer, else what has not
    /// answered yet and may be the spare.
    pub fn burst(&mut self, at: Instant) {
        if self
            .live
            .as_ref()
            .is_none_or(|live| live.to.remote.leg.is_some())
        {
            self.candidates.rush(at);
        } else {
            self.candidates.look_around(at);
        }
    }

    /// This machine has these addresses from now on, best first.
    pub fn roamed(&mut self, now: Instant, locals: &[IpAddr]) {
        let keep = self.keep();
        self.candidates.set_locals(now, locals, keep);
        // Where our address is gone, the kernel chooses another one.
        self.follow_keys();
        if let Some(live) = &mut self.live {
            live.challenge = None;
            live.elsewhere = None;
        }
        self.tell();
        self.aging.forget();
        self.quiet.forget();
        self.suspect(now);
        self.candidates.restart(now);
    }

    /// Our address that datagrams to there leave from, as far as it is known.
    pub fn local_to(&self, remote: Remote) -> Option<IpAddr> {
        let live = self.live.as_ref().filter(|live| live.to.remote == remote);
        self.candidates
            .way(live.map_or(remote.into(), |live| live.to))
            .local
    }

    /// A frame came from there.
    fn found(&mut self, now: Instant, from: Remote, overlay: &[IpNet]) {
        let keep = self.keep();
        self.candidates
            .take(now, &[from], Origin::Frame, overlay, keep);
    }

    /// The overlay's prefixes changed: addresses inside them are dropped.
    pub fn avoid(&mut self, now: Instant, overlay: &[IpNet]) {
        self.candidates.avoid(overlay);
        if self
            .live
            .as_ref()
            .is_some_and(|live| is_within(live.to.remote.address.ip(), overlay))
        {
            self.lose(now, Cause::Forbidden);
        }
    }

    /// There is a key: probing begins, or goes on.
    pub fn start(&mut self, now: Instant) {
        if !self.running {
            self.running = true;
            self.candidates.restart(now);
        }
    }

    /// There is no key: nothing is sent any more.
    pub fn stop(&mut self, now: Instant) {
        self.running = false;
        self.pending.clear();
        self.candidates.forget_ways();
        self.outputs.retain(|output| *output == Output::Lost);
        if let Some(live) = self.live.take() {
            self.history.add(now, Some(live.to), None, Cause::NoKey);
            self.outputs.push_back(Output::Lost);
        }
    }

    /// Frames of traffic sent so far: whether it flowed decides how often, and how large, the path is probed.
    pub fn data(&mut self, frames: u64) {
        self.data = frames;
    }

    /// The path in use.
    pub fn path(&self) -> Option<Path> {
        let live = self.live.as_ref()?;
        Some(Path {
            pair: self.candidates.way(live.to),
            since: live.since,
            rtt: live.rtt,
            mtu: live.search.mtu(),
            loss: live.tried.loss(),
        })
    }

    /// How long an answer may take on the path in use; none where there is none.
    pub(super) fn patience(&self) -> Option<Patience> {
        let live = self.live.as_ref()?;
        Some(Patience {
            usual: live.patience(REPEAT),
            suspect: live.patience(SUSPECT),
        })
    }

    /// A frame came that way. The path leaves from the address of ours that its frames come to.
    pub fn note(&mut self, pair: Pair) {
        self.learn(|candidates| candidates.note(pair));
    }

    /// Where that changes which address of ours the path leaves from, packets follow.
    fn learn(&mut self, what: impl FnOnce(&mut Candidates)) {
        let live = self.live.as_ref().map(|live| live.to);
        let before = live.map(|to| self.candidates.way(to));
        what(&mut self.candidates);
        self.follow_keys();
        if before != live.map(|to| self.candidates.way(to)) {
            self.tell();
        }
    }

    /// Another candidate may stand for a pair by now: all that names the former one follows, or what is sent on the path would
    /// count for another.
    fn follow_keys(&mut self) {
        let key = |pair: &mut Pair| *pair = self.candidates.key(*pair);
        self.pending.iter_mut().for_each(|probe| key(&mut probe.to));
        let Some(live) = &mut self.live else { return };
        key(&mut live.to);
        live.elsewhere.iter_mut().for_each(key);
        live.elsewhere.take_if(|from| *from == live.to);
        live.challenge.iter_mut().for_each(|c| key(&mut c.to));
        live.challenge.take_if(|challenge| challenge.to == live.to);
    }

    /// Paths gained, lost or moved since the start.
    pub fn changes(&self) -> u64 {
        self.history.count()
    }

    /// The last of these, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Change> {
        self.history.last()
    }

    /// Whether a probe was ever answered from there.
    pub fn has_answered(&self, remote: Remote) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.to.remote == remote)
            || self.candidates.has_answered(remote)
    }

    /// Where the peer is looked for.
    pub fn tried(&self) -> impl Iterator<Item = Tried> {
        self.candidates.tried()
    }

    /// A probe came in an opened frame.
    pub fn on_probe(&mut self, now: Instant, pair: Pair, token: u64, overlay: &[IpNet]) {
        let Some(from) = pair.remote.usable(Origin::Frame, overlay) else {
            return;
        };
        if !self.running {
            return;
        }
        self.output(Output::Answer {
            pair: Pair {
                remote: from,
                ..pair
            },
            token,
        });
        self.found(now, from, overlay);
        let from = self.candidates.key(Pair {
            remote: from,
            ..pair
        });
        self.hear(now, from);
        if self
            .live
            .as_ref()
            .is_none_or(|live| is_better(from, live.to))
        {
            self.candidates.hurry(now, from);
        }
    }

    /// A newest frame came from an address that is not the path's: the peer moved, or somebody sends its frames on.
    pub fn on_moved(&mut self, now: Instant, pair: Pair, overlay: &[IpNet], entropy: Entropy<'_>) {
        let Some(from) = pair.remote.usable(Origin::Frame, overlay) else {
            return;
        };
        self.found(now, from, overlay);
        if !self.running {
            return;
        }
        let from = self.candidates.key(Pair {
            remote: from,
            ..pair
        });
        let Some(live) = &mut self.live else {
            self.candidates.hurry(now, from);
            return;
        };
        if is_better(from, live.to) {
            self.candidates.hurry(now, from);
            return;
        }
        let is_same = from.remote.address == live.to.remote.address;
        if is_same && from.remote.leg.is_none() && now < live.moved + CHALLENGE {
            // What was under way to the socket that was left.
            return;
        }
        if is_better(live.to, from) && live.missed < 2 {
            // The peer sends by a relay what can go straight the other way: that is its own affair.
            return;
        }
        live.elsewhere = Some(from).filter(|from| *from != live.to);
        if live.may_be_challenged(now)
            && let Some(to) = live.elsewhere.take()
        {
            self.begin_challenge(now, to, entropy);
        }
    }

    /// What is not the path is probed anew from now on, but for what carried nothing a short while ago.
    pub fn look(&mut self, now: Instant) {
        self.candidates.rush(now);
    }

    /// There is reason to think that the peer is gone, though nothing was missed yet: the path is probed at once, and lost
    /// in less than a second.
    pub fn suspect(&mut self, now: Instant) {
        if let Some(live) = self.live.as_mut().filter(|live| live.suspect.is_none()) {
            live.suspect = Some(now);
            live.missed = 0;
            live.enough = None;
            live.next = now;
        }
    }

    /// Whether the probe is one of the path in use, as large as what that is held to carry.
    pub(super) fn is_full(&self, token: u64) -> bool {
        let probe = self.pending.iter().find(|probe| probe.token == token);
        self.live
            .as_ref()
            .zip(probe)
            .is_some_and(|(live, probe)| live.to == probe.to && probe.size >= live.search.mtu())
    }

    /// Few packets arrive where probes do: the next probe tells soon whether any still do.
    pub(super) fn doubt(&mut self, now: Instant) {
        if let Some(live) = &mut self.live {
            live.next = live.next.min(now + DOUBT);
        }
    }

    /// Probes of every size are answered on the path in use, and no packets arrive: somebody on the way drops them. It is
    /// left for the spare, or for the stream, and its address alone for a while.
    pub(super) fn data_lost(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(to) = self.live.as_ref().map(|live| live.to) else {
            return;
        };
        match self.candidates.spare(to) {
            Some(spare) => self.move_to(now, spare, Cause::DataLost, entropy),
            None => self.lose(now, Cause::DataLost),
        }
        self.candidates.thin(now, to);
    }

    /// A frame of traffic was larger than the interface takes: the path shrank.
    pub fn too_big(&mut self, now: Instant, entropy: Entropy<'_>) {
        if self
            .live
            .as_ref()
            .is_some_and(|live| live.search.mtu() > BASE)
        {
            self.fall(now, entropy);
        }
    }

    /// A probe was larger than the interface takes.
    pub fn refused(&mut self, token: u64) {
        let Some(index) = self.pending.iter().position(|probe| probe.token == token) else {
            return;
        };
        let Some(probe) = self.pending.remove(index) else {
            return;
        };
        if let Some(live) = self.live.as_mut().filter(|live| live.to == probe.to) {
            live.search.refused(probe.size);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.running {
            return None;
        }
        let Some(live) = &self.live else {
            return self.candidates.due(None);
        };
        let challenge = live
            .challenge
            .as_ref()
            .map(|c| c.next.min(c.started + CHALLENGE));
        [
            Some(live.next),
            Some(live.spare_at),
            self.candidates.due(Some(live.to)),
            live.search.due(),
            live.lost_at(),
            live.hole_at(),
            self.aging.due(),
            challenge,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant, entropy: Entropy<'_>) {
        if !self.running {
            return;
        }
        while self
            .pending
            .front()
            .is_some_and(|probe| probe.sent + FORGET <= now)
        {
            self.forget_oldest();
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(live) = self.live.as_mut().filter(|live| due(live.lost_at())) {
            match live.challenge.take().filter(Challenge::is_answered) {
                Some(challenge) => self.move_to(now, challenge.to, Cause::Silent, entropy),
                None => self.lose(now, Cause::Silent),
            }
        }
        if self.live.as_ref().is_some_and(|live| due(live.hole_at())) {
            self.fall(now, entropy);
        }
        if self
            .live
            .as_ref()
            .is_some_and(|live| live.challenge.as_ref().is_some_and(|c| c.next <= now))
        {
            self.challenge(now, entropy);
        }
        if self.live.as_ref().is_some_and(|live| live.next <= now) {
            self.keep_alive(now, entropy);
        }
        if self
            .live
            .as_ref()
            .is_some_and(|live| due(live.search.due()))
        {
            self.search(now, entropy);
        }
        if self.live.as_ref().is_some_and(|live| live.spare_at <= now) {
            self.keep_spares(now, entropy);
        }
        if due(self.aging.due()) {
            self.keep_young(now, entropy);
        }
        let path = self.live.as_ref().map(|live| live.to);
        while let Some(to) = self.candidates.take_due(now, path, entropy) {
            self.probe(now, to, 0, entropy);
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn output(&mut self, output: Output) {
        if self.outputs.len() < MAX_OUTPUTS {
            self.outputs.push_back(output);
        }
    }

    /// Says where packets go and how large they may be.
    fn tell(&mut self) {
        if let Some(live) = &self.live {
            let (to, settled) = (live.to, live.search.is_settled());
            let pair = self.candidates.way(to);
            let payload = payload(to.remote, live.search.mtu());
            self.outputs.push_back(Output::Up {
                pair,
                payload,
                settled,
            });
        }
    }
}

#[cfg(test)]
mod tests;
