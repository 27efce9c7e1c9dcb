//! Records of any key in any order, as a node takes them in: whoever has seen the same holds and believes the same, no
//! address belongs to two, and nobody but the owner is the owner.
//!
//! The input is a list of statements, eight bytes each; every one is well signed, so that what it says is what is judged.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use byway::model::id::Name;
use byway::model::ipam::overlaps;
use byway::model::members::Identity;
use byway::model::record::{
    Admission, Announcement, Blocks, Body, Genesis, Grant, Head, Item, NameEntry, Prefix6,
    Registration, Revocation, Role, Seat, Signed, Term, Verified, WorkloadEntry,
};
use byway::model::subnet::Records;
use byway::model::zone::RecordData;
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

/// The owner first.
static KEYS: LazyLock<Vec<Identity>> = LazyLock::new(|| {
    (1..=5)
        .map(|n| Identity::new(&[n; 32], [n; 32], [n + 100; 32]))
        .collect()
});

static GENESIS: LazyLock<Genesis> = LazyLock::new(|| Genesis {
    version: 1,
    owner: KEYS[0].peer,
    name: name(0),
    cidr4: Some("10.77.0.0/16".parse().expect("a prefix")),
    cidr6: Prefix6::Derived,
    block4: 24,
    admission: Admission::Approve,
    domain: "lab.internal".to_owned(),
    grant_life: 90 * 86_400,
    created: NOW - 9,
    salt: [1; 16],
});

fn name(n: u8) -> Name {
    ["lab", "db", "web", "cam"][usize::from(n % 4)]
        .parse()
        .expect("a name")
}

/// What eight bytes say; `ends` are the digests of the grants so far.
fn body(word: &[u8; 8], ends: &[[u8; 32]]) -> Body {
    let [kind, _, about, low, high, more, block, time] = *word;
    let subject = KEYS[usize::from(about % 5)].peer;
    let (seat, moment) = (
        u64::from(high % 4),
        NOW.saturating_add_signed((i64::from(time) - 128) * 86_400),
    );
    match kind % 6 {
        0 => Body::Grant(grant(word, moment)),
        1 => {
            let named = (1..5u8).filter(|n| about & (1 << n) != 0);
            let seat = |n: u8| Seat {
                admin: KEYS[usize::from(n)].peer,
                since: u64::from((high >> n) % 4),
                part: vec![Blocks {
                    first: u32::from(n) * 2,
                    count: 2,
                }],
            };
            Body::Head(Head {
                number: u64::from(low % 8),
                seats: named.map(seat).collect(),
                least: u32::from(more % 4),
                destroyed: more > 250,
                issued: moment,
            })
        }
        2 => Body::Revocation(Revocation {
            subject,
            generation: u32::from(low % 6),
            ends: ends
                .get(usize::from(more) % ends.len().max(1))
                .copied()
                .unwrap_or([0; 32]),
            seat,
        }),
        3 => Body::Registration(Registration {
            holder: subject,
            version: u64::from(low),
            seat,
            names: (0..4)
                .filter(|n| more & (1 << n) != 0)
                .map(|n| name(n).to_string())
                .collect(),
            released: (0..4)
                .filter(|n| block & (1 << n) != 0)
                .map(|n| (name(n).to_string(), u64::from(time)))
                .collect(),
        }),
        4 => Body::Announcement(announcement(word, moment)),
        _ => Body::Item(Item {
            kind: u16::from(more % 3),
            slot: vec![block % 4],
            version: u64::from(low),
            issued: moment,
            expires: moment,
            data: vec![about; usize::from(high)],
        }),
    }
}

