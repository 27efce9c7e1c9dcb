//! Where a member says that it may be reached on a link: the text that stands sealed in an answer.
//!
//! ```text
//! version 1 (1) | peer (32) | count (1) | count times: carriers (1; 1 QUIC and datagrams, 2 TCP, 3 both) | address
//! ```
//! An address is written as [`wire::address`](crate::wire::address) says.

use std::net::SocketAddr;

use crate::model::id::PeerId;
use crate::wire::address;

/// The only version of the layout.
const VERSION: u8 = 1;
/// The most places of one offer: a machine has that many addresses on a link, not more.
pub const MAX_PLACES: usize = 8;
/// Bytes of the longest offer.
pub const MAX_OFFER: usize = 1 + 32 + 1 + MAX_PLACES * (1 + address::MAX_ADDRESS);

/// An address of a machine with the carriers that are taken there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The address. One of IPv6 that is link-local has the index of its link as scope, where it was heard here.
    pub address: SocketAddr,
    /// Whether QUIC, and with it datagrams, reach the machine there.
    pub quic: bool,
    /// Whether TCP reaches it there.
    pub tcp: bool,
}

/// What a member says of itself on one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The member. Only a connection proves that it is there.
    pub peer: PeerId,
    /// Where it may be reached, at most [`MAX_PLACES`].
    pub places: Vec<Place>,
}

/// The bytes of an offer; places beyond [`MAX_PLACES`] are left out.
pub fn encode(offer: &Offer) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&offer.peer.0);
    let places = offer.places.iter().take(MAX_PLACES);
    out.push(u8::try_from(places.len()).unwrap_or_default());
    for place in places {
        out.push(u8::from(place.quic) | u8::from(place.tcp) << 1);
        address::put(place.address, &mut out);
    }
    out
}

/// Reads an offer; none where it is cut, too long, of another version, or names a carrier that is unknown.
pub fn decode(bytes: &[u8]) -> Option<Offer> {
    let ([VERSION], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let (peer, rest) = rest.split_first_chunk()?;
    let (count, mut rest) = rest.split_first()?;
    let count = usize::from(*count);
    if count > MAX_PLACES {
        return None;
    }
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        let (carriers, address) = rest.split_first()?;
        let (address, behind) = address::take(address)?;
        if !(1..=3).contains(carriers) {
            return None;
        }
        places.push(Place {
            address,
            quic: carriers & 1 != 0,
            tcp: carriers & 2 != 0,
        });
        rest = behind;
    }
    let peer = PeerId(*peer);
    rest.is_empty().then_some(Offer { peer, places })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str, quic: bool, tcp: bool) -> Place {
        Place {
            address: text.parse().unwrap(),
            quic,
            tcp,
        }
    }

    #[test]
    fn an_offer_by_hand_is_the_documented_layout() {
        let offer = Offer {
            peer: PeerId([5; 32]),
            places: vec![
                place("192.0.2.7:4100", true, true),
                place("[fe80::1]:4100", true, false),
            ],
        };
        let bytes = encode(&offer);
        assert_eq!(bytes[..35], [vec![1], vec![5; 32], vec![2, 3]].concat());
        assert_eq!(bytes[35..42], [0x10, 0x04, 4, 192, 0, 2, 7]);
        assert_eq!(bytes[42..48], [1, 0x10, 0x04, 6, 0xfe, 0x80]);
        assert_eq!(decode(&bytes), Some(offer));
        for short in 0..bytes.len() {
            assert_eq!(decode(&bytes[..short]), None);
        }
        assert_eq!(decode(&[bytes.clone(), vec![0]].concat()), None);
        let mut other = bytes;
        other[34] = 4;
        assert_eq!(decode(&other), None, "an unknown carrier");
    }

    #[test]
    fn the_longest_offer_fits_one_string_of_a_txt_record() {
        let places = vec![place("[2001:db8::1]:4100", true, true); 2 * MAX_PLACES];
        let peer = PeerId([5; 32]);
        let bytes = encode(&Offer { peer, places });
        assert_eq!(bytes.len(), MAX_OFFER);
        assert!(bytes.len() + crate::crypto::blind::OVERHEAD <= 255);
        assert_eq!(decode(&bytes).unwrap().places.len(), MAX_PLACES);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&[&[1], bytes.as_slice()].concat());
        }
    }
}
