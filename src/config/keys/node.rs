//! The version of the file, `[node]` and `[log]`.

use super::{Key, Kind, Value, absolute, put};
use crate::config::log;
use crate::model::id::Name;

/// The keys, in the order they are shown.
pub(super) const KEYS: &[Key] = &[
    Key {
        path: "version",
        kind: Kind::Number,
        set: |_, v| {
            v.number(1, 1)
                .map(|_| ())
                .map_err(|_| "this byway reads version 1".to_owned())
        },
        show: |_| Value::Number(1),
    },
    Key {
        path: "node.name",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.node_name,
                v.text().parse::<Name>().map_err(|e| e.to_string()),
            )
        },
        show: |c| Value::Text(c.node_name.to_string()),
    },
    Key {
        path: "node.state_dir",
        kind: Kind::Text,
        set: |c, v| put(&mut c.state_dir, absolute(v.text())),
        show: |c| Value::Text(c.state_dir.display().to_string()),
    },
    Key {
        path: "node.socket",
        kind: Kind::Text,
        set: |c, v| put(&mut c.socket, absolute(v.text())),
        show: |c| Value::Text(c.socket.display().to_string()),
    },
    Key {
        path: "node.helper_socket",
        kind: Kind::Text,
        set: |c, v| put(&mut c.helper_socket, absolute(v.text())),
        show: |c| Value::Text(c.helper_socket.display().to_string()),
    },
    Key {
        path: "log.level",
        kind: Kind::Text,
        set: |c, v| {
            log::levels(v.text())?;
            c.log_level = v.text().to_owned();
            Ok(())
        },
        show: |c| Value::Text(c.log_level.clone()),
    },
    file!("node.identity_file", identity_file),
    Key {
        path: "node.swarm_key_file",
        kind: Kind::Text,
        // Ignoring it would run outside the perimeter that was asked for.
        set: |_, v| {
            if v.text().is_empty() {
                Ok(())
            } else {
                Err("this version has no private swarms".to_owned())
            }
        },
        show: |_| Value::Text(String::new()),
    },
    switch!("node.relay_only", relay_only),
];
