//! What the daemon counts, for who asks: over the control socket, and where that is set over TCP.
//!
//! Made from `status` at each request (`exposition.rs`). Over TCP (`[metrics] listen`) it is read-only, for this
//! machine itself and for whom `[metrics] allow` names, and only asked for by an IP address or `localhost`: a web page
//! whose name points here cannot read it. Clients are bounded in number, by source, and in time.

use std::collections::BTreeMap;
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

use super::exposition::{PortCounts, Snapshot};
use super::{Report, status};
use crate::api::server::http;
use crate::api::types::{Error, ErrorKind, METRICS_TYPE};
use crate::backoff::Accepting;
use crate::model::error::Code;
use crate::model::source::{Places, Sizes, Source, Taken};

/// TCP clients at a time, and of one source. One that has been there for a while makes room for another.
const CLIENTS: (usize, usize) = (16, 4);
/// How long a client has to have been there before it makes room.
const SETTLED: Duration = Duration::from_secs(2);
/// A client has this long for its question, and for taking its answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The metrics of everything as text.
pub(crate) async fn text(ctx: &Report) -> Result<String, Error> {
    let mut status = status::status(ctx, None).await?;
    for subnet in &mut status.subnets {
        super::workloads::count(ctx, &mut subnet.workloads).await;
    }
    let mut maps = ctx.node.maps(None).await?;
    super::maps::count(ctx, &mut maps).await;
    let port = ctx.links.port().map(|port| {
        let unmatched = ctx.links.unmatched();
        PortCounts {
            counts: port.counts(),
            unknown: unmatched.unknown.load(Ordering::Relaxed),
            malformed: unmatched.malformed.load(Ordering::Relaxed),
            flood: unmatched.flood.load(Ordering::Relaxed),
        }
    });
    let here = match &ctx.mesh.direct {
        Some(direct) => direct.here().await,
        None => None,
    };
    let (dns, service) = (ctx.dns.counters().snapshot(), ctx.mesh.service.counts());
    // Nothing is counted any more where the peers' task has stopped.
    let circuits = ctx.peers.circuits().await.unwrap_or_default();
    let text = Snapshot {
        status,
        maps,
        dns,
        service,
        port,
        relay: ctx.links.relay().totals(),
        sprays: here.as_ref().map(|here| here.sprays),
        knocks: here.map(|here| here.knocks),
        circuits,
        clients: ctx.peers.clients(),
        handshakes: ctx.peers.handshakes(),
        lan: ctx.mesh.lan.status(),
    }
    .text();
    text.map_err(|e| {
        Error::new(
            ErrorKind::Failed,
            Code::Metrics,
            format!("write the metrics: {e}"),
        )
    })
}

/// Opens the TCP listener of `[metrics] listen`.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::new(
                ErrorKind::Conflict,
                Code::ListenInUse,
                format!("serve metrics on {address}: the port is in use"),
            ),
            _ => Error::new(
                ErrorKind::Failed,
                Code::Listen,
                format!("serve metrics on {address}: {e}"),
            ),
        })
}

/// Serves `GET /metrics` where `metrics.listen` says, and elsewhere as soon as that is changed.
pub(crate) async fn run(
    ctx: Report,
    mut listener: Option<TcpListener>,
    mut moves: mpsc::Receiver<Move>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(serve))
        .with_state(ctx.clone());
    let settings = ctx.settings.clone();
    let may_ask =
        move |client: IpAddr, here: IpAddr| may_ask(client, here, &settings.borrow().metrics_allow);
    loop {
        let asked = match listener.take() {
            Some(open) => {
                let here = open.local_addr().ok();
                if here.is_some_and(|at| !at.ip().is_loopback())
                    && ctx.settings.borrow().metrics_allow.is_empty()
                {
                    tracing::warn!(
                        "metrics are answered to this machine only: [metrics] allow names others"
                    );
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
        let Some((former, Move { to, answer })) = asked else {
            return Ok(());
        };
        let told = match open(to).await {
            Ok(opened) => {
                listener = opened;
                Ok(())
            }
            Err(error) => {
                listener = open_again(former).await;
                Err(error)
            }
        };
        // Who asked has gone only where the daemon stops.
        let _ = answer.send(told);
    }
}

/// Opens a place to serve metrics at, where there is to be one.
async fn open(at: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    match at {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

/// Opens what was open before, where another place could not be had.
async fn open_again(former: Option<SocketAddr>) -> Option<TcpListener> {
    bind(former?)
        .await
        .inspect_err(|error| tracing::warn!(%error, "serve metrics again"))
        .ok()
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
pub(crate) async fn relocate(
    moves: &mpsc::Sender<Move>,
    to: Option<SocketAddr>,
) -> Result<(), Error> {
    let (answer, answered) = oneshot::channel();
    let gone = || Error::new(ErrorKind::Failed, Code::Stopping, "the daemon is stopping");
    moves.send(Move { to, answer }).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

/// Whether a client may ask: this machine itself, and who is named.
fn may_ask(client: IpAddr, here: IpAddr, allowed: &[IpNet]) -> bool {
    let client = client.to_canonical();
    client.is_loopback()
        || client == here.to_canonical()
        || allowed.iter().any(|net| net.contains(&client))
}

async fn accept(
    listener: TcpListener,
    router: Router,
    may_ask: &(dyn Fn(IpAddr, IpAddr) -> bool + Sync),
    stop: CancellationToken,
) {
    let mut places = Places::new(Sizes {
        reserved: 0,
        ..Sizes::shared(CLIENTS.0, CLIENTS.1, SETTLED)
    });
    let mut running: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let (mut clients, mut accepting) = (JoinSet::new(), Accepting::default());
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
                        let (pause, is_said) = accepting.failed(Instant::now());
                        if is_said {
                            tracing::warn!(%error, "accept a metrics client");
                        }
                        tokio::time::sleep(pause).await;
                    }
                },
            }
        };
        accepting.accepted();
        let Ok(here) = stream.local_addr() else {
            continue;
        };
        // Dropped, the connection is closed.
        if !may_ask(from.ip(), here.ip()) {
            continue;
        }
        match places.take(number, Source::of(from.ip()), None, Instant::now()) {
            Taken::Full => continue,
            Taken::Free => {}
            Taken::Instead(other) => {
                if let Some(task) = running.remove(&other) {
                    task.abort();
                }
            }
        }
        let task = clients.spawn(http::connection(
            stream,
            router.clone(),
            DEADLINE,
            stop.clone(),
        ));
        running.insert(number, task);
    }
}

async fn serve(State(ctx): State<Report>, request: Request) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    if !is_address(host) {
        return (StatusCode::FORBIDDEN, "ask by IP address\n").into_response();
    }
    match text(&ctx).await {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Whether a Host header names an address and no name that may be made to point here.
fn is_address(host: &str) -> bool {
    let bare = host
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok())
        .map_or(host, |(name, _)| name);
    bare == "localhost"
        || host.parse::<SocketAddr>().is_ok()
        || bare.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_may_ask() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "[::1]",
            "localhost:9100",
            "10.0.0.7:9100",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "metrics.example",
            "evil.example:9100",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn this_machine_and_who_is_named_may_ask() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let allowed = [
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        for good in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "198.51.100.1",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8::1",
        ] {
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
        let task = tokio::spawn(async move {
            accept(
                listener,
                router,
                &|client, here| may_ask(client, here, &[]),
                end,
            )
            .await
        });
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(TcpStream::connect(at).await.unwrap());
        }
        tokio::time::sleep(SETTLED).await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("fine\n"), "{answer}");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(2), task)
            .await
            .unwrap()
            .unwrap();
    }
}
