//! What a machine must have before the daemon can work on it, checked without touching anything.

use std::path::Path;

use super::nft;
use crate::helper::has_capability;

/// The number of `CAP_NET_ADMIN` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// What is missing: code, message, and what to do about it. Empty: nothing.
pub fn preflight() -> Vec<(&'static str, String, String)> {
    let mut missing = Vec::new();
    let tun = Path::new("/dev/net/tun");
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(tun) {
        let hint = if tun.exists() {
            "run as root, or in a container with --device /dev/net/tun"
        } else {
            "modprobe tun; in a container: --device /dev/net/tun"
        };
        let what = if error.kind() == std::io::ErrorKind::PermissionDenied {
            "tun-denied"
        } else {
            "no-tun-device"
        };
        missing.push((
            what,
            format!("cannot open /dev/net/tun: {error}"),
            hint.to_owned(),
        ));
    }
    if !has_capability(CAP_NET_ADMIN) {
        missing.push((
            "no-net-admin",
            "not allowed to change the network (CAP_NET_ADMIN is missing)".to_owned(),
            "run as root, or in a container with --cap-add NET_ADMIN".to_owned(),
        ));
    }
    let lacks = nft::features::found();
    if !lacks.is_empty() {
        let parts: Vec<String> = lacks.iter().map(ToString::to_string).collect();
        missing.push((
            "no-nf-tables",
            format!("nf_tables of this kernel lacks {}", parts.join(", ")),
            "install the modules of this kernel, or boot one that has them".to_owned(),
        ));
    }
    if !nft_binary() {
        missing.push((
            "no-nft",
            "the program `nft` was not found".to_owned(),
            "install the package nftables".to_owned(),
        ));
    }
    missing
}

/// Services often run without `sbin` in their path.
fn nft_binary() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(Into::into))
        .any(|dir| dir.join("nft").is_file())
}
