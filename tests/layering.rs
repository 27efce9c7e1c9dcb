//! The dependency direction of the modules, read from the `crate::` and `super::` paths in `src/`, and the length of files.
//!
//! A module imports only from rows below its own; the modules of the row of shells never import each other.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Rows from the bottom up. A module's name is its path below `src/`; the longest one that fits counts.
const ROWS: &[&[&str]] = &[
    &["packet", "limit", "backoff", "codec", "text"],
    &["model"],
    &["crypto"],
    &["wire"],
    &["peer", "relay", "lan"],
    // What two shells stand on: datagrams of ours and QUIC's share its port; both ends of the control socket name its groups;
    // namespaces are entered by the helper; a TAP is made by the host, and opened for a guest; routers and pages are asked over
    // HTTP within the same bounds; the machine's resolver file is followed for who answers names and for who has them asked.
    &[
        "udp",
        "helper",
        "device",
        "fetch",
        "file_watch",
        "api::groups",
    ],
    // The names and shapes that cross the control socket are read by every shell's caller; they hold no I/O.
    &[
        "tun",
        "tap",
        "p2p",
        "mdns",
        "link",
        "host",
        "dns",
        "store",
        "config",
        "portmap",
        "api::types",
        "api::groups",
        "api::client",
    ],
    &["node"],
    &["api::server", "datapath"],
    &["service"],
    &["cli", "engine"],
    &["report"],
    &["command"],
    &["daemon"],
    &["main"],
    // Above all, so that only tests reach it.
    &["testing"],
];

/// Pairs inside one row that are allowed: the client is made of the types, and says which groups let a user in.
const ALLOWED: &[(&str, &str)] = &[
    ("api::client", "api::types"),
    ("api::client", "api::groups"),
];

/// What the pure rows must not name. Clippy keeps the same out by their types, where they are called otherwise
/// (`.clippy.toml`); `Mutex` and the like are its matter alone.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::fs::",
    "std::os::",
    "std::process::",
    "std::thread::",
    "thread::sleep",
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
        // What the fuzz targets are built into is no source.
        if path.is_dir() && path.file_name().is_some_and(|name| name == "target") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether a file holds tests alone.
fn is_test(module: &str) -> bool {
    module
        .split("::")
        .any(|part| part == "tests" || part == "fuzz" || part == "twin" || part.ends_with("_tests"))
}

/// `src/api/server/mod.rs` -> `api::server`.
fn module_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path).with_extension("");
    let parts: Vec<String> = relative
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    parts.join("::").trim_end_matches("::mod").to_owned()
}

/// The row and the entry of the table a module path belongs to; `None` for the root and for `api` itself.
fn row_of(module: &str) -> Option<(usize, &'static str)> {
    let fits = |entry: &str| module == entry || module.starts_with(&format!("{entry}::"));
    ROWS.iter()
        .enumerate()
        .find_map(|(row, names)| names.iter().find(|n| fits(n)).map(|n| (row, *n)))
}

/// Every path after `crate::` and after any number of `super::`, `use crate::{a::b, c}` taken apart; `module` is where the
/// code stands.
fn targets(code: &str, module: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        expand(&code[at + "crate::".len()..], "", &mut found);
    }
    let above: Vec<&str> = module.split("::").collect();
    let mut seen = 0;
    for (at, _) in code.match_indices("super::") {
        if at < seen || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = code[at..].trim_start_matches("super::");
        seen = code.len() - rest.len();
        let up = (seen - at) / "super::".len();
        let base: String = above
            .iter()
            .take(above.len().saturating_sub(up))
            .map(|part| format!("{part}::"))
            .collect();
        expand(rest, &base, &mut found);
    }
    found
}

/// Reads one `use` tree from its beginning: `a::{b, c::d}` gives `a::b` and `a::c::d`. Returns the bytes consumed.
fn expand(text: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .unwrap_or(text.len());
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

/// The code without comments and without what is compiled for tests only, which may reach anywhere.
fn code_of(text: &str) -> String {
    let mut code = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            skip_item(&mut lines);
        } else {
            code.push(line.split("//").next().unwrap_or_default());
        }
    }
    code.join("\n")
}

