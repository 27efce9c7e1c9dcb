//! Small files of the state directory that one command writes whole, and that are no records.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::StoreError;
use super::{sync_dir, temporary};

/// Bytes of the largest such file that is read.
const SIZE_LIMIT: u64 = 1 << 16;

/// Reads the file `name` of the state directory; none where there is none.
///
/// # Errors
/// What the kernel refuses. Of a file that is larger than any of them only the first 64 KiB are read.
pub fn kept(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let path = dir.join(name);
    // Not to be held up by a FIFO in the file's place.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("open", &path, e)),
    };
    let mut bytes = Vec::new();
    file.take(SIZE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| StoreError::io("read", &path, e))?;
    Ok(Some(bytes))
}

/// Puts `bytes` in the place of the file `name`, whole and synced; without bytes the file is removed.
///
/// # Errors
/// What the kernel refuses; then the file is as before.
pub fn keep(dir: &Path, name: &str, bytes: Option<&[u8]>) -> Result<(), StoreError> {
    let path = dir.join(name);
    let Some(bytes) = bytes else {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path, e))
            }
            _ => sync_dir(dir),
        };
    };
    let new = temporary(dir, name);
    let written = write(&new, bytes)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|e| StoreError::io("write", &path, e));
    if written.is_err() {
        // It would only take room.
        let _ = fs::remove_file(&new);
    }
    written.and_then(|()| sync_dir(dir))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_replaced_whole_and_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let read = || kept(dir.path(), "word").unwrap();
        assert_eq!(read(), None);
        keep(dir.path(), "word", Some(b"a long one")).unwrap();
        keep(dir.path(), "word", Some(b"short")).unwrap();
        assert_eq!(read().as_deref(), Some(&b"short"[..]));
        keep(dir.path(), "word", None).unwrap();
        keep(dir.path(), "word", None).unwrap();
        assert_eq!(read(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
