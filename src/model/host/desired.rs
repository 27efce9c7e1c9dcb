//! The desired state spelled out link by link, in the terms the kernel is observed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::sysctls::{DesiredSysctl, global_sysctls, link_ipv6, tun_sysctls, workload_sysctls};
use super::{
    Family, HostConfig, LAST_PRIORITY, Namespace, NamespaceState, NetnsRef, Observed, PRIORITY,
    Route, Rule, SysctlKey, TABLE, TX_QUEUE, TunConfig, WorkloadConfig, alias, forwarding,
    host_mac, inner_mac,
};

/// Table `main` of a workload's namespace.
const MAIN: u32 = 254;

/// One link as it should be.
#[derive(Debug, Clone)]
pub(super) struct DesiredLink {
    pub alias: String,
    pub mtu: u32,
    pub txqueuelen: Option<u32>,
    pub mac: Option<[u8; 6]>,
    /// The user who may open it, of a TAP.
    pub owner: Option<u32>,
    pub addresses: BTreeSet<IpAddr>,
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

/// One namespace as it should be.
#[derive(Debug, Clone, Default)]
pub(super) struct DesiredNamespace {
    pub links: BTreeMap<String, DesiredLink>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
    /// The sysctls, in the order they are to be written.
    pub sysctls: Vec<DesiredSysctl>,
    /// Whether an engine makes routes there, which ours take the place of.
    pub by_engine: bool,
}

/// Families the kernel speaks.
pub(super) struct Families {
    pub ipv6: bool,
}

impl Families {
    fn keep(&self, address: &IpAddr) -> bool {
        self.ipv6 || address.is_ipv4()
    }
}

/// Workloads whose namespace is alive and can be read.
pub(super) fn alive<'a>(
    desired: &'a HostConfig,
    observed: &'a Observed,
) -> impl Iterator<Item = &'a WorkloadConfig> {
    desired.workloads.iter().filter(|w| {
        !observed.dead.contains(&(w.subnet, w.name.clone()))
            && w.netns
                .as_ref()
                .is_none_or(|netns| !observed.unreadable.contains(netns))
    })
}

/// The whole desired state, namespace by namespace.
pub(super) fn desired_namespaces(
    desired: &HostConfig,
    observed: &Observed,
) -> BTreeMap<Namespace, DesiredNamespace> {
    let families = Families {
        ipv6: observed.ipv6,
    };
    let mut namespaces = BTreeMap::from([(Namespace::Host, DesiredNamespace::default())]);
    for workload in alive(desired, observed) {
        // An end that waits for its engine is not looked after: it came with the host end, and goes with it. What is behind a
        // TAP is a virtual machine's.
        let Some(netns) = &workload.netns else {
            continue;
        };
        let inner = desired_inner(desired, workload, &families);
        let state: &mut DesiredNamespace = namespaces
            .entry(Namespace::Netns(netns.clone()))
            .or_default();
        state.by_engine |= workload.by_engine;
        state.links.extend(inner.links);
        inner
            .routes
            .into_iter()
            .for_each(|route| add_route(state, route));
        state.rules.extend(inner.rules);
        state.sysctls.extend(inner.sysctls);
    }
    if let Some(host) = namespaces.get_mut(&Namespace::Host) {
        desired_host(host, desired, observed, &families);
    }
    for (ns, state) in &mut namespaces {
        if let Some(seen) = observed.namespaces.get(ns) {
            let stay = observed.stay.contains(ns);
            state.rules = std::mem::take(&mut state.rules)
                .into_iter()
                .map(|rule| in_front(rule, seen, stay))
                .collect();
        }
    }
    namespaces
}

/// A rule of ours that is to be first, before the first of any other program: whoever adds a rule without a priority gets
/// one before ours, and a full-tunnel VPN does so. Never before the rule for the machine's own addresses; where there is no
/// room between the two, or the rules are to `stay`, the other one is a [`finding`](super::findings).
fn in_front(rule: Rule, seen: &NamespaceState, stay: bool) -> Rule {
    if rule.priority != PRIORITY {
        return rule;
    }
    let now = seen
        .rules
        .iter()
        .filter(|old| old.is_same_as(&rule))
        .map(|old| old.priority)
        .min();
    let before = seen
        .ahead
        .get(&rule.family)
        .filter(|ahead| ahead.priority <= PRIORITY);
    let priority = match (before, now) {
        (_, Some(now)) if stay => now,
        (Some(ahead), _) if ahead.priority > ahead.local => ahead.priority - 1,
        _ => PRIORITY,
    };
    Rule { priority, ..rule }
}

