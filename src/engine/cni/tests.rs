//! What a runtime may give, and what is made of it before the daemon is asked.

use serde_json::{Value, json};

use super::config::{Config, Valid, Version};
use super::environment::Environment;
use super::failure::Failure;

fn with(more: Value) -> Vec<u8> {
    let mut config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "byway-cni", "subnet": "lab"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string().into_bytes()
}

fn parsed(more: Value) -> Config {
    Config::parse(&with(more)).unwrap()
}

/// The code of the failure, whose message has to hold `part`.
fn code<T: std::fmt::Debug>(result: Result<T, Failure>, part: &str) -> u32 {
    let failure = result.unwrap_err();
    assert!(failure.message.contains(part), "{part}: {failure:?}");
    failure.code
}

#[test]
fn what_is_no_configuration_is_refused_by_the_code_that_says_why() {
    let refused = |input: &[u8], part: &str| code(Config::parse(input), part);
    assert_eq!(refused(b"", "configuration"), 6);
    assert_eq!(refused(b"{\"cniVersion\":", "configuration"), 6);
    assert_eq!(refused(b"\xff\x00", "configuration"), 6);
    assert_eq!(refused(b"[]", "configuration"), 7);
    assert_eq!(refused(&with(json!({"subnet": 7})), "configuration"), 7);
    assert_eq!(refused(b"{\"name\":\"net\"}", "0.1.0"), 1);
    assert_eq!(refused(&with(json!({"cniVersion": "2.0.0"})), "2.0.0"), 1);
    for name in ["", "../x", "-net", "a b"] {
        assert_eq!(refused(&with(json!({"name": name})), "name"), 7);
    }
    assert_eq!(refused(&with(json!({"socket": "sock"})), "socket"), 7);
    assert_eq!(
        refused(&with(json!({"interface": "sixteen-bytes-00"})), "interface"),
        7
    );
    assert_eq!(refused(&with(json!({"prevResult": []})), "prevResult"), 7);
}

#[test]
fn keys_of_others_are_ignored_and_addresses_of_others_refused() {
    let config = parsed(json!({"isGateway": true, "cniVersions": ["1.0.0", "1.1.0"]}));
    assert_eq!(config.subnet().unwrap(), "lab");
    assert_eq!(
        parsed(json!({"ipam": {"type": "byway-cni"}}))
            .subnet()
            .unwrap(),
        "lab"
    );
    assert_eq!(parsed(json!({"ipam": {}})).subnet().unwrap(), "lab");
    let foreign = parsed(json!({"ipam": {"type": "host-local"}}));
    assert_eq!(code(foreign.subnet(), "host-local"), 7);
    let range = parsed(json!({"ipam": {"subnet": "10.1.0.0/16"}}));
    assert_eq!(code(range.subnet(), "ipam.subnet is \"10.1.0.0/16\""), 2);
    assert_eq!(
        code(
            parsed(json!({"subnet": null})).subnet(),
            "subnet is missing"
        ),
        7
    );
}

#[test]
fn capabilities_are_done_or_refused_with_key_and_value() {
    let config = parsed(json!({"runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""}],
        "ips": ["10.77.1.9/16", "fd7a::9"],
        "mac": "02:00:00:00:00:09",
        "aliases": ["db"],
        "dns": {"servers": ["192.0.2.1"], "searches": ["corp.example"]},
        "bandwidth": null,
    }}));
    let wanted = config.wanted().unwrap();
    assert_eq!(wanted.port_mappings.len(), 1);
    let ips = config.ips(&wanted, Some(&"192.0.2.7".to_owned())).unwrap();
    assert_eq!(
        ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.77.1.9", "fd7a::9"]
    );
    assert_eq!(config.resolver(&wanted).unwrap().search, ["corp.example"]);
    let limited = parsed(json!({"runtimeConfig": {"bandwidth": {"ingressRate": 2048}}}));
    let failure = limited.wanted().unwrap_err();
    assert_eq!(failure.code, 2);
    assert!(
        failure
            .message
            .contains("runtimeConfig.bandwidth is {\"ingressRate\":2048}"),
        "{failure:?}"
    );
    let wrong = parsed(
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}),
    );
    assert_eq!(code(wrong.wanted(), "runtimeConfig"), 7);
}

#[test]
fn addresses_are_taken_from_the_newest_way_to_ask_for_them() {
    let nothing = parsed(json!({}));
    let wanted = nothing.wanted().unwrap();
    assert!(nothing.ips(&wanted, None).unwrap().is_empty());
    let arg = "10.77.1.7/24".to_owned();
    assert_eq!(
        nothing.ips(&wanted, Some(&arg)).unwrap()[0].to_string(),
        "10.77.1.7"
    );
    let args = parsed(json!({"args": {"cni": {"ips": ["10.77.1.8"]}}}));
    assert_eq!(
        args.ips(&wanted, Some(&arg)).unwrap()[0].to_string(),
        "10.77.1.8"
    );
    assert_eq!(
        code(nothing.ips(&wanted, Some(&"ten".to_owned())), "\"ten\""),
        7
    );
}

#[test]
fn del_does_not_fail_by_what_only_add_uses() {
    let config = parsed(
        json!({"subnet": null, "ipam": {"type": "dhcp"}, "runtimeConfig": {"portMappings": 7}}),
    );
    assert_eq!(config.name, "net");
}

#[test]
fn a_command_that_a_version_has_not_is_refused() {
    assert_eq!(
        code(Version::V0_3_1.has("CHECK", Version::V0_4_0), "CHECK"),
        1
    );
    assert_eq!(code(Version::V1_0_0.has("GC", Version::V1_1_0), "GC"), 1);
    assert!(Version::V1_1_0.has("STATUS", Version::V1_1_0).is_ok());
}

#[test]
fn attachments_are_read_by_both_names_and_none_is_not_an_empty_list() {
    let valid = || json!([{"containerID": "c1", "ifname": "eth0"}]);
    let expected = Some(vec![Valid {
        container: "c1".into(),
        ifname: "eth0".into(),
    }]);
    assert_eq!(
        parsed(json!({"cni.dev/valid-attachments": valid()})).valid,
        expected
    );
    assert_eq!(
        parsed(json!({"cni.dev/attachments": valid()})).valid,
        expected
    );
    assert_eq!(
        parsed(json!({"cni.dev/valid-attachments": []})).valid,
        Some(vec![])
    );
    assert_eq!(parsed(json!({})).valid, None);
}

#[test]
fn the_version_is_told_in_the_one_that_was_asked_in() {
    let environment = Environment::of([("CNI_COMMAND".into(), "VERSION".into())]);
    let told = super::perform(&environment, b"{\"cniVersion\":\"0.2.0\"}").unwrap();
    let expected = json!({
        "cniVersion": "0.2.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(told, Some(expected));
    assert_eq!(
        code(super::perform(&environment, b"nonsense"), "no JSON object"),
        6
    );
    for (command, part) in [("", "CNI_COMMAND is missing"), ("EAT", "\"EAT\"")] {
        let environment = Environment::of([("CNI_COMMAND".into(), command.into())]);
        assert_eq!(code(super::perform(&environment, b"{}"), part), 4);
    }
}
