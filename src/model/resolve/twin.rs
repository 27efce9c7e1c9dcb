//! The slow twin, the same worked out whole, and sequences of changes after each of which both must agree.

mod slow;
mod work;

use slow::Twin;

use super::*;
use crate::model::build::Here;
use crate::model::ipam::free_addresses;
use crate::model::join::Ask;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{Body, Signed, Term, WorkloadEntry};
use crate::model::state::{Draft, Founding, State};
use crate::model::upkeep::Attendance;
use crate::model::view::View;
use crate::model::zone::RecordData;
use crate::testing::{Dice, founding};

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
            cidr4: Some(Some("10.0.0.0/16".parse().unwrap())),
            cidr6: None,
            grant_life: Some(20_000),
            ..founding("lab".parse().unwrap(), "m0".parse().unwrap())
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
                self.announcement(&mut copy, &me);
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

    /// Another announcement of a member's, by its own key.
    fn announcement(&mut self, copy: &mut Subnet, me: &Identity) {
        let mut announcement = copy
            .records
            .announcement(me.peer)
            .cloned()
            .unwrap_or_default();
        announcement.version += 1;
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
            0 => announcement.names.clear(),
            1 => announcement.workloads.clear(),
            2 => {
                let data = RecordData::Txt(format!("{}", self.dice.index(3)));
                let name = NAMES[self.dice.index(NAMES.len())].to_owned();
                announcement.names.push(NameEntry { name, data, ttl: 5 });
            }
            _ => {
                used.extend(
                    announcement
                        .workloads
                        .iter()
                        .flat_map(|w| w.addresses.clone()),
                );
                let mut addresses =
                    free_addresses(&copy.records.pools(), &leases, &used, &[]).unwrap_or_default();
                if self.dice.below(4) == 0 {
                    addresses = vec!["10.0.2.9".parse().unwrap()];
                }
                let name = NAMES[self.dice.index(2)].parse().unwrap();
                announcement
                    .workloads
                    .push(WorkloadEntry { name, addresses });
            }
        }
        if let Ok(record) =
            Signed::new(copy.records.id, &Body::Announcement(announcement), &me.key).check()
        {
            let _ = copy.records.absorb(record);
        }
    }
}

fn assert_same(made: &View, anew: &View, what: &str) {
    assert_eq!(
        (&made.rolls, &made.grants, &made.host, made.changes_at),
        (&anew.rolls, &anew.grants, &anew.host, anew.changes_at),
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
