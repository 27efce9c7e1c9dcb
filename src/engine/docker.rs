//! A client of the Docker engine's API, as far as attaching a running container needs it.
//!
//! One question, one connection over the engine's unix socket. It never changes anything at the engine, and takes
//! nothing it says for granted: the answer's size and the time it may take are bounded.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

/// The largest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// How long the engine has for the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest name or ID of a container that is asked for, in characters.
const NAME_LIMIT: usize = 255;

/// Sockets that engines listen on unless told otherwise.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

/// A running container with a namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The full ID, 64 hexadecimal digits.
    pub id: String,
    /// The name without the slash the engine puts in front.
    pub name: String,
    /// The container's first process, as seen from the host.
    pub pid: u32,
    /// Always true: one that does not run has no namespace ([`DockerError::NotRunning`]).
    pub running: bool,
    /// The file on the host that is its `/etc/resolv.conf`; none where the engine made none.
    pub resolv_conf: Option<PathBuf>,
    /// Path of the network namespace: `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// The engine's word for its network: `bridge`, a network's name, `none`, or `container:ID`.
    pub network_mode: String,
}

/// Why a container cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Not what an engine would call a container.
    #[error(
        "{0:?} is no container name or ID: letters, digits, '_', '.' and '-', the first a letter or digit"
    )]
    Name(String),
    /// `$DOCKER_HOST` names something other than a unix socket.
    #[error("the Docker engine at {0:?} is not on this machine: only unix:// sockets can be used")]
    Host(String),
    /// Nobody listens on the engine's socket, or this process may not use it.
    #[error("ask the Docker engine at {}: {source}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The error that the kernel gave.
        source: io::Error,
    },
    /// The engine did not answer in time.
    #[error("the Docker engine at {} did not answer in {} s", .0.display(), TIMEOUT.as_secs())]
    Timeout(PathBuf),
    /// The engine has no such container.
    #[error("no container {0:?} at the Docker engine")]
    NotFound(String),
    /// The container is created, stopped, half way paused, or dead.
    #[error("container {name:?} is not running (it is {state})")]
    NotRunning {
        /// Name of the container.
        name: String,
        /// The engine's word for its state.
        state: String,
    },
    /// It lives in the host's own network namespace.
    #[error("container {0:?} uses the host's network: it has no namespace of its own to attach")]
    HostNetwork(String),
    /// The answer is not the API's, or is longer than what is read.
    #[error("the Docker engine at {} answered {what}", socket.display())]
    Answer {
        /// The socket that answered.
        socket: PathBuf,
        /// What was wrong with the answer, in words.
        what: String,
    },
}

impl DockerError {
    /// A command to try next; empty where there is none.
    pub fn hint(&self) -> String {
        match self {
            DockerError::Name(_) | DockerError::NotFound(_) => "docker ps".to_owned(),
            DockerError::Host(_) => "DOCKER_HOST=unix:///run/docker.sock".to_owned(),
            DockerError::Unreachable { .. } | DockerError::Timeout(_) => {
                "systemctl status docker".to_owned()
            }
            DockerError::NotRunning { name, .. } => format!("docker start {name}"),
            DockerError::HostNetwork(_) => "start the container without --network host".to_owned(),
            DockerError::Answer { .. } => String::new(),
        }
    }
}

/// What `GET /containers/NAME/json` says, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    #[serde(default)]
    name: String,
    state: State,
    #[serde(default)]
    resolv_conf_path: String,
    #[serde(default)]
    host_config: HostSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    #[serde(default)]
    status: String,
    running: bool,
    #[serde(default)]
    pid: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct HostSettings {
    #[serde(default)]
    network_mode: String,
}

/// The socket of the engine: `host` (`unix://PATH` or a path), else `$DOCKER_HOST`, else the first default that exists.
///
/// # Errors
/// [`DockerError::Host`] where it is not a unix socket.
pub fn socket(host: Option<&str>) -> Result<PathBuf, DockerError> {
    let from_environment = || std::env::var("DOCKER_HOST").ok();
    match host
        .map(str::to_owned)
        .or_else(from_environment)
        .filter(|h| !h.is_empty())
    {
        Some(host) => {
            let path = host.strip_prefix("unix://").unwrap_or(&host);
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err(DockerError::Host(host.chars().take(200).collect()))
            }
        }
        None => {
            let found = SOCKETS.into_iter().find(|s| Path::new(s).exists());
            Ok(PathBuf::from(found.unwrap_or("/run/docker.sock")))
        }
    }
}

