//! What a person set and nothing comes of, or less than its name promises.

use super::{
    Config, ConfigError, DnsMode, External, PostQuantum, RelayFor, RelayOffer, keys, multiaddr,
};
use crate::model::error::Code;
use crate::model::host::firewalls::Integrate;
use crate::model::ports::PortRange;
use crate::model::proxy::Choice;

/// Why a bound on relaying has no effect.
const OFFERS_NOTHING: &str = "transport.relay.offer is false, so this node forwards for nobody";
/// Why a pace has no effect.
const NO_SEARCH: &str =
    "transport.lan_discovery is false, so nobody is looked for on the local networks";
/// Why a setting of subnets has no effect on a relay.
const IN_NO_SUBNET: &str = "node.relay_only is true, and a daemon that only relays is in no subnet";

/// Why a certificate has no effect.
const NO_TLS: &str =
    "transport.listen names no WebSocket inside TLS (tcp/443/wss), so nobody is shown it";

/// A setting that is accepted and has no effect.
pub(super) struct Idle {
    /// Dotted path of the setting that has no effect.
    pub(super) path: &'static str,
    /// Whether the value in force promises something.
    promises: fn(&Config) -> bool,
    /// The reason why nothing comes of it.
    why: &'static str,
}

/// Every such setting: no code reads it, or not beside what else is set.
pub(super) const IDLE: &[Idle] = &[
    Idle {
        path: "transport.port_mapping",
        promises: |c| c.port_mapping && c.listen.is_empty(),
        why: "transport.listen is none, so no port is open that a router could lead to",
    },
    Idle {
        path: "transport.external",
        promises: |c| c.external != External::Members && c.listen.is_empty(),
        why: "transport.listen is none, so nobody comes in from outside",
    },
    Idle {
        path: "transport.external",
        promises: |c| c.external == External::Stun && c.stun.is_empty(),
        why: "transport.stun names no server",
    },
    Idle {
        path: "transport.external",
        promises: |c| c.external == External::Url && c.external_urls.is_empty(),
        why: "transport.external_urls names no page",
    },
    Idle {
        path: "transport.stun",
        promises: |c| !c.stun.is_empty() && !c.external.asks_stun(),
        why: "transport.external is neither \"stun\" nor \"consensus\", so no server is asked",
    },
    Idle {
        path: "transport.external_urls",
        promises: |c| !c.external_urls.is_empty() && !c.external.asks_urls(),
        why: "transport.external is neither \"url\" nor \"consensus\", so no page is asked",
    },
    Idle {
        path: "transport.relay.offer",
        promises: |c| c.relay.offer == RelayOffer::Always && c.listen.is_empty(),
        why: "transport.listen is \"none\", so nobody can ask this node to forward",
    },
    Idle {
        path: "discovery.announce",
        promises: |c| !c.lan_discovery,
        why: NO_SEARCH,
    },
    Idle {
        path: "transport.relay.max_mbit",
        promises: |c| c.relay.offer == RelayOffer::Never,
        why: OFFERS_NOTHING,
    },
    Idle {
        path: "transport.relay.for",
        promises: |c| c.relay.offer == RelayOffer::Never,
        why: OFFERS_NOTHING,
    },
    Idle {
        path: "transport.relay.for",
        promises: |c| {
            c.relay.offer != RelayOffer::Never && c.relay.for_whom == RelayFor::Peers(Vec::new())
        },
        why: "it names no peer, so this node forwards for nobody",
    },
    Idle {
        path: "transport.no_proxy",
        promises: |c| c.proxy == Choice::None && !c.no_proxy.is_empty(),
        why: "transport.proxy is none, so nothing goes through a proxy",
    },
    Idle {
        path: "transport.trusted_proxies",
        promises: |c| !c.trusted_proxies.is_empty() && !c.listens_to_websockets(),
        why: "transport.listen names no WebSocket (tcp/8080/ws), which is all that a proxy can say anything of",
    },
    Idle {
        path: "transport.tls_cert",
        promises: |c| c.tls_cert.is_some() && !c.listens_inside_tls(),
        why: NO_TLS,
    },
    Idle {
        path: "transport.tls_key",
        promises: |c| c.tls_key.is_some() && !c.listens_inside_tls(),
        why: NO_TLS,
    },
    Idle {
        path: "transport.post_quantum",
        promises: |c| c.relay_only && c.post_quantum != PostQuantum::Off,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "data.cipher",
        promises: |c| c.relay_only,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "dns.mode",
        promises: |c| c.relay_only && c.dns_mode != DnsMode::Off,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "dns.host",
        promises: |c| c.relay_only && c.dns_host,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "dns.host",
        promises: |c| !c.relay_only && c.dns_host && c.dns_mode == DnsMode::Off,
        why: "dns.mode is off, so there are no names to tell the host's resolver of",
    },
    Idle {
        path: "firewall.repair",
        promises: |c| c.relay_only && c.firewall_repair,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "firewall.integrate",
        promises: |c| c.relay_only && c.firewall_integrate != Integrate::NONE,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "ports.range",
        promises: |c| c.relay_only && c.ports_range != PortRange::ALL,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "workloads.users",
        promises: |c| c.relay_only && !c.workload_users.is_empty(),
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "discovery.compare",
        promises: |c| c.relay_only,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "discovery.redial",
        promises: |c| c.relay_only,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "docker.plugin_dir",
        promises: |c| c.relay_only,
        why: IN_NO_SUBNET,
    },
    Idle {
        path: "metrics.allow",
        promises: |c| c.metrics_listen.is_none() && !c.metrics_allow.is_empty(),
        why: "metrics.listen is empty, so nobody can ask over TCP",
    },
];

