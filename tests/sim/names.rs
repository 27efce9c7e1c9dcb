//! Names and blocks: whose they are follows from who granted and registered, never from what the claimant says of itself.

use std::collections::BTreeMap;

use byway::model::error::Code;
use byway::model::id::PeerId;
use byway::model::record::{
    Announcement, Body, Item, NameEntry, Role, Signed, Term, WorkloadEntry,
};
use byway::model::zone::RecordData;

use super::world::{World, announcement, name, seeds, with_admins};

fn text(words: &str) -> [RecordData; 1] {
    [RecordData::Txt(words.into())]
}

fn claim(world: &mut World, node: usize, what: &str) {
    let who = format!("of {node}");
    world.change(node, |s, me, now| {
        s.dns_add(me, what, &text(&who), 30, now).unwrap()
    });
}

fn holder(world: &World, node: usize, what: &str) -> Option<PeerId> {
    let subnet = &world.nodes[node].subnets[&world.id];
    subnet.resolve(world.now).flat.get(what).copied()
}

/// An announcement signed by hand that claims a name, whatever others hold.
fn forged(world: &World, node: usize, what: &str, version: u64) -> Signed {
    let names = vec![NameEntry {
        name: what.into(),
        data: text("stolen")[0].clone(),
        ttl: 5,
    }];
    let announcement = Announcement {
        names,
        ..announcement(version, 0)
    };
    Signed::new(
        world.id,
        &Body::Announcement(announcement),
        &world.nodes[node].me.key,
    )
}

#[test]
fn a_name_with_one_claimant_answers_at_once_and_is_registered_unasked() {
    let mut world = World::whole(4, 1);
    world.gossip(10);
    world.side = vec![9, 1, 1, 1];
    claim(&mut world, 1, "db");
    world.gossip(10);
    let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
    for node in 1..4 {
        assert_eq!(
            holder(&world, node, "db"),
            Some(peers[1]),
            "nobody has to register it first, node {node}"
        );
    }
    world.side = vec![0; 4];
    world.gossip(10);
    let registered = world.records(3).registration(peers[1], peers[0]).unwrap();
    assert!(registered.names.contains("db"));
    // Whoever claims it later, whatever the version, changes nothing.
    let theft = forged(&world, 2, "db", u64::MAX);
    for node in [0, 1, 3] {
        world.give(node, std::slice::from_ref(&theft));
        assert_eq!(holder(&world, node, "db"), Some(peers[1]), "node {node}");
    }
}

#[test]
fn of_two_unregistered_claims_each_node_keeps_the_answer_it_gave() {
    let mut world = World::whole(5, 2);
    world.gossip(10);
    let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
    // The owner is away, and two halves claim one name.
    world.side = vec![9, 1, 2, 1, 2];
    claim(&mut world, 1, "db");
    claim(&mut world, 2, "db");
    world.gossip(20);
    // A fifth node that has heard of neither: it was cut off.
    let fresh = world.nodes[4].clone();
    world.side = vec![9, 1, 1, 1, 1];
    world.gossip(20);
    for (node, whose) in [(1, 1), (3, 1), (2, 2), (4, 2)] {
        assert_eq!(
            holder(&world, node, "db"),
            Some(peers[whose]),
            "node {node}"
        );
        let subnet = &world.nodes[node].subnets[&world.id];
        let resolved = subnet.resolve(world.now);
        assert!(resolved.contested.contains_key("db"));
        let told = subnet.contested_names(&world.nodes[node].me, &resolved);
        assert_eq!(
            told.len(),
            usize::from(node < 3),
            "the claimants are told, node {node}"
        );
    }
    // The answers outlive a restart: they are saved with what is local.
    let local = world.nodes[3].subnets[&world.id].local.clone();
    assert_eq!(local.seen.get("db"), Some(&peers[1]));
    // Who gave no answer gives none.
    assert_eq!(world.records(3).resolve(world.now).flat.get("db"), None);
    drop(fresh);
    // The owner comes back, and has given no answer either: it decides by a word.
    world.side = vec![0; 5];
    world.gossip(20);
    let error = {
        let mut subnet = world.nodes[0].edit("lab").unwrap();
        subnet
            .dns_release(&world.nodes[0].me.clone(), "db", None, world.now)
            .map(drop)
            .err()
    };
    if let Some(error) = error {
        assert_eq!(error.code, Code::NameContested);
        world.change(0, |s, me, now| {
            s.dns_release(me, "db", Some(peers[2]), now).unwrap();
        });
        world.gossip(20);
        for node in 0..5 {
            assert_eq!(holder(&world, node, "db"), Some(peers[1]), "node {node}");
        }
    }
    world.assert_agreed();
}

