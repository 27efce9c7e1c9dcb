//! Resolver files of workloads: `/etc/netns/NAME/resolv.conf` and containers' own.
//!
//! A container's file is bind-mounted into it, so it is rewritten in place: a renamed file would stay outside. The
//! former content is remembered first and put back only where our text still stands.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use super::kept::{Kept, KeptResolver};

/// Bytes of a resolver file we read at most; a longer one is cut, none in use comes near.
const LIMIT: u64 = 64 * 1024;

/// The content of a resolver file, or nothing if there is none.
///
/// # Errors
/// When it exists and cannot be read, or is a symbolic link.
pub fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(content))
}

/// Writes our text; content that is not ours is remembered first.
///
/// # Errors
/// When the former content cannot be read or remembered, or the file not written.
pub fn write(kept: &mut Kept, path: &Path, text: &str) -> anyhow::Result<()> {
    let is = read(path)?;
    let known = kept.resolvers().get(path).cloned();
    let dir = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    let made_dir = known.as_ref().is_some_and(|k| k.made_dir) || !dir.exists();
    let former = match known {
        // What stands there is ours: what was there before remains what we put back.
        Some(known) if is.as_deref().is_none_or(|is| is == known.ours.as_bytes()) => known.former,
        _ => is,
    };
    kept.resolver(path, Some(KeptResolver { former, ours: text.to_owned(), made_dir }))?;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    write_in_place(path, text.as_bytes())
}

/// Puts the former content back if ours still stands, and forgets it.
///
/// # Errors
/// When the file cannot be written; it is tried again then.
pub fn restore(kept: &mut Kept, path: &Path) -> anyhow::Result<()> {
    let Some(known) = kept.resolvers().get(path).cloned() else {
        return Ok(());
    };
    if read(path)?.as_deref() == Some(known.ours.as_bytes()) {
        match &known.former {
            Some(former) => write_in_place(path, former)?,
            None => {
                std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    if known.made_dir
        && let Some(dir) = path.parent()
    {
        // Somebody may have put files of their own there: then it stays.
        let _ = std::fs::remove_dir(dir);
    }
    kept.resolver(path, None)
}

fn write_in_place(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.write_all(content)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn former_content_comes_back_in_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let inode = std::fs::metadata(&file).unwrap().ino();
        let mut kept = Kept::open(dir.path());
        write(&mut kept, &file, "ours 1").unwrap();
        write(&mut kept, &file, "ours 2").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ours 2");
        // As after a kill: the record is read again.
        let mut kept = Kept::open(dir.path());
        restore(&mut kept, &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode, "a bind mount shows the same file");
        assert!(Kept::open(dir.path()).resolvers().is_empty());
    }

    #[test]
    fn made_file_and_directory_go() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ns").join("resolv.conf");
        let mut kept = Kept::open(dir.path());
        write(&mut kept, &file, "ours").unwrap();
        assert!(file.exists());
        restore(&mut kept, &file).unwrap();
        assert!(!dir.path().join("ns").exists());
    }

    #[test]
    fn somebody_elses_text_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut kept = Kept::open(dir.path());
        write(&mut kept, &file, "ours").unwrap();
        std::fs::write(&file, "theirs").unwrap();
        restore(&mut kept, &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    }
}
