//! Moments out of the ordinary: addresses that move, other programs that never rest, a state from a backup, a storm of
//! restarts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::resident;
use crate::flows::End;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, sh, text, until, v4};
use crate::{fast, long};

pub const CASES: &[Case] = &[
    fast!(a_map_answers_at_whichever_host_has_its_address),
    fast!(an_owner_restored_from_a_backup_gives_nothing_twice),
    fast!(an_invite_that_nobody_saw_is_listed_and_can_be_revoked),
    long!(five_hundred_maps_and_a_storm_of_restarts_leave_all_as_it_was),
    fast!(
        rulesets_that_are_loaded_each_second_stop_no_map,
        "iptables-restore"
    ),
];

/// Codes of what a host calls a problem.
pub fn problems(host: &Host) -> Result<Vec<String>> {
    let status = host.json(&["status"])?;
    status["problems"]
        .as_array()
        .context("no `problems`")?
        .iter()
        .map(|p| text(p, "code"))
        .collect()
}

/// Tells the neighbours who has an address now, as `arping -U` and keepalived do.
const GRATUITOUS: &str = r#"
import socket, sys
link, address = sys.argv[1], socket.inet_aton(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((link, 0))
own = s.getsockname()[4]
s.send(b"\xff" * 6 + own + b"\x08\x06\0\1\x08\0\6\4\0\1" + own + address + b"\xff" * 6 + address)
"#;

fn a_map_answers_at_whichever_host_has_its_address(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (x, shared) = (lab.host("x")?, "10.99.0.200");
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let at = [
        v4(&hosts[0].attach(&web, "lab", "web")?)?,
        v4(&hosts[1].attach(&db, "lab", "db")?)?,
    ];
    let _servers = [
        web.serve("tcp", &at[0], 90)?,
        db.serve("tcp", &at[1], 90)?,
        web.serve("udp", &at[0], 90)?,
        db.serve("udp", &at[1], 90)?,
    ];
    for (host, target) in hosts.iter().zip(["web:90", "db:90"]) {
        for proto in ["tcp", "udp"] {
            host.ok(&[
                "map",
                "add",
                "lab",
                proto,
                &format!("{shared}:8080"),
                target,
            ])?;
        }
        ensure!(
            problems(host)?
                .iter()
                .filter(|code| *code == "E-LISTEN-GONE")
                .count()
                == 2,
            "{:?}",
            problems(host)?
        );
    }
    let talk = x.ns().talk(shared, 8080)?;
    let mut open: Option<End> = None;
    for turn in [0, 1, 0, 1] {
        let (has, had) = (&hosts[turn], &hosts[1 - turn]);
        if open.is_some() {
            had.ns()
                .ip(&["addr", "del", &format!("{shared}/32"), "dev", "eth0"])?;
        }
        has.ns()
            .ip(&["addr", "add", &format!("{shared}/32"), "dev", "eth0"])?;
        has.ns()
            .ok(&["python3", "-c", GRATUITOUS, "eth0", shared])?;
        let two = Duration::from_secs(2);
        talk.answered();
        until(
            "a client that never stopped sending is answered",
            two,
            || Ok(talk.answered() > 0),
        )?;
        until("a new client is answered", two, || {
            Ok(x.ns().tcp(shared, 8080, 100).is_ok())
        })?;
        until("both hosts say so", two, || {
            let (here, there) = (problems(has)?, problems(had)?);
            ensure!(
                here.is_empty() && there.contains(&"E-LISTEN-GONE".to_owned()),
                "{here:?} and {there:?}"
            );
            Ok(true)
        })?;
        // Who was connected to the other host hears so, rather than wait.
        if let Some(mut open) = open.take() {
            until("an old connection ends", two, || open.has_ended())?;
        }
        open = Some(End::new(x.ns(), ["asks", shared, "8080", "speaks"])?);
    }
    drop((talk, open));
    hosts[1]
        .ns()
        .ip(&["addr", "del", &format!("{shared}/32"), "dev", "eth0"])
        .map(drop)
}

/// What a firewall script loads, again and again: it knows nothing of ours.
const TABLES: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
";
const RULESET: &str = "flush ruleset
table inet admin {
  chain forward { type filter hook forward priority 0; policy accept; }
}
";

fn processor_time(host: &Host) -> Result<Duration> {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", host.pid()?)).context("read its times")?;
    let words: Vec<&str> = stat
        .rsplit_once(')')
        .context("no name")?
        .1
        .split_whitespace()
        .collect();
    let ticks = words[11].parse::<u64>()? + words[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn rulesets_that_are_loaded_each_second_stop_no_map(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b, x) = (&hosts[0], &hosts[1], lab.host("x")?);
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let at = [
        v4(&a.attach(&web, "lab", "web")?)?,
        v4(&b.attach(&db, "lab", "db")?)?,
    ];
    let _servers = [web.serve("tcp", &at[0], 90)?, db.serve("tcp", &at[1], 90)?];
    for (port, target) in [(8081, "web:90"), (8082, "db:90")] {
        a.ok(&[
            "map",
            "add",
            "lab",
            "tcp",
            &format!("0.0.0.0:{port}"),
            target,
        ])?;
    }
    for (name, load, text) in [
        ("tables", "iptables-restore <", TABLES),
        ("ruleset", "nft -f", RULESET),
    ] {
        let file = lab.dir().join(name);
        std::fs::write(&file, text).context("write rules")?;
        let each = format!(
            "for n in 1 2 3 4; do {load} {}; sleep 0.8; done",
            file.display()
        );
        let mut loads = a
            .ns()
            .command(&["sh", "-c", &each])
            .spawn()
            .context("start to load rules")?;
        let spent = processor_time(a)?;
        // Who begins while nothing of ours is there is late, when its first packet is sent again; or refused, and asks
        // again.
        let (mut late, mut all) = (0, 0);
        while loads.try_wait()?.is_none() {
            for port in [8081, 8082] {
                let asked = || Ok(x.ns().tcp(a.under4(), port, 1000).is_ok());
                let took = until(
                    &format!("an answer while {name} are loaded"),
                    Duration::from_secs(5),
                    asked,
                )?;
                all += 1;
                late += u32::from(took > Duration::from_millis(600));
            }
        }
        let spent = processor_time(a)? - spent;
        println!("  {name}: {all} connections, {late} of them late, {spent:?} of the processor");
        ensure!(late * 4 < all, "{late} of {all} connections were late");
        ensure!(
            spent < Duration::from_secs(4),
            "the daemon took {spent:?} of the processor"
        );
        until("nothing is wrong afterwards", SOON, || {
            let healthy = a.byway(&["status", "--check", "healthy"])?;
            ensure!(healthy.code == 0, "{healthy}");
            Ok(true)
        })?;
        a.ns().ok(&["nft", "delete table ip filter"]).ok();
    }
    a.ns().ok(&["nft", "delete table inet admin"]).map(drop)
}

fn invite(host: &Host) -> Result<(String, String)> {
    let made = host.json(&["invite", "create", "lab"])?;
    Ok((text(&made, "invite")?, text(&made, "id")?))
}

/// IDs of the invites by which somebody may still come in.
fn open_invites(host: &Host) -> Result<Vec<String>> {
    let list = host.json(&["invite", "ls", "lab"])?;
    let all = list["invites"].as_array().context("no `invites`")?;
    let open = all
        .iter()
        .filter(|invite| invite["revoked"] == false && invite["left"] != 0);
    open.map(|invite| text(invite, "id")).collect()
}

fn an_owner_restored_from_a_backup_gives_nothing_twice(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b, c, d) = (&hosts[0], &hosts[1], lab.node("c")?, lab.node("d")?);
    let ((used, _), (called_back, id)) = (invite(a)?, invite(a)?);
    let (state, backup) = (
        a.state().to_string_lossy().into_owned(),
        format!("{}-backup", a.state().display()),
    );
    let before = open_invites(a)?;
    a.terminate()?;
    sh("cp", &["-a", &state, &backup])?;
    a.start()?;
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    ensure!(
        open_invites(a)? == before,
        "a restart costs an invite: {:?} of {before:?}",
        open_invites(a)?
    );
    // What the backup does not know: an admission, a call back, a removal, an admin, a lease.
    c.json(&["join", &used])?;
    a.ok(&["invite", "revoke", &id])?;
    a.ok(&["member", "remove", "lab", "b", "--yes"])?;
    a.ok(&["member", "role", "lab", "c", "admin"])?;
    let (own, own_c) = (a.overlay("lab")?.0, c.overlay("lab")?.0);
    let pool = own.split('.').take(2).collect::<Vec<_>>().join(".");
    let lease = format!("{pool}.200.0/24");
    a.ok(&["lease", "add", "lab", &lease, "--member", "c"])?;
    until("c has the lease", SOON, || {
        Ok(c.ok(&["lease", "ls", "lab"])?.contains(&lease))
    })?;
    a.terminate()?;
    std::fs::remove_dir_all(&state)?;
    sh("cp", &["-a", &backup, &state])?;
    a.start()?;
    until("it has learned what it forgot", SOON, || {
        let leases = a.ok(&["lease", "ls", "lab"])?;
        ensure!(
            a.members("lab")? == ["a", "c"] && leases.contains(&lease),
            "{:?}, {leases}",
            a.members("lab")?
        );
        ensure!(
            a.ok(&["member", "ls", "lab"])?.contains("admin"),
            "{}",
            a.ok(&["member", "ls", "lab"])?
        );
        Ok(true)
    })?;
    until("it says so", SOON, || {
        Ok(problems(a)?.contains(&"E-STATE-OLD".to_owned()))
    })?;
    ensure!(
        open_invites(a)?.is_empty(),
        "invites of before are open: {:?}",
        open_invites(a)?
    );
    for spent in [&used, &called_back] {
        d.fails(7, "E-INVITE-REVOKED", &["join", spent])?;
    }
    d.json(&["join", &invite(a)?.0])?;
    let own_d = d.overlay("lab")?.0;
    ensure!(
        own_d != own_c && c.overlay("lab")?.0 == own_c,
        "{own_c} was given twice"
    );
    a.ns().reaches(&own_c, SOON)?;
    d.ns().reaches(&own_c, SOON)?;
    // Its word counts as before.
    a.ok(&["dns", "add", "lab", "www", &own_d])?;
    until("c hears it", SOON, || {
        Ok(c.ok(&["dns", "ls", "lab"])?.contains("www.lab.internal"))
    })
    .map(drop)
}

fn an_invite_that_nobody_saw_is_listed_and_can_be_revoked(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, before) = (&hosts[0], open_invites(&hosts[0])?);
    let mut delay = Duration::ZERO;
    until(
        "a client is killed after it asked",
        Duration::from_secs(30),
        || {
            let asking = a.spawn(&["invite", "create", "lab"])?;
            std::thread::sleep(delay);
            delay += Duration::from_millis(2);
            drop(asking);
            Ok(open_invites(a)?.len() > before.len())
        },
    )?;
    for id in open_invites(a)?.iter().filter(|id| !before.contains(id)) {
        a.ok(&["invite", "revoke", id])?;
    }
    ensure!(
        open_invites(a)? == before,
        "{:?} of {before:?}",
        open_invites(a)?
    );
    Ok(())
}

