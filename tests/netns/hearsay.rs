//! What others say of addresses, prefixes and names, and what this machine does on their word.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, Netns, SOON, text, until};

pub const CASES: &[Case] = &[
    fast!(heard_addresses_lead_to_nobodys_service),
    fast!(a_member_returns_although_it_was_only_heard_of),
    fast!(a_founders_public_prefixes_and_names_are_applied_to_nobody_unasked),
    fast!(a_prefix_that_holds_a_resolver_or_gateway_is_never_joined),
];

/// Counts new TCP connections and name questions that arrive in a namespace, by port.
struct Knocks<'a>(&'a Netns);

impl Knocks<'_> {
    fn count<'a>(ns: &'a Netns, dir: &std::path::Path, ports: &[u16]) -> Result<Knocks<'a>> {
        let rules: Vec<String> = ports
            .iter()
            .flat_map(|port| {
                let tcp = format!(
                    "tcp dport {port} tcp flags & (syn | ack) == syn counter comment \"t{port}\""
                );
                [tcp, format!("udp dport {port} counter comment \"u{port}\"")]
            })
            .collect();
        let table = format!(
            "table inet knocks {{ chain in {{ type filter hook input priority -300; {}; }}; }}",
            rules.join("; ")
        );
        let file = dir.join("knocks.nft");
        std::fs::write(&file, table)?;
        ns.ok(&["nft", "-f", &file.to_string_lossy()])?;
        Ok(Knocks(ns))
    }

    /// Packets that came for a port, over TCP (connections) and UDP.
    fn at(&self, port: u16) -> Result<u64> {
        let list: serde_json::Value = serde_json::from_str(
            &self
                .0
                .ok(&["nft", "-j", "list", "table", "inet", "knocks"])?,
        )?;
        let rules = list["nftables"].as_array().context("a list of rules")?;
        let of = |rule: &serde_json::Value| {
            let comment = rule["rule"]["comment"].as_str()?;
            let packets = rule["rule"]["expr"]
                .as_array()?
                .iter()
                .find_map(|e| e["counter"]["packets"].as_u64())?;
            (comment == format!("t{port}") || comment == format!("u{port}")).then_some(packets)
        };
        Ok(rules.iter().filter_map(of).sum())
    }
}

/// The resolver file that programs started in a host's namespace read; it goes with this.
struct Resolver(PathBuf);

