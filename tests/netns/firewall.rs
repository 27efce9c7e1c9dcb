//! Firewalls of others: our rules stand in the places they leave to others, and who stops our packets is named with a
//! remedy that is enough, which every test here obeys to the letter.

use std::fs::OpenOptions;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::netns::Server;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, until, v4, v6};

pub const CASES: &[Case] = &[
    fast!(
        a_forward_chain_that_drops_is_found_by_effect,
        "iptables",
        "ip6tables"
    ),
    fast!(an_input_chain_that_drops_is_found_by_effect),
    fast!(
        docker_user_is_used_and_left_as_it_was,
        "iptables",
        "iptables-restore"
    ),
    fast!(
        who_holds_the_lock_of_iptables_delays_nothing_and_what_is_left_is_owed,
        "iptables-legacy",
        "flock"
    ),
    fast!(nobodys_rules_are_touched_where_none_is_named, "iptables"),
    fast!(dockers_own_tables_of_nftables_need_nothing_and_keep_everything),
    fast!(the_rule_that_blocks_a_map_is_named),
];

/// Longest until a finding stands: one look every ten seconds.
const FOUND: Duration = Duration::from_secs(20);
/// Longest until it is gone once traffic passes.
const GONE: Duration = Duration::from_secs(8);

/// Two workloads on `a`, one on `b`, and a map of `a` that `x` uses.
pub struct Scene {
    pub a: Rc<Host>,
    x: Rc<Host>,
    pub one: Netns,
    db: Netns,
    /// `one`, `two` and `db` by both families.
    at: [[String; 2]; 3],
    pub servers: Vec<Server>,
}

fn scene(lab: &Lab, config: &str) -> Result<Scene> {
    scene_on(lab, lab.host("a")?, config)
}

pub fn scene_on(lab: &Lab, a: Rc<Host>, config: &str) -> Result<Scene> {
    let start = Rc::clone(&a);
    scene_begun(lab, a, config, || start.start())
}

/// The same, with a daemon that is started in another way.
pub fn scene_begun(
    lab: &Lab,
    a: Rc<Host>,
    config: &str,
    start: impl Fn() -> Result<()>,
) -> Result<Scene> {
    let [b, x] = [lab.host("b")?, lab.host("x")?];
    OpenOptions::new()
        .append(true)
        .open(a.dir().join("byway.toml"))?
        .write_all(config.as_bytes())?;
    start()?;
    b.start()?;
    // The machine with the firewall is the one that dials.
    let made = b.json(&["create", "lab"])?;
    a.json(&["join", &crate::lab::text(&made, "invite")?])?;
    let [one, two, db] = [
        lab.workload("one")?,
        lab.workload("two")?,
        lab.workload("db")?,
    ];
    let at = [
        a.attach(&one, "lab", "one")?,
        a.attach(&two, "lab", "two")?,
        b.attach(&db, "lab", "db")?,
    ];
    let at = [
        [v4(&at[0])?, v6(&at[0])?],
        [v4(&at[1])?, v6(&at[1])?],
        [v4(&at[2])?, v6(&at[2])?],
    ];
    let servers = vec![
        one.serve("tcp", "0.0.0.0", 80)?,
        one.serve("tcp", "::", 80)?,
    ];
    for any in ["0.0.0.0", "[::]"] {
        a.ok(&["map", "add", "lab", "tcp", &format!("{any}:8080"), "one:80"])?;
    }
    Ok(Scene {
        a,
        x,
        one,
        db,
        at,
        servers,
    })
}

impl Scene {
    /// What does not get through of the families: by ping between workloads, to members and from them, and by the map.
    fn dead(&self, families: &[usize]) -> Vec<String> {
        let mut dead = Vec::new();
        let mut note = |what: &str, passes: bool| {
            if !passes {
                dead.push(what.to_owned());
            }
        };
        for &family in families {
            let [one, two, db] = [0, 1, 2].map(|n| &self.at[n][family]);
            note(&format!("local {two}"), self.one.pings(two));
            note(&format!("out {db}"), self.one.pings(db));
            note(&format!("in {one}"), self.db.pings(one));
            let host = [self.a.under4(), self.a.under6()][family];
            let python = "import socket,sys; socket.create_connection((sys.argv[1], 8080), 0.7)";
            note(
                &format!("map {host}"),
                self.x
                    .ns()
                    .run(&["python3", "-c", python, host])
                    .is_ok_and(|answer| answer.code == 0),
            );
        }
        dead
    }

