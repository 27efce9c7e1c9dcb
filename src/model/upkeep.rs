//! What members do without being asked: the owner and admins renew, allot and register; everybody keeps its own
//! announcement true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::error::Result;
use super::id::{Name, PeerId};
use super::ipam::{Pools, free_addresses};
use super::members::{Identity, REQUEST_LIFE, Subnet};
use super::publish::say;
use super::record::{
    Announcement, Body, Grant, Head, MAX_ADMIN_GENERATION, MAX_RUNS, Term, WorkloadEntry,
};
use super::resolve::{Resolved, SKEW};

/// Revocations above which the owner ends them all by an epoch.
const MAX_REVOCATIONS: usize = 4096;
/// How long a member on trial has to be there before it gets a full grant, in seconds.
const TRIAL: u64 = 60;
/// After how many seconds the owner, and an admin, gives a block to a member that has none.
const BLOCK_AFTER: (u64, u64) = (2, 60);

/// What the machine adds to judge by.
#[derive(Debug, Clone, Default)]
pub struct Attendance {
    /// Members that have a connection to this node.
    pub seen: BTreeSet<PeerId>,
    /// The clocks of most members of the subnet differ from this node's: nothing is signed that a time decides.
    pub clock_is_off: bool,
}

impl Subnet {
    /// What the owner and admins do without being asked. An error of one member's part does not keep the others' from
    /// being done.
    ///
    /// # Errors
    /// `E-RECORD` for a record that the others would refuse; this node makes none.
    pub fn upkeep(&mut self, me: &Identity, around: &Attendance, now: u64) -> Result<()> {
        // What a clock that was ahead wrote down lies in the future once it is right: that is no reason to keep it.
        self.requests
            .retain(|_, r| now.abs_diff(r.seen) < REQUEST_LIFE);
        let stands = |until: u64| now < until && until <= now.saturating_add(REQUEST_LIFE);
        if !self.local.denied.values().all(|until| stands(*until)) {
            self.local.denied.retain(|_, until| stands(*until));
        }
        let resolved = self.remember(now);
        if self.require_admin(me, &resolved).is_err() || resolved.destroyed {
            return Ok(());
        }
        let owner = self.records.genesis.owner == me.peer;
        let head = if owner {
            self.keep_head(me, &resolved, now)
        } else {
            Ok(())
        };
        let grants = if around.clock_is_off {
            Ok(())
        } else {
            self.renew(me, around, now)
        };
        head.and(grants).and(self.keep_names(me, now))
    }

    fn keep_head(&mut self, me: &Identity, resolved: &Resolved, now: u64) -> Result<()> {
        self.unseat(me, resolved, now)?;
        let mut head = self.records.next_head(now);
        let mut changed = self.records.forked();
        changed |= resize_parts(&mut head, &self.records.pools(), resolved);
        if head.seats.iter().map(|s| s.part.len()).sum::<usize>() > MAX_RUNS {
            // Parts in too many pieces stay as they are: the head has to fit.
            head.seats = self.records.seats().to_vec();
            changed = self.records.forked();
        }
        if self.records.live_revocations() > MAX_REVOCATIONS {
            return self.begin_epoch(me, now);
        }
        if changed {
            self.issue(me, Body::Head(head))
        } else {
            Ok(())
        }
    }

    /// Takes the seats of admins that are members no more.
    fn unseat(&mut self, me: &Identity, resolved: &Resolved, now: u64) -> Result<()> {
        // Who left or was removed administers nothing; what it granted is granted anew. A wrong clock decides nothing
        // here: whose grant has run out is granted one.
        let seated = self.records.seats().iter().map(|s| s.admin);
        let gone: Vec<PeerId> = seated
            .filter(|a| !resolved.roll.members.contains_key(a))
            .collect();
        // All at once, and the owner's own word before any seat goes: of two that removed each other neither comes back
        // because the other one's removal has lost its seat first.
        for admin in &gone {
            self.adopt(me, *admin, resolved, now)?;
            if resolved.roll.out.contains_key(admin) {
                self.revoke(me, *admin)?;
            }
        }
        if !gone.is_empty() {
            let mut head = self.records.next_head(now);
            head.seats.retain(|s| !gone.contains(&s.admin));
            self.issue(me, Body::Head(head))?;
        }
        Ok(())
    }

