//! Memory that was freed goes back to the kernel.
//!
//! glibc keeps what is freed between two pieces that are still in use. Each load and each large intake of records leaves
//! much of it, about as much as what the members themselves take.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long after a View its garbage is looked for. Many follow each other while a node starts or joins.
const REST: Duration = Duration::from_secs(20);

/// How often it is looked for where no View comes: what the kernel is asked for grows with the members, too.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Bytes beyond those found after the last time that are worth a walk through the heap: it holds up whoever allocates in the
/// same arena.
const WORTH: u64 = 1 << 20;

/// By how many bytes the memory that the kernel has given exceeds what is in use, as far as that cannot be given back: pages
/// that are used in part. It may be less than none: of a buffer that was never written the kernel has given nothing.
#[derive(Default)]
struct Heap {
    least: Option<i64>,
}

impl Heap {
    /// Whether so many bytes are enough more than there were.
    fn worth(&mut self, excess: i64) -> bool {
        let Some(least) = self.least.as_mut() else {
            return true;
        };
        *least = excess.min(*least);
        excess.abs_diff(*least) >= WORTH
    }

    /// What remains right after pages went back.
    fn gave_back(&mut self, excess: i64) {
        self.least = Some(excess);
    }
}

/// Gives back what is free once Views rest, and what has been freed since. Runs until stopped.
pub(super) async fn run(mut published: watch::Receiver<u64>, stop: CancellationToken) {
    let mut heap = Heap::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
        if excess().is_some_and(|excess| heap.worth(excess)) {
            // The walk takes milliseconds, which no other task of this thread is to wait for.
            drop(tokio::task::spawn_blocking(give_back).await);
            if let Some(excess) = excess() {
                heap.gave_back(excess);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            changed = published.changed() => if changed.is_err() {
                stop.cancelled().await;
                return;
            }
        }
    }
}

/// The anonymous memory that the kernel has given, less what is in use; none where the kernel does not tell.
fn excess() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let given = text
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let given: u64 = given.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let given = i64::try_from(given.checked_mul(1024)?).ok()?;
    given.checked_sub(i64::try_from(used()).ok()?)
}

/// Bytes that are in use in all arenas, and in pieces of their own.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]
fn used() -> usize {
    // SAFETY: it takes no argument, and locks what it reads.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks.saturating_add(info.hblkhd)
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
fn used() -> usize {
    0
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_freed_since_the_last_time_is_worth_a_walk() {
        const MORE: i64 = 1 << 20;
        let mut heap = Heap::default();
        assert!(heap.worth(-MORE), "the first time whatever there is");
        heap.gave_back(-2 * MORE);
        assert!(!heap.worth(-MORE - 1));
        assert!(heap.worth(-MORE));
        // Used again, then freed again.
        heap.gave_back(4 * MORE);
        assert!(!heap.worth(MORE));
        assert!(heap.worth(2 * MORE));
    }
}