    pub fn all_pass(&self, limit: Duration) -> Result<()> {
        let done = until("everything passes", limit, || {
            Ok(self.dead(&[0, 1]).is_empty())
        });
        done.with_context(|| format!("dead: {:?}, {:?}", self.dead(&[0, 1]), self.problems("")))?;
        Ok(())
    }

    /// Remedies of the problems with that code.
    pub fn problems(&self, code: &str) -> Vec<String> {
        let status = self.a.json(&["status"]).unwrap_or_default();
        let all = status["problems"].as_array().cloned().unwrap_or_default();
        let ours = all
            .iter()
            .filter(|p| p["code"].as_str().is_some_and(|c| c.contains(code)));
        ours.filter_map(|p| p["help"].as_str().map(ToOwned::to_owned))
            .collect()
    }

    /// Waits for one finding and does what it says.
    pub fn obey(&self, code: &str, tool: &str) -> Result<String> {
        until(&format!("{code} is found"), FOUND, || {
            Ok(!self.problems(code).is_empty())
        })
        .with_context(|| self.a.log_tail(20))?;
        let found = self.problems(code);
        ensure!(
            found.len() == 1 && found[0].starts_with(tool),
            "one remedy, by {tool}: {found:?}"
        );
        self.a.ns().ok(&["sh", "-c", &found[0]])?;
        Ok(found[0].clone())
    }

    pub fn clears(&self) -> Result<()> {
        until("the finding goes", GONE, || {
            Ok(self.problems("-BLOCKED").is_empty())
        })
        .with_context(|| format!("{:?}", self.problems("-BLOCKED")))?;
        Ok(())
    }

    pub fn rules(&self) -> Result<String> {
        Ok(self.a.ns().ok(&["iptables", "-S"])? + &self.a.ns().ok(&["ip6tables", "-S"])?)
    }

    fn ours(&self) -> Result<usize> {
        Ok(self.rules()?.matches("byway:").count())
    }
}

fn a_forward_chain_that_drops_is_found_by_effect(lab: &Lab) -> Result<()> {
    let s = scene(lab, "")?;
    s.all_pass(SOON)?;
    let nft = |text: &str| s.a.ns().ok(&["nft", text]).map(drop);
    // By policy, in a table of both families.
    nft("table inet fw { chain through { type filter hook forward priority 0; policy drop; }; }")?;
    ensure!(
        s.dead(&[0]).len() == 4,
        "the chain drops everything: {:?}",
        s.dead(&[0])
    );
    // Half of what is needed is not enough, and the finding says so as long as it is not.
    nft("insert rule inet fw through iifname \"bwv*\" accept")?;
    let remedy = s.obey("E-FORWARD-BLOCKED", "nft insert rule inet fw through ")?;
    s.all_pass(Duration::from_secs(3))
        .with_context(|| remedy.clone())?;
    s.clears()?;
    s.a.ns().ok(&["nft", "delete", "table", "inet", "fw"])?;
    // By a rule, made by iptables, in one family.
    s.a.ns()
        .ok(&["ip6tables", "-A", "FORWARD", "-j", "REJECT"])?;
    ensure!(s.dead(&[1]).len() == 4 && s.dead(&[0]).is_empty());
    s.obey("E-FORWARD-BLOCKED", "ip6tables -I FORWARD ")?;
    s.all_pass(Duration::from_secs(3))?;
    s.clears()?;
    s.a.ns().ok(&["ip6tables", "-F", "FORWARD"])?;
    // By policy, made by iptables: who pings sees it gone when they undo it themselves, too.
    s.a.ns().ok(&["iptables", "-P", "FORWARD", "DROP"])?;
    until("it is found", FOUND, || {
        Ok(!s.problems("E-FORWARD-BLOCKED").is_empty())
    })?;
    let maps = s.a.json(&["map", "ls", "lab"])?;
    ensure!(maps["maps"].to_string().contains("\"blocked\""), "{maps}");
    s.a.ns().ok(&["iptables", "-P", "FORWARD", "ACCEPT"])?;
    s.clears()?;
    for family in ["ip", "ip6"] {
        s.a.ns().ok(&["nft", "delete", "table", family, "filter"])?;
    }
    drop(s.servers);
    Ok(())
}

