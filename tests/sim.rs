//! Many states, a virtual clock, links that lose, partition and heal: what members believe ends the same everywhere.
//!
//! set: fast. No sockets, no root. Each run prints its seed; `BYWAY_SEED=n` repeats one.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::join::Ask;
use byway::model::local::PendingJoin;
use byway::model::members::Identity;
use byway::model::record::{Admission, Body, Doc, Grant, Head, Role, Signed};
use byway::model::state::{Draft, Founding, State};
use byway::model::subnet::Records;
use proptest::prelude::*;

/// A small deterministic generator (splitmix64): the seed alone decides a run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn seeds() -> Vec<u64> {
    let seeds = match std::env::var("BYWAY_SEED") {
        Ok(seed) => vec![seed.parse().expect("BYWAY_SEED is a number")],
        Err(_) => (1..=20).collect(),
    };
    println!("seeds: {seeds:?}");
    seeds
}

fn identity(n: u8) -> Identity {
    Identity::new(&[n; 32], [n; 32])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Nodes, who hears whom, and one clock.
struct World {
    nodes: Vec<State>,
    /// Partition each node is in: only equal numbers hear each other.
    side: Vec<usize>,
    now: u64,
    loss: usize,
    rng: Rng,
    id: SubnetId,
}

impl World {
    fn found(members: u8, seed: u64) -> World {
        let now = 1_800_000_000;
        let mut nodes: Vec<State> = (0..members).map(|n| State::new(identity(n + 1))).collect();
        let founding = Founding {
            name: name("lab"),
            cidr4: Some(None),
            cidr6: Some(None),
            block4: None,
            admission: Admission::Approve,
            domain: None,
            grant_life: None,
            member: name("m0"),
            routed: vec![],
            salt: [seed as u8; 16],
        };
        let subnet = nodes[0].found(founding, now).unwrap();
        let id = subnet.records.id;
        let mut draft = Draft::default();
        draft.put(subnet);
        nodes[0].absorb(draft);
        let count = nodes.len();
        World { nodes, side: vec![0; count], now, loss: 0, rng: Rng(seed), id }
    }

    fn change(&mut self, node: usize, act: impl FnOnce(&mut byway::model::members::Subnet, &Identity, u64)) {
        let me = self.nodes[node].me.clone();
        let mut subnet = self.nodes[node].edit(&self.id.to_string()).unwrap();
        act(&mut subnet, &me, self.now);
        let mut draft = Draft::default();
        draft.put(subnet);
        self.nodes[node].absorb(draft);
    }

    /// `by` admits `who`, who takes the answer.
    fn admit(&mut self, by: usize, who: usize, wanted: &str) {
        let joiner = self.nodes[who].me.clone();
        let ask = Ask {
            subnet: self.id,
            joiner: joiner.peer,
            data_key: joiner.data_key,
            name: name(wanted),
            name_is_default: true,
            ip: None,
            asked: self.now,
            proof: None,
        };
        self.change(by, |s, me, now| s.admit(me, &ask, Role::Member, &BTreeMap::new(), now).unwrap());
        let giver = &self.nodes[by].subnets[&self.id];
        let records: Vec<Signed> = giver.records.all().cloned().collect();
        let join = PendingJoin {
            subnet: self.id,
            invite: None,
            hints: vec![],
            name: name(wanted),
            name_is_default: true,
            alias: None,
            ip: None,
            since: self.now,
        };
        let subnet = self.nodes[who].accept(&join, &giver.local.genesis.clone(), &records, &[], self.now).unwrap();
        let mut draft = Draft::default();
        draft.put(subnet);
        self.nodes[who].absorb(draft);
    }

    /// One exchange between two nodes, record by record, some of them lost.
    fn sync(&mut self, a: usize, b: usize) {
        if self.side[a] != self.side[b] {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let Some(source) = self.nodes[from].subnets.get(&self.id) else { continue };
            let have = self.nodes[to].subnets.get(&self.id).map(|s| s.records.digests()).unwrap_or_default();
            let mut records: Vec<Signed> =
                source.records.all().filter(|r| !have.contains(&r.digest())).cloned().collect();
            for i in (1..records.len()).rev() {
                records.swap(i, self.rng.below(i + 1));
            }
            let loss = self.loss;
            records.retain(|_| self.rng.below(100) >= loss);
            if let Some((draft, _)) = self.nodes[to].take(self.id, &records, self.now) {
                self.nodes[to].absorb(draft);
            }
        }
    }

    fn gossip(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.now += 1;
            for node in 0..self.nodes.len() {
                let peer = self.rng.below(self.nodes.len());
                self.sync(node, peer);
                if self.nodes[node].subnets.contains_key(&self.id) {
                    self.change(node, |s, me, now| s.upkeep(me, now).unwrap());
                }
            }
        }
    }

    fn members(&self, node: usize) -> BTreeSet<PeerId> {
        self.nodes[node].subnets[&self.id].records.resolve(self.now).members.keys().copied().collect()
    }

    fn assert_agreed(&self) {
        let first = self.nodes[0].subnets[&self.id].records.resolve(self.now);
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some(subnet) = node.subnets.get(&self.id) {
                assert_eq!(subnet.records.resolve(self.now), first, "node {n}");
            }
        }
        let mut leases: Vec<_> = first.members.values().flat_map(|m| m.leases.clone()).collect();
        leases.sort();
        for (i, a) in leases.iter().enumerate() {
            for b in &leases[i + 1..] {
                assert!(!byway::model::ipam::overlaps(*a, *b), "{a} and {b} have two owners");
            }
        }
        assert!(first.members.values().all(|m| !m.addresses.is_empty()), "a member lost its address for good");
    }
}

