//! Sends probes the ways packets of workloads take, and counts those that do not come out (see `nft::probes`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::host::InjectTun;
use crate::host::netns;
use crate::host::nft::probes::{Seen, Way, payload, read};
use crate::host::nft::run::OwnRuns;
use crate::model::host::firewalls::{Hook, Stopped};
use crate::model::host::{Family, HostConfig, TunConfig, WorkloadConfig};
use crate::packet::checksum;

/// Port of what is forwarded: discard, where nobody waits for it.
const DISCARD: u16 = 9;
/// The port that names are answered on.
const NAMES: u16 = 53;
/// Workloads of one subnet that send; one may be configured to send nothing.
const SENDERS: usize = 3;
/// How long what is sent has to pass the kernel.
const PASSING: Duration = Duration::from_millis(50);
/// Time between a loss and the second try: one loss is no finding.
const SECOND_TRY_DELAY: Duration = Duration::from_millis(300);

/// The packets of ours that did not pass in two tries.
pub(super) async fn stopped(
    desired: &HostConfig,
    table: &str,
    inject: &InjectTun,
    own: &OwnRuns,
) -> Vec<Stopped> {
    // Nobody sends: not even the counters are worth a look.
    if desired.workloads.is_empty() {
        return Vec::new();
    }
    let first = lost(desired, table, inject, own).await;
    if first.is_empty() {
        return Vec::new();
    }
    tokio::time::sleep(SECOND_TRY_DELAY).await;
    let second = lost(desired, table, inject, own).await;
    let both: BTreeSet<(Way, Family)> = first.intersection(&second).copied().collect();
    let mut stopped: Vec<Stopped> = Vec::new();
    for (way, family) in both {
        let (hook, what) = match way {
            Way::Enter => (Hook::Forward, "from members to workloads"),
            Way::Leave => (Hook::Forward, "from workloads to members"),
            Way::Local => (Hook::Forward, "between workloads"),
            Way::Names => (
                Hook::Input,
                "what workloads ask this machine, names among it",
            ),
        };
        match stopped
            .iter_mut()
            .find(|s| (s.hook, s.family) == (hook, family))
        {
            Some(known) => drop(known.what.insert(what.to_owned())),
            None => stopped.push(Stopped {
                hook,
                family,
                what: BTreeSet::from([what.to_owned()]),
            }),
        }
    }
    stopped
}

/// Sends once each way. What never entered says nothing.
async fn lost(
    desired: &HostConfig,
    table: &str,
    inject: &InjectTun,
    own: &OwnRuns,
) -> BTreeSet<(Way, Family)> {
    let Ok(before) = read(table, own).await else {
        return BTreeSet::new();
    };
    send(desired, table, inject).await;
    tokio::time::sleep(PASSING).await;
    let Ok(after) = read(table, own).await else {
        return BTreeSet::new();
    };
    judge(&before, &after)
}

fn judge(before: &Seen, after: &Seen) -> BTreeSet<(Way, Family)> {
    let lost = |(key, (entered, passed)): (&(Way, Family), &(u64, u64))| {
        let (entered_before, passed_before) = before.get(key).copied().unwrap_or_default();
        // A table that was written again begins at zero.
        let entered = entered.checked_sub(entered_before)?;
        let passed = passed.checked_sub(passed_before)?;
        (entered > passed).then_some(*key)
    };
    after.iter().filter_map(lost).collect()
}

async fn send(desired: &HostConfig, table: &str, inject: &InjectTun) {
    for tun in &desired.tuns {
        let here: Vec<&WorkloadConfig> = desired
            .workloads
            .iter()
            .filter(|w| w.tun == tun.name)
            .collect();
        for workload in here.iter().take(SENDERS) {
            let Some(netns) = &workload.netns else {
                continue;
            };
            let mut ways = Vec::new();
            for from in &workload.addresses {
                let family = Family::of(from);
                let mut way = |to: Option<IpAddr>, port, way| {
                    if let Some(to) = to {
                        ways.push((*from, SocketAddr::new(to, port), payload(table, way)));
                    }
                };
                let of = |addresses: &[IpAddr]| {
                    addresses.iter().copied().find(|a| Family::of(a) == family)
                };
                let far = far(tun, desired, family);
                way(of(&workload.gateways), NAMES, Way::Names);
                way(far, DISCARD, Way::Leave);
                let other = here
                    .iter()
                    .find(|w| w.netns != workload.netns && w.netns.is_some());
                way(other.and_then(|w| of(&w.addresses)), DISCARD, Way::Local);
                if let Some(far) = far {
                    let packet = udp(far, *from, DISCARD, &payload(table, Way::Enter));
                    if let Err(error) = inject(&tun.name, &packet) {
                        tracing::debug!(%error, tun = tun.name, "no probe by the TUN");
                    }
                }
            }
            // By a socket inside: what the workload's own rules keep back never enters, and says nothing.
            for (from, to, payload) in ways {
                if let Err(error) = netns::send(netns, from, to, &payload).await {
                    tracing::debug!(%error, workload = %workload.name, "no probe by the workload");
                    break;
                }
            }
        }
    }
}

