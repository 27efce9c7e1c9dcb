//! Prefixes, addresses, ports, multiaddrs and hardware addresses.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Checked, dns_name, object, shown, wrong};
use crate::api::types::Cidr;
use crate::config::multiaddr;
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::model::mac as hardware;
use crate::model::ports::{PortRange, PortRangeError};

fn family<T>(text: &str, truncated: impl Fn(T) -> (T, bool), shape: &str) -> Checked<T>
where
    T: FromStr + std::fmt::Display + Copy,
{
    let net: T = text.parse().map_err(|_| {
        wrong(
            Code::Cidr,
            format!("{} is not a prefix such as {shape}", shown(text)),
        )
    })?;
    let (prefix, same) = truncated(net);
    if same {
        Ok(net)
    } else {
        Err(wrong(
            Code::Cidr,
            format!("{net} has bits set behind its prefix length; the prefix is {prefix}"),
        ))
    }
}

/// `auto`, `none` or an IPv4 prefix.
pub fn cidr4(text: &str) -> Checked<Cidr<Ipv4Net>> {
    match text {
        "auto" => Ok(Cidr::Auto),
        "none" => Ok(Cidr::None),
        _ => family(
            text,
            |n: Ipv4Net| (n.trunc(), n.trunc() == n),
            "10.77.0.0/16 (or auto, none)",
        )
        .map(Cidr::Given),
    }
}

/// `auto`, `none` or an IPv6 prefix.
pub fn cidr6(text: &str) -> Checked<Cidr<Ipv6Net>> {
    match text {
        "auto" => Ok(Cidr::Auto),
        "none" => Ok(Cidr::None),
        _ => family(
            text,
            |n: Ipv6Net| (n.trunc(), n.trunc() == n),
            "fd7a:31c0:9d2e::/48 (or auto, none)",
        )
        .map(Cidr::Given),
    }
}

/// A prefix of either family; an address alone is a prefix of full length.
pub fn prefix(text: &str) -> Checked<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) => family(
            text,
            |n: IpNet| (n.trunc(), n.trunc() == n),
            "10.77.5.0/24 or an address",
        ),
    }
}

/// An address of either family.
pub fn address(text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_| {
        wrong(
            Code::Address,
            format!("{} is not an IP address", shown(text)),
        )
    })
}

/// `HOST`, `HOST:PORT`, a URL or a multiaddr, with or without `/p2p/ID`. What is meant the daemon works out, and calls it what
/// was typed.
pub fn multiaddr(text: &str) -> Checked<String> {
    multiaddr::expand(text, multiaddr::Peer::Optional)
        .map(|_| text.to_owned())
        .map_err(|why| wrong(Code::Multiaddr, why))
}

/// A peer to connect to: where it is, or whatever names a peer.
pub fn peer(text: &str) -> Checked<String> {
    if text.starts_with('/') || text.contains(':') {
        multiaddr(text)
    } else {
        object(text)
    }
}

/// A port from 1 to 65535, or a range of them.
fn ports(text: &str) -> Checked<PortRange> {
    text.parse().map_err(|error| {
        let code = match error {
            PortRangeError::Form(_) => Code::Port,
            PortRangeError::Backwards(..) => Code::PortRange,
        };
        wrong(code, error.to_string())
    })
}

/// Host and ports of `HOST:PORT` or `HOST:PORT-PORT`; an IPv6 address stands in brackets.
fn host_port<'a>(text: &'a str, shape: &str) -> Checked<(&'a str, PortRange)> {
    let (host, tail) = text
        .rsplit_once(':')
        .ok_or_else(|| wrong(Code::Port, format!("{} is not {shape}", shown(text))))?;
    let ports = ports(tail)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner,
        None if host.contains(':') => {
            let message = format!(
                "{}: an IPv6 address stands in brackets, as in [::1]:80",
                shown(text)
            );
            return Err(wrong(Code::Address, message));
        }
        None => host,
    };
    Ok((host, ports))
}

/// Where a map listens: an address and ports, or with ports alone every address of both families.
pub type Listen = (Option<IpAddr>, PortRange);

/// `ADDRESS:PORT`, `:PORT` or `PORT`, each also with a range of ports.
pub fn listen(text: &str) -> Checked<Listen> {
    let bare = text.strip_prefix(':').unwrap_or(text);
    if !bare.contains(':') && bare.starts_with(|c: char| c.is_ascii_digit()) && !bare.contains('.')
    {
        return Ok((None, ports(bare)?));
    }
    let (host, ports) = host_port(
        text,
        "a port or ADDRESS:PORT, such as 8080, 127.0.0.1:8080 or [::1]:53",
    )?;
    Ok((Some(address(host)?), ports))
}

