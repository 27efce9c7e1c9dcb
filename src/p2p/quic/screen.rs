//! Which datagrams may reach QUIC. Pure: time is an argument.
//!
//! Looks at what RFC 8999 fixes for every version, then at version 1 (RFC 9000, 17.2):
//! ```text
//! long header   1|1|type 2|4   version u32   DCID length u8   DCID   SCID length u8   SCID   ...
//! short header  0|1|......     DCID (ours: 8 bytes)   ...
//! ```

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::source::Source;

/// The only version: 1 (RFC 9000).
pub(super) const VERSION: u32 = 1;
/// Bytes of our connection IDs, and the least of a client's first destination ID (RFC 9000, 7.2).
pub(super) const CID: usize = 8;
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

/// What a datagram that may be QUIC begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An Initial: may begin a connection, so it is limited.
    Initial,
    /// Something that only an existing connection answers.
    Other,
}

/// What a datagram is; `None` when it is nothing for us: QUIC bit clear, another version, version negotiation (we have
/// one version only), 0-RTT (we offer none), connection IDs that no version 1 peer would use.
pub(super) fn classify(datagram: &[u8]) -> Option<Kind> {
    let (&first, rest) = datagram.split_first()?;
    if first & 0x40 == 0 {
        return None;
    }
    if first & 0x80 == 0 {
        return (rest.len() > CID).then_some(Kind::Other);
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
        _ => (usize::from(destination) == CID).then_some(Kind::Other),
    }
}

/// Counts Initials by the second. Fixed size, whatever the sources.
#[derive(Debug)]
pub(super) struct Rate {
    hash: RandomState,
    since: Option<Instant>,
    all: u16,
    slots: Box<[u16; SLOTS]>,
    sites: Box<[u16; SLOTS]>,
}

impl Rate {
    pub(super) fn new() -> Self {
        Rate { hash: RandomState::new(), since: None, all: 0, slots: Box::new([0; SLOTS]), sites: Box::new([0; SLOTS]) }
    }

    /// Whether one more Initial of that source may pass.
    pub(super) fn allows(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.all = 0;
            self.slots.fill(0);
            self.sites.fill(0);
        }
        let source = Source::of(source);
        let slot = |hash: u64| usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        let (own, site) = (slot(self.hash.hash_one(source)), slot(self.hash.hash_one(source.site())));
        let (Some(own), Some(site)) = (self.slots.get_mut(own), self.sites.get_mut(site)) else { return false };
        if *own >= PER_SOURCE || *site >= PER_SITE || self.all >= IN_ALL {
            return false;
        }
        *own += 1;
        *site += 1;
        self.all += 1;
        true
    }
}

/// Keeps of a buffer of equal datagrams (the last may be shorter) those that `keep` takes, moved together; returns the
/// bytes that are left.
pub(super) fn retain(buffer: &mut [u8], stride: usize, mut keep: impl FnMut(&[u8]) -> bool) -> usize {
    let (mut kept, mut at) = (0, 0);
    while at < buffer.len() {
        let end = buffer.len().min(at.saturating_add(stride.max(1)));
        if buffer.get(at..end).is_some_and(&mut keep) {
            if kept != at {
                buffer.copy_within(at..end, kept);
            }
            kept += end - at;
        }
        at = end;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert_eq!(classify(&long(2, 1, 8, 8)), Some(Kind::Other), "handshake");
        assert_eq!(classify(&long(3, 1, 8, 8)), Some(Kind::Other), "retry");
        assert_eq!(classify(&[0x4a; 30]), Some(Kind::Other), "short header");
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
    fn a_flood_of_one_source_leaves_room_for_others() {
        let (mut rate, now) = (Rate::new(), Instant::now());
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        let passed = (0..10_000).filter(|_| rate.allows(flood, now)).count();
        assert_eq!(passed, usize::from(PER_SOURCE));
        // One of 50 may share its slot.
        let others = (1..=50).filter(|n| rate.allows(IpAddr::from([198, 51, 100, *n]), now)).count();
        assert!(others >= 45, "{others}");
        assert!(rate.allows(flood, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_flood_of_all_sources_is_bounded() {
        let (mut rate, now) = (Rate::new(), Instant::now());
        let passed = (0..100_000u32).filter(|n| rate.allows(IpAddr::from(n.to_be_bytes()), now)).count();
        assert_eq!(passed, usize::from(IN_ALL));
    }

    #[test]
    fn a_flood_from_all_addresses_of_a_site_leaves_room_for_others() {
        let (mut rate, now) = (Rate::new(), Instant::now());
        let of_site = |n: u32| IpAddr::from([0x2001, 0xdb8, 0, n as u16, 0, 0, (n >> 16) as u16, 1]);
        let passed = (0..100_000).filter(|n| rate.allows(of_site(*n), now)).count();
        assert_eq!(passed, usize::from(PER_SITE));
        let others = (1..=50).filter(|n| rate.allows(IpAddr::from([198, 51, 100, *n]), now)).count();
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

        #[test]
        fn retain_keeps_what_a_filter_of_the_datagrams_keeps(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), stride in 0usize..40,
        ) {
            let even = |datagram: &[u8]| datagram.first().is_some_and(|b| b % 2 == 0);
            let expected: Vec<u8> = bytes.chunks(stride.max(1)).filter(|c| even(c)).flatten().copied().collect();
            let mut buffer = bytes.clone();
            let left = retain(&mut buffer, stride, even);
            prop_assert_eq!(&buffer[..left], &expected[..]);
        }
    }
}
