//! Figures that are asked of this machine: what a workload has of the way between two hosts, and how soon names are answered
//! beside packets. The marks are those of a release build; `BYWAY_BIN` names one.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::runner::Case;
use crate::lab::{Lab, Netns, SOON, until, v4};
use crate::long;
use crate::surroundings::pair;
use crate::underlay::datagrams;

pub const CASES: &[Case] = &[
    long!(
        containers_have_most_of_the_way_between_their_hosts,
        "iperf3"
    ),
    long!(
        ten_thousand_names_a_second_are_answered_soon_beside_packets,
        "iperf3",
        "taskset"
    ),
];

/// How often each of two ways is measured, one after the other: what else the machine does hits both.
const ROUNDS: usize = 5;
/// Least part of the way between hosts that containers have.
const PART: f64 = 0.85;
/// Questions in a second, and for how many seconds.
const RATE: u32 = 10_000;
const SECONDS: u32 = 5;
/// Workloads that ask them.
const SOURCES: usize = 12;
/// What the TCP stream beside them sends: with less than a core has for packets there is a core for both.
const LOAD: &str = "1G";
/// Within this time 99 of 100 answers come.
const MARK: Duration = Duration::from_millis(5);

/// A server of `iperf3`, until it is dropped.
struct Served(Child);

