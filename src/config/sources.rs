//! What a configuration is read from: files, environment and flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, DEFAULT_FILE, Value, keys, read, value};

/// The sources that a configuration is read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The file a person named: it must exist. None: [`DEFAULT_FILE`], which need not.
    pub file: Option<PathBuf>,
    /// The environment's variables that begin with `BYWAY_`, by name.
    pub env: Vec<(String, String)>,
    /// Key path and value of each flag given.
    pub flags: Vec<(&'static str, Value)>,
    /// The host name, from which the node's default name is made.
    pub host: String,
}

impl Sources {
    /// This process's environment and this machine's name, with `file` and `flags` as given.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(&'static str, Value)>) -> Sources {
        let text = |s: OsString| s.to_string_lossy().into_owned();
        Sources {
            file,
            env: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .filter(|(name, value)| name.starts_with("BYWAY_") && !value.is_empty())
                .collect(),
            flags,
            host: nix::unistd::gethostname().map(text).unwrap_or_default(),
        }
    }
}

/// The files to read, weakest first: the main one, then `conf.d` beside it in the order of names.
pub(super) fn files(
    sources: &Sources,
    skipped: &mut Vec<(PathBuf, &'static str)>,
    errors: &mut Vec<ConfigError>,
) -> Vec<PathBuf> {
    let main = sources.file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let directory = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let mut files = Vec::new();
    if sources.file.is_some() || main.exists() {
        files.push(main);
    }
    match std::fs::read_dir(&directory) {
        Ok(entries) => {
            let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            found.sort();
            for path in found {
                match not_meant(&path) {
                    Some(why) => skipped.push((path, why)),
                    None => files.push(path),
                }
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => errors.push(read::unreadable(&directory, &e)),
    }
    files
}

/// Why a file in `conf.d` is no part of the configuration: what editors and packagers leave beside those that are.
fn not_meant(path: &Path) -> Option<&'static str> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with('.') {
        Some("hidden")
    } else if path.extension().is_none_or(|e| e != "toml") {
        Some("its name does not end in .toml")
    } else if path.is_symlink() && !path.exists() {
        Some("a link to nothing")
    } else {
        None
    }
}

/// `BYWAY_NODE_NAME` sets `node.name`, and so on; `BYWAY_SOCKET` and `BYWAY_STATE_DIR` are the short forms of the two
/// that scripts need. Variables that name no key are left to whoever set them, and warned of where they are nearly one of ours
/// ([`Config::idle`]); one that is empty is as if not set.
pub(super) fn environment(
    config: &mut Config,
    env: &[(String, String)],
    errors: &mut Vec<ConfigError>,
) {
    for key in keys::all() {
        for name in key.variables() {
            let Some((_, text)) = env.iter().find(|(n, _)| *n == name) else {
                continue;
            };
            match value::from_variable(key.kind, text) {
                Ok(value) => config.set(key, &value, name, errors),
                Err(why) => errors.push(ConfigError::value(name, key.path, text, &why)),
            }
        }
    }
}
