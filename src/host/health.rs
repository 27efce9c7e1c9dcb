//! Asks workloads whether they are well, from this machine by their own addresses.
//!
//! A workload may answer anything or nothing: the time is bounded by the caller, what is read of an answer by
//! `HEAD_LIMIT`, and a redirection is not followed.

use std::net::{IpAddr, SocketAddr};

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, Join, Take};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The most of an answer that is read, in bytes: its head has to fit.
const HEAD_LIMIT: usize = 16 * 1024;

/// Whether a port of the workload takes a connection, at one of its addresses.
///
/// # Errors
/// Why not, in words.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn tcp(addresses: &[IpAddr], port: u16) -> Result<(), String> {
    connect(addresses, port).await.map(drop)
}

/// Connects at the first address that takes the connection.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut why = "it has no address".to_owned();
    for address in addresses {
        let at = SocketAddr::new(*address, port);
        match TcpStream::connect(at).await {
            Ok(stream) => return Ok(stream),
            Err(error) => why = format!("{at}: {error}"),
        }
    }
    Err(why)
}

/// A connection of which no more than the head of an answer is read: not even heads before it (1xx) come without end.
fn bounded(stream: TcpStream) -> Join<Take<OwnedReadHalf>, OwnedWriteHalf> {
    let (read, write) = stream.into_split();
    tokio::io::join(read.take(HEAD_LIMIT as u64), write)
}

/// Whether a GET of a path answers with a status from 200 to 399. `host` is the name that it is asked by.
///
/// # Errors
/// Why not, in words.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn http(addresses: &[IpAddr], port: u16, host: &str, path: &str) -> Result<(), String> {
    let stream = connect(addresses, port).await?;
    let request = Request::get(path)
        .header(HOST, format!("{host}:{port}"))
        .header(USER_AGENT, "byway")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("ask {path}: {error}"))?;
    let told = |error: hyper::Error| format!("port {port} speaks no HTTP: {error}");
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(bounded(stream)))
        .await
        .map_err(told)?;
    let answer = sender.send_request(request);
    // The connection is driven beside the question, and dropped with its body unread.
    tokio::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    let status = answer.map_err(told)?.status();
    match status.as_u16() {
        200..=399 => Ok(()),
        other => Err(format!("{path} answers {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that says so much to each client, and keeps the connection open.
    async fn says(answer: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 1024];
            let n = stream.read(&mut heard).await.unwrap_or(0);
            heard.truncate(n);
            let _ = stream.write_all(answer).await;
            let _ = stream.read(&mut [0; 8]).await;
            heard
        });
        (at, task)
    }

    async fn ask(at: SocketAddr) -> Result<(), String> {
        let addresses = [at.ip()];
        let asked = http(&addresses, at.port(), "web", "/up?deep=1");
        tokio::time::timeout(Duration::from_millis(500), asked)
            .await
            .unwrap_or(Err("no answer".to_owned()))
    }

    #[tokio::test]
    async fn a_status_below_400_is_well_and_no_redirection_is_followed() {
        let (at, heard) = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx").await;
        assert_eq!(ask(at).await, Ok(()));
        let heard = String::from_utf8(heard.await.unwrap()).unwrap();
        assert!(heard.starts_with("GET /up?deep=1 HTTP/1.1\r\n"), "{heard}");
        assert!(
            heard.contains(&format!("host: web:{}\r\n", at.port())),
            "{heard}"
        );
        let (other, asked) = says(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let moved = format!("HTTP/1.1 302 Found\r\nLocation: http://{other}/\r\n\r\n");
        let (at, _) = says(moved.leak().as_bytes()).await;
        assert_eq!(ask(at).await, Ok(()));
        assert!(!asked.is_finished(), "nobody asked there");
        let (at, _) = says(b"HTTP/1.1 503 Busy\r\n\r\n").await;
        assert_eq!(ask(at).await, Err("/up?deep=1 answers 503".to_owned()));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_not_well_and_reads_no_end() {
        let head = b"HTTP/1.1 200 OK\r\nX: ";
        let endless = [&head[..], &b"x".repeat(1 << 20)].concat().leak();
        let informed = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(4000).leak();
        for answer in [&b"SSH-2.0-x\r\n"[..], b"", endless, informed] {
            let (at, _) = says(answer).await;
            assert!(ask(at).await.is_err());
        }
        let (at, _) = says(informed).await;
        let begun = std::time::Instant::now();
        assert!(ask(at).await.is_err());
        assert!(
            begun.elapsed() < Duration::from_millis(400),
            "the end is not waited for"
        );
        let none = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = none.local_addr().unwrap();
        assert_eq!(tcp(&[at.ip()], at.port()).await, Ok(()));
        // The first that answers counts: a service may listen by one family only.
        let both = ["::1".parse().unwrap(), at.ip()];
        assert_eq!(tcp(&both, at.port()).await, Ok(()));
        drop(none);
        assert!(
            tcp(&both, at.port())
                .await
                .is_err_and(|why| why.contains("refused"))
        );
        assert!(tcp(&[], at.port()).await.is_err());
    }
}
