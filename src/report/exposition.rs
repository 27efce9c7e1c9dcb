//! What is counted as text: OpenMetrics 1.0, from one look at the daemon.
//!
//! Nothing is counted here. A [`Snapshot`] holds what `status` and the counters of the shells said at one moment, and
//! names the families it makes of it. Escaping and layout are the library's.

mod arrivals;
mod lan;
mod workloads;

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::api::types::{Carried, MapInfo, PeerStatus, SessionInfo, Status};
use crate::link::direct::{KnockStats, SprayStats};
use crate::p2p::{CircuitCounts, ClientCounts, HandshakeCounts};
use crate::relay::Totals;
use crate::service::ServiceCounts;
use crate::service::lan::LanStatus;
use crate::udp::Counts;
use crate::wire::datagram::Refusal;

/// What the UDP port counts, whoever the datagrams came from.
#[derive(Debug)]
pub(super) struct PortCounts {
    /// What the sockets count.
    pub counts: Counts,
    /// Frames whose receiver index belongs to no session.
    pub unknown: u64,
    /// Frames that are too short, or have bits set that must be zero.
    pub malformed: u64,
    /// Messages of relays about our legs, more than was asked.
    pub flood: u64,
}

/// What the metrics are made of, taken at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub status: Status,
    pub maps: Vec<MapInfo>,
    /// Questions for names, by what was done to them.
    pub dns: Vec<(&'static str, u64)>,
    pub service: ServiceCounts,
    /// None where the daemon has no UDP port.
    pub port: Option<PortCounts>,
    /// What is forwarded for others.
    pub relay: Totals,
    /// Searches for ports that nobody can name; none where no datagrams are sent.
    pub sprays: Option<SprayStats>,
    /// Tests of what the NAT lets in, and help for those of members; none where no datagrams are sent.
    pub knocks: Option<KnockStats>,
    /// What was refused of circuits.
    pub circuits: CircuitCounts,
    /// Whose connections through trusted reverse proxies were taken for.
    pub clients: ClientCounts,
    /// Handshakes that found no room.
    pub handshakes: HandshakeCounts,
    /// The search on the local networks.
    pub lan: LanStatus,
}

impl Snapshot {
    /// All families.
    ///
    /// # Errors
    /// None but those of writing into a string.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        daemon(&mut families, &self.status)?;
        peers(&mut families, &self.status)?;
        carriers(&mut families, &self.status)?;
        paths(&mut families, &self.status)?;
        drops(&mut families, &self.status)?;
        maps(&mut families, &self.maps)?;
        workloads::workloads(&mut families, &self.status)?;
        let dns = self
            .dns
            .iter()
            .map(|(outcome, n)| (vec![("outcome", (*outcome).to_owned())], *n));
        families.counter(
            "byway_dns",
            "Questions for names, and what was done to them, by outcome",
            dns,
        )?;
        service(&mut families, &self.service)?;
        relay(&mut families, &self.relay)?;
        self.sprays
            .as_ref()
            .map_or(Ok(()), |stats| sprays(&mut families, stats))?;
        self.knocks
            .as_ref()
            .map_or(Ok(()), |stats| knocks(&mut families, stats))?;
        circuits(&mut families, &self.circuits)?;
        arrivals::clients(&mut families, self.clients)?;
        arrivals::handshakes(&mut families, &self.handshakes)?;
        lan::lan(&mut families, &self.lan)?;
        self.port
            .as_ref()
            .map_or(Ok(()), |counts| port(&mut families, counts))
    }
}