impl Served {
    fn start(at: &Netns, address: &str) -> Result<Served> {
        let mut command = at.command(&["iperf3", "-s", "-B", address]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let served = Served(child.context("start iperf3")?);
        until("iperf3 listens", SOON, || {
            let listens = at.ok(&["ss", "-Hltn", "sport = 5201"])?;
            Ok(listens.contains(address))
        })?;
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What one TCP stream brings to `address`, in Gbit/s.
fn rate(from: &Netns, address: &str) -> Result<f64> {
    let said = from.ok(&["iperf3", "-c", address, "-t", "2", "-J"])?;
    let said: Value = serde_json::from_str(&said).context("what iperf3 said")?;
    let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate: {}", said["error"]))? / 1e9)
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// Figure of the issue: from container to container there is at least 0.85 of what there is from host to host.
fn containers_have_most_of_the_way_between_their_hosts(lab: &Lab) -> Result<()> {
    let (a, b, (web, _), (db, at_db)) = pair(lab)?;
    datagrams(&a, &b, SOON)?;
    b.ok(&["subnet", "host", "lab", "tcp/5201"])?;
    let (host, container) = (b.overlay("lab")?.0, v4(&at_db)?);
    let _served = (
        Served::start(b.ns(), &host)?,
        Served::start(&db, &container)?,
    );
    let (mut hosts, mut containers, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (between, within) = (rate(a.ns(), &host)?, rate(&web, &container)?);
        hosts.push(between);
        containers.push(within);
        parts.push(within / between);
    }
    let part = median(&mut parts);
    println!(
        "  Gbit/s, medians of {ROUNDS}: host to host {:.2}, container to container {:.2}; the part in one round {part:.2} \
         ({:.2} to {:.2})",
        median(&mut hosts),
        median(&mut containers),
        parts.first().copied().unwrap_or_default(),
        parts.last().copied().unwrap_or_default(),
    );
    ensure!(part >= PART, "containers have {part:.2} of it");
    Ok(())
}

/// A question for the address of `web.lab.internal`, without its number.
fn question() -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["web", "lab", "internal"] {
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// How the answers came: how many questions had none or another than the address, and after what time the others had theirs.
struct Answers {
    asked: u32,
    late: Vec<Duration>,
}

impl Answers {
    /// After what time this part of all questions was answered; none where fewer were.
    fn after(&self, part: f64) -> Option<Duration> {
        let nth = (f64::from(self.asked) * part).ceil() as usize;
        self.late.get(nth.saturating_sub(1)).copied()
    }
}

/// Asks at a fixed rate by each of the sockets in turn, whatever becomes of the answers. Time counts from the moment at which
/// a question was due.
fn ask(sockets: &[UdpSocket], rate: u32, seconds: u32) -> Result<Answers> {
    let (asked, apart) = (rate * seconds, Duration::from_secs(1) / rate);
    let mut hearing = Vec::new();
    for socket in sockets {
        let hears = socket.try_clone()?;
        hears.set_read_timeout(Some(Duration::from_secs(1)))?;
        hearing.push(std::thread::spawn(move || heard(&hears)));
    }
    let (mut message, begun) = (question(), Instant::now());
    for (n, socket) in (0..asked).zip(sockets.iter().cycle()) {
        let due = begun + apart * n;
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait);
        }
        message[..2].copy_from_slice(&(n as u16).to_be_bytes());
        // A full queue is a question without an answer.
        let _ = socket.send(&message);
    }
    let mut came = Vec::new();
    for thread in hearing {
        came.extend(thread.join().map_err(|_| anyhow::anyhow!("panicked"))?);
    }
    came.sort_by_key(|(_, at)| *at);
    // A number comes again after 65,536 questions, which is long after its answer.
    let late = came.into_iter().map(|(id, at)| {
        let mut n = u32::from(id);
        while at > begun + apart * (n + 32_768) {
            n += 65_536;
        }
        at.saturating_duration_since(begun + apart * n)
    });
    let mut late: Vec<Duration> = late.collect();
    late.sort();
    Ok(Answers { asked, late })
}

/// The numbers of the answers with one address that come, each with its moment, until there is silence for a second.
fn heard(socket: &UdpSocket) -> Vec<(u16, Instant)> {
    let (mut came, mut buffer) = (Vec::new(), [0; 512]);
    while let Ok(n) = socket.recv(&mut buffer) {
        let now = Instant::now();
        if let [first, second, _, code, _, _, 0, 1, ..] = buffer[..n]
            && code & 0xf == 0
        {
            came.push((u16::from_be_bytes([first, second]), now));
        }
    }
    came
}

/// Keeps a program and all its threads on one core.
fn pin(pid: i32, core: &str) -> Result<()> {
    let mut taskset = Command::new("taskset");
    let said = taskset
        .args(["-a", "-p", "-c", core, &pid.to_string()])
        .output()?;
    ensure!(said.status.success(), "{said:?}");
    Ok(())
}

/// Figure of the issue: 10,000 questions in a second, 99 of 100 answered within 5 ms, by a daemon that has one core for them
/// and for the packets of a TCP stream. The programs of that stream, the other daemon and who asks have the other core.
fn ten_thousand_names_a_second_are_answered_soon_beside_packets(lab: &Lab) -> Result<()> {
    let (a, b, (web, at_web), (db, at_db)) = pair(lab)?;
    datagrams(&a, &b, SOON)?;
    let (server, container) = (a.overlay("lab")?.0, v4(&at_db)?);
    web.resolves(&server, &["web.lab.internal", "A"], &v4(&at_web)?, SOON)?;
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "two cores are needed");
    pin(a.pid()?, "0")?;
    pin(b.pid()?, "1")?;
    let here = i32::try_from(std::process::id())?;
    let served = Served::start(&db, &container)?;
    pin(i32::try_from(served.0.id())?, "1")?;
    // One source has 1000 questions a second.
    let mut sockets = Vec::new();
    for n in 0..SOURCES {
        let source = lab.workload(&format!("q{n}"))?;
        a.attach(&source, "lab", &format!("q{n}"))?;
        let socket = source.udp_socket("0.0.0.0:0")?;
        socket.connect((server.as_str(), 53))?;
        sockets.push(socket);
    }
    pin(here, "1")?;
    let measured = (|| {
        let mut measured = vec![("alone", ask(&sockets, RATE, SECONDS)?, 0.0)];
        for (what, limit) in [("beside packets", LOAD), ("beside all there can be", "0")] {
            let load = load(&web, &container, limit)?;
            std::thread::sleep(Duration::from_secs(1));
            let answers = ask(&sockets, RATE, SECONDS)?;
            let said: Value = serde_json::from_slice(&load.wait_with_output()?.stdout)?;
            let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
            measured.push((what, answers, bits.context("no rate")? / 1e9));
        }
        Ok::<_, anyhow::Error>(measured)
    })();
    pin(here, &format!("0-{}", cores - 1))?;
    let mut p99 = None;
    for (what, answers, rate) in &measured? {
        println!(
            "  {} questions {what}, {rate:.2} Gbit/s: {} answered, p50 {:?}, p99 {:?}",
            answers.asked,
            answers.late.len(),
            answers.after(0.5),
            answers.after(0.99),
        );
        if *rate > 0.0 && p99.is_none() {
            p99 = Some(answers.after(0.99).context("answers are missing")?);
        }
    }
    let p99 = p99.context("nothing was measured beside packets")?;
    ensure!(p99 <= MARK, "99 of 100 are answered within {p99:?}");
    Ok(())
}

/// A TCP stream of at most `limit` from `from`, for as long as the questions take.
fn load(from: &Netns, to: &str, limit: &str) -> Result<Child> {
    let time = (SECONDS + 3).to_string();
    let words = [
        "taskset", "-c", "1", "iperf3", "-c", to, "-t", &time, "-b", limit, "-J",
    ];
    let mut command = from.command(&words);
    let load = command.stdout(Stdio::piped()).stderr(Stdio::null());
    load.spawn().context("start iperf3")
}
