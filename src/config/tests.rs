//! What the configuration accepts, refuses and says.

use super::*;
use crate::model::error::Code;
use crate::model::ports::PortRange;
use proptest::prelude::*;
use std::path::Path;

#[path = "tests/periods.rs"]
mod periods;
#[path = "tests/relay.rs"]
mod relay;

fn read_text(text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut config = Config::defaults("box.example");
    let mut errors = Vec::new();
    read::text(&mut config, "byway.toml", text, &mut errors);
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(errors)
    }
}

fn refusal(text: &str) -> String {
    read_text(text)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_documented_example_is_accepted_and_changes_nothing() {
    let config = read_text(include_str!("../../config/byway.toml")).unwrap();
    let defaults = Config::defaults("box.example");
    assert_eq!(
        Config {
            origins: BTreeMap::new(),
            ..config
        },
        defaults
    );
}

#[test]
fn seeds_of_the_fuzzer_are_configurations() {
    for text in [
        include_str!("../../tests/fuzz/seeds/config/all.toml"),
        include_str!("../../tests/fuzz/seeds/config/byway.toml"),
    ] {
        fuzz(text);
        read_text(text).unwrap();
    }
}

#[test]
fn unknown_keys_name_file_line_and_the_nearest_one() {
    for (text, want) in [
        (
            "version = 1\n[node]\nnmae = \"a\"\n",
            "byway.toml:3: unknown key \"nmae\" in [node]; did you mean \"name\"?",
        ),
        (
            "[transprt]\n",
            "byway.toml:1: unknown key \"transprt\"; did you mean \"transport\"?",
        ),
        (
            "\nlisten = []",
            "byway.toml:2: unknown key \"listen\"; did you mean \"transport.listen\"?",
        ),
        (
            "[dns]\nzzzzzz = 1",
            "byway.toml:2: unknown key \"zzzzzz\" in [dns]; valid: mode, host",
        ),
        (
            "[transport]\nrelay = { ofer = true }",
            "byway.toml:2: unknown key \"ofer\" in [transport.relay]; did you mean \"offer\"?",
        ),
        (
            "[[subnet]]\nidd = \"x\"",
            "byway.toml:2: unknown key \"idd\" in [subnet]; did you mean \"id\"?",
        ),
    ] {
        assert_eq!(refusal(text), want);
    }
}

#[test]
fn wrong_values_name_the_key_and_what_was_expected() {
    for (text, want) in [
        (
            "version = 2",
            "byway.toml:1: version = 2: this byway reads version 1",
        ),
        (
            "[node]\nname = 7",
            "byway.toml:2: node.name = 7: expected a string",
        ),
        (
            "[node]\nname = \"a.b\"",
            "byway.toml:2: node.name = \"a.b\": a name is one DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either \
             end; \"a.b\" is not",
        ),
        (
            "[dns]\nmode = \"splt\"",
            "byway.toml:2: dns.mode = \"splt\": expected one of split, off; did you mean \"split\"?",
        ),
        (
            "[dns]\nhost = true",
            "byway.toml:2: dns.host = true: expected a string",
        ),
        (
            "[dns]\nhost = \"of\"",
            "byway.toml:2: dns.host = \"of\": expected one of auto, off; did you mean \"off\"?",
        ),
        (
            "[transport]\nlisten = [\"udp/65536\"]",
            "byway.toml:2: transport.listen = [\"udp/65536\"]: \"udp/65536\": expected a port from 1 to 65535",
        ),
        (
            "[transport]\nlisten = [\"none\", \"udp/1\"]",
            "byway.toml:2: transport.listen = [\"none\", \"udp/1\"]: \"none\" stands alone",
        ),
        (
            "[transport]\npost_quantum = \"always\"",
            "byway.toml:2: transport.post_quantum = \"always\": expected one of off, prefer, require",
        ),
        (
            "[data]\ncipher = \"rot13\"",
            "byway.toml:2: data.cipher = \"rot13\": expected one of auto, aes-256-gcm, \
             aes-256-gcm by aws-lc, aes-256-gcm by ring, chacha20-poly1305",
        ),
        (
            "[limits]\nconnections = 0",
            "byway.toml:2: limits.connections = 0: expected a number from 2 to 1000000",
        ),
        (
            "transport = 1",
            "byway.toml:1: transport = 1: expected a table ([transport])",
        ),
        (
            "[[subnet]]\nhost = \"tcp/0\"",
            "byway.toml:2: subnet.host = \"tcp/0\": \"tcp/0\" is not tcp/PORT, tcp/PORT-PORT, udp/PORT or udp/PORT-PORT with ports from 1 to 65535",
        ),
        (
            "[[subnet]]\nname = \"a\"",
            "byway.toml:1: [[subnet]] needs id or invite_file",
        ),
        (
            "subnet = 1",
            "byway.toml:1: subnet = 1: expected [[subnet]] tables",
        ),
        (
            "[node]\nstate_dir = \"x\"",
            "byway.toml:2: node.state_dir = \"x\": expected an absolute path",
        ),
        (
            "[[subnet]]\nid = \"x\"",
            "byway.toml:2: subnet.id = \"x\": a subnet ID has 26 characters, this has 1",
        ),
    ] {
        assert_eq!(refusal(text), want);
    }
    assert_eq!(read_text("a = ").unwrap_err()[0].code, Code::ConfigSyntax);
    assert_eq!(
        refusal("[dns]\nmode = \"x\"\n[node]\nname = 1")
            .lines()
            .count(),
        2,
        "every error is told"
    );
}

#[test]
fn listen_words_become_multiaddrs_of_both_families() {
    let listen = |list: &str| read_text(&format!("[transport]\nlisten = {list}")).map(|c| c.listen);
    assert_eq!(
        listen("[\"udp/4100\", \"tcp/99\"]").unwrap(),
        [
            "/ip4/0.0.0.0/udp/4100/quic-v1",
            "/ip6/::/udp/4100/quic-v1",
            "/ip4/0.0.0.0/tcp/99",
            "/ip6/::/tcp/99"
        ]
    );
    assert_eq!(listen("\"none\"").unwrap(), Vec::<String>::new());
    assert_eq!(
        listen("[\"/ip4/10.0.0.1/udp/1\"]").unwrap(),
        ["/ip4/10.0.0.1/udp/1/quic-v1"]
    );
    assert_eq!(
        listen("[\"10.0.0.1:9\"]").unwrap(),
        ["/ip4/10.0.0.1/udp/9/quic-v1", "/ip4/10.0.0.1/tcp/9"]
    );
    assert!(
        listen("[\"a.example\"]").is_err(),
        "nobody listens on a name"
    );
}

#[test]
fn a_host_is_taken_wherever_a_multiaddr_is() {
    let id = crate::model::id::PeerId([7; 32]);
    let text = format!(
        "[transport]\nbootstrap = [\"a.example/p2p/{id}\"]\nadvertise = [\"10.0.0.1\"]\n[[subnet]]\nid = \
         \"7q3km2wd9xra4ce8yn5t0vbz6g\"\npeer = [\"10.0.0.2:9\"]\n"
    );
    let config = read_text(&text).unwrap();
    let both = |host: &str, port: u16, tail: &str| {
        vec![
            format!("{host}/udp/{port}/quic-v1{tail}"),
            format!("{host}/tcp/{port}{tail}"),
        ]
    };
    assert_eq!(
        config.bootstrap,
        both("/dns/a.example", 4100, &format!("/p2p/{id}"))
    );
    assert_eq!(config.advertise, both("/ip4/10.0.0.1", 4100, ""));
    assert_eq!(config.subnets[0].peers, both("/ip4/10.0.0.2", 9, ""));
    let hint = read_text("[transport]\nbootstrap = [\"a.example\"]").unwrap();
    assert_eq!(hint.bootstrap, both("/dns/a.example", 4100, ""));
}

#[test]
fn an_address_where_nobody_can_be_is_an_error_wherever_one_is_dialled_or_told() {
    for (text, why) in [
        ("[transport]\nbootstrap = [\"0.0.0.0\"]", "unspecified"),
        (
            "[transport]\nbootstrap = [\"/ip4/192.0.2.1/tcp/0\"]",
            "port 0",
        ),
        ("[transport]\nadvertise = [\"[::]:4100\"]", "unspecified"),
        ("[transport]\nadvertise = [\"224.0.0.1\"]", "group"),
        (
            "[[subnet]]\nid = \"7q3km2wd9xra4ce8yn5t0vbz6g\"\npeer = [\"255.255.255.255\"]",
            "all on a link",
        ),
    ] {
        let said = refusal(text);
        assert!(
            said.contains("leads nowhere") && said.contains(why),
            "{said}"
        );
    }
    // To listen there is another matter.
    let every = read_text("[transport]\nlisten = [\"/ip4/0.0.0.0/tcp/4100\"]");
    assert_eq!(every.unwrap().listen, ["/ip4/0.0.0.0/tcp/4100"]);
}

#[test]
fn stronger_layers_win_and_their_origin_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("byway.toml");
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(
        &main,
        "[node]\nname = \"main\"\n[dns]\nmode = \"off\"\n[firewall]\nrepair = false\n",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("conf.d/20.toml"),
        "[node]\nname = \"twenty\"\n",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("conf.d/10.toml"),
        "[node]\nname = \"ten\"\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("conf.d/30.txt"), "not toml").unwrap();
    let mut sources = Sources {
        file: Some(main.clone()),
        host: "box".into(),
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!(
        (
            config.node_name.as_str(),
            config.dns_mode,
            config.firewall_repair
        ),
        ("twenty", DnsMode::Off, false)
    );
    assert_eq!(
        config.origins["node.name"],
        format!("{}:2", dir.path().join("conf.d/20.toml").display())
    );
    sources.env = vec![
        ("BYWAY_NODE_NAME".into(), "env".into()),
        ("BYWAY_STATE_DIR".into(), "/s".into()),
    ];
    assert_eq!(Config::load(&sources).unwrap().node_name.as_str(), "env");
    sources.flags = vec![("node.state_dir", Value::Text("/flag".into()))];
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.state_dir, Path::new("/flag"));
    assert_eq!(config.origins["node.state_dir"], "--state-dir");
}

#[test]
fn what_editors_leave_in_conf_d_is_not_read_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (main, conf) = (dir.path().join("byway.toml"), dir.path().join("conf.d"));
    std::fs::create_dir(&conf).unwrap();
    std::fs::write(&main, "\u{feff}version = 1\n").unwrap();
    std::fs::write(conf.join("10.toml"), "[node]\nname = \"ten\"\n").unwrap();
    for name in [
        ".10.toml.swp",
        ".hidden.toml",
        "10.toml~",
        "#10.toml#",
        "10.toml.bak",
        "README",
    ] {
        std::fs::write(conf.join(name), "not toml").unwrap();
    }
    std::os::unix::fs::symlink("user@host.123", conf.join(".#10.toml")).unwrap();
    std::os::unix::fs::symlink("gone", conf.join("20.toml")).unwrap();
    let config = Config::load(&Sources {
        file: Some(main),
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(config.node_name.as_str(), "ten");
    let why = |name: &str| {
        config
            .skipped
            .iter()
            .find(|(path, _)| path.ends_with(name))
            .map(|(_, why)| *why)
    };
    assert_eq!(config.skipped.len(), 8);
    assert_eq!(
        (why(".#10.toml"), why(".hidden.toml")),
        (Some("hidden"), Some("hidden"))
    );
    assert_eq!(
        (why("README"), why("20.toml")),
        (
            Some("its name does not end in .toml"),
            Some("a link to nothing")
        )
    );
}

#[test]
fn what_a_person_set_in_vain_is_named_and_a_default_is_not() {
    let idle = |text: &str| read_text(text).unwrap().idle();
    assert_eq!(Config::defaults("a").idle(), []);
    let text = "[transport]\nlisten = \"none\"\nport_mapping = true\nrelay = { max_mbit = 7, offer = false, for = \"anyone\" }\n[metrics]\nallow = \"::1\"\n";
    let found = idle(text);
    let keys: Vec<&str> = found.iter().map(|found| found.key.as_str()).collect();
    let in_vain = [
        "transport.port_mapping",
        "transport.relay.max_mbit",
        "transport.relay.for",
        "metrics.allow",
    ];
    assert_eq!(keys, in_vain);
    assert!(found.iter().all(|found| found.code == Code::ConfigIdle));
    assert_eq!(
        found[0].to_string(),
        "byway.toml:3: transport.port_mapping = true has no effect: transport.listen is none, so no port is open that a \
         router could lead to"
    );
    // What promises nothing is not in vain.
    assert_eq!(
        idle("[transport]\nport_mapping = true\nrelay = { offer = false }\n"),
        []
    );
    assert_eq!(
        idle("[transport]\nrelay = { offer = true, max_mbit = 7, for = \"anyone\" }\n"),
        []
    );
    assert_eq!(
        idle("[metrics]\nlisten = \"127.0.0.1:9100\"\nallow = \"::1\"\n"),
        []
    );
    assert!(
        idle::IDLE
            .iter()
            .all(|idle| keys::find(idle.path).is_some())
    );
}

#[test]
fn what_requires_datagrams_needs_a_port_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let load = |listen: &str| {
        let text = format!("[transport]\npost_quantum = \"require\"\nlisten = {listen}\n");
        std::fs::write(&file, text).unwrap();
        Config::load(&Sources {
            file: Some(file.clone()),
            ..Sources::default()
        })
    };
    let told = load("[\"tcp/4100\"]").unwrap_err();
    assert_eq!(
        (told.len(), told[0].code, told[0].line().unwrap().1),
        (1, Code::ConfigValue, 2)
    );
    assert!(
        told[0]
            .message
            .ends_with("transport.listen has no UDP address"),
        "{}",
        told[0]
    );
    // Who listens nowhere has a port for its own datagrams.
    let config = load("\"none\"").unwrap();
    assert_eq!(config.post_quantum, PostQuantum::Require);
    let config = load("[\"udp/4100\"]").unwrap();
    assert!(
        config.caveats()[0].contains("not post-quantum")
            && Config::defaults("a").caveats().is_empty()
    );
}

#[test]
fn what_is_taken_over_is_in_force_and_the_rest_waits_for_a_restart() {
    let before = read_text("[limits]\nconnections = 10\n[dns]\nmode = \"off\"\n").unwrap();
    let id = crate::model::id::SubnetId([3; 16]);
    let text = format!(
        "[limits]\nconnections = 20\n[log]\nlevel = \"debug\"\n[metrics]\nlisten = \"127.0.0.1:9100\"\n[[subnet]]\nid = \"{id}\"\n"
    );
    let fresh = read_text(&text).unwrap();
    let (next, taken, restart) = before.taking_over(&fresh);
    assert_eq!(taken, ["log.level", "limits.connections", "metrics.listen"]);
    assert_eq!(restart, ["dns.mode"]);
    assert_eq!(
        (
            next.limits.connections,
            next.log_level.as_str(),
            next.dns_mode
        ),
        (20, "debug", DnsMode::Off)
    );
    assert_eq!(
        (next.metrics_listen, next.subnets.len()),
        (fresh.metrics_listen, 1)
    );
    assert_eq!(
        next.taking_over(&fresh).1,
        [""; 0],
        "the second time there is nothing new"
    );
    assert_eq!(
        next.taking_over(&fresh).2,
        ["dns.mode"],
        "but what waits still does"
    );
    assert!(keys::LIVE.iter().all(|path| keys::find(path).is_some()));
}

#[test]
fn the_ports_of_maps_are_a_range_that_a_reload_takes_over() {
    let before = read_text("").unwrap();
    assert_eq!(before.ports_range, PortRange::ALL);
    let fresh = read_text("[ports]\nrange = \"16384-65535\"\n").unwrap();
    let (next, taken, restart) = before.taking_over(&fresh);
    assert_eq!((taken, restart), (vec!["ports.range"], vec![]));
    assert_eq!(next.ports_range.to_string(), "16384-65535");
    for wrong in ["0-100", "100-1", "1-65536", "", "web"] {
        let told = refusal(&format!("[ports]\nrange = \"{wrong}\"\n"));
        assert!(
            told.contains("ports.range") && told.contains("range of ports"),
            "{told}"
        );
    }
}

#[test]
fn who_may_attach_containers_without_root_is_a_list_that_a_reload_takes_over() {
    let before = read_text("").unwrap();
    assert_eq!(before.workload_users, []);
    let fresh = read_text("[workloads]\nusers = [\"alice\", \"bob=3\"]\n").unwrap();
    let (next, taken, restart) = before.taking_over(&fresh);
    assert_eq!((taken, restart), (vec!["workloads.users"], vec![]));
    let shown: Vec<String> = next.workload_users.iter().map(|u| u.to_string()).collect();
    assert_eq!(shown, ["alice=16", "bob=3"]);
    let told = refusal("[workloads]\nusers = [\"alice=0\"]\n");
    assert!(
        told.contains("workloads.users") && told.contains("1 to 1024"),
        "{told}"
    );
}

#[test]
fn a_private_swarm_is_refused_where_its_key_is_set() {
    let why = "node.swarm_key_file = \"/k\": this version has no private swarms";
    assert_eq!(
        refusal("[node]\nswarm_key_file = \"/k\""),
        format!("byway.toml:2: {why}")
    );
    let sources = Sources {
        flags: vec![("node.swarm_key_file", Value::Text("/k".into()))],
        ..Sources::default()
    };
    assert_eq!(
        Config::load(&sources).unwrap_err()[0].to_string(),
        format!("--swarm-key-file: {why}")
    );
    read_text("[node]\nswarm_key_file = \"\"").unwrap();
}

#[test]
fn a_level_is_judged_like_the_variable() {
    assert_eq!(
        read_text("[log]\nlevel = \"info,byway::dns=debug\"")
            .unwrap()
            .log_level,
        "info,byway::dns=debug"
    );
    assert!(refusal("[log]\nlevel = \"loud\"").contains("is neither off, error, warn"));
    let sources = Sources {
        env: vec![("BYWAY_LOG".into(), "trace".into())],
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!(
        (
            config.log_level.as_str(),
            config.origins["log.level"].as_str()
        ),
        ("trace", "BYWAY_LOG")
    );
}

#[test]
fn errors_stand_in_the_order_of_the_file() {
    let text =
        "[transport]\nzz = 1\n[node]\nname = 7\n[dns]\nmode = \"x\"\n[data]\ncipher = \"y\"\n";
    let lines: Vec<usize> = read_text(text)
        .unwrap_err()
        .iter()
        .filter_map(|e| Some(e.line()?.1))
        .collect();
    assert_eq!(lines, [2, 4, 6, 8]);
}

#[test]
fn a_named_file_must_exist_and_be_readable() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("absent.toml"), dir.path().to_owned()] {
        let errors = Config::load(&Sources {
            file: Some(path),
            ..Sources::default()
        })
        .unwrap_err();
        assert_eq!(errors[0].code, Code::ConfigRead);
    }
}

