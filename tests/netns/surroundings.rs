//! Other programs of the machine, and what comes to it later: their rules, links and networks.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, sh, text, until, v4, v6};
use crate::map_clients::connects;

pub const CASES: &[Case] = &[
    fast!(one_identity_on_two_machines_is_told_at_both_and_to_who_sees_both),
    fast!(a_vpn_that_comes_later_does_not_take_what_is_for_the_overlay),
    fast!(who_fights_for_the_first_rule_is_named),
    fast!(a_network_inside_the_pool_gets_what_nobody_holds_and_is_named),
    fast!(an_interface_name_that_is_taken_is_another),
    fast!(lan_peers_with_link_local_addresses_only_join),
    fast!(a_workload_that_is_gone_elsewhere_is_refused_at_once),
    fast!(what_is_not_well_is_told_with_its_remedy),
];

/// What is promised for a kernel that is watched.
pub const PROMISED: Duration = Duration::from_secs(2);

/// The problems in `status` with that code.
pub fn problems(host: &Host, code: &str) -> Result<Vec<Value>> {
    let status = host.json(&["status"])?;
    let all = status["problems"].as_array().context("no `problems`")?;
    Ok(all.iter().filter(|p| p["code"] == code).cloned().collect())
}

/// Waits until `status` names a problem in words that hold each of `words`, `--check healthy` fails for it, and it has a
/// remedy; how long that took.
pub fn told(host: &Host, code: &str, words: &[&str]) -> Result<Duration> {
    let took = until(&format!("{code} is told"), SOON, || {
        let found = problems(host, code)?;
        let named = |p: &&Value| {
            words
                .iter()
                .all(|word| p["message"].as_str().is_some_and(|m| m.contains(word)))
        };
        let it = found
            .iter()
            .find(named)
            .with_context(|| format!("none of {found:?} has {words:?}"))?;
        ensure!(!text(it, "help")?.is_empty(), "no remedy in {it}");
        Ok(true)
    })?;
    ensure!(
        host.byway(&["status"])?.out.contains("! "),
        "no `!` line for {code}"
    );
    let healthy = host.byway(&["status", "--check", "healthy"])?;
    ensure!(healthy.code == 9, "{code} is no reason: {healthy}");
    Ok(took)
}

pub fn not_told(host: &Host, code: &str) -> Result<()> {
    until(&format!("{code} is gone"), SOON, || {
        Ok(problems(host, code)?.is_empty())
    })
    .map(drop)
}

/// A workload, and what `attach` said of it.
type Attached = (Netns, Value);

/// Two members with a workload each.
pub fn pair(lab: &Lab) -> Result<(Rc<Host>, Rc<Host>, Attached, Attached)> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (Rc::clone(&hosts[0]), Rc::clone(&hosts[1]));
    let (web, db) = (lab.workload("web")?, lab.workload("db")?);
    let (at_web, at_db) = (a.attach(&web, "lab", "web")?, b.attach(&db, "lab", "db")?);
    web.reaches(&v4(&at_db)?, SOON)?;
    web.reaches(&v6(&at_db)?, SOON)?;
    Ok((a, b, (web, at_web), (db, at_db)))
}

/// What `wg-quick` enters for a tunnel that takes everything: rules without a priority.
fn full_tunnel(a: &Host, verb: &str) -> Result<()> {
    for family in ["-4", "-6"] {
        for rule in [
            ["not", "fwmark", "51820", "table", "51820"].as_slice(),
            &["table", "main", "suppress_prefixlength", "0"],
        ] {
            a.ns().ip(&[&[family, "rule", verb], rule].concat())?;
        }
    }
    Ok(())
}

fn leads_into_the_overlay(a: &Host, to: &[&str], limit: Duration) -> Result<()> {
    until("packets for the overlay go into it", limit, || {
        for to in to {
            let way = a.ns().ip(&["route", "get", to])?;
            ensure!(way.contains(" dev bw-lab"), "{way}");
        }
        Ok(true)
    })
    .map(drop)
}

