//! How records of a subnet are held: by key in maps that copies share, each with its digest in one index.

use std::sync::Arc;

use super::chunks::Chunks;
use super::id::PeerId;
use super::record::{Digest, Statement, Verified};
use super::subnet::Absorbed;

/// Statements by the member they are about and the member that signed them.
pub(super) type ByPair<T> = Chunks<(PeerId, PeerId), Arc<Statement<T>>>;

/// Stands for what is in a set of records: copies bear the same one until something changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark(Arc<()>);

impl Mark {
    /// Whether both sets are the same for sure.
    pub(super) fn is_same(&self, other: &Mark) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The mark is no part of what is compared.
impl PartialEq for Mark {
    fn eq(&self, _: &Mark) -> bool {
        true
    }
}

impl Eq for Mark {}

/// What is held about one member, with who said it.
pub(super) fn about<T>(
    map: &ByPair<T>,
    member: PeerId,
) -> impl Iterator<Item = (PeerId, &Arc<Statement<T>>)> {
    let first = (member, PeerId([0; 32]));
    let all = map
        .from(&first)
        .take_while(move |((about, _), _)| *about == member);
    all.map(|((_, by), held)| (*by, held))
}

/// What became of a record that was to be entered.
pub(super) struct Entered {
    pub(super) verdict: Absorbed,
    /// Keys of the same issuer that had to go for it.
    pub(super) evicted: Vec<(PeerId, PeerId)>,
}

/// Enters a record under its key where it is the greatest. Of more than `most` of one issuer those with the smallest
/// keys stay, so that the same are left at everybody.
pub(super) fn enter<T, R: Ord>(
    map: &mut ByPair<T>,
    index: &mut Chunks<Digest, ()>,
    most: usize,
    key: (PeerId, PeerId),
    statement: Arc<Statement<T>>,
    rank: impl Fn(&Statement<T>) -> R,
) -> Entered {
    let mut entered = Entered {
        verdict: Absorbed::Known,
        evicted: Vec::new(),
    };
    if map
        .get(&key)
        .is_some_and(|old| rank(old) >= rank(&statement))
    {
        return entered;
    }
    let digest = statement.digest;
    index.insert(digest, ());
    if let Some(old) = map.insert(key, statement) {
        index.remove(&old.digest);
    } else if map.len() > most {
        entered.evicted = map
            .keys()
            .filter(|(_, by)| *by == key.1)
            .skip(most)
            .copied()
            .collect();
        for key in &entered.evicted {
            if let Some(old) = map.remove(key) {
                index.remove(&old.digest);
            }
        }
        entered.evicted.retain(|gone| *gone != key);
    }
    if index.contains_key(&digest) {
        entered.verdict = Absorbed::New;
    }
    entered
}

/// Drops what is held about one member.
pub(super) fn drop_about<T>(map: &mut ByPair<T>, index: &mut Chunks<Digest, ()>, member: PeerId) {
    let issuers: Vec<PeerId> = about(map, member).map(|(by, _)| by).collect();
    for by in issuers {
        if let Some(old) = map.remove(&(member, by)) {
            index.remove(&old.digest);
        }
    }
}

/// Keeps what `stays` says yes to, in the index as well.
pub(super) fn keep<T>(
    map: &mut ByPair<T>,
    index: &mut Chunks<Digest, ()>,
    stays: impl Fn(&(PeerId, PeerId), &T) -> bool,
) {
    map.retain(|key, held| stays(key, &held.body) || index.remove(&held.digest).is_none());
}

/// What of `old` is not in `new` any more, and what came.
pub(super) fn moved<K: Ord, T>(
    old: &Chunks<K, Arc<Statement<T>>>,
    new: &Chunks<K, Arc<Statement<T>>>,
    went: &mut Vec<Digest>,
    came: &mut Vec<Verified>,
) where
    Verified: From<Arc<Statement<T>>>,
{
    for (_, old, new) in old.differences(new, |a, b| a.digest == b.digest) {
        went.extend(old.map(|held| held.digest));
        came.extend(new.map(|held| Verified::from(Arc::clone(held))));
    }
}

#[cfg(test)]
mod tests {
    use crate::model::genesis::{Admission, Genesis, Prefix6};
    use crate::model::id::PeerId;
    use crate::model::members::Identity;
    use crate::model::record::{
        Announcement, Body, Grant, Head, Item, Registration, Revocation, Role, Seat, Signed, Term,
        Verified,
    };
    use crate::model::subnet::Records;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    const NOW: u64 = 1_800_000_000;
    /// As many grants as an admin may have.
    const MOST: usize = 1024;