#[test]
fn a_dead_hosts_name_moves_by_release_and_stays_moved() {
    let mut world = with_admins(5, 3);
    let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
    claim(&mut world, 3, "db");
    world.gossip(10);
    // Node 3 dies; node 4 shall take its place.
    world.side = vec![0, 0, 0, 9, 0];
    world.change(1, |s, me, now| {
        assert_eq!(s.dns_release(me, "db", None, now).unwrap(), peers[3])
    });
    world.gossip(10);
    assert_eq!(holder(&world, 0, "db"), None);
    claim(&mut world, 4, "db");
    world.gossip(20);
    for node in [0, 1, 2, 4] {
        assert_eq!(holder(&world, node, "db"), Some(peers[4]), "node {node}");
    }
    // It comes back and says its name again: too late, and it has its name below its own.
    world.side = vec![0; 5];
    world.change(3, |s, me, now| {
        s.set_endpoints(me, &["/memory/9".into()], now).unwrap()
    });
    world.gossip(30);
    for node in 0..5 {
        assert_eq!(holder(&world, node, "db"), Some(peers[4]), "node {node}");
    }
    world.assert_agreed();
    let view = world.nodes[0].view(1, world.now, &Default::default(), &Default::default());
    let zone = &view.subnets[&world.id].zone;
    assert_eq!(zone.entries("db.m3").len(), 1);
    assert_eq!(zone.entries("db")[0].data, text("of 4")[0]);
}

#[test]
fn a_registration_ends_with_detach_leave_and_removal() {
    for seed in seeds().into_iter().take(4) {
        let mut world = with_admins(6, seed);
        let peers: Vec<PeerId> = world.nodes.iter().map(|n| n.me.peer).collect();
        for (node, what) in [(3, "a"), (4, "b"), (5, "c")] {
            claim(&mut world, node, what);
        }
        world.gossip(20);
        world.change(3, |s, me, now| {
            s.dns_rm(me, "a", None, now).unwrap();
        });
        world.change(4, |s, me, now| s.say_goodbye(me, now).unwrap());
        world.change(0, |s, me, now| s.remove(me, peers[5], now).unwrap());
        world.gossip(20);
        for what in ["a", "b", "c"] {
            claim(&mut world, 2, what);
        }
        world.gossip(20);
        for what in ["a", "b", "c"] {
            assert_eq!(
                holder(&world, 1, what),
                Some(peers[2]),
                "{what} seed {seed}"
            );
        }
    }
}

#[test]
fn nobody_else_claims_at_or_below_a_members_name() {
    let mut world = World::whole(4, 5);
    world.gossip(10);
    let subnet = world.nodes[2].edit("lab").unwrap();
    for what in ["m1", "www.m1", "_http._tcp.m1"] {
        let refused =
            subnet
                .clone()
                .dns_add(&world.nodes[2].me.clone(), what, &text("x"), 5, world.now);
        assert_eq!(refused.unwrap_err().code, Code::NameTaken, "{what}");
        let theft = forged(&world, 2, what, 90);
        world.give(0, &[theft]);
        assert_eq!(holder(&world, 0, what), None, "{what}");
    }
    // The member itself says what it likes there.
    claim(&mut world, 1, "www.m1");
    world.gossip(10);
    assert_eq!(holder(&world, 3, "www.m1"), Some(world.nodes[1].me.peer));
    // A newcomer called like a name in use is called otherwise.
    claim(&mut world, 1, "shop");
    world.gossip(5);
    let ask = byway::model::join::Ask {
        joiner: PeerId([42; 32]),
        ..world.ask(1, "shop")
    };
    world.change(0, |s, me, now| {
        s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
            .unwrap();
    });
    assert_eq!(
        world.records(0).resolve(world.now).members[&PeerId([42; 32])].name,
        name("shop-2")
    );
}

