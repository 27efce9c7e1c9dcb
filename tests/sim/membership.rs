//! Who is a member, and how members agree on it: the same everywhere, whoever was away meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use byway::model::id::PeerId;
use byway::model::record::{Body, Grant, Head, Revocation, Role, Seat, Signed, Term};
use byway::model::state::State;
use byway::model::upkeep::awaited;

use super::world::{World, announcement, identity, seeds, with_admins};

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
fn removed_member_is_cut_and_stays_out() {
    let mut world = World::whole(4, 3);
    world.gossip(20);
    let gone = world.nodes[3].me.peer;
    let old: Vec<Signed> = world.records(3).all().cloned().collect();
    world.change(0, |s, me, now| s.remove(me, gone, now).unwrap());
    world.gossip(20);
    // It pushes its old grant and announcement again.
    for node in 0..3 {
        world.give(node, &old);
        assert!(!world.members(node).contains(&gone));
    }
    let view = world.nodes[1].view(1, world.now, &Default::default(), &Default::default());
    assert!(!view.subnets[&world.id].members.contains(&gone));
    // Only an approval brings it back, one generation up.
    world.admit(0, 3, "m3");
    world.gossip(20);
    world.assert_agreed();
    assert_eq!(
        world.records(0).resolve(world.now).members[&gone]
            .grant
            .generation,
        2
    );
}

#[test]
fn only_the_owner_and_admins_have_a_say() {
    let mut world = World::whole(3, 4);
    world.gossip(20);
    let (mallory, victim) = (world.nodes[1].me.clone(), world.nodes[2].me.peer);
    let held = world.records(0);
    let grant = Grant::clone(&held.resolve(world.now).members[&mallory.peer].grant);
    let forged = [
        Body::Grant(Grant {
            role: Role::Admin,
            generation: 9,
            not_before: world.now + 1,
            not_after: world.now + 99,
            ..grant.clone()
        }),
        Body::Grant(Grant {
            subject: victim,
            generation: 9,
            ..grant
        }),
        Body::Head(Head {
            number: u64::MAX,
            seats: vec![Seat {
                admin: mallory.peer,
                since: 1,
                part: vec![],
            }],
            least: 9,
            destroyed: true,
            issued: world.now,
        }),
        Body::Revocation(Revocation {
            subject: victim,
            generation: 9,
            ends: [0; 32],
            seat: 0,
        }),
        Body::Revocation(Revocation {
            subject: victim,
            generation: 9,
            ends: [0; 32],
            seat: 1,
        }),
    ];
    let before = held.resolve(world.now);
    let records: Vec<Signed> = forged
        .iter()
        .map(|b| Signed::new(world.id, b, &mallory.key))
        .collect();
    world.give(0, &records);
    assert_eq!(world.records(0).resolve(world.now), before);
}

