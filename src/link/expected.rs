//! The knocks that the receiving thread takes (`peer::knock`): a few random tokens, which the control task changes while the
//! thread looks at them, and neither waits for the other.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::peer::knock::MAX_EXPECTED;

/// Tokens of knocks that are expected; 0 stands for none.
#[derive(Debug)]
pub(super) struct Expected([AtomicU64; MAX_EXPECTED]);

impl Default for Expected {
    fn default() -> Expected {
        Expected(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Expected {
    /// Takes exactly these from now on.
    pub(super) fn set(&self, tokens: impl Iterator<Item = u64>) {
        let mut fresh: Vec<u64> = tokens.collect();
        // What stays keeps its place: the thread may be looking for it just now.
        for place in &self.0 {
            let token = place.load(Ordering::Relaxed);
            match fresh.iter().position(|fresh| *fresh == token) {
                Some(at) => drop(fresh.swap_remove(at)),
                None => place.store(0, Ordering::Relaxed),
            }
        }
        let free = self
            .0
            .iter()
            .filter(|place| place.load(Ordering::Relaxed) == 0);
        for (place, token) in free.zip(fresh) {
            place.store(token, Ordering::Relaxed);
        }
    }

    /// Whether that one is expected; it is not any more then, so that a knock which comes again and again is taken once.
    pub(super) fn take(&self, token: u64) -> bool {
        // Read first: a flood of knocks that nobody expects writes nothing.
        let is_taken = |place: &AtomicU64| {
            place.load(Ordering::Relaxed) == token
                && place
                    .compare_exchange(token, 0, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        };
        token != 0 && self.0.iter().any(is_taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_taken_once_and_none_is_no_token() {
        let expected = Expected::default();
        assert!(!expected.take(0) && !expected.take(7));
        expected.set([7, 8].into_iter());
        assert!(expected.take(7) && !expected.take(7));
        expected.set([9].into_iter());
        assert!(!expected.take(8) && expected.take(9));
        let most = u64::try_from(MAX_EXPECTED).unwrap();
        expected.set(1..1000);
        let taken = (1..1000).filter(|token| expected.take(*token)).count();
        assert_eq!(taken, MAX_EXPECTED, "no room for all");
        expected.set(1..=most);
        expected.set(2..=most + 1);
        assert!((2..=most + 1).all(|token| expected.take(token)));
    }
}
