//! One HTTP connection within bounds: a client has a deadline for each thing that it has to do, and what is done for it
//! ends when it is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often it is looked whether a client that sends no more has gone altogether.
const LOOK: Duration = Duration::from_millis(200);

/// A socket that may be read, written and watched at the same time, by the methods that
/// [`UnixStream`] has by these names.
pub(crate) trait Socket: AsFd + Send + Sync + 'static {
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send;
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

macro_rules! socket {
    ($kind:ty) => {
        impl Socket for $kind {
            async fn ready(&self, interest: Interest) -> io::Result<Ready> {
                <$kind>::ready(self, interest).await
            }

            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$kind>::poll_read_ready(self, cx)
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$kind>::poll_write_ready(self, cx)
            }

            fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                <$kind>::try_read(self, buffer)
            }

            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                <$kind>::try_write(self, bytes)
            }
        }
    };
}

socket!(UnixStream);
socket!(TcpStream);

/// Serves one connection until its end, until the client is gone, or until `stop`, with a deadline for the head of each
/// request and for taking each part of an answer.
///
/// # Cancel safety
/// Dropped, the connection is closed, and what the router does for it is dropped.
pub(crate) async fn connection<S: Socket>(
    socket: S,
    router: Router,
    deadline: Duration,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let client = Client {
        socket: socket.clone(),
        deadline,
        late: None,
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(deadline)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(client), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Not left to the HTTP server: it does not look while a further request waits to be read.
        () = gone(&*socket) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP client");
    }
}

/// Waits until nobody is at the other end; one that only sends no more is there.
async fn gone<S: Socket>(socket: &S) {
    loop {
        match socket.ready(Interest::PRIORITY).await {
            Ok(ready) if ready.is_read_closed() => break,
            // Urgent data: nothing reads it, and it stays.
            Ok(_) => tokio::time::sleep(LOOK).await,
            Err(_) => return,
        }
    }
    while !hung_up(socket.as_fd()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO).is_ok();
    let found = fds
        .first()
        .and_then(PollFd::revents)
        .unwrap_or(PollFlags::empty());
    polled && found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
}

/// A socket whose other end has to take what is written within the deadline.
struct Client<S> {
    socket: Arc<S>,
    deadline: Duration,
    /// Runs while the other end takes nothing.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S: Socket> AsyncRead for Client<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S: Socket> AsyncWrite for Client<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => match self.socket.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => {
                        self.late = None;
                        return Poll::Ready(done);
                    }
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let deadline = self.deadline;
                    let late = self.late.get_or_insert_with(|| {
                        Box::pin(tokio::time::sleep_until(Instant::now() + deadline))
                    });
                    std::task::ready!(late.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Write).map_err(Into::into))
    }
}
