//! Lowering the largest segment a TCP connection agrees on (MSS, RFC 9293 section 3.7.1) to what the path carries.
//!
//! A sender that is not told, because an ICMP error gets lost between it and us, never sends what would not fit.

use super::checksum;
use super::offload::{Kind, Offload, field, put};
use super::parse::{Packet, TCP, Version};

const SYN: u8 = 0x02;
/// Bytes of the TCP header without options.
const TCP_HEADER: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Whether the packet opens a TCP connection: its SYN, or the answer to one.
pub fn is_syn(packet: &Packet, bytes: &[u8]) -> bool {
    packet.protocol == TCP
        && packet.is_tcp_or_udp()
        && bytes
            .get(packet.transport.saturating_add(13))
            .is_some_and(|flags| flags & SYN != 0)
}

/// Lowers the MSS option of a SYN to `mtu` less 40 bytes (IPv4) or 60 (IPv6), and mends a complete TCP checksum; a partial
/// one covers only the pseudo-header and stays. Whether anything was changed: a packet without the option (it means 536 or
/// 1220 then), with a lower one, with options that do not fit, or that is no SYN is left as it is.
///
/// `packet` and `offload` are those of `bytes`; a checksum that the sender has to complete itself
/// ([`Outgoing::complete`](super::offload::Outgoing)) must have been.
pub fn clamp(bytes: &mut [u8], packet: &Packet, offload: &Offload, mtu: usize) -> bool {
    let partial = match offload.kind {
        Kind::None => false,
        Kind::Partial => true,
        // A SYN is never a super-packet.
        _ => return false,
    };
    // The options of IP and TCP are no part of it (RFC 6691).
    let headers = match packet.version {
        Version::V4 => 40,
        Version::V6 => 60,
    };
    let Some(most) = mtu
        .checked_sub(headers)
        .and_then(|most| u16::try_from(most).ok())
        .filter(|_| is_syn(packet, bytes))
    else {
        return false;
    };
    let mut at = packet.transport.saturating_add(TCP_HEADER);
    while let Some(kind) = bytes
        .get(at..packet.headers)
        .and_then(|options| options.first())
        .copied()
    {
        let length = match kind {
            OPTION_END => return false,
            OPTION_NOP => 1,
            _ => match bytes.get(at.saturating_add(1)) {
                Some(length) if *length >= 2 => usize::from(*length),
                _ => return false,
            },
        };
        let next = at.saturating_add(length);
        if next > packet.headers {
            return false;
        }
        if kind == OPTION_MSS {
            let value_at = at.saturating_add(2);
            return match field(bytes, value_at) {
                Some(stated) if length == 4 && stated > most => {
                    put(bytes, value_at, most);
                    if !partial {
                        mend_checksum(bytes, packet, value_at, stated, most);
                    }
                    true
                }
                _ => false,
            };
        }
        at = next;
    }
    false
}

