//! Tells when a file may say something else, whoever writes it.
//!
//! A program may write into the file, put another one in its place, or point a symbolic link elsewhere: `/etc/resolv.conf` is
//! often a link to a file below `/run`. So each name on the way to the file is watched in the directory that it stands in
//! (inotify, which also takes a name that is not there yet), and the file itself, which may be mounted from elsewhere. Whoever
//! follows it still looks now and then: the kernel may refuse a watch (`fs.inotify.max_user_instances`), and of directories
//! further up a change is not seen.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes that come within this are told once: a file that is written anew is empty for a moment.
const SETTLED: Duration = Duration::from_millis(100);
/// Until the kernel is asked again that has refused to watch.
const RETRY: Duration = Duration::from_secs(60);
/// Symbolic links that are followed to the file, as many as the kernel follows.
const LINKS: usize = 40;

/// Says in `changes`, by another number, that the file at `path` may say something else, until `stop`. It says so at the
/// beginning, too: from then on no change is missed that the kernel tells.
pub(crate) async fn run(path: PathBuf, changes: watch::Sender<u64>, stop: CancellationToken) {
    let follow = async {
        loop {
            // Each change may lead the names elsewhere. A new watch stands before anybody is told, so that whoever reads then
            // reads what is watched.
            let pause = match next(&path, &changes).await {
                Ok(()) => SETTLED,
                Err(error) => {
                    let path = path.display();
                    tracing::debug!(%path, %error, "changes of the file are seen late");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(follow).await;
}

/// Watches the file as it stands, says so, and waits for a change.
///
/// # Errors
/// The kernel watches nothing, or tells nothing more.
async fn next(path: &Path, changes: &watch::Sender<u64>) -> io::Result<()> {
    let watched = Watched::new(path)?;
    changes.send_modify(|count| *count = count.wrapping_add(1));
    watched.changed().await
}

/// A name in a directory.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    dir: PathBuf,
    name: OsString,
}

impl Place {
    /// The name at the end of `path`; where its directory is missing, the name of that in the nearest one that is there.
    fn of(path: &Path) -> Option<Place> {
        let (mut dir, mut name) = (path.parent()?, path.file_name()?);
        while !dir.as_os_str().is_empty() && !dir.is_dir() {
            (name, dir) = (dir.file_name()?, dir.parent()?);
        }
        // A path without a directory begins in this one.
        let here = dir.as_os_str().is_empty();
        Some(Place {
            dir: if here { Path::new(".") } else { dir }.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Every name on the way to the file, and where the last of them stands.
fn way(path: &Path) -> (Vec<Place>, PathBuf) {
    let (mut places, mut at) = (Vec::new(), path.to_owned());
    for _ in 0..LINKS {
        places.extend(Place::of(&at));
        let Ok(target) = fs::read_link(&at) else {
            break;
        };
        at = at.parent().unwrap_or(Path::new("")).join(target);
    }
    (places, at)
}

/// inotify, whose descriptor is waited for.
struct Waiting(Inotify);

impl AsRawFd for Waiting {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[expect(
    unsafe_code,
    reason = "AsyncFd::register wants to know that the descriptor stays open"
)]
fn registered(inotify: Waiting) -> io::Result<AsyncFd<Waiting>> {
    // SAFETY: inotify owns its descriptor, and nothing closes or replaces it before it is dropped with the AsyncFd.
    unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }.map_err(io::Error::from)
}

/// What the kernel watches for one file as it stands now.
struct Watched {
    inotify: AsyncFd<Waiting>,
    names: Vec<(WatchDescriptor, OsString)>,
}

impl Watched {
    /// # Errors
    /// The kernel watches none of it.
    fn new(path: &Path) -> io::Result<Watched> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let own = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let of_names = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE;
        let (places, file) = way(path);
        let mut names = Vec::new();
        for Place { dir, name } in places {
            names.push((inotify.add_watch(&dir, own | of_names)?, name));
        }
        // It may not be there yet.
        let _ = inotify.add_watch(&file, own | AddWatchFlags::IN_CLOSE_WRITE);
        Ok(Watched {
            inotify: registered(Waiting(inotify))?,
            names,
        })
    }

    /// Waits for something that concerns the file.
    ///
    /// # Errors
    /// The kernel tells nothing more.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.inotify.get_ref().0.read_events() {
                Ok(events) if events.iter().any(|event| self.concerns(event)) => return Ok(()),
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether an event is about a name on the way. One without a name is about a directory, the file itself, or events that
    /// were lost.
    fn concerns(&self, event: &InotifyEvent) -> bool {
        let is_of = |name: &OsStr| {
            let mut names = self.names.iter();
            names.any(|(of, known)| *of == event.wd && known == name)
        };
        event.name.as_deref().is_none_or(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Time in which a change is seen on a busy machine. Nothing looks at the file by itself here.
    const SOON: Duration = Duration::from_secs(10);

    struct Follower {
        changes: watch::Receiver<u64>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Follower {
        async fn of(path: &Path) -> Follower {
            let (told, changes) = watch::channel(0);
            let stop = CancellationToken::new();
            let task = tokio::spawn(run(path.to_owned(), told, stop.clone()));
            let mut follower = Follower {
                changes,
                stop,
                task,
            };
            follower.hears("the beginning").await;
            follower
        }

        async fn hears(&mut self, what: &str) {
            let changed = tokio::time::timeout(SOON, self.changes.changed()).await;
            changed.expect(what).expect("it watches");
            // Whatever else the same change makes the kernel say.
            tokio::time::sleep(3 * SETTLED).await;
            self.changes.mark_unchanged();
        }

        async fn hears_nothing(&mut self, what: &str) {
            tokio::time::sleep(3 * SETTLED).await;
            assert!(!self.changes.has_changed().unwrap(), "{what}");
        }

        async fn ends(self) {
            self.stop.cancel();
            self.task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_replaced_or_removed_is_noticed_and_another_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut follower = Follower::of(&file).await;
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        follower.hears("that it is there").await;
        fs::write(&file, "nameserver 192.0.2.2\n").unwrap();
        follower.hears("that it was written").await;
        let other = dir.path().join("resolv.conf.new");
        fs::write(&other, "nameserver 192.0.2.3\n").unwrap();
        follower.hears_nothing("another file beside it").await;
        fs::rename(&other, &file).unwrap();
        follower.hears("that another took its place").await;
        assert!(fs::read(&file).is_ok());
        follower.hears_nothing("it was read").await;
        fs::remove_file(&file).unwrap();
        follower.hears("that it is gone").await;
        follower.ends().await;
    }

    #[tokio::test]
    async fn a_link_is_followed_to_where_it_leads_and_where_it_will() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        let file = etc.join("resolv.conf");
        // As systemd-resolved's is before it has begun.
        symlink("../run/resolve/stub.conf", &file).unwrap();
        let mut follower = Follower::of(&file).await;
        fs::create_dir(run.join("resolve")).unwrap();
        follower.hears("the directory").await;
        fs::write(run.join("resolve/stub.conf"), "nameserver 127.0.0.53\n").unwrap();
        follower.hears("the file behind the link").await;
        fs::write(run.join("resolve/other.conf"), "").unwrap();
        follower.hears_nothing("another file beside it").await;
        let later = etc.join("later");
        symlink(run.join("resolve/other.conf"), &later).unwrap();
        fs::rename(&later, &file).unwrap();
        follower.hears("that the link leads elsewhere").await;
        fs::write(run.join("resolve/stub.conf"), "").unwrap();
        follower.hears_nothing("where it led before").await;
        fs::write(run.join("resolve/other.conf"), "nameserver 192.0.2.1\n").unwrap();
        follower.hears("where it leads now").await;
        follower.ends().await;
    }

    #[tokio::test]
    async fn links_that_lead_in_a_circle_are_watched_and_end_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        symlink(&a, &b).unwrap();
        symlink(&b, &a).unwrap();
        assert_eq!(way(&a).0.len(), LINKS);
        let mut follower = Follower::of(&a).await;
        fs::remove_file(&b).unwrap();
        follower.hears("that the circle is open").await;
        follower.ends().await;
    }
}
