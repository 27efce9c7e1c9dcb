//! A daemon that dies at a system call: every write of every command that changes something, one after the other.
//!
//! `strace` stops the daemon at the n-th call of one kind a thread makes, counted from the command on, and kills it
//! there. After the next start the state is the one before the command or the one after it, and the kernel holds what
//! belongs to that state and nothing else.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::runner::{Case, Skip};
use crate::lab::{Host, Lab, Netns, SOON, text, until};
use crate::{fast, long};

pub const CASES: &[Case] = &[
    fast!(killed_at_some_writes_is_old_or_new, "strace"),
    long!(killed_at_every_write_is_old_or_new, "strace"),
];

/// What a commit to the state file is made of.
const DISK: [Point; 8] = [
    ("pwrite64", 1),
    ("pwrite64", 2),
    ("pwrite64", 3),
    ("pwrite64", 4),
    ("pwrite64", 5),
    ("pwrite64", 6),
    ("fdatasync", 1),
    ("fdatasync", 2),
];
/// The second and third commit of a command that makes several.
const MORE_DISK: [Point; 9] = [
    ("pwrite64", 7),
    ("pwrite64", 9),
    ("pwrite64", 12),
    ("pwrite64", 13),
    ("pwrite64", 18),
    ("fdatasync", 3),
    ("fdatasync", 4),
    ("fdatasync", 5),
    ("fdatasync", 6),
];
/// How the kernel is told: netlink, TUN, rules, namespaces.
const KERNEL: [Point; 7] = [
    ("sendto", 1),
    ("sendto", 3),
    ("sendto", 6),
    ("sendto", 10),
    ("sendto", 15),
    ("ioctl", 1),
    ("ioctl", 3),
];

/// A kind of system call, and at which of a thread's calls the daemon dies.
type Point = (&'static str, u32);

/// `a` founded `lab` and has a workload `web`; `b` is another machine, `spare` a namespace to attach.
struct Scene {
    a: Rc<Host>,
    b: Rc<Host>,
    spare: Netns,
    id: String,
}

/// A command under test.
struct Verb {
    name: &'static str,
    points: &'static [&'static [Point]],
    /// Whose daemon dies.
    victim: fn(&Scene) -> &Host,
    /// Makes the command possible; what to run.
    prepare: fn(&Scene, usize) -> Result<Vec<String>>,
    /// Whether the state is the one after the command; an error where it is neither.
    done: fn(&Scene, usize) -> Result<bool>,
    /// From the state after the command to the one before it.
    undo: fn(&Scene, usize) -> Result<()>,
}

