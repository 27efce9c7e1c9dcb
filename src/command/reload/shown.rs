//! What `config show` tells of the running daemon.

use crate::api::types::{ConfigInfo, ConfigSubnet, ConfigValue, Error};
use crate::command::Commands;
use crate::config::{DeclaredSubnet, Value};
use crate::model::id::SubnetId;
use crate::node::Membership;

/// `config show` of this daemon: the values in force, flags among them, and every membership with what the command line made
/// of it; then what is declared and no membership yet.
pub(in crate::command) async fn show(ctx: &Commands) -> Result<ConfigInfo, Error> {
    let config = ctx.settings.now();
    let json = |value: Value| match value {
        Value::Text(text) => serde_json::json!(text),
        Value::Number(n) => serde_json::json!(n),
        Value::Switch(on) => serde_json::json!(on),
        Value::List(list) => serde_json::json!(list),
    };
    let value = |(path, value, origin): (&'static str, Value, Option<&str>)| {
        (
            path.to_owned(),
            ConfigValue {
                value: json(value),
                origin: origin.unwrap_or("default").to_owned(),
            },
        )
    };
    let declared: Vec<(Option<SubnetId>, DeclaredSubnet)> = config
        .subnets
        .iter()
        .map(|s| (ctx.settings.meant(s), s.clone()))
        .collect();
    let (me, here) = (ctx.peers.peer(), ctx.node.memberships().await?);
    let shown = |(id, Membership { subnet, .. }): (&SubnetId, &Membership)| {
        let file = declared
            .iter()
            .find(|(meant, _)| meant.as_ref() == Some(id))
            .map(|(_, file)| file);
        let made = if subnet.records.genesis.owner == me {
            "command line (create)"
        } else {
            "command line (join)"
        };
        let written = file.and_then(|file| file.host.clone()).unwrap_or_default();
        let host_origin = written != subnet.local.host;
        ConfigSubnet {
            r#as: Some(subnet.name().clone()),
            host: Some(subnet.local.host.clone()),
            peer: subnet.local.hints.clone(),
            up: Some(subnet.local.up),
            origin: file.map_or_else(|| made.to_owned(), |file| file.origin.clone()),
            host_origin: host_origin.then(|| "command line (subnet host)".to_owned()),
            ..as_declared(Some(*id), file.unwrap_or(&DeclaredSubnet::default()))
        }
    };
    let awaited = declared
        .iter()
        .filter(|(id, _)| !id.is_some_and(|id| here.contains_key(&id)));
    let subnets = here
        .iter()
        .map(shown)
        .chain(awaited.map(|(id, table)| as_declared(*id, table)))
        .collect();
    Ok(ConfigInfo {
        values: config.values().map(value).collect(),
        subnets,
    })
}

/// A declaration as it stands, before it is a membership.
fn as_declared(id: Option<SubnetId>, table: &DeclaredSubnet) -> ConfigSubnet {
    ConfigSubnet {
        id,
        invite_file: table.invite_file.clone(),
        name: table.name.clone(),
        r#as: table.alias.clone(),
        ip: table.ip,
        host: table.host.clone(),
        peer: table.peers.clone(),
        up: None,
        origin: table.origin.clone(),
        host_origin: None,
    }
}
