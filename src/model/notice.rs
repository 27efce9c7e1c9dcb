//! What a member's records say of relays: whether it forwards for its co-members, and which relays keep a place for it.
//!
//! It is an [`Item`] of kind [`KIND`] with an empty slot, so the announcement need not be signed again when it changes, and a
//! version that does not know the kind holds the item and passes it on. Whoever reads it takes it whole or not at all: the
//! bounds of this file hold for what others have signed. The load of a relay changes all the time and is no part of it:
//! connected members tell each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::id::PeerId;
use super::members::{Identity, Subnet, would_be_refused};
use super::record::{Body, Item, Verified};
use super::state::State;
use super::subnet::Records;
use crate::codec;

/// The kind of the items that hold a [`RelayNotice`].
pub const KIND: u16 = 1;
/// The most relays that one member names.
pub const MAX_HOMES: usize = 2;
/// The most addresses of one relay that are named.
pub const MAX_ADDRESSES: usize = 2;
/// How many bytes the text of one address may have.
pub const MAX_ADDRESS: usize = 128;
/// The greatest rate that a member may offer, in Mbit/s.
pub const MAX_MBIT: u32 = 1_000_000;

/// Whether a member forwards for its co-members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stance {
    /// It says nothing: it may forward for those who have no other way, and tells each when they are connected.
    #[default]
    Unsaid,
    /// Its owner offers it, with so many Mbit/s of UDP payload for all peers together: from 1 to [`MAX_MBIT`].
    Offers(u32),
    /// It forwards for nobody.
    Never,
}

/// A relay that is no member and keeps a place for a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Who the relay is.
    pub relay: PeerId,
    /// Where it is reached: from one to [`MAX_ADDRESSES`] multiaddrs without its name, each at most [`MAX_ADDRESS`] bytes.
    pub addresses: Vec<String>,
}

/// What a member's records say of relays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RelayNotice {
    /// Whether it forwards itself.
    pub stance: Stance,
    /// The relays that keep a place for it, at most [`MAX_HOMES`], each named once.
    pub homes: Vec<Home>,
}

/// The notices of members, and how many of them were left out because they are malformed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notices {
    /// What each member says, shared by all who go by it; those that say nothing are left out.
    pub said: Arc<BTreeMap<PeerId, RelayNotice>>,
    /// Members whose notice breaks a bound of this file or is none: nothing of it is used.
    pub malformed: usize,
}

impl Home {
    fn fits(&self) -> bool {
        let is_text =
            |text: &String| text.len() <= MAX_ADDRESS && !text.chars().any(char::is_control);
        (1..=MAX_ADDRESSES).contains(&self.addresses.len()) && self.addresses.iter().all(is_text)
    }
}

impl RelayNotice {
    fn fits(&self) -> bool {
        let rate_fits = match self.stance {
            Stance::Offers(mbit) => (1..=MAX_MBIT).contains(&mbit),
            Stance::Unsaid | Stance::Never => true,
        };
        let is_named_twice = self
            .homes
            .iter()
            .enumerate()
            .any(|(n, home)| self.homes.iter().take(n).any(|h| h.relay == home.relay));
        rate_fits
            && self.homes.len() <= MAX_HOMES
            && !is_named_twice
            && self.homes.iter().all(Home::fits)
    }

    /// Adds what another statement of the same member says; the addresses that are known of a relay stay before its.
    pub fn add(&mut self, homes: Vec<Home>) {
        for home in homes {
            match self.homes.iter_mut().find(|h| h.relay == home.relay) {
                None => self.homes.push(home),
                Some(known) => {
                    let new = |address: &String| !known.addresses.contains(address);
                    let new: Vec<String> = home.addresses.into_iter().filter(new).collect();
                    known.addresses.extend(new);
                }
            }
        }
        // There is one for each member, and a list that grows takes room for four.
        self.homes.shrink_to_fit();
    }

