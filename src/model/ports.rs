//! Ranges of ports, as people write them: `8080`, `8000-8010`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ports from the first to the last, both from 1 to 65535; one port is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is no [`PortRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// It is not one number, nor two with a hyphen between them.
    #[error("{0:?} is not a port or a range of ports: 1 to 65535, as in 8080 or 8000-8010")]
    Form(String),
    /// Its end comes before its beginning.
    #[error("{0}-{1} is not a range of ports: it ends before it begins")]
    Backwards(u16, u16),
}

impl PortRange {
    /// Every port there is.
    pub const ALL: PortRange = PortRange {
        first: 1,
        last: u16::MAX,
    };

    /// The ports from `first` to `last`; none where that is no range, or 0 is in it.
    pub fn new(first: u16, last: u16) -> Option<PortRange> {
        (first != 0 && first <= last).then_some(PortRange { first, last })
    }

    /// The lowest port of the range.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port of the range.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports the range has, from 1 to 65535.
    pub fn count(self) -> u16 {
        (self.last - self.first).saturating_add(1)
    }

    /// The ports of the range, the lowest first.
    pub fn iter(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether the range has that port.
    pub fn contains(self, port: u16) -> bool {
        self.iter().contains(&port)
    }

    /// The lowest port that both have.
    pub fn shared_with(self, other: PortRange) -> Option<u16> {
        let first = self.first.max(other.first);
        (first <= self.last.min(other.last)).then_some(first)
    }

    /// The range from the lowest port of both to the highest.
    pub fn spanning(self, other: PortRange) -> PortRange {
        PortRange {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// As many ports as this has, from `first` on; none where they would pass the last there is.
    pub fn moved_to(self, first: u16) -> Option<PortRange> {
        PortRange::new(first, first.checked_add(self.last - self.first)?)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortRange { first, last } if first == last => write!(f, "{first}"),
            PortRange { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<PortRange, PortRangeError> {
        let form = || PortRangeError::Form(text.escape_debug().take(40).collect());
        let port = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            let port = text.parse::<u16>().ok();
            port.filter(|port| digits && *port != 0).ok_or_else(form)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        PortRange::new(first, last).ok_or(PortRangeError::Backwards(first, last))
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;

    fn try_from(text: String) -> Result<PortRange, PortRangeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

/// A range on disk: one number, with how many ports follow the first one in its upper half. So a single port is written as
/// it was before there were ranges, and what was written then is read as it is.
pub(super) mod packed {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::PortRange;

    pub(in crate::model) fn serialize<S: Serializer>(
        range: &PortRange,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let more = u32::from(range.last - range.first);
        (more << 16 | u32::from(range.first)).serialize(to)
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PortRange, D::Error> {
        let [a, b, c, d] = u32::deserialize(from)?.to_be_bytes();
        let (more, first) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        first
            .checked_add(more)
            .and_then(|last| PortRange::new(first, last))
            .ok_or_else(|| D::Error::custom("no range of ports"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::prelude::*;

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_is_read_as_it_is_written_and_nothing_else_is() {
        for text in ["1", "8080", "65535", "8000-8010", "1-65535"] {
            assert_eq!(range(text).to_string(), text);
        }
        assert_eq!(range("80-80").to_string(), "80");
        for text in [
            "", "0", "0-5", "5-0", "65536", "1-", "-1", "1-2-3", "+1", "1 - 2", "a", "-",
        ] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
        assert_eq!(
            "9-8".parse::<PortRange>(),
            Err(PortRangeError::Backwards(9, 8))
        );
    }

    #[test]
    fn ranges_share_a_port_or_none() {
        let shared = |a: &str, b: &str| range(a).shared_with(range(b));
        assert_eq!(shared("10-20", "20-30"), Some(20));
        assert_eq!(shared("20-30", "10-20"), Some(20));
        assert_eq!(shared("10-20", "12"), Some(12));
        assert_eq!(shared("10-20", "21-30"), None);
        assert_eq!(range("65535").moved_to(1), Some(range("1")));
        assert_eq!(range("10-11").moved_to(65_535), None);
        assert_eq!(range("10-11").moved_to(0), None);
        assert_eq!(PortRange::ALL.count(), 65_535);
    }

    proptest! {
        #[test]
        fn one_port_on_disk_is_the_number_it_was_before_there_were_ranges(first in 1u16.., more in 0u16..) {
            #[derive(Debug, PartialEq, Serialize, Deserialize)]
            struct Kept(#[serde(with = "packed")] PortRange);
            let one = codec::encode(&Kept(PortRange::new(first, first).unwrap()));
            prop_assert_eq!(&one, &codec::encode(&first));
            if let Some(range) = PortRange::new(first, first.saturating_add(more)) {
                let bytes = codec::encode(&Kept(range));
                prop_assert_eq!(codec::decode::<Kept>(&bytes), Ok(Kept(range)));
            }
            prop_assert!(codec::decode::<Kept>(&codec::encode(&(u32::from(more) << 16))).is_err());
        }
    }
}
