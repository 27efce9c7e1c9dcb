//! Connections through the proxy, and what it said last: a dial that fails is forgotten by most who began it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::model::proxy::{Proxy, Way};
use crate::wire::http::Refused;

/// Which dials go through a proxy, and what it said last. Cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub(in crate::p2p) struct Proxied {
    way: Arc<Way>,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    connected: Option<Instant>,
    refused: Option<(Refusal, Instant)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    why: String,
    /// The host and port that it was to connect to; none where it is the same for every place.
    place: Option<String>,
}

/// The proxy that connections out go through, and how it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Its host and port.
    pub at: String,
    /// How long ago it connected last; none: never.
    pub connected: Option<Duration>,
    /// What it said when it connected last to nothing, and how long ago; none: never.
    pub refused: Option<(String, Duration)>,
    /// The place, `HOST:PORT`, that `refused` is about; none where it is the same for every place.
    pub place: Option<String>,
}

impl ProxyStatus {
    /// Whether nothing goes through it: it has never connected, or it is not there, or it knows our name and password no
    /// longer. A place that it alone does not connect to is none of this.
    pub fn is_closed(&self) -> bool {
        match (self.connected, &self.refused) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(connected), Some((_, refused))) => self.place.is_none() && *refused <= connected,
        }
    }

    /// What it said last, as it is told beside what failed for it; none where it has never refused.
    pub fn said(&self) -> Option<String> {
        let (why, _) = self.refused.as_ref()?;
        Some(match &self.place {
            Some(place) => format!("transport.proxy {}, asked for {place}: {why}", self.at),
            None => format!("transport.proxy {}: {why}", self.at),
        })
    }
}

impl Proxied {
    pub(in crate::p2p) fn new(way: Arc<Way>) -> Proxied {
        Proxied {
            way,
            last: Arc::default(),
        }
    }

    /// The proxy that leads to a host and port; none where it is reached directly.
    pub(super) fn to(&self, host: &str, port: u16) -> Option<Proxy> {
        self.way.to(host, port).cloned()
    }

    /// The proxy, with what it said last; none where there is no proxy.
    pub(in crate::p2p) fn status(&self) -> Option<ProxyStatus> {
        let at = self.way.proxy()?.place();
        let last = self.last.lock();
        let refused = last.refused.as_ref();
        // One moment for both: which of the two came later is seen by their ages.
        let now = Instant::now();
        let age = |at: Instant| now.saturating_duration_since(at);
        Some(ProxyStatus {
            at,
            connected: last.connected.map(age),
            refused: refused.map(|(refusal, at)| (refusal.why.clone(), age(*at))),
            place: refused.and_then(|(refusal, _)| refusal.place.clone()),
        })
    }

    /// It has connected to a place.
    pub(super) fn connected(&self) {
        self.last.lock().connected = Some(Instant::now());
    }

    /// It has connected to nothing when it was asked for a place, and `why`; what is to be said of that. The log hears it when
    /// it is news.
    pub(super) fn refused(&self, proxy: &Proxy, place: &str, why: &io::Error) -> io::Error {
        let refusal = Refusal {
            why: why.to_string(),
            place: is_of_place(why).then(|| place.to_owned()),
        };
        let mut last = self.last.lock();
        let known = last.refused.replace((refusal.clone(), Instant::now()));
        let is_known = known.is_some_and(|(known, at)| {
            known.why == refusal.why && last.connected.is_none_or(|connected| connected < at)
        });
        drop(last);
        let at = proxy.place();
        let said = io::Error::new(why.kind(), format!("transport.proxy {at}: {why}"));
        if !is_known && refusal.place.is_none() {
            tracing::warn!(proxy = at, why = refusal.why, "the proxy does not connect");
        } else {
            tracing::debug!(
                proxy = at,
                place,
                why = refusal.why,
                "the proxy does not connect"
            );
        }
        said
    }
}

/// Whether another place might fare better. A proxy that is not there, or that wants to know who asks, is closed for all.
fn is_of_place(why: &io::Error) -> bool {
    let said = why.get_ref().and_then(|why| why.downcast_ref::<Refused>());
    match said {
        Some(
            Refused::Credentials(_)
            | Refused::OtherCredentials(_)
            | Refused::NoProxy(_)
            | Refused::NoHttp,
        ) => false,
        Some(_) => true,
        // It was reached and kept silent: it may have been busy with the place.
        None => why.get_ref().is_some_and(|why| why.is::<Silent>()),
    }
}

/// The proxy was reached and did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("it does not answer")]
pub(super) struct Silent;

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied() -> (Proxied, Proxy) {
        let choice = "http://alice:secret@p.example:3128".parse().unwrap();
        let way = Way::of(&choice, &[], &|_| None).unwrap();
        let proxy = way.proxy().unwrap().clone();
        (Proxied::new(way.into()), proxy)
    }

    fn refusal(why: Refused) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionRefused, why)
    }

    #[test]
    fn a_proxy_is_closed_while_it_connects_to_nothing_and_not_for_one_place() {
        let (proxied, proxy) = proxied();
        let closed = || proxied.status().unwrap().is_closed();
        assert!(!closed(), "it was not asked yet");
        let forbidden = refusal(Refused::Proxy("403 Forbidden".to_owned()));
        proxied.refused(&proxy, "a.example:4100", &forbidden);
        assert!(closed(), "it has never connected");
        let status = proxied.status().unwrap();
        assert_eq!(
            status.said().unwrap(),
            "transport.proxy p.example:3128, asked for a.example:4100: the proxy does not connect: 403 Forbidden"
        );
        proxied.connected();
        assert!(!closed());
        proxied.refused(&proxy, "a.example:4100", &forbidden);
        assert!(!closed(), "another place was connected to");
        for why in [
            refusal(Refused::Credentials("Corp net".to_owned())),
            refusal(Refused::NoProxy("Admin".to_owned())),
            io::ErrorKind::ConnectionRefused.into(),
            io::Error::other("failed to lookup address information"),
        ] {
            proxied.connected();
            assert!(!closed());
            let said = proxied.refused(&proxy, "b.example:443", &why);
            assert!(closed(), "{why}");
            assert_eq!(said.to_string(), proxied.status().unwrap().said().unwrap());
            assert!(!said.to_string().contains("secret"));
        }
        let silent = io::Error::new(io::ErrorKind::TimedOut, Silent);
        proxied.connected();
        proxied.refused(&proxy, "b.example:443", &silent);
        assert!(!closed(), "it may wait for the place");
    }

    #[test]
    fn without_a_proxy_there_is_nothing_to_tell() {
        assert_eq!(Proxied::default().status(), None);
    }
}
