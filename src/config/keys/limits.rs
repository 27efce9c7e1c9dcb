//! How often and how much: `[discovery]`, `[limits]` and `[metrics]`.

use super::{Key, Kind, Value, prefixes, put};
use crate::config::discovery;

/// The keys, in the order they are shown.
pub(super) const KEYS: &[Key] = &[
    period!(announce, 60, 86_400),
    period!(compare, 5, 3600),
    period!(redial, 5, 3600),
    period!(keep_alive, 5, 300),
    period!(dead_after, 15, 900),
    limit!(connections, 2, 1_000_000),
    limit!(pending_connections, 1, 65_536),
    limit!(connections_per_peer, 1, 64),
    limit!(memory_mib, 64, 1_048_576),
    limit!(joins_per_minute, 1, 100_000),
    limit!(api_clients, 1, 4096),
    Key {
        path: "metrics.listen",
        kind: Kind::Text,
        set: |c, v| {
            c.metrics_listen = match v.text() {
                "" => None,
                text => Some(
                    text.parse()
                        .map_err(|_| "expected ADDRESS:PORT, or \"\" for none".to_owned())?,
                ),
            };
            Ok(())
        },
        show: |c| Value::Text(c.metrics_listen.map(|a| a.to_string()).unwrap_or_default()),
    },
    Key {
        path: "metrics.allow",
        kind: Kind::List,
        set: |c, v| put(&mut c.metrics_allow, prefixes(v.list())),
        show: |c| Value::List(c.metrics_allow.iter().map(ToString::to_string).collect()),
    },
];
