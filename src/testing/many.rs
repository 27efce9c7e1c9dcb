//! A subnet with as many members as a test wants, without a daemon for each.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ed25519_dalek::SigningKey;

use crate::model::identity::Identity;
use crate::model::members::Subnet;
use crate::model::notice::{self, Home, RelayNotice, Stance};
use crate::model::record::{Announcement, Body, Grant, Item, Role, Signed, Term};
use crate::model::subnet::Absorbed;

/// The identity of one of many members, by its number.
pub fn identity_of(n: u32) -> Identity {
    let mut seed = [77; 32];
    if let Some(front) = seed.first_chunk_mut() {
        *front = n.to_be_bytes();
    }
    // A member's two keys for data differ.
    Identity::new(&seed, seed, seed.map(|byte| !byte))
}

/// Adds the members with the numbers 1 to `members`: each with a grant of the owner's for 90 days from `now` (seconds since
/// 1970), an announcement of where it is reached, and a notice that names two home relays. Nobody answers at any of these
/// addresses.
pub fn fill(subnet: &mut Subnet, owner: &SigningKey, members: u32, now: u64) {
    let pool = subnet.records.genesis.cidr4.map(|net| net.network());
    let id = subnet.records.id;
    for n in 1..=members {
        let me = identity_of(n);
        // Behind the blocks that the first members get.
        let pool = pool.map(u32::from).unwrap_or_default();
        let address = Ipv4Addr::from(pool.saturating_add(0x4000).saturating_add(n));
        let grant = Grant {
            subject: me.peer,
            data_key: me.data_key,
            seal_key: me.seal_key,
            name: format!("m{n}")
                .parse()
                .unwrap_or_else(|_| subnet.name().clone()),
            role: Role::Member,
            generation: 1,
            version: 1,
            seat: 0,
            addresses: vec![address.into()],
            leases: vec![ipnet::Ipv4Net::from(address).into()],
            not_before: now,
            not_after: now.saturating_add(90 * 86_400),
            term: Term::Full,
            labels: BTreeMap::new(),
        };
        let host = Ipv4Addr::from(0xcb00_7100 | (n & 0xff));
        let announcement = Announcement {
            version: 1,
            issued: now,
            endpoints: vec![
                format!("/ip4/{host}/udp/4100/quic-v1"),
                format!("/ip4/{host}/tcp/4100"),
                format!("/ip6/2001:db8::{n:x}/udp/4100/quic-v1"),
                format!("/ip6/2001:db8::{n:x}/tcp/4100"),
            ],
            ..Announcement::default()
        };
        let home = |n: u32| Home {
            relay: identity_of(n).peer,
            addresses: vec![
                format!("/ip4/{host}/udp/4100/quic-v1"),
                format!("/ip4/{host}/tcp/4100"),
            ],
        };
        let notice = RelayNotice {
            stance: Stance::Unsaid,
            homes: vec![home(1), home(2)],
        };
        let notice = Item {
            kind: notice::KIND,
            slot: Vec::new(),
            version: 1,
            issued: now,
            expires: u64::MAX,
            data: notice.to_data(),
        };
        for (said, by) in [
            (Body::Grant(grant), owner),
            (Body::Announcement(announcement), &me.key),
            (Body::Item(notice), &me.key),
        ] {
            let record = Signed::new(id, &said, by).check();
            let taken = record.map(|record| subnet.records.absorb(record));
            debug_assert_eq!(taken, Ok(Absorbed::New));
        }
    }
}
