//! Programs that `byway run` gives an address of their own, as root and as a user without any right.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::runner::{Case, Skip};
use crate::lab::split::Split;
use crate::lab::{Host, Lab, SOON, snapshot, until, v4};
use crate::{ci, fast, long};

pub const CASES: &[Case] = &[
    fast!(a_program_has_an_address_and_names_of_its_own),
    fast!(what_cannot_be_run_is_said_and_leaves_nothing),
    long!(a_program_that_is_detached_runs_on_without_its_link),
    ci!(a_program_has_the_terminal_of_who_runs_it, "bash"),
    ci!(whoever_is_killed_leaves_no_program_and_no_workload),
    ci!(
        a_user_without_rights_runs_a_program_and_attaches_no_namespace_of_others,
        "setpriv",
        "systemd-socket-activate",
        "unshare"
    ),
];

/// How soon the daemon has noticed that a namespace is gone.
const NOTICED: Duration = Duration::from_secs(5);

fn none_attached(host: &Host) -> Result<bool> {
    let listed = host.json(&["workload", "ls"])?;
    Ok(listed["workloads"].as_array().is_some_and(Vec::is_empty))
}

fn a_program_has_an_address_and_names_of_its_own(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let db = lab.workload("db")?;
    let db4 = v4(&b.attach(&db, "lab", "db")?)?;
    let _server = db.serve("tcp", "0.0.0.0", 80)?;
    let before = snapshot::of(a.ns())?;
    let script = "ip -o -4 addr show byway0; ip -o link show lo; cat /etc/resolv.conf; id -u
        for n in 1 2 3 4 5 6 7 8 9 10; do ping -c1 -W1 db >/dev/null && ping -c1 -W1 db.lab.internal >/dev/null && echo named && break; done
        grep Cap /proc/self/status; echo told >&2; exit 7";
    let begun = Instant::now();
    let ran = a.byway(&[
        "run", "--subnet", "lab", "--name", "web", "--", "sh", "-c", script,
    ])?;
    println!("  begun and ended within {:?}", begun.elapsed());
    ensure!(ran.code == 7, "the program's own code: {ran}");
    ensure!(ran.err == "told\n", "nothing of ours: {ran}");
    let lines: Vec<&str> = ran.out.lines().collect();
    ensure!(
        lines[0].contains("byway0") && lines[0].contains("inet "),
        "{ran}"
    );
    ensure!(lines[1].contains("LOOPBACK,UP"), "{ran}");
    let own = format!("nameserver {}", a.overlay("lab")?.0);
    ensure!(
        ran.out.contains("search lab.internal") && ran.out.contains(&own),
        "{ran}"
    );
    ensure!(ran.out.contains("\n0\nnamed\n"), "names are found: {ran}");
    ensure!(none_attached(a)?, "the workload ended with its program");
    before.assert_same(&snapshot::of(a.ns())?, "the host after it")?;
    // It is a workload as any other while it runs: by its name, and with maps to it.
    let script = "exec sleep 30";
    let mut web = start(a, &["run", "--name", "web", "sh", "-c", script])?;
    let at = shown(a, "web")?;
    ensure!(at["kind"] == "run" && at["state"] == "ok", "{at}");
    // `exec` has another program in its place, with the same number.
    let target = format!("sh (pid {})", program_of(&at)?);
    ensure!(at["target"] == target.as_str(), "{at}");
    db.reaches("web.lab.internal", SOON)?;
    // The daemon may come and go meanwhile.
    a.terminate()?;
    a.start()?;
    ensure!(v4(&shown(a, "web")?)? == v4(&at)?, "the same address");
    db.reaches(&v4(&at)?, SOON)?;
    ensure!(web.try_wait()?.is_none(), "the program noticed nothing");
    term(&web)?;
    ensure!(ended(&mut web)?.code() == Some(128 + 15), "passed on");
    ensure!(none_attached(a)?);
    // The address is kept for the name, and may be asked for.
    let line = [
        "run",
        "--ip",
        &v4(&at)?,
        "--mac",
        "02:00:00:00:00:17",
        "--",
        "ip",
        "addr",
        "show",
        "byway0",
    ];
    let again = a.byway(&line)?;
    for part in [&v4(&at)?, "02:00:00:00:00:17"] {
        ensure!(again.out.contains(part), "{part} of {again}");
    }
    // Not a byte goes lost or is added on the streams.
    let text = "0123456789\n".repeat(2000);
    let file = a.dir().join("text");
    std::fs::write(&file, &text)?;
    let binary = crate::lab::binary();
    let through = a
        .ns()
        .command(&[&binary.to_string_lossy(), "run", "--subnet", "lab", "cat"])
        .env("BYWAY_SOCKET", a.socket())
        .stdin(std::fs::File::open(&file)?)
        .output()?;
    ensure!(through.stdout == text.as_bytes() && through.stderr.is_empty());
    db.tcp(&db4, 80, 100).map(drop)
}