#[test]
fn members_agree_after_loss() {
    for seed in seeds() {
        let mut world = World::found(8, seed);
        world.loss = 40;
        for who in 1..8 {
            world.admit(0, who, &format!("m{who}"));
            world.gossip(2);
        }
        world.gossip(60);
        world.assert_agreed();
        assert_eq!(world.members(7).len(), 8, "seed {seed}");
    }
}

#[test]
fn two_admins_removing_two_members_in_a_partition_both_hold_after_it() {
    for seed in seeds() {
        let mut world = World::found(7, seed);
        for who in 1..7 {
            world.admit(0, who, &format!("m{who}"));
        }
        world.gossip(20);
        let (admin_a, admin_b) = (world.nodes[1].me.peer, world.nodes[2].me.peer);
        world.change(0, |s, me, now| {
            s.set_admin(me, admin_a, true, now).unwrap();
            s.set_admin(me, admin_b, true, now).unwrap();
        });
        world.gossip(20);
        // The owner is away; each half has one admin.
        world.side = vec![9, 1, 2, 1, 2, 1, 2];
        let (gone_a, gone_b) = (world.nodes[5].me.peer, world.nodes[6].me.peer);
        world.change(1, |s, me, now| s.remove(me, gone_a, now).unwrap());
        world.change(2, |s, me, now| s.remove(me, gone_b, now).unwrap());
        world.gossip(10);
        assert!(!world.members(3).contains(&gone_a) && world.members(3).contains(&gone_b), "seed {seed}");
        world.side = vec![0; 7];
        world.gossip(40);
        world.assert_agreed();
        for node in 0..5 {
            let members = world.members(node);
            assert!(!members.contains(&gone_a) && !members.contains(&gone_b), "node {node} seed {seed}");
        }
        assert!(!world.nodes[0].subnets[&world.id].records.forked(), "the next head repeats the union");
    }
}

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
        world.now += world.rng.below(2) as u64;
        world.admit(1, 5, "web");
        world.side = vec![0; 6];
        world.gossip(120);
        world.assert_agreed();
        let resolved = world.nodes[3].subnets[&world.id].records.resolve(world.now);
        let names: BTreeSet<&Name> = resolved.members.values().map(|m| &m.name).collect();
        assert_eq!(names.len(), 6, "every member has a name of its own, seed {seed}");
    }
}

#[test]
fn removed_member_is_cut_and_stays_out() {
    let mut world = World::found(4, 3);
    for who in 1..4 {
        world.admit(0, who, &format!("m{who}"));
    }
    world.gossip(20);
    let gone = world.nodes[3].me.peer;
    let old: Vec<Signed> = world.nodes[3].subnets[&world.id].records.all().cloned().collect();
    world.change(0, |s, me, now| s.remove(me, gone, now).unwrap());
    world.gossip(20);
    // It pushes its old grant and document again.
    for node in 0..3 {
        if let Some((draft, _)) = world.nodes[node].take(world.id, &old, world.now) {
            world.nodes[node].absorb(draft);
        }
        assert!(!world.members(node).contains(&gone));
    }
    let view = world.nodes[1].view(1, world.now, &Default::default());
    assert!(!view.subnets[&world.id].members.contains(&gone));
    // Only an approval brings it back, one generation up.
    world.admit(0, 3, "m3");
    world.gossip(20);
    world.assert_agreed();
    assert_eq!(world.nodes[0].subnets[&world.id].records.resolve(world.now).members[&gone].grant.generation, 2);
}

