//! Who is behind a reverse proxy. A proxy that is trusted names its client in the head of the request, so that the head of
//! what comes from there is read before the connection is judged and counted ([`Admission`](crate::p2p::admission)): it counts
//! as the client's from then on. Where the head names nobody it counts as the proxy's.
//!
//! What has said nothing yet is bounded by number and by time; the oldest gives way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;

use super::handshake::Asking;
use crate::p2p::address::ip_of;
use crate::p2p::transport::SETUP;
use crate::wire::forwarded::{Client, client};

/// The proxies that are trusted, and what they have said. Cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub(in crate::p2p) struct Proxies(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    trusted: Vec<IpNet>,
    named: AtomicU64,
    unnamed: AtomicU64,
    garbled: AtomicU64,
    silent: AtomicU64,
}

/// How connections through trusted proxies were counted, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCounts {
    /// As their client's: the head named it.
    pub named: u64,
    /// As the proxy's: the head named nobody.
    pub unnamed: u64,
    /// As the proxy's: nobody understands whom the head names.
    pub garbled: u64,
    /// Not at all: no head came in time, or too many others were waiting for theirs.
    pub silent: u64,
}

impl Proxies {
    pub(super) fn new(trusted: Vec<IpNet>) -> Proxies {
        Proxies(Arc::new(Inner {
            trusted,
            ..Inner::default()
        }))
    }

    fn is_one(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.trusted.iter().any(|net| net.contains(&ip))
    }

    /// Whether a connection comes from one.
    pub(super) fn sent(&self, from: &Multiaddr) -> bool {
        ip_of(from).is_some_and(|ip| self.is_one(ip))
    }

    /// Where a connection from a proxy counts as coming from. Its port stays the one that the proxy connects from.
    fn behind(&self, from: Multiaddr, head: &[u8]) -> Multiaddr {
        let (count, client) = match client(head, &|ip| self.is_one(ip)) {
            Client::Named(ip) => (&self.0.named, Some(ip)),
            Client::Unnamed => (&self.0.unnamed, None),
            Client::Garbled => (&self.0.garbled, None),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let Some(ip) = client else {
            tracing::debug!(proxy = %from, "names no client");
            return from;
        };
        from.replace(0, |_| Some(Protocol::from(ip)))
            .unwrap_or(from)
    }

    pub(in crate::p2p) fn counts(&self) -> ClientCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ClientCounts {
            named: read(&self.0.named),
            unnamed: read(&self.0.unnamed),
            garbled: read(&self.0.garbled),
            silent: read(&self.0.silent),
        }
    }
}

/// A connection whose head has been read.
pub(super) struct Came {
    pub(super) listener: ListenerId,
    pub(super) local: Multiaddr,
    /// Where it counts as coming from.
    pub(super) from: Multiaddr,
    pub(super) asking: Asking,
}

/// Connections of trusted proxies whose head has not come yet.
pub(super) struct Waiting {
    proxies: Proxies,
    /// The most that wait at a time.
    most: usize,
    heads: FuturesUnordered<BoxFuture<'static, (u64, Option<Came>)>>,
    /// Ends each of them, the oldest first.
    ends: BTreeMap<u64, AbortHandle>,
    next: u64,
}

impl Waiting {
    pub(super) fn new(proxies: Proxies, most: usize) -> Waiting {
        Waiting {
            proxies,
            most: most.max(1),
            heads: FuturesUnordered::new(),
            ends: BTreeMap::new(),
            next: 0,
        }
    }

    /// Waits for the head of a connection that came in at an address of ours from a proxy.
    pub(super) fn add(
        &mut self,
        listener: ListenerId,
        local: Multiaddr,
        proxy: Multiaddr,
        head: impl Future<Output = std::io::Result<Asking>> + Send + 'static,
    ) {
        if self.ends.len() >= self.most
            && let Some((_, oldest)) = self.ends.pop_first()
        {
            oldest.abort();
        }
        let (end, ended) = AbortHandle::new_pair();
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.ends.insert(number, end);
        let proxies = self.proxies.clone();
        let head = Abortable::new(tokio::time::timeout(SETUP, head), ended);
        let came = async move {
            let Ok(Ok(Ok(asking))) = head.await else {
                proxies.0.silent.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%proxy, "asked for nothing");
                return (number, None);
            };
            let from = proxies.behind(proxy, asking.head());
            let came = Came {
                listener,
                local,
                from,
                asking,
            };
            (number, Some(came))
        };
        self.heads.push(came.boxed());
    }

    /// The next connection whose head has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        while let Poll::Ready(Some((number, came))) = self.heads.poll_next_unpin(cx) {
            self.ends.remove(&number);
            if let Some(came) = came {
                return Poll::Ready(came);
            }
        }
        Poll::Pending
    }
}