#[test]
fn every_workload_has_a_name_below_its_members() {
    let mut world = World::whole(3, 6);
    world.gossip(10);
    let resolved = world.records(1).resolve(world.now);
    let address = match resolved.members[&world.nodes[1].me.peer].leases[0] {
        ipnet::IpNet::V4(net) => std::net::IpAddr::V4((u32::from(net.network()) + 9).into()),
        ipnet::IpNet::V6(_) => unreachable!(),
    };
    let workloads = vec![WorkloadEntry {
        name: name("web"),
        addresses: vec![address],
    }];
    let announcement = Announcement {
        workloads,
        ..announcement(50, 0)
    };
    let signed = Signed::new(
        world.id,
        &Body::Announcement(announcement),
        &world.nodes[1].me.key,
    );
    world.give(0, &[signed]);
    let view = world.nodes[0].view(1, world.now, &Default::default(), &Default::default());
    let zone = &view.subnets[&world.id].zone;
    for shown in ["web", "web.m1"] {
        assert_eq!(
            zone.entries(shown)[0].data,
            RecordData::Address(address),
            "{shown}"
        );
    }
}

#[test]
fn a_name_said_in_two_ways_is_answered_once_and_with_one_time_to_live() {
    let mut world = World::whole(3, 8);
    world.gossip(10);
    let one = RecordData::Address("10.0.0.1".parse().unwrap());
    let two = RecordData::Address("10.0.0.2".parse().unwrap());
    for (name, answers, ttl) in [
        ("svc", vec![one.clone()], 60),
        ("svc.m1", vec![one.clone(), two.clone()], 30),
    ] {
        world.change(1, |s, me, now| {
            s.dns_add(me, name, &answers, ttl, now).unwrap()
        });
    }
    claim(&mut world, 1, "svc.m1");
    world.gossip(10);
    let view = world.nodes[0].view(1, world.now, &Default::default(), &Default::default());
    let answers = &view.subnets[&world.id].zone.entries("svc.m1");
    let addresses: Vec<_> = answers
        .iter()
        .filter(|e| e.data.kind() == "A")
        .map(|e| (e.ttl, &e.data))
        .collect();
    assert_eq!(addresses, [(30, &one), (30, &two)], "RFC 2181, 5 and 5.2");
    assert_eq!(answers.len(), 3, "another type is another set: {answers:?}");
}

#[test]
fn admins_give_blocks_from_parts_of_their_own() {
    let mut world = with_admins(8, 7);
    world.side = vec![9, 1, 2, 3, 3, 3, 3, 3];
    for who in [5, 6] {
        world.admit(1, who, &format!("m{who}"));
    }
    world.admit(2, 7, "m7");
    world.side = vec![0; 8];
    world.gossip(40);
    world.assert_agreed();
    // Sixteen blocks of the default pool; the next is refused with the owner's name while it is away.
    let mut world = World::found(2, 8);
    world.admit(0, 1, "m1");
    let admin = world.nodes[1].me.peer;
    world.change(0, |s, me, now| s.set_admin(me, admin, true, now).unwrap());
    world.gossip(10);
    world.side = vec![1, 2];
    let join = |world: &mut World, n: u8| {
        let ask = byway::model::join::Ask {
            joiner: PeerId([100 + n; 32]),
            ..world.ask(1, "x")
        };
        let mut outcome = None;
        world.change(1, |s, me, now| {
            outcome = s
                .admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
                .err();
        });
        outcome
    };
    for n in 0..16 {
        assert_eq!(join(&mut world, n), None, "member {n}");
    }
    let full = join(&mut world, 16).unwrap();
    assert!(
        full.code == Code::PoolFull && full.message.contains("owner m0"),
        "{full:?}"
    );
    // The owner is back: it allots more, unasked.
    world.side = vec![0, 0];
    world.gossip(10);
    assert_eq!(join(&mut world, 16), None);
    world.gossip(10);
    world.assert_agreed();
    assert_eq!(world.members(0).len(), 19);
    // They leave, and the owner takes back what nobody uses.
    let parts = |world: &World| {
        world.records(0).head().seats[0]
            .part
            .iter()
            .map(|b| b.count)
            .sum::<u32>()
    };
    let before = parts(&world);
    for n in 0..17u8 {
        world.change(0, |s, me, now| {
            s.remove(me, PeerId([100 + n; 32]), now).unwrap()
        });
    }
    world.gossip(10);
    assert!(
        before >= 32 && parts(&world) < before,
        "{before} -> {}",
        parts(&world)
    );
}

