//! `[transport]` and `[transport.relay]`.

use super::{Key, Kind, Value, absolute, prefixes, put, word};
use crate::config::web::{LISTEN, one_transport_each, places};
use crate::config::{External, PostQuantum, RelayFor, RelayOffer, external, multiaddr};
use crate::model::id::PeerId;
use crate::model::proxy::ProxyError;

/// The keys, in the order they are shown.
pub(super) const KEYS: &[Key] = &[
    Key {
        path: "transport.listen",
        kind: Kind::List,
        set: |c, v| put(&mut c.listen, listen_addresses(v.list())),
        show: |c| {
            Value::List(if c.listen.is_empty() {
                vec!["none".to_owned()]
            } else {
                c.listen.clone()
            })
        },
    },
    Key {
        path: "transport.bootstrap",
        kind: Kind::List,
        set: |c, v| {
            put(
                &mut c.bootstrap,
                multiaddrs(v.list(), multiaddr::Peer::Optional),
            )
        },
        show: |c| Value::List(c.bootstrap.clone()),
    },
    Key {
        path: "transport.advertise",
        kind: Kind::List,
        set: |c, v| {
            put(
                &mut c.advertise,
                multiaddrs(v.list(), multiaddr::Peer::Forbidden),
            )
        },
        show: |c| Value::List(c.advertise.clone()),
    },
    switch!("transport.lan_discovery", lan_discovery),
    switch!("transport.port_mapping", port_mapping),
    Key {
        path: "transport.external",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.external,
                word(v.text(), &External::WORDS).map(External::of),
            )
        },
        show: |c| Value::Text(c.external.as_str().to_owned()),
    },
    Key {
        path: "transport.stun",
        kind: Kind::List,
        set: |c, v| put(&mut c.stun, external::servers(v.list())),
        show: |c| Value::List(c.stun.clone()),
    },
    Key {
        path: "transport.external_urls",
        kind: Kind::List,
        set: |c, v| put(&mut c.external_urls, external::urls(v.list())),
        show: |c| Value::List(c.external_urls.clone()),
    },
    Key {
        path: "transport.relay.offer",
        kind: Kind::AutoSwitch,
        set: |c, v| {
            c.relay.offer = match v {
                Value::Switch(true) => RelayOffer::Always,
                Value::Text(text) if text != "auto" => {
                    return Err(format!("expected {}", Kind::AutoSwitch));
                }
                Value::Text(_) => RelayOffer::Auto,
                _ => RelayOffer::Never,
            };
            Ok(())
        },
        show: |c| shown_offer(c.relay.offer),
    },
    Key {
        path: "transport.relay.max_mbit",
        kind: Kind::Number,
        set: |c, v| put(&mut c.relay.max_mbit, v.number(1, 1_000_000)),
        show: |c| Value::Number(c.relay.max_mbit.into()),
    },
    Key {
        path: "transport.relay.for",
        kind: Kind::List,
        set: |c, v| put(&mut c.relay.for_whom, relay_for(v.list())),
        show: |c| match &c.relay.for_whom {
            RelayFor::Auto => Value::Text("auto".to_owned()),
            RelayFor::Anyone => Value::Text("anyone".to_owned()),
            RelayFor::Members => Value::Text("members".to_owned()),
            RelayFor::Peers(list) => Value::List(list.iter().map(ToString::to_string).collect()),
        },
    },
    Key {
        path: "transport.proxy",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.proxy,
                v.text().parse().map_err(|e: ProxyError| e.to_string()),
            )
        },
        // Without the name and the password.
        show: |c| Value::Text(c.proxy.to_string()),
    },
    Key {
        path: "transport.no_proxy",
        kind: Kind::List,
        set: |c, v| put(&mut c.no_proxy, places(v.list())),
        show: |c| Value::List(c.no_proxy.iter().map(ToString::to_string).collect()),
    },
    Key {
        path: "transport.trusted_proxies",
        kind: Kind::List,
        set: |c, v| put(&mut c.trusted_proxies, prefixes(v.list())),
        show: |c| Value::List(c.trusted_proxies.iter().map(ToString::to_string).collect()),
    },
    file!("transport.tls_cert", tls_cert),
    file!("transport.tls_key", tls_key),
    Key {
        path: "transport.deny_cidrs",
        kind: Kind::List,
        set: |c, v| put(&mut c.deny_cidrs, prefixes(v.list())),
        show: |c| Value::List(c.deny_cidrs.iter().map(ToString::to_string).collect()),
    },
    Key {
        path: "transport.post_quantum",
        kind: Kind::Text,
        set: |c, v| {
            c.post_quantum = match word(v.text(), &["off", "prefer", "require"])? {
                "off" => PostQuantum::Off,
                "require" => PostQuantum::Require,
                _ => PostQuantum::Prefer,
            };
            Ok(())
        },
        show: |c| {
            let text = match c.post_quantum {
                PostQuantum::Off => "off",
                PostQuantum::Prefer => "prefer",
                PostQuantum::Require => "require",
            };
            Value::Text(text.to_owned())
        },
    },
];

