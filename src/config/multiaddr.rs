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
/// HOST is `/ip4/A`, `/ip6/A` or `/dns/N` (`dns4`, `dns6`), or a link-local address on one link, `/ip6zone/LINK/ip6/A`, at
/// which nobody listens and no WebSocket is spoken; TRANSPORT is `/tcp/PORT`, `/udp/PORT[/quic-v1]`, or that of a
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
    let mut parts = without_link(text).split('/').skip(2);
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
    let host = without_link(text).split('/').nth(2)?;
    let is_straight = !text.contains("/p2p-circuit");
    host.parse().ok().filter(|_| is_straight)
}

/// What stands behind the name of the link, where one is named.
fn without_link(text: &str) -> &str {
    let named = text
        .strip_prefix(ZONE)
        .and_then(|rest| rest.find('/').map(|at| rest.split_at(at)));
    named.map_or(text, |(_, rest)| rest)
}

/// What stands before the name of a link.
const ZONE: &str = "/ip6zone/";
/// Longest name of a link, in bytes: the kernel's bound.
const LINK: usize = 15;

/// The port where an address names none.
const PORT: u16 = 4100;

/// What is said of `USER:PASSWORD@` before a host.
const NO_CREDENTIALS: &str = "a user name and a password have no place here: peers are known by their keys (those of a proxy \
                              stand in transport.proxy)";

/// The port of HTTPS, where a WebSocket is expected.
const HTTPS: u16 = 443;

/// A multiaddr as [`check`] gives it back; of `HOST`, `HOST:PORT`, both perhaps with `/p2p/ID` behind, the addresses that
/// are meant (a link-local HOST of IPv6 may name its link, `fe80::1%eth0`): by UDP and by TCP, and where it is dialled at port 443 by a WebSocket inside TLS as well. A URL, `wss://HOST[:PORT][/PATH]` or
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
    // Who gives a password does not mean it to be repeated.
    let shown = || match text.rsplit_once('@') {
        Some((before, behind)) => {
            let scheme = before.find("://").and_then(|at| before.get(..at + 3));
            let scheme = scheme.unwrap_or_default().chars();
            let whole = scheme.chain("***@".chars()).chain(behind.chars());
            whole.take(100).collect::<String>()
        }
        None => text.chars().take(100).collect(),
    };
    if let Some((scheme, rest)) = place.split_once("://") {
        let one = url(scheme, rest).and_then(|one| parse(&format!("{one}{id}"), peer));
        return one
            .map(|one| vec![one])
            .map_err(|why| format!("{:?} is not the URL of a WebSocket: {why}", shown()));
    }
    let named = if place.contains('@') {
        Err(NO_CREDENTIALS.to_owned())
    } else {
        host_port(place, PORT)
    };
    let each = named.and_then(|(host, port)| {
        let is_dialled = peer != Peer::Forbidden;
        let has_web = port == HTTPS && is_dialled && !host.starts_with(ZONE);
        let web = has_web.then(|| format!("{host}/tcp/{port}/wss{id}"));
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
    if place.contains('@') {
        return Err(NO_CREDENTIALS.to_owned());
    }
    let (host, port) = host_port(place, port)?;
    let end = match (tls, path) {
        (true, "/") => "wss".to_owned(),
        (false, "/") => "ws".to_owned(),
        (true, path) => format!("x-parity-wss/{}", path.replace('/', "%2F")),
        (false, path) => format!("x-parity-ws/{}", path.replace('/', "%2F")),
    };
    Ok(format!("{host}/tcp/{port}/{end}"))
}

/// `/ip4/A`, `/ip6/A`, `/ip6zone/LINK/ip6/A` or `/dns/N`.
fn host(text: &str) -> Result<String, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => Ok(format!("/ip4/{ip}")),
        Ok(IpAddr::V6(ip)) => Ok(format!("/ip6/{ip}")),
        Err(_) if text.contains('%') => on_link(text),
        // No name ends in a number (RFC 3696, section 2): it is an address with a mistake in it.
        Err(_)
            if text
                .rsplit('.')
                .next()
                .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit())) =>
        {
            Err(format!("{text:?} is not an IP address"))
        }
        Err(_) if is_host_name(text) => Ok(format!("/dns/{text}")),
        Err(_) => Err(format!("{text:?} is not a host name")),
    }
}

