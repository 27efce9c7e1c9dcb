//! Cutting a super-packet in software, for a TUN whose kernel does not take it whole.

use super::checksum;
use super::drops::DropReason;
use super::offload::{Kind, Offload, Rebuild, field, pseudo_sum, put, write_ip_lengths};
use super::parse::{Packet, TCP, UDP, Version};

/// TCP flags that only the last segment keeps: FIN and PSH.
const LAST_ONLY: u8 = 0x01 | 0x08;
/// TCP flag that only the first segment keeps: CWR.
const FIRST_ONLY: u8 = 0x80;

/// Makes complete packets of `bytes` (the packet `packet` was read from) and hands each to `emit`, in order. `scratch` is
/// overwritten; its capacity is reused. A packet that is no super-packet comes out once, its checksum completed.
///
/// # Errors
/// [`DropReason::Malformed`] where `offload` does not fit the packet; nothing is emitted then.
pub fn segment(
    bytes: &[u8],
    packet: &Packet,
    offload: &Offload,
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    Rebuild::plan(packet, offload)?;
    let Some((headers, payload)) = bytes.split_at_checked(packet.headers) else {
        return Err(DropReason::Malformed);
    };
    if offload.kind == Kind::None {
        emit(bytes);
        return Ok(());
    }
    let size = match offload.kind {
        Kind::None | Kind::Partial => payload.len().max(1),
        _ => usize::from(offload.gso_size).max(1),
    };
    let count = payload.len().div_ceil(size).max(1);
    for index in 0..count {
        let from = index.saturating_mul(size);
        let piece = payload
            .get(from..from.saturating_add(size).min(payload.len()))
            .unwrap_or_default();
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(piece);
        if count > 1 {
            let place = Place {
                index,
                offset: from,
                last: index.saturating_add(1) == count,
            };
            number_headers(scratch, packet, place);
        }
        finish_checksum(scratch, packet);
        emit(scratch);
    }
    Ok(())
}

/// Where a segment, or a run of them, lies in its super-packet.
pub(super) struct Place {
    /// Segments of the super-packet that lie before it.
    pub index: usize,
    /// Payload bytes of the super-packet that lie before it.
    pub offset: usize,
    /// Whether nothing comes behind it.
    pub last: bool,
}

/// Gives a part of a super-packet, headers and payload in `out`, its own lengths, IP identification, TCP sequence number
/// and flags. `packet` tells version, protocol and where the transport header begins.
pub(super) fn number_headers(out: &mut [u8], packet: &Packet, place: Place) {
    let at = packet.transport;
    if packet.version == Version::V4 {
        // Consecutive identifications, as the kernel's own segmentation gives them.
        let step = u16::try_from(place.index).unwrap_or(u16::MAX);
        let first = field(out, 4).unwrap_or(0);
        put(out, 4, first.wrapping_add(step));
    }
    write_ip_lengths(out, packet.version);
    match packet.protocol {
        TCP => {
            let sequence_at = at.saturating_add(4)..at.saturating_add(8);
            if let Some(bytes) = out.get_mut(sequence_at)
                && let Ok(four) = <[u8; 4]>::try_from(&*bytes)
            {
                let offset = u32::try_from(place.offset).unwrap_or(0);
                bytes.copy_from_slice(&u32::from_be_bytes(four).wrapping_add(offset).to_be_bytes());
            }
            if let Some(flags) = out.get_mut(at.saturating_add(13)) {
                *flags &= if place.last { 0xff } else { !LAST_ONLY };
                *flags &= if place.index == 0 { 0xff } else { !FIRST_ONLY };
            }
        }
        UDP => {
            let length = u16::try_from(out.len().saturating_sub(at)).unwrap_or(u16::MAX);
            put(out, at.saturating_add(4), length);
        }
        _ => {}
    }
}