#[test]
fn grants_are_renewed_at_half_their_life_and_end_without_renewal() {
    let mut world = World::whole(2, 6);
    world.gossip(10);
    let member = world.nodes[1].me.peer;
    let end = |w: &World, node: usize| {
        w.records(node)
            .resolve(w.now)
            .members
            .get(&member)
            .map(|m| m.grant.not_after)
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
            assert!(
                !members.contains(&one) && !members.contains(&two),
                "node {node} seed {seed}"
            );
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
    assert_eq!(
        before,
        world.records(1).held(),
        "upkeep signs nothing without a reason"
    );
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
    world.change(1, |s, me, now| s.say_goodbye(me, now).unwrap());
    world.gossip(5);
    let mut fresh = State::new(world.nodes[1].me.clone());
    std::mem::swap(&mut world.nodes[1], &mut fresh);
    world.admit(0, 1, "m1");
    world.now += 1;
    world.change(1, |s, me, now| {
        s.set_endpoints(me, &["/memory/1".into()], now).unwrap()
    });
    world.gossip(5);
    let peer = world.nodes[1].me.peer;
    assert!(world.members(0).contains(&peer));
    // It starts afresh: its newest announcement says nothing of having left.
    let me = world.nodes[1].me.clone();
    let announcement = announcement(u64::MAX - 9, world.now);
    let signed = [Signed::new(
        world.id,
        &Body::Announcement(announcement),
        &me.key,
    )];
    world.give(0, &signed);
    world.give(1, &signed);
    // Nobody renewed it in time.
    world.now += 91 * 86_400;
    assert!(!world.members(0).contains(&peer));
    world.admit(0, 1, "m1");
    assert!(world.members(0).contains(&peer) && world.members(1).contains(&peer));
}

#[test]
fn an_epoch_ends_every_revocation_and_nobodys_membership() {
    let mut world = with_admins(6, 35);
    let gone = [world.nodes[4].me.peer, world.nodes[5].me.peer];
    world.change(0, |s, me, now| s.remove(me, gone[0], now).unwrap());
    world.change(1, |s, me, now| s.remove(me, gone[1], now).unwrap());
    world.gossip(20);
    let old: Vec<Signed> = world.records(4).all().cloned().collect();
    assert_eq!(world.records(3).live_revocations(), 2);
    world.change(0, |s, me, now| s.begin_epoch(me, now).unwrap());
    world.gossip(20);
    for node in 0..4 {
        assert_eq!(world.records(node).live_revocations(), 0, "node {node}");
        world.give(node, &old);
        assert_eq!(world.members(node).len(), 4, "node {node}");
    }
    world.side = vec![0, 0, 0, 0, 9, 9];
    world.assert_agreed_but(&[4, 5]);
    // Admins go on admitting and removing.
    let ask = world.ask(4, "m4");
    world.change(1, |s, me, now| {
        s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
            .unwrap()
    });
    world.gossip(10);
    assert!(world.members(3).contains(&gone[0]));
}

#[test]
fn ephemeral_members_go_when_they_are_not_seen_and_stay_while_they_are() {
    let mut world = World::found(3, 37);
    for who in 1..3 {
        let ask = world.ask(who, &format!("m{who}"));
        world.change(0, |s, me, now| {
            s.admit(
                me,
                &ask,
                (Role::Member, Term::Ephemeral),
                &BTreeMap::new(),
                now,
            )
            .unwrap()
        });
    }
    let (there, away) = (world.nodes[1].me.peer, world.nodes[2].me.peer);
    world.seen.insert(there);
    for _ in 0..30 {
        world.now += 10 * 60;
        world.look_after(0);
    }
    let members = world.members(0);
    assert!(members.contains(&there) && !members.contains(&away));
}

/// Nobody is connected to the owner: whoever is due is asked, and one of them answers.
#[test]
fn an_ephemeral_member_that_answers_when_it_is_asked_stays() {
    let mut world = World::found(3, 41);
    for who in 1..3 {
        let ask = world.ask(who, &format!("m{who}"));
        let as_what = (Role::Member, Term::Ephemeral);
        world.change(0, |s, me, now| {
            s.admit(me, &ask, as_what, &BTreeMap::new(), now).unwrap()
        });
    }
    let (me, there) = (world.nodes[0].me.peer, world.nodes[1].me.peer);
    let away = world.nodes[2].me.peer;
    let mut asked = Vec::new();
    for minute in 0..300 {
        world.now += 60;
        let resolved = world.records(0).resolve(world.now);
        let due = awaited(&resolved, me, world.now);
        assert!(
            minute > 28 || due.is_empty(),
            "nobody before half of its life"
        );
        world.seen = due.iter().filter(|peer| **peer == there).copied().collect();
        asked.extend(due);
        world.look_after(0);
    }
    let members = world.members(0);
    assert!(members.contains(&there) && !members.contains(&away));
    let of = |peer| asked.iter().filter(|asked| **asked == peer).count();
    assert!((5..=11).contains(&of(there)), "asked {} times", of(there));
    assert!(
        (25..=31).contains(&of(away)),
        "and {} times for nothing",
        of(away)
    );
    let resolved = world.records(0).resolve(world.now);
    assert!(
        awaited(&resolved, there, world.now).is_empty(),
        "it grants nothing"
    );
}

#[test]
fn what_an_owner_signed_with_a_wrong_clock_it_signs_anew() {
    for wrong in [
        -400 * 86_400i64,
        -86_400,
        86_400,
        200 * 86_400,
        30 * 365 * 86_400,
    ] {
        let mut world = with_admins(4, 38);
        let right = world.now;
        world.now = right.saturating_add_signed(wrong);
        for _ in 0..3 {
            world.look_after(0);
        }
        // Its records have reached everybody before anybody noticed.
        let records: Vec<Signed> = world.records(0).all().cloned().collect();
        for node in 1..4 {
            world.give(node, &records);
        }
        world.now = right + 20;
        world.gossip(5);
        world.gossip(20);
        world.assert_agreed();
        assert_eq!(world.members(3).len(), 4, "clock off by {wrong} s");
        let admin = world.nodes[1].me.peer;
        assert!(
            world.records(0).resolve(world.now).roll.is_admin(admin),
            "clock off by {wrong} s"
        );
    }
}

#[test]
fn any_two_members_heal_whatever_each_has_missed() {
    for seed in seeds() {
        let mut world = with_admins(6, seed);
        let mut sets: Vec<Vec<Signed>> = vec![world.records(0).all().cloned().collect()];
        let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
        for step in 0..12 {
            let (by, whom) = (world.dice.index(3), 1 + world.dice.index(5));
            let act = world.dice.index(6);
            let ask = world.ask(whom, &format!("m{whom}"));
            world.change(by, |s, me, now| {
                // Not everything is allowed to everybody; what is refused has changed nothing.
                let _ = match act {
                    0 => s.remove(me, peers[whom], now),
                    1 => s.set_admin(me, peers[whom], true, now),
                    2 => s.set_admin(me, peers[whom], false, now),
                    3 => s.begin_epoch(me, now),
                    _ => s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now),
                };
            });
            world.now += 60;
            for node in 0..3 {
                if world.dice.index(3) == 0 {
                    world.look_after(node);
                }
            }
            let (a, b) = (world.dice.index(6), world.dice.index(6));
            world.sync(a, b);
            sets.push(world.records(step % 6).all().cloned().collect());
        }
        // Two members hold any two subsets of all that was ever said.
        let all: Vec<Signed> = sets.into_iter().flatten().collect();
        for node in 0..world.nodes.len() {
            let mut some: Vec<Signed> = all
                .iter()
                .filter(|_| world.dice.index(2) == 0)
                .cloned()
                .collect();
            for i in (1..some.len()).rev() {
                some.swap(i, world.dice.index(i + 1));
            }
            for batch in some.chunks(20) {
                world.give(node, batch);
            }
        }
        world.gossip(60);
        let first = world.records(0).held();
        for node in 1..world.nodes.len() {
            assert_eq!(world.records(node).held(), first, "node {node} seed {seed}");
        }
        world.assert_agreed();
    }
}

