//! What the engine says of one container, and which of several is meant.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Deserialize;

use super::client::{self, answer, escaped};
use super::{DockerError, socket};
use crate::text;

/// Longest name or ID of a container that is asked for, in characters.
const NAME_LIMIT: usize = 255;

/// The labels by which compose finds a container of its project again: with equal ones a new container takes the place of
/// a former one.
const COMPOSE: [&str; 4] = [
    "com.docker.compose.project",
    "com.docker.compose.service",
    "com.docker.compose.container-number",
    "com.docker.compose.oneoff",
];

/// The engine's word for what a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// It runs.
    Running,
    /// It is frozen: its namespace is there.
    Paused,
    /// It ended, and its engine will start it again by itself.
    Restarting,
    /// It is being removed.
    Removing,
    /// It ended.
    Exited,
    /// It could not be removed.
    Dead,
    /// A word that is not known here.
    Other,
}

impl State {
    fn of(word: &str, running: bool) -> State {
        match word {
            "created" => State::Created,
            "running" => State::Running,
            "paused" => State::Paused,
            "restarting" => State::Restarting,
            "removing" => State::Removing,
            "exited" => State::Exited,
            "dead" => State::Dead,
            // Before it had such words the engine said only this.
            "" if running => State::Running,
            _ => State::Other,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Restarting => "restarting",
            State::Removing => "removing",
            State::Exited => "exited",
            State::Dead => "dead",
            State::Other => "stopped",
        })
    }
}

/// A container, whether it runs or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The full ID, 64 hexadecimal digits.
    pub id: String,
    /// The name without the slash the engine puts in front.
    pub name: String,
    /// The container's first process, as seen from the host; none while it has none.
    pub pid: Option<u32>,
    /// What it does.
    pub state: State,
    /// The file on the host that is its `/etc/resolv.conf`; none where the engine made none.
    pub resolv_conf: Option<PathBuf>,
    /// The engine's word for its network: `bridge`, a network's name, `none`, or `container:ID`.
    pub network_mode: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The user whose engine told of it. Only root's is believed about what is not that user's own.
    pub told_by: u32,
}

impl Container {
    /// Its first process, where it has a network namespace of its own.
    ///
    /// # Errors
    /// [`DockerError::NotRunning`], [`DockerError::HostNetwork`].
    pub fn process(&self) -> Result<u32, DockerError> {
        let Some(pid) = self.pid else {
            return Err(DockerError::NotRunning {
                name: self.name.clone(),
                state: self.state,
            });
        };
        if self.network_mode == "host" {
            return Err(DockerError::HostNetwork(self.name.clone()));
        }
        Ok(pid)
    }

    /// The labels by which compose would find it again, as `label=value`; none where compose did not make it.
    pub fn compose(&self) -> Vec<String> {
        let [project, service, ..] = COMPOSE;
        if !self.labels.contains_key(project) || !self.labels.contains_key(service) {
            return vec![];
        }
        let label = |label: &&str| Some(format!("{label}={}", self.labels.get(*label)?));
        COMPOSE.iter().filter_map(label).collect()
    }
}

/// What `GET /containers/NAME/json` says, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    #[serde(default)]
    name: String,
    state: RunState,
    #[serde(default)]
    resolv_conf_path: String,
    #[serde(default)]
    host_config: HostSettings,
    #[serde(default)]
    config: Settings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunState {
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

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    labels: Option<BTreeMap<String, String>>,
}

/// What `GET /containers/json` says of each container, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
}

/// Asks the engine at `host` (see [`socket`]) for a container that runs and has a network namespace of its own.
///
/// # Errors
/// One [`DockerError`] for each thing that can be in the way.
///
/// # Cancel safety
/// Dropping the future closes the connection; nothing was changed.
pub async fn inspect(host: Option<&str>, container: &str) -> Result<Container, DockerError> {
    let found = look(&socket(host)?, container).await?;
    found.process()?;
    Ok(found)
}

/// Asks an engine for a container by its name or ID, whether it runs or not.
///
/// # Errors
/// [`DockerError::Name`], [`DockerError::NotFound`], and those of [`client::get`].
pub async fn look(socket: &Path, container: &str) -> Result<Container, DockerError> {
    if !is_container_name(container) {
        return Err(DockerError::Name(container.chars().take(80).collect()));
    }
    let path = format!("/containers/{container}/json");
    let (told_by, answer) = client::get_within(client::TIMEOUT, socket, &path).await?;
    let found = understand(socket, container, answer)?;
    Ok(Container { told_by, ..found })
}

