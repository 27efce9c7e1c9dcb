//! Which counters of a key were seen already (RFC 6479's ring of words).
//!
//! Looked up before a frame is opened and committed after: a frame that does not open leaves no trace.

/// Counters behind the newest, itself included, that can still be told from replays.
pub const WINDOW: u64 = 8192;

/// Words of the ring: the window, and one more because the newest counter's word is filled only in part.
const WORDS: usize = WINDOW as usize / 64 + 1;

/// The counters accepted under one key, in 1 KiB. One writer.
#[derive(Clone, PartialEq, Eq)]
pub struct Window {
    /// The highest counter committed.
    newest: Option<u64>,
    /// Bit `c % 64` of word `c / 64 % WORDS`, for counters of the last [`WORDS`] words up to `newest`.
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Window {
        Window::new()
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window")
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

/// The place of a counter's word in the ring, and its bit.
fn place(counter: u64) -> (usize, u64) {
    // Below WORDS, so it fits.
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}

impl Window {
    /// Makes a window that has accepted no counter yet.
    pub fn new() -> Window {
        Window {
            newest: None,
            words: [0; WORDS],
        }
    }

    /// Whether this counter could be new: above the newest, or within [`WINDOW`] of it and not seen.
    pub fn check(&self, counter: u64) -> bool {
        let Some(newest) = self.newest else {
            return true;
        };
        let Some(behind) = newest.checked_sub(counter) else {
            return true;
        };
        let (word, bit) = place(counter);
        behind < WINDOW && self.words.get(word).is_some_and(|w| w & bit == 0)
    }

    /// Notes a counter whose frame opened; whether it was new. One that was not changes nothing.
    pub fn commit(&mut self, counter: u64) -> bool {
        if !self.check(counter) {
            return false;
        }
        if let Some(newest) = self.newest.filter(|n| counter > *n) {
            // Every word between the last accepted counter's and this one's held counters that are too old now.
            let ahead = (counter / 64).saturating_sub(newest / 64).min(WORDS as u64);
            for step in 1..=ahead {
                let (word, _) = place((newest / 64).saturating_add(step).saturating_mul(64));
                if let Some(old) = self.words.get_mut(word) {
                    *old = 0;
                }
            }
        }
        let (word, bit) = place(counter);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
        self.newest = self.newest.max(Some(counter));
        true
    }

    /// The highest counter committed.
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The slow twin: every counter ever accepted.
    #[derive(Default)]
    struct Naive(BTreeSet<u64>);

    impl Naive {
        fn check(&self, counter: u64) -> bool {
            let newest = self.0.last().copied();
            !self.0.contains(&counter) && newest.is_none_or(|n| counter > n || n - counter < WINDOW)
        }

        fn commit(&mut self, counter: u64) -> bool {
            self.check(counter) && self.0.insert(counter)
        }
    }

    /// Commits to both and compares what they say about the neighbourhood.
    fn agree(window: &mut Window, naive: &mut Naive, counter: u64) {
        for near in [
            counter.saturating_sub(1),
            counter,
            counter.saturating_add(1),
        ] {
            assert_eq!(
                window.check(near),
                naive.check(near),
                "{near} before {counter}"
            );
        }
        assert_eq!(window.commit(counter), naive.commit(counter), "{counter}");
        let newest = naive.0.last().copied().unwrap();
        assert_eq!(window.newest(), Some(newest));
        for back in [
            0,
            1,
            63,
            64,
            65,
            WINDOW - 65,
            WINDOW - 64,
            WINDOW - 63,
            WINDOW - 1,
            WINDOW,
            WINDOW + 1,
            WINDOW + 64,
        ] {
            let probe = newest.saturating_sub(back);
            assert_eq!(
                window.check(probe),
                naive.check(probe),
                "{probe} after {counter}, newest {newest}"
            );
        }
    }

    fn run(counters: impl IntoIterator<Item = u64>) {
        let (mut window, mut naive) = (Window::new(), Naive::default());
        counters
            .into_iter()
            .for_each(|c| agree(&mut window, &mut naive, c));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ahead(u64),
        Behind(u64),
        Absolute(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u64..3).prop_map(Step::Ahead),
            2 => (1u64..200).prop_map(Step::Ahead),
            1 => (WINDOW - 70..WINDOW + 70).prop_map(Step::Ahead),
            1 => (0u64..1 << 40).prop_map(Step::Ahead),
            4 => (0u64..200).prop_map(Step::Behind),
            2 => (WINDOW - 70..WINDOW + 70).prop_map(Step::Behind),
            1 => any::<u64>().prop_map(Step::Absolute),
        ]
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_of_everything_seen(start: u64, steps in prop::collection::vec(step(), 1..200)) {
            let (mut window, mut naive) = (Window::new(), Naive::default());
            agree(&mut window, &mut naive, start);
            for step in steps {
                let newest = window.newest().unwrap();
                agree(&mut window, &mut naive, match step {
                    Step::Ahead(by) => newest.saturating_add(by),
                    Step::Behind(by) => newest.saturating_sub(by),
                    Step::Absolute(counter) => counter,
                });
            }
        }
    }

    #[test]
    fn the_oldest_usable_counter_is_8191_behind() {
        for newest in [
            WINDOW,
            WINDOW + 63,
            WINDOW + 64,
            1 << 20,
            (1 << 20) + 1,
            (1 << 20) - 1,
            u64::MAX,
        ] {
            let mut window = Window::new();
            assert!(window.commit(newest));
            assert!(!window.check(newest));
            assert!(!window.check(newest - WINDOW));
            assert!(window.commit(newest - (WINDOW - 1)));
            assert!(!window.commit(newest - (WINDOW - 1)), "twice");
        }
    }

    #[test]
    fn a_jump_of_any_width_forgets_and_remembers_nothing_false() {
        for width in [
            1,
            63,
            64,
            65,
            127,
            128,
            WINDOW - 1,
            WINDOW,
            WINDOW + 1,
            WINDOW + 63,
            WINDOW + 64,
            WINDOW + 65,
            1 << 63,
        ] {
            for start in [0, 1, 63, 64, 65, 8191, 8192] {
                let mut counters: Vec<u64> = (0..200u64).map(|c| start + c).collect();
                counters.push(start + 199 + width);
                counters.extend(
                    (0..WINDOW + 130)
                        .step_by(7)
                        .map(|back| (start + 199 + width).saturating_sub(back)),
                );
                run(counters);
            }
        }
    }

    /// The prototype cleared words relative to the newest word of its ring: bulk traffic stalled after 64 frames.
    #[test]
    fn crossing_words_in_order_and_in_swapped_pairs_accepts_everything_once() {
        let mut window = Window::new();
        assert!((0..40_000u64).all(|c| window.commit(c)));
        assert!((40_000 - WINDOW..40_000).all(|c| !window.commit(c)));
        let mut window = Window::new();
        assert!((0..40_000u64).all(|c| window.commit(c ^ 1)));
        let mut window = Window::new();
        assert!((0..1000u64).all(|c| window.commit(c * 64 + 63) && window.commit(c * 64)));
        run((0..300u64).map(|c| (c * 61) ^ 63));
    }

    #[test]
    fn the_last_counter_there_is_can_be_committed() {
        let mut window = Window::new();
        assert!(window.commit(0));
        assert!(window.commit(u64::MAX));
        assert!(!window.commit(u64::MAX));
        assert!(!window.commit(0));
        assert!(window.commit(u64::MAX - 1));
    }

    #[test]
    fn a_refused_counter_changes_nothing() {
        let mut window = Window::new();
        for counter in [5, 100, 20_000] {
            window.commit(counter);
        }
        let before = window.clone();
        for counter in [5, 100, 20_000, 20_000 - WINDOW] {
            assert!(!window.commit(counter));
        }
        assert!(window == before);
    }
}
