//! What the keys of relays accept, refuse and promise.

use super::*;

#[test]
fn relaying_is_read_whole_and_shown_as_it_was_written() {
    let id = crate::model::id::PeerId([7; 32]);
    for (written, offer, for_whom) in [
        ("offer = true", RelayOffer::Always, RelayFor::Auto),
        ("offer = false", RelayOffer::Never, RelayFor::Auto),
        (
            "offer = \"auto\", for = \"members\"",
            RelayOffer::Auto,
            RelayFor::Members,
        ),
        (
            &format!("for = [\"{id}\"]"),
            RelayOffer::Auto,
            RelayFor::Peers(vec![id]),
        ),
    ] {
        let config = read_text(&format!("[transport]\nrelay = {{ {written} }}")).unwrap();
        assert_eq!(
            (config.relay.offer, &config.relay.for_whom),
            (offer, &for_whom)
        );
        // What is shown can be read again, as a reload does.
        let (taken, restart) = {
            let (next, taken, restart) = Config::defaults("box.example").taking_over(&config);
            assert_eq!(next.relay, config.relay, "{written}");
            (taken, restart)
        };
        assert!(restart.is_empty() && !taken.is_empty(), "{written}");
    }
    let denied = read_text("[transport]\ndeny_cidrs = [\"10.0.0.0/8\", \"fd00::1\"]").unwrap();
    assert_eq!(
        denied.deny_cidrs,
        [
            "10.0.0.0/8".parse().unwrap(),
            "fd00::1/128".parse().unwrap()
        ]
    );
    for (text, why) in [
        (
            "relay = { offer = \"autp\" }",
            "expected \"auto\", true or false",
        ),
        ("relay = { for = \"member\" }", "did you mean \"members\"?"),
        (
            "relay = { for = \"swarm\" }",
            "this version has no private swarms",
        ),
        (
            "deny_cidrs = [\"10.0.0.0/33\"]",
            "is no address and no prefix",
        ),
    ] {
        assert!(refusal(&format!("[transport]\n{text}")).contains(why));
    }
}

#[test]
fn a_daemon_that_only_relays_is_refused_what_only_a_member_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Config::load(&Sources {
            file: Some(file.clone()),
            flags: vec![("node.relay_only", Value::Switch(true))],
            ..Sources::default()
        })
    };
    let config = load("[transport]\nrelay = { offer = true }\n").unwrap();
    assert!(config.relay_only);
    assert_eq!(config.origins["node.relay_only"], "--relay-only");
    for (text, why) in [
        (
            "[transport]\nrelay = { offer = false }",
            "transport.relay.offer = false: node.relay_only is true, so this daemon would do nothing",
        ),
        (
            "[transport]\nrelay = { for = \"members\" }",
            "a daemon that is in no subnet has no members",
        ),
        (
            "[transport]\nlisten = \"none\"",
            "nobody could reach this relay",
        ),
        (
            "[[subnet]]\nid = \"7q3km2wd9xra4ce8yn5t0vbz6g\"",
            "byway.toml:1: [[subnet]]: node.relay_only is true",
        ),
    ] {
        let errors = load(text).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains(why), "{}", errors[0]);
    }
    let idle = load("[dns]\nmode = \"split\"\n[firewall]\nrepair = false\n");
    let idle: Vec<String> = idle.unwrap().idle().into_iter().map(|i| i.key).collect();
    assert_eq!(idle, ["dns.mode"]);
}

#[test]
fn the_example_of_a_relay_is_one() {
    let text = include_str!("../../../config/relay.toml");
    let config = read_text(text).unwrap();
    assert!(config.relay_only);
    assert_eq!((config.idle(), config.hindered_relay()), (vec![], vec![]));
    assert_eq!(config.relay_mbit(), Some(100));
}
