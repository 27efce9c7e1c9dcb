//! The format whole: what a sender seals, read by a receiver as `link` has it, and by hand.

mod by_hand;

use super::*;
use crate::packet::parse::MAX_PACKET;
use crate::packet::parse::samples::{arrivals, fates, ip, super_packets, udp};
use crate::packet::reassemble::{Segment, reassemble};
use crate::packet::segment::{segment, tests::slow_twin};
use crate::packet::segment_plan::SegmentPlan;
use crate::packet::{offload::Rebuild, parse};
use proptest::prelude::*;

/// What a sender seals: one plaintext for each segment.
fn plaintexts(bytes: &[u8], plan: &SegmentPlan, id: u16) -> Vec<Vec<u8>> {
    let plaintext = |index| {
        let trailer = Trailer::Segment {
            segment: plan.describe(index),
            id,
        }
        .encode();
        [&bytes[plan.range(index)], &bytes[..plan.headers], &trailer].concat()
    };
    (0..plan.count).map(plaintext).collect()
}

/// A receiver as `link` has it: every plaintext is opened to the end of the growing packet, over the headers and the
/// trailer of the one before.
struct Receiver {
    buffer: Vec<u8>,
    run: Option<(Segment, u16, usize)>,
    end: usize,
    got: Vec<Vec<u8>>,
}

impl Receiver {
    const BASE: usize = 256;

    fn new() -> Receiver {
        Receiver {
            buffer: vec![0; Self::BASE + 2 * MAX_PACKET],
            run: None,
            end: Self::BASE,
            got: Vec::new(),
        }
    }

    fn take(&mut self, plaintext: &[u8]) {
        if self.end + plaintext.len() > self.buffer.len() {
            self.flush();
        }
        let at = if self.run.is_some() {
            self.end
        } else {
            Self::BASE
        };
        self.buffer[at..at + plaintext.len()].copy_from_slice(plaintext);
        let Some((body, Trailer::Segment { segment, id })) =
            split(&self.buffer[at..at + plaintext.len()])
        else {
            return;
        };
        let Some(payload) = body
            .checked_sub(segment.headers)
            .filter(|p| segment.holds(*p))
        else {
            return;
        };
        match &mut self.run {
            Some((first, former, count))
                if *former == id && first.is_followed_by(*count, &segment) =>
            {
                *count += 1
            }
            _ => {
                self.flush();
                self.buffer.copy_within(at..at + body, Self::BASE);
                let headers = Self::BASE + payload..Self::BASE + body;
                self.buffer
                    .copy_within(headers, Self::BASE - segment.headers);
                self.run = Some((segment, id, 1));
                self.end = Self::BASE;
            }
        }
        self.end += payload;
    }

    fn flush(&mut self) {
        let Some((first, _, count)) = self.run.take() else {
            return;
        };
        let bytes = &mut self.buffer[Self::BASE - first.headers..self.end];
        self.end = Self::BASE;
        let Ok(offload) = reassemble(bytes, &first, count) else {
            return;
        };
        let Ok(packet) = parse(bytes) else { return };
        let Ok(rebuild) = Rebuild::plan(&packet, &offload) else {
            return;
        };
        rebuild.apply(bytes);
        segment(bytes, &packet, &offload, &mut Vec::new(), |p| {
            self.got.push(p.to_vec())
        })
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn two_readings_of_the_format_agree((bytes, offload) in super_packets(), room in 60usize..2000, id: u16, fates in fates()) {
        let packet = parse(&bytes).unwrap();
        prop_assume!(Rebuild::plan(&packet, &offload).is_ok());
        let Some(plan) = SegmentPlan::new(&packet, &offload, room) else { return Ok(()) };
        let sent = plaintexts(&bytes, &plan, id);
        let twin = slow_twin(&bytes, plan.size);
        let by_hand: Vec<_> = sent.iter().flat_map(|p| by_hand::packets(p)).collect();
        prop_assert_eq!(&by_hand, &twin);
        let (mut receiver, mut want) = (Receiver::new(), Vec::new());
        for index in arrivals(plan.count, &fates) {
            prop_assert!(sent[index].len() <= room + TRAILER);
            receiver.take(&sent[index]);
            want.push(twin[index].clone());
        }
        receiver.flush();
        prop_assert_eq!(receiver.got, want);
    }

    #[test]
    fn damage_never_panics_nor_grows_a_packet((bytes, offload) in super_packets(), room in 100usize..2000, damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..150, any::<u8>()), 1..40)) {
        let packet = parse(&bytes).unwrap();
        let Some(plan) = SegmentPlan::new(&packet, &offload, room) else { return Ok(()) };
        let (mut sent, mut receiver) = (plaintexts(&bytes, &plan, 7), Receiver::new());
        for (which, back, value) in damage {
            // Trailer and headers are at the end.
            let plaintext = which.get_mut(&mut sent);
            let at = plaintext.len().saturating_sub(back + 1);
            plaintext[at] = if value < 100 { plaintext[at] ^ 1 << (value % 8) } else { value };
            if value > 240 { plaintext.truncate(at); }
            if plaintext.is_empty() { plaintext.push(value); }
        }
        for plaintext in &sent { receiver.take(plaintext); }
        receiver.flush();
        for packet in &receiver.got { prop_assert_eq!(parse(packet).map(|p| p.length), Ok(packet.len())); }
    }

    #[test]
    fn garbage_never_panics(frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0u8..8), 1..60)) {
        let mut receiver = Receiver::new();
        for (mut frame, kind) in frames {
            let at = frame.len().saturating_sub(8);
            if let Some(first) = frame.get_mut(at) && kind > 0 { *first = 0x30 + kind % 6; }
            receiver.take(&frame);
        }
        receiver.flush();
    }
}

#[test]
fn small_packets_are_read_by_hand_too() {
    let whole = udp(ip("10.0.0.1"), ip("10.0.0.2"), b"whole");
    let mut partial = whole.clone();
    partial[26..28].copy_from_slice(&[1, 2]);
    let mut body = Vec::new();
    assert!(append(&mut body, &whole, false) && append(&mut body, &partial, true));
    body.extend_from_slice(&Trailer::Bundle.encode());
    assert_eq!(by_hand::packets(&body), [whole.clone(), whole.clone()]);
    let single = [&partial[..], &Trailer::Packet { partial: true }.encode()].concat();
    assert_eq!(by_hand::packets(&single), [whole]);
}
