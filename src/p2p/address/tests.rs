//! Which addresses are dialled on whose word, and what their parts are.

use super::*;
use proptest::prelude::*;

fn dialled(text: &str, on_link: bool) -> bool {
    let overlay = [
        "10.7.0.0/16".parse().unwrap(),
        "fd00:7::/48".parse().unwrap(),
    ];
    let own = Own::of(&[
        ("eth0", "10.99.0.1/24"),
        ("eth0", "fd99::1/64"),
        ("eth1", "169.254.3.4/16"),
        ("eth1", "fe80::3/64"),
    ]);
    Heard::of(text.parse().unwrap(), on_link).is_some_and(|heard| heard.may_dial(&overlay, &own))
}

#[test]
fn a_link_local_address_is_dialled_by_its_link_where_that_has_such_addresses() {
    for (text, on_link, is_dialled) in [
        ("/ip6zone/eth1/ip6/fe80::9/tcp/4100", true, true),
        ("/ip6zone/eth1/ip6/fe80::9/udp/4100/quic-v1", true, true),
        ("/ip6zone/eth1/ip6/fe80::9/tcp/4100", false, false),
        ("/ip6zone/eth0/ip6/fe80::9/tcp/4100", true, false),
        ("/ip6zone/eth9/ip6/fe80::9/tcp/4100", true, false),
        ("/ip6zone/eth1/ip6/fe80::3/tcp/4100", true, false),
        ("/ip6zone/eth1/ip6/fe80::9/tcp/22", true, false),
        ("/ip6zone/eth1/ip6/fd99::9/tcp/4100", true, false),
        ("/ip6zone/eth1/ip4/10.99.0.9/tcp/4100", true, false),
    ] {
        assert_eq!(dialled(text, on_link), is_dialled, "{text} {on_link}");
    }
    let scoped = |text: &str| text.parse::<Address>().unwrap().socket();
    // The loopback link is there in every namespace, with the index 1.
    let at = "[fe80::9%1]:4100".parse().unwrap();
    assert_eq!(scoped("/ip6zone/lo/ip6/fe80::9/tcp/4100"), Some(at));
    assert_eq!(scoped("/ip6zone/lo/ip6/fe80::9/udp/4100/quic-v1"), Some(at));
    assert_eq!(scoped("/ip6zone/nosuch/ip6/fe80::9/tcp/4100"), None);
    let heard = Heard::on_link(at, Carrier::Quic).unwrap();
    assert_eq!(
        heard.address().to_string(),
        "/ip6zone/lo/ip6/fe80::9/udp/4100/quic-v1"
    );
    assert_eq!(heard.address().udp(), Some(at));
}

#[test]
fn datagrams_go_to_a_lan_peer_by_its_link_and_to_no_address_that_is_not_dialled() {
    // The loopback link is there in every namespace, with the index 1.
    let own = Own::of(&[
        ("lo", "fe80::3/64"),
        ("eth0", "10.99.0.1/24"),
        ("eth0", "169.254.3.4/16"),
    ]);
    let sent = |text: &str| sendable_beside(&[text.parse().unwrap()], &own);
    for (text, at) in [
        (
            "/ip6zone/lo/ip6/fe80::9/udp/4100/quic-v1",
            "[fe80::9%1]:4100",
        ),
        ("/ip4/169.254.9.9/udp/4100/quic-v1", "169.254.9.9:4100"),
        ("/ip4/10.99.0.9/udp/4100/quic-v1", "10.99.0.9:4100"),
        ("/ip6/::ffff:10.99.0.9/udp/4100/quic-v1", "10.99.0.9:4100"),
        ("/ip6/fd99::9/udp/4100/quic-v1", "[fd99::9]:4100"),
    ] {
        assert_eq!(sent(text), [at.parse().unwrap()], "{text}");
    }
    for text in [
        "/ip6zone/lo/ip6/fe80::9/tcp/4100",
        "/ip6zone/lo/ip6/fe80::3/udp/4100/quic-v1",
        "/ip6zone/eth0/ip6/fe80::9/udp/4100/quic-v1",
        "/ip4/10.99.0.1/udp/4100/quic-v1",
        "/ip4/127.0.0.1/udp/4100/quic-v1",
        "/ip4/10.99.0.9/udp/53/quic-v1",
        "/dns4/a.example/udp/4100/quic-v1",
    ] {
        assert_eq!(sent(text), [], "{text}");
    }
}

