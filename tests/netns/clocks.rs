//! Clocks that are wrong: nothing is left of it once they are right, and nobody else is stopped by them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::drive::{admit, member};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::{fast, long};

pub const CASES: &[Case] = &[
    fast!(a_clock_that_was_wrong_leaves_nothing_wrong, "faketime"),
    fast!(
        while_a_clock_is_contradicted_it_is_the_only_remedy,
        "faketime"
    ),
    long!(a_foreign_subnets_clocks_stop_nothing_here, "faketime"),
    fast!(
        a_clock_that_is_set_after_the_start_costs_no_subnet_and_no_membership,
        "faketime"
    ),
    long!(no_wrong_clock_leaves_anything_wrong, "faketime"),
    long!(
        a_clock_that_was_wrong_at_start_leaves_nothing_wrong,
        "faketime"
    ),
];

/// Codes of what a host calls a problem.
fn problems(host: &Host) -> Result<Vec<String>> {
    let status = host.json(&["status"])?;
    let all = status["problems"].as_array().context("no `problems`")?;
    all.iter().map(|p| text(p, "code")).collect()
}

/// A host whose daemon takes the time from a file.
struct Clocked {
    host: std::rc::Rc<Host>,
    file: std::path::PathBuf,
}

impl Clocked {
    fn new(lab: &Lab, name: &str) -> Result<Clocked> {
        let library = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
        ]
        .map(|dir| format!("{dir}/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .ok_or_else(|| {
            crate::lab::runner::Skip("faketime's library is not where it is looked for".to_owned())
        })?;
        let host = lab.host(name)?;
        let file = host.dir().join("clock");
        let clocked = Clocked { host, file };
        clocked.set("+0")?;
        let host = &clocked.host;
        host.set_env("LD_PRELOAD", &library);
        host.set_env("FAKETIME_TIMESTAMP_FILE", &clocked.file.to_string_lossy());
        for key in [
            "FAKETIME_NO_CACHE",
            "FAKETIME_DONT_FAKE_MONOTONIC",
            "FAKETIME_DONT_RESET",
        ] {
            host.set_env(key, "1");
        }
        host.start()?;
        Ok(clocked)
    }

    fn set(&self, offset: &str) -> Result<()> {
        // At once: a file that is empty for a moment is another time for that moment.
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).context("set the clock")?;
        std::fs::rename(next, &self.file).context("set the clock")
    }
}

/// Whether datagrams carry what goes to the one other member.
fn on_datagrams(host: &Host) -> Result<bool> {
    Ok(host.json(&["peer", "ls"])?["peers"][0]["path"]["carrier"] == "datagram")
}

/// The clock of one of two members is wrong for so many seconds, while both send: 5 s after it is right, both reach each
/// other by datagrams and call nothing a problem. The owner is wrong as well as the member, so whichever peer ID is the
/// greater.
fn clocks_leave_nothing(lab: &Lab, cases: &[(&str, u64)], at_start: bool) -> Result<()> {
    let both = [Clocked::new(lab, "a")?, Clocked::new(lab, "b")?];
    let made = both[0].host.json(&["create", "lab"])?;
    both[1].host.json(&["join", &text(&made, "invite")?])?;
    let addresses = [
        both[0].host.overlay("lab")?.0,
        both[1].host.overlay("lab")?.0,
    ];
    let five = Duration::from_secs(5);
    let well = || -> Result<bool> {
        let mut good = true;
        for (n, end) in both.iter().enumerate() {
            good &= end.host.ns().pings(&addresses[1 - n]) && on_datagrams(&end.host)?;
            let said = problems(&end.host)?;
            ensure!(said.is_empty(), "{} says {said:?}", end.host.name());
        }
        Ok(good)
    };
    until("both are well", SOON, well)?;
    for (wrong, (offset, seconds)) in
        (0..2).flat_map(|wrong| cases.iter().map(move |case| (wrong, *case)))
    {
        let what = format!("{} at {offset} for {seconds} s", both[wrong].host.name());
        if at_start {
            both[wrong].host.terminate()?;
        }
        both[wrong].set(offset)?;
        if at_start {
            both[wrong].host.start()?;
        }
        let since = std::time::Instant::now();
        let mut told = [false; 2];
        while since.elapsed() < Duration::from_secs(seconds) {
            for (n, end) in both.iter().enumerate() {
                end.host.ns().pings(&addresses[1 - n]);
                told[n] |= problems(&end.host)?.iter().any(|code| code == "E-CLOCK");
            }
        }
        ensure!(
            told == [true; 2] || seconds < 10,
            "not both ends name the clock: {told:?}, {what}"
        );
        both[wrong].set("+0")?;
        let took = until("both are well again", five, well).with_context(|| what.clone())?;
        println!("  {what}: well after {:.1} s", took.as_secs_f64());
    }
    Ok(())
}