    /// Ends every revocation: the living are granted anew with a generation that no revocation names, and the head says
    /// that nothing below it counts. Of generations out of all proportion, which only an attack brings up, those of admins
    /// stay as they are.
    ///
    /// # Errors
    /// `E-RECORD` for a record that the others would refuse; this node makes none.
    pub fn begin_epoch(&mut self, me: &Identity, now: u64) -> Result<()> {
        self.require_owner(me)?;
        let least = self
            .records
            .generations_below(MAX_ADMIN_GENERATION / 2)
            .saturating_add(1);
        let resolved = self.resolve(now);
        let living: BTreeMap<PeerId, Grant> = (resolved.roll.members.iter())
            .filter_map(|(peer, entry)| Some((*peer, entry.best()?.grant().clone())))
            .collect();
        for (peer, grant) in living {
            let raise = |g: &mut Grant| g.generation = g.generation.max(least);
            match resolved.members.get(&peer) {
                Some(member) => self.regrant(me, member, now, raise)?,
                None => self.regrant_as(me, grant, now, raise)?,
            }
        }
        let mut head = self.records.next_head(now);
        head.least = least;
        self.issue(me, Body::Head(head))
    }

    /// Renews grants past half their life, and those this node signed while its clock was wrong; gives a block to who
    /// lost one in a conflict.
    fn renew(&mut self, me: &Identity, around: &Attendance, now: u64) -> Result<()> {
        let resolved = self.resolve(now);
        let owner = self.records.genesis.owner == me.peer;
        let due: Vec<(PeerId, Grant, bool)> = (resolved.roll.members.iter())
            // The owner's own place is nobody else's to renew.
            .filter(|(peer, _)| owner || **peer != self.records.genesis.owner)
            .filter_map(|(peer, entry)| {
                let best = entry.best()?;
                let own = best.issuer == me.peer;
                needs_renewal(best.grant(), (owner, own), around.seen.contains(peer), now).then(
                    || {
                        (
                            *peer,
                            best.grant().clone(),
                            resolved.members.contains_key(peer),
                        )
                    },
                )
            })
            .collect();
        let mut done = Ok(());
        for (peer, grant, valid) in due {
            let full = |g: &mut Grant| {
                if g.term == Term::Trial {
                    g.term = Term::Full;
                }
            };
            let renewed = match resolved.members.get(&peer).filter(|_| valid) {
                Some(member) => self.regrant(me, member, now, full),
                None => self.regrant_as(me, grant, now, full),
            };
            done = done.and(renewed);
        }
        let wait = if owner { BLOCK_AFTER.0 } else { BLOCK_AFTER.1 };
        let without = resolved.members.values().filter(|m| m.addresses.is_empty());
        for member in without.filter(|m| now >= m.grant.not_before.saturating_add(wait)) {
            // Another one's block may have been given in this very round.
            let resolved = self.resolve(now);
            let taken: Vec<_> = resolved
                .members
                .values()
                .flat_map(|m| m.leases.iter().copied())
                .collect();
            let block = {
                let give = self.may_give(me);
                self.records.pools().free_block(&taken, None, give)
            };
            if let Ok(block) = block {
                done = done.and(self.regrant(me, member, now, |g| {
                    g.leases.extend(block.leases);
                    g.addresses = block.addresses;
                }));
            }
        }
        done
    }

    /// Registers names that one member claims, in the order they are seen, and drops those their holder has given up.
    pub(super) fn keep_names(&mut self, me: &Identity, now: u64) -> Result<()> {
        let resolved = self.remember(now);
        let mut fresh: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for (name, holder) in resolved.unregistered.iter() {
            fresh.entry(*holder).or_default().push(name.to_string());
        }
        let touched = self.touched_holders();
        for holder in touched
            .into_iter()
            .chain(fresh.keys().copied())
            .collect::<BTreeSet<_>>()
        {
            let Some(held) = self.records.registration(holder, me.peer) else {
                continue;
            };
            let member = resolved.members.contains_key(&holder);
            let gone = |n: &&String| member && !self.records.claims.of(n).contains(&holder);
            let gone: Vec<String> = held.names.iter().filter(gone).cloned().collect();
            if !gone.is_empty() || fresh.contains_key(&holder) {
                let more = fresh.remove(&holder).unwrap_or_default();
                self.register(me, holder, |r| {
                    r.names.retain(|n| !gone.contains(n));
                    r.names.extend(more);
                })?;
            }
        }
        for (holder, names) in fresh {
            self.register(me, holder, |r| r.names.extend(names))?;
        }
        self.memo.tidy = Some(Arc::new(self.records.clone()));
        Ok(())
    }

