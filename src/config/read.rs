//! One TOML file into the configuration: every error with its line.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys;
use super::subnet::{self, DeclaredSubnet};
use super::value::{Kind, Value};
use super::{Config, ConfigError};
use crate::model::error::Code;

/// Bytes of the largest file read: a hundred times what a person writes.
const MAX_FILE: u64 = 1 << 20;

/// Reads one file over what `config` holds.
pub(super) fn file(config: &mut Config, path: &Path, errors: &mut Vec<ConfigError>) {
    match contents(path) {
        Ok(text) => self::text(config, &path.display().to_string(), &text, errors),
        Err(e) => errors.push(unreadable(path, &e)),
    }
}

/// The text of a file that a person named to the daemon: a regular one of at most 1 MiB. A FIFO or a device in its place is
/// refused, and waited for by nobody.
///
/// # Errors
/// What the kernel refuses; where it is no regular file, is larger, or is no UTF-8.
pub(crate) fn contents(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError {
        code: Code::ConfigRead,
        place: path.display().to_string(),
        key: String::new(),
        message: format!("cannot read the configuration: {error}"),
    }
}

/// Reads one file's text.
pub(super) fn text(config: &mut Config, file: &str, text: &str, errors: &mut Vec<ConfigError>) {
    let before = errors.len();
    let mut reader = Reader { file, text, errors };
    match DeTable::parse(text) {
        Ok(table) => reader.table(config, "", table.get_ref()),
        Err(e) => {
            let line = e.span().map_or(1, |span| reader.line(span.start));
            let message = e.message().lines().next().unwrap_or("not TOML").to_owned();
            let place = format!("{file}:{line}");
            reader.errors.push(ConfigError {
                code: Code::ConfigSyntax,
                place,
                key: String::new(),
                message,
            });
        }
    }
    // A table is read in the order of its names; people read from the top.
    if let Some(new) = errors.get_mut(before..) {
        new.sort_by_key(|error| error.line().map(|(_, line)| line));
    }
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text
            .bytes()
            .take(offset)
            .filter(|b| *b == b'\n')
            .count()
            + 1
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.file, self.line(offset))
    }

    fn table(&mut self, config: &mut Config, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let place = self.place(name.span().start);
            if let Some(key) = keys::find(&path) {
                if let Some(taken) = self.value(&path, key.kind, value) {
                    config.set(key, &taken, place, self.errors);
                }
            } else if path == "subnet" {
                self.subnets(config, value);
            } else if keys::all().any(|key| {
                key.path
                    .strip_prefix(&path)
                    .is_some_and(|r| r.starts_with('.'))
            }) {
                match value.get_ref().as_table() {
                    Some(inner) => self.table(config, &path, inner),
                    None => self.errors.push(ConfigError::value(
                        place,
                        &path,
                        self.shown(value),
                        &format!("expected a table ([{path}])"),
                    )),
                }
            } else {
                self.errors
                    .push(unknown(place, prefix, name.get_ref(), siblings(prefix)));
            }
        }
    }

    /// What stands in the file for a value.
    fn shown(&self, value: &Spanned<DeValue<'_>>) -> &str {
        self.text
            .get(value.span())
            .and_then(|t| t.lines().next())
            .unwrap_or_default()
    }

    fn value(&mut self, path: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let taken = convert(value.get_ref(), kind);
        if taken.is_none() {
            let place = self.place(value.span().start);
            let shown = self.shown(value).to_owned();
            self.errors.push(ConfigError::value(
                place,
                path,
                &shown,
                &format!("expected {kind}"),
            ));
        }
        taken
    }

    fn subnets(&mut self, config: &mut Config, value: &Spanned<DeValue<'_>>) {
        let tables = value
            .get_ref()
            .as_array()
            .map(|list| list.iter().filter(|t| t.get_ref().is_table()));
        let Some(tables) = tables else {
            let place = self.place(value.span().start);
            let shown = self.shown(value).to_owned();
            self.errors.push(ConfigError::value(
                place,
                "subnet",
                &shown,
                "expected [[subnet]] tables",
            ));
            return;
        };
        for entry in tables {
            let Some(table) = entry.get_ref().as_table() else {
                continue;
            };
            let origin = self.place(entry.span().start);
            let mut subnet = DeclaredSubnet {
                origin: origin.clone(),
                ..DeclaredSubnet::default()
            };
            let before = self.errors.len();
            self.subnet_keys(&mut subnet, table);
            if self.errors.len() > before {
                continue;
            }
            match undeclarable(&subnet, &config.subnets) {
                Some((code, message)) => self.errors.push(ConfigError {
                    code,
                    place: origin,
                    key: "subnet.id".into(),
                    message,
                }),
                None => config.subnets.push(subnet),
            }
        }
    }

    /// Reads the keys of one `[[subnet]]` table.
    fn subnet_keys(&mut self, subnet: &mut DeclaredSubnet, table: &DeTable<'_>) {
        for (name, value) in table {
            let place = self.place(name.span().start);
            let key = name.get_ref().as_ref();
            if !subnet::KEYS.contains(&key) {
                self.errors
                    .push(unknown(place, "subnet", key, subnet::KEYS.to_vec()));
                continue;
            }
            let kind = if subnet::LISTS.contains(&key) {
                Kind::List
            } else {
                Kind::Text
            };
            let Some(taken) = self.value(&format!("subnet.{key}"), kind, value) else {
                continue;
            };
            if let Err(why) = subnet.set(key, &taken) {
                self.errors.push(ConfigError::value(
                    place,
                    &format!("subnet.{key}"),
                    &taken.to_string(),
                    &why,
                ));
            }
        }
    }
}