const VERBS: [Verb; 8] = [
    Verb {
        name: "create",
        points: &[&DISK, &KERNEL],
        victim: |s| &s.a,
        prepare: |_, n| Ok(words(&["create", &format!("r{n}")])),
        done: |s, n| {
            let (name, link) = (format!("r{n}"), format!("bw-r{n}"));
            if !subnets(&s.a)?.contains(&name) {
                return until("its interface is gone", SOON, || {
                    Ok(!links(s.a.ns())?.contains(&link))
                })
                .map(|_| false);
            }
            ensure!(s.a.members(&name)? == ["a"], "a subnet without its founder");
            s.a.overlay(&name)?;
            until("its interface is there", SOON, || {
                Ok(links(s.a.ns())?.contains(&link))
            })
            .map(|_| true)
        },
        undo: |s, n| s.a.ok(&["destroy", &format!("r{n}")]).map(drop),
    },
    Verb {
        name: "lease add",
        points: &[&DISK],
        victim: |s| &s.a,
        prepare: |_, n| Ok(words(&["lease", "add", "lab", &prefix(n)])),
        done: |s, n| {
            Ok(s.a
                .json(&["lease", "ls", "lab"])?
                .to_string()
                .contains(&prefix(n)))
        },
        undo: |s, n| s.a.ok(&["lease", "rm", "lab", &prefix(n)]).map(drop),
    },
    Verb {
        name: "map add",
        points: &[&DISK, &KERNEL],
        victim: |s| &s.a,
        prepare: |_, n| Ok(words(&["map", "add", "lab", "tcp", &listen(n), "web:80"])),
        done: |s, n| {
            let mapped =
                s.a.json(&["map", "ls", "lab"])?
                    .to_string()
                    .contains(&listen(n));
            let port = (8000 + n).to_string();
            until("the rules are those of the state", SOON, || {
                Ok(s.a.ns().ruleset()?.contains(&port) == mapped)
            })?;
            Ok(mapped)
        },
        undo: |s, n| s.a.ok(&["map", "rm", "lab", "tcp", &listen(n)]).map(drop),
    },
    Verb {
        name: "import compose",
        points: &[&DISK],
        victim: |s| &s.a,
        prepare: |s, n| {
            let file = compose(s);
            let (port, lease) = (8000 + n, prefix(n));
            let address = lease.trim_end_matches("/32");
            let text = format!(
                "services:\n  x:\n    ports: [\"{port}:80\"]\n    networks: {{lab: {{ipv4_address: {address}}}}}\n  web:\n    ports: [\"1{port}:80\"]\n    networks: [lab]\nnetworks: {{lab: {{driver: byway}}}}\n"
            );
            std::fs::write(&file, text)?;
            Ok(words(&["import", "compose", &file]))
        },
        done: |s, n| {
            let maps = s.a.json(&["map", "ls", "lab"])?.to_string();
            let mapped = maps.contains(&listen(n));
            let leases = s.a.json(&["lease", "ls", "lab"])?.to_string();
            ensure!(
                maps.contains(&format!(":1{}", 8000 + n)) == mapped
                    && leases.contains(&prefix(n)) == mapped,
                "a part of the file: {maps} {leases}"
            );
            Ok(mapped)
        },
        undo: |s, _| {
            s.a.ok(&["import", "compose", &compose(s), "--rollback"])
                .map(drop)
        },
    },
    Verb {
        name: "attach",
        points: &[&DISK, &KERNEL],
        victim: |s| &s.a,
        prepare: |s, n| {
            Ok(words(&[
                "attach",
                "netns",
                s.spare.name(),
                "--subnet",
                "lab",
                "--name",
                &format!("w{n}"),
            ]))
        },
        done: |s, n| {
            let attached =
                s.a.json(&["workload", "ls"])?
                    .to_string()
                    .contains(&format!("\"w{n}\""));
            until("the workload's links are those of the state", SOON, || {
                Ok(links(&s.spare)?.iter().any(|l| l == "byway0") == attached)
            })?;
            Ok(attached)
        },
        undo: |s, n| s.a.ok(&["detach", &format!("w{n}")]).map(drop),
    },
    Verb {
        name: "approve",
        points: &[&DISK],
        victim: |s| &s.a,
        prepare: |s, _| {
            let b = ask(s)?;
            Ok(words(&["member", "approve", "lab", &b]))
        },
        done: |s, _| agreed(s),
        undo: |s, _| {
            s.a.ok(&["member", "remove", "lab", "b"])?;
            gone(s)
        },
    },
    Verb {
        name: "remove",
        points: &[&DISK],
        victim: |s| &s.a,
        prepare: |s, _| {
            if s.a.members("lab")? == ["a"] {
                let b = ask(s)?;
                s.a.ok(&["member", "approve", "lab", &b])?;
            }
            until("b is in", SOON, || Ok(s.b.members("lab")? == ["a", "b"]))?;
            Ok(words(&["member", "remove", "lab", "b"]))
        },
        done: |s, _| Ok(s.a.members("lab")? == ["a"]),
        undo: |s, _| gone(s),
    },
    Verb {
        name: "join",
        points: &[&DISK, &MORE_DISK, &KERNEL],
        victim: |s| &s.b,
        prepare: |s, _| {
            if s.a.members("lab")? != ["a"] {
                s.b.ok(&["leave", "lab"])?;
                until("a heard of it", SOON, || Ok(s.a.members("lab")? == ["a"]))?;
            }
            // Who was removed comes in by an approval only: it is another machine that joins here.
            let invite = text(&s.a.json(&["invite", "create", "lab"])?, "invite")?;
            Ok(words(&["join", &invite]))
        },
        done: |s, _| agreed(s),
        undo: |s, _| {
            s.b.ok(&["leave", "lab"])?;
            until("a heard of it", SOON, || Ok(s.a.members("lab")? == ["a"])).map(drop)
        },
    },
];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// The file that is imported.
fn compose(s: &Scene) -> String {
    s.a.dir().join("compose.yml").display().to_string()
}

fn prefix(n: usize) -> String {
    format!("10.77.200.{}/32", n + 1)
}

fn listen(n: usize) -> String {
    format!("0.0.0.0:{}", 8000 + n)
}

/// Names of every link of a namespace.
fn links(ns: &Netns) -> Result<Vec<String>> {
    let text = ns.ip(&["-o", "link", "show"])?;
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    Ok(text.lines().filter_map(name).collect())
}

/// Names of the subnets a host is in.
fn subnets(host: &Host) -> Result<Vec<String>> {
    let list = host.json(&["status"])?;
    let all = list["subnets"].as_array().context("no `subnets`")?;
    Ok(all
        .iter()
        .filter(|s| s["state"] != "pending")
        .filter_map(|s| s["name"].as_str().map(str::to_owned))
        .collect())
}