#[test]
fn overlay_addresses_are_never_dialled() {
    for bad in [
        "/ip4/10.7.1.1/tcp/4100",
        "/ip6/fd00:7::1/udp/4100/quic-v1",
        "/ip6/::ffff:10.7.1.1/tcp/4100",
        "/ip6/64:ff9b::10.7.1.1/tcp/4100",
        "/ip6/2002:a07:101::1/tcp/4100",
    ] {
        assert!(!dialled(bad, false), "{bad}");
    }
    for good in [
        "/ip4/10.8.1.1/tcp/4100",
        "/ip6/fd00:8::1/udp/4100/quic-v1",
        "/ip4/10.8.1.1/tcp/443",
    ] {
        assert!(dialled(good, false), "{good}");
    }
}

#[test]
fn hearsay_names_no_host_name_and_nothing_of_this_machine() {
    for bad in [
        "/dns4/example.org/tcp/4100",
        "/dns/example.org/udp/4100/quic-v1",
        "/ip4/127.0.0.1/tcp/6379",
        "/ip6/::1/tcp/6379",
        "/ip4/10.99.0.1/tcp/6379",
        "/ip6/fd99::1/tcp/6379",
        "/ip4/0.0.0.0/tcp/4100",
        "/ip4/224.0.0.251/udp/4100/quic-v1",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/tcp/25",
        "/ip4/169.254.169.254/tcp/4100",
        "/ip6/fd00:ec2::254/tcp/4100",
        "/ip4/192.0.2.1/udp/4100",
        "/unix/tmp",
    ] {
        assert!(!dialled(bad, false) && !dialled(bad, true), "{bad}");
    }
    assert_eq!(Heard::parse("/dns4/example.org/tcp/4100"), None);
    assert!(
        Typed::from_str("/dns4/example.org/tcp/4100").is_ok(),
        "a person may mean a name"
    );
}

#[test]
fn link_local_addresses_are_dialled_only_on_the_link_they_were_heard_on() {
    assert!(dialled("/ip4/169.254.9.9/tcp/4100", true));
    assert!(dialled("/ip6/fe80::1/udp/4100/quic-v1", true));
    for (bad, on_link) in [
        ("/ip4/169.254.9.9/tcp/4100", false),
        ("/ip4/169.254.3.4/tcp/4100", true),
        ("/ip4/169.254.169.254/tcp/4100", true),
        ("/ip6/fe80::1/tcp/4100", true),
        ("/ip6/fe80::1/udp/4100/quic-v1", false),
        ("/ip6/fe80::3/udp/4100/quic-v1", true),
        ("/ip6/::ffff:169.254.9.9/tcp/4100", false),
    ] {
        assert!(!dialled(bad, on_link), "{bad}");
    }
}

#[test]
fn another_daemon_of_this_machine_is_dialled_at_its_address_and_never_at_loopback() {
    let own = Own::of(&[("eth0", "10.99.0.1/24"), ("eth1", "fe80::3/64")]);
    let overlay = ["10.99.0.7/32".parse().unwrap()];
    let here = |text: &str| {
        let heard = Heard::of(text.parse().unwrap(), true).unwrap();
        assert!(!heard.may_dial(&overlay, &own) || !text.contains("10.99.0.1"));
        heard.here().may_dial(&overlay, &own)
    };
    for good in [
        "/ip4/10.99.0.1/tcp/4101",
        "/ip4/10.99.0.1/udp/4101/quic-v1",
        "/ip6zone/eth1/ip6/fe80::3/tcp/4101",
    ] {
        assert!(here(good), "{good}");
    }
    for bad in [
        "/ip4/127.0.0.1/tcp/4101",
        "/ip6/::1/udp/4101/quic-v1",
        "/ip4/0.0.0.0/tcp/4101",
        "/ip4/10.99.0.1/tcp/22",
        "/ip4/10.99.0.7/tcp/4101",
        "/ip4/169.254.169.254/tcp/4101",
    ] {
        assert!(!here(bad), "{bad}");
    }
}

#[test]
fn what_a_member_sees_us_at_may_be_ours_but_no_other_special_address() {
    let told = |text: &str| may_tell(&text.parse().unwrap(), &["10.7.0.0/16".parse().unwrap()]);
    assert!(told("/ip4/10.99.0.1/udp/4100/quic-v1"));
    for bad in [
        "/ip4/127.0.0.1/tcp/4100",
        "/ip4/10.7.0.1/tcp/4100",
        "/ip4/203.0.113.1/tcp/25",
        "/ip6/fe80::1/tcp/4100",
    ] {
        assert!(!told(bad), "{bad}");
    }
}

