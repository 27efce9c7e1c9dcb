//! Records that are well signed, and of use only once others are here.

use super::record::Verified;
use super::standing::Standing;
use super::subnet::{Absorbed, Records};

/// Records that wait for others; half of the places are kept for issuers that hold a grant.
pub(super) const MAX_PARKED: usize = 256;
/// How many bytes the bodies of those records may have together.
const MAX_PARKED_BYTES: usize = 4 * 1024 * 1024;
impl Records {
    /// Keeps a record for later. Anybody can make up issuers, so those that hold no grant go first, and have half the
    /// places at most.
    pub(super) fn park(&mut self, record: Verified) -> Absorbed {
        self.parked.push(record);
        loop {
            let bytes: usize = self.parked.iter().map(|p| p.signed().body.len()).sum();
            let made_up: Vec<usize> = (0..)
                .zip(&self.parked)
                .filter(|(_, p)| !self.is_subject(p.signed().issuer))
                .map(|(place, _)| place)
                .collect();
            let over = self.parked.len() > MAX_PARKED
                || bytes > MAX_PARKED_BYTES
                || made_up.len() > MAX_PARKED / 2;
            if !over || self.parked.is_empty() {
                return Absorbed::Parked;
            }
            self.parked.remove(made_up.first().copied().unwrap_or(0));
        }
    }

    pub(super) fn retry_parked(&mut self) {
        let mut progress = true;
        while progress && !self.parked.is_empty() {
            progress = false;
            let mut waiting = std::mem::take(&mut self.parked);
            waiting.sort_by_key(Verified::rank);
            for record in waiting {
                // What goes on waiting has its place: only what comes new is weighed against all the others.
                if self.standing(&record) == Standing::Later {
                    self.parked.push(record);
                } else {
                    progress |= self.place(record) == Absorbed::New;
                }
            }
        }
    }
}
