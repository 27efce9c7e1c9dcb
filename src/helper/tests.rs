use super::*;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, socket};

#[test]
fn capability_is_read_from_the_effective_set() {
    let status = "Name:\tx\nCapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n";
    assert!(!in_effective_set(status, 12));
    assert!(in_effective_set("CapEff:\t0000000000001000\n", 12));
    assert!(!in_effective_set("", 12));
}

/// A helper on a thread of this process, for this user.
fn helper(dir: &Path) -> PathBuf {
    let path = dir.join("socket");
    let user = nix::unistd::geteuid().to_string();
    let listener = serve::open(&path, &user).unwrap();
    std::thread::spawn(move || {
        serve::accept_all(&listener, nix::unistd::geteuid().as_raw(), Vec::new())
    });
    path
}

fn connected(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    connect(made.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    made
}

#[test]
fn rubbish_is_refused_and_counted_and_the_next_request_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = helper(dir.path());
    let before = serve::refused_so_far();
    let mut rubbish = vec![vec![0], vec![wire::VERSION], vec![wire::VERSION, 200, 1, 2]];
    rubbish.push(vec![wire::VERSION; 4096]);
    rubbish.push(vec![9; 64]);
    for packet in &rubbish {
        let connection = connected(&path);
        let sent = nix::sys::socket::send(connection.as_raw_fd(), packet, MsgFlags::empty());
        assert_eq!(sent, Ok(packet.len()));
        let (reply, descriptors) = wire::receive::<Reply>(&connection).unwrap();
        assert!(
            matches!(reply, Reply::Failed(Error::Refused(_))),
            "{packet:?}: {reply:?}"
        );
        assert!(descriptors.is_empty());
    }
    assert!(serve::refused_so_far() >= before + u64::try_from(rubbish.len()).unwrap());
    let netns = NetnsRef {
        path: dir.path().join("none"),
        device: 1,
        inode: 2,
        cookie: None,
    };
    let request = Request::Open {
        netns: netns.clone(),
    };
    let (reply, _) = client::ask(&path, &request, &[]).unwrap();
    assert_eq!(reply, Reply::Failed(Error::Gone(netns.path)));
}

#[test]
fn a_helper_writes_no_file_but_those_of_workloads() {
    let dir = tempfile::tempdir().unwrap();
    let path = helper(dir.path());
    let file = dir.path().join("web").join("resolv.conf");
    std::fs::create_dir(dir.path().join("web")).unwrap();
    std::fs::write(&file, "theirs").unwrap();
    let write = |path: &Path, make| Request::Write {
        path: path.to_owned(),
        content: b"ours".to_vec(),
        make,
    };
    for strange in [file.as_path(), Path::new("/etc/resolv.conf")] {
        let (reply, _) = client::ask(&path, &write(strange, false), &[]).unwrap();
        assert!(
            matches!(reply, Reply::Failed(Error::Refused(_))),
            "{reply:?}"
        );
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs");
    let of_container = dir.path().join("0123456789abcdef".repeat(4));
    std::fs::create_dir(&of_container).unwrap();
    let own = of_container.join("resolv.conf");
    // What an engine makes for its containers is neither made nor removed.
    let remove = Request::Remove {
        path: own.clone(),
        what: Removed::Directory,
    };
    for making in [write(&own, true), remove] {
        let (reply, _) = client::ask(&path, &making, &[]).unwrap();
        assert!(
            matches!(reply, Reply::Failed(Error::Refused(_))),
            "{reply:?}"
        );
    }
    assert!(of_container.exists() && !own.exists());
    std::fs::write(&own, "theirs").unwrap();
    let (reply, _) = client::ask(&path, &write(&own, false), &[]).unwrap();
    assert_eq!(reply, Reply::Done);
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "ours");
    let read = Request::Read { path: own };
    let (reply, files) = client::ask(&path, &read, &[]).unwrap();
    assert_eq!(reply, Reply::File { directory: true });
    let mut content = String::new();
    File::from(one(files).unwrap())
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!(content, "ours");
}

#[test]
fn a_helper_that_is_away_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let error = client::ask(&path, &Request::Watch, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("the privileged helper at {}", path.display())),
        "{error}"
    );
}

#[test]
fn the_longest_resolver_file_fits_into_a_packet() {
    let request = Request::Write {
        path: "/etc/netns/web/resolv.conf".into(),
        content: vec![b'x'; usize::try_from(MAX_FILE_BYTES).unwrap()],
        make: false,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let ends = nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .unwrap();
    wire::send(&ends.0, &request, &[]).unwrap();
    let (read, _) = wire::receive::<Request>(&ends.1).unwrap();
    assert_eq!(read, request);
}

/// A process in namespaces of its own, which ends with the test.
struct Inside(std::process::Child);

impl Inside {
    /// Starts it with these words before `sleep`, and waits until it sleeps. None where the kernel does not let it.
    fn start(words: &[&str]) -> Option<Inside> {
        let child = std::process::Command::new(words[0])
            .args(&words[1..])
            .args(["sleep", "60"])
            .spawn()
            .unwrap();
        let mut inside = Inside(child);
        let comm = format!("/proc/{}/comm", inside.0.id());
        while std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() != "sleep") {
            if inside.0.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(inside)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn a_namespace_is_told_to_its_own_user_and_to_root_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = helper(dir.path());
    let asked = |inside: &Inside, owner| {
        let path = inside.path();
        let request = Request::Name { path, owner };
        client::ask(&at, &request, &[]).unwrap().0
    };
    const USER: &str = "--reuid=4000001";
    let by_user = |more: &[&'static str]| {
        let words = ["setpriv", USER, "--regid=4000001", "--clear-groups"];
        Inside::start(&[&words, more].concat())
    };
    let Some(own) = by_user(&["unshare", "--user", "--net"]) else {
        return eprintln!("SKIP: no user namespaces for users here");
    };
    let below = by_user(&["unshare", "-U", "-r", "unshare", "-U", "--net"]).unwrap();
    for inside in [&own, &below] {
        for user in [None, Some(4_000_001)] {
            assert!(
                matches!(asked(inside, user), Reply::Namespace(_)),
                "{user:?}"
            );
        }
        let foreign = Reply::Failed(Error::Foreign(inside.path()));
        assert_eq!(asked(inside, Some(4_000_002)), foreign);
    }
    // Root made it, whoever runs in it now.
    let words = ["unshare", "--net", "setpriv", USER];
    let of_root = Inside::start(&words).unwrap();
    let foreign = Reply::Failed(Error::Foreign(of_root.path()));
    assert_eq!(asked(&of_root, Some(4_000_001)), foreign);
    assert!(matches!(asked(&of_root, None), Reply::Namespace(_)));
}
