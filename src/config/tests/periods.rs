//! The periods of `[discovery]`.

use super::*;

#[test]
fn periods_have_bounds_and_some_change_while_the_daemon_runs() {
    for (text, want) in [
        (
            "compare = \"4s\"",
            "discovery.compare = \"4s\": expected a time from 5s to 1h, as in 30s 5m 1h",
        ),
        (
            "redial = 30",
            "discovery.redial = 30: expected a time in quotes, as \"60s\"",
        ),
        (
            "announce = \"2\"",
            "discovery.announce = \"2\": expected a time from 1m to 24h, as in 5m 1h",
        ),
        (
            "keep_alive = \"10m\"",
            "discovery.keep_alive = \"10m\": expected a time from 5s to 5m, as in 30s 5m",
        ),
    ] {
        let told = refusal(&format!("[discovery]\n{text}\n"));
        assert_eq!(told, format!("byway.toml:2: {want}"));
    }
    let fresh = read_text("[discovery]\ncompare = \"1m\"\nredial = \"1m\"\n").unwrap();
    let (next, taken, restart) = read_text("").unwrap().taking_over(&fresh);
    assert_eq!(taken, ["discovery.compare"]);
    assert_eq!(restart, ["discovery.redial"]);
    let seconds = [next.discovery.compare, next.discovery.redial].map(|p| p.as_secs());
    assert_eq!(seconds, [60, 30]);
}

#[test]
fn a_connection_is_not_dead_before_an_answer_can_come() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("byway.toml");
    let load = |text: &str| {
        std::fs::write(&file, format!("[discovery]\n{text}\n")).unwrap();
        Config::load(&Sources {
            file: Some(file.clone()),
            ..Sources::default()
        })
    };
    let discovery = load("keep_alive = \"60s\"\ndead_after = \"70s\"")
        .unwrap()
        .discovery;
    assert_eq!(
        (
            discovery.keep_alive.as_secs(),
            discovery.dead_after.as_secs()
        ),
        (60, 70)
    );
    for (text, key, value, against) in [
        ("keep_alive = \"35s\"", "keep_alive", "35s", "(40s)"),
        ("dead_after = \"30s\"", "dead_after", "30s", "(25s)"),
    ] {
        let told = load(text).unwrap_err();
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let [only] = told.try_into().unwrap();
        let begins = format!("{}:2: discovery.{key} = \"{value}\": ", file.display());
        assert!(
            only.starts_with(&begins) && only.contains(against),
            "{only}"
        );
        assert!(only.contains("at least 10 s more than"), "{only}");
    }
}

#[test]
fn a_period_of_what_is_not_done_is_named() {
    let idle = |text: &str| {
        let config = read_text(text).unwrap();
        let found = config.idle().into_iter().map(|found| found.key);
        found.collect::<Vec<_>>()
    };
    let periods = "[discovery]\nannounce = \"2m\"\ncompare = \"1m\"\nredial = \"1m\"\n";
    assert_eq!(idle(periods), [""; 0]);
    let off = format!("[transport]\nlan_discovery = false\n{periods}");
    assert_eq!(idle(&off), ["discovery.announce"]);
    let relay = format!("[node]\nrelay_only = true\n{periods}");
    assert_eq!(idle(&relay), ["discovery.compare", "discovery.redial"]);
}
