//! Connections where little more than HTTPS is let out: TCP, perhaps through a proxy, perhaps with TLS around it, and the
//! frames of a WebSocket with Noise and Yamux inside.
//!
//! What names a peer is the Noise handshake inside, as over plain TCP. TLS is there to look like what it is let through as,
//! so that any certificate is good ([`tls`]), and a proxy that looks inside changes nothing. Before Noise is done a peer is a
//! stranger, and what it can make this end hold is small: heads of HTTP ([`handshake`]) and frames ([`crate::wire::websocket`])
//! are bounded, nothing is reserved by a length that it states, and all of the handshakes together have the same five seconds
//! as those of plain TCP.
//!
//! A server takes an upgrade at any path, so that a reverse proxy in front of it may use whichever. What comes through a reverse
//! proxy has that proxy's address and shares its part of the handshakes and of the strangers, unless the proxy is one that is
//! trusted to name its clients ([`clients`]); a header of anybody else is not looked at.

mod certificate;
mod clients;
mod handshake;
mod outbound;
mod proxied;
mod stream;
mod target;
mod tls;
mod transport;

use std::time::Duration;

pub(super) use self::certificate::Shown;
pub use self::certificate::{CertificateStatus, Fresh};
pub use self::clients::ClientCounts;
pub(super) use self::clients::Proxies;
pub(super) use self::outbound::Outbound;
pub(super) use self::proxied::Proxied;
pub use self::proxied::ProxyStatus;
pub(super) use self::target::{Host, Target, Web, is_named, keep_few_names, with_heard_name};
pub(super) use self::transport::Transport;
use super::address::{Address, Carrier};

/// Time to reach a proxy: less than what follows a proxy's answer has, so that the dial is still there to tell of it.
const REACH: Duration = Duration::from_secs(4);
/// Time for a proxy to connect; what follows has [`SETUP`](super::transport::SETUP).
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// How connections are made and taken. Cheap to clone.
#[derive(Clone)]
pub(super) struct Settings {
    /// Which of the dials that this transport is given go through a proxy, and what it said last.
    proxied: Proxied,
    tls: tls::Tls,
    /// The reverse proxies that are believed about their clients.
    proxies: Proxies,
    /// The most connections of theirs that may be silent.
    silent: usize,
}

impl Settings {
    /// The settings of a daemon, without a proxy. A certificate is made or read only where an address to listen on needs one.
    ///
    /// # Errors
    /// The certificate or its key cannot be used.
    pub(super) fn new(config: &super::Config) -> Result<Settings, super::Error> {
        let serves = config.listen.iter().any(is_secure);
        let tls = tls::Tls::new(config.certificate.as_ref(), serves);
        Ok(Settings {
            proxied: Proxied::default(),
            tls: tls.map_err(super::Error::Tls)?,
            proxies: Proxies::new(config.trusted_proxies.clone()),
            silent: usize::try_from(config.limits.pending_in).unwrap_or(usize::MAX),
        })
    }

    /// What is shown inside TLS.
    pub(super) fn shown(&self) -> Shown {
        self.tls.server.clone()
    }

    /// The reverse proxies that are believed.
    pub(super) fn proxies(&self) -> Proxies {
        self.proxies.clone()
    }

    /// The same, through a proxy.
    pub(super) fn through(&self, proxied: &Proxied) -> Settings {
        Settings {
            proxied: proxied.clone(),
            ..self.clone()
        }
    }
}

/// Whether a server could show a certificate.
///
/// # Errors
/// It cannot be used; the file, or both, and why.
pub(super) fn check(certificate: &super::Certificate) -> Result<(), String> {
    tls::Tls::new(Some(certificate), true).map(drop)
}

/// Whether TLS is spoken at the address, with a WebSocket inside.
fn is_secure(address: &Address) -> bool {
    let web = Target::of(&address.0).and_then(|target| target.web);
    address.carrier() == Some(Carrier::Web) && web.is_some_and(|web| web.tls)
}
