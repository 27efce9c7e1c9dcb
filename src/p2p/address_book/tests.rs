use super::*;

fn address(n: usize) -> Multiaddr {
    format!("/ip4/192.0.2.1/tcp/{}", 1000 + n).parse().unwrap()
}

#[test]
fn addresses_through_relays_have_room_beside_any_number_of_others() {
    let (mut book, peer) = (Book::default(), PeerId([1; 32]));
    let key = libp2p::identity::Keypair::ed25519_from_bytes([3; 32]).unwrap();
    let relay = key.public().to_peer_id();
    let circuit = |n: usize| super::super::address::Circuit::through(&address(n), relay);
    let said: Vec<_> = (0..20).map(address).chain((0..9).map(circuit)).collect();
    assert!(book.heard(peer, &said, Source::Announcement));
    let kept = book.addresses(&peer);
    let circuits = kept.iter().filter(|a| is_circuit(a)).count();
    assert_eq!((kept.len() - circuits, circuits), (HEARD, CIRCUITS));
    book.worked(peer, &circuit(7), Source::Connection);
    let now = Instant::now();
    let due = book.due(&peer, Carrier::Tcp, now);
    assert_eq!((due.first.len(), due.circuits.len()), (HEARD, CIRCUITS));
    assert_eq!(due.circuits[0], circuit(7));
    assert!(book.is_due(&peer, false, now) && book.has_direct(&peer));
}

fn due(book: &Book, peer: PeerId, now: Instant) -> Vec<Multiaddr> {
    let Due { first, second, .. } = book.due(&peer, Carrier::Tcp, now);
    first.into_iter().chain(second).collect()
}

#[test]
fn what_was_heard_is_tried_once_and_what_answered_again_and_again() {
    let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
    assert!(book.heard(peer, &[address(1), address(2)], Source::Identify));
    assert_eq!(due(&book, peer, now), [address(1), address(2)]);
    book.dialled(&peer, &[address(1), address(2)], now);
    assert!(
        due(&book, peer, now + Duration::from_secs(86_400)).is_empty(),
        "not by time alone"
    );
    assert!(
        !book.heard(peer, &[address(1), address(2)], Source::Identify),
        "the same again is no news"
    );
    assert!(!book.is_due(&peer, true, now));
    book.worked(peer, &address(2), Source::Connection);
    for _ in 0..3 {
        assert_eq!(due(&book, peer, now), [address(2)]);
        book.dialled(&peer, &[address(2)], now);
    }
    assert!(
        book.heard(peer, &[address(2), address(3)], Source::Identify),
        "one of them is new"
    );
    assert_eq!(due(&book, peer, now), [address(2), address(3)]);
    book.dialled(&peer, &[address(2), address(3)], now);
    book.on_lan(peer, &address(3), false);
    assert_eq!(
        due(&book, peer, now),
        [address(2), address(3)],
        "announced anew"
    );
    book.dialled(&peer, &[address(2), address(3)], now);
    // Another network of ours, or a packet that waits, is a reason of our own.
    book.again(&peer);
    assert_eq!(due(&book, peer, now), [address(2), address(3)]);
}

#[test]
fn what_a_person_gave_is_dialled_whatever_others_say() {
    let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
    book.typed(peer, &address(1));
    book.heard(peer, &[address(2)], Source::Identify);
    book.dialled(&peer, &[address(1), address(2)], now);
    assert_eq!(due(&book, peer, now), [address(1)]);
    book.heard(peer, &[], Source::Identify);
    assert_eq!(book.addresses(&peer), [address(1)]);
    assert!(book.is_typed(&peer, &address(1)) && !book.is_typed(&peer, &address(2)));
}

