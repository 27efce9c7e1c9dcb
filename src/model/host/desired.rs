//! The desired state spelled out link by link, in the terms the kernel is observed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{
    Family, Former, HostConfig, LAST_PRIORITY, Namespace, NamespaceState, NetnsRef, Observed,
    PRIORITY, ResolvConf, Route, Rule, Server, SysctlKey, TABLE, TX_QUEUE, TunConfig,
    WorkloadConfig, alias, forwarding, host_mac, inner_mac, is_link_name,
};

/// Table `main` of a workload's namespace.
const MAIN: u32 = 254;

/// One link as it should be.
#[derive(Debug, Clone)]
pub(super) struct LinkWant {
    pub alias: String,
    pub mtu: u32,
    pub txqueuelen: Option<u32>,
    pub mac: Option<[u8; 6]>,
    pub addresses: BTreeSet<IpAddr>,
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

/// One sysctl as it should be.
#[derive(Debug, Clone)]
pub(super) struct SysctlWant {
    pub key: SysctlKey,
    pub value: &'static str,
    /// It outlives our links: the former value is kept.
    pub keep: bool,
    /// Written only over this value.
    pub only_over: Option<&'static str>,
}

/// One namespace as it should be.
#[derive(Debug, Clone, Default)]
pub(super) struct NamespaceWant {
    pub links: BTreeMap<String, LinkWant>,
    pub routes: BTreeSet<Route>,
    pub rules: BTreeSet<Rule>,
    /// In the order they are to be written.
    pub sysctls: Vec<SysctlWant>,
}

/// A resolver file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Whether it may only be made, never written over somebody else's.
    pub create: bool,
    /// Its whole text.
    pub text: String,
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
            && !observed.unreadable.contains(&w.netns)
    })
}

