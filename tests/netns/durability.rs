//! Crashes, full disks, unplugged cables, and others who change the kernel under us.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::runner::Case;
use crate::lab::{Lab, NOW, SOON, sh, until, v4};
use crate::{ci, fast};

pub const CASES: &[Case] = &[
    fast!(killed_daemon_heals_in_five_seconds),
    fast!(killed_mid_command_keeps_old_or_new_state),
    fast!(cleanup_after_a_kill_leaves_nothing),
    fast!(link_down_and_up_heals),
    fast!(deleted_tun_is_restored),
    fast!(deleted_addresses_routes_and_rules_are_restored),
    fast!(state_directory_socket_and_port_are_exclusive),
    fast!(full_disk_fails_the_command_and_nothing_else),
    fast!(missing_key_beside_state_is_no_new_identity),
    fast!(damaged_file_is_refused_with_its_remedy),
    ci!(twenty_kills_in_a_row),
];

fn killed_daemon_heals_in_five_seconds(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    let web4 = v4(&b.attach(&web, "lab", "web")?)?;
    let (before, (a4, _)) = (b.overlay("lab")?, a.overlay("lab")?);
    a.ns().reaches(&web4, SOON)?;
    b.kill9()?;
    b.start_under(&[])?;
    // Both directions, the host and its workload, counted from the restart.
    let limit = Duration::from_secs(5);
    let start = std::time::Instant::now();
    b.ns().reaches(&a4, limit)?;
    a.ns().reaches(&before.0, limit)?;
    a.ns().reaches(&before.1, limit)?;
    a.ns().reaches(&web4, limit)?;
    ensure!(
        start.elapsed() <= limit,
        "healing took {:?}",
        start.elapsed()
    );
    until("the daemon answers", SOON, || {
        Ok(b.overlay("lab")? == before)
    })
    .map(drop)
}

fn twenty_kills_in_a_row(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let before = b.overlay("lab")?;
    for round in 0..20 {
        b.kill9()?;
        b.start()?;
        a.ns()
            .reaches(&before.0, Duration::from_secs(5))
            .with_context(|| format!("round {round}"))?;
    }
    ensure!(b.overlay("lab")? == before, "the addresses are the same");
    Ok(())
}

fn killed_mid_command_keeps_old_or_new_state(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let own = a.overlay("lab")?;
    for round in 0..5 {
        let name = format!("r{round}");
        let command = a.spawn(&["dns", "add", "lab", &name, &own.0])?;
        a.kill9()?;
        let answer = command.wait()?;
        a.start()?;
        let names = a.json(&["dns", "ls", "lab"])?.to_string();
        let stored =
            names.contains(&format!("\"{name}.")) || names.contains(&format!("\"{name}\""));
        ensure!(
            answer.code != 0 || stored,
            "answered with success and lost: {answer}\n{names}"
        );
        ensure!(a.overlay("lab")? == own, "the membership is whole");
    }
    Ok(())
}

fn cleanup_after_a_kill_leaves_nothing(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let a = &hosts[0];
    let web = lab.workload("web")?;
    a.attach(&web, "lab", "web")?;
    a.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    a.kill9()?;
    let state = a.state().to_string_lossy().into_owned();
    a.set_env("BYWAY_STATE_DIR", &state);
    a.ok(&["cleanup"])?;
    a.assert_clean()
}

/// A05: the carrier goes at the switch, then at the host.
fn link_down_and_up_heals(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let b4 = b.overlay("lab")?.0;
    a.ns().reaches(&b4, SOON)?;
    lab.unplug(b)?;
    a.ns().loses(&b4, SOON)?;
    lab.plug(b)?;
    a.ns().reaches(&b4, Duration::from_secs(20))?;
    // The same from inside: the host's own link goes down, which also takes its routes.
    b.ns().ip(&["link", "set", "eth0", "down"])?;
    a.ns().loses(&b4, SOON)?;
    b.ns().ip(&["link", "set", "eth0", "up"])?;
    b.ns().ip(&[
        "addr",
        "replace",
        &format!("{}/64", b.under6()),
        "dev",
        "eth0",
        "nodad",
    ])?;
    a.ns().reaches(&b4, Duration::from_secs(20)).map(drop)
}

fn deleted_tun_is_restored(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (before, b4) = (a.overlay("lab")?, b.overlay("lab")?.0);
    a.ns().reaches(&b4, SOON)?;
    a.ns().ip(&["link", "del", "bw-lab"])?;
    until("the interface is back", Duration::from_secs(5), || {
        Ok(a.ns().ip(&["link", "show", "bw-lab"]).is_ok())
    })?;
    a.ns().reaches(&b4, Duration::from_secs(5))?;
    b.ns().reaches(&before.1, Duration::from_secs(5))?;
    ensure!(a.overlay("lab")? == before, "the addresses are the same");
    Ok(())
}

fn deleted_addresses_routes_and_rules_are_restored(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let ((b4, b6), before) = (b.overlay("lab")?, crate::lab::snapshot::of(a.ns())?);
    a.ns().reaches(&b4, SOON)?;
    for attack in [
        &["addr", "flush", "dev", "bw-lab"][..],
        &["route", "flush", "table", "4110"],
        &["-6", "route", "flush", "table", "4110"],
        &["rule", "del", "priority", "4110"],
        &["-6", "rule", "del", "priority", "4110"],
        &["link", "set", "bw-lab", "down"],
    ] {
        a.ns()
            .ip(attack)
            .with_context(|| format!("ip {attack:?}"))?;
        a.ns()
            .reaches(&b4, Duration::from_secs(5))
            .with_context(|| format!("after ip {attack:?}"))?;
        a.ns()
            .reaches(&b6, Duration::from_secs(5))
            .with_context(|| format!("after ip {attack:?}"))?;
    }
    // The packets pass before the last of what was deleted is there again.
    until("the host is as it was", Duration::from_secs(5), || {
        before
            .assert_same(&crate::lab::snapshot::of(a.ns())?, "the repaired host")
            .map(|()| true)
    })
    .map(drop)
}

