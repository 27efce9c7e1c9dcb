//! What is said when something is not well: the true state, its cause, and a remedy that is one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::everyday::at_terminal;
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, sh, text, until};

pub const CASES: &[Case] = &[
    fast!(a_removed_members_workloads_say_that_it_is_no_member),
    fast!(the_same_attachment_asked_for_twice_is_there_already),
    fast!(a_map_is_ok_only_where_something_answers_behind_it),
    fast!(a_join_by_invite_waits_visibly_at_a_terminal, "script"),
    fast!(a_full_disk_is_a_problem_until_a_write_succeeds, "nsenter"),
    fast!(
        a_record_of_the_host_that_cannot_be_made_is_a_problem,
        "nsenter"
    ),
];

/// The problems of `status`.
fn problems(host: &Host) -> Result<Vec<Value>> {
    let status = host.json(&["status"])?;
    Ok(status["problems"]
        .as_array()
        .context("no `problems`")?
        .clone())
}

/// Those with that code.
fn with_code(host: &Host, code: &str) -> Result<Vec<Value>> {
    Ok(problems(host)?
        .into_iter()
        .filter(|p| p["code"] == code)
        .collect())
}

fn a_removed_members_workloads_say_that_it_is_no_member(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    b.attach(&web, "lab", "web")?;
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    b.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    let states = || -> Result<[String; 2]> {
        let (works, maps) = (b.json(&["workload", "ls"])?, b.json(&["map", "ls"])?);
        Ok([
            text(&works["workloads"][0], "state")?,
            text(&maps["maps"][0], "state")?,
        ])
    };
    ensure!(states()? == ["ok", "ok"], "{:?}", states()?);
    b.ok(&["down", "lab"])?;
    ensure!(
        states()? == ["down", "blocked"] && problems(b)?.is_empty(),
        "{:?} {:?}",
        states()?,
        problems(b)?
    );
    b.ok(&["up", "lab"])?;
    a.ok(&["member", "remove", "lab", "b", "--yes"])?;
    until("b knows that it is out", SOON, || {
        Ok(!with_code(b, "E-NOT-MEMBER")?.is_empty())
    })?;
    ensure!(states()? == ["not-member", "no-target"], "{:?}", states()?);
    let shown = b.ok(&["map", "ls"])?;
    ensure!(
        shown.contains("this node is no member of lab any more"),
        "{shown}"
    );
    // One cause is one problem.
    let said = problems(b)?;
    ensure!(said.len() == 1, "{said:?}");
    Ok(())
}

fn the_same_attachment_asked_for_twice_is_there_already(lab: &Lab) -> Result<()> {
    let a = lab.subnet(&["a"])?.remove(0);
    a.json(&["create", "two"])?;
    let (web, other) = (lab.workload("web")?, lab.workload("other")?);
    let first = a.attach(&web, "lab", "web")?;
    ensure!(first["already"] == false, "{first}");
    let ruleset = a.ns().ruleset()?;
    let same = [
        "attach",
        "netns",
        web.name(),
        "--subnet",
        "lab",
        "--name",
        "web",
    ];
    let path = format!("/run/netns/{}", web.name());
    let address = crate::lab::v4(&first)?;
    for words in [
        &same[..],
        &same[..5],
        &[&same[..], &["--ip", &address]].concat(),
        &["attach", "netns", &path, "--subnet", "lab", "--name", "web"],
    ] {
        let again = a.json(words)?;
        ensure!(
            again["already"] == true && again["addresses"] == first["addresses"],
            "{words:?}: {again}"
        );
        ensure!(
            again["interface"] == first["interface"],
            "{words:?}: {again}"
        );
    }
    ensure!(a.ok(&same)?.contains("attached already"));
    ensure!(
        a.ns().ruleset()? == ruleset
            && a.json(&["workload", "ls"])?["workloads"]
                .as_array()
                .map(Vec::len)
                == Some(1)
    );
    // Anything else of it is asked for, or another thing under its name: that stays a conflict.
    for more in [
        &["--name", "www"][..],
        &["--name", "web", "--mac", "02:00:00:00:00:07"],
        &["--name", "web", "--ip", "10.77.1.99"],
    ] {
        let words = [&same[..5], more].concat();
        let refused = a
            .fails(6, "E-ATTACHED", &words)
            .with_context(|| words.join(" "))?;
        ensure!(
            refused.err.contains("try:  byway detach web --subnet lab"),
            "{refused}"
        );
    }
    a.fails(
        6,
        "E-NAME-TAKEN",
        &[
            "attach",
            "netns",
            other.name(),
            "--subnet",
            "lab",
            "--name",
            "web",
        ],
    )?;
    // In another subnet it is another attachment.
    ensure!(a.attach(&web, "two", "web")?["already"] == false);
    web.reaches(&a.overlay("lab")?.0, SOON).map(drop)
}

