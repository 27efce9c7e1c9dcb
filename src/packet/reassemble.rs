//! Reassembling segments of a super-packet, as they came, into a packet for the kernel.
//!
//! The other half of [`segment_plan`](super::segment_plan). Each segment brought the headers of the whole super-packet and
//! its share of the payload; a run of consecutive segments becomes one smaller super-packet, with the headers that the
//! sender's kernel would have given those segments (the rules of [`segment`](super::segment)). What was lost between two
//! runs costs nothing but itself.

use super::drops::DropReason;
use super::offload::{Kind, Offload, write_ip_lengths};
use super::parse::{TCP, UDP, Version, parse};
use super::segment::{Place, number_headers};

/// What a sender says about one segment of a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Kind of the super-packet: one of the four that are one.
    pub kind: Kind,
    /// Bytes of the super-packet's headers, at most 255.
    pub headers: usize,
    /// The segment's place in the super-packet, from 0 to 255.
    pub index: usize,
    /// Index of the super-packet's last segment.
    pub last: usize,
    /// Payload bytes of every segment but the last, which holds 1 to this many.
    pub size: usize,
}

impl Segment {
    /// Whether this segment may hold `payload` bytes.
    pub fn holds(&self, payload: usize) -> bool {
        if self.index < self.last {
            payload == self.size
        } else {
            (1..=self.size).contains(&payload)
        }
    }

    /// Whether `next` is the segment behind a run of `count` that began with this one, as far as numbers tell; that both
    /// have the same super-packet's ID is the caller's to see.
    pub fn is_followed_by(&self, count: usize, next: &Segment) -> bool {
        self.index.checked_add(count) == Some(next.index)
            && (self.kind, self.headers, self.last, self.size)
                == (next.kind, next.headers, next.last, next.size)
    }
}

/// Makes a packet of a run of `count` consecutive segments that begins with `first`: `bytes` are the headers as they came
/// with `first`, then the payloads. Writes lengths, IPv4 identification and header checksum, TCP sequence number and flags
/// (FIN and PSH stay with the last segment, CWR with the first), UDP length; the TCP or UDP checksum is the business of
/// [`Rebuild`](super::offload::Rebuild), for the kind that is returned. Nothing is allocated, nothing but headers written.
///
/// # Errors
/// [`DropReason::Malformed`] where a number of the sender does not agree with the bytes, which are spoilt then.
pub fn reassemble(bytes: &mut [u8], first: &Segment, count: usize) -> Result<Offload, DropReason> {
    let (version, protocol) = match first.kind {
        Kind::None | Kind::Partial => return Err(DropReason::Malformed),
        Kind::Tcp4 => (Version::V4, TCP),
        Kind::Tcp6 => (Version::V6, TCP),
        Kind::Udp4 => (Version::V4, UDP),
        Kind::Udp6 => (Version::V6, UDP),
    };
    let ends = run_ends_with_last(bytes.len(), first, count).ok_or(DropReason::Malformed)?;
    // The whole super-packet's length stands there; the reader wants that of these bytes.
    write_ip_lengths(bytes, version);
    let packet = parse(bytes)?;
    let agrees = packet.version == version
        && packet.protocol == protocol
        && packet.is_tcp_or_udp()
        && packet.headers == first.headers;
    if !agrees {
        return Err(DropReason::Malformed);
    }
    let offset = first.index.saturating_mul(first.size);
    number_headers(
        bytes,
        &packet,
        Place {
            index: first.index,
            offset,
            last: ends,
        },
    );
    if count == 1 {
        return Ok(Offload {
            kind: Kind::Partial,
            ..Offload::NONE
        });
    }
    let number = |value: usize| u16::try_from(value).map_err(|_| DropReason::Malformed);
    Ok(Offload {
        kind: first.kind,
        gso_size: number(first.size)?,
        header_len: number(first.headers)?,
    })
}