/// Maps of the storm, and workloads that restart in it at the same time.
const MAPS: usize = 500;
const STORM: usize = 20;

fn five_hundred_maps_and_a_storm_of_restarts_leave_all_as_it_was(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a"])?;
    let (a, x) = (&hosts[0], lab.host("x")?);
    let names: Vec<String> = (0..STORM).map(|n| format!("w{n}")).collect();
    let spaces = names
        .iter()
        .map(|name| lab.workload(name))
        .collect::<Result<Vec<_>>>()?;
    for (space, name) in spaces.iter().zip(&names) {
        a.attach(space, "lab", name)?;
    }
    for n in 0..MAPS {
        let (listen, target) = (
            format!("0.0.0.0:{}", 10_000 + n),
            format!("{}:90", names[n % STORM]),
        );
        a.ok(&["map", "add", "lab", "tcp", &listen, &target])?;
    }
    // Elements of a set are listed in the order in which they came.
    let rules = || -> Result<BTreeSet<String>> {
        let listed = a.ns().ruleset()?;
        let plain = |line: &str| {
            line.trim_matches(|c: char| c.is_whitespace() || "{},".contains(c))
                .replace("elements = { ", "")
        };
        Ok(listed.lines().map(plain).collect())
    };
    let (ruleset, shown) = (rules()?, Instant::now());
    let list = a.json(&["map", "ls"])?;
    let took = shown.elapsed();
    ensure!(
        list["maps"].as_array().map(Vec::len) == Some(MAPS),
        "{list}"
    );
    // Without optimization, beside other work; 60 s when each map had the tables of sockets read anew.
    ensure!(took < Duration::from_secs(5), "`map ls` took {took:?}");
    let memory = resident(a)?;
    let restart = |(space, name): (&Netns, &String)| -> Result<()> {
        a.ok(&["detach", name])?;
        a.attach(space, "lab", name).map(drop)
    };
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        slowest = slowest.max(storm(a, &spaces, &names)?);
    }
    spaces.iter().zip(&names).take(1).try_for_each(restart)?;
    let grown = resident(a)?.saturating_sub(memory);
    println!("  `map ls` {took:?}, a storm {slowest:?}, {grown} KiB more");
    ensure!(grown < 16 * 1024, "memory grew by {grown} KiB");
    until("the ruleset is as it was", SOON, || {
        let now = rules()?;
        ensure!(
            now == ruleset,
            "{:?}",
            now.symmetric_difference(&ruleset).collect::<Vec<_>>()
        );
        Ok(true)
    })?;
    let _servers = [
        spaces[0].serve("tcp", "0.0.0.0", 90)?,
        spaces[7].serve("tcp", "0.0.0.0", 90)?,
    ];
    for port in [10_000, 10_007, 10_480] {
        x.ns()
            .tcp(a.under4(), port, 1000)
            .with_context(|| format!("port {port}"))?;
    }
    Ok(())
}

/// Every workload is detached and attached again, all at the same time; how long that took.
fn storm(a: &Host, spaces: &[Netns], names: &[String]) -> Result<Duration> {
    let start = Instant::now();
    let asked: Vec<_> = names
        .iter()
        .map(|name| a.spawn(&["detach", name]))
        .collect::<Result<_>>()?;
    for answer in asked {
        let answer = answer.wait()?;
        ensure!(answer.code == 0, "{answer}");
    }
    let attach = |(space, name): (&Netns, &String)| {
        a.spawn(&[
            "attach",
            "netns",
            space.name(),
            "--subnet",
            "lab",
            "--name",
            name,
        ])
    };
    let asked: Vec<_> = spaces
        .iter()
        .zip(names)
        .map(attach)
        .collect::<Result<_>>()?;
    for answer in asked {
        let answer = answer.wait()?;
        ensure!(answer.code == 0, "{answer}");
    }
    Ok(start.elapsed())
}