    /// Reads the data of an item; no data say nothing. `None` for what breaks a bound, or is no notice.
    pub fn parse(data: &[u8]) -> Option<RelayNotice> {
        if data.is_empty() {
            return Some(RelayNotice::default());
        }
        let notice: RelayNotice = codec::decode_canonical(data).ok()?;
        notice.fits().then_some(notice)
    }

    /// The data of an item; none where there is nothing to say, which takes back what was said before.
    pub fn to_data(&self) -> Vec<u8> {
        if *self == RelayNotice::default() {
            Vec::new()
        } else {
            codec::encode(self)
        }
    }
}

impl Records {
    /// The data of a member's notice; empty where it has said nothing.
    fn notice_data(&self, member: PeerId) -> &[u8] {
        let item = self.item(member, KIND, &[]);
        item.map_or(&[], |item| item.data.as_slice())
    }
}

impl Subnet {
    /// Whether this node may publish a notice here now: a member on trial holds no items.
    fn may_notice(&self, me: &Identity, now: u64) -> bool {
        self.local.up
            && self.resolve(now).members.contains_key(&me.peer)
            && !self.records.on_trial(me.peer)
    }

    /// Whether [`Subnet::keep_notice`] would change nothing. `now` is seconds since 1970.
    pub fn notice_is_true(&self, me: &Identity, notice: &RelayNotice, now: u64) -> bool {
        self.records.notice_data(me.peer) == notice.to_data() || !self.may_notice(me, now)
    }

    /// Says in this subnet what this node is as a relay, and which relays keep a place for it, where that is not said yet.
    /// `now` is seconds since 1970.
    ///
    /// # Errors
    /// `E-RECORD` for a notice that breaks a bound; this node makes none.
    pub fn keep_notice(&mut self, me: &Identity, notice: &RelayNotice, now: u64) -> Result<()> {
        if self.notice_is_true(me, notice, now) {
            return Ok(());
        }
        if !notice.fits() {
            return Err(would_be_refused());
        }
        let held = self.records.item(me.peer, KIND, &[]);
        let next = held.map_or(0, |item| item.version.saturating_add(1));
        let item = Item {
            kind: KIND,
            slot: Vec::new(),
            // Where this node has forgotten what it said, the others have not: the clock is ahead of any version of before.
            version: next.max(now),
            issued: now,
            // It counts until it is replaced, or its issuer is no member any more, as an announcement does.
            expires: u64::MAX,
            data: notice.to_data(),
        };
        let record = Verified::sign(self.records.id, Body::Item(item), &me.key)
            .map_err(|_| would_be_refused())?;
        self.take_own(record)
    }
}

impl State {
    /// What the members of all subnets that are up here say of relays, this node aside. Of a member of several subnets the
    /// first one counts in which it says anything.
    pub fn notices(&self) -> Notices {
        let mut said = BTreeMap::new();
        let mut malformed = 0_usize;
        for subnet in self.subnets.values().filter(|subnet| subnet.local.up) {
            for (peer, _) in subnet.records.announcements() {
                if peer == self.me.peer || said.contains_key(&peer) {
                    continue;
                }
                match RelayNotice::parse(subnet.records.notice_data(peer)) {
                    None => malformed = malformed.saturating_add(1),
                    Some(notice) if notice == RelayNotice::default() => {}
                    Some(notice) => {
                        said.insert(peer, notice);
                    }
                }
            }
        }
        Notices {
            said: Arc::new(said),
            malformed,
        }
    }

