//! `config check`, `config show`: what the files, the environment and the defaults come to; `config show --effective` asks
//! the daemon, where one answers, for what is in force there.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Context, Outcome, blocking, json, print};
use crate::api::types::{ConfigInfo, Error, ErrorKind, Request, Response};
use crate::config::keys;
use crate::config::{Config, ConfigError, DEFAULT_FILE, Sources, Value};
use crate::model::error::Code;
use crate::model::proxy::Choice;
use crate::service::settings;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Say `ok`, or everything that is wrong
    Check {
        /// File to read [default: BYWAY_CONFIG, else /etc/byway/byway.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show what is set
    Show {
        /// Everything that is in force: defaults too, and where a daemon answers (and no file is named) its flags and what
        /// the command line changed
        #[arg(long)]
        effective: bool,
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
        /// File to read [default: BYWAY_CONFIG, else /etc/byway/byway.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) fn run(verb: ConfigVerb, context: &Context) -> Result<Outcome, Error> {
    match verb {
        ConfigVerb::Check { config } => match read(config, socket_flag(context)) {
            Ok(config) => match settings::unusable_certificate(&config) {
                Some(wrong) if !is_hidden(&config) => unusable(&wrong, context),
                _ => checked(&config),
            },
            Err(wrong) => refused(&wrong, "", context),
        },
        ConfigVerb::Show {
            effective,
            origin,
            config,
        } => {
            let config = named(config);
            let mut note = String::new();
            if effective
                && config.is_none()
                && let Some(info) = running(context, &mut note)
            {
                let text = in_force(&info, origin);
                return Ok(Outcome {
                    text,
                    json: json(&Response::Config(info))?,
                    ..Outcome::default()
                }
                .asked_for());
            }
            let config = load(config, socket_flag(context), context)?;
            Ok(Outcome {
                text: text(&config, effective, origin),
                json: object(&config, effective)?,
                note,
                ..Outcome::default()
            }
            .asked_for())
        }
    }
}

/// What is in force in the daemon, where one answers and the caller may ask; where it does not tell, `note` says why.
fn running(context: &Context, note: &mut String) -> Option<ConfigInfo> {
    let error = match blocking(context.client.call(&Request::Config)) {
        Ok(Response::Config(info)) => return Some(info),
        Ok(_) => return None,
        Err(error) => error,
    };
    // Where none runs, the files are all there is.
    if error.kind != ErrorKind::NoDaemon {
        *note = print::clean(&format!(
            "note: this is what the files say, the daemon did not tell: {} ({})",
            error.message, error.code
        )) + "\n";
    }
    None
}

/// What is in force in a daemon, as a configuration that means the same.
pub(super) fn in_force(info: &ConfigInfo, origin: bool) -> String {
    let from = |place: &str| {
        if origin {
            format!("   # {}", print::clean(place))
        } else {
            String::new()
        }
    };
    let line = |key: &str, value: &serde_json::Value, place: &str| {
        format!("{key} = {value}{}\n", from(place))
    };
    let known = keys::all().filter_map(|key| Some((key.path, info.values.get(key.path)?)));
    let mut out: String = known
        .map(|(path, value)| line(path, &value.value, &value.origin))
        .collect();
    for subnet in &info.subnets {
        out += &format!("\n[[subnet]]{}\n", from(&subnet.origin));
        let mut line = |key: &str, value: Option<String>, from: &str| {
            let Some(value) = value else { return };
            out += &format!(
                "{key} = {}{from}\n",
                print::clean(&Value::Text(value).to_string())
            );
        };
        line("id", subnet.id.map(|id| id.to_string()), "");
        line(
            "invite_file",
            subnet
                .invite_file
                .as_ref()
                .map(|file| file.display().to_string()),
            "",
        );
        line("name", subnet.name.as_ref().map(ToString::to_string), "");
        line("as", subnet.r#as.as_ref().map(ToString::to_string), "");
        line("ip", subnet.ip.map(|ip| ip.to_string()), "");
        let host_from = subnet.host_origin.as_deref().map(from).unwrap_or_default();
        line(
            "host",
            subnet.host.as_ref().map(ToString::to_string),
            &host_from,
        );
        if !subnet.peer.is_empty() {
            out += &format!(
                "peer = {}\n",
                print::clean(&Value::List(subnet.peer.clone()).to_string())
            );
        }
        match subnet.up {
            Some(true) => {}
            Some(false) => out += &format!("# off the wire{}\n", from("command line (down)")),
            None => out += "# no membership yet\n",
        }
    }
    out
}

/// `--socket` as a flag of the configuration.
pub(super) fn socket_flag(context: &Context) -> Vec<(&'static str, Value)> {
    let absolute = |p: &PathBuf| {
        std::path::absolute(p)
            .unwrap_or_else(|_| p.clone())
            .display()
            .to_string()
    };
    context
        .socket
        .iter()
        .map(|p| ("node.socket", Value::Text(absolute(p))))
        .collect()
}

/// `ok`, what was set in vain, and what lies beside the files that were read and was not.
fn checked(config: &Config) -> Result<Outcome, Error> {
    let skipped: String = config
        .skipped
        .iter()
        .map(|(path, why)| {
            format!(
                "not read: {}   ({why})\n",
                print::clean(&path.display().to_string())
            )
        })
        .collect();
    let idle = config.idle();
    let notes = absent(config).into_iter().chain(config.caveats());
    let notes: Vec<String> = notes.chain(unseen(config)).collect();
    let in_vain: String = idle
        .iter()
        .map(|found| print::clean(&format!("! {found} ({})", found.code)) + "\n")
        .collect();
    let noted: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    let list: Vec<serde_json::Value> = config
        .skipped
        .iter()
        .map(|(path, why)| serde_json::json!({"file": path, "reason": why}))
        .collect();
    let idle: Vec<serde_json::Value> = idle.iter().map(found).collect();
    let shown = serde_json::json!({
        "schema": "byway.config-check/1", "ok": true, "errors": [], "idle": idle, "notes": notes, "skipped": list,
    });
    Ok(Outcome {
        text: format!("ok\n{noted}{in_vain}{skipped}"),
        json: json(&shown)?,
        ..Outcome::default()
    })
}

/// The error of the certificate, with what to do about it.
fn unusable(wrong: &ConfigError, context: &Context) -> Result<Outcome, Error> {
    let errors = vec![wrong.clone()];
    refused(
        &Wrong { errors, file: None },
        settings::CERTIFICATE,
        context,
    )
}

/// Whether this user may not read the files of the certificate, which tells nothing of the daemon.
fn is_hidden(config: &Config) -> bool {
    let files = config.certificate().into_iter();
    let mut files = files.flat_map(|(chain, key)| [chain, key]);
    let denied = |e: std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
    files.any(|file| std::fs::File::open(file).is_err_and(denied))
}

/// What was not looked at, and what holds for this shell and not for a service.
fn unseen(config: &Config) -> Vec<String> {
    let hidden =
        "transport.tls_cert and transport.tls_key were not looked at: this user may not read them";
    let variable = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let names = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let env = if names.into_iter().any(variable) {
        "transport.proxy is \"env\": a service has its own environment, and not the variables of this shell"
    } else {
        "transport.proxy is \"env\", and neither https_proxy nor all_proxy is set here: where they are not set for the daemon \
         either, nothing goes through a proxy (systemd: Environment=https_proxy=http://HOST:PORT)"
    };
    let hidden = is_hidden(config).then_some(hidden);
    let env = (config.proxy == Choice::Env).then_some(env);
    hidden.into_iter().chain(env).map(str::to_owned).collect()
}

/// That there was no file to read: what was checked are the environment and the defaults.
fn absent(config: &Config) -> Option<String> {
    let named = config.sources.file.is_some() || Path::new(DEFAULT_FILE).exists();
    // `conf.d` is read without it, and may declare subnets and nothing else.
    let is_set = config.values().any(|(.., from)| from.is_some()) || !config.subnets.is_empty();
    (!named && !is_set).then(|| format!("there is no {DEFAULT_FILE}: the defaults are in force"))
}

/// The file that is named by the flag, else by `BYWAY_CONFIG`; empty is as if not set.
pub(super) fn named(flag: Option<PathBuf>) -> Option<PathBuf> {
    flag.or_else(|| {
        std::env::var_os("BYWAY_CONFIG")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    })
}

/// What is wrong, with the file it was read from for a remedy.
struct Wrong {
    errors: Vec<ConfigError>,
    file: Option<PathBuf>,
}

/// Reads every layer.
fn read(file: Option<PathBuf>, flags: Vec<(&'static str, Value)>) -> Result<Config, Wrong> {
    let file = named(file).map(|f| std::path::absolute(&f).unwrap_or(f));
    Config::load(&Sources::of_process(file.clone(), flags)).map_err(|errors| Wrong { errors, file })
}

/// The error of each thing that is wrong.
fn each(wrong: &Wrong) -> impl Iterator<Item = Error> + '_ {
    wrong
        .errors
        .iter()
        .map(|e| Error::new(ErrorKind::Usage, e.code, e.to_string()))
}

/// Tells all errors but the last one, which is given back: one a line, in the order of the files.
fn tell(wrong: &Wrong, context: &Context) -> Error {
    let mut all: Vec<Error> = each(wrong).collect();
    let last = all.pop().unwrap_or_else(|| {
        Error::new(ErrorKind::Usage, Code::Config, "the configuration is wrong")
    });
    if !context.json {
        all.iter()
            .for_each(|error| print::stderr(&print::error(context.style, error)));
        return last;
    }
    // One object has one message.
    let code = all
        .first()
        .map_or(last.code.clone(), |first| first.code.clone());
    let message: Vec<&str> = all
        .iter()
        .chain([&last])
        .map(|e| e.message.as_str())
        .collect();
    Error::new(ErrorKind::Usage, &code, message.join("; "))
}

/// Reads every layer for a verb that needs it.
pub(super) fn load(
    file: Option<PathBuf>,
    flags: Vec<(&'static str, Value)>,
    context: &Context,
) -> Result<Config, Error> {
    read(file, flags).map_err(|wrong| {
        let error = tell(&wrong, context);
        // A file that is not there is not mended by looking into it.
        if error.code == Code::ConfigRead {
            return error;
        }
        // Neither is a flag.
        if wrong.errors.iter().all(|e| e.place.starts_with("--")) {
            return error.hint("byway daemon --help");
        }
        let file = wrong
            .file
            .map(|f| format!(" --config {}", f.display()))
            .unwrap_or_default();
        error.hint(format!("byway config check{file}"))
    })
}

/// What `config check` says of a wrong configuration.
fn refused(wrong: &Wrong, hint: &str, context: &Context) -> Result<Outcome, Error> {
    let error = tell(wrong, context).hint(hint);
    let list: Vec<serde_json::Value> = wrong.errors.iter().map(found).collect();
    let shown = serde_json::json!({
        "schema": "byway.config-check/1", "ok": false, "errors": list,
        "error": {"code": error.code, "message": error.message, "hint": error.hint},
    });
    Ok(Outcome {
        json: json(&shown)?,
        error: Some(error),
        ..Outcome::default()
    })
}

/// One thing that was found, for programs.
fn found(e: &ConfigError) -> serde_json::Value {
    let (file, line) = e
        .line()
        .map_or((e.place.as_str(), None), |(file, line)| (file, Some(line)));
    serde_json::json!({"place": file, "line": line, "key": e.key, "code": e.code.as_str(), "message": e.message})
}

fn text(config: &Config, effective: bool, origin: bool) -> String {
    let mut out = String::new();
    for (path, value, place) in config
        .values()
        .filter(|(_, _, place)| effective || place.is_some())
    {
        let from = if origin {
            format!("   # {}", place.unwrap_or("default"))
        } else {
            String::new()
        };
        out += &format!("{path} = {value}{from}\n");
    }
    for subnet in &config.subnets {
        let from = if origin {
            format!("   # {}", subnet.origin)
        } else {
            String::new()
        };
        let shown = subnet.to_string();
        out += &format!(
            "\n{}\n",
            shown.replacen("[[subnet]]", &format!("[[subnet]]{from}"), 1)
        );
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
            (
                path.to_owned(),
                serde_json::json!({"value": of(&value), "origin": place.unwrap_or("default")}),
            )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ConfigSubnet;
    use crate::model::host::HostPolicy;
    use crate::model::id::SubnetId;

    #[test]
    fn the_defaults_are_not_said_to_be_in_force_beside_a_declared_subnet() {
        let mut config = Config::defaults("a");
        let is_there = Path::new(DEFAULT_FILE).exists();
        assert_eq!(absent(&config).is_none(), is_there);
        config.subnets.push(Default::default());
        assert_eq!(absent(&config), None);
    }

    #[test]
    fn a_declaration_is_shown_before_it_is_a_membership() {
        let declared = ConfigSubnet {
            id: None,
            invite_file: Some("/etc/byway/invite".into()),
            name: Some("b".parse().unwrap()),
            r#as: None,
            ip: Some("10.77.1.9".parse().unwrap()),
            host: None,
            peer: vec![],
            up: None,
            origin: "/etc/byway/byway.toml:3".to_owned(),
            host_origin: None,
        };
        let member = ConfigSubnet {
            id: Some(SubnetId([3; 16])),
            invite_file: None,
            name: None,
            r#as: Some("lab".parse().unwrap()),
            ip: None,
            host: Some(HostPolicy::Closed),
            up: Some(false),
            origin: "command line (join)".to_owned(),
            ..declared.clone()
        };
        let info = ConfigInfo {
            values: std::collections::BTreeMap::new(),
            subnets: vec![member, declared],
        };
        let want = format!(
            "\n[[subnet]]\nid = \"{}\"\nas = \"lab\"\nhost = \"closed\"\n# off the wire\n\n[[subnet]]\ninvite_file = \
             \"/etc/byway/invite\"\nname = \"b\"\nip = \"10.77.1.9\"\n# no membership yet\n",
            SubnetId([3; 16])
        );
        assert_eq!(in_force(&info, false), want);
        assert!(in_force(&info, true).contains("[[subnet]]   # /etc/byway/byway.toml:3\n"));
        let shown = serde_json::to_value(&info).unwrap();
        let null = |field: &str| {
            shown["subnets"][1]
                .get(field)
                .is_some_and(serde_json::Value::is_null)
        };
        assert!(["id", "as", "host", "up"].into_iter().all(null), "{shown}");
    }
}
