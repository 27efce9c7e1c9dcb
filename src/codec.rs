//! The one encoding of what byway signs, sends and stores: [postcard](https://postcard.jamesmunns.com/wire-format).
//!
//! | what is read | by |
//! |---|---|
//! | a signed record, whose digest names it | [`decode_canonical`]: one value has one encoding |
//! | a message of a peer | [`decode`]: nothing may follow it |
//! | our own state | [`decode_front`]: a later version may have appended fields; [`decode_grown`]: this one has |
//!
//! Nothing else in this crate names postcard, so that a change of the encoding is a change of this file.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes are not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed encoding")]
pub struct Malformed;

/// Writes a value. Every value of a type has exactly one encoding.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let written = postcard::to_allocvec(value);
    // Only a type that postcard cannot express fails, whatever its value; the tests write every type of ours.
    debug_assert!(written.is_ok(), "{written:?}");
    written.unwrap_or_default()
}

/// Reads a value that takes up all the bytes.
///
/// # Errors
/// [`Malformed`], also for bytes behind the value. A length inside the value is not believed ahead of the bytes it counts:
/// no more is allocated than the input holds.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Malformed),
    }
}

/// Reads a value that takes up all the bytes, in the one encoding that [`encode`] gives it.
///
/// Numbers have longer encodings too, which [`decode`] accepts; two encodings of one statement would have two digests.
///
/// # Errors
/// [`Malformed`], for every other encoding as well.
pub fn decode_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let value: T = decode(bytes)?;
    if encode(&value) == bytes {
        Ok(value)
    } else {
        Err(Malformed)
    }
}

/// Reads a value at the front, whatever follows it.
///
/// # Errors
/// [`Malformed`] where the front is no such value.
pub fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(|_| Malformed)
}

/// Reads a value whose type has gained fields at its end since version 1, which are `appended` bytes long where they are
/// zeroes: false, 0, none or empty. Bytes of before read as if they had been written so.
///
/// # Errors
/// [`Malformed`] where the front is no such value, whether it has those fields or not.
pub fn decode_grown<T: DeserializeOwned>(bytes: &[u8], appended: usize) -> Result<T, Malformed> {
    decode_front(bytes).or_else(|_| {
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().saturating_add(appended), 0);
        decode_front(&whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_a_value_are_refused_but_at_the_front() {
        let mut bytes = encode(&(7_u32, "lab".to_owned()));
        assert_eq!(decode::<(u32, String)>(&bytes), Ok((7, "lab".to_owned())));
        bytes.push(0);
        assert_eq!(decode::<(u32, String)>(&bytes), Err(Malformed));
        assert_eq!(decode_canonical::<(u32, String)>(&bytes), Err(Malformed));
        assert_eq!(
            decode_front::<(u32, String)>(&bytes),
            Ok((7, "lab".to_owned()))
        );
        assert_eq!(decode_front::<(u32, String)>(&bytes[..3]), Err(Malformed));
    }

    #[test]
    fn bytes_of_before_a_field_was_appended_are_read_and_shorter_ones_are_not() {
        let (former, now) = (encode(&(7_u32, "lab")), encode(&(7_u32, "lab", true)));
        type Now = (u32, String, bool);
        assert_eq!(
            decode_grown::<Now>(&former, 1),
            Ok((7, "lab".to_owned(), false))
        );
        assert_eq!(
            decode_grown::<Now>(&now, 1),
            Ok((7, "lab".to_owned(), true))
        );
        let cut = &former[..former.len() - 1];
        assert_eq!(decode_grown::<Now>(cut, 1), Err(Malformed));
    }

    #[test]
    fn a_longer_encoding_of_a_number_is_not_canonical() {
        let longer = [0x87, 0x00];
        assert_eq!(decode::<u32>(&longer), Ok(7));
        assert_eq!(decode_canonical::<u32>(&longer), Err(Malformed));
        assert_eq!(decode_canonical::<u32>(&encode(&7_u32)), Ok(7));
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        // A vector said to hold 2^32 - 1 numbers, without one.
        let lie = [0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(decode::<Vec<u64>>(&lie), Err(Malformed));
    }
}
