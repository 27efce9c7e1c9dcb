//! What must be put back: former values of sysctls, former content of resolver files, rules in other namespaces.
//!
//! One JSON file in the state directory, written durably before the thing itself is touched, so that a daemon that was
//! killed knows at its next start what it owes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::model::host::{NetnsRule, SysctlKey};

/// Name of the file in the state directory.
const FILE: &str = "host.json";

/// A sysctl we set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSysctl {
    /// Value before us.
    pub former: String,
    /// Value we wrote.
    pub ours: String,
    /// Whether the switch of every link was on already: who turns it on later takes this one over.
    pub beside: bool,
}

/// A resolver file we wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptResolver {
    /// Content before us; none: there was no file.
    pub former: Option<Vec<u8>>,
    /// Text we wrote.
    pub ours: String,
    /// Whether we made the directory it lies in.
    pub made_dir: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Data {
    /// Sysctls do not outlive the boot they were set in.
    boot: String,
    sysctls: BTreeMap<SysctlKey, KeptSysctl>,
    resolvers: BTreeMap<PathBuf, KeptResolver>,
    rules: BTreeSet<NetnsRule>,
}

/// The record, in memory and on disk.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    data: Data,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Kept {
    /// Reads the record; one that cannot be read is set aside as empty, which loses nothing but courtesy.
    pub fn open(state_dir: &Path) -> Kept {
        let path = state_dir.join(FILE);
        let mut data: Data = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "record of former settings is damaged: ignored");
                Data::default()
            }),
            Err(_) => Data::default(),
        };
        let boot = boot_id();
        if data.boot != boot {
            data.sysctls.clear();
            data.rules.clear();
            data.boot = boot;
        }
        Kept { path, data }
    }

    /// Sysctls we set.
    pub fn sysctls(&self) -> &BTreeMap<SysctlKey, KeptSysctl> {
        &self.data.sysctls
    }

    /// Resolver files we wrote.
    pub fn resolvers(&self) -> &BTreeMap<PathBuf, KeptResolver> {
        &self.data.resolvers
    }

    /// Rules we entered in namespaces of workloads.
    pub fn rules(&self) -> &BTreeSet<NetnsRule> {
        &self.data.rules
    }

    /// Remembers or forgets a sysctl.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn sysctl(&mut self, key: &str, kept: Option<KeptSysctl>) -> anyhow::Result<()> {
        match kept {
            Some(kept) => self.data.sysctls.insert(key.to_owned(), kept),
            None => self.data.sysctls.remove(key),
        };
        self.save()
    }

    /// Remembers or forgets a resolver file.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn resolver(&mut self, path: &Path, kept: Option<KeptResolver>) -> anyhow::Result<()> {
        match kept {
            Some(kept) => self.data.resolvers.insert(path.to_owned(), kept),
            None => self.data.resolvers.remove(path),
        };
        self.save()
    }

    /// Replaces the rules remembered, if they differ.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn set_rules(&mut self, rules: BTreeSet<NetnsRule>) -> anyhow::Result<()> {
        if self.data.rules == rules {
            return Ok(());
        }
        self.data.rules = rules;
        self.save()
    }

    /// An empty record leaves no file.
    fn save(&self) -> anyhow::Result<()> {
        let empty = self.data.sysctls.is_empty() && self.data.resolvers.is_empty() && self.data.rules.is_empty();
        replace(&self.path, (!empty).then_some(&self.data))
    }
}

/// Writes a new file and moves it over the old one, durably; nothing to write: no file.
///
/// # Errors
/// When it cannot be written; the old one then stands.
pub(super) fn replace(path: &Path, data: Option<&impl Serialize>) -> anyhow::Result<()> {
    let Some(data) = data else {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        };
    };
    let next = path.with_extension("json.new");
    let write = || -> anyhow::Result<()> {
        let mut file = std::fs::File::create(&next)?;
        file.write_all(&serde_json::to_vec(data)?)?;
        file.sync_all()?;
        std::fs::rename(&next, path)?;
        if let Some(dir) = path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}
