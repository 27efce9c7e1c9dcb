//! Words that are wrong, words that ask for help, and no daemon to ask: exit codes and what is proposed.

use crate::told;

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
            vec!["identity"],
            "error: this version (0.1.0) has no \"byway identity\" yet (E-NOT-YET)\n  try:  byway --help\n",
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
            vec![
                "create",
                "a23456789-123456789-123456789-123456789-123456789-123456789-1234",
            ],
            "error: <NAME>: a name has at most 63 characters, this has 64 (E-NAME)\n",
        ),
        (
            vec!["daemon", "--listen", "foo"],
            "error: --listen: transport.listen = [\"foo\"]: \"foo\": expected udp/PORT, tcp/PORT, tcp/PORT/wss, \
             tcp/PORT/ws, IP, IP:PORT, a multiaddr or \
             none (E-CONFIG-VALUE)\n  try:  byway daemon --help\n",
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
            "error: <LISTEN>: \"0\" is not a port or a range of ports: 1 to 65535, as in 8080 or 8000-8010 (E-PORT)\n",
        ),
        (
            vec!["map", "add", "lab", "tcp", "0.0.0.0:65536", "web:80"],
            "error: <LISTEN>: \"65536\" is not a port or a range of ports: 1 to 65535, as in 8080 or 8000-8010 (E-PORT)\n",
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
            vec!["map", "add", "lab", "tcp", "0.0.0.0:90-80", "web:90-80"],
            "error: <LISTEN>: 90-80 is not a range of ports: it ends before it begins (E-PORT-RANGE)\n",
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
            "{\"error\":{\"code\":\"E-PORT\",\"hint\":\"\",\"message\":\"<LISTEN>: \\\"0\\\" is not a port or a range of ports: 1 to 65535, as in 8080 or 8000-8010\"}}\n",
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