fn desired_host(
    host: &mut DesiredNamespace,
    desired: &HostConfig,
    observed: &Observed,
    families: &Families,
) {
    host.sysctls.extend(global_sysctls(desired, observed));
    for tun in &desired.tuns {
        host.links
            .insert(tun.name.clone(), desired_tun(desired, tun, families));
        host.sysctls.extend(tun_sysctls(tun, observed));
        for prefix in desired
            .overlay(tun)
            .into_iter()
            .filter(|p| families.keep(&p.addr()))
        {
            let source = of_family(&tun.addresses, &prefix.addr());
            add_route(host, host_route(prefix.trunc(), &tun.name, source));
        }
    }
    for workload in alive(desired, observed) {
        host.links.insert(
            workload.host_link.clone(),
            desired_host_end(desired, workload, families),
        );
        host.sysctls.extend(workload_sysctls(workload, observed));
        for address in workload.addresses.iter().filter(|a| families.keep(a)) {
            let source = of_family(&workload.gateways, address);
            let destination = IpNet::from(*address);
            add_route(host, host_route(destination, &workload.host_link, source));
        }
    }
    keep_unreadable(host, desired, observed, families);
    host.rules.extend(host_rules(desired, families));
}

/// A route of the host's table, to what is on the link itself.
fn host_route(destination: IpNet, link: &str, source: Option<IpAddr>) -> Route {
    Route {
        table: TABLE,
        destination,
        link: link.to_owned(),
        gateway: None,
        source,
    }
}

/// A namespace that cannot be read keeps what it has: the pair, its routes.
fn keep_unreadable(
    host: &mut DesiredNamespace,
    desired: &HostConfig,
    observed: &Observed,
    families: &Families,
) {
    let Some(seen) = observed.namespaces.get(&Namespace::Host) else {
        return;
    };
    for workload in desired.workloads.iter().filter(|w| {
        w.netns
            .as_ref()
            .is_some_and(|netns| observed.unreadable.contains(netns))
    }) {
        if seen.links.contains_key(&workload.host_link) {
            host.links.insert(
                workload.host_link.clone(),
                desired_host_end(desired, workload, families),
            );
        }
        let routes = seen.routes.iter().filter(|r| r.link == workload.host_link);
        host.routes.extend(routes.cloned());
    }
}

/// The rules that lead into the host's table, one for each family. Another daemon's routes in the table need them as well.
fn host_rules(desired: &HostConfig, families: &Families) -> impl Iterator<Item = Rule> {
    let any = !desired.tuns.is_empty() || !desired.workloads.is_empty();
    let families = [Some(Family::V4), families.ipv6.then_some(Family::V6)];
    families
        .into_iter()
        .flatten()
        .filter(move |_| any)
        .map(|family| Rule {
            family,
            source: None,
            table: TABLE,
            priority: PRIORITY,
        })
}

/// A table has one route to a destination. Two workloads of one subnet in one namespace: what bears no source yet goes
/// along the first, and each answers along its own by its rule.
fn add_route(state: &mut DesiredNamespace, route: Route) {
    if !state
        .routes
        .iter()
        .any(|r| (r.table, r.destination) == (route.table, route.destination))
    {
        state.routes.insert(route);
    }
}

fn desired_tun(desired: &HostConfig, tun: &TunConfig, families: &Families) -> DesiredLink {
    DesiredLink {
        alias: alias(&desired.instance, "tun", &tun.name),
        mtu: u32::from(tun.mtu),
        txqueuelen: Some(TX_QUEUE),
        mac: None,
        owner: None,
        addresses: tun
            .addresses
            .iter()
            .filter(|a| families.keep(a))
            .copied()
            .collect(),
        neighbours: BTreeMap::new(),
    }
}

/// The host end of a pair, or the TAP: no address of its own, the workload entered as a permanent neighbour so that nobody can answer for
/// it.
fn desired_host_end(
    desired: &HostConfig,
    workload: &WorkloadConfig,
    families: &Families,
) -> DesiredLink {
    let inner = workload
        .mac
        .unwrap_or_else(|| inner_mac(&desired.instance, &workload.host_link));
    let role = if workload.tap.is_some() {
        "tap"
    } else {
        "veth"
    };
    DesiredLink {
        alias: alias(&desired.instance, role, &workload.host_link),
        mtu: u32::from(workload.mtu),
        txqueuelen: None,
        mac: Some(host_mac(&desired.instance, &workload.host_link)),
        owner: workload.tap,
        addresses: BTreeSet::new(),
        neighbours: workload
            .addresses
            .iter()
            .filter(|a| families.keep(a))
            .map(|a| (*a, inner))
            .collect(),
    }
}

/// The workload's end, and the routes, rules and sysctls there.
fn desired_inner(
    desired: &HostConfig,
    workload: &WorkloadConfig,
    families: &Families,
) -> DesiredNamespace {
    let own: Vec<IpAddr> = workload
        .addresses
        .iter()
        .filter(|a| families.keep(a))
        .copied()
        .collect();
    let gateways: Vec<IpAddr> = workload
        .gateways
        .iter()
        .filter(|g| of_family(&own, g).is_some())
        .copied()
        .collect();
    let sysctls = if families.ipv6 && own.iter().any(IpAddr::is_ipv6) {
        link_ipv6(&workload.inner_link).collect()
    } else {
        Vec::new()
    };
    DesiredNamespace {
        links: BTreeMap::from([(
            workload.inner_link.clone(),
            desired_inner_link(desired, workload, &own, &gateways),
        )]),
        routes: inner_routes(workload, &own, &gateways),
        rules: inner_rules(workload, &own, &gateways),
        sysctls,
        by_engine: workload.by_engine,
    }
}

