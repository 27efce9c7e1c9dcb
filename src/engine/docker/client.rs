//! HTTP over the engine's unix socket: one question for each connection, or one connection that tells lines without end.
//!
//! Nothing that the engine says is taken for granted: the size of an answer, the length of a line and the time until an
//! answer begins are bounded. No task outlives a question or a stream, since each drives its own connection.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::DockerError;
use crate::helper;

/// The largest answer that is read, in bytes.
pub(super) const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// The longest line of a stream that is read, in bytes. An event repeats all labels of its container.
pub(super) const LINE_LIMIT: usize = 256 * 1024;

/// How long the engine has for a whole exchange, or until a stream begins.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

type Connection = http1::Connection<TokioIo<UnixStream>, Empty<Bytes>>;

/// Asks for a path, such as `/networks`, and reads the whole answer: at most 4 MiB, within 5 s.
///
/// # Errors
/// [`DockerError::Unreachable`], [`DockerError::Timeout`], [`DockerError::Answer`]. A status other than 200 is no error
/// here.
///
/// # Cancel safety
/// Dropping the future closes the connection. Nothing was changed at the engine.
pub async fn get(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), DockerError> {
    let (_, answer) = get_within(TIMEOUT, socket, path).await?;
    Ok(answer)
}

/// The same, and the user who answers: the one that listened on the socket.
pub(super) async fn get_within(
    limit: Duration,
    socket: &Path,
    path: &str,
) -> Result<(u32, (StatusCode, Bytes)), DockerError> {
    let exchange = async {
        let (user, mut sender, connection) = connect(socket).await?;
        let whole = async {
            let response = ask(socket, &mut sender, path).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect();
            let body = body.await.map_err(|e| {
                let large = e.downcast_ref::<LengthLimitError>().is_some();
                let what = if large {
                    format!("more than {ANSWER_LIMIT} bytes")
                } else {
                    format!("half a sentence: {e}")
                };
                answer(socket, what)
            })?;
            Ok((user, (status, body.to_bytes())))
        };
        // The connection is driven beside the exchange and dropped with it.
        tokio::pin!(whole);
        tokio::select! {
            biased;
            done = &mut whole => done,
            _ = connection => whole.await,
        }
    };
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(DockerError::Timeout(socket.to_path_buf())))
}

/// Asks for a path whose answer has no end, such as `/events`. Returns once the engine has begun to answer, within 5 s.
///
/// # Errors
/// As [`get`]; here a status other than 200 is a [`DockerError::Answer`].
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn stream(socket: &Path, path: &str) -> Result<Lines, DockerError> {
    let begin = async {
        let (_, mut sender, connection) = connect(socket).await?;
        let mut connection: Driver = Box::pin(async move { drop(connection.await) });
        let response = {
            let begun = ask(socket, &mut sender, path);
            tokio::pin!(begun);
            tokio::select! {
                biased;
                response = &mut begun => response?,
                () = &mut connection => begun.await?,
            }
        };
        if response.status() != StatusCode::OK {
            return Err(answer(socket, response.status().to_string()));
        }
        Ok(Lines {
            socket: socket.to_path_buf(),
            connection: Some(connection),
            body: response.into_body(),
            held: Vec::new(),
            read: 0,
        })
    };
    tokio::time::timeout(TIMEOUT, begin)
        .await
        .unwrap_or_else(|_| Err(DockerError::Timeout(socket.to_path_buf())))
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The lines of an answer without end; dropping it closes the connection.
pub struct Lines {
    socket: PathBuf,
    /// None once it has ended: what it has read may still be in `body`.
    connection: Option<Driver>,
    body: Incoming,
    /// Bytes that came, of which the first `read` were given out.
    held: Vec<u8>,
    read: usize,
}

impl Lines {
    /// The next line, without its end; none where the engine has ended the answer.
    ///
    /// # Errors
    /// [`DockerError::Answer`] where a line is longer than 256 KiB or the connection broke. The stream is of no use then.
    ///
    /// # Cancel safety
    /// Dropped before it is done, no byte is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, DockerError> {
        loop {
            if let Some(line) = self.whole_line() {
                return Ok(Some(line));
            }
            if self.held.len() > LINE_LIMIT {
                let what = format!("a line of more than {LINE_LIMIT} bytes");
                return Err(answer(&self.socket, what));
            }
            let frame = match &mut self.connection {
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    () = connection => {
                        self.connection = None;
                        continue;
                    }
                },
                None => self.body.frame().await,
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.held.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => return Err(answer(&self.socket, format!("half a sentence: {e}"))),
            }
        }
    }

    /// A line that has come whole. Bytes given out are let go once no whole line is left.
    fn whole_line(&mut self) -> Option<Vec<u8>> {
        let rest = self.held.get(self.read..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = rest.get(..end).unwrap_or_default().to_vec();
                self.read = self.read.saturating_add(end).saturating_add(1);
                Some(line)
            }
            None => {
                self.held.drain(..self.read.min(self.held.len()));
                self.read = 0;
                None
            }
        }
    }
}

