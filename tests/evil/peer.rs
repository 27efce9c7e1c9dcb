//! A connection that keeps no rule: libp2p's Noise and yamux below, and the negotiation of each stream by hand.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context as Cx, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use byway::model::id::PeerId;
use byway::wire::control::{self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest};
use ed25519_dalek::SigningKey;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, SubstreamBox};
use libp2p::core::transport::{DialOpts, MemoryTransport, PortUse};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::core::{Endpoint, Transport};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol as Part;
use libp2p::{Multiaddr, noise, tcp, yamux};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// How long one request may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// What every negotiation begins with.
const MULTISTREAM: &str = "/multistream/1.0.0";
/// Joining: open to everybody.
pub const JOIN: &str = "/byway/join/1";
/// Records: members only.
pub const CONTROL: &str = "/byway/control/1";
/// Other questions: members only.
pub const SERVICE: &str = "/byway/service/1";

/// Where a victim listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// TCP.
    Tcp(SocketAddr),
    /// Inside this process.
    Memory(u64),
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Place> {
        if let Ok(address) = text.parse() {
            return Ok(Place::Tcp(address));
        }
        let address: Multiaddr = text
            .parse()
            .with_context(|| format!("{text}: expected 10.99.0.1:4100 or a multiaddr"))?;
        let mut parts = address.iter();
        let ip: IpAddr = match parts.next() {
            Some(Part::Memory(number)) => return Ok(Place::Memory(number)),
            Some(Part::Ip4(ip)) => ip.into(),
            Some(Part::Ip6(ip)) => ip.into(),
            _ => bail!("{text}: neither an IP address nor /memory in front"),
        };
        match parts.next() {
            Some(Part::Tcp(port)) => Ok(Place::Tcp(SocketAddr::new(ip, port))),
            _ => bail!("{text}: only TCP is spoken here"),
        }
    }
}

/// What we answer when the victim asks us.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Addresses we say we listen on.
    pub claimed: Vec<Multiaddr>,
}

/// The other half of our own public key, as people see it.
pub fn peer_of(key: &SigningKey) -> PeerId {
    PeerId(key.verifying_key().to_bytes())
}

fn identity(key: &SigningKey) -> Result<Keypair> {
    Ok(Keypair::ed25519_from_bytes(key.to_bytes())?)
}

async fn socket(to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(from) = from {
        socket
            .bind(SocketAddr::new(from, 0))
            .with_context(|| format!("bind {from}"))?;
    }
    let stream = socket
        .connect(to)
        .await
        .with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A bare TCP connection, on which nothing has been said.
///
/// # Errors
/// It cannot be made in five seconds.
pub async fn bare(to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream> {
    tokio::time::timeout(Duration::from_secs(5), socket(to, from)).await?
}

/// A line of the negotiation: its length (one byte is enough for all we say), the text, a line feed.
async fn write_line<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> Result<()> {
    let length = u8::try_from(text.len() + 1)
        .ok()
        .filter(|l| *l < 128)
        .context("a line of at most 126 bytes")?;
    stream
        .write_all(&[&[length], text.as_bytes(), b"\n"].concat())
        .await?;
    Ok(stream.flush().await?)
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<String> {
    let mut length = [0u8];
    stream.read_exact(&mut length).await?;
    ensure!(
        length[0] > 0 && length[0] < 128,
        "a line of {} bytes",
        length[0]
    );
    let mut text = vec![0; usize::from(length[0])];
    stream.read_exact(&mut text).await?;
    ensure!(text.pop() == Some(b'\n'), "a line without an end");
    Ok(String::from_utf8(text)?)
}

/// Agrees on a protocol as the side that asks.
async fn choose<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, protocol: &str) -> Result<()> {
    write_line(stream, MULTISTREAM).await?;
    write_line(stream, protocol).await?;
    let head = read_line(stream).await?;
    ensure!(head == MULTISTREAM, "the peer began with {head:?}");
    let answer = read_line(stream).await?;
    ensure!(
        answer == protocol,
        "the peer does not speak {protocol}: {answer:?}"
    );
    Ok(())
}

/// Agrees on one of these protocols as the side that is asked.
async fn offer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    known: &[&'static str],
) -> Result<&'static str> {
    let head = read_line(stream).await?;
    ensure!(head == MULTISTREAM, "the peer began with {head:?}");
    write_line(stream, MULTISTREAM).await?;
    for _ in 0..16 {
        let wanted = read_line(stream).await?;
        if let Some(protocol) = known.iter().find(|p| **p == wanted) {
            write_line(stream, protocol).await?;
            return Ok(protocol);
        }
        write_line(stream, "na").await?;
    }
    bail!("no common protocol")
}

/// Noise and yamux over a stream of bytes, as who dials.
async fn secured<S>(mut stream: S, key: &SigningKey) -> Result<(libp2p::PeerId, StreamMuxerBox)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    choose(&mut stream, "/noise").await?;
    let (peer, mut stream) = noise::Config::new(&identity(key)?)?
        .upgrade_outbound(stream, "/noise")
        .await?;
    choose(&mut stream, "/yamux/1.0.0").await?;
    let muxer = OutboundConnectionUpgrade::upgrade_outbound(
        yamux::Config::default(),
        stream,
        "/yamux/1.0.0",
    )
    .await?;
    Ok((peer, StreamMuxerBox::new(muxer)))
}

