//! What comes before and around Noise where a WebSocket is spoken: heads of HTTP, frames, and the URL of a proxy. Nothing
//! panics, a frame promises no more than is allowed, and what is shown of others is short and printable.
#![no_main]

use byway::model::proxy::{Proxy, Way};
use byway::wire::http::{Asked, asked, read_connect, read_upgrade};
use byway::wire::websocket::{FIRST, HEAD, Inbound, Kind, MOST, Role, SMALL, needed};
use libfuzzer_sys::fuzz_target;

/// Reads the bytes as frames until one is refused.
fn frames(role: Role, mut data: &[u8]) {
    let (mut inbound, mut taken) = (Inbound::new(role), 0);
    loop {
        let wanted = needed(data);
        assert!((2..=HEAD).contains(&wanted));
        let Some((bytes, rest)) = data.split_at_checked(wanted) else {
            return;
        };
        let Ok(head) = inbound.take(bytes) else {
            return;
        };
        assert_eq!(head.mask.is_some(), role == Role::Server);
        assert!(head.len <= if taken < FIRST { SMALL } else { MOST });
        if head.kind == Kind::Data {
            taken += head.len;
        }
        let len = usize::try_from(head.len).unwrap_or(usize::MAX);
        data = rest.get(len..).unwrap_or_default();
    }
}

fuzz_target!(|data: &[u8]| {
    frames(Role::Server, data);
    frames(Role::Client, data);
    if let Asked::Upgrade(answer) = asked(data) {
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.len() < 200);
    }
    for refused in [read_connect(data), read_upgrade(data, [7; 16])] {
        if let Err(why) = refused {
            let shown = why.to_string();
            assert!(shown.chars().count() < 500 && !shown.contains(['\r', '\n', '\u{1b}']));
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(proxy) = text.parse::<Proxy>() {
        assert_eq!(
            proxy.to_string().contains('@'),
            proxy.credentials().is_some()
        );
        let again: Proxy = proxy.place().parse().expect("its own place");
        assert_eq!((again.host(), again.port()), (proxy.host(), proxy.port()));
    }
    let (list, host) = text.split_once('\n').unwrap_or((text, "vpn.example"));
    let choice = "http://p:1".parse().expect("a proxy");
    let variable = |name: &str| (name == "no_proxy").then(|| list.to_owned());
    let way = Way::of(&choice, &[], &variable).expect("a way");
    assert!(way.to("127.0.0.1", 443).is_none());
    let _ = way.to(host, 443);
});
