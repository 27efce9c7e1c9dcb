//! The machine's own addresses, which no peer is reached at, and the networks they are in.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_indextoname, if_nametoindex};
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
        if self
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < FRESH)
        {
            return;
        }
        match getifaddrs() {
            Ok(all) => self.addresses = all.filter_map(|link| address(&link)).collect(),
            Err(error) => tracing::debug!(%error, "list this machine's addresses"),
        }
        self.at = Some(now);
    }

    /// Makes it of given addresses, without asking the kernel.
    #[cfg(test)]
    pub(super) fn of(addresses: &[(&str, &str)]) -> Own {
        let addresses = addresses
            .iter()
            .map(|(link, net)| ((*link).to_owned(), net.parse().unwrap()))
            .collect();
        Own {
            at: Some(Instant::now() + Duration::from_secs(3600)),
            addresses,
        }
    }

    /// Whether an address is one of the machine's.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(_, net)| net.addr() == address)
    }

    /// Whether an address lies in the network of one of the machine's links.
    pub(super) fn is_near(&self, address: IpAddr) -> bool {
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        self.addresses
            .iter()
            .any(|(_, net)| !single(net) && net.contains(&address))
    }

    /// Whether a link of that name has an IPv6 address that is link-local, so that those of LAN peers are reached there.
    pub(super) fn has_link(&self, name: &str) -> bool {
        let local =
            |net: &IpNet| matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        self.addresses
            .iter()
            .any(|(link, net)| link == name && local(net))
    }

    /// The one link that has link-local addresses of the family of `address`; none where none has, or several have, since
    /// nobody says which is meant. The kernel sends to those of IPv4 over that one; for those of IPv6 it has to be named.
    pub(super) fn one_local_link(&self, address: IpAddr) -> Option<&str> {
        let local = |net: &IpNet| match net.addr() {
            IpAddr::V4(v4) => address.is_ipv4() && v4.is_link_local(),
            IpAddr::V6(v6) => address.is_ipv6() && v6.is_unicast_link_local(),
        };
        let mut links = self
            .addresses
            .iter()
            .filter(|(_, net)| local(net))
            .map(|(link, _)| link);
        let first = links.next()?;
        links.all(|link| link == first).then_some(first)
    }
}

/// The kernel's index of a link; none where there is no such link.
pub(super) fn index_of(link: &str) -> Option<u32> {
    if_nametoindex(link).ok()
}

/// The name of a link; none where there is no such link.
pub(super) fn name_of(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?.into_string().ok()?;
    (!name.is_empty()).then_some(name)
}

/// An address as people read and type it: of IPv4 in its own form, a link-local one of IPv6 with the name of its link, as in
/// `[fe80::1%eth0]:4100`. A link that is gone leaves its index.
pub fn named(address: SocketAddr) -> String {
    let scope = match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let (ip, port) = (address.ip().to_canonical(), address.port());
    match name_of(scope) {
        _ if scope == 0 => SocketAddr::new(ip, port).to_string(),
        Some(link) => format!("[{ip}%{link}]:{port}"),
        None => address.to_string(),
    }
}

/// The same address with its link, where it is a link-local one of IPv6 and only one link can be meant.
pub(super) fn with_link(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else {
        return address;
    };
    if !v6.ip().is_unicast_link_local() || v6.scope_id() != 0 {
        return address;
    }
    let mut own = Own::default();
    own.refresh(Instant::now());
    let index = own
        .one_local_link(v6.ip().to_owned().into())
        .and_then(|link| if_nametoindex(link).ok());
    SocketAddrV6::new(*v6.ip(), v6.port(), v6.flowinfo(), index.unwrap_or(0)).into()
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
    fn an_address_of_a_link_is_shown_with_the_name_of_the_link() {
        let shown = |text: &str| named(text.parse().unwrap());
        // The loopback link has the index 1 in every namespace.
        assert_eq!(shown("[fe80::1%1]:4100"), "[fe80::1%lo]:4100");
        assert_eq!(
            shown("[fe80::1%4294967295]:4100"),
            "[fe80::1%4294967295]:4100"
        );
        assert_eq!(shown("[fe80::1]:4100"), "[fe80::1]:4100");
        assert_eq!(shown("[::ffff:192.0.2.1]:4100"), "192.0.2.1:4100");
        assert_eq!(shown("192.0.2.1:4100"), "192.0.2.1:4100");
    }

    #[test]
    fn link_local_addresses_belong_to_one_link_or_to_none() {
        let one = Own::of(&[
            ("eth0", "169.254.3.4/16"),
            ("eth0", "169.254.3.5/16"),
            ("eth1", "10.0.0.1/24"),
        ]);
        let (v4, v6) = ("169.254.0.0".parse().unwrap(), "fe80::".parse().unwrap());
        assert_eq!(
            (one.one_local_link(v4), one.one_local_link(v6)),
            (Some("eth0"), None)
        );
        assert!(
            one.is_near("10.0.0.9".parse().unwrap()) && !one.is_near("10.0.1.9".parse().unwrap())
        );
        let two = Own::of(&[
            ("eth0", "169.254.3.4/16"),
            ("eth1", "169.254.9.9/16"),
            ("eth1", "fe80::1/64"),
        ]);
        assert_eq!(
            (two.one_local_link(v4), two.one_local_link(v6)),
            (None, Some("eth1"))
        );
    }
}
