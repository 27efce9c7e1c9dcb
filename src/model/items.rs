//! Items of one subnet: which of them are held, and which make room for others.
//!
//! Every member holds the same items, whatever kinds it knows. So these bounds are a part of the format: a later version
//! that had others would disagree with this one for ever about what is held.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::id::PeerId;
use super::record::{Digest, Item, Statement};
use super::subnet::{Absorbed, GRACE, Records};

/// What one issuer may have, tombstones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    /// How many slots it may hold.
    items: usize,
    /// Bytes of slot names and data together.
    bytes: usize,
}

/// The quota of a member that has no say.
const MEMBER: Quota = Quota {
    items: 128,
    bytes: 256 * 1024,
};
/// The quota of the owner and of admins. They speak for the whole subnet, and have as many bytes
/// for an item as a member.
const WITH_A_SAY: Quota = Quota {
    items: 512,
    bytes: 1024 * 1024,
};

/// A slot of an issuer: its kind and its name.
pub(super) type Slot = (PeerId, u16, Vec<u8>);

/// How many of its issuer's bytes an item takes.
fn size(item: &Item) -> usize {
    item.slot.len().saturating_add(item.data.len())
}

impl Records {
    /// The item that an issuer holds in a slot of a kind.
    pub fn item(&self, issuer: PeerId, kind: u16, slot: &[u8]) -> Option<&Item> {
        self.items
            .get(&(issuer, kind, slot.to_vec()))
            .map(|held| &held.body)
    }

    /// Items of one issuer, by kind and slot.
    pub fn items_of(&self, issuer: PeerId) -> impl Iterator<Item = &Item> {
        self.slots_of(issuer).map(|(_, held)| &held.body)
    }

    fn slots_of(&self, issuer: PeerId) -> impl Iterator<Item = (&Slot, &Arc<Statement<Item>>)> {
        self.items
            .from(&(issuer, 0, Vec::new()))
            .take_while(move |((of, ..), _)| *of == issuer)
    }

    fn quota(&self, issuer: PeerId) -> Quota {
        if self.seat_of(issuer).is_some() {
            WITH_A_SAY
        } else {
            MEMBER
        }
    }

    /// Whether an item has ended so long ago that it is forgotten.
    pub(super) fn is_over(&self, item: &Item) -> bool {
        item.expires.saturating_add(GRACE) <= self.horizon()
    }

    /// Whether an item of a member would be held: it is not over, it is greater than what its slot holds, and its issuer
    /// has room for it beside all smaller slots. Larger ones make room.
    pub fn has_use_for(&self, issuer: PeerId, item: &Item, digest: &Digest) -> bool {
        let key = (issuer, item.kind, item.slot.clone());
        let older = |held: &Arc<Statement<Item>>| {
            (held.body.version, held.digest) < (item.version, *digest)
        };
        let quota = self.quota(issuer);
        let smaller = self.slots_of(issuer).take_while(|(slot, _)| **slot < key);
        let (count, bytes) = smaller.fold((1usize, size(item)), |(count, bytes), (_, held)| {
            (
                count.saturating_add(1),
                bytes.saturating_add(size(&held.body)),
            )
        });
        let may = !self.is_subject(issuer) || !self.on_trial(issuer);
        may && !self.is_over(item)
            && self.items.get(&key).is_none_or(older)
            && count <= quota.items
            && bytes <= quota.bytes
    }

    /// Enters an item where there is use for it.
    pub(super) fn enter_item(&mut self, held: Arc<Statement<Item>>) -> Absorbed {
        let issuer = held.signed.issuer;
        if !self.has_use_for(issuer, &held.body, &held.digest) {
            return Absorbed::Known;
        }
        let key = (issuer, held.body.kind, held.body.slot.clone());
        self.index.insert(held.digest, ());
        if let Some(old) = self.items.insert(key, held) {
            self.index.remove(&old.digest);
        }
        self.trim_items(issuer);
        Absorbed::New
    }

    /// Drops what its issuer has no room for. Slots are judged in order, each beside those before it that stay, so that
    /// whoever has seen the same keeps the same.
    fn trim_items(&mut self, issuer: PeerId) {
        let quota = self.quota(issuer);
        let (mut count, mut bytes) = (0usize, 0usize);
        let mut surplus = Vec::new();
        for (slot, held) in self.slots_of(issuer) {
            let (more, larger) = (
                count.saturating_add(1),
                bytes.saturating_add(size(&held.body)),
            );
            if more <= quota.items && larger <= quota.bytes {
                (count, bytes) = (more, larger);
            } else {
                surplus.push(slot.clone());
            }
        }
        for slot in surplus {
            let _ = self.drop_item(&slot);
        }
    }