    fn identity(n: u8) -> Identity {
        Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32])
    }

    fn genesis() -> Genesis {
        Genesis {
            version: 1,
            owner: identity(1).peer,
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

    /// By the owner (1), or by the admin (2) in the seat that head 1 gave it.
    fn grant(by: u8, subject: PeerId, generation: u32, term: Term) -> Verified {
        let life = if term == Term::Full {
            90 * 86_400
        } else {
            3600
        };
        let body = Grant {
            subject,
            data_key: [2; 32],
            seal_key: [12; 32],
            name: "web".parse().unwrap(),
            role: Role::Member,
            generation,
            version: 1,
            seat: u64::from(by == 2),
            addresses: vec![],
            leases: vec![],
            not_before: NOW,
            not_after: NOW + life,
            term,
            labels: Default::default(),
        };
        signed(&identity(by), Body::Grant(body))
    }

    /// An announcement too large for a member on trial, and an item; and what the owner says of the member.
    fn about(member: &Identity) -> [Verified; 4] {
        let wide = Announcement {
            version: 1,
            endpoints: vec!["/dns4/x".repeat(30); 10],
            ..Announcement::default()
        };
        let item = Item {
            kind: 9,
            slot: vec![],
            version: 1,
            issued: NOW,
            expires: NOW + 3600,
            data: vec![1],
        };
        let (holder, names) = (member.peer, ["web".to_owned()].into());
        let registration = Registration {
            holder,
            version: 1,
            seat: 0,
            names,
            released: Default::default(),
        };
        let revocation = Revocation {
            subject: member.peer,
            generation: 1,
            ends: [0; 32],
            seat: 0,
        };
        [
            signed(member, Body::Announcement(wide)),
            signed(member, Body::Item(item)),
            signed(&identity(1), Body::Registration(registration)),
            signed(&identity(1), Body::Revocation(revocation)),
        ]
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

    /// Members by key: three that keep the admin's grant, three that do not, each three with nothing of the owner's, a
    /// grant on trial, and a full one.
    fn members() -> Vec<Identity> {
        let mut members: Vec<Identity> = (3..9).map(identity).collect();
        members.sort_by_key(|member| member.peer);
        members
    }

    /// The admin's grants of whom nobody knows, all before those of the members by their keys; as many as leave three of
    /// those their place.
    fn flood() -> Vec<Verified> {
        let made_up = |n: usize| {
            let mut key = [0; 32];
            key[1..9].copy_from_slice(&n.to_be_bytes());
            grant(2, PeerId(key), 1, Term::Full)
        };
        (0..MOST - 3).map(made_up).collect()
    }

    /// What else is said, each kind after those that it needs.
    fn said() -> Vec<Verified> {
        let seat = Seat {
            admin: identity(2).peer,
            since: 1,
            part: vec![],
        };
        let head = Head {
            number: 1,
            seats: vec![seat],
            least: 0,
            destroyed: false,
            issued: NOW,
        };
        let mut all = vec![
            signed(&identity(1), Body::Head(head)),
            grant(1, identity(2).peer, 1, Term::Full),
        ];
        for (member, place) in members().iter().zip(0..) {
            all.push(grant(2, member.peer, 1, Term::Full));
            match place % 3 {
                1 => all.push(grant(1, member.peer, 2, Term::Trial)),
                2 => all.push(grant(1, member.peer, 2, Term::Full)),
                _ => {}
            }
            all.extend(about(member));
        }
        all
    }

    /// Whether announcement, item, registration and revocation of each member are held.
    fn kept(records: &Records) -> Vec<[bool; 4]> {
        let of = |member: &Identity| about(member).map(|record| records.knows(&record.digest()));
        members().iter().map(of).collect()
    }

    #[test]
    fn what_only_an_evicted_grant_carried_goes_with_it() {
        let (flood, said) = (flood(), said());
        assert_eq!(
            kept(&settled(said.iter())),
            [[true; 4]; 6],
            "before the flood"
        );
        let after = settled(said.iter().chain(&flood));
        // With a full grant of the owner's all stays but a revocation that ends nothing any more. On trial, what a member
        // on trial may not say goes, too. With no grant everything goes.
        let (whole, trial, full) = (
            [true; 4],
            [false, false, true, false],
            [true, true, true, false],
        );
        assert_eq!(kept(&after), [whole, whole, whole, [false; 4], trial, full]);
        assert_eq!(after.held(), settled(flood.iter().chain(&said)).held());
    }

    #[test]
    fn whatever_the_order_of_arrival_the_same_is_left_of_a_flood_of_grants() {
        let all: Vec<Verified> = said().into_iter().chain(flood()).collect();
        let left = settled(all.iter()).held();
        let config = ProptestConfig {
            cases: 48,
            ..ProptestConfig::default()
        };
        let order = Just(all).prop_shuffle();
        let same = |all: Vec<Verified>| {
            prop_assert!(settled(all.iter()).held() == left, "another set");
            Ok(())
        };
        TestRunner::new(config).run(&order, same).unwrap();
    }
}