/// Asks the engine for a container that runs and has a network namespace of its own.
///
/// # Errors
/// One [`DockerError`] for each thing that can be in the way.
///
/// # Cancel safety
/// Dropping the future closes the connection; nothing was changed.
pub async fn inspect(host: Option<&str>, container: &str) -> Result<Container, DockerError> {
    inspect_within(TIMEOUT, host, container).await
}

async fn inspect_within(
    limit: Duration,
    host: Option<&str>,
    container: &str,
) -> Result<Container, DockerError> {
    if !is_container_name(container) {
        return Err(DockerError::Name(container.chars().take(80).collect()));
    }
    let socket = socket(host)?;
    match tokio::time::timeout(limit, ask(&socket, container)).await {
        Ok(answer) => understand(&socket, container, answer?),
        Err(_) => Err(DockerError::Timeout(socket)),
    }
}

/// The engine's own rule (`[a-zA-Z0-9][a-zA-Z0-9_.-]*`): none of these needs an escape in a path, and none leaves it.
fn is_container_name(text: &str) -> bool {
    text.len() <= NAME_LIMIT
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Sends one request and reads its answer.
async fn ask(socket: &Path, container: &str) -> Result<(StatusCode, Bytes), DockerError> {
    let unreachable = |source| DockerError::Unreachable {
        socket: socket.to_path_buf(),
        source,
    };
    let wrong = |what: String| DockerError::Answer {
        socket: socket.to_path_buf(),
        what,
    };
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| wrong(format!("no HTTP: {e}")))?;
    let request = Request::get(format!("/containers/{container}/json"))
        .header(hyper::header::HOST, "docker")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| wrong(format!("nothing, for the request could not be made: {e}")))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| wrong(format!("no HTTP: {e}")))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|e| {
                let large = e.downcast_ref::<LengthLimitError>().is_some();
                wrong(if large {
                    format!("more than {ANSWER_LIMIT} bytes")
                } else {
                    format!("half a sentence: {e}")
                })
            })?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven beside the exchange and dropped with it: no task outlives the question.
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

