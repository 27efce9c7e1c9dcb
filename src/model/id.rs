//! Names and identifiers: newtypes where two strings or byte arrays could be swapped.
//!
//! Pure values: parsed once at the edge, valid for ever after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{DecodeKind, Encoding};
use data_encoding_macro::new_encoding;
use serde::{Deserialize, Serialize};

/// Crockford's base32 in lower case: no `i`, `l`, `o`, `u`. Upper case is read, too; spare bits at the end must be zero.
const CROCKFORD: Encoding = new_encoding! {
    symbols: "0123456789abcdefghjkmnpqrstvwxyz",
    translate_from: "ABCDEFGHJKMNPQRSTVWXYZ",
    translate_to: "abcdefghjkmnpqrstvwxyz",
};

/// The 128-bit identifier of a subnet: the first 16 bytes of the SHA-256 of its genesis record.
///
/// Shown as 26 characters of Crockford base32 (128 bits and two zero bits), lower case. Because the genesis holds the
/// owner's key, the ID alone authenticates the owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetId(pub [u8; 16]);

/// Length of a full subnet ID, in characters.
pub const SUBNET_ID_LEN: usize = 26;

/// A subnet ID, peer ID or name is not what a person would have copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has so many characters; a subnet ID has 26.
    #[error("a subnet ID has 26 characters, this has {0}")]
    Length(usize),
    /// The text has a character outside Crockford's alphabet.
    #[error("a subnet ID has no character {0:?}")]
    Character(char),
    /// The two spare bits at the end are not zero.
    #[error("the last character of the subnet ID cannot be right: it was cut or mistyped")]
    Padding,
    /// The text is not the base58 text of an ed25519 peer ID.
    #[error("not a peer ID (12D3KooW…)")]
    PeerId,
    /// The label has more than 63 characters.
    #[error("a name has at most 63 characters, this has {0}")]
    LongName(usize),
    /// The text is not one DNS label.
    #[error(
        "a name is one DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end; {0:?} is not"
    )]
    Name(String),
}

impl fmt::Display for SubnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&CROCKFORD.encode(&self.0))
    }
}

impl fmt::Debug for SubnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for SubnetId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let length = text.chars().count();
        if length != SUBNET_ID_LEN {
            return Err(IdError::Length(length));
        }
        let bytes = CROCKFORD
            .decode(text.as_bytes())
            .map_err(|wrong| match wrong.kind {
                DecodeKind::Trailing => IdError::Padding,
                // What stands before it is in the alphabet, so each character is one byte.
                _ => IdError::Character(text.chars().nth(wrong.position).unwrap_or_default()),
            })?;
        bytes
            .try_into()
            .map(SubnetId)
            .map_err(|_| IdError::Length(length))
    }
}

/// A peer: its ed25519 public key, shown as the libp2p peer ID of that key (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// Identity multihash (0x00, length 36) of the protobuf of an ed25519 key (type 1, 32 bytes): libp2p's `peer-ids` spec.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The 38 bytes of the libp2p peer ID.
    pub fn to_multihash(self) -> Vec<u8> {
        [PEER_ID_HEAD.as_slice(), &self.0].concat()
    }

    /// Reads the 38 bytes of a libp2p peer ID of an ed25519 key.
    pub fn from_multihash(bytes: &[u8]) -> Option<Self> {
        bytes
            .strip_prefix(PEER_ID_HEAD.as_slice())
            .and_then(|key| key.try_into().ok())
            .map(PeerId)
    }

    /// The beginning that a person may type for it: the common part and eight characters.
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).collect()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PeerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // The text of 38 bytes has at most 52 characters: nothing longer is worth decoding.
        let bytes = Some(text)
            .filter(|t| t.len() <= 60)
            .and_then(|t| bs58::decode(t).into_vec().ok())
            .ok_or(IdError::PeerId)?;
        PeerId::from_multihash(&bytes).ok_or(IdError::PeerId)
    }
}

