//! What the packet threads share, under every interleaving that loom can make of it.

/// What the included file takes its atomics from.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../src/crypto/counter.rs"]
mod counter;

use counter::{Counter, LIMIT};
use loom::sync::Arc;
use loom::thread;

/// Takes from two threads and the main one; what each got.
fn race(first: u64, counts: [&'static [u32]; 3]) -> Vec<(u64, u32)> {
    let counter = Arc::new(Counter::new(first));
    let run = |counter: Arc<Counter>, counts: &'static [u32]| {
        counts
            .iter()
            .filter_map(|n| counter.take(*n).map(|first| (first, *n)))
            .collect::<Vec<_>>()
    };
    let [a, b, c] = counts;
    let threads = [a, b].map(|counts| {
        let counter = Arc::clone(&counter);
        thread::spawn(move || run(counter, counts))
    });
    let mut taken = run(Arc::clone(&counter), c);
    for thread in threads {
        taken.extend(thread.join().into_iter().flatten());
    }
    taken.sort_unstable();
    assert!(counter.used() <= LIMIT);
    taken
}

/// No number twice, none below the first or from the limit on.
fn apart(first: u64, taken: &[(u64, u32)]) {
    let mut next = first;
    for (start, count) in taken {
        assert!(*start >= next, "{start} was taken before");
        next = start + u64::from(*count);
    }
    assert!(next <= LIMIT);
}

#[test]
fn numbers_taken_at_once_never_overlap() {
    loom::model(|| {
        let taken = race(0, [&[1, 3], &[2], &[5]]);
        apart(0, &taken);
        assert_eq!(
            taken.iter().map(|(_, n)| n).sum::<u32>(),
            11,
            "and none is lost below the limit"
        );
    });
}

#[test]
fn the_limit_is_never_passed() {
    for room in [0, 2, 3, 5] {
        loom::model(move || {
            apart(
                LIMIT - room,
                &race(LIMIT - room, [&[1, 2], &[2, u32::MAX], &[]]),
            )
        });
    }
}

#[test]
fn nothing_is_taken_after_closing() {
    loom::model(|| {
        let counter = Arc::new(Counter::new(0));
        let taker = {
            let counter = Arc::clone(&counter);
            thread::spawn(move || [counter.take(1), counter.take(1)])
        };
        counter.close();
        assert_eq!(counter.take(1), None);
        let [one, two] = taker.join().unwrap();
        assert!(one.is_some() || two.is_none());
        assert_eq!(counter.take(1), None);
        assert_eq!(counter.used(), LIMIT);
    });
}
