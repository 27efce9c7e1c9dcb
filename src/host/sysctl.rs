//! Sysctls below `/proc/sys/net`, of the calling thread's network namespace.
//!
//! Those that outlive our links are remembered before they are written and put back only if our value still stands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;

use super::journal::{Journal, JournaledSysctl};
use crate::model::host::{SysctlKey, switch_of_every_link};

/// The value of a sysctl, or nothing if there is none of that name.
pub fn read(key: &str) -> Option<String> {
    std::fs::read_to_string(path(key))
        .ok()
        .map(|value| value.trim().to_owned())
}

/// The values of those that exist.
pub fn read_all(keys: &BTreeSet<SysctlKey>) -> BTreeMap<SysctlKey, String> {
    keys.iter()
        .filter_map(|key| Some((key.clone(), read(key)?)))
        .collect()
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
pub fn write_journaled(journal: &mut Journal, key: &str, value: &str) -> anyhow::Result<()> {
    let (former, beside) = match journal.sysctls().get(key) {
        Some(known) => (known.former.clone(), known.beside),
        None => (
            read(key).with_context(|| format!("read /proc/sys/{key}"))?,
            every_link_is_on(key),
        ),
    };
    journal.sysctl(
        key,
        Some(JournaledSysctl {
            former,
            ours: value.to_owned(),
            beside,
        }),
    )?;
    write(key, value)
}

/// Whether the switch that stands for every link is on beside the one of `key`.
fn every_link_is_on(key: &str) -> bool {
    switch_of_every_link(key)
        .and_then(|every| read(&every))
        .is_some_and(|value| value == "1")
}

/// Puts the former value back if ours still stands, and forgets it.
///
/// # Errors
/// When the kernel refuses the former value; it is tried again then.
pub fn restore(journal: &mut Journal, key: &str) -> anyhow::Result<()> {
    let Some(known) = journal.sysctls().get(key).cloned() else {
        return Ok(());
    };
    // A link that is gone took its sysctls with it; another value is somebody else's will, and so is ours where they
    // want it of every link since.
    let taken_over = !known.beside && every_link_is_on(key);
    if read(key).as_ref() == Some(&known.ours) && !taken_over {
        write(key, &known.former)?;
    }
    journal.sysctl(key, None)
}

/// Forgets one that somebody else turned on for every link.
///
/// # Errors
/// When the record cannot be written.
pub fn forget(journal: &mut Journal, key: &str) -> anyhow::Result<()> {
    tracing::warn!(
        sysctl = key,
        "another program turned on forwarding of every link: what came in on that link and was not ours is no longer \
         dropped here"
    );
    journal.sysctl(key, None)
}

/// Keys are made of constants and link names, which hold no slash.
fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
