//! What people do on any day: output that goes nowhere, names that meet, ends that are meant and ends that are not.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, binary, text, until};

pub const CASES: &[Case] = &[
    fast!(output_that_cannot_be_written_fails_and_loses_nothing),
    fast!(a_log_that_cannot_be_written_ends_no_daemon),
    fast!(a_wrapped_invite_is_taken_and_a_cut_one_is_named),
    fast!(default_names_that_meet_get_a_free_one),
    fast!(cleanup_takes_only_what_bears_its_mark, "setpriv"),
    fast!(a_person_is_asked_before_something_ends, "script"),
    fast!(what_was_left_is_not_called_destroyed),
    fast!(a_request_one_admin_approved_is_gone_at_the_others),
    fast!(an_address_where_nobody_answers_is_named),
    fast!(down_shows_nothing_of_before),
    fast!(a_daemon_without_rights_is_exit_4, "setpriv"),
];

/// Runs `byway ARGS` with standard output somewhere else.
fn into(host: &Host, target: &str, args: &[&str]) -> Result<crate::lab::host::Answer> {
    let (binary, socket) = (binary(), host.socket());
    let (binary, socket) = (binary.to_string_lossy(), socket.to_string_lossy());
    let script = format!("exec \"$@\" {target}");
    host.ns().run(
        &[
            &["sh", "-c", &script, "sh", &binary, "--socket", &socket],
            args,
        ]
        .concat(),
    )
}

fn output_that_cannot_be_written_fails_and_loses_nothing(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let open = |a: &Host| -> Result<usize> {
        let list = a.json(&["invite", "ls"])?;
        let all = list["invites"].as_array().context("no `invites`")?;
        Ok(all
            .iter()
            .filter(|i| i["revoked"] == Value::Bool(false))
            .count())
    };
    let answer = into(&a, ">/dev/full", &["--json", "create", "lab"])?;
    answer.assert_error(1, "E-OUTPUT")?;
    ensure!(
        answer.err.contains("its invite is withdrawn") && answer.err.contains("was founded"),
        "{answer}"
    );
    ensure!(
        answer.err.contains("try:  byway invite create lab"),
        "{answer}"
    );
    ensure!(open(&a)? == 0, "an invite that nobody saw is in force");
    let create = ["invite", "create", "lab"];
    into(&a, ">/dev/full", &create)?.assert_error(1, "E-OUTPUT")?;
    // A reader that is gone before the first byte cannot have read the invite.
    unread(&a, &create)?.assert_error(1, "E-OUTPUT")?;
    ensure!(open(&a)? == 0, "an invite that nobody saw is in force");
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["id"],
        &["metrics"],
        &["subnet", "show", "lab"],
        &["member", "ls", "lab"],
        &["up", "lab"],
        &["map", "ls"],
        &["version"],
        &["--help"],
        &["map", "add", "--help"],
        &["--version"],
        &["config", "show", "--effective"],
        &["status", "--watch"],
    ] {
        into(&a, ">/dev/full", args)?
            .assert_error(1, "E-OUTPUT")
            .with_context(|| args.join(" "))?;
        let answer = unread(&a, args)?;
        ensure!(
            answer.code == 0 && answer.err.is_empty(),
            "a reader that went away is no error: {answer}"
        );
    }
    // Why it failed is told all the same, and its exit code stays.
    let answer = into(&a, ">/dev/full", &["--json", "subnet", "show", "nosuch"])?;
    answer.assert_error(5, "E-NO-SUBNET")?;
    let seen = a.json(&["invite", "create", "lab"])?;
    ensure!(open(&a)? == 1, "an invite that was written stays in force");
    ensure!(text(&seen, "invite")?.starts_with("byway1"), "{seen}");
    Ok(())
}

/// Runs `byway ARGS` with standard output a pipe whose reader is gone.
fn unread(host: &Host, args: &[&str]) -> Result<crate::lab::host::Answer> {
    let (binary, socket) = (binary(), host.socket());
    let (binary, socket) = (binary.to_string_lossy(), socket.to_string_lossy());
    let words = [&["timeout", "20", &*binary, "--socket", &*socket], args].concat();
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    drop(reader);
    let output = host
        .ns()
        .command(&words)
        .stdout(writer)
        .output()
        .context("start byway")?;
    crate::lab::host::Answer::of(&words, &output)
}

fn a_log_that_cannot_be_written_ends_no_daemon(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.start_under(&["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"])?;
    until("the daemon answers", SOON, || {
        ensure!(
            a.ended()?.is_none(),
            "the daemon ended with {:?}",
            a.ended()?
        );
        Ok(a.byway(&["status"])?.code == 0)
    })?;
    a.json(&["create", "lab"])?;
    a.json(&["leave", "lab"])?;
    ensure!(a.ended()?.is_none(), "the daemon ended");
    Ok(())
}

