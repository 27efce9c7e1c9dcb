//! The requests that wait for somebody's approval, and whose place a new one takes when they are too many.

use std::collections::BTreeMap;

use crate::model::id::PeerId;
use crate::model::members::{MAX_REQUESTS, Request};
use crate::model::source::Payer;

/// Requests that wait of one source, and of one member who passes them on.
const REQUESTS_EACH: (usize, usize) = (4, 16);
/// Requests that wait of one site: an IPv6 /48.
const REQUESTS_OF_SITE: usize = 8;
/// A request that nobody has repeated for so many seconds may go for a new one: who waits repeats it every five.
const SILENT: u64 = 60;

/// Whether a new request of `payer` has a place among those that wait, perhaps instead of one that goes.
///
/// A full share takes from itself only, and only a request that is not repeated any more. A full table takes one of those
/// first, then the newest of who has most, so that junk does not push out who asked before.
pub(super) fn make_room(requests: &mut BTreeMap<PeerId, Request>, payer: Payer, now: u64) -> bool {
    let site = |payer: Payer| {
        if let Payer::Source(source) = payer {
            Some(source.site())
        } else {
            None
        }
    };
    let count = |of: &dyn Fn(&Request) -> bool| requests.values().filter(|r| of(r)).count();
    let silent = |of: &dyn Fn(&Request) -> bool| {
        let gone = requests
            .iter()
            .filter(|(_, r)| of(r) && r.seen.saturating_add(SILENT) <= now);
        gone.min_by_key(|(_, r)| r.seen).map(|(peer, _)| *peer)
    };
    let same = |r: &Request| r.payer == payer;
    let near = |r: &Request| site(r.payer).is_some() && site(r.payer) == site(payer);
    let each = if site(payer).is_some() {
        REQUESTS_EACH.0
    } else {
        REQUESTS_EACH.1
    };
    let goes = if count(&same) >= each {
        silent(&same)
    } else if count(&near) >= REQUESTS_OF_SITE {
        silent(&near)
    } else if requests.len() < MAX_REQUESTS {
        return true;
    } else {
        let most = requests
            .values()
            .map(|r| (count(&|o| o.payer == r.payer), r.payer))
            .max();
        let newest_of_most = most
            .filter(|(n, _)| *n > count(&same).saturating_add(1))
            .and_then(|(_, most)| {
                let theirs = requests.iter().filter(|(_, r)| r.payer == most);
                theirs.max_by_key(|(_, r)| r.since).map(|(peer, _)| *peer)
            });
        silent(&|_| true).or(newest_of_most)
    };
    goes.is_some_and(|peer| requests.remove(&peer).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::SubnetId;
    use crate::model::join::Ask;
    use crate::model::source::Source;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    fn source(text: &str) -> Payer {
        Payer::Source(Source::of(text.parse().unwrap()))
    }

    /// Adds a request if there is room for it.
    fn ask(requests: &mut BTreeMap<PeerId, Request>, joiner: u16, payer: Payer, now: u64) -> bool {
        let ask = Ask {
            subnet: SubnetId([1; 16]),
            joiner: peer(joiner),
            data_key: [0; 32],
            seal_key: [1; 32],
            name: "guest".parse().unwrap(),
            name_is_default: true,
            ip: None,
            asked: now,
            proof: None,
        };
        let room = make_room(requests, payer, now);
        if room {
            requests.insert(
                peer(joiner),
                Request {
                    ask,
                    payer,
                    since: now,
                    seen: now,
                },
            );
        }
        room
    }

    #[test]
    fn junk_of_one_source_or_member_leaves_room_for_who_asks_elsewhere() {
        let mut requests = BTreeMap::new();
        let taken = (0..100)
            .filter(|n| ask(&mut requests, *n, source("192.0.2.1"), 100))
            .count();
        assert_eq!(taken, 4);
        let site = |n: u16| source(&format!("2001:db8:0:{n:x}::1"));
        assert_eq!(
            (100..200)
                .filter(|n| ask(&mut requests, *n, site(*n), 100))
                .count(),
            8
        );
        assert_eq!(
            (200..300)
                .filter(|n| ask(&mut requests, *n, Payer::Member(peer(9)), 100))
                .count(),
            16
        );
        assert!(ask(&mut requests, 500, source("192.0.2.2"), 100));
        assert!(!ask(&mut requests, 501, source("192.0.2.1"), 100));
    }

    #[test]
    fn newest_junk_does_not_push_out_who_asked_before() {
        let mut requests = BTreeMap::new();
        assert!(ask(&mut requests, 1, source("203.0.113.1"), 90));
        for n in 0..200u16 {
            for k in 0..4 {
                ask(
                    &mut requests,
                    1000 + n * 4 + k,
                    source(&format!("198.51.100.{n}")),
                    100,
                );
            }
        }
        assert_eq!(requests.len(), MAX_REQUESTS);
        assert!(requests.contains_key(&peer(1)), "the first one waits still");
        assert!(
            ask(&mut requests, 2, source("203.0.113.2"), 101),
            "and another comes in"
        );
        assert!(requests.contains_key(&peer(1)) && requests.len() == MAX_REQUESTS);
    }

    #[test]
    fn who_does_not_ask_any_more_makes_room() {
        let mut requests = BTreeMap::new();
        for n in 0..256u16 {
            assert!(
                ask(&mut requests, n, source(&format!("198.51.100.{n}")), 100),
                "{n}"
            );
        }
        assert!(
            !ask(&mut requests, 900, source("203.0.113.1"), 100),
            "everybody has one and repeats it"
        );
        requests
            .values_mut()
            .filter(|r| r.ask.joiner != peer(7))
            .for_each(|r| r.seen = 160);
        assert!(ask(&mut requests, 900, source("203.0.113.1"), 160));
        assert!(!requests.contains_key(&peer(7)));
    }
}
