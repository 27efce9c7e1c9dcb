//! The packet stream: the same bytes give the same frames however they are cut, and a body lies in what was received.
#![no_main]

use byway::wire::frame::{Decoder, Frame};
use libfuzzer_sys::fuzz_target;

/// What was read; nothing after an error.
fn frames(data: &[u8], mut cut: impl FnMut() -> usize) -> (Vec<(String, Vec<u8>)>, bool) {
    let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), data);
    loop {
        match decoder.decode() {
            Ok(Some(Frame::Packet { offload, body })) => {
                let bytes = decoder.body(body).to_vec();
                assert!(bytes.len() <= data.len());
                seen.push((format!("{offload:?}"), bytes));
            }
            Ok(Some(frame)) => seen.push((format!("{frame:?}"), Vec::new())),
            Err(_) => return (seen, false),
            Ok(None) if rest.is_empty() => return (seen, true),
            Ok(None) => {
                let space = decoder.space();
                assert!(!space.is_empty(), "no room for the next bytes");
                let count = cut().clamp(1, rest.len()).min(space.len());
                let (now, later) = rest.split_at(count);
                space[..count].copy_from_slice(now);
                decoder.filled(count);
                rest = later;
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((cuts, data)) = data.split_first_chunk::<4>() else {
        return;
    };
    let mut at = 0;
    let pieces = frames(data, || {
        at += 1;
        usize::from(cuts[at % cuts.len()])
    });
    assert_eq!(pieces, frames(data, || usize::MAX));
});
