//! Whom a request comes from, as reverse proxies say it: `X-Forwarded-For`, and `Forwarded` of RFC 7239.
//!
//! Each proxy adds whom it heard from behind what it was told, so that only the end of the list is worth anything: it is read
//! from there, as far as the addresses are those of proxies that are trusted, and the first other one is the client. What a
//! client wrote itself stands before that, and is not looked at. A list that cannot be read names nobody; neither do both
//! fields together where they differ, because a proxy that writes the one may pass the other on as the client wrote it.
//!
//! Pure: text in, an address out. Only who is sure that a trusted proxy sent the head may believe it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::http::LINES;

/// What the head of a request says of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// The client's address.
    Named(IpAddr),
    /// Nothing.
    Unnamed,
    /// What names no address, or two.
    Garbled,
}

/// The client of a request that a trusted proxy passed on; `is_proxy` says which addresses are those of others. Where all of
/// them are, it is the one that stands first.
pub fn client(head: &[u8], is_proxy: &dyn Fn(IpAddr) -> bool) -> Client {
    let mut fields = [httparse::EMPTY_HEADER; LINES];
    let mut request = httparse::Request::new(&mut fields);
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(_))) {
        return Client::Garbled;
    }
    let usual = list(request.headers, "x-forwarded-for");
    let usual = usual.map(|list| first_stranger(list.split(',').map(address), is_proxy));
    let standard = list(request.headers, "forwarded");
    let standard = standard.map(|list| first_stranger(nodes(&list)?.into_iter(), is_proxy));
    match (usual, standard) {
        (None, None) => Client::Unnamed,
        (Some(Some(ip)), None) | (None, Some(Some(ip))) => Client::Named(ip),
        (Some(Some(one)), Some(Some(other))) if one == other => Client::Named(one),
        _ => Client::Garbled,
    }
}

/// What fields of this name list: several of them are one.
fn list(headers: &[httparse::Header<'_>], name: &str) -> Option<String> {
    let mut all = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case(name))
        .map(|header| String::from_utf8_lossy(header.value));
    let first = all.next()?.into_owned();
    Some(all.fold(first, |list, more| list + "," + &more))
}

/// The last address that is not a proxy's, or the first of all; none where one that has to be read cannot.
fn first_stranger(
    hops: impl DoubleEndedIterator<Item = Option<IpAddr>>,
    is_proxy: &dyn Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut client = None;
    for hop in hops.rev() {
        let ip = hop?;
        client = Some(ip);
        if !is_proxy(ip) {
            break;
        }
    }
    client
}

/// An address of one host, perhaps with a port. RFC 7239 has IPv6 addresses in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let in_brackets = || {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    };
    let with_port = || text.parse::<SocketAddr>().ok().map(|at| at.ip());
    let ip = text.parse().ok().or_else(with_port).or_else(in_brackets)?;
    let ip = ip.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    (!ip.is_unspecified() && !ip.is_multicast() && !is_broadcast).then_some(ip)
}

/// Whom each element of `Forwarded` is for; none of one that names no address. None of a list that is no such list.
fn nodes(list: &str) -> Option<Vec<Option<IpAddr>>> {
    let mut nodes = Vec::new();
    for element in split(list, ',')? {
        let mut node = None;
        for pair in split(element, ';')? {
            let (name, value) = pair.split_once('=')?;
            let is_for = name.trim().eq_ignore_ascii_case("for");
            if is_for && node.replace(unquoted(value.trim())?).is_some() {
                return None;
            }
        }
        nodes.push(node.and_then(address));
    }
    Some(nodes)
}

/// The parts between separators that are not quoted; none where a quote does not end.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let is_end = |c: char| {
        let is_escaped = escaped;
        escaped = quoted && !is_escaped && c == '\\';
        quoted ^= c == '"' && !is_escaped;
        c == separator && !quoted
    };
    let parts = text.split(is_end).collect();
    (!quoted).then_some(parts)
}

