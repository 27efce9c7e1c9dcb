//! The plugin's socket: one thread that answers the engine, whatever else the daemon does.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::protocol::{self, Asked, Driver};
use super::{Handler, PATIENCE};

/// Bytes of the largest call: options of a network, at most.
const MAX_BODY: usize = 256 * 1024;
/// Connections at a time. The engine keeps two for each call that is under way at most.
const MAX_CONNECTIONS: usize = 256;
/// Longest the head of a request, and its body, may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The type that the engine knows answers by.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The served socket. Dropped it is served no more, and its file is removed while that is still ours.
#[derive(Debug)]
pub struct Server {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// The file that was made here, with device and inode number; none where systemd made it.
    file: Option<(PathBuf, (u64, u64))>,
}

impl Server {
    /// Serves `path` from now on. Calls wait for a handler for as long as none is there. `made` is the socket where
    /// something else listens on it already and hands it over.
    ///
    /// # Errors
    /// Where another program answers there, or the socket or the thread cannot be made.
    pub fn start(
        path: &Path,
        made: Option<UnixListener>,
        handler: watch::Receiver<Option<Handler>>,
    ) -> io::Result<Server> {
        let (listener, file) = match made {
            Some(listener) => (listener, None),
            None => {
                let listener = bind(path)?;
                let file = (path.to_owned(), identity(path)?);
                (listener, Some(file))
            }
        };
        listener.set_nonblocking(true)?;
        let stop = CancellationToken::new();
        let until = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("docker-plugin".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve(listener, handler, until)) {
                    tracing::warn!(%error, "the socket of Docker's plugin is served no more");
                }
            })?;
        Ok(Server {
            stop,
            thread: Some(thread),
            file,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First the file: whoever connects afterwards is refused at once and does not wait.
        if let Some((path, made)) = &self.file
            && identity(path).is_ok_and(|now| now == *made)
        {
            let _ = std::fs::remove_file(path);
        }
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Makes the socket, for root alone: whoever may ask has containers anyhow. One that nobody answers on is taken over.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is there",
            ));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another program answers there",
            ));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Takes connections until it is told to stop; what is under way then is dropped.
async fn serve(
    listener: UnixListener,
    handler: watch::Receiver<Option<Handler>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let taken = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            taken = listener.accept() => taken,
        };
        let stream = match taken {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor is free, for example: not a reason to spin.
                tracing::debug!(%error, "accept the Docker engine");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(move |request| {
                let handler = handler.clone();
                async move { Ok::<_, Infallible>(answer(request, handler).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(DEADLINE)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                tracing::trace!(%error, "a connection of the Docker engine ended");
            }
        });
    }
}

/// One request, answered within [`PATIENCE`] whatever becomes of it.
async fn answer(
    request: Request<Incoming>,
    handler: watch::Receiver<Option<Handler>>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let driver = Driver::of(path);
    if head.method != Method::POST {
        let error = driver.error("only POST is known here");
        let mut refusal = reply(StatusCode::METHOD_NOT_ALLOWED, &error);
        // RFC 9110, section 15.5.6: the answer names what is allowed.
        let post = header::HeaderValue::from_static("POST");
        refusal.headers_mut().insert(header::ALLOW, post);
        return refusal;
    }
    let read = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(DEADLINE, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            let message = format!("a call has at most {MAX_BODY} bytes");
            return reply(StatusCode::PAYLOAD_TOO_LARGE, &driver.error(&message));
        }
        Err(_) => {
            let message = "the call did not arrive in time";
            return reply(StatusCode::REQUEST_TIMEOUT, &driver.error(message));
        }
    };
    let call = match protocol::read(path, &body) {
        Asked::Known(value) => return reply(StatusCode::OK, &value),
        Asked::Wrong(why) => return reply(StatusCode::OK, &driver.error(&why)),
        Asked::Unknown => {
            return reply(
                StatusCode::NOT_FOUND,
                &driver.error("there is no such method"),
            );
        }
        Asked::Call(call) => call,
    };
    let begun = Instant::now();
    let carried = tokio::time::timeout(PATIENCE, carry_out(call, handler)).await;
    // A container waits for each of its calls: these times are the driver's share of its start.
    let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(path, took_us, "a call of the Docker engine was carried out");
    match carried {
        Ok(Ok(given)) => reply(StatusCode::OK, &protocol::write(&given)),
        Ok(Err(why)) => {
            tracing::info!(path, error = why, "refused to the Docker engine");
            reply(StatusCode::OK, &driver.error(&why))
        }
        Err(_) => {
            let message = format!(
                "no answer of the byway daemon in {} s: byway status",
                PATIENCE.as_secs()
            );
            tracing::warn!(path, "a call of the Docker engine took too long");
            reply(StatusCode::OK, &driver.error(&message))
        }
    }
}

/// Has the daemon carry the call out, once that has begun.
async fn carry_out(
    call: protocol::Call,
    mut handler: watch::Receiver<Option<Handler>>,
) -> Result<protocol::Reply, String> {
    let stopping = || "the byway daemon is stopping".to_owned();
    let handler = match handler.wait_for(Option::is_some).await {
        Ok(handler) => handler.clone().ok_or_else(stopping)?,
        Err(_) => return Err(stopping()),
    };
    handler(call).await
}

fn reply(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(CONTENT_TYPE),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_method_that_is_not_known_is_answered_with_the_one_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("byway.sock");
        let _server = Server::start(&path, None, watch::channel(None).1).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        let asked = b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(asked).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 405 "), "{answer}");
        assert!(answer.contains("\r\nallow: post\r\n"), "{answer}");
    }
}