/// `b` asks for admission by the bare ID, anew if need be; its peer ID once `a` has the request.
fn ask(s: &Scene) -> Result<String> {
    let peer = format!("/ip4/{}/tcp/4100", s.a.under4());
    let mut who = None;
    until("the request is there", SOON, || {
        let requests = s.a.json(&["member", "requests", "lab"])?;
        who = requests["requests"]
            .as_array()
            .and_then(|r| r.first())
            .and_then(|r| r["peer_id"].as_str())
            .map(str::to_owned);
        if who.is_none() {
            s.b.byway(&["join", &s.id, "--peer", &peer, "--no-wait"])?;
        }
        Ok(who.is_some())
    })?;
    who.context("no request")
}

/// After a removal: `b` has heard of it, and nothing of the subnet is left there.
fn gone(s: &Scene) -> Result<()> {
    until("b knows that it is out", SOON, || {
        Ok(!s
            .b
            .members("lab")
            .is_ok_and(|m| m.contains(&"b".to_owned())))
    })?;
    s.b.byway(&["leave", "lab"]).map(drop)
}

/// Whether `b` is in: both say the same in time. To who only asks, a killed peer is there for as long as QUIC waits: 10 s.
fn agreed(s: &Scene) -> Result<bool> {
    let (mut inside, mut refused) = (false, false);
    until(
        "a and b agree on whether b is in",
        SOON + Duration::from_secs(10),
        || {
            // In this order: a join that ends in between is seen by the second question.
            let status = s.b.json(&["status"])?.to_string();
            let under_way = status.contains("\"pending\"");
            refused = status.contains("E-INVITE-RATE");
            if refused {
                return Ok(true);
            }
            let at_b =
                subnets(&s.b)?.contains(&"lab".to_owned()) && s.b.members("lab")? == ["a", "b"];
            let at_a = s.a.members("lab")? == ["a", "b"];
            inside = at_a;
            // A join by invite that goes on by itself ends with both of them saying yes.
            Ok(at_a == at_b && (at_a || !under_way || waits(s)?))
        },
    )?;
    if refused {
        // Who dies over and over while it joins has used up its five attempts of a minute: it asks again after that.
        s.b.ok(&["leave", "lab"])?;
        std::thread::sleep(Duration::from_secs(60));
        s.b.ok(&[
            "join",
            &text(&s.a.json(&["invite", "create", "lab"])?, "invite")?,
        ])?;
        return agreed(s);
    }
    Ok(inside)
}

/// Whether `b` waits for a person: by an invite nobody does.
fn waits(s: &Scene) -> Result<bool> {
    Ok(s.a.json(&["member", "requests", "lab"])?["requests"]
        .as_array()
        .is_some_and(|r| !r.is_empty()))
}

/// The kernel has one TUN for each subnet and one veth for each workload, and no more.
fn belongs(host: &Host) -> Result<()> {
    until("every link belongs to something", SOON, || {
        let mut want: Vec<String> = subnets(host)?
            .iter()
            .map(|name| format!("bw-{name}"))
            .collect();
        want.sort();
        let listed = host.json(&["workload", "ls"])?;
        let workloads = listed["workloads"]
            .as_array()
            .context("no `workloads`")?
            .len();
        let (mut veths, mut tuns): (Vec<_>, Vec<_>) = links(host.ns())?
            .into_iter()
            .filter(|l| l.starts_with("bw"))
            .partition(|l| l.starts_with("bwv"));
        tuns.sort();
        veths.dedup();
        ensure!(
            tuns == want && veths.len() == workloads,
            "{tuns:?} {veths:?} for {want:?} and {listed}"
        );
        Ok(true)
    })
    .map(drop)
}

/// What a host believes, without what moves by itself.
fn facts(host: &Host) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for name in subnets(host)? {
        for list in ["member", "lease", "map", "dns"] {
            let mut value = host.json(&[list, "ls", &name])?;
            still(&mut value);
            all.push(format!("{name} {list} {value}"));
        }
    }
    let mut value = host.json(&["workload", "ls"])?;
    still(&mut value);
    all.push(value.to_string());
    Ok(all)
}

fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            [
                "online",
                "last_seen",
                "path",
                "since",
                "expires",
                "state",
                "rtt_ms",
                "endpoints",
                "bytes",
                "packets",
            ]
            .iter()
            .for_each(|moving| drop(fields.remove(*moving)));
            fields.values_mut().for_each(still);
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        _ => {}
    }
}

/// `strace` on a running daemon; lets go of it when dropped.
struct Trap(Child);