/// The variable that names the file to read.
const FILE_VARIABLE: &str = "BYWAY_CONFIG";

/// The variable that a person may have meant by one that sets nothing, with the key that it sets: the nearest in spelling, or
/// one that ends in the same word. Programs of others have variables that begin like ours, and are left alone.
fn misspelt(variable: &str) -> Option<(String, Option<&'static str>)> {
    let all: Vec<(String, Option<&'static str>)> = keys::all()
        .flat_map(|key| {
            key.variables()
                .into_iter()
                .map(|name| (name, Some(key.path)))
        })
        .chain([(FILE_VARIABLE.to_owned(), None)])
        .collect();
    if all.iter().any(|(name, _)| name == variable) {
        return None;
    }
    let short = |name: &str| {
        let rest = name.strip_prefix("BYWAY_").unwrap_or(name);
        rest.to_ascii_lowercase()
    };
    let typed = short(variable);
    let words: Vec<String> = all.iter().map(|(name, _)| short(name)).collect();
    let near = keys::nearest(&typed, words.iter().map(String::as_str));
    let near = near.and_then(|near| words.iter().position(|word| word == near));
    let leaf = || {
        let is_it = |(_, key): &(String, Option<&str>)| {
            key.is_some_and(|key| key.rsplit('.').next() == Some(typed.as_str()))
        };
        all.iter().position(is_it)
    };
    near.or_else(leaf).and_then(|at| all.into_iter().nth(at))
}

impl Config {
    /// What a setting promises less of than its name may suggest, in words.
    pub fn caveats(&self) -> Vec<String> {
        let require = "transport.post_quantum = \"require\": packets go to members by datagrams only, under keys with \
                       ML-KEM-768, and by no stream over TCP or QUIC; what members tell each other beside packets (records, \
                       names, requests) goes over libp2p's Noise and TLS, which are not post-quantum";
        let nameless = self.bootstrap.iter().filter(|at| !at.contains("/p2p/"));
        let nameless = nameless.map(|at| {
            format!(
                "transport.bootstrap: {at} names no peer (/p2p/ID), so no place is kept there as at a relay: only joins ask \
                 whoever answers"
            )
        });
        (self.post_quantum == PostQuantum::Require)
            .then(|| require.to_owned())
            .into_iter()
            .chain(nameless)
            .collect()
    }

    /// Addresses that `transport.deny_cidrs` keeps this node from using, each with its key and where that was said.
    fn denied(&self) -> Vec<ConfigError> {
        let is_denied = |at: &&String| {
            let ip = multiaddr::ip_of(at).map(|ip| ip.to_canonical());
            ip.is_some_and(|ip| self.deny_cidrs.iter().any(|net| net.contains(&ip)))
        };
        let idle = |place: &str, key: &str, at: &String, effect: &str| ConfigError {
            code: Code::ConfigIdle,
            place: place.to_owned(),
            key: key.to_owned(),
            message: format!(
                "{key} has no effect as far as it says {at}: transport.deny_cidrs covers it, so it is {effect}"
            ),
        };
        let of = |key: &'static str, list: &[String], effect: &'static str| {
            let place = self.origins.get(key).cloned().unwrap_or_default();
            let denied = list.iter().filter(is_denied);
            denied
                .map(|at| idle(&place, key, at, effect))
                .collect::<Vec<_>>()
        };
        let mut all = of("transport.bootstrap", &self.bootstrap, "never dialled");
        for subnet in &self.subnets {
            let denied = subnet.peers.iter().filter(is_denied);
            all.extend(denied.map(|at| idle(&subnet.origin, "subnet.peer", at, "never dialled")));
        }
        all
    }

    /// Variables of the environment that set nothing, and differ little from one that would.
    fn misspelt(&self) -> Vec<ConfigError> {
        let names = self.sources.env.iter().map(|(name, _)| name);
        let misspelt = names.filter_map(|name| {
            let (meant, key) = misspelt(name)?;
            let sets = key.map(|key| format!(" ({key})")).unwrap_or_default();
            Some(ConfigError {
                code: Code::ConfigKey,
                place: name.clone(),
                key: key.unwrap_or_default().to_owned(),
                message: format!(
                    "no variable of that name sets anything; did you mean {meant}{sets}?"
                ),
            })
        });
        misspelt.collect()
    }

    /// What a person set and nothing comes of, for `config check`, the log and `status`: with the code `E-CONFIG-IDLE` what is
    /// read, with `E-CONFIG-KEY` a misspelt variable. A default promises nothing to anybody.
    pub fn idle(&self) -> Vec<ConfigError> {
        let idle = |idle: &Idle| {
            let (key, place) = (keys::find(idle.path)?, self.origins.get(idle.path)?);
            let message = format!(
                "{} = {} has no effect: {}",
                key.path,
                (key.show)(self),
                idle.why
            );
            let found = ConfigError {
                code: Code::ConfigIdle,
                place: place.clone(),
                key: key.path.to_owned(),
                message,
            };
            (idle.promises)(self).then_some(found)
        };
        let of_keys = IDLE.iter().filter_map(idle);
        of_keys
            .chain(self.denied())
            .chain(self.misspelt())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeclaredSubnet;

    /// What is said of a variable: the one that was meant, and its key.
    fn meant(variable: &str) -> Option<String> {
        let mut config = Config::defaults("a");
        config.sources.env = vec![(variable.to_owned(), "x".to_owned())];
        let found = config.idle();
        assert!(found.len() <= 1, "{found:?}");
        let found = found.into_iter().next()?;
        assert_eq!(
            (found.code, &found.place),
            (Code::ConfigKey, &variable.to_owned())
        );
        Some(found.message)
    }

    #[test]
    fn a_misspelt_variable_names_the_one_that_was_meant() {
        for (typed, right) in [
            ("BYWAY_NODE_NMAE", "BYWAY_NODE_NAME (node.name)"),
            ("BYWAY_node_name", "BYWAY_NODE_NAME (node.name)"),
            ("BYWAY_LOGS", "BYWAY_LOG (log.level)"),
            ("BYWAY_CONFG", "BYWAY_CONFIG?"),
            (
                "BYWAY_TRANSPORT_BOOTSTRAPS",
                "BYWAY_TRANSPORT_BOOTSTRAP (transport.bootstrap)",
            ),
            (
                "BYWAY_BOOTSTRAP",
                "BYWAY_TRANSPORT_BOOTSTRAP (transport.bootstrap)",
            ),
            (
                "BYWAY_RELAY_ONLY",
                "BYWAY_NODE_RELAY_ONLY (node.relay_only)",
            ),
        ] {
            let message = meant(typed);
            let is_named = message
                .as_ref()
                .is_some_and(|message| message.contains(right));
            assert!(is_named, "{typed}: {message:?}");
        }
    }

    #[test]
    fn variables_of_others_and_right_ones_are_left_alone() {
        for name in [
            "BYWAY_NODE_NAME",
            "BYWAY_STATE_DIR",
            "BYWAY_CONFIG",
            "BYWAY_TESTS",
            "BYWAY_BIN",
            "BYWAY_SEED",
            // What an orchestrator says of a service of that name.
            "BYWAY_PORT",
            "BYWAY_SERVICE_HOST",
            "BYWAY_PORT_4100_TCP_ADDR",
            "BYWAY_METRICS_PORT",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn what_deny_cidrs_keeps_from_being_used_is_named() {
        let mut config = Config::defaults("a");
        config.deny_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
        config.bootstrap = vec![
            "/ip4/10.1.2.3/tcp/4100".to_owned(),
            "/ip6/::ffff:10.1.2.4/tcp/4100".to_owned(),
            "/ip4/192.0.2.1/tcp/4100".to_owned(),
            "/dns/a.example/tcp/4100".to_owned(),
        ];
        config.subnets = vec![DeclaredSubnet {
            peers: vec!["/ip4/10.9.9.9/tcp/1".to_owned()],
            origin: "byway.toml:9".to_owned(),
            ..DeclaredSubnet::default()
        }];
        let found = config.idle();
        let said: Vec<(&str, &str)> = found
            .iter()
            .map(|found| (found.key.as_str(), found.place.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("transport.bootstrap", ""),
                ("transport.bootstrap", ""),
                ("subnet.peer", "byway.toml:9")
            ]
        );
        assert!(found[0].message.contains("/ip4/10.1.2.3/tcp/4100"));
        assert!(found[0].message.ends_with("so it is never dialled"));
    }

    #[test]
    fn a_bootstrap_without_a_peer_is_no_relay_and_said_to_be_none() {
        let mut config = Config::defaults("a");
        let id = crate::model::id::PeerId([7; 32]);
        config.bootstrap = vec![format!("/ip4/192.0.2.1/tcp/1/p2p/{id}")];
        assert!(config.caveats().is_empty());
        config.bootstrap.push("/ip4/192.0.2.2/tcp/1".to_owned());
        let [only] = config.caveats().try_into().unwrap();
        assert!(
            only.contains("/ip4/192.0.2.2/tcp/1 names no peer"),
            "{only}"
        );
    }

    #[test]
    fn a_list_of_nobody_to_forward_for_is_in_vain() {
        let mut config = Config::defaults("a");
        config.relay.for_whom = RelayFor::Peers(vec![]);
        let key = "transport.relay.for";
        config.origins.insert(key, "byway.toml:3".to_owned());
        let [only] = config.idle().try_into().unwrap();
        assert!(
            only.message.contains("it names no peer"),
            "{}",
            only.message
        );
    }
}
