//! Small packets in one frame, one behind the other.

use std::ops::Range;

use crate::packet::DropReason;

/// Bytes in front of each packet of a bundle.
pub const ENTRY: usize = 4;
/// Bytes of the smallest packet in a bundle: an IPv4 header.
const MIN_PACKET: usize = 20;
/// Flag of a bundle's entry: the packet's checksum is still to be computed.
const PARTIAL: u8 = 1;

/// Adds a packet to the body of a bundle; false, and nothing added, where it is shorter than an IPv4 header or longer than
/// 65,535 bytes.
pub fn append(out: &mut Vec<u8>, packet: &[u8], partial: bool) -> bool {
    let Ok(length) = u16::try_from(packet.len()) else {
        return false;
    };
    if packet.len() < MIN_PACKET {
        return false;
    }
    let [l0, l1] = length.to_be_bytes();
    out.extend_from_slice(&[l0, l1, if partial { PARTIAL } else { 0 }, 0]);
    out.extend_from_slice(packet);
    true
}

/// Reads the body of a bundle, packet by packet.
///
/// Holds a place and no reference, so that the reader may change the packets in between.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    at: usize,
}

impl Bundle {
    /// The next packet of `body`, the same one every time: whether its checksum is still to be computed, and where it lies.
    ///
    /// # Errors
    /// [`DropReason::Malformed`], once, where what is left is no packet.
    pub fn next(&mut self, body: &[u8]) -> Option<Result<(bool, Range<usize>), DropReason>> {
        let rest = body.get(self.at..).filter(|rest| !rest.is_empty())?;
        match entry(rest) {
            Some((partial, length)) => {
                let start = self.at.saturating_add(ENTRY);
                self.at = start.saturating_add(length);
                Some(Ok((partial, start..self.at)))
            }
            None => {
                self.at = body.len();
                Some(Err(DropReason::Malformed))
            }
        }
    }
}

/// The first entry of what is left of a bundle: its flag, and the bytes of the packet behind it.
fn entry(rest: &[u8]) -> Option<(bool, usize)> {
    let ([l0, l1, flags, zero], behind) = rest.split_first_chunk::<ENTRY>()?;
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    let good =
        *flags & !PARTIAL == 0 && *zero == 0 && (MIN_PACKET..=behind.len()).contains(&length);
    good.then_some((*flags & PARTIAL != 0, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_as_written_down() {
        // Length, flags, zero; then the packet.
        let mut body = Vec::new();
        assert!(append(&mut body, &[0x45; 20], true) && append(&mut body, &[0x60; 300], false));
        assert_eq!(
            (&body[..5], &body[24..29]),
            (&[0, 20, 1, 0, 0x45][..], &[1, 44, 0, 0, 0x60][..])
        );
        assert!(
            !append(&mut body, &[0x45; 19], false)
                && !append(&mut body, &vec![0x45; 65_536], false)
        );
        assert_eq!(body.len(), 24 + 304);
        for (at, value) in [(1, 19), (2, 2), (2, 3), (3, 1), (24, 2), (26, 0x80)] {
            let mut bad = body.clone();
            bad[at] = value;
            let mut bundle = Bundle::default();
            let read: Vec<_> = std::iter::from_fn(|| bundle.next(&bad)).collect();
            assert_eq!(
                read.last(),
                Some(&Err(DropReason::Malformed)),
                "byte {at} is {value}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn bundles_read_back(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 20..200), any::<bool>()), 0..12)) {
            let mut body = Vec::new();
            for (packet, partial) in &packets { prop_assert!(append(&mut body, packet, *partial)); }
            let (mut bundle, mut got) = (Bundle::default(), Vec::new());
            while let Some(entry) = bundle.next(&body) {
                let (partial, range) = entry.unwrap();
                got.push((body[range].to_vec(), partial));
            }
            prop_assert_eq!(got, packets);
        }

        #[test]
        fn garbage_in_a_bundle_ends_it(mut body in prop::collection::vec(any::<u8>(), 0..300), small: bool) {
            if small { for at in (0..body.len()).step_by(2) { body[at] = 0; } }
            let (mut bundle, mut end, mut failed) = (Bundle::default(), 0, false);
            while let Some(entry) = bundle.next(&body) {
                prop_assert!(!failed, "nothing comes behind an error");
                match entry {
                    Ok((_, range)) => {
                        prop_assert!(range.start == end + ENTRY && range.len() >= 20 && range.end <= body.len());
                        end = range.end;
                    }
                    Err(_) => failed = true,
                }
            }
            prop_assert!(failed || end == body.len());
        }
    }
}
