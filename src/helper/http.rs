//! HTTP to a container engine from a thread that may wait: one question for each connection, each until a deadline.
//!
//! Asked by HTTP/1.0, an engine answers whole and closes the connection: there are no chunks to put together.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::engine::connect;

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The longest answer, in bytes.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// An answer that is being read.
pub(super) struct Answer {
    /// The status of the answer.
    pub status: u16,
    stream: UnixStream,
    /// What came behind the head.
    held: Vec<u8>,
}

/// Why no more was read of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The engine said all.
    Whole,
    /// There was more than was to be read.
    Long,
    /// The deadline passed before the engine had said all.
    Late,
}

/// Asks: `line` is the method and the path, such as `GET /version`. Returns once the head of the answer has come.
///
/// Each question connects anew, and whoever may rename the socket can lead one question elsewhere than the one before. So the
/// kernel is asked each time who listens: an engine of the user that this process is of, which is root.
///
/// # Errors
/// Those of the kernel; [`io::ErrorKind::PermissionDenied`] where somebody else listens; [`io::ErrorKind::TimedOut`] at the
/// deadline; [`io::ErrorKind::InvalidData`] for what is no HTTP.
pub(super) fn ask(
    engine: &Path,
    line: &str,
    body: Option<&str>,
    until: Instant,
) -> io::Result<Answer> {
    let mut stream = connect(engine)?;
    let listens = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
    if listens != geteuid().as_raw() {
        let why = format!("user {listens} listens there, and only root's engine runs a command");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let body = body.unwrap_or_default();
    let asked = format!(
        "{line} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.set_write_timeout(Some(left(until)?))?;
    stream.write_all(asked.as_bytes())?;
    let mut held = Vec::new();
    loop {
        if let Some(end) = held.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = held.split_off(end.saturating_add(4));
            let status = status(&held).ok_or(io::ErrorKind::InvalidData)?;
            return Ok(Answer {
                status,
                stream,
                held: rest,
            });
        }
        if held.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if read(&mut stream, &mut held, until)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Answer {
    /// Reads what the engine says, up to a length in bytes and until a deadline.
    ///
    /// # Errors
    /// Those of the kernel for the connection.
    pub(super) fn body(mut self, most: usize, until: Instant) -> io::Result<(Vec<u8>, End)> {
        loop {
            if self.held.len() > most {
                return Ok((self.held, End::Long));
            }
            match read(&mut self.stream, &mut self.held, until) {
                Ok(0) => return Ok((self.held, End::Whole)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Ok((self.held, End::Late));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads what there is at once, and waits for it until the deadline. 0 is the end of the answer.
fn read(stream: &mut UnixStream, into: &mut Vec<u8>, until: Instant) -> io::Result<usize> {
    let mut piece = [0; 16 * 1024];
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece) {
            Ok(length) => {
                into.extend(piece.get(..length).unwrap_or_default());
                return Ok(length);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The time until a deadline.
fn left(until: Instant) -> io::Result<std::time::Duration> {
    let left = until.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// The status in a head that comes without a coding of its own.
fn status(head: &[u8]) -> Option<u16> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.strip_prefix("HTTP/1.")?.split(' ');
    let status = words.nth(1)?.parse().ok()?;
    let coded = |line: &str| line.to_ascii_lowercase().starts_with("transfer-encoding:");
    (!lines.any(coded)).then_some(status)
}