#[test]
fn declared_subnets_add_up_and_one_is_declared_once() {
    let id = crate::model::id::SubnetId([3; 16]);
    let one = format!(
        "[[subnet]]\nid = \"{id}\"\npeer = \"/ip4/10.0.0.1/tcp/4100\"\nas = \"lab\"\nip = \"10.1.1.1\"\nhost = \"tcp/22\"\n"
    );
    let config = read_text(&one).unwrap();
    assert_eq!(config.subnets[0].id, Some(id));
    assert_eq!(config.subnets[0].peers, ["/ip4/10.0.0.1/tcp/4100"]);
    assert_eq!(config.subnets[0].host, Some("tcp/22".parse().unwrap()));
    let allowing =
        format!("{one}allow_prefix = [\"203.0.113.0/24\"]\nallow_domain = \"example.org\"\n");
    let config = read_text(&allowing).unwrap();
    assert_eq!(
        config.subnets[0].allow.prefixes,
        ["203.0.113.0/24".parse().unwrap()]
    );
    assert_eq!(config.subnets[0].allow.domains, ["example.org"]);
    assert!(config.subnets[0].to_string().ends_with(
        "\npeer = [\"/ip4/10.0.0.1/tcp/4100\"]\nallow_prefix = [\"203.0.113.0/24\"]\nallow_domain = [\"example.org\"]"
    ));
    assert!(
        refusal(&format!("{one}allow_prefix = [\"203.0.113.1/24\"]\n")).contains("is no prefix")
    );
    assert!(refusal(&format!("{one}allow_domain = [\"a b\"]\n")).contains("is no domain"));
    assert!(refusal(&format!("{one}{one}")).contains("declared already at byway.toml:1"));
}

