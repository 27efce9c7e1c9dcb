//! The address book: where each peer may be, and who says so.
//!
//! Pure and bounded. What a person gave, and where the peer's key has answered, is dialled again and again. What was only
//! heard is tried once: a member that names somebody else's mail server makes each of us knock there one time. Such an
//! address gets another try when what its peer says changes, when this machine's own addresses change, when a person or a
//! waiting packet wants the peer ([`Book::again`]), and never by time alone.
//!
//! Of one peer at most [`HEARD`] addresses are kept that were heard and have not answered; of these at most [`LAN`] come from
//! the local network, where anybody may claim anything, and neither kind pushes the other out; nor do addresses through
//! relays, of which [`CIRCUITS`] are kept, whether or not they have answered. 256 peers are kept that are
//! not pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p::Multiaddr;
use tokio::time::Instant;

use super::address::{Address, Carrier, bare, carrier_of, is_circuit};
use crate::model::id::PeerId;

/// Addresses kept of one peer that were heard and have not answered.
pub(super) const HEARD: usize = 8;
/// The most of these that come from the local network.
const LAN: usize = 4;
/// Addresses kept of one peer at which it has answered.
const ANSWERED: usize = 8;
/// Addresses kept of one peer that a person gave.
const TYPED: usize = 16;
/// Addresses kept of one peer that lead through relays and that nobody typed.
const CIRCUITS: usize = 4;
/// Peers kept that nobody needs: what a LAN full of strangers announces.
const LOOSE: usize = 256;
/// The most heard addresses of one peer that may be tried at once: a peer that says something new
/// again and again does not make us dial again and again.
const TRIES: f64 = (HEARD + CIRCUITS) as f64;
/// The time in which one more of those [`TRIES`] comes back.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Who said first that a peer is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A person, on the command line or in the configuration.
    Typed,
    /// The peer, in the announcement that members hold of it.
    Announcement,
    /// The peer, over its connection.
    Identify,
    /// Whoever made an invite or told of the peer.
    Hint,
    /// A member whose records name the peer as a relay of its.
    Record,
    /// Nobody now: it answered there in an earlier run.
    Earlier,
    /// Nobody: this node dialled there, and the peer was who answered.
    Connection,
    /// Somebody on the local network.
    Lan,
}

impl Source {
    /// Whether it counts as the peer's own word, or is as good.
    fn is_peers(self) -> bool {
        !matches!(self, Source::Typed | Source::Lan)
    }
}

/// An address of a peer, as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where the peer may be.
    pub address: Address,
    /// Who said so first; a person's word stands before all others.
    pub source: Source,
    /// Whether the peer's key has answered there.
    pub answered: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    address: Multiaddr,
    word: Source,
    /// The peer's key has answered there.
    answered: bool,
    /// Whether it was dialled since it was heard, or since the last reason to try again.
    tried: bool,
    /// Whether another program of this machine said so.
    is_here: bool,
}

impl Entry {
    fn is_circuit(&self) -> bool {
        is_circuit(&self.address)
    }

    fn new(address: Multiaddr, word: Source) -> Entry {
        Entry {
            address,
            word,
            answered: false,
            tried: false,
            is_here: false,
        }
    }

    /// Whether it is dialled again and again.
    fn is_trusted(&self) -> bool {
        self.answered || self.word == Source::Typed
    }
}

#[derive(Debug, Default)]
struct Page {
    /// The peer's addresses, the best first.
    entries: Vec<Entry>,
    /// When it was last written, in calls.
    touched: u64,
    /// What is left of [`TRIES`], and since when.
    tries: Option<(f64, Instant)>,
}

/// What is dialled now of one peer's addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Those of the preferred carrier.
    pub(super) first: Vec<Multiaddr>,
    /// Those of the others, a moment later.
    pub(super) second: Vec<Multiaddr>,
    /// Those of WebSockets, after both.
    pub(super) web: Vec<Multiaddr>,
    /// Those through relays, no sooner.
    pub(super) circuits: Vec<Multiaddr>,
}

/// The pages of all peers, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: BTreeMap<PeerId, Page>,
    pinned: BTreeSet<PeerId>,
    clock: u64,
}

impl Page {
    /// What may be tried now of what was only heard.
    fn tries(&self, now: Instant) -> f64 {
        let grown =
            |at: Instant| now.saturating_duration_since(at).as_secs_f64() / TRY_AGAIN.as_secs_f64();
        self.tries
            .map_or(TRIES, |(left, at)| (left + grown(at)).min(TRIES))
    }

    fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        self.entries.iter().filter(|e| which(e)).count()
    }

    /// Drops the last entries of a kind beyond `most`.
    fn keep(&mut self, most: usize, which: impl Fn(&Entry) -> bool) {
        while self.count(&which) > most {
            let Some(last) = self.entries.iter().rposition(&which) else {
                return;
            };
            self.entries.remove(last);
        }
    }

    fn bound(&mut self) {
        self.keep(TYPED, |e| e.word == Source::Typed);
        self.keep(CIRCUITS, |e| e.is_circuit() && e.word != Source::Typed);
        self.keep(ANSWERED, |e| {
            e.answered && e.word != Source::Typed && !e.is_circuit()
        });
        self.keep(LAN, |e| e.word == Source::Lan && !e.answered);
        let lan = self.count(|e| e.word == Source::Lan && !e.answered);
        self.keep(HEARD.saturating_sub(lan), |e| {
            e.word.is_peers() && !e.answered && !e.is_circuit()
        });
    }
}

/// The first of each kind.
fn few(addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let (circuits, direct): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_circuit);
    let circuits = circuits.into_iter().take(CIRCUITS);
    direct.into_iter().take(HEARD).chain(circuits).collect()
}

impl Book {
    /// Peers whose pages are never given up.
    pub(super) fn pin(&mut self, peers: BTreeSet<PeerId>) {
        self.pinned = peers;
    }

    fn page(&mut self, peer: PeerId) -> &mut Page {
        self.clock += 1;
        let page = self.pages.entry(peer).or_default();
        page.touched = self.clock;
        page
    }

    /// A person says that the peer is there.
    pub(super) fn typed(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = bare(address);
        let page = self.page(peer);
        match page.entries.iter_mut().find(|e| e.address == address) {
            Some(known) => known.word = Source::Typed,
            None => page.entries.push(Entry::new(address, Source::Typed)),
        }
        page.bound();
        self.forget_the_oldest();
    }

    /// The peer says that it is there, at all of these and nowhere else; best first. Says whether any of them is new.
    pub(super) fn heard(&mut self, peer: PeerId, addresses: &[Multiaddr], source: Source) -> bool {
        let said: Vec<Multiaddr> = addresses.iter().map(bare).collect();
        let page = self.page(peer);
        page.entries
            .retain(|e| !e.word.is_peers() || e.answered || said.contains(&e.address));
        let before = page.entries.clone();
        for address in few(said) {
            // In the order of what was said, behind what has answered.
            match page.entries.iter_mut().find(|e| e.address == address) {
                Some(known) if known.word == Source::Lan => known.word = source,
                Some(_) => {}
                None => page.entries.push(Entry::new(address, source)),
            }
        }
        page.bound();
        let new = page
            .entries
            .iter()
            .any(|e| !before.iter().any(|b| b.address == e.address));
        self.forget_the_oldest();
        new
    }

    /// Somebody else says where the peer is, as an invite does, or the records of a member of which it is a relay; this
    /// stands beside what the peer says itself.
    pub(super) fn hinted(&mut self, peer: PeerId, addresses: &[Multiaddr], source: Source) {
        let page = self.page(peer);
        for address in few(addresses.iter().map(bare).collect()) {
            if !page.entries.iter().any(|e| e.address == address) {
                page.entries.push(Entry::new(address, source));
            }
        }
        page.bound();
        self.forget_the_oldest();
    }

    /// Somebody on the local network has just announced that the peer is there: that address may be tried once more. `is_here`:
    /// it was another program of this machine.
    pub(super) fn on_lan(&mut self, peer: PeerId, address: &Multiaddr, is_here: bool) {
        let address = bare(address);
        let page = self.page(peer);
        match page.entries.iter_mut().find(|e| e.address == address) {
            Some(known) => (known.tried, known.is_here) = (false, is_here),
            None => {
                // The newest of them stays: what is claimed now is likelier than what was claimed before.
                let first = page
                    .entries
                    .iter()
                    .position(|e| e.word == Source::Lan && !e.answered);
                let entry = Entry {
                    is_here,
                    ..Entry::new(address, Source::Lan)
                };
                page.entries
                    .insert(first.unwrap_or(page.entries.len()), entry);
            }
        }
        page.bound();
        self.forget_the_oldest();
    }

    /// The peer's key has answered there, now or in an earlier run: it comes first. `word` is how the address was learnt,
    /// where it is new.
    pub(super) fn worked(&mut self, peer: PeerId, address: &Multiaddr, word: Source) {
        let address = bare(address);
        let page = self.page(peer);
        let known = page
            .entries
            .iter()
            .position(|e| e.address == address)
            .map(|at| page.entries.remove(at));
        let mut entry = known.unwrap_or_else(|| Entry::new(address, word));
        entry.answered = true;
        if word == Source::Typed {
            entry.word = Source::Typed;
        }
        page.entries.insert(0, entry);
        page.bound();
        self.forget_the_oldest();
    }

