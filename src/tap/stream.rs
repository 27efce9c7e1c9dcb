//! QEMU's `-netdev stream` (and passt's way): frames over a socket of this machine, each behind its length in four bytes,
//! for whoever may open the TAP. It needs no right of QEMU's.
//!
//! The frames go through the TAP all the same, so that everything holds for them that holds for those of a TAP that QEMU
//! opens itself. One of both has it at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use crate::device;

/// Longest frame, in bytes. QEMU's own bound is more; no frame of a link without offload comes near.
const MAX_FRAME: usize = 65_550;
/// Bytes of the length in front of each frame.
const LENGTH: usize = 4;

/// The socket of one TAP.
struct Socket<'a> {
    listener: UnixListener,
    path: &'a Path,
    link: &'a str,
    owner: u32,
    /// The file's own number: whoever comes next may have made another at the path.
    inode: u64,
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let is_own = |meta: std::fs::Metadata| meta.ino() == self.inode;
        if std::fs::symlink_metadata(self.path).is_ok_and(is_own) {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// Serves whoever may open the TAP, for ever.
///
/// # Cancel safety
/// Dropping the future closes the connection and removes the socket.
pub(super) async fn run(path: &Path, link: &str, owner: u32) {
    match Socket::bind(path, link, owner) {
        Ok(socket) => socket.serve().await,
        Err(error) => {
            // QEMU may open the TAP itself all the same.
            tracing::warn!(link, %error, path = %path.display(), "no socket for the guest's stream");
            std::future::pending().await
        }
    }
}

impl<'a> Socket<'a> {
    /// Listens at `path`, in place of what a daemon that is gone left there. Who connects is looked at, not who may open it:
    /// the daemon may give no file to another user.
    ///
    /// # Errors
    /// What the system says.
    fn bind(path: &'a Path, link: &'a str, owner: u32) -> io::Result<Socket<'a>> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
        Ok(Socket {
            listener,
            path,
            link,
            owner,
            inode: std::fs::symlink_metadata(path)?.ino(),
        })
    }

    /// Serves one connection after the other, for ever.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection and gives the TAP free.
    async fn serve(&self) {
        loop {
            let ended = match self.listener.accept().await {
                Ok((stream, _)) => self.connected(stream).await,
                Err(error) => {
                    // Out of descriptors: those of others come back.
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    Err(error)
                }
            };
            if let Err(error) = ended {
                tracing::debug!(link = self.link, %error, "the guest's stream ended");
            }
        }
    }

    async fn connected(&self, stream: UnixStream) -> io::Result<()> {
        let user = stream.peer_cred()?.uid();
        if user != 0 && user != self.owner {
            let why = format!("user {user} may not open the TAP");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let device = watched(device::open(self.link).map_err(io::Error::other)?)?;
        let (from, to) = stream.into_split();
        tokio::select! {
            ended = outward(&device, from) => ended,
            ended = inward(&device, to) => ended,
        }
    }
}

/// The device in the hands of the runtime.
#[expect(
    unsafe_code,
    reason = "AsyncFd::register wants to know that the descriptor stays open"
)]
fn watched(device: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is the same one and open until the AsyncFd that owns it is dropped.
    unsafe { AsyncFd::register(device) }.map_err(io::Error::from)
}

/// Frames of the guest, to the TAP. What the TAP does not take is lost, as on a wire.
async fn outward(device: &AsyncFd<OwnedFd>, mut from: OwnedReadHalf) -> io::Result<()> {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let mut length = [0; LENGTH];
        match from.read_exact(&mut length).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let bytes = room(&mut frame, length)?;
        from.read_exact(bytes).await?;
        let write = |fd: &OwnedFd| Ok(nix::unistd::write(fd, bytes)?);
        if let Err(error) = device.async_io(Interest::WRITABLE, write).await {
            match error.raw_os_error() {
                // Shorter than a header, or the link is down.
                Some(libc::EINVAL | libc::EIO | libc::ENOBUFS | libc::ENOMEM) => {}
                _ => return Err(error),
            }
        }
    }
}

/// As much of the buffer as the length says.
///
/// # Errors
/// No frame is that long.
fn room(frame: &mut [u8], length: [u8; LENGTH]) -> io::Result<&mut [u8]> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    frame
        .get_mut(..length)
        .filter(|f| !f.is_empty())
        .ok_or_else(|| {
            let why = format!("a frame of {length} bytes");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
}

/// Frames of the TAP, to the guest.
async fn inward(device: &AsyncFd<OwnedFd>, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut frame = vec![0; LENGTH + MAX_FRAME];
    loop {
        let read = |fd: &OwnedFd| {
            let (_, room) = frame.split_at_mut(LENGTH);
            Ok(nix::unistd::read(fd, room)?)
        };
        let got = device.async_io(Interest::READABLE, read).await?;
        let length = u32::try_from(got).map_err(io::Error::other)?.to_be_bytes();
        if let Some(front) = frame.get_mut(..LENGTH) {
            front.copy_from_slice(&length);
        }
        to.write_all(frame.get(..LENGTH + got).unwrap_or_default())
            .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_length_that_fits_into_its_buffer() {
        let mut frame = vec![0; MAX_FRAME];
        for (length, fits) in [
            (0, false),
            (1, true),
            (1514, true),
            (MAX_FRAME as u32, true),
            (MAX_FRAME as u32 + 1, false),
            (u32::MAX, false),
        ] {
            let found = room(&mut frame, length.to_be_bytes()).map(|f| f.len() as u32);
            assert_eq!(found.ok(), fits.then_some(length), "{length}");
        }
    }
}
