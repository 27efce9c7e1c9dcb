//! Nodes in one process, the links between them and their one clock.

use std::collections::{BTreeMap, BTreeSet};

use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::join::Ask;
use byway::model::local::PendingJoin;
use byway::model::members::{Identity, Subnet};
use byway::model::record::{Announcement, Role, Signed, Term, Verified};
use byway::model::state::{Draft, Founding, State};
use byway::model::subnet::Records;
use byway::model::upkeep::Attendance;
use byway::testing::{Dice, founding};

pub fn seeds() -> Vec<u64> {
    let seeds = match std::env::var("BYWAY_SEED") {
        Ok(seed) => vec![seed.parse().expect("BYWAY_SEED is a number")],
        Err(_) => (1..=20).collect(),
    };
    println!("seeds: {seeds:?}");
    seeds
}

pub fn identity(n: u8) -> Identity {
    Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32])
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The draft that holds one subnet.
pub fn draft(subnet: Subnet) -> Draft {
    let mut draft = Draft::default();
    draft.put(subnet);
    draft
}

/// An announcement that says nothing.
pub fn announcement(version: u64, issued: u64) -> Announcement {
    Announcement {
        version,
        issued,
        ..Announcement::default()
    }
}

/// A join by ID, with nothing asked for but a name.
pub fn join(subnet: SubnetId, wanted: &str, since: u64) -> PendingJoin {
    PendingJoin {
        subnet,
        invite: None,
        hints: vec![],
        name: name(wanted),
        name_is_default: true,
        alias: None,
        ip: None,
        host: Default::default(),
        allow: Default::default(),
        since,
        founded_as: None,
        refused: None,
        declared: false,
    }
}

/// Nodes, who hears whom, and one clock.
pub struct World {
    pub nodes: Vec<State>,
    /// Partition each node is in: only equal numbers hear each other.
    pub side: Vec<usize>,
    pub now: u64,
    pub loss: usize,
    pub dice: Dice,
    pub id: SubnetId,
    /// Who is connected to the owner and the admins.
    pub seen: BTreeSet<PeerId>,
}

impl World {
    pub fn found(members: u8, seed: u64) -> World {
        World::found_for(members, seed, None)
    }

    /// A world whose grants last so many seconds.
    pub fn found_for(members: u8, seed: u64, grant_life: Option<u64>) -> World {
        let now = 1_800_000_000;
        let mut nodes: Vec<State> = (0..members).map(|n| State::new(identity(n + 1))).collect();
        let founding = Founding {
            grant_life,
            salt: [seed as u8; 16],
            ..founding(name("lab"), name("m0"))
        };
        let subnet = nodes[0].found(founding, now).unwrap();
        let id = subnet.records.id;
        nodes[0].absorb(draft(subnet));
        let count = nodes.len();
        World {
            nodes,
            side: vec![0; count],
            now,
            loss: 0,
            dice: Dice::new(seed),
            id,
            seen: BTreeSet::new(),
        }
    }

    /// A world whose owner has admitted all the others; they have not heard of each other yet.
    pub fn whole(members: u8, seed: u64) -> World {
        let mut world = World::found(members, seed);
        for who in 1..world.nodes.len() {
            world.admit(0, who, &format!("m{who}"));
        }
        world
    }

    pub fn change(&mut self, node: usize, act: impl FnOnce(&mut Subnet, &Identity, u64)) {
        let me = self.nodes[node].me.clone();
        let mut subnet = self.nodes[node].edit(&self.id.to_string()).unwrap();
        act(&mut subnet, &me, self.now);
        self.nodes[node].absorb(draft(subnet));
    }

    /// What `who` asks to be let in by.
    pub fn ask(&self, who: usize, wanted: &str) -> Ask {
        let joiner = &self.nodes[who].me;
        Ask {
            subnet: self.id,
            joiner: joiner.peer,
            data_key: joiner.data_key,
            seal_key: joiner.seal_key,
            name: name(wanted),
            name_is_default: true,
            ip: None,
            asked: self.now,
            proof: None,
        }
    }

