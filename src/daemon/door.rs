//! Sockets in the namespaces of workloads, for the servers they asked before us.

use std::sync::Arc;

use crate::dns;
use crate::host::netns;

/// Sockets made at the same time in namespaces for questions of workloads: they leave room for other work there.
const DOORS: usize = 16;

/// What makes a socket in a workload's namespace, at most [`DOORS`] at a time.
pub(crate) fn door() -> dns::Door {
    let places = Arc::new(tokio::sync::Semaphore::new(DOORS));
    Arc::new(move |netns, family, kind| {
        let places = Arc::clone(&places);
        Box::pin(async move {
            let _place = places.acquire().await.map_err(std::io::Error::other)?;
            netns::socket(&netns, family, kind)
                .await
                .map_err(std::io::Error::other)
        })
    })
}
