//! Files of the state directory that could not be written, for `status`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The kind of the error.
    pub kind: io::ErrorKind,
    /// The reason, as the system gave it.
    pub why: String,
}

/// Files whose last write failed: a write that succeeds takes one off the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwritten(BTreeMap<PathBuf, Refused>);

impl Unwritten {
    /// Notes what came of a write; whether that is news.
    pub fn note(&mut self, path: &Path, outcome: Result<(), Refused>) -> bool {
        match outcome {
            Ok(()) => self.0.remove(path).is_some(),
            Err(refused) => {
                let before = self.0.insert(path.to_owned(), refused);
                before.as_ref() != self.0.get(path)
            }
        }
    }

    /// Whether that file is on the list.
    pub fn has(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// The files whose last write failed, each with its reason.
    pub fn iter(&self) -> impl Iterator<Item = (&PathBuf, &Refused)> {
        self.0.iter()
    }

    /// Whether everything is on the disk.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&io::Error> for Refused {
    fn from(error: &io::Error) -> Refused {
        Refused {
            kind: error.kind(),
            why: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_until_it_is_written() {
        let (mut all, file) = (Unwritten::default(), Path::new("/s/host.json"));
        let full = || Err(Refused::from(&io::Error::from(io::ErrorKind::StorageFull)));
        assert!(
            all.note(file, full()) && !all.note(file, full()),
            "once is news"
        );
        assert_eq!(
            all.iter()
                .map(|(path, refused)| (path.as_path(), refused.kind))
                .collect::<Vec<_>>(),
            [(file, io::ErrorKind::StorageFull)]
        );
        assert!(
            !all.note(Path::new("/s/other"), Ok(())) && all.note(file, Ok(())) && all.is_empty()
        );
    }
}