/// Whether the run ends with the super-packet's last segment; none where headers and `count` payloads do not make `length`
/// bytes.
fn run_ends_with_last(length: usize, first: &Segment, count: usize) -> Option<bool> {
    let before = count.checked_sub(1)?;
    let end = first
        .index
        .checked_add(before)
        .filter(|end| *end <= first.last)?;
    let payload = length.checked_sub(first.headers)?;
    let tail = payload.checked_sub(before.checked_mul(first.size)?)?;
    Segment {
        index: end,
        ..*first
    }
    .holds(tail)
    .then_some(end == first.last)
}

#[cfg(test)]
mod tests {
    use super::super::offload::{Rebuild, put};
    use super::super::parse::samples::{arrivals, fates, super_packets};
    use super::super::segment::{segment, tests::slow_twin};
    use super::super::segment_plan::SegmentPlan;
    use super::*;
    use proptest::prelude::*;

    /// What a receiver's kernel makes of one run: complete packets.
    fn deliver(run: &mut [u8], first: &Segment, count: usize) -> Result<Vec<Vec<u8>>, DropReason> {
        let offload = reassemble(run, first, count)?;
        let packet = parse(run)?;
        Rebuild::plan(&packet, &offload)?.apply(run);
        let mut out = Vec::new();
        segment(run, &packet, &offload, &mut Vec::new(), |p| {
            out.push(p.to_vec())
        })?;
        Ok(out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn reassembled_segments_equal_the_slow_twin_without_the_lost((bytes, offload) in super_packets(), room in 60usize..2000, fates in fates()) {
            let packet = parse(&bytes).unwrap();
            prop_assume!(Rebuild::plan(&packet, &offload).is_ok());
            let Some(plan) = SegmentPlan::new(&packet, &offload, room) else { return Ok(()) };
            let twin = slow_twin(&bytes, plan.size);
            prop_assert_eq!(plan.count, twin.len());
            let order = arrivals(plan.count, &fates);
            let want: Vec<_> = order.iter().map(|i| twin[*i].clone()).collect();
            let (mut got, mut run, mut open) = (Vec::new(), Vec::new(), None);
            for index in order {
                let segment = plan.describe(index);
                let payload = &bytes[plan.range(index)];
                prop_assert!(segment.holds(payload.len()) && plan.headers + payload.len() <= room);
                open = match open.take() {
                    Some((first, count)) if Segment::is_followed_by(&first, count, &segment) => Some((first, count + 1)),
                    former => {
                        if let Some((first, count)) = former {
                            got.extend(deliver(&mut run, &first, count).unwrap());
                        }
                        run = bytes[..plan.headers].to_vec();
                        Some((segment, 1))
                    }
                };
                run.extend_from_slice(payload);
            }
            if let Some((first, count)) = open {
                got.extend(deliver(&mut run, &first, count).unwrap());
            }
            prop_assert_eq!(got, want);
        }

        #[test]
        fn a_lie_never_panics(
            (mut bytes, offload) in super_packets(), spoil in prop::collection::vec((0usize..100, any::<u8>()), 0..4), short in 0usize..200,
            number in 0u8..8, headers in prop_oneof![3 => Just(None), 1 => (0usize..300).prop_map(Some)], index in 0usize..256,
            last in 0usize..256, size in prop_oneof![3 => Just(None), 1 => any::<u16>().prop_map(Some)], count in 0usize..300,
        ) {
            let true_headers = usize::from(offload.header_len);
            let first = Segment {
                kind: Kind::from_number(number).unwrap_or(offload.kind),
                headers: headers.unwrap_or(true_headers),
                index,
                last,
                size: size.map_or(usize::from(offload.gso_size), usize::from),
            };
            for (at, value) in spoil {
                if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            }
            if short > 0 { bytes.truncate(short); }
            let length = bytes.len();
            if let Ok(offload) = reassemble(&mut bytes, &first, count) {
                let packet = parse(&bytes).unwrap();
                prop_assert_eq!((packet.length, packet.headers), (length, first.headers));
                prop_assert_eq!(packet.payload().div_ceil(first.size), count);
                if let Ok(rebuild) = Rebuild::plan(&packet, &offload) { rebuild.apply(&mut bytes); }
            }
        }
    }

    /// 20 + 20 bytes of headers and segments of 10 bytes.
    fn run(index: usize, last: usize, payload: usize) -> (Vec<u8>, Segment) {
        let mut bytes = vec![0u8; 40 + payload];
        (bytes[0], bytes[8], bytes[9]) = (0x45, 64, TCP);
        (bytes[32], bytes[33]) = (0x50, 0x80 | 0x10 | 0x08 | 0x01);
        bytes[24..28].copy_from_slice(&u32::MAX.to_be_bytes());
        put(&mut bytes, 4, 0xffff);
        (
            bytes,
            Segment {
                kind: Kind::Tcp4,
                headers: 40,
                index,
                last,
                size: 10,
            },
        )
    }

    #[test]
    fn numbers_and_flags_are_those_of_the_place() {
        let want = |index: usize, last: usize, count: usize, payload: usize| {
            let (mut bytes, first) = run(index, last, payload);
            let offload = reassemble(&mut bytes, &first, count).unwrap();
            let sequence = u32::from_be_bytes(bytes[24..28].try_into().unwrap());
            (
                offload.kind,
                offload.gso_size,
                u16::from_be_bytes([bytes[4], bytes[5]]),
                sequence,
                bytes[33],
            )
        };
        assert_eq!(
            want(0, 4, 3, 30),
            (Kind::Tcp4, 10, 0xffff, u32::MAX, 0x90),
            "the beginning: CWR, no FIN, no PSH"
        );
        assert_eq!(
            want(1, 4, 2, 20),
            (Kind::Tcp4, 10, 0, 9, 0x10),
            "the middle: none, and numbers that wrap"
        );
        assert_eq!(
            want(2, 4, 3, 21),
            (Kind::Tcp4, 10, 1, 19, 0x19),
            "the end: FIN and PSH"
        );
        assert_eq!(
            want(4, 4, 1, 1),
            (Kind::Partial, 0, 3, 39, 0x19),
            "one segment is no super-packet"
        );
        assert_eq!(
            want(0, 0, 1, 10),
            (Kind::Partial, 0, 0xffff, u32::MAX, 0x99),
            "a super-packet of one segment"
        );
    }

    #[test]
    fn numbers_that_do_not_agree_are_refused() {
        let refused = |index, last, count, payload| {
            let (mut bytes, first) = run(index, last, payload);
            reassemble(&mut bytes, &first, count) == Err(DropReason::Malformed)
        };
        assert!(!refused(1, 4, 2, 20));
        assert!(refused(1, 4, 0, 0) && refused(1, 4, 0, 20), "no segment");
        assert!(
            refused(1, 4, 2, 19) && refused(1, 4, 2, 21),
            "a short segment in the middle"
        );
        assert!(
            refused(3, 4, 2, 10) && refused(3, 4, 2, 21),
            "an empty or a long last segment"
        );
        assert!(refused(3, 4, 3, 30), "a segment behind the last");
        let with = |change: fn(&mut Vec<u8>, &mut Segment)| {
            let (mut bytes, mut first) = run(1, 4, 20);
            change(&mut bytes, &mut first);
            reassemble(&mut bytes, &first, 2) == Err(DropReason::Malformed)
        };
        assert!(
            with(|_, p| p.kind = Kind::Partial) && with(|_, p| p.kind = Kind::None),
            "no super-packet"
        );
        assert!(
            with(|_, p| p.kind = Kind::Udp4) && with(|_, p| p.kind = Kind::Tcp6),
            "another kind"
        );
        assert!(with(|b, _| b[9] = UDP), "another protocol");
        assert!(
            with(|b, _| b[6] = 0x20) && with(|b, _| b[7] = 1),
            "a fragment"
        );
        assert!(
            with(|b, _| b[0] = 0x46) && with(|b, _| b[32] = 0x60),
            "headers end elsewhere"
        );
        assert!(
            with(|b, _| b[0] = 0x44) && with(|b, _| b[32] = 0x40),
            "headers too short"
        );
        assert!(
            with(|b, p| {
                b.truncate(30);
                p.headers = 10;
            }),
            "headers cut short"
        );
        let (mut bytes, mut first) = run(0, 1, 65_516);
        first.size = 65_515;
        assert_eq!(
            reassemble(&mut bytes, &first, 2),
            Err(DropReason::Malformed),
            "larger than a packet can be"
        );
    }
}