    /// Whether any address of a peer is known.
    pub(super) fn has(&self, peer: &PeerId) -> bool {
        !self.entries(peer).is_empty()
    }

    /// All addresses of a peer, best first.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.entries(peer)
            .iter()
            .map(|e| e.address.clone())
            .collect()
    }

    /// The same, each with who said so.
    pub(super) fn known(&self, peer: &PeerId) -> Vec<Known> {
        let known = |e: &Entry| Known {
            address: Address(e.address.clone()),
            source: e.word,
            answered: e.answered,
        };
        self.entries(peer).iter().map(known).collect()
    }

    /// The addresses at which the peer has answered, or that a person gave.
    pub(super) fn trusted(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.entries(peer)
            .iter()
            .filter(|e| e.is_trusted())
            .map(|e| e.address.clone())
            .collect()
    }

    fn entries(&self, peer: &PeerId) -> &[Entry] {
        self.pages.get(peer).map_or(&[], |page| &page.entries)
    }

    /// Whose word an address is.
    pub(super) fn word(&self, peer: &PeerId, address: &Multiaddr) -> Option<Source> {
        let known = self.entries(peer).iter().find(|e| e.address == *address);
        known.map(|e| e.word)
    }

    /// Whether another program of this machine said last on a local network that the peer is there.
    pub(super) fn is_here(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        let of = |e: &&Entry| e.address == *address;
        self.entries(peer)
            .iter()
            .find(of)
            .is_some_and(|e| e.is_here)
    }

    /// Whether an address is a person's word.
    pub(super) fn is_typed(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        self.word(peer, address) == Some(Source::Typed)
    }

    /// The addresses that may be dialled now, in the order they are tried in.
    pub(super) fn due(&self, peer: &PeerId, prefer: Carrier, now: Instant) -> Due {
        let Some(page) = self.pages.get(peer) else {
            return Due::default();
        };
        let mut left = page.tries(now);
        let due = page.entries.iter().filter(|e| {
            let heard = !e.is_trusted() && !e.tried && left >= 1.0;
            if heard {
                left -= 1.0;
            }
            heard || e.is_trusted()
        });
        let mut rounds = Due::default();
        for address in due.map(|e| e.address.clone()) {
            match carrier_of(&address) {
                Some(carrier) if carrier == prefer => rounds.first.push(address),
                Some(Carrier::Web) => rounds.web.push(address),
                Some(Carrier::Relay) => rounds.circuits.push(address),
                _ => rounds.second.push(address),
            }
        }
        rounds
    }

    /// Whether there is an address that may be dialled now, through a relay (`circuits`) or not.
    pub(super) fn is_due(&self, peer: &PeerId, circuits: bool, now: Instant) -> bool {
        let page = self.pages.get(peer);
        page.is_some_and(|p| {
            p.entries
                .iter()
                .filter(|e| circuits || !is_circuit(&e.address))
                .any(|e| e.is_trusted() || (!e.tried && p.tries(now) >= 1.0))
        })
    }

    /// Whether an address is known at which the peer itself may be, rather than a relay.
    pub(super) fn has_direct(&self, peer: &PeerId) -> bool {
        self.entries(peer).iter().any(|e| !is_circuit(&e.address))
    }

    /// These addresses are dialled now.
    pub(super) fn dialled(&mut self, peer: &PeerId, addresses: &[Multiaddr], now: Instant) {
        let Some(page) = self.pages.get_mut(peer) else {
            return;
        };
        let mut left = page.tries(now);
        for entry in page
            .entries
            .iter_mut()
            .filter(|e| !e.is_trusted() && addresses.contains(&e.address))
        {
            entry.tried = true;
            left -= 1.0;
        }
        page.tries = Some((left.max(0.0), now));
    }

    /// There is a reason of our own to try what was heard of a peer once more.
    pub(super) fn again(&mut self, peer: &PeerId) {
        if let Some(page) = self.pages.get_mut(peer) {
            page.entries.iter_mut().for_each(|e| e.tried = false);
            page.tries = None;
        }
    }

    /// There is such a reason for all peers.
    pub(super) fn all_again(&mut self) {
        let peers: Vec<PeerId> = self.pages.keys().copied().collect();
        peers.iter().for_each(|peer| self.again(peer));
    }

    fn forget_the_oldest(&mut self) {
        let loose = || {
            self.pages
                .iter()
                .filter(|(peer, _)| !self.pinned.contains(peer))
        };
        if loose().count() > LOOSE
            && let Some(oldest) = loose()
                .min_by_key(|(_, page)| page.touched)
                .map(|(peer, _)| *peer)
        {
            self.pages.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