/// What only a wrong clock makes untrue is not mended by leaving, or by taking a map away.
fn while_a_clock_is_contradicted_it_is_the_only_remedy(lab: &Lab) -> Result<()> {
    let both = [Clocked::new(lab, "a")?, Clocked::new(lab, "b")?];
    let [a, b] = both.each_ref().map(|end| &end.host);
    let made = a.json(&["create", "lab"])?;
    b.json(&["join", &text(&made, "invite")?])?;
    let web = lab.workload("web")?;
    b.attach(&web, "lab", "web")?;
    let _server = web.serve("tcp", "0.0.0.0", 80)?;
    b.ok(&["map", "add", "lab", "tcp", "0.0.0.0:8080", "web:80"])?;
    both[1].set("+730d")?;
    let helps = || -> Result<Vec<(String, String)>> {
        let status = b.json(&["status"])?;
        let all = status["problems"].as_array().context("no `problems`")?;
        all.iter()
            .map(|p| Ok((text(p, "code")?, text(p, "help")?)))
            .collect()
    };
    until(
        "b is told that its clock is wrong, and is no member by it",
        SOON,
        || {
            let codes: Vec<String> = helps()?.into_iter().map(|(code, _)| code).collect();
            Ok(["E-CLOCK", "E-NOT-MEMBER"]
                .iter()
                .all(|code| codes.iter().any(|c| c == code)))
        },
    )?;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let other: Vec<_> = helps()?
            .into_iter()
            .filter(|(_, help)| help != "timedatectl set-ntp true")
            .collect();
        ensure!(other.is_empty(), "{other:?}");
    }
    let refused = b.byway(&["dns", "add", "lab", "www", "10.99.9.1"])?;
    ensure!(
        refused.code != 0 && refused.err.contains("try:  timedatectl set-ntp true"),
        "{refused}"
    );
    both[1].set("+0")?;
    until("nothing is left of it", SOON, || Ok(helps()?.is_empty()))?;
    Ok(())
}

