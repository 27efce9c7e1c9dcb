//! When the proxies whose targets refuse ask them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a target that refused is not asked again, at least.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How many targets that refused are asked each second, of all maps together: a range of ports is seldom served whole.
const ASKED_A_SECOND: u32 = 256;

/// How many proxies wait for a target that refuses; cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Shut(Arc<AtomicU32>);

impl Shut {
    /// Waits as long as it takes until the target may be asked again.
    pub(super) async fn wait(&self) {
        let _one = Waiting::of(&self.0);
        let all = self.0.load(Ordering::Relaxed);
        tokio::time::sleep(retry_delay(all)).await;
    }
}

/// One proxy that waits; it is counted until this is dropped.
struct Waiting<'a>(&'a AtomicU32);

impl Waiting<'_> {
    fn of(count: &AtomicU32) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The time between two questions to a target that refuses, while so many do.
fn retry_delay(refusing: u32) -> Duration {
    (Duration::from_secs(1) * refusing / ASKED_A_SECOND).max(REFUSED_RETRY_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_more_refuse_the_less_often_each_is_asked() {
        assert_eq!(retry_delay(1), Duration::from_secs(1));
        assert_eq!(retry_delay(256), Duration::from_secs(1));
        assert_eq!(retry_delay(2048), Duration::from_secs(8));
        let shut = Shut::default();
        let three = futures::future::join_all((0..3).map(|_| shut.wait()));
        tokio::pin!(three);
        let long = tokio::time::timeout(Duration::from_millis(1), &mut three);
        assert!(long.await.is_err(), "they wait");
        assert_eq!(shut.0.load(Ordering::Relaxed), 3);
        three.await;
        assert_eq!(shut.0.load(Ordering::Relaxed), 0, "nobody waits any more");
    }
}