/// The whole desired state, namespace by namespace.
pub(super) fn wanted(
    desired: &HostConfig,
    observed: &Observed,
) -> BTreeMap<Namespace, NamespaceWant> {
    let families = Families {
        ipv6: observed.ipv6,
    };
    let mut places = BTreeMap::from([(Namespace::Host, NamespaceWant::default())]);
    for workload in alive(desired, observed) {
        let inner = inner_want(desired, workload, &families);
        let scene: &mut NamespaceWant = places
            .entry(Namespace::Netns(workload.netns.clone()))
            .or_default();
        scene.links.extend(inner.links);
        inner
            .routes
            .into_iter()
            .for_each(|route| add_route(scene, route));
        scene.rules.extend(inner.rules);
        scene.sysctls.extend(inner.sysctls);
    }
    if let Some(host) = places.get_mut(&Namespace::Host) {
        host_want(host, desired, observed, &families);
    }
    for (place, scene) in &mut places {
        if let Some(seen) = observed.places.get(place) {
            let stay = observed.stay.contains(place);
            scene.rules = std::mem::take(&mut scene.rules)
                .into_iter()
                .map(|rule| in_front(rule, seen, stay))
                .collect();
        }
    }
    places
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

fn host_want(
    host: &mut NamespaceWant,
    desired: &HostConfig,
    observed: &Observed,
    families: &Families,
) {
    host.sysctls.extend(global_sysctls(desired, observed));
    for tun in &desired.tuns {
        host.links
            .insert(tun.name.clone(), tun_want(desired, tun, families));
        host.sysctls.extend(tun_sysctls(tun, observed));
        for prefix in desired
            .overlay(tun)
            .into_iter()
            .filter(|p| families.keep(&p.addr()))
        {
            let source = of_family(&tun.addresses, &prefix.addr());
            let (link, destination) = (tun.name.clone(), prefix.trunc());
            add_route(
                host,
                Route {
                    table: TABLE,
                    destination,
                    link,
                    gateway: None,
                    source,
                },
            );
        }
    }
    for workload in alive(desired, observed) {
        host.links.insert(
            workload.host_link.clone(),
            veth_want(desired, workload, families),
        );
        host.sysctls.extend(veth_sysctls(workload, observed));
        for address in workload.addresses.iter().filter(|a| families.keep(a)) {
            let source = of_family(&workload.gateways, address);
            let (link, destination) = (workload.host_link.clone(), IpNet::from(*address));
            add_route(
                host,
                Route {
                    table: TABLE,
                    destination,
                    link,
                    gateway: None,
                    source,
                },
            );
        }
    }
    // A namespace that cannot be read keeps what it has: the pair, its routes.
    if let Some(scene) = observed.places.get(&Namespace::Host) {
        for workload in desired
            .workloads
            .iter()
            .filter(|w| observed.unreadable.contains(&w.netns))
        {
            if scene.links.contains_key(&workload.host_link) {
                host.links.insert(
                    workload.host_link.clone(),
                    veth_want(desired, workload, families),
                );
            }
            host.routes.extend(
                scene
                    .routes
                    .iter()
                    .filter(|r| r.link == workload.host_link)
                    .cloned(),
            );
        }
    }
    let any = !desired.tuns.is_empty() || !desired.workloads.is_empty();
    // Another daemon's routes in the table need the rules as well.
    let families = [Some(Family::V4), families.ipv6.then_some(Family::V6)];
    host.rules.extend(
        families
            .into_iter()
            .flatten()
            .filter(|_| any)
            .map(|family| Rule {
                family,
                source: None,
                table: TABLE,
                priority: PRIORITY,
            }),
    );
}

/// A table has one route to a destination. Two workloads of one subnet in one namespace: what bears no source yet goes
/// along the first, and each answers along its own by its rule.
fn add_route(scene: &mut NamespaceWant, route: Route) {
    if !scene
        .routes
        .iter()
        .any(|r| (r.table, r.destination) == (route.table, route.destination))
    {
        scene.routes.insert(route);
    }
}

fn tun_want(desired: &HostConfig, tun: &TunConfig, families: &Families) -> LinkWant {
    LinkWant {
        alias: alias(&desired.instance, "tun", &tun.name),
        mtu: u32::from(tun.mtu),
        txqueuelen: Some(TX_QUEUE),
        mac: None,
        addresses: tun
            .addresses
            .iter()
            .filter(|a| families.keep(a))
            .copied()
            .collect(),
        neighbours: BTreeMap::new(),
    }
}

/// The host end: no address of its own, the workload entered as a permanent neighbour so that nobody can answer for
/// it.
fn veth_want(desired: &HostConfig, workload: &WorkloadConfig, families: &Families) -> LinkWant {
    let inner = workload
        .mac
        .unwrap_or_else(|| inner_mac(&desired.instance, &workload.host_link));
    LinkWant {
        alias: alias(&desired.instance, "veth", &workload.host_link),
        mtu: u32::from(workload.mtu),
        txqueuelen: None,
        mac: Some(host_mac(&desired.instance, &workload.host_link)),
        addresses: BTreeSet::new(),
        neighbours: workload
            .addresses
            .iter()
            .filter(|a| families.keep(a))
            .map(|a| (*a, inner))
            .collect(),
    }
}

/// The workload's end and the routes there.
///
/// The subnet goes through the gateway in table `main`. What bears the workload's overlay address as its source goes
/// there whatever its destination: clients of a port map are outside the subnet and must be answered along the way
/// they came.
fn inner_want(
    desired: &HostConfig,
    workload: &WorkloadConfig,
    families: &Families,
) -> NamespaceWant {
    let gateway_mac = host_mac(&desired.instance, &workload.host_link);
    let addresses: BTreeSet<IpAddr> = workload
        .addresses
        .iter()
        .filter(|a| families.keep(a))
        .copied()
        .collect();
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
    let link = LinkWant {
        alias: alias(&desired.instance, "inner", &workload.inner_link),
        mtu: u32::from(workload.mtu),
        txqueuelen: None,
        mac: Some(
            workload
                .mac
                .unwrap_or_else(|| inner_mac(&desired.instance, &workload.host_link)),
        ),
        addresses,
        neighbours: gateways.iter().map(|g| (*g, gateway_mac)).collect(),
    };
    let table = inner_table(&workload.inner_link);
    let route = |table, destination: IpNet, gateway| Route {
        table,
        destination,
        link: workload.inner_link.clone(),
        gateway,
        source: of_family(&own, &destination.addr()),
    };
    let mut routes: BTreeSet<Route> = gateways
        .iter()
        .map(|g| route(MAIN, IpNet::from(*g), None))
        .collect();
    for prefix in &workload.prefixes {
        if let Some(gateway) = of_family(&gateways, &prefix.addr()) {
            routes.insert(route(MAIN, prefix.trunc(), Some(gateway)));
        }
    }
    let mut rules = BTreeSet::new();
    for gateway in [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|f| gateways.iter().find(|g| Family::of(g) == f))
    {
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
        rules.extend(
            own.iter()
                .filter(|a| Family::of(a) == Family::of(gateway))
                .map(|address| Rule {
                    family: Family::of(address),
                    source: Some(*address),
                    table,
                    priority: PRIORITY,
                }),
        );
        // A server bound to every address answers before it has chosen one: where the namespace knows no other way to
        // a client of a port map, this is it.
        rules.insert(Rule {
            family: Family::of(gateway),
            source: None,
            table,
            priority: LAST_PRIORITY,
        });
    }
    let sysctls = if families.ipv6 && own.iter().any(IpAddr::is_ipv6) {
        link_ipv6(&workload.inner_link).collect()
    } else {
        Vec::new()
    };
    NamespaceWant {
        links: BTreeMap::from([(workload.inner_link.clone(), link)]),
        routes,
        rules,
        sysctls,
    }
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

fn own(key: String, value: &'static str) -> SysctlWant {
    SysctlWant {
        key,
        value,
        keep: false,
        only_over: None,
    }
}

fn lasting(key: String, value: &'static str) -> SysctlWant {
    SysctlWant {
        key,
        value,
        keep: true,
        only_over: None,
    }
}

/// IPv6 on a link of ours: on even where the namespace turned it off by default (container engines do), no router
/// advertisements, no link-local address (`addr_gen_mode` 1: nothing of ours needs one, and it would send MLD and
/// solicitations into the overlay).
fn link_ipv6(link: &str) -> impl Iterator<Item = SysctlWant> + use<'_> {
    [
        ("disable_ipv6", "0"),
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
    ]
    .into_iter()
    .map(move |(name, value)| own(format!("net/ipv6/conf/{link}/{name}"), value))
}

/// Forwarding from a link of ours. Linux decides by the link a packet came in on; for IPv6 `force_forwarding` alone
/// is enough, and without it only `conf.all.forwarding` counts.
fn link_forwarding(link: &str, observed: &Observed, ipv6: bool) -> Vec<SysctlWant> {
    let mut wants = vec![own(format!("net/ipv4/conf/{link}/forwarding"), "1")];
    if ipv6 && observed.ipv6 && observed.force_forwarding {
        wants.push(own(format!("net/ipv6/conf/{link}/force_forwarding"), "1"));
    }
    wants
}

fn tun_sysctls(tun: &TunConfig, observed: &Observed) -> Vec<SysctlWant> {
    let ipv6 = tun.addresses.iter().any(IpAddr::is_ipv6);
    // Loose: what a peer may send is checked against its leases before it is written to the TUN.
    let mut wants = vec![own(format!("net/ipv4/conf/{}/rp_filter", tun.name), "2")];
    if ipv6 && observed.ipv6 {
        wants.extend(link_ipv6(&tun.name));
    }
    // Always: what comes in for this machine may be sent on by rules of other programs, and must be answered where it
    // is refused. The ruleset lets pass what was asked for.
    wants.extend(link_forwarding(&tun.name, observed, ipv6));
    wants
}

fn veth_sysctls(workload: &WorkloadConfig, observed: &Observed) -> Vec<SysctlWant> {
    let ipv6 = workload.addresses.iter().any(IpAddr::is_ipv6);
    // Strict: a workload may send from its own addresses only.
    let mut wants = vec![own(
        format!("net/ipv4/conf/{}/rp_filter", workload.host_link),
        "1",
    )];
    if ipv6 && observed.ipv6 {
        wants.extend(link_ipv6(&workload.host_link));
    }
    wants.extend(link_forwarding(&workload.host_link, observed, ipv6));
    wants
}

/// Sysctls that outlive our links: the links clients of port maps come in on must forward, and a kernel without
/// `force_forwarding` forwards IPv6 everywhere or nowhere. There a link that listens to router advertisements goes on
/// doing so (`accept_ra` 2).
fn global_sysctls(desired: &HostConfig, observed: &Observed) -> Vec<SysctlWant> {
    let mut wants = Vec::new();
    for (link, addresses) in observed
        .uplinks
        .iter()
        .filter(|(link, _)| is_link_name(link))
    {
        let takes = |family: Family| {
            desired.maps.iter().any(|map| {
                map.target.is_some_and(|t| Family::of(&t) == family)
                    && !map.listen.is_loopback()
                    && Family::of(&map.listen) == family
                    && addresses.iter().any(|a| {
                        Family::of(a) == family && (map.listen.is_unspecified() || map.listen == *a)
                    })
            })
        };
        if takes(Family::V4) {
            wants.push(lasting(format!("net/ipv4/conf/{link}/forwarding"), "1"));
        }
        if observed.ipv6 && observed.force_forwarding && takes(Family::V6) {
            wants.push(lasting(
                format!("net/ipv6/conf/{link}/force_forwarding"),
                "1",
            ));
        }
    }
    let forwards_v6 = desired
        .workloads
        .iter()
        .flat_map(|w| &w.addresses)
        .any(IpAddr::is_ipv6)
        || desired
            .maps
            .iter()
            .filter_map(|m| m.target)
            .any(|t| t.is_ipv6());
    if observed.ipv6 && !observed.force_forwarding && forwards_v6 {
        wants.extend(observed.uplinks.keys().map(|link| SysctlWant {
            key: format!("net/ipv6/conf/{link}/accept_ra"),
            value: "2",
            keep: true,
            only_over: Some("1"),
        }));
        wants.push(lasting("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    wants
}

/// The sysctls whose values `plan` needs, namespace by namespace.
pub fn sysctl_keys(
    desired: &HostConfig,
    observed: &Observed,
) -> BTreeMap<Namespace, BTreeSet<SysctlKey>> {
    let keys = |scene: NamespaceWant| scene.sysctls.into_iter().map(|want| want.key).collect();
    let mut all: BTreeMap<Namespace, BTreeSet<SysctlKey>> = wanted(desired, observed)
        .into_iter()
        .map(|(place, scene)| (place, keys(scene)))
        .collect();
    all.entry(Namespace::Host)
        .or_default()
        .extend(forwarding::SWITCHES.map(str::to_owned));
    all
}

/// The resolver files of the workloads that are alive, one text for all workloads that share a file.
///
/// Only our own servers are named: a resolver that asks all of its servers at once would otherwise believe a foreign one
/// that does not know our names. Those that were named before are asked by ours ([`Former::servers`]); the domains that
/// were searched are searched behind the subnets', and options stay.
pub fn resolvers(desired: &HostConfig, observed: &Observed) -> BTreeMap<PathBuf, Resolver> {
    let mut files: BTreeMap<PathBuf, (bool, Vec<String>, Vec<IpAddr>)> = BTreeMap::new();
    for workload in alive(desired, observed) {
        let (path, create) = match &workload.resolv_conf {
            ResolvConf::None => continue,
            ResolvConf::Create(path) => (path, true),
            ResolvConf::Replace(path) => (path, false),
        };
        let (_, search, servers) =
            files
                .entry(path.clone())
                .or_insert((create, Vec::new(), Vec::new()));
        if !search.contains(&workload.search) {
            search.push(workload.search.clone());
        }
        // Where no socket of IPv6 is to be had, nobody answers there.
        let answered = |server: &&IpAddr| server.is_ipv4() || !observed.no_ipv6_sockets;
        servers.extend(workload.gateways.iter().filter(answered));
    }
    let text =
        |(path, (create, mut search, servers)): (PathBuf, (bool, Vec<String>, Vec<IpAddr>))| {
            let former = observed
                .formers
                .get(&path)
                .map(|text| Former::parse(text))
                .unwrap_or_default();
            for domain in former.search.into_iter().filter(|domain| domain != ".") {
                if !search.contains(&domain) {
                    search.push(domain);
                }
            }
            (path, resolver(create, &search, servers, &former.options))
        };
    files.into_iter().map(text).collect()
}

/// Whom the files that are rewritten asked before, and who is still asked behind us.
pub fn former_servers(desired: &HostConfig, observed: &Observed) -> BTreeMap<PathBuf, Vec<Server>> {
    let replaced = alive(desired, observed).filter_map(|workload| match &workload.resolv_conf {
        ResolvConf::Replace(path) => Some(path),
        ResolvConf::None | ResolvConf::Create(_) => None,
    });
    replaced
        .filter_map(|path| {
            Some((
                path.clone(),
                Former::parse(observed.formers.get(path)?).servers,
            ))
        })
        .filter(|(_, servers)| !servers.is_empty())
        .collect()
}

fn resolver(
    create: bool,
    search: &[String],
    mut servers: Vec<IpAddr>,
    options: &[String],
) -> Resolver {
    servers.sort_by_key(IpAddr::is_ipv6);
    servers.dedup();
    // MAXNS of resolv.conf(5).
    let servers: String = servers
        .iter()
        .take(3)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let options = if options.is_empty() {
        String::new()
    } else {
        format!("options {}\n", options.join(" "))
    };
    Resolver {
        create,
        text: format!(
            "# Written by byway.\nsearch {}\n{servers}{options}",
            search.join(" ")
        ),
    }
}

impl HostConfig {
    /// The namespaces the desired workloads live in, each once.
    pub fn namespaces(&self) -> BTreeSet<&NetnsRef> {
        self.workloads.iter().map(|w| &w.netns).collect()
    }
}
