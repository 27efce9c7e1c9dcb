//! The client side of the control socket, for the command line and for other programs.
//!
//! One connection a call; nothing is kept between calls. Never retries: a changing verb must not run twice.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::groups::{self, ADMINS, READERS};
use super::types::{DEFAULT_SOCKET, Error, ErrorKind, ErrorReply, Request, Response};
use crate::model::error::Code;

/// The largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// How long a verb may take that names no time itself: the daemon waits for the kernel and, bounded, for peers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// What is added to the time a verb names itself.
const MARGIN: Duration = Duration::from_secs(15);

/// A daemon, by the path of its socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a client; nothing is opened before the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client {
            socket: socket.into(),
        }
    }

    /// Path of the socket that the daemon listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the daemon and waits for its answer.
    ///
    /// # Errors
    /// The daemon's own error; `E-DAEMON` where none answers, `E-PERMISSION` where the socket may not be opened,
    /// `E-TIMEOUT` where the answer does not come in the time of the request and a margin.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; what the daemon has begun it may finish.
    pub async fn call(&self, request: &Request) -> Result<Response, Error> {
        let limit = time_for(request);
        tokio::time::timeout(limit, self.exchange(request))
            .await
            .unwrap_or_else(|_| {
                let message = format!(
                    "no answer from the daemon on {} within {} s",
                    self.socket.display(),
                    limit.as_secs()
                );
                Err(Error::new(ErrorKind::Timeout, Code::Timeout, message))
            })
    }

    async fn exchange(&self, request: &Request) -> Result<Response, Error> {
        let broken = |what: &dyn std::fmt::Display| {
            let message = format!("talk to the daemon on {}: {what}", self.socket.display());
            Error::new(ErrorKind::Failed, Code::Api, message)
        };
        let body = serde_json::to_vec(request).map_err(|e| broken(&e))?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| unreachable(&self.socket, &e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        let call = hyper::Request::post("/v1/call")
            .header(hyper::header::HOST, "byway")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let exchange = async {
            let answer = sender.send_request(call).await.map_err(|e| broken(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| broken(&e))?;
            Ok::<_, Error>((status, body.to_bytes()))
        };
        // The connection does the reading and writing. It may end with the whole answer handed over but not yet taken.
        let mut exchange = std::pin::pin!(exchange);
        let (status, body) = tokio::select! {
            biased;
            done = exchange.as_mut() => done?,
            _ = connection => exchange.await?,
        };
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|e| broken(&format!("its answer is not understood: {e}")));
        }
        match serde_json::from_slice::<ErrorReply>(&body) {
            Ok(reply) => Err(reply.error),
            Err(_) => Err(broken(&format!("HTTP {status}"))),
        }
    }
}

/// Why no daemon is reached at a socket, where connecting to it gave `error`.
pub fn unreachable(at: &Path, error: &io::Error) -> Error {
    let socket = at.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            let hint = if at != Path::new(DEFAULT_SOCKET) {
                // Without a directory of its own it would take the one that another daemon may have.
                format!("byway daemon --socket {socket} --state-dir DIR")
            } else if Path::new("/run/systemd/system").exists() {
                "systemctl start byway".to_owned()
            } else {
                "byway daemon".to_owned()
            };
            let message = format!("no daemon answers on {socket}: {}", reason(error));
            Error::new(ErrorKind::NoDaemon, Code::Daemon, message).hint(hint)
        }
        io::ErrorKind::PermissionDenied => {
            not_permitted(format!("open {socket}: {}", reason(error)))
        }
        io::ErrorKind::InvalidInput => {
            let why = match at.as_os_str().len() {
                0 => "its path is empty",
                108.. => "its path is longer than 107 bytes",
                _ => "its path holds a zero byte",
            };
            Error::new(
                ErrorKind::Usage,
                Code::Socket,
                format!("{at:?} cannot be a socket: {why}"),
            )
        }
        _ => Error::new(
            ErrorKind::NoDaemon,
            Code::Daemon,
            format!("connect to {socket}: {error}"),
        ),
    }
}

fn not_permitted(message: String) -> Error {
    let hint = match groups::remedy(&[READERS, ADMINS], &groups::number) {
        hint if hint.contains('(') => {
            hint + "      (or [workloads] users, for containers of a user's own)"
        }
        hint => {
            hint + "      (or run it as root; byway alone may only look; [workloads] users attach what is their own)"
        }
    };
    Error::new(ErrorKind::NotPermitted, Code::Permission, message).hint(hint)
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::ConnectionRefused => "nobody listens there any more",
        _ => "permission denied",
    }
}

fn time_for(request: &Request) -> Duration {
    match request {
        Request::Join { timeout_ms, .. } => {
            Duration::from_millis(*timeout_ms).max(DEFAULT_TIMEOUT - MARGIN) + MARGIN
        }
        Request::Ping {
            count, timeout_ms, ..
        } => {
            // Probes a second apart at most, each waited for in full.
            let each = Duration::from_millis(timeout_ms.saturating_add(1000));
            each.saturating_mul(*count).saturating_add(MARGIN)
        }
        _ => DEFAULT_TIMEOUT,
    }
}
