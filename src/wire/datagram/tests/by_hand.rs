//! A second reading of the format, made from its description alone: no function of the codec, of `reassemble` or of the
//! checksums is called. Every segment becomes a packet of its own, as a receiver without offload would write it.

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The checksum of RFC 1071, word by word.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let all: Vec<u8> = parts.concat();
    let mut sum = 0u64;
    for i in (0..all.len()).step_by(2) {
        sum += u64::from(all[i]) * 256 + all.get(i + 1).map_or(0, |b| u64::from(*b));
    }
    while sum >= 0x1_0000 {
        sum = sum % 0x1_0000 + sum / 0x1_0000;
    }
    let value = 0xffff - sum as u16;
    if value == 0 {
        [0xff, 0xff]
    } else {
        value.to_be_bytes()
    }
}

/// Writes the TCP or UDP checksum into a packet whose transport header begins at `at`.
fn finish(packet: &mut [u8], at: usize, protocol: u8) {
    let field = at + if protocol == 6 { 16 } else { 6 };
    packet[field..field + 2].fill(0);
    let addresses = if packet[0] >> 4 == 4 {
        packet[12..20].to_vec()
    } else {
        packet[8..40].to_vec()
    };
    let length = ((packet.len() - at) as u32).to_be_bytes();
    let sum = checksum(&[&addresses, &[0, protocol], &length, &packet[at..]]);
    packet[field..field + 2].copy_from_slice(&sum);
}

/// The packets of one plaintext that is no control message.
pub(super) fn packets(plaintext: &[u8]) -> Vec<Vec<u8>> {
    let (body, t) = plaintext.split_at(plaintext.len() - 8);
    match t[0] >> 4 {
        1 => {
            assert!(t[0] & 15 < 2 && t[1..] == [0; 7]);
            vec![packet(body, t[0] & 15 == 1)]
        }
        2 => {
            assert!(t[0] & 15 == 0 && t[1..] == [0; 7]);
            let (mut out, mut rest) = (Vec::new(), body);
            while !rest.is_empty() {
                let length = number(&rest[..2]) as usize;
                assert!(rest[2] < 2 && rest[3] == 0);
                out.push(packet(&rest[4..4 + length], rest[2] == 1));
                rest = &rest[4 + length..];
            }
            out
        }
        3 => vec![segment(body, t)],
        kind => panic!("kind {kind}"),
    }
}

/// A whole packet, its checksum computed if that was left undone.
fn packet(bytes: &[u8], partial: bool) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if partial {
        // Enough for what the tests send: no extension headers.
        let (at, protocol) = if out[0] >> 4 == 4 {
            (usize::from(out[0] % 16) * 4, out[9])
        } else {
            (40, out[6])
        };
        finish(&mut out, at, protocol);
    }
    out
}

fn segment(body: &[u8], t: &[u8]) -> Vec<u8> {
    let (kind, headers, index, last) = (t[0] & 15, usize::from(t[1]), usize::from(t[2]), t[3]);
    let (v4, tcp) = (kind == 2 || kind == 4, kind == 2 || kind == 3);
    let size = number(&t[4..6]) as usize;
    let (payload, head) = body.split_at(body.len() - headers);
    let ends = index == usize::from(last);
    assert!(if ends {
        !payload.is_empty() && payload.len() <= size
    } else {
        payload.len() == size
    });
    let mut out = [head, payload].concat();
    let length = out.len();
    if v4 {
        out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        let id = number(&out[4..6]) as usize + index;
        out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        out[10..12].fill(0);
        let head = usize::from(out[0] % 16) * 4;
        let sum = match checksum(&[&out[..head]]) {
            // The header's own checksum has no two zeros to choose from.
            [0xff, 0xff] => [0, 0],
            sum => sum,
        };
        out[10..12].copy_from_slice(&sum);
    } else {
        out[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
    // The transport header is the last of the headers.
    let at = if !tcp {
        headers - 8
    } else if v4 {
        usize::from(out[0] % 16) * 4
    } else {
        let (mut next, mut at) = (out[6], 40);
        while next != 6 {
            (next, at) = (out[at], at + (usize::from(out[at + 1]) + 1) * 8);
        }
        at
    };
    if tcp {
        let sequence = number(&out[at + 4..at + 8]) + (index * size) as u64;
        out[at + 4..at + 8].copy_from_slice(&(sequence as u32).to_be_bytes());
        if !ends {
            // FIN and PSH.
            out[at + 13] &= 0b1111_0110;
        }
        if index > 0 {
            // CWR.
            out[at + 13] &= 0b0111_1111;
        }
    } else {
        out[at + 4..at + 6].copy_from_slice(&((length - at) as u16).to_be_bytes());
    }
    finish(&mut out, at, if tcp { 6 } else { 17 });
    out
}
