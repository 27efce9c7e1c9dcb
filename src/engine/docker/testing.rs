//! An engine for tests: a unix socket where somebody answers with bytes that the test gives.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Answers as many questions as it was given answers for, one after the other.
pub(super) struct Engine {
    dir: tempfile::TempDir,
    /// Gives the first lines of the questions.
    pub task: JoinHandle<Vec<String>>,
}

impl Engine {
    /// Answers one request with these bytes.
    pub fn answering(bytes: Vec<u8>) -> Engine {
        Engine::answering_all(vec![bytes])
    }

    pub fn answering_all(answers: Vec<Vec<u8>>) -> Engine {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for bytes in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                asked.push(question(&mut stream).await);
                // The client may have had enough before all of it is written.
                let _ = stream.write_all(&bytes).await;
            }
            asked
        });
        Engine { dir, task }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

/// Reads one request; its first line.
async fn question(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    head.lines().next().unwrap().to_owned()
}

pub(super) fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
