//! Files that are read, and files that are refused.

use std::collections::BTreeMap;

use super::*;

fn of(text: &str) -> Checked<File> {
    let process = BTreeMap::from([("IP".to_owned(), "10.77.1.9".to_owned())]);
    let variables = Variables::new(process, "").unwrap();
    read(
        text,
        &Beside {
            project: None,
            directory: "My.Shop",
            variables: &variables,
            is_subnet: &|name| name == "lab",
        },
    )
}

/// What is said of each service, on one line.
fn told(text: &str) -> Vec<String> {
    let file = of(text).unwrap();
    let line = |(place, s): &(Place, Service)| {
        let place = match place {
            Place::Named(name) => name.as_str(),
            Place::Unnamed => "-",
        };
        let maps: Vec<String> = s
            .maps
            .iter()
            .map(|m| {
                format!(
                    "{}{}:{}{}",
                    m.proto,
                    m.ports,
                    m.target_ports,
                    if m.by_engine { "!" } else { "" }
                )
            })
            .collect();
        let words = [
            place.to_owned(),
            s.name.clone(),
            s.container.clone(),
            format!("{:?}", s.addresses),
            s.mac.clone().unwrap_or_default(),
            s.aliases.iter().cloned().collect::<Vec<_>>().join("+"),
            maps.join("+"),
        ];
        words.join("|")
    };
    file.services.iter().map(line).collect()
}

#[test]
fn services_in_networks_of_byway_are_read_and_others_left_out() {
    let text = r#"
version: "3.8"
x-common: &common
  restart: always
services:
  web:
    <<: *common
    image: nginx
    ports: ["${PORT:-8080}:80"]
    networks:
      lab:
        aliases: [www, no_name]
        ipv4_address: ${IP}
        mac_address: 02:00:00:00:00:07
  db:
    container_name: the_db
    hostname: base
    labels: {byway.map: "udp/5300:53, tcp/192.0.2.1:81:81", other: x}
    networks: [lab, back]
  inner:
    ports: ["9000:9000"]
    networks: [back]
    labels: ["byway.name=core"]
  elsewhere:
    links: [web]
    networks: [plain]
  asked:
    profiles: [debug]
    networks: [lab]
  host:
    network_mode: host
networks:
  lab: {driver: byway, driver_opts: {subnet: lab}, ipam: {driver: byway, options: {subnet: lab}}}
  back: {driver: byway, internal: true}
  plain:
volumes: {data: {}}
"#;
    assert_eq!(
        told(text),
        [
            "lab|web|myshop-web-1|[10.77.1.9]|02:00:00:00:00:07|www|tcp8080:80!",
            "lab|the-db|the_db|[]||base+db|udp5300:53+tcp81:81",
            "-|the-db|the_db|[]||base+db|",
            "-|core|myshop-inner-1|[]||inner|tcp9000:9000",
        ]
    );
    let file = of(text).unwrap();
    let out: Vec<&str> = file
        .left_out
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(out, ["elsewhere", "asked", "host"]);
    let [note] = &file.notes[..] else {
        panic!("{:?}", file.notes)
    };
    assert!(note.contains("\"no_name\" of web"), "{note}");
}

#[test]
fn without_a_network_of_byway_every_service_is_imported() {
    let text = "services: {web: {ports: [8080:80]}, db: {networks: {x: {aliases: [base]}}}}\nnetworks: {x: {}}\nname: Shop\n";
    assert_eq!(
        told(text),
        [
            "-|web|shop-web-1|[]|||tcp8080:80!",
            "-|db|shop-db-1|[]||base|"
        ]
    );
    let alone = "services: {web: {network_mode: none, ports: [8080:80]}}\n";
    assert_eq!(told(alone), ["-|web|myshop-web-1|[]|||tcp8080:80"]);
    let made_before =
        "services: {web: {networks: [lab]}, db: {}}\nnetworks: {lab: {external: true}}\n";
    assert_eq!(told(made_before), ["lab|web|myshop-web-1|[]|||"]);
    let named = "services: {web: {}}\nnetworks: {default: {external: {name: lab}}}\n";
    assert_eq!(told(named), ["lab|web|myshop-web-1|[]|||"]);
}