    fn drop_item(&mut self, slot: &Slot) -> Option<Arc<Statement<Item>>> {
        let old = self.items.remove(slot)?;
        self.index.remove(&old.digest);
        Some(old)
    }

    /// Drops what issuers have too much of after another head: one that has no say any more has
    /// less room.
    pub(super) fn trim_all_items(&mut self) {
        let issuers: BTreeSet<PeerId> = self.items.keys().map(|(issuer, ..)| *issuer).collect();
        issuers
            .into_iter()
            .for_each(|issuer| self.trim_items(issuer));
    }

    /// Drops all items of one issuer, and gives them.
    pub(super) fn drop_items_of(&mut self, issuer: PeerId) -> Vec<Arc<Statement<Item>>> {
        let slots: Vec<Slot> = self
            .slots_of(issuer)
            .map(|(slot, _)| slot.clone())
            .collect();
        slots
            .iter()
            .filter_map(|slot| self.drop_item(slot))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::genesis::{Admission, Genesis, Prefix6};
    use crate::model::members::Identity;
    use crate::model::record::{
        Announcement, Body, Grant, Head, MAX_ITEM, MAX_SLOT, Role, Seat, Signed, Term, Verified,
    };
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn owner() -> Identity {
        Identity::new(&[1; 32], [1; 32], [11; 32])
    }

    fn member() -> Identity {
        Identity::new(&[2; 32], [2; 32], [12; 32])
    }

    fn genesis() -> Genesis {
        Genesis {
            version: 1,
            owner: owner().peer,
            name: "lab".parse().unwrap(),
            cidr4: Some("10.77.0.0/16".parse().unwrap()),
            cidr6: Prefix6::None,
            block4: 24,
            admission: Admission::Approve,
            domain: "lab.internal".to_owned(),
            grant_life: 90 * 86_400,
            created: NOW,
            salt: [1; 16],
        }
    }

    fn signed(by: &Identity, body: Body) -> Verified {
        Signed::new(genesis().id(), &body, &by.key).check().unwrap()
    }

    fn grant(version: u64, term: Term) -> Verified {
        let life = if term == Term::Full {
            90 * 86_400
        } else {
            3600
        };
        signed(
            &owner(),
            Body::Grant(Grant {
                subject: member().peer,
                data_key: [2; 32],
                seal_key: [12; 32],
                name: "web".parse().unwrap(),
                role: Role::Member,
                generation: 1,
                version,
                seat: 0,
                addresses: vec![],
                leases: vec![],
                not_before: NOW,
                not_after: NOW + life,
                term,
                labels: Default::default(),
            }),
        )
    }

    fn head(number: u64, admin: bool) -> Verified {
        let seat = Seat {
            admin: member().peer,
            since: 1,
            part: vec![],
        };
        let seats = if admin { vec![seat] } else { vec![] };
        signed(
            &owner(),
            Body::Head(Head {
                number,
                seats,
                least: 0,
                destroyed: false,
                issued: NOW,
            }),
        )
    }

    fn item(slot: u16, version: u64, bytes: usize) -> Verified {
        let (slot, data) = (slot.to_be_bytes().to_vec(), vec![7; bytes]);
        let (issued, expires) = (NOW, NOW + 3600);
        signed(
            &member(),
            Body::Item(Item {
                kind: 4242,
                slot,
                version,
                issued,
                expires,
                data,
            }),
        )
    }

    /// What is held of these, given again until nothing is new: what one member lacks another brings.
    fn settled<'a>(records: impl Iterator<Item = &'a Verified> + Clone) -> Records {
        let mut all = Records::new(genesis());
        loop {
            let before = all.held();
            for record in records.clone() {
                let _ = all.absorb(record.clone());
            }
            if all.held() == before {
                return all;
            }
        }
    }

    fn count(records: &Records) -> usize {
        records.items_of(member().peer).count()
    }

    #[test]
    fn a_member_has_128_items_and_256_kib_and_an_admin_512_and_a_mib() {
        let small: Vec<Verified> = (0..600).map(|slot| item(slot, 1, 10)).collect();
        let large: Vec<Verified> = (0..600).map(|slot| item(slot, 1, MAX_ITEM)).collect();
        for (heads, many, much) in [(vec![], 128, 63), (vec![head(1, true)], 512, 255)] {
            let begin: Vec<Verified> = [grant(1, Term::Full)].into_iter().chain(heads).collect();
            assert_eq!(count(&settled(begin.iter().chain(&small))), many);
            let all = settled(begin.iter().chain(&large));
            assert_eq!(count(&all), much);
            assert!(
                all.item(member().peer, 4242, &[0, 0]).is_some(),
                "the smallest slots stay"
            );
        }
    }

