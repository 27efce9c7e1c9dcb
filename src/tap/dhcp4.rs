//! DHCP for IPv4 (RFC 2131, options of RFC 2132), as the server of one guest.

use std::net::Ipv4Addr;

use super::Refusal;
use super::offer::{LEASE, Offer};

/// Bytes before the options: the fields of BOOTP and the cookie.
const HEADER: usize = 240;
/// Begins the options of DHCP.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shortest packet that old clients take, in bytes.
const LEAST: usize = 300;
/// The flag of a client that hears broadcasts only.
const BROADCAST: u8 = 0x80;

/// Kinds of packets.
mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const RELEASE: u8 = 7;
    pub const INFORM: u8 = 8;
}

/// Numbers of options.
mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const RESOLVER: u8 = 6;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEW: u8 = 58;
    pub const REBIND: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const SEARCH: u8 = 119;
    pub const END: u8 = 255;
}

/// An answer, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    /// The guest's address, or the broadcast address for a guest that has none yet and says so.
    pub to: Ipv4Addr,
    pub bytes: Vec<u8>,
}

/// What of a request matters.
struct Asked<'a> {
    header: &'a [u8],
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Option<&'a [u8]>,
    current: Ipv4Addr,
    by_broadcast: bool,
}

/// Four bytes at a place as an address.
fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    <[u8; 4]>::try_from(four).ok().map(Ipv4Addr::from)
}

/// The options behind the header, one by one; what is behind the end is no part of the packet.
fn options(mut rest: &[u8]) -> Result<Vec<(u8, &[u8])>, Refusal> {
    let mut all = Vec::new();
    loop {
        match rest {
            // Many clients leave the end out where the packet ends.
            [] | [option::END, ..] => return Ok(all),
            [option::PAD, behind @ ..] => rest = behind,
            [number, length, behind @ ..] => {
                let (value, behind) = behind
                    .split_at_checked(usize::from(*length))
                    .ok_or(Refusal::Malformed)?;
                all.push((*number, value));
                rest = behind;
            }
            [_] => return Err(Refusal::Malformed),
        }
    }
}

fn read<'a>(offer: &Offer, packet: &'a [u8]) -> Result<Asked<'a>, Refusal> {
    let (header, behind) = packet.split_at_checked(HEADER).ok_or(Refusal::Malformed)?;
    let field = |at, len: usize| header.get(at..at + len).unwrap_or_default();
    // A request over Ethernet, with an address of six bytes.
    if field(0, 3) != [1, 1, 6] || field(236, 4) != COOKIE {
        return Err(Refusal::Malformed);
    }
    // The guest is on the link: no relay speaks for it.
    if field(28, 6) != offer.mac || field(24, 4) != [0; 4] {
        return Err(Refusal::Foreign);
    }
    let mut asked = Asked {
        header,
        kind: 0,
        requested: None,
        server: None,
        client: None,
        current: address(header, 12).unwrap_or(Ipv4Addr::UNSPECIFIED),
        by_broadcast: field(10, 1) >= [BROADCAST].as_slice(),
    };
    for (number, value) in options(behind)? {
        match (number, value) {
            (option::KIND, [kind]) => asked.kind = *kind,
            (option::REQUESTED, [_, _, _, _]) => asked.requested = address(value, 0),
            (option::SERVER, [_, _, _, _]) => asked.server = address(value, 0),
            (option::KIND | option::REQUESTED | option::SERVER, _) => {
                return Err(Refusal::Malformed);
            }
            (option::CLIENT, _) => asked.client = Some(value),
            _ => {}
        }
    }
    Ok(asked)
}

/// The answer to a packet that came in on the guest's link; none where it wants none.
///
/// # Errors
/// Why the packet is dropped.
pub(super) fn answer(offer: &Offer, packet: &[u8]) -> Result<Option<Reply>, Refusal> {
    let asked = read(offer, packet)?;
    let Some(family) = &offer.v4 else {
        return Ok(None);
    };
    let own = family.address;
    match asked.kind {
        kind::DISCOVER => Ok(Some(reply(offer, &asked, kind::OFFER, own))),
        kind::REQUEST => {
            if asked.server.is_some_and(|server| server != family.gateway) {
                // It took what another server offered.
                return Ok(None);
            }
            let current = Some(asked.current).filter(|a| !a.is_unspecified());
            match asked.requested.or(current) {
                Some(wanted) if wanted == own => Ok(Some(reply(offer, &asked, kind::ACK, own))),
                // An address of another network, or of another time: the guest is to begin anew.
                Some(_) => Ok(Some(reply(offer, &asked, kind::NAK, Ipv4Addr::UNSPECIFIED))),
                None => Err(Refusal::Malformed),
            }
        }
        kind::INFORM if asked.current == own => {
            let nothing = Ipv4Addr::UNSPECIFIED;
            Ok(Some(reply(offer, &asked, kind::ACK, nothing)))
        }
        kind::INFORM => Err(Refusal::Foreign),
        // The address stays the workload's.
        kind::RELEASE | kind::DECLINE => Ok(None),
        _ => Err(Refusal::Kind),
    }
}

