//! What comes before the first frame: a proxy's word, TLS, and the upgrade to a WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures_rustls::TlsStream;
use futures_rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::proxied::{Proxied, Silent};
use super::stream::Framed;
use super::target::{Target, Web};
use super::tls::Tls;
use crate::model::proxy::{Proxy, place};
use crate::model::source::Step;
use crate::p2p::admission::reached;
use crate::p2p::buffered_io::LargeReads;
use crate::wire::http::{self, Asked, HEAD, Refused};
use crate::wire::websocket::Role;

/// A TCP connection whose small reads are cheap.
type Tcp = LargeReads<Compat<TcpStream>>;

/// The connection that Noise runs over.
pub(in crate::p2p) struct Stream(Layers);

#[expect(
    clippy::large_enum_variant,
    reason = "one for each connection, which lasts"
)]
enum Layers {
    Plain(Tcp),
    Ws(Framed<Tcp>),
    Wss(Framed<TlsStream<Tcp>>),
}

/// Connects, through the proxy if there is one, and shakes hands up to the point where Noise begins.
pub(super) async fn dial(target: Target, proxied: Proxied, tls: Tls) -> io::Result<Stream> {
    let proxy = proxied.to(&target.host.text(), target.port);
    let mut tcp = match (&proxy, target.socket()) {
        (Some(proxy), _) => {
            let place = place(&target.host.text(), target.port);
            let asked = ask_proxy(proxy, &place).await;
            let tcp = asked.map_err(|e| proxied.refused(proxy, &place, &e))?;
            proxied.connected();
            tcp
        }
        (None, Some(at)) => connect(TcpStream::connect(at)).await?,
        (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    let called = target.called();
    let setup = async {
        match target.web {
            None => Ok(Layers::Plain(tcp)),
            Some(Web { tls: false, path }) => {
                upgrade(&mut tcp, &place_of(&called, target.port, 80), &path).await?;
                Ok(Layers::Ws(Framed::new(tcp, Role::Client)))
            }
            Some(Web { tls: true, path }) => {
                let host = place_of(&called, target.port, 443);
                let name = ServerName::try_from(called).map_err(io::Error::other)?;
                let mut tls = TlsStream::from(tls.client.connect(name, tcp).await?);
                upgrade(&mut tls, &host, &path).await?;
                Ok(Layers::Wss(Framed::new(tls, Role::Client)))
            }
        }
    };
    setup.await.map(Stream)
}

/// A connection that came in, whose question has been read and not answered yet.
pub(super) struct Asking {
    io: Below,
    head: Vec<u8>,
}

/// What a question came over.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each connection, which lasts"
)]
enum Below {
    Tcp(Tcp),
    Tls(TlsStream<Tcp>),
}

/// Reads what a connection asks for, inside TLS or not.
pub(super) async fn hear(tcp: TcpStream, tls: Option<Tls>) -> io::Result<Asking> {
    let mut tcp = LargeReads::new(tcp.compat());
    let Some(tls) = tls else {
        let head = head(&mut tcp).await?;
        let io = Below::Tcp(tcp);
        return Ok(Asking { io, head });
    };
    let Some(acceptor) = tls.server.acceptor() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no certificate"));
    };
    let mut tls = TlsStream::from(acceptor.accept(tcp).await?);
    let head = head(&mut tls).await?;
    let io = Below::Tls(tls);
    Ok(Asking { io, head })
}

impl Asking {
    /// The head of the question.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Grants the WebSocket that is asked for.
    pub(super) async fn answer(self) -> io::Result<Stream> {
        reached(Step::Asked);
        let layers = match self.io {
            Below::Tcp(mut tcp) => {
                grant(&mut tcp, &self.head).await?;
                Layers::Ws(Framed::new(tcp, Role::Server))
            }
            Below::Tls(mut tls) => {
                grant(&mut tls, &self.head).await?;
                Layers::Wss(Framed::new(tls, Role::Server))
            }
        };
        Ok(Stream(layers))
    }
}

async fn connect(dial: impl Future<Output = io::Result<TcpStream>>) -> io::Result<Tcp> {
    let tcp = dial.await?;
    tcp.set_nodelay(true)?;
    Ok(LargeReads::new(tcp.compat()))
}

/// The host of a request: its port is named where the scheme has another.
fn place_of(host: &str, port: u16, usual: u16) -> String {
    match place(host, port) {
        whole if port != usual => whole,
        whole => match whole.rsplit_once(':') {
            Some((host, _)) => host.to_owned(),
            None => whole,
        },
    }
}

/// Connects to a place through the proxy.
async fn ask_proxy(proxy: &Proxy, place: &str) -> io::Result<Tcp> {
    let reached = connect(TcpStream::connect((proxy.host(), proxy.port())));
    let unreached = |_| io::Error::new(io::ErrorKind::TimedOut, "it is not reached");
    let mut tcp = tokio::time::timeout(super::REACH, reached)
        .await
        .map_err(unreached)
        .flatten()?;
    let asked = async {
        let request = http::connect(place, proxy.credentials());
        tcp.write_all(request.as_bytes()).await?;
        tcp.flush().await?;
        let head = head(&mut tcp).await?;
        http::read_connect(&head).map_err(refused)
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, Silent);
    tokio::time::timeout(super::CONNECT, asked)
        .await
        .map_err(late)
        .flatten()?;
    Ok(tcp)
}

/// Asks a server for a WebSocket.
async fn upgrade<S>(io: &mut S, host: &str, path: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    io.write_all(http::upgrade(host, path, key).as_bytes())
        .await?;
    io.flush().await?;
    let head = head(io).await?;
    http::read_upgrade(&head, key).map_err(refused)
}

/// Answers a client that asks for a WebSocket.
async fn grant<S>(io: &mut S, head: &[u8]) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match http::asked(head) {
        Asked::Upgrade(answer) => {
            io.write_all(answer.as_bytes()).await?;
            io.flush().await
        }
        Asked::Other(answer) => {
            io.write_all(answer.as_bytes()).await?;
            io.close().await?;
            let why = "the client asks for no WebSocket";
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

fn refused(why: Refused) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

/// Reads up to the empty line that ends a head, and nothing of what follows it.
async fn head<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD {
            let why = "the head of HTTP is longer than 8 KiB";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if io.read(&mut byte).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&byte);
    }
    Ok(head)
}

impl Stream {
    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match &mut self.0 {
            Layers::Plain(io) => Pin::new(io),
            Layers::Ws(io) => Pin::new(io),
            Layers::Wss(io) => Pin::new(io),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match &mut self.0 {
            Layers::Plain(io) => Pin::new(io),
            Layers::Ws(io) => Pin::new(io),
            Layers::Wss(io) => Pin::new(io),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.reader().poll_read(cx, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_close(cx)
    }
}