fn a_wrapped_invite_is_taken_and_a_cut_one_is_named(lab: &Lab) -> Result<()> {
    let (a, b, c) = (lab.node("a")?, lab.node("b")?, lab.node("c")?);
    a.json(&["create", "lab"])?;
    let invite = || -> Result<String> { text(&a.json(&["invite", "create", "lab"])?, "invite") };
    let folded = |text: &str, between: &str| -> String {
        text.as_bytes()
            .chunks(60)
            .map(|c| String::from_utf8_lossy(c).into_owned())
            .collect::<Vec<_>>()
            .join(between)
    };
    let whole = invite()?;
    b.fails(
        7,
        "E-INVITE-MALFORMED",
        &["join", &whole[..whole.len() - 9]],
    )?;
    b.json(&["join", &folded(&whole, "\n")])?;
    let file = c.dir().join("token");
    std::fs::write(
        &file,
        format!("\u{feff}> {}\r\n", folded(&invite()?, "\r\n> ")),
    )?;
    c.json(&["join", "--token-file", &file.to_string_lossy()])?;
    let spare = invite()?;
    a.ok(&["invite", "revoke", &folded(&spare, "\n  ")])?;
    Ok(())
}

fn default_names_that_meet_get_a_free_one(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.ns()
        .ip(&["addr", "add", "10.99.0.111/24", "dev", "eth0"])?;
    a.ns()
        .ip(&["addr", "add", "fd99::111/64", "dev", "eth0", "nodad"])?;
    a.rebase()?;
    a.start()?;
    a.json(&["create", "lab"])?;
    let first = lab.workload("web.x")?;
    let second = lab.workload("web_x")?;
    let place = ["--subnet", "lab"];
    let names: Vec<String> = [&first, &second]
        .iter()
        .map(|ns| {
            text(
                &a.json(&[&["attach", "netns", ns.name()][..], &place].concat())?,
                "workload",
            )
        })
        .collect::<Result<_>>()?;
    ensure!(names[1] == format!("{}-2", names[0]), "{names:?}");
    let third = lab.workload("web.3")?;
    a.fails(
        6,
        "E-NAME-TAKEN",
        &[
            "attach",
            "netns",
            third.name(),
            "--subnet",
            "lab",
            "--name",
            &names[0],
        ],
    )?;
    let mut maps = Vec::new();
    for (listen, target) in [
        ("10.99.0.1:8000", &names[0]),
        ("10.99.0.111:8000", &names[1]),
        ("[fd99::1]:8000", &names[0]),
        ("[fd99::111]:8000", &names[1]),
    ] {
        let map = a.json(&["map", "add", "lab", "tcp", listen, &format!("{target}:80")])?;
        maps.push(text(&map, "name")?);
    }
    ensure!(
        maps == ["tcp-8000", "tcp-8000-2", "tcp6-8000", "tcp6-8000-2"],
        "{maps:?}"
    );
    a.fails(
        6,
        "E-NAME-TAKEN",
        &[
            "map",
            "add",
            "lab",
            "tcp",
            "10.99.0.1:81",
            "a:80",
            "--name",
            "tcp-8000",
        ],
    )?;
    a.fails(
        6,
        "E-PORT-TAKEN",
        &["map", "add", "lab", "tcp", "10.99.0.1:8000", "a:80"],
    )?;
    a.ok(&["map", "rm", "lab", "tcp-8000-2"])?;
    Ok(())
}

fn cleanup_takes_only_what_bears_its_mark(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    a.json(&["create", "two"])?;
    let before = crate::lab::snapshot::of(a.ns())?;
    let empty = a.dir().join("empty");
    let (empty, socket) = (
        empty.to_string_lossy().into_owned(),
        a.dir().join("none").to_string_lossy().into_owned(),
    );
    let none = a.fails(
        5,
        "E-NO-KEY",
        &["--socket", &socket, "cleanup", "--state-dir", &empty],
    )?;
    ensure!(
        none.err.contains(&format!("there is no state in {empty}")),
        "{none}"
    );
    a.fails(5, "E-NO-KEY", &["cleanup", "--state-dir", &empty])?;
    a_daemon_that_answers_is_not_stripped(&a, &empty, &socket)?;
    let other = a.dir().join("other");
    another_key_has_nothing_here(lab, &a, &other, &socket)?;
    what_a_daemon_lives_by_stays(&a, &empty, &socket)?;
    before.assert_same(&crate::lab::snapshot::of(a.ns())?, "the daemon that lives")?;
    a.kill9()?;
    let said = a.ok(&["cleanup", "--all", "--state-dir", &empty])?;
    let past = |line: &str| line.starts_with("removed ") || line.starts_with("put ");
    ensure!(
        said.starts_with(&format!("there is no state in {empty}\n")),
        "{said}"
    );
    ensure!(
        said.lines().skip(1).all(past) && !said.contains("remove "),
        "each line says what was done: {said}"
    );
    // It made nothing: a daemon that is started there is a new one.
    ensure!(
        !Path::new(&empty).exists() && std::fs::read_dir(&other)?.count() == 1,
        "cleanup made something"
    );
    a.assert_clean()
}