/// A value without its quotes; none of one that is quoted in part. No address has a character that would be escaped.
fn unquoted(value: &str) -> Option<&str> {
    let inner = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => value,
    };
    (!inner.contains(['"', '\\'])).then_some(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What fields say of the client, with 10.0.0.0/8 and 2001:db8:b::/48 as proxies.
    fn said(fields: &str) -> Client {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        client(head.as_bytes(), &|ip| match ip {
            IpAddr::V4(v4) => v4.octets()[0] == 10,
            IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 0xdb8, 0xb],
        })
    }

    fn named(ip: &str) -> Client {
        Client::Named(ip.parse().unwrap())
    }

    #[test]
    fn the_last_address_that_is_no_proxy_s_is_the_client_whatever_stands_before_it() {
        for (list, ip) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7:4711", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7, 10.0.0.1,10.9.9.9", "192.0.2.7"),
            // A client may write anything.
            ("unknown, <script>, \", 192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            // All of them are proxies: a machine beside them asks.
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ] {
            assert_eq!(
                said(&format!("X-Forwarded-For: {list}\r\n")),
                named(ip),
                "{list}"
            );
        }
        let two = "x-forwarded-for: 198.51.100.1\r\nX-FORWARDED-FOR: 192.0.2.7\r\n";
        assert_eq!(said(two), named("192.0.2.7"), "several fields are one list");
    }

    #[test]
    fn the_standard_field_is_read_with_its_quotes() {
        for (list, ip) in [
            ("for=192.0.2.7", "192.0.2.7"),
            ("For=\"192.0.2.7:4711\";proto=https", "192.0.2.7"),
            (
                "proto=https; by=10.0.0.1 ;for=\"[2001:db8::7]:4711\"",
                "2001:db8::7",
            ),
            (
                "for=198.51.100.1;host=\"a,b;c\\\"d\", for=192.0.2.7, for=10.0.0.2",
                "192.0.2.7",
            ),
            ("for=_hidden, for=192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(said(&format!("Forwarded: {list}\r\n")), named(ip), "{list}");
        }
    }

    #[test]
    fn what_cannot_be_read_names_nobody() {
        assert_eq!(said(""), Client::Unnamed);
        assert_eq!(client(b"\x16\x03\x01\r\n\r\n", &|_| false), Client::Garbled);
        for fields in [
            "X-Forwarded-For: \r\n",
            "X-Forwarded-For: unknown\r\n",
            "X-Forwarded-For: 192.0.2.7, \r\n",
            "X-Forwarded-For: 192.0.2.7, unknown, 10.0.0.1\r\n",
            "X-Forwarded-For: 192.0.2.300\r\n",
            "X-Forwarded-For: 0.0.0.0\r\n",
            "X-Forwarded-For: 255.255.255.255\r\n",
            "X-Forwarded-For: ff02::1\r\n",
            "X-Forwarded-For: fe80::1%eth0\r\n",
            "X-Forwarded-For: \"192.0.2.7\"\r\n",
            "Forwarded: for=unknown\r\n",
            "Forwarded: for=_hidden\r\n",
            "Forwarded: proto=https\r\n",
            "Forwarded: 192.0.2.7\r\n",
            "Forwarded: for=198.51.100.1;for=192.0.2.7\r\n",
            "Forwarded: for=\"192.0.2.7\r\n",
            "Forwarded: for=192.0.2.7\"\r\n",
            // The client leaves a quote open for what the proxy adds.
            "Forwarded: for=198.51.100.1;x=\", for=192.0.2.7\r\n",
            "Forwarded: for=198.51.100.1;x=\", for=\"[2001:db8::7]\"\r\n",
            "Forwarded: for=198.51.100.1;x=\"\\, for=\"[2001:db8::7]\"\r\n",
            // One of the two may be the client's own.
            "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=198.51.100.1\r\n",
            "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=unknown\r\n",
            "X-Forwarded-For: unknown\r\nForwarded: for=192.0.2.7\r\n",
        ] {
            assert_eq!(said(fields), Client::Garbled, "{fields}");
        }
        let both = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\n";
        assert_eq!(said(both), named("192.0.2.7"));
    }

    proptest! {
        #[test]
        fn whatever_a_client_wrote_the_proxy_that_adds_to_it_is_heard_or_nobody(
            own in "[ -~]{0,40}", standard: bool,
        ) {
            let fields = match standard {
                true => format!("Forwarded: {own}, for=\"[2001:db8::7]\";proto=https\r\n"),
                false => format!("X-Forwarded-For: {own}, 2001:db8::7\r\n"),
            };
            let heard = said(&fields);
            prop_assert!(heard == named("2001:db8::7") || (standard && heard == Client::Garbled), "{:?}", heard);
        }

        #[test]
        fn no_head_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = client(&bytes, &|_| false);
            let head = [b"GET / HTTP/1.1\r\nForwarded: ", &bytes[..], b"\r\n\r\n"].concat();
            let _ = client(&head, &|_| true);
        }
    }
}
