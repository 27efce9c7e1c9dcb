//! Where this machine is seen from outside, as those say whom the configuration names: STUN servers and pages.
//!
//! One task asks them at the start, whenever the network of this machine changes, and every five minutes. Nothing waits for it.
//! Servers, and pages, are asked in their order until one answers; for a consensus all are. What comes out is one more
//! address that peers are told of.

mod agree;
mod page;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hyper::Uri;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::agree::{Report, agreed};
use super::Mesh;
use super::portmap::ports;
use crate::backoff::Backoff;
use crate::config::{Config, External};
use crate::model::address::{is_of_this_machine, is_within};
use crate::model::id::PeerId;
use crate::p2p::Address;
use crate::portmap::{Port, Transport};

/// Between two looks while there is an answer: a provider may give another address at any time.
const AGAIN: Duration = Duration::from_secs(300);
/// Between two looks without one.
const RETRY: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(1800));
/// How long after a change of addresses others are asked.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the look for a name may take.
const NAMES: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

/// What one of those that were asked said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// `HOST:PORT` of a server, or the address of a page.
    pub name: String,
    /// What it said: `A:P`, or an address; else why it said nothing.
    pub said: Result<String, String>,
}

/// What is known of this machine from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outside {
    /// Where it is seen; none where nobody said so, or too few agree.
    pub address: Option<SocketAddr>,
    /// Whom was asked last, in order.
    pub sources: Vec<Source>,
    /// Our ports: of UDP, and of TCP.
    own: (Option<u16>, Option<u16>),
    /// Whether somebody saw the port of UDP there, and not the address alone.
    is_port_seen: bool,
}

impl Outside {
    /// The addresses that peers are told of. Who sees a port of UDP says nothing of TCP, to which a NAT lets nobody in whom this
    /// node has not dialled; who names an address alone is taken to mean both ports.
    fn told(&self) -> Vec<Address> {
        let Some(address) = self.address else {
            return Vec::new();
        };
        let (udp, tcp) = self.own;
        let ip = match address.ip() {
            IpAddr::V4(ip) => format!("/ip4/{ip}"),
            IpAddr::V6(ip) => format!("/ip6/{ip}"),
        };
        let quic = udp.map(|_| format!("{ip}/udp/{}/quic-v1", address.port()));
        let tcp = tcp
            .filter(|_| !self.is_port_seen)
            .map(|tcp| format!("{ip}/tcp/{tcp}"));
        let all = quic.into_iter().chain(tcp);
        all.filter_map(|text| text.parse().ok()).collect()
    }
}

impl Mesh {
    /// Where those see this node whom the configuration names; nothing that it denies.
    pub(crate) fn outside(&self) -> Vec<Address> {
        let denied = &self.config().deny_cidrs;
        let mut told = self.outside.borrow().told();
        told.retain(|address| address.ip().is_some_and(|ip| !is_within(ip, denied)));
        told
    }
}

/// The keys that this follows.
fn keys(config: &Config) -> (External, &[String], &[String]) {
    (config.external, &config.stun, &config.external_urls)
}

/// Asks those whom the configuration names, until `stop`.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut changes = mesh.follow_config();
    let mut listening = mesh.portmap.follow_listening();
    let mut failures = 0;
    loop {
        let config = changes.borrow_and_update().clone();
        let own = ports(&listening.borrow_and_update());
        let asked = look(&mesh, &config, &own);
        let Some(outside) = stop.run_until_cancelled(asked).await else {
            return Ok(());
        };
        let is_found = outside.address.is_some();
        tell(&mesh, outside).await;
        let pause = match (config.external, is_found) {
            (External::Members, _) => None,
            (_, true) => Some(AGAIN),
            (_, false) => Some(RETRY.pause(failures)),
        };
        failures = if is_found { 0 } else { failures + 1 };
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = changes.changed() => {
                    if keys(&changes.borrow()) == keys(&config) {
                        continue;
                    }
                    failures = 0;
                }
                Ok(()) = listening.changed() => {
                    failures = 0;
                    let _stopped = stop.run_until_cancelled(tokio::time::sleep(SETTLED)).await;
                }
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
            break;
        }
    }
}

async fn tell(mesh: &Mesh, outside: Outside) {
    let is_news = mesh.outside.send_if_modified(|before| {
        let is_news = before.address != outside.address;
        *before = outside.clone();
        is_news
    });
    let udp = outside.own.0;
    if let Some(direct) = mesh.direct.as_ref().filter(|_| is_news) {
        let seen = outside.address.filter(|_| udp.is_some());
        direct.external(seen.into_iter().collect()).await;
    }
    if is_news {
        tracing::info!(address = ?outside.address, "this machine is seen from outside");
    }
}