#[test]
fn heard_addresses_are_eight_and_the_lan_pushes_none_of_the_peers_own_out() {
    let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::now());
    book.heard(
        peer,
        &(0..40).map(address).collect::<Vec<_>>(),
        Source::Identify,
    );
    assert_eq!(due(&book, peer, now).len(), HEARD);
    for n in 100..1000 {
        book.on_lan(peer, &address(n), false);
    }
    let all = book.addresses(&peer);
    assert_eq!(all.len(), HEARD);
    assert!(
        (0..HEARD - LAN).all(|n| all.contains(&address(n))),
        "{all:?}"
    );
    assert!(all.contains(&address(999)), "the newest of the network's");
    book.heard(
        peer,
        &(0..40).map(|n| address(2000 + n)).collect::<Vec<_>>(),
        Source::Announcement,
    );
    assert!(
        book.addresses(&peer).contains(&address(999)),
        "nor the other way round"
    );
    book.worked(peer, &address(999), Source::Lan);
    assert_eq!(book.addresses(&peer).first(), Some(&address(999)));
    assert_eq!(book.trusted(&peer), [address(999)]);
}

#[test]
fn a_peer_that_says_something_new_each_second_is_not_dialled_each_second() {
    let (mut book, peer, start) = (Book::default(), PeerId([1; 32]), Instant::now());
    let mut dialled = 0;
    for second in 0..100u64 {
        let now = start + Duration::from_secs(second);
        let base = 100 * usize::try_from(second).unwrap();
        book.heard(
            peer,
            &(base..base + 8).map(address).collect::<Vec<_>>(),
            Source::Identify,
        );
        let round = due(&book, peer, now);
        book.dialled(&peer, &round, now);
        dialled += round.len();
    }
    // What may be tried at once, and one more each ten seconds.
    let most = HEARD + CIRCUITS + 10;
    assert!((8..=most).contains(&dialled), "{dialled}");
}

#[test]
fn the_last_word_says_whether_an_address_is_of_this_machine() {
    let (mut book, peer) = (Book::default(), PeerId([1; 32]));
    for is_here in [true, false, true] {
        book.on_lan(peer, &address(1), is_here);
        assert_eq!(book.is_here(&peer, &address(1)), is_here);
    }
    assert!(!book.is_here(&peer, &address(2)));
}

#[test]
fn strangers_cannot_push_members_out() {
    let (mut book, member) = (Book::default(), PeerId([255; 32]));
    book.pin([member].into());
    book.on_lan(member, &address(1), false);
    for n in 0..2000u16 {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        book.on_lan(PeerId(key), &address(1), false);
    }
    assert_eq!(book.addresses(&member).len(), 1);
    assert_eq!(book.pages.len(), LOOSE + 1);
}

#[test]
fn each_address_is_known_with_who_said_it_first_and_whether_the_peer_answered_there() {
    let (mut book, peer) = (Book::default(), PeerId([1; 32]));
    book.on_lan(peer, &address(1), false);
    book.heard(peer, &[address(2)], Source::Announcement);
    book.heard(peer, &[address(2), address(3)], Source::Identify);
    book.hinted(peer, &[address(3), address(4)], Source::Hint);
    book.typed(peer, &address(5));
    book.worked(peer, &address(5), Source::Connection);
    book.worked(peer, &address(6), Source::Connection);
    let known = book.known(&peer);
    let at = |n: usize| {
        let known = known.iter().find(|k| k.address.0 == address(n)).unwrap();
        (known.source, known.answered)
    };
    assert_eq!(at(1), (Source::Lan, false));
    assert_eq!(at(2), (Source::Announcement, false));
    assert_eq!(at(3), (Source::Identify, false));
    assert_eq!(at(4), (Source::Hint, false));
    assert_eq!(at(5), (Source::Typed, true));
    assert_eq!(at(6), (Source::Connection, true));
    // The peer itself says it now, and no more is it hearsay of the network.
    book.heard(peer, &[address(1)], Source::Identify);
    let first = book.known(&peer);
    let first = first.iter().find(|k| k.address.0 == address(1)).unwrap();
    assert_eq!(first.source, Source::Identify);
}
