//! What the daemon counts, in the text format of Prometheus (exposition format 0.0.4).
//!
//! Made from `status` at each request; nothing is counted here. Over TCP (`[metrics] listen`) it is read-only, for this
//! machine itself and for whom `[metrics] allow` names, and only asked for by an IP address or `localhost`: a web page
//! whose name points here cannot read it. Clients are bounded in number, by source, and in time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Context, status};
use crate::api::server::http;
use crate::api::types::{Carried, Error, ErrorKind, MapInfo, SessionInfo, Status};
use crate::link::Strays;
use crate::model::source::{Places, Sizes, Taken};
use crate::udp::Counts;

/// TCP clients at a time, and of one source. One that has been there for a while makes room for another.
const CLIENTS: (usize, usize) = (16, 4);
/// See [`CLIENTS`].
const SETTLED: Duration = Duration::from_secs(2);
/// A client has this long for its question, and for taking its answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// What HTTP calls the format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything as text.
pub(crate) async fn text(ctx: &Context) -> Result<String, Error> {
    let status = status::status(ctx, None).await?;
    let mut maps = ctx.node.read(|core| core.maps(None)).await??;
    super::handler::maps::count(ctx, &mut maps).await;
    let mut out = render(&status, &maps);
    dns_family(&mut out, &ctx.dns.counters().snapshot());
    service_families(&mut out, &ctx.service.counts());
    if let Some(port) = ctx.links.port() {
        port_families(&mut out, &port.counts(), ctx.links.strays());
    }
    Ok(out)
}

/// What the UDP port counts, whoever the datagrams came from.
fn port_families(out: &mut String, counts: &Counts, strays: &Strays) {
    let whole = |value: u64| std::iter::once((String::new(), value as f64));
    let labelled = |label: &str, counts: &[(&str, u64)]| {
        counts.iter().map(|(name, n)| (format!("{label}=\"{name}\""), *n as f64)).collect::<Vec<_>>()
    };
    family(out, "byway_port_received_total", "counter", "Datagrams read from the UDP port.", whole(counts.received));
    let dropped = [
        ("unknown-session", strays.unknown.load(Ordering::Relaxed)),
        ("malformed", strays.malformed.load(Ordering::Relaxed)),
        ("foreign", counts.foreign),
        ("quic-stranger", counts.other),
        ("quic-queue-full", counts.quic_dropped),
    ];
    let help = "Datagrams from the port that led nowhere, by reason.";
    family(out, "byway_port_dropped_total", "counter", help, labelled("reason", &dropped).into_iter());
    let failed = [("full", counts.send_full), ("error", counts.send_failed)];
    let help = "Datagrams that the kernel did not take, by reason.";
    family(out, "byway_port_send_failed_total", "counter", help, labelled("reason", &failed).into_iter());
}

/// Requests of members, by what was asked and why it was refused.
fn service_families(out: &mut String, counts: &crate::service::ServiceCounts) {
    let asked = counts.requests.iter().map(|(kind, n)| (format!("kind=\"{kind}\""), *n as f64));
    family(out, "byway_service_requests_total", "counter", "Service requests of members, by kind.", asked);
    let refused = counts.refused.iter().map(|(code, n)| (format!("code=\"{code}\""), *n as f64));
    family(out, "byway_service_refused_total", "counter", "Service requests that were refused, by code.", refused);
    let running = std::iter::once((String::new(), counts.running as f64));
    family(out, "byway_service_inflight", "gauge", "Service requests that run now.", running);
}

/// What became of questions for names.
fn dns_family(out: &mut String, counts: &[(&str, u64)]) {
    let samples = counts.iter().map(|(outcome, n)| (format!("outcome=\"{outcome}\""), *n as f64));
    family(out, "byway_dns_total", "counter", "Questions for names, and what was done to them, by outcome.", samples);
}

/// A label's value, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// One family: its help, type, and samples as (labels, value).
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (String, f64)>) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}{braces} {value}");
    }
}

