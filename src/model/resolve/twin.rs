//! The slow twin: the same worked out whole, and sequences of changes after each of which both must agree.

use super::*;
use crate::model::build::Here;
use crate::model::ipam::free_addresses;
use crate::model::join::Ask;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{Admission, Body, Signed, Term, WorkloadEntry};
use crate::model::state::{Draft, Founding, State};
use crate::model::upkeep::Attendance;
use crate::model::view::View;
use crate::model::zone::RecordData;
use crate::testing::Dice;

/// What is compared.
#[derive(Debug, Default, PartialEq)]
struct Twin {
    members: BTreeMap<PeerId, Member>,
    names: Vec<(String, RecordData, u32, PeerId)>,
    flat: BTreeMap<String, PeerId>,
    contested: BTreeMap<String, Vec<PeerId>>,
    unregistered: BTreeMap<String, PeerId>,
    changes_at: Option<u64>,
}

impl Twin {
    fn of(resolved: &Resolved) -> Twin {
        let plain = |m: &Member| Member {
            names: vec![],
            void: BTreeSet::new(),
            ..m.clone()
        };
        let text = |map: &Chunks<Arc<str>, PeerId>| {
            map.iter()
                .map(|(name, by)| (name.to_string(), *by))
                .collect()
        };
        Twin {
            members: resolved
                .members
                .iter()
                .map(|(peer, m)| (*peer, plain(m)))
                .collect(),
            names: resolved
                .names()
                .map(|(by, n)| (n.name.clone(), n.data.clone(), n.ttl, by))
                .collect(),
            flat: text(&resolved.flat),
            contested: resolved
                .contested
                .iter()
                .map(|(name, by)| (name.to_string(), by.clone()))
                .collect(),
            unregistered: text(&resolved.unregistered),
            changes_at: resolved.changes_at,
        }
    }
}

/// What one member says a name means.
struct Claims<'a> {
    by: PeerId,
    doc: &'a Doc,
    names: BTreeSet<String>,
}

impl Records {
    /// What follows, worked out whole.
    fn resolve_slowly(&self, now: u64, seen: &BTreeMap<String, PeerId>) -> Twin {
        let roll = self.roll();
        let owner = self.genesis.owner;
        let mut changes_at: Option<u64> = None;
        let mut change = |at: u64| changes_at = Some(changes_at.map_or(at, |c| c.min(at)));
        let mut valid: Vec<Placed> = Vec::new();
        for (subject, entry) in &roll.members {
            for grant in entry.grants().iter().map(Granted::grant) {
                let begins = grant.not_before.saturating_sub(SKEW);
                [begins, grant.not_after]
                    .into_iter()
                    .filter(|at| *at > now)
                    .for_each(&mut change);
            }
            // The owner's own place is founded by the genesis: it does not run out while the owner is away, who could else
            // never come back to renew anything.
            let due = |g: &Grant| g.not_before.saturating_sub(SKEW) <= now && now < g.not_after;
            valid.extend(Placed::new(entry, |g| *subject == owner || due(g)));
        }
        valid.sort_by_key(|p| (p.order, p.grant.generation, p.grant.subject));
        let mut resolved = Twin {
            changes_at,
            ..Twin::default()
        };
        self.members_slowly(valid, &roll, &mut resolved);
        self.names_slowly(&roll, seen, &mut resolved);
        resolved
    }

    fn members_slowly(&self, valid: Vec<Placed>, roll: &Roll, resolved: &mut Twin) {
        let mut taken: Prefixes<()> = Prefixes::default();
        let mut names: BTreeMap<Name, usize> = BTreeMap::new();
        for Placed { grant, issuer, .. } in valid {
            let subject = grant.subject;
            let free = |l: &IpNet| {
                taken.overlapping(*l).is_none() && self.lease_counts(subject, issuer, *l)
            };
            let leases: Vec<IpNet> = grant.leases.iter().copied().filter(free).collect();
            leases.iter().for_each(|l| taken.insert(*l, ()));
            let name = free_name(&mut names, &grant.name);
            let role = if subject == self.genesis.owner {
                Role::Owner
            } else if roll.is_admin(subject) {
                Role::Admin
            } else {
                Role::Member
            };
            let addresses = grant
                .addresses
                .iter()
                .copied()
                .filter(|a| leases.iter().any(|l| l.contains(a)))
                .collect();
            let doc = self.doc(subject).filter(|d| d.left.is_none());
            let mut used = BTreeSet::new();
            let mut own = |a: &IpAddr| leases.iter().any(|l| l.contains(a)) && used.insert(*a);
            let workloads = doc.map(|d| {
                let entries = d.workloads.iter().map(|w| {
                    let addresses: Vec<IpAddr> =
                        w.addresses.iter().copied().filter(&mut own).collect();
                    (w.name.clone(), addresses)
                });
                entries
                    .filter(|(_, addresses)| !addresses.is_empty())
                    .collect()
            });
            let member = Member {
                issuer,
                name,
                role,
                addresses,
                endpoints: doc.map(|d| d.endpoints.clone()).unwrap_or_default(),
                workloads: workloads.unwrap_or_default(),
                names: vec![],
                void: BTreeSet::new(),
                leases,
                grant,
            };
            resolved.members.insert(subject, member);
        }
    }

