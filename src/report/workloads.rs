//! Workloads with what passed their links, and what was refused of it.

use super::Report;
use crate::api::types::{PassedInfo, TrafficInfo, WorkloadInfo};
use crate::host::nft::Refused;
use crate::host::traffic::{self, Passed, Traffic};

/// Adds what passed the links of workloads, where the kernel has them, and what our rules refused.
pub(crate) async fn count(ctx: &Report, workloads: &mut [WorkloadInfo]) {
    let named = |w: &WorkloadInfo| w.link.as_ref().map(|link| link.host_interface.clone());
    if !ctx.platform.is_kernel() || workloads.iter().all(|w| named(w).is_none()) {
        return;
    }
    // Of one workload the other links of the machine are not read.
    let counted = match workloads {
        [one] => {
            let name = named(one).unwrap_or_default();
            let found = traffic::of_link(&name).await;
            found.map(|found| found.map(|found| (name, found)).into_iter().collect())
        }
        _ => traffic::of_all().await,
    };
    let refused = match &ctx.rules {
        Some(rules) => rules.refused().await,
        None => Refused::default(),
    };
    match counted {
        Ok(all) => {
            for workload in workloads {
                let link = named(workload).unwrap_or_default();
                let mut found = all.get(&link).copied().map(info);
                if let Some(traffic) = &mut found {
                    traffic.sent.refused = refused.sent_by(&link);
                    traffic.received.refused = refused.sent_to(&workload.addresses);
                }
                workload.traffic = found;
            }
        }
        Err(error) => tracing::debug!(%error, "read what passed the links of workloads"),
    }
}

fn info(traffic: Traffic) -> TrafficInfo {
    let of = |passed: Passed| PassedInfo {
        bytes: passed.bytes,
        packets: passed.packets,
        drops: passed.drops,
        refused: 0,
    };
    TrafficInfo {
        sent: of(traffic.sent),
        received: of(traffic.received),
    }
}
