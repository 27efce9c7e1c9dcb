//! What each program in `scripts` says of itself, from wherever it is called.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");

/// Runs a script with one argument from a directory. None of them gets beyond its arguments here.
fn run(script: &Path, argument: &str, from: &Path) -> Output {
    let mut command = Command::new(script);
    command.arg(argument).current_dir(from).output().unwrap()
}

#[test]
fn every_script_explains_itself_from_anywhere_and_refuses_what_it_does_not_know() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (root, here) = (Path::new("/"), Path::new(SCRIPTS));
    let programs: Vec<PathBuf> = std::fs::read_dir(SCRIPTS)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none())
        .collect();
    assert!(programs.len() >= 7, "{programs:?}");
    for program in programs {
        let name = program.file_name().unwrap().to_str().unwrap();
        let beside = PathBuf::from(format!("./{name}"));
        let relative = Path::new(SCRIPTS).strip_prefix("/").unwrap().join(name);
        let calls = [
            (program.as_path(), elsewhere.path()),
            (beside.as_path(), here),
            (relative.as_path(), root),
        ];
        for ((script, from), option) in calls.into_iter().zip(["--help", "-h", "--help"]) {
            let output = run(script, option, from);
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{script:?}");
            assert!(said.starts_with(&format!("{name} ")), "{script:?}: {said}");
            assert!(said.lines().count() >= 3, "{script:?}: {said}");
            assert!(output.stderr.is_empty(), "{script:?}");
        }
        let refused = run(&program, "--frobnicate", elsewhere.path());
        assert_eq!(refused.status.code(), Some(2), "{name}: {refused:?}");
        assert!(refused.stdout.is_empty() && !refused.stderr.is_empty());
    }
}