#[test]
fn only_the_owner_and_admins_have_a_say() {
    let mut world = World::found(3, 4);
    world.admit(0, 1, "m1");
    world.admit(0, 2, "m2");
    world.gossip(20);
    let (mallory, victim) = (world.nodes[1].me.clone(), world.nodes[2].me.peer);
    let held = &world.nodes[0].subnets[&world.id].records;
    let grant = held.resolve(world.now).members[&mallory.peer].grant.clone();
    let forged = [
        Body::Grant(Grant {
            role: Role::Admin,
            generation: 9,
            not_before: world.now + 1,
            not_after: world.now + 99,
            ..grant.clone()
        }),
        Body::Grant(Grant { subject: victim, generation: 9, ..grant }),
        Body::Head(Head {
            number: u64::MAX,
            previous: [0; 32],
            admins: BTreeSet::from([mallory.peer]),
            revoked: BTreeMap::from([(victim, 9)]),
            destroyed: true,
            issued: world.now,
        }),
    ];
    let before = held.resolve(world.now);
    let records: Vec<Signed> = forged.iter().map(|b| Signed::new(world.id, b, &mallory.key)).collect();
    if let Some((draft, _)) = world.nodes[0].take(world.id, &records, world.now) {
        world.nodes[0].absorb(draft);
    }
    assert_eq!(world.nodes[0].subnets[&world.id].records.resolve(world.now), before);
}

#[test]
fn a_clock_ahead_or_behind_changes_no_membership() {
    let mut world = World::found(2, 5);
    world.admit(0, 1, "m1");
    world.gossip(10);
    let state = &world.nodes[1];
    assert!(state.clock(0) + 300 >= world.now - 15, "a clock of 1970 does not fall behind what was signed");
    // A record from the future is refused.
    let me = world.nodes[0].me.clone();
    let doc =
        Doc { version: 99, issued: world.now + 301, left: None, endpoints: vec![], workloads: vec![], names: vec![] };
    let signed = Signed::new(world.id, &Body::Doc(doc), &me.key);
    assert!(world.nodes[1].take(world.id, &[signed], world.now).is_none());
}

#[test]
fn grants_are_renewed_at_half_their_life_and_end_without_renewal() {
    let mut world = World::found(2, 6);
    world.admit(0, 1, "m1");
    world.gossip(10);
    let member = world.nodes[1].me.peer;
    let end = |w: &World, node: usize| {
        w.nodes[node].subnets[&w.id].records.resolve(w.now).members.get(&member).map(|m| m.grant.not_after)
    };
    let first = end(&world, 1).unwrap();
    world.now += 46 * 86_400;
    world.gossip(10);
    assert!(end(&world, 1).unwrap() > first, "renewed by the owner");
    // The owner is gone for good: the grant ends when it says.
    world.side = vec![0, 1];
    world.now = end(&world, 1).unwrap() + 1;
    assert_eq!(end(&world, 1), None);
}

