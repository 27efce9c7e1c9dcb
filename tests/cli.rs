//! The program itself where no daemon is needed: exact output and exit codes of what is refused.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot run what it tests has failed"
)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn byway(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("BYWAY_"))
    {
        command.env_remove(name);
    }
    command.args(args).env("NO_COLOR", "1").output().unwrap()
}

/// Exit code, standard output, standard error.
fn told(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = byway(args);
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

#[test]
fn wrong_usage_is_exit_2_with_a_way_out() {
    for (args, stderr) in [
        (
            vec!["subnet"],
            "error: a verb is missing (E-USAGE)\n  try:  byway subnet --help\n",
        ),
        (
            vec!["fly"],
            "error: unrecognized subcommand 'fly' (E-USAGE)\n  try:  byway --help\n",
        ),
        (
            vec!["subnet", "shw"],
            "error: unrecognized subcommand 'shw' (E-USAGE)\n  try:  byway subnet show\n",
        ),
        (
            vec!["create"],
            "error: the following required arguments were not provided: <NAME> (E-USAGE)\n  try:  byway create <NAME>\n",
        ),
        // Close to a verb that ends something: nothing but the help is proposed.
        (
            vec!["restart"],
            "error: unrecognized subcommand 'restart' (E-USAGE)\n  try:  byway --help\n",
        ),
        (
            vec!["rename"],
            "error: unrecognized subcommand 'rename' (E-USAGE)\n  try:  byway --help\n",
        ),
        (
            vec!["destory", "lab"],
            "error: unrecognized subcommand 'destory' (E-USAGE)\n  try:  byway --help\n",
        ),
        (
            vec!["member", "remov"],
            "error: unrecognized subcommand 'remov' (E-USAGE)\n  try:  byway member --help\n",
        ),
        // Verbs of the contract that are not built yet.
        (
            vec!["netcheck"],
            "error: this version (0.1.0) has no \"byway netcheck\" yet (E-NOT-YET)\n  try:  byway --help\n",
        ),
        (
            vec!["run", "--subnet", "lab", "--", "true"],
            "error: this version (0.1.0) has no \"byway run\" yet (E-NOT-YET)\n  try:  byway --help\n",
        ),
        (
            vec!["member", "rename", "lab", "a", "b"],
            "error: this version (0.1.0) has no \"byway member rename\" yet (E-NOT-YET)\n  try:  byway member --help\n",
        ),
        (
            vec!["create", "a.b"],
            "error: <NAME>: a name is one DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end; \"a.b\" is not \
             (E-NAME)\n",
        ),
        (
            vec!["create", "a/b\n"],
            "error: <NAME>: a name is one DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end; \"a/b\\n\" is \
             not (E-NAME)\n",
        ),
        (
            vec!["create", "lab", "--cidr4", "10.0.0.0/33"],
            "error: --cidr4: \"10.0.0.0/33\" is not a prefix such as 10.77.0.0/16 (or auto, none) (E-CIDR)\n",
        ),
        (
            vec!["create", "lab", "--cidr4", "10.0.0.1/8"],
            "error: --cidr4: 10.0.0.1/8 has bits set behind its prefix length; the prefix is 10.0.0.0/8 (E-CIDR)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "0.0.0.0:0", "web:80"],
            "error: <LISTEN>: \"0\" is not a port: 1 to 65535 (E-PORT)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "0.0.0.0:65536", "web:80"],
            "error: <LISTEN>: \"65536\" is not a port: 1 to 65535 (E-PORT)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "8082", "80"],
            "error: <TARGET>: \"80\" is not NAME:PORT or ADDRESS:PORT, such as web:80 or 10.77.1.5:80 (E-PORT)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "web", "web:80"],
            "error: <LISTEN>: \"web\" is not a port or ADDRESS:PORT, such as 8080, 127.0.0.1:8080 or [::1]:53 (E-PORT)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "0.0.0.0:80-90", "web:80-90"],
            "error: <LISTEN>: \"80-90\" is a range of ports: this version maps single ports (E-PORT-RANGE)\n",
        ),
        (
            vec!["join", "7q3km2wd9xra4ce8yn5t0vbz6u"],
            "error: [ID|INVITE]: expected the ID of a subnet or an invite (byway1…): a subnet ID has no character 'u' \
             (E-ID)\n",
        ),
        (
            vec!["invite", "create", "lab", "--uses", "many"],
            "error: --uses: \"many\" is not a number of uses: a whole number from 1 to 4294967295 (E-NUMBER)\n",
        ),
        (
            vec!["create", "lab", "--block4", "abc"],
            "error: --block4: \"abc\" is not the length of a block: a whole number from 1 to 32 (E-NUMBER)\n",
        ),
        (
            vec!["join", "7q3km2wd9xra4ce8yn5t0vbz6g", "--timeout", "2"],
            "error: --timeout: \"2\" is not a duration such as 500ms 3s 5m 24h 7d (E-DURATION)\n",
        ),
        (
            vec!["invite", "create", "lab", "--expires", "5"],
            "error: --expires: \"5\" is not a duration such as 500ms 3s 5m 24h 7d (E-DURATION)\n",
        ),
    ] {
        assert_eq!(
            told(&args),
            (2, String::new(), stderr.to_owned()),
            "{args:?}"
        );
    }
}

#[test]
fn json_errors_are_one_object_on_stdout() {
    for (args, code, stdout) in [
        (
            vec!["--json", "fly"],
            2,
            "{\"error\":{\"code\":\"E-USAGE\",\"hint\":\"byway --help\",\"message\":\"unrecognized subcommand 'fly'\"}}\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "0.0.0.0:0", "web:80", "--json"],
            2,
            "{\"error\":{\"code\":\"E-PORT\",\"hint\":\"\",\"message\":\"<LISTEN>: \\\"0\\\" is not a port: 1 to 65535\"}}\n",
        ),
        (
            vec!["status", "--json", "--socket", "/nowhere/byway.sock"],
            3,
            "{\"error\":{\"code\":\"E-DAEMON\",\"hint\":\"byway daemon --socket /nowhere/byway.sock --state-dir DIR\",\"message\":\"no \
             daemon answers on /nowhere/byway.sock: there is no such socket\"}}\n",
        ),
    ] {
        assert_eq!(
            told(&args),
            (code, stdout.to_owned(), String::new()),
            "{args:?}"
        );
    }
}

#[test]
fn no_daemon_is_exit_3() {
    let (code, stdout, stderr) = told(&["--socket", "/nowhere/byway.sock", "create", "lab"]);
    assert_eq!((code, stdout.as_str()), (3, ""));
    assert_eq!(
        stderr,
        "error: no daemon answers on /nowhere/byway.sock: there is no such socket (E-DAEMON)\n  try:  byway daemon \
         --socket /nowhere/byway.sock --state-dir DIR\n"
    );
}

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
fn settings_in_vain_are_named_by_the_check_and_relaying_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let path = file.display().to_string();
    std::fs::write(&file, "[transport]\nport_mapping = true\n").unwrap();
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
    std::fs::write(&file, "version = 1\n").unwrap();
    let (code, _, stderr) = told(&["daemon", "--relay-only", "--check", "--config", &path]);
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with(
            "error: --relay-only: node.relay_only = true: this version forwards for nobody"
        ),
        "{stderr}"
    );
    std::fs::write(&file, "[transport]\nrelay = { offer = true }\n").unwrap();
    let (code, _, stderr) = told(&["config", "check", "--config", &path]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains(
            "this version forwards for nobody, so there is nothing to offer (E-CONFIG-VALUE)"
        ),
        "{stderr}"
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
fn alone_without_a_daemon_it_shows_the_help() {
    let help = told(&["--help"]).1;
    let (code, stdout, stderr) = told(&["--socket", "/nowhere/s"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, help);
    // An object is asked for: there is none, and why not is told as always.
    let (code, stdout, _) = told(&["--json", "--socket", "/nowhere/s"]);
    assert_eq!(code, 3);
    assert!(
        stdout.starts_with("{\"error\":{\"code\":\"E-DAEMON\""),
        "{stdout}"
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

#[test]
fn help_and_versions_are_exit_0() {
    for args in [
        &["--help"][..],
        &["map", "add", "--help"],
        &["--version"],
        &["version", "--socket", "/nowhere/s"],
    ] {
        let (code, stdout, stderr) = told(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        assert!(!stdout.is_empty());
    }
    assert_eq!(
        told(&["--version"]).1,
        format!("byway {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn help_has_own_options_first_then_global_ones_then_three_examples() {
    for (verb, own) in [
        ("map add", "--allow"),
        ("join", "--timeout"),
        ("attach docker", "--subnet"),
        ("status", "--watch"),
    ] {
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = told(&words).1;
        let at = |text: &str| {
            help.find(text)
                .unwrap_or_else(|| panic!("no {text:?} in {help}"))
        };
        let places = [
            at(own),
            at("\nGlobal options:"),
            at("  --socket <PATH>"),
            at("\nExamples:"),
        ];
        assert!(places.is_sorted(), "{places:?} in {help}");
        let examples = help.split_once("\nExamples:\n").unwrap().1;
        assert_eq!(
            examples
                .lines()
                .filter(|l| l.contains(&format!("byway {verb}")))
                .count(),
            3,
            "{help}"
        );
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_byway"))
        .args(["config", "show", "--effective"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), stderr), (Some(0), Vec::new()));
}

#[test]
fn an_answer_that_cannot_be_written_is_exit_1() {
    let full = |args: &[&str]| {
        let device = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_byway"))
            .args(args)
            .env("NO_COLOR", "1")
            .stdout(device)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    };
    let said = "error: the answer could not be written to standard output: No space left on device (os error 28) \
                (E-OUTPUT)\n";
    for args in [
        &["--help"][..],
        &["map", "add", "--help"],
        &["--version"],
        &["config", "show", "--effective"],
    ] {
        assert_eq!(full(args), (1, said.to_owned()), "{args:?}");
    }
    // Of an error its own exit code and words are left.
    let (code, stderr) = full(&["--json", "fly"]);
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with("error: ") && stderr.contains("(E-USAGE)"),
        "{stderr}"
    );
}

#[test]
fn a_secret_is_taken_from_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_byway"))
        .args([
            "join",
            "--token-file",
            "-",
            "--socket",
            "/nowhere/s",
            "--no-color",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"byway1abcdefghijklmnopqrst\n")
        .unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(
        status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&stderr)
    );
}

/// Needs root, to become somebody else.
#[test]
#[ignore = "needs root"]
fn a_stranger_is_not_permitted() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::sync::Arc;

    use byway::api::server;
    use byway::api::types::{Done, Response};

    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    open(dir.path(), 0o755);
    // Where the program was built a stranger may not look.
    let program = dir.path().join("byway");
    std::fs::copy(env!("CARGO_BIN_EXE_byway"), &program).unwrap();
    open(&program, 0o755);
    let socket = dir.path().join("s");
    let listener = server::bind(&socket).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let serving = std::thread::spawn(move || {
        let done = || {
            Ok(Response::Done(Done {
                message: "done".into(),
                changed: true,
            }))
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server::run(
                listener,
                Arc::new(move |_, _| Box::pin(async move { done() })),
                stopped,
            ))
    });
    let asked = |uid: u32| {
        let mut command = Command::new(&program);
        command
            .args(["reload", "--no-color", "--socket"])
            .arg(&socket)
            .uid(uid)
            .gid(uid);
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let (code, stderr) = asked(4_000_000);
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.ends_with("permission denied (E-PERMISSION)\n  try:  usermod -aG byway,byway-admin USER      (or run it as root; byway alone may only look)\n"), "{stderr}");
    // Even where the file lets everybody in, the daemon asks the kernel who it is.
    open(&socket, 0o666);
    assert_eq!(
        asked(4_000_000),
        (
            Some(4),
            "error: user 4000000 may not change anything here: that takes root or group byway-admin (E-PERMISSION)\n  \
             try:  usermod -aG byway-admin USER\n"
                .to_owned()
        )
    );
    assert_eq!(asked(0), (Some(0), String::new()));
    stop.cancel();
    serving.join().unwrap().unwrap();
}

/// Every text behind these words in the sources below `place`, as it is written there.
fn texts(place: &str, words: &str) -> Vec<String> {
    fn collect(path: &std::path::Path, words: &str, found: &mut Vec<String>) {
        if path.is_dir() {
            std::fs::read_dir(path)
                .unwrap()
                .flatten()
                .for_each(|entry| collect(&entry.path(), words, found));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
            for part in text[..tests].split(words).skip(1) {
                let part = part.trim_start_matches(|c: char| c == '{' || c.is_whitespace());
                let part = part.strip_prefix("format!(").unwrap_or(part).trim_start();
                found.extend(
                    part.strip_prefix('"')
                        .and_then(|rest| rest.split('"').next())
                        .map(ToOwned::to_owned),
                );
            }
        }
    }
    let mut found = Vec::new();
    collect(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(place),
        words,
        &mut found,
    );
    found
}

#[test]
fn a_remark_stands_apart_from_the_command_that_is_proposed() {
    // Those of the core are values: their lines stand in one file.
    let (typed, mut all) = (texts("src/api/types/hint.rs", "=>"), texts("src", ".hint("));
    assert!(
        typed.len() > 30 && all.len() > 20,
        "{} {}",
        typed.len(),
        all.len()
    );
    all.extend(typed);
    for hint in all {
        let (command, remark) = hint.split_once("      (").unwrap_or((&hint, ")"));
        let plain = !command.contains(['(', ')', '…'])
            && command.trim() == command
            && !command.contains("   ");
        let one = remark.ends_with(')') && remark.matches(['(', ')']).count() == 1;
        assert!(
            plain && one,
            "{hint:?}: a command, six spaces, one remark in parentheses"
        );
    }
    // `status` puts the remedy of a problem into parentheses: it has none of its own.
    let all = texts("src", "help: ");
    assert!(all.len() > 10, "{}", all.len());
    for help in all {
        assert!(!help.contains(['(', ')', '…']), "{help:?}");
    }
}