fn a_map_is_ok_only_where_something_answers_behind_it(lab: &Lab) -> Result<()> {
    let a = lab.subnet(&["a"])?.remove(0);
    let web = lab.workload("web")?;
    a.attach(&web, "lab", "web")?;
    let made = a.json(&[
        "map",
        "add",
        "lab",
        "tcp",
        "0.0.0.0:8080",
        "web:80",
        "--name",
        "early",
    ])?;
    ensure!(made["state"] == "refused", "nothing listens yet: {made}");
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    let state = |name: &str| -> Result<String> {
        let maps = a.json(&["map", "ls", "lab"])?["maps"].clone();
        let found = maps
            .as_array()
            .and_then(|all| all.iter().find(|m| m["name"] == name).cloned());
        text(&found.unwrap_or_default(), "state")
    };
    until("the map is ok once something listens", SOON, || {
        Ok(state("early")? == "ok")
    })?;
    let made = a.json(&["map", "add", "lab", "tcp", "0.0.0.0:8081", "web:80"])?;
    ensure!(made["state"] == "ok", "{made}");
    let both = a.json(&["map", "add", "lab", "tcp", "8082", "web:81"])?;
    let states: Vec<_> = both["maps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| m["state"].clone())
        .collect();
    ensure!(states == ["refused", "refused"], "{both}");
    Ok(())
}

fn a_join_by_invite_waits_visibly_at_a_terminal(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let made = a.json(&["create", "lab"])?;
    let (id, invite) = (text(&made, "id")?, text(&made, "invite")?);
    a.terminate()?;
    let answer = at_terminal(&b, "", &["join", &invite, "--timeout", "4s"])?;
    ensure!(answer.code == 8 || answer.code == 7, "{answer}");
    let mut rest = answer.out.as_str();
    for part in [
        &format!("joining subnet {id} by invite"),
        "who issued the invite: 2 s of 4 s",
        "error:",
        "byway join INVITE --peer HOST",
    ] {
        let Some((_, after)) = rest.split_once(part) else {
            anyhow::bail!("no {part:?} in its place: {answer}")
        };
        rest = after;
    }
    ensure!(
        !answer.out.contains(&invite[..20]),
        "an invite is a secret: {answer}"
    );
    Ok(())
}

/// A host whose state directory is a file system of its own, which only its daemon sees.
fn on_tmpfs(host: &Host, options: &str) -> Result<()> {
    let state = host.state();
    std::fs::create_dir(&state)?;
    let mount = format!(
        "mount -t tmpfs -o {options} tmpfs {} && exec \"$@\"",
        state.display()
    );
    host.start_under(&["sh", "-c", &mount, "sh"])?;
    until("the daemon answers", SOON, || {
        Ok(host.byway(&["status"])?.code == 0)
    })
    .with_context(|| host.log_tail(20))?;
    Ok(())
}

/// Runs a script in the state directory as the daemon sees it.
fn in_state(host: &Host, script: &str) -> Result<String> {
    let script = format!("cd {} && {script}", host.state().display());
    sh(
        "nsenter",
        &["-t", &host.pid()?.to_string(), "-m", "sh", "-c", &script],
    )
}

fn a_full_disk_is_a_problem_until_a_write_succeeds(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    on_tmpfs(&a, "size=24m")?;
    a.json(&["create", "lab"])?;
    ensure!(problems(&a)?.is_empty(), "{:?}", problems(&a)?);
    in_state(&a, "dd if=/dev/zero of=filler bs=64k 2>/dev/null; true")?;
    until("a change is refused", Duration::from_secs(30), || {
        Ok(
            a.byway(&["dns", "add", "lab", "big", "--txt", &"x".repeat(20_000)])?
                .code
                == 1,
        )
    })?;
    let said = with_code(&a, "E-DISK-FULL")?;
    let help = format!("df -h {}", a.state().display());
    ensure!(
        said.len() == 1
            && said[0]["severity"] == "error"
            && text(&said[0], "help")?.starts_with(&help),
        "{said:?}"
    );
    a.fails(9, "E-DEGRADED", &["status", "--check", "ready"])?;
    // What changes nothing is done at once: it waits for nothing that was refused.
    let begun = std::time::Instant::now();
    a.ok(&["up", "lab"])?;
    ensure!(
        begun.elapsed() < Duration::from_secs(4),
        "it took {:?}",
        begun.elapsed()
    );
    let shown = a.ok(&["status"])?;
    ensure!(
        shown.contains("cannot be written") && shown.contains(&help),
        "{shown}"
    );
    // Nobody changes anything: that there is room again is found out all the same.
    in_state(&a, "rm filler")?;
    until("the problem goes", Duration::from_secs(15), || {
        Ok(problems(&a)?.is_empty())
    })?;
    a.ok(&["dns", "add", "lab", "big", "--txt", "small"])?;
    a.terminate()
}

fn a_record_of_the_host_that_cannot_be_made_is_a_problem(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    on_tmpfs(&a, "size=64m,nr_inodes=24")?;
    a.json(&["create", "lab"])?;
    let web: Netns = lab.workload("web")?;
    in_state(
        &a,
        "i=0; while touch filler.$i 2>/dev/null; do i=$((i+1)); done; true",
    )?;
    // What is to be put back could not be remembered: then it is not touched.
    let refused = a.byway(&[
        "attach",
        "netns",
        web.name(),
        "--subnet",
        "lab",
        "--name",
        "web",
    ])?;
    ensure!(refused.code == 1, "{refused}");
    let said = with_code(&a, "E-DISK-FULL")?;
    ensure!(said.len() == 1, "{:?}", problems(&a)?);
    let (message, help) = (text(&said[0], "message")?, text(&said[0], "help")?);
    ensure!(
        message.contains("host.json") && message.contains("inode"),
        "{said:?}"
    );
    ensure!(
        help.starts_with(&format!("df -i {}", a.state().display())),
        "{said:?}"
    );
    in_state(&a, "rm filler.*")?;
    until("the problem goes", Duration::from_secs(20), || {
        Ok(problems(&a)?.is_empty())
    })
    .with_context(|| format!("{:?}", problems(&a)))?;
    a.attach(&web, "lab", "web")?;
    a.terminate()
}
