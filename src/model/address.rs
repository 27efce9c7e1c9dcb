//! What an IP address leads to, in whatever form it is written.
//!
//! An IPv6 address can carry an IPv4 address that a translator or a tunnel turns it into. Whoever judges an address that
//! somebody else named has to judge that one too, or the same target passes in another form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The metadata services of clouds, which answer whoever asks from the machine with its credentials.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The IPv4 addresses that an IPv6 address may be turned into on its way: mapped and compatible ones, NAT64 (`64:ff9b::/96`,
/// and `64:ff9b:1::/48` in both of its layouts), 6to4, Teredo, ISATAP. At most four.
pub fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let last = v4(s[6], s[7]);
    // `::1` and `::` are what they are and no compatible addresses.
    let compatible = s[..6] == [0; 6] && u32::from(last) > 1;
    let mapped = s[..6] == [0, 0, 0, 0, 0, 0xffff];
    let nat64 = s[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    let local_nat64 = s[..3] == [0x64, 0xff9b, 1];
    let isatap = s[5] == 0x5efe && s[4] & !0x0200 == 0;
    // RFC 6052, 2.2: behind a prefix of 48 bits the address is cut in two by an octet of zeros.
    let cut = v4(s[3], (s[4] & 0xff) << 8 | s[5] >> 8);
    let to_last = (compatible || mapped || nat64 || local_nat64 || isatap).then_some(last);
    let to_cut = local_nat64.then_some(cut);
    let six_to_four = (s[0] == 0x2002).then(|| v4(s[1], s[2]));
    let teredo = (s[..2] == [0x2001, 0]).then(|| v4(!s[6], !s[7]));
    [to_last, to_cut, six_to_four, teredo].into_iter().flatten()
}

/// The address itself and every address that is [`embedded`] in it.
pub fn forms(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let inner = if let IpAddr::V6(v6) = address {
        Some(embedded(v6))
    } else {
        None
    };
    std::iter::once(address).chain(inner.into_iter().flatten().map(IpAddr::V4))
}

/// Whether an address means the machine that uses it, its own link, or a cloud's metadata service, in any of its
/// [`forms`]: loopback, "this host" (`0.0.0.0/8`, `::`), link-local ones, `fd00:ec2::254`. Nobody outside may name such
/// an address to us.
pub fn is_of_this_machine(address: IpAddr) -> bool {
    forms(address).any(|form| match form {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.octets()[0] == 0,
        IpAddr::V6(a) => {
            a.is_loopback() || a.is_unspecified() || a.is_unicast_link_local() || a == METADATA
        }
    })
}

/// Whether an address lies in one of `prefixes`, in any of its [`forms`].
pub fn is_within(address: IpAddr, prefixes: &[IpNet]) -> bool {
    forms(address).any(|form| prefixes.iter().any(|prefix| prefix.contains(&form)))
}

/// Whether an address is of a site's own numbering, or of one link of IPv4: RFC 1918, 100.64/10, 169.254/16, unique local.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_known_in_every_form() {
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::127.0.0.1",
            "64:ff9b:1:7f00:0:100::",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:c000:201::80ff:fffe",
            "2001:db8::5efe:127.0.0.1",
            "2001:db8::200:5efe:127.0.0.1",
        ] {
            assert!(is_of_this_machine(bad.parse().unwrap()), "{bad}");
        }
        for good in [
            "192.0.2.1",
            "10.0.0.1",
            "2001:db8::1",
            "fd00::1",
            "64:ff9b::192.0.2.1",
            "64:ff9b:1:c000:2:100:c000:201",
            "2002:c000:201::1",
            "2001:db8::5eff:127.0.0.1",
        ] {
            assert!(!is_of_this_machine(good.parse().unwrap()), "{good}");
        }
    }

    #[test]
    fn a_prefix_holds_an_address_in_every_form() {
        let prefixes = [
            "10.42.0.0/16".parse().unwrap(),
            "fd00:42::/48".parse().unwrap(),
        ];
        for inside in [
            "10.42.1.1",
            "fd00:42::5",
            "::ffff:10.42.1.1",
            "64:ff9b::10.42.1.1",
            "64:ff9b:1:a2a:1:100::",
            "2002:a2a:101::1",
        ] {
            assert!(is_within(inside.parse().unwrap(), &prefixes), "{inside}");
        }
        for outside in [
            "10.43.1.1",
            "fd00:43::5",
            "64:ff9b::10.43.1.1",
            "2002:a2b:101::1",
        ] {
            assert!(!is_within(outside.parse().unwrap(), &prefixes), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn every_translation_of_an_ipv4_address_carries_it(bits in 2u32..) {
            let v4 = Ipv4Addr::from(bits);
            let (high, low) = ((bits >> 16) as u16, bits as u16);
            let [a, b, c, d] = v4.octets();
            let written = [
                v4.to_ipv6_mapped(),
                v4.to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 7, 8, 9, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, u16::from_be_bytes([a, b]), u16::from(c), u16::from_be_bytes([d, 0]), 0, 0),
                Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5),
                Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low),
                Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0x200, 0x5efe, high, low),
            ];
            for v6 in written {
                prop_assert!(embedded(v6).any(|found| found == v4), "{} in {}", v4, v6);
            }
        }
    }
}
