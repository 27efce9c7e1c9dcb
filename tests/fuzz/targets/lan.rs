//! What comes in by multicast DNS, through hickory's parser and ours to the machine that judges it: no message makes it
//! panic, or say more than a bounded number of places.
#![no_main]

use std::time::{Duration, Instant};

use byway::lan::{Lan, LinkIs, MAX_PLACES, Pace, Place, Source, Wanted, decode};
use byway::model::id::{PeerId, SubnetId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(offer) = decode(data) {
        assert!(offer.places.len() <= MAX_PLACES);
    }
    let Some(message) = byway::mdns::fuzz::read(data) else {
        return;
    };
    let mut entropy = |bytes: &mut [u8]| bytes.fill(7);
    let now = Instant::now();
    let mut lan = Lan::new(PeerId([1; 32]), Pace::default());
    let wanted = Wanted {
        subnet: SubnetId([7; 16]),
        others: 1,
        announces: true,
    };
    lan.set_subnets(now, &[wanted], &mut entropy);
    let place = Place {
        address: "192.0.2.1:4100".parse().expect("an address"),
        quic: true,
        tcp: true,
    };
    let is = LinkIs {
        index: 1,
        networks: vec!["192.0.2.1/24".parse().expect("a network")],
        places: vec![place],
    };
    lan.set_links(now, vec![is], &mut entropy);
    let source = Source {
        address: "192.0.2.2".parse().expect("an address"),
        is_here: data.len().is_multiple_of(2),
    };
    for found in lan.receive(now, 1, source, &message, &mut entropy) {
        assert!(!found.places.is_empty() && found.places.len() <= MAX_PLACES);
    }
    while lan
        .poll(now + Duration::from_secs(1), &mut entropy)
        .is_some()
    {}
});
