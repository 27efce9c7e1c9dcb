//! Waiting for what takes as long as the machine takes.

use std::time::Duration;

use tokio::time::Instant;

/// How long anything in one process is waited for where no time is promised: a slow machine is no failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds; how long that took.
///
/// # Panics
/// It does not hold within that time.
pub(crate) async fn eventually(
    what: &str,
    within: Duration,
    mut holds: impl AsyncFnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}