/// Noise and yamux over a stream of bytes, as who is dialled.
async fn welcomed<S>(mut stream: S, key: &SigningKey) -> Result<(libp2p::PeerId, StreamMuxerBox)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    offer(&mut stream, &["/noise"]).await?;
    let (peer, mut stream) = noise::Config::new(&identity(key)?)?
        .upgrade_inbound(stream, "/noise")
        .await?;
    offer(&mut stream, &["/yamux/1.0.0"]).await?;
    let muxer =
        InboundConnectionUpgrade::upgrade_inbound(yamux::Config::default(), stream, "/yamux/1.0.0")
            .await?;
    Ok((peer, StreamMuxerBox::new(muxer)))
}

/// A connection to one victim. It ends when this is dropped.
pub struct Peer {
    key: SigningKey,
    orders: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
}

impl Peer {
    /// Connects with any key, from any address of this machine.
    ///
    /// # Errors
    /// Nobody answers there in time, or the victim refuses us.
    pub async fn dial(place: Place, key: &SigningKey, from: Option<IpAddr>) -> Result<Peer> {
        Peer::dial_as(place, key, from, Manners::default()).await
    }

    /// As [`Peer::dial`], with manners of our own.
    ///
    /// # Errors
    /// As [`Peer::dial`].
    pub async fn dial_as(
        place: Place,
        key: &SigningKey,
        from: Option<IpAddr>,
        manners: Manners,
    ) -> Result<Peer> {
        let connected = async {
            match place {
                Place::Tcp(to) => {
                    secured(tcp::tokio::TcpStream(socket(to, from).await?), key).await
                }
                Place::Memory(number) => {
                    let options = DialOpts {
                        role: Endpoint::Dialer,
                        port_use: PortUse::New,
                    };
                    let address: Multiaddr = format!("/memory/{number}").parse()?;
                    secured(
                        MemoryTransport::default().dial(address, options)?.await?,
                        key,
                    )
                    .await
                }
            }
        };
        let (_, muxer) = tokio::time::timeout(PATIENCE, connected)
            .await
            .context("no connection in time")??;
        let (orders, taken) = mpsc::channel(64);
        tokio::spawn(run(muxer, taken, key.clone(), manners));
        Ok(Peer {
            key: key.clone(),
            orders,
        })
    }

    /// Whether the victim has ended the connection.
    pub fn is_closed(&self) -> bool {
        self.orders.is_closed()
    }

    /// A fresh stream, on which nothing has been said.
    ///
    /// # Errors
    /// The connection has ended, or the victim takes no more streams.
    pub async fn stream(&self) -> Result<SubstreamBox> {
        let (reply, stream) = oneshot::channel();
        self.orders
            .send(reply)
            .await
            .ok()
            .context("the connection has ended")?;
        let opened = tokio::time::timeout(PATIENCE, stream)
            .await
            .context("no stream in time")?;
        opened.context("the connection has ended")
    }

    /// A stream that speaks a protocol.
    ///
    /// # Errors
    /// As [`Peer::stream`], or the victim does not offer the protocol.
    pub async fn open(&self, protocol: &str) -> Result<SubstreamBox> {
        let mut stream = self.stream().await?;
        tokio::time::timeout(PATIENCE, choose(&mut stream, protocol))
            .await
            .context("no protocol in time")??;
        Ok(stream)
    }