/// Computes the transport checksum of one complete packet.
fn finish_checksum(out: &mut [u8], packet: &Packet) {
    if let Some(offset) = packet.checksum_offset() {
        let own = Packet {
            length: out.len(),
            ..*packet
        };
        put(
            out,
            packet.transport.saturating_add(offset),
            pseudo_sum(&own),
        );
        checksum::complete(out, packet.transport, offset);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::parse::parse;
    use super::super::parse::samples::{ip, tcp, udp};
    use super::*;
    use etherparse::{IpHeaders, NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    /// Zero and all ones are the same checksum; ours writes the latter.
    fn ones(value: u16) -> u16 {
        if value == 0 { u16::MAX } else { value }
    }

    /// Builds every segment from the parsed header structures, by etherparse's own writers and checksums.
    pub(crate) fn slow_twin(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
        let whole = PacketHeaders::from_ip_slice(bytes).unwrap();
        let payload = whole.payload.slice();
        let count = payload.len().div_ceil(size);
        let mut out = Vec::new();
        for (i, piece) in payload.chunks(size).enumerate() {
            let mut transport = whole.transport.clone().unwrap();
            let transport_len = match &mut transport {
                TransportHeader::Tcp(t) => {
                    t.sequence_number = t.sequence_number.wrapping_add((i * size) as u32);
                    t.fin &= i + 1 == count;
                    t.psh &= i + 1 == count;
                    t.cwr &= i == 0;
                    t.header_len()
                }
                TransportHeader::Udp(u) => {
                    u.length = (8 + piece.len()) as u16;
                    8
                }
                _ => unreachable!(),
            };
            let ip: IpHeaders = match whole.net.clone().unwrap() {
                NetHeaders::Ipv4(mut h, e) => {
                    h.identification = h.identification.wrapping_add(i as u16);
                    h.set_payload_len(transport_len + piece.len()).unwrap();
                    h.header_checksum = h.calc_header_checksum();
                    match &mut transport {
                        TransportHeader::Tcp(t) => {
                            t.checksum = ones(t.calc_checksum_ipv4(&h, piece).unwrap())
                        }
                        TransportHeader::Udp(u) => {
                            u.checksum = u.calc_checksum_ipv4(&h, piece).unwrap()
                        }
                        _ => unreachable!(),
                    }
                    IpHeaders::Ipv4(h, e)
                }
                NetHeaders::Ipv6(mut h, e) => {
                    h.set_payload_length(e.header_len() + transport_len + piece.len())
                        .unwrap();
                    match &mut transport {
                        TransportHeader::Tcp(t) => {
                            t.checksum = ones(t.calc_checksum_ipv6(&h, piece).unwrap())
                        }
                        TransportHeader::Udp(u) => {
                            u.checksum = u.calc_checksum_ipv6(&h, piece).unwrap()
                        }
                        _ => unreachable!(),
                    }
                    IpHeaders::Ipv6(h, e)
                }
                _ => unreachable!(),
            };
            let mut bytes = Vec::new();
            ip.write(&mut bytes).unwrap();
            transport.write(&mut bytes).unwrap();
            bytes.extend_from_slice(piece);
            out.push(bytes);
        }
        out
    }

    proptest! {
        #[test]
        fn segments_equal_the_slow_twin(
            payload in proptest::collection::vec(any::<u8>(), 200..4000), size in 100usize..1500, v4: bool, is_tcp: bool, cwr: bool,
        ) {
            prop_assume!(size <= payload.len());
            let (s, d) = if v4 { (ip("10.1.2.3"), ip("10.9.8.7")) } else { (ip("fd00::1"), ip("fd00:1::2")) };
            let mut bytes = if is_tcp { tcp(s, d, &payload) } else { udp(s, d, &payload) };
            if v4 { bytes[4] = 0xff; bytes[5] = 0xff; }
            let packet = parse(&bytes).unwrap();
            if is_tcp && cwr { bytes[packet.transport + 13] |= 0x80; }
            let kind = match (is_tcp, v4) { (true, true) => Kind::Tcp4, (true, false) => Kind::Tcp6, (false, true) => Kind::Udp4, _ => Kind::Udp6 };
            let offload = Offload { kind, gso_size: size as u16, header_len: packet.headers as u16 };
            let mut got = Vec::new();
            segment(&bytes, &packet, &offload, &mut Vec::new(), |p| got.push(p.to_vec())).unwrap();
            if got.len() == 1 {
                // One segment is the packet itself.
                prop_assert_eq!(parse(&got[0]).unwrap().length, bytes.len());
            } else {
                prop_assert_eq!(got, slow_twin(&bytes, size));
            }
        }
    }

    #[test]
    fn partial_packet_comes_out_complete() {
        let want = udp(ip("10.1.2.3"), ip("10.9.8.7"), b"body");
        let mut partial = want.clone();
        partial[26..28].copy_from_slice(&[1, 2]);
        let packet = parse(&partial).unwrap();
        let offload = Offload {
            kind: Kind::Partial,
            ..Offload::NONE
        };
        let mut got = Vec::new();
        segment(&partial, &packet, &offload, &mut Vec::new(), |p| {
            got.push(p.to_vec())
        })
        .unwrap();
        assert_eq!(got, [want]);
    }
}
