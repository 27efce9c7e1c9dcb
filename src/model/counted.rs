//! Counts, in tests, what is meant to be done once for each record.

/// What is done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A value was turned into its canonical bytes.
    Encoded,
    /// Canonical bytes of a record were decoded.
    Parsed,
    /// The signature of a record was checked.
    Verified,
    /// The digest of a record was computed.
    Digested,
}

/// Notes that this thread did a step; nothing outside tests.
pub(super) fn note(step: Step) {
    #[cfg(test)]
    tests::add(step);
    #[cfg(not(test))]
    let _ = step;
}

#[cfg(test)]
pub(crate) use tests::{Counts, counts};

#[cfg(test)]
mod tests {
    use super::Step;
    use std::cell::Cell;

    /// Steps that one thread did.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(crate) struct Counts {
        pub(crate) encoded: u32,
        pub(crate) parsed: u32,
        pub(crate) verified: u32,
        pub(crate) digested: u32,
    }

    impl std::ops::Sub for Counts {
        type Output = Counts;

        fn sub(self, before: Counts) -> Counts {
            Counts {
                encoded: self.encoded - before.encoded,
                parsed: self.parsed - before.parsed,
                verified: self.verified - before.verified,
                digested: self.digested - before.digested,
            }
        }
    }

    thread_local!(static COUNTS: Cell<Counts> = Cell::default());

    pub(super) fn add(step: Step) {
        let mut counts = counts();
        match step {
            Step::Encoded => counts.encoded += 1,
            Step::Parsed => counts.parsed += 1,
            Step::Verified => counts.verified += 1,
            Step::Digested => counts.digested += 1,
        }
        COUNTS.set(counts);
    }

    /// What the thread that asks has done since it began.
    pub(crate) fn counts() -> Counts {
        COUNTS.get()
    }
}
