//! Captures in the classic format (`pcap-savefile(5)`, microseconds, this machine's byte order), so that other programs
//! can show a failed test's capture.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

/// Longest frame that is kept whole.
pub const LONGEST: usize = 1 << 17;
const MAGIC: u32 = 0xa1b2_c3d4;

/// A capture being written.
pub struct Writer(BufWriter<File>);

impl Writer {
    /// `link`: 1 for Ethernet, 101 for frames that begin at the IP header.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, link: u32) -> Result<Writer> {
        let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        let mut writer = Writer(BufWriter::with_capacity(1 << 20, file));
        for word in [MAGIC, 2 | 4 << 16, 0, 0, LONGEST as u32, link] {
            writer.0.write_all(&word.to_ne_bytes())?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// One frame, now.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, frame: &[u8]) -> Result<()> {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let length = frame.len() as u32;
        for word in [time.as_secs() as u32, time.subsec_micros(), length, length] {
            self.0.write_all(&word.to_ne_bytes())?;
        }
        Ok(self.0.write_all(frame)?)
    }

    /// What was written is in the file.
    ///
    /// # Errors
    /// The disk is full.
    pub fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// Every whole frame of a capture that may still be growing.
///
/// # Errors
/// It is no capture.
pub fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        bytes.get(..4) == Some(&MAGIC.to_ne_bytes()),
        "{} is no capture",
        path.display()
    );
    let mut rest = bytes.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((head, after)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((frame, next)) = after.split_at_checked(length) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = next;
    }
    Ok(frames)
}