    /// `by` admits `who`, who takes the answer.
    pub fn admit(&mut self, by: usize, who: usize, wanted: &str) {
        let ask = self.ask(who, wanted);
        self.change(by, |s, me, now| {
            s.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)
                .unwrap()
        });
        let giver = &self.nodes[by].subnets[&self.id];
        let records = checked(giver.records.all());
        let join = join(self.id, wanted, self.now);
        let subnet = self.nodes[who]
            .accept(
                &join,
                &giver.local.genesis.clone(),
                &records,
                &Default::default(),
                self.now,
            )
            .unwrap();
        self.nodes[who].absorb(draft(subnet));
    }

    /// One exchange between two nodes, record by record, some of them lost.
    pub fn sync(&mut self, a: usize, b: usize) {
        if self.side[a] != self.side[b] {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let Some(source) = self.nodes[from].subnets.get(&self.id) else {
                continue;
            };
            let have = self.nodes[to]
                .subnets
                .get(&self.id)
                .map(|s| s.records.digests())
                .unwrap_or_default();
            let mut records: Vec<Signed> = source
                .records
                .all()
                .filter(|r| !have.contains(&r.digest()))
                .cloned()
                .collect();
            for i in (1..records.len()).rev() {
                records.swap(i, self.dice.index(i + 1));
            }
            let loss = self.loss;
            records.retain(|_| self.dice.index(100) >= loss);
            self.give(to, &records);
        }
    }

    pub fn gossip(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.now += 1;
            for node in 0..self.nodes.len() {
                let peer = self.dice.index(self.nodes.len());
                self.sync(node, peer);
                if self.nodes[node].subnets.contains_key(&self.id) {
                    self.look_after(node);
                }
            }
        }
    }

    /// What a node does by itself every second.
    pub fn look_after(&mut self, node: usize) {
        let around = Attendance {
            seen: self.seen.clone(),
            clock_is_off: false,
        };
        self.change(node, |s, me, now| {
            let endpoints = s
                .records
                .announcement(me.peer)
                .map(|d| d.endpoints.clone())
                .unwrap_or_default();
            s.upkeep(me, &around, now).unwrap();
            s.keep_own(me, &endpoints, now).unwrap();
        });
    }

    pub fn members(&self, node: usize) -> BTreeSet<PeerId> {
        self.nodes[node].subnets[&self.id]
            .records
            .resolve(self.now)
            .members
            .keys()
            .copied()
            .collect()
    }

    pub fn assert_agreed(&self) {
        self.assert_agreed_but(&[]);
    }

    /// The same, some nodes aside.
    pub fn assert_agreed_but(&self, aside: &[usize]) {
        let first = self.nodes[0].subnets[&self.id].records.resolve(self.now);
        for (n, node) in self
            .nodes
            .iter()
            .enumerate()
            .filter(|(n, _)| !aside.contains(n))
        {
            if let Some(subnet) = node.subnets.get(&self.id) {
                assert_eq!(subnet.records.resolve(self.now), first, "node {n}");
            }
        }
        let mut leases: Vec<_> = first
            .members
            .values()
            .flat_map(|m| m.leases.clone())
            .collect();
        leases.sort();
        for (i, a) in leases.iter().enumerate() {
            for b in &leases[i + 1..] {
                assert!(
                    !byway::model::ipam::overlaps(*a, *b),
                    "{a} and {b} have two owners"
                );
            }
        }
        assert!(
            first.members.values().all(|m| !m.addresses.is_empty()),
            "a member lost its address for good"
        );
    }

    pub fn give(&mut self, node: usize, records: &[Signed]) {
        if let Some((draft, _)) = self.nodes[node].take(self.id, &checked(records)) {
            self.nodes[node].absorb(draft);
        }
    }

    pub fn records(&self, node: usize) -> &Records {
        &self.nodes[node].subnets[&self.id].records
    }
}

/// Those of `records` whose signatures hold, as a node checks them before it looks at any.
pub fn checked<'a>(records: impl IntoIterator<Item = &'a Signed>) -> Vec<Verified> {
    records
        .into_iter()
        .filter_map(|record| record.clone().check().ok())
        .collect()
}

/// A world of `members`, all admitted by the owner, node 1 (and 2) made admins.
pub fn with_admins(members: u8, seed: u64) -> World {
    let mut world = World::whole(members, seed);
    let admins = [world.nodes[1].me.peer, world.nodes[2].me.peer];
    world.change(0, |s, me, now| {
        admins
            .iter()
            .for_each(|a| s.set_admin(me, *a, true, now).unwrap())
    });
    world.gossip(30);
    world
}
