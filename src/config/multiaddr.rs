//! Multiaddrs as far as a person types them: checked here so that the message names the wrong part.
//!
//! The swarm parses them for real; this only keeps out what could never be listened on or dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::id::PeerId;

/// Whether an address has to end in `/p2p/ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The address has to end in a peer's ID.
    Required,
    /// The address may end in a peer's ID.
    Optional,
    /// The address must not end in a peer's ID.
    Forbidden,
}

/// Longest path of a WebSocket, in bytes.
const PATH: usize = 128;
/// Longest text that is looked at, in bytes.
const MAX_LEN: usize = 512;

/// Checks `HOST/TRANSPORT[/p2p/ID]` and gives it back; `/quic-v1` is added to a UDP address without it. Where an ID may stand,
/// the address may lead through a relay: `HOST/TRANSPORT/p2p/RELAY/p2p-circuit/p2p/ID`.
///
/// HOST is `/ip4/A`, `/ip6/A` or `/dns/N` (`dns4`, `dns6`); TRANSPORT is `/tcp/PORT`, `/udp/PORT[/quic-v1]`, or that of a
/// WebSocket: `/tcp/PORT/ws` and, inside TLS, `/tcp/PORT/wss` (`/tls/ws` is the same); at another path than `/` it is
/// `/x-parity-ws/PATH` and `/x-parity-wss/PATH`, with `%2F` for `/`.
///
/// # Errors
/// What is wrong, with the text.
pub fn check(text: &str, peer: Peer) -> Result<String, String> {
    parse(text, peer).map_err(|why| {
        let shown: String = text.chars().take(100).collect();
        format!("{shown:?} is not a usable multiaddr: {why}")
    })
}

/// Whether somebody could be at a multiaddr that [`check`] gave back: nobody is at the unspecified address, at one of a group
/// or of a whole network, or at port 0.
///
/// # Errors
/// What is wrong, with the text.
pub fn reachable(text: &str) -> Result<(), String> {
    let mut parts = text.split('/').skip(2);
    let (host, port) = (parts.next().unwrap_or_default(), parts.nth(1));
    let why = match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip.is_unspecified() => Some("nobody has the unspecified address"),
        Ok(ip) if ip.is_multicast() => Some("it is the address of a group"),
        Ok(IpAddr::V4(ip)) if ip.is_broadcast() => Some("it is the address of all on a link"),
        _ if port == Some("0") => Some("nobody listens on port 0"),
        _ => None,
    };
    why.map_or(Ok(()), |why| Err(format!("{text:?} leads nowhere: {why}")))
}

/// The IP address of a multiaddr that [`check`] gave back; none of a name, and of one that leads through a relay.
pub fn ip_of(text: &str) -> Option<IpAddr> {
    let host = text.split('/').nth(2)?;
    let is_straight = !text.contains("/p2p-circuit");
    host.parse().ok().filter(|_| is_straight)
}

/// The port where an address names none.
const PORT: u16 = 4100;

/// The port of HTTPS, where a WebSocket is expected.
const HTTPS: u16 = 443;

/// A multiaddr as [`check`] gives it back; of `HOST`, `HOST:PORT`, both perhaps with `/p2p/ID` behind, the addresses that
/// are meant: by UDP and by TCP, and where it is dialled at port 443 by a WebSocket inside TLS as well. A URL, `wss://HOST[:PORT][/PATH]` or
/// `ws://`, is that of a WebSocket; `https://` and `http://` are read alike.
///
/// # Errors
/// What is wrong, with the text.
pub fn expand(text: &str, peer: Peer) -> Result<Vec<String>, String> {
    if text.starts_with('/') {
        return check(text, peer).map(|one| vec![one]);
    }
    let (place, id) = text
        .split_once("/p2p/")
        .map_or((text, String::new()), |(p, id)| (p, format!("/p2p/{id}")));
    let shown = || text.chars().take(100).collect::<String>();
    if let Some((scheme, rest)) = place.split_once("://") {
        let one = url(scheme, rest).and_then(|one| parse(&format!("{one}{id}"), peer));
        return one
            .map(|one| vec![one])
            .map_err(|why| format!("{:?} is not the URL of a WebSocket: {why}", shown()));
    }
    let each = host_port(place, PORT).and_then(|(host, port)| {
        let is_dialled = peer != Peer::Forbidden;
        let web = (port == HTTPS && is_dialled).then(|| format!("{host}/tcp/{port}/wss{id}"));
        [
            format!("{host}/udp/{port}{id}"),
            format!("{host}/tcp/{port}{id}"),
        ]
        .into_iter()
        .chain(web)
        .map(|one| parse(&one, peer))
        .collect()
    });
    each.map_err(|why| {
        format!(
            "{:?} is neither a multiaddr nor HOST or HOST:PORT: {why}",
            shown()
        )
    })
}