/// The labels of one sample.
type Labels = Vec<(&'static str, String)>;

/// Writes whole families. A counter's name gets `_total` behind it.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            let one =
                |mut m: MetricEncoder<'_>| m.encode_counter::<NoLabelSet, V, u64>(&value, None);
            one(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn single<V: EncodeGaugeValue>(&mut self, name: &str, help: &str, value: V) -> fmt::Result {
        self.gauge(name, help, [(Labels::new(), value)])
    }

    fn single_counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    /// What says something by its labels alone. A gauge: readers of Prometheus's older text know no type `info`.
    fn info(&mut self, name: &str, help: &str, labels: Labels) -> fmt::Result {
        self.gauge(name, help, [(labels, 1_u64)])
    }
}

fn daemon(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let of = vec![
        ("version", status.version.clone()),
        ("peer_id", status.peer_id.to_string()),
    ];
    out.info("byway_info", "The daemon", of)?;
    let (cipher, library) = status
        .sealing
        .split_once(" by ")
        .unwrap_or((&status.sealing, ""));
    let of = vec![
        ("cipher", cipher.to_owned()),
        ("library", library.to_owned()),
    ];
    out.info(
        "byway_sealing_info",
        "The cipher of datagrams that this machine prefers",
        of,
    )?;
    out.single(
        "byway_uptime_seconds",
        "Seconds since the start",
        status.uptime_s,
    )?;
    let ready = u64::from(status.ready);
    out.single(
        "byway_ready",
        "1 when the kernel matches and no problem is an error",
        ready,
    )?;
    let severities = ["error", "warning", "info"].map(|severity| {
        let count = status
            .problems
            .iter()
            .filter(|p| p.severity == severity)
            .count();
        (vec![("severity", severity.to_owned())], count)
    });
    out.gauge("byway_problems", "Problems by severity", severities)?;
    let members = status
        .subnets
        .iter()
        .map(|s| (vec![("subnet", s.name.as_str().to_owned())], s.members));
    out.gauge(
        "byway_members",
        "Members of a subnet",
        members.map(|(labels, n)| (labels, n as u64)),
    )
}

/// Every peer of every subnet, with the labels that name it.
fn each_peer(status: &Status) -> impl Iterator<Item = (Labels, &PeerStatus)> {
    status.subnets.iter().flat_map(|s| {
        let labels = |p: &PeerStatus| {
            vec![
                ("subnet", s.name.as_str().to_owned()),
                ("peer", p.name.as_str().to_owned()),
            ]
        };
        s.peers.iter().map(move |p| (labels(p), p))
    })
}

fn with(mut labels: Labels, more: &[(&'static str, &str)]) -> Labels {
    labels.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    labels
}

fn peers(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let connected = each_peer(status).map(|(labels, p)| {
        let carrier = p.path.carrier.as_deref().unwrap_or("none");
        let transport = p.path.transport.as_deref().unwrap_or("none");
        (
            with(labels, &[("carrier", carrier), ("transport", transport)]),
            u64::from(!matches!(p.path.kind.as_str(), "offline" | "idle")),
        )
    });
    out.gauge(
        "byway_peer_connected",
        "1 when packets reach the peer",
        connected,
    )?;
    let sent = each_peer(status).map(|(labels, p)| (labels, p.tx_bytes));
    out.counter("byway_peer_tx_bytes", "Inner bytes sent to a peer", sent)?;
    let received = each_peer(status).map(|(labels, p)| (labels, p.rx_bytes));
    out.counter("byway_peer_rx_bytes", "Inner bytes from a peer", received)
}

fn carriers(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let of = |value: fn(&Carried) -> [u64; 2]| {
        each_peer(status).flat_map(move |(labels, p)| {
            [
                ("datagram", p.carriers.datagram),
                ("stream", p.carriers.stream),
            ]
            .into_iter()
            .flat_map(move |(name, c)| {
                let [tx, rx] = value(&c);
                let labels = with(labels.clone(), &[("carrier", name)]);
                [
                    (with(labels.clone(), &[("direction", "tx")]), tx),
                    (with(labels, &[("direction", "rx")]), rx),
                ]
            })
        })
    };
    let bytes = of(|c| [c.tx_bytes, c.rx_bytes]);
    out.counter(
        "byway_carrier_bytes",
        "Inner bytes by carrier and direction",
        bytes,
    )?;
    let packets = of(|c| [c.tx_packets, c.rx_packets]);
    out.counter(
        "byway_carrier_packets",
        "Packets, before they are cut, by carrier and direction",
        packets,
    )
}

fn paths(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let kinds = status.subnets.iter().flat_map(|s| {
        ["direct", "relay", "idle", "offline"].map(|kind| {
            let count = s.peers.iter().filter(|p| p.path.kind == kind).count();
            let labels = vec![
                ("subnet", s.name.as_str().to_owned()),
                ("kind", kind.to_owned()),
            ];
            (labels, count as u64)
        })
    });
    out.gauge("byway_paths", "Peers by the kind of path to them", kinds)?;
    let reasons = each_peer(status).filter_map(|(labels, p)| {
        let reason = p
            .path
            .reason
            .as_deref()
            .filter(|_| p.path.kind == "relay")?;
        Some((with(labels, &[("reason", reason)]), 1_u64))
    });
    out.gauge(
        "byway_peer_relayed",
        "Peers reached through a relay, by reason",
        reasons,
    )?;
    let mtu = each_peer(status).filter_map(|(labels, p)| Some((labels, u64::from(p.path.mtu?))));
    out.gauge(
        "byway_path_mtu_bytes",
        "Largest IP packet the datagram path carries",
        mtu,
    )?;
    let sessions = |of: fn(&SessionInfo) -> u64| {
        each_peer(status).filter_map(move |(labels, p)| Some((labels, of(p.session.as_ref()?))))
    };
    let help = "Keys of the datagram session, the first one included";
    out.counter("byway_session_keys", help, sessions(|s| s.keys))?;
    out.counter(
        "byway_path_changes",
        "Datagram paths gained, lost or moved",
        sessions(|s| s.path_changes),
    )?;
    let rtt = each_peer(status).filter_map(|(labels, p)| Some((labels, p.rtt_ms? / 1000.0)));
    let help = "Round trip: of the datagram path's probes where there is one, else of the control connection";
    out.gauge("byway_peer_rtt_seconds", help, rtt)?;
    let loss = each_peer(status).filter_map(|(labels, p)| Some((labels, p.loss?)));
    let help = "Share of the datagram path's keep-alives of the last two minutes without an answer";
    out.gauge("byway_peer_loss_ratio", help, loss)
}

fn drops(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let drops = status.subnets.iter().flat_map(|s| {
        let labels = |reason: &str| {
            vec![
                ("subnet", s.name.as_str().to_owned()),
                ("reason", reason.to_owned()),
            ]
        };
        s.drops.iter().map(move |(reason, n)| (labels(reason), *n))
    });
    out.counter("byway_drops", "Packets dropped, by reason", drops)
}

fn maps(out: &mut Families<'_>, maps: &[MapInfo]) -> fmt::Result {
    let of = |value: fn(&MapInfo) -> u64| {
        // A map that listens on every address has a part of each family, and one series.
        let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for m in maps {
            let sum = sums
                .entry((m.subnet.as_str(), m.name.as_str()))
                .or_default();
            *sum = sum.saturating_add(value(m));
        }
        let labels =
            |subnet: &str, map: &str| vec![("subnet", subnet.to_owned()), ("map", map.to_owned())];
        sums.into_iter()
            .map(move |((subnet, map), n)| (labels(subnet, map), n))
    };
    out.counter(
        "byway_map_connections",
        "Connections through a port map",
        of(|m| m.connections),
    )?;
    out.counter(
        "byway_map_rx_bytes",
        "Bytes from clients of a port map",
        of(|m| m.rx_bytes),
    )?;
    out.counter(
        "byway_map_tx_bytes",
        "Bytes back to clients of a port map",
        of(|m| m.tx_bytes),
    )
}

/// Requests of members, by what was asked and why it was refused.
fn service(out: &mut Families<'_>, counts: &ServiceCounts) -> fmt::Result {
    let asked = counts
        .requests
        .iter()
        .map(|(kind, n)| (vec![("kind", (*kind).to_owned())], *n));
    out.counter(
        "byway_service_requests",
        "Service requests of members, by kind",
        asked,
    )?;
    let refused = counts
        .refused
        .iter()
        .map(|(code, n)| (vec![("code", code.to_string())], *n));
    out.counter(
        "byway_service_refused",
        "Service requests that were refused, by code",
        refused,
    )?;
    out.single(
        "byway_service_inflight",
        "Service requests that run now",
        counts.running as u64,
    )
}

fn relay(out: &mut Families<'_>, relay: &Totals) -> fmt::Result {
    out.single(
        "byway_relay_sessions",
        "Pairs of peers whose datagrams are forwarded here",
        relay.open,
    )?;
    out.single_counter(
        "byway_relay_bytes",
        "Bytes of datagrams forwarded for others",
        relay.bytes,
    )?;
    let by_reason = |(why, count): (&str, u64)| (vec![("reason", why.to_owned())], count);
    let dropped = relay.drops.named().map(by_reason);
    out.counter(
        "byway_relay_dropped",
        "Datagrams of others that were not forwarded, by reason",
        dropped,
    )?;
    let refused = relay.refused.named().map(by_reason);
    out.counter(
        "byway_relay_refused",
        "Sessions that were asked for here and refused, by reason",
        refused,
    )
}

fn sprays(out: &mut Families<'_>, stats: &SprayStats) -> fmt::Result {
    out.single_counter(
        "byway_spray_probes",
        "Probes sent to find a port of a symmetric NAT that nobody can name",
        stats.probes,
    )?;
    let found = [("found", stats.found), ("begun", stats.runs)];
    out.counter(
        "byway_sprays",
        "Searches for such a port: those begun, and those of them that found a direct path",
        found.map(|(what, count)| (vec![("what", what.to_owned())], count)),
    )?;
    out.gauge(
        "byway_spray_peers",
        "Peers that wait for such a search, or have their turn",
        [(Labels::new(), stats.waiting)],
    )
}

fn knocks(out: &mut Families<'_>, stats: &KnockStats) -> fmt::Result {
    out.single_counter(
        "byway_nat_tests",
        "Tests of what the NAT before this node lets in",
        stats.tests,
    )?;
    out.single_counter(
        "byway_knocks",
        "Datagrams sent for members that test what their NAT lets in",
        stats.sent,
    )?;
    let refused = Refusal::ALL.into_iter().zip(stats.refused);
    let reason = |why| match why {
        Refusal::TooOften => "too-often",
        Refusal::Elsewhere => "not-the-asker",
        Refusal::NotSeen => "not-seen",
        Refusal::Failed => "not-sent",
    };
    out.counter(
        "byway_knocks_refused",
        "Such datagrams that a member asked for and did not get, by reason",
        refused.map(|(why, count)| (vec![("reason", reason(why).to_owned())], count)),
    )?;
    out.single_counter(
        "byway_knocks_stray",
        "Words and datagrams of such tests that belong to none that is under way",
        stats.stray,
    )
}

fn circuits(out: &mut Families<'_>, counts: &CircuitCounts) -> fmt::Result {
    let client = counts.client.iter().map(|(why, n)| (why.as_str(), *n));
    let own = [
        ("silent", counts.silent),
        ("beyond-share", counts.beyond_share),
        ("home-silent", counts.home_silent),
        ("home-unusable", counts.home_unusable),
    ];
    let all = client.chain(own);
    out.counter(
        "byway_circuits_refused",
        "Circuits and places at relays that were refused, to this node or by it, by reason",
        all.map(|(why, n)| (vec![("reason", why.to_owned())], n)),
    )
}

fn port(out: &mut Families<'_>, port: &PortCounts) -> fmt::Result {
    let counts = &port.counts;
    let by_reason = |of: &[(&'static str, u64)]| -> Vec<(Labels, u64)> {
        of.iter()
            .map(|(reason, n)| (vec![("reason", (*reason).to_owned())], *n))
            .collect()
    };
    out.single_counter(
        "byway_port_received",
        "Datagrams read from the UDP port",
        counts.received,
    )?;
    let dropped = by_reason(&[
        ("unknown-session", port.unknown),
        ("malformed", port.malformed),
        ("flood", port.flood),
        ("foreign", counts.foreign),
        ("stun", counts.stun_refused),
        ("quic-stranger", counts.other),
        ("quic-queue-full", counts.quic_dropped),
    ]);
    out.counter(
        "byway_port_dropped",
        "Datagrams from the port that led nowhere, by reason",
        dropped,
    )?;
    let failed = by_reason(&[("full", counts.send_full), ("error", counts.send_failed)]);
    out.counter(
        "byway_port_send_failed",
        "Datagrams that the kernel did not take, by reason",
        failed,
    )?;
    out.single_counter(
        "byway_port_exit_refused",
        "Messages that the kernel refused to send by the link of their address, and took without it",
        counts.exit_refused,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One family through the library.
    #[derive(Debug)]
    struct One(String);

    impl Collector for One {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let mut families = Families(encoder);
            families.counter("x", "Help", [(vec![("n", self.0.clone())], 7_u64)])?;
            families.gauge("y", "Help", [(Labels::new(), 1.5)])?;
            families.info("z_info", "Help", vec![("n", self.0.clone())])
        }
    }

    #[test]
    fn labels_cannot_break_out() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(One("a\"b\\c\nd".to_owned())));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let wanted = [
            "# HELP x Help",
            "# TYPE x counter",
            r#"x_total{n="a\"b\\c\nd"} 7"#,
            "# HELP y Help",
            "# TYPE y gauge",
            "y 1.5",
            "# HELP z_info Help",
            "# TYPE z_info gauge",
            r#"z_info{n="a\"b\\c\nd"} 1"#,
            "# EOF",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    }
}
