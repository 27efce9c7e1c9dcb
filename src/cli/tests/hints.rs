//! What an error proposes to type is something that can be typed.

use std::ffi::OsString;
use std::path::Path;

use super::super::usage;
use crate::model::id::SubnetId;

/// Every text in `src` that begins with the program's name, and where it stands.
fn proposed(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            proposed(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("examples.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests stand last in a file, or in one of their own.
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let is_test =
                path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs");
            for (at, _) in text.match_indices("\"byway ").filter(|_| !is_test) {
                let line = text[at + 1..].split(['"', '\n']).next().unwrap_or_default();
                found.push((path.display().to_string(), line.to_owned()));
            }
        }
    }
}

/// The lines to type that a text may mean: for each place that is filled in, every kind of value that there is.
fn lines(text: &str) -> Vec<Vec<OsString>> {
    let id = SubnetId([9; 16]).to_string();
    let values = [
        "lab",
        id.as_str(),
        "10.0.0.0/16",
        "26",
        "docker",
        "--no-wait",
        "",
    ];
    // A remark stands behind the command, or another command.
    let command = text
        .split("      (")
        .next()
        .unwrap_or_default()
        .split([';', ','])
        .next()
        .unwrap_or_default();
    let mut all: Vec<Vec<OsString>> = vec![vec![]];
    for word in command.split_whitespace() {
        // What is filled in behind a word is more of the line, or nothing.
        let (fixed, glued) = word.split_once('{').unwrap_or((word, ""));
        let is_place =
            fixed.is_empty() || (word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase()));
        all = all
            .into_iter()
            .flat_map(|line| {
                let each: &[&str] = if is_place { &values } else { &[fixed] };
                each.iter()
                    .map(|v| [line.clone(), vec![OsString::from(v)]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(
            is_place || glued.ends_with('}') || glued.is_empty(),
            "{text}: {word}"
        );
    }
    all.into_iter()
        .map(|line| line.into_iter().filter(|word| !word.is_empty()).collect())
        .collect()
}

#[test]
fn every_command_that_is_proposed_can_be_typed() {
    let mut all = vec![];
    proposed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    // Names of what keys are for are no commands, and where the verb is filled in nothing is known of the line.
    all.retain(|(path, text)| {
        !path.contains("src/crypto/")
            && !text.starts_with("byway secret key")
            && !text.starts_with("byway {")
    });
    assert!(all.len() > 50, "only {} were found", all.len());
    let can = |line: &Vec<OsString>| match usage::parse(line) {
        Ok(cli) => cli.verb.is_some(),
        Err(error) => error.kind() == clap::error::ErrorKind::DisplayHelp,
    };
    let wrong: Vec<_> = all
        .iter()
        .filter(|(_, text)| !lines(text).iter().any(can))
        .collect();
    // What the test is for: a verb that is not there, an option that its verb does not have.
    let can_any = |text: &str| lines(text).iter().any(can);
    assert!(
        can_any("byway join {} --as OTHER      (its name here)")
            && !can_any("byway create NAME --as OTHER")
    );
    assert!(
        !can_any("byway member rename {name} {member} NAME")
            && can_any("byway cleanup{flag} --state-dir {}")
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}
