//! UPnP for pinholes: the service WANIPv6FirewallControl:1. Routers let a machine open its own address alone, so that every
//! question comes from that address: the search, the description and the actions.
//!
//! Who answers is a device on our link, perhaps not the gateway: its address of the link does not tell. A pinhole leads to our
//! own address whoever claims to have opened it, so that nothing is believed that could do harm; what is read is bounded.
//!
//! A pinhole is known by a number of the router's. It is not kept: after the router began anew that number may be another
//! machine's. Asking for the same pinhole again renews it and tells its number, before each removal too.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, UdpSocket};

use super::{Failure, Gateway, Granted, Record, Transport, Why};

/// How long devices may take to answer a search.
const SEARCH: Duration = Duration::from_secs(2);
/// How long one question over HTTP may take.
const QUESTION: Duration = Duration::from_secs(4);
/// Where devices are searched for: on our link.
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
const PORT: u16 = 1900;
const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1";
/// Devices that are asked for their description at most.
const DEVICES: usize = 4;
/// Bytes of a description or an answer, and of the head before it.
const LONGEST: usize = 256 << 10;
const HEAD: usize = 16 << 10;
/// Seconds that a pinhole is asked to last which is to be removed next.
const MOMENT: u32 = 60;

/// Where the firewall is controlled, once it was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Firewall {
    found: Option<(Gateway, Control)>,
}

/// Where a device takes actions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Control {
    at: SocketAddrV6,
    path: String,
}

impl Firewall {
    /// Opens a pinhole, or keeps it open.
    pub(super) async fn map(
        &mut self,
        link: u32,
        record: &Record,
        lease: u32,
    ) -> Result<Granted, Failure> {
        let added = self.add(link, record, lease).await;
        if matches!(added, Err(Failure::Silent | Failure::Lost)) {
            // It may have begun anew, with its services elsewhere.
            self.found = None;
        }
        added.map(|_| Granted {
            external: SocketAddr::new(record.gateway.local, record.port.number),
            lease,
            epoch: None,
        })
    }

    /// Closes a pinhole.
    pub(super) async fn remove(&mut self, link: u32, record: &Record) -> Result<(), Failure> {
        let local = local(record)?;
        let number = self.add(link, record, MOMENT).await?;
        let control = self.control(link, record).await?;
        let arguments = [("UniqueID", number.to_string())];
        match act(local, &control, "DeletePinhole", &arguments).await {
            // Nobody has it any more.
            Ok(_) | Err(Failure::Refused(Why::Code(704))) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Asks for the pinhole; the router's number of it.
    async fn add(&mut self, link: u32, record: &Record, lease: u32) -> Result<u16, Failure> {
        let local = local(record)?;
        let control = self.control(link, record).await?;
        let protocol = match record.port.transport {
            Transport::Udp => 17,
            Transport::Tcp => 6,
        };
        let arguments = [
            ("RemoteHost", String::new()),
            ("RemotePort", "0".to_owned()),
            ("InternalClient", local.to_string()),
            ("InternalPort", record.port.number.to_string()),
            ("Protocol", protocol.to_string()),
            ("LeaseTime", lease.to_string()),
        ];
        let answer = act(local, &control, "AddPinhole", &arguments).await?;
        let number = between(&answer, "<UniqueID>", "</UniqueID>");
        number
            .and_then(|text| text.trim().parse().ok())
            .ok_or(Failure::Lost)
    }

    async fn control(&mut self, link: u32, record: &Record) -> Result<Control, Failure> {
        match &self.found {
            Some((gateway, control)) if *gateway == record.gateway => Ok(control.clone()),
            _ => {
                let control = search(link, record).await.ok_or(Failure::Silent)?;
                self.found = Some((record.gateway, control.clone()));
                Ok(control)
            }
        }
    }
}

fn local(record: &Record) -> Result<Ipv6Addr, Failure> {
    match record.gateway.local {
        IpAddr::V6(local) => Ok(local),
        IpAddr::V4(_) => Err(Failure::Silent),
    }
}

/// Looks on our link for a device that controls a firewall.
async fn search(link: u32, record: &Record) -> Option<Control> {
    let (local, IpAddr::V6(gateway)) = (local(record).ok()?, record.gateway.address) else {
        return None;
    };
    let socket = UdpSocket::bind((local, 0)).await.ok()?;
    for to in [GROUP, gateway] {
        let question = format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: [{GROUP}]:{PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {SERVICE}\r\n\r\n"
        );
        let to = SocketAddrV6::new(to, PORT, 0, link);
        if let Err(error) = socket.send_to(question.as_bytes(), to).await {
            tracing::debug!(%error, %to, "UPnP");
        }
    }
    let end = tokio::time::Instant::now() + SEARCH;
    let (mut buffer, mut asked) = ([0; 2048], Vec::new());
    while let Ok(Ok((length, _))) =
        tokio::time::timeout_at(end, socket.recv_from(&mut buffer)).await
    {
        let place = buffer
            .get(..length)
            .and_then(|bytes| location(bytes, local, link));
        let Some(place) = place.filter(|place| !asked.contains(place)) else {
            continue;
        };
        match describe(local, &place).await {
            Ok(control) => return Some(control),
            Err(error) => tracing::debug!(error, at = %place.at, "UPnP: no firewall of IPv6"),
        }
        asked.push(place);
        if asked.len() >= DEVICES {
            break;
        }
    }
    None
}

/// Where the device describes itself that answers a search so: at an address of our link, and nowhere else.
fn location(answer: &[u8], local: Ipv6Addr, link: u32) -> Option<Control> {
    let text = std::str::from_utf8(answer).ok()?;
    let is_one = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(LOCATION.as_str())
    };
    let (_, place) = text.lines().find(is_one)?.split_once(':')?;
    control(place.trim(), local, link)
}

/// An address of a page on our link.
fn control(url: &str, local: Ipv6Addr, link: u32) -> Option<Control> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") || uri.authority()?.as_str().contains('@') {
        return None;
    }
    let host = uri.host()?.strip_prefix('[')?.strip_suffix(']')?;
    let ip: Ipv6Addr = host.parse().ok()?;
    let is_near = ip.is_unicast_link_local() || ip.segments()[..4] == local.segments()[..4];
    let port = uri.port_u16().unwrap_or(80);
    (is_near && port != 0).then(|| Control {
        at: SocketAddrV6::new(ip, port, 0, link),
        path: uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned(),
    })
}