/// `A%LINK` as a multiaddr has it.
fn on_link(text: &str) -> Result<String, String> {
    let (address, link) = text.split_once('%').unwrap_or((text, ""));
    let ip = address
        .parse::<Ipv6Addr>()
        .map_err(|_| format!("{address:?} is not an IPv6 address"))?;
    of_link(link, ip)
}

/// `/ip6zone/LINK/ip6/A`. Whether there is such a link is seen when it is dialled: links come and go.
fn of_link(link: &str, ip: Ipv6Addr) -> Result<String, String> {
    let is_usual = |b: u8| b.is_ascii_graphic() && !b"/:%".contains(&b);
    if !(1..=LINK).contains(&link.len()) || !link.bytes().all(is_usual) {
        return Err(format!("{link:?} is not the name of a link"));
    }
    if !ip.is_unicast_link_local() {
        return Err(format!("{ip} is not link-local, so that it names no link"));
    }
    Ok(format!("{ZONE}{link}/ip6/{ip}"))
}

/// The host as [`host`] writes it, and the port, which is the usual one where none is named.
fn host_port(text: &str, usual: u16) -> Result<(String, u16), String> {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let scoped = text
        .split_once('%')
        .filter(|(ip, link)| is_address(ip) && !link.contains(':'));
    if is_address(text) || scoped.is_some() {
        return Ok((host(text)?, usual));
    }
    let (place, port) = match text.rsplit_once(':') {
        Some((place, port)) if !text.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let number = port.parse::<u16>().ok().filter(|n| digits && *n != 0);
            (
                place,
                number.ok_or_else(|| format!("{port:?} is not a port"))?,
            )
        }
        _ => (text, usual),
    };
    match place.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) if inner.contains('%') => Ok((on_link(inner)?, port)),
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => Ok((host(inner)?, port)),
        Some(inner) => Err(format!("{inner:?} is not an IPv6 address")),
        None if place.contains(':') => {
            Err("an IPv6 address with a port stands in brackets, as in [fd00::1]:4100".to_owned())
        }
        None => Ok((host(place)?, port)),
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
    let place = first(&mut parts)?;
    let has_link = place.starts_with(ZONE);
    if has_link && peer == Peer::Forbidden {
        return Err("a link is named only where a peer is dialled".to_owned());
    }
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
    if has_link && transport == "tcp" && !above.is_empty() {
        return Err("no WebSocket is spoken at a link-local address".to_owned());
    }
    let id = tail(&parts.collect::<Vec<_>>(), peer)?;
    Ok(format!("{place}/{transport}/{number}{above}{id}"))
}

/// The host that a multiaddr begins with, in the form that it is kept in.
fn first<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Result<String, String> {
    let mut kind = parts.next().unwrap_or_default();
    let mut next = |kind: &str| parts.next().ok_or_else(|| format!("nothing after /{kind}"));
    let mut host = next(kind)?;
    let link = (kind == "ip6zone").then_some(host);
    if link.is_some() {
        kind = next(kind)?;
        if kind != "ip6" {
            return Err(format!("expected ip6 after ip6zone, found {kind:?}"));
        }
        host = next(kind)?;
    }
    match kind {
        "ip4" => host
            .parse::<Ipv4Addr>()
            .map(|ip| format!("/ip4/{ip}"))
            .map_err(|_| format!("{host:?} is not an IPv4 address")),
        "ip6" => {
            let ip = host
                .parse::<Ipv6Addr>()
                .map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            link.map_or_else(|| Ok(format!("/ip6/{ip}")), |link| of_link(link, ip))
        }
        "dns" | "dns4" | "dns6" if is_host_name(host) => Ok(format!("/{kind}/{host}")),
        "dns" | "dns4" | "dns6" => Err(format!("{host:?} is not a host name")),
        other => Err(format!(
            "expected ip4, ip6, ip6zone, dns, dns4 or dns6 first, found {other:?}"
        )),
    }
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
mod tests;