/// Follows a change of the 16 bits at `at` in the TCP checksum: `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3).
fn mend_checksum(bytes: &mut [u8], packet: &Packet, at: usize, before: u16, after: u16) {
    // At an odd place the two bytes belong to two words; swapped they add up to the same.
    let odd = at.saturating_sub(packet.transport) % 2 == 1;
    let term = |value: u16| u64::from(if odd { value.swap_bytes() } else { value });
    let place = packet.transport.saturating_add(16);
    if let Some(old) = field(bytes, place) {
        let sum = u64::from(!old)
            .wrapping_add(term(!before))
            .wrapping_add(term(after));
        put(bytes, place, checksum::finish(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::super::offload::pseudo_sum;
    use super::super::parse::parse;
    use super::super::parse::samples::{ip, tcp, udp};
    use super::*;
    use proptest::prelude::*;

    const PARTIAL: Offload = Offload {
        kind: Kind::Partial,
        ..Offload::NONE
    };

    /// A SYN with these options (padded by end marks), checksum complete.
    fn syn(v4: bool, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let (s, d) = if v4 {
            (ip("10.0.0.1"), ip("10.0.0.2"))
        } else {
            (ip("fd00::1"), ip("fd00::2"))
        };
        let mut bytes = tcp(s, d, payload);
        let (at, words) = (parse(&bytes).unwrap().transport, options.len().div_ceil(4));
        let mut padded = options.to_vec();
        padded.resize(4 * words, 0);
        // The sample's own options are 12 bytes.
        bytes.splice(at + 20..at + 32, padded);
        (bytes[at + 12], bytes[at + 13]) = (0x50 + 0x10 * words as u8, flags);
        let length = bytes.len();
        if v4 {
            put(&mut bytes, 2, length as u16)
        } else {
            put(&mut bytes, 4, (length - 40) as u16)
        }
        let packet = parse(&bytes).unwrap();
        put(&mut bytes, at + 16, pseudo_sum(&packet));
        checksum::complete(&mut bytes, at, 16);
        bytes
    }

    fn is_valid(bytes: &[u8]) -> bool {
        let packet = parse(bytes).unwrap();
        let start = checksum::pseudo(
            packet.source,
            packet.destination,
            TCP,
            packet.length - packet.transport,
        );
        checksum::fold(checksum::sum(&bytes[packet.transport..], start)) == 0xffff
    }

    proptest! {
        #[test]
        fn only_the_value_and_its_checksum_change(
            v4: bool, partial: bool, ack: bool, nops in 0usize..8, stated: u16, mtu in 0usize..70_000, sums: u16, payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut options = vec![OPTION_NOP; nops];
            options.extend_from_slice(&[OPTION_MSS, 4]);
            options.extend_from_slice(&stated.to_be_bytes());
            options.extend_from_slice(&[4, 2, 3, 3, 7]);
            let mut before = syn(v4, if ack { 0x12 } else { 0x02 }, &options, &payload);
            let packet = parse(&before).unwrap();
            let place = packet.transport + 16;
            if partial { put(&mut before, place, sums); }
            let mut bytes = before.clone();
            let changed = clamp(&mut bytes, &packet, if partial { &PARTIAL } else { &Offload::NONE }, mtu);
            let most = mtu.checked_sub(if v4 { 40 } else { 60 }).filter(|most| *most < usize::from(stated));
            prop_assert_eq!(changed, most.is_some());
            let mut want = before;
            if let Some(most) = most { put(&mut want, packet.transport + 20 + nops + 2, most as u16); }
            if !partial {
                prop_assert!(is_valid(&bytes));
                let sum = field(&bytes, place).unwrap();
                put(&mut want, place, sum);
            }
            prop_assert_eq!(bytes, want);
        }

        #[test]
        fn clamp_never_panics(options in prop::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..40), flags: u8, v4: bool, mtu in 0usize..3000) {
            let before = syn(v4, flags, &options, b"");
            let mut bytes = before.clone();
            let packet = parse(&bytes).unwrap();
            let changed = clamp(&mut bytes, &packet, &Offload::NONE, mtu);
            prop_assert!(is_valid(&bytes));
            prop_assert_eq!(changed, bytes != before);
            prop_assert!(!changed || flags & SYN != 0);
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        let untouched = |before: Vec<u8>, offload: Offload| {
            let mut bytes = before.clone();
            !clamp(&mut bytes, &parse(&before).unwrap(), &offload, 1280) && bytes == before
        };
        let mss = [2, 4, 0x05, 0xb4];
        assert!(!untouched(syn(true, SYN, &mss, b""), Offload::NONE));
        assert!(
            !untouched(syn(false, SYN | 0x10, &mss, b""), PARTIAL),
            "the answer too"
        );
        for (flags, options, why) in [
            (0x10u8, &mss[..], "no SYN"),
            (SYN, &[], "no options"),
            (SYN, &[1, 1, 4, 2], "no such option"),
            (SYN, &[0, 2, 4, 5, 0xb4], "behind the end of the options"),
            (SYN, &[2, 4, 0x04, 0xd8], "1240 is low enough"),
            (SYN, &[2, 3, 0x05, 0xb4], "of another length"),
            (SYN, &[2, 6, 0x05, 0xb4, 1, 1, 1, 1], "of another length"),
            (SYN, &[1, 1, 1, 2], "cut short"),
            (SYN, &[1, 1, 2, 4], "cut short"),
            (SYN, &[1, 2, 4, 5], "cut short"),
            (
                SYN,
                &[3, 0, 2, 4, 5, 0xb4, 1, 1],
                "behind an option without a length",
            ),
            (
                SYN,
                &[3, 1, 2, 4, 5, 0xb4, 1, 1],
                "behind an option without a length",
            ),
            (
                SYN,
                &[3, 30, 2, 4, 5, 0xb4, 1, 1],
                "behind an option that does not end",
            ),
        ] {
            assert!(
                untouched(syn(true, flags, options, b""), Offload::NONE),
                "{why}"
            );
        }
        assert!(
            untouched(syn(true, SYN, &[1, 1, 2, 4], &[0x05, 0xb4]), Offload::NONE),
            "a value in the payload"
        );
        let four = Offload {
            kind: Kind::Tcp4,
            gso_size: 1000,
            header_len: 44,
        };
        assert!(
            untouched(syn(true, SYN, &mss, &[1; 3000]), four),
            "a super-packet"
        );
        assert!(
            untouched(
                udp(ip("10.0.0.1"), ip("10.0.0.2"), &syn(true, SYN, &mss, b"")),
                Offload::NONE
            ),
            "UDP"
        );
        let mut piece = syn(true, SYN, &mss, b"");
        piece[6] = 0x20;
        assert!(untouched(piece, Offload::NONE), "a fragment");
    }
}
