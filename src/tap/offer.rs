//! What one guest is told, in no protocol's terms.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::host::{HostConfig, WorkloadConfig, host_mac, inner_mac};

/// How long a guest may use what it was told before it asks again, in seconds. The address is the workload's for as long as
/// that is attached, so this only says how soon a guest hears of another.
pub(super) const LEASE: u32 = 3600;

/// The addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Family<A, N> {
    /// The guest's own address.
    pub address: A,
    /// The subnet's prefix that it is in.
    pub prefix: N,
    /// This machine's address in the subnet: the guest's resolver, and its router of IPv4.
    pub gateway: A,
}

/// What the guest at one TAP is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    /// The hardware address of the guest: nobody else is answered.
    pub mac: [u8; 6],
    /// The user who may open the TAP.
    pub owner: u32,
    /// The hardware address of the TAP, by which the server is known.
    pub server: [u8; 6],
    pub v4: Option<Family<Ipv4Addr, Ipv4Net>>,
    pub v6: Option<Family<Ipv6Addr, Ipv6Net>>,
    /// The largest packet of the subnet, in bytes.
    pub mtu: u16,
    /// The domain that names without a dot are looked for in.
    pub domain: String,
}

impl Offer {
    /// What the guests of all TAPs are told, by the TAP's name.
    pub fn all(host: &HostConfig) -> BTreeMap<String, Offer> {
        let taps = host.workloads.iter().filter(|w| w.tap.is_some());
        taps.map(|w| (w.host_link.clone(), Offer::of(&host.instance, w)))
            .collect()
    }

    fn of(instance: &str, workload: &WorkloadConfig) -> Offer {
        let own = || inner_mac(instance, &workload.host_link);
        let (mut v4, mut v6) = (None, None);
        for address in &workload.addresses {
            let prefix = workload.prefixes.iter().find(|p| p.contains(address));
            let gateway = workload
                .gateways
                .iter()
                .find(|g| g.is_ipv4() == address.is_ipv4());
            match (*address, prefix, gateway) {
                (IpAddr::V4(address), Some(IpNet::V4(prefix)), Some(IpAddr::V4(gateway))) => {
                    v4 = v4.or(Some(Family {
                        address,
                        prefix: prefix.trunc(),
                        gateway: *gateway,
                    }));
                }
                (IpAddr::V6(address), Some(IpNet::V6(prefix)), Some(IpAddr::V6(gateway))) => {
                    v6 = v6.or(Some(Family {
                        address,
                        prefix: prefix.trunc(),
                        gateway: *gateway,
                    }));
                }
                _ => {}
            }
        }
        Offer {
            mac: workload.mac.unwrap_or_else(own),
            owner: workload.tap.unwrap_or_default(),
            server: host_mac(instance, &workload.host_link),
            v4,
            v6,
            mtu: workload.mtu,
            domain: workload.search.clone(),
        }
    }

    /// The domain as DNS writes it, for options that hold a list of such; empty where it is none.
    pub fn domain_labels(&self) -> Vec<u8> {
        let mut labels = Vec::new();
        for label in self.domain.split('.').filter(|label| !label.is_empty()) {
            let Some(length) = u8::try_from(label.len()).ok().filter(|n| *n < 64) else {
                return Vec::new();
            };
            labels.push(length);
            labels.extend(label.as_bytes());
        }
        labels.push(0);
        // The longest name of DNS, which every option here has room for.
        if labels.len() > 255 || labels.len() < 2 {
            return Vec::new();
        }
        labels
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a guest of a subnet with both families is told.
    pub fn offer() -> Offer {
        Offer {
            mac: [0x52, 0x54, 0, 1, 2, 3],
            owner: 1000,
            server: [0x02, 0x62, 0x77, 4, 5, 6],
            v4: Some(Family {
                address: Ipv4Addr::new(10, 77, 1, 5),
                prefix: "10.77.0.0/16".parse().unwrap(),
                gateway: Ipv4Addr::new(10, 77, 1, 1),
            }),
            v6: Some(Family {
                address: "fd7a::1:5".parse().unwrap(),
                prefix: "fd7a::/48".parse().unwrap(),
                gateway: "fd7a::1:1".parse().unwrap(),
            }),
            mtu: 1400,
            domain: "lab.internal".to_owned(),
        }
    }

    #[test]
    fn a_domain_is_written_as_labels_and_one_that_is_none_is_left_out() {
        assert_eq!(offer().domain_labels(), b"\x03lab\x08internal\0");
        for domain in ["", ".", &"a".repeat(64), &"abc.".repeat(64)] {
            let bad = Offer {
                domain: domain.to_owned(),
                ..offer()
            };
            assert_eq!(bad.domain_labels(), b"", "{domain:?}");
        }
    }
}
