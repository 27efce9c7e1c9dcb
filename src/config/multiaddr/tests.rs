use super::*;
use proptest::prelude::*;

#[test]
fn usable_addresses_pass_and_get_their_transport_spelled_out() {
    let id = PeerId([7; 32]);
    for (given, want) in [
        (
            "/ip4/10.0.0.1/udp/4100",
            "/ip4/10.0.0.1/udp/4100/quic-v1".to_owned(),
        ),
        ("/ip6/fd00::1/tcp/4100", "/ip6/fd00::1/tcp/4100".to_owned()),
        (
            "/dns4/a.example/udp/4100/quic-v1",
            "/dns4/a.example/udp/4100/quic-v1".to_owned(),
        ),
        (
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{id}"),
            format!("/ip4/10.0.0.1/tcp/1/p2p/{id}"),
        ),
    ] {
        assert_eq!(check(given, Peer::Optional), Ok(want));
    }
}

#[test]
fn a_websocket_is_written_as_a_multiaddr_or_as_a_url() {
    let id = PeerId([7; 32]);
    let named = format!("/p2p/{id}");
    for (given, want) in [
        ("/ip4/10.0.0.1/tcp/443/wss", "/ip4/10.0.0.1/tcp/443/wss"),
        (
            "/dns4/a.example/tcp/443/tls/ws",
            "/dns4/a.example/tcp/443/wss",
        ),
        ("/ip6/fd00::1/tcp/80/ws", "/ip6/fd00::1/tcp/80/ws"),
        (
            "/dns/a.example/tcp/443/x-parity-wss/%2fbyway",
            "/dns/a.example/tcp/443/x-parity-wss/%2Fbyway",
        ),
        ("wss://a.example", "/dns/a.example/tcp/443/wss"),
        ("https://a.example/", "/dns/a.example/tcp/443/wss"),
        ("WSS://[fd00::1]:8443", "/ip6/fd00::1/tcp/8443/wss"),
        ("ws://10.0.0.1", "/ip4/10.0.0.1/tcp/80/ws"),
        (
            "wss://a.example/by/way",
            "/dns/a.example/tcp/443/x-parity-wss/%2Fby%2Fway",
        ),
    ] {
        assert_eq!(expand(given, Peer::Optional), Ok(vec![want.to_owned()]));
        let both = expand(
            &format!("{given}{named}").replace("//p2p", "/p2p"),
            Peer::Required,
        );
        assert_eq!(both, Ok(vec![format!("{want}{named}")]), "{given}");
        // The swarm reads the same.
        assert!(want.parse::<libp2p::Multiaddr>().is_ok(), "{want}");
    }
    let three = expand("a.example:443", Peer::Optional).unwrap();
    assert_eq!(three[2], "/dns/a.example/tcp/443/wss");
    assert_eq!(
        expand("a.example:443", Peer::Forbidden).unwrap(),
        three[..2]
    );
    for (bad, why) in [
        ("ftp://a.example", "expected wss://"),
        ("wss://a.example:0", "not a port"),
        ("wss://a.example/a b", "no path"),
        ("wss://a.example/?q=1", "no path"),
        ("/ip4/10.0.0.1/tcp/443/tls", "expected ws after tls"),
        ("/ip4/10.0.0.1/tcp/443/tls/wss", "expected ws after tls"),
        ("/ip4/10.0.0.1/udp/443/ws", "not known after the port"),
        ("/ip4/10.0.0.1/tcp/443/ws/ws", "not known after the port"),
        ("/ip4/10.0.0.1/tcp/443/x-parity-ws/a%0d%0a", "no path"),
    ] {
        let said = expand(bad, Peer::Optional).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_lan_peer_is_named_by_its_link_in_either_way_of_writing() {
    let id = PeerId([7; 32]);
    let zoned = "/ip6zone/eth0/ip6/fe80::1";
    for (given, want) in [
        (
            format!("{zoned}/tcp/4100"),
            vec![format!("{zoned}/tcp/4100")],
        ),
        (
            format!("{zoned}/udp/4100/p2p/{id}"),
            vec![format!("{zoned}/udp/4100/quic-v1/p2p/{id}")],
        ),
        (
            format!("[fe80::1%eth0]:99/p2p/{id}"),
            vec![
                format!("{zoned}/udp/99/quic-v1/p2p/{id}"),
                format!("{zoned}/tcp/99/p2p/{id}"),
            ],
        ),
        (
            "fe80::1%eth0".to_owned(),
            vec![
                format!("{zoned}/udp/4100/quic-v1"),
                format!("{zoned}/tcp/4100"),
            ],
        ),
        (
            "[fe80::1%br-lan.7]:443".to_owned(),
            vec![
                "/ip6zone/br-lan.7/ip6/fe80::1/udp/443/quic-v1".to_owned(),
                "/ip6zone/br-lan.7/ip6/fe80::1/tcp/443".to_owned(),
            ],
        ),
    ] {
        assert_eq!(
            expand(&given, Peer::Optional).as_ref(),
            Ok(&want),
            "{given}"
        );
        for one in &want {
            assert_eq!(reachable(one), Ok(()));
            assert_eq!(ip_of(one), Some("fe80::1".parse().unwrap()));
            assert!(one.parse::<crate::p2p::Typed>().is_ok(), "{one}");
        }
    }
    for (bad, peer, why) in [
        ("[fd00::1%eth0]:4100", Peer::Optional, "not link-local"),
        (
            "/ip6zone/eth0/ip6/fd00::1/tcp/1",
            Peer::Optional,
            "not link-local",
        ),
        (
            "/ip6zone/eth0/ip4/10.0.0.1/tcp/1",
            Peer::Optional,
            "expected ip6",
        ),
        ("/ip6zone/eth0", Peer::Optional, "nothing after /ip6zone"),
        ("/ip6zone/eth0/ip6", Peer::Optional, "nothing after /ip6"),
        (
            "/ip6zone//ip6/fe80::1/tcp/1",
            Peer::Optional,
            "name of a link",
        ),
        ("[fe80::1%]:4100", Peer::Optional, "name of a link"),
        (
            "[fe80::1%a-name-far-too-long]:1",
            Peer::Optional,
            "name of a link",
        ),
        ("10.0.0.1%eth0", Peer::Optional, "not an IPv6 address"),
        ("a.example%eth0:4100", Peer::Optional, "not an IPv6 address"),
        ("fe80::1%eth0:4100", Peer::Optional, "brackets"),
        ("[fe80::1%eth0]:4100", Peer::Forbidden, "dialled"),
        (
            "/ip6zone/eth0/ip6/fe80::1/tcp/1/ws",
            Peer::Optional,
            "WebSocket",
        ),
        ("wss://[fe80::1%eth0]", Peer::Optional, "WebSocket"),
    ] {
        let said = expand(bad, peer).unwrap_err();
        assert!(said.contains(why), "{bad}: {said}");
    }
    assert!(reachable("/ip6zone/eth0/ip6/fe80::1/tcp/0").is_err());
}

#[test]
fn where_nobody_can_be_is_refused() {
    for (text, why) in [
        ("/ip4/0.0.0.0/udp/4100/quic-v1", "unspecified"),
        ("/ip6/::/tcp/4100", "unspecified"),
        ("/ip6/::ffff:0.0.0.0/tcp/4100", "unspecified"),
        ("/ip4/224.0.0.251/udp/4100/quic-v1", "group"),
        ("/ip6/ff02::1/tcp/4100", "group"),
        ("/ip4/255.255.255.255/tcp/4100", "all on a link"),
        ("/ip4/192.0.2.1/tcp/0", "port 0"),
        ("/dns/a.example/udp/0/quic-v1", "port 0"),
    ] {
        let said = reachable(text).unwrap_err();
        assert!(said.contains(why) && said.contains(text), "{said}");
    }
    for text in [
        "/ip4/127.0.0.1/tcp/4100",
        "/ip4/10.0.0.1/udp/1/quic-v1",
        "/ip6/fd00::1/tcp/4100",
        "/dns/0.example/tcp/4100",
    ] {
        assert_eq!(reachable(text), Ok(()));
    }
}

#[test]
fn an_address_may_lead_through_a_relay_to_a_named_peer() {
    let (relay, id) = (PeerId([8; 32]), PeerId([7; 32]));
    let hop = format!("/ip4/10.0.0.1/udp/4100/quic-v1/p2p/{relay}");
    let given = format!("/ip4/10.0.0.1/udp/4100/p2p/{relay}/p2p-circuit/p2p/{id}");
    let want = format!("{hop}/p2p-circuit/p2p/{id}");
    for peer in [Peer::Optional, Peer::Required] {
        assert_eq!(check(&given, peer), Ok(want.clone()));
        assert!(want.parse::<crate::p2p::Address>().is_ok());
    }
    for (tail, peer, why) in [
        ("/p2p-circuit".to_owned(), Peer::Optional, "it names nobody"),
        (
            format!("/p2p-circuit/p2p/{relay}"),
            Peer::Optional,
            "through itself",
        ),
        (
            format!("/p2p-circuit/p2p/{id}"),
            Peer::Forbidden,
            "through a relay",
        ),
        (
            "/p2p-circuit/tcp/1".to_owned(),
            Peer::Optional,
            "found \"tcp\"",
        ),
        (
            "/p2p-circuit/p2p/x".to_owned(),
            Peer::Optional,
            "not a peer ID",
        ),
        (
            format!("/p2p-circuit/p2p/{id}/p2p-circuit"),
            Peer::Optional,
            "found",
        ),
    ] {
        let message = check(&format!("{hop}{tail}"), peer).unwrap_err();
        assert!(message.contains(why), "{tail}: {message}");
    }
    let nameless = format!("/ip4/10.0.0.1/tcp/1/p2p-circuit/p2p/{id}");
    let message = check(&nameless, Peer::Optional).unwrap_err();
    assert!(message.contains("has no /p2p/ID"), "{message}");
}

#[test]
fn the_wrong_part_is_named() {
    for (given, peer, why) in [
        ("10.0.0.1:4100", Peer::Optional, "it begins with '/'"),
        (
            "/ip4/10.0.0/tcp/1",
            Peer::Optional,
            "\"10.0.0\" is not an IPv4 address",
        ),
        (
            "/ip4/10.0.0.1/tcp/65536",
            Peer::Optional,
            "\"65536\" is not a port",
        ),
        (
            "/ip4/10.0.0.1/sctp/1",
            Peer::Optional,
            "expected tcp or udp",
        ),
        ("/ip4/10.0.0.1/tcp/1", Peer::Required, "it has no /p2p/ID"),
        ("/ip4/10.0.0.1/tcp/1/p2p/x", Peer::Optional, "not a peer ID"),
        (
            "/ip4/10.0.0.1/tcp/1/webtransport",
            Peer::Optional,
            "\"webtransport\" is not known",
        ),
    ] {
        let message = check(given, peer).unwrap_err();
        assert!(message.contains(why), "{given}: {message}");
    }
}

#[test]
fn a_host_is_meant_by_udp_and_by_tcp() {
    let id = PeerId([7; 32]);
    for (given, host, port, tail) in [
        ("10.0.0.1", "/ip4/10.0.0.1", 4100, String::new()),
        ("10.0.0.1:99", "/ip4/10.0.0.1", 99, String::new()),
        ("fd00::1", "/ip6/fd00::1", 4100, String::new()),
        ("[fd00::1]", "/ip6/fd00::1", 4100, String::new()),
        ("[fd00::1]:99", "/ip6/fd00::1", 99, String::new()),
        ("a.example", "/dns/a.example", 4100, String::new()),
        (
            "not-a-multiaddr:7",
            "/dns/not-a-multiaddr",
            7,
            String::new(),
        ),
        (
            &format!("a.example:99/p2p/{id}"),
            "/dns/a.example",
            99,
            format!("/p2p/{id}"),
        ),
    ] {
        let want = vec![
            format!("{host}/udp/{port}/quic-v1{tail}"),
            format!("{host}/tcp/{port}{tail}"),
        ];
        assert_eq!(expand(given, Peer::Optional), Ok(want), "{given}");
    }
    let one = "/ip4/10.0.0.1/tcp/4100";
    assert_eq!(expand(one, Peer::Optional), Ok(vec![one.to_owned()]));
    for (given, peer, why) in [
        ("", Peer::Optional, "is not"),
        ("300.1.1.1", Peer::Optional, "is not an IP address"),
        ("10.0.0.1:99999", Peer::Optional, "\"99999\" is not a port"),
        ("10.0.0.1:+9", Peer::Optional, "is not a port"),
        ("a.example:", Peer::Optional, "is not a port"),
        ("a b", Peer::Optional, "is not a host name"),
        ("[a.example]:9", Peer::Optional, "is not an IPv6 address"),
        ("fd00::1:2:3:4:5:6:7:4100", Peer::Optional, "brackets"),
        ("a.example", Peer::Required, "it has no /p2p/ID"),
        ("a.example/p2p/x", Peer::Optional, "not a peer ID"),
    ] {
        let message = expand(given, peer).unwrap_err();
        assert!(message.contains(why), "{given}: {message}");
    }
}

#[test]
fn who_gives_a_password_hears_that_none_belongs_there_and_is_not_quoted() {
    for given in [
        "wss://user:secret@host.example/x",
        "https://user:secret@host.example:8443",
        "user:secret@host.example:4100",
        "user:secret@host.example",
    ] {
        let message = expand(given, Peer::Optional).unwrap_err();
        assert!(message.contains("have no place here"), "{message}");
        assert!(
            !message.contains("secret") && message.contains("***@host.example"),
            "{message}"
        );
    }
}

proptest! {
    #[test]
    fn expand_gives_what_check_takes(text in "(fe80::1%|\\[fe80::1%)?[a-z0-9.:/%\\[\\]-]{0,40}") {
        for one in expand(&text, Peer::Optional).unwrap_or_default() {
            prop_assert_eq!(check(&one, Peer::Optional), Ok(one.clone()));
        }
    }

    #[test]
    fn check_never_panics(text in ".{0,80}", tail in "(/[a-z0-9.:]{0,8}){0,8}") {
        let _ = check(&text, Peer::Optional);
        if let Ok(fine) = check(&tail, Peer::Optional) {
            prop_assert_eq!(check(&fine, Peer::Optional), Ok(fine.clone()));
        }
    }
}