fn shown(host: &Host, name: &str) -> Result<serde_json::Value> {
    until(&format!("{name} is attached"), SOON, || {
        Ok(host.byway(&["workload", "show", name])?.code == 0)
    })?;
    host.json(&["workload", "show", name])
}

/// The process number in a workload's ID.
fn program_of(shown: &serde_json::Value) -> Result<i32> {
    let id = shown["container"].as_str().context("an ID")?;
    Ok(id.split('-').next().unwrap_or_default().parse()?)
}

fn term(child: &Child) -> Result<()> {
    signal(child, Signal::SIGTERM)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, signal).context("send a signal")
}

/// `byway ARGS` as a process whose number is known: `ip netns exec` becomes it.
fn start(host: &Host, args: &[&str]) -> Result<Child> {
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    // A shell cannot trap what was ignored when it began, and who runs the tests by nohup has the signal ignored.
    let words = [&["env", "--default-signal=HUP", binary.as_str()], args].concat();
    host.ns()
        .command(&words)
        .env("BYWAY_SOCKET", host.socket())
        .stdout(Stdio::piped())
        .spawn()
        .context("start byway run")
}

/// How a child ended, which it has to do soon.
fn ended(child: &mut Child) -> Result<ExitStatus> {
    until("it ends", SOON, || Ok(child.try_wait()?.is_some()))?;
    Ok(child.wait()?)
}

