//! The dependency direction of the modules, read from the `crate::` paths in `src/`.
//!
//! A module imports only from rows below its own; the modules of the row of shells never import each other.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Rows from the bottom up. A module's name is its path below `src/`; the longest one that fits counts.
const ROWS: &[&[&str]] = &[
    &["packet", "limit", "backoff"],
    &["model"],
    &["crypto"],
    &["wire"],
    &["peer"],
    // What two shells stand on: datagrams of ours and QUIC's share its port.
    &["udp"],
    // The names and shapes that cross the control socket are read by every shell's caller; they hold no I/O.
    &["tun", "p2p", "link", "host", "dns", "store", "config", "api::types", "api::client"],
    &["node"],
    &["api::server", "datapath", "service"],
    &["cli", "attach"],
    &["daemon"],
    &["main"],
];

/// Pairs inside one row that are allowed: the client is made of the types.
const ALLOWED: &[(&str, &str)] = &[("api::client", "api::types")];

/// What the pure rows must not name.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::fs::",
    "std::os::",
    "std::process::",
    "std::thread::",
    "Instant::now",
    "SystemTime::now",
    "getrandom::",
    "rand::",
    "libp2p::",
    "hickory",
    "nix::",
    "libc::",
    "Mutex",
    "RwLock",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// `src/api/server/mod.rs` -> `api::server`.
fn module_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path).with_extension("");
    let parts: Vec<String> = relative.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    parts.join("::").trim_end_matches("::mod").to_owned()
}

/// The row and the entry of the table a module path belongs to; `None` for the root and for `api` itself.
fn row_of(module: &str) -> Option<(usize, &'static str)> {
    let fits = |entry: &str| module == entry || module.starts_with(&format!("{entry}::"));
    ROWS.iter().enumerate().find_map(|(row, names)| names.iter().find(|n| fits(n)).map(|n| (row, *n)))
}

/// Every path after `crate::` in a line, `use crate::{a::b, c}` taken apart.
fn targets(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        expand(&code[at + "crate::".len()..], "", &mut found);
    }
    found
}

/// Reads one `use` tree from its beginning: `a::{b, c::d}` gives `a::b` and `a::c::d`. Returns the bytes consumed.
fn expand(text: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    if !text[end..].starts_with('{') {
        found.push(path.trim_end_matches(':').to_owned());
        return end;
    }
    let mut at = end + 1;
    while at < text.len() && !text[at..].starts_with('}') {
        let rest = &text[at..];
        if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            at += expand(rest, &path, found).max(1);
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at + 1
}

/// The code without comments and without what stands below `mod tests {`, which may reach anywhere. Tests in a file of their
/// own are declared wherever their line stands; the code goes on behind it.
fn code_of(text: &str) -> String {
    let mut lines = text.lines().peekable();
    let mut code = String::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            if lines.next_if(|next| next.ends_with(';')).is_some() {
                continue;
            }
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

fn each_source(mut look: impl FnMut(&str, &str, &Path)) -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files)?;
    assert!(files.len() > 5, "src was read");
    for path in files {
        let text = fs::read_to_string(&path)?;
        look(&module_of(&path, &root), &code_of(&text), &path);
    }
    Ok(())
}

#[test]
fn modules_import_only_from_rows_below() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        let Some((row, me)) = row_of(module) else { return };
        for target in targets(code) {
            let Some((other_row, other)) = row_of(&target) else { continue };
            let sibling = other_row == row && other != me;
            if (other_row > row || sibling) && !ALLOWED.contains(&(me, other)) {
                wrong.push(format!("{}: {me} imports crate::{target}", path.display()));
            }
        }
    })?;
    assert!(wrong.is_empty(), "against the dependency table:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn pure_rows_do_no_input_or_output() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        if row_of(module).is_none_or(|(row, _)| row >= 5) {
            return;
        }
        for word in IMPURE.iter().filter(|w| code.contains(**w)) {
            wrong.push(format!("{}: {word}", path.display()));
        }
    })?;
    assert!(wrong.is_empty(), "packet, model, crypto, wire and peer are pure:\n{}", wrong.join("\n"));
    Ok(())
}

/// Where another implementation may stand: the device and the system. All else calls what it uses.
const SEAMS: &[(&str, &str)] = &[
    ("tun", "Tun"),
    ("host", "Host"),
    ("api::server::http", "Socket"),
    // No seam: addresses of either family are numbers of the same use.
    ("model::routes", "Address"),
];

/// Names of the traits declared in the code.
fn traits(code: &str) -> impl Iterator<Item = &str> {
    let declared = code.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = match line.strip_prefix("pub") {
            None => line,
            Some(rest) => rest.strip_prefix('(').map_or(rest, |rest| rest.split_once(')').map_or("", |(_, rest)| rest)),
        };
        rest.trim_start().strip_prefix("trait ")
    });
    declared.filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
}

#[test]
fn there_are_two_seams_and_no_other_trait() -> io::Result<()> {
    let mut found = Vec::new();
    each_source(|module, code, _| found.extend(traits(code).map(|name| (module.to_owned(), name.to_owned()))))?;
    found.sort();
    let mut expected: Vec<_> = SEAMS.iter().map(|(module, name)| (module.to_string(), name.to_string())).collect();
    expected.sort();
    assert_eq!(found, expected, "two seams, and what the control socket is served over");
    Ok(())
}

#[test]
fn only_the_linux_tun_knows_virtio() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        if module != "tun::linux" && !module.starts_with("tun::linux::") && code.to_lowercase().contains("virtio") {
            wrong.push(path.display().to_string());
        }
    })?;
    assert!(wrong.is_empty(), "the virtio header is Linux's, and stays in tun/linux:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn code_behind_a_declared_test_module_is_read() {
    assert_eq!(code_of("a\n#[cfg(test)]\nmod tests;\nb // c\n#[cfg(test)]\nmod tests {\nd"), "a\nb \n");
}

#[test]
fn traits_are_found_in_every_visibility() {
    let code = "pub trait A: Send {\n    trait B<T> {\npub(crate) trait C\npub(super) trait D {}\nimpl Trait for E";
    assert_eq!(traits(code).collect::<Vec<_>>(), ["A", "B", "C", "D"]);
}

#[test]
fn every_module_has_a_row() -> io::Result<()> {
    let mut homeless = Vec::new();
    each_source(|module, _, path| {
        if row_of(module).is_none() && !matches!(module, "lib" | "api") {
            homeless.push(path.display().to_string());
        }
    })?;
    assert!(homeless.is_empty(), "modules the dependency table does not know:\n{}", homeless.join("\n"));
    Ok(())
}

#[test]
fn use_trees_are_taken_apart() {
    assert_eq!(
        targets("use crate::model::{id::{Name, PeerId}, view};"),
        ["model::id::Name", "model::id::PeerId", "model::view"]
    );
    assert_eq!(targets("let a = crate::wire::frame::parse(x); $crate::api::types"), ["wire::frame::parse"]);
    assert_eq!(row_of("api::server::auth").map(|r| r.1), Some("api::server"));
    assert_eq!(row_of("api"), None);
}
