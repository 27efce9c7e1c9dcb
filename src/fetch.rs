//! One question over HTTP/1.1 to whoever is not trusted: a page of the configuration, a router of UPnP.
//!
//! Bytes are bounded, of the head, of the body, and of everything that is read. A redirect is an answer as any other is, and
//! is not followed. Time is the caller's matter, since it begins with a name or a connection.

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

/// Bytes of the head of an answer; hyper takes a hundred lines of it.
const HEAD: usize = 16 << 10;
/// How many bytes are read for each of the body at most: one in chunks of a few bytes is a waste of both ends.
const PER_BYTE: usize = 4;
const TOO_MUCH: &str = "it says too much";

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Whether it is what was asked for.
    pub status: StatusCode,
    /// Its body, without what carried it.
    pub body: Vec<u8>,
}

/// Asks on a connection that is there, which is of no use after that. `host` is who it leads to, as a URL has it; `longest`
/// are the bytes of the body that are taken.
///
/// # Errors
/// Why there is no answer, in words.
///
/// # Cancel safety
/// Dropped before it is done, the question may have been heard.
pub async fn ask<S>(
    stream: S,
    host: &str,
    mut question: Request<Full<Bytes>>,
    longest: usize,
) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = HeaderValue::from_str(host).map_err(|_| "its name is none of a host")?;
    question.headers_mut().insert(HOST, host);
    let close = HeaderValue::from_static("close");
    question.headers_mut().insert(CONNECTION, close);
    // Whatever it is that comes without end, interim answers too.
    let most = HEAD.saturating_add(longest.saturating_mul(PER_BYTE));
    let (reader, writer) = tokio::io::split(stream);
    let stream = tokio::io::join(reader.take(most as u64), writer);
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(HEAD);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let answered = async {
        let answer = sender.send_request(question).await;
        let answer = answer.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = whole(answer.into_body(), longest).await?;
        Ok(Answer { status, body })
    };
    tokio::pin!(connection, answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // The end of the connection: what came is in the answer's hands already.
        _ = &mut connection => answered.await,
    }
}

/// The body in one piece; one that says it is longer is not begun.
async fn whole(mut body: hyper::body::Incoming, longest: usize) -> Result<Vec<u8>, String> {
    if body.size_hint().lower() > longest as u64 {
        return Err(TOO_MUCH.to_owned());
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| e.to_string())?;
        let data = frame.data_ref().map_or(&[][..], |data| &data[..]);
        if whole.len() + data.len() > longest {
            return Err(TOO_MUCH.to_owned());
        }
        whole.extend_from_slice(data);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// What comes of a server that says `begin`, then `again` as often as it can, and how many bytes it got rid of.
    async fn asked(begin: &str, again: &str) -> (Result<Answer, String>, usize) {
        // No more fits in between.
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let (begin, again) = (begin.to_owned(), again.to_owned());
        let serving = tokio::spawn(async move {
            let mut question = [0; 256];
            let length = theirs.read(&mut question).await.unwrap();
            let question = String::from_utf8_lossy(&question[..length]).into_owned();
            assert!(question.starts_with("GET /x HTTP/1.1\r\n"), "{question}");
            assert!(question.contains("host: here:80\r\n"), "{question}");
            assert!(question.contains("connection: close\r\n"), "{question}");
            theirs.write_all(begin.as_bytes()).await.unwrap();
            let mut sent = begin.len();
            while !again.is_empty() {
                match theirs.write(again.as_bytes()).await {
                    Ok(length) if length > 0 => sent += length,
                    _ => break,
                }
            }
            sent
        });
        let question = Request::get("/x").body(Full::default()).unwrap();
        let answer = ask(ours, "here:80", question, 1000).await;
        (answer, serving.await.unwrap())
    }

    #[tokio::test]
    async fn an_answer_is_taken_whichever_way_its_body_comes() {
        for answer in [
            "HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 500 X\r\n\r\nabc",
            "HTTP/1.0 500 X\r\n\r\nabc",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ] {
            let answer = asked(answer, "").await.0.unwrap();
            let (status, body) = (answer.status.as_u16(), answer.body);
            assert_eq!((status, &body[..]), (500, &b"abc"[..]));
        }
        let just = "a".repeat(1000);
        let answer = asked(&format!("HTTP/1.1 200 OK\r\n\r\n{just}"), "").await;
        assert_eq!(answer.0.unwrap().body.len(), 1000);
    }

    #[tokio::test]
    async fn whoever_answers_without_end_is_read_for_a_bounded_number_of_bytes() {
        let most = HEAD + 1000 * PER_BYTE + 4096;
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (begin, again) in [
            // Its body, with or without a length.
            ("HTTP/1.1 200 OK\r\n\r\n", "aaaa"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
                "aaaa",
            ),
            (chunked, "1000\r\n"),
            (chunked, "1\r\na\r\n"),
            // What is around it.
            (chunked, "1;a=b\r\na\r\n"),
            ("HTTP/1.1 200 OK\r\nX: ", "aaaa"),
            ("HTTP/1.1 200 OK\r\n", "X: a\r\n"),
            ("", "HTTP/1.1 100 Continue\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
                "X: a\r\n",
            ),
            // Nothing of the kind.
            ("", "a"),
            ("", "\r\n"),
        ] {
            let (answer, sent) = asked(begin, again).await;
            assert!(answer.is_err(), "{begin:?}, {again:?}: {answer:?}");
            assert!(sent <= most, "{begin:?}, {again:?}: {sent}");
        }
        let longer = "a".repeat(1001);
        for head in ["", "Content-Length: 1001\r\n"] {
            let answer = asked(&format!("HTTP/1.1 200 OK\r\n{head}\r\n{longer}"), "").await;
            assert_eq!(answer.0.unwrap_err(), TOO_MUCH);
        }
    }

    #[tokio::test]
    async fn an_answer_that_ends_too_early_is_none() {
        for answer in [
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc",
        ] {
            asked(answer, "").await.0.unwrap_err();
        }
    }
}