impl Resolver {
    fn of(host: &Host, server: &str) -> Result<Resolver> {
        let dir = PathBuf::from("/etc/netns").join(host.ns().name());
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("resolv.conf"), format!("nameserver {server}\n"))?;
        Ok(Resolver(dir))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.join("resolv.conf"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A daemon whose announcement says that it is at all of these.
fn advertiser(lab: &Lab, name: &str, addresses: &[String]) -> Result<std::rc::Rc<Host>> {
    let host = lab.host(name)?;
    let list: Vec<String> = addresses.iter().map(|a| format!("{a:?}")).collect();
    let config = format!(
        "version = 1\n[node]\nname = \"{name}\"\n[transport]\nlan_discovery = false\nadvertise = [{}]\n",
        list.join(", ")
    );
    std::fs::write(host.dir().join("byway.toml"), config)?;
    host.start()?;
    Ok(host)
}

fn heard_addresses_lead_to_nobodys_service(lab: &Lab) -> Result<()> {
    let (a, victim) = (lab.host("a")?, lab.host("victim")?);
    let here = Knocks::count(a.ns(), a.dir(), &[6379])?;
    let there = Knocks::count(victim.ns(), victim.dir(), &[25, 53, 8025])?;
    [&a, &victim].iter().try_for_each(|host| host.rebase())?;
    let resolver = Resolver::of(&a, victim.under4())?;
    a.start()?;
    let invite = text(&a.json(&["create", "lab"])?, "invite")?;
    let said = [
        "/ip4/127.0.0.1/tcp/6379".to_owned(),
        "/ip6/::1/tcp/6379".to_owned(),
        "/ip6/64:ff9b::7f00:1/tcp/6379".to_owned(),
        format!("/ip4/{}/tcp/6379", a.under4()),
        format!("/ip6/{}/udp/6379/quic-v1", a.under6()),
        format!("/ip4/{}/tcp/25", victim.under4()),
        "/dns4/leak.attacker.example/tcp/4100".to_owned(),
        format!("/ip4/{}/tcp/8025", victim.under4()),
    ];
    let evil = advertiser(lab, "evil", &said)?;
    evil.json(&["join", &invite])?;
    until("a has its announcement", SOON, || {
        let shown = a.json(&["peer", "show", "evil"])?;
        Ok(shown["addresses"]
            .as_array()
            .is_some_and(|all| all.iter().any(|x| x.to_string().contains("8025"))))
    })?;
    let shown = a.json(&["peer", "show", "evil"])?["addresses"].clone();
    for forbidden in ["127.0.0.1", "::1", "64:ff9b", "6379", "tcp/25\"", "dns4"] {
        ensure!(
            !shown.to_string().contains(forbidden),
            "{forbidden} is in the address book: {shown}"
        );
    }
    evil.terminate()?;
    let asked = there.at(53)?;
    std::thread::sleep(Duration::from_secs(8));
    let (own, mail, names, other) = (
        here.at(6379)?,
        there.at(25)?,
        there.at(53)?,
        there.at(8025)?,
    );
    println!("  own services {own}, mail {mail}, names {names}, a stranger's high port {other}");
    ensure!(own == 0, "{own} packets went to services of this machine");
    ensure!(mail == 0, "{mail} connections to somebody's mail server");
    ensure!(
        names == asked,
        "{} name questions on hearsay",
        names - asked
    );
    // One try, and what TCP itself repeats of it; nobody listens there, so that it is refused at once.
    ensure!(
        other <= 2,
        "{other} connections to a stranger's port in eight seconds"
    );
    drop(resolver);
    Ok(())
}

fn a_member_returns_although_it_was_only_heard_of(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, b] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let (a4, b4) = (a.overlay("lab")?.0, b.overlay("lab")?.0);
    a.ns().reaches(&b4, SOON)?;
    // Both were away at once, and the one that dialled starts before the other is there.
    a.terminate()?;
    b.terminate()?;
    lab.unplug(a)?;
    b.start()?;
    std::thread::sleep(Duration::from_secs(4));
    a.start()?;
    std::thread::sleep(Duration::from_secs(4));
    // Whatever each had heard of the other was tried by now, and nobody answered. No address comes or goes here.
    lab.plug(a)?;
    let took = b.ns().reaches(&a4, Duration::from_secs(30))?;
    println!("  back after {:.1} s", took.as_secs_f64());
    Ok(())
}

fn a_founders_public_prefixes_and_names_are_applied_to_nobody_unasked(lab: &Lab) -> Result<()> {
    let (evil, good, b) = (lab.node("evil")?, lab.node("good")?, lab.node("b")?);
    b.json(&["join", &text(&good.json(&["create", "work"])?, "invite")?])?;
    let w = lab.workload("w")?;
    let resolver = b.attach(&w, "work", "w")?["dns"][0]
        .as_str()
        .context("a resolver")?
        .to_owned();
    let question = ["github.com", "A"];
    let before = w.dig(&resolver, &question)?.status;
    let made = evil.json(&[
        "create",
        "game",
        "--cidr4",
        "140.82.0.0/16",
        "--cidr6",
        "2a00:1450::/40",
        "--domain",
        "github.com",
    ])?;
    let invite = text(&made, "invite")?;
    let flags = [
        "--allow-prefix",
        "140.82.0.0/16",
        "--allow-prefix",
        "2a00:1450::/40",
        "--allow-domain",
        "github.com",
    ];
    ensure!(
        made["join_flags"] == flags.join(" ").as_str(),
        "create says what a joiner has to type: {made}"
    );
    let refused = b.fails(7, "E-JOIN-POLICY", &["join", &invite])?;
    ensure!(
        refused.err.contains(&flags.join(" ")),
        "the error says what to type: {refused}"
    );
    let fingerprint = text(&evil.json(&["id"])?, "fingerprint")?;
    ensure!(
        refused.err.contains(&fingerprint),
        "and whose it is: {refused}"
    );
    ensure!(
        b.ns().run(&["ip", "route", "get", "140.82.121.3"])?.code != 0,
        "nothing of it is routed"
    );
    ensure!(evil.members("game")? == ["evil"], "and nobody was asked");
    // The same invite, with a person's word.
    let joined = b.json(&[&["join", &invite], &flags[..]].concat())?;
    ensure!(
        joined["domain"] == "github.com" && joined["owner_fingerprint"] == fingerprint.as_str(),
        "{joined}"
    );
    ensure!(
        b.ns()
            .ok(&["ip", "route", "get", "140.82.121.3"])?
            .contains("bw-game"),
        "what was allowed is routed"
    );
    let own = text(&serde_json::json!({"a": b.overlay("game")?.0}), "a")?;
    ensure!(
        b.ns().dig(&own, &["b.github.com", "A"])?.status == "NOERROR",
        "and its names are answered to this machine"
    );
    let between = w.dig(&resolver, &question)?.status;
    ensure!(
        between == before,
        "a workload of another subnet is told {between} instead of {before}"
    );
    b.ok(&["leave", "game"])?;
    let host = b.ns().dig(&b.overlay("work")?.0, &question)?.status;
    ensure!(
        host == before,
        "after leaving, this machine is told {host} instead of {before}"
    );
    ensure!(
        w.dig(&resolver, &question)?.status == before,
        "after leaving, the workload is told something else"
    );
    Ok(())
}

fn a_prefix_that_holds_a_resolver_or_gateway_is_never_joined(lab: &Lab) -> Result<()> {
    let (evil, b) = (lab.node("evil")?, lab.host("b")?);
    b.ns().ip(&[
        "route",
        "add",
        "default",
        "via",
        "10.201.0.1",
        "dev",
        "eth0",
        "onlink",
    ])?;
    b.rebase()?;
    let resolver = Resolver::of(&b, "10.200.0.53")?;
    b.start()?;
    for (name, cidr4, what) in [
        ("one", "10.200.0.0/16", "resolver 10.200.0.53"),
        ("two", "10.201.0.0/16", "gateway 10.201.0.1"),
    ] {
        let invite = text(&evil.json(&["create", name, "--cidr4", cidr4])?, "invite")?;
        for words in [
            &["join", &invite][..],
            &[
                "join",
                &invite,
                "--allow-prefix",
                cidr4,
                "--allow-prefix",
                "10.0.0.0/8",
            ],
        ] {
            let refused = b.fails(7, "E-JOIN-POLICY", words)?;
            ensure!(
                refused.err.contains(what) && !refused.err.contains("--allow"),
                "{refused}"
            );
        }
        // Nor does this machine found such a subnet, or pick such a prefix by itself.
        b.fails(6, "E-CIDR-OVERLAP", &["create", name, "--cidr4", cidr4])?;
    }
    b.assert_clean()?;
    drop(resolver);
    Ok(())
}