fn a_vpn_that_comes_later_does_not_take_what_is_for_the_overlay(lab: &Lab) -> Result<()> {
    let (a, b, (web, _), (_, db)) = pair(lab)?;
    let (b4, b6) = b.overlay("lab")?;
    a.ns().ip(&["link", "add", "vpn", "type", "bridge"])?;
    a.ns().ip(&["link", "set", "vpn", "up"])?;
    for family in ["-4", "-6"] {
        a.ns().ip(&[
            family, "route", "add", "default", "dev", "vpn", "table", "51820",
        ])?;
    }
    full_tunnel(&a, "add")?;
    leads_into_the_overlay(&a, &[&b4, &b6], PROMISED)?;
    ensure!(
        a.ns()
            .ip(&["route", "get", "192.0.2.1"])?
            .contains(" dev vpn"),
        "the VPN has everything else"
    );
    for to in [b4, b6] {
        a.ns().reaches(&to, SOON)?;
    }
    web.reaches(&v4(&db)?, SOON)?;
    web.reaches(&v6(&db)?, SOON)?;
    ensure!(
        problems(&a, "E-RULE-ORDER")?.is_empty(),
        "what was repaired is no problem"
    );
    full_tunnel(&a, "del")?;
    until("the rules are where they were", SOON, || {
        let rules = a.ns().ip(&["rule"])?;
        Ok(rules
            .lines()
            .filter(|l| l.contains("4110"))
            .all(|l| l.starts_with("4110:")))
    })?;
    a.ns().ip(&["link", "del", "vpn"]).map(drop)
}

fn who_fights_for_the_first_rule_is_named(lab: &Lab) -> Result<()> {
    let (a, b, ..) = pair(lab)?;
    let (b4, b6) = b.overlay("lab")?;
    for round in 1..=3 {
        a.ns().ip(&["rule", "add", "from", "all", "unreachable"])?;
        leads_into_the_overlay(&a, &[&b4], PROMISED).with_context(|| format!("round {round}"))?;
        ensure!(problems(&a, "E-RULE-ORDER")?.is_empty(), "round {round}");
    }
    a.ns().ip(&["rule", "add", "from", "all", "unreachable"])?;
    let took = told(&a, "E-RULE-ORDER", &["IPv4", "unreachable", "in the clear"])?;
    ensure!(took < PROMISED, "told after {took:?}");
    for family in ["-4", "-6"] {
        while a
            .ns()
            .run(&["ip", family, "rule", "del", "from", "all", "unreachable"])?
            .code
            == 0
        {}
    }
    not_told(&a, "E-RULE-ORDER")?;
    leads_into_the_overlay(&a, &[&b4, &b6], PROMISED)
}

fn a_network_inside_the_pool_gets_what_nobody_holds_and_is_named(lab: &Lab) -> Result<()> {
    let (a, b, (web, _), (_, db)) = pair(lab)?;
    let ((a4, _), (b4, _)) = (a.overlay("lab")?, b.overlay("lab")?);
    let pool = a4.split('.').take(2).collect::<Vec<_>>().join(".");
    let other = lab.workload("lan")?;
    a.ns().ip(&[
        "link",
        "add",
        "lan0",
        "type",
        "veth",
        "peer",
        "name",
        "lan1",
        "netns",
        other.name(),
    ])?;
    for (ns, link, last) in [(a.ns(), "lan0", 1), (&other, "lan1", 9)] {
        ns.ip(&["addr", "add", &format!("{pool}.250.{last}/24"), "dev", link])?;
        ns.ip(&["link", "set", link, "up"])?;
    }
    a.ns()
        .reaches(&format!("{pool}.250.9"), SOON)
        .context("the network that nobody in the subnet holds")?;
    other
        .reaches(&format!("{pool}.250.1"), SOON)
        .context("and back")?;
    told(
        &a,
        "E-CIDR-OVERLAP",
        &[
            &format!("{pool}.250.0/24"),
            "lan0",
            &format!("{pool}.0.0/16"),
            "bw-lab",
        ],
    )?;
    ensure!(
        text(&problems(&a, "E-CIDR-OVERLAP")?[0], "help")?.contains("byway leave lab"),
        "no remedy"
    );
    // What a member holds is not taken by who gives this machine an address in it.
    let held = b4.rsplit_once('.').context("an address")?.0.to_owned();
    a.ns()
        .ip(&["addr", "add", &format!("{held}.250/24"), "dev", "lan0"])?;
    told(
        &a,
        "E-CIDR-OVERLAP",
        &[&format!("members hold {held}.0/24"), "lan0"],
    )?;
    leads_into_the_overlay(&a, &[&b4], PROMISED)?;
    a.ns().reaches(&b4, SOON)?;
    web.reaches(&v4(&db)?, SOON)?;
    // A grant that comes later takes its part, and the word of it.
    a.ok(&[
        "lease",
        "add",
        "lab",
        &format!("{pool}.250.128/25"),
        "--member",
        "b",
    ])?;
    told(
        &a,
        "E-CIDR-OVERLAP",
        &[&format!("members hold {pool}.250.128/25")],
    )?;
    leads_into_the_overlay(&a, &[&format!("{pool}.250.200")], PROMISED)?;
    a.ns().reaches(&format!("{pool}.250.9"), SOON)?;
    a.ns().ip(&["link", "del", "lan0"])?;
    not_told(&a, "E-CIDR-OVERLAP")?;
    leads_into_the_overlay(&a, &[&format!("{pool}.250.9")], PROMISED)
}