#[test]
fn saved_state_is_loaded_whole_without_any_peer() {
    let mut world = World::found(3, 7);
    world.admit(0, 1, "m1");
    world.admit(0, 2, "m2");
    world.gossip(20);
    let state = &world.nodes[1];
    let empty = State::new(state.me.clone());
    let mut draft = Draft::default();
    draft.put(state.subnets[&world.id].clone());
    let saved: Vec<(Vec<u8>, Vec<u8>)> =
        draft.writes(&empty).into_iter().filter_map(|(k, v)| v.map(|v| (k, v))).collect();
    let (loaded, damage) = State::load(state.me.clone(), saved.clone());
    assert_eq!(damage, vec![]);
    assert_eq!(loaded.view(1, world.now, &Default::default()).host, state.view(1, world.now, &Default::default()).host);
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
    let genesis = world.nodes[0].subnets[&world.id].records.genesis.clone();
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
            leased_at: world.now,
            not_before: world.now,
            not_after: world.now + 1000,
            labels: BTreeMap::new(),
        };
        records.absorb(&Signed::new(id, &Body::Grant(grant), &owner.key), world.now);
    }
    world.now += 1;
    let began = std::time::Instant::now();
    let resolved = records.resolve(world.now);
    println!("resolve {:?}", began.elapsed());
    let mut subnet = world.nodes[0].subnets[&world.id].clone();
    for record in records.all() {
        subnet.records.absorb(record, world.now);
    }
    let mut state = world.nodes[0].clone();
    let mut draft = Draft::default();
    draft.put(subnet.clone());
    state.absorb(draft);
    let began = std::time::Instant::now();
    subnet.set_endpoints(&state.me.clone(), &["/memory/1".into()], world.now * 1000).unwrap();
    let mut draft = Draft::default();
    draft.put(subnet);
    let writes = draft.writes(&state).len();
    println!("one change of a thousand members: {writes} writes, {:?}", began.elapsed());
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
        world.change(2, |s, me, now| s.dns_add(me, "pg", &[byway::model::zone::RecordData::Txt("x".into())], 30, now * 1000).unwrap());
        world.change(3, |s, me, now| s.dns_add(me, "pg", &[byway::model::zone::RecordData::Txt("y".into())], 30, now * 1000).unwrap());
        let mut all: Vec<Signed> = world.nodes.iter().flat_map(|n| n.subnets[&world.id].records.all().cloned()).collect();
        let genesis = world.nodes[0].subnets[&world.id].records.genesis.clone();
        let merge = |records: &[Signed]| {
            let mut merged = Records::new(genesis.clone());
            for record in records {
                let _ = merged.absorb(record, world.now);
            }
            merged.resolve(world.now)
        };
        let one = merge(&all);
        let mut rng = Rng(shuffle);
        for i in (1..all.len()).rev() {
            all.swap(i, rng.below(i + 1));
        }
        let doubled: Vec<Signed> = all.iter().chain(all.iter().rev()).cloned().collect();
        prop_assert_eq!(&merge(&all), &one);
        prop_assert_eq!(&merge(&doubled), &one);
    }

    #[test]
    fn only_lease_owner_may_claim(octet in 1u8..250) {
        let mut world = World::found(3, 11);
        world.admit(0, 1, "m1");
        world.admit(0, 2, "m2");
        world.gossip(20);
        let resolved = world.nodes[0].subnets[&world.id].records.resolve(world.now);
        let victim = &resolved.members[&world.nodes[2].me.peer];
        let mut address = match victim.addresses[0] { std::net::IpAddr::V4(a) => a.octets(), _ => unreachable!() };
        address[3] = octet;
        let thief = world.nodes[1].me.clone();
        let entry = byway::model::record::WorkloadEntry { name: name("stolen"), addresses: vec![address.into()], since: 1 };
        let doc = Doc { version: u64::MAX, issued: world.now, left: None, endpoints: vec![], workloads: vec![entry], names: vec![] };
        let signed = Signed::new(world.id, &Body::Doc(doc), &thief.key);
        if let Some((draft, _)) = world.nodes[0].take(world.id, &[signed], world.now) {
            world.nodes[0].absorb(draft);
        }
        let after = world.nodes[0].subnets[&world.id].records.resolve(world.now);
        prop_assert!(after.members[&thief.peer].workloads.is_empty());
    }
}

/// A world of `members`, all admitted by the owner, node 1 (and 2) made admins.
fn with_admins(members: u8, seed: u64) -> World {
    let mut world = World::found(members, seed);
    for who in 1..members as usize {
        world.admit(0, who, &format!("m{who}"));
    }
    let admins = [world.nodes[1].me.peer, world.nodes[2].me.peer];
    world.change(0, |s, me, now| admins.iter().for_each(|a| s.set_admin(me, *a, true, now).unwrap()));
    world.gossip(30);
    world
}

impl World {
    fn give(&mut self, node: usize, records: &[Signed]) {
        if let Some((draft, _)) = self.nodes[node].take(self.id, records, self.now) {
            self.nodes[node].absorb(draft);
        }
    }

    fn records(&self, node: usize) -> &Records {
        &self.nodes[node].subnets[&self.id].records
    }
}

