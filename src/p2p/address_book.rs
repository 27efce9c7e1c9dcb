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

    /// Somebody on the local network has just announced that the peer is there: that address may be tried once more.
    pub(super) fn on_lan(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = bare(address);
        let page = self.page(peer);
        match page.entries.iter_mut().find(|e| e.address == address) {
            Some(known) => known.tried = false,
            None => {
                // The newest of them stays: what is claimed now is likelier than what was claimed before.
                let first = page
                    .entries
                    .iter()
                    .position(|e| e.word == Source::Lan && !e.answered);
                page.entries.insert(
                    first.unwrap_or(page.entries.len()),
                    Entry::new(address, Source::Lan),
                );
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
mod tests {
    use super::*;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{}", 1000 + n).parse().unwrap()
    }

    #[test]
    fn addresses_through_relays_have_room_beside_any_number_of_others() {
        let (mut book, peer) = (Book::default(), PeerId([1; 32]));
        let key = libp2p::identity::Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let relay = key.public().to_peer_id();
        let circuit = |n: usize| super::super::address::Circuit::through(&address(n), relay);
        let said: Vec<_> = (0..20).map(address).chain((0..9).map(circuit)).collect();
        assert!(book.heard(peer, &said, Source::Announcement));
        let kept = book.addresses(&peer);
        let circuits = kept.iter().filter(|a| is_circuit(a)).count();
        assert_eq!((kept.len() - circuits, circuits), (HEARD, CIRCUITS));
        book.worked(peer, &circuit(7), Source::Connection);
        let now = Instant::now();
        let due = book.due(&peer, Carrier::Tcp, now);
        assert_eq!((due.first.len(), due.circuits.len()), (HEARD, CIRCUITS));
        assert_eq!(due.circuits[0], circuit(7));
        assert!(book.is_due(&peer, false, now) && book.has_direct(&peer));
    }

    fn due(book: &Book, peer: PeerId, now: Instant) -> Vec<Multiaddr> {
        let Due { first, second, .. } = book.due(&peer, Carrier::Tcp, now);
        first.into_iter().chain(second).collect()
    }

    #[test]
    fn what_was_heard_is_tried_once_and_what_answered_again_and_again() {
        let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
        assert!(book.heard(peer, &[address(1), address(2)], Source::Identify));
        assert_eq!(due(&book, peer, now), [address(1), address(2)]);
        book.dialled(&peer, &[address(1), address(2)], now);
        assert!(
            due(&book, peer, now + Duration::from_secs(86_400)).is_empty(),
            "not by time alone"
        );
        assert!(
            !book.heard(peer, &[address(1), address(2)], Source::Identify),
            "the same again is no news"
        );
        assert!(!book.is_due(&peer, true, now));
        book.worked(peer, &address(2), Source::Connection);
        for _ in 0..3 {
            assert_eq!(due(&book, peer, now), [address(2)]);
            book.dialled(&peer, &[address(2)], now);
        }
        assert!(
            book.heard(peer, &[address(2), address(3)], Source::Identify),
            "one of them is new"
        );
        assert_eq!(due(&book, peer, now), [address(2), address(3)]);
        book.dialled(&peer, &[address(2), address(3)], now);
        book.on_lan(peer, &address(3));
        assert_eq!(
            due(&book, peer, now),
            [address(2), address(3)],
            "announced anew"
        );
        book.dialled(&peer, &[address(2), address(3)], now);
        // Another network of ours, or a packet that waits, is a reason of our own.
        book.again(&peer);
        assert_eq!(due(&book, peer, now), [address(2), address(3)]);
    }

    #[test]
    fn what_a_person_gave_is_dialled_whatever_others_say() {
        let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
        book.typed(peer, &address(1));
        book.heard(peer, &[address(2)], Source::Identify);
        book.dialled(&peer, &[address(1), address(2)], now);
        assert_eq!(due(&book, peer, now), [address(1)]);
        book.heard(peer, &[], Source::Identify);
        assert_eq!(book.addresses(&peer), [address(1)]);
        assert!(book.is_typed(&peer, &address(1)) && !book.is_typed(&peer, &address(2)));
    }

    #[test]
    fn heard_addresses_are_eight_and_the_lan_pushes_none_of_the_peers_own_out() {
        let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
        book.heard(
            peer,
            &(0..40).map(address).collect::<Vec<_>>(),
            Source::Identify,
        );
        assert_eq!(due(&book, peer, now).len(), HEARD);
        for n in 100..1000 {
            book.on_lan(peer, &address(n));
        }
        let all = book.addresses(&peer);
        assert_eq!(all.len(), HEARD);
        assert!(
            (0..HEARD - LAN).all(|n| all.contains(&address(n))),
            "{all:?}"
        );
        assert!(all.contains(&address(999)), "the newest of the network's");
        book.heard(
            peer,
            &(0..40).map(|n| address(2000 + n)).collect::<Vec<_>>(),
            Source::Announcement,
        );
        assert!(
            book.addresses(&peer).contains(&address(999)),
            "nor the other way round"
        );
        book.worked(peer, &address(999), Source::Lan);
        assert_eq!(book.addresses(&peer).first(), Some(&address(999)));
        assert_eq!(book.trusted(&peer), [address(999)]);
    }

    #[test]
    fn a_peer_that_says_something_new_each_second_is_not_dialled_each_second() {
        let (mut book, peer, start) = (Book::default(), PeerId([1; 32]), Instant::now());
        let mut dialled = 0;
        for second in 0..100u64 {
            let now = start + Duration::from_secs(second);
            let base = 100 * usize::try_from(second).unwrap();
            book.heard(
                peer,
                &(base..base + 8).map(address).collect::<Vec<_>>(),
                Source::Identify,
            );
            let round = due(&book, peer, now);
            book.dialled(&peer, &round, now);
            dialled += round.len();
        }
        // What may be tried at once, and one more each ten seconds.
        let most = HEARD + CIRCUITS + 10;
        assert!((8..=most).contains(&dialled), "{dialled}");
    }

    #[test]
    fn strangers_cannot_push_members_out() {
        let (mut book, member) = (Book::default(), PeerId([255; 32]));
        book.pin([member].into());
        book.on_lan(member, &address(1));
        for n in 0..2000u16 {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            book.on_lan(PeerId(key), &address(1));
        }
        assert_eq!(book.addresses(&member).len(), 1);
        assert_eq!(book.pages.len(), LOOSE + 1);
    }

    #[test]
    fn each_address_is_known_with_who_said_it_first_and_whether_the_peer_answered_there() {
        let (mut book, peer) = (Book::default(), PeerId([1; 32]));
        book.on_lan(peer, &address(1));
        book.heard(peer, &[address(2)], Source::Announcement);
        book.heard(peer, &[address(2), address(3)], Source::Identify);
        book.hinted(peer, &[address(3), address(4)], Source::Hint);
        book.typed(peer, &address(5));
        book.worked(peer, &address(5), Source::Connection);
        book.worked(peer, &address(6), Source::Connection);
        let known = book.known(&peer);
        let at = |n: usize| {
            let known = known.iter().find(|k| k.address.0 == address(n)).unwrap();
            (known.source, known.answered)
        };
        assert_eq!(at(1), (Source::Lan, false));
        assert_eq!(at(2), (Source::Announcement, false));
        assert_eq!(at(3), (Source::Identify, false));
        assert_eq!(at(4), (Source::Hint, false));
        assert_eq!(at(5), (Source::Typed, true));
        assert_eq!(at(6), (Source::Connection, true));
        // The peer itself says it now, and no more is it hearsay of the network.
        book.heard(peer, &[address(1)], Source::Identify);
        let first = book.known(&peer);
        let first = first.iter().find(|k| k.address.0 == address(1)).unwrap();
        assert_eq!(first.source, Source::Identify);
    }
}
