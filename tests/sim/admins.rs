//! Admins against each other, against the owner and against members: whose word counts, and for how long.

use std::collections::BTreeMap;

use byway::model::error::Code;
use byway::model::id::PeerId;
use byway::model::record::{Body, Grant, Revocation, Role, Signed, Term, Verified};
use byway::model::state::State;

use super::world::{World, checked, identity, seeds, with_admins};

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
        assert!(
            !world.members(3).contains(&gone_a) && world.members(3).contains(&gone_b),
            "seed {seed}"
        );
        world.side = vec![0; 7];
        world.gossip(40);
        world.assert_agreed();
        for node in 0..5 {
            let members = world.members(node);
            assert!(
                !members.contains(&gone_a) && !members.contains(&gone_b),
                "node {node} seed {seed}"
            );
        }
        assert!(
            !world.records(0).forked(),
            "the next head repeats the union"
        );
    }
}

#[test]
fn an_admin_removed_by_another_admin_has_no_say_any_more() {
    let mut world = with_admins(5, 21);
    let (rogue, victim) = (world.nodes[1].me.clone(), world.nodes[3].me.peer);
    world.side = vec![9, 1, 1, 1, 1];
    world.change(2, |s, me, now| s.remove(me, rogue.peer, now).unwrap());
    world.gossip(20);
    // The owner is away; the removed one signs on: it puts a member out, lets itself in, and an accomplice.
    let seat = world.records(1).head().seat(rogue.peer).unwrap().since;
    let out = Revocation {
        subject: victim,
        generation: 1,
        ends: [0; 32],
        seat,
    };
    let mut grant = world
        .records(1)
        .grants_of(rogue.peer)
        .next()
        .unwrap()
        .clone();
    grant.generation = 9;
    grant.seat = seat;
    let accomplice = Grant {
        subject: identity(77).peer,
        ..grant.clone()
    };
    let signed = [
        Body::Revocation(out),
        Body::Grant(grant),
        Body::Grant(accomplice),
    ];
    let signed = signed.map(|b| Signed::new(world.id, &b, &rogue.key));
    world.give(3, &signed);
    world.give(4, &signed);
    for node in [3, 4] {
        let members = world.members(node);
        assert!(
            members.contains(&victim) && !members.contains(&rogue.peer),
            "node {node}"
        );
        assert!(!members.contains(&identity(77).peer), "node {node}");
    }
    world.side = vec![0; 5];
    world.gossip(40);
    for node in [0, 2, 3, 4] {
        let members = world.members(node);
        assert!(
            members.len() == 4 && !members.contains(&rogue.peer),
            "node {node}"
        );
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
fn an_admin_that_left_has_no_say_and_whom_it_admitted_stays() {
    let mut world = with_admins(5, 29);
    let mut sixth = State::new(identity(61));
    std::mem::swap(&mut world.nodes[4], &mut sixth);
    world.admit(1, 4, "late");
    world.gossip(20);
    let (admin, late) = (world.nodes[1].me.clone(), world.nodes[4].me.peer);
    world.change(1, |s, me, now| s.say_goodbye(me, now).unwrap());
    world.gossip(20);
    let out = |seat| Revocation {
        subject: late,
        generation: 1,
        ends: [0; 32],
        seat,
    };
    let signed =
        [1, 2, 3].map(|seat| Signed::new(world.id, &Body::Revocation(out(seat)), &admin.key));
    world.give(2, &signed);
    for node in [0, 2, 3] {
        let members = world.members(node);
        assert!(
            members.contains(&late) && !members.contains(&admin.peer),
            "node {node}"
        );
    }
}

#[test]
fn two_admins_removed_by_a_third_do_not_bring_each_other_back() {
    for seed in seeds() {
        let mut world = with_admins(6, seed);
        let third = world.nodes[3].me.peer;
        world.change(0, |s, me, now| s.set_admin(me, third, true, now).unwrap());
        world.gossip(20);
        let (b, c) = (world.nodes[1].me.clone(), world.nodes[2].me.clone());
        world.side = vec![9, 1, 1, 1, 1, 1];
        world.change(3, |s, me, now| s.remove(me, b.peer, now).unwrap());
        world.change(3, |s, me, now| s.remove(me, c.peer, now).unwrap());
        world.gossip(10);
        // Each signs a grant one generation up for the other, and an accomplice hands them in.
        let again = |world: &World, by: &byway::model::members::Identity, whom: PeerId| {
            let seat = world.records(3).head().seat(by.peer).unwrap().since;
            let old = world.records(3).grants_of(whom).next().unwrap().clone();
            let grant = Grant {
                generation: 2,
                version: old.version + 1,
                seat,
                ..old
            };
            Signed::new(world.id, &Body::Grant(grant), &by.key)
        };
        let signed = [again(&world, &b, c.peer), again(&world, &c, b.peer)];
        for node in [3, 4, 5] {
            world.give(node, &signed);
            let members = world.members(node);
            assert!(
                !members.contains(&b.peer) && !members.contains(&c.peer),
                "node {node} seed {seed}"
            );
        }
        // Nor does another admin; who removed them does.
        let ask = world.ask(1, "m1");
        world.change(3, |s, me, now| {
            s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
                .unwrap();
        });
        world.gossip(10);
        assert!(world.members(4).contains(&b.peer), "seed {seed}");
        // The owner hears of it all and goes on.
        world.side = vec![0; 6];
        world.gossip(40);
        world.change(0, |s, me, now| s.remove(me, b.peer, now).unwrap());
        world.gossip(20);
        for node in [0, 3, 4, 5] {
            let members = world.members(node);
            assert!(
                !members.contains(&b.peer) && !members.contains(&c.peer),
                "node {node} seed {seed}"
            );
        }
    }
}

#[test]
fn whom_one_admin_removed_another_does_not_let_in() {
    let mut world = with_admins(5, 31);
    let gone = world.nodes[4].me.peer;
    world.side = vec![9, 1, 1, 1, 1];
    world.change(1, |s, me, now| s.remove(me, gone, now).unwrap());
    world.gossip(10);
    let ask = world.ask(4, "m4");
    let mut refused = None;
    world.change(2, |s, me, now| {
        refused = s
            .admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
            .err();
    });
    assert_eq!(refused.map(|e| e.code), Some(Code::Removed));
    world.change(1, |s, me, now| {
        s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
            .unwrap()
    });
    world.gossip(10);
    assert!(world.members(3).contains(&gone));
    // Once it is in again every admin renews it.
    world.now += 60 * 86_400;
    world.gossip(10);
    world.now += 40 * 86_400;
    assert!(world.members(2).contains(&gone));
}

#[test]
fn two_admins_that_remove_each_other_are_both_out_and_the_owner_decides() {
    for seed in seeds() {
        let mut world = with_admins(5, seed);
        let (b, c) = (world.nodes[1].me.peer, world.nodes[2].me.peer);
        world.side = vec![9, 1, 2, 1, 2];
        world.change(1, |s, me, now| s.remove(me, c, now).unwrap());
        world.change(2, |s, me, now| s.remove(me, b, now).unwrap());
        world.side = vec![9, 1, 1, 1, 1];
        world.gossip(20);
        for node in [3, 4] {
            let members = world.members(node);
            assert!(
                !members.contains(&b) && !members.contains(&c),
                "node {node} seed {seed}"
            );
        }
        // That the owner is there again is no word of its about either of them.
        world.side = vec![0; 5];
        world.gossip(20);
        for node in [0, 3, 4] {
            let members = world.members(node);
            assert!(
                !members.contains(&b) && !members.contains(&c),
                "node {node} seed {seed}"
            );
        }
        world.admit(0, 1, "m1");
        world.gossip(20);
        assert!(
            world.members(3).contains(&b) && !world.members(3).contains(&c),
            "seed {seed}"
        );
    }
}

/// What `to` takes of what `who`, who is no member in its eyes, shows of its own.
fn show(world: &mut World, who: usize, to: usize) -> usize {
    let from = world.nodes[who].me.peer;
    let returned = checked(&world.records(who).returned_by(from));
    let taken: Vec<Signed> = returned
        .iter()
        .filter(|r| matches!(r, Verified::Revocation(r) if world.records(to).takes_returned(r.body(), from)))
        .map(|r| r.signed().clone())
        .collect();
    world.give(to, &taken);
    taken.len()
}

#[test]
fn an_admin_cut_off_alone_still_puts_out_who_put_it_out_and_nobody_else() {
    for seed in seeds() {
        let mut world = with_admins(6, seed);
        let [b, c, d] = [1, 2, 3].map(|n| world.nodes[n].me.peer);
        world.change(0, |s, me, now| s.set_admin(me, d, true, now).unwrap());
        world.gossip(20);
        // The owner is away, and b is alone: it removes both other admins, and one of them removes it.
        world.side = vec![9, 1, 2, 2, 2, 2];
        world.change(1, |s, me, now| s.remove(me, c, now).unwrap());
        world.change(1, |s, me, now| s.remove(me, d, now).unwrap());
        world.change(2, |s, me, now| s.remove(me, b, now).unwrap());
        world.gossip(20);
        assert!(
            world.members(4).contains(&c) && !world.members(4).contains(&b),
            "seed {seed}"
        );
        // b meets a member: it is told its end, and shows its own word, since nobody takes its records any more.
        assert_eq!(show(&mut world, 1, 4), 0, "it does not know who removed it");
        let end = world.records(4).proof_about(b);
        world.give(1, &end);
        assert_eq!(
            (show(&mut world, 1, 4), show(&mut world, 1, 4)),
            (1, 0),
            "once, seed {seed}"
        );
        world.side = vec![9, 8, 2, 2, 2, 2];
        world.gossip(20);
        for node in [3, 4, 5] {
            let members = world.members(node);
            assert!(
                !members.contains(&b) && !members.contains(&c),
                "node {node} seed {seed}"
            );
            assert!(
                members.contains(&d),
                "d did not remove b: node {node} seed {seed}"
            );
        }
    }
}

#[test]
fn a_former_admin_shows_nothing_that_counts() {
    let mut world = with_admins(5, 3);
    let [b, c] = [1, 2].map(|n| world.nodes[n].me.peer);
    world.side = vec![0, 1, 0, 0, 0];
    world.change(1, |s, me, now| s.remove(me, c, now).unwrap());
    world.change(2, |s, me, now| s.remove(me, b, now).unwrap());
    world.change(0, |s, me, now| s.set_admin(me, b, false, now).unwrap());
    world.gossip(20);
    let returned = checked(world.records(1).all().filter(|r| r.issuer == b));
    let words = returned.iter().filter_map(|r| match r {
        Verified::Revocation(r) => Some(r.body().clone()),
        _ => None,
    });
    let words: Vec<_> = words.collect();
    assert_eq!(words.len(), 1, "it has said so");
    assert!(
        !world.records(3).takes_returned(&words[0], b),
        "its seat is gone"
    );
    let end = world.records(3).proof_about(b);
    world.give(1, &end);
    assert_eq!(show(&mut world, 1, 3), 0);
    assert!(world.members(3).contains(&c));
}

#[test]
fn an_admin_cannot_take_administration_from_the_owner() {
    let mut world = with_admins(5, 33);
    let (rogue, friend) = (world.nodes[1].me.clone(), world.nodes[3].me.peer);
    let seat = world.records(1).head().seat(rogue.peer).unwrap().since;
    // Revocations of made-up keys, of the owner, of everybody, of generations out of all proportion.
    let mut signed: Vec<Signed> = Vec::new();
    for n in 0..4000u32 {
        let mut made_up = [9; 32];
        made_up[..4].copy_from_slice(&n.to_be_bytes());
        let out = Revocation {
            subject: PeerId(made_up),
            generation: u32::MAX >> (n % 32),
            ends: [1; 32],
            seat,
        };
        signed.push(Signed::new(world.id, &Body::Revocation(out), &rogue.key));
    }
    for node in [0, 2, 3, 4] {
        let subject = world.nodes[node].me.peer;
        for generation in [1, 1 << 24, u32::MAX] {
            let out = Revocation {
                subject,
                generation,
                ends: [1; 32],
                seat,
            };
            signed.push(Signed::new(world.id, &Body::Revocation(out), &rogue.key));
        }
    }
    for batch in signed.chunks(60) {
        world.give(0, batch);
    }
    assert!(
        world.records(0).all().count() < 64,
        "what is about nobody is not held"
    );
    let owner = world.nodes[0].me.peer;
    assert!(world.members(0).contains(&owner));
    // The owner un-names and removes it, lets the others in again, and ends the subnet.
    world.change(0, |s, me, now| s.remove(me, rogue.peer, now).unwrap());
    for who in [2, 3, 4] {
        world.admit(0, who, &format!("m{who}"));
    }
    world.side = vec![0, 9, 0, 0, 0];
    world.gossip(20);
    assert!(world.members(0).contains(&friend) && !world.members(0).contains(&rogue.peer));
    world.assert_agreed_but(&[1]);
    world.change(0, |s, me, now| s.destroy(me, now).unwrap());
    assert!(world.records(0).destroyed());
}

#[test]
fn an_admin_takes_no_address_and_no_name_of_others() {
    let mut world = with_admins(4, 34);
    let before = world.records(0).resolve(world.now);
    let rogue = world.nodes[1].me.clone();
    let seat = world.records(1).head().seat(rogue.peer).unwrap().since;
    let old = world
        .records(1)
        .grants_of(rogue.peer)
        .next()
        .unwrap()
        .clone();
    let pools: Vec<ipnet::IpNet> = world.records(0).prefixes();
    let owner_address = before.members[&world.nodes[0].me.peer].addresses[0];
    // One grant for itself with both whole pools and the owner's address and name.
    let all = Grant {
        leases: pools,
        addresses: vec![owner_address],
        name: "m0".parse().unwrap(),
        generation: 7,
        version: 99,
        seat,
        ..old
    };
    // And one for another member that takes its address and its name away.
    let victim = world
        .records(1)
        .grants_of(world.nodes[3].me.peer)
        .next()
        .unwrap()
        .clone();
    let stripped = Grant {
        leases: vec![],
        addresses: vec![],
        name: "nobody".parse().unwrap(),
        generation: 8,
        version: 99,
        seat,
        ..victim
    };
    let signed =
        [Body::Grant(all), Body::Grant(stripped)].map(|b| Signed::new(world.id, &b, &rogue.key));
    for node in [0, 2, 3] {
        world.give(node, &signed);
        let after = world.records(node).resolve(world.now);
        for who in [0, 2, 3] {
            let peer = world.nodes[who].me.peer;
            assert_eq!(
                after.members[&peer].addresses, before.members[&peer].addresses,
                "member {who} at {node}"
            );
            assert_eq!(
                after.members[&peer].name, before.members[&peer].name,
                "member {who} at {node}"
            );
        }
    }
    world.change(0, |s, me, now| s.remove(me, rogue.peer, now).unwrap());
    world.side = vec![0, 9, 0, 0];
    world.gossip(20);
    world.assert_agreed_but(&[1]);
}

#[test]
fn of_two_heads_with_one_number_both_remove_and_one_names() {
    for seed in seeds() {
        let mut world = with_admins(6, seed);
        let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
        let backup = world.nodes[0].clone();
        // The disk that died named 3 and un-named 1; what was restored names 4.
        world.change(0, |s, me, now| {
            s.set_admin(me, peers[3], true, now).unwrap()
        });
        let lost: Vec<Signed> = world.records(0).head_records();
        world.nodes[0] = backup;
        world.change(0, |s, me, now| {
            s.set_admin(me, peers[4], true, now).unwrap()
        });
        world.give(5, &lost);
        world.give(5, &world.records(0).head_records().clone());
        assert!(world.records(5).forked(), "seed {seed}");
        let named = |world: &World, who: usize| world.records(5).head().seat(peers[who]).is_some();
        assert!(
            named(&world, 1) && named(&world, 2),
            "who was an admin is one, seed {seed}"
        );
        assert!(
            named(&world, 3) != named(&world, 4),
            "one of the two is named, seed {seed}"
        );
        world.gossip(40);
        world.assert_agreed();
        assert!(!world.records(5).forked());
    }
}