/// Passes one item: its attributes, then a line that ends it, or everything to the brace at the depth it began at.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let Some(first) = lines.find(|line| !line.trim_start().starts_with("#[")) else {
        return;
    };
    let depth = first.len() - first.trim_start().len();
    let ends = |line: &str| line.ends_with(';') || line.ends_with('}') || line.ends_with(',');
    if ends(first) && !first.ends_with('{') {
        return;
    }
    let closes = |line: &&str| {
        line.len() - line.trim_start().len() == depth && line.trim_start().starts_with(['}', ')'])
    };
    lines.find(closes);
}

fn each_source(mut look: impl FnMut(&str, &str, &Path)) -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files)?;
    assert!(files.len() > 5, "src was read");
    for path in files {
        let text = fs::read_to_string(&path)?;
        let module = module_of(&path, &root);
        let code = if is_test(&module) {
            String::new()
        } else {
            code_of(&text)
        };
        look(&module, &code, &path);
    }
    Ok(())
}

#[test]
fn modules_import_only_from_rows_below() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        let Some((row, me)) = row_of(module) else {
            return;
        };
        for target in targets(code, module) {
            let Some((other_row, other)) = row_of(&target) else {
                continue;
            };
            let sibling = other_row == row && other != me;
            if (other_row > row || sibling) && !ALLOWED.contains(&(me, other)) {
                wrong.push(format!("{}: {me} imports crate::{target}", path.display()));
            }
        }
    })?;
    assert!(
        wrong.is_empty(),
        "against the dependency table:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

#[test]
fn the_core_has_no_command_lines() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        let core = row_of(module).is_some_and(|(_, me)| me == "model" || me == "node");
        if core && code.contains("\"byway ") {
            wrong.push(path.display().to_string());
        }
    })?;
    assert!(
        wrong.is_empty(),
        "what to type is a Hint, put into words by api::types:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

#[test]
fn the_encoding_has_one_home() -> io::Result<()> {
    let (mut wrong, mut home) = (Vec::new(), false);
    each_source(|module, code, path| {
        if code.contains("postcard::") {
            home |= module == "codec";
            if module != "codec" {
                wrong.push(path.display().to_string());
            }
        }
    })?;
    assert!(home, "codec is written with another crate now");
    assert!(
        wrong.is_empty(),
        "bytes are written and read by codec:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// What an engine's adapter may know of this program: what is asked of a daemon, and how; how long to wait before an
/// engine is tried again; the helper, which opens the engine's socket for a daemon that may not; and how the words of others
/// are shown.
const OF_ENGINES: [&str; 5] = ["api::types", "api::client", "backoff", "helper", "text"];

#[test]
fn an_engine_drives_the_daemon_by_requests_alone() -> io::Result<()> {
    let (mut wrong, mut read) = (Vec::new(), 0);
    each_source(|module, code, path| {
        if row_of(module).is_none_or(|(_, me)| me != "engine") {
            return;
        }
        read += 1;
        for target in targets(code, module) {
            if row_of(&target)
                .is_some_and(|(_, other)| other != "engine" && !OF_ENGINES.contains(&other))
            {
                wrong.push(format!("{}: crate::{target}", path.display()));
            }
        }
    })?;
    assert!(read > 0, "no adapter was read");
    assert!(
        wrong.is_empty(),
        "an engine's adapter asks by the API's requests:\n{}",
        wrong.join("\n")
    );
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
    assert!(
        wrong.is_empty(),
        "packet, model, crypto, wire, peer and relay are pure:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// Where another implementation may stand: the device and the system. All else calls what it uses.
const SEAMS: &[(&str, &str)] = &[
    ("tun", "Tun"),
    ("host", "Host"),
    ("api::server::http", "Socket"),
    // No seam: what the transports around another one leave alone is written once.
    ("p2p::layer", "Layer"),
    // No seam: addresses of either family are numbers of the same use.
    ("model::routes", "Address"),
];

/// Names of the traits declared in the code.
fn traits(code: &str) -> impl Iterator<Item = &str> {
    let declared = code.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = match line.strip_prefix("pub") {
            None => line,
            Some(rest) => rest.strip_prefix('(').map_or(rest, |rest| {
                rest.split_once(')').map_or("", |(_, rest)| rest)
            }),
        };
        rest.trim_start().strip_prefix("trait ")
    });
    declared.filter_map(|rest| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
    })
}

#[test]
fn there_are_two_seams_and_no_other_trait() -> io::Result<()> {
    let mut found = Vec::new();
    each_source(|module, code, _| {
        found.extend(traits(code).map(|name| (module.to_owned(), name.to_owned())))
    })?;
    found.sort();
    let mut expected: Vec<_> = SEAMS
        .iter()
        .map(|(module, name)| (module.to_string(), name.to_string()))
        .collect();
    expected.sort();
    assert_eq!(
        found, expected,
        "two seams, and what the control socket is served over"
    );
    Ok(())
}

#[test]
fn only_the_linux_tun_knows_virtio() -> io::Result<()> {
    let mut wrong = Vec::new();
    each_source(|module, code, path| {
        if module != "tun::linux"
            && !module.starts_with("tun::linux::")
            && code.to_lowercase().contains("virtio")
        {
            wrong.push(path.display().to_string());
        }
    })?;
    assert!(
        wrong.is_empty(),
        "the virtio header is Linux's, and stays in tun/linux:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// Most lines of a file: one that is longer holds two things, and the second has a name of its own.
const LONGEST: usize = 650;
/// Files that may be longer, and why.
const LONGER: &[(&str, &str)] = &[];

#[test]
fn a_file_holds_one_thing() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files)?;
    let of_src = files.len();
    sources(&root.join("tests"), &mut files)?;
    assert!(of_src > 5 && files.len() > of_src + 5, "both were read");
    let mut longer = Vec::new();
    for path in files {
        let lines = fs::read_to_string(&path)?.lines().count();
        if lines > LONGEST {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            longer.push((name.into_owned(), lines));
        }
    }
    let is_allowed = |file: &str| LONGER.iter().any(|(name, _)| *name == file);
    let wrong: Vec<_> = longer
        .iter()
        .filter(|(name, _)| !is_allowed(name))
        .collect();
    assert!(wrong.is_empty(), "more than {LONGEST} lines: {wrong:?}");
    for (name, why) in LONGER {
        assert!(
            longer.iter().any(|(file, _)| file == name),
            "{name} is short enough, and needs no exception for: {why}"
        );
    }
    Ok(())
}

#[test]
fn code_behind_a_declared_test_module_is_read() {
    assert_eq!(
        code_of("a\n#[cfg(test)]\nmod tests;\nb // c\n#[cfg(test)]\nmod tests {\nd"),
        "a\nb "
    );
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
    assert!(
        homeless.is_empty(),
        "modules the dependency table does not know:\n{}",
        homeless.join("\n")
    );
    Ok(())
}

#[test]
fn only_what_is_compiled_for_tests_is_left_out() {
    let text = "a\n#[cfg(test)]\nmod tests;\nb // c\n#[cfg(test)]\n#[path = \"x\"]\nmod tests {\n    d\n    {\n    }\n}\ne\n    \
                #[cfg(test)]\n    fn f() {\n        g\n    }\n    h";
    let code = code_of(text);
    assert_eq!(
        code.split_whitespace().collect::<Vec<_>>(),
        ["a", "b", "e", "h"]
    );
}

#[test]
fn use_trees_are_taken_apart() {
    assert_eq!(
        targets("use crate::model::{id::{Name, PeerId}, view};", "node"),
        ["model::id::Name", "model::id::PeerId", "model::view"]
    );
    assert_eq!(
        targets(
            "let a = crate::wire::frame::parse(x); $crate::api::types",
            "node"
        ),
        ["wire::frame::parse"]
    );
    assert_eq!(
        targets(
            "use super::super::node::{Core, Lane};",
            "daemon::apply_view"
        ),
        ["node::Core", "node::Lane"]
    );
    assert_eq!(
        targets("super::b::c(); pub(super) fn f() {}", "daemon::handler::a"),
        ["daemon::handler::b::c"]
    );
    assert_eq!(
        targets("use super::{x, super::y};", "a::b::c")[0],
        "a::b::x"
    );
    assert_eq!(
        row_of("api::server::auth").map(|r| r.1),
        Some("api::server")
    );
    assert_eq!(row_of("api"), None);
}