/// The multiaddr of a WebSocket's URL, without its scheme.
fn url(scheme: &str, rest: &str) -> Result<String, String> {
    let (tls, port) = match scheme.to_ascii_lowercase().as_str() {
        "wss" | "https" => (true, HTTPS),
        "ws" | "http" => (false, 80),
        other => return Err(format!("expected wss:// or ws://, found {other:?}")),
    };
    let (place, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = host_port(place, port)?;
    let end = match (tls, path) {
        (true, "/") => "wss".to_owned(),
        (false, "/") => "ws".to_owned(),
        (true, path) => format!("x-parity-wss/{}", path.replace('/', "%2F")),
        (false, path) => format!("x-parity-ws/{}", path.replace('/', "%2F")),
    };
    Ok(format!("{host}/tcp/{port}/{end}"))
}

/// `/ip4/A`, `/ip6/A` or `/dns/N`, and the port, which is the usual one where none is named.
fn host_port(text: &str, usual: u16) -> Result<(String, u16), String> {
    let whole = |host: &str| match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => Ok(format!("/ip4/{ip}")),
        Ok(IpAddr::V6(ip)) => Ok(format!("/ip6/{ip}")),
        // No name ends in a number (RFC 3696, section 2): it is an address with a mistake in it.
        Err(_)
            if host
                .rsplit('.')
                .next()
                .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit())) =>
        {
            Err(format!("{host:?} is not an IP address"))
        }
        Err(_) if is_host_name(host) => Ok(format!("/dns/{host}")),
        Err(_) => Err(format!("{host:?} is not a host name")),
    };
    if text.parse::<IpAddr>().is_ok() {
        return Ok((whole(text)?, usual));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let number = port.parse::<u16>().ok().filter(|n| digits && *n != 0);
            (
                host,
                number.ok_or_else(|| format!("{port:?} is not a port"))?,
            )
        }
        _ => (text, usual),
    };
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => Ok((whole(inner)?, port)),
        Some(inner) => Err(format!("{inner:?} is not an IPv6 address")),
        None if host.contains(':') => {
            Err("an IPv6 address with a port stands in brackets, as in [fd00::1]:4100".to_owned())
        }
        None => Ok((whole(host)?, port)),
    }
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
    let host = parts
        .next()
        .ok_or_else(|| format!("nothing after /{kind}"))?;
    let host = match kind {
        "ip4" => host
            .parse::<Ipv4Addr>()
            .map_err(|_| format!("{host:?} is not an IPv4 address"))?
            .to_string(),
        "ip6" => host
            .parse::<Ipv6Addr>()
            .map_err(|_| format!("{host:?} is not an IPv6 address"))?
            .to_string(),
        "dns" | "dns4" | "dns6" if is_host_name(host) => host.to_owned(),
        "dns" | "dns4" | "dns6" => return Err(format!("{host:?} is not a host name")),
        other => {
            return Err(format!(
                "expected ip4, ip6, dns, dns4 or dns6 first, found {other:?}"
            ));
        }
    };
    let transport = parts.next().ok_or("it has no /tcp/PORT or /udp/PORT")?;
    if !matches!(transport, "tcp" | "udp") {
        return Err(format!("expected tcp or udp, found {transport:?}"));
    }
    let port = parts.next().unwrap_or_default();
    let number = port
        .parse::<u16>()
        .map_err(|_| format!("{port:?} is not a port"))?;
    let above = if transport == "udp" {
        parts.next_if_eq(&"quic-v1");
        "/quic-v1".to_owned()
    } else {
        websocket(&mut parts)?
    };
    let id = tail(&parts.collect::<Vec<_>>(), peer)?;
    Ok(format!("/{kind}/{host}/{transport}/{number}{above}{id}"))
}