fn an_input_chain_that_drops_is_found_by_effect(lab: &Lab) -> Result<()> {
    let s = scene(lab, "")?;
    let (own4, _) = s.a.overlay("lab")?;
    let asks = || {
        Ok(s.one
            .dig(&own4, &["db.lab.internal", "A"])
            .is_ok_and(|answer| answer.status == "NOERROR"))
    };
    until("names are answered", SOON, asks)?;
    s.a.ns().ok(&[
        "nft",
        "table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; \
         iif lo accept; meta l4proto ipv6-icmp accept; th dport 4100 accept; }; }",
    ])?;
    ensure!(!asks()?, "the chain drops what workloads ask");
    s.obey("E-INPUT-BLOCKED", "nft insert rule inet fw in ")?;
    until("names are answered again", Duration::from_secs(3), asks)?;
    s.clears()?;
    // The remedy opens our links to our own judgement, and that is closed.
    let _server = s.a.ns().serve("tcp", "0.0.0.0", 7070)?;
    ensure!(
        s.one.tcp(&own4, 7070, 10).is_err(),
        "the machine stays closed to its subnet"
    );
    s.a.ns().ok(&["nft", "delete", "table", "inet", "fw"])?;
    drop(s.servers);
    Ok(())
}

/// What Docker's defaults are, by the program that Docker uses.
pub const DOCKER: &str = "iptables -N DOCKER-USER && iptables -A DOCKER-USER -j RETURN && \
    iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP";

fn docker_user_is_used_and_left_as_it_was(lab: &Lab) -> Result<()> {
    let s = scene(lab, "")?;
    // Docker comes after us.
    s.a.ns().ok(&["sh", "-c", DOCKER])?;
    s.a.ns()
        .ok(&["sh", "-c", &DOCKER.replace("iptables", "ip6tables")])?;
    let theirs = s
        .rules()?
        .lines()
        .filter(|line| !line.contains("byway:"))
        .map(|l| format!("{l}\n"))
        .collect::<String>();
    until("our rules are there", Duration::from_secs(5), || {
        Ok(s.ours()? == 8)
    })?;
    s.all_pass(Duration::from_secs(3))?;
    let with_ours = s.rules()?;
    // Workloads and maps change nothing.
    let more = lab.workload("more")?;
    s.a.attach(&more, "lab", "more")?;
    s.a.ok(&["map", "add", "lab", "udp", "0.0.0.0:9999", "more:9"])?;
    ensure!(s.rules()? == with_ours, "{}", s.rules()?);
    // Somebody restores rules without ours, under load: new connections come through again, all the time.
    let host = s.a.under4().to_owned();
    for round in 0..3 {
        s.a.ns().ok(&[
            "sh",
            "-c",
            "iptables -F DOCKER-USER && iptables -A DOCKER-USER -j RETURN",
        ])?;
        until(
            &format!("round {round}: the map answers"),
            Duration::from_secs(4),
            || {
                Ok(s.x
                    .ns()
                    .run(&["python3", "-c", LOAD, &host])
                    .is_ok_and(|answer| answer.code == 0))
            },
        )?;
        until("our rules are back", Duration::from_secs(4), || {
            Ok(s.rules()? == with_ours)
        })?;
    }
    ensure!(s.problems("-BLOCKED").is_empty(), "{:?}", s.problems(""));
    // Gone at stop; after a kill, by cleanup.
    s.a.terminate()?;
    ensure!(
        s.rules()? == theirs,
        "stop leaves exactly theirs: {}",
        s.rules()?
    );
    s.a.start()?;
    until("our rules are there again", SOON, || {
        Ok(s.rules()? == with_ours)
    })?;
    s.a.kill9()?;
    ensure!(s.rules()? == with_ours, "a kill leaves them");
    let state = s.a.state().to_string_lossy().into_owned();
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("DOCKER-USER") && s.rules()? == theirs,
        "{done}\n{}",
        s.rules()?
    );
    for family in ["ip", "ip6"] {
        s.a.ns().ok(&["nft", "delete", "table", family, "filter"])?;
    }
    drop(s.servers);
    Ok(())
}

