//! DHCP for IPv6 (RFC 8415, options of RFC 3646), as the server of one guest.

use std::net::Ipv6Addr;

use super::Refusal;
use super::offer::{LEASE, Offer};

/// Bytes of a client's identifier at most (RFC 8415, 11.1): 128 and its type.
const MAX_IDENTIFIER: usize = 130;
/// Addresses that a guest may ask for at once, in all.
const MAX_ASKED: usize = 16;

/// Kinds of messages.
mod kind {
    pub const SOLICIT: u8 = 1;
    pub const ADVERTISE: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const CONFIRM: u8 = 4;
    pub const RENEW: u8 = 5;
    pub const REBIND: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const RELEASE: u8 = 8;
    pub const DECLINE: u8 = 9;
    pub const INFORMATION: u8 = 11;
}

/// Numbers of options.
mod option {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const ADDRESSES: u16 = 3;
    pub const ADDRESS: u16 = 5;
    pub const STATUS: u16 = 13;
    pub const RAPID: u16 = 14;
    pub const RESOLVER: u16 = 23;
    pub const SEARCH: u16 = 24;
}

/// Why something is not given.
mod status {
    pub const SUCCESS: u16 = 0;
    pub const NO_ADDRESS: u16 = 2;
    pub const NOT_ON_LINK: u16 = 4;
}

/// One association of addresses (`IA_NA`) that a guest asks for, with the addresses that it names.
struct Association {
    id: [u8; 4],
    named: Vec<Ipv6Addr>,
}

/// What of a message matters.
struct Asked<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    associations: Vec<Association>,
    rapid: bool,
}

/// An option that begins a message, with what is behind it.
fn option(bytes: &[u8]) -> Result<(u16, &[u8], &[u8]), Refusal> {
    let [a, b, c, d, behind @ ..] = bytes else {
        return Err(Refusal::Malformed);
    };
    let (number, length) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
    let (value, behind) = behind
        .split_at_checked(usize::from(length))
        .ok_or(Refusal::Malformed)?;
    Ok((number, value, behind))
}

fn association(value: &[u8]) -> Result<Association, Refusal> {
    let (id, behind) = value.split_first_chunk::<4>().ok_or(Refusal::Malformed)?;
    // Two times that the client would like.
    let mut rest = behind.get(8..).ok_or(Refusal::Malformed)?;
    let mut named = Vec::new();
    while !rest.is_empty() {
        let (number, value, behind) = option(rest)?;
        if number == option::ADDRESS {
            let (address, _) = value.split_first_chunk::<16>().ok_or(Refusal::Malformed)?;
            named.push(Ipv6Addr::from(*address));
        }
        rest = behind;
    }
    Ok(Association { id: *id, named })
}

fn read(packet: &[u8]) -> Result<Asked<'_>, Refusal> {
    let ([kind, transaction @ ..], mut rest) =
        packet.split_first_chunk::<4>().ok_or(Refusal::Malformed)?;
    let mut asked = Asked {
        kind: *kind,
        transaction: *transaction,
        client: None,
        server: None,
        associations: Vec::new(),
        rapid: false,
    };
    let mut named = 0;
    while !rest.is_empty() {
        let (number, value, behind) = option(rest)?;
        match number {
            option::CLIENT if (3..=MAX_IDENTIFIER).contains(&value.len()) => {
                asked.client = Some(value);
            }
            option::CLIENT => return Err(Refusal::Malformed),
            option::SERVER => asked.server = Some(value),
            option::ADDRESSES => {
                let one = association(value)?;
                named += 1 + one.named.len();
                asked.associations.push(one);
            }
            option::RAPID => asked.rapid = true,
            _ => {}
        }
        if named > MAX_ASKED {
            return Err(Refusal::Flood);
        }
        rest = behind;
    }
    Ok(asked)
}

/// The answer to a message that came in on the guest's link; none where it wants none.
///
/// # Errors
/// Why the message is dropped.
pub(super) fn answer(offer: &Offer, packet: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let asked = read(packet)?;
    let Some(family) = &offer.v6 else {
        return Ok(None);
    };
    let own = family.address;
    let server = identifier(offer);
    match (asked.kind, asked.server) {
        (kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE, None) => {
            return Err(Refusal::Malformed);
        }
        (kind::SOLICIT | kind::CONFIRM | kind::REBIND, Some(_)) => {
            return Err(Refusal::Malformed);
        }
        // It took what another server offered.
        (_, Some(named)) if named != server => return Ok(None),
        _ => {}
    }
    if asked.client.is_none() && asked.kind != kind::INFORMATION {
        return Err(Refusal::Malformed);
    }
    let named = || asked.associations.iter().flat_map(|one| &one.named);
    let what = match asked.kind {
        kind::SOLICIT if asked.rapid => kind::REPLY,
        kind::SOLICIT => kind::ADVERTISE,
        kind::CONFIRM if named().next().is_none() => return Ok(None),
        kind::REQUEST
        | kind::CONFIRM
        | kind::RENEW
        | kind::REBIND
        | kind::RELEASE
        | kind::DECLINE
        | kind::INFORMATION => kind::REPLY,
        _ => return Err(Refusal::Kind),
    };
    let mut to = begin(&asked, what, &server);
    match asked.kind {
        kind::CONFIRM if named().any(|a| *a != own) => status(&mut to, status::NOT_ON_LINK),
        // The address stays the workload's, whatever the guest gives back.
        kind::CONFIRM | kind::RELEASE | kind::DECLINE => status(&mut to, status::SUCCESS),
        kind::INFORMATION => {}
        _ => {
            for (place, one) in asked.associations.iter().enumerate() {
                put(&mut to, option::ADDRESSES, &given(one, own, place == 0));
            }
            if what == kind::REPLY && asked.kind == kind::SOLICIT {
                put(&mut to, option::RAPID, &[]);
            }
        }
    }
    put(&mut to, option::RESOLVER, &family.gateway.octets());
    let labels = offer.domain_labels();
    if !labels.is_empty() {
        put(&mut to, option::SEARCH, &labels);
    }
    Ok(Some(to))
}