#[test]
fn an_admin_leases_and_places_only_in_its_part() {
    let mut world = with_admins(4, 9);
    let mut subnet = world.nodes[1].edit("lab").unwrap();
    let me = world.nodes[1].me.clone();
    let whom = world.nodes[3].me.peer;
    let outside = "10.77.77.0/24".parse().unwrap();
    let refused = subnet
        .lease(&me, &[(outside, whom)], world.now)
        .unwrap_err();
    assert!(
        refused.code == Code::NotInPart && refused.message.contains("m0"),
        "{refused:?}"
    );
    let ask = byway::model::join::Ask {
        joiner: PeerId([88; 32]),
        ip: Some("10.77.77.7".parse().unwrap()),
        ..world.ask(1, "x")
    };
    let refused = subnet
        .admit(
            &me,
            &ask,
            (Role::Member, Term::Full),
            &BTreeMap::new(),
            world.now,
        )
        .unwrap_err();
    assert_eq!(refused.code, Code::NotInPart);
    // The owner may, and an admin does not take back what the owner gave.
    world.change(0, |s, me, now| {
        assert!(s.lease(me, &[(outside, whom)], now).unwrap())
    });
    world.gossip(10);
    let mut subnet = world.nodes[1].edit("lab").unwrap();
    assert_eq!(
        subnet
            .unlease(&me, outside, None, world.now)
            .unwrap_err()
            .code,
        Code::NotOwner
    );
    world.change(0, |s, me, now| {
        assert!(s.unlease(me, outside, None, now).unwrap())
    });
}

#[test]
fn what_is_over_is_forgotten_once_the_clocks_agree() {
    let mut world = World::found(3, 10);
    world.admit(0, 1, "m1");
    let ask = world.ask(2, "m2");
    world.change(0, |s, me, now| {
        s.admit(me, &ask, (Role::Member, Term::Trial), &BTreeMap::new(), now)
            .unwrap()
    });
    let bytes = |world: &World| {
        world
            .records(1)
            .all()
            .map(|r| r.encode().len())
            .sum::<usize>()
    };
    world.side = vec![0, 0, 9];
    world.gossip(5);
    let before = bytes(&world);
    // On trial a member says a kilobyte at most and has no items, and a goodbye says nothing else.
    let wide = Announcement {
        endpoints: vec!["/dns4/x".repeat(30); 10],
        ..announcement(1, 0)
    };
    let goodbye = Announcement {
        left: Some(1),
        endpoints: vec!["/x".into()],
        ..announcement(2, 0)
    };
    let item = Item {
        kind: 1,
        slot: vec![],
        version: 1,
        issued: 0,
        expires: u64::MAX,
        data: vec![],
    };
    for body in [
        Body::Announcement(wide),
        Body::Announcement(goodbye),
        Body::Item(item),
    ] {
        world.give(1, &[Signed::new(world.id, &body, &world.nodes[2].me.key)]);
    }
    assert_eq!(bytes(&world), before);
    let gone = world.nodes[2].me.peer;
    world.now += 3 * 86_400;
    assert!(
        world.records(1).grants_of(gone).next().is_some(),
        "nothing is forgotten by this node's clock alone"
    );
    let old: Vec<Signed> = world.records(1).all().cloned().collect();
    world.change(1, |s, _, now| assert!(s.records.forget(now)));
    assert!(world.records(1).grants_of(gone).next().is_none());
    world.give(1, &old);
    assert!(
        world.records(1).grants_of(gone).next().is_none(),
        "and not taken again"
    );
    assert!(world.members(1).contains(&world.nodes[0].me.peer));
}

