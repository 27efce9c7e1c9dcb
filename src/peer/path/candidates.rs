//! The addresses a peer may have, and when each is probed.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Entropy, Remote, THIN, THIN_TRIES, jittered};
use crate::model::address::is_within;

/// The most addresses that are kept of one peer.
pub(super) const MAX_CANDIDATES: usize = 8;
/// The most of these that are kept because frames came from there: whoever can make frames
/// come from anywhere does not push the others out.
const MAX_FRAMES: usize = 2;
/// Probes of an address at the quick pace.
const QUICK: u32 = 8;
/// The time between two probes, beyond those, of an address that is only hearsay: somebody else may
/// be there, who wants none of them.
const HEARSAY: Duration = Duration::from_secs(60);
/// The time between two probes asked for by the peer's own: a burst of them is answered with one.
const HURRY: Duration = Duration::from_millis(200);

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
}

#[derive(Debug)]
struct Candidate {
    remote: Remote,
    origin: Origin,
    due: Instant,
    tries: u32,
    /// Whether it was learnt otherwise than from frames.
    named: bool,
    /// Whether a probe was ever answered from there.
    answered: bool,
    sent: Option<Instant>,
    /// Padded probes sent after a small one was answered, and when the last.
    padded: u32,
    padded_at: Option<Instant>,
}

/// The addresses that are probed, the newest first, at most [`MAX_CANDIDATES`].
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

/// The address as it is kept, without flow label and IPv4 mapping; `None` where nobody may send: overlay addresses in any
/// form, unspecified, multicast, broadcast, port 0, and from hearsay link-local IPv6, which means nothing without its interface.
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
            let scoped = ip.is_unicast_link_local() && origin == Origin::Told;
            !ip.is_unspecified() && !ip.is_multicast() && !scoped
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
    /// Whether it is loopback from hearsay, which may be somebody else's own machine: it is tried
    /// only where there is nothing else.
    fn is_doubtful(&self) -> bool {
        self.origin == Origin::Told && self.remote.address.ip().is_loopback()
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
            let known = self.0.iter().position(|c| c.remote == remote);
            let candidate = match known {
                Some(index) => {
                    let mut known = self.0.remove(index);
                    known.origin = known.origin.max(origin);
                    known.named |= origin != Origin::Frame;
                    known
                }
                None => Candidate {
                    remote,
                    origin,
                    due: now,
                    tries: 0,
                    named: origin != Origin::Frame,
                    answered: false,
                    sent: None,
                    padded: 0,
                    padded_at: None,
                },
            };
            self.0.insert(0, candidate);
        }
        if self.0.iter().filter(|c| c.origin == Origin::Frame).count() > MAX_FRAMES {
            self.remove_last(|c| c.origin == Origin::Frame && Some(c.remote) != keep);
        }
        while self.0.len() > MAX_CANDIDATES {
            if !self.remove_last(|c| c.origin == Origin::Told && Some(c.remote) != keep) {
                self.remove_last(|c| Some(c.remote) != keep);
            }
        }
    }

    fn remove_last(&mut self, which: impl Fn(&Candidate) -> bool) -> bool {
        let Some(index) = self.0.iter().rposition(which) else {
            return false;
        };
        self.0.remove(index);
        true
    }

    /// Drops addresses inside the overlay: a path there would lead through itself.
    pub(super) fn avoid(&mut self, overlay: &[IpNet]) {
        self.0
            .retain(|c| !is_within(c.remote.address.ip(), overlay));
    }

    /// Every address is probed at once, as if it were new.
    pub(super) fn restart(&mut self, now: Instant) {
        for candidate in &mut self.0 {
            candidate.due = now;
            candidate.tries = 0;
            candidate.padded = 0;
            candidate.padded_at = None;
        }
    }

    /// The peer probes from there: the way is open now.
    pub(super) fn hurry(&mut self, now: Instant, address: Remote) {
        let known = self.0.iter_mut().find(|c| c.remote == address);
        if let Some(candidate) = known
            && candidate.padded < THIN_TRIES
            && candidate.sent.is_none_or(|sent| sent + HURRY <= now)
        {
            candidate.due = now;
        }
    }

    /// A small probe was answered: whether padded ones are to follow now.
    pub(super) fn answered(&mut self, now: Instant, address: Remote) -> bool {
        let Some(candidate) = self.0.iter_mut().find(|c| c.remote == address) else {
            return false;
        };
        candidate.answered = true;
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

    /// A probe was answered from there while another address had the path.
    pub(super) fn is_there(&mut self, address: Remote) {
        if let Some(candidate) = self.0.iter_mut().find(|c| c.remote == address) {
            candidate.answered = true;
        }
    }

    /// Another address than the path's that has answered: not one that only frames came from, which whoever copies frames
    /// chooses.
    pub(super) fn spare(&self, path: Remote) -> Option<Remote> {
        let is_spare = |c: &&Candidate| c.answered && c.named && c.remote != path;
        self.0.iter().find(is_spare).map(|c| c.remote)
    }

    /// Nothing of the least size arrives there.
    pub(super) fn thin(&mut self, now: Instant, address: Remote) {
        if let Some(candidate) = self.0.iter_mut().find(|c| c.remote == address) {
            candidate.due = now + THIN;
            candidate.padded = THIN_TRIES;
        }
    }

    fn allowed(&self) -> impl Fn(&Candidate) -> bool + use<> {
        let nothing_else = self.0.iter().all(Candidate::is_doubtful);
        move |candidate| nothing_else || !candidate.is_doubtful()
    }

    /// When the next one is to be probed.
    pub(super) fn due(&self) -> Option<Instant> {
        let allowed = self.allowed();
        self.0.iter().filter(|c| allowed(c)).map(|c| c.due).min()
    }

    /// One that is to be probed now.
    pub(super) fn take_due(&mut self, now: Instant, entropy: Entropy<'_>) -> Option<Remote> {
        let allowed = self.allowed();
        let candidate = self.0.iter_mut().find(|c| allowed(c) && c.due <= now)?;
        if candidate.padded >= THIN_TRIES {
            candidate.padded = 0;
        }
        candidate.tries = candidate.tries.saturating_add(1);
        candidate.sent = Some(now);
        let wait = match candidate.tries {
            1 => Duration::from_millis(250),
            2 => Duration::from_millis(500),
            n if n < QUICK => Duration::from_secs(2),
            _ if candidate.origin == Origin::Told && !candidate.answered => HEARSAY,
            _ => Duration::from_secs(4),
        };
        candidate.due = now + jittered(wait, entropy);
        Some(candidate.remote)
    }

    /// The addresses, the newest first.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|c| c.remote.address).collect()
    }
}
