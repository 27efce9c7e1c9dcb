//! Addresses as people write them: `203.0.113.9:4100`, `vpn.example:4100`, `wss://vpn.example/byway`.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, Ipv6Addr};

use libp2p::Multiaddr;
use libp2p::core::transport::TransportError;
use libp2p::dns::ResolveError;
use libp2p::multiaddr::Protocol;

use super::address::{Address, canonical, zone_of};
use super::own::named;
use super::web::{Host, Target};
use super::zoned::missing_link;
use crate::model::proxy::place;

/// How many places a failed dial names. Further ones are counted.
const NAMED: usize = 4;

impl Address {
    /// Where it leads: `A:P`, `NAME:P`, or the URL of a WebSocket at a name. None of an address through a relay, and of one
    /// inside this process. An address of IP has no URL: who came in from there is no server.
    pub fn place(&self) -> Option<String> {
        if let Some(socket) = self.socket() {
            return Some(named(socket));
        }
        if let Some(target) = Target::of(&self.0) {
            return Some(written(&target)).filter(|_| matches!(target.host, Host::Name(_)));
        }
        match self.0.iter().next()? {
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                let port = self.port().filter(|_| self.relay().is_none())?;
                Some(place(&name, port))
            }
            _ => None,
        }
    }

    /// The link that it names, where this machine has no such link.
    pub fn missing_link(&self) -> Option<String> {
        missing_link(&self.0)
    }

    /// The link-local address of IPv6 in it, where the link is missing that it is an address of.
    pub fn lacks_link(&self) -> Option<Ipv6Addr> {
        match self.ip()? {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                zone_of(&self.0).is_none().then_some(ip)
            }
            _ => None,
        }
    }
}

/// The place of what is dialled over TCP.
fn written(target: &Target) -> String {
    let whole = place(&target.host.text(), target.port);
    let Some(web) = &target.web else {
        return whole;
    };
    let (scheme, usual) = if web.tls {
        ("wss", ":443")
    } else {
        ("ws", ":80")
    };
    let host = whole.strip_suffix(usual).unwrap_or(&whole);
    let path = web.path.strip_prefix('/').filter(|rest| !rest.is_empty());
    path.map_or_else(
        || format!("{scheme}://{host}"),
        |path| format!("{scheme}://{host}/{path}"),
    )
}

/// What failed dials say to a person: each reason once, behind the places that it is about.
pub(super) fn failed(failures: &[(Multiaddr, TransportError<std::io::Error>)]) -> String {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (address, error) in failures {
        by_reason
            .entry(innermost(error))
            .or_default()
            .push(tried(address));
    }
    let each = by_reason.into_iter().map(|(why, mut places)| {
        places.dedup();
        let more = places.len().saturating_sub(NAMED);
        places.truncate(NAMED);
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{}{more}: {why}", places.join(", "))
    });
    each.collect::<Vec<_>>().join("; ")
}

/// The place of an address and how it was tried.
pub(super) fn tried(address: &Multiaddr) -> String {
    let address = Address(canonical(address.clone()));
    if let Some(relay) = address.relay() {
        return format!("relay {}", relay.short());
    }
    let carrier = address.carrier().map(super::Carrier::as_str);
    match (address.place(), carrier) {
        (Some(place), Some(_)) if place.contains("://") => place,
        (Some(place), Some(carrier)) => format!("{place} by {carrier}"),
        (place, _) => place.unwrap_or_else(|| address.to_string()),
    }
}

/// The last cause: transports wrap the kernel's error several times. What a resolver says in its own terms is said in plain
/// words.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    loop {
        match cause.downcast_ref::<ResolveError>() {
            Some(unknown) if unknown.is_no_records_found() => {
                return "the name does not resolve".to_owned();
            }
            Some(other) => return format!("the name does not resolve: {other}"),
            None => {}
        }
        let Some(deeper) = cause.source() else {
            return cause.to_string();
        };
        cause = deeper;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const PEER: &str = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo";

    #[test]
    fn an_address_is_shown_as_it_is_typed() {
        for (address, shown) in [
            ("/ip4/203.0.113.9/udp/4100/quic-v1", "203.0.113.9:4100"),
            ("/ip6/2001:db8::9/tcp/4100", "[2001:db8::9]:4100"),
            ("/dns/vpn.example/tcp/4100", "vpn.example:4100"),
            ("/dns/vpn.example/udp/4100/quic-v1", "vpn.example:4100"),
            (
                "/dns/vpn.example/tcp/443/x-parity-wss/%2Fbyway",
                "wss://vpn.example/byway",
            ),
            ("/dns4/vpn.example/tcp/443/wss", "wss://vpn.example"),
            ("/dns6/vpn.example/tcp/8080/ws", "ws://vpn.example:8080"),
            ("/ip4/203.0.113.9/tcp/443/wss", "203.0.113.9:443"),
        ] {
            for address in [address.to_owned(), format!("{address}/p2p/{PEER}")] {
                let read: Address = address.parse().unwrap();
                assert_eq!(read.place().unwrap(), shown, "{address}");
            }
        }
        let through = format!("/ip4/203.0.113.9/tcp/4100/p2p/{PEER}/p2p-circuit");
        assert_eq!(through.parse::<Address>().unwrap().place(), None);
    }

    #[test]
    fn a_failure_names_each_reason_once_and_no_peer() {
        let failure = |address: String, why: &str| {
            let error = TransportError::Other(io::Error::other(why.to_owned()));
            (address.parse::<Multiaddr>().unwrap(), error)
        };
        let mut failures: Vec<_> = ["udp/4100/quic-v1", "tcp/4100", "tcp/443/wss"]
            .iter()
            .map(|end| failure(format!("/ip4/203.0.113.9/{end}/p2p/{PEER}"), "it is silent"))
            .collect();
        failures.push(failure(
            format!("/dns/vpn.example/tcp/80/ws/p2p/{PEER}"),
            "nobody knows that name",
        ));
        assert_eq!(
            failed(&failures),
            "203.0.113.9:4100 by quic, 203.0.113.9:4100 by tcp, 203.0.113.9:443 by ws: it is silent; \
             ws://vpn.example: nobody knows that name"
        );
        let many: Vec<_> = (1..=9)
            .map(|n| failure(format!("/ip4/203.0.113.{n}/tcp/4100"), "it is silent"))
            .collect();
        let said = failed(&many);
        assert!(
            said.ends_with("203.0.113.4:4100 by tcp and 5 more: it is silent"),
            "{said}"
        );
    }
}