/// Stops the daemon, which has to end within five seconds; its exit code.
pub fn stop(host: &Host) -> Result<i32> {
    let began = std::time::Instant::now();
    let pid = nix::unistd::Pid::from_raw(host.pid()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let code = host.wait_ended()?;
    ensure!(
        began.elapsed() < Duration::from_secs(5),
        "{code} after {:?}: {}",
        began.elapsed(),
        host.log_tail(4)
    );
    Ok(code)
}

fn who_holds_the_lock_of_iptables_delays_nothing_and_what_is_left_is_owed(lab: &Lab) -> Result<()> {
    let s = scene(lab, "")?;
    let rules = || s.a.ns().ok(&["iptables-legacy", "-S"]);
    s.a.ns()
        .ok(&["sh", "-c", &DOCKER.replace("iptables", "iptables-legacy")])?;
    let theirs = rules()?;
    // Nothing tells of changes of these tables: the next look finds them.
    until("our rules are there", FOUND, || {
        Ok(rules()?.contains("byway:"))
    })?;
    let mut held =
        s.a.ns()
            .command(&["flock", "--no-fork", "/run/xtables.lock", "sleep", "20"])
            .spawn()
            .context("hold the lock")?;
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    s.a.ok(&["detach", "two"])?;
    ensure!(
        begin.elapsed() < Duration::from_secs(3),
        "it waited: {:?}",
        begin.elapsed()
    );
    let code = stop(&s.a)?;
    let log = s.a.log_tail(4);
    held.kill()?;
    held.wait()?;
    ensure!(
        code == 1 && log.contains("DOCKER-USER"),
        "exit {code}: {log}"
    );
    ensure!(
        rules()?.contains("byway:"),
        "what could not be removed is there"
    );
    let state = s.a.state().to_string_lossy().into_owned();
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("DOCKER-USER") && rules()? == theirs,
        "{done}\n{}",
        rules()?
    );
    s.a.ns().ok(&[
        "sh",
        "-c",
        "iptables-legacy -P FORWARD ACCEPT && iptables-legacy -F && iptables-legacy -X",
    ])?;
    drop(s.servers);
    Ok(())
}

/// Twenty connections through the map, one after the other.
const LOAD: &str = "import socket,sys\nfor _ in range(20): socket.create_connection((sys.argv[1], 8080), 0.5).close()";

fn nobodys_rules_are_touched_where_none_is_named(lab: &Lab) -> Result<()> {
    let s = scene(lab, "[firewall]\nintegrate = []\n")?;
    s.a.ns().ok(&["sh", "-c", DOCKER])?;
    let theirs = s.rules()?;
    let remedy = s.obey("E-FORWARD-BLOCKED", "iptables -I DOCKER-USER ")?;
    s.all_pass(Duration::from_secs(3))
        .with_context(|| remedy.clone())?;
    s.clears()?;
    ensure!(s.ours()? == 0 && !s.a.state().join("firewall.json").exists());
    ensure!(
        s.rules()?.lines().count() == theirs.lines().count() + 4,
        "only what was obeyed: {}",
        s.rules()?
    );
    s.a.ns().ok(&["nft", "delete", "table", "ip", "filter"])?;
    drop(s.servers);
    Ok(())
}

/// What engine 29 makes with `firewall-backend=nftables`, for one bridge with one published port: no chain for rules of
/// others, and no drop but for its own bridges.
const DOCKER_29: &str = r#"
table ip docker-bridges {
    map filter-forward-in-jumps { type ifname : verdict; elements = { "docker0" : jump filter-forward-in__docker0 }; }
    map filter-forward-out-jumps { type ifname : verdict; elements = { "docker0" : jump filter-forward-out__docker0 }; }
    map nat-postrouting-out-jumps { type ifname : verdict; elements = { "docker0" : jump nat-postrouting-out__docker0 }; }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
        iifname vmap @filter-forward-out-jumps
    }
    chain filter-forward-in__docker0 {
        ct state established,related counter accept
        iifname "docker0" counter accept comment "ICC"
        ip daddr 172.17.0.2 tcp dport 80 counter accept
        counter drop comment "UNPUBLISHED PORT DROP"
    }
    chain filter-forward-out__docker0 {
        ct state established,related counter accept
        counter accept comment "OUTGOING"
    }
    chain nat-POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        oifname vmap @nat-postrouting-out-jumps
    }
    chain nat-postrouting-out__docker0 {
        ip saddr 172.17.0.0/16 masquerade comment "MASQUERADE"
    }
    chain nat-OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local counter jump nat-prerouting-and-output
    }
    chain nat-PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump nat-prerouting-and-output
    }
    chain nat-prerouting-and-output {
        iifname != "docker0" tcp dport 8081 counter dnat to 172.17.0.2:80 comment "DNAT"
    }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw; policy accept;
        ip daddr 172.17.0.2 iifname != { "docker0", "lo" } counter drop comment "DROP DIRECT ACCESS"
    }
}
"#;