/// An address of the subnet that is reached by its TUN: that of another member, else the last of its prefix.
fn far(tun: &TunConfig, desired: &HostConfig, family: Family) -> Option<IpAddr> {
    let here = |address: &IpAddr| {
        tun.addresses.contains(address)
            || desired
                .workloads
                .iter()
                .any(|w| w.addresses.contains(address))
    };
    let of = |prefixes: &[IpNet]| {
        prefixes
            .iter()
            .filter(|p| Family::of(&p.addr()) == family)
            .map(last)
            .collect()
    };
    let (others, own): (Vec<IpAddr>, Vec<IpAddr>) = (of(&tun.others), of(&tun.prefixes));
    others.into_iter().chain(own).find(|address| !here(address))
}

/// The last address of a prefix that is no broadcast.
fn last(prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            Ipv4Addr::from(u32::from(net.broadcast()).saturating_sub(1)).into()
        }
        IpNet::V4(net) => net.broadcast().into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.broadcast())).into(),
    }
}

/// A UDP packet of IPv4 or IPv6, whole.
fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8; 8]) -> Vec<u8> {
    const UDP: u8 = 17;
    const LENGTH: u16 = 16;
    let mut segment = Vec::with_capacity(LENGTH.into());
    segment.extend(
        [port, port, LENGTH, 0]
            .iter()
            .flat_map(|field| field.to_be_bytes()),
    );
    segment.extend(payload);
    let sum = checksum::finish(checksum::sum(
        &segment,
        checksum::pseudo(from, to, UDP, segment.len()),
    ));
    let mut packet = Vec::with_capacity(56);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, UDP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum::finish(checksum::sum(&header, 0)).to_be_bytes();
            header.splice(10..12, sum);
            packet.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0, 0, 16, UDP, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return packet,
    }
    // Zero would mean that there is none.
    let sum = if sum == 0 { u16::MAX } else { sum };
    segment.splice(6..8, sum.to_be_bytes());
    packet.extend(segment);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;

    #[test]
    fn a_probe_is_a_packet_whose_sums_are_right() {
        for (from, to) in [("10.7.255.254", "10.7.1.2"), ("fd00:7::9", "fd00:7::2")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = udp(from, to, DISCARD, b"12345678");
            let header = if from.is_ipv4() { 20 } else { 40 };
            assert!(parse::parse(&packet).is_ok());
            assert_eq!(packet.len(), header + 16);
            if from.is_ipv4() {
                assert_eq!(checksum::finish(checksum::sum(&packet[..header], 0)), 0);
            }
            let sum = checksum::sum(&packet[header..], checksum::pseudo(from, to, 17, 16));
            assert_eq!(checksum::finish(sum), 0);
        }
    }

    #[test]
    fn what_entered_and_did_not_come_out_is_lost() {
        let seen = |entered, passed| Seen::from([((Way::Local, Family::V4), (entered, passed))]);
        assert_eq!(judge(&seen(1, 1), &seen(3, 3)), BTreeSet::new());
        assert_eq!(
            judge(&seen(1, 1), &seen(3, 2)),
            BTreeSet::from([(Way::Local, Family::V4)])
        );
        // Nothing entered, or the table was written again.
        assert_eq!(judge(&seen(5, 1), &seen(5, 1)), BTreeSet::new());
        assert_eq!(judge(&seen(5, 5), &seen(2, 0)), BTreeSet::new());
    }

    #[test]
    fn the_last_address_of_a_prefix_is_no_broadcast() {
        for (prefix, address) in [
            ("10.7.0.0/16", "10.7.255.254"),
            ("10.7.2.9/32", "10.7.2.9"),
            ("fd00:7::/112", "fd00:7::ffff"),
        ] {
            assert_eq!(
                last(&prefix.parse().unwrap()),
                address.parse::<IpAddr>().unwrap()
            );
        }
    }
}
