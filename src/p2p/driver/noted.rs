//! Relays that members' records tell of: members that offer to forward, and the relays that keep a place for a member.
//!
//! They are used where nothing that a person configured is left and a member is missing that nothing leads to. A member may
//! name anybody as its relay, also somebody who has nothing to do with us: such an address is tried once in a while, less and
//! less often while it does not answer, and what is named beyond [`MOST`] is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Driver;
use super::meeting::WAIT;
use crate::backoff::Backoff;
use crate::model::id::PeerId;
use crate::model::notice::{RelayNotice, Stance};
use crate::p2p::Heard;
use crate::p2p::address::is_circuit;
use crate::p2p::address_book::Source;

/// The most relays of records that are kept in mind, those first that most members name.
const MOST: usize = 64;
/// The most addresses of one of them, whoever names it.
const ADDRESSES: usize = 4;
/// The pause before a relay that did not answer is tried again.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));

/// A relay that keeps a place for members.
#[derive(Debug)]
struct Home {
    /// Where its namers say that it is.
    addresses: Vec<Heard>,
    /// The members that name it.
    of: BTreeSet<PeerId>,
    /// Tries without an answer, in a row.
    failures: u32,
    /// When it may be tried again.
    next: Instant,
    /// When the try under way began.
    tried: Option<Instant>,
}

/// What members' records tell of relays.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// What was said, of those who may be no members yet as well.
    said: Arc<BTreeMap<PeerId, RelayNotice>>,
    offers: BTreeSet<PeerId>,
    never: BTreeSet<PeerId>,
    homes: BTreeMap<PeerId, Home>,
    /// Tries of a relay that did not answer.
    pub(super) silent: u64,
    /// Relays none of whose addresses may be dialled, at the time of a try.
    pub(super) unusable: u64,
}

impl Noted {
    /// Whether a member's records say that it offers to forward.
    pub(super) fn offers(&self, member: PeerId) -> bool {
        self.offers.contains(&member)
    }

    /// Whether a member's records say that it forwards for nobody.
    pub(super) fn never(&self, member: PeerId) -> bool {
        self.never.contains(&member)
    }

    /// Whether members name it as a relay of theirs.
    pub(super) fn is_home(&self, relay: PeerId) -> bool {
        self.homes.contains_key(&relay)
    }

    /// Whether this member names that relay.
    pub(super) fn is_home_of(&self, relay: PeerId, member: PeerId) -> bool {
        self.homes
            .get(&relay)
            .is_some_and(|home| home.of.contains(&member))
    }

    /// This machine is in another network: what did not answer may do so from there.
    pub(super) fn all_again(&mut self, now: Instant) {
        for home in self.homes.values_mut() {
            (home.failures, home.next) = (0, now);
        }
    }

    /// Takes what members say. What is known of a relay that is still named is kept.
    fn take(&mut self, said: &BTreeMap<PeerId, RelayNotice>, me: PeerId, now: Instant) {
        let with = |stance: fn(Stance) -> bool| -> BTreeSet<PeerId> {
            let those = said.iter().filter(|(_, notice)| stance(notice.stance));
            those.map(|(member, _)| *member).collect()
        };
        self.offers = with(|stance| matches!(stance, Stance::Offers(_)));
        self.never = with(|stance| stance == Stance::Never);
        let mut named: BTreeMap<PeerId, (BTreeSet<PeerId>, Vec<Heard>)> = BTreeMap::new();
        for (member, notice) in said {
            for home in &notice.homes {
                // Members are known by themselves, and where they are they say themselves.
                if home.relay == me || said.contains_key(&home.relay) {
                    continue;
                }
                let (of, addresses) = named.entry(home.relay).or_default();
                of.insert(*member);
                let heard = home.addresses.iter().filter_map(|text| Heard::parse(text));
                for heard in heard.filter(|heard| !is_circuit(&heard.address().0)) {
                    if addresses.len() < ADDRESSES && !addresses.contains(&heard) {
                        addresses.push(heard);
                    }
                }
            }
        }
        let mut order: Vec<(usize, PeerId)> = named
            .iter()
            .map(|(relay, (of, _))| (of.len(), *relay))
            .collect();
        order.sort_by_key(|(namers, relay)| (std::cmp::Reverse(*namers), *relay));
        let mut former = std::mem::take(&mut self.homes);
        for (_, relay) in order.into_iter().take(MOST) {
            let Some((of, addresses)) = named.remove(&relay) else {
                continue;
            };
            let fresh = || Home {
                addresses: Vec::new(),
                of: BTreeSet::new(),
                failures: 0,
                next: now,
                tried: None,
            };
            let mut home = former.remove(&relay).unwrap_or_else(fresh);
            (home.addresses, home.of) = (addresses, of);
            self.homes.insert(relay, home);
        }
    }