/// The WebSocket behind a TCP port, as it is written in the shortest form; nothing where none is meant.
fn websocket<'a>(
    parts: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Result<String, String> {
    let tls = parts.next_if_eq(&"tls").is_some();
    let found = parts.next_if(|part| {
        let plain = ["ws", "x-parity-ws"].contains(part);
        plain || (!tls && ["wss", "x-parity-wss"].contains(part))
    });
    let (secure, path) = match found {
        None if tls => return Err("expected ws after tls".to_owned()),
        None => return Ok(String::new()),
        Some(word @ ("ws" | "wss")) => (tls || word == "wss", None),
        Some(word) => (
            tls || word == "x-parity-wss",
            Some(path(parts.next().unwrap_or_default())?),
        ),
    };
    let s = if secure { "s" } else { "" };
    Ok(match path {
        None => format!("/ws{s}"),
        Some(path) => format!("/x-parity-ws{s}/{path}"),
    })
}

/// The path of a WebSocket, as a multiaddr has it.
fn path(text: &str) -> Result<String, String> {
    let plain = text.replace("%2f", "/").replace("%2F", "/");
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    if plain.starts_with('/') && plain.len() <= PATH && plain.bytes().all(usual) {
        Ok(plain.replace('/', "%2F"))
    } else {
        Err(format!(
            "{text:?} is no path of a WebSocket: letters, digits, and / - . _ ~ between them"
        ))
    }
}

/// What may stand behind the port: the peer, or a relay and the peer behind it.
fn tail(parts: &[&str], peer: Peer) -> Result<String, String> {
    let named = |id: &str| id.parse::<PeerId>().map_err(|e| format!("{id:?}: {e}"));
    match parts {
        [] if peer == Peer::Required => Err("it has no /p2p/ID".to_owned()),
        [] => Ok(String::new()),
        ["p2p", _] if peer == Peer::Forbidden => Err("no /p2p/ID goes here".to_owned()),
        ["p2p", id] => Ok(format!("/p2p/{}", named(id)?)),
        ["p2p", _, "p2p-circuit", ..] if peer == Peer::Forbidden => {
            Err("no address through a relay goes here".to_owned())
        }
        ["p2p", _, "p2p-circuit"] => {
            Err("it names nobody behind the relay, as in .../p2p-circuit/p2p/ID".to_owned())
        }
        ["p2p", relay, "p2p-circuit", "p2p", id] => {
            let (relay, id) = (named(relay)?, named(id)?);
            if relay == id {
                return Err("it leads to the relay through itself".to_owned());
            }
            Ok(format!("/p2p/{relay}/p2p-circuit/p2p/{id}"))
        }
        ["p2p", _, "p2p-circuit", other, ..] => {
            Err(format!("expected p2p after p2p-circuit, found {other:?}"))
        }
        ["p2p-circuit", ..] => Err("the relay before p2p-circuit has no /p2p/ID".to_owned()),
        ["p2p"] => Err("nothing after /p2p".to_owned()),
        ["p2p", _, other, ..] | [other, ..] => {
            Err(format!("{other:?} is not known after the port"))
        }
    }
}

