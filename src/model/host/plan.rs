//! The pure difference between the desired and the observed state.
//!
//! Add before delete: what stays is never without its way, and removing the last address of a link takes its routes
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::desired::{DesiredLink, DesiredNamespace, alive, desired_namespaces};
use super::{
    Change, GSO_MAX_SIZE, HostConfig, Link, LinkSet, Namespace, NamespaceState, Observed,
    ResolvConf, WorkloadConfig, resolvers,
};

/// The changes that lead from what is to what should be; empty when nothing differs.
///
/// Objects that do not bear our mark are never in it, except as [`Change::Conflict`] where one has a name we need.
pub fn plan(desired: &HostConfig, observed: &Observed) -> Vec<Change> {
    let mut plan = Plan::default();
    let mut want = desired_namespaces(desired, observed);
    let empty = NamespaceState::default();
    let host = observed.namespaces.get(&Namespace::Host).unwrap_or(&empty);
    plan.adds.extend(
        observed
            .lost_switches()
            .map(|key| Change::ForgetSysctl { key: key.clone() }),
    );
    plan.make_links(desired, observed, host, &mut want);
    for (ns, state) in &want {
        plan.namespace(
            ns,
            state,
            observed.namespaces.get(ns).unwrap_or(&empty),
            observed,
        );
    }
    // Namespaces nothing is wanted in any more: only rules outlive a link there.
    for (ns, state) in &observed.namespaces {
        if !want.contains_key(ns) && !unreadable(ns, observed) {
            plan.namespace(ns, &DesiredNamespace::default(), state, observed);
        }
    }
    plan.resolvers(desired, observed);
    plan.delete_links(desired, host, want.get(&Namespace::Host));
    plan.restore_sysctls(observed, want.get(&Namespace::Host));
    plan.adds.extend(plan.deletes);
    plan.adds
}

fn unreadable(ns: &Namespace, observed: &Observed) -> bool {
    matches!(ns, Namespace::Netns(netns) if observed.unreadable.contains(netns))
}

#[derive(Default)]
struct Plan {
    adds: Vec<Change>,
    deletes: Vec<Change>,
    /// Links made by this plan: nothing observed holds for them.
    fresh: BTreeSet<(Namespace, String)>,
}

impl Plan {
    /// Makes the links that are missing; what cannot be made is taken out of the wanted state.
    fn make_links(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        host: &NamespaceState,
        want: &mut BTreeMap<Namespace, DesiredNamespace>,
    ) {
        for tun in desired
            .tuns
            .iter()
            .filter(|t| !host.links.contains_key(&t.name))
        {
            if host.foreign.contains(&tun.name) {
                self.refuse(&Namespace::Host, &tun.name, want);
            } else {
                self.adds.push(Change::OpenTun(tun.clone()));
                self.fresh.insert((Namespace::Host, tun.name.clone()));
            }
        }
        for workload in alive(desired, observed) {
            self.make_link(workload, observed, host, want);
        }
    }

    fn make_link(
        &mut self,
        workload: &WorkloadConfig,
        observed: &Observed,
        host: &NamespaceState,
        want: &mut BTreeMap<Namespace, DesiredNamespace>,
    ) {
        let inner_ns = match &workload.netns {
            Some(netns) => Namespace::Netns(netns.clone()),
            None => Namespace::Host,
        };
        let inner = observed.namespaces.get(&inner_ns);
        // Where the end is that waits for its engine is the engine's matter, and a TAP has no other end.
        let has_inner = workload.netns.is_none()
            || inner.is_some_and(|state| state.links.contains_key(&workload.inner_link));
        let outer = host.links.get(&workload.host_link);
        if outer.is_some() && has_inner {
            return;
        }
        let taken = [
            (
                &Namespace::Host,
                &workload.host_link,
                host.foreign.contains(&workload.host_link),
            ),
            (
                &inner_ns,
                &workload.inner_link,
                inner.is_some_and(|state| state.foreign.contains(&workload.inner_link)),
            ),
        ];
        if let Some((ns, name, _)) = taken.iter().find(|(.., taken)| *taken) {
            self.adds.push(Change::Conflict {
                ns: (*ns).clone(),
                link: (*name).clone(),
            });
            forget(&Namespace::Host, &workload.host_link, want);
            forget(&inner_ns, &workload.inner_link, want);
            return;
        }
        // Half a pair is of no use (its other end was moved away), and its name is needed: the one delete ahead of
        // an add.
        if let Some(link) = outer {
            self.adds.push(Change::DeleteLink {
                link: workload.host_link.clone(),
                name: link.name.clone(),
            });
        }
        let wanted = Box::new(workload.clone());
        self.adds.push(match workload.tap {
            Some(_) => Change::CreateTap(wanted),
            None => Change::CreateVeth(wanted),
        });
        self.fresh
            .insert((Namespace::Host, workload.host_link.clone()));
        self.fresh.insert((inner_ns, workload.inner_link.clone()));
    }