/// Where the firewall is controlled, by the device's description.
async fn describe(local: Ipv6Addr, page: &Control) -> Result<Control, String> {
    let question = Request::get(&page.path).body(Full::new(Bytes::new()));
    let question = question.map_err(|e| e.to_string())?;
    let text = ask(local, page, question).await?;
    described(&text, local, page).ok_or_else(|| "it names none".to_owned())
}

fn described(text: &str, local: Ipv6Addr, page: &Control) -> Option<Control> {
    let mut services = text.split("<service>").skip(1);
    let service = services.find(|service| {
        let kind = between(service, "<serviceType>", "</serviceType>");
        kind.is_some_and(|kind| kind.trim() == SERVICE)
    })?;
    let service = service.split("</service>").next()?;
    let url = between(service, "<controlURL>", "</controlURL>")?.trim();
    let url = url.replace("&amp;", "&");
    if url.starts_with("http:") {
        return control(&url, local, page.at.scope_id());
    }
    let path = format!("/{}", url.trim_start_matches('/'));
    let is_path = path.parse::<Uri>().is_ok();
    is_path.then_some(Control { at: page.at, path })
}

/// Has the device carry an action out; what it answers.
async fn act(
    local: Ipv6Addr,
    control: &Control,
    action: &str,
    arguments: &[(&str, String)],
) -> Result<String, Failure> {
    let of = |(name, value): &(&str, String)| format!("<{name}>{value}</{name}>");
    let arguments: String = arguments.iter().map(of).collect();
    let body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{SERVICE}\">\
         {arguments}</u:{action}></s:Body></s:Envelope>\r\n"
    );
    let question = Request::post(&control.path)
        .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", format!("\"{SERVICE}#{action}\""))
        .body(Full::new(Bytes::from(body)));
    let question = question.map_err(|_| Failure::Silent)?;
    let answer = ask(local, control, question).await.map_err(|error| {
        tracing::debug!(error, action, "UPnP");
        // It has described itself before, so that it may have done what it was asked.
        Failure::Lost
    })?;
    if let Some(code) = between(&answer, "<errorCode>", "</errorCode>") {
        return Err(refused(code));
    }
    match answer.contains(&format!("{action}Response")) {
        true => Ok(answer),
        false => Err(Failure::Lost),
    }
}

/// What an error code of the service says.
fn refused(code: &str) -> Failure {
    Failure::Refused(match code.trim().parse() {
        Ok(606 | 703) => Why::NotAuthorized,
        Ok(701) => Why::NoRoom,
        Ok(702) => Why::FirewallOff,
        Ok(code) => Why::Code(code),
        Err(_) => return Failure::Lost,
    })
}

/// Asks one question over HTTP from our address.
async fn ask(
    local: Ipv6Addr,
    place: &Control,
    question: Request<Full<Bytes>>,
) -> Result<String, String> {
    let answered = tokio::time::timeout(QUESTION, talk(local, place, question));
    let body = answered
        .await
        .map_err(|_| "it takes too long".to_owned())??;
    String::from_utf8(body.into()).map_err(|_| "it says no text".to_owned())
}

async fn talk(
    local: Ipv6Addr,
    place: &Control,
    mut question: Request<Full<Bytes>>,
) -> Result<Bytes, String> {
    let plain = |error: std::io::Error| error.to_string();
    let socket = TcpSocket::new_v6().map_err(plain)?;
    socket.bind((local, 0).into()).map_err(plain)?;
    let stream = socket.connect(place.at.into()).await.map_err(plain)?;
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(HEAD);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let host = format!("[{}]:{}", place.at.ip(), place.at.port());
    let host: HeaderValue = host.parse().map_err(|_| "its address is none")?;
    question.headers_mut().insert(HOST, host);
    let close = HeaderValue::from_static("close");
    question.headers_mut().insert(CONNECTION, close);
    let answered = async {
        let answer = sender
            .send_request(question)
            .await
            .map_err(|e| e.to_string())?;
        // An error of the service comes with a status of its own, and says more.
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        body.map(|body| body.to_bytes())
            .map_err(|_| "it says too much".to_owned())
    };
    tokio::pin!(connection, answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // The end of the connection: what came is in the answer's hands already.
        _ = &mut connection => answered.await,
    }
}

/// What stands between the first of these and the next of those.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, behind) = text.split_once(from)?;
    behind.split_once(to).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests;
