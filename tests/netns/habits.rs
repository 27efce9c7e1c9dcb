//! What people type without looking it up, and what they expect to see then.

use anyhow::{Result, ensure};

use crate::everyday::at_terminal;
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Lab, SOON, text, until, v4};

pub const CASES: &[Case] = &[
    fast!(
        a_join_at_a_terminal_says_whom_it_asks_and_waits_visibly,
        "script"
    ),
    fast!(alone_it_shows_the_status_of_the_daemon),
    fast!(a_port_alone_is_mapped_on_every_address_of_both_families),
    fast!(a_host_is_tried_by_udp_and_by_tcp_wherever_a_peer_is_named),
    fast!(the_only_subnet_is_meant_but_by_verbs_that_end_something),
    fast!(a_workload_whose_name_is_in_two_subnets_is_told_by_the_subnet),
    fast!(what_is_said_twice_is_no_error),
];

fn what_is_said_twice_is_no_error(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let first = a.json(&["create", "lab"])?;
    let again = a.json(&["create", "lab"])?;
    ensure!(
        again["invite"].is_null() && again["id"] == first["id"],
        "{again} after {first}"
    );
    let told = a.ok(&["create", "lab"])?;
    ensure!(
        told.contains("invite      none: it was created before; byway invite create lab makes one"),
        "{told}"
    );
    a.fails(
        6,
        "E-SUBNET-EXISTS",
        &["create", "lab", "--cidr4", "10.99.0.0/16"],
    )?;
    b.json(&["join", &text(&first, "invite")?])?;
    let invite = text(&a.json(&["invite", "create", "lab"])?, "id")?;
    let prefix = "10.77.200.0/24";
    for (words, changes) in [
        (&["invite", "revoke", &invite][..], true),
        (&["lease", "add", "lab", prefix, "--member", "b"], true),
        (&["lease", "rm", "lab", prefix], true),
        (&["dns", "add", "lab", "www", "10.77.1.1"], true),
        (&["member", "role", "lab", "b", "admin"], true),
        (&["member", "remove", "lab", "b"], true),
    ] {
        for changed in [changes, false] {
            let done = a.json(words)?;
            ensure!(done["changed"] == changed, "{words:?}: {done}");
        }
    }
    a.fails(5, "E-NO-MEMBER", &["member", "remove", "lab", "nobody"])?;
    a.fails(5, "E-NO-LEASE", &["lease", "rm", "lab", "192.0.2.0/24"])
        .map(drop)
}

fn a_join_at_a_terminal_says_whom_it_asks_and_waits_visibly(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let id = text(&a.json(&["create", "lab"])?, "id")?;
    let empty = b.ok(&["status"])?;
    ensure!(
        empty.contains("try:  byway create NAME") && empty.contains("try:  byway join ID|INVITE"),
        "{empty}"
    );
    let own = text(&b.json(&["id"])?, "fingerprint")?;
    let peer = format!("/ip4/{}/tcp/4100", a.under4());
    let answer = at_terminal(&b, "", &["join", &id, "--peer", &peer, "--timeout", "6s"])?;
    ensure!(
        answer.code == 7 && answer.out.contains("E-PENDING"),
        "{answer}"
    );
    // In this order: what is typed is said before anybody answered.
    let mut rest = answer.out.as_str();
    let asked = format!(" at {}:", a.under4());
    for part in [
        &format!("asking for subnet {id}: {peer}"),
        &format!("your fingerprint  {own}"),
        "asked",
        &asked,
        "waiting for approval: ",
    ] {
        let Some((_, after)) = rest.split_once(part) else {
            anyhow::bail!("no {part:?} in its place: {answer}")
        };
        rest = after;
    }
    // From here on it is shown each second how long it has waited. When that begins is the machine's matter.
    let shown: Vec<u32> = rest
        .split("waiting for approval: ")
        .filter_map(|s| s.split_once(" s of 6 s")?.0.parse().ok())
        .collect();
    ensure!(
        shown.len() >= 2 && shown.is_sorted() && shown.first() < shown.last(),
        "it stands still: {answer}"
    );
    // Programs get none of it.
    let piped = b.byway(&["join", &id, "--timeout", "4s"])?;
    ensure!(
        piped.code == 7 && !piped.err.contains("asking for") && !piped.err.contains("waiting for"),
        "{piped}"
    );
    let shown = b.ok(&["status"])?;
    ensure!(
        shown.contains("pending") && shown.contains(&own) && shown.contains("  asked  "),
        "{shown}"
    );
    let status = b.json(&["status", &id])?["subnets"][0].clone();
    let who = text(&a.json(&["id"])?, "peer_id")?;
    ensure!(
        status["state"] == "pending" && status["id"] == *id && status["name"] == "lab",
        "{status}"
    );
    ensure!(
        status["waiting"]["fingerprint"] == *own && status["waiting"]["reached"] == true,
        "{status}"
    );
    ensure!(status["waiting"]["asked"][0]["peer_id"] == *who, "{status}");
    b.fails(9, "E-DEGRADED", &["status", "--check", "ready"])?;
    a.ok(&["member", "approve", "lab", "b"])?;
    until("who was approved waits no more", SOON, || {
        let all = b.json(&["status"])?["subnets"].clone();
        let [one] = all.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Ok(false);
        };
        Ok(one["state"] == "ready" && one["waiting"].is_null())
    })?;
    // Who is in already is not told that it asks.
    let again = at_terminal(&b, "", &["join", &id])?;
    ensure!(
        again.code == 0 && !again.out.contains("asking for"),
        "{again}"
    );
    Ok(())
}

