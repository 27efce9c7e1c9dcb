//! What the adapters share that an engine runs as programs of their own: one call on standard input, and requests to the
//! daemon over its control socket.

pub(super) mod daemon;
pub(super) mod namespace;

use std::io::{self, Read as _, Write as _};

use serde_json::Value;

/// Bytes of the largest input that is read: what an engine says of a container and its networks has a tenth of that.
const MAX_INPUT: u64 = 1 << 20;

/// Reads standard input to its end.
///
/// # Errors
/// It cannot be read, or has more than 1 MiB.
pub(super) fn input() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_INPUT {
        let message = format!("it has more than {MAX_INPUT} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

/// Writes a value to standard output. Returns whether all of it could be written.
pub(super) fn print(value: &Value) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{value:#}")
        .and_then(|()| out.flush())
        .is_ok()
}

/// The runtime that one call is carried out on.
///
/// # Errors
/// The kernel gives no more descriptors.
pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Whether a link may be called so; the daemon refuses a few more.
pub(super) fn is_link(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=15).contains(&text.len()) && text.bytes().all(legal)
}