    /// Names: a member's own name and all below it are its own. Any other name with one claimant is that claimant's; of
    /// several the registered one's; of several unregistered ones the one this node has answered before.
    fn names_slowly(&self, roll: &Roll, seen: &BTreeMap<String, PeerId>, resolved: &mut Twin) {
        let own: BTreeMap<&str, PeerId> = resolved
            .members
            .iter()
            .map(|(p, m)| (m.name.as_str(), *p))
            .collect();
        let mut claims: Vec<Claims<'_>> = Vec::new();
        for (peer, member) in &resolved.members {
            let Some(doc) = self.doc(*peer).filter(|d| d.left.is_none()) else {
                continue;
            };
            let workloads = member.workloads.iter().map(|(name, _)| name.as_str());
            let added = doc.names.iter().map(|n| n.name.as_str());
            let may = |name: &&str| {
                let last = name.rsplit('.').next().unwrap_or(name);
                own.get(last)
                    .is_none_or(|holder| holder == peer && last != *name)
                    && !self.is_released(roll, *peer, name)
            };
            let names = workloads
                .chain(added)
                .filter(may)
                .map(str::to_owned)
                .collect();
            claims.push(Claims {
                by: *peer,
                doc,
                names,
            });
        }
        let mut claimants: BTreeMap<&str, Vec<PeerId>> = BTreeMap::new();
        for claim in &claims {
            claim
                .names
                .iter()
                .for_each(|name| claimants.entry(name).or_default().push(claim.by));
        }
        let registered = self.registered_slowly(roll, resolved);
        let mut flat = BTreeMap::new();
        for (name, by) in claimants {
            let holder = registered
                .get(name)
                .and_then(|holders| holders.iter().find(|h| by.contains(*h)))
                .copied();
            let kept = seen.get(name).filter(|held| by.contains(*held)).copied();
            let found = match (holder, by.as_slice()) {
                (Some(holder), _) => Some(holder),
                (None, [only]) => Some(*only),
                (None, _) => {
                    resolved.contested.insert(name.to_owned(), by.clone());
                    kept
                }
            };
            if let Some(found) = found {
                flat.insert(name.to_owned(), found);
                if holder.is_none() {
                    resolved.unregistered.insert(name.to_owned(), found);
                }
            }
        }
        // A workload's name is not also an added one's.
        for claim in &claims {
            let member = resolved.members.get(&claim.by);
            let workload = |name: &str| {
                member.is_some_and(|m| m.workloads.iter().any(|(w, _)| w.as_str() == name))
            };
            let answers = claim.doc.names.iter().filter(|n| !workload(&n.name));
            resolved
                .names
                .extend(answers.map(|n| (n.name.clone(), n.data.clone(), n.ttl, claim.by)));
        }
        resolved.flat = flat;
    }

    /// Holders of each registered name, whose word counts most first.
    fn registered_slowly(&self, roll: &Roll, resolved: &Twin) -> BTreeMap<&str, Vec<PeerId>> {
        let order = |by: &PeerId| {
            let place = || {
                roll.admins
                    .iter()
                    .position(|a| a == by)
                    .map(|n| n.saturating_add(1))
            };
            if *by == self.genesis.owner {
                Some(0)
            } else {
                place()
            }
        };
        let mut all: Vec<_> = (self.registrations.iter())
            .filter_map(|((holder, by), r)| {
                let member = resolved.members.get(holder)?;
                Some((
                    (order(by)?, member.grant.generation, *holder),
                    *holder,
                    &r.body.names,
                ))
            })
            .collect();
        all.sort_by_key(|(rank, ..)| *rank);
        let mut names: BTreeMap<&str, Vec<PeerId>> = BTreeMap::new();
        for (_, holder, registered) in all {
            registered
                .iter()
                .for_each(|name| names.entry(name).or_default().push(holder));
        }
        names
    }
}