/// How the server is known: by the hardware address of the TAP (`DUID-LL`).
fn identifier(offer: &Offer) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &offer.server].concat()
}

/// Adds an option; what is too long for one, which nothing here is, is left out.
fn put(to: &mut Vec<u8>, number: u16, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        to.extend(number.to_be_bytes());
        to.extend(length.to_be_bytes());
        to.extend(value);
    }
}

fn status(to: &mut Vec<u8>, code: u16) {
    put(to, option::STATUS, &code.to_be_bytes());
}

fn begin(asked: &Asked<'_>, kind: u8, server: &[u8]) -> Vec<u8> {
    let mut to = vec![kind];
    to.extend(asked.transaction);
    if let Some(client) = asked.client {
        put(&mut to, option::CLIENT, client);
    }
    put(&mut to, option::SERVER, server);
    to
}

/// What one association gets: the guest's address goes to the `first`, and what it names beside is to be used no more.
fn given(one: &Association, own: Ipv6Addr, first: bool) -> Vec<u8> {
    let mut to = one.id.to_vec();
    let times = if first {
        [LEASE / 2, LEASE / 5 * 4]
    } else {
        [0, 0]
    };
    times.iter().for_each(|time| to.extend(time.to_be_bytes()));
    let mut address = |address: &Ipv6Addr, life: u32| {
        let life = life.to_be_bytes();
        let value = [&address.octets()[..], &life, &life].concat();
        put(&mut to, option::ADDRESS, &value);
    };
    if first {
        address(&own, LEASE);
    }
    let old = one.named.iter().filter(|a| !first || **a != own);
    old.for_each(|old| address(old, 0));
    if !first {
        status(&mut to, status::NO_ADDRESS);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::offer::tests::offer;
    use proptest::prelude::*;

    const CLIENT: [u8; 10] = [0, 3, 0, 1, 0x52, 0x54, 0, 1, 2, 3];

    fn own() -> Ipv6Addr {
        "fd7a::1:5".parse().unwrap()
    }

    fn wanted(id: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
        let mut value = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
        for a in addresses {
            put(
                &mut value,
                option::ADDRESS,
                &[&a.octets()[..], &[0; 8]].concat(),
            );
        }
        value
    }

    fn packet(kind: u8, more: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![kind, 7, 8, 9];
        put(&mut bytes, option::CLIENT, &CLIENT);
        more.iter()
            .for_each(|(n, value)| put(&mut bytes, *n, value));
        bytes
    }

    fn told(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (number, value, behind) = super::option(rest).unwrap();
            all.push((number, value.to_vec()));
            rest = behind;
        }
        all
    }

    fn of(reply: &[u8], number: u16) -> Vec<Vec<u8>> {
        let all = told(&reply[4..]).into_iter();
        all.filter(|(n, _)| *n == number).map(|(_, v)| v).collect()
    }

    #[test]
    fn a_guest_is_offered_its_address_and_gets_it() {
        let solicit = packet(kind::SOLICIT, &[(option::ADDRESSES, &wanted(1, &[]))]);
        let first = answer(&offer(), &solicit).unwrap().unwrap();
        assert_eq!(first[..4], [kind::ADVERTISE, 7, 8, 9]);
        let server = identifier(&offer());
        let request = packet(
            kind::REQUEST,
            &[
                (option::SERVER, &server),
                (option::ADDRESSES, &wanted(1, &[own()])),
            ],
        );
        let second = answer(&offer(), &request).unwrap().unwrap();
        assert_eq!(second[..4], [kind::REPLY, 7, 8, 9]);
        for reply in [&first, &second] {
            assert_eq!(of(reply, option::CLIENT), [CLIENT.to_vec()]);
            assert_eq!(of(reply, option::SERVER), std::slice::from_ref(&server));
            let [given] = &of(reply, option::ADDRESSES)[..] else {
                panic!("one association");
            };
            assert_eq!(given[..4], [0, 0, 0, 1]);
            let life = LEASE.to_be_bytes();
            let value = [&own().octets()[..], &life, &life].concat();
            assert_eq!(told(&given[12..]), [(option::ADDRESS, value)]);
            let gateway = offer().v6.unwrap().gateway.octets().to_vec();
            assert_eq!(of(reply, option::RESOLVER), [gateway]);
            assert_eq!(
                of(reply, option::SEARCH),
                [b"\x03lab\x08internal\0".to_vec()]
            );
        }
    }

    #[test]
    fn a_hasty_guest_is_given_its_address_at_once() {
        let asked = [
            (option::RAPID, &[][..]),
            (option::ADDRESSES, &wanted(1, &[])),
        ];
        let reply = answer(&offer(), &packet(kind::SOLICIT, &asked))
            .unwrap()
            .unwrap();
        assert_eq!(reply[0], kind::REPLY);
        assert_eq!(of(&reply, option::RAPID), [Vec::<u8>::new()]);
        assert_eq!(of(&reply, option::ADDRESSES).len(), 1);
    }

    #[test]
    fn what_a_guest_had_elsewhere_is_used_no_more() {
        let other: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let rebind = packet(
            kind::REBIND,
            &[
                (option::ADDRESSES, &wanted(1, &[other, own()])),
                (option::ADDRESSES, &wanted(2, &[])),
            ],
        );
        let reply = answer(&offer(), &rebind).unwrap().unwrap();
        let [first, second] = &of(&reply, option::ADDRESSES)[..] else {
            panic!("two associations");
        };
        let lives: Vec<(Vec<u8>, Vec<u8>)> = told(&first[12..])
            .into_iter()
            .map(|(_, v)| (v[..16].to_vec(), v[20..].to_vec()))
            .collect();
        assert_eq!(
            lives,
            [
                (own().octets().to_vec(), LEASE.to_be_bytes().to_vec()),
                (other.octets().to_vec(), vec![0; 4])
            ]
        );
        assert_eq!(
            told(&second[12..]),
            [(option::STATUS, status::NO_ADDRESS.to_be_bytes().to_vec())]
        );
        let confirm = |a| packet(kind::CONFIRM, &[(option::ADDRESSES, &wanted(1, &[a]))]);
        for (address, code) in [(own(), status::SUCCESS), (other, status::NOT_ON_LINK)] {
            let reply = answer(&offer(), &confirm(address)).unwrap().unwrap();
            assert_eq!(of(&reply, option::STATUS), [code.to_be_bytes().to_vec()]);
        }
    }

    #[test]
    fn what_breaks_the_rules_of_the_protocol_is_refused() {
        let server = identifier(&offer());
        let both = [(option::SERVER, &server[..])];
        for (packet, refusal) in [
            (packet(kind::REQUEST, &[]), Refusal::Malformed),
            (packet(kind::SOLICIT, &both), Refusal::Malformed),
            (packet(kind::ADVERTISE, &[]), Refusal::Kind),
            (packet(12, &[]), Refusal::Kind),
            (vec![kind::SOLICIT, 0, 0, 0], Refusal::Malformed),
            (
                packet(kind::SOLICIT, &[(option::CLIENT, &[0; 131])]),
                Refusal::Malformed,
            ),
            (
                packet(
                    kind::SOLICIT,
                    &[(option::ADDRESSES, &wanted(1, &[own(); 16]))],
                ),
                Refusal::Flood,
            ),
        ] {
            assert_eq!(answer(&offer(), &packet), Err(refusal), "{packet:?}");
        }
        let other = [(option::SERVER, &CLIENT[..])];
        assert_eq!(answer(&offer(), &packet(kind::REQUEST, &other)), Ok(None));
        let release = answer(&offer(), &packet(kind::RELEASE, &both))
            .unwrap()
            .unwrap();
        assert_eq!(of(&release, option::STATUS), [vec![0, 0]]);
    }

    #[test]
    fn every_truncation_is_refused_or_answered_as_what_it_is() {
        let asked = [
            (option::RAPID, &[][..]),
            (option::ADDRESSES, &wanted(1, &[own()])),
        ];
        let whole = packet(kind::SOLICIT, &asked);
        for length in 0..whole.len() {
            let told = answer(&offer(), &whole[..length]);
            // Behind its identifier, and behind that and the next option, it is a whole message of less.
            match [18, 22].contains(&length) {
                true => assert!(matches!(told, Ok(Some(_))), "{length}: {told:?}"),
                false => assert_eq!(told, Err(Refusal::Malformed), "{length}"),
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_a_guest_sends_is_given_more_than_its_own(
            kind in 0u8..14,
            tail in proptest::collection::vec(any::<u8>(), 0..400),
            id in 0u8..4,
        ) {
            let mut bytes = packet(kind, &[(option::ADDRESSES, &wanted(id, &[]))]);
            bytes.extend(tail);
            if let Ok(Some(reply)) = answer(&offer(), &bytes) {
                prop_assert!(reply.len() < 1200);
                let _ = told(&reply[4..]);
            }
        }
    }
}