/// What a map leads to: an address or name, and ports.
pub fn map_target(text: &str) -> Checked<(String, PortRange)> {
    let (host, ports) = host_port(
        text,
        "NAME:PORT or ADDRESS:PORT, such as web:80 or 10.77.1.5:80",
    )?;
    if host.parse::<IpAddr>().is_ok() {
        Ok((host.to_owned(), ports))
    } else {
        Ok((dns_name(host)?, ports))
    }
}

/// A hardware address of one interface: six pairs of hex digits, not a group address.
pub fn mac(text: &str) -> Checked<String> {
    hardware::unicast(text).map(hardware::text).ok_or_else(|| {
        wrong(
            Code::Mac,
            format!(
                "{} is not a hardware address such as 02:00:00:00:00:01",
                shown(text)
            ),
        )
    })
}

/// Lines `ADDRESS PEER-ID`; empty lines and what follows `#` are skipped.
pub fn lease_lines(text: &str) -> Checked<Vec<(IpNet, PeerId)>> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let at = |why: String| wrong(Code::LeaseLine, format!("line {}: {why}", number + 1));
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [address, peer] = parts.as_slice() else {
            return Err(at(format!("{} is not ADDRESS PEER-ID", shown(line))));
        };
        let prefix = prefix(address).map_err(|e| at(e.message))?;
        let peer = peer
            .parse()
            .map_err(|e: crate::model::id::IdError| at(format!("{}: {e}", shown(peer))))?;
        entries.push((prefix, peer));
    }
    if entries.is_empty() {
        Err(wrong(
            Code::LeaseLine,
            "there is no line ADDRESS PEER-ID in it",
        ))
    } else {
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::code;
    use super::super::text_of;
    use super::*;

    #[test]
    fn prefixes_have_no_bits_behind_their_length() {
        assert_eq!(prefix("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert_eq!(
            prefix("10.77.5.1/24").unwrap_err().message,
            "10.77.5.1/24 has bits set behind its prefix length; the prefix is 10.77.5.0/24"
        );
        for text in ["10.0.0.0/33", "10.0.0/8", "x", "", "fd00::/129"] {
            assert_eq!(code(prefix(text)), "E-CIDR");
        }
        assert_eq!(code(cidr4("fd00::/8")), "E-CIDR");
        assert_eq!(code(cidr6("10.0.0.0/8")), "E-CIDR");
        assert_eq!(cidr4("none"), Ok(Cidr::None));
    }

    #[test]
    fn ports_are_from_1_to_65535() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert_eq!(
            listen("[::]:53").unwrap(),
            (Some("::".parse().unwrap()), range("53"))
        );
        assert_eq!(
            map_target("Web.lab:80").unwrap(),
            ("web.lab".to_owned(), range("80"))
        );
        assert_eq!(
            map_target("[fd00::1]:80").unwrap(),
            ("fd00::1".to_owned(), range("80"))
        );
        for text in [
            "0.0.0.0:0",
            "0.0.0.0:65536",
            "0.0.0.0:",
            "0.0.0.0:+1",
            "0.0.0.0",
            "web",
            "0.0.0.0:x",
        ] {
            assert_eq!(code(listen(text)), "E-PORT", "{text}");
        }
        assert_eq!(
            map_target("web:80-90"),
            Ok(("web".to_owned(), range("80-90")))
        );
        assert_eq!(code(listen("0.0.0.0:90-80")), "E-PORT-RANGE");
        assert_eq!(code(map_target("web:90-80")), "E-PORT-RANGE");
        assert_eq!(code(listen("::1:80")), "E-ADDRESS");
        assert_eq!(code(listen("web:80")), "E-ADDRESS");
        assert_eq!(code(map_target("a/b:80")), "E-NAME");
    }

    #[test]
    fn a_hardware_address_is_of_one_interface() {
        assert_eq!(mac("02:00:00:00:00:0A"), Ok("02:00:00:00:00:0a".to_owned()));
        assert_eq!(code(mac("01:00:00:00:00:01")), "E-MAC");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leases");
        std::fs::write(&file, format!("\u{feff}10.1.0.7 {}\r\n", PeerId([1; 32]))).unwrap();
        let text = text_of(&file.display().to_string(), 1000).unwrap();
        assert_eq!(lease_lines(&text).unwrap().len(), 1);
    }

    #[test]
    fn lease_lines_name_the_wrong_one() {
        let id = PeerId([1; 32]);
        let text = format!("# table\n10.1.0.7 {id}\n\nfd00::/64 {id} # site\n");
        assert_eq!(lease_lines(&text).unwrap().len(), 2);
        assert!(
            lease_lines("10.1.0.7 x")
                .unwrap_err()
                .message
                .starts_with("line 1: \"x\": not a peer ID")
        );
        assert!(
            lease_lines(&format!("\n10.1.0 {id}"))
                .unwrap_err()
                .message
                .starts_with("line 2: ")
        );
        assert_eq!(code(lease_lines("")), "E-LEASE-LINE");
    }
}
