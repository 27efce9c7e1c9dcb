//! A network of the machine's own inside the pool of a subnet: it came later, since a subnet that overlaps one is refused.
//!
//! What a member holds stays in the subnet: whoever gives this machine an address must not get at packets for members
//! that way. What nobody holds is left to the other network, which would be cut off otherwise.

use ipnet::IpNet;

use super::{HostConfig, TunConfig};

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

impl HostConfig {
    /// What of a subnet's prefixes is routed to its TUN: all of it, but for what nobody holds of the networks that this
    /// machine is connected to.
    pub fn overlay(&self, tun: &TunConfig) -> Vec<IpNet> {
        let mut parts: Vec<IpNet> = tun.prefixes.iter().map(IpNet::trunc).collect();
        for (_, network, _) in self.overlaps(tun) {
            // Another network may have left a part of it over.
            parts = parts
                .iter()
                .flat_map(|part| without(*part, *network))
                .collect();
        }
        for held in tun.held.iter().map(IpNet::trunc) {
            if !parts.iter().any(|part| part.contains(&held)) {
                parts.push(held);
            }
        }
        parts.retain(|part| tun.prefixes.iter().any(|prefix| prefix.contains(part)));
        IpNet::aggregate(&parts)
    }

    /// The prefixes of a subnet that a connected network overlaps, with that network and its link.
    pub(super) fn overlaps<'a>(
        &'a self,
        tun: &'a TunConfig,
    ) -> impl Iterator<Item = (&'a IpNet, &'a IpNet, &'a String)> {
        self.connected.iter().filter_map(|(network, link)| {
            let prefix = tun
                .prefixes
                .iter()
                .find(|prefix| overlap(prefix, network))?;
            Some((prefix, network, link))
        })
    }
}

impl TunConfig {
    /// What members hold of a network.
    pub(super) fn held_of(&self, network: &IpNet) -> Vec<IpNet> {
        self.held
            .iter()
            .filter(|held| overlap(held, network))
            .copied()
            .collect()
    }
}

/// `prefix` without `gone`, in as few prefixes as it takes.
fn without(prefix: IpNet, gone: IpNet) -> Vec<IpNet> {
    if gone.contains(&prefix) {
        return Vec::new();
    }
    if !prefix.contains(&gone) {
        return vec![prefix];
    }
    let Ok(halves) = prefix.subnets(prefix.prefix_len().saturating_add(1)) else {
        return vec![prefix];
    };
    halves.flat_map(|half| without(half, gone)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::HostPolicy;
    use crate::model::id::SubnetId;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn overlay(pool: &str, held: Vec<IpNet>, connected: Vec<IpNet>) -> Vec<IpNet> {
        let tun = TunConfig {
            subnet: SubnetId([1; 16]),
            name: "bw-lab".to_owned(),
            mtu: 1400,
            addresses: vec![],
            prefixes: nets(&[pool]),
            held,
            host: HostPolicy::Closed,
            others: vec![],
        };
        let connected = connected
            .into_iter()
            .map(|net| (net, "eth1".to_owned()))
            .collect();
        HostConfig {
            connected,
            ..HostConfig::default()
        }
        .overlay(&tun)
    }

    #[test]
    fn a_connected_network_gets_what_nobody_holds() {
        let of = |held: &[&str], connected: &[&str]| {
            overlay("10.77.0.0/16", nets(held), nets(connected))
        };
        assert_eq!(
            of(&["10.77.1.0/24"], &["192.0.2.0/24"]),
            nets(&["10.77.0.0/16"])
        );
        let left = of(&["10.77.1.0/24", "10.77.250.128/25"], &["10.77.250.0/24"]);
        let goes = |to: &str| {
            left.iter()
                .any(|net| net.contains(&to.parse::<IpAddr>().unwrap()))
        };
        assert!(
            goes("10.77.1.9") && goes("10.77.2.9") && goes("10.77.250.200") && !goes("10.77.250.9"),
            "{left:?}"
        );
        // Inside a lease there is nothing that nobody holds.
        assert_eq!(
            of(&["10.77.2.0/24"], &["10.77.2.16/28"]),
            nets(&["10.77.0.0/16"])
        );
        // Around the pool: only the leases are left.
        assert_eq!(
            of(&["10.77.1.0/24"], &["10.0.0.0/8"]),
            nets(&["10.77.1.0/24"])
        );
        assert_eq!(overlay("fd77::/48", vec![], nets(&["fd77::/64"])).len(), 16);
    }

    proptest! {
        #[test]
        fn every_address_goes_where_it_belongs(
            held in proptest::collection::vec((any::<u16>(), 18u8..=32), 0..5),
            connected in proptest::collection::vec((any::<u16>(), 8u8..=31), 0..4),
            asked in proptest::collection::vec(any::<u16>(), 1..50),
        ) {
            let net = |(low, len): (u16, u8)| {
                let [c, d] = low.to_be_bytes();
                IpNet::new(Ipv4Addr::new(10, 77, c, d).into(), len).unwrap().trunc()
            };
            let ends: Vec<u16> = held.iter().chain(&connected).flat_map(|(low, _)| [*low, low ^ 1]).collect();
            let held: Vec<IpNet> = held.into_iter().map(net).collect();
            let connected: Vec<IpNet> = connected.into_iter().map(net).collect();
            let parts = overlay("10.77.0.0/16", held.clone(), connected.clone());
            for low in asked.into_iter().chain(ends) {
                let [c, d] = low.to_be_bytes();
                let address = IpAddr::from([10, 77, c, d]);
                let has = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
                prop_assert_eq!(has(&parts), has(&held) || !has(&connected), "{}", address);
            }
        }
    }
}