fn render(status: &Status, maps: &[MapInfo]) -> String {
    let mut out = String::new();
    let whole = |value: f64| std::iter::once((String::new(), value));
    let peers = || {
        status.subnets.iter().flat_map(|s| {
            s.peers
                .iter()
                .map(move |p| (format!("subnet=\"{}\",peer=\"{}\"", label(s.name.as_str()), label(p.name.as_str())), p))
        })
    };
    let info = std::iter::once((format!("version=\"{}\",peer_id=\"{}\"", label(&status.version), status.peer_id), 1.0));
    family(&mut out, "byway_info", "gauge", "The daemon.", info);
    let (cipher, library) = status.sealing.split_once(" by ").unwrap_or((&status.sealing, ""));
    let sealing = std::iter::once((format!("cipher=\"{}\",library=\"{}\"", label(cipher), label(library)), 1.0));
    family(&mut out, "byway_sealing_info", "gauge", "The cipher of datagrams that this machine prefers.", sealing);
    family(&mut out, "byway_uptime_seconds", "gauge", "Seconds since the start.", whole(status.uptime_s as f64));
    family(
        &mut out,
        "byway_ready",
        "gauge",
        "1 when the kernel matches and no problem is an error.",
        whole(f64::from(u8::from(status.ready))),
    );
    let severity = |s: &'static str| {
        (format!("severity=\"{s}\""), status.problems.iter().filter(|p| p.severity == s).count() as f64)
    };
    family(
        &mut out,
        "byway_problems",
        "gauge",
        "Problems by severity.",
        ["error", "warning", "info"].into_iter().map(severity),
    );
    let members = status.subnets.iter().map(|s| (format!("subnet=\"{}\"", label(s.name.as_str())), s.members as f64));
    family(&mut out, "byway_members", "gauge", "Members of a subnet.", members);
    let connected = peers().map(|(labels, p)| {
        let carrier = p.path.carrier.as_deref().unwrap_or("none");
        let transport = p.path.transport.as_deref().unwrap_or("none");
        (
            format!("{labels},carrier=\"{carrier}\",transport=\"{transport}\""),
            f64::from(u8::from(p.path.kind != "offline")),
        )
    });
    family(&mut out, "byway_peer_connected", "gauge", "1 when packets reach the peer.", connected);
    family(
        &mut out,
        "byway_peer_tx_bytes_total",
        "counter",
        "Inner bytes sent to a peer.",
        peers().map(|(l, p)| (l, p.tx_bytes as f64)),
    );
    family(
        &mut out,
        "byway_peer_rx_bytes_total",
        "counter",
        "Inner bytes from a peer.",
        peers().map(|(l, p)| (l, p.rx_bytes as f64)),
    );
    let by_carrier = |of: fn(&Carried) -> [u64; 2]| {
        peers().flat_map(move |(l, p)| {
            [("datagram", p.carriers.datagram), ("stream", p.carriers.stream)].into_iter().flat_map(move |(name, c)| {
                let [tx, rx] = of(&c);
                let l = format!("{l},carrier=\"{name}\"");
                [(format!("{l},direction=\"tx\""), tx as f64), (format!("{l},direction=\"rx\""), rx as f64)]
            })
        })
    };
    let help = "Inner bytes by carrier and direction.";
    family(&mut out, "byway_carrier_bytes_total", "counter", help, by_carrier(|c| [c.tx_bytes, c.rx_bytes]));
    let help = "Packets, before they are cut, by carrier and direction.";
    family(&mut out, "byway_carrier_packets_total", "counter", help, by_carrier(|c| [c.tx_packets, c.rx_packets]));
    let mtu = peers().filter_map(|(l, p)| Some((l, f64::from(p.path.mtu?))));
    family(&mut out, "byway_path_mtu_bytes", "gauge", "Largest IP packet the datagram path carries.", mtu);
    let sessions =
        |of: fn(&SessionInfo) -> u64| peers().filter_map(move |(l, p)| Some((l, of(p.session.as_ref()?) as f64)));
    let help = "Keys of the datagram session, the first one included.";
    family(&mut out, "byway_session_keys_total", "counter", help, sessions(|s| s.keys));
    let help = "Datagram paths gained, lost or moved.";
    family(&mut out, "byway_path_changes_total", "counter", help, sessions(|s| s.path_changes));
    let rtt = peers().filter_map(|(l, p)| Some((l, p.rtt_ms? / 1000.0)));
    let help = "Round trip: of the datagram path's probes where there is one, else of the control connection.";
    family(&mut out, "byway_peer_rtt_seconds", "gauge", help, rtt);
    let loss = peers().filter_map(|(l, p)| Some((l, p.loss?)));
    let help = "Share of the datagram path's keep-alives of the last two minutes without an answer.";
    family(&mut out, "byway_peer_loss_ratio", "gauge", help, loss);
    let drops = status.subnets.iter().flat_map(|s| {
        s.drops
            .iter()
            .map(move |(reason, n)| (format!("subnet=\"{}\",reason=\"{reason}\"", label(s.name.as_str())), *n as f64))
    });
    family(&mut out, "byway_drops_total", "counter", "Packets dropped, by reason.", drops);
    let of_maps = |value: fn(&MapInfo) -> u64| {
        // A map that listens on every address has a part of each family, and one series.
        let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for m in maps {
            let sum = sums.entry((m.subnet.as_str(), m.name.as_str())).or_default();
            *sum = sum.saturating_add(value(m));
        }
        let series = |((subnet, map), n)| (format!("subnet=\"{}\",map=\"{}\"", label(subnet), label(map)), n as f64);
        sums.into_iter().map(series).collect::<Vec<_>>().into_iter()
    };
    family(
        &mut out,
        "byway_map_connections_total",
        "counter",
        "Connections through a port map.",
        of_maps(|m| m.connections),
    );
    family(
        &mut out,
        "byway_map_rx_bytes_total",
        "counter",
        "Bytes from clients of a port map.",
        of_maps(|m| m.rx_bytes),
    );
    family(
        &mut out,
        "byway_map_tx_bytes_total",
        "counter",
        "Bytes back to clients of a port map.",
        of_maps(|m| m.tx_bytes),
    );
    out
}

