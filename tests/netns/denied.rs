//! What a daemon with the rights of its unit may not change: the helper does it, or what to type is said, and obeyed here.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::firewall::{DOCKER, scene_begun, stop};
use crate::lab::runner::Case;
use crate::lab::split::Split;
use crate::lab::{Lab, SOON, text, until};
use crate::long;
use crate::resolvers::Openresolv;
use crate::surroundings::problems;
use crate::ufw::{Ufw, WITH_UFW};

pub const CASES: &[Case] = &[
    long!(
        dockers_chain_of_before_nftables_is_changed_by_the_helper,
        "setpriv",
        "systemd-socket-activate",
        "iptables-legacy"
    ),
    long!(
        ufw_takes_rules_from_root_alone_and_status_says_what_to_type,
        "setpriv",
        "ufw"
    ),
    long!(
        openresolv_takes_nothing_from_the_daemon_and_status_says_what_to_type,
        "setpriv"
    ),
];

/// How soon a look tells: one every ten seconds.
const LOOKED: Duration = Duration::from_secs(25);

/// As Docker makes them where `iptables` is the program for the tables of before nftables.
fn legacy_docker() -> String {
    DOCKER.replace("iptables", "iptables-legacy")
}

fn dockers_chain_of_before_nftables_is_changed_by_the_helper(lab: &Lab) -> Result<()> {
    let split = Split::new(lab, "a")?;
    split.start_helper_by_its_unit()?;
    let s = scene_begun(lab, Rc::clone(&split.host), "", || split.start())?;
    s.all_pass(SOON)?;
    let rules = || s.a.ns().ok(&["iptables-legacy", "-S"]);
    s.a.ns().ok(&["sh", "-c", &legacy_docker()])?;
    let theirs = rules()?;
    // Nothing tells of changes of these tables: the next look finds them.
    until("our rules are there", LOOKED, || {
        Ok(rules()?.matches("byway:").count() == 4)
    })
    .with_context(|| s.a.log_tail(10))?;
    s.all_pass(SOON)?;
    ensure!(stop(&s.a)? == 0, "{}", s.a.log_tail(5));
    ensure!(rules()? == theirs, "{}", rules()?);
    split.start()?;
    until("our rules are there again", SOON, || {
        Ok(rules()?.contains("byway:"))
    })?;
    s.a.kill9()?;
    let state = s.a.state().to_string_lossy().into_owned();
    let done = s.a.ok(&["cleanup", "--state-dir", &state])?;
    ensure!(
        done.contains("DOCKER-USER of iptables-legacy") && rules()? == theirs,
        "{done}{}",
        rules()?
    );
    // Where nobody left a place for others, who stops our packets is named, and what to type.
    s.a.ns().ok(&["iptables-legacy", "-F"])?;
    s.a.ns().ok(&["iptables-legacy", "-X"])?;
    split.start()?;
    let remedy = s.obey("E-FORWARD-BLOCKED", "iptables-legacy -I FORWARD ")?;
    s.all_pass(SOON).with_context(|| remedy.clone())?;
    s.clears()?;
    ensure!(stop(&s.a)? == 0, "{}", s.a.log_tail(5));
    let open = "iptables-legacy -P FORWARD ACCEPT && iptables-legacy -F";
    s.a.ns().ok(&["sh", "-c", open])?;
    drop(s.servers);
    Ok(())
}

fn ufw_takes_rules_from_root_alone_and_status_says_what_to_type(lab: &Lab) -> Result<()> {
    let split = Split::new(lab, "a")?;
    split.start_helper()?;
    let ufw = Ufw::enable(&split.host)?;
    let theirs = ufw.rules()?;
    let s = scene_begun(lab, Rc::clone(&split.host), WITH_UFW, || split.start())?;
    let remedy = s.obey("E-FORWARD-BLOCKED", "ufw route allow in on ")?;
    // The names of the subnet come in, where they do not pass through.
    if let [input] = &s.problems("E-INPUT-BLOCKED")[..] {
        s.a.ns().ok(&["sh", "-c", input])?;
    }
    s.all_pass(SOON).with_context(|| remedy.clone())?;
    s.clears()?;
    let log = s.a.log_tail(1000);
    ensure!(
        log.matches("ufw takes rules from root alone").count() == 1,
        "{log}"
    );
    ensure!(
        !s.a.state().join("firewall.json").exists(),
        "nothing is owed"
    );
    ensure!(
        ufw.rules()? != theirs,
        "what was typed is the administrator's"
    );
    let with = ufw.rules()?;
    ensure!(stop(&s.a)? == 0, "{}", s.a.log_tail(5));
    ensure!(ufw.rules()? == with);
    Ufw::gone(&s.a)?;
    drop(s.servers);
    Ok(())
}

fn openresolv_takes_nothing_from_the_daemon_and_status_says_what_to_type(lab: &Lab) -> Result<()> {
    let x = lab.host("x")?;
    let split = Split::new(lab, "a")?;
    let a = &split.host;
    let openresolv = Openresolv::start(a, &x)?;
    split.start_helper()?;
    let before = openresolv.files()?;
    split.start()?;
    a.json(&["create", "lab"])?;
    let state = |state: &str| {
        until(&format!("the host's names are {state}"), LOOKED, || {
            let status = a.json(&["status"])?;
            ensure!(status["host_names"]["state"] == state, "{status}");
            Ok(true)
        })
    };
    state("refused")?;
    ensure!(openresolv.files()? == before, "{}", openresolv.files()?);
    let owed = a.state().join("resolvconf.json");
    ensure!(!owed.exists(), "nothing was made, nothing is owed");
    let said = problems(a, "E-HOST-NAMES")?;
    let [problem] = &said[..] else {
        anyhow::bail!("one problem was expected: {said:?}")
    };
    let line = text(problem, "help")?;
    let (line, _) = line
        .split_once("      (")
        .context("a command and a word about it")?;
    let program = openresolv.dir.join("bin/resolvconf");
    let line = line.replace("resolvconf", &program.to_string_lossy());
    a.ns().ok(&["sh", "-c", &line])?;
    state("works")?;
    ensure!(problems(a, "E-HOST-NAMES")?.is_empty());
    let own4 = a.overlay("lab")?.0;
    let found = a.ns().ok(&["getent", "ahosts", "a.lab.internal"])?;
    ensure!(found.contains(&own4), "{found}");
    // A kill leaves nothing of ours, for there was nothing.
    let with = openresolv.files()?;
    a.kill9()?;
    let place = a.state().to_string_lossy().into_owned();
    let done = a
        .ns()
        .ok(&[&split.program, "cleanup", "--state-dir", &place])?;
    ensure!(!done.contains("resolvconf"), "{done}");
    ensure!(openresolv.files()? == with, "{}", openresolv.files()?);
    a.ns().ok(&[&program.to_string_lossy(), "-d", "bw-lab"])?;
    ensure!(openresolv.files()? == before, "{}", openresolv.files()?);
    Ok(())
}
