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
}

impl PlatformKind {
    pub(crate) fn is_kernel(self) -> bool {
        self == PlatformKind::Kernel
    }

    /// Whether the kernel gives us what we need: the first thing that is missing, with its remedy.
    pub(crate) fn ready(self) -> Result<(), Error> {
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
            "no-nft" => (ErrorKind::Failed, Code::NoNft),
            "tun-denied" => (ErrorKind::NotPermitted, Code::NoTun),
            _ => (ErrorKind::Failed, Code::NoTun),
        };
        Err(Error::new(kind, code, message).hint(hint))
    }
}
