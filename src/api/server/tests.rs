//! The socket with a real client at the other end.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::api::client::Client;
use crate::api::types::Done;
use crate::config::users::WorkloadUser;
use crate::testing::{PATIENCE, eventually};

struct Server {
    socket: PathBuf,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

/// What runs of `peer-ls` and `up`, which end by themselves after a minute.
static RUNNING: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

struct Counted;

impl Counted {
    fn new() -> Counted {
        RUNNING.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Answers `reload` with what it was asked, fails at `id`, panics at `version`, is long at `subnet-ls` and `up`, and large
/// at `metrics`.
fn handler() -> Handler {
    Arc::new(|request, _| {
        Box::pin(async move {
            match request {
                Request::SubnetLs | Request::Up { .. } => {
                    let _running = Counted::new();
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    Ok(Response::Subnets { subnets: vec![] })
                }
                Request::Metrics => Ok(Response::Metrics {
                    text: "x".repeat(8 << 20),
                }),
                Request::Id => Err(Error::new(ErrorKind::NotFound, "E-TEST", "nothing here")
                    .hint("look elsewhere")),
                Request::Version => panic!("on purpose"),
                other => Ok(Response::Done(Done {
                    message: format!("{other:?}"),
                    changed: true,
                })),
            }
        })
    })
}

fn start(bounds: Bounds) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/byway.sock");
    let stop = CancellationToken::new();
    let task = tokio::spawn(run_bounded(
        bind(&socket).unwrap(),
        handler(),
        stop.clone(),
        bounds,
    ));
    Server {
        socket,
        stop,
        task,
        _dir: dir,
    }
}

async fn raw(socket: &PathBuf, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn calls_and_errors_cross_whole() {
    let server = start(Bounds::default());
    let client = Client::new(&server.socket);
    let done = client.call(&Request::Reload).await.unwrap();
    assert_eq!(
        done,
        Response::Done(Done {
            message: "Reload".into(),
            changed: true
        })
    );
    let error = client.call(&Request::Id).await.unwrap_err();
    assert_eq!(
        error,
        Error::new(ErrorKind::NotFound, "E-TEST", "nothing here").hint("look elsewhere")
    );
    assert_eq!(
        client.call(&Request::Version).await.unwrap_err().code,
        "E-INTERNAL"
    );
    assert!(
        client.call(&Request::PeerLs).await.is_ok(),
        "one failed request does not end the server"
    );
    let health = raw(&server.socket, b"GET /v1/health HTTP/1.0\r\n\r\n").await;
    assert!(
        health.starts_with("HTTP/1.0 200") && health.ends_with("ok\n"),
        "{health}"
    );
}

#[tokio::test]
async fn rights_are_set_and_the_file_goes_with_the_server() {
    let server = start(Bounds::default());
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server.socket), 0o660);
    assert_eq!(mode(server.socket.parent().unwrap()), 0o750);
    assert_eq!(
        std::fs::read_dir(server.socket.parent().unwrap())
            .unwrap()
            .count(),
        1,
        "nothing is left beside it"
    );
    server.stop.cancel();
    server.task.await.unwrap().unwrap();
    assert!(!server.socket.exists());
}

#[tokio::test]
async fn the_socket_file_is_made_again_where_it_has_gone_and_only_there() {
    let server = start(Bounds::default());
    let client = Client::new(&server.socket);
    let directory = server.socket.parent().unwrap();
    for remove in [&|| std::fs::remove_file(&server.socket).unwrap(), &|| {
        std::fs::remove_dir_all(directory).unwrap()
    }] as [&dyn Fn(); 2]
    {
        remove();
        eventually("the file is there again", PATIENCE, async || {
            client.call(&Request::Reload).await.is_ok()
        })
        .await;
        let mode = std::fs::metadata(&server.socket).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o660);
    }
    // What somebody else has put there stays, also at the end.
    std::fs::remove_file(&server.socket).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&server.socket).unwrap();
    other.set_nonblocking(true).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(UnixStream::connect(&server.socket).await.is_ok());
    assert!(other.accept().is_ok(), "it is the other's still");
    server.stop.cancel();
    server.task.await.unwrap().unwrap();
    assert!(server.socket.exists());
}

