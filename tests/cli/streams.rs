//! Standard input and output: a secret that is read, an answer that nobody reads or that cannot be written.

use std::io::Write;
use std::process::{Command, Output, Stdio};

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