/// One DNS label, lower case: the name of a subnet, member, workload or map (RFC 1123, section 2.1). Clones share the text:
/// a map of a thousand ports has its name a thousand times.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// The label as text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name of what a machine is called: up to its first dot, lower case, every other character `-`.
    pub fn from_host(host: &str) -> Name {
        Name::from_container(host.split('.').next().unwrap_or_default())
    }

    /// Makes a name of what a container or namespace is called: lower case, every other character `-`. A dot divides
    /// nothing there: `web.1` and `web.2` are two.
    pub fn from_container(called: &str) -> Name {
        let mapped: String = called
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(63)
            .collect();
        let trimmed = mapped.trim_matches('-');
        Name(if trimmed.is_empty() { "node" } else { trimmed }.into())
    }

    /// This name, or the first numbered one that nobody has.
    pub fn free(&self, taken: impl Fn(&Name) -> bool) -> Name {
        if !taken(self) {
            return self.clone();
        }
        (2..)
            .map(|n| self.numbered(n))
            .find(|name| !taken(name))
            .unwrap_or_else(|| self.clone())
    }

    /// This name with `-2`, `-3`… behind it, still at most 63 characters.
    pub fn numbered(&self, n: usize) -> Name {
        let tail = format!("-{n}");
        let head: String = self
            .0
            .chars()
            .take(63usize.saturating_sub(tail.len()))
            .collect();
        Name(format!("{}{tail}", head.trim_end_matches('-')).into())
    }
}

impl FromStr for Name {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let lower = text.to_ascii_lowercase();
        let legal = (1..=63).contains(&lower.len())
            && lower
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !lower.starts_with('-')
            && !lower.ends_with('-');
        if legal {
            Ok(Name(lower.into()))
        } else if lower.len() > 63
            && lower
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            Err(IdError::LongName(lower.len()))
        } else {
            // Cut what is echoed: a hostile name must not fill a terminal.
            Err(IdError::Name(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        // What is stored or signed has one spelling only.
        let name: Name = text.parse()?;
        if name.as_str() == text {
            Ok(name)
        } else {
            Err(IdError::Name(text.chars().take(80).collect()))
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text for people (JSON), plain bytes where it is signed or sent.
macro_rules! serde_text_or_bytes {
    ($type:ident, $bytes:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    self.0.serialize(s)
                }
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?
                        .parse()
                        .map_err(serde::de::Error::custom)
                } else {
                    <$bytes>::deserialize(d).map($type)
                }
            }
        }
    };
}
serde_text_or_bytes!(SubnetId, [u8; 16]);
serde_text_or_bytes!(PeerId, [u8; 32]);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn subnet_id_text_reads_back(bytes: [u8; 16]) {
            let id = SubnetId(bytes);
            let text = id.to_string();
            prop_assert_eq!(text.len(), SUBNET_ID_LEN);
            prop_assert_eq!(text.parse::<SubnetId>(), Ok(id));
            prop_assert_eq!(text.to_ascii_uppercase().parse::<SubnetId>(), Ok(id));
        }

        #[test]
        fn peer_id_text_reads_back(bytes: [u8; 32]) {
            let id = PeerId(bytes);
            prop_assert!(id.to_string().starts_with("12D3KooW"));
            prop_assert_eq!(id.to_string().parse::<PeerId>(), Ok(id));
        }

        #[test]
        fn id_parsers_never_panic(text in ".{0,80}") {
            let _ = text.parse::<SubnetId>();
            let _ = text.parse::<PeerId>();
            let _ = text.parse::<Name>();
            let host = Name::from_host(&text);
            prop_assert_eq!(host.as_str().parse::<Name>(), Ok(host));
            let container = Name::from_container(&text);
            prop_assert_eq!(container.as_str().parse::<Name>(), Ok(container));
        }
    }

    #[test]
    fn spare_bits_of_an_id_must_be_zero() {
        let mut text = SubnetId([7; 16]).to_string();
        text.pop();
        text.push('1');
        assert_eq!(text.parse::<SubnetId>(), Err(IdError::Padding));
    }

    #[test]
    fn names_are_one_dns_label() {
        for bad in ["", "a.b", "a/b", "a\nb", "-a", "a-", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "Web-1".parse::<Name>().map(String::from),
            Ok("web-1".to_owned())
        );
        assert_eq!(Name::from_host("My_Box.example.org").as_str(), "my-box");
        assert_eq!(Name::from_container("My_Web.1").as_str(), "my-web-1");
    }
}
