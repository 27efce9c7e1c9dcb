//! Addresses that somebody else told: what may be dialled or named leads to no machine's own services in any form, and
//! what reads as a peer's address is no name and reads the same when written again.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use byway::model::heard::{is_link_local, may_dial, may_name};
use byway::p2p::{Address, Heard};
use libfuzzer_sys::fuzz_target;

/// The IPv4 addresses that an IPv6 address can lead to: mapped, compatible, by NAT64, 6to4 and ISATAP.
fn inner(six: Ipv6Addr) -> Vec<Ipv4Addr> {
    let o = six.octets();
    let at = |n: usize| Ipv4Addr::new(o[n], o[n + 1], o[n + 2], o[n + 3]);
    let low = o[..12] == [0; 12] && u32::from(at(12)) > 1;
    let mapped = o[..10] == [0; 10] && o[10..12] == [0xff; 2];
    let nat64 = o[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    let isatap = o[8] & 0xfd == 0 && o[9..12] == [0, 0x5e, 0xfe];
    let six_to_four = o[..2] == [0x20, 0x02];
    let behind = (low || mapped || nat64 || isatap).then(|| at(12));
    behind
        .into_iter()
        .chain(six_to_four.then(|| at(2)))
        .collect()
}

fn is_own(address: Ipv4Addr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address == Ipv4Addr::new(169, 254, 169, 254)
}

fuzz_target!(|data: &[u8]| {
    if let Some((octets, rest)) = data.split_first_chunk::<16>()
        && let Some((port, _)) = rest.split_first_chunk::<2>()
    {
        let (six, port) = (Ipv6Addr::from(*octets), u16::from_be_bytes(*port));
        let four = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
        for (address, leads) in [
            (IpAddr::V4(four), vec![four]),
            (IpAddr::V6(six), inner(six)),
        ] {
            let (dials, names) = (may_dial(address, port, &|_| false), may_name(address));
            if dials || names {
                assert!(
                    !leads.into_iter().any(is_own),
                    "{address} leads to this machine"
                );
                assert!(
                    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
                );
            }
            assert!(!dials || port >= 1024 || port == 443, "port {port}");
            assert!(!names || !is_link_local(address), "{address}");
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(heard) = Heard::parse(text) {
        let address = heard.address();
        assert!(
            address.ip().is_some() || address.to_string().contains("/memory/"),
            "{address} is a name"
        );
        assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(address));
        let _ = (
            address.udp(),
            address.port(),
            address.carrier(),
            address.peer(),
        );
    }
});
