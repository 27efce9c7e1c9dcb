//! The messages of circuit relay v2 that a client sends and takes: protobuf, each behind its length.
//!
//! A relay may be anybody, so that nothing is believed here: a message has at most [`MOST`] bytes, unknown fields are passed
//! over, and the first byte that makes no sense ends it. The addresses and the voucher of a reservation are not read.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId as LibPeer;

/// Bytes of the largest message; the specification names this bound.
const MOST: usize = 4096;
/// Bytes of the largest number.
const NUMBER: usize = 10;

/// Types of the messages to a relay (`HopMessage.Type`).
const RESERVE: u64 = 0;
const CONNECT: u64 = 1;
const STATUS: u64 = 2;
/// Types of the messages from a relay (`StopMessage.Type`).
const STOP_CONNECT: u64 = 0;
const STOP_STATUS: u64 = 1;

/// The status of what was done.
pub(super) const OK: u64 = 100;
/// The status of a circuit to somebody who has no place at the relay.
pub(super) const NO_RESERVATION: u64 = 204;

/// A message that cannot be read, or that has no place where it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its message cannot be read")]
pub(super) struct Malformed;

/// What a relay answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u64,
    /// When a reservation ends, in seconds of the Unix time by the relay's clock.
    pub(super) expire: Option<u64>,
}

impl Answer {
    pub(super) fn read(message: &[u8]) -> Result<Answer, Malformed> {
        let (mut kind, mut status, mut expire) = (None, None, None);
        for field in Fields(message) {
            match field? {
                (1, Value::Number(number)) => kind = Some(number),
                (3, Value::Bytes(reservation)) => expire = Some(expiry(reservation)?),
                (5, Value::Number(number)) => status = Some(number),
                _ => {}
            }
        }
        match (kind, status) {
            (Some(STATUS), Some(status)) => Ok(Answer { status, expire }),
            _ => Err(Malformed),
        }
    }
}

fn expiry(reservation: &[u8]) -> Result<u64, Malformed> {
    let mut expire = None;
    for field in Fields(reservation) {
        if let (1, Value::Number(number)) = field? {
            expire = Some(number);
        }
    }
    expire.ok_or(Malformed)
}

/// Reads who is at the other end of a circuit that a relay brings.
pub(super) fn offered(message: &[u8]) -> Result<LibPeer, Malformed> {
    let (mut kind, mut peer) = (None, None);
    for field in Fields(message) {
        match field? {
            (1, Value::Number(number)) => kind = Some(number),
            (2, Value::Bytes(named)) => peer = Some(named),
            _ => {}
        }
    }
    let (Some(STOP_CONNECT), Some(named)) = (kind, peer) else {
        return Err(Malformed);
    };
    let mut id = None;
    for field in Fields(named) {
        if let (1, Value::Bytes(bytes)) = field? {
            id = Some(bytes);
        }
    }
    LibPeer::from_bytes(id.ok_or(Malformed)?).map_err(|_| Malformed)
}

/// Asks for a place.
pub(super) fn reserve() -> Vec<u8> {
    let mut message = Vec::new();
    put_number(&mut message, 1, RESERVE);
    message
}

/// Asks for a circuit to a peer.
pub(in crate::p2p) fn connect(peer: &LibPeer) -> Vec<u8> {
    let (mut named, mut message) = (Vec::new(), Vec::new());
    put_bytes(&mut named, 1, &peer.to_bytes());
    put_number(&mut message, 1, CONNECT);
    put_bytes(&mut message, 2, &named);
    message
}

/// Answers a circuit that a relay brings.
pub(super) fn stop_status(status: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_number(&mut message, 1, STOP_STATUS);
    put_number(&mut message, 4, status);
    message
}

/// Reads one message and not a byte more: what follows on the stream is the circuit's.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = 0;
    for shift in [0, 7] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            if length > MOST {
                break;
            }
            let mut message = vec![0; length];
            stream.read_exact(&mut message).await?;
            return Ok(message);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, Malformed))
}

pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, message.len() as u64);
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn put_number(to: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(to, field << 3);
    put_varint(to, number);
}

