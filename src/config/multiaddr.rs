//! Multiaddrs as far as a person types them: checked here so that the message names the wrong part.
//!
//! The swarm parses them for real; this only keeps out what could never be listened on or dialled.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::id::PeerId;

/// Whether `/p2p/ID` stands at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Must.
    Required,
    /// May.
    Optional,
    /// Must not.
    Forbidden,
}

/// Longest text looked at.
const MAX_LEN: usize = 512;

/// Checks `HOST/TRANSPORT[/p2p/ID]` and gives it back; `/quic-v1` is added to a UDP address without it.
///
/// HOST is `/ip4/A`, `/ip6/A` or `/dns/N` (`dns4`, `dns6`); TRANSPORT is `/tcp/PORT` or `/udp/PORT[/quic-v1]`.
///
/// # Errors
/// What is wrong, with the text.
pub fn check(text: &str, peer: Peer) -> Result<String, String> {
    parse(text, peer).map_err(|why| {
        let shown: String = text.chars().take(100).collect();
        format!("{shown:?} is not a usable multiaddr: {why}")
    })
}

fn parse(text: &str, peer: Peer) -> Result<String, String> {
    if text.len() > MAX_LEN {
        return Err(format!("longer than {MAX_LEN} bytes"));
    }
    let mut parts = text
        .strip_prefix('/')
        .ok_or("it begins with '/', as in /ip4/203.0.113.9/udp/4100/quic-v1")?
        .split('/')
        .peekable();
    let kind = parts.next().unwrap_or_default();
    let host = parts.next().ok_or_else(|| format!("nothing after /{kind}"))?;
    let host = match kind {
        "ip4" => host.parse::<Ipv4Addr>().map_err(|_| format!("{host:?} is not an IPv4 address"))?.to_string(),
        "ip6" => host.parse::<Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?.to_string(),
        "dns" | "dns4" | "dns6" if is_host_name(host) => host.to_owned(),
        "dns" | "dns4" | "dns6" => return Err(format!("{host:?} is not a host name")),
        other => return Err(format!("expected ip4, ip6, dns, dns4 or dns6 first, found {other:?}")),
    };
    let transport = parts.next().ok_or("it has no /tcp/PORT or /udp/PORT")?;
    if !matches!(transport, "tcp" | "udp") {
        return Err(format!("expected tcp or udp, found {transport:?}"));
    }
    let port = parts.next().unwrap_or_default();
    let number = port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"))?;
    let quic = transport == "udp";
    if quic {
        parts.next_if_eq(&"quic-v1");
    }
    let id = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) if peer == Peer::Required => return Err("it has no /p2p/ID".to_owned()),
        (None, ..) => String::new(),
        (Some("p2p"), Some(_), None) if peer == Peer::Forbidden => return Err("no /p2p/ID goes here".to_owned()),
        (Some("p2p"), Some(id), None) => format!("/p2p/{}", id.parse::<PeerId>().map_err(|e| format!("{id:?}: {e}"))?),
        (Some(other), ..) => return Err(format!("{other:?} is not known after the port")),
    };
    Ok(format!("/{kind}/{host}/{transport}/{number}{}{id}", if quic { "/quic-v1" } else { "" }))
}

fn is_host_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usable_addresses_pass_and_get_their_transport_spelled_out() {
        let id = PeerId([7; 32]);
        for (given, want) in [
            ("/ip4/10.0.0.1/udp/4100", "/ip4/10.0.0.1/udp/4100/quic-v1".to_owned()),
            ("/ip6/fd00::1/tcp/4100", "/ip6/fd00::1/tcp/4100".to_owned()),
            ("/dns4/a.example/udp/4100/quic-v1", "/dns4/a.example/udp/4100/quic-v1".to_owned()),
            (&format!("/ip4/10.0.0.1/tcp/1/p2p/{id}"), format!("/ip4/10.0.0.1/tcp/1/p2p/{id}")),
        ] {
            assert_eq!(check(given, Peer::Optional), Ok(want));
        }
    }

    #[test]
    fn the_wrong_part_is_named() {
        for (given, peer, why) in [
            ("10.0.0.1:4100", Peer::Optional, "it begins with '/'"),
            ("/ip4/10.0.0/tcp/1", Peer::Optional, "\"10.0.0\" is not an IPv4 address"),
            ("/ip4/10.0.0.1/tcp/65536", Peer::Optional, "\"65536\" is not a port"),
            ("/ip4/10.0.0.1/sctp/1", Peer::Optional, "expected tcp or udp"),
            ("/ip4/10.0.0.1/tcp/1", Peer::Required, "it has no /p2p/ID"),
            ("/ip4/10.0.0.1/tcp/1/p2p/x", Peer::Optional, "not a peer ID"),
            ("/ip4/10.0.0.1/tcp/1/ws", Peer::Optional, "\"ws\" is not known"),
        ] {
            let message = check(given, peer).unwrap_err();
            assert!(message.contains(why), "{given}: {message}");
        }
    }

    proptest! {
        #[test]
        fn check_never_panics(text in ".{0,80}", tail in "(/[a-z0-9.:]{0,8}){0,8}") {
            let _ = check(&text, Peer::Optional);
            if let Ok(fine) = check(&tail, Peer::Optional) {
                prop_assert_eq!(check(&fine, Peer::Optional), Ok(fine.clone()));
            }
        }
    }
}