#[test]
fn other_transports_are_refused_as_text() {
    for bad in [
        "",
        "192.0.2.1:4100",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.1/tcp/4100/tls",
        "/ip4/192.0.2.1/tcp/443/tls/sni/a.example/ws",
        "/unix/tmp",
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
    let with_peer = format!("/ip4/192.0.2.1/tcp/4100/p2p/{}", peer());
    assert_eq!(with_peer.parse::<Address>().unwrap().peer(), Some(peer()));
    assert_eq!(
        with_peer.parse::<Address>().unwrap().carrier(),
        Some(Carrier::Tcp)
    );
}

#[test]
fn a_websocket_is_dialled_on_hearsay_at_an_address_and_at_no_path() {
    let secure = "/ip4/192.0.2.1/tcp/443/wss";
    let same: Address = "/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap();
    assert_eq!(
        (same.to_string().as_str(), same.carrier()),
        (secure, Some(Carrier::Web))
    );
    let heard = Heard::of("/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap(), false);
    assert_eq!(heard.unwrap().address(), &same);
    for good in [
        secure,
        "/ip6/2001:db8::1/tcp/8080/ws",
        "/dns4/a.example/tcp/443/wss",
    ] {
        assert!(dialled(good, false), "{good}");
    }
    // What the name of it led to.
    let led = |ip: &str| {
        let text = format!("/{ip}/tcp/443/tls/sni/a.example/wss");
        may_lead_to(&text.parse().unwrap())
    };
    assert!(led("ip4/203.0.113.7") && led("ip6/2001:db8::1"));
    assert!(!led("ip4/127.0.0.1") && !led("ip4/169.254.169.254") && !led("ip6/fe80::1"));
    let marked =
        super::super::web::with_heard_name(&"/dns4/a.example/tcp/443/wss".parse().unwrap());
    assert_eq!(bare(&marked).to_string(), "/dns4/a.example/tcp/443/wss");
    assert_eq!(carrier_of(&marked), Some(Carrier::Web));
    for bad in [
        "/ip4/192.0.2.1/tcp/80/ws",
        "/ip4/10.7.1.1/tcp/443/wss",
        "/ip4/127.0.0.1/tcp/443/wss",
        "/dns4/a.lan/tcp/443/wss",
        "/dns4/a.example/tcp/8443/wss",
        "/ip4/192.0.2.1/tcp/443/x-parity-wss/%2fadmin",
    ] {
        assert!(!dialled(bad, false), "{bad}");
        let typed: Typed = bad.parse().unwrap();
        assert_eq!(
            typed.address().carrier(),
            Some(Carrier::Web),
            "a person may mean it"
        );
    }
    assert!(!may_tell(&same.0, &[]), "its port is of one connection");
    let relay = peer();
    let through = format!("{secure}/p2p/{relay}/p2p-circuit");
    assert!(dialled(&through, false));
}

#[test]
fn an_address_through_a_relay_is_dialled_where_the_relay_may_be() {
    let relay = peer();
    let through = |hop: &str| format!("{hop}/p2p/{relay}/p2p-circuit");
    let good = through("/ip4/198.51.100.7/udp/4100/quic-v1");
    let address: Address = good.parse().unwrap();
    assert_eq!(address.carrier(), Some(Carrier::Relay));
    assert_eq!((address.relay(), address.peer()), (Some(relay), None));
    assert_eq!((address.ip(), address.udp()), (None, None));
    assert!(dialled(&good, false));
    assert_eq!(bare(&address.0), address.0);
    let other = PeerId([7; 32]);
    let named: Address = format!("{good}/p2p/{other}").parse().unwrap();
    assert_eq!((named.relay(), named.peer()), (Some(relay), Some(other)));
    assert_eq!(bare(&named.0), address.0);
    assert!(!may_tell(&address.0, &[]));
    for bad in [
        through("/ip4/10.7.1.1/udp/4100/quic-v1"),
        through("/ip4/127.0.0.1/tcp/4100"),
        through("/ip4/169.254.169.254/tcp/4100"),
    ] {
        assert!(!dialled(&bad, false) && !dialled(&bad, true), "{bad}");
    }
    assert_eq!(Heard::parse(&through("/dns4/example.org/tcp/4100")), None);
    for bad in [
        format!("/ip4/198.51.100.7/tcp/4100/p2p-circuit/p2p/{other}"),
        format!("{good}/p2p/{relay}"),
        format!("{good}/p2p/{other}/p2p-circuit"),
        format!("/p2p/{relay}/p2p-circuit"),
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

fn peer() -> PeerId {
    let key = libp2p::identity::Keypair::ed25519_from_bytes([3; 32]).unwrap();
    super::super::peer_from_lib(&key.public().to_peer_id()).unwrap()
}

proptest! {
    #[test]
    fn address_parser_never_panics(text in ".{0,100}") {
        let _ = text.parse::<Address>();
    }

    #[test]
    fn address_reader_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(address) = Multiaddr::try_from(bytes) {
            let _ = may_tell(&address, &[]);
            let _ = Heard::of(address.clone(), true).map(|h| h.may_dial(&[], &Own::default()));
            let _ = Address(address).peer();
        }
    }
}