impl Trap {
    fn set(pid: i32, (call, number): Point) -> Result<Trap> {
        let child = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={call}"),
            ])
            .args([
                "-e",
                &format!("inject={call}:signal=SIGKILL:when={number}"),
                "-p",
                &pid.to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace")?;
        let mut trap = Trap(child);
        let attached = |task: PathBuf| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            status.lines().any(|l| {
                l.strip_prefix("TracerPid:")
                    .is_some_and(|v| v.trim() != "0")
            })
        };
        until("strace has every thread", SOON, || {
            if trap.0.try_wait()?.is_some() {
                bail!(Skip("strace may not trace here".to_owned()));
            }
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
            Ok(tasks.into_iter().all(|t| attached(t.path())))
        })?;
        Ok(trap)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        // A signal that comes just before strace waits is not seen; its death lets go of the daemon as well.
        let left = until("strace ends", Duration::from_millis(300), || {
            Ok(self.0.try_wait()?.is_some())
        });
        if left.is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn scene(lab: &Lab) -> Result<Scene> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(
        &a.json(&["create", "lab", "--cidr4", "10.77.0.0/16"])?,
        "id",
    )?;
    a.attach(&lab.workload("web")?, "lab", "web")?;
    Ok(Scene {
        a,
        b,
        spare: lab.workload("spare")?,
        id,
    })
}

/// One kill. Tells whether the daemon died at the point (a command may make fewer such calls).
fn one(scene: &Scene, verb: &Verb, point: Point, n: usize) -> Result<bool> {
    let victim = (verb.victim)(scene);
    let command = (verb.prepare)(scene, n)?;
    let before = facts(victim)?;
    let trap = Trap::set(victim.pid()?, point)?;
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    let answer = victim.spawn(&arguments)?.wait()?;
    // What follows an answer (the others are told, the kernel is tidied) may still reach the point.
    let died = until("it died", Duration::from_millis(300), || {
        Ok(victim.ended()?.is_some())
    })
    .is_ok();
    drop(trap);
    if !died && victim.ended()?.is_none() {
        victim.kill9()?;
    } else {
        victim.wait_ended()?;
    }
    victim.start()?;
    let done = (verb.done)(scene, n)?;
    belongs(victim)?;
    ensure!(done || answer.code != 0, "acknowledged and lost: {answer}");
    if done {
        (verb.undo)(scene, n)?;
    }
    let after = facts(victim)?;
    if verb.name != "remove" {
        ensure!(
            after == before,
            "neither the old nor the new state\nbefore {before:#?}\nafter {after:#?}"
        );
    }
    Ok(died)
}

fn run(lab: &Lab, rounds: &[(usize, Point)], at_least: usize) -> Result<()> {
    let scene = scene(lab)?;
    let mut died = 0;
    for (n, (verb, point)) in rounds.iter().enumerate() {
        let verb = VERBS.get(*verb).context("a verb")?;
        let here = || {
            format!(
                "round {n}: {} dies at {} number {}",
                verb.name, point.0, point.1
            )
        };
        let hit = one(&scene, verb, *point, n).with_context(here)?;
        if !hit {
            println!(
                "  {}: it made no such call, and was killed after the command",
                here()
            );
        }
        died += usize::from(hit);
    }
    println!("  {died} of {} rounds died at their call", rounds.len());
    ensure!(died >= at_least, "only {died} daemons died at their call");
    Ok(())
}

fn every_point() -> Vec<(usize, Point)> {
    let of = |(place, verb): (usize, &Verb)| {
        verb.points
            .concat()
            .into_iter()
            .map(move |point| (place, point))
            .collect::<Vec<_>>()
    };
    // Joining comes first: a machine that was removed may not join by invite any more.
    let mut all: Vec<(usize, Point)> = VERBS.iter().enumerate().flat_map(of).collect();
    all.sort_by_key(|(place, _)| VERBS.get(*place).is_none_or(|v| v.name != "join"));
    all
}

fn killed_at_every_write_is_old_or_new(lab: &Lab) -> Result<()> {
    run(lab, &every_point(), 60)
}

fn killed_at_some_writes_is_old_or_new(lab: &Lab) -> Result<()> {
    let seed = std::env::var("BYWAY_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1_usize);
    println!("  seed: {seed} (BYWAY_SEED=n for another)");
    let all = every_point();
    // One of each command and one more, each at a place the seed decides.
    let mut rounds: Vec<(usize, Point)> = Vec::new();
    let mut places: Vec<usize> = all.iter().map(|(place, _)| *place).collect();
    places.dedup();
    for (turn, place) in places.iter().enumerate().chain([(7, &0)]) {
        let of: Vec<Point> = all
            .iter()
            .filter(|(p, _)| p == place)
            .map(|(_, point)| *point)
            .collect();
        let pick = seed
            .wrapping_mul(0x9e37_79b9)
            .wrapping_add(turn.wrapping_mul(5))
            % of.len();
        rounds.extend(of.get(pick).map(|point| (*place, *point)));
    }
    run(lab, &rounds, 4)
}