#[test]
fn an_admin_removed_by_another_admin_has_no_say_any_more() {
    let mut world = with_admins(5, 21);
    let (rogue, victim) = (world.nodes[1].me.clone(), world.nodes[3].me.peer);
    world.side = vec![9, 1, 1, 1, 1];
    world.change(2, |s, me, now| s.remove(me, rogue.peer, now).unwrap());
    world.gossip(20);
    // The owner is away; the removed one signs on: a head that puts everybody out, and a grant of its own.
    let mut head = world.records(1).next_head(rogue.peer, world.now);
    head.number += 1;
    head.revoked.insert(victim, 1);
    head.revoked.insert(world.nodes[2].me.peer, 1);
    let mut grant = world.records(1).grants_of(rogue.peer).next().unwrap().clone();
    grant.generation = 9;
    grant.not_before = world.now;
    let signed = [Body::Head(head), Body::Grant(grant)].map(|b| Signed::new(world.id, &b, &rogue.key));
    world.give(3, &signed);
    world.give(4, &signed);
    for node in [3, 4] {
        let members = world.members(node);
        assert!(members.contains(&victim) && !members.contains(&rogue.peer), "node {node}");
    }
    world.side = vec![0; 5];
    world.gossip(40);
    for node in [0, 2, 3, 4] {
        let members = world.members(node);
        assert!(members.len() == 4 && !members.contains(&rogue.peer), "node {node}");
    }
}

#[test]
fn an_admin_admitted_again_may_admit_again() {
    let mut world = with_admins(5, 22);
    let admin = world.nodes[1].me.peer;
    world.change(2, |s, me, now| s.remove(me, admin, now).unwrap());
    world.gossip(30);
    world.admit(0, 1, "m1");
    world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
    world.gossip(30);
    let mut sixth = State::new(identity(60));
    std::mem::swap(&mut world.nodes[4], &mut sixth);
    // What it grants counts at everyone.
    world.admit(1, 4, "sixth");
    world.gossip(30);
    let new = world.nodes[4].me.peer;
    for node in 0..5 {
        assert!(world.members(node).contains(&new), "node {node}");
    }
    let gone = world.nodes[3].me.peer;
    world.change(1, |s, me, now| s.remove(me, gone, now).unwrap());
    world.gossip(30);
    for node in 0..3 {
        assert!(!world.members(node).contains(&gone), "node {node}");
    }
}

#[test]
fn an_owner_restored_from_a_backup_forgets_no_revocation() {
    for seed in seeds() {
        let mut world = with_admins(6, seed);
        let backup = world.nodes[0].clone();
        let second = world.nodes[2].me.peer;
        let (one, two) = (world.nodes[3].me.peer, world.nodes[4].me.peer);
        // Only node 5 hears of the first removal before the owner's disk dies.
        world.change(0, |s, me, now| s.remove(me, one, now).unwrap());
        world.side = vec![1, 2, 2, 2, 2, 1];
        world.gossip(4);
        let lost = world.nodes[0].clone();
        world.sync(0, 5);
        world.nodes[0] = backup;
        world.side = vec![1, 1, 1, 1, 1, 2];
        world.change(0, |s, me, now| {
            s.remove(me, two, now).unwrap();
            // A second head: its number is above that of the one that was lost.
            s.set_admin(me, second, false, now).unwrap();
        });
        world.gossip(20);
        world.side = vec![0; 6];
        world.gossip(60);
        drop(lost);
        for node in [0, 1, 2, 5] {
            let members = world.members(node);
            assert!(!members.contains(&one) && !members.contains(&two), "node {node} seed {seed}");
        }
        assert!(!world.records(0).forked());
    }
}

#[test]
fn an_owner_long_away_comes_back_and_nobody_renews_it_meanwhile() {
    let mut world = with_admins(4, 23);
    world.side = vec![1, 0, 0, 0];
    let held = world.records(1).all().count();
    for _ in 0..30 {
        world.now += 10 * 86_400;
        world.gossip(3);
    }
    // Admins renewed themselves and the member; nothing was signed for the owner.
    assert_eq!(world.members(3).len(), 4);
    assert!(world.records(1).all().count() <= held + 8);
    let owner = world.nodes[0].me.peer;
    assert!(world.records(1).grants_of(owner).count() == 1);
    let before: BTreeSet<_> = world.records(1).held();
    world.gossip(3);
    assert_eq!(before, world.records(1).held(), "upkeep signs nothing without a reason");
    world.side = vec![0; 4];
    world.gossip(20);
    world.assert_agreed();
    assert!(world.members(0).contains(&owner));
    world.change(0, |s, me, now| s.remove(me, identity(4).peer, now).unwrap());
}

