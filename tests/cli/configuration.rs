//! The configuration file and the variables of the environment, checked without a daemon.

use std::process::{Command, Output};

use crate::{byway, told};

#[test]
fn configuration_is_checked_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let path = file.display().to_string();
    std::fs::write(&file, "version = 1\n[dns]\nmode = \"split\"\n").unwrap();
    assert_eq!(
        told(&["config", "check", "--config", &path]),
        (0, "ok\n".to_owned(), String::new())
    );
    assert_eq!(
        told(&["--quiet", "config", "check", "--config", &path]),
        (0, String::new(), String::new())
    );
    assert_eq!(
        told(&["config", "show", "--origin", "--config", &path]),
        (
            0,
            format!("version = 1   # {path}:1\ndns.mode = \"split\"   # {path}:3\n"),
            String::new()
        )
    );
    // Nobody takes the defaults for a file that was checked.
    let there = std::path::Path::new("/etc/byway/byway.toml").exists();
    let (code, stdout, _) = told(&["config", "check"]);
    let absent = "ok\nnote: there is no /etc/byway/byway.toml: the defaults are in force\n";
    assert!(there || (code == 0 && stdout == absent), "{stdout}");
    let (_, stdout, _) = told(&["--json", "config", "check"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let note = shown["notes"][0]
        .as_str()
        .map(|n| format!("ok\nnote: {n}\n"));
    assert!(there || note.as_deref() == Some(absent), "{stdout}");
    std::fs::write(&file, "[node]\nnmae = \"a\"\n").unwrap();
    assert_eq!(
        told(&["config", "check", "--config", &path]),
        (
            2,
            String::new(),
            format!(
                "error: {path}:2: unknown key \"nmae\" in [node]; did you mean \"name\"? (E-CONFIG-KEY)\n"
            )
        )
    );
    let (code, _, stderr) = told(&["daemon", "--config", &format!("{path}.absent")]);
    assert_eq!(code, 2);
    assert_eq!(
        stderr,
        format!(
            "error: {path}.absent: cannot read the configuration: No such file or directory (os error 2) \
             (E-CONFIG-READ)\n"
        )
    );
}

#[test]
fn settings_in_vain_are_named_by_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let path = file.display().to_string();
    std::fs::write(
        &file,
        "[transport]\nport_mapping = true\nlisten = \"none\"\n",
    )
    .unwrap();
    let (code, stdout, stderr) = told(&["config", "check", "--config", &path]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let expected = format!("ok\n! {path}:2: transport.port_mapping = true has no effect: ");
    assert!(
        stdout.starts_with(&expected) && stdout.ends_with(" (E-CONFIG-IDLE)\n"),
        "{stdout}"
    );
    let (_, stdout, _) = told(&["--json", "config", "check", "--config", &path]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let idle = &value["idle"][0];
    let seen = (
        idle["code"].as_str(),
        idle["key"].as_str(),
        idle["line"].as_u64(),
    );
    assert_eq!(
        seen,
        (
            Some("E-CONFIG-IDLE"),
            Some("transport.port_mapping"),
            Some(2)
        )
    );
}

#[test]
fn a_misspelt_variable_is_named_by_the_check_with_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    std::fs::write(&file, "[node]\nname = \"a\"\n").unwrap();
    let check = |variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
        command.args(["config", "check", "--config"]).arg(&file);
        let output = command.env(variable, "x").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        check("BYWAY_NODE_NMAE"),
        "ok\n! BYWAY_NODE_NMAE: no variable of that name sets anything; did you mean BYWAY_NODE_NAME (node.name)? (E-CONFIG-KEY)\n"
    );
    assert_eq!(check("BYWAY_OF_SOMEBODY_ELSE"), "ok\n");
}

#[test]
fn a_relay_that_could_relay_nothing_is_refused_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let path = file.display().to_string();
    std::fs::write(&file, "[transport]\nrelay = { offer = false }\n").unwrap();
    let (code, _, stderr) = told(&["daemon", "--relay-only", "--check", "--config", &path]);
    assert_eq!(code, 2);
    let expected = format!(
        "error: {path}:2: transport.relay.offer = false: node.relay_only is true, so this daemon would do nothing \
         (E-CONFIG-VALUE)"
    );
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(
        told(&["config", "check", "--config", &path]).0,
        0,
        "a member may keep out of it"
    );
}

