//! The router advertisement of a TAP (RFC 4861, options of RFC 8106), and the solicitation that asks for it.
//!
//! The guest's address comes from DHCP alone (the flag M), and the subnet's prefix is not on its link: it sends everything to
//! its router, so nobody is looked for by neighbour discovery but that.

use super::Refusal;
use super::offer::{LEASE, Offer};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// Addresses, and the rest, come from DHCP (M and O).
const MANAGED: u8 = 0xc0;
/// Seconds for which the router is one, unless it says so again.
const ROUTER_LIFE: u16 = 1800;
/// Hops that the guest's packets begin with.
const HOPS: u8 = 64;

/// Options, whose length is counted in eight bytes.
mod option {
    pub const LINK_ADDRESS: u8 = 1;
    pub const PREFIX: u8 = 3;
    pub const MTU: u8 = 5;
    pub const RESOLVER: u8 = 25;
    pub const SEARCH: u8 = 31;
}

/// Whether a packet of ICMPv6 asks for an advertisement.
///
/// # Errors
/// Why it is dropped.
pub(super) fn asks(packet: &[u8]) -> Result<(), Refusal> {
    let ([kind, code, ..], mut rest) = packet.split_first_chunk::<8>().ok_or(Refusal::Malformed)?;
    if (*kind, *code) != (SOLICITATION, 0) {
        return Err(Refusal::Kind);
    }
    while let [_, length, ..] = rest {
        if *length == 0 {
            return Err(Refusal::Malformed);
        }
        rest = rest
            .get(usize::from(*length) * 8..)
            .ok_or(Refusal::Malformed)?;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Malformed)
    }
}

/// The advertisement, with a checksum of zero that the kernel fills in; none where the guest has no address of IPv6.
pub(super) fn advertisement(offer: &Offer) -> Option<Vec<u8>> {
    let family = offer.v6.as_ref()?;
    let mut to = vec![ADVERTISEMENT, 0, 0, 0, HOPS, MANAGED];
    to.extend(ROUTER_LIFE.to_be_bytes());
    // How long neighbours are reachable, and how often they are asked, is the guest's matter.
    to.extend([0; 8]);
    put(&mut to, option::LINK_ADDRESS, &offer.server);
    let mtu = u32::from(offer.mtu).to_be_bytes();
    put(&mut to, option::MTU, &[&[0, 0][..], &mtu].concat());
    let life = LEASE.to_be_bytes();
    let flags = 0;
    let head = [family.prefix.prefix_len(), flags];
    let prefix = family.prefix.network().octets();
    let prefix = [&head[..], &life, &life, &[0; 4], &prefix].concat();
    put(&mut to, option::PREFIX, &prefix);
    let resolver = [&[0, 0][..], &life, &family.gateway.octets()].concat();
    put(&mut to, option::RESOLVER, &resolver);
    let labels = offer.domain_labels();
    if !labels.is_empty() {
        put(
            &mut to,
            option::SEARCH,
            &[&[0, 0][..], &life, &labels].concat(),
        );
    }
    Some(to)
}

/// Adds an option, filled with zeros up to a multiple of eight bytes.
fn put(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    let words = (value.len() + 2).div_ceil(8);
    let Ok(length) = u8::try_from(words) else {
        return;
    };
    let end = to.len() + words * 8;
    to.extend([number, length]);
    to.extend(value);
    to.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::offer::tests::offer;
    use proptest::prelude::*;

    #[test]
    fn an_advertisement_leads_to_dhcp_and_names_the_resolver() {
        let told = advertisement(&offer()).unwrap();
        assert_eq!(told[..8], [134, 0, 0, 0, 64, 0xc0, 0x07, 0x08]);
        let mut options = std::collections::BTreeMap::new();
        let mut rest = &told[16..];
        while let [number, length, ..] = rest {
            let (one, behind) = rest.split_at(usize::from(*length) * 8);
            options.insert(*number, one[2..].to_vec());
            rest = behind;
        }
        assert_eq!(options[&option::LINK_ADDRESS], offer().server);
        assert_eq!(options[&option::MTU], [0, 0, 0, 0, 5, 120]);
        let prefix = &options[&option::PREFIX];
        assert_eq!(
            prefix[..2],
            [48, 0],
            "neither on the link nor for the guest to choose from"
        );
        assert_eq!(prefix[14..18], [0xfd, 0x7a, 0, 0]);
        let gateway = offer().v6.unwrap().gateway.octets();
        assert_eq!(options[&option::RESOLVER][6..], gateway);
        assert!(options[&option::SEARCH][6..].starts_with(b"\x03lab\x08internal\0"));
        let plain = Offer {
            v6: None,
            ..offer()
        };
        assert_eq!(advertisement(&plain), None);
    }

    #[test]
    fn only_a_whole_solicitation_asks() {
        let whole = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 1, 2, 3];
        for length in 0..=whole.len() {
            let told = asks(&whole[..length]);
            let is_whole = [8, 16].contains(&length);
            assert_eq!(told.is_ok(), is_whole, "{length}: {told:?}");
        }
        let mut wrong = whole;
        wrong[9] = 0;
        assert_eq!(
            asks(&wrong),
            Err(Refusal::Malformed),
            "an option without end"
        );
        wrong[0] = ADVERTISEMENT;
        assert_eq!(asks(&wrong), Err(Refusal::Kind));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = asks(&bytes);
        }
    }
}