fn an_interface_name_that_is_taken_is_another(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.ns().ip(&["link", "add", "bw-lab", "type", "bridge"])?;
    let first = a.json(&["create", "lab"])?;
    let name = text(&first, "interface")?;
    ensure!(
        name != "bw-lab" && name.starts_with("bw-lab") && name.len() <= 15,
        "{name}"
    );
    ensure!(
        a.ns()
            .ip(&["-d", "link", "show", "bw-lab"])?
            .contains(" bridge "),
        "theirs is as it was"
    );
    // Taken while no daemon ran.
    a.terminate()?;
    a.ns().ip(&["link", "add", &name, "type", "bridge"])?;
    a.start()?;
    until("the subnet has a third name", SOON, || {
        let now = text(&a.status("lab")?, "interface")?;
        Ok(now != name
            && now != "bw-lab"
            && a.ns().ip(&["addr", "show", &now])?.contains(&v4(&first)?))
    })?;
    until("nothing is wrong", SOON, || {
        Ok(a.byway(&["status", "--check", "healthy"])?.code == 0)
    })?;
    a.ns().ip(&["link", "del", &name])?;
    a.ns().ip(&["link", "del", "bw-lab"]).map(drop)
}

fn lan_peers_with_link_local_addresses_only_join(lab: &Lab) -> Result<()> {
    let hosts = [lab.host("a")?, lab.host("b")?];
    for host in &hosts {
        host.ns()
            .ip(&["addr", "flush", "dev", "eth0", "scope", "global"])?;
        host.rebase()?;
        host.start()?;
    }
    let [a, b] = &hosts;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    b.json(&["join", &invite])?;
    let (b4, b6) = b.overlay("lab")?;
    a.ns().reaches(&b4, SOON)?;
    a.ns().reaches(&b6, SOON).map(drop)
}

fn a_workload_that_is_gone_elsewhere_is_refused_at_once(lab: &Lab) -> Result<()> {
    let (a, b, (web, _), (_, db)) = pair(lab)?;
    let (db4, db6) = (v4(&db)?, v6(&db)?);
    b.ok(&["detach", "db"])?;
    for (from, name) in [(&web, "a workload"), (a.ns(), "the machine")] {
        for to in [&db4, &db6] {
            let how = connects(from, to, 80)?;
            ensure!(how == "EHOSTUNREACH", "{name} to {to}: {how}");
        }
    }
    // The same as at home.
    ensure!(
        connects(b.ns(), &db4, 80)? == "EHOSTUNREACH",
        "at the member itself"
    );
    ensure!(b.drops("lab", "no-route")? > 0, "it is counted");
    Ok(())
}