proptest! {
    #[test]
    fn reading_never_panics(text in ".{0,200}") {
        let _ = read_text(&text);
    }

    #[test]
    fn no_value_of_a_known_key_panics(
        key in proptest::sample::select(keys::all().map(|k| k.path).collect::<Vec<_>>()),
        value in "(-?[0-9]{1,20}|true|\"[ -~]{0,20}\"|\\[\"[a-z0-9/.:]{0,30}\"\\]|0x[0-9a-f]{1,20}|1979-05-27|\\{\\})",
    ) {
        let _ = read_text(&format!("{key} = {value}"));
    }

    /// What `config show` prints is a configuration that means the same.
    #[test]
    fn shown_values_read_back(name in "[a-z]{1,20}", port in 1u16.., repair: bool, limit in 64u32..4096, off: bool) {
        let (mode, host) = if off { ("off", "off") } else { ("split", "auto") };
        let text = format!(
            "[node]\nname = \"{name}\"\n[transport]\nlisten = [\"udp/{port}\"]\n[firewall]\nrepair = {repair}\n\
             [limits]\nmemory_mib = {limit}\n[dns]\nmode = \"{mode}\"\nhost = \"{host}\"\n"
        );
        let config = read_text(&text).unwrap();
        let shown: String = config
            .values()
            .map(|(path, value, _)| format!("{path} = {value}\n"))
            .collect();
        let again = read_text(&shown).unwrap();
        prop_assert_eq!(
            Config { origins: BTreeMap::new(), ..again },
            Config { origins: BTreeMap::new(), ..config }
        );
    }
}

#[test]
fn what_is_no_regular_file_is_refused_and_waited_for_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
        let (told, heard) = std::sync::mpsc::channel();
        let named = path.to_owned();
        std::thread::spawn(move || told.send(contents(&named).unwrap_err().to_string()));
        let why = heard.recv_timeout(crate::testing::PATIENCE);
        assert_eq!(why.as_deref(), Ok("it is no regular file"), "{path:?}");
    }
}