fn grant(word: &[u8; 8], moment: u64) -> Grant {
    let [_, _, about, low, high, more, block, _] = *word;
    let (subject, seat) = (KEYS[usize::from(about % 5)].peer, u64::from(high % 4));
    let lease = format!(
        "10.77.{}.0/{}",
        block % 8,
        [24, 24, 23, 32][usize::from(block >> 6)]
    );
    let lease: ipnet::IpNet = lease.parse().expect("a prefix");
    Grant {
        subject,
        data_key: [about; 32],
        seal_key: [about.wrapping_add(128); 32],
        name: name(more),
        role: [Role::Member, Role::Admin, Role::Owner][usize::from(more / 4 % 3)],
        generation: u32::from(low % 6),
        version: u64::from(low / 6),
        seat,
        addresses: vec![lease.hosts().next().expect("an address")],
        leases: vec![lease.trunc()],
        not_before: moment,
        not_after: moment + 86_400 * u64::from(more % 90),
        term: [Term::Full, Term::Ephemeral, Term::Trial][usize::from(more % 3)],
        labels: BTreeMap::new(),
    }
}

fn announcement(word: &[u8; 8], moment: u64) -> Announcement {
    let [_, _, _, low, high, more, block, time] = *word;
    let left = (more > 200).then_some(u32::from(low % 6));
    let quiet = left.is_some();
    let address: std::net::IpAddr = [10, 77, block % 8, 9].into();
    let workload = WorkloadEntry {
        name: name(high),
        addresses: vec![address],
    };
    let entry = NameEntry {
        name: name(time).to_string(),
        data: RecordData::Address(address),
        ttl: 5,
    };
    Announcement {
        version: u64::from(low),
        issued: moment,
        life: 0,
        left,
        endpoints: vec![],
        workloads: if quiet || more & 1 == 0 {
            vec![]
        } else {
            vec![workload]
        },
        names: if quiet || more & 2 == 0 {
            vec![]
        } else {
            vec![entry]
        },
    }
}

/// All of them as often as something is new: what one wants another brings.
fn merged<'a>(records: impl Iterator<Item = &'a Verified> + Clone) -> Records {
    let mut merged = Records::new(GENESIS.clone());
    loop {
        let before = merged.held();
        for record in records.clone() {
            let _ = merged.absorb(record.clone());
        }
        if merged.held() == before {
            return merged;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let id = GENESIS.id();
    let (mut records, mut ends) = (Vec::new(), Vec::new());
    for word in data.as_chunks::<8>().0.iter().take(32) {
        let body = body(word, &ends);
        let signed = Signed::new(id, &body, &KEYS[usize::from(word[1] % 5)].key);
        // What breaks a rule of form is refused before anybody judges it.
        let Ok(record) = signed.check() else { continue };
        if matches!(body, Body::Grant(_)) {
            ends.push(record.digest());
        }
        records.push(record);
    }
    let (one, other) = (merged(records.iter()), merged(records.iter().rev()));
    assert_eq!(one.held(), other.held(), "the order decides what is held");
    for now in [NOW - 30 * 86_400, NOW, NOW + 60 * 86_400] {
        let resolved = one.resolve(now);
        assert_eq!(
            resolved,
            other.resolve(now),
            "the order decides what is believed"
        );
        let leases: Vec<_> = resolved
            .members
            .iter()
            .flat_map(|(of, m)| m.leases.iter().map(move |l| (of, l)))
            .collect();
        for (at, (of, lease)) in leases.iter().enumerate() {
            let other = leases[..at]
                .iter()
                .find(|(by, taken)| by != of && overlaps(**taken, **lease));
            assert!(other.is_none(), "{lease} belongs to two");
        }
        let names: BTreeSet<&Name> = resolved.members.values().map(|m| &m.name).collect();
        assert_eq!(
            names.len(),
            resolved.members.len(),
            "two members have one name"
        );
        let owners = resolved
            .members
            .iter()
            .filter(|(_, m)| m.role == Role::Owner);
        owners.for_each(|(peer, _)| assert_eq!(*peer, GENESIS.owner, "somebody else is the owner"));
    }
    let (mut one, mut other) = (one, other);
    one.forget(NOW + 200 * 86_400);
    other.forget(NOW + 200 * 86_400);
    assert_eq!(
        one.held(),
        other.held(),
        "the order decides what is forgotten"
    );
});
