//! Why the state or a key cannot be used, with what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::error::Code;

/// Why the state or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the state directory open.
    #[error("state directory {} is in use by another daemon", dir.display())]
    InUse {
        /// The path of the state directory.
        dir: PathBuf,
    },
    /// The state file cannot be trusted; it was not touched.
    #[error("state file {} is damaged: {what}", path.display())]
    Damaged {
        /// The path of the state file.
        path: PathBuf,
        /// What was found wrong with the file.
        what: String,
        /// What a person may do: the copy to take, where there is one.
        remedy: String,
    },
    /// The state file was written by another version of byway.
    #[error("state file {} has version {found}, which this byway does not know", path.display())]
    Schema {
        /// The path of the state file.
        path: PathBuf,
        /// The version that the file states.
        found: u64,
    },
    /// There is no room for a write; nothing was changed.
    #[error("write {}: no space left on the device", path.display())]
    Full {
        /// The path of the file that was to be written.
        path: PathBuf,
    },
    /// The file has become so large that another start would not read it; nothing was changed.
    #[error("state file {} is full", path.display())]
    TooLarge {
        /// The path of the state file.
        path: PathBuf,
    },
    /// A write did not reach the disk, and nobody knows what is there: only a new start can tell.
    #[error("state file {} cannot be written any more: {what}", path.display())]
    Fatal {
        /// The path of the state file.
        path: PathBuf,
        /// What the kernel said.
        what: String,
    },
    /// A key is missing beside a state that was made with it.
    #[error("key file {} is missing, and this node's state was made with it", path.display())]
    KeyMissing {
        /// The path at which the key should be.
        path: PathBuf,
    },
    /// Others can read a key.
    #[error("key file {} can be read by others (mode {mode:04o})", path.display())]
    KeyOpen {
        /// The path of the key file.
        path: PathBuf,
        /// The file's permission bits, which let others read it.
        mode: u32,
    },
    /// The file in a key's place holds no key.
    #[error("key file {} holds no key: {what}", path.display())]
    KeyDamaged {
        /// The path of the key file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel refused something else.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The path of the file or directory it was done to.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StoreError {
    /// Stable code for people and programs.
    pub fn code(&self) -> Code {
        match self {
            StoreError::InUse { .. } => Code::StateInUse,
            StoreError::Damaged { .. } => Code::StateDamaged,
            StoreError::Schema { .. } => Code::StateVersion,
            StoreError::Full { .. } => Code::DiskFull,
            StoreError::TooLarge { .. } => Code::StateFull,
            StoreError::Fatal { .. } => Code::StateWrite,
            StoreError::KeyMissing { .. } => Code::KeyMissing,
            StoreError::KeyOpen { .. } => Code::KeyOpen,
            StoreError::KeyDamaged { .. } => Code::KeyDamaged,
            StoreError::Io { .. } => Code::StateIo,
        }
    }

    /// Whether this process may not do what it takes (exit 4).
    pub fn is_forbidden(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether somebody else holds what is asked for (exit 6); all others are failures (exit 1).
    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::InUse { .. })
    }

    /// What kind of refusal of the kernel it comes from.
    pub(super) fn io_kind(&self) -> io::ErrorKind {
        match self {
            StoreError::Full { .. } => io::ErrorKind::StorageFull,
            StoreError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        }
    }

    /// Why, without the file.
    pub(super) fn why(&self) -> String {
        match self {
            StoreError::Full { .. } => "no space left on the device".to_owned(),
            StoreError::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }

    /// What to do next; empty where nothing general can be said.
    pub fn hint(&self) -> String {
        match self {
            StoreError::InUse { .. } => {
                "stop the other daemon, or give this one its own --state-dir".to_owned()
            }
            StoreError::Damaged { remedy, .. } => remedy.clone(),
            StoreError::Schema { .. } => "start the byway that wrote it, or a newer one".to_owned(),
            StoreError::Full { path } => {
                format!(
                    "df -h {0}; df -i {0}      (make room there, then the same again)",
                    quoted(&dir(path))
                )
            }
            StoreError::TooLarge { .. } => {
                "byway leave SUBNET      (one that is no longer needed)".to_owned()
            }
            StoreError::Fatal { .. } => {
                "look for disk errors (dmesg), then start byway again".to_owned()
            }
            // It came with the present format of states: what was written before it is no state of any release.
            StoreError::KeyMissing { path } if path.ends_with("seal.key") => format!(
                "where {} never was, an older byway wrote this state: move it away, then found or join anew; else restore that \
                 file from a backup",
                quoted(path)
            ),
            StoreError::KeyMissing { path } => {
                format!(
                    "restore {} from a backup; without it this node cannot be who it was",
                    quoted(path)
                )
            }
            StoreError::KeyOpen { path, .. } => format!("chmod 600 {}", quoted(path)),
            StoreError::KeyDamaged { path, .. } => {
                format!("restore {} from a backup", quoted(path))
            }
            StoreError::Io { source, path, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                format!("run byway as the owner of {}", quoted(path))
            }
            StoreError::Io { .. } => String::new(),
        }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        if is_full(&source) {
            return StoreError::Full {
                path: path.to_path_buf(),
            };
        }
        StoreError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// A file that cannot be trusted; names the copy where there is one.
    pub(super) fn damaged(path: &Path, what: &str) -> StoreError {
        let good = path.with_file_name(super::GOOD_FILE);
        let remedy = if good.exists() {
            format!("mv {} {}", quoted(&good), quoted(path))
        } else {
            format!("restore {} from a backup", quoted(path))
        };
        StoreError::Damaged {
            path: path.to_path_buf(),
            what: what.to_owned(),
            remedy,
        }
    }

    pub(super) fn of_redb(path: &Path, error: redb::Error) -> StoreError {
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse {
                dir: path.parent().unwrap_or(path).to_path_buf(),
            },
            redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
                StoreError::io("use", path, source)
            }
            other => StoreError::damaged(path, &other.to_string()),
        }
    }
}

/// Whether the kernel says that there is no room: on the disk, in the quota, or under the limit of a file's size.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Where a file is: the file itself may not be there yet.
fn dir(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_path_buf()
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