/// Whether a process is gone, or only waits for whoever inherited it to take note.
fn has_ended(pid: i32) -> bool {
    !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn what_cannot_be_run_is_said_and_leaves_nothing(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    let refused = |exit, code: &str, args: &[&str]| {
        let answer = a.fails(exit, code, args)?;
        ensure!(
            answer.out.is_empty(),
            "nothing on standard output: {answer}"
        );
        anyhow::Ok(answer)
    };
    refused(5, "E-NO-SUBNET", &["run", "--", "true"])?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let plain = a.dir().join("plain");
    std::fs::write(&plain, "text")?;
    let plain = plain.to_string_lossy().into_owned();
    refused(127, "E-COMMAND", &["run", "--", "no-such-program"])?;
    refused(127, "E-COMMAND", &["run", "--", "/no/such"])?;
    refused(126, "E-COMMAND", &["run", "--", &plain])?;
    refused(126, "E-COMMAND", &["run", "--", "/etc"])?;
    refused(
        5,
        "E-NO-SUBNET",
        &["run", "--subnet", "other", "--", "true"],
    )?;
    refused(2, "E-USAGE", &["run", "--subnet", "lab"])?;
    refused(2, "E-NAME", &["run", "--name", "a.b", "--", "true"])?;
    refused(
        6,
        "E-",
        &["run", "--ip", &a.overlay("lab")?.0, "--", "true"],
    )?;
    let json = a.byway(&["--json", "run", "--", "no-such-program"])?;
    ensure!(
        json.code == 127
            && json.out.is_empty()
            && json.err.starts_with("{\"error\":{\"code\":\"E-COMMAND\""),
        "{json}"
    );
    until("the host is as before", SOON, || {
        Ok(snapshot::of(a.ns())? == before)
    })?;
    a.ok(&["down", "lab"])?;
    let down = refused(1, "E-SUBNET-DOWN", &["run", "--", "true"])?;
    ensure!(down.err.contains("byway up lab"), "{down}");
    a.ok(&["up", "lab"])?;
    ensure!(none_attached(&a)?);
    a.terminate()?;
    refused(3, "E-DAEMON", &["run", "--subnet", "lab", "--", "true"]).map(drop)
}

fn whoever_is_killed_leaves_no_program_and_no_workload(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let script = "trap 'exit 3' TERM; trap 'exit 4' HUP; echo $$; while :; do sleep 0.1; done";
    let words = ["run", "--name", "web", "--", "bash", "-c", script];
    let begun = || -> Result<(Child, i32)> {
        let mut child = start(&a, &words)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok((child, line.trim().parse()?))
    };
    let nothing = |program: i32| -> Result<()> {
        until("nothing is left", NOTICED, || {
            Ok(has_ended(program) && none_attached(&a)? && snapshot::of(a.ns())? == before)
        })
        .map(|took| println!("  nothing left after {took:?}"))
    };
    for (sent, code) in [(Signal::SIGTERM, 3), (Signal::SIGHUP, 4)] {
        let (mut child, program) = begun()?;
        signal(&child, sent)?;
        ensure!(
            ended(&mut child)?.code() == Some(code),
            "{sent} is passed on"
        );
        nothing(program)?;
    }
    let (mut child, program) = begun()?;
    for sent in [Signal::SIGINT, Signal::SIGQUIT] {
        signal(&child, sent)?;
    }
    kill(Pid::from_raw(program), Signal::SIGKILL)?;
    ensure!(
        ended(&mut child)?.code() == Some(137),
        "how the program ended"
    );
    nothing(program)?;
    let (mut child, program) = begun()?;
    signal(&child, Signal::SIGKILL)?;
    ensure!(ended(&mut child)?.signal() == Some(9));
    nothing(program)?;
    // The daemon is away when the program ends: its start frees what it knew.
    let (mut child, program) = begun()?;
    a.kill9()?;
    signal(&child, Signal::SIGTERM)?;
    ensure!(
        ended(&mut child)?.code() == Some(3),
        "no daemon is needed to end"
    );
    a.start()?;
    // The subnet's own device was made anew: what could be left is the workload's.
    until("nothing is left", NOTICED, || {
        let links = a.ns().ip(&["-o", "link", "show"])?;
        Ok(has_ended(program) && none_attached(&a)? && !links.contains("bwv"))
    })
    .map(drop)
}

fn a_program_that_is_detached_runs_on_without_its_link(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let before = snapshot::of(a.ns())?;
    let script = "ip link show byway0 >/dev/null && echo there
        while ip link show byway0 >/dev/null 2>&1; do sleep 0.05; done; echo gone; read line; exit 9";
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    let words = [&binary, "run", "--name", "web", "--", "bash", "-c", script];
    let mut web = a
        .ns()
        .command(&words)
        .env("BYWAY_SOCKET", a.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(web.stdout.take().context("its output")?);
    let mut heard = |wanted: &str| -> Result<()> {
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim() == wanted, "{wanted}: {line:?}");
        Ok(())
    };
    heard("there")?;
    let pid = program_of(&shown(&a, "web")?)?;
    let told = a.ok(&["detach", "web"])?;
    let runs_on = format!("runs on without that link: bash (pid {pid})");
    ensure!(told.contains(&runs_on), "{told}");
    heard("gone")?;
    ensure!(none_attached(&a)? && web.try_wait()?.is_none());
    before.assert_same(&snapshot::of(a.ns())?, "the host meanwhile")?;
    // The next one may have the name while that one runs on.
    ensure!(a.byway(&["run", "--name", "web", "true"])?.code == 0);
    drop(web.stdin.take());
    ensure!(
        ended(&mut web)?.code() == Some(9),
        "its own code all the same"
    );
    Ok(())
}

/// At a terminal: job control, its size, and what its keys send.
fn a_program_has_the_terminal_of_who_runs_it(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/terminal.py");
    let binary = crate::lab::binary().to_string_lossy().into_owned();
    let output = a
        .ns()
        .command(&["python3", program, &binary])
        .env("BYWAY_SOCKET", a.socket())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}\n{wrong}");
    println!("  {}", said.trim());
    until("nothing is attached any more", SOON, || none_attached(&a)).map(drop)
}