#[test]
fn workloads_follow_their_member_to_another_block() {
    use byway::model::host::{NetnsRef, ResolvConf};
    use byway::model::workload::{Target, Workload};
    let mut world = World::whole(3, 41);
    world.gossip(10);
    let workload = Workload {
        name: "web".parse().unwrap(),
        target: Target::Netns("web".into()),
        netns: Some(NetnsRef {
            path: "/run/netns/web".into(),
            device: 1,
            inode: 2,
            cookie: None,
        }),
        host_link: "bwv1".into(),
        inner_link: "byway0".into(),
        addresses: vec![],
        resolv_conf: ResolvConf::None,
        mac: None,
        since: 0,
    };
    world.change(1, |s, me, now| {
        drop(s.attach(me, workload, None, now).unwrap())
    });
    world.gossip(10);
    // The owner, restored from a backup, has given the block to somebody else.
    let peer = world.nodes[1].me.peer;
    let mut grant = world.records(0).grants_of(peer).next().unwrap().clone();
    let owner = world.nodes[0].me.clone();
    grant.leases = vec!["10.77.99.0/24".parse().unwrap(), grant.leases[1]];
    grant.addresses = vec!["10.77.99.1".parse().unwrap(), grant.addresses[1]];
    grant.leases.truncate(1);
    grant.addresses.truncate(1);
    grant.version += 9;
    let signed = [Signed::new(world.id, &Body::Grant(grant), &owner.key)];
    for node in 0..3 {
        world.give(node, &signed);
    }
    world.gossip(10);
    let resolved = world.records(2).resolve(world.now);
    let (name, addresses) = &resolved.members[&peer].workloads[0];
    assert_eq!(name.as_str(), "web");
    assert!(
        addresses
            .iter()
            .all(|a| a.to_string().starts_with("10.77.99.")),
        "{addresses:?}"
    );
}