/// It is refused also with --all. What helps is to stop that process.
fn a_daemon_that_answers_is_not_stripped(a: &Host, empty: &str, socket: &str) -> Result<()> {
    let stop = format!("try:  kill {} ", a.pid()?);
    let named = a.fails(6, "E-RUNNING", &["cleanup", "--all", "--state-dir", empty])?;
    ensure!(named.err.contains(&stop), "{named}");
    for given in [&*a.socket().to_string_lossy(), socket] {
        let named = a.fails(
            6,
            "E-RUNNING",
            &[
                "--socket",
                given,
                "cleanup",
                "--state-dir",
                &a.state().to_string_lossy(),
            ],
        )?;
        ensure!(named.err.contains(&stop), "{named}");
    }
    Ok(())
}

/// Another directory's key has nothing here, and who answers on the socket is another one.
fn another_key_has_nothing_here(lab: &Lab, a: &Host, other: &Path, socket: &str) -> Result<()> {
    std::fs::create_dir(other)?;
    std::fs::copy(
        lab.node("b")?.state().join("identity.key"),
        other.join("identity.key"),
    )?;
    for given in [&*a.socket().to_string_lossy(), socket] {
        let said = a.ok(&[
            "--socket",
            given,
            "cleanup",
            "--state-dir",
            &other.to_string_lossy(),
        ])?;
        ensure!(said.contains("nothing was left"), "{said}");
    }
    Ok(())
}

/// What a daemon lives by that answers on another socket stays, whatever is asked for.
fn what_a_daemon_lives_by_stays(a: &Host, empty: &str, socket: &str) -> Result<()> {
    let stop = format!("try:  kill {} ", a.pid()?);
    let named = a.fails(
        6,
        "E-RUNNING",
        &["--socket", socket, "cleanup", "--all", "--state-dir", empty],
    )?;
    ensure!(
        named.err.contains(&format!("process {}", a.pid()?)) && named.err.contains(&stop),
        "{named}"
    );
    ensure!(
        named.err.contains("with links bw-lab, bw-two runs here"),
        "{named}"
    );
    let key = a.dir().join("key");
    std::fs::create_dir(&key)?;
    std::fs::copy(a.state().join("identity.key"), key.join("identity.key"))?;
    for given in [&*a.socket().to_string_lossy(), socket] {
        let named = a.fails(
            6,
            "E-RUNNING",
            &[
                "--socket",
                given,
                "cleanup",
                "--state-dir",
                &key.to_string_lossy(),
            ],
        )?;
        ensure!(named.err.contains(&stop), "{named}");
    }
    Ok(())
}

/// Runs `byway ARGS` at a terminal where `typed` is typed.
pub(crate) fn at_terminal(
    host: &Host,
    typed: &str,
    args: &[&str],
) -> Result<crate::lab::host::Answer> {
    let (binary, socket) = (binary(), host.socket());
    let line = format!(
        "{} --socket {} {}",
        binary.display(),
        socket.display(),
        args.join(" ")
    );
    let script = format!("printf '{typed}\\n' | script -qec '{line}' /dev/null");
    host.ns().run(&["sh", "-c", &script])
}

