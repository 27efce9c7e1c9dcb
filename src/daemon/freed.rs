//! Memory that was freed goes back to the kernel.
//!
//! glibc keeps what is freed between two pieces that are still in use. Each load and each large intake of records leaves
//! much of it, about as much as what the members themselves take.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long after a View its garbage is looked for. Many follow each other while a node starts or joins.
const REST: Duration = Duration::from_secs(20);

/// Free bytes beyond those found after the last time that are worth a walk through the heap: it holds up whoever
/// allocates in the same arena.
const WORTH: usize = 1 << 20;

/// Free bytes of the heap, as last told. Pages that went back still count, so only what is added tells something.
#[derive(Default)]
struct Heap {
    least: usize,
}

impl Heap {
    /// Whether so many free bytes are enough more than there were.
    fn worth(&mut self, free: usize) -> bool {
        self.least = self.least.min(free);
        free.saturating_sub(self.least) >= WORTH
    }

    /// What is free right after pages went back.
    fn gave_back(&mut self, free: usize) {
        self.least = free;
    }
}

/// Gives back what is free once Views rest. Packets alone never cause it. Runs until stopped.
pub(super) async fn run(mut published: watch::Receiver<u64>, stop: CancellationToken) {
    let mut heap = Heap::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
        if heap.worth(free()) {
            // The walk takes milliseconds, which no other task of this thread is to wait for.
            drop(tokio::task::spawn_blocking(give_back).await);
            heap.gave_back(free());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = published.changed() => if changed.is_err() {
                stop.cancelled().await;
                return;
            }
        }
    }
}

/// Free bytes in all arenas.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]
fn free() -> usize {
    // SAFETY: it takes no argument, and locks what it reads.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Gives whole free pages of all arenas back.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
fn give_back() {
    // SAFETY: any padding is valid, and it touches only memory that nobody has.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries keep less, and cannot be told.
#[cfg(not(target_env = "gnu"))]
fn free() -> usize {
    0
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_freed_since_the_last_time_is_worth_a_walk() {
        let mut heap = Heap::default();
        assert!(heap.worth(3 * WORTH));
        heap.gave_back(3 * WORTH);
        assert!(!heap.worth(4 * WORTH - 1));
        assert!(heap.worth(4 * WORTH));
        // Used again, then freed again.
        heap.gave_back(4 * WORTH);
        assert!(!heap.worth(WORTH));
        assert!(heap.worth(2 * WORTH));
    }
}