fn dockers_own_tables_of_nftables_need_nothing_and_keep_everything(lab: &Lab) -> Result<()> {
    let a = lab.host("a")?;
    a.ns().ok(&["nft", DOCKER_29])?;
    a.ns().ok(&[
        "nft",
        &DOCKER_29
            .replace("ip docker", "ip6 docker")
            .replace("ip daddr 172.17.0.2", "ip6 daddr fd00:d0::2")
            .replace("ip daddr != 127.0.0.0/8", "ip6 daddr != ::1")
            .replace("ip saddr 172.17.0.0/16", "ip6 saddr fd00:d0::/64")
            .replace("172.17.0.2:80", "[fd00:d0::2]:80"),
    ])?;
    let theirs = || {
        let tables = ["ip", "ip6"].map(|family| {
            a.ns()
                .ok(&["nft", "-s", "list", "table", family, "docker-bridges"])
        });
        let [four, six] = tables;
        Ok::<_, anyhow::Error>(four? + &six?)
    };
    let before = theirs()?;
    let s = scene_on(lab, Rc::clone(&a), "")?;
    s.all_pass(SOON)?;
    // Another port than one that Docker publishes is ours; the one that it publishes stays its own.
    until("it was looked at", SOON * 2, || {
        Ok(s.problems("-BLOCKED").is_empty())
    })?;
    ensure!(theirs()? == before, "{}", theirs()?);
    ensure!(
        !a.state().join("firewall.json").exists(),
        "nothing is owed to anybody"
    );
    // Docker starts again: its tables go and come.
    for _ in 0..3 {
        for family in ["ip", "ip6"] {
            a.ns()
                .ok(&["nft", "delete", "table", family, "docker-bridges"])?;
        }
        s.all_pass(Duration::from_secs(3))?;
        a.ns().ok(&["nft", DOCKER_29])?;
        a.ns().ok(&["nft", "add table ip6 docker-bridges"])?;
        s.all_pass(Duration::from_secs(3))?;
    }
    // A machine that was upgraded: the chain of the other backend comes and goes again, and ours with it.
    a.ns().ok(&["sh", "-c", DOCKER])?;
    until("our rules are there", Duration::from_secs(5), || {
        Ok(s.ours()? == 4)
    })?;
    s.all_pass(Duration::from_secs(3))?;
    a.ns().ok(&["nft", "delete", "table", "ip", "filter"])?;
    s.all_pass(Duration::from_secs(3))?;
    s.clears()?;
    a.terminate()?;
    let left = a.ns().ruleset()?;
    ensure!(!left.contains("byway"), "{left}");
    for family in ["ip", "ip6"] {
        a.ns()
            .ok(&["nft", "delete", "table", family, "docker-bridges"])?;
    }
    drop(s.servers);
    Ok(())
}

fn the_rule_that_blocks_a_map_is_named(lab: &Lab) -> Result<()> {
    let s = scene(lab, "")?;
    s.a.ns().ok(&[
        "nft",
        "table inet fw { chain judged { meta l4proto tcp accept; meta l4proto { udp, icmp, ipv6-icmp } drop; }; \
         chain through { type filter hook forward priority 0; policy accept; jump judged; }; }",
    ])?;
    until("it is found", FOUND, || {
        Ok(!s.problems("E-FORWARD-BLOCKED").is_empty())
    })?;
    let status = s.a.json(&["status"])?;
    let named = ["inet fw through", "drop in chain judged"];
    let says = |text: &str| named.iter().all(|word| text.contains(word));
    let problems = status["problems"].as_array().context("problems")?;
    ensure!(
        problems.iter().filter(|p| says(&p.to_string())).count() == 1,
        "once: {status}"
    );
    let list = s.a.json(&["map", "ls", "lab"])?;
    for map in list["maps"].as_array().context("maps")? {
        ensure!(
            map["state"] == "blocked"
                && map["note"].as_str().is_some_and(says)
                && map["help"]
                    .as_str()
                    .is_some_and(|h| h.starts_with("nft insert rule inet fw through")),
            "{map}"
        );
    }
    let shown = s.a.ok(&["map", "ls", "lab"])?;
    ensure!(says(&shown), "{shown}");
    let doctor = s.a.byway(&["doctor"])?;
    ensure!(says(&doctor.out), "{doctor}");
    s.obey("E-FORWARD-BLOCKED", "nft insert rule inet fw through ")?;
    s.all_pass(Duration::from_secs(3))?;
    s.clears()?;
    let list = s.a.json(&["map", "ls", "lab"])?;
    ensure!(!list.to_string().contains("blocked"), "{list}");
    s.a.ns().ok(&["nft", "delete", "table", "inet", "fw"])?;
    drop(s.servers);
    Ok(())
}
