//! How much of what was worked out before is used again, counted.

use super::*;

/// A subnet of `members` with `workloads` each, all named and registered, at its owner.
fn large(members: usize, workloads: usize) -> World {
    let mut world = World::new(1);
    let owner = identity(0);
    for n in 0..members {
        let who = identity(n);
        let ask = Ask {
            subnet: world.subnet.records.id,
            joiner: who.peer,
            data_key: who.data_key,
            seal_key: who.seal_key,
            name: format!("m{n}").parse().unwrap(),
            name_is_default: true,
            ip: None,
            asked: world.now,
            proof: None,
        };
        world
            .subnet
            .admit(
                &owner,
                &ask,
                (Role::Member, Term::Full),
                &BTreeMap::new(),
                world.now,
            )
            .unwrap();
        let lease = world.subnet.remember(world.now).members[&who.peer].leases[0];
        if n == 0 {
            continue;
        }
        let addresses = lease.hosts().skip(5);
        let entry = |(w, address)| WorkloadEntry {
            name: format!("w{w}-{n}").parse().unwrap(),
            addresses: vec![address],
        };
        let announcement = Announcement {
            version: 1,
            workloads: (0..workloads).zip(addresses).map(entry).collect(),
            ..Announcement::default()
        };
        let record = Signed::new(
            world.subnet.records.id,
            &Body::Announcement(announcement),
            &who.key,
        )
        .check()
        .unwrap();
        let _ = world.subnet.records.absorb(record);
    }
    world
        .subnet
        .upkeep(&owner, &Attendance::default(), world.now)
        .unwrap();
    world.subnet.remember(world.now);
    world
}

impl World {
    /// The View after the one given.
    fn view(&mut self, former: &View) -> View {
        self.subnet.remember(self.now);
        let mut draft = Draft::default();
        draft.put(self.subnet.clone());
        let _ = self.state.absorb(draft);
        self.state
            .view(former.generation + 1, self.now, &Here::default(), former)
    }
}

fn works(view: &View) -> (Work, crate::model::build::Work) {
    let built = view.built.values().next().unwrap();
    (built.resolved().work, built.work())
}

#[test]
fn one_changed_announcement_makes_one_member_and_its_names() {
    let mut world = large(100, 20);
    let first = world.view(&View::default());
    let (resolved, built) = works(&first);
    assert_eq!((built.fragments, built.routes), (100, 100));
    assert_eq!(
        resolved.places, 0,
        "the owner's own upkeep has found out already"
    );
    let who = identity(40);
    let mut announcement = world
        .subnet
        .records
        .announcement(who.peer)
        .cloned()
        .unwrap();
    (announcement.version, announcement.workloads[3].name) = (2, "other".parse().unwrap());
    let record = Signed::new(
        world.subnet.records.id,
        &Body::Announcement(announcement.clone()),
        &who.key,
    )
    .check()
    .unwrap();
    let _ = world.subnet.records.absorb(record);
    let second = world.view(&first);
    let (resolved, built) = works(&second);
    assert_eq!(
        resolved,
        Work {
            places: 0,
            members: 1,
            names: 2
        }
    );
    // The old name and the new one, each alone and below the member's.
    assert_eq!(
        built,
        crate::model::build::Work {
            fragments: 1,
            names: 4,
            routes: 0
        }
    );
    let id = world.subnet.records.id;
    assert!(Arc::ptr_eq(
        &first.subnets[&id].routes,
        &second.subnets[&id].routes
    ));
    // The same in another version changes no name.
    announcement.version = 3;
    let record = Signed::new(id, &Body::Announcement(announcement), &who.key)
        .check()
        .unwrap();
    let _ = world.subnet.records.absorb(record);
    let third = world.view(&second);
    assert_eq!(
        works(&third),
        (
            Work {
                places: 0,
                members: 1,
                names: 0
            },
            Default::default()
        )
    );
    assert!(
        Arc::ptr_eq(&second.subnets[&id].zone, &third.subnets[&id].zone),
        "its serial stays, too"
    );
}

#[test]
fn own_commands_and_upkeep_make_what_they_change() {
    let (mut world, owner) = (large(100, 20), identity(0));
    let first = world.view(&View::default());
    world
        .subnet
        .dns_add(
            &owner,
            "wiki",
            &[RecordData::Txt("x".into())],
            60,
            world.now,
        )
        .unwrap();
    let second = world.view(&first);
    assert_eq!(
        works(&second),
        (
            Work {
                places: 0,
                members: 1,
                names: 1
            },
            crate::model::build::Work {
                fragments: 1,
                names: 2,
                routes: 0
            }
        )
    );
    // Upkeep registers that one name; what it means is the same.
    let before = world.subnet.records.clone();
    world
        .subnet
        .upkeep(&owner, &Attendance::default(), world.now)
        .unwrap();
    world.subnet.keep_own(&owner, &[], world.now).unwrap();
    let changed = world
        .subnet
        .records
        .registrations
        .differences(&before.registrations, Arc::ptr_eq)
        .len();
    assert_eq!(changed, 1);
    let third = world.view(&second);
    assert_eq!(works(&third).1, Default::default());
    assert!(works(&third).0.names <= 1);
    // And with nothing to do nothing is made.
    let before = world.subnet.clone();
    world
        .subnet
        .upkeep(&owner, &Attendance::default(), world.now)
        .unwrap();
    world.subnet.keep_own(&owner, &[], world.now).unwrap();
    assert!(world.subnet == before && before.own_is_true(&owner, &[], world.now));
    assert!(
        Arc::ptr_eq(&before.resolve(world.now), &world.subnet.resolve(world.now)),
        "found once"
    );
}
