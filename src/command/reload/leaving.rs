//! When what is declared no more is left: what is read may be half of a file that is being written, and a leave cannot be
//! taken back. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::id::SubnetId;

/// Between the reading that finds a membership declared no more and the one that leaves it.
pub(super) const LEAVE_AFTER: Duration = Duration::from_secs(5);

/// Memberships that wait to be left.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Each with when the first reading found it declared no more.
    found: BTreeMap<SubnetId, Instant>,
    /// The last reading.
    read: Option<Instant>,
}

impl Leaving {
    /// Takes what a reading found declared no more; which of these are left now. The others wait for a further reading.
    pub fn due(&mut self, gone: &BTreeSet<SubnetId>, now: Instant) -> BTreeSet<SubnetId> {
        self.read = Some(now);
        self.found.retain(|id, _| gone.contains(id));
        let is_due = |id: &SubnetId| *self.found.entry(*id).or_insert(now) + LEAVE_AFTER <= now;
        gone.iter().copied().filter(is_due).collect()
    }

    /// When the files are to be read again for those that the last reading let wait; it may have passed meanwhile.
    pub fn next(&self) -> Option<Instant> {
        let due = self.found.values().map(|found| *found + LEAVE_AFTER);
        due.filter(|due| Some(*due) > self.read).min()
    }

    /// It waits no more: it was left.
    pub fn left(&mut self, id: &SubnetId) {
        self.found.remove(id);
    }

    /// The files could not be read: what waits begins to wait anew.
    pub fn put_off(&mut self, now: Instant) {
        self.read = Some(now);
        self.found.values_mut().for_each(|found| *found = now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ids<const N: usize>(numbers: [u8; N]) -> BTreeSet<SubnetId> {
        numbers.map(|n| SubnetId([n; 16])).into()
    }

    #[test]
    fn what_is_declared_no_more_is_left_by_a_second_reading_some_seconds_later() {
        let (mut leaving, start) = (Leaving::default(), Instant::now());
        let due = start + LEAVE_AFTER;
        assert_eq!(leaving.due(&ids([1]), start), ids([]));
        assert_eq!(leaving.next(), Some(due));
        // Readings in between put nothing off, and what is found later waits as long.
        assert_eq!(leaving.due(&ids([1, 2]), start + SECOND), ids([]));
        assert_eq!(leaving.next(), Some(due));
        assert_eq!(leaving.due(&ids([1, 2]), due), ids([1]));
        assert_eq!(leaving.next(), Some(due + SECOND));
        // What could not be left is tried by the next reading, whenever that is.
        assert_eq!(leaving.due(&ids([1, 2]), due + SECOND), ids([1, 2]));
        assert_eq!(leaving.next(), None);
        // What was left is not waited for again, though the files cannot be read then.
        ids([1, 2]).iter().for_each(|id| leaving.left(id));
        leaving.put_off(due + SECOND);
        assert_eq!(leaving.next(), None);
    }

    #[test]
    fn what_is_declared_again_or_could_not_be_read_waits_anew() {
        let (mut leaving, start) = (Leaving::default(), Instant::now());
        let due = start + LEAVE_AFTER;
        leaving.due(&ids([1]), start);
        leaving.due(&ids([]), start + SECOND);
        assert_eq!(leaving.due(&ids([1]), due), ids([]));
        leaving.put_off(due + SECOND);
        assert_eq!(leaving.next(), Some(due + SECOND + LEAVE_AFTER));
        assert_eq!(leaving.due(&ids([1]), due + LEAVE_AFTER), ids([]));
        let put_off = due + SECOND + LEAVE_AFTER;
        assert_eq!(leaving.due(&ids([1]), put_off), ids([1]));
    }
}