#[test]
fn what_is_not_honoured_is_refused_by_its_name_and_line() {
    let in_lab = |service: &str| {
        format!(
            "networks: {{lab: {{driver: byway}}}}\nservices:\n  web:\n    networks: [lab]\n    {service}\n"
        )
    };
    let cases = [
        ("include: [a.yml]\nservices: {web: {}}\n".to_owned(), "line 1: include is not honoured; docker compose config"),
        ("servces: {}\n".into(), "line 1: \"servces\" is no key of a compose file"),
        ("version: \"3\"\n".into(), "the file has no services"),
        ("services: {}\n".into(), "no service of the file is in a network of byway's"),
        ("services: [web]\n".into(), "services is a list"),
        (in_lab("links: [db]"), "line 5: links is not honoured"),
        (in_lab("extends: {service: x}"), "line 5: extends is not honoured"),
        (in_lab("dns: 192.0.2.1"), "line 5: dns is not honoured"),
        (in_lab("network_mode: host"), "line 5: network_mode is not honoured"),
        (in_lab("netwroks: [x]"), "line 5: \"netwroks\" is no key of a service"),
        (in_lab("scale: 3"), "line 5: scale: \"3\" makes several"),
        (in_lab("deploy: {replicas: 2}"), "line 5: replicas: \"2\" makes several"),
        (in_lab("mac_address: x"), "line 5: "),
        (in_lab("labels: {byway.mpa: x}"), "line 5: \"byway.mpa\" is no label of byway's"),
        (in_lab("labels: [byway.map=53]"), "line 5: \"53\" is no port map"),
        (in_lab("labels: [\"byway.name=a b\"]"), "line 5: "),
        (in_lab("hostname: [x]"), "line 5: hostname is a list"),
        (in_lab("ports: [3000]"), "line 5: port 3000 has no port of this machine"),
        (in_lab("ports: [\"${PORT:?which}:80\"]"), "line 5: variable PORT is needed: \"which\""),
        ("services: {web: {network_mode: host}}\n".into(), "line 1: network_mode is not honoured; networks:"),
        ("services: {web: {networks: [lab]}}\n".into(), "line 1: the file has no network \"lab\""),
        ("services: {a: {}, A: {}}\n".into(), "line 1: two services are called a"),
        (
            "services: {web: {networks: {lab: {ipv4_address: fd00::1}}}}\nnetworks: {lab: {driver: byway}}\n".into(),
            "line 1: \"fd00::1\" is no ipv4_address",
        ),
        (
            "services: {web: {networks: {lab: {ipv4: 1}}}}\nnetworks: {lab: {driver: byway}}\n".into(),
            "line 1: \"ipv4\" is no key of a service's network",
        ),
        (
            "services: {web: {networks: [a, b]}}\nnetworks: {a: {driver: byway}, b: {driver: byway}}\n".into(),
            "line 1: web is in one subnet by two networks",
        ),
        ("services: {}\nnetworks: {x: {driver: overlay}}\n".into(), "line 2: driver: overlay needs a swarm"),
        (
            "services: {}\nnetworks:\n  x:\n    driver: byway\n    driver_opts: {mtu: 9000}\n".into(),
            "line 5: \"mtu\" is no option of driver byway",
        ),
        (
            "services: {}\nnetworks: {x: {driver: byway, driver_opts: {subnet: a}, ipam: {options: {subnet: b}}}}\n".into(),
            "line 2: a network over two subnets, a and b",
        ),
        (
            "services: {}\nnetworks: {x: {driver: byway, ipam: {driver: default}}}\n".into(),
            "line 2: addresses of a subnet come from driver byway",
        ),
        (
            "services: {}\nnetworks: {x: {driver: byway, ipam: {config: [{subnet: 10.77.0.0/16, gateway: 10.77.0.1}]}}}\n".into(),
            "line 2: gateway is not honoured",
        ),
        ("services: {}\nnetworks: {x: {driver: byway, internal: maybe}}\n".into(), "line 2: internal is \"maybe\""),
    ];
    for (text, says) in cases {
        let message = of(&text).err().map(|e| e.message).unwrap_or_default();
        assert!(
            message.contains(says),
            "{text}\n gives {message:?}, not {says:?}"
        );
    }
}

#[test]
fn the_example_is_read_and_the_readme_names_every_key() {
    let text = include_str!("../../../examples/compose/docker-compose.yml");
    assert_eq!(
        told(text),
        [
            "lab|web|myshop-web-1|[]||www|tcp8080:80!",
            "lab|dns|myshop-dns-1|[]|||udp5300:53",
            "lab|db|myshop-db-1|[]|||",
        ]
    );
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("## From a compose file").unwrap();
    let named = keys::SERVICE
        .iter()
        .filter(|key| !["deploy", "profiles"].contains(key));
    let all = named
        .chain(&keys::FILE)
        .chain(&keys::PLACE)
        .chain(&keys::NETWORK);
    for key in all {
        assert!(section.contains(&format!("`{key}`")), "{key}");
    }
}
