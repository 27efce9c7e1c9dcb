//! The few lines of HTTP that lead to a connection: `CONNECT` through a proxy, and the upgrade to a WebSocket.
//!
//! A head ends with an empty line and has at most [`HEAD`] bytes and [`LINES`] fields. What a server or a proxy answers is
//! shown to people: not much of it, and nothing that is not seen ([`text`]). A request that is no upgrade of ours is
//! answered with an empty body that names no program. So is one that has a field twice which can have one value only: two
//! readers of it may take one value each.
//!
//! Pure: text in, text out.

use data_encoding::BASE64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::text;

/// The longest head that is read, in bytes, the empty line at its end included.
pub const HEAD: usize = 8 * 1024;
/// The most fields that a head may have.
pub const LINES: usize = 64;
/// The most characters that are shown of what others say.
const SHOWN: usize = 100;
/// What every WebSocket server appends to the client's key (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The fields of a request that stand once or not at all.
const SINGLE: [&str; 5] = [
    "host",
    "origin",
    "content-length",
    "sec-websocket-key",
    "sec-websocket-version",
];

/// What a server answers to a request that is no upgrade.
const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// What a server answers to an upgrade of another version of WebSocket.
const OTHER_VERSION: &str = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                             Content-Length: 0\r\nConnection: close\r\n\r\n";

/// Why an HTTP exchange led to no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The other end does not speak HTTP/1.1.
    #[error("no HTTP/1.1 is spoken there")]
    NoHttp,
    /// The proxy wants another name and password; its realm, perhaps empty.
    #[error("the proxy wants a user name and a password that it knows (407{})", named_realm(.0))]
    Credentials(String),
    /// What stands there wants a name and a password as a web server does, which a proxy has no right to; its realm, perhaps
    /// empty.
    #[error("what stands there answers as a web server that wants a password, and not as a proxy (401{})", named_realm(.0))]
    NoProxy(String),
    /// The proxy wants another kind of credentials than a name and a password.
    #[error("the proxy wants credentials of another kind than Basic (407: {0})")]
    OtherCredentials(String),
    /// The proxy does not connect; its status line.
    #[error("the proxy does not connect: {0}")]
    Proxy(String),
    /// The server does not change to WebSocket; its status line.
    #[error("no WebSocket is spoken there: {0}")]
    NoUpgrade(String),
    /// The server's answer does not belong to the question.
    #[error("the server's answer to the WebSocket handshake is not for this connection")]
    OtherKey,
}

/// What a client asked a WebSocket server for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The upgrade; the answer that grants it.
    Upgrade(String),
    /// Something else; the answer that refuses it.
    Other(&'static str),
}

/// The request for a WebSocket at `host`, which may have a port behind it. `key` is random.
pub fn upgrade(host: &str, path: &str, key: [u8; 16]) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {}\r\nSec-WebSocket-Version: 13\r\n\r\n",
        BASE64.encode(&key)
    )
}

/// Reads the head of the answer to [`upgrade`] with the same key.
///
/// # Errors
/// The server did not change to WebSocket.
pub fn read_upgrade(head: &[u8], key: [u8; 16]) -> Result<(), Refused> {
    let mut fields = [httparse::EMPTY_HEADER; LINES];
    let answer = answer(head, &mut fields)?;
    if answer.code != Some(101) || !has_token(answer.headers, "upgrade", "websocket") {
        return Err(Refused::NoUpgrade(status(&answer)));
    }
    let said = field(answer.headers, "sec-websocket-accept");
    if said != Some(accept(&BASE64.encode(&key)).as_bytes()) {
        return Err(Refused::OtherKey);
    }
    Ok(())
}

/// Judges the head of a request to a WebSocket server. What a web page makes a browser ask (it has an `Origin`) is refused:
/// no peer is inside a browser.
pub fn asked(head: &[u8]) -> Asked {
    let mut fields = [httparse::EMPTY_HEADER; LINES];
    let mut request = httparse::Request::new(&mut fields);
    let whole =
        matches!(request.parse(head), Ok(httparse::Status::Complete(len)) if len == head.len());
    let headers = &*request.headers;
    let is_upgrade = whole
        && request.method == Some("GET")
        && request.version == Some(1)
        && has_token(headers, "upgrade", "websocket")
        && has_token(headers, "connection", "upgrade")
        && SINGLE.iter().all(|name| named(headers, name).count() <= 1)
        && named(headers, "origin").next().is_none();
    if !is_upgrade {
        return Asked::Other(NOT_FOUND);
    }
    if field(headers, "sec-websocket-version") != Some(b"13") {
        return Asked::Other(OTHER_VERSION);
    }
    let key = field(headers, "sec-websocket-key")
        .filter(|key| BASE64.decode(key).is_ok_and(|key| key.len() == 16));
    match key.and_then(|key| std::str::from_utf8(key).ok()) {
        Some(key) => Asked::Upgrade(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            accept(key)
        )),
        None => Asked::Other(NOT_FOUND),
    }
}