/// Asks an engine for the container with this full ID, whether it runs or not. Another container that the engine takes
/// for it, such as one that has that ID as its name, is none.
///
/// # Errors
/// As [`look`].
pub async fn by_id(socket: &Path, id: &str) -> Result<Container, DockerError> {
    let found = look(socket, id).await?;
    match found.id == id {
        true => Ok(found),
        false => Err(DockerError::NotFound(id.to_owned())),
    }
}

/// The ID of the container that has exactly this name, whether it runs or not. [`look`] is no answer to that: an engine
/// takes a name that nobody has for the first digits of an ID, so `db` may be any container.
///
/// # Errors
/// [`DockerError::Name`], and those of [`client::get`].
pub async fn named(socket: &Path, name: &str) -> Result<Option<String>, DockerError> {
    if !is_container_name(name) {
        return Err(DockerError::Name(name.chars().take(80).collect()));
    }
    // The filter is a pattern, in which a dot stands for any character. Docker puts a slash in front of names.
    let filters = serde_json::json!({ "name": [format!("^/?{name}$")] });
    let has = |listed: &Listed| {
        let mut names = listed.names.iter().flatten();
        names.any(|n| n.strip_prefix('/').unwrap_or(n) == name)
    };
    let all = list(socket, "all=true&", &filters).await?;
    Ok(all.into_iter().find(has).map(|listed| listed.id))
}

/// IDs of the containers that run and bear all of these labels, each as `label=value`.
///
/// # Errors
/// Those of [`client::get`].
pub async fn running(socket: &Path, labels: &[String]) -> Result<Vec<String>, DockerError> {
    let filters = serde_json::json!({ "label": labels });
    let all = list(socket, "", &filters).await?;
    Ok(all.into_iter().map(|listed| listed.id).collect())
}

/// The containers that an engine lists for these filters.
async fn list(
    socket: &Path,
    which: &str,
    filters: &serde_json::Value,
) -> Result<Vec<Listed>, DockerError> {
    let filters = escaped(&filters.to_string());
    let path = format!("/containers/json?{which}filters={filters}");
    let (status, body) = client::get(socket, &path).await?;
    if status != StatusCode::OK {
        return Err(answer(socket, refusal(status, &body)));
    }
    let mut all: Vec<Listed> = serde_json::from_slice(&body)
        .map_err(|e| answer(socket, format!("something else: {e}")))?;
    all.retain(|listed| is_id(&listed.id));
    Ok(all)
}

