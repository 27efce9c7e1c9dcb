//! Secret keys in files of their own: readable by their owner only, made once, never replaced.
//!
//! A file has two lines: what it is, and 64 hexadecimal digits. What was read or made is wiped from memory when dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::{Zeroize, Zeroizing};

use super::error::StoreError;
use super::{make_dir, sync_dir, temporary};

/// Name of the file with this node's identity.
pub const IDENTITY_FILE: &str = "identity.key";

/// First line of every key file.
const HEADER: &str = "byway secret key, version 1: whoever has it is this node";

/// Bytes of the largest key file read.
const SIZE_LIMIT: u64 = 4096;

/// The 32-byte seed of this node's ed25519 identity: from `explicit`, which then must exist, else from `identity.key` in
/// `dir`, made where the node is new.
///
/// `state_exists` says whether there is a state already. It belongs to one identity: a missing key beside it is an error,
/// for a new one in its place would quietly be another peer.
///
/// # Errors
/// [`StoreError::KeyMissing`], [`StoreError::KeyOpen`], [`StoreError::KeyDamaged`], or what the kernel refuses.
pub fn identity(
    dir: &Path,
    explicit: Option<&Path>,
    state_exists: bool,
) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    match explicit {
        Some(path) => read(path)?.ok_or_else(|| StoreError::KeyMissing {
            path: path.to_path_buf(),
        }),
        None => secret(dir, IDENTITY_FILE, state_exists),
    }
}

/// The 32 secret bytes in the file `name` of `dir` (`data.key`), made where the node is new. As [`identity`].
///
/// # Errors
/// As [`identity`].
pub fn secret(
    dir: &Path,
    name: &str,
    state_exists: bool,
) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let path = dir.join(name);
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    if state_exists {
        return Err(StoreError::KeyMissing { path });
    }
    make_dir(dir)?;
    make(dir, name)
}

/// Reads a key file; `None` where there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<[u8; 32]>>, StoreError> {
    // Not to be held up by a FIFO in the file's place.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("open", path, e)),
    };
    let meta = file
        .metadata()
        .map_err(|e| StoreError::io("read", path, e))?;
    let damaged = |what| StoreError::KeyDamaged {
        path: path.to_path_buf(),
        what,
    };
    if !meta.is_file() {
        return Err(damaged("it is no file"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(StoreError::KeyOpen {
            path: path.to_path_buf(),
            mode: meta.mode() & 0o7777,
        });
    }
    // Room for all of it at once: growing would leave copies of the key behind in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(SIZE_LIMIT as usize + 1));
    file.take(SIZE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(|e| StoreError::io("read", path, e))?;
    parse(&text).map(Some).map_err(damaged)
}

fn parse(text: &[u8]) -> Result<Zeroizing<[u8; 32]>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err("its first line is another one");
    }
    let digits = lines.next().unwrap_or_default().as_bytes();
    if digits.len() != 64 || lines.next().is_some() {
        return Err("its second line has not 64 hexadecimal digits");
    }
    let mut key = Zeroizing::new([0u8; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let value = pair
            .iter()
            .try_fold(0u32, |all, d| Some(all * 16 + char::from(*d).to_digit(16)?));
        *byte = value
            .and_then(|v| u8::try_from(v).ok())
            .ok_or("its second line has not 64 hexadecimal digits")?;
    }
    if key.iter().all(|b| *b == 0) {
        return Err("the key is all zeros");
    }
    Ok(key)
}

/// Makes a key, durable before anyone is told of it; one that another process made meanwhile is taken instead.
fn make(dir: &Path, name: &str) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let (path, new) = (dir.join(name), temporary(dir, name));
    let mut key = Zeroizing::new([0u8; 32]);
    getrandom::fill(key.as_mut())
        .map_err(|e| StoreError::io("make", &path, io::Error::other(e)))?;
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("remove", &new, e));
        }
        _ => {}
    }
    let written = write(&new, &key).map_err(|e| StoreError::io("write", &new, e));
    // A link, unlike a rename, never replaces a key that is already there.
    let linked = written.and_then(|()| match fs::hard_link(&new, &path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::io("make", &path, e)),
        _ => Ok(()),
    });
    let removed = fs::remove_file(&new).map_err(|e| StoreError::io("remove", &new, e));
    linked.and(removed)?;
    sync_dir(dir)?;
    read(&path)?.ok_or(StoreError::KeyMissing { path })
}

fn write(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(HEADER.len() + 80));
    text.push_str(HEADER);
    text.push('\n');
    for byte in key {
        let mut pair = [byte >> 4, byte & 15];
        pair.iter()
            .filter_map(|n| char::from_digit(u32::from(*n), 16))
            .for_each(|c| text.push(c));
        pair.zeroize();
    }
    text.push('\n');
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Code;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let made = identity(&state, None, false).unwrap();
        assert_ne!(*made, [0; 32]);
        assert_eq!(*identity(&state, None, false).unwrap(), *made);
        assert_eq!(*identity(&state, None, true).unwrap(), *made);
        assert_ne!(*secret(&state, "data.key", false).unwrap(), *made);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(&state), mode(&state.join(IDENTITY_FILE))),
            (0o700, 0o600)
        );
        let names: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "nothing else is left: {names:?}");
    }

    #[test]
    fn a_missing_key_beside_a_state_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let error = identity(dir.path(), None, true).unwrap_err();
        assert_eq!(error.code(), Code::KeyMissing);
        assert!(!error.hint().is_empty());
        assert!(!dir.path().join(IDENTITY_FILE).exists());
    }

    #[test]
    fn an_explicit_key_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.key");
        assert_eq!(
            identity(dir.path(), Some(&path), false).unwrap_err().code(),
            Code::KeyMissing
        );
        let made = secret(dir.path(), "other.key", false).unwrap();
        assert_eq!(*identity(dir.path(), Some(&path), false).unwrap(), *made);
        assert!(!dir.path().join(IDENTITY_FILE).exists());
    }

    #[test]
    fn a_key_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        identity(dir.path(), None, false).unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        for mode in [0o640, 0o604, 0o660, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = identity(dir.path(), None, true).unwrap_err();
            assert!(
                error.code() == Code::KeyOpen && error.hint().starts_with("chmod 600 "),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        for text in [
            "",
            "x",
            HEADER,
            &format!("{HEADER}\n{}\n", "0".repeat(64)),
            &format!("{HEADER}\n{}", "g".repeat(64)),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(
                identity(dir.path(), None, false).unwrap_err().code(),
                Code::KeyDamaged,
                "{text:?}"
            );
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(
            identity(dir.path(), None, false).unwrap_err().code(),
            Code::KeyDamaged
        );
    }

    proptest! {
        #[test]
        fn key_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), line in "[0-9a-fx]{60,68}") {
            let _ = parse(&bytes);
            let read = parse(format!("{HEADER}\n{line}\n").as_bytes());
            prop_assert!(read.is_err() || line.len() == 64);
        }
    }
}
