//! One request or answer on a stream: a length (u32, big-endian), then that many bytes.
//!
//! The length is only ever compared with a cap: memory grows with the bytes that have arrived, never with the bytes
//! that were promised. Time limits are the request/response behaviour's.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;

/// Bytes read at most before the next are asked for.
const STEP: usize = 16 * 1024;

/// Reads and writes length-prefixed bodies of bounded length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec {
    /// Bytes of the largest request.
    pub(super) asked: usize,
    /// Bytes of the largest answer.
    pub(super) answered: usize,
}

/// One body of at most `cap` bytes.
#[derive(Debug, Clone, Copy)]
struct Bounded {
    cap: usize,
}

impl Bounded {
    /// Reads one body.
    ///
    /// # Errors
    /// `InvalidData` when the sender announces more than the cap; whatever the stream says otherwise.
    async fn read<T: AsyncRead + Unpin + Send>(self, io: &mut T) -> io::Result<Vec<u8>> {
        let mut length = [0u8; 4];
        io.read_exact(&mut length).await?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.cap {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a body of {length} bytes, at most {} allowed", self.cap),
            ));
        }
        let mut body = Vec::new();
        while body.len() < length {
            let have = body.len();
            body.resize(length.min(have + STEP), 0);
            if let Some(fresh) = body.get_mut(have..) {
                io.read_exact(fresh).await?;
            }
        }
        Ok(body)
    }

    /// Writes one body.
    ///
    /// # Errors
    /// `InvalidInput` when it is larger than the cap; whatever the stream says otherwise.
    async fn write<T: AsyncWrite + Unpin + Send>(self, io: &mut T, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= self.cap);
        let Some(length) = length else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a body of {} bytes, at most {} allowed",
                    body.len(),
                    self.cap
                ),
            ));
        };
        io.write_all(&length.to_be_bytes()).await?;
        io.write_all(body).await?;
        io.flush().await
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        Bounded { cap: self.asked }.read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        Bounded { cap: self.answered }.read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Vec<u8>,
    ) -> io::Result<()> {
        Bounded { cap: self.asked }.write(io, &body).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Vec<u8>,
    ) -> io::Result<()> {
        Bounded { cap: self.answered }.write(io, &body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::*;

    const SMALL: Bounded = Bounded { cap: 40_000 };

    proptest! {
        #[test]
        fn codec_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = block_on(SMALL.read(&mut Cursor::new(bytes)));
        }

        #[test]
        fn bodies_read_back(body in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let mut wire = Cursor::new(Vec::new());
            block_on(SMALL.write(&mut wire, &body)).unwrap();
            wire.set_position(0);
            prop_assert_eq!(block_on(SMALL.read(&mut wire)).unwrap(), body);
        }
    }

    #[test]
    fn a_body_over_the_cap_is_refused_before_it_is_read() {
        let wire = [u32::MAX.to_be_bytes().as_slice(), &[0; 8]].concat();
        let refused = block_on(SMALL.read(&mut Cursor::new(wire))).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(block_on(SMALL.write(&mut Cursor::new(Vec::new()), &vec![0; 40_001])).is_err());
    }

    #[test]
    fn a_promised_length_allocates_nothing() {
        // The largest legal promise, then the end of the stream: the reader holds one step at most.
        let codec = Bounded { cap: usize::MAX };
        let refused =
            block_on(codec.read(&mut Cursor::new(u32::MAX.to_be_bytes().to_vec()))).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    }
}