fn put_bytes(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(to, field << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

/// The value of a field; of a kind that no field of ours has, nothing is kept.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message, up to the first that cannot be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for at in 0..NUMBER {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has one bit left.
            if at == NUMBER - 1 && bits > 1 {
                return Err(Malformed);
            }
            number |= bits << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
pub(in crate::p2p) fn kept_until(expire: u64) -> Vec<u8> {
    let (mut reservation, mut message) = (Vec::new(), Vec::new());
    put_number(&mut reservation, 1, expire);
    put_number(&mut message, 1, STATUS);
    put_bytes(&mut message, 3, &reservation);
    put_number(&mut message, 5, OK);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer() -> LibPeer {
        let key = libp2p::identity::Keypair::ed25519_from_bytes([3; 32]).unwrap();
        key.public().to_peer_id()
    }

    #[test]
    fn what_a_client_sends_has_the_bytes_of_the_specification() {
        assert_eq!(reserve(), [0x08, 0]);
        assert_eq!(stop_status(OK), [0x08, 1, 0x20, 100]);
        assert_eq!(stop_status(NO_RESERVATION), [0x08, 1, 0x20, 0xcc, 1]);
        let id = peer().to_bytes();
        let mut wanted = vec![0x08, 1, 0x12, 40, 0x0a, 38];
        wanted.extend(&id);
        assert_eq!((connect(&peer()), id.len()), (wanted, 38));
    }

    #[test]
    fn what_a_relay_says_is_read_and_what_makes_no_sense_is_not() {
        for expire in [0, 1, u64::from(u32::MAX), u64::MAX] {
            let read = Answer::read(&kept_until(expire));
            let expire = Some(expire);
            assert_eq!(read, Ok(Answer { status: OK, expire }));
        }
        let refused = Answer::read(&[0x08, 2, 0x28, 0xc9, 1]).unwrap();
        assert_eq!((refused.status, refused.expire), (201, None));
        // An unknown field of each kind is passed over.
        let strange = [
            0x08, 2, 0x28, 100, 0x78, 5, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4,
        ];
        assert_eq!(Answer::read(&strange).map(|a| a.status), Ok(OK));
        for bad in [
            &[][..],
            &[0x08],
            &[0x08, 2],
            &[0x28, 100],
            &[0x08, 0, 0x28, 100],
            &[0x08, 2, 0x28, 100, 0x1a, 5, 0x08, 1],
            &[0x08, 2, 0x28, 100, 0x1a, 0],
            &[0x08, 2, 0x28, 100, 0x0b],
            &[
                0x08, 2, 0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
            ],
        ] {
            assert_eq!(Answer::read(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_circuit_names_who_is_at_its_other_end() {
        let mut message = connect(&peer());
        message[1] = 0;
        assert_eq!(offered(&message), Ok(peer()));
        for bad in [
            &[0x08, 0][..],
            &[0x08, 0, 0x12, 0],
            &[0x08, 0, 0x12, 3, 0x0a, 1, 7],
        ] {
            assert_eq!(offered(bad), Err(Malformed), "{bad:?}");
        }
        assert_eq!(offered(&connect(&peer())), Err(Malformed));
    }

    #[tokio::test]
    async fn a_message_is_read_to_its_end_and_no_further() {
        let mut bytes = Vec::new();
        write(&mut bytes, &[7; 300]).await.unwrap();
        bytes.extend(b"rest");
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).await.unwrap(), [7; 300]);
        assert_eq!(from, b"rest");
        for bad in [&[][..], &[5, 1], &[0x81, 0x20], &[0xff, 0xff, 0xff, 1]] {
            let mut from = bad;
            assert!(read(&mut from).await.is_err(), "{bad:?}");
        }
        let mut largest = vec![0x80, 0x20];
        largest.resize(2 + MOST, 0);
        assert_eq!(read(&mut largest.as_slice()).await.unwrap().len(), MOST);
    }

    proptest! {
        #[test]
        fn no_message_makes_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Answer::read(&bytes);
            let _ = offered(&bytes);
        }
    }
}