/// Everybody in a subnet in which the owner of another is a plain member says a wrong time: in its own subnet it signs what
/// is due, and the one who is a guest there becomes a member.
fn a_foreign_subnets_clocks_stop_nothing_here(lab: &Lab) -> Result<()> {
    let liars = ["x", "y", "z"].map(|name| Clocked::new(lab, name));
    let liars = liars.into_iter().collect::<Result<Vec<_>>>()?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let foreign = liars[0]
        .host
        .json(&["create", "xx", "--cidr4", "10.78.0.0/16"])?;
    let invite = text(
        &liars[0]
            .host
            .json(&["invite", "create", "xx", "--uses", "3"])?,
        "invite",
    )?;
    a.json(&["join", &text(&foreign, "invite")?])?;
    for liar in &liars[1..] {
        liar.host.json(&["join", &invite])?;
    }
    for liar in &liars {
        liar.set("+150")?;
    }
    let name_the_clock = |host: &Host, wanted: &[&str]| -> Result<bool> {
        let status = host.json(&["status"])?;
        let all = status["problems"].as_array().context("no `problems`")?;
        let said: Vec<String> = all
            .iter()
            .map(|p| text(p, "message"))
            .collect::<Result<_>>()?;
        Ok(wanted.iter().all(|name| {
            said.iter()
                .any(|s| s.starts_with(&format!("the clock of {name} is 2 minutes ahead")))
        }))
    };
    until("a is told whose clocks are wrong", SOON, || {
        name_the_clock(&a, &["x", "y", "z"])
    })?;
    let id = text(&a.json(&["create", "lab", "--admission", "open"])?, "id")?;
    b.json(&["join", &id, "--peer", a.under4()])?;
    let began = Instant::now();
    let ends = || member(&a, "b")?["expires"].as_u64().context("no `expires`");
    let trial = ends()?;
    until("b is no guest any more", Duration::from_secs(80), || {
        Ok(ends()? > trial + 3600)
    })?;
    println!(
        "  b's grant is renewed after {:.0} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(
        name_the_clock(&a, &["x", "y", "z"])?,
        "the foreign members have not contradicted a all the time"
    );
    Ok(())
}

fn a_clock_that_was_wrong_leaves_nothing_wrong(lab: &Lab) -> Result<()> {
    clocks_leave_nothing(lab, &[("+730d", 12), ("-1d", 10)], false)
}

fn no_wrong_clock_leaves_anything_wrong(lab: &Lab) -> Result<()> {
    let cases = [
        ("+90", 3),
        ("-90", 3),
        ("+1d", 12),
        ("-730d", 12),
        ("+200d", 3),
        ("+4000d", 12),
        ("+730d", 40),
        ("-730d", 40),
    ];
    clocks_leave_nothing(lab, &cases, false)
}

fn a_clock_that_was_wrong_at_start_leaves_nothing_wrong(lab: &Lab) -> Result<()> {
    clocks_leave_nothing(
        lab,
        &[("+730d", 12), ("-730d", 12), ("+90", 3), ("-1d", 3)],
        true,
    )
}

/// A machine without a clock of its own: it starts in 1970, and NTP sets it a while later.
fn a_clock_that_is_set_after_the_start_costs_no_subnet_and_no_membership(lab: &Lab) -> Result<()> {
    let (founder, joiner) = (Clocked::new(lab, "a")?, Clocked::new(lab, "b")?);
    for machine in [&founder, &joiner] {
        machine.host.terminate()?;
        machine.set("-20700d")?;
        machine.host.start()?;
    }
    let (a, b, c) = (&founder.host, &joiner.host, lab.node("c")?);
    let other = text(
        &c.json(&["create", "other", "--cidr4", "10.78.0.0/16"])?,
        "invite",
    )?;
    let made = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &other])?;
    ensure!(
        problems(a)?.contains(&"E-CLOCK".to_owned()),
        "nobody says that the clock is not set"
    );
    // By the right time it has ended long ago: who made it was told.
    c.fails(7, "E-INVITE-EXPIRED", &["join", &made])?;
    std::thread::sleep(Duration::from_secs(3));
    for machine in [&founder, &joiner] {
        machine.set("+0")?;
    }
    for host in [a, b] {
        until("nothing is wrong", SOON, || {
            let said = problems(host)?;
            ensure!(said.is_empty(), "{said:?}");
            Ok(true)
        })?;
    }
    b.ns().reaches(&c.overlay("other")?.0, SOON)?;
    c.ns().reaches(&b.overlay("other")?.0, SOON)?;
    for host in [b, &c] {
        admit(a, host, "member")?;
        host.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    }
    // It outlives the next start as well.
    a.terminate()?;
    a.start()?;
    c.ns().reaches(&a.overlay("lab")?.0, SOON).map(drop)
}
