//! Whether this machine lets a daemon work.

use crate::api::types::{Error, ErrorKind};
use crate::host;
use crate::model::error::Code;

/// What kind of platform the daemon runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlatformKind {
    /// The daemon works on the kernel of its network namespace.
    Kernel,
    /// The daemon works on nothing but memory, in tests of whole daemons without root.
    Memory,
    /// The daemon only relays: it has sockets, and changes nothing of its machine.
    Relay,
}

impl PlatformKind {
    pub(crate) fn is_kernel(self) -> bool {
        self == PlatformKind::Kernel
    }

    /// Whether this daemon can be in a subnet, and the kernel gives it what it needs for that.
    ///
    /// # Errors
    /// `E-RELAY-ONLY` where it only relays; else as [`PlatformKind::preflight`].
    pub(crate) fn ready(self) -> Result<(), Error> {
        if self == PlatformKind::Relay {
            return Err(Error::relay_only());
        }
        self.preflight()
    }

    /// Whether the kernel gives us what we need: the first thing that is missing, with its remedy.
    ///
    /// # Errors
    /// `E-NO-NET-ADMIN`, `E-NO-NFT`, `E-NO-TUN`; none where the kernel is not touched.
    pub(crate) fn preflight(self) -> Result<(), Error> {
        let missing = if self.is_kernel() {
            host::preflight().into_iter().next()
        } else {
            None
        };
        let Some((what, message, hint)) = missing else {
            return Ok(());
        };
        let (kind, code) = match what {
            "no-net-admin" => (ErrorKind::NotPermitted, Code::NoNetAdmin),
            "no-nf-tables" => (ErrorKind::Failed, Code::NfTables),
            "no-nft" => (ErrorKind::Failed, Code::NoNft),
            "tun-denied" => (ErrorKind::NotPermitted, Code::NoTun),
            _ => (ErrorKind::Failed, Code::NoTun),
        };
        Err(Error::new(kind, code, message).hint(hint))
    }
}