    /// Whether a try of a relay may begin.
    fn may_try(&self, relay: PeerId, now: Instant) -> bool {
        self.homes
            .get(&relay)
            .is_some_and(|home| home.tried.is_none() && home.next <= now)
    }

    /// Whether a try of a relay is under way.
    fn is_tried(&self, relay: PeerId) -> bool {
        self.homes
            .get(&relay)
            .is_some_and(|home| home.tried.is_some())
    }

    /// Ends the tries that are over. `is_online` says that anybody is connected: else it may be this machine that nobody
    /// answers, and the pause does not grow.
    fn settle(&mut self, met: impl Fn(PeerId) -> bool, is_online: bool, now: Instant) {
        for (relay, home) in &mut self.homes {
            if met(*relay) {
                (home.tried, home.failures, home.next) = (None, 0, now);
            } else if home.tried.is_some_and(|tried| now >= tried + WAIT) {
                self.silent = self.silent.saturating_add(1);
                home.tried = None;
                home.next = now + AGAIN.pause(home.failures);
                if is_online {
                    home.failures = home.failures.saturating_add(1);
                }
            }
        }
    }
}

impl Driver {
    /// Takes what the records of members say of relays.
    pub(super) fn handle_noted(&mut self, said: Arc<BTreeMap<PeerId, RelayNotice>>, now: Instant) {
        self.noted.said = said;
        self.judge_noted(now);
    }

    /// Goes by what members say and nobody else, after either has changed.
    pub(super) fn judge_noted(&mut self, now: Instant) {
        let members = Arc::clone(&self.members);
        let said = self
            .noted
            .said
            .iter()
            .filter(|(peer, _)| members.contains_key(peer));
        let mut said: BTreeMap<PeerId, RelayNotice> =
            said.map(|(peer, notice)| (*peer, notice.clone())).collect();
        for notice in said.values_mut() {
            notice
                .homes
                .retain(|home| !members.contains_key(&home.relay));
        }
        self.noted.take(&said, self.me, now);
    }

    /// Ends the tries that are over.
    pub(super) fn follow_noted(&mut self, now: Instant) {
        let met: BTreeSet<PeerId> = self
            .links
            .values()
            .filter(|link| link.meets())
            .map(|link| link.peer)
            .collect();
        let is_online = !met.is_empty();
        self.noted
            .settle(|relay| met.contains(&relay), is_online, now);
    }

    /// Relays of records that are connected, tried now, or may be: those that `peer` names first, then by a hash of both IDs,
    /// which is the same at every node.
    pub(super) fn homes(&self, peer: PeerId, now: Instant) -> Vec<PeerId> {
        let usable = |relay: &PeerId| {
            let serves = self.relays.serves(*relay, now);
            let there = self.meets(*relay) || self.noted.is_tried(*relay);
            serves && (there || self.noted.may_try(*relay, now))
        };
        let homes = self.noted.homes.keys().copied();
        let mut homes: Vec<PeerId> = homes.filter(usable).collect();
        homes.sort_by_cached_key(|relay| {
            let is_of_others = !self.noted.is_home_of(*relay, peer);
            (is_of_others, Sha256::digest([relay.0, peer.0].concat()))
        });
        homes
    }