fn alone_it_shows_the_status_of_the_daemon(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let shown = a.ok(&[])?;
    ensure!(
        shown.starts_with("subnet lab  ") && shown == a.ok(&["status"])?,
        "{shown}"
    );
    ensure!(a.json(&[])?["schema"] == "byway.status/1");
    Ok(())
}

fn a_port_alone_is_mapped_on_every_address_of_both_families(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    a.json(&["create", "lab"])?;
    let web = lab.workload("web")?;
    let at = a.attach(&web, "lab", "web")?;
    let _servers = [
        web.serve("tcp", "0.0.0.0", 80)?,
        web.serve("tcp", "::", 80)?,
    ];
    let (outside, before) = (lab.host("x")?, a.ns().ruleset()?);
    let listens = || -> Result<Vec<(String, String)>> {
        let list = a.json(&["map", "ls", "lab"])?["maps"].clone();
        list.as_array()
            .into_iter()
            .flatten()
            .map(|m| Ok((text(m, "name")?, text(m, "listen")?)))
            .collect()
    };
    let both = |name: &str| {
        ["0.0.0.0:8080", "[::]:8080"]
            .map(|at| (name.to_owned(), at.to_owned()))
            .to_vec()
    };
    a.ok(&[
        "map", "add", "lab", "tcp", "8080", "web:80", "--name", "site",
    ])?;
    ensure!(listens()? == both("site"), "{:?}", listens()?);
    for address in [a.under4(), a.under6()] {
        outside.ns().tcp(address, 8080, 1000)?;
    }
    for address in ["127.0.0.1", "::1"] {
        a.ns().tcp(address, 8080, 1000)?;
    }
    let metrics = a.ok(&["metrics"])?;
    ensure!(
        metrics.matches("byway_map_connections_total{").count() == 1,
        "one map is one series: {metrics}"
    );
    a.fails(
        6,
        "E-PORT-TAKEN",
        &["map", "add", "lab", "tcp", ":8080", "web:80"],
    )?;
    a.ok(&["map", "rm", "lab", "site"])?;
    ensure!(
        listens()?.is_empty() && a.ns().ruleset()? == before,
        "one name takes both parts away"
    );
    a.ok(&["map", "add", "lab", "tcp", ":8080", "web:80"])?;
    ensure!(listens()? == both("tcp-8080"), "{:?}", listens()?);
    a.ok(&["map", "rm", "lab", "tcp", "8080"])?;
    // Where only one family leads there, and where only one is let in, the other is not opened.
    let literal = format!("{}:80", v4(&at)?);
    for words in [
        &["8080", literal.as_str()][..],
        &["8080", "web:80", "--allow", "10.99.0.0/16"],
    ] {
        a.ok(&[&["map", "add", "lab", "tcp"], words].concat())?;
        ensure!(
            listens()? == both("tcp-8080")[..1],
            "{words:?}: {:?}",
            listens()?
        );
        a.ok(&["map", "rm", "lab", "tcp", "8080"])?;
    }
    a.fails(
        2,
        "E-FAMILY",
        &[
            "map", "add", "lab", "tcp", "8080", &literal, "--allow", "fd00::/8",
        ],
    )?;
    // A port that one family has in use is free in neither.
    let _server = a.ns().serve("tcp", "::1", 8080)?;
    a.fails(
        6,
        "E-PORT-IN-USE",
        &["map", "add", "lab", "tcp", "8080", "web:80"],
    )?;
    ensure!(
        listens()?.is_empty() && a.ns().ruleset()? == before,
        "nothing is left of it"
    );
    Ok(())
}