/// `udp/4100`, `tcp/4100`, `tcp/443/wss`, `tcp/8080/ws`, multiaddrs or `none`, as multiaddrs of both families.
pub(in crate::config) fn listen_addresses(list: &[String]) -> Result<Vec<String>, String> {
    if list.iter().any(|s| s == "none") {
        return if list.len() == 1 {
            Ok(Vec::new())
        } else {
            Err("\"none\" stands alone".to_owned())
        };
    }
    if list.is_empty() {
        return Err("expected at least one address, or \"none\" for outbound only".to_owned());
    }
    let mut out: Vec<String> = Vec::new();
    for entry in list {
        let both = match entry.split_once('/') {
            Some((proto @ ("udp" | "tcp"), port)) => {
                let (port, web) = match port.split_once('/') {
                    Some((port, web @ ("ws" | "wss"))) if proto == "tcp" => (port, web),
                    Some(_) => return Err(format!("{entry:?}: expected {LISTEN}")),
                    None => (port, ""),
                };
                let port = port
                    .parse::<u16>()
                    .ok()
                    .filter(|p| *p != 0 && !port.starts_with('+'));
                let port =
                    port.ok_or_else(|| format!("{entry:?}: expected a port from 1 to 65535"))?;
                let above = match (proto, web) {
                    ("udp", _) => "/quic-v1",
                    (_, "ws") => "/ws",
                    (_, "wss") => "/wss",
                    _ => "",
                };
                vec![
                    format!("/ip4/0.0.0.0/{proto}/{port}{above}"),
                    format!("/ip6/::/{proto}/{port}{above}"),
                ]
            }
            _ if entry.starts_with('/') => {
                vec![multiaddr::check(entry, multiaddr::Peer::Forbidden)?]
            }
            // Nobody listens on a name.
            _ => match multiaddr::expand(entry, multiaddr::Peer::Forbidden) {
                Ok(both) if !both.iter().any(|a| a.starts_with("/dns")) => both,
                _ => return Err(format!("{entry:?}: expected {LISTEN}")),
            },
        };
        out.extend(both);
    }
    if let Some(path) = out.iter().find(|at| at.contains("/x-parity-ws")) {
        return Err(format!(
            "{path:?}: a WebSocket is taken at every path, so none is named"
        ));
    }
    // The same address twice would fail as "in use" by ourselves.
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|a| seen.insert(a.clone()));
    one_transport_each(&out)?;
    Ok(out)
}

pub(in crate::config) fn multiaddrs(
    list: &[String],
    peer: multiaddr::Peer,
) -> Result<Vec<String>, String> {
    let expand = |entry: &String| {
        let all = multiaddr::expand(entry, peer)?;
        // Where others are to come in, or this node is to go: neither leads to an address that nobody has.
        all.iter().try_for_each(|one| multiaddr::reachable(one))?;
        Ok(all)
    };
    let each: Result<Vec<Vec<String>>, String> = list.iter().map(expand).collect();
    each.map(|all| all.concat())
}

/// How an offer is written.
pub(in crate::config) fn shown_offer(offer: RelayOffer) -> Value {
    match offer {
        RelayOffer::Auto => Value::Text("auto".to_owned()),
        RelayOffer::Always => Value::Switch(true),
        RelayOffer::Never => Value::Switch(false),
    }
}

fn relay_for(list: &[String]) -> Result<RelayFor, String> {
    match list {
        [one] if !one.starts_with("12D3") => {
            Ok(match word(one, &["auto", "anyone", "swarm", "members"])? {
                "anyone" => RelayFor::Anyone,
                // Serving others instead would pass the perimeter that was asked for.
                "swarm" => return Err("this version has no private swarms".to_owned()),
                "members" => RelayFor::Members,
                _ => RelayFor::Auto,
            })
        }
        _ => Ok(RelayFor::Peers(
            list.iter()
                .map(|p| p.parse::<PeerId>().map_err(|e| format!("{p:?}: {e}")))
                .collect::<Result<_, _>>()?,
        )),
    }
}
