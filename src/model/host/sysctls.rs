//! The sysctls that our links need, and those that clients of port maps need of other links.

use std::net::IpAddr;

use super::{Family, HostConfig, Observed, SysctlKey, TunConfig, WorkloadConfig, is_link_name};

/// One sysctl as it should be.
#[derive(Debug, Clone)]
pub(super) struct DesiredSysctl {
    pub key: SysctlKey,
    pub value: &'static str,
    /// It outlives our links: the former value is kept.
    pub keep: bool,
    /// The value that alone may be overwritten; where another stands, the sysctl is left as it is.
    pub only_over: Option<&'static str>,
}

fn own(key: String, value: &'static str) -> DesiredSysctl {
    DesiredSysctl {
        key,
        value,
        keep: false,
        only_over: None,
    }
}

fn lasting(key: String, value: &'static str) -> DesiredSysctl {
    DesiredSysctl {
        key,
        value,
        keep: true,
        only_over: None,
    }
}

/// IPv6 on a link of ours: on even where the namespace turned it off by default (container engines do), no router
/// advertisements, no link-local address (`addr_gen_mode` 1: nothing of ours needs one, and it would send MLD and
/// solicitations into the overlay).
pub(super) fn link_ipv6(link: &str) -> impl Iterator<Item = DesiredSysctl> + use<'_> {
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
fn link_forwarding(link: &str, observed: &Observed, ipv6: bool) -> Vec<DesiredSysctl> {
    let mut wants = vec![own(format!("net/ipv4/conf/{link}/forwarding"), "1")];
    if ipv6 && observed.ipv6 && observed.force_forwarding {
        wants.push(own(format!("net/ipv6/conf/{link}/force_forwarding"), "1"));
    }
    wants
}

pub(super) fn tun_sysctls(tun: &TunConfig, observed: &Observed) -> Vec<DesiredSysctl> {
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

/// What a TAP has beside a pair. The virtual machine behind it has the subnet's whole prefix on its link, as every guest can
/// take it, so this machine answers ARP for all of it, and at once. Its router of IPv6 is the link-local address of the TAP,
/// which nobody else can have there: it is not looked for first.
fn tap_sysctls(link: &str, ipv6: bool) -> Vec<DesiredSysctl> {
    let mut wants = vec![
        own(format!("net/ipv4/conf/{link}/proxy_arp"), "1"),
        own(format!("net/ipv4/neigh/{link}/proxy_delay"), "0"),
    ];
    if ipv6 {
        let all = [
            ("accept_dad", "0"),
            ("disable_ipv6", "0"),
            ("addr_gen_mode", "0"),
            ("accept_ra", "0"),
        ];
        wants.extend(all.map(|(name, value)| own(format!("net/ipv6/conf/{link}/{name}"), value)));
    }
    wants
}

/// The machine's end of a workload's link.
pub(super) fn workload_sysctls(
    workload: &WorkloadConfig,
    observed: &Observed,
) -> Vec<DesiredSysctl> {
    let ipv6 = observed.ipv6 && workload.addresses.iter().any(IpAddr::is_ipv6);
    // Strict: a workload may send from its own addresses only.
    let mut wants = vec![own(
        format!("net/ipv4/conf/{}/rp_filter", workload.host_link),
        "1",
    )];
    if workload.tap.is_some() {
        wants.extend(tap_sysctls(&workload.host_link, ipv6));
    } else if ipv6 {
        wants.extend(link_ipv6(&workload.host_link));
    }
    wants.extend(link_forwarding(&workload.host_link, observed, ipv6));
    wants
}

/// Sysctls that outlive our links: the links clients of port maps come in on must forward, and a kernel without
/// `force_forwarding` forwards IPv6 everywhere or nowhere. There a link that listens to router advertisements goes on
/// doing so (`accept_ra` 2).
pub(super) fn global_sysctls(desired: &HostConfig, observed: &Observed) -> Vec<DesiredSysctl> {
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
        wants.extend(observed.uplinks.keys().map(|link| DesiredSysctl {
            key: format!("net/ipv6/conf/{link}/accept_ra"),
            value: "2",
            keep: true,
            only_over: Some("1"),
        }));
        wants.push(lasting("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    wants
}
