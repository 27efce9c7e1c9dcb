//! Which datagrams may reach QUIC. Pure: time is an argument.
//!
//! From a stranger only the Initial that begins a connection, and what names a connection of ours ([`Cids`]): its peer may
//! have another address now. Of these so many in a second; from an address that we sent something lately what its connection
//! sends, too. A port that is for its owner's dials alone takes no Initial but those of addresses that are expected
//! ([`Callers`]).
//!
//! Looks at what RFC 8999 fixes for every version, then at version 1 (RFC 9000, 17.2):
//! ```text
//! long header   1|1|type 2|4   version u32   DCID length u8   DCID   SCID length u8   SCID   ...
//! short header  0|1|......     DCID (ours: 8 bytes)   ...
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::super::Callers;
use super::cid::Cids;
use crate::model::source::Source;

/// The only version: 1 (RFC 9000).
pub const VERSION: u32 = 1;
/// Bytes of our connection IDs, and the least of a client's first destination ID (RFC 9000, 7.2).
pub const CID: usize = 8;
/// Longest connection ID in version 1.
const CID_MAX: usize = 20;
/// Initials of one source per second. A handshake takes two or three from each side.
const PER_SOURCE: u16 = 128;
/// Initials of one site per second: a quarter of all.
const PER_SITE: u16 = 512;
/// Initials per second in all. Each costs about 15 us: a flood takes 3 % of a core, not the core.
const IN_ALL: u16 = 2048;
/// Counters that sources share by hash.
const SLOTS: usize = 1024;
/// Who was sent nothing for so long is a stranger again: a connection of ours sends every 5 s, and ends after 10.
const STRANGER_AFTER: Duration = Duration::from_secs(60);
/// Addresses remembered for that.
const MAX_KNOWN: usize = 4096;

/// Which addresses may send what, and how many Initials came in this second.
#[derive(Debug)]
pub(super) struct Screen {
    cids: Cids,
    callers: Callers,
    rate: Rate,
    peers: HashMap<SocketAddr, Peer>,
}

/// An address that may send more than a stranger.
#[derive(Debug, Default)]
struct Peer {
    /// When it was last sent something.
    sent: Option<Instant>,
    /// How often it is dialled now: a flood must not drown its answers.
    expected: usize,
}

impl Peer {
    /// Whether it was sent something lately.
    fn is_known(&self, now: Instant) -> bool {
        self.sent
            .is_some_and(|sent| now.saturating_duration_since(sent) < STRANGER_AFTER)
    }
}

/// The datagrams of one message are judged by this: their source is looked up once.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    cids: &'a Cids,
    callers: Callers,
    rate: &'a mut Rate,
    address: IpAddr,
    now: Instant,
    is_known: bool,
    is_expected: bool,
}

impl Screen {
    /// Nobody has sent anything yet.
    pub(super) fn new(cids: Cids, callers: Callers) -> Self {
        Screen {
            cids,
            callers,
            rate: Rate::default(),
            peers: HashMap::new(),
        }
    }

    /// Something is sent to `to`, which may answer.
    pub(super) fn sent(&mut self, to: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.sent = Some(now);
            return;
        }
        if self.peers.len() >= MAX_KNOWN {
            self.peers
                .retain(|_, peer| peer.expected > 0 || peer.is_known(now));
        }
        if self.peers.len() < MAX_KNOWN {
            self.peers.insert(
                to,
                Peer {
                    sent: Some(now),
                    expected: 0,
                },
            );
        }
    }

    /// The Initials of `remote` pass, whatever all others send, until it is [forgotten](Self::forget) as often.
    pub(super) fn expect(&mut self, remote: SocketAddr) {
        let peer = self.peers.entry(remote).or_default();
        peer.expected = peer.expected.saturating_add(1);
    }

    /// Undoes one [`expect`](Self::expect) of that address.
    pub(super) fn forget(&mut self, remote: SocketAddr) {
        if let Some(peer) = self.peers.get_mut(&remote) {
            peer.expected = peer.expected.saturating_sub(1);
            if peer.expected == 0 && peer.sent.is_none() {
                self.peers.remove(&remote);
            }
        }
    }

    /// The origin of a message from `from` that came now.
    pub(super) fn origin(&mut self, from: SocketAddr, now: Instant) -> Origin<'_> {
        let peer = self.peers.get(&from);
        Origin {
            is_known: peer.is_some_and(|peer| peer.is_known(now)),
            is_expected: peer.is_some_and(|peer| peer.expected > 0),
            cids: &self.cids,
            callers: self.callers,
            rate: &mut self.rate,
            address: from.ip(),
            now,
        }
    }
}