    /// Members that say other names, or whose grants or registrations are others, than when their names were last looked at.
    fn touched_holders(&self) -> BTreeSet<PeerId> {
        let Some(tidy) = &self.memo.tidy else {
            return self
                .records
                .registrations
                .keys()
                .map(|(holder, _)| *holder)
                .collect();
        };
        fn said(announcement: &Announcement) -> (Option<u32>, Vec<&str>) {
            let workloads = announcement.workloads.iter().map(|w| w.name.as_str());
            let names = workloads.chain(announcement.names.iter().map(|n| n.name.as_str()));
            (announcement.left, names.collect())
        }
        let announcements = self
            .records
            .announcements
            .differences(&tidy.announcements, |a, b| {
                Arc::ptr_eq(a, b) || said(&a.body) == said(&b.body)
            });
        let grants = self.records.grants.differences(&tidy.grants, Arc::ptr_eq);
        let registered = self
            .records
            .registrations
            .differences(&tidy.registrations, Arc::ptr_eq);
        let pairs = grants.into_iter().map(|((subject, _), ..)| *subject);
        let pairs = pairs.chain(registered.into_iter().map(|((holder, _), ..)| *holder));
        announcements
            .into_iter()
            .map(|(peer, ..)| *peer)
            .chain(pairs)
            .collect()
    }

    /// Whether a member's announcement says a name.
    fn claims(&self, member: PeerId, name: &str) -> bool {
        self.records.announcement(member).is_some_and(|d| {
            d.workloads.iter().any(|w| w.name.as_str() == name)
                || d.names.iter().any(|n| n.name == name)
        })
    }

    /// Gives workloads new addresses where this node lost the block that theirs were from, and has another.
    fn follow_leases(&mut self, me: &Identity, resolved: &Resolved) {
        let Some(mine) = resolved
            .members
            .get(&me.peer)
            .filter(|m| !m.addresses.is_empty())
        else {
            return;
        };
        let ours = |a: &IpAddr| mine.leases.iter().any(|l| l.contains(a));
        let pools = self.records.pools();
        for place in 0..self.local.workloads.len() {
            let stranded = self
                .local
                .workloads
                .get(place)
                .is_some_and(|w| !w.addresses.iter().any(ours));
            let members = resolved
                .members
                .values()
                .flat_map(|m| m.addresses.iter().copied());
            let used = self
                .local
                .workloads
                .iter()
                .flat_map(|w| w.addresses.iter().copied())
                .chain(members)
                .collect();
            if stranded && let Ok(addresses) = free_addresses(&pools, &mine.leases, &used, &[]) {
                self.local
                    .workloads
                    .iter_mut()
                    .skip(place)
                    .take(1)
                    .for_each(|w| w.addresses = addresses.clone());
            }
        }
    }

    /// Whether the owner or an admin released a name of a member, which has not claimed it anew since.
    pub fn is_released(&self, resolved: &Resolved, member: PeerId, name: &Name) -> bool {
        self.records
            .is_released(&resolved.roll, member, name.as_str())
    }

    /// Whether somebody else than the owner took a name from this node that the owner registered for it.
    fn was_robbed(&self, me: &Identity, resolved: &Resolved) -> bool {
        let owner = self.records.genesis.owner;
        let by_owner = self.records.registration(me.peer, owner).map(|r| &r.names);
        by_owner.is_some_and(|names| {
            names.iter().any(|n| {
                self.claims(me.peer, n) && self.records.is_released(&resolved.roll, me.peer, n)
            })
        })
    }

    /// Whether [`Subnet::keep_own`] would change nothing.
    pub fn own_is_true(&self, me: &Identity, endpoints: &[String], now: u64) -> bool {
        let resolved = self.resolve(now);
        let Some(mine) = resolved.members.get(&me.peer) else {
            return self.local.seen == resolved.unregistered;
        };
        let ours = |a: &IpAddr| mine.leases.iter().any(|l| l.contains(a));
        let settled = mine.addresses.is_empty()
            || self
                .local
                .workloads
                .iter()
                .all(|w| w.addresses.iter().any(ours));
        let announcement = self.records.announcement(me.peer);
        let told = announcement.is_some_and(|d| {
            d.left.is_none()
                && d.life == me.life
                && d.workloads == self.workload_entries()
                && d.endpoints.iter().eq(endpoints.iter().take(32))
        });
        let said = !self.local.up
            || (told && self.companions_are_true() && !self.was_robbed(me, &resolved));
        settled && said && self.local.seen == resolved.unregistered
    }