    /// Sends a request and does not wait: the answer can be read from what this returns.
    ///
    /// # Errors
    /// As [`Peer::open`].
    pub async fn send(&self, protocol: &str, body: &[u8]) -> Result<SubstreamBox> {
        let mut stream = self.open(protocol).await?;
        let length = u32::try_from(body.len())?.to_be_bytes();
        tokio::time::timeout(PATIENCE, async {
            stream.write_all(&length).await?;
            stream.write_all(body).await?;
            stream.flush().await
        })
        .await
        .context("the request is not taken")??;
        Ok(stream)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// There is none in [`PATIENCE`].
    pub async fn ask(&self, protocol: &str, body: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.send(protocol, body).await?;
        tokio::time::timeout(PATIENCE, answer(&mut stream))
            .await
            .context("no answer in time")?
    }

    /// A member's request.
    ///
    /// # Errors
    /// As [`Peer::ask`]; a stranger is not offered the protocol.
    pub async fn control(&self, request: &ControlRequest) -> Result<ControlAnswer> {
        Ok(control::decode(
            &self.ask(CONTROL, &control::encode(request)).await?,
        )?)
    }

    /// A stranger's request.
    ///
    /// # Errors
    /// As [`Peer::ask`].
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer> {
        Ok(control::decode(
            &self.ask(JOIN, &control::encode(request)).await?,
        )?)
    }

    /// Says without being asked where we listen.
    ///
    /// # Errors
    /// The victim does not take it.
    pub async fn push_identify(&self, claimed: &[Multiaddr]) -> Result<()> {
        let mut stream = self.open("/ipfs/id/push/1.0.0").await?;
        stream.write_all(&identify(&self.key, claimed)).await?;
        Ok(stream.close().await?)
    }
}

/// Reads one answer of a request.
///
/// # Errors
/// The stream ends before it.
pub async fn answer(stream: &mut SubstreamBox) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(
        length <= control::MAX_CONTROL,
        "an answer of {length} bytes"
    );
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// Serves one connection: opens streams for us, and answers the victim's.
async fn run(
    mut muxer: StreamMuxerBox,
    mut orders: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    key: SigningKey,
    manners: Manners,
) {
    let mut waiting: VecDeque<oneshot::Sender<SubstreamBox>> = VecDeque::new();
    let mut turn = |cx: &mut Cx<'_>| -> Poll<()> {
        loop {
            let mut progress = false;
            match Pin::new(&mut muxer).poll_inbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    let (key, manners) = (key.clone(), manners.clone());
                    tokio::spawn(async move { respond(stream, &key, &manners).await });
                    progress = true;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            match orders.poll_recv(cx) {
                Poll::Ready(Some(order)) => {
                    waiting.push_back(order);
                    progress = true;
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            while !waiting.is_empty() {
                match Pin::new(&mut muxer).poll_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        waiting.pop_front().map(|order| order.send(stream));
                        progress = true;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            match Pin::new(&mut muxer).poll(cx) {
                Poll::Ready(Ok(_)) => progress = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if !progress {
                return Poll::Pending;
            }
        }
    };
    poll_fn(&mut turn).await;
}

/// What we say on a stream of the victim's: enough to count as alive, and what our manners add.
async fn respond(mut stream: SubstreamBox, key: &SigningKey, manners: &Manners) -> Result<()> {
    let known: &[&'static str] = if manners.claimed.is_empty() {
        &["/ipfs/ping/1.0.0"]
    } else {
        &["/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"]
    };
    if offer(&mut stream, known).await? == "/ipfs/id/1.0.0" {
        stream.write_all(&identify(key, &manners.claimed)).await?;
        return Ok(stream.close().await?);
    }
    let mut ping = [0; 32];
    loop {
        stream.read_exact(&mut ping).await?;
        stream.write_all(&ping).await?;
        stream.flush().await?;
    }
}

/// An unsigned number, seven bits a byte.
fn varint(mut number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while number > 127 {
        out.push((number as u8 & 127) | 128);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

/// A message of libp2p's identify: the key, then the addresses.
fn identify(key: &SigningKey, claimed: &[Multiaddr]) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag][..], &varint(bytes.len()), bytes].concat();
    let public = [&[8, 1, 18, 32][..], &key.verifying_key().to_bytes()].concat();
    let mut body = [
        field(10, &public),
        field(42, b"byway/1"),
        field(50, b"byway/evil"),
    ]
    .concat();
    for address in claimed {
        body.extend(field(18, &address.to_vec()));
    }
    [varint(body.len()), body].concat()
}

/// Takes one connection in; its streams are handed to `serve`, one at a time.
///
/// # Errors
/// It is no libp2p connection, or it ends.
pub async fn accept<F, R>(stream: TcpStream, key: &SigningKey, mut serve: F) -> Result<()>
where
    F: FnMut(PeerId, SubstreamBox) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let (peer, mut muxer) = welcomed(tcp::tokio::TcpStream(stream), key).await?;
    let peer =
        PeerId::from_multihash(&peer.to_bytes()).context("a peer with another kind of key")?;
    poll_fn(|cx| {
        loop {
            match Pin::new(&mut muxer).poll_inbound(cx) {
                Poll::Ready(Ok(stream)) => drop(tokio::spawn(serve(peer, stream))),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut muxer).poll(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e.into())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One request on a stream of a protocol we offer, answered by `reply`.
///
/// # Errors
/// The other side asks for another protocol, or goes.
pub async fn serve_one(
    stream: &mut SubstreamBox,
    protocol: &'static str,
    reply: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>,
) -> Result<()> {
    offer(stream, &[protocol]).await?;
    let request = answer(stream).await?;
    if let Some(body) = reply(request) {
        stream
            .write_all(&u32::try_from(body.len())?.to_be_bytes())
            .await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
    }
    Ok(stream.close().await?)
}
