//! Which of several connections to one peer stays.
//!
//! Two peers that dial each other at once end with two connections. Both ends reckon alike, so that they keep the same
//! one: TCP before QUIC (cheaper per byte), both before a circuit through a relay, then the one dialled by the peer with the
//! smaller ID. Where that leaves a tie, the side that dialled both keeps its newest: it alone knows their order for certain.
//! Pure.

use super::address::Carrier;

/// One live member connection, as both ends see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The number of the connection, which grows with time at this end.
    pub(super) number: u64,
    pub(super) carrier: Carrier,
    /// Whether this end dialled it.
    pub(super) outbound: bool,
}

/// The connections that this end closes, which are never all of them. `smaller` says whether our ID
/// is the smaller one; `patient` that the other side has had its time to settle a tie.
pub(super) fn surplus(candidates: &[Candidate], smaller: bool, patient: bool) -> Vec<u64> {
    // Smaller is better.
    let rank = |c: &Candidate| (c.carrier, c.outbound != smaller);
    let Some(best) = candidates
        .iter()
        .min_by_key(|c| (rank(c), std::cmp::Reverse(c.number)))
    else {
        return Vec::new();
    };
    let closes = |c: &&Candidate| {
        c.number != best.number && (rank(c) != rank(best) || best.outbound || patient)
    };
    candidates.iter().filter(closes).map(|c| c.number).collect()
}

/// The connections that both ends close before they are old enough to settle a tie: those of
/// another carrier than the best. It never names all of them.
pub(super) fn beaten(candidates: &[Candidate]) -> Vec<u64> {
    let best = candidates.iter().map(|c| c.carrier).min();
    candidates
        .iter()
        .filter(|c| Some(c.carrier) != best)
        .map(|c| c.number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen_from_there(here: &[Candidate]) -> Vec<Candidate> {
        here.iter()
            .map(|c| Candidate {
                outbound: !c.outbound,
                ..*c
            })
            .collect()
    }

    proptest! {
        #[test]
        fn both_ends_together_keep_exactly_one(shape in proptest::collection::vec(any::<(bool, bool)>(), 1..6)) {
            let here: Vec<_> = shape
                .iter()
                .zip(0u64..)
                .map(|((tcp, outbound), number)| Candidate {
                    number,
                    carrier: if *tcp { Carrier::Tcp } else { Carrier::Quic },
                    outbound: *outbound,
                })
                .collect();
            let mut closed = surplus(&here, true, false);
            closed.extend(surplus(&seen_from_there(&here), false, false));
            closed.sort_unstable();
            closed.dedup();
            prop_assert_eq!(closed.len(), here.len() - 1);
            let early = beaten(&here);
            prop_assert_eq!(&early, &beaten(&seen_from_there(&here)));
            prop_assert!(early.iter().all(|number| closed.contains(number)), "what stays in the end is closed early");
            prop_assert!(shape.iter().any(|(tcp, _)| *tcp) || early.is_empty());
        }
    }
}