#[test]
fn an_empty_variable_is_as_if_not_set() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    std::fs::write(&file, "[node]\nname = \"a\"\n").unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
        for name in [
            "BYWAY_SOCKET",
            "BYWAY_CONFIG",
            "BYWAY_STATE_DIR",
            "BYWAY_NODE_NAME",
            "BYWAY_LIMITS_CONNECTIONS",
        ] {
            command.env(name, "");
        }
        let Output {
            status,
            stdout,
            stderr,
        } = command.args(args).env("NO_COLOR", "1").output().unwrap();
        (
            status.code().unwrap(),
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        )
    };
    let (code, _, stderr) = run(&["id"]);
    assert!(
        [0, 3, 4].contains(&code) && !stderr.contains("(E-SOCKET)"),
        "{stderr}"
    );
    let path = file.display().to_string();
    assert_eq!(
        run(&["config", "show", "--config", &path]),
        (0, "node.name = \"a\"\n".to_owned(), String::new())
    );
    assert_eq!(run(&["config", "check"]).0, 0);
    let (code, _, stderr) = run(&["id", "--socket", ""]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("empty") || stderr.contains("required"),
        "{stderr}"
    );
}

#[test]
fn errors_of_a_configuration_come_one_a_line_and_the_remedy_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.toml");
    std::fs::write(
        &file,
        "[transport]\nzz = 1\n[node]\nname = 7\n[dns]\nmode = \"x\"\n",
    )
    .unwrap();
    let path = file.display().to_string();
    let (code, stdout, stderr) = told(&["daemon", "--config", &path]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    let lines: Vec<&str> = stderr.lines().collect();
    for (line, number) in lines.iter().zip([2, 4, 6]) {
        assert!(
            line.starts_with(&format!("error: {path}:{number}: ")),
            "{stderr}"
        );
    }
    assert_eq!(
        lines.get(3),
        Some(&format!("  try:  byway config check --config {path}").as_str()),
        "{stderr}"
    );
    let (code, stdout, _) = told(&["--json", "config", "check", "--config", &path]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let of = |i: usize| {
        (
            value["errors"][i]["line"].as_u64(),
            value["errors"][i]["key"].as_str().map(str::to_owned),
        )
    };
    assert_eq!(code, 2);
    assert_eq!(of(0), (Some(2), Some("transport.zz".to_owned())));
    assert_eq!(of(2), (Some(6), Some("dns.mode".to_owned())));
    assert_eq!(
        (&value["ok"], value["error"]["code"].as_str()),
        (&false.into(), Some("E-CONFIG-KEY"))
    );
    std::fs::write(&file, "version = 1\n").unwrap();
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::os::unix::fs::symlink("gone", dir.path().join("conf.d/.#x.toml")).unwrap();
    let skipped = dir.path().join("conf.d/.#x.toml").display().to_string();
    assert_eq!(
        told(&["config", "check", "--config", &path]),
        (
            0,
            format!("ok\nnot read: {skipped}   (hidden)\n"),
            String::new()
        )
    );
    let (_, stdout, _) = told(&["--json", "config", "check", "--config", &path]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (value["ok"].as_bool(), value["skipped"][0]["file"].as_str()),
        (Some(true), Some(skipped.as_str()))
    );
}

#[test]
fn a_wrong_log_level_is_exit_2_and_the_help_says_which_are_right() {
    let told = |value: &str| {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(env!("CARGO_BIN_EXE_byway"))
            .args(["daemon", "--check"])
            .env("BYWAY_LOG", value)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        (
            status.code().unwrap(),
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        )
    };
    assert_eq!(
        told("byway=loud"),
        (
            2,
            String::new(),
            "error: BYWAY_LOG: \"byway=loud\" is neither off, error, warn, info, debug, trace nor PART=LEVEL (E-LOG)\n  \
             try:  BYWAY_LOG=info,byway::dns=debug byway daemon\n"
                .to_owned()
        )
    );
    for right in ["", "debug", "info,byway::dns=debug"] {
        assert!(!told(right).2.contains("E-LOG"), "{right}");
    }
    let help = byway(&["daemon", "--help"]).stdout;
    assert!(
        String::from_utf8(help)
            .unwrap()
            .contains("BYWAY_LOG  How much is logged")
    );
}