fn understand(
    socket: &Path,
    asked: &str,
    answer: (StatusCode, Bytes),
) -> Result<Container, DockerError> {
    let wrong = |what: String| DockerError::Answer {
        socket: socket.to_path_buf(),
        what,
    };
    let (status, body) = answer;
    if status == StatusCode::NOT_FOUND {
        return Err(DockerError::NotFound(asked.to_owned()));
    }
    if status != StatusCode::OK {
        let text: String = String::from_utf8_lossy(&body)
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        return Err(wrong(format!("{status}: {text}")));
    }
    let found: Inspect =
        serde_json::from_slice(&body).map_err(|e| wrong(format!("something else: {e}")))?;
    if !(found.id.len() == 64 && found.id.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(wrong("a container without an ID".to_owned()));
    }
    let name = match found.name.trim_start_matches('/') {
        name if is_container_name(name) => name.to_owned(),
        _ => asked.to_owned(),
    };
    if !found.state.running || found.state.pid == 0 {
        let state = match found.state.status.as_str() {
            known @ ("created" | "paused" | "restarting" | "removing" | "exited" | "dead") => {
                known.to_owned()
            }
            _ => "stopped".to_owned(),
        };
        return Err(DockerError::NotRunning { name, state });
    }
    if found.host_config.network_mode == "host" {
        return Err(DockerError::HostNetwork(name));
    }
    let resolv_conf = Some(PathBuf::from(found.resolv_conf_path)).filter(|p| p.is_absolute());
    Ok(Container {
        id: found.id,
        name,
        pid: found.state.pid,
        running: true,
        resolv_conf,
        netns: PathBuf::from(format!("/proc/{}/ns/net", found.state.pid)),
        network_mode: found.host_config.network_mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    struct Engine {
        dir: tempfile::TempDir,
        task: tokio::task::JoinHandle<String>,
    }

    impl Engine {
        /// Answers one request with these bytes and gives back its first line.
        fn answering(bytes: Vec<u8>) -> Engine {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
            let task = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                // The client may have had enough before all of it is written.
                let _ = stream.write_all(&bytes).await;
                String::from_utf8(head)
                    .unwrap()
                    .lines()
                    .next()
                    .unwrap()
                    .to_owned()
            });
            Engine { dir, task }
        }

        fn host(&self) -> String {
            format!("unix://{}", self.dir.path().join("docker.sock").display())
        }
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    }

    fn body(running: bool, mode: &str) -> String {
        serde_json::json!({
            "Id": ID, "Name": "/web", "ResolvConfPath": "/var/lib/docker/containers/x/resolv.conf",
            "State": {"Status": if running { "running" } else { "exited" }, "Running": running, "Pid": if running { 4242 } else { 0 }},
            "HostConfig": {"NetworkMode": mode, "Memory": 0}, "Config": {"Labels": {}}
        })
        .to_string()
    }

    async fn inspected(answer: Vec<u8>) -> (Result<Container, DockerError>, String) {
        let engine = Engine::answering(answer);
        let result = inspect(Some(&engine.host()), "web").await;
        (result, engine.task.await.unwrap())
    }

    #[tokio::test]
    async fn a_running_container_is_found() {
        let (found, line) = inspected(http("200 OK", &body(true, "bridge"))).await;
        assert_eq!(line, "GET /containers/web/json HTTP/1.1");
        let expected = Container {
            id: ID.to_owned(),
            name: "web".to_owned(),
            pid: 4242,
            running: true,
            resolv_conf: Some("/var/lib/docker/containers/x/resolv.conf".into()),
            netns: "/proc/4242/ns/net".into(),
            network_mode: "bridge".to_owned(),
        };
        assert_eq!(found.unwrap(), expected);
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_named() {
        let (gone, _) = inspected(http(
            "404 Not Found",
            r#"{"message":"No such container: web"}"#,
        ))
        .await;
        assert!(matches!(gone, Err(DockerError::NotFound(n)) if n == "web"));
        let (stopped, _) = inspected(http("200 OK", &body(false, "bridge"))).await;
        assert!(matches!(stopped, Err(DockerError::NotRunning { state, .. }) if state == "exited"));
        let (host, _) = inspected(http("200 OK", &body(true, "host"))).await;
        assert!(matches!(host, Err(DockerError::HostNetwork(n)) if n == "web"));
        let (broken, _) = inspected(http("500 Internal Server Error", "oh\u{1b}[31mno")).await;
        assert!(
            broken
                .is_err_and(|e| e.to_string().contains("500") && !e.to_string().contains('\u{1b}'))
        );
        for nonsense in [
            b"hello\r\n\r\n".to_vec(),
            http("200 OK", "[]"),
            http("200 OK", "{\"Id\":7}"),
            Vec::new(),
        ] {
            assert!(matches!(
                inspected(nonsense).await.0,
                Err(DockerError::Answer { .. })
            ));
        }
    }

    #[tokio::test]
    async fn a_large_answer_is_not_read() {
        let (large, _) = inspected(http("200 OK", &" ".repeat(ANSWER_LIMIT + 1))).await;
        assert!(
            matches!(large, Err(DockerError::Answer { what, .. }) if what.contains("more than"))
        );
    }

    #[tokio::test]
    async fn chunked_answers_are_read() {
        let text = body(true, "none");
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
            text.len()
        );
        assert_eq!(
            inspected(chunked.into_bytes())
                .await
                .0
                .unwrap()
                .network_mode,
            "none"
        );
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("none.sock").display().to_string();
        assert!(matches!(
            inspect(Some(&host), "web").await,
            Err(DockerError::Unreachable { .. })
        ));
        assert!(matches!(
            inspect(Some("tcp://127.0.0.1:2375"), "web").await,
            Err(DockerError::Host(_))
        ));
    }

    #[tokio::test]
    async fn a_silent_engine_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let host = path.display().to_string();
        let result = inspect_within(Duration::from_millis(50), Some(&host), "web").await;
        assert!(matches!(result, Err(DockerError::Timeout(_))));
    }

    #[tokio::test]
    async fn names_that_leave_the_path_are_refused() {
        for bad in [
            "",
            "../x",
            "a/b",
            "a b",
            "a%2fb",
            "a?b",
            "-a",
            ".a",
            "a\r\nX: y",
            "ä",
            &"a".repeat(256),
        ] {
            assert!(
                matches!(inspect(Some("/none"), bad).await, Err(DockerError::Name(_))),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), pid: i64, text in ".{0,20}") {
            let socket = Path::new("/s");
            let _ = understand(socket, "web", (StatusCode::OK, Bytes::from(bytes)));
            let json = serde_json::json!({"Id": ID, "Name": text, "State": {"Running": true, "Pid": pid, "Status": text}});
            let _ = understand(socket, "web", (StatusCode::OK, Bytes::from(json.to_string())));
        }
    }
}
