//! A WebSocket as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};

use crate::wire::websocket::{
    BARREN, CONTROL, HEAD, Head, Inbound, Kind, Outbound, Role, apply, needed,
};

/// What of a frame is read next.
#[derive(Debug)]
enum Reading {
    /// Its head, of which so many bytes are there.
    Head([u8; HEAD], usize),
    /// Its payload, from this byte on.
    Data(Head, u64),
    /// The payload of a control frame, of which so many bytes are there.
    Control(Head, [u8; CONTROL], usize),
    /// Nothing: the other end has said that it sends no more.
    Over,
}

/// Bytes in the frames of a WebSocket over `S`, whose reads are cheap because `S` buffers them.
#[derive(Debug)]
pub(super) struct Framed<S> {
    inner: S,
    role: Role,
    reading: Reading,
    inbound: Inbound,
    outbound: Outbound,
    /// One frame, of which the first bytes have been written, and answers to control frames behind it.
    out: Vec<u8>,
    written: usize,
    /// The answer to the last ping, until it has its turn: of several that come faster, the last one is answered.
    pong: Option<([u8; CONTROL], usize)>,
    /// Whether this end has said that it sends no more.
    closed: bool,
}

impl<S> Framed<S> {
    pub(super) fn new(inner: S, role: Role) -> Framed<S> {
        Framed {
            inner,
            role,
            reading: Reading::Head([0; HEAD], 0),
            inbound: Inbound::new(role),
            outbound: Outbound::new(role),
            out: Vec::new(),
            written: 0,
            pong: None,
            closed: false,
        }
    }

