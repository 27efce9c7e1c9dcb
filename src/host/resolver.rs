//! Resolver files of workloads: `/etc/netns/NAME/resolv.conf` and those an engine made for its containers.
//!
//! The former content is remembered first and put back only where our text still stands. The files themselves are opened
//! by [`helper`], which judges what they are.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::journal::{Journal, KeptResolver};
use crate::helper;

/// Bytes of this machine's own resolver file that are read at most; none in use comes near.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The file that this machine's own programs use.
const OF_HOST: &str = "/etc/resolv.conf";

/// The content of a resolver file, or nothing if there is none.
///
/// # Errors
/// When it exists and cannot be read, or is a symbolic link.
pub async fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    Ok(helper::read(path).await?.0)
}

/// What this machine's own programs use; none where it cannot be read.
pub(super) fn of_host() -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let file = File::open(OF_HOST).ok()?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut content).ok()?;
    Some(content)
}

/// What stood in a file before us, when `is` stands there now. What is not ours is what the next of ours replaces.
pub(super) fn former(journal: &Journal, path: &Path, is: Option<&[u8]>) -> Option<Vec<u8>> {
    match journal.resolvers().get(path) {
        Some(known) if is.is_none_or(|is| is == known.ours.as_bytes()) => known.former.clone(),
        _ => is.map(<[u8]>::to_vec),
    }
}

/// Writes our texts; content that is not ours is remembered first, of all of them at once. One result for each file, in
/// their order: an error when the former content cannot be read or remembered, or the file not written.
pub async fn write(journal: &mut Journal, texts: Vec<(&Path, &str)>) -> Vec<anyhow::Result<()>> {
    let mut prepared = Vec::new();
    for (path, text) in texts {
        prepared.push((path, text, prepare(journal, path, text).await));
    }
    let kept = prepared.iter().filter_map(|(path, _, kept)| {
        Some((path.to_path_buf(), Some(kept.as_ref().ok()?.0.clone())))
    });
    let kept: Vec<_> = kept.collect();
    let remembered = journal
        .resolvers_changed(kept)
        .map_err(|error| format!("{error:#}"));
    let mut results = Vec::new();
    for (path, text, kept) in prepared {
        let ready = kept.and_then(|(_, exists)| {
            remembered.clone().map_err(anyhow::Error::msg)?;
            Ok(exists)
        });
        results.push(match ready {
            Ok(exists) => helper::write(path, text.as_bytes(), !exists)
                .await
                .map_err(Into::into),
            Err(error) => Err(error),
        });
    }
    results
}

/// What is to be remembered before our text is written, and whether the file is there.
async fn prepare(
    journal: &Journal,
    path: &Path,
    text: &str,
) -> anyhow::Result<(KeptResolver, bool)> {
    let (is, directory) = helper::read(path).await?;
    let known = journal.resolvers().get(path);
    let kept = KeptResolver {
        former: former(journal, path, is.as_deref()),
        ours: text.to_owned(),
        made_dir: known.is_some_and(|k| k.made_dir) || !directory,
    };
    Ok((kept, is.is_some()))
}

/// Puts the former contents back where ours still stand, and forgets them, all of them at once. One result for each file,
/// in their order: an error when it cannot be written (it is tried again then) or not forgotten.
pub async fn restore(journal: &mut Journal, paths: Vec<&Path>) -> Vec<anyhow::Result<()>> {
    let mut done = Vec::new();
    let mut results = Vec::new();
    for path in paths {
        let result = put_back(journal, path).await;
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

async fn put_back(journal: &Journal, path: &Path) -> anyhow::Result<()> {
    let Some(known) = journal.resolvers().get(path) else {
        return Ok(());
    };
    if read(path).await?.as_deref() == Some(known.ours.as_bytes()) {
        match &known.former {
            Some(former) => helper::write(path, former, false).await?,
            None => helper::remove(path).await?,
        }
    }
    if known.made_dir {
        // Somebody may have put files of their own there: then it stays.
        let _ = helper::remove_directory_of(path).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    async fn write(journal: &mut Journal, path: &Path, text: &str) -> anyhow::Result<()> {
        super::write(journal, vec![(path, text)]).await.remove(0)
    }

    async fn restore(journal: &mut Journal, path: &Path) -> anyhow::Result<()> {
        super::restore(journal, vec![path]).await.remove(0)
    }

    #[tokio::test]
    async fn former_content_comes_back_in_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let inode = std::fs::metadata(&file).unwrap().ino();
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours 1").await.unwrap();
        write(&mut journal, &file, "ours 2").await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ours 2");
        // As after a kill: the record is read again.
        let mut journal = Journal::open(dir.path());
        restore(&mut journal, &file).await.unwrap();
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

    #[tokio::test]
    async fn made_file_and_directory_go() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ns").join("resolv.conf");
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").await.unwrap();
        assert!(file.exists());
        restore(&mut journal, &file).await.unwrap();
        assert!(!dir.path().join("ns").exists());
    }

    #[tokio::test]
    async fn somebody_elses_text_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").await.unwrap();
        std::fs::write(&file, "theirs").unwrap();
        restore(&mut journal, &file).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    }

    #[tokio::test]
    async fn a_file_that_is_somebody_elses_too_is_not_written() {
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
        assert!(write(&mut journal, &file, "ours").await.is_err());
        std::fs::remove_file(&file).unwrap();
        std::fs::hard_link(&host, &file).unwrap();
        assert!(write(&mut journal, &file, "ours").await.is_err());
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_dir(at("container")).unwrap();
        std::os::unix::fs::symlink(at("host"), at("container")).unwrap();
        assert!(write(&mut journal, &file, "ours").await.is_err());
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
        assert!(restore(&mut journal, &file).await.is_err());
        assert_eq!(std::fs::read_to_string(&host).unwrap(), "theirs");
    }

    #[tokio::test]
    async fn what_somebody_wrote_meanwhile_is_what_stood_before_us() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "first").unwrap();
        let mut journal = Journal::open(dir.path());
        write(&mut journal, &file, "ours").await.unwrap();
        assert_eq!(
            former(&journal, &file, Some(b"ours")).as_deref(),
            Some(b"first".as_slice())
        );
        assert_eq!(
            former(&journal, &file, Some(b"second")).as_deref(),
            Some(b"second".as_slice())
        );
        std::fs::write(&file, "second").unwrap();
        write(&mut journal, &file, "ours").await.unwrap();
        restore(&mut journal, &file).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "second");
    }
}
