//! What one source may hold, and what a workload may heap up: nobody else pays for it.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, netns::Netns, text, until};

pub const CASES: &[Case] = &[
    fast!(half_open_connections_of_one_network_keep_nobody_out),
    fast!(a_workload_cannot_make_the_daemon_read_its_namespace),
    fast!(what_is_no_namespace_is_neither_opened_nor_told_of),
];

/// A member is back so soon after its start, whatever others do (F06).
const BACK: Duration = Duration::from_secs(3);

/// Silent connections held from many addresses; ends when dropped.
struct Flood(Child);

impl Flood {
    fn start(from: &Netns, prefix: &str, addresses: u32, target: &str) -> Result<Flood> {
        let script = format!("{}/tests/lab/sock.py", env!("CARGO_MANIFEST_DIR"));
        let words = [
            "python3",
            &script,
            "hold",
            prefix,
            &addresses.to_string(),
            target,
            "4100",
        ];
        let child = from
            .command(&words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a flood")?;
        Ok(Flood(child))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A value of `/proc/PID/status` of a host's daemon in kB.
fn memory(host: &Host, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid()?))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field))
        .with_context(|| field.to_owned())?;
    Ok(line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()?)
}

fn half_open_connections_of_one_network_keep_nobody_out(lab: &Lab) -> Result<()> {
    let (a, b, c, x) = (
        lab.host("a")?,
        lab.host("b")?,
        lab.host("c")?,
        lab.host("x")?,
    );
    // As across the Internet: nobody is found by multicast, and who is behind a NAT has to dial.
    for host in [&a, &b, &c] {
        host.set_env("BYWAY_TRANSPORT_LAN_DISCOVERY", "false");
    }
    for host in [&b, &c] {
        host.set_env("BYWAY_TRANSPORT_LISTEN", "none");
    }
    a.start()?;
    b.start()?;
    c.start()?;
    a.json(&["create", "lab"])?;
    let invite = || text(&a.json(&["invite", "create", "lab"])?, "invite");
    b.json(&["join", &invite()?])?;
    let to_a = a.overlay("lab")?.0;
    b.ns().reaches(&to_a, SOON)?;
    // One /64: that of a, b and c too, so that only what is kept for members and the other family is left.
    for n in 1..=60 {
        x.ns().ip(&[
            "addr",
            "add",
            &format!("fd99::bad:{n:x}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
    }
    x.rebase()?;
    let _flood = Flood::start(x.ns(), "fd99::bad:", 60, a.under6())?;
    // What waits in the kernel to be taken belongs to nobody yet: a flood keeps that queue full, whoever looks.
    let held = || -> Result<usize> {
        let sockets = a
            .ns()
            .ok(&["ss", "-Htnp", "state", "established", "( sport = :4100 )"])?;
        Ok(sockets
            .lines()
            .filter(|l| l.contains("bad:") && l.contains("users:"))
            .count())
    };
    until("the flood holds its places", SOON, || Ok(held()? >= 8))?;
    for round in 1..=3 {
        b.terminate()?;
        b.start()?;
        let back = b
            .ns()
            .reaches(&to_a, BACK)
            .with_context(|| format!("round {round}"))?;
        let held = held()?;
        println!("  round {round}: back after {back:?}, {held} held");
        ensure!(held <= 16, "one network holds {held} places");
    }
    let start = Instant::now();
    c.json(&["join", &invite()?])?;
    ensure!(
        start.elapsed() < BACK,
        "the join took {:?}",
        start.elapsed()
    );
    let held = held()?;
    ensure!(held <= 16, "one network holds {held} places");
    Ok(())
}

fn a_workload_cannot_make_the_daemon_read_its_namespace(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let [a] = &hosts[..] else {
        unreachable!("one host was asked for")
    };
    let (evil, good) = (lab.workload("evil")?, lab.workload("good")?);
    a.attach(&evil, "lab", "evil")?;
    a.attach(&good, "lab", "good")?;
    let before = memory(a, "VmHWM")?;
    let batch = lab.dir().join("batch");
    let lines = (0..200_000u32).map(|n| {
        let [_, b, c, d] = n.to_be_bytes();
        format!("route add unreachable 100.{}.{c}.{d}/32 table 7\n", 64 + b)
    });
    std::fs::write(&batch, lines.collect::<String>())?;
    evil.ip(&["-batch", &batch.to_string_lossy()])?;
    // Long enough for a slow pass or two.
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(12) {
        let began = Instant::now();
        a.json(&["map", "add", "lab", "tcp", "127.0.0.1:9000", "good:80"])?;
        longest = longest.max(began.elapsed());
        ensure!(longest < Duration::from_secs(1), "map add took {longest:?}");
        a.json(&["map", "rm", "lab", "tcp", "127.0.0.1:9000"])?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let grown = memory(a, "VmHWM")?.saturating_sub(before);
    println!("  map add took {longest:?} at most, memory grew by {grown} kB");
    ensure!(grown < 16_000, "the routes of a workload cost {grown} kB");
    evil.ip(&["route", "flush", "table", "7"]).map(drop)
}

fn what_is_no_namespace_is_neither_opened_nor_told_of(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let [a] = &hosts[..] else {
        unreachable!("one host was asked for")
    };
    let fifo = lab.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let threads = memory(a, "Threads")?;
    let attach = |path: &str| a.byway(&["attach", "netns", path, "--subnet", "lab"]);
    for path in [
        &*fifo.to_string_lossy(),
        "/no/such/file",
        "/etc/shadow",
        "/dev/null",
        "/proc/1/ns/mnt",
    ] {
        let start = Instant::now();
        let told = attach(path)?;
        told.assert_error(5, "E-NO-NETNS")?;
        let message = told.err.replace(path, "PATH");
        ensure!(
            message.contains("there is no network namespace PATH"),
            "{message}"
        );
        ensure!(
            start.elapsed() < Duration::from_secs(1),
            "{path} took {:?}",
            start.elapsed()
        );
    }
    until("no thread waits", SOON, || {
        Ok(memory(a, "Threads")? <= threads + 2)
    })
    .map(drop)
}