#[test]
fn one_who_left_twice_and_ran_out_is_admitted_again() {
    let mut world = World::found(2, 24);
    world.admit(0, 1, "m1");
    world.gossip(5);
    world.change(1, |s, me, now| s.say_goodbye(me, now * 1000).unwrap());
    world.gossip(5);
    let mut fresh = State::new(world.nodes[1].me.clone());
    std::mem::swap(&mut world.nodes[1], &mut fresh);
    world.admit(0, 1, "m1");
    world.now += 1;
    world.change(1, |s, me, now| s.set_endpoints(me, &["/memory/1".into()], now * 1000).unwrap());
    world.gossip(5);
    let peer = world.nodes[1].me.peer;
    assert!(world.members(0).contains(&peer));
    // It starts afresh: its newest document says nothing of having left.
    let me = world.nodes[1].me.clone();
    let doc = Doc {
        version: u64::MAX - 9,
        issued: world.now,
        left: None,
        endpoints: vec![],
        workloads: vec![],
        names: vec![],
    };
    let signed = [Signed::new(world.id, &Body::Doc(doc), &me.key)];
    world.give(0, &signed);
    world.give(1, &signed);
    // Nobody renewed it in time.
    world.now += 91 * 86_400;
    assert!(!world.members(0).contains(&peer));
    world.admit(0, 1, "m1");
    assert!(world.members(0).contains(&peer) && world.members(1).contains(&peer));
}

#[test]
fn a_newcomer_takes_no_name_by_a_date() {
    let mut world = World::found(3, 25);
    world.admit(0, 1, "m1");
    world.gossip(5);
    let text = |t: &str| [byway::model::zone::RecordData::Txt(t.into())];
    world.change(1, |s, me, now| s.dns_add(me, "db", &text("mine"), 30, now * 1000).unwrap());
    world.gossip(5);
    world.now += 60;
    world.admit(0, 2, "m2");
    let thief = world.nodes[2].me.clone();
    let names =
        vec![byway::model::record::NameEntry { name: "db".into(), data: text("stolen")[0].clone(), ttl: 5, since: 0 }];
    let doc = Doc { version: u64::MAX, issued: world.now, left: None, endpoints: vec![], workloads: vec![], names };
    let signed = Signed::new(world.id, &Body::Doc(doc), &thief.key);
    world.give(0, &[signed]);
    let resolved = world.records(0).resolve(world.now);
    let held: Vec<PeerId> = resolved.names.iter().map(|(.., by)| *by).collect();
    assert_eq!(held, vec![world.nodes[1].me.peer]);
}

#[test]
fn a_member_moves_no_clock_and_an_admin_by_minutes_at_most() {
    let mut world = with_admins(4, 26);
    let (member, admin) = (world.nodes[3].me.clone(), world.nodes[1].me.clone());
    let true_time = world.now;
    for step in 1..50u64 {
        // Each is judged by the clock as it is after the ones before.
        let clock = world.nodes[0].clock(true_time);
        let doc = Doc {
            version: u64::MAX - 99 + step,
            issued: clock + 299,
            left: None,
            endpoints: vec![],
            workloads: vec![],
            names: vec![],
        };
        let mut head = world.records(0).next_head(admin.peer, clock + 299);
        head.admins.clear();
        let signed =
            [Signed::new(world.id, &Body::Doc(doc), &member.key), Signed::new(world.id, &Body::Head(head), &admin.key)];
        world.now = clock;
        world.give(0, &signed);
    }
    assert!(world.nodes[0].clock(true_time) <= true_time + 300);
    // A clock of 1970 takes its time from those with a say, and refuses nothing for being from the future.
    let mut lost = State::new(world.nodes[3].me.clone());
    let join = PendingJoin {
        subnet: world.id,
        invite: None,
        hints: vec![],
        name: name("m3"),
        name_is_default: true,
        alias: None,
        ip: None,
        since: 0,
    };
    let records: Vec<Signed> = world.records(2).all().cloned().collect();
    let subnet = lost.accept(&join, &world.nodes[2].subnets[&world.id].local.genesis, &records, &[], 60).unwrap();
    let mut draft = Draft::default();
    draft.put(subnet);
    lost.absorb(draft);
    assert!(lost.clock(60) >= true_time - 60 && lost.clock(60) <= true_time + 600);
}

