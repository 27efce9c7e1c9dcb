//! Which addresses are dialled on somebody else's word: members' announcements, identify, mDNS, an invite, a session's
//! letters.
//!
//! A person's word is not judged here: what is typed or configured is dialled as it stands. What was heard may be made up by
//! whoever said it, to make this machine knock at its own services, at the cloud's metadata service, or at somebody's mail
//! server. Names are not looked up on hearsay, but for those of WebSockets inside TLS at port 443, two of a peer, as they stand
//! and without the search domains of this machine; and then what they lead to is judged. That is decided where an address still
//! may be a name.
//!
//! Pure: the caller says which addresses are the machine's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::forms;

/// Where clouds answer for a machine's credentials, over IPv4 and IPv6.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// Ports below this belong to well-known services.
const SYSTEM_PORTS: u16 = 1024;
/// The one of them that peers are commonly reached at, because firewalls let it through.
const HTTPS: u16 = 443;

/// Whether an address that was heard may be dialled at all, apart from link-local ones: see [`is_link_local`].
///
/// Refused are loopback, this machine's own addresses (`own` tells which they are), the unspecified, multicast and broadcast
/// ones, the metadata services, whatever leads to one of them in another form, and ports below 1024 but 443.
pub fn may_dial(address: IpAddr, port: u16, own: &dyn Fn(IpAddr) -> bool) -> bool {
    (port >= SYSTEM_PORTS || port == HTTPS) && forms(address).all(|form| !never(form) && !own(form))
}

/// Whether an address means something on one link only. In another form it means nothing anywhere.
pub fn is_link_local(address: IpAddr) -> bool {
    forms(address).any(|form| match form {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    })
}

/// Addresses that no peer has, or that are this machine's for certain.
fn never(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => {
            v4.octets().first() == Some(&0)
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.octets().first() >= Some(&240)
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
    };
    special || METADATA.contains(&address)
}

/// Whether a member may publish an address under a name: what no peer has would lead whoever asks to itself, to its cloud's
/// metadata service, or to something else on its link.
pub fn may_name(address: IpAddr) -> bool {
    forms(address).all(|form| !never(form) && !is_link_local(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(address: IpAddr) -> bool {
        ["10.99.0.1", "fd99::1", "2001:db8::1"]
            .iter()
            .any(|a| a.parse() == Ok(address))
    }

    fn dialled(address: &str, port: u16) -> bool {
        may_dial(address.parse().unwrap(), port, &own)
    }

    /// Every form in which an IPv6 address leads to an IPv4 one.
    fn forms(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b, c, d] = v4.octets();
        let hex = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
        let not = format!("{:02x}{:02x}:{:02x}{:02x}", !a, !b, !c, !d);
        [
            format!("::ffff:{v4}"),
            format!("::{v4}"),
            format!("64:ff9b::{v4}"),
            format!("64:ff9b:1::{v4}"),
            format!("64:ff9b:1:{a:02x}{b:02x}:{c:x}:{:x}::", u16::from(d) << 8),
            format!("2002:{hex}::1"),
            format!("2001:0:203:405::{not}"),
            format!("fe80::5efe:{v4}"),
            format!("2001:db8:1::200:5efe:{v4}"),
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect()
    }

    #[test]
    fn what_belongs_to_this_machine_or_its_cloud_is_never_dialled_in_any_form() {
        let four = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.251",
            "255.255.255.255",
            "240.0.0.1",
            "169.254.169.254",
            "10.99.0.1",
        ];
        for v4 in four {
            assert!(!dialled(v4, 4100), "{v4}");
            for v6 in forms(v4.parse().unwrap()) {
                assert!(!may_dial(v6.into(), 4100, &own), "{v4} as {v6}");
            }
        }
        for v6 in [
            "::1",
            "::",
            "ff02::fb",
            "fd00:ec2::254",
            "fd99::1",
            "2001:db8::1",
        ] {
            assert!(!dialled(v6, 4100), "{v6}");
        }
    }

    #[test]
    fn ports_of_well_known_services_are_not_dialled_but_443() {
        for port in [0, 1, 22, 25, 53, 80, 442, 444, 1023] {
            assert!(!dialled("192.0.2.1", port), "{port}");
        }
        for port in [443, 1024, 4100, 65_535] {
            assert!(dialled("192.0.2.1", port), "{port}");
        }
    }

    #[test]
    fn private_and_public_addresses_of_others_are_dialled() {
        for good in [
            "10.99.0.2",
            "192.168.1.9",
            "100.64.3.4",
            "203.0.113.9",
            "fd99::2",
            "2a00:1450::9",
            "64:ff9b::203.0.113.9",
        ] {
            assert!(dialled(good, 4100), "{good}");
        }
    }

    #[test]
    fn link_local_addresses_are_told_from_others() {
        for here in [
            "169.254.3.4",
            "fe80::1",
            "::ffff:169.254.3.4",
            "64:ff9b::169.254.3.4",
        ] {
            assert!(is_link_local(here.parse().unwrap()), "{here}");
        }
        assert!(!is_link_local("fd00::1".parse().unwrap()));
    }

    #[test]
    fn names_lead_nobody_to_itself() {
        for bad in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "169.254.169.254",
            "fd00:ec2::254",
            "fe80::1",
            "169.254.1.1",
            "::ffff:127.0.0.1",
            "224.0.0.1",
            "64:ff9b::127.0.0.1",
        ] {
            assert!(!may_name(bad.parse().unwrap()), "{bad}");
        }
        for good in ["10.77.1.5", "192.168.1.9", "203.0.113.9", "fd7a::5"] {
            assert!(may_name(good.parse().unwrap()), "{good}");
        }
    }
}
