//! The search for devices, by SSDP: a question to a router or to a group, and answers of a few datagrams.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::place::Place;
use super::service::Service;

/// How long devices may take to answer, and to describe themselves.
const SEARCH: Duration = Duration::from_secs(2);
/// Answers that are read at most, of those that may be believed: one comes for each question, perhaps twice.
const ANSWERS: usize = 32;
/// Devices that are asked for their description at most.
const PLACES: usize = 4;
/// Bytes of an answer; one that is longer is none.
const LONGEST: usize = 2048;

/// Whose answers count, by their addresses.
#[derive(Debug, Clone, Copy)]
pub(in crate::portmap) enum Believed {
    /// That router's.
    Router(IpAddr),
    /// Those of the link on which this is our address.
    Link(Ipv6Addr),
}

impl Believed {
    fn includes(self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Believed::Router(router), ip) => ip == router,
            (Believed::Link(local), IpAddr::V6(ip)) => {
                ip.is_unicast_link_local() || ip.segments()[..4] == local.segments()[..4]
            }
            (Believed::Link(_), IpAddr::V4(_)) => false,
        }
    }
}

/// A search that goes on.
pub(in crate::portmap) struct Search {
    socket: UdpSocket,
    local: IpAddr,
    /// The index of the link that is searched, where that matters.
    link: u32,
    end: Instant,
    answers: usize,
    found: Vec<Place>,
}

impl Search {
    /// Asks at each of `to` for devices and services of these kinds, from our address `local`.
    ///
    /// # Errors
    /// That there is no such address.
    pub(in crate::portmap) async fn begin(
        local: IpAddr,
        link: u32,
        to: &[SocketAddr],
        kinds: &[&str],
    ) -> io::Result<Search> {
        let socket = UdpSocket::bind((local, 0)).await?;
        for to in to {
            let host = SocketAddr::new(to.ip(), to.port());
            for kind in kinds {
                let question = format!(
                    "M-SEARCH * HTTP/1.1\r\nHOST: {host}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {kind}\r\n\r\n"
                );
                if let Err(error) = socket.send_to(question.as_bytes(), to).await {
                    tracing::debug!(%error, %to, "UPnP");
                }
            }
        }
        Ok(Search {
            socket,
            local,
            link,
            end: Instant::now() + SEARCH,
            answers: 0,
            found: Vec::new(),
        })
    }