    /// What a frame is masked with. Masks keep scripts from writing what a proxy takes for HTTP; what is inside is ciphertext
    /// already.
    fn mask(&self) -> io::Result<[u8; 4]> {
        match self.role {
            Role::Client => Ok(getrandom::u32().map_err(io::Error::other)?.to_ne_bytes()),
            Role::Server => Ok([0; 4]),
        }
    }

    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mask = self.mask()?;
        self.outbound.put(kind, payload, mask, &mut self.out);
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Writes what is held, a pong last.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
                let Some((payload, len)) = self.pong.take() else {
                    return Poll::Ready(Ok(()));
                };
                self.put(Kind::Pong, payload.get(..len).unwrap_or_default())?;
            }
            let rest = self.out.get(self.written..).unwrap_or_default();
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written = self.written.saturating_add(count),
            }
        }
    }

    /// Reads the head of a frame to its end; false at the end of the stream.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Reading::Head(head, have) = &mut self.reading else {
            return Poll::Ready(Ok(true));
        };
        loop {
            let wanted = needed(head.get(..*have).unwrap_or_default());
            if *have >= wanted {
                break;
            }
            let rest = head.get_mut(*have..wanted).unwrap_or_default();
            match ready!(Pin::new(&mut self.inner).poll_read(cx, rest))? {
                0 if *have == 0 => return Poll::Ready(Ok(false)),
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => *have = have.saturating_add(count),
            }
        }
        let bytes = head.get(..*have).unwrap_or_default();
        let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let head = self.inbound.take(bytes).map_err(bad)?;
        self.reading = match head.kind {
            Kind::Data => Reading::Data(head, 0),
            _ => Reading::Control(head, [0; CONTROL], 0),
        };
        Poll::Ready(Ok(true))
    }

    /// Reads a control frame to its end, and does what it asks.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Reading::Control(head, payload, have) = &mut self.reading else {
            return Poll::Ready(Ok(()));
        };
        let len = usize::try_from(head.len).unwrap_or(CONTROL).min(CONTROL);
        while *have < len {
            let rest = payload.get_mut(*have..len).unwrap_or_default();
            match ready!(Pin::new(&mut self.inner).poll_read(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => *have = have.saturating_add(count),
            }
        }
        if let Some(mask) = head.mask {
            apply(mask, 0, payload.get_mut(..len).unwrap_or_default());
        }
        match head.kind {
            Kind::Close => {
                self.reading = Reading::Over;
                return Poll::Ready(Ok(()));
            }
            Kind::Ping => self.pong = Some((*payload, len)),
            Kind::Pong | Kind::Data => {}
        }
        self.reading = Reading::Head([0; HEAD], 0);
        // What cannot be written now goes with the next frame.
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Reads bytes of the stream.
    fn poll_data(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let Reading::Data(head, at) = &mut self.reading else {
            return Poll::Ready(Ok(0));
        };
        let left = usize::try_from(head.len.saturating_sub(*at)).unwrap_or(usize::MAX);
        let wanted = left.min(out.len());
        let part = out.get_mut(..wanted).unwrap_or_default();
        let count = ready!(Pin::new(&mut self.inner).poll_read(cx, part))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some(mask) = head.mask {
            apply(mask, *at, part.get_mut(..count).unwrap_or_default());
        }
        *at = at.saturating_add(count as u64);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Each turn reads a frame; so many in a row carry nothing at most.
        for _ in 0..=2 * BARREN {
            match &this.reading {
                Reading::Over => return Poll::Ready(Ok(0)),
                Reading::Head(..) => {
                    if !ready!(this.poll_head(cx))? {
                        this.reading = Reading::Over;
                    }
                }
                Reading::Control(..) => ready!(this.poll_control(cx))?,
                Reading::Data(head, at) if *at >= head.len => {
                    this.reading = Reading::Head([0; HEAD], 0);
                }
                Reading::Data(..) => return this.poll_data(cx, out),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_drain(cx))?;
        let count = bytes.len().min(this.outbound.most());
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        this.put(Kind::Data, bytes.get(..count).unwrap_or_default())?;
        // The frame is taken whole; what of it cannot be written now is written by the next write or flush.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if !this.closed {
            this.closed = true;
            // 1000: the purpose of the connection is fulfilled.
            this.put(Kind::Close, &1000u16.to_be_bytes())?;
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    type Pipe = Compat<tokio::io::DuplexStream>;

    fn pair(size: usize) -> (Framed<Pipe>, Framed<Pipe>) {
        let (a, b) = tokio::io::duplex(size);
        (
            Framed::new(a.compat(), Role::Client),
            Framed::new(b.compat(), Role::Server),
        )
    }

    #[tokio::test]
    async fn a_stream_arrives_whole_both_ways_through_a_narrow_pipe() {
        for (from_client, size) in [(true, 7), (false, 7), (true, 1 << 20), (false, 1 << 20)] {
            let (a, b) = pair(size);
            let (mut from, mut to) = if from_client { (a, b) } else { (b, a) };
            let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
            let bytes = sent.clone();
            let writer = tokio::spawn(async move {
                for part in bytes.chunks(70_001) {
                    from.write_all(part).await.unwrap();
                }
                from.close().await.unwrap();
            });
            let mut got = Vec::new();
            to.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got == sent, "{from_client} {size}");
        }
    }

    #[tokio::test]
    async fn a_ping_is_answered_while_the_stream_goes_on() {
        let (a, b) = tokio::io::duplex(4096);
        let (mut raw, mut server) = (a.compat(), Framed::new(b.compat(), Role::Server));
        let mut out = Outbound::new(Role::Client);
        let mut bytes = Vec::new();
        out.put(Kind::Ping, b"first", [1; 4], &mut bytes);
        out.put(Kind::Ping, b"second", [1; 4], &mut bytes);
        out.put(Kind::Data, b"x", [1; 4], &mut bytes);
        raw.write_all(&bytes).await.unwrap();
        let mut one = [0; 8];
        assert_eq!(server.read(&mut one).await.unwrap(), 1);
        server.write_all(b"y").await.unwrap();
        server.close().await.unwrap();
        let mut got = Vec::new();
        raw.read_to_end(&mut got).await.unwrap();
        let pong = |text: &[u8]| [&[0x8a, text.len() as u8], text].concat();
        let said = [pong(b"first"), pong(b"second"), vec![0x82, 1, b'y']].concat();
        assert_eq!(got, [said, vec![0x88, 2, 0x03, 0xe8]].concat());
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_its_answers_makes_nothing_grow() {
        let (a, b) = tokio::io::duplex(64);
        let (raw, mut server) = (a.compat(), Framed::new(b.compat(), Role::Server));
        let (mut keep, mut raw) = raw.split();
        let flood = tokio::spawn(async move {
            let mut out = Outbound::new(Role::Client);
            for _ in 0..1000 {
                let mut bytes = Vec::new();
                out.put(Kind::Ping, &[7; CONTROL], [1; 4], &mut bytes);
                out.put(Kind::Data, b"x", [1; 4], &mut bytes);
                if raw.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        let mut got = 0;
        let mut buffer = [0; 16];
        while got < 1000 {
            got += server.read(&mut buffer).await.unwrap();
        }
        assert!(server.out.capacity() <= 1024, "{}", server.out.capacity());
        flood.await.unwrap();
        assert!(keep.read(&mut buffer).await.unwrap() > 0);
    }

    #[tokio::test]
    async fn what_breaks_the_rules_ends_the_stream_with_the_reason() {
        for (bytes, why) in [
            (&[0x81, 0x80, 0, 0, 0, 0][..], "text"),
            (&[0x82, 0x01, 0], "mask"),
            (
                &[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                "length",
            ),
        ] {
            let (a, b) = tokio::io::duplex(4096);
            let (mut raw, mut server) = (a.compat(), Framed::new(b.compat(), Role::Server));
            raw.write_all(bytes).await.unwrap();
            let error = server.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(why), "{error}");
        }
        let (a, b) = tokio::io::duplex(4096);
        let (mut raw, mut server) = (a.compat(), Framed::new(b.compat(), Role::Server));
        raw.write_all(&[0x82, 0x85, 0, 0, 0, 0, 1]).await.unwrap();
        raw.close().await.unwrap();
        let mut got = Vec::new();
        let error = server.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
