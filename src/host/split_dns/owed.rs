//! The links that a service outside has a file of: written down before the file is made, so that a daemon that was killed
//! knows at its next start what it has to take away.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::sync::watch;

use crate::host::journal::Journaled;
use crate::model::unwritten::Unwritten;

/// Name of the file in the state directory.
const FILE: &str = "resolvconf.json";

/// The record, in memory and on disk.
#[derive(Debug)]
pub(super) struct Owed {
    file: Journaled,
    links: BTreeSet<String>,
}

impl Owed {
    /// Reads the record; one that cannot be read counts as empty.
    pub fn open(state_dir: &Path) -> Owed {
        let path = state_dir.join(FILE);
        let links = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "record of what resolvconf was told is damaged: ignored");
                BTreeSet::new()
            }),
            Err(_) => BTreeSet::new(),
        };
        Owed {
            file: Journaled::new(path),
            links,
        }
    }

    /// Whether the record can be written, as that changes.
    pub fn unwritten(&self) -> watch::Receiver<Unwritten> {
        self.file.told.subscribe()
    }

    /// The links that have a file.
    pub fn links(&self) -> &BTreeSet<String> {
        &self.links
    }

    /// Remembers a link, or forgets it.
    ///
    /// # Errors
    /// When the record cannot be written; it is then as it was.
    pub fn change(&mut self, link: &str, has_file: bool) -> anyhow::Result<()> {
        let mut next = self.links.clone();
        if has_file {
            next.insert(link.to_owned());
        } else {
            next.remove(link);
        }
        let kept = (!next.is_empty()).then_some(&next);
        self.file.replace(next != self.links, kept)?;
        self.links = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_known_after_a_kill_and_nothing_owed_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut owed = Owed::open(dir.path());
        owed.change("bw-lab", true).unwrap();
        owed.change("bw-two", true).unwrap();
        owed.change("bw-two", false).unwrap();
        let mut owed = Owed::open(dir.path());
        assert_eq!(owed.links().iter().collect::<Vec<_>>(), ["bw-lab"]);
        owed.change("bw-lab", false).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join(FILE), "damaged").unwrap();
        assert!(Owed::open(dir.path()).links().is_empty());
    }
}
