//! The server side of the control socket: who may ask what, and how much of it.
//!
//! Owns the socket file and every connection on it. What a verb does is the handler's, which `daemon` hands in; this
//! module never touches the state.
//!
//! `POST /v1/call` takes a [`Request`] and answers a [`Response`] or `{"error": …}`; `GET /v1/health` answers `ok` to
//! whoever may open the socket.

mod acl;
mod entrance;
pub(crate) mod http;
mod peer;
mod places;
mod socket;
mod users;

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response as HttpResponse};
use axum::routing::{get, post};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::types::{Error, ErrorKind, ErrorReply, METRICS_TYPE, Request, Response};
use crate::model::error::Code;

use entrance::Entrance;
pub use peer::{Access, Peer};
use places::{Place, Places};
pub use socket::{Listener, bind};
pub use users::Users;

/// Carries out a request for the peer that asks; the server has checked what that peer may do.
pub type Handler =
    Arc<dyn Fn(Request, Peer) -> BoxFuture<'static, Result<Response, Error>> + Send + Sync>;

/// Bytes of the largest request: a routing table of ten thousand lines.
pub const MAX_BODY: usize = 1 << 20;
/// Clients at a time unless the daemon is told otherwise. Each user but root has a quarter of them at most, and the last
/// one is root's.
pub const MAX_CLIENTS: usize = 64;
/// A client that sends its request, or takes its answer, more slowly than this is dropped.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Clients that are told there is no room for them at a time; more are only dropped.
const MAX_REFUSALS: usize = 16;
/// What running requests get to finish when the daemon stops.
const DRAIN: Duration = Duration::from_secs(1);

/// The bounds of one server.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Clients at a time; one more is told so and dropped. May be changed while the server runs.
    pub clients: Arc<AtomicUsize>,
    /// Time for the head of a request, for its body, and for taking a part of the answer.
    pub deadline: Duration,
    /// Requests that change something: what is begun is finished even when the client goes away. Who stops the server
    /// closes it, and waits for what is left in it.
    pub changes: TaskTracker,
    /// Users beside the groups, who may attach what is their own.
    pub users: Users,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            clients: Arc::new(AtomicUsize::new(MAX_CLIENTS)),
            deadline: DEADLINE,
            changes: TaskTracker::new(),
            users: Users::default(),
        }
    }
}

/// Serves until `stop`, with the default [`Bounds`]; then removes the socket file if it is still ours. Where the file goes
/// meanwhile, it is made again.
///
/// # Errors
/// Where the listener cannot be given to the runtime.
pub async fn run(
    listener: Listener,
    handler: Handler,
    stop: CancellationToken,
) -> std::io::Result<()> {
    run_bounded(listener, handler, stop, Bounds::default()).await
}

/// [`run`] with other bounds.
///
/// # Errors
/// Where the listener cannot be given to the runtime.
pub async fn run_bounded(
    listener: Listener,
    handler: Handler,
    stop: CancellationToken,
    bounds: Bounds,
) -> std::io::Result<()> {
    let mut entrance = Entrance::new(listener, bounds.users.clone())?;
    let places = Places::new(bounds.clients);
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let mut clients = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = clients.join_next() => continue,
            stream = entrance.accept() => stream,
        };
        let cred = match stream.peer_cred() {
            Ok(cred) => cred,
            Err(error) => {
                warn!(%error, "credentials of a control client");
                continue;
            }
        };
        match places.take(cred.uid(), peer::is_root(cred.uid())) {
            Some(place) => {
                let (deadline, changes) = (bounds.deadline, bounds.changes.clone());
                clients.spawn(serve(
                    stream,
                    (cred, bounds.users.clone()),
                    handler.clone(),
                    place,
                    deadline,
                    changes,
                    stop.clone(),
                ));
            }
            None => {
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    clients.spawn(refuse(stream, permit));
                }
            }
        }
    }
    let listener = entrance.close();
    drain(clients).await;
    drop(listener);
    Ok(())
}

/// Lets the clients that are there finish, for at most [`DRAIN`].
async fn drain(mut clients: JoinSet<()>) {
    let all = async { while clients.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        debug!("control clients were cut off");
    }
}

/// Tells one client too many so; `permit` bounds how many are told at a time, the second how long that takes.
async fn refuse(mut stream: UnixStream, permit: OwnedSemaphorePermit) {
    let error = Error::new(
        ErrorKind::Failed,
        Code::Busy,
        "the daemon has as many clients as it takes; ask again",
    );
    let body = serde_json::to_string(&ErrorReply { error }).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\
         \r\n\r\n{body}",
        body.len()
    );
    // What was sent is read first and last: closing over unread bytes would reset the connection under the answer.
    let told = async {
        let mut unread = [0; 4096];
        let _first = stream.read(&mut unread).await?;
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    drop(permit);
}