impl Origin<'_> {
    /// Whether a datagram of this source may reach QUIC.
    pub(super) fn passes(&mut self, datagram: &[u8]) -> bool {
        match classify(datagram) {
            Some(Kind::Initial) => {
                let may_call = self.callers == Callers::Anybody;
                self.is_expected || may_call && self.rate.allows(self.address, self.now)
            }
            Some(Kind::Other(id)) => {
                self.is_known || self.cids.made(id) && self.rate.allows(self.address, self.now)
            }
            None => false,
        }
    }
}

/// What a datagram that may be QUIC begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    /// An Initial: may begin a connection, so it is limited.
    Initial,
    /// Something that only an existing connection answers: the one that this ID is of.
    Other(&'a [u8; CID]),
}

/// What a datagram is; `None` when it is nothing for us: QUIC bit clear, another version, version negotiation (we have
/// one version only), 0-RTT (we offer none), connection IDs that no version 1 peer would use.
fn classify(datagram: &[u8]) -> Option<Kind<'_>> {
    let (&first, rest) = datagram.split_first()?;
    if first & 0x40 == 0 {
        return None;
    }
    if first & 0x80 == 0 {
        let (id, rest) = rest.split_first_chunk::<CID>()?;
        return (!rest.is_empty()).then_some(Kind::Other(id));
    }
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (&destination, rest) = rest.split_first()?;
    if u32::from_be_bytes(*version) != VERSION || usize::from(destination) > CID_MAX {
        return None;
    }
    let &source = rest.get(usize::from(destination))?;
    if usize::from(source) > CID_MAX {
        return None;
    }
    match (first >> 4) & 3 {
        // To a server the first one is at least 8 bytes, to a client it is one of ours.
        0 => (usize::from(destination) >= CID).then_some(Kind::Initial),
        1 => None,
        _ if usize::from(destination) == CID => rest.first_chunk().map(Kind::Other),
        _ => None,
    }
}

/// Counts Initials by the second. Fixed size, whatever the sources.
#[derive(Debug)]
struct Rate {
    hash: RandomState,
    since: Option<Instant>,
    all: u16,
    slots: Box<[u16; SLOTS]>,
    sites: Box<[u16; SLOTS]>,
}

impl Default for Rate {
    fn default() -> Self {
        Rate {
            hash: RandomState::new(),
            since: None,
            all: 0,
            slots: Box::new([0; SLOTS]),
            sites: Box::new([0; SLOTS]),
        }
    }
}