/// A connection, and the user who listened at its other end.
async fn connect(
    socket: &Path,
) -> Result<(u32, http1::SendRequest<Empty<Bytes>>, Connection), DockerError> {
    // What is at a place that only the asker names is not told: this process may see more than the asker.
    let told = |source: io::Error| match helper::is_usual(socket) {
        true => source,
        false => io::Error::new(io::ErrorKind::NotFound, "no engine answers there"),
    };
    let unreachable = |source: io::Error| DockerError::Unreachable {
        socket: socket.to_path_buf(),
        source: told(source),
    };
    let (connected, user) = helper::engine(socket).await.map_err(unreachable)?;
    let (sender, connection) = http1::handshake(TokioIo::new(connected))
        .await
        .map_err(|e| answer(socket, format!("no HTTP: {e}")))?;
    Ok((user, sender, connection))
}

/// Sends the one request of a connection; the connection is to be driven meanwhile.
async fn ask(
    socket: &Path,
    sender: &mut http1::SendRequest<Empty<Bytes>>,
    path: &str,
) -> Result<Response<Incoming>, DockerError> {
    let request = Request::get(path)
        .header(hyper::header::HOST, "docker")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| {
            let what = format!("nothing, for the request could not be made: {e}");
            answer(socket, what)
        })?;
    sender
        .send_request(request)
        .await
        .map_err(|e| answer(socket, format!("no HTTP: {e}")))
}

/// What the engine at that socket answered, which is not what the API says.
pub(super) fn answer(socket: &Path, what: String) -> DockerError {
    DockerError::Answer {
        socket: socket.to_path_buf(),
        what,
    }
}

/// A text as part of a query, such as the JSON of `filters=`: all but plain letters and digits is escaped.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Engine, http};
    use super::*;

    #[tokio::test]
    async fn a_large_answer_is_not_read() {
        let engine = Engine::answering(http("200 OK", &" ".repeat(ANSWER_LIMIT + 1)));
        let large = get(&engine.socket(), "/networks").await;
        assert!(
            matches!(large, Err(DockerError::Answer { what, .. }) if what.contains("more than"))
        );
    }

    #[tokio::test]
    async fn a_silent_engine_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let result = get_within(Duration::from_millis(50), &path, "/networks").await;
        assert!(matches!(result, Err(DockerError::Timeout(_))));
    }

    #[tokio::test]
    async fn lines_are_told_as_they_come_and_a_long_one_ends_the_stream() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let parts = ["one\ntw", "o\n\nthree\n", "no end"].map(chunk).concat();
        let engine = Engine::answering(format!("{head}{parts}0\r\n\r\n").into_bytes());
        let mut lines = stream(&engine.socket(), "/events").await.unwrap();
        for expected in ["one", "two", "", "three"] {
            assert_eq!(
                lines.next().await.unwrap().as_deref(),
                Some(expected.as_bytes())
            );
        }
        assert_eq!(lines.next().await.unwrap(), None);

        let long = chunk(&"x".repeat(LINE_LIMIT + 1));
        let engine = Engine::answering(format!("{head}{long}").into_bytes());
        let mut lines = stream(&engine.socket(), "/events").await.unwrap();
        assert!(
            matches!(lines.next().await, Err(DockerError::Answer { what, .. }) if what.contains("a line of more than"))
        );
        let refused = Engine::answering(http("500 Internal Server Error", "no"));
        assert!(matches!(
            stream(&refused.socket(), "/events").await.map(drop),
            Err(DockerError::Answer { what, .. }) if what.contains("500")
        ));
    }

    #[test]
    fn a_query_is_escaped() {
        assert_eq!(
            escaped("{\"type\":[\"a-b_c.1\"]}&ä"),
            "%7B%22type%22%3A%5B%22a-b_c.1%22%5D%7D%26%C3%A4"
        );
    }
}