#[test]
fn items_of_a_kind_nobody_knows_are_held_passed_on_and_mean_nothing() {
    let mut world = World::whole(3, 11);
    world.gossip(10);
    let me = world.nodes[1].me.clone();
    let before = world.records(0).resolve(world.now);
    let (id, time) = (world.id, world.now);
    let item = move |slot: u16, version: u64| {
        let data = vec![7; 100];
        let (issued, expires) = (time, time + 1000);
        let item = Item {
            kind: 4242,
            slot: slot.to_be_bytes().to_vec(),
            version,
            issued,
            expires,
            data,
        };
        Signed::new(id, &Body::Item(item), &me.key)
    };
    let many: Vec<Signed> = (0..200)
        .map(|slot| item(slot, 1))
        .chain([item(3, 2)])
        .collect();
    for batch in many.chunks(40) {
        world.give(1, batch);
    }
    let stranger = Item {
        kind: 1,
        slot: vec![],
        version: 1,
        issued: 0,
        expires: u64::MAX,
        data: vec![],
    };
    let stranger = Signed::new(
        world.id,
        &Body::Item(stranger),
        &super::world::identity(99).key,
    );
    world.give(1, &[stranger]);
    let held = world.records(1).all().count();
    world.gossip(20);
    for node in 0..3 {
        assert_eq!(world.records(node).all().count(), held, "node {node}");
    }
    assert_eq!(held, world.records(0).all().count());
    assert!(
        world.records(2).knows(&item(3, 2).digest())
            && !world.records(2).knows(&item(3, 1).digest())
    );
    assert!(
        !world.records(2).knows(&item(199, 1).digest()),
        "128 of one member at most"
    );
    assert_eq!(world.records(0).resolve(world.now).members, before.members);
}

#[test]
fn an_answer_is_kept_from_the_moment_it_is_given() {
    let mut world = World::whole(3, 12);
    world.gossip(10);
    let first = world.nodes[1].me.peer;
    let (early, late) = (forged(&world, 1, "db", 50), forged(&world, 2, "db", 50));
    // No second has passed, and nobody has looked after anything.
    world.give(0, &[early]);
    world.give(0, &[late]);
    assert_eq!(holder(&world, 0, "db"), Some(first));
    world.look_after(0);
    assert!(
        world
            .records(0)
            .registration(first, world.nodes[0].me.peer)
            .is_some()
    );
    // What claims itself is noted as well.
    let theft = forged(&world, 2, "mine", 60);
    claim(&mut world, 1, "mine");
    world.give(1, &[theft]);
    assert_eq!(holder(&world, 1, "mine"), Some(first));
}

#[test]
fn an_admin_takes_no_name_from_a_member_that_is_there_and_was_registered_by_the_owner() {
    use byway::model::record::Registration;
    let mut world = with_admins(4, 13);
    let (victim, rogue) = (world.nodes[3].me.peer, world.nodes[1].me.clone());
    claim(&mut world, 3, "db");
    world.gossip(10);
    let owner = world.nodes[0].me.peer;
    assert!(
        world
            .records(0)
            .registration(victim, owner)
            .is_some_and(|r| r.names.contains("db"))
    );
    let seat = world.records(0).head().seat(rogue.peer).unwrap().since;
    let version = world.records(0).announcement(victim).unwrap().version;
    let said = |holder, names: &[&str], released: u64| {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        let released = [("db".to_owned(), released)].into();
        let r = Registration {
            holder,
            version: 9,
            seat,
            names,
            released,
        };
        Signed::new(world.id, &Body::Registration(r), &rogue.key)
    };
    // It takes the name for ever, from the very announcement, and registers it for itself.
    let theft = [
        said(victim, &[], u64::MAX),
        said(rogue.peer, &["db"], 0),
        forged(&world, 1, "db", 77),
    ];
    for node in [0, 1, 2, 3] {
        world.give(node, &theft);
        assert_eq!(holder(&world, node, "db"), Some(victim), "node {node}");
    }
    let r = Registration {
        holder: victim,
        version: 10,
        seat,
        names: [].into(),
        released: [("db".into(), version)].into(),
    };
    let theft = [Signed::new(world.id, &Body::Registration(r), &rogue.key)];
    for node in [0, 2, 3] {
        world.give(node, &theft);
    }
    // The member says it again, and the owner's word stands before the admin's.
    world.look_after(3);
    world.gossip(20);
    for node in [0, 2, 3] {
        assert_eq!(holder(&world, node, "db"), Some(victim), "node {node}");
    }
}
