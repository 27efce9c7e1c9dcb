//! Socket addresses in binary messages: port (2 bytes), family 4 or 6 (1), address (4 or 16), big-endian.
//!
//! An IPv4 address in IPv6 form is written, and read, as the IPv4 address it stands for: both ends compare addresses, and a
//! dual-stack socket names the same peer in either form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longest address.
pub const MAX_ADDRESS: usize = 2 + 1 + 16;

/// Appends an address.
pub fn put(address: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&address.port().to_be_bytes());
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
}

/// Reads an address from the front, and gives what is behind it; none where it is cut short or of another family.
pub fn take(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let ([p0, p1, family], rest) = bytes.split_first_chunk()?;
    let (ip, rest) = match *family {
        4 => rest
            .split_first_chunk()
            .map(|(ip, rest)| (IpAddr::V4(Ipv4Addr::from(*ip)), rest))?,
        6 => rest
            .split_first_chunk()
            .map(|(ip, rest)| (IpAddr::V6(Ipv6Addr::from(*ip)), rest))?,
        _ => return None,
    };
    let port = u16::from_be_bytes([*p0, *p1]);
    Some((SocketAddr::new(ip.to_canonical(), port), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Vec<u8> {
        let mut out = vec![9];
        put(text.parse().unwrap(), &mut out);
        out
    }

    #[test]
    fn addresses_by_hand_are_the_documented_layout() {
        let v4 = [9, 0x10, 0x04, 4, 192, 0, 2, 7];
        assert_eq!(bytes("192.0.2.7:4100"), v4);
        assert_eq!(
            bytes("[::ffff:192.0.2.7]:4100"),
            v4,
            "an IPv4 address in IPv6 form"
        );
        assert_eq!(bytes("[2001:db8::1]:1")[..6], [9, 0, 1, 6, 0x20, 0x01]);
        assert_eq!(take(&[0, 1, 5, 1, 2, 3, 4]), None, "no such family");
    }

    proptest! {
        #[test]
        fn an_address_reads_back_and_not_when_it_is_cut(v4: [u8; 4], v6: [u8; 16], is_v4: bool, port: u16, behind: Vec<u8>) {
            let ip = if is_v4 { IpAddr::from(v4) } else { IpAddr::from(v6).to_canonical() };
            let (address, mut out) = (SocketAddr::new(ip, port), Vec::new());
            put(address, &mut out);
            prop_assert!(out.len() <= MAX_ADDRESS);
            for short in 0..out.len() {
                prop_assert_eq!(take(&out[..short]), None);
            }
            out.extend_from_slice(&behind);
            prop_assert_eq!(take(&out), Some((address, behind.as_slice())));
        }
    }
}