fn state_directory_socket_and_port_are_exclusive(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    let path = |name: &str| lab.dir().join(name).to_string_lossy().into_owned();
    let own = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    for (what, state, socket, listen) in [
        (
            "state directory",
            own(a.state()),
            path("sock2"),
            "/ip4/127.0.0.1/tcp/4300",
        ),
        (
            "socket",
            path("state2"),
            own(a.socket()),
            "/ip4/127.0.0.1/tcp/4301",
        ),
        (
            "listen port",
            path("state3"),
            path("sock3"),
            "/ip4/0.0.0.0/tcp/4100",
        ),
    ] {
        let words = [
            &binary,
            "daemon",
            "--state-dir",
            &state,
            "--socket",
            &socket,
            "--listen",
            listen,
        ];
        let answer = a.ns().run(&[&["timeout", "10"], &words[..]].concat())?;
        answer
            .assert_error(6, "E-")
            .with_context(|| format!("the same {what}"))?;
    }
    ensure!(
        a.byway(&["status"])?.code == 0,
        "the first daemon is untouched"
    );
    Ok(())
}

fn full_disk_fails_the_command_and_nothing_else(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.node("b")?);
    std::fs::create_dir(a.state())?;
    let state = a.state().to_string_lossy().into_owned();
    sh(
        "mount",
        &["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", &state],
    )?;
    let outcome = (|| -> Result<()> {
        a.start()?;
        let made = a.json(&["create", "lab"])?;
        b.json(&["join", &crate::lab::text(&made, "invite")?])?;
        let (a4, b4) = (v4(&made)?, b.overlay("lab")?.0);
        a.ns().reaches(&b4, SOON)?;
        let filler = a.state().join("filler");
        let fill = a.ns().run(&[
            "dd",
            "if=/dev/zero",
            &format!("of={}", filler.display()),
            "bs=4k",
        ])?;
        ensure!(fill.code != 0, "the disk took everything: {fill}");
        let long = "x".repeat(200);
        let (mut stored, mut refused) = (0, None);
        while refused.is_none() && stored < 600 {
            let answer = a.byway(&["dns", "add", "lab", &format!("n{stored}"), "--txt", &long])?;
            if answer.code == 0 {
                stored += 1
            } else {
                refused = Some(answer)
            }
        }
        let refused = refused.context("600 records fit on a full disk")?;
        refused.assert_error(1, "E-")?;
        a.ns()
            .reaches(&b4, NOW)
            .and_then(|_| b.ns().reaches(&a4, NOW))
            .context("packets pass on a full disk")?;
        let count = |v: &serde_json::Value| v.to_string().matches(&long).count();
        ensure!(
            count(&a.json(&["dns", "ls", "lab"])?) == stored,
            "what failed is not there, what succeeded is"
        );
        std::fs::remove_file(&filler)?;
        until("with room again the command works", SOON, || {
            Ok(a.byway(&["dns", "add", "lab", "after", "--txt", "room"])?
                .code
                == 0)
        })?;
        a.kill9()?;
        a.start()?;
        ensure!(
            count(&a.json(&["dns", "ls", "lab"])?) == stored,
            "the state is whole after a restart"
        );
        b.ns().reaches(&a4, SOON)?;
        a.terminate()
    })();
    a.end();
    sh("umount", &[&state])?;
    outcome
}

fn missing_key_beside_state_is_no_new_identity(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    a.terminate()?;
    let mode = |p: &std::path::Path| {
        std::fs::metadata(p)
            .map(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o777)
    };
    ensure!(
        mode(&a.state())? == 0o700,
        "the state directory is its owner's alone"
    );
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(a.state())?.flatten() {
        ensure!(
            mode(&entry.path())? & 0o077 == 0,
            "{} is open to others",
            entry.path().display()
        );
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("key") || name.contains("identity") {
            keys.push(entry.path());
        }
    }
    keys.retain(|k| k.ends_with("identity.key"));
    ensure!(
        keys.len() == 1,
        "one identity in the state directory: {keys:?}"
    );
    let saved = lab.dir().join("saved-key");
    std::fs::rename(&keys[0], &saved)?;
    a.start_under(&[])?;
    let code = a.wait_ended()?;
    ensure!(
        code != 0 && a.log_tail(5).contains("(E-"),
        "a missing key is an error: {code} {}",
        a.log_tail(5)
    );
    std::fs::rename(&saved, &keys[0])?;
    a.start()
}

fn damaged_file_is_refused_with_its_remedy(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    a.terminate()?;
    let largest = std::fs::read_dir(a.state())?
        .flatten()
        .filter(|e| e.path().is_file())
        .max_by_key(|e| e.metadata().map_or(0, |m| m.len()))
        .context("a state file")?
        .path();
    let good = std::fs::read(&largest)?;
    std::fs::write(&largest, vec![0x5a; good.len()])?;
    a.start_under(&[])?;
    let code = a.wait_ended()?;
    let log = a.log_tail(10);
    let file = largest
        .file_name()
        .context("a name")?
        .to_string_lossy()
        .into_owned();
    ensure!(
        code != 0 && log.contains("(E-") && log.contains(&file),
        "the damaged file is named: {code} {log}"
    );
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(
        std::fs::read(&largest)? == vec![0x5a; good.len()],
        "it is left for a person to look at"
    );
    std::fs::write(&largest, good)?;
    a.start()?;
    a.overlay("lab").map(drop)
}