    /// Begins a try of a relay that records name, where it is not connected; whether it is, or one is under way.
    pub(super) fn try_home(&mut self, relay: PeerId, now: Instant) -> bool {
        if self.meets(relay) || self.noted.is_tried(relay) {
            return true;
        }
        if !self.noted.may_try(relay, now) {
            return false;
        }
        let Some(home) = self.noted.homes.get_mut(&relay) else {
            return false;
        };
        home.tried = Some(now);
        let heard = home.addresses.clone();
        let addresses: Vec<Multiaddr> = self.believed(&heard, now);
        if addresses.is_empty() {
            self.noted.unusable = self.noted.unusable.saturating_add(1);
        }
        self.book.hinted(relay, &addresses, Source::Record);
        self.book.again(&relay);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::notice;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn names(relays: &[(u8, &str)]) -> RelayNotice {
        let home = |(n, address): &(u8, &str)| notice::Home {
            relay: peer(*n),
            addresses: vec![(*address).to_owned()],
        };
        RelayNotice {
            stance: Stance::Unsaid,
            homes: relays.iter().map(home).collect(),
        }
    }

    const SOME: &str = "/ip4/192.0.2.1/udp/4100/quic-v1";

    #[test]
    fn a_relay_that_never_answers_is_tried_once_an_hour_in_the_end() {
        let start = Instant::now();
        let mut noted = Noted::default();
        noted.take(&[(peer(1), names(&[(100, SOME)]))].into(), peer(9), start);
        let mut tries = Vec::new();
        let mut now = start;
        while now < start + Duration::from_secs(6 * 3600) {
            if noted.may_try(peer(100), now) {
                tries.push(now);
                noted.homes.get_mut(&peer(100)).unwrap().tried = Some(now);
            }
            noted.settle(|_| false, true, now);
            // What a member says again and again is no reason to try again.
            noted.take(&[(peer(1), names(&[(100, SOME)]))].into(), peer(9), now);
            now += Duration::from_secs(1);
        }
        let pauses: Vec<u64> = tries.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
        assert!((8..14).contains(&tries.len()), "{pauses:?}");
        assert!(
            pauses[0] >= 60 && *pauses.last().unwrap() >= 3600,
            "{pauses:?}"
        );
        assert_eq!(noted.silent, tries.len() as u64);
        // Another network is a reason.
        noted.all_again(now);
        assert!(noted.may_try(peer(100), now));
    }

    #[test]
    fn while_nobody_is_connected_the_pause_does_not_grow() {
        let mut now = Instant::now();
        let mut noted = Noted::default();
        noted.take(&[(peer(1), names(&[(100, SOME)]))].into(), peer(9), now);
        for _ in 0..20 {
            noted.homes.get_mut(&peer(100)).unwrap().tried = Some(now);
            now += WAIT;
            noted.settle(|_| false, false, now);
            assert!(!noted.may_try(peer(100), now + Duration::from_secs(59)));
            assert!(noted.may_try(peer(100), now + Duration::from_secs(60)));
            now += Duration::from_secs(60);
        }
    }

    #[test]
    fn any_number_of_named_relays_leaves_those_that_most_name() {
        let now = Instant::now();
        let mut said: BTreeMap<PeerId, RelayNotice> = (1..=99)
            .map(|n| (peer(n), names(&[(100 + n, SOME), (250, SOME)])))
            .collect();
        said.insert(peer(200), names(&[(1, SOME), (9, SOME)]));
        let mut noted = Noted::default();
        noted.take(&said, peer(9), now);
        assert_eq!(noted.homes.len(), MOST);
        assert!(noted.is_home(peer(250)), "the one that all name");
        assert!(
            !noted.is_home(peer(1)) && !noted.is_home(peer(9)),
            "members"
        );
        // What is named no more is forgotten.
        noted.take(&BTreeMap::new(), peer(9), now);
        assert!(noted.homes.is_empty());
    }

    #[test]
    fn addresses_of_one_relay_are_bounded_and_are_never_names_or_circuits() {
        let through = format!("{SOME}/p2p/{}/p2p-circuit", peer(77));
        let mut said: BTreeMap<PeerId, RelayNotice> = (1..=20)
            .map(|n| {
                let address = format!("/ip4/192.0.2.{n}/tcp/4100");
                (peer(n), names(&[(100, &address)]))
            })
            .collect();
        said.insert(
            peer(0),
            names(&[(100, &through), (101, "/dns4/mail.example/tcp/4100")]),
        );
        let mut noted = Noted::default();
        noted.take(&said, peer(9), Instant::now());
        let home = &noted.homes[&peer(100)];
        assert_eq!(home.addresses.len(), ADDRESSES);
        assert!(home.addresses.iter().all(|a| !is_circuit(&a.address().0)));
        assert!(noted.homes[&peer(101)].addresses.is_empty());
    }
}
