//! Asks a page for the address that it sees: HTTP, perhaps inside TLS, one question, an answer of a few bytes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

use super::tls;
use crate::fetch;

/// How long a page may take, from the connection to its last byte.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer: an address has 39 at most, and some pages put a line more.
const LONGEST: usize = 4096;

/// Whether the page is asked inside TLS.
pub(super) fn is_secure(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// Asks the page at one of these addresses, the first that takes a connection. A redirect is not followed. `bundles`: files of
/// the authorities that are trusted, of which the first that there is counts.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn ask(
    uri: &Uri,
    addresses: &[SocketAddr],
    bundles: &[&str],
) -> Result<IpAddr, String> {
    let answer = tokio::time::timeout(PATIENCE, said(uri, addresses, bundles));
    let body = answer.await.map_err(|_| "it takes too long".to_owned())??;
    let text = std::str::from_utf8(&body).unwrap_or_default().trim();
    let ip: IpAddr = text
        .parse()
        .map_err(|_| "it says something else than one address".to_owned())?;
    Ok(ip.to_canonical())
}

async fn said(uri: &Uri, addresses: &[SocketAddr], bundles: &[&str]) -> Result<Vec<u8>, String> {
    let stream = TcpStream::connect(addresses)
        .await
        .map_err(|e| e.to_string())?;
    if !is_secure(uri) {
        return talk(uri, stream).await;
    }
    let host = uri.host().unwrap_or_default();
    let stream = tls::inside(stream, host, bundles).await?;
    talk(uri, stream.compat()).await
}

/// Asks on a connection that is there.
async fn talk(uri: &Uri, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Vec<u8>, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let question = Request::get(path)
        .body(Full::default())
        .map_err(|e| e.to_string())?;
    let answer = fetch::ask(stream, host, question, LONGEST).await?;
    match answer.status {
        StatusCode::OK => Ok(answer.body),
        status => Err(format!("it answers {}", status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tls::tests::Authority;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// What comes of a page that answers so, and of one that says `more` without end.
    async fn asked(answer: &str) -> Result<IpAddr, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let answer = answer.to_owned();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 1024];
            let length = stream.read(&mut question).await.unwrap();
            let question = String::from_utf8_lossy(&question[..length]).into_owned();
            assert!(question.starts_with("GET /v4?x HTTP/1.1\r\n"), "{question}");
            let _ = stream.write_all(answer.as_bytes()).await;
            if answer.ends_with("more") {
                while stream.write_all(&[b'1'; 8192]).await.is_ok() {}
            }
            if answer.ends_with("wait") {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        });
        let uri: Uri = format!("http://{at}/v4?x").parse().unwrap();
        let said = ask(&uri, &[at], &[]).await;
        serving.abort();
        said
    }

    #[tokio::test]
    async fn a_page_says_one_address_and_nothing_else() {
        let page = |body: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let right: IpAddr = "203.0.113.9".parse().unwrap();
        for body in [
            "203.0.113.9",
            "203.0.113.9\n",
            " 203.0.113.9 \r\n",
            "::ffff:203.0.113.9",
        ] {
            assert_eq!(asked(&page(body)).await, Ok(right));
        }
        assert_eq!(asked("HTTP/1.1 200 OK\r\n\r\n203.0.113.9").await, Ok(right));
        for bad in [
            "",
            "203.0.113.9 198.51.100.1",
            "<html>203.0.113.9</html>",
            "\u{0}",
        ] {
            asked(&page(bad)).await.unwrap_err();
        }
        let elsewhere =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(asked(elsewhere).await.unwrap_err(), "it answers 302");
        asked("HTTP/1.1 200 OK\r\n\r\nmore").await.unwrap_err();
        asked("HTTP/1.1 200 OK\r\nX: more").await.unwrap_err();
        asked("no HTTP at all\r\n\r\n").await.unwrap_err();
    }

    #[tokio::test]
    async fn a_page_that_never_ends_its_answer_is_given_up_after_five_seconds() {
        let begun = std::time::Instant::now();
        let why = asked("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nwait").await;
        assert_eq!(why.unwrap_err(), "it takes too long");
        assert!(begun.elapsed() < Duration::from_secs(7));
    }

    /// What comes of a page at `https://HOST` whose certificate is for `name`, where `trusted` says who is.
    async fn asked_inside(
        host: &str,
        name: &str,
        trusted: &Authority,
        of: &Authority,
    ) -> Result<IpAddr, String> {
        let at = of.serve(name, false).await;
        let uri: Uri = format!("https://{host}:{}/", at.port()).parse().unwrap();
        ask(&uri, &[at], &[&trusted.bundle()]).await
    }

    #[tokio::test]
    async fn inside_tls_a_page_is_believed_whose_certificate_is_trusted_and_names_its_host() {
        let (ours, other) = (Authority::new(), Authority::new());
        let right = Ok("203.0.113.9".parse().unwrap());
        for (host, name) in [
            ("ip.example", "ip.example"),
            ("ip.example.", "ip.example"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(
                asked_inside(host, name, &ours, &ours).await,
                right,
                "{host}"
            );
        }
        for (host, name) in [("ip.example", "other.example"), ("127.0.0.1", "127.0.0.2")] {
            let why = asked_inside(host, name, &ours, &ours).await.unwrap_err();
            assert!(why.contains("certificate"), "{host}: {why}");
        }
        let why = asked_inside("ip.example", "ip.example", &ours, &other).await;
        let why = why.unwrap_err();
        assert!(why.contains("invalid peer certificate"), "{why}");
        let at = ours.serve("ip.example", true).await;
        let uri: Uri = "https://ip.example/".parse().unwrap();
        let why = ask(&uri, &[at], &[&ours.bundle()]).await.unwrap_err();
        assert!(why.contains("xpired"), "{why}");
    }

    #[tokio::test]
    async fn a_server_that_begins_no_tls_is_given_up_after_five_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let ours = Authority::new();
        let uri: Uri = "https://ip.example/".parse().unwrap();
        let begun = std::time::Instant::now();
        let why = ask(&uri, &[at], &[&ours.bundle()]).await;
        assert_eq!(why.unwrap_err(), "it takes too long");
        assert!(begun.elapsed() < Duration::from_secs(7));
    }
}