/// Opens the TCP listener of `[metrics] listen`.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::new(
            ErrorKind::Conflict,
            "E-LISTEN-IN-USE",
            format!("serve metrics on {address}: the port is in use"),
        ),
        _ => Error::new(ErrorKind::Failed, "E-LISTEN", format!("serve metrics on {address}: {e}")),
    })
}

/// Serves `GET /metrics` where `metrics.listen` says, and elsewhere as soon as that is changed.
pub(crate) async fn run(
    ctx: Context,
    mut listener: Option<TcpListener>,
    mut moves: mpsc::Receiver<Move>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(serve)).with_state(ctx.clone());
    let settings = ctx.settings.clone();
    let may_ask = move |client: IpAddr, here: IpAddr| may_ask(client, here, &settings.now().metrics_allow);
    loop {
        let asked = match listener.take() {
            Some(open) => {
                let here = open.local_addr().ok();
                if here.is_some_and(|at| !at.ip().is_loopback()) && ctx.settings.now().metrics_allow.is_empty() {
                    tracing::warn!("metrics are answered to this machine only: [metrics] allow names others");
                }
                let moved = stop.child_token();
                let serving = accept(open, router.clone(), &may_ask, moved.clone());
                tokio::pin!(serving);
                let asked = tokio::select! {
                    () = &mut serving => return Ok(()),
                    asked = moves.recv() => asked,
                };
                // The port is free before it is asked for anew.
                moved.cancel();
                serving.await;
                asked.map(|asked| (here, asked))
            }
            None => tokio::select! {
                () = stop.cancelled() => return Ok(()),
                asked = moves.recv() => asked.map(|asked| (None, asked)),
            },
        };
        let Some((former, Move { to, answer })) = asked else { return Ok(()) };
        let opened = match to {
            Some(address) => bind(address).await.map(Some),
            None => Ok(None),
        };
        let told = match opened {
            Ok(opened) => {
                listener = opened;
                Ok(())
            }
            Err(error) => {
                if let Some(former) = former {
                    listener =
                        bind(former).await.inspect_err(|error| tracing::warn!(%error, "serve metrics again")).ok();
                }
                Err(error)
            }
        };
        // Who asked has gone only where the daemon stops.
        let _ = answer.send(told);
    }
}

