//! Records: merged in any order, judged by the clock, kept, bounded.

use std::collections::{BTreeMap, BTreeSet};

use byway::model::error::Code;
use byway::model::id::{Name, PeerId};
use byway::model::members::Identity;
use byway::model::record::{
    Announcement, Body, Grant, NameEntry, Role, Signed, Term, WorkloadEntry,
};
use byway::model::state::State;
use byway::model::subnet::Records;
use byway::model::zone::RecordData;
use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use byway::testing::Dice;

use super::world::{World, announcement, checked, draft, identity, join, name, seeds, with_admins};

#[test]
fn blocks_given_twice_in_a_partition_are_settled_the_same_everywhere() {
    for seed in seeds() {
        let mut world = World::found(6, seed);
        for who in 1..4 {
            world.admit(0, who, &format!("m{who}"));
        }
        world.gossip(20);
        let admin = world.nodes[1].me.peer;
        world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
        world.gossip(20);
        world.side = vec![1, 2, 1, 2, 1, 2];
        // Both halves give the same block and the same name.
        world.admit(0, 4, "web");
        world.now += world.dice.index(2) as u64;
        world.admit(1, 5, "web");
        world.side = vec![0; 6];
        world.gossip(120);
        world.assert_agreed();
        let resolved = world.records(3).resolve(world.now);
        let names: BTreeSet<&Name> = resolved.members.values().map(|m| &m.name).collect();
        assert_eq!(
            names.len(),
            6,
            "every member has a name of its own, seed {seed}"
        );
    }
}

#[test]
fn a_clock_ahead_or_behind_changes_no_membership() {
    let mut world = World::whole(2, 5);
    world.gossip(10);
    let state = &world.nodes[1];
    assert!(
        state.clock(0) + 300 >= world.now - 15,
        "a clock of 1970 does not fall behind what was signed"
    );
    // A grant from the future is held, and counts when it is due: not before, and not never.
    let owner = world.nodes[0].me.clone();
    let mut grant = world
        .records(0)
        .grants_of(owner.peer)
        .next()
        .unwrap()
        .clone();
    (grant.subject, grant.leases, grant.addresses) = (PeerId([50; 32]), vec![], vec![]);
    (grant.not_before, grant.not_after) = (world.now + 1000, world.now + 2000);
    world.give(1, &[Signed::new(world.id, &Body::Grant(grant), &owner.key)]);
    assert!(!world.members(1).contains(&PeerId([50; 32])));
    let next = world.records(1).resolve(world.now).changes_at.unwrap();
    assert!(
        next <= world.now + 1000,
        "the View is built anew when it is due"
    );
    world.now += 1000;
    assert!(world.members(1).contains(&PeerId([50; 32])));
    world.now += 1000;
    assert!(!world.members(1).contains(&PeerId([50; 32])));
}

#[test]
fn saved_state_is_loaded_whole_without_any_peer() {
    let mut world = World::whole(3, 7);
    world.gossip(20);
    let state = &world.nodes[1];
    let empty = State::new(state.me.clone());
    let draft = draft(state.subnets[&world.id].clone());
    let saved: Vec<(Vec<u8>, Vec<u8>)> = draft
        .changes(&empty)
        .into_writes()
        .into_iter()
        .filter_map(|(k, v)| v.map(|v| (k, v)))
        .collect();
    let (loaded, damage) = State::load(state.me.clone(), saved.clone());
    assert_eq!(damage, vec![]);
    assert_eq!(
        loaded
            .view(1, world.now, &Default::default(), &Default::default())
            .host,
        state
            .view(1, world.now, &Default::default(), &Default::default())
            .host
    );
    // One flipped bit in one record: it is named and left out, the rest stands, and the others give it back.
    let mut damaged = saved;
    let place = damaged.iter().rposition(|(k, _)| k[0] == b'r').unwrap();
    damaged[place].1[40] ^= 1;
    let (loaded, damage) = State::load(state.me.clone(), damaged);
    assert_eq!(damage.len(), 1, "{damage:?}");
    world.nodes[1] = loaded;
    world.gossip(20);
    world.assert_agreed();
}

#[test]
fn unsaved_command_changes_nothing() {
    let world = World::found(1, 8);
    let state = &world.nodes[0];
    let before = state.subnets.clone();
    let mut copy = state.edit("lab").unwrap();
    copy.destroy(&state.me, world.now).unwrap();
    // The draft is dropped, as when the disk is full.
    assert_eq!(state.subnets, before);
}