/// Adds an option; one that is empty or too long is left out.
fn put(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    if let Ok(length @ 1..) = u8::try_from(value.len()) {
        to.extend([number, length]);
        to.extend(value);
    }
}

fn reply(offer: &Offer, asked: &Asked<'_>, kind: u8, yours: Ipv4Addr) -> Reply {
    let mut bytes = vec![0; HEADER];
    let mut set = |at: usize, value: &[u8]| {
        if let Some(field) = bytes.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    };
    let same = |at, len: usize| asked.header.get(at..at + len).unwrap_or_default();
    set(0, &[2, 1, 6, 0]);
    // The transaction, the flags and the guest's hardware address come back as they are.
    set(4, same(4, 4));
    set(10, same(10, 2));
    if kind == kind::ACK {
        set(12, &asked.current.octets());
    }
    set(16, &yours.octets());
    set(28, same(28, 16));
    set(236, &COOKIE);
    put(&mut bytes, option::KIND, &[kind]);
    if let Some(family) = &offer.v4 {
        let gateway = family.gateway.octets();
        put(&mut bytes, option::SERVER, &gateway);
        if kind != kind::NAK {
            if !yours.is_unspecified() {
                put(&mut bytes, option::LEASE, &LEASE.to_be_bytes());
                put(&mut bytes, option::RENEW, &(LEASE / 2).to_be_bytes());
                put(&mut bytes, option::REBIND, &(LEASE / 8 * 7).to_be_bytes());
            }
            put(&mut bytes, option::MASK, &family.prefix.netmask().octets());
            put(&mut bytes, option::ROUTER, &gateway);
            put(&mut bytes, option::RESOLVER, &gateway);
            put(&mut bytes, option::MTU, &offer.mtu.to_be_bytes());
            put(&mut bytes, option::DOMAIN, offer.domain.as_bytes());
            put(&mut bytes, option::SEARCH, &offer.domain_labels());
        }
    }
    // RFC 6842: what the client calls itself comes back.
    put(&mut bytes, option::CLIENT, asked.client.unwrap_or_default());
    bytes.push(option::END);
    bytes.resize(bytes.len().max(LEAST), 0);
    let has_own = offer
        .v4
        .as_ref()
        .is_some_and(|v4| v4.address == asked.current);
    let to = match kind {
        kind::NAK => Ipv4Addr::BROADCAST,
        _ if has_own => asked.current,
        _ if asked.by_broadcast => Ipv4Addr::BROADCAST,
        _ => yours,
    };
    Reply { to, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::offer::tests::offer;
    use proptest::prelude::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 5);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);

    /// A request of the guest with these options.
    fn packet(kind: u8, more: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes[28..34].copy_from_slice(&offer().mac);
        bytes[236..].copy_from_slice(&COOKIE);
        put(&mut bytes, option::KIND, &[kind]);
        more.iter()
            .for_each(|(n, value)| put(&mut bytes, *n, value));
        bytes.push(option::END);
        bytes
    }

    fn told(reply: &Reply) -> Vec<(u8, &[u8])> {
        options(&reply.bytes[HEADER..]).unwrap()
    }

    fn of(reply: &Reply, number: u8) -> Option<&[u8]> {
        let all = told(reply);
        let mut found = all.iter().filter(|(n, _)| *n == number);
        let value = found.next().map(|(_, value)| *value);
        assert!(found.next().is_none(), "option {number} twice");
        value
    }

    #[test]
    fn a_guest_is_offered_its_address_and_gets_it() {
        let client = [1, 0x52, 0x54, 0, 1, 2, 3];
        let discover = packet(kind::DISCOVER, &[(option::CLIENT, &client)]);
        let first = answer(&offer(), &discover).unwrap().unwrap();
        assert_eq!((first.to, &first.bytes[16..20]), (OWN, &OWN.octets()[..]));
        assert_eq!(&first.bytes[4..8], &[0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(of(&first, option::KIND), Some(&[kind::OFFER][..]));
        assert_eq!(of(&first, option::CLIENT), Some(&client[..]));
        assert!(first.bytes.len() >= LEAST);
        let request = packet(
            kind::REQUEST,
            &[
                (option::SERVER, &GATEWAY.octets()),
                (option::REQUESTED, &OWN.octets()),
            ],
        );
        let second = answer(&offer(), &request).unwrap().unwrap();
        for (number, value) in [
            (option::KIND, &[kind::ACK][..]),
            (option::SERVER, &GATEWAY.octets()),
            (option::MASK, &[255, 255, 0, 0]),
            (option::ROUTER, &GATEWAY.octets()),
            (option::RESOLVER, &GATEWAY.octets()),
            (option::MTU, &1400u16.to_be_bytes()),
            (option::LEASE, &3600u32.to_be_bytes()),
            (option::DOMAIN, b"lab.internal"),
            (option::SEARCH, b"\x03lab\x08internal\0"),
        ] {
            assert_eq!(of(&second, number), Some(value), "option {number}");
        }
    }

    #[test]
    fn a_guest_that_wants_another_address_begins_anew() {
        let other = [192, 168, 1, 9];
        for kind in [packet(kind::REQUEST, &[(option::REQUESTED, &other)]), {
            let mut renewed = packet(kind::REQUEST, &[]);
            renewed[12..16].copy_from_slice(&other);
            renewed
        }] {
            let refused = answer(&offer(), &kind).unwrap().unwrap();
            assert_eq!(of(&refused, option::KIND), Some(&[kind::NAK][..]));
            assert_eq!(refused.to, Ipv4Addr::BROADCAST);
            assert_eq!(&refused.bytes[16..20], &[0; 4]);
            assert_eq!(of(&refused, option::ROUTER), None);
        }
    }

    #[test]
    fn an_answer_goes_where_the_guest_hears_it() {
        let mut deaf = packet(kind::DISCOVER, &[]);
        deaf[10] = BROADCAST;
        assert_eq!(
            answer(&offer(), &deaf).unwrap().unwrap().to,
            Ipv4Addr::BROADCAST
        );
        let mut renews = packet(kind::REQUEST, &[]);
        renews[12..16].copy_from_slice(&OWN.octets());
        let renewed = answer(&offer(), &renews).unwrap().unwrap();
        assert_eq!(
            (renewed.to, &renewed.bytes[12..16]),
            (OWN, &OWN.octets()[..])
        );
        let mut informs = packet(kind::INFORM, &[]);
        informs[12..16].copy_from_slice(&OWN.octets());
        let informed = answer(&offer(), &informs).unwrap().unwrap();
        assert_eq!(of(&informed, option::LEASE), None);
        assert_eq!(&informed.bytes[16..20], &[0; 4]);
    }

    #[test]
    fn what_is_not_the_guests_is_refused() {
        let mut other = packet(kind::DISCOVER, &[]);
        other[33] ^= 1;
        assert_eq!(answer(&offer(), &other), Err(Refusal::Foreign));
        let mut relayed = packet(kind::DISCOVER, &[]);
        relayed[24..28].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(answer(&offer(), &relayed), Err(Refusal::Foreign));
        let mut informs = packet(kind::INFORM, &[]);
        informs[12..16].copy_from_slice(&[10, 77, 1, 6]);
        assert_eq!(answer(&offer(), &informs), Err(Refusal::Foreign));
        let mut reply = packet(kind::OFFER, &[]);
        assert_eq!(answer(&offer(), &reply), Err(Refusal::Kind));
        reply[0] = 2;
        assert_eq!(answer(&offer(), &reply), Err(Refusal::Malformed));
        let elsewhere = packet(kind::REQUEST, &[(option::SERVER, &[10, 0, 0, 1])]);
        assert_eq!(answer(&offer(), &elsewhere), Ok(None));
        assert_eq!(
            answer(&offer(), &packet(kind::REQUEST, &[])),
            Err(Refusal::Malformed),
            "it wants no address"
        );
        for quiet in [kind::RELEASE, kind::DECLINE] {
            assert_eq!(answer(&offer(), &packet(quiet, &[])), Ok(None));
        }
    }

    #[test]
    fn every_truncation_is_refused_or_answered_as_what_it_is() {
        let whole = packet(
            kind::REQUEST,
            &[
                (option::SERVER, &GATEWAY.octets()),
                (option::REQUESTED, &OWN.octets()),
            ],
        );
        for length in 0..whole.len() {
            let told = answer(&offer(), &whole[..length]);
            match told {
                // Before its first option it is of no kind, and without its end it is whole.
                Err(Refusal::Kind) if length == HEADER => {}
                Ok(Some(_)) if length == 255 => {}
                Err(Refusal::Malformed) if ![HEADER, 255].contains(&length) => {}
                other => panic!("{length}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_a_guest_sends_is_answered_with_more_than_its_own(
            tail in proptest::collection::vec(any::<u8>(), 0..400),
            at in 0usize..HEADER,
            byte in any::<u8>(),
        ) {
            let mut bytes = packet(kind::REQUEST, &[]);
            bytes[at] = byte;
            bytes.truncate(HEADER);
            bytes.extend(tail);
            if let Ok(Some(reply)) = answer(&offer(), &bytes) {
                prop_assert!([OWN, Ipv4Addr::BROADCAST].contains(&reply.to));
                prop_assert!(reply.bytes.len() <= 900);
                let yours = address(&reply.bytes, 16).unwrap();
                prop_assert!(yours == OWN || yours.is_unspecified());
            }
        }
    }
}
