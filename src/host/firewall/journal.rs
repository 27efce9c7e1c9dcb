//! What of ours is in the firewalls of others: one JSON file in the state directory, written before a rule is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::host::journal::Journaled;
use crate::model::unwritten::Unwritten;

/// Name of the file in the state directory.
const FILE: &str = "firewall.json";

/// What was put into the firewalls of others, and has to be taken out again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Data {
    /// The programs by which rules went into `DOCKER-USER`.
    pub docker: BTreeSet<String>,
    /// Zones of firewalld that links were put into, by link.
    pub zones: BTreeMap<String, String>,
    /// Names of the links that ufw has rules for.
    pub ufw: BTreeSet<String>,
}

/// The record of what is in others' firewalls, in memory and on disk.
#[derive(Debug)]
pub(super) struct Journal {
    file: Journaled,
    data: Data,
}

impl Journal {
    /// Reads the record; one that cannot be read counts as empty: what bears our mark is found without it.
    pub(super) fn open(state_dir: &Path) -> Journal {
        let path = state_dir.join(FILE);
        let data = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "record of rules in other firewalls is damaged: ignored");
                Data::default()
            }),
            Err(_) => Data::default(),
        };
        Journal {
            file: Journaled::new(path),
            data,
        }
    }

    /// Tells whether the record could be written.
    pub(super) fn telling(&mut self, told: watch::Sender<Unwritten>) {
        self.file.told = told;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data == Data::default()
    }

    pub(super) fn docker(&self) -> &BTreeSet<String> {
        &self.data.docker
    }

    pub(super) fn zones(&self) -> &BTreeMap<String, String> {
        &self.data.zones
    }

    pub(super) fn ufw(&self) -> &BTreeSet<String> {
        &self.data.ufw
    }

    /// What is owed to firewalld and ufw, in the words of when it is done.
    pub(super) fn words(&self) -> Vec<String> {
        let zones = self
            .data
            .zones
            .iter()
            .map(|(link, zone)| format!("took {link} out of firewalld's zone {zone}"));
        zones
            .chain(
                self.data
                    .ufw
                    .iter()
                    .map(|link| format!("removed ufw's rules for {link}")),
            )
            .collect()
    }

    /// Changes the record, durably.
    ///
    /// # Errors
    /// When it cannot be written; it is then as it was.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut Data) -> T) -> anyhow::Result<()> {
        let mut next = self.data.clone();
        change(&mut next);
        self.file.replace(
            next != self.data,
            (next != Data::default()).then_some(&next),
        )?;
        self.data = next;
        Ok(())
    }
}
