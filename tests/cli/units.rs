//! The units of `examples/systemd`, as systemd reads them.

use std::path::Path;
use std::process::Command;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd");

/// Copies an example, with programs that may not be installed here replaced by ones that are.
fn put(example: &str, to: &Path) {
    let text = std::fs::read_to_string(Path::new(EXAMPLES).join(example)).unwrap();
    let text = ["/usr/bin/systemd-nspawn", "/usr/bin/python3", "/sbin/ip"]
        .iter()
        .fold(text, |text, program| text.replace(program, "/bin/true"))
        .replace("/usr/bin/byway", env!("CARGO_BIN_EXE_byway"));
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(to, text).unwrap();
}

fn verified(units: &[&Path]) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.env("SYSTEMD_LOG_LEVEL", "warning").arg("verify");
    let output = command.args(units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn units_with_a_namespace_of_ours_are_understood_by_systemd() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return eprintln!("SKIP: systemd-analyze is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put("byway-netns@.service", &at("byway-netns@web.service"));
    put("web.service", &at("web.service"));
    let machine = at("systemd-nspawn@web.service");
    std::fs::write(&machine, "[Service]\nExecStart=/bin/true\n").unwrap();
    put(
        "nspawn.conf",
        &at("systemd-nspawn@web.service.d/byway.conf"),
    );
    let units = [at("web.service"), at("byway-netns@web.service"), machine];
    let units: Vec<&Path> = units.iter().map(AsRef::as_ref).collect();
    assert_eq!(verified(&units), (true, String::new()));
    // What is no setting would be told.
    let wrong = std::fs::read_to_string(at("web.service")).unwrap();
    std::fs::write(
        at("web.service"),
        wrong.replace("NetworkNamespacePath", "NetworkNamespace"),
    )
    .unwrap();
    let (_, said) = verified(&units[..1]);
    assert!(said.contains("NetworkNamespace"), "{said}");
}

#[test]
fn what_the_units_have_byway_do_is_a_line_that_it_takes() {
    let unit = std::fs::read_to_string(Path::new(EXAMPLES).join("byway-netns@.service")).unwrap();
    let lines = unit
        .lines()
        .filter_map(|line| line.split_once("=/usr/bin/byway "));
    let mut count = 0;
    for (_, line) in lines {
        let line = line.replace("%i", "web").replace("${SUBNET}", "lab");
        let words: Vec<&str> = ["--socket", "/nowhere/sock"]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        let (code, _, error) = crate::told(&words);
        assert_eq!(
            code, 3,
            "nothing is wrong but that no daemon is there: {error}"
        );
        count += 1;
    }
    assert_eq!(count, 1);
}