#[test]
fn junk_of_made_up_issuers_pushes_no_admin_out() {
    let mut world = World::found(3, 27);
    world.admit(0, 1, "m1");
    world.admit(0, 2, "m2");
    world.gossip(10);
    // Node 2 hears the admin before it hears that it is one.
    let admin = world.nodes[1].me.peer;
    world.side = vec![0, 0, 1];
    world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
    world.gossip(4);
    let before = world.records(2).held();
    let doc = Doc { version: 1, issued: world.now, left: None, endpoints: vec![], workloads: vec![], names: vec![] };
    let mut grant = world.records(1).grants_of(admin).next().unwrap().clone();
    grant.subject = PeerId([77; 32]);
    grant.leases = vec!["10.77.99.0/24".parse().unwrap()];
    grant.addresses = vec!["10.77.99.1".parse().unwrap()];
    let early = Signed::new(world.id, &Body::Grant(grant), &world.nodes[1].me.key.clone());
    world.give(2, &[early]);
    for n in 0..2000u32 {
        let mut seed = [8; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let signed = Signed::new(world.id, &Body::Doc(doc.clone()), &Identity::new(&seed, [0; 32]).key);
        world.give(2, &[signed]);
    }
    assert_eq!(world.records(2).held(), before, "junk is not held, and so never compared or sent");
    assert!(world.records(2).digests().len() <= before.len() + 256);
    let heads: Vec<Signed> = world.records(0).head_records();
    world.give(2, &heads);
    assert!(world.members(2).contains(&PeerId([77; 32])), "what came early counts as soon as it can");
}

#[test]
fn a_large_routing_table_is_taken_at_once() {
    let mut world = World::found(1, 28);
    let entries: Vec<(ipnet::IpNet, PeerId)> = (0..20_000u32)
        .map(|n| {
            let mut peer = [5u8; 32];
            peer[..4].copy_from_slice(&(n / 500).to_be_bytes());
            let net = ipnet::Ipv4Net::new((0x0a4d_4000u32 + n).into(), 32).unwrap();
            (ipnet::IpNet::V4(net), PeerId(peer))
        })
        .collect();
    let began = std::time::Instant::now();
    world.change(0, |s, me, now| {
        assert!(s.lease(me, &entries, now).unwrap());
        assert!(!s.lease(me, &entries, now).unwrap(), "twice changes nothing");
        let clash = [(ipnet::IpNet::V4("10.77.64.0/24".parse().unwrap()), PeerId([1; 32]))];
        assert_eq!(s.lease(me, &clash, now).unwrap_err().code, "E-LEASE-TAKEN");
        let many: Vec<_> = (0..2000u32)
            .map(|n| (ipnet::IpNet::V4(ipnet::Ipv4Net::new((0x0a4d_e000u32 + n).into(), 32).unwrap()), PeerId([1; 32])))
            .collect();
        assert_eq!(s.lease(me, &many, now).unwrap_err().code, "E-LEASE-MANY");
    });
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn an_admin_that_left_has_no_say_and_whom_it_admitted_stays() {
    let mut world = with_admins(5, 29);
    let mut sixth = State::new(identity(61));
    std::mem::swap(&mut world.nodes[4], &mut sixth);
    world.admit(1, 4, "late");
    world.gossip(20);
    let (admin, late) = (world.nodes[1].me.clone(), world.nodes[4].me.peer);
    world.change(1, |s, me, now| s.say_goodbye(me, now * 1000).unwrap());
    world.gossip(20);
    let mut head = world.records(1).next_head(admin.peer, world.now);
    head.revoked.insert(late, 1);
    head.number += 5;
    let signed = [Signed::new(world.id, &Body::Head(head), &admin.key)];
    world.give(2, &signed);
    for node in [0, 2, 3] {
        let members = world.members(node);
        assert!(members.contains(&late) && !members.contains(&admin.peer), "node {node}");
    }
}
