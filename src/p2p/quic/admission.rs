//! Which handshakes are begun: limits per source and in all, and a Retry for the unproven when there are many.
//!
//! A source that has answered a Retry is *proven*: it receives what is sent to its address. Unproven handshakes may take
//! half of a source's places and [`UNPROVEN`] of all, so that forged sources can neither fill the table nor shut out the
//! address they name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::screen::source_of;

/// Unproven handshakes in all, above which every other one has to answer a Retry first.
const UNPROVEN: usize = 32;

/// Handshakes under way.
#[derive(Debug, Default)]
struct Pending {
    per_source: HashMap<IpAddr, usize>,
    all: usize,
    unproven: usize,
}

/// Decides on handshakes, and counts them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pending: Arc<Mutex<Pending>>,
    per_source: usize,
    all: usize,
}

/// A place among the handshakes under way, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Admission,
    source: IpAddr,
    proven: bool,
}

/// What becomes of a first packet.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Begin the handshake, holding the place until it has ended.
    Begin(Place),
    /// Let the source prove its address first; nothing is kept.
    Prove,
    /// No answer: the client sends it again after a second, when there may be room.
    Ignore,
}

impl Admission {
    pub(crate) fn new(per_source: usize, all: usize) -> Self {
        Admission { pending: Arc::default(), per_source, all }
    }

    pub(super) fn judge(&self, address: IpAddr, proven: bool) -> Verdict {
        let source = source_of(address);
        let mut pending = self.lock();
        let same = pending.per_source.get(&source).copied().unwrap_or(0);
        if same >= self.per_source || pending.all >= self.all {
            // Forged packets must not take an answer away from the address they name.
            return if proven || pending.all >= self.all { Verdict::Ignore } else { Verdict::Prove };
        }
        if !proven && (same >= self.per_source.div_ceil(2) || pending.unproven >= UNPROVEN) {
            return Verdict::Prove;
        }
        *pending.per_source.entry(source).or_default() += 1;
        pending.all += 1;
        pending.unproven += usize::from(!proven);
        drop(pending);
        Verdict::Begin(Place { admission: self.clone(), source, proven })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pending = self.admission.lock();
        pending.all = pending.all.saturating_sub(1);
        pending.unproven = pending.unproven.saturating_sub(usize::from(!self.proven));
        if let Some(count) = pending.per_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                pending.per_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(admission: &Admission, source: [u8; 4], proven: bool) -> Option<Place> {
        match admission.judge(source.into(), proven) {
            Verdict::Begin(place) => Some(place),
            Verdict::Prove | Verdict::Ignore => None,
        }
    }

    #[test]
    fn forged_sources_leave_room_for_those_that_prove_their_address() {
        let admission = Admission::new(8, 256);
        let flood: Vec<_> = (0..1000u32).map(|n| begin(&admission, n.to_be_bytes(), false)).collect();
        assert_eq!(flood.iter().flatten().count(), UNPROVEN);
        assert!(matches!(admission.judge([192, 0, 2, 1].into(), false), Verdict::Prove));
        assert!(begin(&admission, [192, 0, 2, 1], true).is_some());
        drop(flood);
        assert!(begin(&admission, [192, 0, 2, 1], false).is_some());
    }

    #[test]
    fn forged_packets_do_not_shut_out_the_address_they_name() {
        let admission = Admission::new(8, 256);
        let forged: Vec<_> = (0..100).filter_map(|_| begin(&admission, [192, 0, 2, 1], false)).collect();
        assert_eq!(forged.len(), 4);
        let own: Vec<_> = (0..100).filter_map(|_| begin(&admission, [192, 0, 2, 1], true)).collect();
        assert_eq!(own.len(), 4);
        assert!(matches!(admission.judge([192, 0, 2, 1].into(), true), Verdict::Ignore));
        assert!(begin(&admission, [192, 0, 2, 2], false).is_some());
    }

    #[test]
    fn handshakes_are_bounded_and_nothing_of_a_past_one_is_kept() {
        let admission = Admission::new(8, 256);
        let all: Vec<_> = (0..1000u32).filter_map(|n| begin(&admission, n.to_be_bytes(), true)).collect();
        assert_eq!(all.len(), 256);
        assert!(matches!(admission.judge([192, 0, 2, 1].into(), false), Verdict::Ignore));
        drop(all);
        let pending = admission.lock();
        assert_eq!((pending.all, pending.unproven, pending.per_source.len()), (0, 0, 0));
    }
}
