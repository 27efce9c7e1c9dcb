//! Families of workloads: what passed their links, and whether they are well. There are as many series as workloads here.

use std::fmt;

use super::{Families, Labels};
use crate::api::types::{PassedInfo, Status, TrafficInfo, WorkloadInfo};

pub(super) fn workloads(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let all = || status.subnets.iter().flat_map(|s| &s.workloads);
    let labels = |w: &WorkloadInfo| -> Labels {
        vec![
            ("subnet", w.subnet.to_string()),
            ("workload", w.workload.to_string()),
        ]
    };
    let of = |direction: fn(&TrafficInfo) -> &PassedInfo, value: fn(&PassedInfo) -> u64| {
        all().filter_map(move |w| Some((labels(w), value(direction(w.traffic.as_ref()?)))))
    };
    let sent = |value| of(|t| &t.sent, value);
    let received = |value| of(|t| &t.received, value);
    let help = "Bytes that a workload sent over its link";
    out.counter("byway_workload_tx_bytes", help, sent(|p| p.bytes))?;
    let help = "Bytes that reached a workload over its link";
    out.counter("byway_workload_rx_bytes", help, received(|p| p.bytes))?;
    let help = "Packets that a workload sent over its link";
    out.counter("byway_workload_tx_packets", help, sent(|p| p.packets))?;
    let help = "Packets that reached a workload over its link";
    out.counter("byway_workload_rx_packets", help, received(|p| p.packets))?;
    let help = "Packets of a workload that its link lost";
    out.counter("byway_workload_tx_drops", help, sent(|p| p.drops))?;
    let help = "Packets to a workload that its link lost";
    out.counter("byway_workload_rx_drops", help, received(|p| p.drops))?;
    let help = "Packets of a workload that this machine refused";
    out.counter("byway_workload_tx_refused", help, sent(|p| p.refused))?;
    let help = "Packets to a workload that this machine refused";
    out.counter("byway_workload_rx_refused", help, received(|p| p.refused))?;
    let well = |w: &WorkloadInfo| {
        let is_well = w.health.as_ref()?.since.is_none();
        Some((labels(w), u64::from(is_well)))
    };
    let help = "Whether a workload that is asked is well";
    out.gauge("byway_workload_healthy", help, all().filter_map(well))
}
