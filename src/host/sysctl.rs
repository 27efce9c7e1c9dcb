//! Sysctls below `/proc/sys/net`, of the calling thread's network namespace.
//!
//! Those that outlive our links are remembered before they are written and put back only if our value still stands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;

use super::kept::{Kept, KeptSysctl};
use crate::model::host::SysctlKey;

/// The value of a sysctl, or nothing if there is none of that name.
pub fn read(key: &str) -> Option<String> {
    std::fs::read_to_string(path(key)).ok().map(|value| value.trim().to_owned())
}

/// The values of those that exist.
pub fn read_all(keys: &BTreeSet<SysctlKey>) -> BTreeMap<SysctlKey, String> {
    keys.iter().filter_map(|key| Some((key.clone(), read(key)?))).collect()
}

/// Writes one.
///
/// # Errors
/// When it does not exist or the kernel refuses the value.
pub fn write(key: &str, value: &str) -> anyhow::Result<()> {
    std::fs::write(path(key), value).with_context(|| format!("write /proc/sys/{key}"))
}

/// Writes one that outlives our links; its former value is remembered first.
///
/// # Errors
/// When it cannot be remembered or written.
pub fn write_kept(kept: &mut Kept, key: &str, value: &str) -> anyhow::Result<()> {
    let former = match kept.sysctls().get(key) {
        Some(known) => known.former.clone(),
        None => read(key).with_context(|| format!("read /proc/sys/{key}"))?,
    };
    kept.sysctl(key, Some(KeptSysctl { former, ours: value.to_owned() }))?;
    write(key, value)
}

/// Puts the former value back if ours still stands, and forgets it.
///
/// # Errors
/// When the kernel refuses the former value; it is tried again then.
pub fn restore(kept: &mut Kept, key: &str) -> anyhow::Result<()> {
    let Some(known) = kept.sysctls().get(key).cloned() else {
        return Ok(());
    };
    // A link that is gone took its sysctls with it; another value is somebody else's will.
    if read(key).as_ref() == Some(&known.ours) {
        write(key, &known.former)?;
    }
    kept.sysctl(key, None)
}

/// Keys are made of constants and link names, which hold no slash.
fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