impl Rate {
    /// Whether one more Initial of that source may pass.
    fn allows(&mut self, source: IpAddr, now: Instant) -> bool {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1))
        {
            self.since = Some(now);
            self.all = 0;
            self.slots.fill(0);
            self.sites.fill(0);
        }
        let source = Source::of(source);
        let slot = |hash: u64| usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        let (own, site) = (
            slot(self.hash.hash_one(source)),
            slot(self.hash.hash_one(source.site())),
        );
        let (Some(own), Some(site)) = (self.slots.get_mut(own), self.sites.get_mut(site)) else {
            return false;
        };
        if *own >= PER_SOURCE || *site >= PER_SITE || self.all >= IN_ALL {
            return false;
        }
        *own += 1;
        *site += 1;
        self.all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One that anybody may call.
    fn screen() -> Screen {
        Screen::new(Cids::default(), Callers::Anybody)
    }

    fn long(kind: u8, version: u32, destination: usize, source: usize) -> Vec<u8> {
        let mut bytes = vec![0xc0 | kind << 4];
        bytes.extend(version.to_be_bytes());
        bytes.push(destination as u8);
        bytes.extend(vec![7; destination]);
        bytes.push(source as u8);
        bytes.resize(1200, 0);
        bytes
    }

    #[test]
    fn only_version_one_with_its_bit_passes() {
        assert_eq!(classify(&long(0, 1, 8, 8)), Some(Kind::Initial));
        assert_eq!(classify(&long(0, 1, 20, 0)), Some(Kind::Initial));
        assert_eq!(
            classify(&long(2, 1, 8, 8)),
            Some(Kind::Other(&[7; 8])),
            "handshake"
        );
        assert_eq!(
            classify(&long(3, 1, 8, 8)),
            Some(Kind::Other(&[7; 8])),
            "retry"
        );
        assert_eq!(
            classify(&[0x4a; 30]),
            Some(Kind::Other(&[0x4a; 8])),
            "short header"
        );
        for (what, bytes) in [
            ("nothing", Vec::new()),
            ("version negotiation", long(0, 0, 8, 8)),
            ("version 2", long(0, 0x6b33_43cf, 8, 8)),
            ("a greased version", long(0, 0x1a2a_3a4a, 8, 8)),
            ("0-RTT", long(1, 1, 8, 8)),
            ("a short first connection ID", long(0, 1, 7, 8)),
            ("a foreign connection ID", long(2, 1, 9, 8)),
            ("too long a connection ID", long(0, 1, 21, 8)),
            ("too long a source ID", long(0, 1, 8, 21)),
            ("cut short", long(0, 1, 8, 8)[..12].to_vec()),
            ("a short header without connection ID", vec![0x4a; 8]),
        ] {
            assert_eq!(classify(&bytes), None, "{what}");
        }
    }

    #[test]
    fn a_stranger_may_begin_a_connection_and_who_was_sent_something_may_answer() {
        let (mut screen, now) = (screen(), Instant::now());
        let from: SocketAddr = "192.0.2.1:4100".parse().unwrap();
        let (initial, other) = (long(0, 1, 8, 8), [0x4a; 30]);
        let passes =
            |screen: &mut Screen, datagram: &[u8], at| screen.origin(from, at).passes(datagram);
        assert!(passes(&mut screen, &initial, now) && !passes(&mut screen, &other, now));
        assert!(
            !passes(&mut screen, &long(2, 1, 8, 8), now),
            "a handshake that nobody began"
        );
        screen.sent(from, now);
        assert!(passes(&mut screen, &other, now) && passes(&mut screen, &long(2, 1, 8, 8), now));
        assert!(
            !passes(&mut screen, &other, now + STRANGER_AFTER),
            "a stranger again"
        );
        assert!(
            !screen
                .origin("192.0.2.1:4101".parse().unwrap(), now)
                .passes(&other),
            "another port is another"
        );
    }

    #[test]
    fn what_names_a_connection_of_ours_passes_from_anywhere_so_often_in_a_second() {
        let cids = Cids::default();
        let (mut screen, now) = (Screen::new(cids.clone(), Callers::Anybody), Instant::now());
        let short = |id: [u8; CID]| [&[0x4a][..], &id, &[0; 20]].concat();
        let from = |n: u32| SocketAddr::from((n.to_be_bytes(), 4100));
        let ours = short(cids.make([1, 2, 3, 4]));
        assert!(screen.origin(from(1), now).passes(&ours));
        assert!(!screen.origin(from(1), now).passes(&short([9; CID])));
        let flood = (0..10_000).filter(|_| screen.origin(from(2), now).passes(&ours));
        assert_eq!(flood.count(), usize::from(PER_SOURCE));
        screen.sent(from(2), now);
        assert!((0..10_000).all(|_| screen.origin(from(2), now).passes(&ours)));
    }

    #[test]
    fn who_is_dialled_passes_in_a_flood_until_the_last_dial_ends() {
        let (mut screen, now) = (screen(), Instant::now());
        let (from, initial) = ("192.0.2.1:4100".parse().unwrap(), long(0, 1, 8, 8));
        let passes = |screen: &mut Screen| screen.origin(from, now).passes(&initial);
        while passes(&mut screen) {}
        screen.expect(from);
        screen.expect(from);
        assert!((0..10_000).all(|_| passes(&mut screen)));
        screen.forget(from);
        assert!(passes(&mut screen));
        screen.forget(from);
        assert!(!passes(&mut screen) && screen.peers.is_empty());
    }

    #[test]
    fn a_port_for_dials_is_called_by_nobody_but_who_is_expected() {
        let cids = Cids::default();
        let (mut screen, now) = (Screen::new(cids.clone(), Callers::Expected), Instant::now());
        let (peer, stranger): (SocketAddr, SocketAddr) = (
            "192.0.2.1:4100".parse().unwrap(),
            "192.0.2.2:4100".parse().unwrap(),
        );
        let initial = long(0, 1, 8, 8);
        screen.sent(peer, now);
        assert!(
            !screen.origin(peer, now).passes(&initial),
            "who may answer may not call"
        );
        screen.expect(peer);
        assert!(screen.origin(peer, now).passes(&initial));
        assert!(!screen.origin(stranger, now).passes(&initial));
        // What belongs to connections passes as it does elsewhere, from wherever a peer is now.
        let ours = [&[0x4a][..], &cids.make([1, 2, 3, 4]), &[0; 20]].concat();
        assert!(screen.origin(stranger, now).passes(&ours));
        screen.forget(peer);
        assert!(!screen.origin(peer, now).passes(&initial));
    }

    #[test]
    fn no_number_of_addresses_is_remembered_and_none_that_is_dialled_is_forgotten() {
        let (mut screen, now) = (screen(), Instant::now());
        let address = |n: u32| SocketAddr::from((n.to_be_bytes(), 4100));
        screen.expect(address(0));
        (1..10_000).for_each(|n| screen.sent(address(n), now));
        assert_eq!(screen.peers.len(), MAX_KNOWN);
        (10_000..10_100).for_each(|n| screen.sent(address(n), now + STRANGER_AFTER));
        assert_eq!(screen.peers.len(), 101, "strangers again make room");
        assert!(screen.origin(address(0), now).is_expected);
    }

    #[test]
    fn a_flood_of_one_source_leaves_room_for_others() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        let passed = (0..10_000).filter(|_| rate.allows(flood, now)).count();
        assert_eq!(passed, usize::from(PER_SOURCE));
        // One of 50 may share its slot.
        let others = (1..=50)
            .filter(|n| rate.allows(IpAddr::from([198, 51, 100, *n]), now))
            .count();
        assert!(others >= 45, "{others}");
        assert!(rate.allows(flood, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_flood_of_all_sources_is_bounded() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let passed = (0..100_000u32)
            .filter(|n| rate.allows(IpAddr::from(n.to_be_bytes()), now))
            .count();
        assert_eq!(passed, usize::from(IN_ALL));
    }

    #[test]
    fn a_flood_from_all_addresses_of_a_site_leaves_room_for_others() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let of_site =
            |n: u32| IpAddr::from([0x2001, 0xdb8, 0, n as u16, 0, 0, (n >> 16) as u16, 1]);
        let passed = (0..100_000)
            .filter(|n| rate.allows(of_site(*n), now))
            .count();
        assert_eq!(passed, usize::from(PER_SITE));
        let others = (1..=50)
            .filter(|n| rate.allows(IpAddr::from([198, 51, 100, *n]), now))
            .count();
        assert!(others >= 40, "{others}");
    }

    proptest! {
        #[test]
        fn classify_never_lets_our_own_frames_through(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(first) = bytes.first() && *first < 0x40 {
                prop_assert_eq!(classify(&bytes), None);
            }
            let _ = classify(&bytes);
        }
    }
}
