//! A compose file, read: its services that are in subnets, each with its names, addresses and ports.

use std::collections::{BTreeMap, BTreeSet};

use super::keys;
use super::network::{Network, Place, networks};
use super::service::{Service, service};
use super::variables::Variables;
use super::yaml::{self, Entry, Node, Value, at};
use crate::cli::value::{Checked, shown, wrong};
use crate::model::error::Code;

/// What is read beside the file.
pub(super) struct Beside<'a> {
    /// The name of the project that was asked for.
    pub project: Option<&'a str>,
    /// The name of the directory that the file is in.
    pub directory: &'a str,
    pub variables: &'a Variables,
    /// Whether this machine has a subnet of that name.
    pub is_subnet: &'a dyn Fn(&str) -> bool,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Each with the subnet that it is in.
    pub services: Vec<(Place, Service)>,
    /// Services that are not imported, and why.
    pub left_out: Vec<(String, String)>,
    /// What is read and cannot be had.
    pub notes: Vec<String>,
}

/// The networks of a file, and the name of its project.
pub(super) struct Around<'a> {
    pub project: String,
    pub networks: BTreeMap<String, Network>,
    /// Whether a network of the file is byway's: then only services in such are imported.
    pub has_own: bool,
    pub variables: &'a Variables,
}

/// Reads a compose file.
pub(super) fn read(text: &str, beside: &Beside<'_>) -> Checked<File> {
    let whole = yaml::read(text)?;
    let top = whole.entries("the file")?;
    for entry in top {
        is_own(entry, &keys::FILE, &keys::FILE_PASSED, "a compose file")?;
    }
    let find = |key: &str| top.iter().find(|e| e.key == key);
    let services =
        find("services").ok_or_else(|| wrong(Code::Compose, "the file has no services"))?;
    let networks = networks(find("networks"), beside.variables, beside.is_subnet)?;
    let around = Around {
        project: project(find("name"), beside)?,
        has_own: networks.values().any(|n| n.place.is_some()),
        networks,
        variables: beside.variables,
    };
    let mut file = File::default();
    for entry in services.value.entries("services")? {
        service(entry, &around, &mut file)?;
    }
    if file.services.is_empty() {
        let message = "no service of the file is in a network of byway's (driver: byway)";
        return Err(wrong(Code::Compose, message));
    }
    let mut seen = BTreeSet::new();
    for (place, service) in &file.services {
        if !seen.insert((format!("{place:?}"), service.name.clone())) {
            let message = format!(
                "two services are called {}: byway.name names one otherwise",
                service.name
            );
            return Err(at(service.line, message));
        }
    }
    Ok(file)
}

/// The project's name, as compose finds it: it is the beginning of its containers' names.
fn project(name: Option<&Entry>, beside: &Beside<'_>) -> Checked<String> {
    let said = name
        .map(|e| text(&e.value, "name", beside.variables))
        .transpose()?;
    let variable = beside.variables.get("COMPOSE_PROJECT_NAME");
    let variable = variable.filter(|name| !name.is_empty()).map(str::to_owned);
    let asked = beside.project.map(str::to_owned);
    let found = asked.or(variable).or(said);
    let found = found.unwrap_or_else(|| beside.directory.to_owned());
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
    let kept: String = found.to_lowercase().chars().filter(plain).collect();
    Ok(kept.trim_start_matches(['-', '_']).to_owned())
}

/// Refuses a key that is neither honoured nor passed over in that place.
pub(super) fn is_own(
    entry: &Entry,
    honoured: &[&str],
    passed: &[&str],
    place: &str,
) -> Checked<()> {
    let key = entry.key.as_str();
    if honoured.contains(&key) || passed.contains(&key) || key.starts_with("x-") {
        return Ok(());
    }
    let message = match keys::instead(key) {
        Some(instead) => format!("{key} is not honoured; {instead}"),
        None => format!("{} is no key of {place} that is known", shown(key)),
    };
    Err(at(entry.line, message))
}

/// A single value with its variables filled in.
pub(super) fn text(node: &Node, what: &str, variables: &Variables) -> Checked<String> {
    let (written, _) = node.scalar(what)?;
    variables.filled(written).map_err(|why| at(node.line, why))
}

/// A switch, on or off.
pub(super) fn switch(node: &Node, what: &str, variables: &Variables) -> Checked<bool> {
    match text(node, what, variables)?.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        other => {
            let message = format!("{what} is {}: true or false is expected", shown(other));
            Err(at(node.line, message))
        }
    }
}

/// Pairs, as a mapping or as a list of `key=value`, each with its line.
pub(super) fn pairs(
    node: &Node,
    what: &str,
    variables: &Variables,
) -> Checked<Vec<(String, String, usize)>> {
    let mut all = Vec::new();
    match &node.value {
        Value::List(items) => {
            for item in items {
                let whole = text(item, what, variables)?;
                let (key, value) = whole.split_once('=').unwrap_or((&whole, ""));
                all.push((key.to_owned(), value.to_owned(), item.line));
            }
        }
        _ => {
            for entry in node.entries(what)? {
                let value = if entry.value.is_null() {
                    String::new()
                } else {
                    text(&entry.value, &entry.key, variables)?
                };
                all.push((entry.key.clone(), value, entry.value.line));
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