fn a_person_is_asked_before_something_ends(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let id = text(&a.status("lab")?, "id")?;
    for args in [&["destroy", &id][..], &["member", "remove", "lab", "b"]] {
        let answer = at_terminal(a, "y", args)?;
        ensure!(
            answer.code == 1 && answer.out.contains("E-NOT-CONFIRMED"),
            "{answer}"
        );
    }
    let answer = at_terminal(b, "no", &["leave", "lab"])?;
    ensure!(
        answer.code == 1 && answer.out.contains("Type lab to go on"),
        "{answer}"
    );
    ensure!(
        a.members("lab")? == ["a", "b"] && b.members("lab")? == ["a", "b"],
        "nothing was done"
    );
    // By the name, whatever was typed to mean it; without asking where it is said, and where nobody sits.
    let answer = at_terminal(a, "b", &["member", "remove", "lab", "b"])?;
    ensure!(answer.code == 0, "{answer}");
    let answer = at_terminal(a, "", &["destroy", "--yes", &id])?;
    ensure!(answer.code == 0, "{answer}");
    a.json(&["create", "lab"])?;
    let id = text(&a.status("lab")?, "id")?;
    let answer = at_terminal(a, "lab", &["destroy", &id[..8]])?;
    ensure!(answer.code == 0, "{answer}");
    a.json(&["create", "lab"])?;
    let short = &text(&a.status("lab")?, "id")?[..7];
    a.fails(5, "E-NO-SUBNET", &["destroy", short])?;
    a.ok(&["destroy", "lab"]).map(drop)
}

fn what_was_left_is_not_called_destroyed(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    b.ok(&["leave", "lab"])?;
    let said = b.ok(&["destroy", "lab"])?;
    ensure!(
        said.contains("was left already") && !said.contains("destroyed"),
        "{said}"
    );
    ensure!(a.status("lab")?["state"] == "ready", "it lives on");
    a.fails(6, "E-OWNER-STAYS", &["member", "role", "lab", "a", "admin"])?;
    a.fails(
        6,
        "E-OWNER-STAYS",
        &["member", "role", "lab", "a", "member"],
    )?;
    a.ok(&["destroy", "lab"])?;
    for verb in ["leave", "destroy"] {
        let said = a.ok(&[verb, "lab"])?;
        ensure!(said.contains("was destroyed already"), "{said}");
    }
    Ok(())
}

fn a_request_one_admin_approved_is_gone_at_the_others(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    a.ok(&["member", "role", "lab", "b", "admin"])?;
    let c = lab.node("c")?;
    let id = text(&a.status("lab")?, "id")?;
    let joining = c.spawn(&["join", &id, "--timeout", "40s"])?;
    let listed = |host: &Host| -> Result<usize> {
        Ok(host.json(&["member", "requests", "lab"])?["requests"]
            .as_array()
            .map_or(0, Vec::len))
    };
    until(
        "both admins list the request",
        std::time::Duration::from_secs(20),
        || Ok(listed(a)? == 1 && listed(b)? == 1),
    )?;
    b.ok(&["member", "approve", "lab", "c"])?;
    let took = until(
        "the other admin lists it no more",
        std::time::Duration::from_secs(5),
        || Ok(listed(a)? == 0),
    )?;
    eprintln!("    gone at the other admin after {took:?}");
    let problems = a.json(&["status"])?["problems"].to_string();
    ensure!(!problems.contains("E-JOIN-REQUESTS"), "{problems}");
    let joined = joining.wait()?;
    ensure!(joined.code == 0, "{joined}");
    Ok(())
}

fn an_address_where_nobody_answers_is_named(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = "00000000000000000000000000";
    let silent = "/ip4/10.99.0.200/tcp/4100";
    let answering = format!("/ip4/{}/tcp/4100", a.under4());
    let join = [
        "join",
        id,
        "--timeout",
        "4s",
        "--peer",
        silent,
        "--peer",
        &answering,
    ];
    let answer = b.fails(8, "E-NOBODY", &join)?;
    ensure!(
        answer.err.contains(&format!("no answer from {silent}")),
        "{answer}"
    );
    ensure!(
        !answer.err.contains(&answering),
        "who answered is not named: {answer}"
    );
    Ok(())
}

fn down_shows_nothing_of_before(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    a.ns().reaches(&b.overlay("lab")?.0, SOON)?;
    until("a round trip was measured", SOON, || {
        Ok(a.status("lab")?["peers"][0]["rtt_ms"].is_number())
    })?;
    a.ok(&["down", "lab"])?;
    let peer = &a.status("lab")?["peers"][0];
    ensure!(
        peer["rtt_ms"].is_null() && peer["path"]["since"] == 0,
        "{peer}"
    );
    let shown = a.ok(&["status"])?;
    ensure!(
        !shown.contains(" ms") && !shown.contains("since"),
        "{shown}"
    );
    a.ok(&["up", "lab"]).map(drop)
}

fn a_daemon_without_rights_is_exit_4(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    let state = a.dir().join("nobody").to_string_lossy().into_owned();
    let binary = binary().to_string_lossy().into_owned();
    let answer = a.ns().run(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &binary,
        "daemon",
        "--state-dir",
        &state,
    ])?;
    // Where the program itself may not be read by others, nothing is shown.
    if answer.err.contains("failed to execute") {
        return Ok(());
    }
    answer.assert_error(4, "E-PERMISSION")
}