/// Asks those that the configuration names.
async fn look(mesh: &Mesh, config: &Config, own: &[Port]) -> Outside {
    let of = |transport| own.iter().find(|port| port.transport == transport);
    let own = (of(Transport::Udp), of(Transport::Tcp));
    let own = (own.0.map(|port| port.number), own.1.map(|port| port.number));
    let mut outside = Outside {
        own,
        ..Outside::default()
    };
    let Some(port) = own.0.or(own.1) else {
        return outside;
    };
    let servers = config.stun.iter().filter(|_| config.external.asks_stun());
    let urls = config
        .external_urls
        .iter()
        .filter(|_| config.external.asks_urls());
    let is_first = config.external != External::Consensus;
    let mut reports = Vec::new();
    for name in servers {
        let said = ask_server(mesh, config, name).await;
        note(
            &mut outside,
            &mut reports,
            name,
            said.map(|at| (at.ip(), Some(at.port()))),
        );
        if is_first && !reports.is_empty() {
            break;
        }
    }
    if is_first {
        for name in urls {
            let said = ask_page(config, name).await;
            note(&mut outside, &mut reports, name, said.map(|ip| (ip, None)));
            if !reports.is_empty() {
                break;
            }
        }
        let first = reports.first();
        outside.is_port_seen = first.is_some_and(|said| said.port.is_some());
        outside.address = first.map(|said| SocketAddr::new(said.ip, said.port.unwrap_or(port)));
        return outside;
    }
    let pages = urls.map(|name| async move { (name, ask_page(config, name).await) });
    for (name, said) in join_all(pages).await {
        note(&mut outside, &mut reports, name, said.map(|ip| (ip, None)));
    }
    reports.extend(members(mesh).await);
    // Each family has an address of its own: what is asked for is the one that a NAT may stand before.
    if reports.iter().any(|report| report.ip.is_ipv4()) {
        reports.retain(|report| report.ip.is_ipv4());
    }
    outside.address = agreed(&reports, port);
    let told = outside.address.map(|address| address.ip());
    let mut told = reports.iter().filter(|report| Some(report.ip) == told);
    outside.is_port_seen = told.any(|report| report.port.is_some());
    outside
}

/// Notes what one said; an address that leads to nobody outside counts as none.
fn note(
    outside: &mut Outside,
    reports: &mut Vec<Report>,
    name: &str,
    said: Result<(IpAddr, Option<u16>), String>,
) {
    let said = said.and_then(
        |(ip, port)| match is_of_this_machine(ip) || ip.is_multicast() {
            true => Err(format!("it says {ip}, which leads nowhere")),
            false => Ok((ip, port)),
        },
    );
    if let Ok((ip, port)) = said {
        reports.push(Report {
            ip,
            port,
            is_member: false,
        });
    }
    let said = said.map(|(ip, port)| match port {
        Some(port) => SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    });
    outside.sources.push(Source {
        name: name.to_owned(),
        said,
    });
}

/// What members see, each once.
async fn members(mesh: &Mesh) -> Vec<Report> {
    let here = match &mesh.direct {
        Some(direct) => direct.here().await,
        None => None,
    };
    let mut seen: Vec<PeerId> = Vec::new();
    let mut reports = Vec::new();
    // The newest of each is the last.
    for (address, by) in here.iter().flat_map(|here| here.observed.iter().rev()) {
        if !seen.contains(by) {
            seen.push(*by);
            reports.push(Report {
                ip: address.ip(),
                port: Some(address.port()),
                is_member: true,
            });
        }
    }
    reports
}

async fn ask_server(mesh: &Mesh, config: &Config, name: &str) -> Result<SocketAddr, String> {
    let port = mesh.links.port().ok_or("no UDP port is open here")?;
    let addresses = addresses(config, name).await?;
    let server = addresses.first().copied().ok_or("its name leads nowhere")?;
    let mut transaction = [0; 12];
    getrandom::fill(&mut transaction).map_err(|error| error.to_string())?;
    match port.ask_stun(server, transaction).await {
        Ok(Some(seen)) => Ok(seen),
        Ok(None) => Err("it does not answer".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn ask_page(config: &Config, name: &str) -> Result<IpAddr, String> {
    let uri: Uri = name.parse().map_err(|_| "no address of a page")?;
    let host = uri.host().unwrap_or_default();
    let usual = if page::is_secure(&uri) { 443 } else { 80 };
    let place = format!("{host}:{}", uri.port_u16().unwrap_or(usual));
    let addresses = addresses(config, &place).await?;
    page::ask(&uri, &addresses, &tls::BUNDLES).await
}

/// The addresses of `HOST:PORT` that are not denied, those of IPv4 first.
async fn addresses(config: &Config, name: &str) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::time::timeout(NAMES, tokio::net::lookup_host(name)).await;
    let found = found.map_err(|_| "the look for its name takes too long")?;
    let mut found: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.retain(|at| !is_within(at.ip(), &config.deny_cidrs));
    found.truncate(ADDRESSES);
    match found.is_empty() {
        true => Err("transport.deny_cidrs covers it".to_owned()),
        false => Ok(found),
    }
}

/// Nobody has been asked yet.
pub(super) fn unknown() -> watch::Sender<Outside> {
    watch::Sender::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_tcp_is_told_where_an_address_alone_is_named() {
        let outside = |port, own, is_port_seen| Outside {
            address: Some(SocketAddr::new([203, 0, 113, 9].into(), port)),
            sources: vec![],
            own,
            is_port_seen,
        };
        let told = |outside: Outside| -> Vec<String> {
            outside.told().iter().map(ToString::to_string).collect()
        };
        let (quic, tcp) = (
            "/ip4/203.0.113.9/udp/4100/quic-v1",
            "/ip4/203.0.113.9/tcp/4101",
        );
        let both = (Some(4100), Some(4101));
        assert_eq!(told(outside(4100, both, false)), [quic, tcp]);
        assert_eq!(told(outside(4100, both, true)), [quic]);
        assert_eq!(told(outside(4101, (None, Some(4101)), false)), [tcp]);
        assert_eq!(told(Outside::default()), [""; 0]);
    }

    #[test]
    fn an_address_that_leads_nowhere_is_none() {
        let (mut outside, mut reports) = (Outside::default(), Vec::new());
        for bad in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0"] {
            note(
                &mut outside,
                &mut reports,
                "x",
                Ok((bad.parse().unwrap(), None)),
            );
        }
        assert_eq!(reports, []);
        assert!(outside.sources.iter().all(|source| source.said.is_err()));
        note(
            &mut outside,
            &mut reports,
            "x",
            Ok(([203, 0, 113, 9].into(), Some(7))),
        );
        assert_eq!(outside.sources[4].said.as_deref(), Ok("203.0.113.9:7"));
        assert_eq!(reports.len(), 1);
    }
}