/// Why a subnet cannot be declared beside those before it.
fn undeclarable(subnet: &DeclaredSubnet, others: &[DeclaredSubnet]) -> Option<(Code, String)> {
    if subnet.id.is_none() && subnet.invite_file.is_none() {
        let message = "[[subnet]] needs id or invite_file".to_owned();
        return Some((Code::ConfigKey, message));
    }
    let twin = subnet
        .id
        .and_then(|id| others.iter().find(|s| s.id == Some(id)))?;
    let message = format!("this subnet is declared already at {}", twin.origin);
    Some((Code::ConfigValue, message))
}

/// Names that may stand in the table `prefix`.
fn siblings(prefix: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = keys::all()
        .filter_map(|key| match prefix {
            "" => Some(key.path),
            _ => key.path.strip_prefix(prefix)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .chain(prefix.is_empty().then_some("subnet"))
        .collect();
    // The keys of a table may stand in several places of the list.
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

fn unknown(place: String, prefix: &str, name: &str, valid: Vec<&'static str>) -> ConfigError {
    let name: String = name.chars().take(64).collect();
    let table = if prefix.is_empty() {
        String::new()
    } else {
        format!(" in [{prefix}]")
    };
    // The right name in the wrong table is as common as a typing error.
    let elsewhere = keys::all()
        .find(|key| key.leaf() == name)
        .map(|key| key.path);
    let near = match (keys::nearest(&name, valid.iter().copied()), elsewhere) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, Some(path)) => format!("did you mean {path:?}?"),
        (None, None) => format!("valid: {}", valid.join(", ")),
    };
    let key = if prefix.is_empty() {
        name.clone()
    } else {
        format!("{prefix}.{name}")
    };
    ConfigError {
        code: Code::ConfigKey,
        place,
        key,
        message: format!("unknown key {name:?}{table}; {near}"),
    }
}

fn convert(value: &DeValue<'_>, kind: Kind) -> Option<Value> {
    Some(match (kind, value) {
        (Kind::Text | Kind::Period | Kind::AutoSwitch, DeValue::String(text)) => {
            Value::Text(text.to_string())
        }
        (Kind::List, DeValue::String(text)) => Value::List(vec![text.to_string()]),
        (Kind::Switch | Kind::AutoSwitch, DeValue::Boolean(on)) => Value::Switch(*on),
        (Kind::Number, DeValue::Integer(n)) => {
            Value::Number(i64::from_str_radix(n.as_str(), n.radix()).ok()?)
        }
        (Kind::List, DeValue::Array(list)) => Value::List(
            list.iter()
                .map(|v| v.get_ref().as_str().map(ToOwned::to_owned))
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}
