//! What a member says of itself so that datagrams find a way: it reads back, and however much it is, what is taken of it keeps
//! to the quotas.
#![no_main]

use byway::codec::{decode, encode};
use byway::peer::path::{Origin, usable};
use byway::wire::paths::{Candidate, Kind, MAX_CANDIDATES, Paths, within_quotas};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(paths) = decode::<Paths>(data) else {
        return;
    };
    assert_eq!(decode(&encode(&paths)).as_ref(), Ok(&paths));
    let overlay = ["10.77.0.0/16".parse().expect("a prefix")];
    let allowed = |address| usable(address, Origin::Told, &overlay);
    let taken = within_quotas(paths.candidates.iter().copied(), allowed);
    assert!(taken.len() <= MAX_CANDIDATES);
    for (at, Candidate { address, kind }) in taken.iter().enumerate() {
        assert_eq!(allowed(*address), Some(*address));
        assert!(taken[..at].iter().all(|other| other.address != *address));
        let same = taken.iter().filter(|other| {
            other.kind == *kind
                && (*kind != Kind::Host || other.address.is_ipv4() == address.is_ipv4())
        });
        assert!(same.count() <= kind.quota());
    }
});