/// A user who may change things by a group of the machine, and has no other right.
const USER: &str = "4000001";
const GROUP: &str = "4000002";

/// Starts a program as that user.
fn by_user(split: &Split, words: &[&str]) -> Result<crate::lab::host::Answer> {
    let ids = ["--reuid", USER, "--regid", USER, "--groups", GROUP];
    let caps = [
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
    ];
    let words = [&["setpriv"], &ids[..], &caps[..], words].concat();
    let mut command = split.host.ns().command(&words);
    command.env("BYWAY_SOCKET", split.host.socket());
    let output = command.current_dir("/").output()?;
    crate::lab::host::Answer::of(&words, &output)
}

fn a_user_without_rights_runs_a_program_and_attaches_no_namespace_of_others(
    lab: &Lab,
) -> Result<()> {
    let split = Split::new(lab, "a")?;
    let a = &split.host;
    let allowed = by_user(&split, &["unshare", "--user", "--net", "--mount", "true"])?;
    if allowed.code != 0 {
        return Err(Skip("users may make no user namespaces here".to_owned()).into());
    }
    split.start_helper_by_its_unit()?;
    let groups = a.dir().join("group");
    let known = std::fs::read_to_string("/etc/group")?;
    std::fs::write(&groups, format!("{known}\nbyway-admin:x:{GROUP}:\n"))?;
    split.start_with(&format!("mount --bind {} /etc/group", groups.display()))?;
    a.json(&["create", "lab"])?;
    std::fs::set_permissions(a.socket(), PermissionsExt::from_mode(0o666))?;
    let db = lab.workload("db")?;
    let db4 = v4(&a.attach(&db, "lab", "db")?)?;
    let before = snapshot::of(a.ns())?;
    let program = split.program.as_str();
    let script = format!(
        "id -u; grep -E 'CapInh|CapPrm|CapEff|CapBnd|CapAmb' /proc/self/status
        for n in 1 2 3 4 5 6 7 8 9 10; do python3 {} tcp {db4} 80 1000 && break; sleep 0.2; done
        getent hosts db >/dev/null && echo named
        python3 -c 'import socket; socket.create_server((\"\", 80)); print(\"low port\")'
        ip addr add 192.0.2.1/32 dev lo 2>/dev/null && echo changed; exit 5",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/sock.py")
    );
    let _server = db.serve("tcp", "0.0.0.0", 80)?;
    let ran = by_user(
        &split,
        &[program, "run", "--name", "web", "sh", "-c", &script],
    )?;
    ensure!(ran.code == 5 && ran.err.is_empty(), "{ran}");
    ensure!(
        ran.out.starts_with(&format!("{USER}\n")),
        "the same user: {ran}"
    );
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        let none = format!("Cap{set}:\t0000000000000000");
        ensure!(ran.out.contains(&none), "no capability: {ran}");
    }
    ensure!(ran.out.contains("peer="), "it reaches others: {ran}");
    ensure!(
        ran.out.contains("named\nlow port\n") && !ran.out.contains("changed"),
        "{ran}"
    );
    // What is another's stays another's, by whatever words it is asked for.
    let foreign = crate::lab::netns::Netns::make(&format!("{}-foreign", db.name()))?;
    let mut held = foreign.command(&["sleep", "60"]).spawn()?;
    let path = format!("/proc/{}/ns/net", held.id());
    for path in [&path, &format!("/run/netns/{}", foreign.name())] {
        let refused = by_user(
            &split,
            &[program, "attach", "netns", path, "--subnet", "lab"],
        )?;
        refused.assert_error(4, "E-PERMISSION")?;
    }
    held.kill()?;
    ended(&mut held)?;
    foreign.delete();
    until("the host is as before", NOTICED, || {
        Ok(snapshot::of(a.ns())? == before)
    })?;
    a.terminate()
}
