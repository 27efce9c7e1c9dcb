//! Waking whoever follows a part of the kernel's state.

use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Tells that something changed since the last time, whatever number of changes there were; ends when it is dropped.
#[derive(Debug)]
pub(in crate::host) struct Wake {
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Wake {
    /// Begins to listen to `groups` for messages that `concerns` picks; `what` names them in the log.
    ///
    /// # Errors
    /// When the kernel gives no socket for it.
    pub(in crate::host) fn follow(
        groups: &[MulticastGroup],
        what: &'static str,
        concerns: fn(&RouteNetlinkMessage) -> bool,
    ) -> anyhow::Result<Wake> {
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(groups).context("listen to netlink")?;
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        let task = tokio::spawn(async move {
            let listen = async {
                while let Some((message, _)) = messages.next().await {
                    // An overflow of the socket may have lost one: whoever is woken looks at everything.
                    let concerns = match &message.payload {
                        NetlinkPayload::InnerMessage(message) => concerns(message),
                        _ => true,
                    };
                    if concerns {
                        wake.notify_one();
                    }
                }
                tracing::warn!("netlink events of {what} ended");
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = connection => {}
                () = listen => {}
            }
        });
        Ok(Wake { changed, task })
    }

    /// Waits for a change.
    ///
    /// # Cancel safety
    /// Nothing is lost where it is dropped.
    pub(in crate::host) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