    /// The first service of one of these kinds. Only who is `believed` is listened to, asked, and taken.
    pub(in crate::portmap) async fn service(
        mut self,
        kinds: &[&'static str],
        believed: Believed,
    ) -> Option<Service> {
        while let Some(page) = self.next(believed).await {
            let asked = Service::of(self.local, &page, kinds);
            match tokio::time::timeout_at(self.end, asked).await.ok()? {
                Ok(service) if believed.includes(service.host()) => return Some(service),
                Ok(service) => {
                    tracing::debug!(at = %service.host(), "UPnP: its service is elsewhere");
                }
                Err(why) => tracing::debug!(why, at = %page.at, "UPnP: a description"),
            }
        }
        None
    }

    /// Where a further device describes itself; none when the search is over.
    async fn next(&mut self, believed: Believed) -> Option<Place> {
        let mut buffer = [0; LONGEST + 1];
        while self.answers < ANSWERS && self.found.len() < PLACES {
            let heard = tokio::time::timeout_at(self.end, self.socket.recv_from(&mut buffer));
            let (length, from) = heard.await.ok()?.ok()?;
            if !believed.includes(from.ip()) {
                continue;
            }
            self.answers += 1;
            let answer = buffer.get(..length).filter(|_| length <= LONGEST);
            let url = answer.and_then(location);
            let place = url.and_then(|url| Place::read(&url, self.link));
            match place {
                Some(place) if !believed.includes(place.at.ip()) => {
                    tracing::debug!(%from, at = %place.at, "UPnP: it is described elsewhere");
                }
                Some(place) if !self.found.contains(&place) => {
                    self.found.push(place.clone());
                    return Some(place);
                }
                Some(_) => {}
                None => tracing::debug!(%from, "UPnP: an answer that says nothing"),
            }
        }
        None
    }
}

/// What an answer to a search says of where its device describes itself.
pub(super) fn location(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let mut lines = text.lines();
    let status = lines.next()?;
    let mut words = status.split_ascii_whitespace();
    if !words.next()?.starts_with("HTTP/") || words.next()? != "200" {
        return None;
    }
    lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.trim().eq_ignore_ascii_case("location");
        is_it.then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn an_answer_says_where_the_device_describes_itself() {
        let of = |text: &str| location(text.as_bytes());
        let right = Some("http://192.0.2.1/x".to_owned());
        assert_eq!(
            of("HTTP/1.1 200 OK\r\nST: x\r\nLocation:http://192.0.2.1/x \r\n\r\n"),
            right
        );
        assert_eq!(of("HTTP/1.0 200\nLOCATION : http://192.0.2.1/x"), right);
        assert_eq!(
            location(b"HTTP/1.1 200 OK\r\nSERVER: \xff\r\nLOCATION: http://192.0.2.1/x\r\n"),
            right
        );
        for nothing in [
            "",
            "HTTP/1.1 404 No\r\nLOCATION: x\r\n",
            "HTTP/1.1 200 OK\r\n\r\nLOCATION: x\r\n",
            "M-SEARCH * HTTP/1.1\r\nLOCATION: x\r\n",
            "LOCATION: x\r\n",
        ] {
            assert_eq!(of(nothing), None, "{nothing:?}");
        }
    }

    /// What is found where the device at `theirs` says these things, and somebody else the same before.
    async fn searched(theirs: Ipv4Addr, answers: Vec<String>) -> (Vec<Place>, Duration) {
        let device = UdpSocket::bind((theirs, 0)).await.unwrap();
        let other = UdpSocket::bind((Ipv4Addr::new(127, 7, 9, 250), 0))
            .await
            .unwrap();
        let to = device.local_addr().unwrap();
        let begun = Instant::now();
        let here = Ipv4Addr::LOCALHOST.into();
        let mut search = Search::begin(here, 0, &[to], &["a", "b"]).await.unwrap();
        let mut question = [0; 512];
        for kind in ["a", "b"] {
            let (length, from) = device.recv_from(&mut question).await.unwrap();
            let question = String::from_utf8_lossy(&question[..length]);
            assert!(question.starts_with("M-SEARCH * HTTP/1.1\r\n"));
            assert!(question.contains(&format!("\r\nHOST: {to}\r\n")));
            assert!(question.ends_with(&format!("\r\nST: {kind}\r\n\r\n")));
            for answer in answers.iter().filter(|_| kind == "b") {
                other.send_to(answer.as_bytes(), from).await.unwrap();
                device.send_to(answer.as_bytes(), from).await.unwrap();
            }
        }
        let mut found = Vec::new();
        while let Some(place) = search.next(Believed::Router(theirs.into())).await {
            found.push(place);
        }
        (found, begun.elapsed())
    }

    #[tokio::test]
    async fn only_the_router_is_heard_and_only_of_itself() {
        let theirs = Ipv4Addr::new(127, 7, 9, 1);
        let says = |url: &str| format!("HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n");
        let there = format!("http://{theirs}:5000/root.xml");
        let answers = vec![
            says("http://127.7.9.250/root.xml"),
            "nonsense".to_owned(),
            says(&there),
            says(&there),
        ];
        let (found, took) = searched(theirs, answers).await;
        assert_eq!(found, [Place::read(&there, 0).unwrap()]);
        assert!(
            took >= SEARCH && took < SEARCH + Duration::from_secs(1),
            "{took:?}"
        );
    }

    #[tokio::test]
    async fn a_router_that_answers_much_is_read_for_a_few_answers() {
        let theirs = Ipv4Addr::new(127, 7, 9, 2);
        let says = |n: usize| format!("HTTP/1.1 200 OK\r\nLOCATION: http://{theirs}/{n}\r\n\r\n");
        let (found, took) = searched(theirs, (0..40).map(says).collect()).await;
        assert_eq!(found.len(), PLACES);
        assert!(took < SEARCH, "{took:?}");
        let (found, took) = searched(theirs, vec![says(1); 40]).await;
        assert_eq!(found.len(), 1);
        assert!(took < SEARCH, "{took:?}");
    }

    #[test]
    fn a_link_has_its_own_addresses_and_those_of_our_prefix() {
        let link = Believed::Link("2001:db8::7".parse().unwrap());
        for near in ["2001:db8::1", "fe80::1"] {
            assert!(link.includes(near.parse().unwrap()), "{near}");
        }
        for bad in [
            "2001:db8:0:1::1",
            "192.168.1.1",
            "::ffff:192.168.1.1",
            "::1",
            "ff02::c",
            "fd00::1",
        ] {
            assert!(!link.includes(bad.parse().unwrap()), "{bad}");
        }
    }
}
