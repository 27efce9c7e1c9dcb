//! The host of a daemon that changes nothing of its machine, for it is in no subnet.

use super::{Host, not_made};
use crate::model::host::{Change, Failure, HostConfig, Observed};

/// A host without a kernel: it needs no privilege, sees nothing, and makes no change.
#[derive(Debug, Clone, Copy)]
pub struct Untouched;

impl Host for Untouched {
    async fn observe(&mut self, _desired: &HostConfig) -> anyhow::Result<Observed> {
        Ok(Observed::default())
    }

    async fn apply(
        &mut self,
        desired: &HostConfig,
        _observed: &Observed,
        changes: Vec<Change>,
    ) -> Vec<Failure> {
        let refused = |change| {
            not_made(
                desired,
                change,
                "this daemon changes nothing of its machine",
            )
        };
        changes.iter().map(refused).collect()
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::plan;

    #[tokio::test]
    async fn a_daemon_without_subnets_wants_no_change_of_its_machine() {
        let desired = HostConfig::default();
        let observed = Untouched.observe(&desired).await.unwrap();
        assert_eq!(plan(&desired, &observed), []);
        assert_eq!(Untouched.apply(&desired, &observed, Vec::new()).await, []);
    }
}
