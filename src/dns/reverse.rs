//! The reverse trees `in-addr.arpa` and `ip6.arpa`: which network a name spells, and which name a network has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name as DnsName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::zone::absolute;

/// How a name relates to a zone's reverse trees.
pub(super) struct Reverse {
    /// The network the labels spell.
    pub(super) net: IpNet,
    /// Labels below it that spell nothing.
    pub(super) rest: usize,
}

/// Whether `name` lies in the reverse tree of one of `prefixes`.
pub(super) fn owned_reverse(prefixes: &[IpNet], name: &DnsName) -> bool {
    reverse_net(name).is_some_and(|r| prefixes.iter().any(|p| p.contains(&r.net)))
}

/// Reads `4.3.2.1.in-addr.arpa` and its IPv6 sibling from the root downwards, as far as the labels make sense.
pub(super) fn reverse_net(name: &DnsName) -> Option<Reverse> {
    let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
    let (arpa, labels) = labels.split_last()?;
    let (tree, labels) = labels.split_last()?;
    if arpa != b"arpa" {
        return None;
    }
    let (net, used) = match tree.as_slice() {
        b"in-addr" => {
            let octets: Vec<u8> = labels
                .iter()
                .rev()
                .take(4)
                .map_while(|l| octet(l))
                .collect();
            let mut bytes = [0u8; 4];
            bytes
                .iter_mut()
                .zip(&octets)
                .for_each(|(to, from)| *to = *from);
            let bits = u8::try_from(octets.len().saturating_mul(8)).ok()?;
            (
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(bytes), bits).ok()?),
                octets.len(),
            )
        }
        b"ip6" => {
            let nibbles: Vec<u8> = labels
                .iter()
                .rev()
                .take(32)
                .map_while(|l| nibble(l))
                .collect();
            let bits = nibbles
                .iter()
                .fold(0u128, |all, n| (all << 4) | u128::from(*n));
            let used = u32::try_from(nibbles.len()).ok()?.saturating_mul(4);
            let bits = bits.checked_shl(128u32.saturating_sub(used)).unwrap_or(0);
            (
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from(bits), u8::try_from(used).ok()?).ok()?),
                nibbles.len(),
            )
        }
        _ => return None,
    };
    Some(Reverse {
        net,
        rest: labels.len().saturating_sub(used),
    })
}

/// One label of `in-addr.arpa`: decimal without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain =
        text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// One label of `ip6.arpa`: a hexadecimal digit.
fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok()),
        _ => None,
    }
}

/// The reverse zone of `prefix` that holds `net`: its length rounded up to whole labels.
pub(super) fn reverse_apex(prefix: &IpNet, net: IpNet) -> (Option<DnsName>, IpNet) {
    let step = if prefix.addr().is_ipv4() { 8 } else { 4 };
    let length = prefix
        .prefix_len()
        .div_ceil(step)
        .saturating_mul(step)
        .min(prefix.max_prefix_len());
    let apex = IpNet::new(net.addr(), length).map_or(*prefix, |n| n.trunc());
    (reverse_name(apex, length), apex)
}

/// The name of the reverse tree of `net`, `length` bits deep.
fn reverse_name(net: IpNet, length: u8) -> Option<DnsName> {
    let mut text = String::new();
    match net.addr() {
        IpAddr::V4(a) => {
            let labels = usize::from(length / 8);
            a.octets()
                .iter()
                .take(labels)
                .rev()
                .for_each(|o| text.push_str(&format!("{o}.")));
            text.push_str("in-addr.arpa.");
        }
        IpAddr::V6(a) => {
            let labels = usize::from(length / 4);
            let nibbles: Vec<u8> = a
                .octets()
                .iter()
                .flat_map(|o| [o >> 4, o & 15])
                .take(labels)
                .collect();
            nibbles
                .iter()
                .rev()
                .for_each(|n| text.push_str(&format!("{n:x}.")));
            text.push_str("ip6.arpa.");
        }
    }
    absolute(&text)
}

/// The name at which the PTR of `address` is asked for.
#[cfg(test)]
pub(super) fn pointer_name(address: IpAddr) -> DnsName {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    reverse_name(IpNet::from(address), bits).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
    #[test]
    fn reverse_names_read_back(v4: u32, v6: u128) {
        for address in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(Ipv6Addr::from(v6))] {
            let read = reverse_net(&pointer_name(address)).unwrap();
            prop_assert_eq!((read.net, read.rest), (IpNet::from(address), 0));
        }
    }
    }
}