/// The workload's end, with the gateways entered as permanent neighbours.
fn desired_inner_link(
    desired: &HostConfig,
    workload: &WorkloadConfig,
    own: &[IpAddr],
    gateways: &[IpAddr],
) -> DesiredLink {
    let gateway_mac = host_mac(&desired.instance, &workload.host_link);
    let mac = workload
        .mac
        .unwrap_or_else(|| inner_mac(&desired.instance, &workload.host_link));
    DesiredLink {
        alias: alias(&desired.instance, "inner", &workload.inner_link),
        mtu: u32::from(workload.mtu),
        txqueuelen: None,
        mac: Some(mac),
        owner: None,
        addresses: own.iter().copied().collect(),
        neighbours: gateways.iter().map(|g| (*g, gateway_mac)).collect(),
    }
}

/// The routes inside a workload's namespace.
///
/// The subnet goes through the gateway in table `main`. What bears the workload's overlay address as its source goes
/// there whatever its destination: clients of a port map are outside the subnet and must be answered along the way
/// they came.
fn inner_routes(workload: &WorkloadConfig, own: &[IpAddr], gateways: &[IpAddr]) -> BTreeSet<Route> {
    let table = inner_table(&workload.inner_link);
    let route = |table, destination: IpNet, gateway| Route {
        table,
        destination,
        link: workload.inner_link.clone(),
        gateway,
        source: of_family(own, &destination.addr()),
    };
    let mut routes: BTreeSet<Route> = gateways
        .iter()
        .map(|g| route(MAIN, IpNet::from(*g), None))
        .collect();
    for prefix in &workload.prefixes {
        if let Some(gateway) = of_family(gateways, &prefix.addr()) {
            routes.insert(route(MAIN, prefix.trunc(), Some(gateway)));
        }
    }
    for gateway in first_of_each_family(gateways) {
        let default = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        if let Ok(default) = default.parse::<IpNet>() {
            // Each table resolves its own next hops.
            routes.insert(route(table, IpNet::from(*gateway), None));
            routes.insert(route(table, default, Some(*gateway)));
        }
    }
    routes
}

/// The rules that lead into the table of the workload's link.
fn inner_rules(workload: &WorkloadConfig, own: &[IpAddr], gateways: &[IpAddr]) -> BTreeSet<Rule> {
    let table = inner_table(&workload.inner_link);
    let mut rules = BTreeSet::new();
    for gateway in first_of_each_family(gateways) {
        let family = Family::of(gateway);
        let of_own = own.iter().filter(|a| Family::of(a) == family);
        rules.extend(of_own.map(|address| Rule {
            family,
            source: Some(*address),
            table,
            priority: PRIORITY,
        }));
        // A server bound to every address answers before it has chosen one: where the namespace knows no other way to
        // a client of a port map, this is it.
        rules.insert(Rule {
            family,
            source: None,
            table,
            priority: LAST_PRIORITY,
        });
    }
    rules
}

/// The first address of IPv4 and the first of IPv6, as far as there are any.
fn first_of_each_family(addresses: &[IpAddr]) -> impl Iterator<Item = &IpAddr> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| addresses.iter().find(|a| Family::of(a) == family))
}

/// Each link in a workload's namespace has a table of its own: 4110 for `byway0`, 4111 for `byway1`…, one by its name for a
/// link that an engine named.
pub fn inner_table(inner_link: &str) -> u32 {
    let number = inner_link
        .strip_prefix("byway")
        .and_then(|digits| digits.parse::<u32>().ok())
        .filter(|n| *n < 1000);
    let hash = || {
        inner_link
            .bytes()
            .fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)))
            % 1000
            + 1000
    };
    TABLE + number.unwrap_or_else(hash)
}

/// The first address of the same family.
fn of_family(addresses: &[IpAddr], like: &IpAddr) -> Option<IpAddr> {
    addresses
        .iter()
        .find(|a| a.is_ipv4() == like.is_ipv4())
        .copied()
}

/// The sysctls whose values `plan` needs, namespace by namespace.
pub fn sysctl_keys(
    desired: &HostConfig,
    observed: &Observed,
) -> BTreeMap<Namespace, BTreeSet<SysctlKey>> {
    let keys = |state: DesiredNamespace| state.sysctls.into_iter().map(|want| want.key).collect();
    let mut all: BTreeMap<Namespace, BTreeSet<SysctlKey>> = desired_namespaces(desired, observed)
        .into_iter()
        .map(|(ns, state)| (ns, keys(state)))
        .collect();
    all.entry(Namespace::Host)
        .or_default()
        .extend(forwarding::SWITCHES.map(str::to_owned));
    all
}

impl HostConfig {
    /// The namespaces the desired workloads live in, each once.
    pub fn namespaces(&self) -> BTreeSet<&NetnsRef> {
        self.workloads
            .iter()
            .filter_map(|w| w.netns.as_ref())
            .collect()
    }
}
