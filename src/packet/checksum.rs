//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).

use std::net::IpAddr;

/// Adds `bytes` to a running sum; an odd last byte counts as if a zero followed it, so only the last piece may be odd.
///
/// The sum is of 32-bit words: it folds to the same 16 bits and takes a quarter of the additions.
pub fn sum(bytes: &[u8], start: u64) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let total = words.fold(start, |acc, w| match w {
        [a, b, c, d] => acc.wrapping_add(u64::from(u32::from_be_bytes([*a, *b, *c, *d]))),
        _ => acc,
    });
    let tail = match rest {
        [a] => u32::from_be_bytes([*a, 0, 0, 0]),
        [a, b] => u32::from_be_bytes([*a, *b, 0, 0]),
        [a, b, c] => u32::from_be_bytes([*a, *b, *c, 0]),
        _ => 0,
    };
    total.wrapping_add(u64::from(tail))
}

/// Folds a running sum to 16 bits, not complemented.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The complemented checksum, as it stands in a header.
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Sum of the pseudo-header: both addresses, the protocol, and `length` bytes of transport header and payload.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let start = u64::from(protocol).wrapping_add(u64::try_from(length).unwrap_or(0));
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&d.octets(), sum(&s.octets(), start)),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&d.octets(), sum(&s.octets(), start)),
        _ => start,
    }
}

/// Finishes a partial checksum, as a network card would: the field at `start + offset` already holds the pseudo-header's
/// sum; everything from `start` on is added and the complement written there. False where it does not fit.
pub fn complete(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(total) = packet.get(start..).map(|covered| sum(covered, 0)) else {
        return false;
    };
    let at = start.saturating_add(offset);
    match packet.get_mut(at..at.saturating_add(2)) {
        Some(field) => {
            // Zero means "none" to UDP over IPv4 and is forbidden over IPv6; all ones is the same number (RFC 768).
            let value = finish(total);
            field.copy_from_slice(&if value == 0 { u16::MAX } else { value }.to_be_bytes());
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut acc = 0u32;
        for pair in bytes.chunks(2) {
            acc += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            acc = (acc & 0xffff) + (acc >> 16);
        }
        acc as u16
    }

    proptest! {
        #[test]
        fn sum_equals_the_slow_one(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes, 0)), slow(&bytes));
        }

        #[test]
        fn complete_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), start in 0usize..100, offset in 0usize..100) {
            complete(&mut bytes, start, offset);
        }
    }

    #[test]
    fn example_of_rfc_1071() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)),
            0xddf2
        );
    }
}
