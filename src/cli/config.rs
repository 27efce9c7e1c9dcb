//! `config check`, `config show`: what the files, the environment and the defaults come to. Never asks the daemon.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Context, Outcome, json};
use crate::api::types::{Done, Error, ErrorKind, Response};
use crate::config::{Config, ConfigError, Sources, Value};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Say `ok`, or everything that is wrong
    Check {
        /// File to read instead of /etc/byway/byway.toml
        #[arg(long, value_name = "FILE", env = "BYWAY_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Show what is set
    Show {
        /// Defaults too: everything that is in force
        #[arg(long)]
        effective: bool,
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
        /// File to read instead of /etc/byway/byway.toml
        #[arg(long, value_name = "FILE", env = "BYWAY_CONFIG")]
        config: Option<PathBuf>,
    },
}

pub(super) fn run(verb: ConfigVerb, context: &Context) -> Result<Outcome, Error> {
    match verb {
        ConfigVerb::Check { config } => {
            load(config, socket_flag(context), "")?;
            let done = Response::Done(Done { message: "ok".to_owned(), changed: false });
            Outcome::of(&done, context.style)
        }
        ConfigVerb::Show { effective, origin, config } => {
            let config = load(config, socket_flag(context), "byway config check")?;
            Ok(Outcome {
                text: text(&config, effective, origin),
                json: object(&config, effective)?,
                ..Outcome::default()
            })
        }
    }
}

/// `--socket` as a flag of the configuration.
pub(super) fn socket_flag(context: &Context) -> Vec<(&'static str, Value)> {
    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone()).display().to_string();
    context.socket.iter().map(|p| ("node.socket", Value::Text(absolute(p)))).collect()
}

/// Reads every layer; all that is wrong becomes one error of several sentences.
pub(super) fn load(file: Option<PathBuf>, flags: Vec<(&'static str, Value)>, hint: &str) -> Result<Config, Error> {
    let file = file.map(|f| std::path::absolute(&f).unwrap_or(f));
    Config::load(&Sources::of_process(file, flags)).map_err(|errors| {
        let code = errors.first().map_or("E-CONFIG", |e| e.code);
        let message = errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("; ");
        // A file that is not there is not mended by looking into it.
        Error::new(ErrorKind::Usage, code, message).hint(if code == "E-CONFIG-READ" { "" } else { hint })
    })
}

fn text(config: &Config, effective: bool, origin: bool) -> String {
    let mut out = String::new();
    for (path, value, place) in config.values().filter(|(_, _, place)| effective || place.is_some()) {
        let from = if origin { format!("   # {}", place.unwrap_or("default")) } else { String::new() };
        out += &format!("{path} = {value}{from}\n");
    }
    for subnet in &config.subnets {
        let from = if origin { format!("   # {}", subnet.origin) } else { String::new() };
        let shown = subnet.to_string();
        out += &format!("\n{}\n", shown.replacen("[[subnet]]", &format!("[[subnet]]{from}"), 1));
    }
    out
}

fn object(config: &Config, effective: bool) -> Result<String, Error> {
    let of = |value: &Value| match value {
        Value::Text(text) => serde_json::json!(text),
        Value::Number(n) => serde_json::json!(n),
        Value::Switch(b) => serde_json::json!(b),
        Value::List(list) => serde_json::json!(list),
    };
    let values: serde_json::Map<String, serde_json::Value> = config
        .values()
        .filter(|(_, _, place)| effective || place.is_some())
        .map(|(path, value, place)| {
            (path.to_owned(), serde_json::json!({"value": of(&value), "origin": place.unwrap_or("default")}))
        })
        .collect();
    let subnets: Vec<serde_json::Value> = config
        .subnets
        .iter()
        .map(|s| {
            serde_json::json!({
                "id": s.id, "invite_file": s.invite_file, "peer": s.peers, "name": s.name, "as": s.alias, "ip": s.ip,
                "origin": s.origin,
            })
        })
        .collect();
    json(&serde_json::json!({"schema": "byway.config/1", "values": values, "subnets": subnets}))
}