fn a_host_is_tried_by_udp_and_by_tcp_wherever_a_peer_is_named(lab: &Lab) -> Result<()> {
    let alone = |name: &str, listen: &str| -> Result<_> {
        let host = lab.host(name)?;
        host.set_env("BYWAY_TRANSPORT_LAN_DISCOVERY", "false");
        host.set_env("BYWAY_TRANSPORT_LISTEN", listen);
        host.start()?;
        Ok(host)
    };
    let (a, b, c) = (
        alone("a", "tcp/4100")?,
        alone("b", "udp/4100")?,
        alone("c", "udp/4100")?,
    );
    let id = text(&a.json(&["create", "lab", "--admission", "open"])?, "id")?;
    let joined = b.json(&["join", &id, "--peer", a.under4(), "--timeout", "20s"])?;
    ensure!(joined["state"] == "ready", "{joined}");
    let by_port = format!("[{}]:4100", b.under6());
    let said = c.ok(&["peer", "connect", &by_port])?;
    ensure!(
        said.contains(&text(&b.json(&["id"])?, "peer_id")?),
        "{said}"
    );
    // Who did not answer is called what was typed.
    let nobody = "10.99.0.250:4100";
    let answer = c.fails(
        8,
        "E-NOBODY",
        &[
            "join",
            "00000000000000000000000000",
            "--peer",
            nobody,
            "--timeout",
            "2s",
        ],
    )?;
    ensure!(
        answer.err.contains(&format!("no answer from {nobody}")),
        "{answer}"
    );
    c.fails(1, "E-CONNECT", &["peer", "connect", "10.99.0.250:4100"])?;
    c.fails(5, "E-NO-PEER", &["peer", "connect", "nosuch"])?;
    c.fails(2, "E-MULTIADDR", &["peer", "connect", "10.99.0.250:99999"])
        .map(drop)
}

fn the_only_subnet_is_meant_but_by_verbs_that_end_something(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let [a, _] = &hosts[..] else {
        unreachable!("two hosts were asked for")
    };
    let web = lab.workload("web")?;
    a.ok(&["attach", "netns", web.name(), "--name", "web"])?;
    ensure!(a.json(&["subnet", "show"])?["name"] == "lab");
    for words in [
        &["member", "ls"][..],
        &["member", "label", "b", "site=berlin"],
        // Both of these can be read with the first word as the subnet, too.
        &["member", "label", "b", "site=berlin", "rack=7"],
        &["subnet", "host", "closed"],
        &["lease", "ls"],
        &["invite", "create"],
        &["map", "add", "tcp", "8080", "web:80", "--name", "site"],
        &["dns", "add", "www", "10.99.9.1", "10.99.9.2"],
        &["dns", "ls"],
    ] {
        a.ok(words)?;
    }
    ensure!(a.ok(&["dns", "ls", "lab"])?.contains("10.99.9.2"));
    let labels = a.ok(&["member", "ls", "--subnet", "lab"])?;
    ensure!(
        labels.contains("rack=7") && labels.contains("site=berlin"),
        "{labels}"
    );
    for words in [
        &["leave"][..],
        &["destroy"],
        &["member", "remove", "b"],
        &["member", "deny", "b"],
        &["lease", "rm", "10.99.9.0/24"],
        &["dns", "rm", "www"],
        &["map", "rm", "site"],
    ] {
        a.fails(2, "E-", words)?;
    }
    a.json(&["create", "two"])?;
    let answer = a.fails(2, "E-USAGE", &["member", "ls"])?;
    ensure!(
        answer.err.contains("lab") && answer.err.contains("two"),
        "{answer}"
    );
    a.fails(
        2,
        "E-USAGE",
        &["attach", "netns", web.name(), "--name", "x"],
    )?;
    // A word that can only be the subnet is not replaced by another.
    a.fails(5, "E-NO-SUBNET", &["member", "ls", "nosuch"])?;
    let c = lab.node("c")?;
    c.fails(5, "E-NO-SUBNET", &["member", "ls"])?;
    c.fails(3, "E-DAEMON", &["--socket", "/nowhere/s", "member", "ls"])
        .map(drop)
}

fn a_workload_whose_name_is_in_two_subnets_is_told_by_the_subnet(lab: &Lab) -> Result<()> {
    let a = lab.node("a")?;
    for (subnet, ns) in [("lab", "w1"), ("two", "w2")] {
        a.json(&["create", subnet])?;
        a.attach(&lab.workload(ns)?, subnet, "web")?;
    }
    let answer = a.fails(2, "E-AMBIGUOUS", &["workload", "show", "web"])?;
    ensure!(
        !answer.err.contains("byway detach"),
        "who looks is not led to a verb that ends something: {answer}"
    );
    for subnet in ["lab", "two"] {
        ensure!(a.json(&["workload", "show", "web", "--subnet", subnet])?["subnet"] == subnet);
        a.ok(&["lease", "ls", "--subnet", subnet])?;
    }
    a.ok(&["detach", "web", "--subnet", "two"])?;
    ensure!(a.json(&["workload", "show", "web"])?["subnet"] == "lab");
    Ok(())
}
