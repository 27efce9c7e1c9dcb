//! Items of any kind in any order, with heads and grants between them: whoever has seen the same holds the same, and nobody
//! holds more than an issuer may have.
//!
//! The input is a list of statements, eight bytes each; every one is well signed, so that what it says is what is judged.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use byway::model::members::Identity;
use byway::model::record::{
    Admission, Body, Genesis, Grant, Head, Item, MAX_ITEM, Prefix6, Role, Seat, Signed, Term,
    Verified,
};
use byway::model::subnet::Records;
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

/// The owner first.
static KEYS: LazyLock<Vec<Identity>> = LazyLock::new(|| {
    (1..=3)
        .map(|n| Identity::new(&[n; 32], [n; 32], [n + 100; 32]))
        .collect()
});

static GENESIS: LazyLock<Genesis> = LazyLock::new(|| Genesis {
    version: 1,
    owner: KEYS[0].peer,
    name: "lab".parse().expect("a name"),
    cidr4: Some("10.77.0.0/16".parse().expect("a prefix")),
    cidr6: Prefix6::Derived,
    block4: 24,
    admission: Admission::Approve,
    domain: "lab.internal".to_owned(),
    grant_life: 90 * 86_400,
    created: NOW - 9,
    salt: [1; 16],
});

/// What eight bytes say, and who signs it.
fn statement(word: &[u8; 8]) -> (usize, Body) {
    let [what, who, kind, slot, version, size, filler, time] = *word;
    let moment = NOW.saturating_add_signed((i64::from(time) - 128) * 3600);
    match what {
        0..8 => {
            let term = if what < 4 { Term::Full } else { Term::Trial };
            let life = if what < 4 { 86_400 * 30 } else { 3600 };
            let grant = Grant {
                subject: KEYS[usize::from(who % 3)].peer,
                data_key: [1; 32],
                seal_key: [2; 32],
                name: "web".parse().expect("a name"),
                role: Role::Member,
                generation: 1,
                version: u64::from(version),
                seat: 0,
                addresses: vec![],
                leases: vec![],
                not_before: moment,
                not_after: moment + life,
                term,
                labels: BTreeMap::new(),
            };
            (0, Body::Grant(grant))
        }
        8..12 => {
            let seat = Seat {
                admin: KEYS[1].peer,
                since: 1,
                part: vec![],
            };
            let seats = if kind & 1 == 0 { vec![seat] } else { vec![] };
            let number = u64::from(version) + 1;
            (
                0,
                Body::Head(Head {
                    number,
                    seats,
                    least: 0,
                    destroyed: false,
                    issued: moment,
                }),
            )
        }
        _ => {
            let data = vec![filler; (usize::from(size) * 17).min(MAX_ITEM)];
            let (kind, slot) = (u16::from(kind % 4), vec![slot; usize::from(slot % 3)]);
            let item = Item {
                kind,
                slot,
                version: u64::from(version),
                issued: moment,
                expires: moment,
                data,
            };
            (usize::from(who % 3), Body::Item(item))
        }
    }
}

/// All of them as often as something is new: what one lacks another brings.
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
    let mut records = Vec::new();
    for word in data.as_chunks::<8>().0.iter().take(64) {
        let (by, body) = statement(word);
        if let Ok(record) = Signed::new(GENESIS.id(), &body, &KEYS[by].key).check() {
            records.push(record);
        }
    }
    let (mut one, mut other) = (merged(records.iter()), merged(records.iter().rev()));
    assert_eq!(one.held(), other.held(), "the order decides what is held");
    for key in KEYS.iter() {
        let items: Vec<&Item> = one.items_of(key.peer).collect();
        let bytes: usize = items
            .iter()
            .map(|item| item.slot.len() + item.data.len())
            .sum();
        assert!(items.len() <= 512 && bytes <= 1024 * 1024);
        let member = one.seat_of(key.peer).is_none();
        assert!(
            !member || (items.len() <= 128 && bytes <= 256 * 1024),
            "more than a member may have"
        );
    }
    one.forget(NOW + 3600);
    other.forget(NOW + 5000);
    assert_eq!(one.held(), other.held(), "what is forgotten in one hour");
});
