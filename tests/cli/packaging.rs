//! What `packaging/install.sh` puts below a directory, and what of it stays after `--uninstall`.

use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/install.sh");

fn install(args: &[&str], root: &Path) -> String {
    let output = Command::new(SCRIPT)
        .args(["--binary", env!("CARGO_BIN_EXE_byway"), "--destdir"])
        .arg(root)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// In a mount namespace of its own, a machine that runs systemd and has nothing of ours in `/etc`.
fn with_systemd() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for place in ["/run", "/etc"] {
        mount(none, place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    }
    std::fs::create_dir_all("/run/systemd/system").unwrap();
}

/// Needs root, for a `/run` of its own.
#[test]
#[ignore = "needs root"]
fn an_uninstall_removes_nothing_where_the_unit_cannot_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("p");
    install(&["--prefix", "/p"], dir.path());
    // Written by another process: what this one still has open for writing somewhere cannot be run.
    let systemctl = dir.path().join("systemctl");
    let script =
        "printf '#!/bin/sh\\nread -r result <\"$0.result\"; $result\\n' >\"$0\"; chmod 755 \"$0\"";
    let written = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(&systemctl)
        .status();
    assert!(written.unwrap().success());
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
    let uninstall = |result: &str| {
        let said = format!("{result}\n");
        std::fs::write(dir.path().join("systemctl.result"), said).unwrap();
        std::thread::scope(|scope| {
            let run = || {
                with_systemd();
                let mut command = Command::new(SCRIPT);
                command.args(["--uninstall", "--prefix"]).arg(&prefix);
                command
                    .env("PATH", &path)
                    .env_remove("DESTDIR")
                    .output()
                    .unwrap()
            };
            scope.spawn(run).join().unwrap()
        })
    };
    let before = all(&prefix);
    for state in ["exit 1", "echo active", "echo deactivating"] {
        let output = uninstall(state);
        assert_eq!(output.status.code(), Some(1), "{state}: {output:?}");
        assert_eq!(all(&prefix), before);
    }
    let output = uninstall("echo inactive");
    assert!(output.status.success(), "{output:?}");
    assert!(!prefix.join("bin/byway").exists());
}

/// Everything below a place.
fn all(place: &Path) -> Vec<String> {
    let each = std::fs::read_dir(place)
        .unwrap()
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            let below = if path.is_dir() { all(&path) } else { vec![] };
            [vec![path.display().to_string()], below].concat()
        });
    each.collect()
}

#[test]
fn an_uninstall_leaves_and_names_only_what_is_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("etc/byway/byway.toml");
    for (prefix, changed) in [("/usr", false), ("/opt/byway", false), ("/usr", true)] {
        install(&["--prefix", prefix], dir.path());
        for unit in ["byway", "byway-relay"] {
            let file = format!("{}/lib/systemd/system/{unit}.service", &prefix[1..]);
            let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
            let value = |key: &str| {
                let mut found = text.lines().filter_map(|line| line.strip_prefix(key));
                found.next().map(str::to_owned)
            };
            let told = value("Documentation=file:/").unwrap();
            assert!(dir.path().join(&told).is_file(), "{unit} names {told}");
            let command = value("ExecStart=/").unwrap();
            let program = command.split(' ').next().unwrap();
            assert!(dir.path().join(program).is_file(), "{unit} runs {program}");
            if let Some(read) = value("Environment=BYWAY_CONFIG=/") {
                assert!(dir.path().join(&read).is_file(), "{unit} reads {read}");
            }
        }
        if changed {
            std::fs::write(&config, "version = 1\n").unwrap();
        }
        let said = install(&["--prefix", prefix, "--uninstall"], dir.path());
        assert_eq!(said.contains("left: "), changed, "{said}");
        assert_eq!(config.exists(), changed);
        // Directories of the system that were not there before may stay.
        let shared =
            |path: &str| ["bin", "lib", "share", "doc", "usr", "opt", "etc"].contains(&path);
        let left = all(dir.path());
        let ours: Vec<&String> = left
            .iter()
            .filter(|path| !path.ends_with(prefix) && !path.rsplit('/').next().is_some_and(shared))
            .filter(|path| !changed || !config.starts_with(path))
            .collect();
        assert!(ours.is_empty(), "{ours:?}");
        std::fs::remove_dir_all(dir.path().join("opt")).unwrap_or_default();
    }
}

#[test]
fn an_uninstall_names_what_engines_keep_of_byway() {
    let dir = tempfile::tempdir().unwrap();
    install(&[], dir.path());
    let state = dir.path().join("var/lib/byway");
    std::fs::create_dir_all(&state).unwrap();
    let id = "0123456789abcdef".repeat(4);
    let kept =
        format!(r#"{{"installed":true,"networks":{{"{id}":{{"subnet":"x","ipv6":false}}}}}}"#);
    std::fs::write(state.join("docker.json"), kept).unwrap();
    let plugins = dir.path().join("opt/cni/bin");
    std::fs::create_dir_all(&plugins).unwrap();
    std::os::unix::fs::symlink("/usr/bin/byway", plugins.join("byway-cni")).unwrap();
    let said = install(&["--uninstall"], dir.path());
    assert!(said.contains("docker network rm 0123456789ab)"), "{said}");
    assert!(said.contains("opt/cni/bin/byway-cni)"), "{said}");
}
