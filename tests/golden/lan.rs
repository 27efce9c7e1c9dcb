//! What is told on local networks. These bytes were computed by another program.

use byway::crypto::blind::Blind;
use byway::lan::{self, Offer, Place};
use byway::model::id::SubnetId;

use super::messages::{Golden, peer};

pub(super) fn lan(golden: &mut Golden) {
    let blind = Blind::of(SubnetId([7; 16])).unwrap();
    let name = blind.name(2, [9; 8]);
    golden.put("lan/name", name.to_vec());
    let place = |text: &str, quic, tcp| Place {
        address: text.parse().unwrap(),
        quic,
        tcp,
    };
    let offer = Offer {
        peer: peer(1),
        places: vec![
            place("192.0.2.7:4100", true, true),
            place("[fe80::7]:4100", true, false),
        ],
    };
    let text = lan::encode(&offer);
    assert_eq!(lan::decode(&text), Some(offer));
    let sealed = blind.seal([5; 16], &name, &text).unwrap();
    assert_eq!(blind.open(&name, &sealed), Some(text.clone()));
    golden.put("lan/offer", text);
    golden.put("lan/sealed", sealed);
}
