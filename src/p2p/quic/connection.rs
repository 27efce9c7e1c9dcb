//! Streams of a QUIC connection, as libp2p wants them.
//!
//! | libp2p | QUIC |
//! |---|---|
//! | close a stream | FIN; what was written still arrives |
//! | drop a stream that was not closed | RESET_STREAM: the reader sees an error, not an end |
//! | drop a stream that was not read to its end | STOP_SENDING: the writer sees an error |
//! | close the connection | CONNECTION_CLOSE at once; what no reader has taken is lost |

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};

use super::canonical;
use super::transport::multiaddr;

/// The code of every reset and close: libp2p gives codes no meaning.
const NO_CODE: VarInt = VarInt::from_u32(0);

type Opening = BoxFuture<'static, Result<(SendStream, RecvStream), ConnectionError>>;

/// A connection's streams. The peer that dialled it may go on from another address.
pub(crate) struct Muxer {
    connection: quinn::Connection,
    /// Where the peer was when that was last told.
    remote: SocketAddr,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
    closing: Option<BoxFuture<'static, ConnectionError>>,
}

impl Muxer {
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Muxer {
            remote: connection.remote_address(),
            connection,
            inbound: None,
            outbound: None,
            closing: None,
        }
    }
}

fn poll_opening(
    slot: &mut Option<Opening>,
    make: impl FnOnce() -> Opening,
    cx: &mut Context<'_>,
) -> Poll<Result<Stream, ConnectionError>> {
    let opened = std::task::ready!(slot.get_or_insert_with(make).poll_unpin(cx));
    *slot = None;
    Poll::Ready(opened.map(|(send, recv)| Stream {
        send,
        recv,
        closed: false,
    }))
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let make = || {
            let connection = connection.clone();
            async move { connection.accept_bi().await }.boxed()
        };
        poll_opening(&mut this.inbound, make, cx)
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let make = || {
            let connection = connection.clone();
            async move { connection.open_bi().await }.boxed()
        };
        poll_opening(&mut this.outbound, make, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let closing = this.closing.get_or_insert_with(|| {
            connection.close(NO_CODE, &[]);
            let connection = connection.clone();
            async move { connection.closed().await }.boxed()
        });
        match std::task::ready!(closing.poll_unpin(cx)) {
            // We, or the peer at the same time.
            ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_) => {
                Poll::Ready(Ok(()))
            }
            error => Poll::Ready(Err(error)),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        // Nothing wakes this task when the peer moves, but what it sends from there does.
        let this = self.get_mut();
        let remote = this.connection.remote_address();
        if remote == this.remote {
            return Poll::Pending;
        }
        this.remote = remote;
        Poll::Ready(Ok(StreamMuxerEvent::AddressChange(multiaddr(canonical(
            remote,
        )))))
    }
}

/// A stream with both its directions.
pub(crate) struct Stream {
    send: SendStream,
    recv: RecvStream,
    /// Whether our direction has had its FIN.
    closed: bool,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.recv.poll_read(cx, buf).map_err(io::Error::from)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send)
            .poll_write(cx, buf)
            .map_err(io::Error::from)
    }

    /// QUIC sends what it is given without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Fails only where there is no direction left to close.
        if !std::mem::replace(&mut self.closed, true) {
            self.send.finish().map_err(io::Error::from)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.closed {
            // Fails where the peer has stopped it, or the connection is gone: then there is nobody to tell.
            let _ = self.send.reset(NO_CODE);
        }
    }
}
