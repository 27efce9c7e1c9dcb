//! A gate to a container engine: whoever may say anything to an engine is root, so the daemon may only ask.
//!
//! The daemon gets one end of a pair of sockets, and speaks HTTP as to the engine itself. Of what it sends only the path of
//! one `GET` is passed on, where it is one of those that look at containers and networks; what the engine answers comes back
//! as it is.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, sockopt};

use super::wire::Error;

/// Where engines listen on this machine.
const ENGINES: [&str; 4] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/var/run/podman/podman.sock",
];
/// Longest request that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long a request may take to arrive, and an answer to be taken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Gates that are open at the same time: each follower of an engine has one for its events, and asks some questions.
const MAX_OPEN: usize = 24;
/// Gates that are open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One of [`OPEN`].
struct Opened;

impl Opened {
    fn new() -> Option<Opened> {
        let one_more = |n: usize| (n < MAX_OPEN).then(|| n + 1);
        OPEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()
            .map(|_| Opened)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The two sides of a gate.
pub(super) struct Gate {
    _opened: Opened,
    daemon: UnixStream,
    engine: UnixStream,
    /// The user whose engine listens there, as the kernel says.
    user: u32,
}

/// Whether engines of the machine listen there.
pub(crate) fn is_usual(socket: &Path) -> bool {
    ENGINES.into_iter().any(|known| Path::new(known) == socket)
}

/// Whether that is the socket of an engine: a usual one, or one among `more`.
///
/// # Errors
/// Where it is not.
pub(super) fn is_known(socket: &Path, more: &[PathBuf]) -> Result<(), Error> {
    if is_usual(socket) || more.iter().any(|known| known == socket) {
        return Ok(());
    }
    let socket = socket.display();
    Err(Error::Refused(format!(
        "{socket} is no engine's: byway helper --engine {socket} makes it one"
    )))
}

/// Connects to an engine: the gate, and the end of it for the daemon.
///
/// # Errors
/// Nobody listens there, or it is no socket of an engine: neither a usual one nor among `more`.
pub(super) fn gate(socket: &Path, more: &[PathBuf]) -> Result<(Gate, UnixStream), Error> {
    is_known(socket, more)?;
    let opened = Opened::new()
        .ok_or_else(|| Error::Refused("too many ask container engines at once".to_owned()))?;
    let connect = || {
        let engine = connect(socket)?;
        let user = getsockopt(&engine, sockopt::PeerCredentials)?.uid();
        let (daemon, far) = UnixStream::pair()?;
        let gate = Gate {
            _opened: opened,
            daemon,
            engine,
            user,
        };
        Ok((gate, far))
    };
    connect().map_err(Error::system("ask the engine at", socket))
}

/// Connects at once or not at all: an engine that stands still, with its queue full, makes nobody wait (EAGAIN).
pub(super) fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(socket)?)?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Gate {
    /// The user who listened on the engine's socket.
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    /// Passes one request on, and its answer back until either side ends.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] for a request that is not passed on.
    pub(super) fn pass(mut self) -> io::Result<()> {
        self.daemon.set_read_timeout(Some(TIMEOUT))?;
        self.daemon.set_write_timeout(Some(TIMEOUT))?;
        self.engine.set_write_timeout(Some(TIMEOUT))?;
        let head = self.head()?;
        let path = path(&head).ok_or(io::ErrorKind::PermissionDenied)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n");
        self.engine.write_all(request.as_bytes())?;
        let mut piece = vec![0; 16 * 1024];
        loop {
            let mut ends = [
                PollFd::new(self.engine.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.daemon.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ends, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let [engine, daemon] = ends.map(|end| end.any().unwrap_or(true));
            if engine {
                match self.engine.read(&mut piece)? {
                    0 => return Ok(()),
                    length => self
                        .daemon
                        .write_all(piece.get(..length).unwrap_or_default())?,
                }
            } else if daemon {
                // It has gone, or says more than one request.
                return Ok(());
            }
        }
    }

    /// The head of the request. Nothing may follow it.
    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        let mut piece = [0; 1024];
        while !head.ends_with(b"\r\n\r\n") {
            let length = self.daemon.read(&mut piece)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.extend(piece.get(..length).unwrap_or_default());
            if head.len() > MAX_HEAD {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
        Ok(head)
    }
}

/// The path of a request that may be passed on.
fn path(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head).ok()?.split("\r\n").next()?;
    let path = line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1")?;
    let (place, query) = path.split_once('?').unwrap_or((path, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !query.chars().all(|c| plain(c) || "%=&".contains(c)) {
        return None;
    }
    let mut parts: Vec<&str> = place.strip_prefix('/')?.split('/').collect();
    // The version of the API may stand in front.
    let version = |part: &&str| {
        let digits = part.strip_prefix('v').unwrap_or_default();
        !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    if parts.first().is_some_and(version) {
        parts.remove(0);
    }
    let named = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
    };
    let looks = match parts[..] {
        ["_ping" | "version" | "events" | "networks"] => true,
        ["containers", name, "json"] | ["networks", name] => named(name),
        ["containers", "json"] => true,
        // An image by its hash.
        ["images", name, "json"] => name.strip_prefix("sha256:").is_some_and(named),
        _ => false,
    };
    looks.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_looks_are_passed_on() {
        let of = |line: &str| path(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).is_some();
        for path in [
            "/containers/web_1/json",
            "/v1.41/containers/0f1e2d/json",
            "/containers/json?filters=%7B%22a%22%7D",
            "/events?since=1.000000001&filters=%7B%7D",
            "/networks",
            "/networks/0f1e2d",
            "/images/sha256:0f1e2d/json",
            "/version",
        ] {
            assert!(of(&format!("GET {path} HTTP/1.1")), "{path}");
        }
        for line in [
            "POST /containers/create HTTP/1.1",
            "GET /containers/web/archive?path=/etc HTTP/1.1",
            "GET /containers/web/../../json HTTP/1.1",
            "GET /containers/../images/json HTTP/1.1",
            "GET /containers//json HTTP/1.1",
            "GET /containers/%2e%2e/json HTTP/1.1",
            "GET /containers/web/logs HTTP/1.1",
            "GET /images/box:1/json HTTP/1.1",
            "GET /images/sha256:../json HTTP/1.1",
            "GET /version?x=a b HTTP/1.1",
            "GET /version HTTP/1.0",
            "GET http://x/version HTTP/1.1",
            "GET  HTTP/1.1",
            "",
        ] {
            assert!(!of(line), "{line}");
        }
    }

    /// What an engine hears of a request, where it hears anything, and what the daemon hears of its answer.
    fn through(request: &str, answer: &str) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("engine");
        let listener = std::os::unix::net::UnixListener::bind(&at).unwrap();
        let (gate, mut far) = gate(&at, std::slice::from_ref(&at)).unwrap();
        assert_eq!(gate.user(), nix::unistd::geteuid().as_raw());
        let (mut engine, _) = listener.accept().unwrap();
        let passing = std::thread::spawn(move || drop(gate.pass()));
        far.write_all(request.as_bytes()).unwrap();
        let mut heard = vec![0; MAX_HEAD];
        let length = engine.read(&mut heard).unwrap();
        heard.truncate(length);
        let _ = engine.write_all(answer.as_bytes());
        drop(engine);
        let mut told = String::new();
        far.read_to_string(&mut told).unwrap();
        passing.join().unwrap();
        (String::from_utf8(heard).unwrap(), told)
    }

    #[test]
    fn an_engine_hears_the_path_alone_and_its_answer_comes_back_whole() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &"x".repeat(100_000);
        let (heard, told) = through("GET /version HTTP/1.1\r\nX-Other: 1\r\n\r\n", &answer);
        assert_eq!(
            heard,
            "GET /version HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(told, answer);
        // Nothing is heard of what is no look, nor of what hides behind one.
        for request in [
            "POST /containers/create HTTP/1.1\r\n\r\n",
            "GET /version HTTP/1.1\r\n\r\nPOST /x HTTP/1.1\r\n\r\n",
        ] {
            let (heard, told) = through(request, &answer);
            assert!(!heard.contains("POST"), "{heard}");
            assert!(heard.is_empty() == told.is_empty(), "{told}");
        }
        let strange = gate(Path::new("/run/other.sock"), &[]);
        assert!(matches!(strange, Err(Error::Refused(_))));
    }
}