    #[test]
    fn nothing_larger_than_an_item_may_be_is_one() {
        for (slot, data, fits) in [
            (MAX_SLOT, MAX_ITEM, true),
            (MAX_SLOT + 1, 0, false),
            (0, MAX_ITEM + 1, false),
        ] {
            let (slot, data) = (vec![1; slot], vec![1; data]);
            let item = Item {
                kind: u16::MAX,
                slot,
                version: u64::MAX,
                issued: 0,
                expires: u64::MAX,
                data,
            };
            let record = Signed::new(genesis().id(), &Body::Item(item), &member().key);
            assert_eq!(record.check().is_ok(), fits);
        }
    }

    #[test]
    fn who_loses_its_seat_or_comes_to_be_on_trial_holds_what_a_newcomer_would_let_it_hold() {
        let items: Vec<Verified> = (0..300).map(|slot| item(slot, 1, 10)).collect();
        let wide = Announcement {
            version: 1,
            endpoints: vec!["/dns4/x".repeat(30); 10],
            ..Announcement::default()
        };
        let wide = signed(&member(), Body::Announcement(wide));
        let first: Vec<Verified> = [grant(1, Term::Full), head(1, true)]
            .into_iter()
            .chain(items)
            .chain([wide])
            .collect();
        for (later, left) in [(head(2, false), 128), (grant(2, Term::Trial), 0)] {
            let mut old = settled(first.iter());
            assert_eq!(count(&old), 300);
            assert_eq!(old.absorb(later.clone()), Absorbed::New);
            let newcomer = settled([later].iter().chain(&first));
            assert_eq!((count(&old), old.held()), (left, newcomer.held()));
        }
    }

    #[test]
    fn an_empty_item_takes_a_slot_back_also_where_there_is_no_room() {
        let full: Vec<Verified> = (0..64).map(|slot| item(slot, 1, MAX_ITEM)).collect();
        let mut all = settled([grant(1, Term::Full)].iter().chain(&full));
        let me = member().peer;
        // Neither a new slot nor a larger statement has room.
        assert_eq!(all.absorb(item(100, 1, MAX_ITEM)), Absorbed::Known);
        assert_eq!(all.absorb(item(62, 2, 0)), Absorbed::New);
        assert!(all.item(me, 4242, &[0, 62]).unwrap().data.is_empty());
        assert_eq!(
            all.absorb(full[62].clone()),
            Absorbed::Known,
            "what was taken back does not come again"
        );
        assert_eq!(all.absorb(item(100, 1, MAX_ITEM - 200)), Absorbed::New);
    }

    #[test]
    fn what_has_ended_goes_at_the_same_moment_everywhere() {
        let given = [grant(1, Term::Full), item(1, 1, 10)];
        let hour = (NOW + 3600 + GRACE).next_multiple_of(3600);
        let (mut early, mut late) = (settled(given.iter()), settled(given.iter()));
        // One looked at the first second of this hour, the other at its last: neither is ahead.
        early.forget(hour - 3600);
        late.forget(hour - 1);
        assert_eq!((count(&early), count(&late)), (1, 1));
        assert!(early.may_forget(hour) && late.may_forget(hour));
        early.forget(hour);
        late.forget(hour + 3599);
        assert_eq!((count(&early), count(&late)), (0, 0));
        assert_eq!(early.held(), late.held());
        assert_eq!(
            early.absorb(item(1, 1, 10)),
            Absorbed::Known,
            "and is not taken again"
        );
        assert!(!early.has_use_for(
            member().peer,
            &Item {
                kind: 1,
                slot: vec![],
                version: 9,
                issued: 0,
                expires: NOW,
                data: vec![]
            },
            &[0; 32]
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whoever_has_seen_the_same_holds_the_same(
            said in proptest::collection::vec((0u16..80, 1u64..4, prop_oneof![Just(0usize), 0..MAX_ITEM, Just(MAX_ITEM)]), 1..160),
            at in any::<prop::sample::Index>(),
            admin in any::<bool>(),
        ) {
            let mut records: Vec<Verified> = said.into_iter().map(|(slot, version, bytes)| item(slot, version, bytes)).collect();
            records.push(grant(1, Term::Full));
            records.push(head(1, admin));
            let forward = settled(records.iter());
            let backward = settled(records.iter().rev());
            let middle = at.index(records.len());
            records.rotate_left(middle);
            let turned = settled(records.iter());
            prop_assert_eq!(forward.held(), backward.held());
            prop_assert_eq!(forward.held(), turned.held());
            let bytes: usize = forward.items_of(member().peer).map(size).sum();
            prop_assert!(bytes <= WITH_A_SAY.bytes && count(&forward) <= WITH_A_SAY.items);
        }
    }
}