async fn serve(
    stream: UnixStream,
    (cred, users): (UCred, Users),
    handler: Handler,
    place: Place,
    deadline: Duration,
    changes: TaskTracker,
    stop: CancellationToken,
) {
    let peer = {
        let held = peer::supplementary(stream.as_fd());
        Peer::new(cred.uid(), cred.gid(), cred.pid(), held).await
    };
    let state = Arc::new(Connection {
        handler,
        peer,
        users,
        deadline,
        place: Arc::new(place),
        changes,
    });
    let router = Router::new()
        .route("/v1/call", post(call))
        .route("/v1/metrics", get(metrics))
        .route("/v1/health", get(async || "ok\n"))
        .fallback(async || {
            let error = Error::new(
                ErrorKind::NotFound,
                Code::Request,
                "there is POST /v1/call, GET /v1/metrics and GET /v1/health",
            );
            answer(Err(error))
        })
        .with_state(state);
    http::connection(stream, router, deadline, stop).await;
}

struct Connection {
    handler: Handler,
    peer: Peer,
    users: Users,
    deadline: Duration,
    place: Arc<Place>,
    changes: TaskTracker,
}

/// The counters as OpenMetrics text: the same as the verb `metrics`, for programs that collect them.
async fn metrics(State(connection): State<Arc<Connection>>) -> HttpResponse {
    match perform(&connection, Request::Metrics).await {
        Ok(Response::Metrics { text }) => {
            ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
        }
        other => answer(other),
    }
}

async fn call(State(connection): State<Arc<Connection>>, request: HttpRequest) -> HttpResponse {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY);
    let body = match tokio::time::timeout(connection.deadline, body).await {
        Err(_) => {
            return answer(Err(Error::new(
                ErrorKind::Timeout,
                Code::Request,
                "the request did not arrive in time",
            )));
        }
        Ok(Err(error)) => {
            let message = format!("read the request (at most {MAX_BODY} bytes): {error}");
            return answer(Err(Error::new(ErrorKind::Usage, Code::Request, message)));
        }
        Ok(Ok(body)) => body,
    };
    let request = match parse(&body) {
        Ok(request) => request,
        Err(error) => return answer(Err(error)),
    };
    answer(perform(&connection, request).await)
}

/// Does what the caller may have done.
async fn perform(connection: &Connection, request: Request) -> Result<Response, Error> {
    // Asked for each request: who is taken off the list has no right left on a connection that is open.
    let peer = Peer {
        quota: connection.users.quota(connection.peer.uid),
        ..connection.peer
    };
    peer.may(&request).await?;
    let changes = request.changes();
    let work = (connection.handler)(request, peer);
    let place = connection.place.clone();
    let work = async move {
        let result = work.await;
        drop(place);
        result
    };
    // A task of its own: a failure in it ends this request only.
    let done = if changes {
        // What is begun is finished even when the client goes away, and counts as a client until then.
        connection.changes.spawn(work).await
    } else {
        // Nobody needs what was asked by who is gone: dropped with the connection, the set ends its task.
        let mut tasks = JoinSet::new();
        tasks.spawn(work);
        tasks.join_next().await.unwrap_or(Ok(Err(internal())))
    };
    done.unwrap_or_else(|_| Err(internal()))
}

fn internal() -> Error {
    Error::new(
        ErrorKind::Failed,
        Code::Internal,
        "the daemon failed at this request; its log tells more",
    )
}

/// Reads a request; nesting is bounded by the JSON reader (128 levels), size by the body.
fn parse(body: &[u8]) -> Result<Request, Error> {
    serde_json::from_slice(body).map_err(|e| {
        Error::new(
            ErrorKind::Usage,
            Code::Request,
            format!("the request is not understood: {e}"),
        )
    })
}

fn answer(result: Result<Response, Error>) -> HttpResponse {
    let (status, body) = match result {
        Ok(response) => (200, serde_json::to_vec(&response)),
        Err(error) => (
            error.kind.http_status(),
            serde_json::to_vec(&ErrorReply { error }),
        ),
    };
    let mut http = HttpResponse::new(Body::from(Bytes::from(body.unwrap_or_default())));
    *http.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    http.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    http
}

#[cfg(test)]
#[path = "server/tests.rs"]
mod tests;