    /// Keeps what this node says of itself true, also after a backup was restored or another with the same key spoke, and
    /// remembers the answers it gives for names that nobody has registered.
    ///
    /// # Errors
    /// `E-RECORD` for an announcement that the others would refuse; this node makes none.
    pub fn keep_own(&mut self, me: &Identity, endpoints: &[String], now: u64) -> Result<()> {
        let resolved = self.remember(now);
        self.follow_leases(me, &resolved);
        if resolved.members.contains_key(&me.peer) && self.local.up {
            let own: Vec<WorkloadEntry> = self.workload_entries();
            let due = self.follow_workloads();
            let told: Vec<String> = endpoints.iter().take(32).cloned().collect();
            let taken = self.was_robbed(me, &resolved);
            self.publish(me, now, |d| {
                d.workloads = own;
                say(&due, d);
                d.endpoints = told;
                if taken {
                    d.issued = now.max(d.issued.saturating_add(1));
                }
            })?;
        }
        if self.local.seen != resolved.unregistered {
            self.local.seen = resolved.unregistered.clone();
        }
        Ok(())
    }
}

/// Gives a part more blocks that has little left, and takes those of one that has plenty; whether any changed.
fn resize_parts(head: &mut Head, pools: &Pools, resolved: &Resolved) -> bool {
    let held = resolved
        .members
        .values()
        .filter(|_| !head.seats.is_empty())
        .flat_map(|m| m.leases.iter().copied());
    let leases: Vec<_> = held.collect();
    let touched = pools.touched(&leases);
    let mut changed = false;
    for place in 0..head.seats.len() {
        let Some(seat) = head.seats.get(place) else {
            continue;
        };
        let blocks = seat
            .part
            .iter()
            .flat_map(|b| b.first..b.first.saturating_add(b.count));
        let (used, free): (Vec<u32>, Vec<u32>) = blocks.partition(|b| touched.contains(b));
        let (size, part) = (
            used.len().saturating_add(free.len()),
            pools.part_size() as usize,
        );
        if used.len().saturating_mul(4) >= size.saturating_mul(3) {
            let more = pools.allot(&leases, &head.seats, pools.part_size());
            changed |= !more.is_empty();
            let all = seat
                .part
                .iter()
                .chain(&more)
                .flat_map(|b| b.first..b.first.saturating_add(b.count));
            let all = runs(&all.collect());
            head.seats
                .iter_mut()
                .skip(place)
                .take(1)
                .for_each(|s| s.part = all.clone());
        } else if free.len() > part.saturating_add(part / 2) {
            // What its members gave back is the owner's to allot again; one part stays free for those to come.
            let kept: BTreeSet<u32> = used
                .into_iter()
                .chain(free.into_iter().take(part))
                .collect();
            changed = true;
            head.seats
                .iter_mut()
                .skip(place)
                .take(1)
                .for_each(|s| s.part = runs(&kept));
        }
    }
    changed
}

/// Members whose grants last and that `me` would sign anew if it saw them: who may be there is to be asked before. Nobody where
/// `me` may grant nothing.
pub fn awaited(resolved: &Resolved, me: PeerId, now: u64) -> Vec<PeerId> {
    let owner = resolved.roll.owner == Some(me);
    if !owner && !resolved.roll.is_admin(me) {
        return Vec::new();
    }
    let is_due = |grant: &Grant, own: bool| {
        let due = |seen| needs_renewal(grant, (owner, own), seen, now);
        now <= grant.not_after && due(true) && !due(false)
    };
    let members = resolved.roll.members.iter();
    members
        .filter(|(_, entry)| {
            entry
                .best()
                .is_some_and(|best| is_due(best.grant(), best.issuer == me))
        })
        .map(|(peer, _)| *peer)
        .collect()
}

/// Whether a grant is to be signed anew. `(owner, own)`: whether the owner judges, and whether it signed the grant itself.
fn needs_renewal(grant: &Grant, (owner, own): (bool, bool), seen: bool, now: u64) -> bool {
    let age = now.saturating_sub(grant.not_before);
    if own && grant.not_before > now.saturating_add(SKEW) {
        return grant.term == Term::Full || seen;
    }
    let life = grant.not_after.saturating_sub(grant.not_before);
    // The owner renews first; admins step in an eighth of a life later.
    let half = age >= if owner { life / 2 } else { life / 2 + life / 8 };
    match grant.term {
        Term::Full => half,
        Term::Ephemeral => half && seen,
        Term::Trial => seen && age >= TRIAL,
    }
}

/// The numbers as runs of consecutive ones.
fn runs(numbers: &BTreeSet<u32>) -> Vec<super::record::Blocks> {
    let mut runs: Vec<super::record::Blocks> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.first.saturating_add(run.count) == *number => {
                run.count = run.count.saturating_add(1)
            }
            _ => runs.push(super::record::Blocks {
                first: *number,
                count: 1,
            }),
        }
    }
    runs
}