    fn refuse(
        &mut self,
        ns: &Namespace,
        link: &str,
        want: &mut BTreeMap<Namespace, DesiredNamespace>,
    ) {
        self.adds.push(Change::Conflict {
            ns: ns.clone(),
            link: link.to_owned(),
        });
        forget(ns, link, want);
    }

    /// Plans what is to change within one namespace.
    fn namespace(
        &mut self,
        ns: &Namespace,
        want: &DesiredNamespace,
        state: &NamespaceState,
        observed: &Observed,
    ) {
        for name in want.links.keys() {
            if let Some(link) = state
                .links
                .get(name)
                .filter(|l| l.name != *name && !self.is_fresh(ns, name))
            {
                self.adds.push(Change::Rename {
                    ns: ns.clone(),
                    from: link.name.clone(),
                    to: name.clone(),
                });
            }
        }
        self.sysctls(ns, want, state);
        for (name, link) in &want.links {
            let fresh = Link::default();
            let is = if self.is_fresh(ns, name) {
                &fresh
            } else {
                state.links.get(name).unwrap_or(&fresh)
            };
            self.link(ns, name, link, is);
        }
        self.routes(ns, want, state);
        for rule in want.rules.difference(&state.rules) {
            self.adds.push(Change::AddRule {
                ns: ns.clone(),
                rule: rule.clone(),
            });
        }
        let keep_rules = *ns == Namespace::Host && observed.table_shared;
        for rule in state.rules.difference(&want.rules).filter(|_| !keep_rules) {
            self.deletes.push(Change::DelRule {
                ns: ns.clone(),
                rule: rule.clone(),
            });
        }
    }

    fn is_fresh(&self, ns: &Namespace, link: &str) -> bool {
        self.fresh.contains(&(ns.clone(), link.to_owned()))
    }

    /// A sysctl of a fresh link is written without looking; one that does not exist elsewhere is not written at all.
    fn sysctls(&mut self, ns: &Namespace, want: &DesiredNamespace, state: &NamespaceState) {
        for sysctl in &want.sysctls {
            let fresh = sysctl
                .key
                .split('/')
                .nth(3)
                .is_some_and(|link| self.is_fresh(ns, link));
            let value = state.sysctls.get(&sysctl.key).map(String::as_str);
            let differs = match (fresh, sysctl.only_over) {
                (true, _) => true,
                (false, Some(over)) => value == Some(over),
                (false, None) => value != Some(sysctl.value),
            };
            if differs {
                self.adds.push(Change::SetSysctl {
                    ns: ns.clone(),
                    key: sysctl.key.clone(),
                    value: sysctl.value.to_owned(),
                    keep: sysctl.keep,
                });
            }
        }
    }

    fn link(&mut self, ns: &Namespace, name: &str, want: &DesiredLink, is: &Link) {
        let set = LinkSet {
            alias: (is.alias != want.alias).then(|| want.alias.clone()),
            mtu: (is.mtu != want.mtu).then_some(want.mtu),
            txqueuelen: want.txqueuelen.filter(|len| is.txqueuelen != *len),
            gso_max_size: (is.gso_max_size != GSO_MAX_SIZE).then_some(GSO_MAX_SIZE),
            mac: want.mac.filter(|mac| is.mac != Some(*mac)),
            up: !is.up,
        };
        let link = name.to_owned();
        if set != LinkSet::default() {
            self.adds.push(Change::SetLink {
                ns: ns.clone(),
                link: link.clone(),
                set,
            });
        }
        // A fresh one was made for its owner.
        let given = want.owner.filter(|owner| is.owner != Some(*owner));
        if let Some(owner) = given.filter(|_| !self.is_fresh(ns, name)) {
            let link = link.clone();
            self.adds.push(Change::SetOwner { link, owner });
        }
        for address in want.addresses.difference(&is.addresses) {
            self.adds.push(Change::AddAddress {
                ns: ns.clone(),
                link: link.clone(),
                address: *address,
            });
        }
        for (address, mac) in want
            .neighbours
            .iter()
            .filter(|(address, mac)| is.neighbours.get(address) != Some(mac))
        {
            let (address, mac) = (*address, *mac);
            self.adds.push(Change::SetNeighbour {
                ns: ns.clone(),
                link: link.clone(),
                address,
                mac,
            });
        }
        for address in is.addresses.difference(&want.addresses) {
            self.deletes.push(Change::DelAddress {
                ns: ns.clone(),
                link: link.clone(),
                address: *address,
            });
        }
        let stays = |address: &&IpAddr| want.neighbours.contains_key(address);
        for address in is.neighbours.keys().filter(|address| !stays(address)) {
            self.deletes.push(Change::DelNeighbour {
                ns: ns.clone(),
                link: link.clone(),
                address: *address,
            });
        }
    }