fn identity(n: usize) -> Identity {
    let n = u8::try_from(n + 1).unwrap();
    Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32])
}

const PEERS: usize = 8;
/// Names that members contend for; some are members' names, or below them.
const NAMES: [&str; 12] = [
    "db", "web", "m1", "m2", "m3", "db.m1", "x.m2", "a.b.m3", "m3-x", "b.web", "db-2", "mail",
];

struct World {
    state: State,
    subnet: Subnet,
    now: u64,
    dice: Dice,
}

impl World {
    fn new(seed: u64) -> World {
        let now = 1_800_000_000;
        let state = State::new(identity(0));
        let founding = Founding {
            name: "lab".parse().unwrap(),
            cidr4: Some(Some("10.0.0.0/16".parse().unwrap())),
            cidr6: None,
            block4: None,
            admission: Admission::Approve,
            domain: None,
            grant_life: Some(20_000),
            member: "m0".parse().unwrap(),
            around: Default::default(),
            host: None,
            salt: [1; 16],
        };
        let subnet = state.found(founding, now).unwrap();
        World {
            state,
            subnet,
            now,
            dice: Dice::new(seed),
        }
    }

    /// One of the things that happen; what is refused has changed nothing.
    fn step(&mut self) {
        let who = self.dice.index(PEERS);
        let (me, other) = (identity(who), identity(self.dice.index(PEERS)));
        let name = NAMES[self.dice.index(NAMES.len())];
        let owner = identity(0);
        let now = self.now;
        let mut copy = self.subnet.clone();
        let done = match self.dice.index(13) {
            0 | 1 => {
                let ask = Ask {
                    subnet: copy.records.id,
                    joiner: me.peer,
                    data_key: me.data_key,
                    seal_key: me.seal_key,
                    name: format!("m{}", self.dice.index(4)).parse().unwrap(),
                    name_is_default: true,
                    ip: None,
                    asked: now,
                    proof: None,
                };
                let term =
                    [Term::Full, Term::Full, Term::Ephemeral, Term::Trial][self.dice.index(4)];
                copy.admit(&owner, &ask, (Role::Member, term), &BTreeMap::new(), now)
            }
            2 => copy.set_admin(&owner, me.peer, self.dice.below(3) != 0, now),
            3 => copy.remove(&other, me.peer, now),
            4..=7 => {
                self.document(&mut copy, &me);
                Ok(())
            }
            8 => copy
                .dns_release(
                    &other,
                    name,
                    (self.dice.below(2) == 0).then_some(me.peer),
                    now,
                )
                .map(drop),
            9 => copy.say_goodbye(&me, now),
            10 => {
                let seen = (0..PEERS)
                    .filter(|_| self.dice.below(2) == 0)
                    .map(|n| identity(n).peer)
                    .collect();
                copy.upkeep(
                    &me,
                    &Attendance {
                        seen,
                        clock_is_off: false,
                    },
                    now,
                )
            }
            11 => {
                // The clock goes either way.
                let far = [40, 400, 5_000, 30_000][self.dice.index(4)];
                self.now = if self.dice.below(4) == 0 {
                    now - far
                } else {
                    now + far
                };
                copy.records.forget(self.now);
                Ok(())
            }
            _ if self.dice.below(4) == 0 => copy.begin_epoch(&owner, now),
            _ => copy.keep_own(&owner, &["/memory/1".to_owned()], now),
        };
        if done.is_ok() {
            self.subnet = copy;
        }
    }