#[test]
fn a_thousand_members_resolve_in_time() {
    let owner = identity(1);
    let mut world = World::found(1, 9);
    let genesis = world.records(0).genesis.clone();
    let mut records = Records::new(genesis);
    let id = world.id;
    for n in 0..1000u32 {
        let mut subject = [7u8; 32];
        subject[..4].copy_from_slice(&n.to_be_bytes());
        let lease = format!("10.77.{}.{}/32", n / 250, n % 250 + 1);
        let grant = Grant {
            subject: PeerId(subject),
            data_key: [0; 32],
            name: name(&format!("n{n}")),
            role: Role::Member,
            generation: 1,
            addresses: vec![lease.trim_end_matches("/32").parse().unwrap()],
            leases: vec![lease.parse().unwrap()],
            seal_key: [1; 32],
            version: 1,
            seat: 0,
            term: Term::Full,
            not_before: world.now,
            not_after: world.now + 1000,
            labels: BTreeMap::new(),
        };
        records.absorb(
            Signed::new(id, &Body::Grant(grant), &owner.key)
                .check()
                .unwrap(),
        );
    }
    world.now += 1;
    let began = std::time::Instant::now();
    let resolved = records.resolve(world.now);
    println!("resolve {:?}", began.elapsed());
    assert!(began.elapsed().as_secs() < 1, "{:?}", began.elapsed());
    let mut subnet = world.nodes[0].subnets[&world.id].clone();
    for record in checked(records.all()) {
        subnet.records.absorb(record);
    }
    let mut state = world.nodes[0].clone();
    state.absorb(draft(subnet.clone()));
    let began = std::time::Instant::now();
    subnet
        .set_endpoints(&state.me.clone(), &["/memory/1".into()], world.now)
        .unwrap();
    let writes = draft(subnet).changes(&state).into_writes().len();
    println!(
        "one change of a thousand members: {writes} writes, {:?}",
        began.elapsed()
    );
    assert_eq!(writes, 1);
    assert_eq!(resolved.members.len(), 1000);
    assert!(resolved.members.values().all(|m| m.addresses.len() == 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn merge_is_order_free(seed in 0u64..1_000_000, shuffle: u64) {
        let mut world = World::found(6, seed);
        for who in 1..6 {
            world.admit(0, who, "same-name");
        }
        let (admin, gone) = (world.nodes[1].me.peer, world.nodes[4].me.peer);
        world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
        world.gossip(30);
        world.change(1, |s, me, now| s.remove(me, gone, now).unwrap());
        world.change(2, |s, me, now| s.dns_add(me, "pg", &[RecordData::Txt("x".into())], 30, now).unwrap());
        world.change(3, |s, me, now| s.dns_add(me, "pg", &[RecordData::Txt("y".into())], 30, now).unwrap());
        let mut all: Vec<Signed> = world.nodes.iter().flat_map(|n| n.subnets[&world.id].records.all().cloned()).collect();
        let genesis = world.records(0).genesis.clone();
        let merge = |records: &[Signed]| {
            let mut merged = Records::new(genesis.clone());
            for record in checked(records) {
                let _ = merged.absorb(record);
            }
            merged.resolve(world.now)
        };
        let one = merge(&all);
        let mut dice = Dice::new(shuffle);
        for i in (1..all.len()).rev() {
            all.swap(i, dice.index(i + 1));
        }
        let doubled: Vec<Signed> = all.iter().chain(all.iter().rev()).cloned().collect();
        prop_assert_eq!(&merge(&all), &one);
        prop_assert_eq!(&merge(&doubled), &one);
    }

    #[test]
    fn only_lease_owner_may_claim(octet in 1u8..250) {
        let mut world = World::whole(3, 11);
        world.gossip(20);
        let resolved = world.records(0).resolve(world.now);
        let victim = &resolved.members[&world.nodes[2].me.peer];
        let mut address = match victim.addresses[0] { std::net::IpAddr::V4(a) => a.octets(), _ => unreachable!() };
        address[3] = octet;
        let thief = world.nodes[1].me.clone();
        let entry = WorkloadEntry { name: name("stolen"), addresses: vec![address.into()] };
        let announcement = Announcement { workloads: vec![entry], ..announcement(u64::MAX, world.now) };
        let signed = Signed::new(world.id, &Body::Announcement(announcement), &thief.key);
        world.give(0, &[signed]);
        let after = world.records(0).resolve(world.now);
        prop_assert!(after.members[&thief.peer].workloads.is_empty());
    }
}

#[test]
fn a_newcomer_takes_no_name_by_a_date() {
    let mut world = World::found(3, 25);
    world.admit(0, 1, "m1");
    world.gossip(5);
    let text = |t: &str| [RecordData::Txt(t.into())];
    world.change(1, |s, me, now| {
        s.dns_add(me, "db", &text("mine"), 30, now).unwrap()
    });
    world.gossip(5);
    world.now += 60;
    world.admit(0, 2, "m2");
    let thief = world.nodes[2].me.clone();
    let names = vec![NameEntry {
        name: "db".into(),
        data: text("stolen")[0].clone(),
        ttl: 5,
    }];
    let announcement = Announcement {
        names,
        ..announcement(u64::MAX, world.now)
    };
    let signed = Signed::new(world.id, &Body::Announcement(announcement), &thief.key);
    world.give(0, &[signed]);
    for node in 0..2 {
        let resolved = world.records(node).resolve(world.now);
        assert_eq!(
            resolved.flat.get("db"),
            Some(&world.nodes[1].me.peer),
            "node {node}"
        );
    }
}

#[test]
fn only_a_clock_that_cannot_be_right_takes_its_time_from_records() {
    let mut world = with_admins(4, 26);
    let admin = world.nodes[1].me.clone();
    let true_time = world.now;
    let mut grant = world
        .records(1)
        .grants_of(world.nodes[3].me.peer)
        .next()
        .unwrap()
        .clone();
    grant.seat = world.records(1).head().seat(admin.peer).unwrap().since;
    (grant.not_before, grant.not_after) = (true_time + 1000, true_time + 2000);
    world.give(0, &[Signed::new(world.id, &Body::Grant(grant), &admin.key)]);
    assert_eq!(world.nodes[0].clock(true_time), true_time);
    // A clock of 1970 takes its time from those with a say, and refuses nothing for being from the future.
    let mut lost = State::new(world.nodes[3].me.clone());
    let join = join(world.id, "m3", 0);
    let records = checked(world.records(2).all());
    let subnet = lost
        .accept(
            &join,
            &world.nodes[2].subnets[&world.id].local.genesis,
            &records,
            &Default::default(),
            60,
        )
        .unwrap();
    lost.absorb(draft(subnet));
    assert!(lost.clock(60) >= true_time - 60 && lost.clock(60) <= true_time + 600);
}

#[test]
fn junk_of_made_up_issuers_pushes_no_admin_out() {
    let mut world = World::whole(3, 27);
    world.gossip(10);
    // Node 2 hears the admin before it hears that it is one.
    let admin = world.nodes[1].me.peer;
    world.side = vec![0, 0, 1];
    world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
    world.gossip(4);
    let before = world.records(2).held();
    let announcement = announcement(1, world.now);
    let mut grant = world.records(1).grants_of(admin).next().unwrap().clone();
    grant.subject = PeerId([77; 32]);
    grant.seat = world.records(0).head().seat(admin).unwrap().since;
    grant.leases = vec!["10.77.99.0/24".parse().unwrap()];
    grant.addresses = vec!["10.77.99.1".parse().unwrap()];
    let early = Signed::new(
        world.id,
        &Body::Grant(grant),
        &world.nodes[1].me.key.clone(),
    );
    world.give(2, &[early]);
    for n in 0..2000u32 {
        let mut seed = [8; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let signed = Signed::new(
            world.id,
            &Body::Announcement(announcement.clone()),
            &Identity::new(&seed, [0; 32], [1; 32]).key,
        );
        world.give(2, &[signed]);
    }
    assert_eq!(
        world.records(2).held(),
        before,
        "junk is not held, and so never compared or sent"
    );
    assert!(world.records(2).digests().len() <= before.len() + 256);
    let heads: Vec<Signed> = world.records(0).head_records();
    world.give(2, &heads);
    assert!(
        world.members(2).contains(&PeerId([77; 32])),
        "what came early counts as soon as it can"
    );
}

#[test]
fn a_large_routing_table_is_taken_at_once() {
    let mut world = World::found(1, 28);
    let entries: Vec<(IpNet, PeerId)> = (0..20_000u32)
        .map(|n| {
            let mut peer = [5u8; 32];
            peer[..4].copy_from_slice(&(n / 500).to_be_bytes());
            let net = Ipv4Net::new((0x0a4d_4000u32 + n).into(), 32).unwrap();
            (IpNet::V4(net), PeerId(peer))
        })
        .collect();
    let began = std::time::Instant::now();
    world.change(0, |s, me, now| {
        assert!(s.lease(me, &entries, now).unwrap());
        assert!(
            !s.lease(me, &entries, now).unwrap(),
            "twice changes nothing"
        );
        let clash = [(IpNet::V4("10.77.64.0/24".parse().unwrap()), PeerId([1; 32]))];
        assert_eq!(s.lease(me, &clash, now).unwrap_err().code, Code::LeaseTaken);
        let many: Vec<_> = (0..2000u32)
            .map(|n| {
                (
                    IpNet::V4(Ipv4Net::new((0x0a4d_e000u32 + n).into(), 32).unwrap()),
                    PeerId([1; 32]),
                )
            })
            .collect();
        assert_eq!(s.lease(me, &many, now).unwrap_err().code, Code::LeaseMany);
    });
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
