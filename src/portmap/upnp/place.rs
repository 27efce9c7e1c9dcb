//! Where a device is asked: a page at a number, never at a name, so that who is asked is known before.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Uri};
use tokio::net::TcpSocket;

use super::xml::LONGEST;
use crate::fetch::{self, Answer};

/// How long one question over HTTP may take, from the connection to the last byte of the answer.
const QUESTION: Duration = Duration::from_secs(4);

/// A page of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::portmap) struct Place {
    /// Its address and port; of an address of a link, with that.
    pub(in crate::portmap) at: SocketAddr,
    /// What is asked for there, with its query.
    path: String,
}

impl Place {
    /// The page of a whole URL, `http://NUMBER…`. `link` is the index of the link that an IPv6 address is asked on, and 0
    /// where it does not matter.
    pub(in crate::portmap) fn read(url: &str, link: u32) -> Option<Place> {
        let uri = uri(url)?;
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let host = uri.host()?;
        // Nothing stands before the host, which would be a name to log in by.
        let port = match uri.authority()?.as_str().strip_prefix(host)? {
            "" => 80,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        let at = match host.strip_prefix('[') {
            Some(host) => {
                let ip = host.strip_suffix(']')?.parse().ok()?;
                SocketAddr::V6(SocketAddrV6::new(ip, port, 0, link))
            }
            None => SocketAddr::new(IpAddr::V4(host.parse().ok()?), port),
        };
        let path = path_of(&uri);
        (port != 0).then_some(Place { at, path })
    }

    /// The page that a reference on this one leads to: a whole URL, a path of the same host, or one that begins where this
    /// page is.
    pub(super) fn beside(&self, reference: &str) -> Option<Place> {
        let path = match reference.strip_prefix('/') {
            // Another host, of the same scheme.
            Some(rest) if rest.starts_with('/') => return None,
            Some(_) => reference.to_owned(),
            None if reference.contains("://") => {
                let link = match self.at {
                    SocketAddr::V6(at) => at.scope_id(),
                    SocketAddr::V4(_) => 0,
                };
                return Place::read(reference, link);
            }
            None => {
                let page = self.path.split('?').next().unwrap_or_default();
                format!("{}/{reference}", page.rsplit_once('/')?.0)
            }
        };
        let path = path_of(&uri(&path)?);
        Some(Place { at: self.at, path })
    }

    /// What the page says.
    pub(super) async fn get(&self, local: IpAddr) -> Result<Vec<u8>, String> {
        let question = Request::get(&self.path).body(Full::default());
        let answer = self.ask(local, question).await?;
        match answer.status.as_u16() {
            200 => Ok(answer.body),
            status => Err(format!("it answers {status}")),
        }
    }

    /// What it says to a message of SOAP: of a refusal as well, whose status is another.
    pub(super) async fn post(
        &self,
        local: IpAddr,
        action: &str,
        message: String,
    ) -> Result<Vec<u8>, String> {
        let question = Request::post(&self.path)
            .header("Content-Type", "text/xml; charset=\"utf-8\"")
            .header("SOAPAction", action)
            .body(Full::from(message));
        self.ask(local, question).await.map(|answer| answer.body)
    }

    /// Asks from our address `local`.
    async fn ask(
        &self,
        local: IpAddr,
        question: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Answer, String> {
        let question = question.map_err(|e| e.to_string())?;
        let answered = tokio::time::timeout(QUESTION, async {
            let socket = match local {
                IpAddr::V4(_) => TcpSocket::new_v4(),
                IpAddr::V6(_) => TcpSocket::new_v6(),
            };
            let plain = |error: std::io::Error| error.to_string();
            let socket = socket.map_err(plain)?;
            socket.bind((local, 0).into()).map_err(plain)?;
            let stream = socket.connect(self.at).await.map_err(plain)?;
            // Without the link, which means nothing to another machine.
            let host = SocketAddr::new(self.at.ip(), self.at.port()).to_string();
            fetch::ask(stream, &host, question, LONGEST).await
        });
        answered
            .await
            .unwrap_or_else(|_| Err("it takes too long".to_owned()))
    }
}

/// Reads a URL, or the path of one, that is of characters which may stand in one.
fn uri(text: &str) -> Option<Uri> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    text.parse().ok().filter(|_| is_plain)
}

/// What is asked for at a host, which always begins with a slash.
fn path_of(uri: &Uri) -> String {
    let query = uri.query().map(|query| format!("?{query}"));
    format!("{}{}", uri.path(), query.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_to_a_number_over_plain_http_or_nowhere() {
        for (url, at, path) in [
            ("http://192.0.2.1", "192.0.2.1:80", "/"),
            ("http://192.0.2.1:5000/a/b?c", "192.0.2.1:5000", "/a/b?c"),
            ("http://192.0.2.1?c", "192.0.2.1:80", "/?c"),
            ("HTTP://[2001:db8::1]:80/a", "[2001:db8::1%7]:80", "/a"),
        ] {
            let place = Place::read(url, 7).unwrap();
            assert_eq!(
                (place.at.to_string().as_str(), place.path.as_str()),
                (at, path)
            );
        }
        for bad in [
            "",
            "/",
            "http:///a",
            "https://192.0.2.1/",
            "file:///etc/passwd",
            "192.0.2.1",
            "http://router.example/",
            "http://192.0.2.1:0/",
            "http://192.0.2.1:65616/",
            "http://192.0.2.1@192.0.2.2/",
            "http://u:p@192.0.2.1/",
            "http://192.0.2.01/",
            "http://3221225985/",
            "http://[192.0.2.1]/",
            "http://2001:db8::1/",
            "http://192.0.2.1/a b",
            "http://192.0.2.1/\u{85}",
            "http://192.0.2.1/\r\nX: y",
        ] {
            assert_eq!(Place::read(bad, 7), None, "{bad}");
        }
    }

    #[test]
    fn a_reference_is_read_as_on_the_page_that_it_stands_on() {
        let page = Place::read("http://192.0.2.1:5000/dir/root.xml?/x", 0).unwrap();
        for (reference, whole) in [
            ("/ctl/IPConn", "http://192.0.2.1:5000/ctl/IPConn"),
            ("/ctl?http://x", "http://192.0.2.1:5000/ctl?http://x"),
            ("ctl?IPConn", "http://192.0.2.1:5000/dir/ctl?IPConn"),
            ("http://192.0.2.1:81/c", "http://192.0.2.1:81/c"),
            ("http://192.0.2.9/c", "http://192.0.2.9/c"),
        ] {
            assert_eq!(page.beside(reference), Place::read(whole, 0), "{reference}");
        }
        let bare = Place::read("http://192.0.2.1", 0).unwrap();
        assert_eq!(bare.beside("c"), Place::read("http://192.0.2.1/c", 0));
        for bad in ["//192.0.2.9/c", "ftp://192.0.2.1/c", "/a b", "/\r\nX: y"] {
            assert_eq!(page.beside(bad), None, "{bad}");
        }
        let on_link = Place::read("http://[fe80::1]/root.xml", 3).unwrap();
        let control = on_link.beside("http://[fe80::1]:81/c").unwrap();
        assert_eq!(control.at.to_string(), "[fe80::1%3]:81");
    }
}
