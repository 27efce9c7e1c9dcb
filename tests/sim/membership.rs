//! Who is a member and who has a say: the same everywhere, whoever was away meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use byway::model::record::{Body, Grant, Head, Role, Signed};
use byway::model::state::State;

use super::world::{World, doc, identity, seeds, with_admins};

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
        let mut world = World::whole(7, seed);
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
        assert!(!world.records(0).forked(), "the next head repeats the union");
    }
}

#[test]
fn removed_member_is_cut_and_stays_out() {
    let mut world = World::whole(4, 3);
    world.gossip(20);
    let gone = world.nodes[3].me.peer;
    let old: Vec<Signed> = world.records(3).all().cloned().collect();
    world.change(0, |s, me, now| s.remove(me, gone, now).unwrap());
    world.gossip(20);
    // It pushes its old grant and document again.
    for node in 0..3 {
        world.give(node, &old);
        assert!(!world.members(node).contains(&gone));
    }
    let view = world.nodes[1].view(1, world.now, &Default::default());
    assert!(!view.subnets[&world.id].members.contains(&gone));
    // Only an approval brings it back, one generation up.
    world.admit(0, 3, "m3");
    world.gossip(20);
    world.assert_agreed();
    assert_eq!(world.records(0).resolve(world.now).members[&gone].grant.generation, 2);
}

#[test]
fn only_the_owner_and_admins_have_a_say() {
    let mut world = World::whole(3, 4);
    world.gossip(20);
    let (mallory, victim) = (world.nodes[1].me.clone(), world.nodes[2].me.peer);
    let held = world.records(0);
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
    world.give(0, &records);
    assert_eq!(world.records(0).resolve(world.now), before);
}

#[test]
fn grants_are_renewed_at_half_their_life_and_end_without_renewal() {
    let mut world = World::whole(2, 6);
    world.gossip(10);
    let member = world.nodes[1].me.peer;
    let end = |w: &World, node: usize| w.records(node).resolve(w.now).members.get(&member).map(|m| m.grant.not_after);
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
    let mut world = World::whole(2, 24);
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
    let doc = doc(u64::MAX - 9, world.now);
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