/// Asks that metrics are served elsewhere.
pub(crate) struct Move {
    to: Option<SocketAddr>,
    answer: oneshot::Sender<Result<(), Error>>,
}

/// Has metrics served at another address, or at none.
///
/// # Errors
/// As [`bind`]; then they are served where they were.
pub(crate) async fn relocate(moves: &mpsc::Sender<Move>, to: Option<SocketAddr>) -> Result<(), Error> {
    let (answer, answered) = oneshot::channel();
    let gone = || Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping");
    moves.send(Move { to, answer }).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

/// Whether a client may ask: this machine itself, and who is named.
fn may_ask(client: IpAddr, here: IpAddr, allowed: &[IpNet]) -> bool {
    let client = client.to_canonical();
    client.is_loopback() || client == here.to_canonical() || allowed.iter().any(|net| net.contains(&client))
}

async fn accept(
    listener: TcpListener,
    router: Router,
    may_ask: &(dyn Fn(IpAddr, IpAddr) -> bool + Sync),
    stop: CancellationToken,
) {
    let mut places = Places::new(Sizes { reserved: 0, ..Sizes::shared(CLIENTS.0, CLIENTS.1, SETTLED) });
    let mut running: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let mut clients = JoinSet::new();
    for number in 0u64.. {
        let (stream, from) = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = clients.join_next_with_id() => {
                    let ended = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    if let Some(number) = running.iter().find(|(_, task)| task.id() == ended).map(|(number, _)| *number) {
                        running.remove(&number);
                        places.give_back(number);
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => break accepted,
                    Err(error) => {
                        tracing::debug!(%error, "accept a metrics client");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        };
        let Ok(here) = stream.local_addr() else { continue };
        // Dropped, the connection is closed.
        if !may_ask(from.ip(), here.ip()) {
            continue;
        }
        match places.take(number, from.ip(), None, Instant::now()) {
            Taken::Full => continue,
            Taken::Free => {}
            Taken::Instead(other) => {
                if let Some(task) = running.remove(&other) {
                    task.abort();
                }
            }
        }
        let task = clients.spawn(http::connection(stream, router.clone(), DEADLINE, stop.clone()));
        running.insert(number, task);
    }
}

async fn serve(State(ctx): State<Context>, request: Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return (StatusCode::FORBIDDEN, "ask by IP address\n").into_response();
    }
    match text(&ctx).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Whether a Host header names an address and no name that may be made to point here.
fn is_address(host: &str) -> bool {
    let bare = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    bare == "localhost" || host.parse::<SocketAddr>().is_ok() || bare.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_may_ask() {
        for good in ["127.0.0.1", "127.0.0.1:9100", "[::1]:9100", "[::1]", "localhost:9100", "10.0.0.7:9100"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "metrics.example", "evil.example:9100", "127.0.0.1.evil.example"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn this_machine_and_who_is_named_may_ask() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let allowed = ["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for good in
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "198.51.100.1", "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1"]
        {
            assert!(may_ask(ip(good), ip("198.51.100.1"), &allowed), "{good}");
        }
        for bad in ["198.51.100.2", "10.77.2.1", "fd00::1"] {
            assert!(!may_ask(ip(bad), ip("198.51.100.1"), &allowed), "{bad}");
            assert!(!may_ask(ip(bad), ip("198.51.100.1"), &[]), "{bad}");
        }
    }

    #[tokio::test]
    async fn clients_that_sit_there_keep_nobody_out() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpStream;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/metrics", get(async || "fine\n"));
        let end = stop.clone();
        let task =
            tokio::spawn(
                async move { accept(listener, router, &|client, here| may_ask(client, here, &[]), end).await },
            );
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(TcpStream::connect(at).await.unwrap());
        }
        tokio::time::sleep(SETTLED).await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("fine\n"), "{answer}");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(2), task).await.unwrap().unwrap();
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        let mut out = String::new();
        family(&mut out, "x", "gauge", "Help.", std::iter::once((format!("n=\"{}\"", label("a\"")), 1.5)));
        assert_eq!(out, "# HELP x Help.\n# TYPE x gauge\nx{n=\"a\\\"\"} 1.5\n");
    }
}
