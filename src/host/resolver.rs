//! Resolver files of workloads: `/etc/netns/NAME/resolv.conf` and those an engine made for its containers.
//!
//! A container's file is bind-mounted into it, so it is rewritten in place: a renamed file would stay outside. The
//! former content is remembered first and put back only where our text still stands.
//!
//! A file that somebody else reads too must not be written. So what is opened is judged by what it is, not by the path that
//! led there: an ordinary file with one name, and that name ends as the path does. Whatever was put into the path meanwhile
//! leads to a file that is called otherwise.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::journal::{Journal, KeptResolver};

/// Bytes of a resolver file we read at most; a longer one is cut, none in use comes near.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The file that this machine's own programs use.
const OF_HOST: &str = "/etc/resolv.conf";

/// The content of a resolver file, or nothing if there is none.
///
/// # Errors
/// When it exists and cannot be read, or is a symbolic link.
pub fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match open {
        Ok(file) => content(file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    }
    .with_context(|| format!("read {}", path.display()))
}

fn content(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// What this machine's own programs use; none where it cannot be read.
pub(super) fn of_host() -> Option<Vec<u8>> {
    File::open(OF_HOST).and_then(content).ok()
}

/// What stood in a file before us, when `is` stands there now. What is not ours is what the next of ours replaces.
pub(super) fn former(journal: &Journal, path: &Path, is: Option<&[u8]>) -> Option<Vec<u8>> {
    match journal.resolvers().get(path) {
        Some(known) if is.is_none_or(|is| is == known.ours.as_bytes()) => known.former.clone(),
        _ => is.map(<[u8]>::to_vec),
    }
}

/// Whether `path` is the file that an engine made for the container with one of `ids`, and what the process `pid` of it
/// finds at `/etc/resolv.conf`. A file that was mounted there from elsewhere is its owner's.
pub fn is_engines_own(path: &Path, ids: &[&str], pid: u32) -> bool {
    let of_container = tail(path)
        .iter()
        .rev()
        .skip(1)
        .any(|dir| ids.contains(&dir.as_str()));
    let (Ok(file), Ok(inside)) = (open(path), inside(pid)) else {
        return false;
    };
    let same =
        |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    of_container
        && file
            .metadata()
            .ok()
            .zip(inside.metadata().ok())
            .is_some_and(|(a, b)| same(a, b))
}

/// `/etc/resolv.conf` as a process sees it, links followed as it would follow them.
fn inside(pid: u32) -> io::Result<File> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(&root, OF_HOST, how)?))
}

/// The end of a path that tells whose file it is: `CONTAINER/resolv.conf`, or `CONTAINER/userdata/resolv.conf`.
fn tail(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    let length = if names
        .iter()
        .rev()
        .nth(1)
        .is_some_and(|dir| dir == "userdata")
    {
        3
    } else {
        2
    };
    names[names.len().saturating_sub(length)..].to_vec()
}

/// Takes hold of a file that is nobody else's, without opening it yet.
fn open(path: &Path) -> anyhow::Result<File> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let meta = file.metadata()?;
    ensure!(
        meta.is_file() && meta.nlink() == 1,
        "it is no file of its own"
    );
    let real = std::fs::read_link(held(&file))?;
    ensure!(
        tail(&real) == tail(path),
        "it is {} in truth",
        real.display()
    );
    Ok(file)
}

/// The path of what is taken hold of.
fn held(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Writes our texts; content that is not ours is remembered first, of all of them at once. One result for each file, in
/// their order: an error when the former content cannot be read or remembered, or the file not written.
pub fn write<'a>(
    journal: &mut Journal,
    texts: impl Iterator<Item = (&'a Path, &'a str)>,
) -> Vec<anyhow::Result<()>> {
    let prepared: Vec<_> = texts
        .map(|(path, text)| (path, text, prepare(journal, path, text)))
        .collect();
    let kept = prepared.iter().filter_map(|(path, _, kept)| {
        Some((path.to_path_buf(), Some(kept.as_ref().ok()?.0.clone())))
    });
    let kept: Vec<_> = kept.collect();
    let remembered = journal
        .resolvers_changed(kept)
        .map_err(|error| format!("{error:#}"));
    let each = prepared.into_iter().map(|(path, text, kept)| {
        let (_, exists) = kept?;
        remembered.clone().map_err(anyhow::Error::msg)?;
        let dir = directory(path)?;
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        if !exists {
            make(path).with_context(|| format!("make {}", path.display()))?;
        }
        write_in_place(path, text.as_bytes())
    });
    each.collect()
}

/// What is to be remembered before our text is written, and whether the file is there.
fn prepare(journal: &Journal, path: &Path, text: &str) -> anyhow::Result<(KeptResolver, bool)> {
    let is = read(path)?;
    let known = journal.resolvers().get(path);
    let made_dir = known.is_some_and(|k| k.made_dir) || !directory(path)?.exists();
    let kept = KeptResolver {
        former: former(journal, path, is.as_deref()),
        ours: text.to_owned(),
        made_dir,
    };
    Ok((kept, is.is_some()))
}