/// The engine's own rule (`[a-zA-Z0-9][a-zA-Z0-9_.-]*`): none of these needs an escape in a path, and none leaves it.
fn is_container_name(text: &str) -> bool {
    text.len() <= NAME_LIMIT
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Why the engine did not do what it was asked for, in its own words as far as they can be shown.
fn refusal(status: StatusCode, body: &Bytes) -> String {
    let text = String::from_utf8_lossy(body);
    format!("{status}: {}", text::short(&text, 200))
}

/// No user, as the kernel has it: who told is not known yet.
const NOBODY: u32 = u32::MAX;

fn understand(
    socket: &Path,
    asked: &str,
    (status, body): (StatusCode, Bytes),
) -> Result<Container, DockerError> {
    if status == StatusCode::NOT_FOUND {
        return Err(DockerError::NotFound(asked.to_owned()));
    }
    if status != StatusCode::OK {
        return Err(answer(socket, refusal(status, &body)));
    }
    let found: Inspect = serde_json::from_slice(&body)
        .map_err(|e| answer(socket, format!("something else: {e}")))?;
    if !is_id(&found.id) {
        return Err(answer(socket, "a container without an ID".to_owned()));
    }
    let name = match found.name.trim_start_matches('/') {
        name if is_container_name(name) => name.to_owned(),
        _ => asked.to_owned(),
    };
    let runs = found.state.running && found.state.pid != 0;
    Ok(Container {
        id: found.id,
        name,
        pid: runs.then_some(found.state.pid),
        state: State::of(&found.state.status, runs),
        resolv_conf: Some(PathBuf::from(found.resolv_conf_path)).filter(|p| p.is_absolute()),
        network_mode: found.host_config.network_mode,
        labels: found.config.labels.unwrap_or_default(),
        told_by: NOBODY,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Engine, http};
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn body(running: bool, mode: &str) -> String {
        serde_json::json!({
            "Id": ID, "Name": "/web", "ResolvConfPath": "/var/lib/docker/containers/x/resolv.conf",
            "State": {"Status": if running { "running" } else { "exited" }, "Running": running, "Pid": if running { 4242 } else { 0 }},
            "HostConfig": {"NetworkMode": mode, "Memory": 0}, "Config": {"Labels": {"a": "b"}}
        })
        .to_string()
    }

    async fn inspected(answer: Vec<u8>) -> (Result<Container, DockerError>, String) {
        let engine = Engine::answering(answer);
        let result = inspect(Some(&engine.host()), "web").await;
        (result, engine.task.await.unwrap().remove(0))
    }

    #[tokio::test]
    async fn a_running_container_is_found() {
        let (found, line) = inspected(http("200 OK", &body(true, "bridge"))).await;
        assert_eq!(line, "GET /containers/web/json HTTP/1.1");
        let expected = Container {
            id: ID.to_owned(),
            name: "web".to_owned(),
            pid: Some(4242),
            state: State::Running,
            resolv_conf: Some("/var/lib/docker/containers/x/resolv.conf".into()),
            network_mode: "bridge".to_owned(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            told_by: nix::unistd::geteuid().as_raw(),
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
        assert!(
            matches!(stopped, Err(DockerError::NotRunning { state, .. }) if state == State::Exited)
        );
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
    async fn a_container_of_a_project_is_known_by_its_labels() {
        let labelled = |labels: &[(&str, &str)]| {
            let labels = labels
                .iter()
                .map(|(l, v)| ((*l).to_owned(), (*v).to_owned()));
            let json = body(true, "bridge");
            let plain = understand(Path::new("/s"), "web", (StatusCode::OK, Bytes::from(json)));
            Container {
                labels: labels.collect(),
                ..plain.unwrap()
            }
        };
        let [project, service, number, oneoff] = COMPOSE;
        assert!(labelled(&[(project, "p")]).compose().is_empty());
        let made = [
            (project, "p"),
            (service, "s"),
            (number, "1"),
            (oneoff, "False"),
            ("x", "y"),
        ];
        let known = labelled(&made).compose();
        assert_eq!(known.len(), 4);
        let answer = format!(r#"[{{"Id":"{ID}"}},{{"Id":"../x"}}]"#);
        let engine = Engine::answering(http("200 OK", &answer));
        assert_eq!(running(&engine.socket(), &known).await.unwrap(), [ID]);
        let asked = engine.task.await.unwrap().remove(0);
        assert!(
            asked.contains("container-number%3D1%22") && !asked.contains("all="),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn a_name_is_not_taken_for_the_beginning_of_an_id() {
        let other = ID.replace('0', "1");
        let listed = |names: &str| format!(r#"{{"Id":"{ID}","Names":{names}}}"#);
        for (name, names, found) in [
            ("a.b", r#"["/a.b"]"#, true),
            ("a.b", r#"["/x/y","a.b"]"#, true),
            ("a.b", r#"["/a-b"]"#, false),
            ("0123", r#"["/web"]"#, false),
            ("0123", "null", false),
        ] {
            let answer = http("200 OK", &format!("[{}]", listed(names)));
            let engine = Engine::answering(answer);
            let id = named(&engine.socket(), name).await.unwrap();
            assert_eq!(id, found.then(|| ID.to_owned()), "{name} {names}");
            let asked = engine.task.await.unwrap().remove(0);
            let pattern = escaped(&format!("^/?{name}$"));
            assert!(
                asked.contains(&pattern) && asked.contains("all=true"),
                "{asked}"
            );
        }
        // A container that was named like the ID of another one is not that one.
        for (id, is_it) in [(ID, true), (other.as_str(), false)] {
            let engine = Engine::answering(http("200 OK", &body(true, "none")));
            let looked = by_id(&engine.socket(), id).await;
            assert_eq!(looked.is_ok(), is_it, "{looked:?}");
            assert!(is_it || matches!(looked, Err(DockerError::NotFound(_))));
        }
        let bad = named(Path::new("/none"), "a$|b").await;
        assert!(matches!(bad, Err(DockerError::Name(_))));
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