#[tokio::test]
async fn a_live_socket_is_left_alone_and_a_dead_one_taken_over() {
    let server = start(Bounds::default());
    let error = bind(&server.socket).unwrap_err();
    assert_eq!(
        (error.kind.exit_code(), error.code.as_str()),
        (6, "E-SOCKET-IN-USE")
    );
    assert!(
        Client::new(&server.socket)
            .call(&Request::Reload)
            .await
            .is_ok()
    );

    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let listener = bind(&dead).unwrap();
    std::fs::remove_file(&dead).unwrap();
    let other = bind(&dead).unwrap();
    drop(listener);
    assert!(
        other.path().exists(),
        "the socket of another is not removed"
    );

    // A store holds its state directory locked for as long as it lives; the socket may lie there all the same.
    let state = std::fs::File::open(dir.path()).unwrap();
    state.lock().unwrap();
    assert!(bind(&dir.path().join("beside.sock")).is_ok());

    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert_eq!(bind(&file).unwrap_err().code, "E-SOCKET-IN-USE");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let error = Client::new(&socket).call(&Request::Id).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code.as_str()),
        (ErrorKind::NoDaemon, "E-DAEMON")
    );
    assert_eq!(
        error.hint,
        format!("byway daemon --socket {} --state-dir DIR", socket.display())
    );
    let long = PathBuf::from(format!("/{}", "x".repeat(200)));
    assert_eq!(
        Client::new(long).call(&Request::Id).await.unwrap_err().code,
        "E-SOCKET"
    );
}