    /// Another document of a member's, by its own key.
    fn document(&mut self, copy: &mut Subnet, me: &Identity) {
        let mut doc = copy.records.doc(me.peer).cloned().unwrap_or_default();
        doc.version += 1;
        let resolved = copy.resolve(self.now);
        let leases = resolved
            .members
            .get(&me.peer)
            .map(|m| m.leases.clone())
            .unwrap_or_default();
        let mut used: BTreeSet<IpAddr> = resolved
            .members
            .values()
            .flat_map(|m| m.addresses.clone())
            .collect();
        match self.dice.index(4) {
            0 => doc.names.clear(),
            1 => doc.workloads.clear(),
            2 => {
                let data = RecordData::Txt(format!("{}", self.dice.index(3)));
                let name = NAMES[self.dice.index(NAMES.len())].to_owned();
                doc.names.push(NameEntry { name, data, ttl: 5 });
            }
            _ => {
                used.extend(doc.workloads.iter().flat_map(|w| w.addresses.clone()));
                let mut addresses =
                    free_addresses(&copy.records.pools(), &leases, &used, &[]).unwrap_or_default();
                if self.dice.below(4) == 0 {
                    addresses = vec!["10.0.2.9".parse().unwrap()];
                }
                let name = NAMES[self.dice.index(2)].parse().unwrap();
                doc.workloads.push(WorkloadEntry { name, addresses });
            }
        }
        if let Ok(record) = Signed::new(copy.records.id, &Body::Doc(doc), &me.key).check() {
            let _ = copy.records.absorb(record);
        }
    }
}

fn assert_same(made: &View, anew: &View, what: &str) {
    assert_eq!(
        (&made.rolls, &made.host, made.changes_at),
        (&anew.rolls, &anew.host, anew.changes_at),
        "{what}"
    );
    assert!(made.subnets.keys().eq(anew.subnets.keys()), "{what}");
    for (a, b) in made.subnets.values().zip(anew.subnets.values()) {
        let mut zone = (*a.zone).clone();
        // It stays as long as no name changes; made anew it is always the newest.
        zone.serial = b.zone.serial;
        assert_eq!(&zone, &*b.zone, "{what}");
        assert_eq!(
            (&a.members, &a.hosts, &a.data_keys),
            (&b.members, &b.hosts, &b.data_keys),
            "{what}"
        );
        assert_eq!(a.routes, b.routes, "{what}");
        assert_eq!(
            (&a.addresses, &a.name, &a.interface),
            (&b.addresses, &b.name, &b.interface),
            "{what}"
        );
    }
}

#[test]
fn what_is_made_in_steps_is_what_is_made_whole() {
    let here = Here::default();
    let (mut shared, mut steps) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        let mut view = View::default();
        for step in 0..60 {
            world.step();
            let what = format!("seed {seed}, step {step}");
            // Now and then several changes lie between two looks.
            if world.dice.below(4) == 0 {
                continue;
            }
            let made = world.subnet.remember(world.now);
            let slow: BTreeMap<String, PeerId> = world
                .subnet
                .local
                .seen
                .iter()
                .map(|(name, by)| (name.to_string(), *by))
                .collect();
            assert_eq!(
                Twin::of(&made),
                world.subnet.records.resolve_slowly(world.now, &slow),
                "{what}"
            );
            let anew = world
                .subnet
                .records
                .resolve_with(world.now, &world.subnet.local.seen);
            assert_eq!(*made, anew, "{what}");
            let mut draft = Draft::default();
            draft.put(world.subnet.clone());
            let _ = world.state.absorb(draft);
            let next = world.state.view(step, world.now, &here, &view);
            assert_same(
                &next,
                &world.state.view(step, world.now, &here, &View::default()),
                &what,
            );
            steps += 1;
            shared += usize::from(
                next.built
                    .values()
                    .all(|b| b.work().fragments < made.members.len()),
            );
            view = next;
        }
    }
    assert!(
        shared * 2 > steps,
        "{shared} of {steps} Views shared something"
    );
}

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
        let doc = Doc {
            version: 1,
            workloads: (0..workloads).zip(addresses).map(entry).collect(),
            ..Doc::default()
        };
        let record = Signed::new(world.subnet.records.id, &Body::Doc(doc), &who.key)
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
fn one_changed_document_makes_one_member_and_its_names() {
    let mut world = large(100, 20);
    let first = world.view(&View::default());
    let (resolved, built) = works(&first);
    assert_eq!((built.fragments, built.routes), (100, 100));
    assert_eq!(
        resolved.places, 0,
        "the owner's own upkeep has found out already"
    );
    let who = identity(40);
    let mut doc = world.subnet.records.doc(who.peer).cloned().unwrap();
    (doc.version, doc.workloads[3].name) = (2, "other".parse().unwrap());
    let record = Signed::new(world.subnet.records.id, &Body::Doc(doc.clone()), &who.key)
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
    doc.version = 3;
    let record = Signed::new(id, &Body::Doc(doc), &who.key).check().unwrap();
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
