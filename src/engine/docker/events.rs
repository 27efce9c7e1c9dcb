//! What happens at an engine, told for as long as it is asked: over restarts of the engine, and with nothing missed.
//!
//! One long connection to `/events`, in which the engine sends only what was asked for: an idle engine costs nothing.
//! Whoever listens learns from [`News::Standing`] that it has to look at everything anew. That comes before the first event
//! of each connection, so that between them a look and the events behind it tell all that happened. The engine begins to
//! answer before it listens to itself: so it is asked for what happened since a moment before the connection was made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::time::Instant;

use super::DockerError;
use super::client::{self, Lines, answer, escaped};
use crate::backoff::Backoff;

/// Between two tries to reach an engine.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));

/// A connection that stood for so long counts as one that worked: the next pause is the first again.
const SETTLED: Duration = Duration::from_secs(10);

/// Something that happened at an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it happened to: `container`, `network`.
    pub kind: String,
    /// What happened: `start`, `die`, `connect`.
    pub action: String,
    /// The ID of that container or network.
    pub id: String,
    /// The container's name and labels; of a network also `container`, the ID of who was connected.
    pub attributes: BTreeMap<String, String>,
    /// When, in nanoseconds since 1970 by the engine's clock.
    pub time: u64,
}

/// What is told of an engine.
#[derive(Debug)]
pub enum News {
    /// The engine tells events from now on. What happened before is to be looked at.
    Standing,
    /// Something happened.
    Event(Event),
    /// The engine tells nothing any more; it is tried again. Told once for each failure.
    Gone(DockerError),
}

/// A line of the engine's answer, as far as it is read.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano", default)]
    time: u64,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Option<BTreeMap<String, String>>,
}

/// The events of one engine.
pub struct Events {
    socket: PathBuf,
    /// What is asked for, as the API's `filters`.
    filters: String,
    /// The moment from which events are wanted, in nanoseconds since 1970.
    since: u64,
    lines: Option<(Lines, Instant)>,
    /// Tries in a row that came to nothing.
    failures: u32,
    retry_at: Option<Instant>,
}

impl Events {
    /// Events of the engine at `socket` of these types (`container`, `network`) that have one of these actions (`start`,
    /// `connect`). It is connected to by the first [`next`](Events::next).
    pub fn new(socket: &Path, types: &[&str], actions: &[&str]) -> Events {
        let filters = serde_json::json!({ "type": types, "event": actions });
        Events {
            socket: socket.to_path_buf(),
            filters: escaped(&filters.to_string()),
            since: now(),
            lines: None,
            failures: 0,
            retry_at: None,
        }
    }

    /// The next news, waited for without end: an engine that is not there is tried again, at least once a second.
    ///
    /// # Cancel safety
    /// Dropped before it is done, no event is lost.
    pub async fn next(&mut self) -> News {
        let Some((lines, _)) = &mut self.lines else {
            return self.connect().await;
        };
        let event = match lines.next().await {
            Ok(Some(line)) => match parse(&line) {
                Some(event) => event,
                None => return self.gone(answer(&self.socket, "no event".to_owned())),
            },
            Ok(None) => return self.gone(answer(&self.socket, "no more events".to_owned())),
            Err(error) => return self.gone(error),
        };
        self.since = self.since.max(event.time.saturating_add(1));
        News::Event(event)
    }

    async fn connect(&mut self) -> News {
        if let Some(at) = self.retry_at {
            tokio::time::sleep_until(at).await;
        }
        // A clock that was set back must not hide what happens from now on.
        self.since = self.since.min(now());
        let (seconds, nanos) = (self.since / 1_000_000_000, self.since % 1_000_000_000);
        let path = format!(
            "/events?since={seconds}.{nanos:09}&filters={}",
            self.filters
        );
        match client::stream(&self.socket, &path).await {
            Ok(lines) => {
                self.lines = Some((lines, Instant::now()));
                News::Standing
            }
            Err(error) => self.gone(error),
        }
    }

    /// The connection is over. What the engine said last may be what broke it, so it is not asked for once more: the look
    /// that follows tells what came of it.
    fn gone(&mut self, error: DockerError) -> News {
        let former = self.lines.take();
        if former.is_some_and(|(_, since)| since.elapsed() >= SETTLED) {
            self.failures = 0;
        }
        self.since = now();
        self.retry_at = Some(Instant::now() + PAUSES.pause(self.failures));
        self.failures = self.failures.saturating_add(1);
        News::Gone(error)
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn parse(line: &[u8]) -> Option<Event> {
    let Line {
        kind,
        action,
        actor,
        time,
    } = serde_json::from_slice(line).ok()?;
    Some(Event {
        kind,
        action,
        id: actor.id,
        attributes: actor.attributes.unwrap_or_default(),
        time,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Engine, http};
    use super::*;
    use proptest::prelude::*;

    fn telling(lines: &[&str]) -> Vec<u8> {
        let chunk = |line: &&str| format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
        let chunks: String = lines.iter().map(chunk).collect();
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
            .into_bytes()
    }

    const START: &str = r#"{"status":"start","id":"x","Type":"container","Action":"start","Actor":{"ID":"x","Attributes":{"name":"web","a.b":"c"}},"scope":"local","time":1,"timeNano":1000000002}"#;

    fn words(news: &News) -> String {
        match news {
            News::Standing => "standing".to_owned(),
            News::Event(event) => format!("{} {} {}", event.kind, event.action, event.id),
            News::Gone(error) => format!("gone: {error}"),
        }
    }

    #[tokio::test]
    async fn events_are_told_over_restarts_of_the_engine_and_each_begins_with_a_look() {
        let answers = vec![
            telling(&[START, START]),
            http("503 Service Unavailable", ""),
            telling(&["{\"garbage\":1}", START]),
            telling(&[START]),
        ];
        let engine = Engine::answering_all(answers);
        let mut events = Events::new(&engine.socket(), &["container"], &["start", "die"]);
        let mut told = Vec::new();
        for _ in 0..9 {
            told.push(words(&events.next().await));
        }
        let kinds: Vec<&str> = told.iter().map(|t| t.split(':').next().unwrap()).collect();
        let start = "container start x";
        assert_eq!(
            kinds,
            [
                "standing", start, start, "gone", "gone", "standing", "gone", "standing", start
            ],
            "{told:?}"
        );
        let asked = engine.task.await.unwrap();
        assert!(
            asked
                .iter()
                .all(|line| line.starts_with("GET /events?since=")
                    && line.contains("%22container%22")
                    && line.contains("%22die%22")),
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_tried_at_least_once_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::new(&dir.path().join("none.sock"), &["container"], &["start"]);
        let begun = Instant::now();
        for _ in 0..4 {
            assert!(matches!(
                events.next().await,
                News::Gone(DockerError::Unreachable { .. })
            ));
        }
        assert!(begun.elapsed() >= Duration::from_millis(700));
        events.failures = u32::MAX - 1;
        for _ in 0..2 {
            drop(events.gone(DockerError::Timeout(dir.path().into())));
            let pause = events
                .retry_at
                .unwrap()
                .saturating_duration_since(Instant::now());
            assert!(pause <= Duration::from_secs(1), "{pause:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,20}", time: i128) {
            let _ = parse(&bytes);
            let time = i64::try_from(time % 1_000_000).unwrap();
            let line = serde_json::json!({"Type": text, "Action": text, "Actor": {"ID": text, "Attributes": null}, "timeNano": time});
            let _ = parse(line.to_string().as_bytes());
        }
    }
}