#[tokio::test]
async fn slow_clients_are_dropped() {
    let server = start(Bounds {
        deadline: Duration::from_millis(50),
        ..Bounds::default()
    });
    let head = raw(&server.socket, b"POST /v1/call HTTP/1.1\r\nhost: byway\r\n").await;
    assert!(
        head.is_empty() || head.starts_with("HTTP/1.1 408"),
        "{head}"
    );
    let body = raw(
        &server.socket,
        b"POST /v1/call HTTP/1.1\r\nhost: byway\r\ncontent-length: 9\r\n\r\n{",
    )
    .await;
    assert!(body.starts_with("HTTP/1.1 504"), "{body}");
    assert!(
        Client::new(&server.socket)
            .call(&Request::Reload)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn oversize_requests_are_refused() {
    let server = start(Bounds::default());
    let entries = (0..=MAX_BODY / 32)
        .map(|i| format!("\"{i:032}\""))
        .collect::<Vec<_>>()
        .join(",");
    let text = format!(
        "POST /v1/call HTTP/1.0\r\ncontent-length: {}\r\n\r\n[{entries}]",
        entries.len() + 2
    );
    let answer = raw(&server.socket, text.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.0 400") && answer.contains("E-REQUEST"),
        "{answer}"
    );
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let server = start(Bounds {
        clients: Arc::new(1.into()),
        ..Bounds::default()
    });
    let mut first = UnixStream::connect(&server.socket).await.unwrap();
    // An answered request proves that the first client holds its place.
    first
        .write_all(b"GET /v1/health HTTP/1.1\r\nhost: byway\r\n\r\n")
        .await
        .unwrap();
    assert!(first.read(&mut [0; 512]).await.unwrap() > 0);
    let error = Client::new(&server.socket)
        .call(&Request::Reload)
        .await
        .unwrap_err();
    assert_eq!(error.code, "E-BUSY");
    drop(first);
    for _ in 0..1000 {
        if Client::new(&server.socket)
            .call(&Request::Reload)
            .await
            .is_ok()
        {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the place of a client that left stays taken");
}

#[tokio::test]
async fn work_of_a_reading_verb_ends_with_its_asker_and_of_a_changing_one_goes_on() {
    let bounds = Bounds {
        clients: Arc::new(2.into()),
        ..Bounds::default()
    };
    let changes = bounds.changes.clone();
    let server = start(bounds);
    let running = || RUNNING.load(std::sync::atomic::Ordering::SeqCst);
    let request = |body: &str| {
        format!(
            "POST /v1/call HTTP/1.1\r\nhost: byway\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // The second one sends the beginning of another request behind it, which nobody reads yet.
    for more in ["", "GET /v1/health HTTP/1.1\r\n"] {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        stream
            .write_all(format!("{}{more}", request("{\"verb\":\"subnet-ls\"}")).as_bytes())
            .await
            .unwrap();
        eventually("the work begins", PATIENCE, async || running() == 1).await;
        drop(stream);
        eventually("the work ends", PATIENCE, async || running() == 0).await;
    }
    // Its place is free.
    assert!(
        Client::new(&server.socket)
            .call(&Request::Reload)
            .await
            .is_ok()
    );
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream
        .write_all(request("{\"verb\":\"up\"}").as_bytes())
        .await
        .unwrap();
    eventually("the change begins", PATIENCE, async || running() == 1).await;
    drop(stream);
    server.stop.cancel();
    server.task.await.unwrap().unwrap();
    assert_eq!(running(), 1, "what was begun is finished");
    assert_eq!(changes.len(), 1, "and who stops the server can wait for it");
}

/// Waits until a client has a place.
async fn free(socket: &Path) {
    let answered = async {
        while Client::new(socket).call(&Request::Reload).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), answered)
        .await
        .expect("the place is free");
}

#[tokio::test]
async fn who_takes_no_answer_or_asks_nothing_loses_its_place() {
    let server = start(Bounds {
        clients: Arc::new(1.into()),
        deadline: Duration::from_millis(200),
        ..Bounds::default()
    });
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream
        .write_all(b"GET /v1/metrics HTTP/1.1\r\nhost: byway\r\n\r\n")
        .await
        .unwrap();
    free(&server.socket).await;
    drop(stream);
    let idle = UnixStream::connect(&server.socket).await.unwrap();
    free(&server.socket).await;
    drop(idle);
}

#[tokio::test]
async fn who_is_taken_off_the_list_has_no_right_on_an_open_connection() {
    let place = Places::new(Bounds::default().clients)
        .take(4_000_000, false)
        .unwrap();
    let users = Users::default();
    let connection = Connection {
        handler: Arc::new(|_, peer: Peer| {
            Box::pin(async move {
                Ok(Response::Done(Done {
                    message: format!("{:?}", peer.quota),
                    changed: false,
                }))
            })
        }),
        peer: Peer::new(4_000_000, 4_000_000, None, vec![]).await,
        users: users.clone(),
        deadline: DEADLINE,
        place: Arc::new(place),
        changes: TaskTracker::new(),
    };
    let list = |quota: u32| {
        users.set(&[WorkloadUser {
            name: "4000000".to_owned(),
            quota,
        }]);
    };
    let ask = async || match perform(&connection, Request::WorkloadLs).await {
        Ok(Response::Done(done)) => done.message,
        Ok(other) => panic!("{other:?}"),
        Err(error) => error.code.as_str().to_owned(),
    };
    assert_eq!(ask().await, "E-PERMISSION");
    list(3);
    assert_eq!(ask().await, "Some(3)");
    list(5);
    assert_eq!(ask().await, "Some(5)");
    users.set(&[]);
    assert_eq!(ask().await, "E-PERMISSION");
}

#[tokio::test]
async fn metrics_say_which_format_they_are_in() {
    let server = start(Bounds::default());
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream
        .write_all(b"GET /v1/metrics HTTP/1.1\r\nhost: byway\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut head = vec![0; 512];
    let length = stream.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..length]);
    assert!(
        head.starts_with("HTTP/1.1 200")
            && head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
}

#[tokio::test]
async fn wrong_requests_get_an_answer_that_says_so() {
    let server = start(Bounds::default());
    let deep = format!("{{\"verb\":{}", "[".repeat(100_000));
    for body in [
        "",
        "{}",
        "null",
        "{\"verb\":\"fly\"}",
        "{\"verb\":\"leave\",\"subnet\":\"a\",\"x\":1}",
        &deep,
    ] {
        let text = format!(
            "POST /v1/call HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(&server.socket, text.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.0 400") && answer.contains("E-REQUEST"),
            "{answer}"
        );
    }
    let lost = raw(&server.socket, b"GET /v2 HTTP/1.0\r\n\r\n").await;
    assert!(lost.starts_with("HTTP/1.0 404"), "{lost}");
}

proptest! {
    #[test]
    fn reading_a_request_never_panics(bytes: Vec<u8>, text in "\\{\"verb\":\"[a-z-]{0,12}\"(,\"[a-z_]{1,8}\":[0-9\"a-z\\[\\]{}]{0,8}){0,4}\\}") {
        let _ = parse(&bytes);
        let _ = parse(text.as_bytes());
    }
}
