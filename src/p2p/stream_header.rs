//! The first bytes of a data stream: which subnet its packets belong to.
//!
//! The opener sends version and subnet ID, the accepter answers with its consent; [`crate::wire::frame`] shows the layout.
//! Afterwards only the opener writes. Pure: no I/O.

use crate::model::id::SubnetId;

/// Bytes of the header.
pub(super) const LEN: usize = 17;
/// The version this program writes and reads.
const VERSION: u8 = 1;
/// What the accepter answers when the subnet is one that both are members of.
pub(super) const ACCEPTED: u8 = 1;

/// The header of a stream for `subnet`.
pub(super) fn encode(subnet: SubnetId) -> [u8; LEN] {
    let mut bytes = [VERSION; LEN];
    for (to, from) in bytes.iter_mut().skip(1).zip(subnet.0) {
        *to = from;
    }
    bytes
}

/// The subnet a header names; `None` for another version or length.
pub(super) fn parse(bytes: &[u8]) -> Option<SubnetId> {
    match bytes.split_first()? {
        (&VERSION, id) => id.try_into().ok().map(SubnetId),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Golden, as what `tests/golden` holds: version 1, then the ID.
    #[test]
    fn a_header_has_exactly_the_bytes_of_version_1() {
        let id = [
            0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad,
            0xae, 0xaf,
        ];
        assert_eq!(
            encode(SubnetId(id)),
            *b"\x01\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf"
        );
        assert_eq!((LEN, ACCEPTED), (17, 1));
    }

    proptest! {
        #[test]
        fn a_header_reads_back(id: [u8; 16]) {
            prop_assert_eq!(parse(&encode(SubnetId(id))), Some(SubnetId(id)));
        }

        #[test]
        fn parse_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let parsed = parse(&bytes);
            prop_assert_eq!(parsed.is_some(), bytes.len() == LEN && bytes.first() == Some(&1));
        }
    }
}