fn what_is_not_well_is_told_with_its_remedy(lab: &Lab) -> Result<()> {
    let (a, b, (_web, _), _) = pair(lab)?;
    // A map whose target goes.
    a.ok(&[
        "map",
        "add",
        "lab",
        "udp",
        "0.0.0.0:7001",
        "db:80",
        "--name",
        "gone",
    ])?;
    b.ok(&["detach", "db"])?;
    told(&a, "E-NO-TARGET", &["map gone of lab", "db:80"])?;
    a.ok(&["map", "rm", "lab", "gone"])?;
    // A map whose address goes.
    a.ns().ip(&["addr", "add", "10.99.7.7/32", "dev", "eth0"])?;
    a.ok(&[
        "map",
        "add",
        "lab",
        "udp",
        "10.99.7.7:7002",
        "web:80",
        "--name",
        "moved",
    ])?;
    ensure!(
        problems(&a, "E-LISTEN-GONE")?.is_empty(),
        "the address is here"
    );
    a.ns().ip(&["addr", "del", "10.99.7.7/32", "dev", "eth0"])?;
    told(&a, "E-LISTEN-GONE", &["map moved of lab", "10.99.7.7"])?;
    a.ok(&["map", "rm", "lab", "moved"])?;
    // Nothing of ours is said on our own links and counted as a loss.
    ensure!(
        a.drops("lab", "filtered")? == 0,
        "own chatter is counted: {}",
        a.status("lab")?["drops"]
    );
    // No datagram gets through.
    lab.rules("table bridge cut { chain c { type filter hook forward priority 0; udp dport 4100 drop; }; }")?;
    until("UDP is missed", Duration::from_secs(60), || {
        Ok(!problems(&a, "E-UDP-UNANSWERED")?.is_empty())
    })?;
    told(&a, "E-UDP-UNANSWERED", &["b answers no datagram", "TCP"])?;
    lab.switch()
        .ok(&["nft", "delete", "table", "bridge", "cut"])?;
    // The cable is out.
    lab.unplug(&a)?;
    told(&a, "E-NO-LINK", &["eth0 has no carrier"])?;
    for verb in [&["netcheck", "--json"][..], &["doctor", "b", "--json"]] {
        let told = a.byway(verb)?;
        ensure!(told.code == 9, "{told}");
        let findings = told.value()?["findings"].clone();
        let codes: Vec<_> = findings
            .as_array()
            .into_iter()
            .flatten()
            .map(|f| &f["code"])
            .collect();
        ensure!(codes == ["E-NO-LINK"], "{verb:?}: {findings}");
    }
    // The owner ends the subnet while a member is away.
    lab.unplug(&b)?;
    lab.plug(&a)?;
    not_told(&a, "E-NO-LINK")?;
    a.ok(&["destroy", "lab"])?;
    lab.plug(&b)?;
    until("the member hears of it", Duration::from_secs(60), || {
        Ok(!problems(&b, "E-SUBNET-ENDED")?.is_empty())
    })?;
    told(&b, "E-SUBNET-ENDED", &["owner of subnet lab ended it"]).map(drop)
}

/// A cloned disk: the copy has every key and record of the first machine, and another address.
fn one_identity_on_two_machines_is_told_at_both_and_to_who_sees_both(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let copy = lab.host("copy")?;
    // A restart is another life of one machine, and no second machine.
    b.terminate()?;
    b.start()?;
    b.ns().reaches(&a.overlay("lab")?.0, SOON)?;
    for host in [a, b] {
        ensure!(
            problems(host, "E-IDENTITY-TWICE")?.is_empty(),
            "a restart is taken for a clone"
        );
    }
    sh(
        "cp",
        &[
            "-a",
            &b.state().to_string_lossy(),
            &copy.state().to_string_lossy(),
        ],
    )?;
    copy.start()?;
    for host in [a, b, &copy] {
        let told = until(
            &format!("{} tells of it", host.name()),
            Duration::from_secs(90),
            || {
                let told = problems(host, "E-IDENTITY-TWICE")?;
                let message = told
                    .first()
                    .map(|p| p["message"].to_string())
                    .unwrap_or_default();
                Ok(message.contains(b.under4()) && message.contains(copy.under4()))
            },
        )?;
        println!("  {} tells of it after {told:?}", host.name());
        let status = host.byway(&["status", "--check", "healthy"])?;
        ensure!(
            status.code == 9,
            "exit {} though one identity runs twice",
            status.code
        );
    }
    let told = problems(a, "E-IDENTITY-TWICE")?;
    ensure!(
        told.iter()
            .any(|p| p["message"].to_string().contains("the identity of b ")),
        "{told:?}"
    );
    Ok(())
}
