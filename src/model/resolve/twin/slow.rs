//! The slow twin: what follows from the records, worked out whole.

use super::*;

/// What is compared.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Twin {
    members: BTreeMap<PeerId, Member>,
    names: Vec<(String, RecordData, u32, PeerId)>,
    flat: BTreeMap<String, PeerId>,
    contested: BTreeMap<String, Vec<PeerId>>,
    unregistered: BTreeMap<String, PeerId>,
    changes_at: Option<u64>,
}

impl Twin {
    pub(super) fn of(resolved: &Resolved) -> Twin {
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
    announcement: &'a Announcement,
    names: BTreeSet<String>,
}

impl Records {
    /// What follows, worked out whole.
    pub(super) fn resolve_slowly(&self, now: u64, seen: &BTreeMap<String, PeerId>) -> Twin {
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
            let announcement = self.announcement(subject).filter(|d| d.left.is_none());
            let mut used = BTreeSet::new();
            let mut own = |a: &IpAddr| leases.iter().any(|l| l.contains(a)) && used.insert(*a);
            let workloads = announcement.map(|d| {
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
                workloads: workloads.unwrap_or_default(),
                names: vec![],
                void: BTreeSet::new(),
                place: Arc::new(Place {
                    grant,
                    issuer,
                    name,
                    role,
                    leases,
                    addresses,
                }),
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
            let Some(announcement) = self.announcement(*peer).filter(|d| d.left.is_none()) else {
                continue;
            };
            let workloads = member.workloads.iter().map(|(name, _)| name.as_str());
            let added = announcement.names.iter().map(|n| n.name.as_str());
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
                announcement,
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
            let answers = claim
                .announcement
                .names
                .iter()
                .filter(|n| !workload(&n.name));
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
