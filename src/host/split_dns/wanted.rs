//! What the host's resolver is to be told of each subnet, from the View.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::view::View;

/// Domains that one link may have: systemd-resolved takes 256, and a prefix just above a label's border has 128.
const MOST_DOMAINS: usize = 200;

/// One subnet as the host's resolver is told of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkNames {
    /// The link of the subnet; what is set for it goes with it.
    pub link: String,
    /// Our addresses in the subnet, where names are answered on port 53. Never empty.
    pub servers: Vec<IpAddr>,
    /// The subnet's zone first, `lab.internal`, then its reverse zones; no last dots.
    pub domains: Vec<String>,
}

impl LinkNames {
    /// The subnet's zone: `lab.internal`.
    pub fn zone(&self) -> &str {
        self.domains.first().map_or("", String::as_str)
    }
}

/// Every subnet that is up, in the order of their IDs. One without an address of ours has nobody to ask.
pub(super) fn wanted(view: &View) -> Vec<LinkNames> {
    let up = view.subnets.values().filter(|s| !s.addresses.is_empty());
    up.map(|subnet| {
        let zone = std::iter::once(subnet.zone.origin.clone());
        let reverse = subnet.zone.prefixes.iter().flat_map(reverse_zones);
        LinkNames {
            link: subnet.interface.clone(),
            servers: subnet.addresses.clone(),
            domains: zone.chain(reverse).take(MOST_DOMAINS).collect(),
        }
    })
    .collect()
}

/// The reverse zones that make up a prefix: one where it ends with a label, else all of those below it.
fn reverse_zones(prefix: &IpNet) -> Vec<String> {
    let step: u8 = if prefix.addr().is_ipv4() { 8 } else { 4 };
    let length = prefix.prefix_len().div_ceil(step).saturating_mul(step);
    // The whole tree belongs to nobody.
    if length == 0 {
        return Vec::new();
    }
    let zones = prefix.subnets(length).into_iter().flatten();
    zones
        .map(|zone| reverse_zone(zone.addr(), length))
        .collect()
}

/// The reverse zone of the first `length` bits of an address, whole labels.
fn reverse_zone(address: IpAddr, length: u8) -> String {
    let (labels, tree): (Vec<String>, _) = match address {
        IpAddr::V4(a) => (a.octets().iter().map(u8::to_string).collect(), "in-addr"),
        IpAddr::V6(a) => {
            let nibbles = a.octets().into_iter().flat_map(|o| [o >> 4, o & 15]);
            (nibbles.map(|n| format!("{n:x}")).collect(), "ip6")
        }
    };
    let step = if address.is_ipv4() { 8 } else { 4 };
    let mut zone = String::new();
    for label in labels.iter().take(usize::from(length / step)).rev() {
        zone.push_str(label);
        zone.push('.');
    }
    zone + tree + ".arpa"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(prefix: &str) -> Vec<String> {
        reverse_zones(&prefix.parse().unwrap())
    }

    #[test]
    fn a_prefix_is_covered_by_its_reverse_zones_and_nothing_else_is() {
        assert_eq!(zones("10.77.0.0/16"), ["77.10.in-addr.arpa"]);
        assert_eq!(
            zones("10.76.0.0/15"),
            ["76.10.in-addr.arpa", "77.10.in-addr.arpa"]
        );
        assert_eq!(zones("10.7.7.5/32"), ["5.7.7.10.in-addr.arpa"]);
        assert_eq!(zones("10.7.7.128/25").len(), 128);
        assert_eq!(zones("fd7a:31c0::/32"), ["0.c.1.3.a.7.d.f.ip6.arpa"]);
        assert_eq!(zones("fd7a::/30").len(), 4);
        assert_eq!(zones("0.0.0.0/0"), [""; 0]);
    }
}
