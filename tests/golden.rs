//! The bytes of version 1: everything that members store and send, as files that later versions have to read.
//!
//! set: fast. See `tests/golden/README.md`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "golden/frames.rs"]
mod frames;
#[path = "golden/lan.rs"]
mod lan;
#[path = "golden/messages.rs"]
mod messages;
#[path = "golden/state.rs"]
mod state;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// A file beside these tests.
fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Whether the files are to be written anew.
fn writes() -> bool {
    std::env::var_os("BYWAY_GOLDEN").is_some_and(|value| value == "write")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().as_chunks::<2>().0.iter();
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Names and bytes of one file: a line for each, `NAME HEX`.
fn read(name: &str) -> BTreeMap<String, Vec<u8>> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, hex)| (name.to_owned(), unhex(hex)))
        .collect()
}