fn is_host_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
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
            (
                "/ip4/10.0.0.1/udp/4100",
                "/ip4/10.0.0.1/udp/4100/quic-v1".to_owned(),
            ),
            ("/ip6/fd00::1/tcp/4100", "/ip6/fd00::1/tcp/4100".to_owned()),
            (
                "/dns4/a.example/udp/4100/quic-v1",
                "/dns4/a.example/udp/4100/quic-v1".to_owned(),
            ),
            (
                &format!("/ip4/10.0.0.1/tcp/1/p2p/{id}"),
                format!("/ip4/10.0.0.1/tcp/1/p2p/{id}"),
            ),
        ] {
            assert_eq!(check(given, Peer::Optional), Ok(want));
        }
    }

    #[test]
    fn a_websocket_is_written_as_a_multiaddr_or_as_a_url() {
        let id = PeerId([7; 32]);
        let named = format!("/p2p/{id}");
        for (given, want) in [
            ("/ip4/10.0.0.1/tcp/443/wss", "/ip4/10.0.0.1/tcp/443/wss"),
            (
                "/dns4/a.example/tcp/443/tls/ws",
                "/dns4/a.example/tcp/443/wss",
            ),
            ("/ip6/fd00::1/tcp/80/ws", "/ip6/fd00::1/tcp/80/ws"),
            (
                "/dns/a.example/tcp/443/x-parity-wss/%2fbyway",
                "/dns/a.example/tcp/443/x-parity-wss/%2Fbyway",
            ),
            ("wss://a.example", "/dns/a.example/tcp/443/wss"),
            ("https://a.example/", "/dns/a.example/tcp/443/wss"),
            ("WSS://[fd00::1]:8443", "/ip6/fd00::1/tcp/8443/wss"),
            ("ws://10.0.0.1", "/ip4/10.0.0.1/tcp/80/ws"),
            (
                "wss://a.example/by/way",
                "/dns/a.example/tcp/443/x-parity-wss/%2Fby%2Fway",
            ),
        ] {
            assert_eq!(expand(given, Peer::Optional), Ok(vec![want.to_owned()]));
            let both = expand(
                &format!("{given}{named}").replace("//p2p", "/p2p"),
                Peer::Required,
            );
            assert_eq!(both, Ok(vec![format!("{want}{named}")]), "{given}");
            // The swarm reads the same.
            assert!(want.parse::<libp2p::Multiaddr>().is_ok(), "{want}");
        }
        let three = expand("a.example:443", Peer::Optional).unwrap();
        assert_eq!(three[2], "/dns/a.example/tcp/443/wss");
        assert_eq!(
            expand("a.example:443", Peer::Forbidden).unwrap(),
            three[..2]
        );
        for (bad, why) in [
            ("ftp://a.example", "expected wss://"),
            ("wss://a.example:0", "not a port"),
            ("wss://a.example/a b", "no path"),
            ("wss://a.example/?q=1", "no path"),
            ("/ip4/10.0.0.1/tcp/443/tls", "expected ws after tls"),
            ("/ip4/10.0.0.1/tcp/443/tls/wss", "expected ws after tls"),
            ("/ip4/10.0.0.1/udp/443/ws", "not known after the port"),
            ("/ip4/10.0.0.1/tcp/443/ws/ws", "not known after the port"),
            ("/ip4/10.0.0.1/tcp/443/x-parity-ws/a%0d%0a", "no path"),
        ] {
            let said = expand(bad, Peer::Optional).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn where_nobody_can_be_is_refused() {
        for (text, why) in [
            ("/ip4/0.0.0.0/udp/4100/quic-v1", "unspecified"),
            ("/ip6/::/tcp/4100", "unspecified"),
            ("/ip6/::ffff:0.0.0.0/tcp/4100", "unspecified"),
            ("/ip4/224.0.0.251/udp/4100/quic-v1", "group"),
            ("/ip6/ff02::1/tcp/4100", "group"),
            ("/ip4/255.255.255.255/tcp/4100", "all on a link"),
            ("/ip4/192.0.2.1/tcp/0", "port 0"),
            ("/dns/a.example/udp/0/quic-v1", "port 0"),
        ] {
            let said = reachable(text).unwrap_err();
            assert!(said.contains(why) && said.contains(text), "{said}");
        }
        for text in [
            "/ip4/127.0.0.1/tcp/4100",
            "/ip4/10.0.0.1/udp/1/quic-v1",
            "/ip6/fd00::1/tcp/4100",
            "/dns/0.example/tcp/4100",
        ] {
            assert_eq!(reachable(text), Ok(()));
        }
    }

    #[test]
    fn an_address_may_lead_through_a_relay_to_a_named_peer() {
        let (relay, id) = (PeerId([8; 32]), PeerId([7; 32]));
        let hop = format!("/ip4/10.0.0.1/udp/4100/quic-v1/p2p/{relay}");
        let given = format!("/ip4/10.0.0.1/udp/4100/p2p/{relay}/p2p-circuit/p2p/{id}");
        let want = format!("{hop}/p2p-circuit/p2p/{id}");
        for peer in [Peer::Optional, Peer::Required] {
            assert_eq!(check(&given, peer), Ok(want.clone()));
            assert!(want.parse::<crate::p2p::Address>().is_ok());
        }
        for (tail, peer, why) in [
            ("/p2p-circuit".to_owned(), Peer::Optional, "it names nobody"),
            (
                format!("/p2p-circuit/p2p/{relay}"),
                Peer::Optional,
                "through itself",
            ),
            (
                format!("/p2p-circuit/p2p/{id}"),
                Peer::Forbidden,
                "through a relay",
            ),
            (
                "/p2p-circuit/tcp/1".to_owned(),
                Peer::Optional,
                "found \"tcp\"",
            ),
            (
                "/p2p-circuit/p2p/x".to_owned(),
                Peer::Optional,
                "not a peer ID",
            ),
            (
                format!("/p2p-circuit/p2p/{id}/p2p-circuit"),
                Peer::Optional,
                "found",
            ),
        ] {
            let message = check(&format!("{hop}{tail}"), peer).unwrap_err();
            assert!(message.contains(why), "{tail}: {message}");
        }
        let nameless = format!("/ip4/10.0.0.1/tcp/1/p2p-circuit/p2p/{id}");
        let message = check(&nameless, Peer::Optional).unwrap_err();
        assert!(message.contains("has no /p2p/ID"), "{message}");
    }

    #[test]
    fn the_wrong_part_is_named() {
        for (given, peer, why) in [
            ("10.0.0.1:4100", Peer::Optional, "it begins with '/'"),
            (
                "/ip4/10.0.0/tcp/1",
                Peer::Optional,
                "\"10.0.0\" is not an IPv4 address",
            ),
            (
                "/ip4/10.0.0.1/tcp/65536",
                Peer::Optional,
                "\"65536\" is not a port",
            ),
            (
                "/ip4/10.0.0.1/sctp/1",
                Peer::Optional,
                "expected tcp or udp",
            ),
            ("/ip4/10.0.0.1/tcp/1", Peer::Required, "it has no /p2p/ID"),
            ("/ip4/10.0.0.1/tcp/1/p2p/x", Peer::Optional, "not a peer ID"),
            (
                "/ip4/10.0.0.1/tcp/1/webtransport",
                Peer::Optional,
                "\"webtransport\" is not known",
            ),
        ] {
            let message = check(given, peer).unwrap_err();
            assert!(message.contains(why), "{given}: {message}");
        }
    }

    #[test]
    fn a_host_is_meant_by_udp_and_by_tcp() {
        let id = PeerId([7; 32]);
        for (given, host, port, tail) in [
            ("10.0.0.1", "/ip4/10.0.0.1", 4100, String::new()),
            ("10.0.0.1:99", "/ip4/10.0.0.1", 99, String::new()),
            ("fd00::1", "/ip6/fd00::1", 4100, String::new()),
            ("[fd00::1]", "/ip6/fd00::1", 4100, String::new()),
            ("[fd00::1]:99", "/ip6/fd00::1", 99, String::new()),
            ("a.example", "/dns/a.example", 4100, String::new()),
            (
                "not-a-multiaddr:7",
                "/dns/not-a-multiaddr",
                7,
                String::new(),
            ),
            (
                &format!("a.example:99/p2p/{id}"),
                "/dns/a.example",
                99,
                format!("/p2p/{id}"),
            ),
        ] {
            let want = vec![
                format!("{host}/udp/{port}/quic-v1{tail}"),
                format!("{host}/tcp/{port}{tail}"),
            ];
            assert_eq!(expand(given, Peer::Optional), Ok(want), "{given}");
        }
        let one = "/ip4/10.0.0.1/tcp/4100";
        assert_eq!(expand(one, Peer::Optional), Ok(vec![one.to_owned()]));
        for (given, peer, why) in [
            ("", Peer::Optional, "is not"),
            ("300.1.1.1", Peer::Optional, "is not an IP address"),
            ("10.0.0.1:99999", Peer::Optional, "\"99999\" is not a port"),
            ("10.0.0.1:+9", Peer::Optional, "is not a port"),
            ("a.example:", Peer::Optional, "is not a port"),
            ("a b", Peer::Optional, "is not a host name"),
            ("[a.example]:9", Peer::Optional, "is not an IPv6 address"),
            ("fd00::1:2:3:4:5:6:7:4100", Peer::Optional, "brackets"),
            ("a.example", Peer::Required, "it has no /p2p/ID"),
            ("a.example/p2p/x", Peer::Optional, "not a peer ID"),
        ] {
            let message = expand(given, peer).unwrap_err();
            assert!(message.contains(why), "{given}: {message}");
        }
    }

    proptest! {
        #[test]
        fn expand_gives_what_check_takes(text in "[a-z0-9.:/\\[\\]-]{0,40}") {
            for one in expand(&text, Peer::Optional).unwrap_or_default() {
                prop_assert_eq!(check(&one, Peer::Optional), Ok(one.clone()));
            }
        }

        #[test]
        fn check_never_panics(text in ".{0,80}", tail in "(/[a-z0-9.:]{0,8}){0,8}") {
            let _ = check(&text, Peer::Optional);
            if let Ok(fine) = check(&tail, Peer::Optional) {
                prop_assert_eq!(check(&fine, Peer::Optional), Ok(fine.clone()));
            }
        }
    }
}
