//! What must be put back: former values of sysctls, former content of resolver files, rules in other namespaces.
//!
//! One JSON file in the state directory, written durably before the thing itself is touched, so that a daemon that was
//! killed knows at its next start what it owes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::model::host::{NetnsRule, SysctlKey};
use crate::model::unwritten::{Refused, Unwritten};

/// Name of the file in the state directory.
const FILE: &str = "host.json";

/// A sysctl that we set, with the value to put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournaledSysctl {
    /// The value that stood before ours.
    pub former: String,
    /// The value that we wrote.
    pub ours: String,
    /// Whether the switch of every link was on already: who turns it on later takes this one over.
    pub beside: bool,
}

/// A resolver file that we wrote, with the content to put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptResolver {
    /// The content before ours; none where there was no file.
    pub former: Option<Vec<u8>>,
    /// The text that we wrote.
    pub ours: String,
    /// Whether we made the directory it lies in.
    pub made_dir: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Data {
    /// Sysctls do not outlive the boot they were set in.
    boot: String,
    sysctls: BTreeMap<SysctlKey, JournaledSysctl>,
    resolvers: BTreeMap<PathBuf, KeptResolver>,
    rules: BTreeSet<NetnsRule>,
}

/// The record of what outlives our links, in memory and on disk.
#[derive(Debug)]
pub struct Journal {
    file: Journaled,
    data: Data,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

impl Journal {
    /// Reads the record; one that cannot be read is set aside as empty, which loses nothing but courtesy.
    pub fn open(state_dir: &Path) -> Journal {
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
        Journal {
            file: Journaled::new(path),
            data,
        }
    }

    /// Tells whether the record could be written.
    pub fn telling(mut self, told: watch::Sender<Unwritten>) -> Journal {
        self.file.told = told;
        self
    }

    /// The sysctls that we set and have not put back.
    pub fn sysctls(&self) -> &BTreeMap<SysctlKey, JournaledSysctl> {
        &self.data.sysctls
    }

    /// The resolver files that we wrote and have not put back.
    pub fn resolvers(&self) -> &BTreeMap<PathBuf, KeptResolver> {
        &self.data.resolvers
    }

    /// The rules that we entered in namespaces of workloads.
    pub fn rules(&self) -> &BTreeSet<NetnsRule> {
        &self.data.rules
    }

    /// Remembers or forgets a sysctl.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn sysctl(&mut self, key: &str, kept: Option<JournaledSysctl>) -> anyhow::Result<()> {
        self.change(|data| match kept {
            Some(kept) => drop(data.sysctls.insert(key.to_owned(), kept)),
            None => drop(data.sysctls.remove(key)),
        })
    }

    /// Remembers or forgets resolver files.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn resolvers_changed(
        &mut self,
        changed: impl IntoIterator<Item = (PathBuf, Option<KeptResolver>)>,
    ) -> anyhow::Result<()> {
        self.change(|data| {
            for (path, kept) in changed {
                match kept {
                    Some(kept) => drop(data.resolvers.insert(path, kept)),
                    None => drop(data.resolvers.remove(&path)),
                }
            }
        })
    }

    /// Replaces the rules remembered, if they differ.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn set_rules(&mut self, rules: BTreeSet<NetnsRule>) -> anyhow::Result<()> {
        self.change(|data| data.rules = rules)
    }

    /// What could not be written is not remembered either: the next try writes it. An empty record leaves no file.
    fn change(&mut self, change: impl FnOnce(&mut Data)) -> anyhow::Result<()> {
        let mut next = self.data.clone();
        change(&mut next);
        let empty = next.sysctls.is_empty() && next.resolvers.is_empty() && next.rules.is_empty();
        self.file
            .replace(next != self.data, (!empty).then_some(&next))?;
        self.data = next;
        Ok(())
    }
}

/// A record of the host in one file, and whom it tells whether that could be written.
#[derive(Debug)]
pub(super) struct Journaled {
    path: PathBuf,
    pub(super) told: watch::Sender<Unwritten>,
}

impl Journaled {
    pub(super) fn new(path: PathBuf) -> Journaled {
        Journaled {
            path,
            told: watch::Sender::default(),
        }
    }

    /// Writes a new file and moves it over the old one, durably; no data: no file. Where nothing is new, what stands there
    /// is right; then it is only tried whether a file could be written again that could not be before.
    ///
    /// # Errors
    /// When it cannot be written; the old one then stands.
    pub(super) fn replace(
        &self,
        is_new: bool,
        data: Option<&impl Serialize>,
    ) -> anyhow::Result<()> {
        let written = if is_new { self.write(data) } else { Ok(()) };
        let made = is_new && data.is_some();
        let outcome = match &written {
            Err(error) => Err(Refused::from(error)),
            // To remove a file says nothing of whether one can be made.
            Ok(()) if !made && self.told.borrow().has(&self.path) => {
                self.trial().map_err(|error| Refused::from(&error))
            }
            Ok(()) => Ok(()),
        };
        self.told
            .send_if_modified(|all| all.note(&self.path, outcome));
        written.with_context(|| format!("write {}", self.path.display()))
    }

    fn next(&self) -> PathBuf {
        self.path.with_extension("json.new")
    }

    fn trial(&self) -> io::Result<()> {
        let mut file = std::fs::File::create(self.next())?;
        let written = file.write_all(b"{}").and_then(|()| file.sync_all());
        std::fs::remove_file(self.next()).and(written)
    }

    fn write(&self, data: Option<&impl Serialize>) -> io::Result<()> {
        let Some(data) = data else {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let next = self.next();
        let mut file = std::fs::File::create(&next)?;
        file.write_all(&serde_json::to_vec(data)?)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path)?;
        if let Some(dir) = self.path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}