fn directory(path: &Path) -> anyhow::Result<&Path> {
    path.parent()
        .with_context(|| format!("{} has no directory", path.display()))
}

/// Puts the former contents back where ours still stand, and forgets them, all of them at once. One result for each file,
/// in their order: an error when it cannot be written (it is tried again then) or not forgotten.
pub fn restore<'a>(
    journal: &mut Journal,
    paths: impl Iterator<Item = &'a Path>,
) -> Vec<anyhow::Result<()>> {
    let mut done = Vec::new();
    let mut results = Vec::new();
    for path in paths {
        let result = put_back(journal, path);
        if result.is_ok() {
            done.push((path.to_owned(), None));
        }
        results.push(result);
    }
    // A kill before this leaves the next start with files that are not as we wrote them: it forgets them.
    if let Err(error) = journal.resolvers_changed(done) {
        let why = format!("{error:#}");
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = Err(anyhow::Error::msg(why.clone()));
        }
    }
    results
}

fn put_back(journal: &Journal, path: &Path) -> anyhow::Result<()> {
    let Some(known) = journal.resolvers().get(path) else {
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
    Ok(())
}

/// Makes an empty file where there is nothing.
fn make(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map(drop)
}

fn write_in_place(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let place = open(path)?;
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(held(&place))?
            .write_all(content)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn write(journal: &mut Journal, path: &Path, text: &str) -> anyhow::Result<()> {
        super::write(journal, std::iter::once((path, text))).remove(0)
    }

    fn restore(journal: &mut Journal, path: &Path) -> anyhow::Result<()> {
        super::restore(journal, std::iter::once(path)).remove(0)
    }

    #[test]
    fn former_content_comes_back_in_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let inode = std::fs::metadata(&file).unwrap().ino();
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours 1").unwrap();
        write(&mut journal, &file, "ours 2").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ours 2");
        // As after a kill: the record is read again.
        let mut journal = Journal::open(dir.path());
        restore(&mut journal, &file).unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "nameserver 192.0.2.1\n"
        );
        assert_eq!(
            std::fs::metadata(&file).unwrap().ino(),
            inode,
            "a bind mount shows the same file"
        );
        assert!(Journal::open(dir.path()).resolvers().is_empty());
    }

    #[test]
    fn made_file_and_directory_go() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ns").join("resolv.conf");
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").unwrap();
        assert!(file.exists());
        restore(&mut journal, &file).unwrap();
        assert!(!dir.path().join("ns").exists());
    }

    #[test]
    fn somebody_elses_text_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").unwrap();
        std::fs::write(&file, "theirs").unwrap();
        restore(&mut journal, &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    }

    #[test]
    fn a_file_that_is_somebody_elses_too_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["container", "host"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let (host, file) = (at("host/resolv.conf"), at("container/resolv.conf"));
        std::fs::write(&host, "theirs").unwrap();
        let mut journal = Journal::open(dir.path());
        // A link in the file's place, a second name of another file, a directory that leads elsewhere.
        std::os::unix::fs::symlink(&host, &file).unwrap();
        assert!(write(&mut journal, &file, "ours").is_err());
        std::fs::remove_file(&file).unwrap();
        std::fs::hard_link(&host, &file).unwrap();
        assert!(write(&mut journal, &file, "ours").is_err());
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_dir(at("container")).unwrap();
        std::os::unix::fs::symlink(at("host"), at("container")).unwrap();
        assert!(write(&mut journal, &file, "ours").is_err());
        assert_eq!(std::fs::read_to_string(&host).unwrap(), "theirs");
        // Nor is it when what we wrote is to be put back.
        let known = KeptResolver {
            former: Some(b"old".to_vec()),
            ours: "theirs".to_owned(),
            made_dir: false,
        };
        journal
            .resolvers_changed([(file.clone(), Some(known))])
            .unwrap();
        assert!(restore(&mut journal, &file).is_err());
        assert_eq!(std::fs::read_to_string(&host).unwrap(), "theirs");
    }

    #[test]
    fn what_somebody_wrote_meanwhile_is_what_stood_before_us() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "first").unwrap();
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").unwrap();
        assert_eq!(
            former(&journal, &file, Some(b"ours")).as_deref(),
            Some(b"first".as_slice())
        );
        assert_eq!(
            former(&journal, &file, Some(b"second")).as_deref(),
            Some(b"second".as_slice())
        );
        std::fs::write(&file, "second").unwrap();
        write(&mut journal, &file, "ours").unwrap();
        restore(&mut journal, &file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "second");
    }

    #[test]
    fn only_the_file_an_engine_made_and_mounted_is_its_containers() {
        let (dir, me) = (tempfile::tempdir().unwrap(), std::process::id());
        let file = dir.path().join("c0ffee").join("resolv.conf");
        std::fs::create_dir(dir.path().join("c0ffee")).unwrap();
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert!(
            !is_engines_own(&file, &["c0ffee"], me),
            "this process finds another one at /etc/resolv.conf"
        );
        assert!(
            !is_engines_own(Path::new("/etc/resolv.conf"), &["c0ffee"], me),
            "this one has no container's name"
        );
    }
}