    fn routes(&mut self, ns: &Namespace, want: &DesiredNamespace, state: &NamespaceState) {
        let lives = |link: &str| {
            want.links.contains_key(link) && !self.fresh.contains(&(ns.clone(), link.to_owned()))
        };
        // Routes of a link that goes, or was made anew, went with it.
        let here: BTreeSet<_> = state.routes.iter().filter(|r| lives(&r.link)).collect();
        let mut missing: Vec<_> = want.routes.iter().filter(|r| !here.contains(r)).collect();
        // Next hops must be reachable when they are named.
        missing.sort_by_key(|r| r.gateway.is_some());
        let mut replaced = BTreeSet::new();
        for route in missing {
            let key = (route.table, route.destination);
            let ours = here.iter().any(|r| (r.table, r.destination) == key);
            if ours {
                replaced.insert(key);
            }
            // The route of an engine stands in its place: the same way, by another mark.
            let replace = ours || want.by_engine;
            self.adds.push(Change::SetRoute {
                ns: ns.clone(),
                route: route.clone(),
                replace,
            });
        }
        for route in here {
            if !want.routes.contains(route) && !replaced.contains(&(route.table, route.destination))
            {
                self.deletes.insert(
                    0,
                    Change::DelRoute {
                        ns: ns.clone(),
                        route: route.clone(),
                    },
                );
            }
        }
    }

    fn resolvers(&mut self, desired: &HostConfig, observed: &Observed) {
        let want = resolvers(desired, observed);
        for (path, resolver) in &want {
            let is = observed.resolvers.get(path);
            let foreign = is.is_some() && !observed.kept_resolvers.contains(path);
            if is != Some(&resolver.text) && !(resolver.create && foreign) {
                self.adds.push(Change::WriteResolver {
                    path: path.clone(),
                    text: resolver.text.clone(),
                });
            }
        }
        let stay = |path: &PathBuf| {
            want.contains_key(path)
                || desired.workloads.iter().any(|w| {
                    let file = match &w.resolv_conf {
                        ResolvConf::None => None,
                        ResolvConf::Create(file) | ResolvConf::Replace(file) => Some(file),
                    };
                    let unreadable = |netns| observed.unreadable.contains(netns);
                    w.netns.as_ref().is_some_and(unreadable) && file == Some(path)
                })
        };
        for path in observed.kept_resolvers.iter().filter(|path| !stay(path)) {
            self.deletes
                .push(Change::RestoreResolver { path: path.clone() });
        }
    }

    fn delete_links(
        &mut self,
        desired: &HostConfig,
        host: &NamespaceState,
        want: Option<&DesiredNamespace>,
    ) {
        for (key, link) in &host.links {
            if want.is_some_and(|want| want.links.contains_key(key)) {
                continue;
            }
            let (rests, is_up) = (desired.resting.contains(key) && link.carrier, link.up);
            let (link, name) = (key.clone(), link.name.clone());
            if rests {
                if is_up {
                    self.deletes.push(Change::RestLink { link, name });
                }
                continue;
            }
            let is_tun = host.links.get(key).is_some_and(|l| {
                l.mac.is_none() || l.alias == super::alias(&desired.instance, "tun", key)
            });
            self.deletes.push(if is_tun {
                Change::CloseTun { link, name }
            } else {
                Change::DeleteLink { link, name }
            });
        }
    }

    fn restore_sysctls(&mut self, observed: &Observed, want: Option<&DesiredNamespace>) {
        let stays = |key: &String| {
            want.is_some_and(|want| want.sysctls.iter().any(|s| s.keep && s.key == *key))
        };
        let lost: BTreeSet<&String> = observed.lost_switches().collect();
        for key in observed
            .kept_sysctls
            .keys()
            .filter(|key| !stays(key) && !lost.contains(key))
        {
            self.deletes
                .push(Change::RestoreSysctl { key: key.clone() });
        }
    }
}

/// Takes a link that cannot be made out of the wanted state.
fn forget(ns: &Namespace, link: &str, want: &mut BTreeMap<Namespace, DesiredNamespace>) {
    if let Some(state) = want.get_mut(ns) {
        state.links.remove(link);
        state.routes.retain(|r| r.link != link);
        state
            .sysctls
            .retain(|s| s.key.split('/').nth(3) != Some(link));
    }
}

#[cfg(test)]
mod tests;