/// The request that a proxy connects to `place`, a host and a port. `credentials` are `NAME:PASSWORD`.
pub fn connect(place: &str, credentials: Option<&str>) -> String {
    let credentials = credentials
        .map(|plain| {
            format!(
                "Proxy-Authorization: Basic {}\r\n",
                BASE64.encode(plain.as_bytes())
            )
        })
        .unwrap_or_default();
    format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{credentials}\r\n")
}

/// Reads the head of the answer to [`connect`]. What follows it comes from the place that was asked for.
///
/// # Errors
/// The proxy did not connect.
pub fn read_connect(head: &[u8]) -> Result<(), Refused> {
    let mut fields = [httparse::EMPTY_HEADER; LINES];
    let answer = answer(head, &mut fields)?;
    match answer.code {
        Some(200..=299) => Ok(()),
        Some(407) => Err(challenged(answer.headers)),
        Some(401) => {
            let realms = named(answer.headers, "www-authenticate").map(realm);
            let mut told = realms.filter(|realm| !realm.is_empty());
            Err(Refused::NoProxy(told.next().unwrap_or_default()))
        }
        _ => Err(Refused::Proxy(status(&answer))),
    }
}

/// What a proxy wants that answered with 407.
fn challenged(headers: &[httparse::Header<'_>]) -> Refused {
    let offers = || named(headers, "proxy-authenticate");
    let is_basic = |offer: &&[u8]| {
        offer
            .get(..5)
            .is_some_and(|word| word.eq_ignore_ascii_case(b"basic"))
    };
    match (offers().find(is_basic), offers().next()) {
        (Some(basic), _) => Refused::Credentials(realm(basic)),
        (None, Some(other)) => Refused::OtherCredentials(printable(other)),
        (None, None) => Refused::Credentials(String::new()),
    }
}

/// The realm behind the status, where there is one: an answer without a challenge names none.
fn named_realm(realm: &str) -> String {
    match realm {
        "" => String::new(),
        realm => format!(", realm \"{realm}\""),
    }
}

/// The realm of a challenge, without its quotes.
fn realm(challenge: &[u8]) -> String {
    let text = printable(challenge);
    let at = text.to_ascii_lowercase().find("realm=");
    let value = at.and_then(|at| text.get(at + 6..)).unwrap_or_default();
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
        None => value
            .split(',')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned(),
    }
}

fn answer<'h, 'b>(
    head: &'b [u8],
    fields: &'h mut [httparse::Header<'b>],
) -> Result<httparse::Response<'h, 'b>, Refused> {
    let mut answer = httparse::Response::new(fields);
    match answer.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => Ok(answer),
        _ => Err(Refused::NoHttp),
    }
}

/// The status of an answer, as it is shown.
fn status(answer: &httparse::Response<'_, '_>) -> String {
    let line = format!(
        "{} {}",
        answer.code.unwrap_or_default(),
        answer.reason.unwrap_or_default()
    );
    printable(line.trim_end().as_bytes())
}

/// What may be shown of a text of others.
fn printable(text: &[u8]) -> String {
    text::short(&String::from_utf8_lossy(text), SHOWN)
}

/// The values of all fields of this name.
fn named<'b>(headers: &[httparse::Header<'b>], name: &str) -> impl Iterator<Item = &'b [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value)
}

/// The value of the only field of this name. None where it stands twice, so that this does not tell whether there is one.
fn field<'b>(headers: &[httparse::Header<'b>], name: &str) -> Option<&'b [u8]> {
    let mut all = named(headers, name);
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

