//! The machine's own addresses, which no peer is reached at, and the networks they are in.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::time::Instant;

/// How long an answer of the kernel's is used.
const FRESH: Duration = Duration::from_secs(1);

/// What the kernel said last.
#[derive(Debug, Default)]
pub(super) struct Own {
    at: Option<Instant>,
    /// Each address with the network of its link, and which link that is.
    addresses: Vec<(String, IpNet)>,
}

impl Own {
    /// Asks the kernel again where its last answer is old.
    pub(super) fn refresh(&mut self, now: Instant) {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            return;
        }
        match getifaddrs() {
            Ok(all) => self.addresses = all.filter_map(|link| address(&link)).collect(),
            Err(error) => tracing::debug!(%error, "list this machine's addresses"),
        }
        self.at = Some(now);
    }

    /// The same with given addresses.
    #[cfg(test)]
    pub(super) fn of(addresses: &[(&str, &str)]) -> Own {
        let addresses = addresses.iter().map(|(link, net)| ((*link).to_owned(), net.parse().unwrap())).collect();
        Own { at: Some(Instant::now() + Duration::from_secs(3600)), addresses }
    }

    /// Whether an address is one of the machine's.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(_, net)| net.addr() == address)
    }

    /// Whether an address lies in the network of one of the machine's links.
    pub(super) fn is_near(&self, address: IpAddr) -> bool {
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        self.addresses.iter().any(|(_, net)| !single(net) && net.contains(&address))
    }

    /// Whether exactly one link has IPv4 link-local addresses, so that the kernel sends to them over that one.
    pub(super) fn has_one_local4_link(&self) -> bool {
        let local = |net: &IpNet| matches!(net.addr(), IpAddr::V4(v4) if v4.is_link_local());
        let mut links = self.addresses.iter().filter(|(_, net)| local(net)).map(|(link, _)| link);
        let first = links.next();
        first.is_some() && links.all(|link| Some(link) == first)
    }
}

/// An address of a link that is up, with its network.
fn address(link: &nix::ifaddrs::InterfaceAddress) -> Option<(String, IpNet)> {
    let ip = |address: &nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    if !link.flags.contains(InterfaceFlags::IFF_UP) {
        return None;
    }
    let own = ip(link.address.as_ref()?)?;
    let net = match link.netmask.as_ref().and_then(ip) {
        Some(mask) => IpNet::with_netmask(own, mask).ok()?,
        None => own.into(),
    };
    Some((link.interface_name.clone(), net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_the_addresses_of_this_machine() {
        let mut own = Own::default();
        own.refresh(Instant::now());
        assert!(own.is_own("127.0.0.1".parse().unwrap()), "{own:?}");
        assert!(!own.is_own("203.0.113.9".parse().unwrap()));
    }

    #[test]
    fn link_local_addresses_belong_to_one_link_or_to_none() {
        let one = Own::of(&[("eth0", "169.254.3.4/16"), ("eth0", "169.254.3.5/16"), ("eth1", "10.0.0.1/24")]);
        assert!(one.has_one_local4_link());
        assert!(one.is_near("10.0.0.9".parse().unwrap()) && !one.is_near("10.0.1.9".parse().unwrap()));
        let two = Own::of(&[("eth0", "169.254.3.4/16"), ("eth1", "169.254.9.9/16")]);
        assert!(!two.has_one_local4_link() && !Own::of(&[("eth1", "10.0.0.1/24")]).has_one_local4_link());
    }
}
