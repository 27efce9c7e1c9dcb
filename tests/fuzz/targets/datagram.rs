//! Opened datagrams, as a member's own words: every plaintext is taken apart, runs of segments are joined as the receiver
//! does it. Whatever comes out is a packet that lies in what came in, and a control message says the same when written again.
#![no_main]

use byway::packet::offload::Rebuild;
use byway::packet::parse;
use byway::packet::reassemble::{Segment, reassemble};
use byway::packet::segment::segment;
use byway::wire::datagram::{Bundle, Control, Trailer, split};
use libfuzzer_sys::fuzz_target;

/// Ends a run: headers, then the payloads of `count` segments.
fn finish(run: &mut [u8], first: &Segment, count: usize) {
    let length = run.len();
    let Ok(offload) = reassemble(run, first, count) else {
        return;
    };
    let packet = parse(run).expect("joined to something that is no packet");
    assert_eq!((packet.length, packet.headers), (length, first.headers));
    let Ok(rebuild) = Rebuild::plan(&packet, &offload) else {
        return;
    };
    rebuild.apply(run);
    let (mut segments, mut payload) = (0, 0);
    segment(run, &packet, &offload, &mut Vec::new(), |segment| {
        let part = parse(segment).expect("a segment that is no packet");
        segments += 1;
        payload += part.payload();
    })
    .expect("a plan that was made twice");
    assert_eq!((segments, payload), (count, length - first.headers));
}

fuzz_target!(|data: &[u8]| {
    let (mut rest, mut open) = (data, None::<(Vec<u8>, Segment, u16, usize)>);
    // Each plaintext stands behind its length.
    while let Some(([l0, l1], behind)) = rest.split_first_chunk() {
        let (plaintext, later) = behind.split_at(
            behind
                .len()
                .min(usize::from(u16::from_be_bytes([*l0, *l1]))),
        );
        rest = later;
        let Some((length, trailer)) = split(plaintext) else {
            continue;
        };
        let body = &plaintext[..length];
        assert_eq!(trailer.encode(), plaintext[length..]);
        match trailer {
            Trailer::Packet { .. } => drop(parse(body)),
            Trailer::Bundle => {
                let (mut bundle, mut end) = (Bundle::default(), 0);
                while let Some(entry) = bundle.next(body) {
                    let Ok((_, range)) = entry else { continue };
                    assert!(range.start > end && range.len() >= 20);
                    end = range.end;
                    let _ = parse(&body[range]);
                }
            }
            Trailer::Filler => {}
            Trailer::Control => {
                if let Some(control) = Control::decode(body) {
                    let mut again = Vec::new();
                    assert!(control.encode(length, &mut again));
                    assert_eq!(Control::decode(&again), Some(control));
                }
            }
            Trailer::Segment { segment, id } => {
                let Some(payload) = length
                    .checked_sub(segment.headers)
                    .filter(|p| segment.holds(*p))
                else {
                    continue;
                };
                match &mut open {
                    Some((run, first, former, count))
                        if *former == id && first.is_followed_by(*count, &segment) =>
                    {
                        run.extend_from_slice(&body[..payload]);
                        *count += 1;
                    }
                    _ => {
                        if let Some((mut run, first, _, count)) = open.take() {
                            finish(&mut run, &first, count);
                        }
                        open = Some((
                            [&body[payload..], &body[..payload]].concat(),
                            segment,
                            id,
                            1,
                        ));
                    }
                }
            }
        }
    }
    if let Some((mut run, first, _, count)) = open {
        finish(&mut run, &first, count);
    }
});