    /// What this node has said itself; nothing where it is in no subnet.
    pub fn own_notice(&self) -> RelayNotice {
        let said = |subnet: &Subnet| {
            RelayNotice::parse(subnet.records.notice_data(self.me.peer))
                .filter(|notice| *notice != RelayNotice::default())
        };
        self.subnets.values().find_map(said).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::Signed;
    use crate::testing::founding;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn home(n: u8, addresses: usize) -> Home {
        Home {
            relay: PeerId([n; 32]),
            addresses: (0..addresses)
                .map(|at| format!("/ip4/192.0.2.{n}/udp/{}/quic-v1", 4100 + at))
                .collect(),
        }
    }

    fn notice(homes: Vec<Home>) -> RelayNotice {
        RelayNotice {
            stance: Stance::Offers(50),
            homes,
        }
    }

    #[test]
    fn what_breaks_a_bound_is_left_out_whole() {
        let good = notice(vec![home(1, 2), home(2, 1)]);
        assert_eq!(RelayNotice::parse(&good.to_data()), Some(good.clone()));
        let long = |text: String| Home {
            relay: PeerId([1; 32]),
            addresses: vec![text],
        };
        let offers = |mbit| RelayNotice {
            stance: Stance::Offers(mbit),
            homes: vec![],
        };
        for bad in [
            notice((0..200).map(|n| home(n, 1)).collect()),
            notice(vec![home(1, 1), home(2, 1), home(3, 1)]),
            notice(vec![home(1, 1), home(1, 2)]),
            notice(vec![home(1, 3)]),
            notice(vec![home(1, 0)]),
            notice(vec![long("x".repeat(MAX_ADDRESS + 1))]),
            notice(vec![long("/ip4/192.0.2.1\n".to_owned())]),
            offers(0),
            offers(MAX_MBIT + 1),
        ] {
            assert_eq!(RelayNotice::parse(&bad.to_data()), None, "{bad:?}");
        }
        let mut longer = good.to_data();
        longer.push(0);
        assert_eq!(RelayNotice::parse(&longer), None);
        assert_eq!(RelayNotice::parse(&[]), Some(RelayNotice::default()));
    }

    #[test]
    fn a_notice_is_signed_when_it_changes_and_taken_back_when_there_is_nothing_to_say() {
        let me = Identity::new(&[1; 32], [1; 32], [11; 32]);
        let mut state = State::new(me.clone());
        let mut subnet = state
            .found(founding("lab".parse().unwrap(), "a".parse().unwrap()), NOW)
            .unwrap();
        let nothing = RelayNotice::default();
        assert!(subnet.notice_is_true(&me, &nothing, NOW));
        let said = notice(vec![home(1, 1)]);
        assert!(!subnet.notice_is_true(&me, &said, NOW));
        let version = |subnet: &Subnet| subnet.records.item(me.peer, KIND, &[]).unwrap().version;
        subnet.keep_notice(&me, &said, NOW).unwrap();
        let first = version(&subnet);
        let before = subnet.clone();
        subnet.keep_notice(&me, &said, NOW + 9).unwrap();
        assert!(subnet == before, "what is said already is not signed again");
        // Another one of an earlier life comes back: it is replaced, whatever its version.
        let item = Item {
            kind: KIND,
            slot: vec![],
            version: first + 1_000_000,
            issued: NOW,
            expires: u64::MAX,
            data: notice(vec![home(9, 1)]).to_data(),
        };
        let former = Signed::new(subnet.records.id, &Body::Item(item), &me.key);
        let _ = subnet.records.absorb(former.check().unwrap());
        assert!(!subnet.notice_is_true(&me, &said, NOW));
        subnet.keep_notice(&me, &said, NOW).unwrap();
        assert!(subnet.notice_is_true(&me, &said, NOW) && version(&subnet) > first + 1_000_000);
        state.subnets.insert(subnet.records.id, subnet.clone());
        assert_eq!(state.own_notice(), said);
        assert_eq!(state.notices(), Notices::default(), "of others alone");
        subnet.keep_notice(&me, &nothing, NOW).unwrap();
        assert!(
            subnet
                .records
                .item(me.peer, KIND, &[])
                .unwrap()
                .data
                .is_empty()
        );
        let too_many = notice(vec![home(1, 1), home(2, 1), home(3, 1)]);
        assert!(subnet.keep_notice(&me, &too_many, NOW).is_err());
    }

    proptest! {
        #[test]
        fn no_data_that_others_signed_break_a_bound(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(read) = RelayNotice::parse(&data) {
                prop_assert!(read.fits());
                prop_assert_eq!(read.to_data().len(), if read == RelayNotice::default() { 0 } else { data.len() });
            }
        }
    }
}