/// Whether a field, which may stand several times, lists this word.
fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    named(headers, name)
        .flat_map(|value| value.split(|b| *b == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// What a server answers to a client's key.
fn accept(key: &str) -> String {
    let both = format!("{key}{GUID}");
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, both.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    #[test]
    fn the_key_of_the_rfc_has_the_answer_of_the_rfc() {
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let Asked::Upgrade(answer) = asked(ASK.as_bytes()) else {
            panic!("refused")
        };
        let key = BASE64
            .decode(b"dGhlIHNhbXBsZSBub25jZQ==")
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(read_upgrade(answer.as_bytes(), key), Ok(()));
        assert_eq!(
            read_upgrade(answer.as_bytes(), [7; 16]),
            Err(Refused::OtherKey)
        );
    }

    #[test]
    fn what_is_no_upgrade_gets_an_answer_that_names_nothing() {
        let without = |line: &str| {
            let lines = ASK.split("\r\n").filter(|l| !l.starts_with(line));
            lines.collect::<Vec<_>>().join("\r\n")
        };
        for ask in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            ASK.replacen("GET", "POST", 1),
            ASK.replacen("HTTP/1.1", "HTTP/1.0", 1),
            ASK.replacen("\r\n\r\n", "\r\nOrigin: https://a.example\r\n\r\n", 1),
            ASK.replacen("dGhlIHNhbXBsZSBub25jZQ==", "dGhl", 1),
            without("Upgrade"),
            without("Connection"),
            without("Sec-WebSocket-Key"),
            "\x16\x03\x01\r\n\r\n".to_owned(),
            String::new(),
        ] {
            let Asked::Other(answer) = asked(ask.as_bytes()) else {
                panic!("{ask}")
            };
            assert!(answer.starts_with("HTTP/1.1 404 "), "{ask}");
            assert!(!answer.to_ascii_lowercase().contains("server:"));
        }
        let old = ASK.replacen("Version: 13", "Version: 8", 1);
        let Asked::Other(answer) = asked(old.as_bytes()) else {
            panic!("{old}")
        };
        assert!(answer.starts_with("HTTP/1.1 426 "));
    }

    #[test]
    fn a_request_with_a_field_twice_that_has_one_value_is_refused() {
        let with = |fields: &str| ASK.replacen("\r\n\r\n", &format!("\r\n{fields}\r\n"), 1);
        for fields in [
            "Origin: https://a.example\r\norigin: https://a.example\r\n",
            "Origin: \r\n",
            "host: a\r\n",
            "Content-Length: 0\r\nContent-Length: 0\r\n",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "Sec-WebSocket-Version: 13\r\n",
        ] {
            assert_eq!(
                asked(with(fields).as_bytes()),
                Asked::Other(NOT_FOUND),
                "{fields}"
            );
        }
        // What is a list may be written as several fields.
        for fields in ["Connection: close\r\n", "Upgrade: h2c\r\n"] {
            assert!(
                matches!(asked(with(fields).as_bytes()), Asked::Upgrade(_)),
                "{fields}"
            );
        }
        let Asked::Upgrade(answer) = asked(ASK.as_bytes()) else {
            panic!("refused")
        };
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let twice = answer.replacen(accept, &accept.repeat(2), 1);
        let key = BASE64.decode(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        assert_eq!(
            read_upgrade(twice.as_bytes(), key.try_into().unwrap()),
            Err(Refused::OtherKey)
        );
    }

    #[test]
    fn what_else_a_server_says_is_shown_by_its_status() {
        let said = |head: &str| read_upgrade(head.as_bytes(), [0; 16]).unwrap_err();
        assert_eq!(
            said("HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n"),
            Refused::NoUpgrade("302 Found".to_owned())
        );
        assert_eq!(said("SSH-2.0-OpenSSH_9.2\r\n\r\n"), Refused::NoHttp);
        let long = said(&format!("HTTP/1.1 500 {}\r\n\r\n", "x".repeat(4000)));
        assert!(long.to_string().len() < 200, "{long}");
    }

    #[test]
    fn a_proxy_is_asked_for_a_place_and_its_refusal_is_named() {
        assert_eq!(
            connect("vpn.example:443", Some("Aladdin:open sesame")),
            "CONNECT vpn.example:443 HTTP/1.1\r\nHost: vpn.example:443\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        );
        assert!(!connect("[2001:db8::1]:443", None).contains("Authorization"));
        let said = |head: &str| read_connect(head.as_bytes());
        assert_eq!(said("HTTP/1.0 200 Connection established\r\n\r\n"), Ok(()));
        let wants = |value: &str| {
            said(&format!(
                "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: {value}\r\n\r\n"
            ))
        };
        for (value, realm) in [
            ("Basic realm=\"Corp net\"", "Corp net"),
            ("basic REALM=corp, charset=\"UTF-8\"", "corp"),
            ("Basic", ""),
        ] {
            assert_eq!(wants(value), Err(Refused::Credentials(realm.to_owned())));
        }
        let nameless = Refused::Credentials(String::new());
        assert_eq!(said("HTTP/1.1 407 No\r\n\r\n"), Err(nameless.clone()));
        assert_eq!(
            nameless.to_string(),
            "the proxy wants a user name and a password that it knows (407)"
        );
        for (fields, told) in [
            (
                "WWW-Authenticate: Basic realm=\"Admin\"\r\n",
                "(401, realm \"Admin\")",
            ),
            ("WWW-Authenticate: Negotiate\r\n", "(401)"),
            ("", "(401)"),
        ] {
            let head = format!("HTTP/1.1 401 Unauthorized\r\n{fields}\r\n");
            let why = said(&head).unwrap_err().to_string();
            assert!(
                why.contains("not as a proxy") && why.ends_with(told),
                "{why}"
            );
        }
        // Neither the words of a realm nor those of a status turn a line around.
        let turned = wants("Basic realm=\"a\u{202e}b\u{200b}\"").unwrap_err();
        assert!(
            turned
                .to_string()
                .ends_with("realm \"a\\u{202e}b\\u{200b}\")"),
            "{turned}"
        );
        let turned = said("HTTP/1.1 403 a\u{202e}b\r\n\r\n").unwrap_err();
        assert!(!turned.to_string().contains('\u{202e}'), "{turned}");
        assert_eq!(
            wants("Negotiate"),
            Err(Refused::OtherCredentials("Negotiate".to_owned()))
        );
        let other = said("HTTP/1.1 403 Filtered\r\n\r\n").unwrap_err();
        assert_eq!(
            other.to_string(),
            "the proxy does not connect: 403 Filtered"
        );
        assert_eq!(said("HTTP/1.1 200 OK\r\n"), Err(Refused::NoHttp));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (asked(&bytes), read_connect(&bytes), read_upgrade(&bytes, [0; 16]));
        }
    }
}
